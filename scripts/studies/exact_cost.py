"""Runs of fixed micro-batches, summed in one order (`exact`), against ordinary ones: how far apart, and what it costs.

    python scripts/studies/exact_cost.py             # measure, print
    python scripts/studies/exact_cost.py --record    # and write nbs/studies/exact_cost.json

A small raster generator on made-up codes, in fp32, one thread a process, gloo. First it is trained on one, two, three
and four processes, ordinarily (one micro-batch each) and with `exact`; told is how far the weights are from those of
one process, relative, after some of the steps. Then two sizes of it make steps on one process and on two, with as many
rows a micro-batch ordinarily (`accumulate`) as with `exact`; told are the medians of a step, by the clock and by the
processor. On a machine with other work the clock says little, and where processes wait for each other the processor's
time holds some of the waiting. A few minutes on two cores.
"""
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from vgnb.data.codes import ArrayCodes
from vgnb.generators.raster import RasterConfig, RasterTransformer
from vgnb.processes import Processes
from vgnb.training.recipes import GeneratorRecipe, Optim
from vgnb.training.run_folder import Run
from vgnb.training.tasks import CodeData, GeneratorTask
from vgnb.training.trainer import Trainer

FILE = ROOT / "nbs" / "studies" / "exact_cost.json"
WORLDS = (1, 2, 3, 4)
PARTS = 8              # micro-batches of an exact step
SMALL = RasterConfig(4, 64, 4, ffn_multiple=64, vocab=64, grid=(4, 4), classes=10)
LARGE = RasterConfig(4, 192, 6, ffn_multiple=64, vocab=64, grid=(4, 4), classes=10)
MODELS = {"small": SMALL, "large": LARGE}


@dataclass
class Options:
    "What to measure."
    steps: int = 32
    "of the runs whose weights are held against each other"
    timed: int = 10
    "steps whose time is taken, but for the first two"
    parts: tuple[Literal["distances", "costs"], ...] = ("distances", "costs")
    "what is measured; the rest of the record stays"
    record: bool = False
    "write nbs/studies/exact_cost.json"
    work: str = ""
    "what one of several processes is told to do; for this script itself"


class Watched:
    "A stepper that notes how long steps take, and the weights after them."
    def __init__(self, stepper, module: torch.nn.Module):
        self.stepper, self.module = stepper, module
        self.weights, self.times = {}, []

    def __call__(self, done: int, micros: list):
        before = time.perf_counter(), time.process_time()
        self.stepper(done, micros)
        after = time.perf_counter(), time.process_time()
        self.times.append([1000 * (b - a) for a, b in zip(before, after)])
        self.weights[done + 1] = torch.cat([p.detach().flatten() for p in self.module.parameters()])

    def __getattr__(self, name): return getattr(self.stepper, name)      # what else a trainer asks of it


def trained(model: str, exact: int, accumulate: int, steps: int, folder: Path) -> Watched:
    "Train a model from the same beginning."
    numbers = np.random.default_rng(0)
    codes = ArrayCodes(numbers.integers(0, 64, (500, 1, 16, 1)), numbers.integers(0, 10, 500), (64,), (4, 4))
    config = MODELS[model]
    recipe = GeneratorRecipe(model=config, steps=steps, batch=48, precision="fp32", exact=exact, optim=Optim(lr=1e-3))
    run = Run(accumulate=accumulate, save_every=10 ** 6, log_every=10 ** 6, tracker="none", progress=False)
    generator = RasterTransformer(config, 0)
    trainer = Trainer(GeneratorTask(generator), CodeData(codes), recipe, folder, run)
    trainer.stepper = Watched(trainer.stepper, generator)
    trainer.fit()
    return trainer.stepper


def one_of_many(work: dict):
    "What a process does: train, and leave what it saw."
    torch.set_num_threads(1)
    out = Path(work.pop("out"))
    seen = trained(**work, folder=out / "run")
    if Processes().main: torch.save({"weights": seen.weights, "times": seen.times}, out / "seen.pt")


def on(world: int, **work) -> dict:
    "What the first of `world` processes saw."
    with tempfile.TemporaryDirectory() as room:
        told = json.dumps(work | {"out": room})
        command = [sys.executable, ROOT / "scripts" / "launch.py", "--nproc-per-node", world, __file__, "--work", told]
        subprocess.run(list(map(str, command)), check=True)
        return torch.load(Path(room) / "seen.pt", weights_only=True)


def distances(o: Options) -> list[dict]:
    "Relative distances from one process's weights, by step."
    shown = [step for step in (1, 2, 4, 8, 16, 32, 64, 128) if step <= o.steps]
    rows = []
    for exact in (0, PARTS):
        told = dict(model="small", exact=exact, accumulate=1, steps=o.steps)
        seen = {world: on(world, **told)["weights"] for world in WORLDS}
        for world in WORLDS[1:]:
            apart = [float((seen[world][s] - seen[1][s]).norm() / seen[1][s].norm()) for s in shown]
            rows.append({"exact": exact, "processes": world, "steps": shown, "apart": apart})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def costs(o: Options) -> list[dict]:
    "Medians of a step in milliseconds, (clock, processor)."
    rows = []
    for model in MODELS:
        for world in (1, 2):
            row = {"model": model, "processes": world}
            for name, exact, accumulate in (("ordinary", 0, PARTS // world), ("exact", PARTS, 1)):
                times = on(world, model=model, exact=exact, accumulate=accumulate, steps=o.timed)["times"][2:]
                row[name] = [round(median(way), 1) for way in zip(*times)]
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def main(o: Options) -> int:
    if o.work:
        one_of_many(json.loads(o.work))
        return 0
    models = {name: RasterTransformer(config, 0) for name, config in MODELS.items()}
    study = json.loads(FILE.read_text()) if FILE.exists() else {}
    study |= {
        "command": "python scripts/studies/exact_cost.py --record",
        "device": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread a process, gloo",
        "torch": torch.__version__, "micro_batches": PARTS,
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}}
    if "distances" in o.parts: study["distances"] = distances(o)
    if "costs" in o.parts: study["costs"] = costs(o)
    if o.record: FILE.write_text(json.dumps(study, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda words: main(typed_cli(Options, args=words, description=__doc__))))
