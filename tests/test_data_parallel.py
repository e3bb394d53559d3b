"Gradients averaged while they are computed: processes are one, resumed is uninterrupted, the launcher is heard."
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed.utils import _to_kwargs

from tests.forked import on_two
from tests.players_on_many import RECIPE, Players
from tests.toy_training import Pair, Points, result
from vgnb.core import BadInput
from vgnb.draws import At
from vgnb.processes import Processes
from vgnb.saved import load_tensors
from vgnb.training.checkpoints import newest
from vgnb.training.data_parallel import PhaseLoss, _Call, check_launcher, data_parallel
from vgnb.training.run_folder import Run
from vgnb.training.step import Stepper, TrainState
from vgnb.training.trackers import read_log
from vgnb.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
TOLERANCE = 1e-5     # after 16 Adam steps of 1e-2 in fp32; sums are taken in another order


def launch(world: int, folder: Path):
    many = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(world), "-m"]
    command = [sys.executable, "-m", *(many if world > 1 else []), "tests.players_on_many", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr and "find_unused" not in done.stderr, done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Three worlds."
    root = tmp_path_factory.mktemp("players")
    for world in (1, 2, 3): launch(world, root / str(world))
    return root


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{p.stem}.{k}": t for p in newest(folder / "checkpoints").glob("*.safetensors")
            for k, t in load_tensors(p).items()}


@pytest.mark.full
@pytest.mark.parametrize("world", [2, 3])
def test_processes_are_one(runs, world):
    "Weights, averages, optimizer memory; and every number that is logged."
    one, many = tensors(runs / "1" / "whole"), tensors(runs / str(world) / "whole")
    assert one.keys() == many.keys() and len(one) > 20
    for k in one: torch.testing.assert_close(many[k], one[k], rtol=0, atol=TOLERANCE, msg=k)
    logs = [read_log(runs / name / "whole" / "log.jsonl") for name in ("1", str(world))]
    for a, b in zip(*logs, strict=True):
        assert a["net.loss"] == pytest.approx(b["net.loss"], abs=1e-4) and a.keys() == b.keys()


@pytest.mark.full
@pytest.mark.parametrize("world", [2, 3])
def test_resumed_is_uninterrupted_bit_for_bit(runs, world):
    assert result(runs / str(world) / "whole") == result(runs / str(world) / "twice")


@pytest.mark.full
def test_the_tolerance_would_see_one_share_alone(runs):
    "A world's weights are far from where they began, measured in tolerances."
    begun = Players(Processes()).modules["net"].state_dict()
    after = load_tensors(newest(runs / "1" / "whole" / "checkpoints") / "model.net.safetensors")
    assert min((after[k] - begun[k]).abs().max() for k in begun) > 1000 * TOLERANCE


def test_one_process_needs_no_engine():
    losses = PhaseLoss(Pair())
    assert data_parallel(losses, Processes()) is losses


def test_accelerate_wraps_what_looks_for_the_unused_and_leaves_buffers(tmp_path):
    """As torch's wrapper, by accelerate's way and whatever its launcher was told of what is ours; in silence, and
    twice in one process. It goes when a fit ends."""
    def work(rank):
        told = dict(ACCELERATE_MIXED_PRECISION="bf16", ACCELERATE_GRADIENT_ACCUMULATION_STEPS="4",
                    ACCELERATE_DYNAMO_BACKEND="INDUCTOR", ACCELERATE_USE_PARALLELISM_CONFIG="true",
                    PARALLELISM_CONFIG_DP_REPLICATE_SIZE="2")
        before, processes = os.environ | told, Processes()
        os.environ.update(told)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            engines = [data_parallel(PhaseLoss(Pair()), processes) for _ in range(2)]
        assert {k: os.environ[k] for k in before} == before
        for name in told: del os.environ[name]
        (wrapped,) = {type(engine.wrapped).__name__ for engine in engines}
        found = engines[0].wrapped
        plain = vars(found.module.losses.forward.__self__).get("forward") is None       # nobody patched it
        first = wrapped, found.find_unused_parameters, found.broadcast_buffers, found.static_graph, plain
        trainer = Trainer(Pair(), Points(), replace(RECIPE, precision="fp32"), tmp_path / "run", Run(progress=False))
        trainer.fit(2)
        return first, trainer.stepper.engine

    assert on_two(work) == [(("DistributedDataParallel", True, False, False, True), None)] * 2


def test_what_a_phase_leaves_for_the_next_is_no_copy():
    "A wrapper that knows its device moves what it is given there, and rebuilds dictionaries for that."
    carry = {"out": torch.zeros(2)}
    ((moved,),) = _to_kwargs((_Call(carry),), {}, torch.device("cpu"), False)[0]
    assert moved.args[0] is carry
    assert _to_kwargs((carry,), {}, torch.device("cpu"), False)[0][0][0] is not carry


def test_the_engine_goes_when_a_fit_ends(tmp_path):
    "Also when it ends with an error; a second fit makes another."
    trainer = Trainer(Pair(), Points(), RECIPE, tmp_path / "run", Run(progress=False, workers=0))
    trainer.fit(2)
    assert trainer.stepper.engine is None
    trainer.fit(3)
    assert trainer.step == 3 and trainer.stepper.engine is None


def test_what_a_loss_does_not_reach_keeps_no_gradient():
    "Not zeros, which weight decay would move."
    task = Players(Processes())
    stepper = Stepper(TrainState(task, RECIPE, Processes()))
    x = torch.linspace(0, 6, 24)[:, None]
    before = task.modules["net"].table.clone()
    for step in range(4): stepper(step, [(At(torch.arange(24), step=step), {"x": x, "y": x.sin()})])
    assert torch.equal(task.modules["net"].table, before)
    stepper(4, [(At(torch.arange(24), step=4), {"x": x, "y": x.sin()})])
    assert not torch.equal(task.modules["net"].table, before)


@pytest.mark.parametrize("name, told, argument", [
    ("GRADIENT_ACCUMULATION_STEPS", "4", "accumulate=1: but the launcher was told 4 gradient accumulation steps"),
    ("DYNAMO_BACKEND", "INDUCTOR", "compile=False: but the launcher was told dynamo_backend INDUCTOR; --compile")])
def test_launcher_and_run_agree_on_the_rest(monkeypatch, tmp_path, name, told, argument):
    monkeypatch.setenv(f"ACCELERATE_{name}", told)
    check_launcher("fp32", accumulate=4, compile=True)
    with pytest.raises(BadInput, match=f"^{argument}"):
        Trainer(Pair(), Points(), RECIPE, tmp_path / "run", Run(progress=False))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("asked, mine, fine", [("no", "bf16", True), ("bf16", "bf16", True), ("bf16", "fp32", False),
                                               ("fp16", "bf16", False), (None, "bf16", True), ("fp8", "bf16", False)])
def test_launcher_and_recipe_agree_on_precision(monkeypatch, tmp_path, asked, mine, fine):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if asked: monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    if fine: return check_launcher(mine)
    with pytest.raises(BadInput, match=f"precision='{mine}'.*mixed_precision {asked}"): check_launcher(mine)
    with pytest.raises(BadInput, match="mixed_precision"):
        Trainer(Pair(), Points(), replace(RECIPE, precision=mine), tmp_path / "run", Run(progress=False))
    assert not (tmp_path / "run").exists()
