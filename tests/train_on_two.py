"""Train a small tokenizer, extract its codes, train a small generator on them; run by the tests on one process and two.

    python -m tests.train_on_two FOLDER

One process trains the generator once more, with two micro-batches a step (`halves`).
"""
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from vgnb.data.codes import CodePlan, CodeWriter
from vgnb.data.shapes import Shapes
from vgnb.data.transforms import Augment
from vgnb.kinds import changed
from vgnb.processes import Processes
from vgnb.tokenizers.quantizers import Revive
from vgnb.tokenizers.vqgan import vqgan
from vgnb.training.commands import TrainOptions, train
from vgnb.training.extract import extract_codes
from vgnb.training.recipes import Optim, Rate, recipe
from vgnb.training.run_folder import Run

SMALL = dict(width=16, z=16, groups=8)     # the tokenizer


def tokenizer_recipe(**changes):
    "Plain steps, k-means after the fourth, dead codes revived after every fifth."
    r = recipe("shapes-tokenizer")
    model = changed(r.model, **SMALL, quantizer=dict(codebook=48, usage=1024, updates=(Revive(5),)))
    return replace(r, data="shapes://?n=200&size=32", steps=14, batch=16, free_steps=4, precision="fp32", ema=0.9,
                   model=model, optim=Optim("adamw", lr=1e-3), rate=Rate(), **changes)


def generator_recipe(codes, **changes):
    r = recipe("shapes-generator")
    model = replace(r.model, layers=2, dim=32, vocab=48)
    return replace(r, data=str(codes), steps=14, batch=16, precision="fp32", ema=0.9,
                   model=model, optim=Optim("adamw", lr=1e-3, weight_decay=0.05), rate=Rate(), **changes)


def write_codes(path):
    "Made-up codes, the same every time, so that generators do not depend on the tokenizer under test."
    plan = CodePlan((48,), (4, 4), 100, "made up", "", "", ("a", "b"), tuple("0123456789"))
    codes = torch.randint(48, (100, 2, 16, 1), generator=torch.Generator().manual_seed(0))
    writer = CodeWriter(path, plan)
    writer.write(0, codes, [i % 10 for i in range(100)], range(100))
    writer.finish()


def main(out: Path):
    torch.set_num_threads(1)
    processes = Processes()
    quiet = Run(progress=False, log_every=1)
    train(TrainOptions(tokenizer_recipe(), out / "tokenizer", run=quiet))
    processes.together(lambda: write_codes(out / "codes"))
    train(TrainOptions(generator_recipe(out / "codes"), out / "generator", run=quiet))
    if processes.world == 1:
        halves = replace(quiet, accumulate=2)
        train(TrainOptions(generator_recipe(out / "codes"), out / "halves", run=halves))

    torch.manual_seed(0)
    tokenizer = vqgan("tiny-shapes", **SMALL, quantizer=dict(codebook=48))
    augment = Augment("center", 32, flip=True)
    extract_codes(tokenizer, Shapes(70, 32), out / "extracted", augment, batch=16, shard_size=10, processes=processes)
    if processes.main: (out / "world.json").write_text(json.dumps(processes.world))


if __name__ == "__main__": main(Path(sys.argv[1]))
