"""Two players with all that makes a wrapper of gradients stumble; run by the tests on one process, two and three.

    python -m tests.players_on_many FOLDER      makes FOLDER/whole, and in two sittings FOLDER/twice

A table that nothing uses while the codebook is free, a critic that runs twice a phase and is frozen in the other one,
a weight from gradients inside a loss, micro-batches.
"""
import sys
from pathlib import Path

import torch
from torch import nn

from tests.toy_training import Points
from vgnb.generators.generator import Loss
from vgnb.processes import Processes
from vgnb.tokenizers.losses import adaptive_weight, frozen
from vgnb.training.recipes import Optim, Recipe
from vgnb.training.run_folder import Run
from vgnb.training.tasks import Phase, Task
from vgnb.training.trainer import Trainer

FREE = 4       # steps without the table
RECIPE = Recipe(steps=16, batch=24, optim=Optim(lr=1e-2, weight_decay=0.1, clip=1.0), precision="fp32", ema=0.9)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(1, 24), nn.Linear(24, 1)
        self.table = nn.Parameter(torch.randn(24) / 5)


class Players(Task):
    "A net that learns a sine and pleases a critic, who learns to tell."
    def __init__(self, processes):
        torch.manual_seed(0)
        self.processes = processes            # that sums are taken over, see `prepare`
        self.modules = {"net": Net(), "critic": nn.Sequential(nn.Linear(2, 16), nn.GELU(), nn.Linear(16, 1))}

    def prepare(self, step, batches, draws, sync): self.processes = sync
    def phases(self, step): return (Phase.of("net", "net"), Phase.of("critic", "critic"))

    def loss(self, phase, batch, carry, draws, at):
        net, critic = self.modules["net"], self.modules["critic"]
        def verdict(y): return critic(torch.cat((batch["x"], y), 1)).tanh().mean()
        if phase.name == "critic": return Loss(verdict(carry["out"].detach()) - verdict(batch["y"]), {})
        hidden = torch.tanh(net.enter(batch["x"]))
        if at.step >= FREE: hidden = hidden * net.table
        carry["out"] = net.leave(hidden)
        with frozen(critic): please = -verdict(carry["out"])
        error = (carry["out"] - batch["y"]).square().mean()
        weight = adaptive_weight(error, please, net.leave.weight, self.processes).clamp(max=1)
        return Loss(error + 0.1 * weight * please, {"error": error.detach(), "weight": weight})


def fit(folder: Path, until: int | None = None):
    run = Run(save_every=8, log_every=1, workers=0, progress=False, accumulate=2)
    Trainer(Players(Processes()), Points(), RECIPE, folder, run).fit(until)


def main(root: Path):
    torch.set_num_threads(1)
    fit(root / "whole")
    fit(root / "twice", until=7)
    fit(root / "twice")


if __name__ == "__main__": main(Path(sys.argv[1]))
