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
    lines = [l for block in blocks(path, "bash") for l in block.replace("\\\n", " ").splitlines()]
    found = [shlex.split(l, comments=True) for l in lines]
    starts = [(words, next((i for i, w in enumerate(words) if re.match(r"scripts/\w+\.py$", w)), None)) for words in found]
    return [[words[i].removeprefix("scripts/"), *words[i + 1:]] for words, i in starts if i is not None]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    "A folder with what a reader has: runs/quickstart (untrained), photos/ and unseen/."
    at = tmp_path_factory.mktemp("reader")
    Pipeline(vqgan("tiny-shapes"), RasterTransformer(raster_presets["tiny"], 0), Sampling(guidance=2.0, rows=50), Shapes.classes).save_pretrained(at / "runs/quickstart")
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
    walk, paint = blocks(README, "python")
    assert 'from_pretrained("runs/quickstart")' in walk and 'from_pretrained("tiny-randar")' in paint
    monkeypatch.chdir(home)
    seen = {}
    exec(compile(walk, "README.md", "exec"), seen)
    assert seen["images"].shape == (3, 32, 32, 3) and seen["images"].dtype == np.uint8
    assert capsys.readouterr().out.splitlines()[-1] == "15 16"
    exec(compile(paint, "README.md", "exec"), seen)
    assert seen["wide"].shape == (4, 32, 64, 3) and seen["large"].shape == (1, 48, 48, 3)
    assert (seen["edited"][:, :, :16] == seen["hearts"][:, :, :16]).all() and (seen["edited"] != seen["hearts"]).any()


def test_every_file_that_prose_names_is_there():
    named = {(p.name, f) for p in (README, ROOT / "CHANGELOG.md", *notebooks(ROOT / "nbs")) for f in re.findall(r"\b(?:scripts|nbs|tests)/[\w/]+\.(?:py|sh|ipynb)\b", prose(p))}
    assert len(named) > 12 and not (gone := sorted((page, f) for page, f in named if not (ROOT / f).is_file())), gone


def test_the_readme_lists_every_script():
    mine = {p.name for p in (ROOT / "scripts").glob("*.*") if p.name != "env.sh"}
    assert not (missing := sorted(n for n in mine if f"scripts/{n}" not in prose(README) and n not in ("quickstart.py",))), missing


def test_shell_scripts_parse():
    for path in (ROOT / "scripts").rglob("*.sh"): subprocess.run(["bash", "-n", path], check=True)
    for words in (shlex.split(l, comments=True) for b in blocks(README, "bash") for l in b.splitlines()):
        if words[:1] == ["bash"]: assert (ROOT / words[1]).is_file(), words


FEW = {"train_tokenizer.py": ["--steps", 3, "--free-steps", 1, "--batch", 32], "train_generator.py": ["--steps", 3, "--batch", 16], "sample.py": ["--count", 20]}


def test_the_tutorial_s_commands_run_in_this_order(home, scripts):
    "As they stand, but for the number of steps and samples; the two that only launch differently at the end go on in a finished run."
    words = commands(TUTORIAL)
    assert [w[0] for w in words] == ["train_tokenizer.py", "extract_codes.py", "train_generator.py", "sample.py", "evaluate.py", "train_generator.py", "train_generator.py"]
    for script, *rest in words:
        done = scripts(script, *rest, *FEW.get(script, []))
        assert done.code == 0, (script, rest, done.err)
    folder = home / "runs/photos"
    assert {p.name for p in folder.iterdir()} >= {"tokenizer", "codes", "generator", "samples.npz", "samples.png", "metrics.json"}
    assert np.load(folder / "samples.npz")["arr_0"].shape == (20, 32, 32, 3)
    assert Image.open(folder / "samples.png").width > 100


def test_other_commands_in_prose_are_accepted(scripts):
    "Whatever else stands in a bash block of README or a page, tried with --dry-run."
    found = [c for p in (README, PLAYGROUND) for c in commands(p)]
    assert found
    for script, *rest in found:
        done = scripts(script, *rest, "--dry-run")
        assert done.code == 0, (script, rest, done.err)
