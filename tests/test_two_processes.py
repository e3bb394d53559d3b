"Two processes train to the weights that one process gets on the joined batch, and extract the same bytes."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vgnb.data.codes import CodeStore
from vgnb.saved import load_tensors
from vgnb.training.checkpoints import checkpoints, read_checkpoint
from vgnb.training.trackers import read_log

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

# After 14 Adam steps of 1e-3 in fp32, on weights of order 0.1; measured: 1e-5 for the codebook, 2e-8 for the generator.
TOLERANCE = 1e-4


def run(command, **kw):
    words = [str(c) for c in command]
    return subprocess.run(words, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=240, **kw)


pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    for launch, name in ((TWO, "two"), ([sys.executable], "one")):
        done = run([*launch, "-m", "tests.train_on_two", root / name])
        assert done.returncode == 0, done.stderr[-3000:]
    return root


def test_there_were_two(runs):
    assert json.loads((runs / "two" / "world.json").read_text()) == 2
    assert json.loads((runs / "one" / "world.json").read_text()) == 1
    for name in ("tokenizer", "generator"):
        folder = runs / "two" / name
        _, state = read_checkpoint(checkpoints(folder / "checkpoints")[0])
        steps = [line["step"] for line in read_log(folder / "log.jsonl")]
        assert json.loads((folder / "run.json").read_text())["world"] == 2 == state["world"]
        assert steps == list(range(1, 15))                                # written by one of them


@pytest.mark.parametrize("name,other", [("tokenizer", "two"), ("generator", "two"), ("generator", "halves")])
@pytest.mark.parametrize("weights", ["model", "ema"])
def test_same_weights(runs, name, other, weights):
    """The tokenizer's run has unquantized steps, k-means over both processes, and revivals; `halves` is one process
    with two micro-batches."""
    folders = runs / "one" / name, runs / "one" / other if other == "halves" else runs / other / name
    a, b = (load_tensors(folder / "model" / f"{weights}.safetensors") for folder in folders)
    assert a.keys() == b.keys()
    for k in a:
        if k == "quantizer.usage.recent":                                 # the codes that all processes have seen
            assert (a[k] == b[k]).float().mean() > 0.99                   # the weights differ in their last bits
            continue
        assert a[k].dtype.is_floating_point, k
        assert (a[k] - b[k]).abs().max() <= TOLERANCE, k


def test_the_tolerance_would_see_a_wrong_mean(runs):
    "The weights moved by much more than the tolerance during the run."
    a = load_tensors(runs / "one" / "generator" / "model" / "model.safetensors")
    assert float(a["head.weight"].abs().max()) > 50 * TOLERANCE           # it starts at zero


@pytest.mark.parametrize("name,key", [("tokenizer", "tokenizer.loss"), ("generator", "loss")])
def test_same_losses(runs, name, key):
    one, two = ([line[key] for line in read_log(runs / r / name / "log.jsonl")] for r in ("one", "two"))
    torch.testing.assert_close(torch.tensor(one), torch.tensor(two), rtol=1e-5, atol=1e-6)


def test_two_extract_the_same_bytes(runs):
    one, two = ({p.name: p.read_bytes() for p in (runs / r / "extracted").iterdir()} for r in ("one", "two"))
    assert one == two and len(one) == 9
    assert len(CodeStore(runs / "two" / "extracted")) == 70


def test_an_error_on_two_processes_is_one_line_each(tmp_path):
    done = run([*TWO, "scripts/train_tokenizer.py", "shapes-tokenizer", "--batch", "33", "--out", tmp_path / "t"])
    assert done.returncode != 0
    assert "batch=33: must be a multiple of processes x accumulate = 2 x 1" in done.stderr
    assert "Traceback (most recent" not in done.stderr.split("torch/distributed")[0]
