"A tiny training run for the tests of interruptions and of several processes; run as a program it is killed and restarted again and again."
import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vgnb.core import digest
from vgnb.generators.generator import Loss
from vgnb.training.checkpoints import newest, read_checkpoint
from vgnb.training.feed import visit
from vgnb.training.recipes import Optim, Rate, Recipe
from vgnb.training.tasks import Phase
from vgnb.training.trainer import Run, Trainer


class Points:
    "240 points with keyed noise; with `log`, writes down what was fetched."
    fingerprint = "points/240"
    def __init__(self, log: Path | None = None): self.log = log
    def __len__(self): return 240

    def fetch(self, index, epochs, draws):
        if self.log:
            with open(self.log, "a") as f: f.write("".join(f"{e} {i}\n" for e, i in zip(epochs, index)))
        x = torch.as_tensor(index)[:, None] / 40 + 0.05 * draws.normal("jitter", visit(index, epochs), 1)
        return {"x": x, "y": x.sin()}


class Pair:
    "Two modules and two phases, as a tokenizer and its discriminator: one forward, `carry` between them; dropout from torch's own generator."
    def __init__(self, slow=0.0):
        torch.manual_seed(0)
        self.modules = {"net": nn.Sequential(nn.Linear(1, 24), nn.BatchNorm1d(24), nn.GELU(), nn.Dropout(0.2), nn.Linear(24, 1)), "critic": nn.Linear(1, 1)}
        self.slow = slow

    def phases(self, step): return (Phase("net", ("net",), ("net",), ("net",)), Phase("critic", ("critic",), ("critic",), ("critic",)))

    def loss(self, phase, batch, carry, draws, at):
        if phase.name == "net":
            carry["out"] = self.modules["net"](batch["x"])
            time.sleep(self.slow)
            return Loss((carry["out"] - batch["y"]).square().mean(), {"noise": draws.uniform("noise", at).mean()})
        return Loss((self.modules["critic"](carry["out"].detach()) - batch["y"]).square().mean(), {})


RECIPE = Recipe(steps=300, batch=8, optim=Optim(lr=1e-2, weight_decay=0.1), rate=Rate("cosine", warmup=10), precision="fp32", ema=0.95)


def train(folder, slow=0.0, log=None, until=None):
    torch.set_num_threads(1)
    trainer = Trainer(Pair(slow), Points(log), RECIPE, folder, Run(save_every=10, log_every=20, progress=False))
    return trainer.fit(until), trainer


def killed_inside_the_save(folder) -> dict:
    "One child a file-system call of a save: it publishes step 10, then dies at its n-th call while saving step 20. Reports what was left each time."
    left, n = [], 0
    while True:
        pid = os.fork()
        if pid == 0:
            code = 3
            try:
                if not newest(Path(folder) / "checkpoints"): train(folder, until=10)
                die_at(n); train(folder, until=20); code = 0
            finally: os._exit(code)
        code = os.WEXITSTATUS(os.waitpid(pid, 0)[1])
        found = newest(Path(folder) / "checkpoints")
        left.append(found.name if found else None)
        if code == 0: return {"left": left, "calls": n, "result": result(folder)}
        assert code == 9, code
        for p in (Path(folder) / "checkpoints").glob("step-000000020"): __import__("shutil").rmtree(p)
        n += 1


def die_at(n: int):
    "From now on the n-th call that touches the disk is the last thing this process does."
    calls = iter(range(10**6))
    def last(call):
        def f(*a, **k):
            if next(calls) >= n: os._exit(9)
            return call(*a, **k)
        return f
    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"): setattr(os, name, last(getattr(os, name)))
    import vgnb.training.checkpoints as c
    c.save_file = last(c.save_file)


def result(folder) -> str:
    "Digest of everything in the last checkpoint: weights, averages, optimizer memory."
    files, state = read_checkpoint(newest(Path(folder) / "checkpoints"))
    return digest(files, state["step"], state["samples_seen"])


def killed_again_and_again(folder, kills: int, seed: int) -> dict:
    "Start, SIGKILL at a random moment, start again ... until the run ends; reports what happened."
    rng, deaths, lost = random.Random(seed), 0, []
    while True:
        before = newest(Path(folder) / "checkpoints")
        pid = os.fork()
        if pid == 0:
            code = 3
            try: code = train(folder, slow=0.01)[0].code
            finally: os._exit(code)
        if deaths < kills:
            time.sleep(rng.uniform(0.02, 0.28)); os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        after = newest(Path(folder) / "checkpoints")
        if before and (after is None or after.name < before.name): lost.append(before.name)
        if os.WIFSIGNALED(status): deaths += 1; continue
        return {"deaths": deaths, "lost": lost, "code": os.WEXITSTATUS(status), "result": result(folder)}


if __name__ == "__main__":
    what, root = sys.argv[1], Path(sys.argv[2])
    if what == "kills":
        train(root / "whole")
        print(json.dumps({"whole": result(root / "whole"), **killed_again_and_again(root / "killed", int(sys.argv[3]), seed=int(sys.argv[4]))}))
    if what == "saves":
        train(root / "whole", until=20)
        print(json.dumps({"whole": result(root / "whole"), **killed_inside_the_save(root / "killed")}))
    if what == "signal": sys.exit(train(root, slow=0.02)[0].code)
