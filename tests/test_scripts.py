"The scripts: help that teaches, dry runs that touch nothing, and the whole walk under plain python, under accelerate's launcher and on two processes."
import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.run_scripts import Scripts
from vgnb.core import load_json

ROOT = Path(__file__).resolve().parents[1]
ALL = sorted(p.name for p in (ROOT / "scripts").glob("*.py"))
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
PICTURES = "shapes://?n=48&size=16"
TOKENIZER = ["train_tokenizer.py", "shapes-tokenizer", "--data", PICTURES, "--augment.size", 16, "--steps", 3, "--batch", 8, "--free-steps", 1, "--precision", "fp32",
             "--model.quantizer.codebook", 32, "--model.width", 16, "--model.groups", 8, "--model.quantizer.usage", 1024, "--out", "tokenizer"]
CODES = ["extract_codes.py", "--tokenizer", "tokenizer/model", "--data", PICTURES, "--size", 16, "--shard-size", 12, "--out", "codes"]
GENERATOR = ["train_generator.py", "shapes-generator", "--data", "codes", "--steps", 3, "--batch", 8, "--precision", "fp32", "--model.layers", 1, "--model.dim", 32, "--out", "generator"]
SAMPLES = ["sample.py", "--tokenizer", "{first}/tokenizer/model", "--generator", "{first}/generator/model", "--guidance.scale", 2, "--count", 14, "--part", 8, "--out", "samples.npz"]
NUMBERS = ["evaluate.py", PICTURES + "&seed=1", "samples.npz", "--extractor", "shapes-judge", "--metrics", "fid", "is", "kid", "pr", "accuracy", "--json", "numbers.json"]
WALK = [TOKENIZER, CODES, GENERATOR, SAMPLES, NUMBERS]
LAUNCHES = {"plain": ([], {}), "accelerate": (["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"], {}),
            "two": (["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"], {"ACCELERATE_USE_CPU": "true"})}


@pytest.fixture(scope="module")
def cold(tmp_path_factory):
    runner = Scripts(tmp_path_factory.mktemp("cold"), warm=False)
    yield runner
    runner.close()


# ---- help

def options(text: str) -> dict[str, str]:
    "{option: what help says about it, without its default} from tyro's boxes."
    entries = []
    for line in text.splitlines():
        line = line.strip("│ \t") if line.startswith("│") else None
        if line is None: continue
        if re.match(r"--?[a-z]", line): entries.append(line)
        elif entries: entries[-1] += "  " + line
    split = (re.split(r"\s{2,}", e, maxsplit=1) for e in entries)
    return {head: re.sub(r"\((default|required).*\)", "", rest[0] if rest else "").strip() for head, *rest in split}


def test_the_help_reader_sees_options_without_help():
    found = options("╭─ options ─╮\n│ --a INT   how many    │\n│           of them (default: 3) │\n│ --b, --no-b   │\n│      (default: (True, 3)) │\n╰──╯")
    assert found == {"--a INT": "how many  of them", "--b, --no-b": ""}


@pytest.mark.parametrize("words", [[n] for n in ALL] + [["train_tokenizer.py", "vq-16"], ["train_generator.py", "gpt-b"]], ids=" ".join)
def test_help(cold, monkeypatch, words):
    "It explains the script and every option, and needs no heavy library."
    ran = cold(*words, "--help")
    assert ran.code == 0 and not ran.err and not ran.loaded, ran
    about = ast.get_docstring(ast.parse((ROOT / "scripts" / words[0]).read_text()))
    if len(words) == 1: assert about.splitlines()[0].split(":")[0] in re.sub(r"\s+", " ", ran.out) and f"scripts/{words[0].split('.')[0]}" in ran.out
    found = options(ran.out)
    assert len(found) > 1 or (len(words) == 1 and "RECIPE --help" in ran.out), found
    assert not [o for o, said in found.items() if not said], [o for o, said in found.items() if not said]


# ---- the walk

def run(mode: str, words: list, place: Path, first: Path) -> subprocess.CompletedProcess:
    launch, env = LAUNCHES[mode]
    name, *rest = (str(w).format(first=first) for w in words)
    done = subprocess.run([sys.executable, *launch, str(ROOT / "scripts" / name), *rest], cwd=place, env={**ENV, **env}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "Traceback" not in done.stderr, f"{mode}: {name}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def walks(tmp_path_factory) -> dict[str, Path]:
    "The five scripts in a folder for each launch; all sample with the weights of the first."
    places, trained = {mode: tmp_path_factory.mktemp(mode) for mode in LAUNCHES}, threading.Event()
    def walk(mode):
        try:
            for words in WALK:
                if words is SAMPLES and mode == "plain": trained.set()
                if words is SAMPLES: assert trained.wait(600)
                run(mode, words, places[mode], places["plain"])
        finally:
            if mode == "plain": trained.set()
    with ThreadPoolExecutor(3) as pool: list(pool.map(walk, LAUNCHES))
    return places


def test_the_walk_leaves_what_it_should(walks):
    for place in walks.values():
        made = {str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()}
        want = {"tokenizer/model/model.safetensors", "tokenizer/run.json", "tokenizer/log.jsonl", "codes/index.json", "codes/run.json", "codes/00003.codes", "generator/model/config.json", "generator/run.json",
                "samples.npz", "samples.run.json", "numbers.json", "numbers.run.json"}
        assert want <= made and not [m for m in made if ".part" in m or "aside" in m], want - made


def test_every_run_knows_its_world(walks):
    records = ("tokenizer/run.json", "codes/run.json", "generator/run.json", "samples.run.json", "numbers.run.json")
    worlds = {mode: [load_json(place / r)["world"] for r in records] for mode, place in walks.items()}
    assert worlds == {"plain": [1] * 5, "accelerate": [1] * 5, "two": [2] * 5}


def test_samples_are_the_same_bytes(walks):
    bytes_of = {mode: hashlib.sha256((place / "samples.npz").read_bytes()).hexdigest() for mode, place in walks.items()}
    assert len(set(bytes_of.values())) == 1, bytes_of
    with np.load(walks["two"] / "samples.npz") as z:
        assert z["arr_0"].shape == (14, 16, 16, 3) and z["labels"].tolist() == [i % 10 for i in range(14)] and len({x.tobytes() for x in z["arr_0"]}) > 1


def test_numbers_agree(walks):
    reports = {mode: load_json(place / "numbers.json") for mode, place in walks.items()}
    for mode in ("accelerate", "two"):
        assert reports[mode]["protocol"] == reports["plain"]["protocol"]
        for k, v in reports["plain"]["values"].items(): assert reports[mode]["values"][k] == pytest.approx(v, rel=1e-4, abs=1e-6), k
    assert set(reports["plain"]["values"]) == {"fid", "is_mean", "is_std", "kid_mean", "kid_std", "precision", "recall", "accuracy"}


def test_one_and_accelerate_train_the_same_weights(walks):
    for name in ("tokenizer", "generator"):
        a, b = ((walks[m] / name / "model" / "model.safetensors").read_bytes() for m in ("plain", "accelerate"))
        assert a == b


def test_dry_runs_touch_nothing(walks, tmp_path):
    "Each says what it would do; neither its own folder nor the one it reads changes."
    runner, place = Scripts(walks["plain"]), walks["plain"]
    listing = lambda: {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for folder in (place, tmp_path) for p in folder.rglob("*")}
    before = listing()
    for words in WALK:
        words = [str(w).format(first=place) for w in words]
        at = words.index("--json" if "--json" in words else "--out") + 1
        words[at] = str(tmp_path / words[at])
        ran = runner(*words, "--dry-run")
        assert ran.code == 0 and len(ran.out.splitlines()) >= 1 and not ran.err, ran
        assert listing() == before, words
    named = runner("sample.py", *[str(w).format(first=place) for w in SAMPLES[1:]], "--classes", "heart", "ring", "--dry-run")   # the model's card knows the names
    assert named.code == 0, named
    runner.close()


def test_a_run_can_be_repeated(walks, tmp_path):
    record = walks["plain"] / "samples.run.json"
    done = subprocess.run([sys.executable, ROOT / "scripts" / "rerun.py", record, "--out", tmp_path / "again.npz"], cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "1 of 1 results are byte-identical" in done.stdout, done.stdout + done.stderr
    done = subprocess.run([sys.executable, ROOT / "scripts" / "rerun.py", walks["two"] / "samples.run.json", "--dry-run"], cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "--nproc_per_node 2" in done.stdout and json.loads(record.read_text())["world"] == 1
