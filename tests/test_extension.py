"""New parts without a changed line in an existing room: an order, a quantizer, a generator and an objective.

Each is a module in tests/extension, made known by `[run] rooms` alone (here through its environment variable) and
taken up by the scripts as the house's own parts are.
"""
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.extension import diagonal_order, flow_objective, sign_quantizer, table_generator
from tests.run_scripts import Scripts
from vgnb.core import BadInput, load_json
from vgnb.generators.generator import Cond
from vgnb.kinds import discover, kind_of
from vgnb.pipeline import Pipeline
from vgnb.sampling.settings import Sampling
from vgnb.saved import load_model
from vgnb.training.trackers import read_log
from vgnb.zoo import export_published

NAMES = ("diagonal_order", "sign_quantizer", "table_generator", "flow_objective")
ROOMS = [f"tests.extension.{name}" for name in NAMES]
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    runner = Scripts(tmp_path_factory.mktemp("extended"), VGNB_RUN_ROOMS=" ".join(ROOMS))
    yield runner
    runner.close()


def run(scripts, *words):
    done = scripts(*words)
    assert done.code == 0, done.err
    return done


@pytest.fixture(scope="module")
def tokenizer(scripts):
    "Trained towards the flow, with a bit a channel: the folder of its model."
    run(scripts, "train_tokenizer.py", "shapes-flow", "--out", "flow", "--precision", "fp32", "--log-every", 2)
    return scripts.cwd / "flow" / "model"


@pytest.fixture(scope="module")
def generator(scripts, tokenizer):
    "The table, trained by the script on the codes of that tokenizer: the folder of its model."
    run(scripts, "extract_codes.py", "--tokenizer", tokenizer, "--data", "shapes://?n=60&size=32", "--size", 32,
        "--out", "codes")
    run(scripts, "train_generator.py", "shapes-table", "--data", "codes", "--out", "table", "--log-every", 20)
    return scripts.cwd / "table" / "model"


def test_no_room_of_the_house_knows_them():
    names = (*NAMES, "Diagonal", "SignConfig", "TableConfig", "FlowConfig")
    for path in (ROOT / "vgnb").rglob("*.py"):
        text = path.read_text()
        assert not [name for name in names if name in text], path


def test_they_are_small():
    "An order in ten lines, a quantizer in sixty."
    assert len(inspect.getsource(diagonal_order.Diagonal).splitlines()) <= 10
    assert len(inspect.getsource(sign_quantizer).splitlines()) <= 60


def test_rooms_are_found_by_their_setting(monkeypatch):
    monkeypatch.setenv("VGNB_RUN_ROOMS", " ".join(ROOMS))
    assert set(ROOMS) <= set(discover())


def test_an_order_samples_by_name_and_is_saved(scripts, tmp_path):
    words = ("--order", "diagonal", "--steps", 8, "--count", 4, "--out", "d.npz")
    run(scripts, "sample.py", "tiny-maskgit", *words)
    pipe = Pipeline.from_pretrained("tiny-maskgit")
    same = pipe.sample([0, 1, 2, 3], order=diagonal_order.Diagonal(), steps=8)
    assert np.array_equal(np.load(scripts.cwd / "d.npz")["arr_0"], same)

    first = next(pipe.stream([0], order="diagonal", schedule="one-by-one", picks=pipe.sampling.picks))
    assert first.positions.tolist() == [[0]]
    own = Pipeline(pipe.tokenizer, pipe.generator, Sampling("diagonal", rows=4), pipe.classes)
    back = Pipeline.from_pretrained(own.save_pretrained(tmp_path / "own"))
    assert back.sampling == own.sampling and isinstance(back.sampling.order, diagonal_order.Diagonal)


def test_a_quantizer_is_an_option_of_the_training_command(scripts):
    run(scripts, "train_tokenizer.py", "shapes-tokenizer", "--model.quantizer", "sign", "--model.quantizer.bits", 5,
        "--model.width", 16, "--model.groups", 8, "--data", "shapes://?n=64&size=32", "--steps", 8, "--batch", 8,
        "--free-steps", 3, "--precision", "fp32", "--out", "bits")
    model = load_model(scripts.cwd / "bits" / "model")
    assert model.vocab == (32,) and kind_of(model.config.quantizer) == "quantizer.sign"
    codes = model.encode(torch.zeros(1, 3, 32, 32))
    assert torch.equal(model.quantizer.lookup(codes), model.quantize(torch.zeros(1, 3, 32, 32)).z)
    with pytest.raises(BadInput, match="no published form"): export_published(model)


def test_an_objective_trains_what_it_brings_and_leaves_its_teacher_alone(scripts, tokenizer):
    log = list(read_log(scripts.cwd / "flow" / "log.jsonl"))
    assert {"flow", "align"} <= set(log[-1]) and all(np.isfinite(row["flow"]) for row in log)
    config = json.loads((tokenizer / "config.json").read_text())
    assert config["recipe"]["loss"]["kind"] == "objective.flow"

    torch.manual_seed(0)
    objective = flow_objective.Flow(flow_objective.FlowConfig())
    assert set(objective.modules) == {"velocity", "project"}
    assert not any(p.requires_grad for p in objective.helpers["teacher"].parameters())


def test_a_generator_is_trained_saved_and_sampled(scripts, generator, tokenizer):
    model = load_model(generator)
    assert isinstance(model, table_generator.Table) and model.vocab == (64,)
    losses = [row["loss"] for row in read_log(scripts.cwd / "table" / "log.jsonl")]
    assert losses[-1] < 0.8 * losses[0]

    run(scripts, "sample.py", "--tokenizer", tokenizer, "--generator", generator, "--count", 12, "--guidance.scale", 2,
        "--order", "diagonal", "--schedule", "cosine", "--steps", 5, "--out", "table.npz")
    made = np.load(scripts.cwd / "table.npz")["arr_0"]
    assert made.shape == (12, 32, 32, 3)
    pipe = Pipeline(load_model(tokenizer), model, Sampling("diagonal", "cosine", 5, 2.0), model.card["classes"])
    labels = np.load(scripts.cwd / "table.npz")["labels"].tolist()
    assert np.array_equal(made, pipe.sample(labels))
    assert pipe.codes([3], order="halton").shape == (1, 16, 1)

    null = model.null(Cond(labels=torch.tensor([0])))
    assert null.labels.tolist() == [10]
    assert load_json(generator / "config.json")["config"]["kind"] == "table"
