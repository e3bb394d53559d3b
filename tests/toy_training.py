"A tiny training run for the tests of interruptions and of several processes; as a program it is killed and restarted."
import json
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
from vgnb.training.checkpoints import newest, read_checkpoint
from vgnb.training.feed import Data, visit
from vgnb.training.recipes import Optim, Rate, Recipe
from vgnb.training.run_folder import Run
from vgnb.training.tasks import Phase, Task
from vgnb.training.trainer import Trainer

class Points(Data):
    "240 points with keyed noise; with `log`, writes down what was fetched."
    fingerprint = "points/240"
    def __init__(self, log: Path | None = None): self.log = log
    def __len__(self): return 240

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


def train(folder, slow=0.0, log=None, until=None):
    torch.set_num_threads(1)
    trainer = Trainer(Pair(slow), Points(log), RECIPE, folder, Run(save_every=10, log_every=20, progress=False))
    return trainer.fit(until), trainer


def result(folder) -> str:
    "Digest of everything in the last checkpoint: weights, averages, optimizer memory."
    files, state = read_checkpoint(newest(saves(folder)))
    return digest(files, state["step"], state["samples_seen"])


def child(work) -> int:
    "The process id of a fork that does `work` and leaves with the code it returns, or 3 if it fails."
    pid = os.fork()
    if pid: return pid
    code = 3
    try: code = work()
    finally: os._exit(code)


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


def killed_again_and_again(folder, kills: int, seed: int) -> dict:
    "Start, SIGKILL at a random moment, start again ... until the run ends; reports what happened."
    rng, deaths, lost = random.Random(seed), 0, []
    while True:
        before = newest(saves(folder))
        pid = child(lambda: train(folder, slow=0.01)[0].code)
        if deaths < kills:
            time.sleep(rng.uniform(0.02, 0.28))
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        after = newest(saves(folder))
        if before and (after is None or after.name < before.name): lost.append(before.name)
        if not os.WIFSIGNALED(status):
            return {"deaths": deaths, "lost": lost, "code": os.WEXITSTATUS(status), "result": result(folder)}
        deaths += 1


def main(what: str, root: Path, *numbers: int):
    if what == "signal": sys.exit(train(root, slow=0.02)[0].code)
    train(root / "whole", until=None if what == "kills" else 20)
    whole = {"whole": result(root / "whole")}
    if what == "kills": print(json.dumps(whole | killed_again_and_again(root / "killed", *numbers)))
    else: print(json.dumps(whole | killed_inside_the_save(root / "killed")))


if __name__ == "__main__": main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
