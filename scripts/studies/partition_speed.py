"""Masked against partition generation: what a picture costs at the published grid and schedule.

    python scripts/studies/partition_speed.py                 # measure, print
    python scripts/studies/partition_speed.py --record        # and write nbs/studies/partition_speed.json

32x32 cells, codebook 16,384, Halton order, the published schedule, no guidance. Multiply-adds are those of the published sizes (24 layers of width 1024; 12/12 and 14/10).
Wall time is of both families at a quarter of the width and depth (6 layers of 256; 3/3), untrained weights, one dtype (fp32), interleaved in one process, medians.
*as published* asks the masked model for all cells in every step and draws all of them, as the authors' sampler does; *wanted* asks for the cells of the step. Some minutes on one CPU core.
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
import tyro

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
        logits = generator.predict(state, cells, live=1).logits[0]
        tokens = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1).view(cond.b, -1)     # plain draws, as the authors': cheaper than counted ones
        now = order[:, done:done + count]
        generator.accept(state, now, tokens.gather(1, now)[..., None])
        done += count


def main(o: Options) -> int:
    from vgnb.draws import At, Keyed
    from vgnb.generators.cost import run_work
    from vgnb.generators.generator import Cond, Grid
    from vgnb.generators.masked import MaskedTransformer, masked_presets
    from vgnb.generators.orders import ORDERS
    from vgnb.generators.partition import PartitionTransformer, partition_presets
    from vgnb.generators.schedules import SCHEDULES
    from vgnb.sampling.sampler import Sampler
    torch.set_num_threads(o.threads)
    schedule, order, grid = SCHEDULES["halton"], ORDERS["halton"], Grid((32, 32))
    configs = {"MaskGIT": replace(masked_presets["large"], grid=grid.shape), "PGM 12/12": partition_presets["12-12"], "PGM 14/10": partition_presets["14-10"]}
    work = [{"model": name, "steps": s, "gmac": round(run_work(c, schedule(grid.n, s, 0)) / 1e9, 1)} for s in o.steps for name, c in configs.items()]
    for row in work: print(row, flush=True)
    small = {"MaskGIT": MaskedTransformer(replace(configs["MaskGIT"], layers=6, dim=256, heads=4)), "PGM 3/3": PartitionTransformer(replace(partition_presets["12-12"], encoder=3, decoder=3, dim=256, heads=4))}
    cond, ids, draws = Cond(labels=torch.arange(o.rows)), torch.arange(o.rows), Keyed(0)
    plan, rows = order.plan(grid, None, draws, At(ids)), []
    for s in o.steps:
        counts = schedule(grid.n, s, 0)
        runs = {f"{name}, wanted" if name == "MaskGIT" else name: Sampler(m.eval(), order, schedule, steps=s, rows=o.rows) for name, m in small.items()}
        times = {"MaskGIT, as published": [], **{k: [] for k in runs}}
        for _ in range(o.repeats):
            for name in times:
                start = time.perf_counter()
                with torch.no_grad():
                    if name in runs: runs[name].sample(cond, ids, draws, grid=grid)
                    else: everything(small["MaskGIT"], cond, grid, counts, plan)
                times[name].append(time.perf_counter() - start)
        for name, t in times.items():
            m = small["MaskGIT" if name.startswith("MaskGIT") else name]
            gmac = round((run_work(m.config, counts) if name in runs else everything_work(m.config, grid.n, len(counts))) / 1e9, 1)
            rows.append({"model": name, "steps": s, "seconds": round(statistics.median(t) / o.rows, 3), "gmac": gmac})
            print(rows[-1], flush=True)
    if o.record:
        FILE.write_text(json.dumps({"command": "python scripts/studies/partition_speed.py --record", "device": f"{platform.processor() or platform.machine()}, {o.threads} thread(s)", "torch": torch.__version__,
                                    "samples": o.rows, "repeats": o.repeats, "published_sizes": work, "small_sizes": rows}, indent=1) + "\n")
    return 0


def everything_work(config, n: int, steps: int) -> int:
    "Multiply-adds of a masked run that asks for all cells in every step."
    from vgnb.generators.cost import step_work
    return steps * step_work(config, n, 0, n) + config.condition_work()


if __name__ == "__main__":
    from vgnb.core import VgnbError
    try: sys.exit(main(tyro.cli(Options, description=__doc__)))
    except VgnbError as e: print(e, file=sys.stderr); sys.exit(2)
