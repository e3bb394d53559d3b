"The tiny models that come with the package: small enough, in step with their recipes, and as good as their cards say."
import json

import pytest
import torch

from vgnb.core import BadInput
from vgnb.evaluation.judge import judge_input, load_judge
from vgnb.kinds import from_json, to_json
from vgnb.pipeline import Pipeline
from vgnb.shipped import shipped, shipped_folder, shipped_root
from vgnb.training.recipes import recipe

LEAST = {"tiny-maskgit": 0.75, "tiny-pgm": 0.75, "tiny-randar": 0.80}      # class accuracy at a third of the steps


def card(name: str) -> dict:
    return json.loads((shipped_folder(name) / "generator" / "config.json").read_text())


def test_all_are_there_and_small():
    assert set(shipped()) == set(LEAST)
    files = list(shipped_root().rglob("*.safetensors"))
    assert len(files) == 4
    assert max(f.stat().st_size for f in files) <= 2_000_000


@pytest.mark.parametrize("name", LEAST)
def test_the_recipe_is_the_one_that_made_it(name):
    made, short = card(name), name.removeprefix("tiny-")
    wanted = recipe(made["recipe"])
    assert wanted.name == f"shapes-8x8-{short}"
    assert made["command"] == f"python scripts/train_tiny.py {short}"
    assert from_json(made["config"]) == wanted.model
    assert to_json(wanted)["model"]["grid"] == [8, 8]


def test_the_tokenizer_s_recipe_is_the_one_that_made_it():
    made = json.loads((shipped_root() / "tokenizer" / "config.json").read_text())
    assert from_json(made["config"]) == recipe("shapes-8x8-tokenizer").model
    assert made["judge_accuracy"] > 0.99


@pytest.mark.parametrize("name, least", LEAST.items())
def test_samples_are_what_was_asked_for(name, least):
    pipe = Pipeline.from_pretrained(name)
    judge, _ = load_judge()
    labels = torch.arange(60) % 10
    images = pipe.sample(labels.tolist(), seed=123, steps=22)
    with torch.no_grad(): scores = judge(judge_input(images))
    right = float((scores.argmax(1) == labels).float().mean())
    on_the_card = max(row["accuracy"] for row in card(name)["table"] if row["steps"] == 22)
    assert on_the_card >= least
    assert right >= least


def test_an_unknown_name_is_refused():
    with pytest.raises(BadInput, match="name='tiny-none'"): shipped_folder("tiny-none")
