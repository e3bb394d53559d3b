"""Repeat a recorded run.

    python scripts/rerun.py runs/x/run.json                 # the same command, in the same folder
    python scripts/rerun.py runs/x/run.json --out runs/y    # the same, written elsewhere; then the results are compared byte for byte
    python scripts/rerun.py runs/x/run.json --dry-run       # say what would run, and what differs from then

Every artifact lies beside a run.json (or NAME.run.json): command, commit, versions, device, seed. Differences between then and now are listed first.
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
    said = [f"{k}: {run.get(k)} then, {now[k]} now" for k in ("commit", "diff") if run.get(k) != now[k]]
    return said + [f"{p}: {v} then, {now['versions'].get(p)} now" for p, v in run["versions"].items() if now["versions"].get(p) != v]


def command_of(run: dict, out: Path | None) -> list[str]:
    "The command line to run, with this Python, on as many processes as then."
    from vgnb.core import check
    words = list(run["command"])
    check(len(words) > 1 and words[1].endswith(".py"), "command", words, "must be a recorded `python script.py ...`")
    script, rest = words[1], words[2:]
    if out is not None:
        check("--out" in rest, "out", out, "cannot be replaced: the recorded command has no --out")
        rest[rest.index("--out") + 1] = str(out.resolve())
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(run["world"])] if run.get("world", 1) > 1 else []
    return [sys.executable, *launch, script, *rest]


def compare(old: Path, new: Path) -> int:
    "Hold results (npz, safetensors) below two places against each other; the number that differ."
    from vgnb.core import digest_file
    files = lambda p: {q.relative_to(p) if p.is_dir() else Path("it"): q for q in ([p] if p.is_file() else sorted(p.rglob("*"))) if q.suffix in (".npz", ".safetensors") and "checkpoints" not in q.parts}
    a, b = files(old), files(new)
    wrong = [str(k) for k in a if k not in b or digest_file(a[k]) != digest_file(b[k])]
    print(f"{len(a) - len(wrong)} of {len(a)} results are byte-identical" + (f"; these are not: {', '.join(wrong)}" if wrong else ""))
    return len(wrong)


def main(argv: list[str]) -> int:
    from vgnb.core import Missing, check, load_json
    o = tyro.cli(Options, args=argv, description=__doc__)
    run = load_json(o.run)
    check(isinstance(run, dict) and {"command", "seed", "versions", "cwd"} <= run.keys(), "run", o.run, "must be a run.json written by vgnb")
    command = command_of(run, o.out)
    for d in differences(run): print(f"differs: {d}")
    print("runs:", " ".join(command), f"(in {run['cwd']})", flush=True)
    if o.dry_run: return 0
    check(Path(run["cwd"]).is_dir(), "cwd", run["cwd"], "the folder it ran in is gone", Missing)
    env = {**os.environ, **({"ACCELERATE_USE_CPU": "true"} if run.get("world", 1) > 1 and run["device"].startswith("cpu") else {})}
    code = subprocess.run(command, cwd=run["cwd"], env=env).returncode
    if code or o.out is None: return code
    words = run["command"]
    return int(compare(Path(run["cwd"]) / words[words.index("--out") + 1], o.out) > 0)


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
