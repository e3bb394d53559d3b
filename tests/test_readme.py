"What README and tutorials tell a reader to type works: the Python block, the names of scripts, and the five commands of the tutorial, run as they stand there."
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.run_scripts import Scripts
from tests.test_links import notebooks, prose
from vgnb.data.shapes import Shapes
from vgnb.generators.raster import RasterTransformer, raster_presets
from vgnb.pipeline import Pipeline
from vgnb.sampling.settings import Sampling
from vgnb.tokenizers.vqgan import vqgan

ROOT = Path(__file__).resolve().parents[1]
README, TUTORIAL, PLAYGROUND = ROOT / "README.md", ROOT / "nbs/tutorials/900_folder_to_samples.ipynb", ROOT / "nbs/tutorials/905_sampling_playground.ipynb"


def blocks(path: Path, language: str) -> list[str]: return re.findall(rf"^```{language}\n(.*?)^```", prose(path), re.S | re.M)


def commands(path: Path) -> list[list[str]]:
    "[script, words...] of every line in a bash block that starts a script with python, however it is launched."
    found = []
    for line in "\n".join(blocks(path, "bash")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        at = next((i for i, word in enumerate(words) if re.match(r"scripts/\w+\.py$", word)), None)
        if at is not None: found.append([words[at].removeprefix("scripts/"), *words[at + 1:]])
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    "A folder with what a reader has: runs/quickstart (untrained), photos/ and unseen/."
    at = tmp_path_factory.mktemp("reader")
    generator = RasterTransformer(raster_presets["tiny"], 0)
    pipe = Pipeline(vqgan("tiny-shapes"), generator, Sampling(guidance=2.0, rows=50), Shapes.classes)
    pipe.save_pretrained(at / "runs/quickstart")
    for n, item in enumerate(Shapes(120, 48)[i] for i in range(120)):
        folder = at / ("photos" if n < 60 else "unseen") / Shapes.classes[item.label]
        folder.mkdir(parents=True, exist_ok=True)
        item.image.save(folder / f"{n}.png")
    return at


@pytest.fixture(scope="module")
def scripts(home):
    runner = Scripts(home)
    yield runner
    runner.close()


def test_the_python_blocks_run(home, monkeypatch, capsys):
    walk, paint, parts = blocks(README, "python")
    assert 'from_pretrained("runs/quickstart")' in walk and 'from_pretrained("tiny-randar")' in paint
    assert 'order="halton"' in parts
    monkeypatch.chdir(home)
    seen = {}
    exec(compile(walk, "README.md", "exec"), seen)
    assert seen["images"].shape == (3, 32, 32, 3) and seen["images"].dtype == np.uint8
    assert capsys.readouterr().out.splitlines()[-1] == "15 16"
    exec(compile(paint, "README.md", "exec"), seen)
    assert seen["wide"].shape == (4, 32, 64, 3) and seen["large"].shape == (1, 48, 48, 3)
    kept = seen["edited"][:, :, :16] == seen["hearts"][:, :, :16]
    assert kept.all() and (seen["edited"] != seen["hearts"]).any()
    exec(compile(parts, "README.md", "exec"), seen)


def test_every_file_that_prose_names_is_there():
    pages = (README, ROOT / "CHANGELOG.md", *notebooks(ROOT / "nbs"))
    files = re.compile(r"\b(?:scripts|nbs|tests)/[\w/]+\.(?:py|sh|ipynb)\b")
    named = {(page.name, file) for page in pages for file in files.findall(prose(page))}
    gone = sorted((page, file) for page, file in named if not (ROOT / file).is_file())
    assert len(named) > 12 and not gone, gone


def test_the_readme_lists_every_script():
    mine = {p.name for p in (ROOT / "scripts").glob("*.*")} - {"env.sh", "quickstart.py"}
    missing = sorted(name for name in mine if f"scripts/{name}" not in prose(README))
    assert not missing, missing


def test_shell_scripts_parse():
    for path in (ROOT / "scripts").rglob("*.sh"): subprocess.run(["bash", "-n", path], check=True)
    for line in "\n".join(blocks(README, "bash")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["bash"]: assert (ROOT / words[1]).is_file(), words


FEW = {"train_tokenizer.py": ["--steps", 3, "--free-steps", 1, "--batch", 32],
       "train_generator.py": ["--steps", 3, "--batch", 16],
       "sample.py": ["--count", 20]}


def test_the_tutorial_s_commands_run_in_this_order(home, scripts):
    "As they stand, but for the number of steps and samples; the last two, launched otherwise, find a finished run."
    words = commands(TUTORIAL)
    train = "train_generator.py"
    walk = ["train_tokenizer.py", "extract_codes.py", train, "sample.py", "evaluate.py", train, train]
    assert [w[0] for w in words] == walk
    for script, *rest in words:
        done = scripts(script, *rest, *FEW.get(script, []))
        assert done.code == 0, (script, rest, done.err)
    folder = home / "runs/photos"
    left = {"tokenizer", "codes", "generator", "samples.npz", "samples.png", "metrics.json"}
    assert {p.name for p in folder.iterdir()} >= left
    assert np.load(folder / "samples.npz")["arr_0"].shape == (20, 32, 32, 3)
    assert Image.open(folder / "samples.png").width > 100


def test_other_commands_in_prose_are_accepted(scripts):
    "Whatever else stands in a bash block of README or a page, tried with --dry-run."
    found = [c for p in (README, PLAYGROUND) for c in commands(p)]
    assert found
    for script, *rest in found:
        done = scripts(script, *rest, "--dry-run")
        assert done.code == 0, (script, rest, done.err)
