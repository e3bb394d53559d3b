"""Measures what rows written side by side cost a raster model: share of samples that are what was asked for.

    python scripts/studies/rows_at_once.py                # measure, print
    python scripts/studies/rows_at_once.py --record       # and write nbs/studies/rows_at_once.json

COUNT samples of balanced classes a seed, judged by shapes-judge, in raster order, in ZipAR's windows with both
stand-ins, and in anti-diagonals. Some minutes on one CPU core.
"""
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import tyro

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
FILE = ROOT / "nbs" / "studies" / "rows_at_once.json"


@dataclass
class Options:
    "What to measure."
    model: tyro.conf.Positional[str] = "tiny-vqkd"
    "a shipped pipeline, or a folder"
    windows: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    "cells that a row is ahead of the next; 1 = anti-diagonals"
    count: int = 300
    "samples of a seed"
    seeds: tuple[int, ...] = (0, 1, 2)
    "of sampling"
    record: bool = False
    "write nbs/studies/rows_at_once.json"


def accuracy(pipe, judge, order, seed: int, o: Options) -> float:
    "Share of the samples that the judge takes for what was asked."
    from vgnb.evaluation.judge import judge_input
    labels = torch.arange(o.count) % len(pipe.classes)
    with torch.inference_mode():
        found = judge(judge_input(pipe.sample(labels.tolist(), seed=seed, order=order))).argmax(1)
    return round(float((found == labels).float().mean()), 4)


def point(pipe, judge, how, o: Options, **words) -> dict:
    "An order's steps and accuracies, one a seed."
    from vgnb.draws import Keyed
    grid, ids = pipe.grid, torch.arange(1)
    steps = len(pipe.sampler(order=how).groups(grid, None, ids, Keyed(0))[0])
    begun = time.perf_counter()
    row = words | {"steps": steps, "accuracy": [accuracy(pipe, judge, how, seed, o) for seed in o.seeds]}
    row["seconds"] = round(time.perf_counter() - begun, 1)
    print("  ", "  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    return row


def command(o: Options) -> str:
    "What repeats this measurement."
    words = ["python scripts/studies/rows_at_once.py", o.model, "--record"]
    for name in ("windows", "count", "seeds"):
        value = getattr(o, name)
        if value != getattr(Options, name): words += [f"--{name}", *(value if isinstance(value, tuple) else (value,))]
    return " ".join(map(str, words))


def main(o: Options) -> int:
    from vgnb.evaluation.judge import load_judge
    from vgnb.generators.orders import Raster
    from vgnb.generators.rows_at_once import ZipAR
    from vgnb.pipeline import Pipeline
    torch.set_num_threads(1)
    pipe, (judge, card) = Pipeline.from_pretrained(o.model), load_judge()
    width = pipe.grid.shape[-1]
    rows = [point(pipe, judge, Raster(), o, order="raster")]
    for window in o.windows:
        differ = 1 < window < width                     # else both stand for the same code, or nothing is missing
        for stand_in in ("newest", "above") if differ else ("newest",):
            rows.append(point(pipe, judge, ZipAR(window, stand_in), o, order="zipar", window=window, stand_in=stand_in))
    if not o.record: return 0

    device = f"{platform.processor() or platform.machine()}, one thread"
    study = {"command": command(o), "model": o.model, "count": o.count, "seeds": o.seeds, "device": device,
             "torch": torch.__version__, "extractor": f"shapes-judge@{card['sha256'][:8]}", "rows": rows}
    FILE.write_text(json.dumps(study, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda words: main(typed_cli(Options, args=words, description=__doc__))))
