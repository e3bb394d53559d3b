"""The scripts: help that teaches, dry runs that touch nothing.

And the whole walk under plain python, under accelerate's launcher and on two processes.
"""
import ast
import functools
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
TOKENIZER = ["train_tokenizer.py", "shapes-tokenizer", "--data", PICTURES, "--augment.size", 16,
             "--steps", 3, "--batch", 8, "--free-steps", 1, "--precision", "fp32",
             "--model.quantizer.codebook", 32, "--model.quantizer.usage", 1024,
             "--model.width", 16, "--model.groups", 8,
             "--out", "tokenizer"]
CODES = ["extract_codes.py", "--tokenizer", "tokenizer/model", "--data", PICTURES, "--size", 16,
         "--shard-size", 12, "--out", "codes"]
GENERATOR = ["train_generator.py", "shapes-generator", "--data", "codes", "--steps", 3, "--batch", 8,
             "--precision", "fp32", "--model.layers", 1, "--model.dim", 32, "--out", "generator"]
SAMPLES = ["sample.py", "--tokenizer", "{first}/tokenizer/model", "--generator", "{first}/generator/model",
           "--guidance.scale", 2, "--count", 14, "--part", 8, "--out", "samples.npz"]
NUMBERS = ["evaluate.py", PICTURES + "&seed=1", "samples.npz", "--extractor", "shapes-judge",
           "--metrics", "fid", "is", "kid", "pr", "accuracy", "--json", "numbers.json"]
WALK = [TOKENIZER, CODES, GENERATOR, SAMPLES, NUMBERS]
LAUNCHES = {
    "plain": ([], {}),
    "accelerate": (["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"], {}),
    "two": (["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"], {"ACCELERATE_USE_CPU": "true"})}
MODES = ["plain", *(pytest.param(mode, marks=pytest.mark.full) for mode in ("accelerate", "two"))]
FULL = bool(os.environ.get("VGNB_TEST_FULL"))
WALKED = LAUNCHES if FULL else {"plain"}


@pytest.fixture(scope="module")
def cold(tmp_path_factory):
    return Scripts(tmp_path_factory.mktemp("cold"), warm=False)


@pytest.fixture(scope="module")
def helped(cold):
    "What a script's `--help` says, asked for once."
    return functools.cache(lambda *words: cold(*words, "--help"))


# ---- help

def options(text: str) -> dict[str, str]:
    "{option: what help says about it, without its default} from tyro's boxes."
    entries = []
    for line in text.splitlines():
        if not line.startswith("│"): continue
        line = line.strip("│ \t")
        if re.match(r"--?[a-z]", line): entries.append(line)
        elif entries: entries[-1] += "  " + line

    found = {}
    for entry in entries:
        option, *explained = re.split(r"\s{2,}", entry, maxsplit=1)
        words = explained[0] if explained else ""
        found[option] = re.sub(r"\((default|required).*\)", "", words).strip()
    return found


BOX = """╭─ options ─╮
│ --a INT   how many    │
│           of them (default: 3) │
│ --b, --no-b   │
│      (default: (True, 3)) │
╰──╯"""


def test_the_help_reader_sees_options_without_help():
    assert options(BOX) == {"--a INT": "how many  of them", "--b, --no-b": ""}


OF_A_RECIPE = [["train_tokenizer.py", "vq-16"], ["train_generator.py", "gpt-b"], ["plan.py", "gpt-b"]]


@pytest.mark.parametrize("words", [[name] for name in ALL] + OF_A_RECIPE, ids=" ".join)
def test_help(helped, words):
    "It explains every option, and needs no heavy library."
    ran = helped(*words)
    assert ran.code == 0, ran
    assert not ran.err, ran
    assert not ran.loaded, ran
    found = options(ran.out)
    asks_for_a_recipe = len(words) == 1 and "RECIPE --help" in ran.out
    assert len(found) > 1 or asks_for_a_recipe, found
    assert [option for option, words in found.items() if not words] == []


@pytest.mark.parametrize("name", ALL)
def test_help_begins_with_what_the_script_is_for(helped, name):
    ran = helped(name)
    about = ast.get_docstring(ast.parse((ROOT / "scripts" / name).read_text())).splitlines()[0]
    assert about.split(":")[0] in re.sub(r"\s+", " ", ran.out)
    assert f"scripts/{Path(name).stem}" in ran.out


# ---- the walk

def run(mode: str, words: list, place: Path, first: Path):
    "One script in its folder; `{first}` stands for the folder of the first launch."
    launch, env = LAUNCHES[mode]
    name, *rest = (str(w).format(first=first) for w in words)
    if mode == "plain" and not FULL:                 # test_plain_python_says_the_same: it stands for a new process
        ran = Scripts(place)(name, *rest)
        assert (ran.code, "Traceback" in ran.err) == (0, False), f"{name}\n{ran.err[-3000:]}"
        return

    command = [sys.executable, *launch, str(ROOT / "scripts" / name), *rest]
    done = subprocess.run(command, cwd=place, env={**ENV, **env}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{mode}: {name}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr, f"{mode}: {name}\n{done.stderr[-3000:]}"


@pytest.fixture(scope="module")
def walks(tmp_path_factory) -> dict[str, Path]:
    "The five scripts in a folder for each launch; all sample with the weights of the first."
    places = {mode: tmp_path_factory.mktemp(mode) for mode in LAUNCHES if mode in WALKED}
    first = places["plain"]
    trained = threading.Event()

    def walk(mode):
        try:
            for words in WALK[:3]: run(mode, words, places[mode], first)
        finally:
            if mode == "plain": trained.set()
        assert trained.wait(600)
        for words in WALK[3:]: run(mode, words, places[mode], first)

    with ThreadPoolExecutor(3) as pool: list(pool.map(walk, places))
    return places


LEFT = {"tokenizer/model/model.safetensors", "tokenizer/run.json", "tokenizer/log.jsonl",
        "codes/index.json", "codes/run.json", "codes/00003.codes",
        "generator/model/config.json", "generator/run.json",
        "samples.npz", "samples.run.json",
        "numbers.json", "numbers.run.json"}


@pytest.mark.parametrize("mode", MODES)
def test_the_walk_leaves_what_it_should(walks, mode):
    made = {str(p.relative_to(walks[mode])) for p in walks[mode].rglob("*") if p.is_file()}
    assert LEFT - made == set()
    assert [m for m in made if ".part" in m or "aside" in m] == []


@pytest.mark.parametrize("mode", MODES)
def test_every_run_knows_its_world(walks, mode):
    world = 2 if mode == "two" else 1
    for name in ("tokenizer/run.json", "codes/run.json", "generator/run.json", "samples.run.json", "numbers.run.json"):
        assert load_json(walks[mode] / name)["world"] == world, name


def test_samples_are_the_same_bytes(walks):
    files = {mode: hashlib.sha256((place / "samples.npz").read_bytes()).hexdigest() for mode, place in walks.items()}
    assert len(set(files.values())) == 1, files
    with np.load(walks["two" if FULL else "plain"] / "samples.npz") as z:
        images, labels = z["arr_0"], z["labels"]
    assert images.shape == (14, 16, 16, 3)
    assert labels.tolist() == [i % 10 for i in range(14)]
    assert len({x.tobytes() for x in images}) > 1


METRICS = {"fid", "is_mean", "is_std", "kid_mean", "kid_std", "precision", "recall", "accuracy"}


@pytest.mark.parametrize("mode", MODES[1:])
def test_numbers_agree(walks, mode):
    want, found = (load_json(walks[m] / "numbers.json") for m in ("plain", mode))
    assert set(want["values"]) == METRICS
    assert found["protocol"] == want["protocol"]
    for name, value in want["values"].items():
        assert found["values"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.full
@pytest.mark.parametrize("name", ["tokenizer", "generator"])
def test_one_and_accelerate_train_the_same_weights(walks, name):
    weights = [(walks[m] / name / "model" / "model.safetensors").read_bytes() for m in ("plain", "accelerate")]
    assert weights[0] == weights[1]


def test_dry_runs_touch_nothing(walks, tmp_path):
    "Each says what it would do; neither its own folder nor the one it reads changes."
    place = walks["plain"]
    runner = Scripts(place)

    def listing():
        files = [p for folder in (place, tmp_path) for p in folder.rglob("*")]
        return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in files}

    before = listing()
    for words in WALK:
        words = [str(w).format(first=place) for w in words]
        at = words.index("--json" if "--json" in words else "--out") + 1
        words[at] = str(tmp_path / words[at])
        ran = runner(*words, "--dry-run")
        assert ran.code == 0, ran
        assert len(ran.out.splitlines()) >= 1, ran
        assert not ran.err, ran
        assert listing() == before, words

    by_name = [str(w).format(first=place) for w in SAMPLES] + ["--classes", "heart", "ring", "--dry-run"]
    ran = runner(*by_name)                                                    # the model's card knows the names
    assert ran.code == 0, ran


def rerun(*words, cwd: Path) -> str:
    "What rerun.py prints."
    command = [sys.executable, ROOT / "scripts" / "rerun.py", *words]
    done = subprocess.run(command, cwd=cwd, env=ENV, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.full
@pytest.mark.fault("R6")
def test_a_run_can_be_repeated(walks, tmp_path, figures):
    record = walks["plain"] / "samples.run.json"
    assert json.loads(record.read_text())["world"] == 1
    printed = rerun(record, "--out", tmp_path / "again.npz", cwd=tmp_path)
    assert "1 of 1 results are byte-identical" in printed
    figures(records=1, identical=1)


@pytest.mark.fault("R6")
@pytest.mark.full
@pytest.mark.parametrize("words", [
    "tiny-randar --count 10 --steps 8 --seed 3", "tiny-maskgit --count 8 --steps 4 --part 4 --labels random",
    "tiny-pgm --count 6 --steps 6 --guidance.scale 2", "tiny-rar --count 4 --classes heart ring"])
def test_samples_can_be_repeated(tmp_path, words, figures):
    "By the command in their record, with a random hash seed."
    ran = Scripts(tmp_path)("sample.py", *words.split(), "--out", "s.npz")
    assert ran.code == 0, ran
    printed = rerun(tmp_path / "s.run.json", "--out", tmp_path / "again.npz", cwd=tmp_path)
    assert "1 of 1 results are byte-identical" in printed
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "s.npz").read_bytes()
    figures(records=1, identical=1)


@pytest.mark.full
def test_a_run_of_two_would_be_repeated_by_two(walks, tmp_path):
    printed = rerun(walks["two"] / "samples.run.json", "--dry-run", cwd=tmp_path)
    assert "launch.py --nproc-per-node 2" in printed
