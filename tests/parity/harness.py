"""Runs parity fixtures: a case's inputs and the *names, shapes and dtypes* of its outputs go to an adapter; what comes back is compared.

An adapter is found by system and `upstream_class` (and, where one class is called in several ways, by a condition on the spec), never by a case's name.
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
from safetensors.torch import save_file

from .fill import fill_one, fill_state

ADAPTERS: list = []


def adapter(system: str, upstream_class: str, when=None):
    "Register `run(case) -> {out name: tensor}` for cases of `system` whose `upstream_class` matches (fnmatch) and for which `when(spec)` holds."
    return lambda run: ADAPTERS.append((system, upstream_class, when, run)) or run


@dataclass
class Case:
    "What an adapter sees: the JSON, the inputs, and of the outputs only names, shapes and dtypes."
    system: str
    name: str
    spec: dict
    inputs: dict
    outs: dict          # {name: (shape, dtype string)}
    poke: str | None = None    # a published parameter to change by 5% (the perturbation test)

    def __getitem__(self, key): return self.inputs[key]
    def __contains__(self, key): return key in self.inputs
    @property
    def config(self): return self.spec.get("config", {})

    def fill(self, manifest=None, seed=None, keep=None) -> dict:
        "The published state dict (see fill.py); arguments default to the case's own."
        state = fill_state(self.spec["manifest"] if manifest is None else manifest, self.spec["seed"] if seed is None else seed,
                           self.spec.get("keep", ()) if keep is None else keep)
        for name, scale in [(k, v) for k, v in (self.spec.get("conv_weight_scale") or {}).items()] if isinstance(self.spec.get("conv_weight_scale"), dict) else []:
            state[name] = state[name] * scale
        for a, b in (self.spec.get("tied") or {}).items(): state[a] = state[b]
        if self.poke:
            for k in state:
                if (k == self.poke or self.poke.endswith("." + k)) and state[k].is_floating_point(): state[k] = state[k] * 1.05
        return state

    def fill_one(self, name, shape, seed=None): return torch.from_numpy(fill_one(name, shape, self.spec["seed"] if seed is None else seed))


def load_case(path: Path, poke=None) -> Case:
    "A fixture from its JSON file, the answers left on disk."
    spec, inputs, outs = json.loads(path.read_text()), {}, {}
    tensors = path.with_suffix(".safetensors")
    if tensors.exists():
        with safe_open(tensors, "pt") as f:
            for k in f.keys():
                if k.startswith("in."): inputs[k] = f.get_tensor(k)
                elif k.startswith("out."): outs[k] = (tuple(f.get_slice(k).get_shape()), f.get_slice(k).get_dtype())
    return Case(path.parent.name, path.stem, spec, inputs, outs, poke)


def find(case: Case):
    "The adapter for a case, or None."
    for system, cls, when, run in ADAPTERS:
        if system == case.system and fnmatch.fnmatchcase(case.spec["upstream_class"], cls) and (when is None or when(case.spec)): return run
    return None


def rule(tolerance: dict, name: str) -> dict:
    "The tolerance of one tensor: the case's, overridden by the first pattern of `tensors` that matches."
    base = {k: v for k, v in tolerance.items() if k != "tensors"}
    over = next((v for k, v in tolerance.get("tensors", {}).items() if fnmatch.fnmatchcase(name, k)), {})
    return {**base, **over}


def holds(name: str, ref: np.ndarray, got: np.ndarray, tolerance: dict, refs: dict) -> tuple[bool, float]:
    "(within tolerance, largest absolute difference)."
    t = rule(tolerance, name)
    if ref.shape != got.shape or (ref.dtype.kind in "iub" and got.dtype.kind not in "iub"): return False, float("inf")
    where = np.broadcast_to(refs[t["where"]].astype(bool), ref.shape) if "where" in t else np.ones(ref.shape, bool)
    a, b = ref.astype(np.float64)[where], got.astype(np.float64)[where]
    with np.errstate(invalid="ignore"): d, scale = np.abs(a - b), np.abs(a) * t.get("rtol", 0.0)
    d[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
    d[np.isnan(d)] = np.inf
    if not d.size: return True, 0.0
    if ref.dtype.kind in "iub": bound = t.get("levels", 0) if ref.dtype == np.uint8 else 0
    elif "rmax" in t: bound = t["rmax"] * np.abs(a).max()
    else: bound = t.get("atol", 0.0) + scale
    bound = np.nan_to_num(bound, nan=0.0, posinf=np.inf)          # 0 * inf: infinities must be equal, and then d is 0
    return bool((d <= bound).mean() >= t.get("fraction", 1.0)), float(d.max())


def _numpy(x) -> np.ndarray:
    "A tensor, array or number as numpy."
    return x.detach().cpu().numpy() if torch.is_tensor(x) else np.asarray(x)


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
    if not path.with_suffix(".safetensors").exists():             # JSON-only: pairs of (input, output)
        wrong = [p for p, g in zip(case.spec["pairs"], got) if p[1] != g]
        n = len(case.spec["pairs"])
        return ("FAIL" if wrong else "PASS"), f"{'FAIL' if wrong else 'PASS'} {label} max_abs={len(wrong)} compared={n - len(wrong)}/{n}" + "".join(f" {w}" for w in wrong[:2])
    got = {k: _numpy(v) for k, v in got.items()}
    if dump:
        file = dump / case.system / f"{case.name}.safetensors"; file.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: torch.from_numpy(np.array(v, copy=True, order="C")) for k, v in got.items() if k in case.outs}, file)
    from safetensors.numpy import load_file
    refs, worst, bad = load_file(path.with_suffix(".safetensors")), 0.0, []
    for k in case.outs:
        ok, w = holds(k, refs[k], got[k], case.spec["tolerance"], refs) if k in got else (False, float("inf"))
        worst = max(worst, w)
        if not ok: bad.append(f"{k}({w:.3g})")
    verdict = "FAIL" if bad else "PASS"
    return verdict, f"{verdict} {label} max_abs={worst:.3g} compared={len(case.outs) - len(bad)}/{len(case.outs)} {' '.join(bad[:4])}".rstrip()


def load_adapters():
    "Import every adapter module of this package once."
    import tests.parity as package
    for m in pkgutil.iter_modules(package.__path__):
        if m.name not in ("harness", "fill"): importlib.import_module(f"{package.__name__}.{m.name}")
