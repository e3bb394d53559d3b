"""Masked against partition generation: what a picture costs at the published grid and schedule.

    python scripts/studies/partition_speed.py                 # measure, print
    python scripts/studies/partition_speed.py --record        # and write nbs/studies/partition_speed.json

32x32 cells, codebook 16,384, Halton order, the published schedule, no guidance. Multiply-adds are those of the
published sizes (24 layers of width 1024; 12/12 and 14/10). Wall time is of both families at a quarter of the width
and depth (6 layers of 256; 3/3), untrained weights, one dtype (fp32), interleaved in one process, medians. *as
published* asks the masked model for all cells in every step and draws all of them, as the authors' sampler does;
*wanted* asks for the cells of the step. Some minutes on one CPU core.
"""
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
FILE = ROOT / "nbs" / "studies" / "partition_speed.json"


@dataclass
class Options:
    "How much to measure."
    steps: tuple[int, ...] = (16, 32, 64)
    "numbers of steps"
    repeats: int = 3
    "interleaved runs of each; the median counts"
    rows: int = 1
    "samples of a run"
    threads: int = 1
    "CPU threads"
    record: bool = False
    "write nbs/studies/partition_speed.json"


def everything(generator, cond, grid, counts, order):
    "A masked run that computes and draws all cells in every step, and keeps those of the step."
    state, done = generator.begin((cond,), grid), 0
    cells = torch.arange(grid.n).expand(cond.b, -1)
    for count in counts:
        p = generator.predict(state, cells, live=1).logits[0].softmax(-1)
        tokens = torch.multinomial(p.flatten(0, 1), 1).view(cond.b, -1)    # as the authors': cheaper than counted draws
        now = order[:, done:done + count]
        generator.accept(state, now, tokens.gather(1, now)[..., None])
        done += count


def everything_work(config, n: int, steps: int) -> int:
    "Multiply-adds of a masked run that asks for all cells in every step."
    from vgnb.generators.cost import step_work
    return steps * step_work(config, n, 0, n) + config.condition_work()


def published_sizes(o: Options, configs: dict, schedule, n: int) -> list[dict]:
    "Multiply-adds of a sample at the published sizes."
    from vgnb.generators.cost import run_work
    rows = []
    for steps in o.steps:
        for name, config in configs.items():
            gmac = run_work(config, schedule(n, steps, 0)) / 1e9
            rows.append({"model": name, "steps": steps, "gmac": round(gmac, 1)})
            print(rows[-1], flush=True)
    return rows


def medians(runs: dict, repeats: int) -> dict:
    "Median seconds of each run, all of them taking turns."
    times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            with torch.no_grad(): run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def small_sizes(o: Options, masked, partition, order, schedule, grid) -> list[dict]:
    "Wall time and multiply-adds of a sample by small models of both families."
    from vgnb.draws import At, Keyed
    from vgnb.generators.cost import run_work
    from vgnb.generators.generator import Cond
    from vgnb.sampling.sampler import Sampler
    cond, ids, draws = Cond(labels=torch.arange(o.rows)), torch.arange(o.rows), Keyed(0)
    plan = order.permutation(grid, None, draws, At(ids))
    rows = []
    for steps in o.steps:
        counts = schedule(grid.n, steps, 0)
        def sampled(model, steps=steps):
            return Sampler(model, order, schedule, steps=steps, rows=o.rows).sample(cond, ids, draws, grid=grid)
        runs = {"MaskGIT, as published": lambda counts=counts: everything(masked, cond, grid, counts, plan),
                "MaskGIT, wanted": lambda: sampled(masked),
                "PGM 3/3": lambda: sampled(partition)}
        work = {"MaskGIT, as published": everything_work(masked.config, grid.n, len(counts)),
                "MaskGIT, wanted": run_work(masked.config, counts),
                "PGM 3/3": run_work(partition.config, counts)}
        for name, seconds in medians(runs, o.repeats).items():
            rows.append({"model": name, "steps": steps, "seconds": round(seconds / o.rows, 3),
                         "gmac": round(work[name] / 1e9, 1)})
            print(rows[-1], flush=True)
    return rows


def main(o: Options) -> int:
    from vgnb.generators.generator import Grid
    from vgnb.generators.masked import MaskedTransformer, masked_presets
    from vgnb.generators.orders import ORDERS
    from vgnb.generators.partition import PartitionTransformer, partition_presets
    from vgnb.generators.schedules import SCHEDULES
    torch.set_num_threads(o.threads)
    schedule, grid = SCHEDULES["halton"], Grid((32, 32))
    configs = {"MaskGIT": replace(masked_presets["large"], grid=grid.shape),
               "PGM 12/12": partition_presets["12-12"],
               "PGM 14/10": partition_presets["14-10"]}
    masked = MaskedTransformer(replace(configs["MaskGIT"], layers=6, dim=256, heads=4)).eval()
    partition = PartitionTransformer(replace(configs["PGM 12/12"], encoder=3, decoder=3, dim=256, heads=4)).eval()
    work = published_sizes(o, configs, schedule, grid.n)
    rows = small_sizes(o, masked, partition, ORDERS["halton"], schedule, grid)
    if o.record:
        study = {"command": "python scripts/studies/partition_speed.py --record",
                 "device": f"{platform.processor() or platform.machine()}, {o.threads} thread(s)",
                 "torch": torch.__version__,
                 "samples": o.rows,
                 "repeats": o.repeats,
                 "published_sizes": work,
                 "small_sizes": rows}
        FILE.write_text(json.dumps(study, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda words: main(typed_cli(Options, args=words, description=__doc__))))
