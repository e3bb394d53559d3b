"""Runs parity fixtures: an adapter gets a case's inputs and the *names, shapes and dtypes* of its outputs.

What it returns is compared with the recorded outputs. An adapter is found by system and `upstream_class` (and, where
one class is called in several ways, by a condition on the spec), never by a case's name.
"""
import fnmatch
import importlib
import json
import pkgutil
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import save_file

from .fill import fill_one, fill_state

ADAPTERS: list = []
EVERY_OTHER = "[..., ::2]"    # behind the name of a parameter to poke: only these columns of it


def adapter(system: str, upstream_class: str, when=None):
    """Register `run(case) -> {out name: tensor}` for cases of `system`.

    Only those whose `upstream_class` matches (fnmatch) and for which `when(spec)` holds.
    """
    def register(run):
        ADAPTERS.append((system, upstream_class, when, run))
        return run

    return register


@dataclass
class Case:
    "What an adapter sees: the JSON, the inputs, and of the outputs only names, shapes and dtypes."
    system: str
    name: str
    spec: dict
    inputs: dict
    outs: dict          # {name: (shape, dtype string)}
    poke: str | None = None    # a published parameter to change by 5% (the perturbation test)
    folder: Path | None = None # where files lie that the case speaks of

    def __getitem__(self, key): return self.inputs[key]
    def __contains__(self, key): return key in self.inputs
    @property
    def config(self): return self.spec.get("config", {})

    def fill(self, manifest=None, seed=None, keep=None) -> dict:
        "The published state dict (see fill.py); arguments default to the case's own."
        if manifest is None: manifest = self.spec["manifest"]
        if seed is None: seed = self.spec["seed"]
        if keep is None: keep = self.spec.get("keep", ())
        state = fill_state(manifest, seed, keep)

        scales = self.spec.get("conv_weight_scale")
        if isinstance(scales, dict):         # a single number is for all convolutions: the adapter's affair
            for name, scale in scales.items(): state[name] = state[name] * scale
        tied = self.spec.get("tied") or {}
        for name, source in tied.items(): state[name] = state[source]

        if self.poke: self._poke(state)
        return state

    def _poke(self, state: dict):
        "Change the parameter `poke` by 5%, also where the state dict has it without its module's prefix."
        poked = self.poke.removesuffix(EVERY_OTHER)
        change = torch.tensor([1.05, 1.0 if poked != self.poke else 1.05])
        for name, value in state.items():
            meant = name == poked or poked.endswith("." + name)
            if not meant or not value.is_floating_point(): continue
            columns = value.shape[-1] if value.dim() else 1
            state[name] = value * change.repeat(columns // 2 + 1)[:columns].view(-1 if value.dim() else ())

    def fill_one(self, name, shape, seed=None):
        "The published values of one parameter; the seed defaults to the case's own."
        if seed is None: seed = self.spec["seed"]
        return torch.from_numpy(fill_one(name, shape, seed))


def load_case(path: Path, poke=None) -> Case:
    "A fixture from its JSON file, the answers left on disk."
    spec = json.loads(path.read_text())
    inputs, outs = {}, {}
    tensors = path.with_suffix(".safetensors")
    if tensors.exists():
        with safe_open(tensors, "pt") as f:
            for name in f.keys():
                if name.startswith("in."):
                    inputs[name] = f.get_tensor(name)
                elif name.startswith("out."):
                    header = f.get_slice(name)
                    outs[name] = tuple(header.get_shape()), header.get_dtype()
    return Case(path.parent.name, path.stem, spec, inputs, outs, poke, path.parent)


def find(case: Case):
    "The adapter for a case, or None."
    for system, pattern, when, run in ADAPTERS:
        named = system == case.system and fnmatch.fnmatchcase(case.spec["upstream_class"], pattern)
        if named and (when is None or when(case.spec)): return run
    return None


def rule(tolerance: dict, name: str) -> dict:
    "The tolerance of one tensor: the case's, overridden by the first pattern of `tensors` that matches."
    base = {k: v for k, v in tolerance.items() if k != "tensors"}
    patterns = tolerance.get("tensors", {})
    over = next((v for pattern, v in patterns.items() if fnmatch.fnmatchcase(name, pattern)), {})
    return {**base, **over}


def whole(values: np.ndarray) -> bool:
    "Whether these are integers or booleans."
    return values.dtype.kind in "iub"


def differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    "Absolute differences; 0 between equal infinities and between two NaNs, infinite where only one is NaN."
    with np.errstate(invalid="ignore"): d = np.abs(a - b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    d[same] = 0
    d[np.isnan(d)] = np.inf
    return d


def allowed(a: np.ndarray, dtype: np.dtype, t: dict):
    "The largest difference from `a` (recorded as `dtype`) under rule `t`: one number, or one for each value."
    if dtype == np.uint8: return t.get("levels", 0)
    if dtype.kind in "iub": return 0
    if "rmax" in t: return t["rmax"] * np.abs(a).max()
    with np.errstate(invalid="ignore"): return t.get("atol", 0.0) + np.abs(a) * t.get("rtol", 0.0)


def holds(name: str, ref: np.ndarray, got: np.ndarray, tolerance: dict, refs: dict) -> tuple[bool, float]:
    "(within tolerance, largest absolute difference)."
    comparable = ref.shape == got.shape and (whole(got) or not whole(ref))
    if not comparable: return False, float("inf")

    t = rule(tolerance, name)
    where = np.ones(ref.shape, bool)
    if "where" in t: where = np.broadcast_to(refs[t["where"]].astype(bool), ref.shape)
    a, b = ref.astype(np.float64)[where], got.astype(np.float64)[where]

    d = differences(a, b)
    if not d.size: return True, 0.0
    bound = np.nan_to_num(allowed(a, ref.dtype, t), nan=0.0, posinf=np.inf)   # 0 * inf: then d is 0 where both agree
    return bool((d <= bound).mean() >= t.get("fraction", 1.0)), float(d.max())


def _numpy(x) -> np.ndarray:
    "A tensor, array or number as numpy."
    return x.detach().cpu().numpy() if torch.is_tensor(x) else np.asarray(x)


def compare_pairs(label: str, pairs: list, got: list) -> tuple[str, str]:
    "(verdict, line) of a case without tensors: its pairs are (input, output)."
    wrong = [pair for pair, g in zip(pairs, got) if pair[1] != g]
    verdict = "FAIL" if wrong else "PASS"
    line = f"{verdict} {label} max_abs={len(wrong)} compared={len(pairs) - len(wrong)}/{len(pairs)}"
    return verdict, line + "".join(f" {pair}" for pair in wrong[:2])


def compare_statements(label: str, got: dict) -> tuple[str, str]:
    "(verdict, line) of a case that only describes files: what it says of them, and whether that was found true."
    wrong = [statement for statement, holds_true in got.items() if not holds_true]
    verdict = "FAIL" if wrong or not got else "PASS"
    line = f"{verdict} {label} max_abs={len(wrong)} compared={len(got) - len(wrong)}/{len(got)}"
    return verdict, line + "".join(f" {statement!r}" for statement in wrong[:2])


def compare_tensors(case: Case, label: str, refs: dict, got: dict) -> tuple[str, str]:
    "(verdict, line) of a case with tensors."
    worst, bad = 0.0, []
    for name in case.outs:
        ok, largest = False, float("inf")
        if name in got: ok, largest = holds(name, refs[name], got[name], case.spec["tolerance"], refs)
        worst = max(worst, largest)
        if not ok: bad.append(f"{name}({largest:.3g})")

    verdict, total = "FAIL" if bad else "PASS", len(case.outs)
    line = f"{verdict} {label} max_abs={worst:.3g} compared={total - len(bad)}/{total} {' '.join(bad[:4])}"
    return verdict, line.rstrip()


def write_dump(folder: Path, case: Case, got: dict):
    "Write what was computed, as far as the case asks for it, to FOLDER/<system>/<case>.safetensors."
    file = folder / case.system / f"{case.name}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    asked = {name: value for name, value in got.items() if name in case.outs}
    save_file({name: torch.from_numpy(np.array(value, copy=True, order="C")) for name, value in asked.items()}, file)


def run_case(path: Path, dump: Path | None = None, poke=None) -> tuple[str, str]:
    "(PASS | FAIL | MISSING, the line to print) for one fixture."
    case = load_case(path, poke)
    label = f"{case.system}/{case.name}"
    run = find(case)
    if run is None: return "MISSING", f"MISSING {label} upstream_class={case.spec['upstream_class']}"

    try:
        torch.manual_seed(0)
        with torch.random.fork_rng(): got = run(case)
    except Exception as e:
        traceback.print_exc()
        return "FAIL", f"FAIL {label} {type(e).__name__}: {e}"

    tensors = path.with_suffix(".safetensors")
    if not tensors.exists():
        has_pairs = "pairs" in case.spec
        return compare_pairs(label, case.spec["pairs"], got) if has_pairs else compare_statements(label, got)
    got = {name: _numpy(value) for name, value in got.items()}
    if dump: write_dump(dump, case, got)
    return compare_tensors(case, label, load_file(tensors), got)


def load_adapters():
    "Import every adapter module of this package once."
    import tests.parity as package
    names = {module.name for module in pkgutil.iter_modules(package.__path__)}
    for name in sorted(names - {"harness", "fill"}): importlib.import_module(f"{package.__name__}.{name}")
