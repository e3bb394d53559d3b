"Weights shared out: the same as data parallelism and as one process, files that fit all of them, what is refused."
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.families_on_two import FAMILIES
from tests.players_on_many import Players
from tests.sharded_on_many import GRID, HALF, LINE, POISONED, RUNS, STEPS, half_of
from tests.toy_training import RECIPE, Points, result
from tests.train_on_two import generator_recipe, write_codes
from vgnb.core import BadInput, load_json
from vgnb.processes import Processes
from vgnb.saved import load_model, load_tensors
from vgnb.training.checkpoints import newest, read_checkpoint
from vgnb.training.commands import GeneratorOptions, build_generator, train
from vgnb.training.run_folder import Run
from vgnb.training.sharded import Sharding, asked_sharding, check_sharded
from vgnb.training.trackers import read_log
from vgnb.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "scripts/configs").glob("*.yaml"))
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
QUICK = ("one", "line", "twice", "line-one")

# After 5 Adam steps of 1e-3 in fp32; sums are taken in another order. Measured: 7e-7.
TOLERANCE = 5e-6


def make(root: Path, names):
    command = [sys.executable, "-m", "tests.sharded_on_many", root, *names]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr, done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    "Runs on one process and on two."
    root = tmp_path_factory.mktemp("shared")
    make(root, QUICK)
    return root


@pytest.fixture(scope="module")
def all_runs(runs) -> Path:
    make(runs, [name for name in RUNS if name not in QUICK])
    return runs


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    files, _ = read_checkpoint(newest(folder / "checkpoints"))
    return {f"{file}.{k}": t for file, entries in files.items() for k, t in entries.items()}


def assert_same(a: Path, b: Path, tolerance: float = TOLERANCE):
    "Two runs end with the same weights, averages and memory of the optimizer, under the same names."
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys() and len(first) > 60
    for k in first: torch.testing.assert_close(second[k], first[k], rtol=0, atol=tolerance, msg=k)


@pytest.mark.parametrize("name", ["line", "line-one"])
def test_shared_out_is_one_process(runs, name):
    "Also where one half of the run is shared out and the other is not: what is read is the same."
    assert_same(runs / "one", runs / name)


def test_the_tolerance_would_see_a_missing_share(runs):
    "Weights are far from where half of the steps left them, measured in tolerances."
    paths = half_of(runs / "twice"), newest(runs / "one" / "checkpoints")
    before, after = (read_checkpoint(path)[0]["model.generator"] for path in paths)
    assert max((before[k] - after[k]).abs().max() for k in before) > 100 * TOLERANCE


def test_resumed_is_uninterrupted_bit_for_bit(runs): assert result(runs / "line") == result(runs / "twice")


@pytest.mark.parametrize("name", ["line", "twice"])
def test_loss_norm_and_guard_are_the_same_numbers(runs, name):
    "The norm is that of all pieces, and the poisoned step is skipped everywhere."
    a, b = (read_log(runs / n / "log.jsonl") for n in ("one", name))
    assert [line["step"] for line in b] == list(range(1, STEPS + 1))
    for one, many in zip(a, b, strict=True):
        assert one.keys() == many.keys() and many["skipped"] == int(many["step"] > POISONED)
        if one["step"] == POISONED + 1: continue                     # no numbers there
        for k in ("loss", "norm.generator"): assert many[k] == pytest.approx(one[k], rel=1e-4), (k, many["step"])
    assert HALF > POISONED and min(line["norm.generator"] for line in a if line["step"] != POISONED + 1) > 0.1


def test_a_sum_of_norms_is_that_of_whole_tensors(runs):
    "RandAR's own measure, by which its recipes skip steps: of pieces it would be too small."
    one, line = (load_json(runs / name / "clipped.json") for name in ("one", "line"))
    assert line == pytest.approx(one, rel=1e-5) and one > 100


def test_what_is_left_is_the_same_plain_model(runs):
    a, b = (runs / name / "model" for name in ("one", "line"))
    assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())
    for name in ("model", "ema"):
        one, many = (load_tensors(folder / f"{name}.safetensors") for folder in (a, b))
        assert {k: (t.shape, t.dtype) for k, t in one.items()} == {k: (t.shape, t.dtype) for k, t in many.items()}
    assert type(load_model(b)) is type(load_model(a))


@pytest.mark.full
@pytest.mark.parametrize("name", ["ddp", "open", "grid", "recompute", "one-line", "line-ddp3"])
def test_however_it_is_shared_out(all_runs, name): assert_same(all_runs / "one", all_runs / name)


@pytest.mark.full
def test_a_line_is_data_parallelism(all_runs):
    "The same sums: two addends have one order. Norms are put together from other parts."
    assert_same(all_runs / "ddp", all_runs / "line", 1e-6)


@pytest.mark.full
def test_half_precision_is_the_same_half_precision(all_runs):
    "bf16 by autocast in both, so that no norm and no embedding is rounded in one only."
    assert_same(all_runs / "bf16-ddp", all_runs / "bf16-line", 1e-5)


@pytest.mark.full
def test_a_resumed_grid_is_uninterrupted_bit_for_bit(all_runs):
    assert result(all_runs / "grid") == result(all_runs / "grid-twice")


@pytest.mark.full
def test_every_family_can_be_shared_out(tmp_path):
    "Gradients are those of the halves, averaged, to fp32."
    done = subprocess.run([sys.executable, "-m", "tests.families_on_two", str(tmp_path)], cwd=ROOT, env=ENV,
                          capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr, done.stderr
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert found.keys() == FAMILIES.keys()
    for name, differences in found.items(): assert max(differences.values()) < 1e-5, name


def launched(monkeypatch, **settings):
    for name in [n for n in os.environ if n.startswith(("FSDP_", "PARALLELISM_CONFIG_"))]: monkeypatch.delenv(name)
    for name, value in settings.items(): monkeypatch.setenv(name, value)


def test_what_the_launcher_was_told(monkeypatch):
    launched(monkeypatch, **GRID)
    assert asked_sharding(4) == Sharding(pieces=2, replicas=2)
    launched(monkeypatch, **LINE, ACCELERATE_USE_PARALLELISM_CONFIG="false", FSDP_RESHARD_AFTER_FORWARD="false")
    assert asked_sharding(4) == Sharding(pieces=4, reshard=False) and asked_sharding(1) is None
    launched(monkeypatch, ACCELERATE_USE_FSDP="false")
    assert asked_sharding(4) is None


@pytest.mark.parametrize("settings, words", [
    ({"FSDP_VERSION": "1"}, "FSDP_VERSION='1': must be 2"),
    ({"FSDP_OFFLOAD_PARAMS": "true"}, "FSDP_OFFLOAD_PARAMS='true': must be false"),
    ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "FSDP_ACTIVATION_CHECKPOINTING='true': must be false.*recompute"),
    ({"FSDP_IGNORED_MODULES": "head"}, "FSDP_IGNORED_MODULES='head': must be empty"),
    ({"PARALLELISM_CONFIG_TP_SIZE": "2"}, "PARALLELISM_CONFIG_TP_SIZE='2': must be 1: tensors"),
    ({"PARALLELISM_CONFIG_CP_SIZE": "2"}, "PARALLELISM_CONFIG_CP_SIZE='2': must be 1: contexts"),
    ({"PARALLELISM_CONFIG_SP_SIZE": "2"}, "PARALLELISM_CONFIG_SP_SIZE='2': must be 1: sequences"),
    ({"PARALLELISM_CONFIG_DP_SHARD_SIZE": "4"}, "DP_SHARD_SIZE=4: times .*REPLICATE_SIZE=2 .* 4$"),
    ({"PARALLELISM_CONFIG_DP_SHARD_SIZE": "1"}, "DP_SHARD_SIZE=1: must be at least 2.*ddp.yaml"),
    ({"ACCELERATE_USE_FSDP": "false"}, "DP_SHARD_SIZE=2: must be 1 without FSDP.*hsdp.yaml")])
def test_what_is_not_followed_is_refused(monkeypatch, tmp_path, settings, words):
    launched(monkeypatch, **GRID | settings)
    with pytest.raises(BadInput, match=words): asked_sharding(4)


def test_refused_before_anything_is_written(monkeypatch, tmp_path):
    launched(monkeypatch, **LINE | {"FSDP_VERSION": "1"})
    with pytest.raises(BadInput, match="FSDP_VERSION"):
        Trainer(Players(Processes()), Points(), RECIPE, tmp_path / "run", Run(progress=False))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"])
def test_other_engines_are_refused(monkeypatch, name):
    monkeypatch.setenv(name, "true")
    with pytest.raises(BadInput, match=f"{name}='true': must be false.*fsdp2.yaml"): Processes()


def test_what_cannot_be_shared_out_is_named(monkeypatch, tmp_path):
    two = Sharding(pieces=2)
    with pytest.raises(BadInput, match=": must be false for a Players: launch with ddp.yaml"):
        check_sharded(two, Players(Processes()), Run())
    write_codes(tmp_path / "codes")
    recipe, task, _ = build_generator(generator_recipe(tmp_path / "codes"))
    check_sharded(two, task, Run())
    with pytest.raises(BadInput, match="compile=True"): check_sharded(two, task, Run(compile=True))

    class Pictures:
        def check(self, *_): pass

    monkeypatch.setattr("vgnb.training.commands.asked_sharding", lambda world: two)
    monkeypatch.setattr(GeneratorOptions, "previews", lambda self: ((5, Pictures()),))
    with pytest.raises(BadInput, match="preview_every=5: must be 0"):
        train(GeneratorOptions(recipe, tmp_path / "run", run=Run(progress=False)))


# The launcher's files

def environment(path: Path) -> tuple[dict[str, str], int]:
    "(what the launcher would set, processes), by its own parser."
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env
    args = launch_command_parser().parse_args(["--config_file", str(path), "--main_process_port", "0", "train.py"])
    args, *_ = _validate_launch_command(args)
    return prepare_multi_gpu_env(args), args.num_processes


@pytest.mark.parametrize("path", CONFIGS, ids=[p.stem for p in CONFIGS])
def test_a_launch_file_means_what_it_says(monkeypatch, path):
    launched(monkeypatch)
    found, processes = environment(path)
    kept = ("FSDP_", "PARALLELISM_CONFIG_", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_PARALLELISM")
    launched(monkeypatch, **{k: v for k, v in found.items() if k.startswith(kept)})
    sizes = {"one_gpu": 1, "ddp": 8, "fsdp2": 8, "hsdp": 16, "two_nodes": 16}
    sharded = {"fsdp2": Sharding(pieces=8), "hsdp": Sharding(pieces=8, replicas=2)}
    assert processes == sizes[path.stem] and asked_sharding(processes) == sharded.get(path.stem)
    assert found["ACCELERATE_MIXED_PRECISION"] == "no"               # the recipe says it


@pytest.mark.parametrize("path", CONFIGS, ids=[p.stem for p in CONFIGS])
def test_a_launch_file_is_up_to_date(path):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.to_fsdp2 import convert_config_to_fsdp2
    load_config_from_file(str(path))
    assert convert_config_to_fsdp2(yaml.safe_load(path.read_text())) == yaml.safe_load(path.read_text())
    readme = (ROOT / "README.md").read_text()
    assert path.name in readme and path.read_text().startswith("# ")


def test_launch_files_are_all_there():
    assert {p.stem for p in CONFIGS} == {"one_gpu", "ddp", "fsdp2", "hsdp", "two_nodes"}


def command(codes: Path, out: Path) -> list[str]:
    "A short training by the script."
    return ["scripts/train_generator.py", "shapes-generator", "--data", str(codes), "--out", str(out), "--steps", "4",
            "--batch", "16", "--precision", "fp32", "--model.layers", "2", "--model.dim", "32", "--progress", "False"]


@pytest.mark.full
def test_by_torchrun(tmp_path):
    "The script itself, as processes of their own: no warning, and an end in good order."
    write_codes(tmp_path / "codes")
    many = [sys.executable, "scripts/launch.py", "--nproc-per-node", "2"]
    done = subprocess.run([*many, *command(tmp_path / "codes", tmp_path / "run")], cwd=ROOT, env=ENV | LINE,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr and re.search("finished, 4 steps", done.stdout)
    assert load_model(tmp_path / "run" / "model").config.layers == 2


@pytest.mark.gpu
def test_by_accelerate(tmp_path):
    "As many processes as there are GPUs; one of them holds all."
    write_codes(tmp_path / "codes")
    many = ["--config_file", "scripts/configs/fsdp2.yaml", "--num_processes", str(torch.cuda.device_count())]
    words = [sys.executable, "-m", "accelerate.commands.launch", *many, *command(tmp_path / "codes", tmp_path / "run")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_model(tmp_path / "run" / "model").config.layers == 2
