"""How fast the library is, by itself and against another implementation, in one process.

    python scripts/bench.py --list
    python scripts/bench.py C1 C3                     # measure, print
    python scripts/bench.py C1 --versus PEER.py       # against another implementation, in turns
    python scripts/bench.py cpu-all --record          # and write nbs/studies/bench/C1.json ...
    python scripts/bench.py gpu-all --minutes 8 --out FOLDER

Workloads C1 to C11 run on one core, G0 to G10 on one GPU, at published shapes with random weights; --small takes
seconds. Counted are multiplications and additions, operations, reads by the host and memory; timed are runs in turns,
and the ratio of each pair counts. What a matrix product and a copy reach is measured in the same process.

PEER.py defines load(config, weights) and run(model, inputs); nbs/studies/985_speed.ipynb tells how. Both must make the
same of the same weights and noise, in fp32, else nothing is timed. With --bar 1.2 it is an error if the peer's
multiplications are fewer than 1.2 times ours, or if three quarters of its ratios of time are below that.

Exit codes: 0 done, 1 below the bar, 2 something named on stderr.
"""
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
FOLDER = ROOT / "nbs" / "studies" / "bench"


@dataclass
class Options:
    "What to measure."
    workloads: tyro.conf.Positional[tuple[str, ...]] = ()
    "C1 ... C11, G0 ... G10, cpu-all, gpu-all"
    list: bool = False
    "say which workloads there are, and stop"
    versus: Path | None = None
    "another implementation"
    small: bool = False
    "sizes that take seconds"
    pairs: int | None = None
    "runs of each, in turns; None = as many as the workload says"
    device: str | None = None
    "cpu or cuda; None = as the workload says. On a CPU, GPU workloads run with --small only"
    minutes: float = 60.0
    "after so many no further row is begun"
    bar: float | None = None
    "with --versus: the least ratio"
    record: bool = False
    "write nbs/studies/bench/WORKLOAD.json, or WORKLOAD-PEER.json"
    out: Path | None = None
    "also write the files here, each row as it is known"


def asked(o: Options) -> list:
    "The workloads by name. Errors: unknown ones, none."
    from vgnb.core import check, check_choice
    from vgnb.evaluation.workloads import WORKLOADS
    groups = {f"{kind}-all": [w for w in WORKLOADS.values() if (w.device == "cpu") == (kind == "cpu")]
              for kind in ("cpu", "gpu")}
    check(o.workloads, "workloads", (), f"needs a name: {', '.join((*groups, *WORKLOADS))}")
    for name in o.workloads: check_choice("workloads", name, (*groups, *WORKLOADS))
    return [w for name in o.workloads for w in groups.get(name, [WORKLOADS.get(name)])]


def check_options(o: Options, workloads: list, peer) -> None:
    "Whatever can be known to be wrong beforehand."
    import torch

    from vgnb.core import check, check_choice, check_float, check_int
    if o.pairs is not None: check_int("pairs", o.pairs, 1)
    check_float("minutes", o.minutes, 0)
    if o.device is not None: check_choice("device", o.device.partition(":")[0], ("cpu", "cuda"))
    check(not o.record or not o.small, "record", True, "can't be with small: only whole sizes are recorded")
    check(o.bar is None or peer, "bar", o.bar, "needs versus: it is a ratio of two")
    origin = getattr(peer, "ORIGIN", "")
    whose = 'must say whose code it is to be recorded: ORIGIN = "owner/name at commit"'
    check(not (o.record and peer) or origin, "versus", o.versus, whose)
    check(not peer or len(workloads) == 1, "versus", o.versus, "is one workload's: name one")
    for w in workloads:
        there = o.device or w.device
        check(there == "cpu" or torch.cuda.is_available(), "device", there, f"is not there ({w.name}); --device cpu "
              "--small tries a GPU's workload on a CPU")
        whole = w.device == "cpu" or there != "cpu" or o.small
        check(whole, "device", there, f"is too slow for {w.name}: with --small it can be tried")


def listing() -> str:
    "All workloads, a line each."
    from vgnb.evaluation.workloads import WORKLOADS
    return "\n".join(f"{name:5}{w.about}" for name, w in WORKLOADS.items())


def processor() -> str:
    "The name of this machine's processor."
    try: lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError: lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def settings(o: Options, w, rates, device: str) -> dict:
    "Where and how a record came to be."
    import torch

    from vgnb.core import run_manifest
    known = run_manifest({}, seed=0)
    same = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "vgnb", "scripts"], cwd=ROOT, check=False)
    name = torch.cuda.get_device_name() if device != "cpu" else f"{processor()}, one thread"
    return {
        "command": " ".join(("python scripts/bench.py", w.name, *(["--versus", o.versus.name] if o.versus else []),
                             "--record")),
        "workload": w.name,
        "about": w.about,
        "device": name,
        "dtype": str(w.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "commit": known["commit"],
        "changes": same.returncode != 0,
        "load": [round(x, 1) for x in os.getloadavg()],
        "gflop_s": round(rates.flops / 1e9, 1),
        "copy_gb_s": round(rates.bytes / 1e9, 1)}


def rows_of(w, o: Options, device: str, rates, peer, until: float) -> Iterator[dict]:
    "A workload's rows, one after the other; none is begun after the time is over."
    import torch

    from vgnb.evaluation.bench import measured
    from vgnb.evaluation.workloads import Place
    place = Place(device, w.dtype, o.small)
    plain = place._replace(dtype=torch.float32)
    for case in w.cases(place):
        if time.monotonic() > until:
            yield {"case": case.name, "left_out": "out of time"}
            continue
        compared = next(w.cases(plain)) if peer and w.dtype != torch.float32 else None
        yield measured(case, rates, o.pairs or w.pairs, device, peer, compared)
        if device != "cpu": torch.cuda.empty_cache()


def told(row: dict, clock: str) -> str:
    "A row in words; `clock` is cpu (of the processor) or wall."
    if "left_out" in row: return f"    {row['case']}: {row['left_out']}"
    low, middle, high = row[f"{clock}_ms"]
    said = [f"{middle:,.1f} ms [{low:,.1f}-{high:,.1f}]", f"{row['gflop']:,.4g} GFLOP", f"{row['ops']:,} operations",
            f"{row['reads']} reads", f"{row['peak_mb']:,.0f} MB", f"{row['of_ceiling']:.0%} of the ceiling"]
    if row["draws"] is not None: said.append(f"draws {row['draws']:.1%}")
    if "cpu_ratio" in row:
        low, middle, high = row[f"{clock}_ratio"]
        said += [f"the peer takes {middle:.2f} times as long [{low:.2f}-{high:.2f}]",
                 f"its {row['gflop_peer']:,.4g} GFLOP in {row['ops_peer']:,} operations"]
    return f"    {row['case']}: {', '.join(said)}"


def below(row: dict, bar: float, clock: str) -> bool:
    "Whether the peer is not so much worse: by its multiplications, or by three quarters of its ratios."
    if f"{clock}_ratio" not in row: return False
    work = row["gflop_peer"] / row["gflop"] if row["gflop"] else bar
    return work < bar or row[f"{clock}_ratio"][2] < bar


def write(path: Path, study: dict):
    "A file that is whole or as it was."
    from vgnb.core import write_aside
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_aside(path) as aside: aside.write_text(json.dumps(study, indent=1) + "\n")


def main(o: Options) -> int:
    if o.list:
        print(listing())
        return 0
    import torch

    from vgnb.evaluation.bench import ceilings, load_peer
    workloads = asked(o)
    peer = load_peer(o.versus) if o.versus else None
    check_options(o, workloads, peer)
    until, missed = time.monotonic() + 60 * o.minutes, False
    for w in workloads:
        device = o.device or w.device
        if device == "cpu":
            torch.set_num_threads(1)
            os.environ["ACCELERATE_USE_CPU"] = "true"
        clock = "cpu" if device == "cpu" else "wall"
        rates = ceilings(w.dtype, device, **(dict(side=256, tries=2) if o.small else {}))
        print(f"{w.name}: {w.about}", flush=True)
        study = settings(o, w, rates, device)
        if peer: study["original"] = getattr(peer, "ORIGIN", "")
        study["rows"] = []
        name = f"{w.name}-{o.versus.stem}.json" if peer else f"{w.name}.json"
        for row in rows_of(w, o, device, rates, peer, until):
            study["rows"].append(row)
            print(told(row, clock), flush=True)
            missed |= o.bar is not None and below(row, o.bar, clock)
            for folder in (o.out, FOLDER if o.record else None):
                if folder: write(folder / name, study)
    if missed: print(f"below the bar of {o.bar}", file=sys.stderr)
    return int(missed)


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda words: main(typed_cli(Options, args=words, description=__doc__))))
