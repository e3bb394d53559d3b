"A run that is killed at any moment ends with the same bits as one that is not."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.toy_training import RECIPE, Pair, Points, result, train
from vgnb.core import Mismatch, Missing, VgnbError
from vgnb.training.checkpoints import checkpoints, newest
from vgnb.training.commands import TrainOptions
from vgnb.training.commands import train as command
from vgnb.training.recipes import Optim
from vgnb.training.run_folder import Run
from vgnb.training.trackers import read_log
from vgnb.training.trainer import Trainer
from tests.train_on_two import generator_recipe, tokenizer_recipe, write_codes

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def toy(*args) -> dict:
    done = subprocess.run([sys.executable, "-m", "tests.toy_training", *map(str, args)], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_kills_at_random_moments(tmp_path):
    "Ten SIGKILLs; weights, averages, optimizer memory and counters end bit-identical, no published checkpoint is ever lost."
    told = toy("kills", tmp_path, 10, 0)
    assert told["deaths"] == 10 and told["code"] == 0 and told["lost"] == [] and told["result"] == told["whole"]
    steps = [x["step"] for x in read_log(tmp_path / "killed" / "log.jsonl")]
    assert steps == sorted(set(steps)) and steps[-1] == RECIPE.steps


def test_kills_inside_the_save(tmp_path):
    "Death at every call that touches the disk: the old checkpoint or the new one, never a third thing."
    told = toy("saves", tmp_path)
    assert told["calls"] >= 20 and set(told["left"]) == {"step-000000010", "step-000000020"} and told["result"] == told["whole"]
    assert told["left"][0] == "step-000000010" and told["left"][-1] == "step-000000020"


def test_every_sample_once_an_epoch_over_four_resumes(tmp_path):
    "Stopped at 7, 31, 44 and 59 of 60 steps, two epochs of 240: what the steps used, in order, is one permutation each."
    log = tmp_path / "seen.txt"
    for stop in (7, 31, 44, 59, 60): train(tmp_path / "run", log=log, until=stop)
    seen = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    assert len(seen) == 480 and sorted(seen) == [(e, i) for e in (0, 1) for i in range(240)]


def _stop(process, number):
    "Wait until the run is under way, then signal it."
    folder = Path(process.args[-1])
    for _ in range(400):
        if checkpoints(folder / "checkpoints"): break
        time.sleep(0.05)
    process.send_signal(number)
    return process.wait(30)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_publish_and_exit_75(tmp_path, number):
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-m", "tests.toy_training", "signal", str(folder)], cwd=ROOT, env=ENV)
    assert _stop(process, number) == 75
    step = int(newest(folder / "checkpoints").name[-9:])
    assert 0 < step < RECIPE.steps
    train(folder); train(tmp_path / "whole")
    assert result(folder) == result(tmp_path / "whole")


@pytest.mark.parametrize("which", ["tokenizer", "generator"])
def test_real_tasks_in_parts(tmp_path, which):
    "A tokenizer through warm-up, k-means, revival and its discriminator, and a generator: stopped twice, the same bits."
    if which == "tokenizer":
        r = tokenizer_recipe()
        r = replace(r, loss=replace(r.loss, gan=0.1, start=9, adaptive=True), batch=8)
    else:
        write_codes(tmp_path / "codes"); r = generator_recipe(tmp_path / "codes")
        r = replace(r, model=replace(r.model, token_dropout=0.1, residual_dropout=0.1, ffn_dropout=0.1, drop_path=0.1))
    from vgnb.training.commands import build_generator, build_tokenizer
    def trainer(folder):
        if which == "tokenizer": task, data = build_tokenizer(r, tmp_path)
        else: _, task, data = build_generator(r)
        return Trainer(task, data, r, folder, Run(progress=False))
    trainer(tmp_path / "whole").fit()
    for stop in (5, 11, None): trainer(tmp_path / "parts").fit(stop)
    assert result(tmp_path / "whole") == result(tmp_path / "parts")


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, capsys):
    train(tmp_path / "whole", until=40)
    train(tmp_path / "run", until=30)
    for name in ("model.net.safetensors", "state.json"):
        file = newest(tmp_path / "run" / "checkpoints") / name
        data = bytearray(file.read_bytes()); data[len(data) // 2] ^= 4; file.write_bytes(data)
        train(tmp_path / "run", until=30)
        assert f"damaged: {name}" in capsys.readouterr().err
    train(tmp_path / "run", until=40)
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def _trainer(folder, recipe=RECIPE, task=None, **run): return Trainer(task or Pair(), Points(), recipe, folder, Run(progress=False, **run))


def test_what_may_not_go_on(tmp_path):
    train(tmp_path / "run", until=10)
    for change, said in (({"batch": 16}, "batch=16: the run in"), ({"optim": Optim(lr=1e-3, weight_decay=0.1)}, "optim.lr=0.001: the run in"), ({"seed": 1}, "seed=1"), ({"ema": 0.5}, "ema=0.5")):
        with pytest.raises(Mismatch, match=said.replace("(", r"\(")): _trainer(tmp_path / "run", replace(RECIPE, **change)).fit()
    class Wider(Pair):
        def __init__(self):
            super().__init__(); self.modules["critic"] = type(self.modules["critic"])(1, 2)
    with pytest.raises(Mismatch, match="critic|shape"): _trainer(tmp_path / "run", task=Wider()).fit()
    with pytest.raises(Missing, match="no checkpoint to resume from"): _trainer(tmp_path / "empty", resume="resume").fit()
    assert newest(tmp_path / "run" / "checkpoints").name == "step-000000010"


def test_fresh_starts_over(tmp_path):
    train(tmp_path / "run", until=20)
    t = _trainer(tmp_path / "run", replace(RECIPE, seed=1, steps=10), resume="fresh", save_every=5)
    assert t.fit().finished and [p.name for p in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000000010", "step-000000005"]


def test_a_second_process_in_the_folder_is_refused(tmp_path):
    process = subprocess.Popen([sys.executable, "-m", "tests.toy_training", "signal", str(tmp_path / "run")], cwd=ROOT, env=ENV)
    try:
        for _ in range(400):
            if checkpoints(tmp_path / "run" / "checkpoints"): break
            time.sleep(0.05)
        with pytest.raises(Mismatch, match=f"is in use by process {process.pid}"): train(tmp_path / "run")
    finally: process.kill(); process.wait()
    assert train(tmp_path / "run")[0].finished                             # the dead owner's lock is no obstacle


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    program = """
import resource, signal, sys
from tests.toy_training import *
train(sys.argv[1], until=10)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
class Filling(Pair):
    "At step 12 the disk is full."
    def phases(self, step):
        if step == 12: resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))
        return super().phases(step)
Trainer(Filling(), Points(), RECIPE, sys.argv[1], Run(save_every=5, progress=False, tracker="none", on_save_error=sys.argv[2])).fit(20)
"""
    for how, code in (("stop", 1), ("warn", 0)):
        folder = tmp_path / how
        done = subprocess.run([sys.executable, "-c", program, str(folder), how], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=120)
        assert done.returncode == code and "could not be written" in done.stderr, done.stderr
        assert [p.name for p in checkpoints(folder / "checkpoints")] == ["step-000000010"] == [newest(folder / "checkpoints").name]
        assert not list((folder / "checkpoints").glob(".aside*"))


def test_the_training_script_stops_and_goes_on(tmp_path):
    "SIGTERM to the real script; the same command ends in the weights of an uninterrupted one."
    write_codes(tmp_path / "codes")
    def line(out): return [sys.executable, "scripts/train_generator.py", "shapes-generator", "--data", str(tmp_path / "codes"), "--steps", "400", "--batch", "4", "--precision", "fp32", "--model.dim", "32",
                           "--model.layers", "1", "--model.vocab", "48", "--save-every", "20", "--out", str(out)]
    process = subprocess.Popen(line(tmp_path / "run"), cwd=ROOT, env=ENV, stderr=subprocess.PIPE, text=True)
    assert _stop(process, signal.SIGTERM) == 75 and "run the same command again to go on" in process.stderr.read()
    assert not (tmp_path / "run" / "model").exists() and json.loads((tmp_path / "run" / "run.json").read_text())["resumed_at"] is None
    for out in ("run", "whole"): subprocess.run(line(tmp_path / out), cwd=ROOT, env=ENV, check=True, timeout=120)
    assert result(tmp_path / "run") == result(tmp_path / "whole") and json.loads((tmp_path / "run" / "run.json").read_text())["resumed_at"] > 0
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model" / "model.safetensors").read_bytes()
    other = subprocess.run([*line(tmp_path / "run"), "--seed", "3"], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=120)
    assert other.returncode == 2 and other.stderr.strip().startswith("seed=3: the run in") and len(other.stderr.strip().splitlines()) == 1
