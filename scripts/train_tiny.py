"""Train one of the shipped tiny models and write it into vgnb/weights/tiny.

    python scripts/train_tiny.py tokenizer             # 8x8 codes of 256, first: the generators learn its codes
    python scripts/train_tiny.py randar                # then any generator: codes, training, examination, shipping
    python scripts/train_tiny.py randar --dry-run      # what would be done

The steps are those a user takes: train_tokenizer.py, extract_codes.py, train_generator.py with the recipe shapes-8x8-NAME; killed at any point, the same
command goes on. One CPU thread (--threads), because more gain little for models this small. A generator is examined at a third of the steps under several guidance
scales, and at all and an eighth of them under the best; what was measured is written into its card. Exits with 1, shipping nothing, when the samples' class accuracy at a third of the steps is below --at-least.
"""
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PICTURES = "shapes://?n=120000&size=32&seed=0"


@dataclass
class Options:
    "Which model, and where."
    name: tyro.conf.Positional[str]
    "tokenizer, or a generator: randar, maskgit, pgm"
    out: Path = Path("runs/tiny")
    "where the runs go; the tokenizer's codes are shared"
    ship: Path = ROOT / "vgnb" / "weights" / "tiny"
    "the folder of shipped models"
    at_least: float = 0.8
    "class accuracy at a third of the steps that a generator must reach"
    count: int = 1000
    "samples of each examination"
    threads: int = 1
    "CPU threads of the training"
    dry_run: bool = False
    "say what would be done and stop"


def call(o: Options, *words) -> float:
    "Run one of the scripts; seconds. Its failure is ours."
    words = [str(w) for w in words]
    print(f"   python {' '.join(words)}", flush=True)
    start = time.perf_counter()
    code = 0 if o.dry_run else subprocess.run([sys.executable, *words], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": str(o.threads)}).returncode
    if code: sys.exit(code)
    return time.perf_counter() - start


def seconds(run: Path) -> float:
    "What a run took, over all its sessions, from its log."
    from vgnb.charts import read_records
    records = [r for r in read_records(run / "log.jsonl") if "per_second" in r]
    return sum((b["samples"] - a["samples"]) / b["per_second"] for a, b in zip([{"samples": 0}, *records], records) if b["samples"] > a["samples"])


def tokenizer(o: Options) -> int:
    "Train, examine and ship the tokenizer."
    run = o.out / "tokenizer"
    call(o, "scripts/train_tokenizer.py", "shapes-8x8-tokenizer", "--out", run)
    if o.dry_run: return 0
    import numpy as np
    import torch

    from vgnb.data.shapes import Shapes
    from vgnb.data.transforms import to_uint8
    from vgnb.evaluation.judge import judge_input, load_judge
    from vgnb.evaluation.reconstruction import ReconstructionMeter
    from vgnb.shipped import ship_model
    from vgnb.saved import load_model
    images, labels = Shapes(2000, 32, seed=1).batch(np.arange(2000))
    ship_model(o.ship / "tokenizer", load_model(run / "model"), result="just trained")
    model, meter, right, used = load_model(o.ship / "tokenizer"), ReconstructionMeter(), 0, set()      # what is examined is what is shipped
    net, _ = load_judge()
    with torch.no_grad():
        for i in range(0, 2000, 250):
            codes = model.encode(model.enter(torch.from_numpy(images[i:i + 250]).permute(0, 3, 1, 2).float() / 127.5 - 1))
            rebuilt = to_uint8(model.leave(model.decode(codes))).cpu()
            meter.update(rebuilt, torch.from_numpy(images[i:i + 250]))
            right += int((net(judge_input(rebuilt)).argmax(1) == torch.from_numpy(labels[i:i + 250])).sum())
            used |= set(codes.unique().tolist())
    found = meter.compute()
    record = {"command": "python scripts/train_tiny.py tokenizer", "seconds": round(seconds(run)), "psnr": round(found["psnr"], 2), "ssim": round(found["ssim"], 4),
              "judge_accuracy": right / 2000, "codes_used": len(used), "held_out": 2000, "torch": torch.__version__}
    record["result"] = f"PSNR {record['psnr']} dB, SSIM {record['ssim']:.3f}, {len(used)} of {model.vocab[0]} codes, judge on reconstructions {right / 2000:.1%}"
    ship_model(o.ship / "tokenizer", load_model(run / "model"), **record)
    print(record["result"])
    return 0


def generator(o: Options) -> int:
    "Codes, training, examination, shipping."
    from vgnb.training.recipes import recipe
    wanted, run = recipe(f"shapes-8x8-{o.name}"), o.out / o.name
    call(o, "scripts/extract_codes.py", "--tokenizer", o.ship / "tokenizer", "--data", PICTURES, "--size", 32, "--batch", 250, "--shard-size", 8000, "--out", o.out / "codes")
    call(o, "scripts/train_generator.py", wanted.name, "--data", o.out / "codes", "--out", run)
    if o.dry_run: return 0
    import torch

    from scripts.studies.any_order import Bench
    from vgnb.pipeline import Pipeline
    from vgnb.sampling.settings import Sampling
    from vgnb.shipped import ship_pipeline
    from vgnb.saved import load_model
    model = load_model(run / "model")
    n, settings, classes = model.config.grid[0] * model.config.grid[1], SETTINGS[o.name], model.card["classes"]
    shipped = o.out / "shipped" / o.name
    ship_pipeline(shipped, model, asdict(Sampling(**settings)), classes, model.config.grid, result="")
    pipe = Pipeline(load_model(o.ship / "tokenizer"), load_model(shipped / "generator"), Sampling(**settings), classes)
    torch.set_num_threads(o.threads)
    bench = Bench(o.count)
    examine = lambda steps, scale: bench.point(pipe, steps=steps, cfg_scale=scale) | {"count": o.count}
    table = [examine(-(-n // 3), scale) for scale in SCALES]
    best = chosen(table, -(-n // 3))
    table += [examine(steps, best["cfg_scale"]) for steps in (n, n // 8)]
    if best["accuracy"] < o.at_least: print(f"accuracy {best['accuracy']:.1%} at {best['steps']} steps is below --at-least {o.at_least:.0%}; nothing shipped", file=sys.stderr); return 1
    record = {"command": f"python scripts/train_tiny.py {o.name}", "recipe": wanted.name, "seconds": round(seconds(run)), "threads": o.threads, "torch": torch.__version__, "table": table,
              "result": f"{best['accuracy']:.1%} of {o.count} samples as asked at {best['steps']} of {n} steps, guidance {best['cfg_scale']:g}"}
    ship_pipeline(o.ship / o.name, model, asdict(Sampling(**settings | {"cfg_scale": best["cfg_scale"]})), classes, model.config.grid, **record)
    print(record["result"])
    return 0


def chosen(table: list[dict], steps: int) -> dict:
    "The row whose guidance scale is shipped: the lowest FID among those within two points of the best accuracy."
    rows = [r for r in table if r["steps"] == steps]
    return min((r for r in rows if r["accuracy"] >= max(q["accuracy"] for q in rows) - 0.02), key=lambda r: r["fid"])


SCALES = (1.0, 2.0, 3.0, 5.0)
SETTINGS = {"randar": dict(order="random", schedule="cosine", steps=22, rows=50), "maskgit": dict(order="halton", schedule="arccos", steps=22, rows=50),
            "pgm": dict(order="halton", schedule="arccos", steps=22, rows=50)}      # how the shipped pipeline samples unless asked otherwise


def main(o: Options) -> int:
    from vgnb.core import check_choice
    check_choice("name", o.name, ("tokenizer", *SETTINGS))
    return tokenizer(o) if o.name == "tokenizer" else generator(o)


if __name__ == "__main__":
    from vgnb.core import VgnbError
    try: sys.exit(main(tyro.cli(Options, description=__doc__)))
    except VgnbError as e: print(e, file=sys.stderr); sys.exit(2)
