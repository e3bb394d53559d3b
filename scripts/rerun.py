"""Repeat a recorded run.

    python scripts/rerun.py runs/x/run.json                 # the same command, in the same folder
    python scripts/rerun.py runs/x/run.json --out runs/y    # the same, written elsewhere; then the results are compared
    python scripts/rerun.py runs/x/run.json --dry-run       # say what would run, and what differs from then

Every artifact lies beside a run.json (or NAME.run.json): command, commit, versions, device, seed. Differences between
then and now are listed first. Results are compared byte for byte.
"""
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@dataclass
class Options:
    "Which run, and where to."
    run: tyro.conf.Positional[Path]
    "a run.json"
    out: Path | None = None
    "write here instead: replaces the command's --out"
    dry_run: bool = False
    "only say what would be done"


def differences(run: dict) -> list[str]:
    "What is not as it was: commit, changes, versions, device."
    from vgnb.core import run_manifest
    now = run_manifest({}, seed=run["seed"])
    code = [(name, run.get(name), now[name]) for name in ("commit", "diff")]
    packages = [(name, version, now["versions"].get(name)) for name, version in run["versions"].items()]
    return [f"{name}: {then} then, {today} now" for name, then, today in code + packages if then != today]


def command_of(run: dict, out: Path | None) -> list[str]:
    "The command line to run, with this Python, on as many processes as then."
    from vgnb.core import check
    words = list(run["command"])
    is_script = len(words) > 1 and words[1].endswith(".py")
    check(is_script, "command", words, "must be a recorded `python script.py ...`")

    script, rest = words[1], words[2:]
    if out is not None:
        check("--out" in rest, "out", out, "cannot be replaced: the recorded command has no --out")
        rest[rest.index("--out") + 1] = str(out.resolve())

    world = run.get("world", 1)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)] if world > 1 else []
    return [sys.executable, *launch, script, *rest]


def results_in(place: Path) -> dict[Path, Path]:
    "The results (npz, safetensors) below a place, by their path inside it; checkpoints are on the way and no results."
    if place.is_file(): return {Path("it"): place}
    found = [p for p in sorted(place.rglob("*")) if p.suffix in (".npz", ".safetensors")]
    return {p.relative_to(place): p for p in found if "checkpoints" not in p.parts}


def compare(old: Path, new: Path) -> int:
    "How many results in two places differ."
    from vgnb.core import digest_file
    a, b = results_in(old), results_in(new)
    wrong = [str(name) for name in a if name not in b or digest_file(a[name]) != digest_file(b[name])]
    others = f"; these are not: {', '.join(wrong)}" if wrong else ""
    print(f"{len(a) - len(wrong)} of {len(a)} results are byte-identical{others}")
    return len(wrong)


def repeat(run: dict, command: list[str]) -> int:
    "Run the command where it ran then, on the kind of device it ran on; its exit code."
    from vgnb.core import Missing, check
    check(Path(run["cwd"]).is_dir(), "cwd", run["cwd"], "the folder it ran in is gone", Missing)
    on_cpus = run.get("world", 1) > 1 and run["device"].startswith("cpu")
    env = os.environ | ({"ACCELERATE_USE_CPU": "true"} if on_cpus else {})
    return subprocess.run(command, cwd=run["cwd"], env=env).returncode


def main(argv: list[str]) -> int:
    from vgnb.cli import typed_cli
    from vgnb.core import check, load_json
    o = typed_cli(Options, args=argv, description=__doc__)
    run = load_json(o.run)
    is_record = isinstance(run, dict) and {"command", "seed", "versions", "cwd"} <= run.keys()
    check(is_record, "run", o.run, "must be a run.json written by vgnb")

    command = command_of(run, o.out)
    for line in differences(run): print(f"differs: {line}")
    print("runs:", " ".join(command), f"(in {run['cwd']})", flush=True)
    if o.dry_run: return 0

    code = repeat(run, command)
    if code or o.out is None: return code
    words = run["command"]
    old = Path(run["cwd"]) / words[words.index("--out") + 1]
    return int(compare(old, o.out) > 0)


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
