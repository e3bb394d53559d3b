"""A quantizer and an objective of one's own: rooms that no other room knows, named by `[run] rooms` alone.

They are modules in tests/extension; the scripts, and saved files, then know their words.
"""
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.run_scripts import Scripts
from vgnb.core import BadInput
from vgnb.draws import At, Keyed
from vgnb.kinds import kind_of, kinds, shelves
from vgnb.saved import load_model
from vgnb.tokenizers.pictures import pictures
from vgnb.training.recipes import recipes
from vgnb.training.trackers import read_log
from vgnb.zoo import export_published

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("tests.extension.sign_quantizer", "tests.extension.flow_objective")


@pytest.fixture(scope="module")
def rooms():
    "The two modules, {last part of the name: module}; what they register is forgotten at the end."
    tables = [kinds, recipes, *shelves.values()]
    before = [dict.copy(table) for table in tables]
    yield {name.split(".")[-1]: importlib.import_module(name) for name in ROOMS}
    for table, was in zip(tables, before):
        dict.clear(table)
        dict.update(table, was)
    for name in ROOMS: sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    runner = Scripts(tmp_path_factory.mktemp("extended"), VGNB_RUN_ROOMS=" ".join(ROOMS))
    yield runner
    runner.close()


def run(scripts, *words):
    done = scripts(*words)
    assert done.code == 0, done.err


def test_no_room_of_the_house_knows_them():
    names = ("sign_quantizer", "flow_objective", "SignConfig", "FlowConfig")
    for path in (ROOT / "vgnb").rglob("*.py"):
        text = path.read_text()
        assert not [name for name in names if name in text], path


@pytest.mark.parametrize("path", ["tests/extension/sign_quantizer.py", "vgnb/tokenizers/fsq.py"])
def test_a_quantizer_is_sixty_lines(path):
    source = (ROOT / path).read_text().partition("@dataclass")[2]
    assert len(source.splitlines()) <= 60


def test_a_quantizer_is_an_option_of_the_training_command(scripts, rooms):
    run(scripts, "train_tokenizer.py", "shapes-tokenizer", "--model.quantizer", "sign", "--model.quantizer.bits", 5,
        "--model.width", 16, "--model.groups", 8, "--data", "shapes://?n=64&size=32", "--steps", 8, "--batch", 8,
        "--free-steps", 3, "--precision", "fp32", "--out", "bits")
    model = load_model(scripts.cwd / "bits" / "model")
    assert model.vocab == (32,) and kind_of(model.config.quantizer) == "quantizer.sign"
    grey = torch.zeros(1, 3, 32, 32)
    assert torch.equal(model.quantizer.lookup(model.encode(grey)), model.quantize(grey).z)
    with pytest.raises(BadInput, match="no published form"): export_published(model)


@pytest.fixture(scope="module")
def flowing(scripts) -> Path:
    "A run towards the flow, whose tokenizer has a bit a channel."
    run(scripts, "train_tokenizer.py", "shapes-flow", "--out", "flow", "--precision", "fp32", "--log-every", 2)
    return scripts.cwd / "flow"


def test_an_objective_is_trained_towards(flowing, rooms):
    log = read_log(flowing / "log.jsonl")
    assert {"flow", "align"} <= set(log[-1])
    assert all(np.isfinite(row["flow"]) for row in log)
    card = json.loads((flowing / "model" / "config.json").read_text())
    assert card["recipe"]["loss"]["kind"] == "objective.flow"

    tokenizer = load_model(flowing / "model")
    codes = torch.zeros(2, 16, 1, dtype=torch.long)
    assert pictures(tokenizer, codes, ids=torch.arange(2), draws=Keyed(0)).shape == (2, 32, 32, 3)


def test_an_objective_moves_what_it_brings_and_no_teacher(flowing, rooms):
    torch.manual_seed(0)
    flow = rooms["flow_objective"]
    objective = flow.Flow(flow.FlowConfig())
    tokenizer = load_model(flowing / "model").train()
    images, at = torch.rand(2, 3, 32, 32) * 2 - 1, At(torch.arange(2), step=0)
    made = tokenizer(images, Keyed(0), at)
    loss, parts = objective.loss(None, images, made, {}, Keyed(0), at)
    loss.backward()
    for name in ("velocity", "project"):
        assert objective.modules[name].weight.grad.abs().sum() > 0, name
    assert next(tokenizer.encoder.parameters()).grad.abs().sum() > 0
    assert objective.helpers["teacher"].weight.grad is None
    assert set(parts) == {"flow", "align"}
