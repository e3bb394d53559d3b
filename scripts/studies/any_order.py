"""Measures the shipped any-order generators: quality against steps, guidance and order, and what a sample costs.

    python scripts/studies/any_order.py tiny-randar                    # measure, print
    python scripts/studies/any_order.py tiny-randar --record           # and write nbs/studies/any_order.json
    python scripts/studies/any_order.py tiny-maskgit tiny-pgm --parts cost --record

Quality: COUNT samples of balanced classes, judged by shapes-judge (share that is what was asked for, and Fréchet distance of its features to 2,000 held-out shapes).
Cost: wall time of the same request by all named models, interleaved in one process, fp32, medians; and multiply-adds counted while one micro-batch is sampled.
Recorded parts are replaced model by model; the others stay. Some minutes a model on one CPU core.
"""
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
FILE = ROOT / "nbs" / "studies" / "any_order.json"
FEW = ("halton", "random", "confidence", "raster")      # for models that run over the whole grid in every step
ORDERS = ("raster", "random", "halton", "subsample", "checkerboard", "hilbert", "spiral-in", "spiral-out", "confidence", "uncertainty")   # the last two look at all open cells, so not in all steps


@dataclass
class Options:
    "Which models, and what of them."
    models: tyro.conf.Positional[tuple[str, ...]]
    "shipped pipelines, or folders"
    parts: tuple[Literal["steps", "orders", "schedules", "cost"], ...] = ("steps", "orders", "schedules", "cost")
    "what to measure"
    count: int = 1000
    "samples of a point"
    steps: tuple[int, ...] = (64, 48, 32, 22, 16, 12, 8, 6, 4, 2)
    "numbers of steps"
    scales: tuple[float, ...] = (1.0, 2.0, 3.0)
    "guidance scales"
    repeats: int = 7
    "interleaved timings of a request; the median counts"
    record: bool = False
    "write nbs/studies/any_order.json"


class Bench:
    "The held-out pictures and the judge, looked at once."
    def __init__(self, count: int):
        from vgnb.data.shapes import Shapes
        from vgnb.evaluation.features import load_extractor
        from vgnb.evaluation.measure import look_at
        from vgnb.evaluation.samples import Samples
        self.count, self.judge = count, load_extractor("shapes-judge")
        self.real = Samples(*Shapes(2000, 32, seed=1).batch(np.arange(2000)), id="2000 held-out shapes (seed 1)")
        self.base = look_at(self.judge, self.real)

    def point(self, pipe, **settings) -> dict:
        "Accuracy and FID of the samples at some settings."
        from vgnb.evaluation.measure import measure
        from vgnb.evaluation.samples import Samples
        labels = np.arange(self.count) % len(pipe.classes)
        start = time.perf_counter()
        images = pipe.sample(labels.tolist(), seed=0, **settings)
        spent = time.perf_counter() - start
        values = measure(Samples(images, labels, id=f"{self.count} samples"), self.real, self.judge, metrics=("fid", "accuracy"), uint8_rule="round", seed=0, base=self.base).values
        row = {**settings, "accuracy": values["accuracy"], "fid": round(values["fid"], 3), "seconds": round(spent, 1)}
        print("  ", "  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
        return row


def flops(pipe, **settings) -> int:
    "Multiply-adds x 2 of one sample, counted over one micro-batch."
    from torch.nn.attention import SDPBackend, sdpa_kernel
    rows = pipe.sampler(**settings).rows
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter: pipe.codes([i % len(pipe.classes) for i in range(rows)], **settings)
    return counter.get_total_flops() // rows


def cost(pipes: dict, o: Options) -> dict:
    "Wall time of one micro-batch and FLOPs of one sample: {model: [{steps, cfg_scale, ms, mflop}]}, interleaved."
    out = {name: [] for name in pipes}
    for steps in o.steps:
        for scale in (1.0, 3.0):
            settings = dict(steps=steps, cfg_scale=scale, order="halton", schedule="arccos", rows=50)
            times = {name: [] for name in pipes}
            for _ in range(o.repeats + 1):
                for name, pipe in pipes.items():
                    start = time.perf_counter()
                    pipe.codes([i % 10 for i in range(50)], **settings)
                    times[name].append(time.perf_counter() - start)
            for name, pipe in pipes.items():
                out[name].append({**settings, "ms": round(20 * statistics.median(times[name][1:]), 3), "mflop": round(flops(pipe, **settings) / 1e6, 2)})     # the first warms up; ms a sample
                print("  ", name, out[name][-1], flush=True)
    return out


def main(o: Options) -> int:
    from vgnb.pipeline import Pipeline
    torch.set_num_threads(1)
    pipes, bench = {name: Pipeline.from_pretrained(name) for name in o.models}, Bench(o.count)
    found = {name: {} for name in pipes}
    for name, pipe in pipes.items():
        third, best, cached = -(-pipe.grid.n // 3), pipe.sampling.cfg_scale, "cached" in pipe.generator.traits
        print(name)
        if "steps" in o.parts: found[name]["steps"] = [bench.point(pipe, steps=s, cfg_scale=w) for w in o.scales for s in o.steps]
        if "orders" in o.parts: found[name]["orders"] = [bench.point(pipe, order=order, steps=s, cfg_scale=best) for order in (ORDERS if cached else FEW)
                                                           for s in ((pipe.grid.n, third, pipe.grid.n // 8) if cached and order in ORDERS[:-2] else (third, pipe.grid.n // 8))]
        if "schedules" in o.parts:
            found[name]["schedules"] = [bench.point(pipe, schedule=k, steps=s, cfg_scale=best) for k in ("cosine", "linear", "square", "root", "arccos", "randar") for s in (third, pipe.grid.n // 8)]
    if "cost" in o.parts:
        for name, rows in cost(pipes, o).items(): found[name]["cost"] = {"with": list(pipes), "rows": rows}
    if o.record:
        study = json.loads(FILE.read_text()) if FILE.exists() else {"models": {}}
        for name, parts in found.items(): study["models"].setdefault(name, {"count": o.count}).update(parts)
        study |= {"device": f"{platform.processor() or platform.machine()}, one thread", "torch": torch.__version__, "extractor": bench.judge.id}
        study.setdefault("commands", {}).update({name: f"python scripts/studies/any_order.py {' '.join(o.models)} --record" + (f" --count {o.count}" if o.count != 1000 else "") + (f" --steps {' '.join(map(str, o.steps))}" if o.steps != Options.steps else "") + ("" if len(o.parts) == 4 else f" --parts {' '.join(o.parts)}") for name in o.models})
        FILE.write_text(json.dumps(study, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    from vgnb.core import VgnbError
    try: sys.exit(main(tyro.cli(Options, description=__doc__)))
    except VgnbError as e: print(e, file=sys.stderr); sys.exit(2)
