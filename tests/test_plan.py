"""Plans: memory held against what real steps allocate, every published recipe, the scripts' words."""
import inspect
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.measured_memory import CASES, planned
from tests.run_scripts import Scripts
from vgnb.core import BadInput
from vgnb.draws import At, Keyed
from vgnb.generators.joint_layers import training_mask
from vgnb.training.plan import Cluster, data_order, plan_run, plan_text
from vgnb.training.recipes import recipe, recipe_function, recipes

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["shapes-generator", "--model.layers", 1, "--model.dim", 32, "--model.heads", 2, "--precision", "fp32"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Scripts(tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def peaks() -> dict[str, int]:
    "Measured in a process of their own."
    ran = subprocess.run([sys.executable, "-m", "tests.measured_memory"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return dict(map(json.loads, ran.stdout.splitlines()))


@pytest.mark.full
@pytest.mark.parametrize("name", CASES)
def test_memory_is_what_real_steps_allocate(peaks, name):
    assert planned(name) == pytest.approx(peaks[name], rel=0.1)


@pytest.mark.full
@pytest.mark.parametrize("name", recipes)
def test_every_recipe_has_a_plan(name):
    "Of 64 processes, or as many as its batch can be divided by; within half a minute of one core."
    asked, began = recipe(name), time.process_time()
    world = next(w for w in (64, 32, 16, 8, 4, 2, 1) if asked.batch % w == 0)
    found = plan_run(asked, Cluster(world=world))
    assert json.loads(json.dumps(found)) == found and name in plan_text(found)
    assert found["compute"]["flops_a_step"] > 0
    assert all(parts["activations"] > 0 for parts in found["memory"]["one GPU"].values())
    assert time.process_time() - began < 30
    stated = re.search(r"about ([\d.e+]+)\s+operations", inspect.getdoc(recipe_function(name)))
    assert stated or name.startswith(("shapes-", "cifar-")), "a published recipe states its cost"
    operations = found["compute"]["flops_a_step"] * asked.steps
    assert not stated or 2 / 3 < float(stated[1]) / operations < 3 / 2


def test_the_scripts_give_the_same_plan(run):
    words = [*SMALL, "--batch", 16]
    alone = run("plan.py", *words, "--world", 4)
    training = run("train_generator.py", *words, "--dry-run", "--world", 4)
    assert alone.code == training.code == 0, (alone, training)
    assert alone.out == training.out and "data parallel" in alone.out
    numbers = json.loads(run("plan.py", *words, "--world", 4, "--json").out)
    assert numbers["run"]["world"] == 4 and numbers["order"]["digest"] in alone.out


@pytest.mark.parametrize("words, said", [
    (["gpt-3c"], "recipe='gpt-3c': must be one of"),
    ([*SMALL, "--batch", 16, "--world", 3], "batch=16: must be a multiple of processes x accumulate = 3 x 1"),
    ([*SMALL, "--world", 4, "--shard", 3], "shard=3: must divide world=4"),
    ([*SMALL, "--peak", "h1"], "peak='h1': must be one of a100, h100, h200, b200, "),
    ([*SMALL, "--mfu", 1.2], "mfu=1.2: must be a finite number"),
    ([*SMALL, "--world", 0], "world=0: must be an integer >= 1"),
    ([*SMALL, "--data", "nowhere"], "data=nowhere: ")])
def test_what_is_wrong_is_one_line(run, words, said):
    ran = run("plan.py", *words)
    assert ran.code == 2 and ran.err.startswith(said) and ran.err.count("\n") == 1, ran


def test_a_training_is_not_started_for_another_number_of_processes(run):
    ran = run("train_generator.py", *SMALL, "--world", 4)
    assert ran.code == 2 and ran.err.startswith("world=4: plans a run: add --dry-run"), ran


def test_the_order_is_the_same_on_any_number_of_processes():
    found = {data_order(256, 10_007, 3, world, micro)[0] for world, micro in ((1, 1), (8, 2), (64, 1), (32, 8))}
    assert len(found) == 1


def test_nothing_is_remembered_of_tensors_without_entries():
    "Tables and keys that a plan's step has asked for are made anew for the next real one."
    training_mask.cache_clear()
    small = recipe("shapes-8x8-lpd", batch=4, precision="fp32")
    plan_run(replace(small, model=replace(small.model, layers=1)), Cluster(world=1))
    assert training_mask.cache_info().currsize == 0
    drawn = Keyed(0).fork("train").uniform("u", At(torch.arange(2)))
    assert type(drawn) is torch.Tensor and 0 < drawn.min() and drawn.max() < 1


def test_more_processes_hold_less():
    small = recipe("shapes-generator", batch=64, precision="fp32")
    found = plan_run(small, Cluster(world=16, per_node=4))["memory"]
    weights = {way: next(iter(parts.values()))["weights"] for way, parts in found.items()}
    assert weights["one GPU"] == weights["data parallel"]
    assert weights["HSDP"] == -(-weights["one GPU"] // 4) and weights["sharded"] == -(-weights["one GPU"] // 16)
    with pytest.raises(BadInput, match="batch=64: must be a multiple of processes x accumulate = 16 x 8"):
        plan_run(small, Cluster(world=16), accumulate=8)
