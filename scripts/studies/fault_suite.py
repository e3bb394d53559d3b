"""What breaks, and what is left then: runs the tests of each fault in their full form and keeps their figures.

    python scripts/studies/fault_suite.py                   # what is recorded, and what isn't yet
    python scripts/studies/fault_suite.py F9 F13            # run these two, print
    python scripts/studies/fault_suite.py F9 F13 --record   # and write them into nbs/studies/fault_suite.json
    python scripts/studies/fault_suite.py --rest --record   # all that isn't recorded yet, one after the other
    bash scripts/test.sh --full --junitxml=report.xml -o junit_family=xunit1
    python scripts/studies/fault_suite.py F9 R5 --report report.xml --commit 0123abc --record     # out of that run

Each fault has a number, a criterion and tests that are marked with it, so `pytest -m F9` runs them, too. What a test
counts it hands to the fixture `figures`; counts of a fault's tests add up, of measures (numbers with a point) the
largest stays. A fault's entry is replaced when it is run again. About forty minutes on two free cores in all.
"""
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
FILE = ROOT / "nbs" / "studies" / "fault_suite.json"


@dataclass
class Options:
    "Which faults, and whether to keep what comes out."
    numbers: tyro.conf.Positional[tuple[str, ...]] = ()
    "F1-F24, R1-R6; none: list what is recorded"
    rest: bool = False
    "all that isn't recorded yet"
    record: bool = False
    "write nbs/studies/fault_suite.json"
    timeout: float = 1800
    "seconds that a fault may take"
    report: Path | None = None
    "a JUnit file of tests that have run: nothing is run again"
    commit: str = ""
    "what was tested for that report"


@dataclass
class Fault:
    "Something that breaks."
    done: str                    # what is done to it
    criterion: str               # what has to come out
    needs: tuple[str, ...]       # the criterion in figures: "kills >= 50", "whole = kills"
    lacks: str = ""              # what of the criterion isn't done here, and why


FAULTS = {
    "F1": Fault(
        "SIGKILL to the process group of a run of 400 steps, 50 times at random moments",
        "weights, optimizer and averages bit-identical; no published checkpoint lost; at most 10 steps again a kill",
        ("kills >= 50", "identical = runs", "lost = 0", "late = 0"),
        "a thread writes beside the training: a checkpoint that it was writing is lost with the run, so a kill may "
        "cost an interval more (20 steps here, which the test holds it to); in another run of the 53 kills 4 cost 11 "
        "or 12 steps"),
    "F2": Fault(
        "death at every call of a save that touches the disk, on one process and on either of two",
        "60 of 60 go on from the checkpoint before or the new one, which is whole",
        ("kills >= 60", "whole = kills")),
    "F3": Fault(
        "SIGKILL to one of two processes, the other waits in a sum",
        "the other ends within 30 s, the error names the rank; no hang in 20",
        ("kills >= 20", "ended = kills", "named = launched", "seconds < 30")),
    "F4": Fault(
        "four stops in two epochs of 10,000 examples",
        "each example once an epoch",
        ("samples >= 10000", "resumes >= 3", "twice = 0", "never = 0")),
    "F5": Fault(
        "1, 2, 3 or 4 processes, 0, 1 or 3 readers, 1 or 2 micro-batches, the same batch",
        "24 of 24: the same examples in the same order, augmented alike to the bit",
        ("configurations >= 24", "same = configurations")),
    "F6": Fault(
        "a run goes on with 2, 1, 4 and 3 processes",
        "the same order; losses to 1e-6 relative a step",
        ("worlds >= 3", "same_order = worlds", "a_step <= 1e-6"),
        "losses are held to 1e-6 a step without `--exact`; with it to the bit, by test_elastic.py -k same_bits"),
    "F7": Fault(
        "SIGTERM and SIGINT at twenty moments of a run; to groups with readers; to two processes",
        "20 of 20 publish a checkpoint and leave with code 75 within 5 s",
        ("signals >= 20", "published = signals", "seconds <= 5")),
    "F8": Fault(
        "a disk that is full or refuses, at ten points of a save; other files' writers, too",
        "one clear error, or a warning and on; the checkpoint before is whole 10 of 10; nothing half-written stays",
        ("refusals >= 10", "whole = refusals", "left_over = 0")),
    "F9": Fault(
        "200 random changes to each kind of file that is written: bits, pages of zeros, cuts, others in its place",
        "200 of 200 are detected, or change nothing that is read; a run goes on from the checkpoint before",
        ("corruptions >= 200", "detected = corruptions", "least_a_kind >= 200")),
    "F10": Fault(
        "cut tars, wrong checksums, 100 changed pictures, empty files, folders and odd names among a set's pictures",
        "no reader dies; every bad one is named; the good ones are counted exactly; without leave it stops",
        ("pictures >= 100", "crashes = 0", "miscounted = 0")),
    "F11": Fault(
        "SIGKILL to a reader, or it leaves as if memory had run out",
        "10 of 10: an error within 10 s that names the reader's end",
        ("deaths >= 10", "named = deaths", "seconds < 10")),
    "F12": Fault(
        "NaN, Inf or a spike of 1e6 in a loss at 20 random (step, process) of two",
        "20 of 20 skipped on both, everything bit for bit as before; counted; a streak ends the run",
        ("poisons >= 20", "agreed = poisons", "untouched = poisons")),
    "F13": Fault(
        "30 pickles that call something, in torch files old and new, arrays and plain, given to every reader",
        "0 of 30 run; the message says what to do",
        ("pickles >= 30", "ran = 0", "named = readings")),
    "F14": Fault(
        "500 changed headers of safetensors: lengths, offsets, shapes, names, types, a million entries",
        "no crash, less than 500 MB and 2 s each",
        ("mutations >= 500", "crashes = 0", "megabytes < 500", "seconds < 2")),
    "F15": Fault(
        "tars whose members climb out, links, devices, endless names; addresses with pipes and commands",
        "0 bytes outside, 0 processes started",
        ("members >= 9", "addresses >= 6", "outside = 0", "started = 0")),
    "F16": Fault(
        "pictures of 60,000 x 60,000 pixels in some kB, strips, GIFs of 100,000 frames, arrays that unpack 1,000:1",
        "refused before memory is asked for: less than 100 MB and 1 s each",
        ("bombs >= 6", "refused = bombs", "megabytes < 100", "seconds < 1")),
    "F17": Fault(
        "class names, captions and files called like scripts, in every table, page and widget, opened in a browser",
        "0 scripts run, 0 requests leave",
        ("shown >= 10", "scripts = 0", "requests = 0")),
    "F18": Fault(
        "a table of wrong arguments, in Python and on the command line",
        "60 of 60 name argument, value and what is allowed, before anything is computed",
        ("rows >= 60", "named = rows", "computed = 0")),
    "F19": Fault(
        "two runs begin in one folder at once, 20 times; four processes take turns with a lock",
        "one of them goes on, the other is refused with its owner's id; a dead owner's lock is none; 0 mixed",
        ("races >= 20", "refused = races", "mixed = 0")),
    "F20": Fault(
        "SIGKILL to an extraction 20 times, shards of 1,000 pictures; death at each of its calls",
        "the same bytes in the end; at most one shard done again a kill",
        ("kills >= 20", "identical = runs", "redone <= kills")),
    "F21": Fault(
        "SIGKILL to a sampling job of two processes 20 times; death at each of its calls",
        "the same bytes in the end; no picture twice",
        ("kills >= 20", "identical = runs", "twice = 0")),
    "F22": Fault(
        "4,000 steps, 4,000 batches of samples; readers whose run is killed",
        "less than 0.1 MB more a 100 in the later half; as many open files as before; no shared memory left",
        ("steps >= 4000", "batches >= 4000", "megabytes_a_100 < 0.1", "more_files = 0", "shared_left = 0")),
    "F23": Fault(
        "clocks that are wrong, read-only places, no home folder, no shared memory, paths with spaces and umlauts",
        "all of them work or end in one line",
        ("cases >= 6", "fine = cases")),
    "F24": Fault(
        "connections are refused, and counted, in every test and every script that they start; imports alone, too",
        "0 connections are asked for",
        ("imported >= 20", "asked = 0")),
    "R1": Fault(
        "Philox4x32-10 against its published vectors, eager and compiled; a million draws",
        "the same bits; no chi-square p outside [0.001, 0.999]; neighbouring keys correlate below 0.003",
        ("vectors >= 2", "draws >= 1000000", "correlation < 0.003"),
        "CUDA waits for a GPU; compiled with the key as a constant, for torch 2.13 cannot compile one that changes"),
    "R2": Fault(
        "64 samples by each shipped sampler: batches of 1, 2, 3, 7, 8 and 64, mixed up, on 1, 2 and 4 processes",
        "64 of 64 have the same codes, in fp32 and in bf16",
        ("samplers >= 5", "ways >= 8", "different = 0")),
    "R3": Fault(
        "200,000 draws of each kind of choice: plain, top-k, top-p",
        "total variation to the probabilities below 0.01, chi-square p above 0.001",
        ("draws >= 200000", "variation < 0.01", "unlikely = 0")),
    "R4": Fault(
        "sampling with counted draws against torch.multinomial",
        "at most 1.25 times as long in eager mode, 1.02 times compiled",
        ("eager <= 1.25",),
        "compiled waits for a GPU: a ratio of 1.02 is smaller than what this processor's clock repeats"),
    "R5": Fault(
        "pages run twice in new processes, with other hash seeds",
        "all outputs the same: text, numbers, pixels",
        ("pages >= 90", "different = 0"),
        "cells that read a clock or ask for a temporary place are left out; addresses in memory are not compared"),
    "R6": Fault(
        "rerun.py on the records of five sampling runs",
        "5 of 5 byte-identical",
        ("records >= 5", "identical = records"),
        "a new environment from the lock is not built here; the same one repeats them in new processes"),
}


# ---- running

def merged(old, new):
    "Counts add up, of measures the largest stays, lists and tables grow."
    if old is None: return new
    if isinstance(new, dict): return old | new
    if isinstance(new, float) or isinstance(old, float): return max(old, new)
    return old + new


def value_of(text: str):
    "A property of a report: JSON, or words."
    try: return json.loads(text.replace("'", '"'))
    except ValueError: return text


def read_report(path: Path, number: str) -> tuple[list[dict], dict]:
    "(tests, figures) of a fault in a JUnit file."
    from vgnb.core import VgnbError
    tests, figures = [], {}
    try: cases = ElementTree.parse(path).iter("testcase")
    except ElementTree.ParseError as e: raise VgnbError(f"{path}: expected a JUnit file of pytest's, {e}") from None
    for case in cases:
        if number not in [p.get("value") for p in case.iter("property") if p.get("name") == "fault"]: continue
        passed = not any(case.findall(word) for word in ("failure", "error", "skipped"))
        name = f"{case.get('classname').removeprefix('tests.')}.{case.get('name')}"
        tests.append({"test": name, "seconds": round(float(case.get("time")), 1), "passed": passed})
        for found in case.iter("property"):
            key, value = found.get("name"), value_of(found.get("value"))
            if key != "fault": figures[key] = merged(figures.get(key), value)
    return tests, figures | least_of(figures)


def least_of(figures: dict) -> dict:
    "The smallest count of each table of counts: `a_kind` gives `least_a_kind`."
    tables = {k: v for k, v in figures.items() if isinstance(v, dict) and v}
    return {f"least_{k}": min(v.values()) for k, v in tables.items() if all(isinstance(n, int) for n in v.values())}


def holds(need: str, figures: dict) -> bool:
    "Whether a line of a criterion is true."
    left, sign, right = need.split()
    if left not in figures: return False
    a, b = figures[left], figures[right] if right.isidentifier() else float(right)
    return {"=": a == b, ">=": a >= b, "<=": a <= b, "<": a < b}[sign]


def verdict(number: str, tests: list[dict], figures: dict) -> dict:
    "Whether a fault's criterion is met, and what speaks against it."
    against = [need for need in FAULTS[number].needs if not holds(need, figures)]
    failed = [test["test"] for test in tests if not test["passed"]]
    return {"met": bool(tests) and not against and not failed, "against": against, "failed": failed}


def circumstances() -> dict:
    "What a figure rests on."
    import torch
    head = subprocess.run(["git", "log", "-1", "--format=%h"], cwd=ROOT, capture_output=True, text=True)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": head.stdout.strip(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "device": platform.machine()}


def run(number: str, seconds: float) -> dict:
    "The tests of a fault."
    env = {**os.environ, "VGNB_TEST_FULL": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
           "HF_DATASETS_OFFLINE": "1", "MPLBACKEND": "agg"}
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        files = [p for p in sorted((ROOT / "tests").glob("test_*.py")) if f'fault("{number}")' in p.read_text()]
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", f"{number} and not gpu", "--no-header",
                   f"--junitxml={report}", "-o", "junit_family=xunit1", *map(str, files)]
        begun = time.monotonic()
        try: subprocess.run(command, cwd=ROOT, env=env, timeout=seconds)
        except subprocess.TimeoutExpired: print(f"{number}: not done in {seconds:g} s", file=sys.stderr)
        took = time.monotonic() - begun
        tests, figures = read_report(report, number) if report.exists() else ([], {})
    return entry_of(number, tests, figures, took)


def entry_of(number: str, tests: list[dict], figures: dict, seconds: float) -> dict:
    "What is recorded of a fault."
    entry = {**circumstances(), "seconds": round(seconds), **verdict(number, tests, figures)}
    return entry | {"figures": figures, "tests": tests}


def reported(number: str, path: Path, commit: str) -> dict:
    "A fault's entry out of a report of tests that have run."
    tests, figures = read_report(path, number)
    entry = entry_of(number, tests, figures, sum(test["seconds"] for test in tests))
    return entry | ({"commit": commit} if commit else {})


def recorded() -> dict[str, dict]:
    "{number: its entry} of those that were run, without their words, which stand above."
    if not FILE.exists(): return {}
    faults = json.loads(FILE.read_text())["faults"]
    return {n: {k: v for k, v in entry.items() if k not in Fault.__annotations__}
            for n, entry in faults.items() if n in FAULTS and "tests" in entry}


def write(number: str, entry: dict):
    known = recorded() | {number: entry}
    faults = {n: asdict(FAULTS[n]) | known.get(n, {"met": None}) for n in FAULTS}
    study = {"command": "python scripts/studies/fault_suite.py --rest --record", "faults": faults}
    FILE.write_text(json.dumps(study, indent=1) + "\n")


def line(number: str, entry: dict | None) -> str:
    "What a fault came to, in a line."
    if entry is None: return f"{number:4} not run"
    failed = [f"{len(entry['failed'])} tests failed"] if entry["failed"] else []
    said = "met" if entry["met"] else "; ".join([*entry["against"], *failed]) or "no tests"
    numbers = {k: v for k, v in entry["figures"].items() if isinstance(v, (int, float))}
    return f"{number:4} {said}: {len(entry['tests'])} tests, {entry['seconds']} s, {numbers}"


def main(o: Options) -> int:
    from vgnb.core import check, check_choice
    for number in o.numbers: check_choice("numbers", number, tuple(FAULTS))
    tells = bool(o.commit) or not (o.report and o.record)
    check(tells, "commit", o.commit, "must say what was tested for a report that is recorded")
    known = recorded()
    numbers = o.numbers or ([n for n in FAULTS if n not in known] if o.rest else [])
    if not numbers:
        for number in FAULTS: print(line(number, known.get(number)))
        return 0
    met = []
    for number in numbers:
        entry = reported(number, o.report, o.commit) if o.report else run(number, o.timeout)
        print(line(number, entry), flush=True)
        if o.record and entry["tests"]: write(number, entry)
        met.append(entry["met"])
    return 0 if all(met) else 1


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda words: main(typed_cli(Options, args=words, description=__doc__))))
