"""Two codes a place against one: the tiny tokenizer in IAR2's two stages, and in one stage with as many codes.

    python scripts/studies/semantic_detail.py                    # train, measure, print
    python scripts/studies/semantic_detail.py --record           # and write nbs/studies/semantic_detail.json
    python scripts/studies/semantic_detail.py --seeds 0 --record # one seed; the others' rows in the file stay

Same coder, pictures, batch and steps in all; the single table has as many rows as the two together, and a second single
table has the 256 of the shipped tokenizer. Measured on 2,000 held-out shapes: PSNR, and the Fréchet distance of the
judge's features between pictures and reconstructions. About 15 minutes a seed on one CPU core; killed at any point, the
same command goes on.
"""
import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
FILE = ROOT / "nbs" / "studies" / "semantic_detail.json"


@dataclass
class Options:
    "What to train, and where."
    seeds: tuple[int, ...] = (0, 1, 2)
    "of the trainings"
    out: Path = Path("runs/semantic-detail")
    "where the runs go"
    record: bool = False
    "write nbs/studies/semantic_detail.json"


def train(*words):
    "Run the training script; its failure is ours."
    from vgnb.processes import run_below
    words = ["scripts/train_tokenizer.py", *map(str, words)]
    print("   python", *words, flush=True)
    code = run_below([sys.executable, *words], cwd=ROOT)
    if code: sys.exit(code)


def trained(o: Options, seed: int) -> dict:
    "{what it is: tokenizer} of one seed."
    from vgnb.saved import load_model
    from vgnb.training.recipes import recipe
    place = o.out / f"seed-{seed}"
    first, second = (recipe(f"shapes-iar2-tokenizer-{stage}") for stage in ("first", "second"))
    train(first.name, "--seed", seed, "--out", place / "first")
    train(second.name, "--seed", seed, "--start", place / "first", "--out", place / "second")

    rows, steps = sum(second.model.quantizer.vocab), first.steps + second.steps
    for codes in (rows, 256):
        train("shapes-8x8-tokenizer", "--model.quantizer.codebook", codes, "--steps", steps, "--seed", seed,
              "--out", place / f"single-{codes}")

    both = load_model(place / "second" / "model")
    singles = {f"one table of {codes}": load_model(place / f"single-{codes}" / "model") for codes in (rows, 256)}
    semantic, detail = second.model.quantizer.vocab
    return {f"{semantic} semantic and {detail} detail codes": both, "its semantic codes alone": both.first(1)} | singles


def row(bench, model, batch: int = 250) -> dict:
    "PSNR, rFID and the bits that a place's codes hold, on the bench's held-out pictures."
    from vgnb.evaluation.measure import measure
    from vgnb.evaluation.reconstruction import ReconstructionMeter
    from vgnb.evaluation.samples import Samples
    from vgnb.tokenizers.pictures import codes_of, pictures
    originals, meter, rebuilt = torch.from_numpy(bench.real.images), ReconstructionMeter(), []
    with torch.no_grad():
        for some in originals.split(batch):
            made = pictures(model, codes_of(model, some, batch), rows=batch)
            meter.update(torch.from_numpy(made), some)
            rebuilt.append(made)
    made = Samples(np.concatenate(rebuilt), bench.real.labels, id="reconstructions")
    values = measure(made, bench.real, bench.judge, metrics=("fid",), uint8_rule="round", seed=0,
                     base=bench.base).values
    return {
        "bits": round(float(np.log2(model.vocab).sum()), 2),
        "psnr": round(meter.compute()["psnr"], 3),
        "rfid": round(values["fid"], 4)}


def record(o: Options, rows: list[dict], bench):
    "Put the new seeds into the committed file. Errors: rows of other settings are in it."
    from vgnb.core import Mismatch, check
    settings = {"torch": torch.__version__, "extractor": bench.judge.id, "count": len(bench.real.images)}
    study = json.loads(FILE.read_text()) if FILE.exists() else settings | {"rows": []}
    kept = [row for row in study["rows"] if row["seed"] not in o.seeds]
    there = {name: study[name] for name in settings}
    message = f"holds other seeds measured with {there}; measure all seeds anew"
    check(not kept or there == settings, "record", str(FILE), message, Mismatch)

    device = f"{platform.processor() or platform.machine()}, one thread"
    every = sorted(kept + rows, key=lambda row: row["seed"])
    seeds = " ".join(dict.fromkeys(str(row["seed"]) for row in every))
    command = f"python scripts/studies/semantic_detail.py --seeds {seeds} --record"
    found = {"command": command, "device": device} | settings
    FILE.write_text(json.dumps(found | {"rows": every}, indent=1) + "\n")


def main(o: Options) -> int:
    from scripts.studies.any_order import Bench
    torch.set_num_threads(1)
    bench, rows = Bench(2000), []
    for seed in o.seeds:
        for name, model in trained(o, seed).items():
            rows.append({"seed": seed, "tokenizer": name, **row(bench, model)})
            print("  ", *rows[-1].values(), flush=True)
    if o.record: record(o, rows, bench)
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda words: main(typed_cli(Options, args=words, description=__doc__))))
