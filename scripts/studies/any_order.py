"""Measures the shipped any-order generators: quality against steps, guidance and order, and what a sample costs.

    python scripts/studies/any_order.py tiny-randar                    # measure, print
    python scripts/studies/any_order.py tiny-randar --record           # and write nbs/studies/any_order.json
    python scripts/studies/any_order.py tiny-maskgit tiny-pgm --parts cost --record
    python scripts/studies/any_order.py tiny-randar tiny-lpd --parts seeds --record     # families beside each other

Quality: COUNT samples of balanced classes, judged by shapes-judge (share that is what was asked for, and Fréchet
distance of its features to 2,000 held-out shapes). Cost: wall time of the same request by all named models, interleaved
in one process, fp32, medians; and multiply-adds counted while one micro-batch is sampled. Seeds: quality as each model
is shipped (its own order, schedule, guidance), with several sampling seeds and an operation count beside it; a model
that draws one token after the other has one row. Recorded parts are replaced model by model; the others stay. Some
minutes a model on one CPU core.
"""
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
FILE = ROOT / "nbs" / "studies" / "any_order.json"
Part = Literal["steps", "orders", "schedules", "cost", "seeds"]
PARTS = get_args(Part)
FEW = ("halton", "random", "confidence", "raster")      # for models that run over the whole grid in every step
ADAPTIVE = ("confidence", "uncertainty")                # look at all open cells in every step, so not one cell a step
FIXED = ("raster", "random", "halton", "subsample", "checkerboard", "hilbert", "spiral-in", "spiral-out")
CURVES = ("cosine", "linear", "square", "root", "arccos", "randar")


@dataclass
class Options:
    "Which models, and what of them."
    models: tyro.conf.Positional[tuple[str, ...]]
    "shipped pipelines, or folders"
    parts: tuple[Part, ...] = PARTS[:-1]
    "what to measure"
    count: int = 1000
    "samples of a point"
    steps: tuple[int, ...] = (64, 48, 32, 22, 16, 12, 8, 6, 4, 2)
    "numbers of steps"
    scales: tuple[float, ...] = (1.0, 2.0, 3.0)
    "guidance scales"
    seeds: tuple[int, ...] = (0, 1, 2)
    "sampling seeds of the part seeds"
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
        self.count = count
        self.judge = load_extractor("shapes-judge")
        self.real = Samples(*Shapes(2000, 32, seed=1).batch(np.arange(2000)), id="2000 held-out shapes (seed 1)")
        self.base = look_at(self.judge, self.real)

    def point(self, pipe, seed: int = 0, **settings) -> dict:
        "Accuracy and FID of the samples at some settings."
        from vgnb.evaluation.measure import measure
        from vgnb.evaluation.samples import Samples
        from vgnb.kinds import to_json
        labels = np.arange(self.count) % len(pipe.classes)
        start = time.perf_counter()
        images = pipe.sample(labels.tolist(), seed=seed, **settings)
        spent = time.perf_counter() - start
        made = Samples(images, labels, id=f"{self.count} samples")
        values = measure(made, self.real, self.judge, metrics=("fid", "accuracy"), uint8_rule="round", seed=0,
                         base=self.base).values
        found = {"accuracy": values["accuracy"], "fid": round(values["fid"], 3), "seconds": round(spent, 1)}
        row = to_json(settings) | found
        print("  ", "  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
        return row


def flops(pipe, **settings) -> int:
    "Multiply-adds x 2 of one sample, counted over one micro-batch."
    from torch.nn.attention import SDPBackend, sdpa_kernel
    rows = pipe.sampler(**settings).rows
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        pipe.codes([i % len(pipe.classes) for i in range(rows)], **settings)
    return counter.get_total_flops() // rows


def interleaved(pipes: dict, repeats: int, settings: dict) -> dict:
    "Median milliseconds a sample of each model, their runs taking turns; the first turn warms up."
    times = {name: [] for name in pipes}
    for _ in range(repeats + 1):
        for name, pipe in pipes.items():
            start = time.perf_counter()
            pipe.codes([i % 10 for i in range(50)], **settings)
            times[name].append(time.perf_counter() - start)
    return {name: 20 * statistics.median(seconds[1:]) for name, seconds in times.items()}    # of 50 samples


def cost(pipes: dict, o: Options) -> dict:
    "Wall time of one micro-batch and FLOPs of one sample: {model: [{steps, guidance, ms, mflop}]}."
    out = {name: [] for name in pipes}
    for steps in o.steps:
        for scale in (1.0, 3.0):
            settings = dict(steps=steps, guidance=scale, order="halton", schedule="arccos", rows=50)
            for name, ms in interleaved(pipes, o.repeats, settings).items():
                mflop = flops(pipes[name], **settings) / 1e6
                out[name].append({**settings, "ms": round(ms, 3), "mflop": round(mflop, 2)})
                print("  ", name, out[name][-1], flush=True)
    return out


def by_order(bench: Bench, pipe) -> list[dict]:
    "Every order at a third and an eighth of the steps; models that are cheap a cell also at one cell a step."
    cells, third = pipe.grid.n, -(-pipe.grid.n // 3)
    cached, scale = "cached" in pipe.generator.traits, pipe.sampling.guidance.scale
    rows = []
    for order in (*FIXED, *ADAPTIVE) if cached else FEW:
        every = (cells,) if cached and order in FIXED else ()
        for steps in (*every, third, cells // 8):
            rows.append(bench.point(pipe, order=order, steps=steps, guidance=scale))
    return rows


def by_schedule(bench: Bench, pipe) -> list[dict]:
    third, scale = -(-pipe.grid.n // 3), pipe.sampling.guidance.scale
    return [bench.point(pipe, schedule=schedule, steps=steps, guidance=scale)
            for schedule in CURVES for steps in (third, pipe.grid.n // 8)]


def by_seed(bench: Bench, pipe, o: Options) -> list[dict]:
    "As the model is shipped: quality at numbers of steps and sampling seeds, and the operations of one sample."
    cells = pipe.grid.n
    singly = pipe.generator.most == 1
    every = [cells] if singly else [s for s in o.steps if s <= cells]
    rows = []
    for steps in every:
        settings = {} if singly else {"steps": steps}
        mflop = round(flops(pipe, **settings) / 1e6, 2)
        for seed in o.seeds:
            print(f"   seed {seed}", end="")
            rows.append({"steps": steps, "seed": seed, "mflop": mflop, **bench.point(pipe, seed, **settings)})
    return rows


def command(o: Options) -> str:
    "What repeats this measurement."
    words = ["python scripts/studies/any_order.py", *o.models, "--record"]
    if o.count != Options.count: words += ["--count", o.count]
    if o.steps != Options.steps: words += ["--steps", *o.steps]
    if o.parts != Options.parts: words += ["--parts", *o.parts]
    if "seeds" in o.parts and o.seeds != Options.seeds: words += ["--seeds", *o.seeds]
    return " ".join(map(str, words))


def record(o: Options, found: dict, extractor: str):
    "Put the new parts into the committed file."
    study = json.loads(FILE.read_text()) if FILE.exists() else {"models": {}}
    for name, parts in found.items(): study["models"].setdefault(name, {"count": o.count}).update(parts)
    study["device"] = f"{platform.processor() or platform.machine()}, one thread"
    study["torch"] = torch.__version__
    study["extractor"] = extractor
    key = "seed_commands" if o.parts == ("seeds",) else "commands"
    study.setdefault(key, {}).update({name: command(o) for name in o.models})
    FILE.write_text(json.dumps(study, indent=1) + "\n")


def main(o: Options) -> int:
    from vgnb.pipeline import Pipeline
    torch.set_num_threads(1)
    pipes, bench = {name: Pipeline.from_pretrained(name) for name in o.models}, Bench(o.count)
    found = {name: {} for name in pipes}
    for name, pipe in pipes.items():
        print(name)
        parts = found[name]
        if "steps" in o.parts:
            parts["steps"] = [bench.point(pipe, steps=s, guidance=scale) for scale in o.scales for s in o.steps]
        if "orders" in o.parts: parts["orders"] = by_order(bench, pipe)
        if "schedules" in o.parts: parts["schedules"] = by_schedule(bench, pipe)
        if "seeds" in o.parts: parts["seeds"] = by_seed(bench, pipe, o)
    if "cost" in o.parts:
        for name, rows in cost(pipes, o).items(): found[name]["cost"] = {"with": list(pipes), "rows": rows}
    if o.record: record(o, found, bench.judge.id)
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda words: main(typed_cli(Options, args=words, description=__doc__))))
