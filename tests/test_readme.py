"""What README and tutorials tell a reader to type works.

The Python blocks, the names of scripts, and the commands of the tutorial, run as they stand there.
"""
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.run_scripts import Scripts
from tests.test_links import notebooks, prose
from vgnb.data.images import open_images
from vgnb.data.shapes import Shapes
from vgnb.data.transforms import Augment
from vgnb.generators.raster import RasterTransformer, raster_presets
from vgnb.pipeline import Pipeline
from vgnb.sampling.settings import Sampling
from vgnb.tokenizers.vqgan import vqgan
from vgnb.training.extract import extract_codes

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TUTORIAL = ROOT / "nbs/tutorials/900_folder_to_samples.ipynb"
PLAYGROUND = ROOT / "nbs/tutorials/905_sampling_playground.ipynb"


def blocks(path: Path, language: str) -> list[str]:
    "The code blocks of a language."
    return re.findall(rf"^```{language}\n(.*?)^```", prose(path), re.S | re.M)


def lines(path: Path) -> list[list[str]]:
    "The words of every line in a page's bash blocks."
    typed = [line for block in blocks(path, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in typed]


def commands(path: Path) -> list[list[str]]:
    "[script, words...] of every line in a bash block that starts a script with python, however it is launched."
    found = []
    for words in lines(path):
        named = [i for i, word in enumerate(words) if re.match(r"scripts/\w+\.py$", word)]
        launched = [i for i in named if words[i] != "scripts/launch.py"]
        if launched: found.append([words[launched[0]].removeprefix("scripts/"), *words[launched[0] + 1:]])
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    "A folder with what a reader has: runs/quickstart (untrained), photos/ and unseen/."
    at = tmp_path_factory.mktemp("reader")
    generator = RasterTransformer(raster_presets["tiny"], 0)
    pipe = Pipeline(vqgan("tiny-shapes"), generator, Sampling(guidance=2.0, rows=50), Shapes.classes)
    pipe.save_pretrained(at / "runs/quickstart")
    shapes = Shapes(120, 48)
    for n in range(120):
        item = shapes[n]
        folder = at / ("photos" if n < 60 else "unseen") / Shapes.classes[item.label]
        folder.mkdir(parents=True, exist_ok=True)
        item.image.save(folder / f"{n}.png")
    return at


@pytest.fixture(scope="module")
def scripts(home):
    return Scripts(home)


# what a reader expects of each Python block, by a word that stands in it
EXPECTED = {
    "pipe(\"heart\")": "assert heart.shape == cool.shape == (1, 32, 32, 3) and len(images) == 3",
    "pipe.play(": "for view in (live, edit, book, explorer, desk, two, player):\n"
                  "    assert view.box and view.snapshot().width > 300",
    "pipe.edit(": "assert (edited[:, :, :16] == hearts[:, :, :16]).all() and (edited != hearts).any()\n"
                  "assert (wide[:, :, 16:48] == hearts).all() and large.shape == (1, 48, 48, 3)",
    "pipe.prefix(": "assert same.shape == (3, 32, 32, 3) and begun.shape == (4, 32, 32, 3)",
    "vgnb.reopen(": "assert opened.again().same and opened.labels == ['heart'] * 4",
    "guidance=CFG(": "assert pipe",
    "runs/quickstart": "assert images.shape == (3, 32, 32, 3) and images.dtype == 'uint8'"}


def test_the_python_blocks_run_each_by_itself(home, scripts):
    "Every block in a namespace and a process of its own, in a folder where the quickstart has been."
    typed = blocks(README, "python")
    assert len(typed) == len(EXPECTED)
    for n, (word, expected) in enumerate(EXPECTED.items()):
        block = next(block for block in typed if word in block)
        file = home / f"block_{n}.py"
        file.write_text(f"{block}\n{expected}\n")
        done = scripts(str(file))
        assert done.code == 0, (block, done.err)
    assert done.out.splitlines()[-1] == "15 16"


def test_the_picture_at_the_top_is_made_by_its_command(home, scripts):
    shown = Image.open(README.parent / re.search(r"!\[[^]]+\]\((\S+\.png)\)", prose(README))[1])
    done = scripts("front_picture.py", "--out", home / "front.png")
    assert done.code == 0, done.err
    made = Image.open(home / "front.png")
    assert made.size == shown.size and made.mode == shown.mode == "RGB"
    apart = np.abs(np.asarray(made, int) - np.asarray(shown, int))
    assert (apart > 8).mean() < 0.01                                   # a font may differ


@pytest.mark.full
def test_the_module_of_one_s_own_is_known_to_the_scripts(home):
    "As it stands there: a copy of an example beside the codes, named in the environment."
    copy, train = [words for words in lines(README) if "my_model" in " ".join(words)]
    assert copy[0] == "cp" and train[:2] == ["VGNB_RUN_ROOMS=my_model", "python"]
    shutil.copy(ROOT / copy[1], home / copy[2])
    pipe = Pipeline.from_pretrained(home / "runs/quickstart")
    extract_codes(pipe.tokenizer, open_images(home / "photos"), home / "runs/codes", Augment("center", 32), batch=60)
    runner = Scripts(home, VGNB_RUN_ROOMS="my_model")
    done = runner(Path(train[2]).name, *train[3:], "--dry-run")
    assert done.code == 0 and "table" in done.out, (done.out, done.err)


def test_every_file_that_prose_names_is_there():
    pages = [README, ROOT / "CHANGELOG.md", *notebooks(ROOT / "nbs")]
    file = re.compile(r"\b(?:scripts|nbs|tests)/[\w/]+\.(?:py|sh|ipynb)\b")
    named = {(page.name, name) for page in pages for name in file.findall(prose(page))}
    assert len(named) > 12
    assert sorted((page, name) for page, name in named if not (ROOT / name).is_file()) == []


def test_the_readme_lists_every_script():
    mine = {p.name for p in (ROOT / "scripts").glob("*.*")} - {"env.sh", "quickstart.py"}
    assert sorted(name for name in mine if f"scripts/{name}" not in prose(README)) == []


def test_shell_scripts_parse():
    for path in (ROOT / "scripts").rglob("*.sh"): subprocess.run(["bash", "-n", path], check=True)
    called = [words[1] for words in lines(README) if words[:1] == ["bash"]]
    assert [name for name in called if not (ROOT / name).is_file()] == []


FEW = {"train_tokenizer.py": ["--steps", 3, "--free-steps", 1, "--batch", 32],
       "train_generator.py": ["--steps", 3, "--batch", 16],
       "sample.py": ["--count", 20]}
IN_THE_TUTORIAL = ["train_tokenizer.py", "extract_codes.py", "train_generator.py", "sample.py", "evaluate.py",
                   "train_generator.py", "train_generator.py"]


def test_the_tutorial_s_commands_run_in_this_order(home, scripts):
    """As they stand, but for the number of steps and samples.

    The two that only launch differently at the end go on in a finished run.
    """
    typed = commands(TUTORIAL)
    assert [script for script, *_ in typed] == IN_THE_TUTORIAL
    for script, *words in typed:
        done = scripts(script, *words, *FEW.get(script, []))
        assert done.code == 0, (script, words, done.err)
    folder = home / "runs/photos"
    there = {p.name for p in folder.iterdir()}
    assert {"tokenizer", "codes", "generator", "samples.npz", "samples.png", "metrics.json"} - there == set()
    assert np.load(folder / "samples.npz")["arr_0"].shape == (20, 32, 32, 3)
    assert Image.open(folder / "samples.png").width > 100


def test_other_commands_in_prose_are_accepted(scripts):
    "Whatever else stands in a bash block of README or a page, tried with --dry-run."
    typed = [words for page in (README, PLAYGROUND) for words in commands(page) if "shapes-table" not in words]
    assert typed
    for script, *words in typed:
        done = scripts(script, *words, "--dry-run")
        assert done.code == 0, (script, words, done.err)
