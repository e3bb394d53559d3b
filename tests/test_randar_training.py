"What RandAR's training adds: rates by name, the published skip rule, mirrors, previews, trackers, YAML configurations."
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
from PIL import Image

from tests.toy_training import RECIPE, Pair, Points, result, train as train_toy
from tests.train_on_two import generator_recipe, write_codes
from vgnb.core import BadInput, Mismatch
from vgnb.generators.generator import Loss
from vgnb.tokenizers.quantizers import VectorConfig
from vgnb.tokenizers.vqgan import VQGAN, VQGANConfig
from vgnb.training.checkpoints import checkpoints, mirror_checkpoint, newest, verify
from vgnb.saved import save_model
from vgnb.training.commands import TrainOptions, parse, train
from vgnb.training.randar_yaml import published_rate, published_recipe
from vgnb.training.optimizers import clipped_sum, gradient_norm
from vgnb.training.recipes import Optim, Rate, rate_at
from vgnb.kinds import to_json
from vgnb.training.tasks import Phase
from vgnb.training.trainer import Run, Trainer, mirrored, read_log, trackers


# Rates

RATES = [   # the published call, the length of the run, {step: recorded rate}
    (dict(name="cosine", num_warmup_steps=50_000, min_lr_ratio=0.05, num_cycles=0.5), 4e-4, 360_000, {0: 0.0, 1: 8e-9, 25_000: 2e-4, 50_000: 4e-4, 100_000: 0.0003761258570674706, 205_000: 2.1e-4, 300_000: 5.405494617061755e-05, 360_000: 2e-5}),
    (dict(type="cosine", warm_up_iters=50_000), 4e-4, 360_000, {50_001: 0.0003999999999902434, 359_999: 2.0000000009756635e-05}),
    (dict(name="linear", num_warmup_steps=10), 1e-4, 100, {5: 5e-5, 50: 5.555555555555556e-05, 99: 1.1111111111111112e-06, 100: 0.0, 120: 0.0}),
    (dict(name="constant"), 1e-4, 1, {0: 1e-4, 10: 1e-4}),
    (dict(name="constant_with_warmup", num_warmup_steps=10), 1e-4, 1, {0: 0.0, 9: 9e-5, 11: 1e-4}),
    (dict(name="cosine_with_restarts", num_warmup_steps=10, num_cycles=3), 1e-4, 100, {25: 5e-5, 39: 2.7390523158633e-07, 40: 1e-4, 41: 9.972609476841368e-05, 70: 1e-4, 99: 2.7390523158633e-07, 100: 0.0}),
    (dict(name="polynomial", num_warmup_steps=10, power=2.0), 1e-4, 100, {50: 3.093333333333334e-05, 100: 9.999999999999998e-08, 101: 9.999999999999998e-08}),
    (dict(name="piecewise_constant", step_rules="1:10,0.1:20,0.01:30,0.005"), 1e-4, 1, {0: 1e-4, 9: 1e-4, 10: 1e-5, 29: 1e-6, 30: 5e-7, 100: 5e-7})]


@pytest.mark.parametrize("spec,lr,steps,recorded", RATES, ids=lambda v: v.get("name", v.get("type", "")) if isinstance(v, dict) else "")
def test_every_published_rate(spec, lr, steps, recorded):
    rate = published_rate(spec, lr)
    assert {s: lr * rate_at(rate, s, steps) for s in recorded} == pytest.approx(recorded, rel=1e-9, abs=0)


@pytest.mark.parametrize("rate", [Rate(), Rate("linear", 5), Rate("cosine", 5, floor=0.1), Rate("cosine_with_restarts", 5, waves=4, floor=0.1), Rate("polynomial", 5, power=3, floor=0.2),
                                  Rate("piecewise_constant", rules="1:10,0.5:50,0.1"), Rate("cosine", 5, hold=40)], ids=lambda r: f"{r.shape}{r.hold or ''}")
def test_rates_stay_between_floor_and_one(rate):
    values = [rate_at(rate, s, 100) for s in range(140)]
    assert all(0 <= v <= 1 for v in values) and all(v >= rate.floor - 1e-12 for v in values[rate.warmup:]) and values[rate.warmup] == 1 and len(set(values[100:])) == 1
    assert values[:rate.warmup] == [s / 5 for s in range(rate.warmup)]


@pytest.mark.parametrize("bad,words", [(dict(shape="step"), "rate.shape='step'"), (dict(shape="piecewise_constant"), "rate.rules=''"), (dict(rules="1"), "belong to the shape piecewise_constant"),
                                       (dict(shape="piecewise_constant", rules="1:20,0.5:10,0.1"), "rising steps"), (dict(shape="piecewise_constant", rules="1:x,0.1"), "rate.rules='1:x,0.1'"),
                                       (dict(shape="piecewise_constant", rules="1:10,0.5:20"), "then a last multiplier"), (dict(shape="piecewise_constant", rules="-1:10,0.1"), "rate.rules"),
                                       (dict(shape="polynomial", power=0), "rate.power=0: must be above 0"), (dict(shape="cosine", waves=math.nan), "rate.waves")])
def test_wrong_rates(bad, words):
    with pytest.raises(BadInput) as e: Rate(**bad)
    assert words in str(e.value)


# Skipped steps

class Steep:
    "One weight; its gradient is whatever the batch says."
    def __init__(self, tensors=1): self.modules = {"net": torch.nn.ParameterDict({f"w{i}": torch.nn.Parameter(torch.ones(2)) for i in range(tensors)})}
    def phases(self, step): return (Phase("net", ("net",), ("net",), ("net",)),)
    def loss(self, phase, batch, carry, draws, at): return Loss(sum((w * g).sum() for w, g in zip(self.modules["net"].values(), self.slopes(at.step))), {})


def stepped(tmp_path, slopes, tensors=1, **kw):
    "Which of the first steps moved the weights."
    task, moved = Steep(tensors), []
    task.slopes = slopes
    r = replace(RECIPE, steps=6, ema=0, rate=Rate(), **kw)
    trainer = Trainer(task, Points(), r, tmp_path, Run(progress=False, tracker="none", max_skips=99), every=((1, lambda t: moved.append(task.modules["net"]["w0"].detach().clone())),))
    trainer.fit()
    return [not torch.equal(a, b) for a, b in zip([torch.ones(2), *moved], moved)]


def test_spikes_are_skipped_after_the_first_steps(tmp_path):
    "Norm 1 but for steps 1 and 4; the first two steps are free."
    spikes = lambda step: [torch.tensor([100.0 if step in (1, 4) else 1.0, 0.0])]
    assert stepped(tmp_path, spikes, optim=Optim(lr=0.1, skip_norm=10, skip_from=2)) == [True, True, True, True, False, True]


def test_the_published_rule_lets_spikes_pass_and_skips_even_gradients(tmp_path):
    "Nine tensors: all alike (sum of clipped norms 3), or one alone (1); the limit is 2. Not a number is refused all the same."
    def slopes(step): return [torch.tensor([math.nan if step == 5 else 1e4 if i == 0 and step in (1, 4) else 1.0 if step not in (1, 4) else 0.0, 0.0]) for i in range(9)]
    rules = dict(tensors=9, optim=Optim(lr=0.1, skip_norm=2, skip_from=1))
    assert stepped(tmp_path / "theirs", slopes, compat="upstream", **rules) == [True, True, False, False, True, False]
    assert stepped(tmp_path / "ours", slopes, **rules) == [True, False, False, False, False, False]          # norms 3, 1e4, 3, 3, 1e4, nan against 2
    assert stepped(tmp_path / "higher", slopes, **rules | {"optim": Optim(lr=0.1, skip_norm=10)}) == [True, False, True, True, False, False]


def test_clipped_sum_is_what_clipping_leaves():
    params = [torch.nn.Parameter(torch.zeros(3)) for _ in range(4)]
    for i, p in enumerate(params[:3]): p.grad = torch.full((3,), float(i + 1))
    norm = gradient_norm(params)
    said = clipped_sum(params, norm, 1.0)
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    torch.testing.assert_close(said, sum(p.grad.norm() for p in params[:3]))
    assert clipped_sum([params[3]], torch.zeros(()), 1.0) == 0


# Mirrors

def mirrored_run(folder, slow, until=None, **kw):
    trainer = Trainer(Pair(), Points(), RECIPE, folder, Run(save_every=40, progress=False, tracker="none", mirror=slow, **kw))
    trainer.fit(until)
    return trainer


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    train_toy(folder)
    return result(folder)


def test_a_run_that_loses_its_disk_twice_ends_the_same(tmp_path, straight):
    for n, until in enumerate((90, 200, None)):
        trainer = mirrored_run(tmp_path / f"node{n}" / "run", tmp_path / "slow", until)
        shutil.rmtree(tmp_path / f"node{n}" / "run" / "checkpoints")
    there = mirrored("run", trainer.run)
    assert [p.name for p in checkpoints(there)] == ["step-000000300", "step-000000280"] and result(there.parent) == straight


def test_a_mirror_that_fails_is_a_warning(tmp_path, straight, capsys, monkeypatch):
    import vgnb.training.trainer as t
    calls = []
    def sometimes(*a, **k):
        calls.append(a)
        if len(calls) < 4: raise OSError(28, "No space left on device")
        return mirror_checkpoint(*a, **k)
    monkeypatch.setattr(t, "mirror_checkpoint", sometimes)
    mirrored_run(tmp_path / "run", tmp_path / "slow")
    assert result(tmp_path / "run") == straight and capsys.readouterr().err.count("was not mirrored") == 3 and newest(tmp_path / "slow" / "run" / "checkpoints").name == "step-000000300"


def test_the_copy_is_all_or_nothing(tmp_path, monkeypatch):
    "Cut after each file in turn, the mirror holds the old checkpoint, whole."
    train_toy(tmp_path / "run", until=20)
    old, new = sorted(checkpoints(tmp_path / "run" / "checkpoints"))
    mirror_checkpoint(old, tmp_path / "slow", keep=1)
    real, files = shutil.copyfile, len(list(new.iterdir()))
    for n in range(files):
        calls = iter(range(99))
        def cut(a, b):
            if next(calls) == n: Path(b).write_bytes(Path(a).read_bytes()[:10]); raise KeyboardInterrupt
            return real(a, b)
        monkeypatch.setattr(shutil, "copyfile", cut)
        with pytest.raises(KeyboardInterrupt): mirror_checkpoint(new, tmp_path / "slow", keep=1)
        assert [p.name for p in (tmp_path / "slow").iterdir()] == [old.name] and verify(tmp_path / "slow" / old.name)
    monkeypatch.setattr(shutil, "copyfile", real)
    mirror_checkpoint(new, tmp_path / "slow", keep=1)
    assert files >= 5 and [p.name for p in (tmp_path / "slow").iterdir()] == [new.name]


def test_which_checkpoint_is_taken(tmp_path):
    "The mirror's if it is ahead, the folder's own if not; a damaged one is passed over; another recipe's, or --fresh over one, is refused."
    slow = tmp_path / "slow"
    mirrored_run(tmp_path / "run", slow, 80)
    shutil.copytree(tmp_path / "run", tmp_path / "stale" / "run"); mirrored_run(tmp_path / "run", slow, 160)
    behind = mirrored_run(tmp_path / "stale" / "run", slow, 160)
    assert [p.name for p in checkpoints(behind.saves)][0] == "step-000000160" and behind.step == 160
    (slow / "run" / "checkpoints" / "step-000000160" / "model.net.safetensors").write_bytes(b"damaged")
    assert mirrored_run(tmp_path / "other" / "run", slow, 130).step == 130                           # from 120
    with pytest.raises(BadInput, match="mirror=.*holds checkpoints of a run called run"): mirrored_run(tmp_path / "fresh" / "run", slow, resume="fresh")
    with pytest.raises(Mismatch, match="batch=16"): Trainer(Pair(), Points(), replace(RECIPE, batch=16), tmp_path / "new" / "run", Run(mirror=slow, tracker="none", progress=False)).fit(10)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="mirror"): Trainer(Pair(), Points(), RECIPE, tmp_path / "x", Run(mirror=tmp_path / "file"))
    assert mirrored_run(tmp_path / "third" / "run", slow, 130, resume="resume").step == 130


# Previews and trackers

@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("coded")
    write_codes(tmp / "codes")
    torch.manual_seed(0)
    config = VQGANConfig(VectorConfig(48), width=16, mults=(1, 2, 2), attention=(), z=8, groups=8)
    save_model(tmp / "tokenizer", VQGAN(config), config)
    return tmp


def test_previews_come_every_so_often_and_leave_no_trace(coded, tmp_path):
    r = generator_recipe(coded / "codes")
    options = TrainOptions(r, tmp_path / "seen", progress=False, preview_every=5, preview_tokenizer=coded / "tokenizer", preview_count=4)
    train(options); train(TrainOptions(r, tmp_path / "blind", progress=False))
    made = sorted((tmp_path / "seen" / "previews").iterdir())
    assert [p.name for p in made] == ["step-000000005.png", "step-000000010.png"] and all(Image.open(p).width > 200 for p in made)
    assert (tmp_path / "seen" / "model" / "model.safetensors").read_bytes() == (tmp_path / "blind" / "model" / "model.safetensors").read_bytes()


def test_previews_ask_for_the_right_tokenizer(coded, tmp_path):
    config = VQGANConfig(VectorConfig(16), width=16, mults=(1, 2, 2), attention=(), z=8, groups=8)
    save_model(tmp_path / "other", VQGAN(config), config)
    r = generator_recipe(coded / "codes")
    for kw, words in ((dict(preview_tokenizer=None), "preview_tokenizer=None: must be the model folder"), (dict(preview_tokenizer=tmp_path / "other"), "must be the one that made the codes"), (dict(preview_every=-1), "preview_every=-1")):
        with pytest.raises(BadInput, match=words.replace("(", r"\(")): train(TrainOptions(r, tmp_path / "run", **{"preview_every": 5, **kw}))
    assert not (tmp_path / "run").exists()
    dry = TrainOptions(r, tmp_path / "run", dry_run=True, preview_every=5, preview_tokenizer=coded / "tokenizer")
    assert train(dry).reason == "dry run" and not (tmp_path / "run").exists()


def test_any_order_generators_are_put_back_in_place(coded):
    "A generator that repeats the true code of each asked cell: whatever the order, the picture is the stored one."
    from vgnb.draws import Keyed
    from vgnb.generators.generator import Cond, Generator
    from vgnb.training.previews import teacher_forced
    class Echo(Generator):
        vocab, traits = (48,), frozenset({"any_order"})
        def logits(self, codes, cond, plan=None):
            self.plan = plan
            return (torch.nn.functional.one_hot(codes.gather(1, plan), 48).float(),)
    codes, echo = torch.randint(48, (3, 16, 1)), Echo()
    assert torch.equal(teacher_forced(echo, codes, Cond(labels=torch.zeros(3, dtype=torch.long)), Keyed(0)), codes)
    assert not torch.equal(echo.plan[0], echo.plan[1]) and torch.equal(echo.plan.sort(1).values[0], torch.arange(16))


def test_wandb_offline(tmp_path, monkeypatch):
    "The tracker speaks to wandb as it should, by name, and says offline; without the package the name is refused."
    said = []
    fake = types.ModuleType("wandb"); fake.__spec__ = ModuleSpec("wandb", None)
    fake.init = lambda **kw: said.append(kw) or types.SimpleNamespace(log=lambda v, step: said.append(step), finish=lambda: said.append("done"))
    with monkeypatch.context() as m:
        m.setitem(sys.modules, "wandb", fake)
        for name, mode in (("wandb-offline", "offline"), ("wandb", None)):
            said.clear()
            Trainer(Pair(), Points(), RECIPE, tmp_path / name, Run(progress=False, tracker=name, log_every=5)).fit(10)
            assert said[0]["mode"] == mode and said[0]["name"] == name and said[0]["resume"] == "allow" and said[1:] == [5, 10, "done"]
    m.undo()
    if trackers["wandb-offline"].package == "wandb" and not _installed("wandb"):
        with pytest.raises(BadInput, match="is not installed: pip install wandb"): Run(tracker="wandb-offline")


def _installed(name):
    import importlib.util
    return importlib.util.find_spec(name) is not None


# YAML

YAML = """
ar_model:
  target: RandAR.model.randar_gpt.RandARTransformer
  params: {n_layer: 2, n_head: 2, dim: 32, vocab_size: 48, block_size: 16, num_classes: 10, multiple_of: 16, position_order: random, num_inference_steps: 88}
tokenizer:
  target: RandAR.model.tokenizer.VQModel
  params: {codebook_size: 48}
accelerator: {gradient_accumulation_steps: 2, mixed_precision: 'no', log_with: nothing}
optimizer: {lr: 4e-4, weight_decay: 0.05, beta1: 0.9, beta2: 0.95, max_grad_norm: 1.0, skip_grad_iter: 100, skip_grad_norm: 10, amsgrad: true}
lr_scheduler: {type: cosine, warm_up_iters: 2, min_lr_ratio: 0.05, num_cycles: 0.5}
max_iters: 4
global_batch_size: 8
global_seed: 3
ema: True
"""


def test_a_published_configuration_trains(coded, tmp_path, capsys, monkeypatch):
    "From the file to a model, as its authors' command would: one line says what has no effect."
    monkeypatch.setenv("VGNB_PATHS_RUNS", str(tmp_path / "runs"))
    (tmp_path / "randar_tiny.yaml").write_text(YAML)
    options = parse("generator", [str(tmp_path / "randar_tiny.yaml"), "--data", str(coded / "codes")], "")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].endswith("without effect: ema, optimizer.amsgrad, accelerator.log_with")
    r = options.recipe
    assert options.accumulate == 2 and options.out.name == "randar_tiny" and (r.steps, r.batch, r.seed, r.precision) == (4, 8, 3, "fp32") and r.optim.skip_from == 100 and r.optim.lr == 4e-4
    assert train(replace(options, progress=False)).finished and len(read_log(options.out / "log.jsonl")) == 1
    card = json.loads((options.out / "model" / "config.json").read_text())
    assert card["config"]["order"] == "random" and card["recipe"]["rate"] == to_json(Rate("cosine", 2, floor=0.05))
    with pytest.raises(Mismatch, match="must be of kind tokenizer"): parse("tokenizer", [str(tmp_path / "randar_tiny.yaml")], "")


@pytest.mark.parametrize("change,words", [({"optimizer": [1]}, "optimizer=[1]: must be a mapping"), ({"ar_model": {"params": {}}}, "must be a mapping with target and params"), ({"max_iters": "many"}, "recipe.max_iters='many'"),
                                          ({"max_iters": 2.5}, "must be a whole number"), ({"max_iters": True}, "recipe.max_iters=True"), ({"global_batch_size": 0}, "batch=0"), ({"lr_scheduler": {"type": "piecewise_constant"}}, "rate.rules")])
def test_wrong_configurations(change, words):
    import yaml
    with pytest.raises(BadInput) as e: published_recipe(yaml.safe_load(YAML) | change)
    assert words in str(e.value)
