"The tiny models that come with the package: small enough, in step with their recipes, and as good as their cards say."
import json
import subprocess
import sys

import pytest
import torch

from tests.run_scripts import main_of
from vgnb.core import BadInput, Missing
from vgnb.evaluation.judge import judge_input, load_judge
from vgnb.kinds import from_json, to_json
from vgnb.pipeline import Pipeline
from vgnb.shipped import shipped, shipped_folder, shipped_root
from vgnb.training.recipes import recipe

# class accuracy; that of 60 samples swings by some points
LEAST = {"tiny-arpg": 0.80, "tiny-dar": 0.85, "tiny-iar2": 0.85, "tiny-llamagen": 0.80, "tiny-lpd": 0.80,
         "tiny-maskgit": 0.75, "tiny-pgm": 0.75, "tiny-randar": 0.80, "tiny-rar": 0.85, "tiny-vqkd": 0.85}
# they know one way; others are examined at a third
STEPS = dict.fromkeys(("tiny-dar", "tiny-iar2", "tiny-llamagen", "tiny-rar", "tiny-vqkd"), 64)
RECIPES = {"dar": "shapes-dar", "vqkd": "shapes-vqkd"}
GRIDS = {"dar": [64]}


def card(name: str) -> dict:
    return json.loads((shipped_folder(name) / "generator" / "config.json").read_text())


def test_all_are_there_and_small():
    assert set(shipped()) == set(LEAST)
    files = list(shipped_root().rglob("*.safetensors"))
    assert len(files) == 15
    assert max(f.stat().st_size for f in files) <= 2_500_000


@pytest.mark.parametrize("name", LEAST)
def test_the_recipe_is_the_one_that_made_it(name):
    made, short = card(name), name.removeprefix("tiny-")
    wanted = recipe(made["recipe"])
    assert wanted.name == RECIPES.get(short, f"shapes-8x8-{short}")
    assert made["command"] == f"python scripts/train_tiny.py {short}"
    assert from_json(made["config"]) == wanted.model
    assert to_json(wanted)["model"]["grid"] == GRIDS.get(short, [8, 8])


TOKENIZERS = {"tokenizer": "shapes-8x8-tokenizer", "iar2-tokenizer": "shapes-iar2-tokenizer-second",
              "vqkd-tokenizer": "shapes-vqkd-pixels", "dar-tokenizer": "shapes-dar-tokenizer"}
FLOORS = {"dar-tokenizer": 0.98}    # of the judge on reconstructions


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_tokenizer_s_recipe_is_the_one_that_made_it(name):
    made = json.loads((shipped_root() / name / "config.json").read_text())
    assert from_json(made["config"]) == recipe(TOKENIZERS[name]).model
    assert made["command"] == f"python scripts/train_tiny.py {name}"
    assert made["judge_accuracy"] > FLOORS.get(name, 0.99)


ONCE = ("tiny-randar", "tiny-maskgit", "tiny-iar2")      # --full asks the others, too


@pytest.mark.parametrize("name, least", [
    pytest.param(name, least, marks=() if name in ONCE else pytest.mark.full) for name, least in LEAST.items()])
def test_samples_are_what_was_asked_for(name, least):
    pipe = Pipeline.from_pretrained(name)
    judge, _ = load_judge()
    labels = torch.arange(60) % 10
    steps = STEPS.get(name, 22)
    images = pipe.sample(labels.tolist(), seed=123, **({} if pipe.generator.most == 1 else {"steps": steps}))
    with torch.no_grad(): scores = judge(judge_input(images))
    right = float((scores.argmax(1) == labels).float().mean())
    on_the_card = max(row["accuracy"] for row in card(name)["table"] if row["steps"] == steps)
    assert on_the_card >= least
    assert right >= least


def test_an_unknown_name_is_refused():
    with pytest.raises(BadInput, match="name='tiny-none'"): shipped_folder("tiny-none")


@pytest.mark.full
def test_opening_and_sampling_leave_the_compiler_alone():
    "Importing it takes more than a second, which every script would wait for."
    code = """
import sys
from vgnb.pipeline import Pipeline
from vgnb.shipped import shipped
for name in shipped(): Pipeline.from_pretrained(name).sample(1)
print(*(name for name in ("torch._dynamo", "sympy") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr


def test_a_generator_is_made_beside_its_tokenizer(tmp_path):
    "Refused before anything is extracted or trained."
    with pytest.raises(Missing, match="ship=.* must hold iar2-tokenizer, whose codes iar2 learns"):
        main_of("train_tiny.py")(["iar2", "--ship", str(tmp_path / "ship"), "--out", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())
