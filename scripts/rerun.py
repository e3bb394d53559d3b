"""Repeat a recorded run.

    python scripts/rerun.py runs/x/run.json                 # the same command, in the same folder
    python scripts/rerun.py runs/x/run.json --out runs/y    # the same, written elsewhere; then the results are compared
    python scripts/rerun.py runs/x/run.json --dry-run       # say what would run, and what differs from then

Every artifact lies beside a run.json (or NAME.run.json): command, commit, versions, device, seed. Differences between
then and now are listed first. Results are compared byte for byte with those beside the record, or with the hashes in
it; exit code 1 if any differs, or if there is none to compare.

Only scripts of this project that write records are started, whatever a record names, and never with --overwrite or
--fresh: what is there stays. --out must be a new name.
"""
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


@dataclass
class Options:
    "Which run, and where to."
    run: tyro.conf.Positional[Path]
    "a run.json"
    out: Path | None = None
    "write here instead (a new name): replaces the command's --out, or --json of evaluate.py"
    dry_run: bool = False
    "only say what would be done"


def differences(run: dict) -> list[str]:
    "What is not as it was: commit, changes, versions, device."
    from vgnb.core import run_manifest
    now = run_manifest({}, seed=run["seed"])
    code = [(name, run.get(name), now[name]) for name in ("commit", "diff")]
    packages = [(name, version, now["versions"].get(name)) for name, version in run["versions"].items()]
    return [f"{name}: {then} then, {today} now" for name, then, today in code + packages if then != today]


GIVE_UP = ("--overwrite", "--fresh")     # words that would remove what is there
OUT = {"evaluate.py": "--json"}          # a script's option for where its results go; the others': --out


# those that write records of work; a record of rerun.py would repeat itself for ever
REPEATED = ("evaluate.py", "extract_codes.py", "extract_reference.py", "extract_text.py", "quickstart.py", "sample.py",
            "search_guidance.py", "train_generator.py", "train_tokenizer.py")


def check_record(run: dict, path: Path):
    "A record says what is needed to repeat it, each thing in its own type."
    from vgnb.core import check
    needs = {"command": list, "seed": int, "versions": dict, "cwd": str, "device": str}
    check(needs.keys() <= run.keys(), "run", path, "must be a run.json written by vgnb")
    for name, kind in needs.items():
        fits = isinstance(run[name], kind) and not isinstance(run[name], bool)
        check(fits, name, run[name], f"must be of type {kind.__name__} in a record, {path}")
    world = run.get("world", 1)
    check(type(world) is int and world >= 1, "world", world, f"must be a number of processes, at least 1, in {path}")
    sharing_of(run)


def sharing_of(run: dict) -> dict[str, str]:
    "What the launcher says so that weights are shared out as they were; nothing where each process held them all."
    from vgnb.core import check
    from vgnb.training.sharded import Sharding
    shared = run.get("sharding")
    if not shared: return {}
    numbers = ("pieces", "replicas")
    fits = isinstance(shared, dict) and shared.keys() == {*numbers, "reshard"} and isinstance(shared["reshard"], bool)
    fits = fits and all(type(shared[name]) is int and shared[name] >= 1 for name in numbers)
    check(fits, "sharding", shared, "must be {pieces, replicas, reshard}, as a training records it")
    return Sharding(**shared).variables()


def unlaunched(words: list[str]) -> list[str]:
    "A command without the launcher and its own words: `world` says how many processes."
    if len(words) < 2 or Path(words[1]).name != "launch.py": return words
    at = next((i for i, word in enumerate(words) if i > 1 and word.endswith(".py")), len(words))
    return [words[0], *words[at:]]


def script_of(words: list[str]) -> Path:
    "The script of this project that a recorded command names. Errors: it names none that writes records."
    from vgnb.core import check
    named = Path(words[1]) if len(words) > 1 else Path()
    ours = named.name in REPEATED and named.parent.name == "scripts"
    check(ours, "command", words, f"must be a recorded `python scripts/NAME.py ...`; NAME is one of {REPEATED}")
    return ROOT / "scripts" / named.name


def with_out(words: list[str], option: str, out: Path) -> list[str]:
    "A script's words with another place for its results."
    at = [i for i, w in enumerate(words) if w == option or w.startswith(f"{option}=")]
    if not at: return [*words, option, str(out)]
    i = at[-1]
    after = i + 2 if words[i] == option else i + 1
    return [*words[:i], option, str(out), *words[after:]]


def command_of(run: dict, out: Path | None) -> list[str]:
    "The command line to run, with this Python, on as many processes as then."
    from vgnb.core import check
    words = run["command"]
    check(all(isinstance(w, str) for w in words), "command", words, "must be a list of words")
    words = unlaunched(words)
    script = script_of(words)
    rest = [w for w in words[2:] if w not in GIVE_UP]
    if out is not None: rest = with_out(rest, OUT.get(script.name, "--out"), out.resolve())

    world = run.get("world", 1)
    launch = [str(ROOT / "scripts" / "launch.py"), "--nproc-per-node", str(world)] if world > 1 else []
    return [sys.executable, *launch, str(script), *rest]


RESULTS = (".npz", ".safetensors", ".pt", ".codes", ".features")


def results_in(place: Path) -> dict[str, str]:
    "{path: hash} of the results below a place; checkpoints are on the way and no results."
    from vgnb.core import digest_file
    if place.is_file(): return {"it": digest_file(place)}
    found = [p for p in sorted(place.rglob("*")) if p.suffix in RESULTS and "checkpoints" not in p.parts]
    return {str(p.relative_to(place)): digest_file(p) for p in found}


def results_of(record: Path, run: dict) -> dict[str, str]:
    "{path: hash} of the results that a record describes: as it says, else those that lie beside it."
    known = run.get("outputs")
    outputs = [sha for name, sha in known.items() if Path(name).suffix in RESULTS] if isinstance(known, dict) else []
    if len(outputs) == 1: return {"it": outputs[0]}
    return results_in(record.parent) if record.name == "run.json" else {}


def compare(old: dict[str, str], new: dict[str, str]) -> bool:
    "Whether all results of then are there again; none to compare is no success."
    wrong = [name for name, sha in old.items() if new.get(name) != sha]
    others = f"; these are not: {', '.join(wrong)}" if wrong else ""
    print(f"{len(old) - len(wrong)} of {len(old)} results are byte-identical{others}")
    if not old: print("nothing to compare: the record names no results, and none lie beside it", file=sys.stderr)
    return bool(old) and not wrong


def repeat(run: dict, command: list[str]) -> int:
    "Run the command where it ran then, on the kind of device it ran on; its exit code."
    from vgnb.core import Missing, check
    from vgnb.processes import run_below
    check(Path(run["cwd"]).is_dir(), "cwd", run["cwd"], "the folder it ran in is gone", Missing)
    on_cpus = run.get("world", 1) > 1 and run["device"].startswith("cpu")
    of_now = ("FSDP_", "PARALLELISM_CONFIG_", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_PARALLELISM_CONFIG")
    env = {name: word for name, word in os.environ.items() if not name.startswith(of_now)}
    env |= {"ACCELERATE_USE_CPU": "true"} if on_cpus else {}
    env |= sharing_of(run)
    if run.get("rooms"): env["VGNB_RUN_ROOMS"] = " ".join(run["rooms"])      # packages whose words the run knew
    return run_below(command, cwd=run["cwd"], env=env)


def main(argv: list[str]) -> int:
    from vgnb.cli import typed_cli
    from vgnb.core import check, load_card
    o = typed_cli(Options, args=argv, description=__doc__)
    run = load_card(o.run, "run")
    check_record(run, o.run)
    if o.out is not None: check(not o.out.exists(), "out", o.out, "exists already; the results need a new name")

    command = command_of(run, o.out)
    for line in differences(run): print(f"differs: {line}")
    shared = [f"{name}={word}" for name, word in sharing_of(run).items()]
    print("runs:", *shared, *command, f"(in {run['cwd']})", flush=True)
    if o.dry_run: return 0

    before = results_of(o.run, run)
    code = repeat(run, command)
    if code or o.out is None: return code
    return 0 if compare(before, results_in(o.out)) else 1


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
