"A run that is killed at any moment ends with the same bits as one that is not."
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.test_damage import random_damage
from tests.toy_training import (
    RECIPE,
    Pair,
    Points,
    killed_again_and_again,
    killed_inside_the_save,
    result,
    saves,
    train,
)
from tests.train_on_two import generator_recipe, tokenizer_recipe, write_codes
from vgnb.core import Mismatch, Missing, digest
from vgnb.generators.annealed_order import AnnealedOrderConfig
from vgnb.generators.joint_layers import JointQueryConfig
from vgnb.generators.two_streams import TwoStreamConfig
from vgnb.training.checkpoints import best, checkpoints, newest, read_checkpoint
from vgnb.training.commands import build_generator, build_tokenizer
from vgnb.training.recipes import Optim
from vgnb.training.run_folder import Run
from vgnb.training.trackers import read_log
from vgnb.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*words, **kw):
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=240, **kw)


def start(*words, **kw): return subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, env=ENV, **kw)


def names(folder) -> list[str]: return [p.name for p in checkpoints(Path(folder) / "checkpoints")]
def manifest(folder) -> dict: return json.loads((folder / "run.json").read_text())


@pytest.mark.fault("F1")
@pytest.mark.parametrize("kills, steps, workers", [(3, 60, 0), pytest.param(50, 400, 1, marks=pytest.mark.full)])
def test_kills_at_random_moments(tmp_path, figures, kills, steps, workers):
    """SIGKILLs; weights, averages, optimizer memory and counters end bit-identical, no published checkpoint is ever
    lost, and none costs more steps than lie between two saves, the one that was being written included."""
    recipe = replace(RECIPE, steps=steps)
    train(tmp_path / "whole", recipe=recipe)
    found = killed_again_and_again(tmp_path / "killed", kills, 0, recipe, workers=workers)
    assert (found["deaths"], found["code"], found["lost"]) == (kills, 0, [])
    rework = [reached - kept for _, reached, kept in found["lives"]]
    assert max(rework) <= 20, rework
    assert sum(reached > began for began, reached, _ in found["lives"]) >= kills // 2, found["lives"]
    assert found["result"] == result(tmp_path / "whole")
    figures(kills=kills, lost=len(found["lost"]), identical=1, runs=1, rework=float(max(rework)),
            late=sum(n > 10 for n in rework), lives=[list(life) for life in found["lives"]])
    logged = [line["step"] for line in read_log(tmp_path / "killed" / "log.jsonl")]
    assert logged == sorted(set(logged)) and logged[-1] == steps


@pytest.mark.fault("F2")
def test_kills_inside_the_save(tmp_path, figures):
    "Death at every call that touches the disk: the old checkpoint or the new one, never a third thing."
    train(tmp_path / "whole", until=20)
    found = killed_inside_the_save(tmp_path / "killed")
    assert found["calls"] >= 20 and found["result"] == result(tmp_path / "whole")
    assert set(found["left"]) == {"step-000000010", "step-000000020"}
    assert found["left"][0] == "step-000000010" and found["left"][-1] == "step-000000020"
    figures(kills=found["calls"], whole=found["calls"])


@pytest.mark.fault("F4")
@pytest.mark.parametrize("count, batch, stops", [
    (240, 8, (7, 31, 44, 59)), pytest.param(10_000, 100, (7, 31, 82, 143), marks=pytest.mark.full)])
def test_every_sample_once_an_epoch_over_four_resumes(tmp_path, figures, count, batch, stops):
    "Two epochs with four stops: what the steps used is one permutation each."
    log, recipe = tmp_path / "seen.txt", replace(RECIPE, batch=batch, steps=2 * count // batch)
    for stop in (*stops, None): train(tmp_path / "run", log=log, recipe=recipe, until=stop, count=count)
    seen = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    assert len(seen) == 2 * count
    assert sorted(seen) == [(epoch, i) for epoch in (0, 1) for i in range(count)]
    figures(samples=count, resumes=len(stops), twice=0, never=0)


def wait_for_a_checkpoint(folder):
    until = time.monotonic() + 120          # of a busy machine
    while not names(folder):
        assert time.monotonic() < until, "no checkpoint in two minutes"
        time.sleep(0.05)


def stop(process, folder, number) -> int:
    "Wait until the run is under way, then signal it; its exit code."
    wait_for_a_checkpoint(folder)
    process.send_signal(number)
    return process.wait(120)


@pytest.mark.fault("F7")
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.full)])
def test_signals_publish_and_exit_75(tmp_path, number):
    folder = tmp_path / "run"
    process = start("-m", "tests.toy_training", folder)
    assert stop(process, folder, number) == 75
    step = int(newest(folder / "checkpoints").name[-9:])
    assert 0 < step < RECIPE.steps
    train(folder)
    train(tmp_path / "whole")
    assert result(folder) == result(tmp_path / "whole")


def real_tokenizer(folder):
    r = tokenizer_recipe()
    r = replace(r, loss=replace(r.loss, gan=0.1, start=9, adaptive=True), batch=8)
    return r, *build_tokenizer(r, folder)


def with_model(folder, model=None, **changes):
    "A generator's training on made-up codes, of which everything random is drawn."
    if not (folder / "codes").exists(): write_codes(folder / "codes")
    r = generator_recipe(folder / "codes")
    return build_generator(replace(r, model=replace(model or r.model, **changes)))


RATES = dict(token_dropout=0.1, residual_dropout=0.1, ffn_dropout=0.1)
SMALL = dict(dim=32, heads=2, vocab=48, grid=(4, 4), classes=10)
RAR = AnnealedOrderConfig(2, **SMALL, hidden=48, spare=2, attention_dropout=0.1, anneal_start=3, anneal_end=12)
ARPG = TwoStreamConfig(4, **SMALL, ffn_multiple=16, **RATES)
LPD = JointQueryConfig(2, **SMALL, dropout=0.1, steps=(16, 8, 4))


def real_generator(folder): return with_model(folder, **RATES, drop_path=0.1)
def real_rar(folder): return with_model(folder, RAR)
def real_arpg(folder): return with_model(folder, ARPG)
def real_lpd(folder): return with_model(folder, LPD)


@pytest.mark.parametrize("build", [real_tokenizer, real_generator, real_rar, real_arpg, real_lpd])
def test_real_tasks_in_parts(tmp_path, build):
    """A tokenizer through warm-up, k-means, revival and discriminator, and generators, whose orders fade (RAR), are
    drawn (ARPG) and cut into drawn groups (LPD): stopped twice, the same bits."""
    def trainer(folder):
        r, task, data = build(tmp_path)
        return Trainer(task, data, r, folder, Run(progress=False))

    trainer(tmp_path / "whole").fit()
    for until in (5, 11, None): trainer(tmp_path / "parts").fit(until)
    assert result(tmp_path / "whole") == result(tmp_path / "parts")


@pytest.mark.fault("F9")
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, capsys):
    train(tmp_path / "whole", until=40)
    train(tmp_path / "run", until=30)
    for name in ("model.net.safetensors", "state.json"):
        file = newest(tmp_path / "run" / "checkpoints") / name
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
        train(tmp_path / "run", until=30)
        assert f"damaged: {name}" in capsys.readouterr().err
    train(tmp_path / "run", until=40)
    assert result(tmp_path / "run") == result(tmp_path / "whole")


@pytest.mark.fault("F9")
@pytest.mark.full
def test_a_checkpoint_of_a_run_is_never_believed_when_a_byte_differs(tmp_path, figures):
    """200 random changes to the files of the newest one: the one before is chosen, with a line, except where nothing
    that is read has changed: the name of a seal."""
    train(tmp_path, until=20)
    last, before = checkpoints(saves(tmp_path))
    rng, files, harmless = np.random.default_rng(0), sorted(last.iterdir()), 0
    whole = digest(*read_checkpoint(last))
    for n in range(200):
        file = files[n % len(files)]
        raw, told = file.read_bytes(), []
        while (bad := random_damage(raw, rng)[1]) == raw: pass
        file.write_bytes(bad)
        if best(saves(tmp_path), told.append) == last:
            harmless += 1
            assert file.name == "manifest.json" and digest(*read_checkpoint(last)) == whole
        else:
            assert best(saves(tmp_path), lambda reason: None) == before and len(told) == 1 and last.name in told[0]
            with pytest.raises(Mismatch): read_checkpoint(last)
        file.write_bytes(raw)
    assert best(saves(tmp_path), pytest.fail) == last and harmless <= 4
    figures(corruptions=200, detected=200, a_kind={f"checkpoint of a run, {len(files)} files": 200})


def toy_trainer(folder, recipe=RECIPE, task=None, **run):
    return Trainer(task or Pair(), Points(), recipe, folder, Run(progress=False, **run))


@pytest.mark.parametrize("change,words", [
    ({"batch": 16}, "batch=16: the run in"),
    ({"optim": Optim(lr=1e-3, weight_decay=0.1)}, "optim.lr=0.001: the run in"),
    ({"seed": 1}, "seed=1"),
    ({"ema": 0.5}, "ema=0.5")])
def test_another_recipe_may_not_go_on(tmp_path, change, words):
    train(tmp_path / "run", until=10)
    with pytest.raises(Mismatch, match=words): toy_trainer(tmp_path / "run", replace(RECIPE, **change)).fit()
    assert names(tmp_path / "run") == ["step-000000010"]


class Wider(Pair):
    def __init__(self):
        super().__init__()
        self.modules["critic"] = type(self.modules["critic"])(1, 2)


def test_another_model_may_not_go_on(tmp_path):
    train(tmp_path / "run", until=10)
    with pytest.raises(Mismatch, match="critic|shape"): toy_trainer(tmp_path / "run", task=Wider()).fit()
    assert names(tmp_path / "run") == ["step-000000010"]


def test_nothing_may_not_go_on(tmp_path):
    with pytest.raises(Missing, match="no checkpoint to resume from"):
        toy_trainer(tmp_path / "empty", resume="resume").fit()


def test_fresh_starts_over(tmp_path):
    train(tmp_path / "run", until=20)
    trainer = toy_trainer(tmp_path / "run", replace(RECIPE, seed=1, steps=10), resume="fresh", save_every=5)
    assert trainer.fit().finished
    assert names(tmp_path / "run") == ["step-000000010", "step-000000005"]


@pytest.mark.full
@pytest.mark.fault("F19")
def test_a_second_process_in_the_folder_is_refused(tmp_path):
    process = start("-m", "tests.toy_training", tmp_path / "run")
    try:
        wait_for_a_checkpoint(tmp_path / "run")
        with pytest.raises(Mismatch, match=f"is in use by process {process.pid}"): train(tmp_path / "run")
    finally:
        process.kill()
        process.wait()
    assert train(tmp_path / "run")[0].finished                             # the dead owner's lock is no obstacle


@pytest.mark.fault("F7")
@pytest.mark.full
def test_the_training_script_stops_and_goes_on(tmp_path):
    "SIGTERM to the real script; the same command ends in the weights of an uninterrupted one."
    write_codes(tmp_path / "codes")
    words = "--steps 400 --batch 4 --precision fp32 --model.dim 32 --model.layers 1 --model.vocab 48 --save-every 20"
    command = ["scripts/train_generator.py", "shapes-generator", "--data", tmp_path / "codes", *words.split(), "--out"]
    stopped, whole = tmp_path / "run", tmp_path / "whole"

    process = start(*command, stopped, stderr=subprocess.PIPE, text=True)
    assert stop(process, stopped, signal.SIGTERM) == 75
    assert "run the same command again to go on" in process.stderr.read()
    assert not (stopped / "model").exists() and manifest(stopped)["resumed_at"] is None

    for out in (stopped, whole): assert run(*command, out).returncode == 0
    assert result(stopped) == result(whole) and manifest(stopped)["resumed_at"] > 0
    weights = [out / "model" / "model.safetensors" for out in (stopped, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    other = run(*command, stopped, "--seed", "3")
    lines = other.stderr.strip().splitlines()
    assert other.returncode == 2 and len(lines) == 1 and lines[0].startswith("seed=3: the run in")
