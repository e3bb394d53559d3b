"""What a checkpoint costs the training: the step's stall, written at once and beside the training.

    python scripts/studies/saving_speed.py             # measure, print
    python scripts/studies/saving_speed.py --record    # and write nbs/studies/saving_speed.json

A toy network of 8 layers is trained by the real trainer in fp32 on one thread; its weights and the memory of AdamW are
100 MB. The stall is the time that a save takes from the steps: "at once" waits until the checkpoint is published, as a
naive loop does, "beside" the training a thread writes. The first save also makes the memory for the copies, and is told
apart. The share is that of a stall in the steps between two saves, as many as a run has by default.

Times go by the clock and by the processor, which other work on the machine does not change: at once that of the whole
process, beside that of the thread which trains. Medians of the later saves and of all steps. Half a minute on one core.
"""
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from vgnb.generators.generator import Loss
from vgnb.training.feed import Data
from vgnb.training.recipes import Optim, Recipe
from vgnb.training.run_folder import Run
from vgnb.training.tasks import Phase, Task
from vgnb.training.trainer import Trainer

FILE = ROOT / "nbs" / "studies" / "saving_speed.json"


@dataclass
class Options:
    "What to measure."
    saves: int = 4
    "saves of each kind"
    every: int = 5
    "steps between them"
    width: int = 1024
    "of the 8 layers; 1024 makes 100 MB"
    place: Path = Path(tempfile.gettempdir())
    "the disk that is written to"
    record: bool = False
    "write nbs/studies/saving_speed.json"


class Noise(Data):
    "Rows of random numbers."
    fingerprint = "noise"
    def __init__(self, width: int): self.rows = torch.randn(16, width, generator=torch.Generator().manual_seed(0))
    def __len__(self): return len(self.rows)
    def fetch(self, index, epochs, draws): return {"x": self.rows[torch.as_tensor(index)]}


class Layers(Task):
    "Eight layers that learn to give back what they get."
    def __init__(self, width: int):
        torch.manual_seed(0)
        self.modules = {"net": nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(8)))}

    def phases(self, step): return (Phase.of("train", "net"),)
    def loss(self, phase, batch, carry, draws, at):
        return Loss((self.modules["net"](batch["x"]) - batch["x"]).square().mean(), {})


class Watch:
    "Milliseconds of what is called, by the clock and by the processor."
    def __init__(self, processor): self.processor, self.times = processor, []
    def __call__(self, call, *args):
        clock, processor = time.perf_counter(), self.processor()
        found = call(*args)
        self.times.append((1000 * (time.perf_counter() - clock), 1000 * (self.processor() - processor)))
        return found

    def median(self, skip: int = 0) -> list[float]:
        return [round(x, 1) for x in torch.tensor(self.times[skip:]).median(0).values.tolist()]


class Timed(Trainer):
    "Notes how long its steps and its saves take."
    def watch(self, at_once: bool):
        self.at_once = at_once
        self.stalls, self.steps = (Watch(time.process_time if at_once else time.thread_time) for _ in range(2))
        self.stepper = Steps(self.stepper, self.steps)

    def save(self, last: bool = False) -> bool:
        if last: return super().save(last)
        self._settle()              # with so many steps between two saves as a run has by default, nobody waits here
        return self.stalls(self._save)

    def _save(self) -> bool:
        done = super().save()
        if self.at_once: self._settle()
        return done


class Steps:
    "A stepper whose steps are timed."
    def __init__(self, stepper, watch): self.stepper, self.watch = stepper, watch
    def __call__(self, *args): self.watch(self.stepper, *args)
    def __getattr__(self, name): return getattr(self.stepper, name)


def measured(o: Options, at_once: bool) -> dict:
    "A row of the table; pairs are (clock, processor)."
    folder = Path(tempfile.mkdtemp(dir=o.place))
    steps = o.every * (o.saves + 1)
    recipe = Recipe(steps=steps, batch=16, optim=Optim(lr=1e-4), precision="fp32", ema=0)
    run = Run(save_every=o.every, progress=False, tracker="none")
    try:
        trainer = Timed(Layers(o.width), Noise(o.width), recipe, folder / "run", run)
        trainer.watch(at_once)
        trainer.fit(steps - 1)
    finally: shutil.rmtree(folder)
    size = sum(t.nbytes for tensors in trainer.state.files().values() for t in tensors.values())
    step, stall = trainer.steps.median(), trainer.stalls.median(skip=1)
    return {
        "way": "at once" if at_once else "beside",
        "megabytes": round(size / 1e6),
        "step_ms": step,
        "first_stall_ms": [round(x, 1) for x in trainer.stalls.times[0]],
        "stall_ms": stall,
        "stall_steps": [round(a / b, 2) for a, b in zip(stall, step)],
        "share_percent": [round(100 * a / (Run().save_every * b), 3) for a, b in zip(stall, step)]}


def main(o: Options) -> int:
    torch.set_num_threads(1)
    rows = [measured(o, at_once) for at_once in (True, False)]
    for row in rows: print(json.dumps(row), flush=True)
    if o.record:
        study = {
            "command": "python scripts/studies/saving_speed.py --record",
            "device": f"{platform.processor() or platform.machine()}, one thread",
            "torch": torch.__version__,
            "save_every": Run().save_every,
            "rows": rows}
        FILE.write_text(json.dumps(study, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda words: main(typed_cli(Options, args=words, description=__doc__))))
