"""What real training steps allocate, by torch's own record of its allocator. python -m tests.measured_memory NAME ...

Counted is every byte that torch's CPU allocator gives out while a task is built and three steps are taken: weights,
buffers, gradients, optimizer, averages, copies for undoing, what passes keep and what kernels ask for on the way. Not
counted: Python, code, threads. Each case prints its peak as JSON.
"""
import gc
import json
import sys
from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity, profile

from vgnb.draws import At
from vgnb.generators.masked import MaskedConfig
from vgnb.generators.random_order import RandomOrderConfig
from vgnb.generators.raster import RasterConfig
from vgnb.kinds import kind_of, kinds
from vgnb.processes import Processes
from vgnb.training.exact import ExactStepper, Turns
from vgnb.training.feed import Share
from vgnb.training.plan import Cluster, plan_run
from vgnb.training.recipes import GeneratorRecipe, Recipe, recipe
from vgnb.training.step import Stepper, TrainState
from vgnb.training.tasks import GeneratorTask, TokenizerTask

def raster(layers: int, dim: int, batch: int, **changes) -> GeneratorRecipe:
    model = RasterConfig(layers, dim, 4, ffn_multiple=32, vocab=1000, grid=(8, 8), classes=10)
    return GeneratorRecipe(model=model, steps=4, batch=batch, **{"precision": "fp32"} | changes)


def pictures() -> Recipe:
    "A small tokenizer with its discriminator, and averaged weights."
    base = recipe("shapes-tokenizer")
    model = replace(base.model, width=32, groups=8)
    loss = replace(base.loss, lpips=0.0, gan=0.5, start=0)
    return replace(base, model=model, loss=loss, free_steps=0, kmeans=False, steps=4, batch=8, ema=0.9)


ANY = dict(layers=3, dim=96, heads=4, vocab=1000, grid=(8, 8), classes=10)
CASES = {       # name -> (recipe, micro-batches of a step)
    "deep": (raster(6, 64, 8), 1),
    "wide": (raster(2, 256, 4), 1),
    "rows": (raster(2, 128, 32), 1),
    "average": (raster(3, 192, 2, ema=0.9), 1),
    "accumulated": (raster(2, 192, 8), 4),
    "bf16": (raster(3, 128, 8, precision="bf16"), 1),
    "kept": (GeneratorRecipe(model=RandomOrderConfig(**ANY, ffn_multiple=32), steps=4, batch=8, precision="fp32"), 1),
    "recomputed": (GeneratorRecipe(model=RandomOrderConfig(**ANY, ffn_multiple=32, recompute=True), steps=4, batch=8,
                                   precision="fp32"), 1),
    "masked": (GeneratorRecipe(model=MaskedConfig(**ANY, ffn=256), steps=4, batch=8, precision="fp32"), 1),
    "exact": (raster(3, 192, 16, exact=8), 1),
    "pictures": (pictures(), 1)}


def planned(name: str) -> int:
    "Bytes, as the plan has them for one process."
    asked, accumulate = CASES[name]
    parts = plan_run(asked, Cluster(world=1), accumulate)["memory"]["one GPU"]
    return sum(parts["recomputed" if name == "recomputed" else "kept"].values())


class InTurn(Turns):
    "Micro-batches that ask each other nothing, without threads of their own: the allocator's record is of one thread."
    def _all(self, turns):
        for i, turn in enumerate(turns):
            self.copies.enter(i)
            turn.work()
            self.copies.leave(i)


def three_steps(asked: Recipe, accumulate: int):
    model = kinds[kind_of(asked.model)].build(asked.model)
    if asked.kind == "generator": task = GeneratorTask(model)
    else:
        loss = kinds[kind_of(asked.loss)].build(asked.loss, weights="", size=asked.augment.size)
        task = TokenizerTask(model, loss)
    share = Share(0, 1, accumulate, asked.exact)
    stepper = (ExactStepper if asked.exact else Stepper)(TrainState(task, asked, Processes()), share)
    if asked.exact: stepper.turns = InTurn(stepper.tree, stepper.copies, torch.device("cpu"))
    rows = share.size(asked.batch)
    labels = torch.zeros(rows, dtype=torch.long)
    if asked.kind == "generator": batch = {"codes": torch.zeros(rows, 64, 1, dtype=torch.long), "labels": labels}
    else: batch = {"images": torch.rand(rows, 3, asked.augment.size, asked.augment.size) * 2 - 1, "labels": labels}
    for step in range(3): stepper(step, [(At(torch.arange(rows), step=step), batch)] * share.chunks)


def measured(name: str) -> int:
    "Bytes at the fullest moment."
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record: three_steps(*CASES[name])
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or CASES: print(json.dumps([name, measured(name)]), flush=True)
