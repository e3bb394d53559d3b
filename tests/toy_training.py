"A tiny run for the tests of interruptions and of several processes; as a program it trains until it is told to stop."
import mmap
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from vgnb.core import digest
from vgnb.generators.generator import Loss
from vgnb.training.checkpoints import newest, read_checkpoint, step_of
from vgnb.training.feed import Data, visit
from vgnb.training.recipes import Optim, Rate, Recipe
from vgnb.training.run_folder import Run
from vgnb.training.tasks import Phase, Task
from vgnb.training.trainer import Trainer

class Points(Data):
    "Points with keyed noise, some hundred; with `log`, writes down what was fetched."
    def __init__(self, log: Path | None = None, count: int = 240):
        self.log, self.count, self.fingerprint = log, count, f"points/{count}"
    def __len__(self): return self.count

    def fetch(self, index, epochs, draws):
        if self.log:
            lines = "".join(f"{e} {i}\n" for e, i in zip(epochs, index))
            with open(self.log, "a") as f: f.write(lines)
        x = torch.as_tensor(index)[:, None] / 40 + 0.05 * draws.normal("jitter", visit(index, epochs), 1)
        return {"x": x, "y": x.sin()}


class Pair(Task):
    """Two modules and two phases, as a tokenizer and its discriminator: one forward, `carry` between them; dropout from
    torch's own generator."""
    def __init__(self, slow=0.0):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 24), nn.BatchNorm1d(24), nn.GELU(), nn.Dropout(0.2), nn.Linear(24, 1))
        self.modules = {"net": net, "critic": nn.Linear(1, 1)}
        self.slow = slow

    def phases(self, step): return (Phase.of("net", "net"), Phase.of("critic", "critic"))

    def loss(self, phase, batch, carry, draws, at):
        if phase.name == "net":
            carry["out"] = self.modules["net"](batch["x"])
            time.sleep(self.slow)
            return Loss((carry["out"] - batch["y"]).square().mean(), {"noise": draws.uniform("noise", at).mean()})
        return Loss((self.modules["critic"](carry["out"].detach()) - batch["y"]).square().mean(), {})


RECIPE = Recipe(steps=300, batch=8, optim=Optim(lr=1e-2, weight_decay=0.1), rate=Rate("cosine", warmup=10),
                precision="fp32", ema=0.95)


def saves(folder) -> Path: return Path(folder) / "checkpoints"


def train(folder, slow=0.0, log=None, until=None, recipe=RECIPE, every=(), count=240, **options):
    torch.set_num_threads(1)
    run = Run(save_every=10, log_every=20, progress=False, **options)
    trainer = Trainer(Pair(slow), Points(log, count), recipe, folder, run, every=every)
    return trainer.fit(until), trainer


def result(folder) -> str:
    "Digest of everything in the last checkpoint: weights, averages, optimizer memory."
    files, state = read_checkpoint(newest(saves(folder)))
    return digest(files, state["step"], state["samples_seen"])


def until(found, seconds: float = 60.0):
    "What `found()` gives, as soon as it gives something."
    last = time.monotonic() + seconds
    while time.monotonic() < last:
        if value := found(): return value
        time.sleep(0.01)
    raise TimeoutError(found)


def child(work) -> int:
    "The process id of a fork that does `work` and leaves with the code it returns, or 3 if it fails."
    pid = os.fork()
    if pid: return pid
    code = 3
    try: code = work()
    finally: os._exit(code)


def has_ended(pid: int) -> bool:
    "Whether a child is dead; it can still be waited for."
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def killed_inside_the_save(folder) -> dict:
    """One child a file-system call of a save: it publishes step 10, then dies at its n-th call while saving step 20.
    Reports what was left each time."""
    def save_and_die(n):
        if not newest(saves(folder)): train(folder, until=10)
        die_at(n)
        train(folder, until=20)
        return 0

    left, n = [], 0
    while True:
        status = os.waitpid(child(lambda: save_and_die(n)), 0)[1]          # noqa: B023  (it is waited for at once)
        code = os.WEXITSTATUS(status)
        found = newest(saves(folder))
        left.append(found.name if found else None)
        if code == 0: return {"left": left, "calls": n, "result": result(folder)}
        assert code == 9, code
        for path in saves(folder).glob("step-000000020"): shutil.rmtree(path)
        n += 1


def die_at(n: int):
    "From now on the n-th call that touches the disk is the last thing this process does."
    import vgnb.saved
    calls = iter(range(10**6))
    def last(call):
        def f(*a, **k):
            if next(calls) >= n: os._exit(9)
            return call(*a, **k)
        return f

    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"): setattr(os, name, last(getattr(os, name)))
    vgnb.saved.save_file = last(vgnb.saved.save_file)


def killed_again_and_again(folder, kills: int, seed: int, recipe: Recipe, **options) -> dict:
    """Start, SIGKILL the process group at a random moment, start again ... until the run ends; reports what happened:
    of each life the steps that it began with, reached and left behind."""
    rng, deaths, lost, lives = random.Random(seed), 0, [], []
    shared = mmap.mmap(-1, 8)                        # the step of the child, which it shares with us
    def note(trainer): shared[:] = trainer.step.to_bytes(8, "little")
    def reached() -> int: return int.from_bytes(shared[:], "little")
    while True:
        before = newest(saves(folder))
        began = step_of(before) if before else 0
        shared[:] = began.to_bytes(8, "little")
        pid = child(lambda: train(folder, slow=0.01, recipe=recipe, every=((1, note),), **options)[0].code)
        os.setpgid(pid, pid)
        if deaths < kills:
            steps = rng.randrange(1, 20) if deaths % 5 else 0           # 0: it may die before the first one
            def enough(pid=pid, steps=began + steps): return reached() >= steps or has_ended(pid)
            until(enough, 600)
            time.sleep(rng.uniform(0, 0.02))
            os.killpg(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        after = newest(saves(folder))
        if before and (after is None or after.name < before.name): lost.append(before.name)
        if not os.WIFSIGNALED(status):
            found = {"deaths": deaths, "lost": lost, "lives": lives}
            return found | {"code": os.WEXITSTATUS(status), "result": result(folder)}
        lives.append((began, reached(), step_of(after) if after else 0))
        deaths += 1


if __name__ == "__main__": sys.exit(train(sys.argv[1], slow=0.02)[0].code)
