"""What one picture of a shipped pipeline costs on one core, and where the time goes.

    python scripts/studies/one_picture.py                       # measure, print
    python scripts/studies/one_picture.py tiny-iar2 --record    # and write its row of nbs/studies/one_picture.json

A pipeline is asked for one picture, as a visitor does, after a first one that warms it up. Parts: *network*, the
generator's forward passes; *draws*, noise and the choice by it; *loop*, what is left of the sampler; *decoder*, codes
to pixels. Whole pictures and pictures with watched parts take turns. Times are of the processor, not of the clock, so
that other work on the machine changes them little; the medians are kept. Operations are torch's, views left out, and as
they are without the loops in C, which nobody can count. Rows of other pipelines in the file stay.
"""
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import tyro

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
FILE = ROOT / "nbs" / "studies" / "one_picture.json"


@dataclass
class Options:
    "What to measure."
    names: tyro.conf.Positional[tuple[str, ...]] = ()
    "shipped pipelines; none = all"
    pairs: int = 9
    "pictures of each kind, in turns"
    record: bool = False
    "write nbs/studies/one_picture.json"


def seconds(run) -> tuple[float, object]:
    "(of the processor, what came out)."
    began = time.process_time()
    made = run()
    return time.process_time() - began, made


def watched(pipe) -> dict[str, float]:
    "Seconds of each part of one picture."
    from vgnb.evaluation.bench import TimedDraws
    draws, network = TimedDraws(0), [0.0]
    plain = type(pipe.generator).predict

    def predict(*args, **kw):
        taken, made = seconds(lambda: plain(pipe.generator, *args, **kw))
        network[0] += taken
        return made

    pipe.generator.predict = predict
    try:
        cond, ids = pipe.condition([0]), torch.zeros(1, dtype=torch.long)
        sampling, codes = seconds(lambda: pipe.sampler().sample(cond, ids, draws, grid=pipe.grid))
    finally: del pipe.generator.predict
    decoder, _ = seconds(lambda: pipe.decode(codes))
    loop = sampling - network[0] - draws.watch[0]
    return {"network": network[0], "draws": draws.watch[0], "loop": loop, "decoder": decoder}


def row_of(name: str, pairs: int) -> dict:
    "A row: milliseconds of a picture (quartiles), of its parts (medians), operations, steps."
    from vgnb.evaluation.bench import quartiles, tallied
    from vgnb.pipeline import from_pretrained
    pipe = from_pretrained(name)
    _, tally = tallied(lambda: pipe([0]))                       # warms up, too
    wholes, parts = [], []
    for _ in range(pairs):
        wholes.append(1e3 * seconds(lambda: pipe([0]))[0])
        parts.append(watched(pipe))
    medians = {part: round(1e3 * quartiles([p[part] for p in parts])[1], 1) for part in parts[0]}
    steps = len(list(pipe.stream([0])))
    return {"name": name, "ms": quartiles(wholes), "parts": medians, "operations": tally.ops.total(),
            "gflop": float(f"{tally.flops / 1e9:.4g}"), "steps": steps, "pairs": pairs}


def told(row: dict) -> str:
    "A row in words."
    low, middle, high = row["ms"]
    parts = ", ".join(f"{part} {ms:.0f}" for part, ms in row["parts"].items())
    return (f"{row['name']:14}{middle:6.0f} ms [{low:.0f}-{high:.0f}]: {parts}; {row['operations']:,} operations in "
            f"{row['steps']} steps, {row['gflop']:g} GFLOP")


def main(o: Options) -> int:
    from vgnb.core import check_choice, check_int, write_aside
    from vgnb.shipped import shipped
    check_int("pairs", o.pairs, 1)
    for name in o.names: check_choice("names", name, tuple(shipped()))
    torch.set_num_threads(1)
    rows = {row["name"]: row for row in json.loads(FILE.read_text())["rows"]} if FILE.exists() else {}
    for name in o.names or shipped():
        rows[name] = row_of(name, o.pairs)
        print(told(rows[name]), flush=True)
        if not o.record: continue
        study = {"command": "python scripts/studies/one_picture.py --record", "torch": torch.__version__,
                 "rows": [rows[n] for n in shipped() if n in rows]}
        with write_aside(FILE) as aside: aside.write_text(json.dumps(study, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda words: main(typed_cli(Options, args=words, description=__doc__))))
