"""IAR2 against its authors' code: what a picture of pairs costs, on the same weights.

    python scripts/studies/iar2_speed.py --original IAR2            # measure, print
    python scripts/studies/iar2_speed.py --original IAR2 --record   # and write nbs/studies/iar2_speed.json
    python scripts/studies/iar2_speed.py --original IAR2 --sizes "6 layers of 384" --side 24 --batches 1

IAR2 is a clone of github.com/sjtuplayer/IAR2. Its sampling stops before the first picture and knows one grid, so the
least is mended on the loaded modules: `generate` hands `sample` an argument that it does not take (left out); the
window is kept in bfloat16, whatever the weights (now theirs, fp32), and has 24x24 cells, whatever the model (now the
model's); dropout stays on in all but the outermost module (now off).

Both sample with attended guidance, 1.75 to 3.0, in fp32 on one thread, from weights that our writer wrote under their
names. Greedily they must draw the same codes, else nothing is timed. Then runs take turns, ours and theirs, and a ratio
is that of a pair; its median and quartiles count. Rows of other sizes in the file stay. Minutes on one quiet core.
"""
import importlib
import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from scripts.studies.dar_speed import counted, quartiles, timed

FILE = ROOT / "nbs" / "studies" / "iar2_speed.json"
START, END, ATTENTION = 1.75, 3.0, 0.05
SIZES = {"6 layers of 384": (6, 384, 6), "12 layers of 768": (12, 768, 12)}      # layers, width, heads


@dataclass
class Options:
    "What to measure."
    original: Path
    "a clone of the authors' repository"
    sizes: tuple[str, ...] = tuple(SIZES)
    "of SIZES"
    side: int = 8
    "cells along a side of the picture"
    batches: tuple[int, ...] = (1, 8)
    "pictures at once; guidance doubles the rows"
    pairs: int = 9
    "runs of each, in turns"
    record: bool = False
    "write nbs/studies/iar2_speed.json"


class Theirs:
    "The authors' sampler around their model."
    def __init__(self, folder: Path, spec: dict, weights: dict, side: int):
        sys.path.insert(0, str(folder))
        self.code = importlib.import_module("autoregressive.models.generate")
        module = importlib.import_module("autoregressive.models.gpt_inference")
        sys.path.remove(str(folder))
        names = ("n_layer", "dim", "n_head", "factorized_n_layer", "block_size", "num_classes")
        self.model = module.Transformer(module.ModelArgs(**{name: spec[name] for name in names})).eval()
        self.model.load_state_dict(weights, strict=True)
        self.model.extractor = window(module, side)
        sample = getattr(self.code.sample, "theirs", self.code.sample)
        def takes_what_it_knows(*args, sample_logits=True, **kw): return sample(*args, **kw)
        takes_what_it_knows.theirs = sample
        self.code.sample = takes_what_it_knows

    def __call__(self, labels, cells: int, greedy: bool = False):
        "Codes (b, n, 2)."
        how = dict(temperature=(1.0, 1.0), top_k=(int(greedy),) * 2, top_p=(1.0, 1.0), w_attn=ATTENTION)
        return torch.stack(self.code.generate(self.model, labels, cells, ((START, END),) * 2, **how), -1)


def window(module, side: int):
    "Their window of the model's grid, in the precision of its states."
    class Window(module.WindowExtractor):
        def extract(self, h, mode="train"):
            zeros = torch.zeros
            torch.zeros = lambda *size, dtype=None, **kw: zeros(*size, dtype=h.dtype, **kw)
            try: return super().extract(h, "inference")
            finally: torch.zeros = zeros
    return Window(side, side)


def ours(spec: dict, side: int):
    "Our model of these arguments, whose outputs are not zero."
    from vgnb.generators.semantic_detail import IAR2
    model, _ = IAR2.make(spec, grid=(side, side))
    g = torch.Generator().manual_seed(0)
    for layer in model.outputs(): layer.weight.data.normal_(0, 0.02, generator=g)
    return model.eval()


def sampled(model, labels, side: int, greedy: bool = False):
    "Codes (b, n, 2)."
    from vgnb.draws import Keyed
    from vgnb.generators.generator import Cond, Grid
    from vgnb.sampling.attended_guidance import AttendedGuidance
    from vgnb.sampling.pick import Pick
    from vgnb.sampling.sampler import Sampler
    sampler = Sampler(model, guidance=AttendedGuidance(START, END, ATTENTION), picks=(Pick(greedy=greedy),) * 2,
                      rows=len(labels))
    return sampler.sample(Cond(labels), torch.arange(len(labels)), Keyed(0), grid=Grid((side, side)))


def measured(o: Options, size: str, batch: int, model, theirs: Theirs) -> dict:
    "A row: seconds of both, the ratio of pairs, the operations of both. Errors: other codes."
    from vgnb.core import Mismatch, check
    labels, cells = torch.arange(batch) * 7 % 10, o.side ** 2
    same = torch.equal(sampled(model, labels, o.side, greedy=True), theirs(labels, cells, greedy=True))
    check(same, "original", o.original, f"draws other codes ({size}, batch {batch}): nothing is timed", Mismatch)

    runs = {"ours": lambda: sampled(model, labels, o.side), "theirs": lambda: theirs(labels, cells)}
    times = [{name: timed(run) for name, run in runs.items()} for _ in range(o.pairs)]
    row = {"size": size, "batch": batch, "cells": cells}
    for k, unit in enumerate(("wall", "cpu")):
        row[f"{unit}_ratio"] = quartiles([pair["theirs"][k] / pair["ours"][k] for pair in times])
        for name in runs: row[f"{unit}_{name}"] = quartiles([pair[name][k] for pair in times])[1]
    return row | {f"gflop_{name}": counted(run)[1] for name, run in runs.items()}


def record(o: Options, rows: list[dict]):
    "Put the new rows into the committed file. Errors: it holds rows of other settings."
    from vgnb.core import Mismatch, check
    settings = {
        "original": "sjtuplayer/IAR2 at 46a2437",
        "device": f"{platform.processor() or platform.machine()}, one thread",
        "torch": torch.__version__,
        "pairs": o.pairs}
    study = json.loads(FILE.read_text()) if FILE.exists() else settings | {"rows": []}
    def key(row): return int(row["size"].split()[0]), row["cells"], row["batch"]
    kept = [row for row in study["rows"] if key(row) not in map(key, rows)]
    there = {name: study[name] for name in settings}
    check(not kept or there == settings, "record", FILE, f"holds rows of {there}; measure all anew", Mismatch)
    command = {"command": "python scripts/studies/iar2_speed.py --original IAR2 --record"}
    FILE.write_text(json.dumps(command | settings | {"rows": sorted(kept + rows, key=key)}, indent=1) + "\n")


def main(o: Options) -> int:
    from vgnb.core import Missing, check
    from vgnb.zoo import export_published
    there = (o.original / "autoregressive" / "models" / "generate.py").is_file()
    check(there, "original", o.original, "must be a clone of the authors' repository", Missing)
    torch.set_num_threads(1)
    rows = []
    for size in o.sizes:
        layers, dim, heads = SIZES[size]
        spec = {"n_layer": layers, "dim": dim, "n_head": heads, "factorized_n_layer": 5, "num_classes": 10,
                "block_size": o.side ** 2}
        model = ours(spec, o.side)
        theirs = Theirs(o.original, spec, export_published(model), o.side)
        for batch in o.batches:
            rows.append(measured(o, size, batch, model, theirs))
            print(rows[-1], flush=True)
    if o.record: record(o, rows)
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda words: main(typed_cli(Options, args=words, description=__doc__))))
