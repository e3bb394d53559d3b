"""What the published code's faults do to samples: each switched on, on the shipped tiny models.

    python scripts/studies/faults.py                # measure, print
    python scripts/studies/faults.py --record       # and write nbs/studies/faults.json

Each row: COUNT samples of balanced classes with the default and with `compat="upstream"` (or the one part of it that
the row names), the same weights and draws; accuracy and Fréchet distance by shapes-judge. Some minutes on one CPU core.
"""
import json
import os
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
FILE = ROOT / "nbs" / "studies" / "faults.json"


@dataclass
class Options:
    "How much to measure."
    count: int = 1000
    "samples of a row"
    record: bool = False
    "write nbs/studies/faults.json"


def faulty(pipe, **changes):
    "The pipeline with its generator's configuration changed; the same weights."
    from vgnb.pipeline import Pipeline
    model = type(pipe.generator)(replace(pipe.generator.config, **changes))
    model.load_state_dict(pipe.generator.state_dict())
    return Pipeline(pipe.tokenizer, model, pipe.sampling, pipe.classes)


def overwritten(pipe, redraw: bool) -> float:
    "Share of known codes that in-painting changed, the left half being given."
    from vgnb.data.shapes import Shapes
    images, labels = Shapes(100, 32, seed=5).batch(np.arange(100))
    codes = pipe.encode(images)
    known = (torch.arange(64) % 8 < 4).expand(100, -1)
    how = dict(schedule="confidence-arccos", compat="upstream") if redraw else dict(schedule="arccos")
    made = pipe.codes(labels.tolist(), given=(codes, known), order="confidence", steps=8, **how)
    return float((made[known] != codes[known]).float().mean())


def undecided(pipe, compat) -> float:
    "Share of cells of a 16x16 picture that extrapolation leaves without a code."
    from vgnb.sampling.extrapolation import Extrapolate
    enlarged, classes = Extrapolate((16, 16)), list(range(10))
    how = dict(schedule="randar", steps=22, guidance=3.0, compat=compat, rows=10)
    painting = pipe.painting(enlarged, classes, **how)
    codes = enlarged.codes(painting)
    return float((codes < 0).float().mean())


def compare(bench) -> list[dict]:
    "Accuracy and FID of samples without and with each fault."
    from vgnb.generators.adaptive_orders import Confidence
    from vgnb.kinds import to_json
    from vgnb.pipeline import Pipeline
    maskgit, pgm = (Pipeline.from_pretrained(f"tiny-{k}") for k in ("maskgit", "pgm"))
    drawn = faulty(maskgit, compat="upstream")
    off = faulty(pgm, compat="upstream")
    dropping = faulty(pgm, compat="upstream", dropout=0.1)
    fault, redraw, rows = {"compat": "upstream"}, {"schedule": "confidence-arccos"}, []

    def row(system, name, right, wrong, **settings):
        "`right`, `wrong`: a pipeline and settings of its own, each."
        rows.append({"system": system, "fault": name, "settings": to_json(settings),
                     "default": bench.point(right[0], **settings, **right[1]),
                     "upstream": bench.point(wrong[0], **settings, **wrong[1])})

    for steps in (22, 8):
        halton = dict(steps=steps, order="halton", schedule="arccos")
        noisy = dict(steps=steps, order=Confidence(noise=4.5))
        row("MaskGIT", "the mask code can be drawn", (maskgit, {}), (drawn, fault), **halton)
        row("MaskGIT", "known tokens are drawn again in every step",
            (maskgit, redraw), (maskgit, redraw | fault), **noisy)
        row("PGM", "half of the registers count as known codes", (pgm, {}), (off, fault), **halton)
        row("PGM", "by confidence: the register fault, and the mask and BOS ids can be drawn",
            (pgm, {}), (off, fault), **noisy, schedule="arccos")
        dropping.generator.train()
        row("PGM", "and dropout of 0.1 stays on (against the row above)",
            (off, fault), (dropping, fault), **noisy, schedule="arccos")
    return rows


def shares() -> list[dict]:
    "What can be counted without a judge."
    from vgnb.pipeline import Pipeline
    maskgit, randar = (Pipeline.from_pretrained(f"tiny-{k}") for k in ("maskgit", "randar"))
    return [{"system": "MaskGIT", "fault": "in-painting overwrites what was given", "of": "given codes that changed",
             "default": overwritten(maskgit, False), "upstream": overwritten(maskgit, True)},
            {"system": "RandAR", "fault": "extrapolation stops before its last group", "of": "cells without a code",
             "default": undecided(randar, None), "upstream": undecided(randar, "upstream")}]


def main(o: Options) -> int:
    from any_order import Bench
    torch.set_num_threads(1)
    bench = Bench(o.count)
    rows, counted = compare(bench), shares()
    for s in counted: print(s)
    if o.record:
        study = {"command": "python scripts/studies/faults.py --record",
                 "count": o.count,
                 "device": f"{platform.processor() or platform.machine()}, one thread",
                 "torch": torch.__version__,
                 "extractor": bench.judge.id,
                 "rows": rows,
                 "shares": counted}
        FILE.write_text(json.dumps(study, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda words: main(typed_cli(Options, args=words, description=__doc__))))
