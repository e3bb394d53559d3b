"""A small generator trained on worlds of processes, its weights shared out or not; run by the tests.

    python -m tests.sharded_on_many FOLDER NAME...      each NAME of `RUNS` below makes FOLDER/NAME

The processes of a world are forks of this one, so that all of them import once. A step is poisoned in the last process
of every world, gradients are clipped, weights averaged, and each process works through two micro-batches.
"""
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch._dynamo  # noqa: F401  (each process would import it with the first shared weight)
import torch.distributed.nn  # noqa: F401  (its defaults keep a group alive that exists when it is imported)
from torch import nn

from tests.forked import on_many
from tests.train_on_two import generator_recipe, write_codes
from vgnb.core import save_json
from vgnb.generators.generator import Loss
from vgnb.processes import Processes
from vgnb.training.commands import build_generator, finish
from vgnb.training.optimizers import clipped_sum
from vgnb.training.recipes import Optim
from vgnb.training.run_folder import Run
from vgnb.training.sharded import blocks_of
from vgnb.training.trainer import Trainer

STEPS, HALF, POISONED = 6, 3, 1
CLIP = 0.1     # below every gradient here
LINE = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
GRID = LINE | {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
               "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2", "PARALLELISM_CONFIG_TP_SIZE": "1",
               "PARALLELISM_CONFIG_CP_SIZE": "1", "PARALLELISM_CONFIG_SP_SIZE": "1"}
OPEN = LINE | {"FSDP_RESHARD_AFTER_FORWARD": "false"}

# name -> each sitting: processes, settings of the launcher, changes of the recipe; or whose half it begins with
RUNS = {
    "one": [(1, {}, {})],
    "ddp": [(2, {}, {})],
    "line": [(2, LINE, {})],
    "twice": [(2, LINE, {}), (2, LINE, {})],
    "line-one": ["twice", (1, {}, {})],
    "line-ddp3": ["twice", (3, {}, {})],
    "one-line": [(1, {}, {}), (2, LINE, {})],
    "open": [(2, OPEN, {})],
    "grid": [(4, GRID, {})],
    "grid-twice": [(4, GRID, {}), (4, GRID, {})],
    "bf16-ddp": [(2, {}, {"precision": "bf16"})],
    "bf16-line": [(2, LINE, {"precision": "bf16"})],
    "recompute": [(2, LINE, {"recompute": True})],
}


def a_recipe(codes: Path, changes: dict):
    "The tiny generator's, with gradients that are clipped."
    recompute = changes.get("recompute", False)
    found = generator_recipe(codes)
    model = replace(found.model, layers=2, token_dropout=0.1, residual_dropout=0.1)
    optim = Optim("adamw", lr=1e-3, weight_decay=0.05, clip=CLIP)
    found = replace(found, steps=STEPS, batch=24, model=model, optim=optim,
                    **{k: v for k, v in changes.items() if k != "recompute"})
    return found, recompute


def poisoned(task, processes: Processes):
    "A step of the last process is not a number."
    loss = task.loss
    def spoilt(phase, batch, carry, draws, at):
        found = loss(phase, batch, carry, draws, at)
        is_last = at.step == POISONED and processes.rank == processes.world - 1
        return Loss(found.total * (math.nan if is_last else 1.0), found.parts)
    task.loss = spoilt


def fit(codes: Path, out: Path, changes: dict, until: int | None, begin: Path | None):
    "One process's part of one sitting."
    torch.set_num_threads(1)
    recipe, recompute = a_recipe(codes, changes)
    recipe, task, data = build_generator(recipe)
    model = task.modules["generator"]
    nn.init.normal_(model.head.weight, std=0.02, generator=torch.manual_seed(1))    # as built it is zero
    model.blocks.recompute = recompute
    run = Run(save_every=100, log_every=1, workers=0, progress=False, accumulate=2, resume_from=begin)
    trainer = Trainer(task, data, recipe, out, run)
    poisoned(task, trainer.processes)
    assert bool(trainer.state.sharding) == ("ACCELERATE_USE_FSDP" in os.environ)
    assert len(blocks_of(model)) == 2
    if trainer.fit(until).finished: finish(trainer, out / "model")

    params = list(model.parameters())
    for p in params: p.grad = torch.sign(p.detach())
    total = clipped_sum(params, torch.ones(()), 0.0)
    if trainer.processes.main: save_json(out / "clipped.json", float(total))


def world(processes: int, settings: dict, work: Callable):
    "A world of processes that the launcher told these settings; all must end well."
    def begin(rank):
        os.environ.update(settings)
        work()
        return "well"

    ended = on_many(processes, begin)
    assert ended == ["well"] * processes, ended


def half_of(run: Path) -> Path:
    "The first of a run's two checkpoints."
    return run / "checkpoints" / f"step-{HALF:09d}"


def main(root: Path, names: list[str]):
    codes = root / "codes"
    if not codes.exists(): write_codes(codes)
    a_recipe(codes, {})                                    # finds all families, once
    for name in names:
        begins = [half_of(root / first) for first in RUNS[name] if isinstance(first, str)]
        sittings = [sitting for sitting in RUNS[name] if not isinstance(sitting, str)]
        for n, (processes, settings, changes) in enumerate(sittings, start=1):
            until = HALF if n < len(sittings) else None
            world(processes, settings, partial(fit, codes, root / name, changes, until, *(begins or [None])))


if __name__ == "__main__": main(Path(sys.argv[1]), sys.argv[2:])
