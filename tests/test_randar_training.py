"What RandAR's training adds: rates by name, the published skip rule, mirrors, previews, trackers, YAML configurations."
import importlib.util
import json
import math
import shutil
import sys
import types
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import vgnb.training.run_folder
from tests.toy_training import RECIPE, Pair, Points, result, train as train_toy
from tests.train_on_two import generator_recipe, write_codes
from vgnb.core import BadInput, Mismatch
from vgnb.draws import Keyed
from vgnb.generators.generator import Cond, Generator, Loss
from vgnb.kinds import to_json
from vgnb.saved import save_model
from vgnb.tokenizers.quantizers import VectorConfig
from vgnb.tokenizers.vqgan import VQGAN, VQGANConfig
from vgnb.training.checkpoints import checkpoints, mirror_checkpoint, newest, verify
from vgnb.training.commands import GeneratorOptions, TrainOptions, parse, train
from vgnb.training.optimizers import clipped_sum, gradient_norm
from vgnb.training.previews import teacher_forced
from vgnb.training.randar_yaml import published_rate, published_recipe
from vgnb.training.recipes import Optim, Rate, rate_at
from vgnb.training.run_folder import Run, mirrored
from vgnb.training.tasks import Phase, Task
from vgnb.training.trackers import PROGRAMS, read_log, trackers
from vgnb.training.trainer import Trainer

# Rates

RATES = {   # the published call, the peak rate, the length of the run, {step: recorded rate}
    "cosine": (
        dict(name="cosine", num_warmup_steps=50_000, min_lr_ratio=0.05, num_cycles=0.5), 4e-4, 360_000,
        {0: 0.0, 1: 8e-9, 25_000: 2e-4, 50_000: 4e-4, 100_000: 0.0003761258570674706, 205_000: 2.1e-4,
         300_000: 5.405494617061755e-05, 360_000: 2e-5}),
    "cosine by iterations": (
        dict(type="cosine", warm_up_iters=50_000), 4e-4, 360_000,
        {50_001: 0.0003999999999902434, 359_999: 2.0000000009756635e-05}),
    "linear": (
        dict(name="linear", num_warmup_steps=10), 1e-4, 100,
        {5: 5e-5, 50: 5.555555555555556e-05, 99: 1.1111111111111112e-06, 100: 0.0, 120: 0.0}),
    "constant": (dict(name="constant"), 1e-4, 1, {0: 1e-4, 10: 1e-4}),
    "constant with warmup": (
        dict(name="constant_with_warmup", num_warmup_steps=10), 1e-4, 1, {0: 0.0, 9: 9e-5, 11: 1e-4}),
    "cosine with restarts": (
        dict(name="cosine_with_restarts", num_warmup_steps=10, num_cycles=3), 1e-4, 100,
        {25: 5e-5, 39: 2.7390523158633e-07, 40: 1e-4, 41: 9.972609476841368e-05, 70: 1e-4, 99: 2.7390523158633e-07,
         100: 0.0}),
    "polynomial": (
        dict(name="polynomial", num_warmup_steps=10, power=2.0), 1e-4, 100,
        {50: 3.093333333333334e-05, 100: 9.999999999999998e-08, 101: 9.999999999999998e-08}),
    "piecewise constant": (
        dict(name="piecewise_constant", step_rules="1:10,0.1:20,0.01:30,0.005"), 1e-4, 1,
        {0: 1e-4, 9: 1e-4, 10: 1e-5, 29: 1e-6, 30: 5e-7, 100: 5e-7})}


@pytest.mark.parametrize("name", RATES)
def test_every_published_rate(name):
    spec, lr, steps, recorded = RATES[name]
    rate = published_rate(spec, lr)
    assert {s: lr * rate_at(rate, s, steps) for s in recorded} == pytest.approx(recorded, rel=1e-9, abs=0)


SHAPES = {
    "constant": Rate(),
    "linear": Rate("linear", 5),
    "cosine": Rate("cosine", 5, floor=0.1),
    "restarts": Rate("cosine_with_restarts", 5, waves=4, floor=0.1),
    "polynomial": Rate("polynomial", 5, power=3, floor=0.2),
    "piecewise": Rate("piecewise_constant", rules="1:10,0.5:50,0.1"),
    "steps": Rate("step", 5, floor=0.3),
    "held": Rate("cosine", 5, hold=40)}


@pytest.mark.parametrize("name", SHAPES)
def test_rates_stay_between_floor_and_one(name):
    rate = SHAPES[name]
    values = [rate_at(rate, s, 100) for s in range(140)]
    assert all(0 <= v <= 1 for v in values)
    assert values[:rate.warmup] == [s / 5 for s in range(rate.warmup)]
    assert values[rate.warmup] == 1
    assert all(v >= rate.floor - 1e-12 for v in values[rate.warmup:])
    assert len(set(values[100:])) == 1                              # nothing moves after the end


@pytest.mark.parametrize("bad, words", [
    (dict(shape="stairs"), "rate.shape='stairs'"),
    (dict(shape="piecewise_constant"), "rate.rules=''"),
    (dict(rules="1"), "belong to the shape piecewise_constant"),
    (dict(shape="piecewise_constant", rules="1:20,0.5:10,0.1"), "rising steps"),
    (dict(shape="piecewise_constant", rules="1:x,0.1"), "rate.rules='1:x,0.1'"),
    (dict(shape="piecewise_constant", rules="1:10,0.5:20"), "then a last multiplier"),
    (dict(shape="piecewise_constant", rules="-1:10,0.1"), "rate.rules"),
    (dict(shape="polynomial", power=0), "rate.power=0: must be above 0"),
    (dict(shape="cosine", waves=math.nan), "rate.waves")])
def test_wrong_rates(bad, words):
    with pytest.raises(BadInput) as e: Rate(**bad)
    assert words in str(e.value)


# Skipped steps

class Steep(Task):
    "Some weights; their gradients are whatever `slopes(step)` says."
    def __init__(self, slopes, tensors=1):
        weights = {f"w{i}": torch.nn.Parameter(torch.ones(2)) for i in range(tensors)}
        self.modules = {"net": torch.nn.ParameterDict(weights)}
        self.slopes = slopes

    def phases(self, step): return (Phase.of("net", "net"),)

    def loss(self, phase, batch, carry, draws, at):
        weights = self.modules["net"].values()
        return Loss(sum((w * torch.tensor([slope, 0.0])).sum() for w, slope in zip(weights, self.slopes(at.step))), {})


def stepped(folder, slopes, tensors=1, **kw):
    "Which of the first six steps moved the weights."
    task = Steep(slopes, tensors)
    seen = [torch.ones(2)]

    def keep(trainer): seen.append(task.modules["net"]["w0"].detach().clone())

    recipe = replace(RECIPE, steps=6, ema=0, rate=Rate(), **kw)
    run = Run(progress=False, tracker="none", max_skips=99)
    Trainer(task, Points(), recipe, folder, run, every=((1, keep),)).fit()
    return [not torch.equal(a, b) for a, b in zip(seen, seen[1:])]


def test_spikes_are_skipped_after_the_first_steps(tmp_path):
    "Norm 1 but for steps 1 and 4; the first two steps are free."
    def slopes(step): return [100.0 if step in (1, 4) else 1.0]

    optim = Optim(lr=0.1, skip_norm=10, skip_from=2)
    assert stepped(tmp_path, slopes, optim=optim) == [True, True, True, True, False, True]


def test_the_published_rule_lets_spikes_pass_and_skips_even_gradients(tmp_path):
    "Nine tensors: all alike (sum of clipped norms 3), or one alone (1); the limit is 2. Not a number is never taken."
    def slopes(step):                                                # norms 3, 1e4, 3, 3, 1e4, nan
        if step == 5: return [math.nan] * 9
        if step in (1, 4): return [1e4] + [0.0] * 8
        return [1.0] * 9

    low, high = Optim(lr=0.1, skip_norm=2, skip_from=1), Optim(lr=0.1, skip_norm=10)
    theirs = stepped(tmp_path / "theirs", slopes, tensors=9, optim=low, compat="upstream")
    assert theirs == [True, True, False, False, True, False]
    assert stepped(tmp_path / "ours", slopes, tensors=9, optim=low) == [True, False, False, False, False, False]
    assert stepped(tmp_path / "higher", slopes, tensors=9, optim=high) == [True, False, True, True, False, False]


def test_clipped_sum_is_what_clipping_leaves():
    params = [torch.nn.Parameter(torch.zeros(3)) for _ in range(4)]
    for i, p in enumerate(params[:3]): p.grad = torch.full((3,), float(i + 1))
    found = clipped_sum(params, gradient_norm(params), 1.0)
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    torch.testing.assert_close(found, sum(p.grad.norm() for p in params[:3]))
    assert clipped_sum([params[3]], torch.zeros(()), 1.0) == 0


# Mirrors

def mirrored_run(folder, slow, until=None, recipe=RECIPE, **kw):
    "The trainer of a toy run with a mirror below `slow`, carried on up to step `until`."
    run = Run(save_every=40, progress=False, tracker="none", mirror=slow, **kw)
    trainer = Trainer(Pair(), Points(), recipe, folder, run)
    trainer.fit(until)
    return trainer


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    "The result of the run that nothing interrupts."
    folder = tmp_path_factory.mktemp("straight")
    train_toy(folder)
    return result(folder)


@pytest.mark.full
def test_a_run_that_loses_its_disk_twice_ends_the_same(tmp_path, straight):
    for n, until in enumerate((90, 200, None)):
        folder = tmp_path / f"node{n}" / "run"
        trainer = mirrored_run(folder, tmp_path / "slow", until)
        shutil.rmtree(folder / "checkpoints")
    there = mirrored("run", trainer.run)
    assert [p.name for p in checkpoints(there)] == ["step-000000300", "step-000000280"]
    assert result(there.parent) == straight


@pytest.mark.full
def test_a_mirror_that_fails_is_a_warning(tmp_path, straight, capsys, monkeypatch):
    calls = []

    def sometimes(*a, **k):
        calls.append(a)
        if len(calls) < 4: raise OSError(28, "No space left on device")
        return mirror_checkpoint(*a, **k)

    monkeypatch.setattr(vgnb.training.run_folder, "mirror_checkpoint", sometimes)
    mirrored_run(tmp_path / "run", tmp_path / "slow")
    assert result(tmp_path / "run") == straight
    assert capsys.readouterr().err.count("was not mirrored") == 3
    assert newest(tmp_path / "slow" / "run" / "checkpoints").name == "step-000000300"


def test_the_copy_is_all_or_nothing(tmp_path, monkeypatch):
    "Cut after each file in turn, the mirror holds the old checkpoint, whole."
    train_toy(tmp_path / "run", until=20)
    old, new = sorted(checkpoints(tmp_path / "run" / "checkpoints"))
    slow = tmp_path / "slow"
    mirror_checkpoint(old, slow, keep=1)
    copy, files = shutil.copyfile, len(list(new.iterdir()))
    assert files >= 5

    def cut_at(n):
        "A copy that is killed in the middle of the n-th file."
        left = [n]

        def cut(a, b):
            left[0] -= 1
            if left[0] >= 0: return copy(a, b)
            Path(b).write_bytes(Path(a).read_bytes()[:10])
            raise KeyboardInterrupt
        return cut

    for n in range(files):
        monkeypatch.setattr(shutil, "copyfile", cut_at(n))
        with pytest.raises(KeyboardInterrupt): mirror_checkpoint(new, slow, keep=1)
        assert [p.name for p in slow.iterdir()] == [old.name] and verify(slow / old.name)
    monkeypatch.setattr(shutil, "copyfile", copy)
    mirror_checkpoint(new, slow, keep=1)
    assert [p.name for p in slow.iterdir()] == [new.name]


def test_which_checkpoint_is_taken(tmp_path):
    "The mirror's if it is ahead, the folder's own if not; a damaged one is passed over."
    slow = tmp_path / "slow"
    mirrored_run(tmp_path / "run", slow, 80)
    shutil.copytree(tmp_path / "run", tmp_path / "stale" / "run")
    mirrored_run(tmp_path / "run", slow, 160)
    behind = mirrored_run(tmp_path / "stale" / "run", slow, 160)
    assert checkpoints(behind.folder.saves)[0].name == "step-000000160" and behind.step == 160

    (slow / "run" / "checkpoints" / "step-000000160" / "model.net.safetensors").write_bytes(b"damaged")
    assert mirrored_run(tmp_path / "other" / "run", slow, 130).step == 130                           # from 120
    assert mirrored_run(tmp_path / "third" / "run", slow, 130, resume="resume").step == 130


def test_which_mirror_is_refused(tmp_path):
    "Another recipe's, a fresh run over an old one's, a file."
    slow = tmp_path / "slow"
    mirrored_run(tmp_path / "run", slow, 80)
    with pytest.raises(BadInput, match="mirror=.*holds checkpoints of a run called run"):
        mirrored_run(tmp_path / "fresh" / "run", slow, resume="fresh")
    with pytest.raises(Mismatch, match="batch=16"):
        mirrored_run(tmp_path / "new" / "run", slow, 10, replace(RECIPE, batch=16))
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="mirror"):
        Trainer(Pair(), Points(), RECIPE, tmp_path / "x", Run(mirror=tmp_path / "file"))


# Previews and trackers

def tiny_tokenizer(folder, codebook):
    "Save a random VQGAN."
    torch.manual_seed(0)
    config = VQGANConfig(VectorConfig(codebook), width=16, mults=(1, 2, 2), attention=(), z=8, groups=8)
    save_model(folder, VQGAN(config), config)


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    "Codes, and a tokenizer that might have made them."
    tmp = tmp_path_factory.mktemp("coded")
    write_codes(tmp / "codes")
    tiny_tokenizer(tmp / "tokenizer", 48)
    return tmp


def test_previews_come_every_so_often_and_leave_no_trace(coded, tmp_path):
    recipe, run = generator_recipe(coded / "codes"), Run(progress=False)
    train(TrainOptions(recipe, tmp_path / "blind", run=run))
    train(GeneratorOptions(
        recipe, tmp_path / "seen", run=run, preview_every=5, preview_tokenizer=coded / "tokenizer", preview_count=4))
    made = sorted((tmp_path / "seen" / "previews").iterdir())
    assert [p.name for p in made] == ["step-000000005.png", "step-000000010.png"]
    assert all(Image.open(p).width > 200 for p in made)
    seen, blind = (tmp_path / name / "model" / "model.safetensors" for name in ("seen", "blind"))
    assert seen.read_bytes() == blind.read_bytes()


def test_previews_ask_for_the_right_tokenizer(coded, tmp_path):
    tiny_tokenizer(tmp_path / "other", 16)
    asked = dict(preview_every=5, preview_tokenizer=coded / "tokenizer")
    recipe = generator_recipe(coded / "codes")
    for wrong, words in (
            (dict(preview_tokenizer=None), "preview_tokenizer=None: must be the model folder"),
            (dict(preview_tokenizer=tmp_path / "other"), "must be the one that made the codes"),
            (dict(preview_every=-1), "preview_every=-1")):
        with pytest.raises(BadInput) as e: train(GeneratorOptions(recipe, tmp_path / "run", **asked | wrong))
        assert words in str(e.value)
    assert not (tmp_path / "run").exists()
    dry = GeneratorOptions(recipe, tmp_path / "run", dry_run=True, **asked)
    assert train(dry).reason == "dry run" and not (tmp_path / "run").exists()


class Echo(Generator):
    "Repeats the true code of each cell asked for."
    vocab = (48,)
    traits = frozenset({"any_order", "cached"})
    columns = "ordered"
    plans = "order"

    def logits(self, codes, cond, plan=None, *, grid=None):
        self.plan = plan
        asked = codes[..., 0].gather(1, plan.perm)
        return (torch.nn.functional.one_hot(asked, 48).float(),)


def test_any_order_generators_are_put_back_in_place():
    "Whatever the order, the picture is the stored one; every sample has an order of its own, one cell at a time."
    codes, echo = torch.randint(48, (3, 16, 1)), Echo()
    cond = Cond(labels=torch.zeros(3, dtype=torch.long))
    assert torch.equal(teacher_forced(echo, codes, cond, Keyed(0)), codes)
    perm, counts = echo.plan
    assert counts == [1] * 16 and not torch.equal(perm[0], perm[1])
    assert torch.equal(perm.sort(1).values, torch.arange(16).expand(3, -1))


class FakeWandb(types.ModuleType):
    "Writes down what it is called with."
    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.calls = []
        self.config = self
        self.settings = {}

    def update(self, settings, allow_val_change): self.settings = settings

    def init(self, **kw):
        self.calls.append(kw)
        return self

    def log(self, values, step): self.calls.append(step)

    def finish(self): self.calls.append("done")


@pytest.mark.parametrize("name, mode", [("wandb-offline", "offline"), ("wandb", None)])
def test_wandb(tmp_path, monkeypatch, name, mode):
    "The tracker speaks to wandb as it should, by name, and says offline."
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    Trainer(Pair(), Points(), RECIPE, tmp_path / name, Run(progress=False, tracker=name, log_every=5)).fit(10)
    first, *rest = fake.calls
    assert (first.get("mode"), first["name"], first["resume"]) == (mode, name, "allow") and rest == [5, 10, "done"]
    assert first["project"] == "vgnb" and len(first["id"]) == 16
    assert fake.settings["optim.lr"] == RECIPE.optim.lr and fake.settings["steps"] == RECIPE.steps


class FakeWriter:
    "Stands for TensorBoard's."
    made = []

    def __init__(self, folder, **kw):
        self.folder, self.kw, self.lines = folder, kw, []
        self.made.append(self)

    def add_scalar(self, name, value, global_step, **kw): self.lines.append((name, value, global_step))
    def flush(self): pass
    def close(self): self.lines.append("closed")


def test_tensorboard_goes_on_where_the_checkpoint_is(tmp_path, monkeypatch):
    "Event files lie in the run folder; what was logged after the checkpoint is dropped; NaN is left out."
    package, writer = types.ModuleType("tensorboard"), types.ModuleType("torch.utils.tensorboard")
    package.__spec__, writer.SummaryWriter, FakeWriter.made = ModuleSpec("tensorboard", None), FakeWriter, []
    monkeypatch.setitem(sys.modules, "tensorboard", package)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", writer)
    monkeypatch.setattr(torch.utils, "tensorboard", writer, raising=False)
    run = Run(progress=False, tracker="tensorboard", log_every=5)
    for until in (10, 15): Trainer(Pair(), Points(), RECIPE, tmp_path / "run", run).fit(until)
    first, second = FakeWriter.made
    assert Path(first.folder) == tmp_path / "run" and (first.kw, second.kw) == ({"purge_step": 0}, {"purge_step": 10})
    logged = {(name, step) for name, _, step in first.lines[:-1]}
    assert {("net.loss", 5), ("net.loss", 10), ("lr", 10)} <= logged and first.lines[-1] == "closed"
    tracker = trackers["tensorboard"](tmp_path / "other", 0, RECIPE)
    tracker.log(3, {"loss": None, "lr": 0.5})
    assert FakeWriter.made[-1].lines == [("lr", 0.5, 3)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_is_accelerates_and_is_missed_by_name(name, monkeypatch):
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    assert name in LOGGER_TYPE_TO_CLASS and trackers[name].package == name
    monkeypatch.setattr("importlib.util.find_spec", lambda *a: None)
    with pytest.raises(BadInput, match=f"is not installed: pip install {name}"): Run(tracker=name)


def test_settings_of_a_run_are_flat(tmp_path, monkeypatch):
    "Programs take scalars."
    told, settings = {}, {}
    class Plain:
        def __init__(self, run_name, **kw): told["name"] = run_name
        def store_init_configuration(self, values): settings.update(values)
        def log(self, values, step): told[step] = values
        def finish(self): told["finished"] = True

    import accelerate.tracking
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "trackio", Plain)
    tracker = trackers["trackio"](tmp_path / "my-run", 0, RECIPE)
    tracker.log(4, {"loss": 1.0, "bad": None})
    tracker.close()
    assert told["name"] == "my-run" and told[4] == {"loss": 1.0} and told["finished"]
    assert all(v is None or isinstance(v, (bool, int, float, str)) for v in settings.values())
    assert settings["optim.weight_decay"] == RECIPE.optim.weight_decay and settings["rate.warmup"] == 10


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_without_its_package_is_refused():
    assert trackers["wandb-offline"].package == "wandb"
    with pytest.raises(BadInput, match="is not installed: pip install wandb"): Run(tracker="wandb-offline")


# YAML

YAML = """
ar_model:
  target: RandAR.model.randar_gpt.RandARTransformer
  params:
    {n_layer: 2, n_head: 2, dim: 32, vocab_size: 48, block_size: 16, num_classes: 10, multiple_of: 16,
     position_order: random, num_inference_steps: 88}
tokenizer:
  target: RandAR.model.tokenizer.VQModel
  params: {codebook_size: 48}
accelerator: {gradient_accumulation_steps: 2, mixed_precision: 'no', log_with: nothing}
optimizer:
  {lr: 4e-4, weight_decay: 0.05, beta1: 0.9, beta2: 0.95, max_grad_norm: 1.0, skip_grad_iter: 100, skip_grad_norm: 10,
   amsgrad: true}
lr_scheduler: {type: cosine, warm_up_iters: 2, min_lr_ratio: 0.05, num_cycles: 0.5}
max_iters: 4
global_batch_size: 8
global_seed: 3
ema: True
"""


def test_a_published_configuration_trains(coded, tmp_path, capsys, monkeypatch):
    "From the file to a model, as its authors' command would: one line says what has no effect."
    monkeypatch.setenv("VGNB_PATHS_RUNS", str(tmp_path / "runs"))
    file = tmp_path / "randar_tiny.yaml"
    file.write_text(YAML)
    options = parse("generator", [str(file), "--data", str(coded / "codes")], "")
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1
    assert warnings[0].endswith("without effect: ema, optimizer.amsgrad, accelerator.log_with")

    r = options.recipe
    assert options.run.accumulate == 2 and options.out.name == "randar_tiny"
    assert (r.steps, r.batch, r.seed, r.precision) == (4, 8, 3, "fp32")
    assert (r.optim.lr, r.optim.skip_from) == (4e-4, 100)

    quiet = replace(options, run=replace(options.run, progress=False))
    assert train(quiet).finished and len(read_log(options.out / "log.jsonl")) == 1
    card = json.loads((options.out / "model" / "config.json").read_text())
    assert card["config"]["order"] == "random"
    assert card["recipe"]["rate"] == to_json(Rate("cosine", 2, floor=0.05))


def test_a_published_generator_is_no_tokenizer(tmp_path):
    (tmp_path / "randar_tiny.yaml").write_text(YAML)
    with pytest.raises(Mismatch, match="must be of kind tokenizer"):
        parse("tokenizer", [str(tmp_path / "randar_tiny.yaml")], "")


@pytest.mark.parametrize("change, words", [
    ({"optimizer": [1]}, "optimizer=[1]: must be a mapping"),
    ({"ar_model": {"params": {}}}, "must be a mapping with target and params"),
    ({"max_iters": "many"}, "recipe.max_iters='many'"),
    ({"max_iters": 2.5}, "must be a whole number"),
    ({"max_iters": True}, "recipe.max_iters=True"),
    ({"global_batch_size": 0}, "batch=0"),
    ({"lr_scheduler": {"type": "piecewise_constant"}}, "rate.rules")])
def test_wrong_configurations(change, words):
    with pytest.raises(BadInput) as e: published_recipe(yaml.safe_load(YAML) | change)
    assert words in str(e.value)
