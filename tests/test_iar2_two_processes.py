"Both stages of IAR2's tokenizer and its generator, on two processes: the weights of one process."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vgnb.saved import load_tensors
from vgnb.training.trackers import read_log

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
       "-m", "tests.pair_on_two"]
ONE = [sys.executable, "-m", "tests.pair_on_two"]
PARTS = ("first", "second", "generator")
TOLERANCE = 1e-4        # after at most 13 steps of 1e-3 in fp32, see tests/test_two_processes.py


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pair")
    for name, launch in (("one", ONE), ("two", TWO)):
        command = [*launch, str(root / name)]
        done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.full
def test_two_processes_are_one(runs):
    "Revivals, k-means and the semantic table's own steps included; the codes a process has seen are its own."
    assert [json.loads((runs / name / "world.json").read_text()) for name in ("one", "two")] == [1, 2]
    for part in PARTS:
        one, two = (runs / name / part for name in ("one", "two"))
        for weights in ("model", "ema"):
            a, b = (load_tensors(run / "model" / f"{weights}.safetensors") for run in (one, two))
            assert a.keys() == b.keys()
            differ = {k: float((a[k] - b[k]).abs().max()) for k in a if not k.endswith("usage.recent")}
            assert max(differ.values()) <= TOLERANCE, (part, weights, max(differ, key=differ.get), max(differ.values()))
        assert json.loads((two / "run.json").read_text())["world"] == 2

        logs = [read_log(run / "log.jsonl") for run in (one, two)]
        keys = [k for k in logs[0][-1] if k.endswith("loss")]
        one, two = ([[line.get(k, 0.0) for k in keys] for line in log] for log in logs)
        assert keys and len(one) > 4
        torch.testing.assert_close(torch.tensor(one), torch.tensor(two), rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_the_tolerance_would_see_another_table(runs):
    "Every table moved by much more during the second stage."
    before, after = (load_tensors(runs / "two" / part / "model" / "model.safetensors") for part in ("first", "second"))
    assert float((after["quantizer.semantic.table"] - before["quantizer.table"]).abs().max()) > 20 * TOLERANCE
