"""IAR2's two tokenizer stages and its generator, small; run by the tests on one process and two.

    python -m tests.pair_on_two FOLDER
"""
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from tests.test_iar2_tokenizer import stage
from vgnb.data.codes import CodePlan, CodeWriter
from vgnb.processes import Processes
from vgnb.training.commands import TrainOptions, train
from vgnb.training.recipes import Optim, Rate, recipe
from vgnb.training.run_folder import Run

def generator_recipe(codes):
    "A few steps of the tiny generator."
    r = recipe("shapes-8x8-iar2")
    model = replace(r.model, layers=2, dim=48, heads=4, head_layers=1)
    return replace(r, data=str(codes), steps=6, batch=8, precision="fp32", ema=0.9, model=model,
                   optim=Optim("adamw", lr=1e-3), rate=Rate())


def write_codes(path):
    "Made-up pairs, the same every time."
    plan = CodePlan((16, 32), (4, 4), 40, "made up", classes=tuple("0123456789"))
    g = torch.Generator().manual_seed(0)
    codes = torch.stack([torch.randint(v, (40, 1, 16), generator=g) for v in plan.vocab], -1)
    writer = CodeWriter(path, plan)
    writer.write(0, codes, [i % 10 for i in range(40)], range(40))
    writer.finish()


def main(out: Path):
    torch.set_num_threads(1)
    processes, quiet = Processes(), Run(progress=False, log_every=1)
    # With the usual eps Adam's first steps make full steps of rounding errors, and one feature in some thousands finds
    # another row on two processes than on one; with this one weights agree to 1e-6.
    adam = dict(optim=Optim("adamw", lr=1e-3, eps=1e-4))
    train(TrainOptions(stage("first", **adam), out / "first", run=quiet))
    train(TrainOptions(stage("second", start=str(out / "first"), **adam), out / "second", run=quiet))
    processes.together(lambda: write_codes(out / "codes"))
    train(TrainOptions(generator_recipe(out / "codes"), out / "generator", run=quiet))
    if processes.main: (out / "world.json").write_text(json.dumps(processes.world))


if __name__ == "__main__": main(Path(sys.argv[1]))
