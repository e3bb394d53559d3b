"D-AR's tokenizer in training: through the script, stopped and resumed, with a critic, averaged, begun with parts."
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.run_scripts import Scripts
from tests.toy_training import result
from vgnb.core import BadInput, Mismatch, Missing, load_json
from vgnb.data.shapes import Shapes
from vgnb.draws import At, Keyed
from vgnb.kinds import changed
from vgnb.places import locked
from vgnb.recipes.dar_recipes import shapes_dar_tokenizer
from vgnb.saved import load_model, save_model
from vgnb.tokenizers.dar_tokenizer import DARTokenizer, DARTokenizerConfig, dar_tokenizer_spec
from vgnb.tokenizers.dinov2 import DinoConfig, DinoV2
from vgnb.tokenizers.flow_decoder import FlowConfig
from vgnb.tokenizers.flow_objective import FlowLoss, FlowLossConfig, flow_loss
from vgnb.tokenizers.lpips import LPIPS
from vgnb.tokenizers.quantizers import VectorConfig
from vgnb.tokenizers.timed_discriminator import TimedPatchGAN, read_timed_patchgan
from vgnb.training.commands import TrainOptions, build_tokenizer, train
from vgnb.training.recipes import recipe, recipes
from vgnb.training.run_folder import Run
from vgnb.training.start import begin_with
from vgnb.training.tasks import TokenizerTask
from vgnb.training.trainer import Trainer
from vgnb.zoo import export_published

ROOT = Path(__file__).resolve().parents[1]
FLOW = dict(width=32, depth=2, cond=32, head=16)
SMALL = dict(quantizer=dict(codebook=16, dim=4, usage=64, updates=()), flow=FLOW, width=32, layers=1, head=16,
             queries=16, rows=16)
GAME = dict(gan=0.1, start=4, critic_width=16, critic_depth=1)
QUIET = Run(progress=False)


def small(**changes):
    "The tiny recipe, smaller, a few steps of it."
    r = shapes_dar_tokenizer()
    fields = dict(data="shapes://?n=64&size=32", steps=8, batch=8, precision="fp32", ema=0.9, free_steps=0)
    return replace(r, model=changed(r.model, **SMALL), **(fields | changes))


def judged(**changes): return small(loss=replace(small().loss, **GAME), **changes)


def pictures(count=4): return torch.from_numpy(Shapes(count, 32).batch(range(count))[0]).movedim(-1, 1) / 127.5 - 1


def log_of(folder): return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


WORDS = ["--data", "shapes://?n=64&size=32", "--steps", 6, "--batch", 8, "--precision", "fp32", "--free-steps", 0,
         "--model.quantizer.codebook", 16, "--model.quantizer.usage", 64, "--model.layers", 1, "--model.flow.depth", 1,
         "--log-every", 1, "--save-every", 2, "--loss.gan", 0.1, "--loss.start", 4, "--loss.critic-width", 16,
         "--loss.critic-depth", 1, "--ema", 0.9]


@pytest.fixture(scope="module")
def scripts():
    return Scripts(ROOT)


@pytest.mark.full
def test_the_script_trains_it_with_a_critic_and_an_average(scripts, tmp_path):
    ran = scripts("train_tokenizer.py", "shapes-dar-tokenizer", *WORDS, "--out", tmp_path / "run")
    assert ran.code == 0, ran
    log = log_of(tmp_path / "run")
    assert [r["step"] for r in log] == [1, 2, 3, 4, 5, 6]
    assert all({"flow", "vq", "commit"} <= set(r) for r in log)
    assert [("disc" in r, "gan" in r) for r in log] == [(False, False)] * 3 + [(True, True)] * 3
    files = {p.name for p in (tmp_path / "run").rglob("*.safetensors")}
    assert {"model.discriminator.safetensors", "ema.tokenizer.safetensors", "optim.discriminator.safetensors"} <= files
    average, last = (load_model(tmp_path / "run/model", **kw).state_dict() for kw in ({}, {"ema": False}))
    assert not torch.equal(average["to_code.weight"], last["to_code.weight"])


def test_stopped_and_resumed_it_is_the_same_bit_for_bit(tmp_path):
    r = judged()

    def trainer(folder): return Trainer(*build_tokenizer(r, tmp_path), r, folder, QUIET)

    trainer(tmp_path / "whole").fit()
    for until in (2, 5, None): trainer(tmp_path / "parts").fit(until)
    assert result(tmp_path / "whole") == result(tmp_path / "parts")


def test_the_critic_moves_only_when_it_has_joined(tmp_path):
    r = judged(steps=3)
    task, data = build_tokenizer(r, tmp_path)
    critic = task.modules["discriminator"]
    before = {k: v.clone() for k, v in critic.state_dict().items()}
    Trainer(task, data, r, tmp_path / "before", QUIET).fit()
    assert all(torch.equal(v, before[k]) for k, v in critic.state_dict().items())
    task, data = build_tokenizer(judged(steps=5), tmp_path)
    Trainer(task, data, judged(steps=5), tmp_path / "after", QUIET).fit()
    moved = task.modules["discriminator"].state_dict()
    assert any(not torch.equal(v, before[k]) for k, v in moved.items())


def test_time_and_noise_belong_to_the_sample_and_the_step():
    torch.manual_seed(0)
    model, x, draws = DARTokenizer(small().model).train(), pictures(), Keyed(0).fork("train")
    ids = torch.tensor([40, 41, 42, 43])
    whole = model(x, draws, At(ids, step=3)).extras
    alone = model(x[2:3], draws, At(ids[2:3], step=3)).extras
    later = model(x, draws, At(ids, step=4)).extras
    assert torch.equal(whole["time"][2:3], alone["time"]) and torch.equal(whole["target"][2:3], alone["target"])
    torch.testing.assert_close(whole["velocity"][2:3], alone["velocity"], atol=1e-5, rtol=1e-4)
    assert not torch.equal(whole["time"], later["time"])


def test_only_tokens_up_to_the_window_are_pulled():
    "The codebook's losses are means over what the times of the batch look at; later tokens get no gradient of them."
    torch.manual_seed(0)
    model, x = DARTokenizer(small().model).train(), pictures()
    features = model.features(x).detach().requires_grad_()
    t = torch.tensor([0.0, 0.3, 0.6, 1.0])
    q = model.quantized(features, t, Keyed(0), At(torch.arange(4)))
    sum(q.losses.values()).backward()
    pulled = features.grad.abs().sum(1) > 0
    ends = model.first_tokens(t) + model.config.window_size
    assert torch.equal(pulled, torch.arange(16) < ends[:, None])


def test_weights_decide_what_is_computed(tmp_path):
    "Without a weight there is no eye, no teacher, no critic and no entropy; none of their files is asked for."
    plain = flow_loss(FlowLossConfig(lpips=0, repa=0), weights=tmp_path / "nowhere", size=32)
    assert not plain.helpers and not plain.modules
    task = TokenizerTask(DARTokenizer(small().model), plain)
    batch = {"images": pictures()}
    parts = task.loss(task.phases(0)[0], batch, {}, Keyed(0), At(torch.arange(4))).parts
    assert set(parts) == {"flow", "vq", "commit"}
    weighted = DARTokenizer(replace(small().model, quantizer=VectorConfig(16, 4, entropy=0.1, usage=0)))
    task = TokenizerTask(weighted, plain)
    assert "entropy" in task.loss(task.phases(0)[0], batch, {}, Keyed(0), At(torch.arange(4))).parts


@pytest.mark.parametrize("repa", [0.0, 0.5])
def test_the_teachers_head_runs_only_where_it_has_a_weight(repa):
    torch.manual_seed(0)
    taught = dict(patch=4, teacher_layer=1, teacher_hidden=32, teacher_width=64, teacher_grid=8)
    model = DARTokenizer(changed(small().model, flow=taught)).train()
    teacher = DinoV2(DinoConfig(size=112, dim=64, depth=1, heads=2), view=112)
    objective = FlowLoss(FlowLossConfig(lpips=0, repa=repa), teacher=teacher, size=32)
    runs = []
    model.flow.teacher.register_forward_hook(lambda *_: runs.append(1))
    made = objective.make(objective.phases(0)[0], model, pictures(), Keyed(0), At(torch.arange(4)))
    assert len(runs) == (repa > 0) and (made.extras["features"] is None) == (repa == 0)


def test_an_eye_and_a_teacher_take_part():
    torch.manual_seed(0)
    taught = dict(patch=4, teacher_layer=1, teacher_hidden=32, teacher_width=64, teacher_grid=8)
    model = DARTokenizer(changed(small().model, flow=taught))
    teacher = DinoV2(DinoConfig(size=112, dim=64, depth=1, heads=2), view=112)
    objective = FlowLoss(FlowLossConfig(weighting="time"), LPIPS(), teacher, size=32)
    task = TokenizerTask(model, objective)
    task.check(accumulate=1)
    asked = task.loss(task.phases(0)[0], {"images": pictures()}, {}, Keyed(0), At(torch.arange(4)))
    asked.total.backward()
    assert {"lpips", "repa"} <= set(asked.parts)
    assert all(p.grad is None for helper in task.helpers for p in helper.parameters())
    assert all(p.grad is not None for p in model.flow.teacher.parameters())


@pytest.mark.parametrize("compat, drops", [(None, False), ("upstream", True)])
def test_the_eye_drops_features_only_as_published(compat, drops):
    eye = LPIPS(compat)
    FlowLoss(FlowLossConfig(repa=0, compat=compat), eye)
    x = pictures(2)
    assert torch.equal(eye(x, -x), eye(x, -x)) != drops

def test_a_sketch_pulls_the_encoder_and_is_no_part_of_the_model():
    torch.manual_seed(0)
    model = DARTokenizer(small().model)
    task = TokenizerTask(model, FlowLoss(FlowLossConfig(lpips=0, repa=0, quantizer=0, sketch=1.0), size=32))
    assert list(task.modules) == ["tokenizer", "sketch"] and "sketch" in task.phases(0)[0].step
    batch = {"images": pictures()}
    asked = task.loss(task.phases(0)[0], batch, {}, Keyed(0), At(torch.arange(4)))
    parts = {name: value.item() for name, value in asked.parts.items()}
    assert asked.total.item() == pytest.approx(parts["flow"] + parts["sketch"])
    (pull,) = torch.autograd.grad(asked.total, model.to_code.weight, retain_graph=True)
    made = task.objective.make(task.phases(0)[0], model, pictures(), Keyed(0), At(torch.arange(4)))
    alone = F.mse_loss(made.extras["velocity"], made.extras["target"])
    (without,) = torch.autograd.grad(alone, model.to_code.weight)
    assert not torch.allclose(pull, without)


def test_a_sketch_needs_the_pictures_size():
    with pytest.raises(BadInput, match="size=None: must be the side of the pictures, since sketch=1"):
        TokenizerTask(DARTokenizer(small().model), FlowLoss(FlowLossConfig(lpips=0, repa=0, sketch=1)))


def test_towards_the_clean_picture_all_times_weigh_alike():
    torch.manual_seed(0)
    model = DARTokenizer(small().model)
    task = TokenizerTask(model, FlowLoss(FlowLossConfig(lpips=0, repa=0, target="clean")))
    asked = task.loss(task.phases(0)[0], {"images": pictures()}, {}, Keyed(0), At(torch.arange(4)))
    made = task.objective.make(task.phases(0)[0], model, pictures(), Keyed(0), At(torch.arange(4)))
    assert asked.parts["flow"].item() == pytest.approx(F.mse_loss(made.output, pictures()).item(), rel=1e-5)


def test_a_share_of_the_pictures_is_what_the_sampler_has_made():
    "Where each step has brought them, without gradients; the others lie under noise as ever, bit for bit."
    torch.manual_seed(0)
    model, x, draws, at = DARTokenizer(small().model).train(), pictures(32), Keyed(0), At(torch.arange(32), step=5)
    plain, mixed = model(x, draws, at).extras, model(x, draws, at, own=0.5).extras
    own = draws.uniform("own", at) < 0.5
    assert 8 < own.sum() < 24
    for name in ("noisy", "time", "target"): assert torch.equal(plain[name][~own], mixed[name][~own])

    moved = (plain["noisy"] != mixed["noisy"]).flatten(1).any(1)
    started = mixed["time"] > 0
    assert torch.equal(moved & started, own & started)
    assert not mixed["noisy"].requires_grad
    times = torch.tensor(model.plan().times[:-1])
    assert torch.isin(mixed["time"][own], times).all() and not torch.isin(mixed["time"][~own], times).any()


def test_own_steps_belong_to_the_sample_and_the_step():
    "Alone or in a batch, whoever else makes fewer or more steps."
    torch.manual_seed(0)
    model, x, draws = DARTokenizer(small().model).train(), pictures(8), Keyed(0)
    whole = model(x, draws, At(torch.arange(8), step=5), own=1.0).extras
    for i in range(8):
        alone = model(x[i:i + 1], draws, At(torch.tensor([i]), step=5), own=1.0).extras
        torch.testing.assert_close(whole["noisy"][i:i + 1], alone["noisy"], atol=1e-5, rtol=1e-4)


def test_training_on_own_steps_goes_on_bit_for_bit(tmp_path):
    r = small(loss=replace(small().loss, own=0.5), steps=6)
    trainers = [Trainer(*build_tokenizer(r, tmp_path), r, tmp_path / name, QUIET) for name in ("whole", "parts")]
    trainers[0].fit()
    trainers[1].fit(3)
    Trainer(*build_tokenizer(r, tmp_path), r, tmp_path / "parts", QUIET).fit()
    assert result(tmp_path / "whole") == result(tmp_path / "parts")


# ---- beginning with parts of another model

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train(TrainOptions(judged(), folder / "run", run=QUIET))
    return folder / "run"


def test_what_fits_is_taken_over_and_the_rest_is_named(trained, tmp_path, capfd):
    "Twice the codes and a block more: the coder comes along, the codebook and the new block don't."
    r = judged(start=str(trained), start_fit="parts")
    r = replace(r, model=changed(r.model, quantizer=dict(codebook=32), flow=dict(depth=3)))
    task, _ = build_tokenizer(r, tmp_path)
    model, other = task.modules["tokenizer"].state_dict(), load_model(trained / "model").state_dict()
    assert torch.equal(model["encoder.patchify.weight"], other["encoder.patchify.weight"])

    train(TrainOptions(r, tmp_path / "run", run=QUIET))
    account = load_json(tmp_path / "run/start.json")
    skipped = account["tokenizer"]["skipped"]
    assert skipped["quantizer.table"] == "is (16, 4) there, (32, 4) here"
    assert skipped["flow.blocks.2.ffn.up.weight"] == "is not there"
    assert "quantizer.usage.recent" not in skipped
    assert account["discriminator"]["skipped"] == {}
    assert set(account["tokenizer"]["names"]) | set(skipped) == {k for k in model if "usage" not in k}
    line = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("start: tokenizer: "))
    assert len(skipped) > 3 and f"{len(skipped)} skipped: " in line and line.count(" is ") + line.count("(is ") < 8
    assert line.endswith(f"; the whole list is in {tmp_path / 'run' / 'start.json'}")


def test_a_dry_run_says_it_too(trained, tmp_path, capsys):
    r = judged(start=str(trained), start_fit="parts")
    train(TrainOptions(r, tmp_path / "run", run=QUIET, dry_run=True))
    said = capsys.readouterr().out
    assert "start    tokenizer: " in said and "whole list" not in said, "nothing is left out"
    r = replace(r, model=changed(r.model, quantizer=dict(codebook=32)))
    train(TrainOptions(r, tmp_path / "run", run=QUIET, dry_run=True))
    assert f"a run writes the whole list into {tmp_path / 'run' / 'start.json'}" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_keeps_its_account(trained, tmp_path):
    "While another process trains there, nothing of ours is written."
    r = judged(start=str(trained), start_fit="parts")
    with locked(tmp_path / "run"), pytest.raises(BadInput): train(TrainOptions(r, tmp_path / "run", run=QUIET))
    assert not (tmp_path / "run/start.json").exists()


def test_whole_is_the_default_and_refuses_what_differs(trained, tmp_path):
    r = judged(start=str(trained))
    with pytest.raises(Mismatch, match="does not fit this model"):
        build_tokenizer(replace(r, model=changed(r.model, quantizer=dict(codebook=32))), tmp_path)
    task, _ = build_tokenizer(r, tmp_path)
    assert {name: len(taken.skipped) for name, taken in task.started.items()} == {
        "tokenizer": 0, "sketch": 0, "discriminator": 0}


def test_a_run_without_a_critic_gives_none(trained, tmp_path):
    train(TrainOptions(small(), tmp_path / "plain", run=QUIET))
    r = judged(start=str(tmp_path / "plain"))
    with pytest.raises(Mismatch, match="has no discriminator"): build_tokenizer(r, tmp_path)
    task, _ = build_tokenizer(replace(r, start_fit="parts"), tmp_path)
    assert task.started["discriminator"].names == ()


def test_a_published_file_is_a_start_as_well(tmp_path):
    "In the authors' layout, whole into the same model, in parts into another."
    torch.manual_seed(1)
    wide = dict(width=64, cond=64, head=64, depth=1, patch=4, teacher_layer=0, shared_time=False, adaptive_head=False)
    config = DARTokenizerConfig(VectorConfig(16, 4), flow=FlowConfig(**wide), width=64, layers=1, decoder_layers=1,
                                patch=8, queries=16, resolution=32)
    model = DARTokenizer(config)
    published = export_published(model)
    settings = {"model": dar_tokenizer_spec(config)}
    torch.save({"model": published, "config": settings, "steps": 3}, tmp_path / "theirs.pt")

    def task(**changes):
        other = DARTokenizer(replace(config, **changes))
        return TokenizerTask(other, flow_loss(FlowLossConfig(lpips=0, repa=0), weights=tmp_path, size=32)), other

    same, whole = task()
    taken = begin_with(same, tmp_path / "theirs.pt")
    assert taken["tokenizer"].skipped == {}
    assert torch.equal(whole.encode(pictures()), model.encode(pictures()))

    larger, other = task(quantizer=VectorConfig(32, 4))
    taken = begin_with(larger, tmp_path / "theirs.pt", "parts")
    assert list(taken["tokenizer"].skipped) == ["quantizer.table"]
    assert torch.equal(other.flow.stem.weight, model.flow.stem.weight)
    with pytest.raises(Mismatch, match="does not fit this model"): begin_with(larger, tmp_path / "theirs.pt")
    (tmp_path / "theirs.txt").write_text("no weights")
    with pytest.raises(BadInput, match="must end in one of"): begin_with(same, tmp_path / "theirs.txt")


@pytest.mark.full
def test_a_published_file_is_a_start_in_a_process_that_read_none_before(tmp_path):
    "As the training scripts import it: nobody has asked for the published models yet."
    wide = dict(width=64, cond=64, head=64, depth=1, patch=4, teacher_layer=0, shared_time=False, adaptive_head=False)
    config = DARTokenizerConfig(VectorConfig(16, 4), flow=FlowConfig(**wide), width=64, layers=1, decoder_layers=1,
                                patch=8, queries=16, resolution=32)
    model = DARTokenizer(config)
    settings = {"model": dar_tokenizer_spec(config)}
    torch.save({"model": export_published(model), "config": settings}, tmp_path / "theirs.pt")
    save_model(tmp_path / "ours", model, config)
    words = "import sys, types; import vgnb.training.commands; from vgnb.saved import load_model;" \
            "from vgnb.training.start import begin_with; assert 'vgnb.zoo' not in sys.modules;" \
            "task = types.SimpleNamespace(modules={'tokenizer': load_model(sys.argv[1])});" \
            "print(begin_with(task, sys.argv[2])['tokenizer'])"
    ran = subprocess.run([sys.executable, "-c", words, str(tmp_path / "ours"), str(tmp_path / "theirs.pt")],
                         capture_output=True, text=True, cwd=ROOT)
    assert "entries taken over" in ran.stdout, ran.stderr


# ---- refusals

@pytest.mark.parametrize("call, words", [
    (lambda r: replace(r, start_fit="half"), "start_fit='half'"),
    (lambda r: build_tokenizer(replace(r, loss=replace(r.loss, repa=0.5)), "nowhere"), "no DINOv2 weights"),
    (lambda r: build_tokenizer(replace(r, loss=replace(r.loss, lpips=0.5)), "nowhere"), "no VGG-16 weights"),
    (lambda r: replace(r.loss, critic_width=0), "critic_width=0"),
    (lambda r: replace(r.loss, critic_width=20), "critic_width=20: must be a multiple of 8"),
    (lambda r: TimedPatchGAN(channels=0), "channels=0"),
    (lambda r: read_timed_patchgan({"ndf": 20}), "ndf=20: must be a multiple of 8"),
    (lambda r: read_timed_patchgan({"nlayers": 3}), "did you mean n_layers"),
    (lambda r: read_timed_patchgan([3]), "spec=[3]: must be a mapping"),
    (lambda r: replace(r.loss, weighting="odd"), "weighting='odd'"),
    (lambda r: replace(r.loss, own=1.5), "own=1.5"),
    (lambda r: FlowLoss(replace(r.loss, gan=0.5)), "discriminator=None"),
    (lambda r: changed(r.model, flow=dict(adaptive_head=True, shared_time=False)), "adaptive_head=True"),
    (lambda r: TimedPatchGAN(width=10), "multiple of 16")])
def test_refused_by_name(call, words):
    with pytest.raises(BadInput) as e: call(small())
    assert words in str(e.value)


def test_a_teacher_is_missed_by_name_and_not_missed_at_weight_0(tmp_path):
    with pytest.raises(Missing, match="repa=0.5: a weight above 0 needs a teacher"):
        FlowLoss(FlowLossConfig(lpips=0))
    with pytest.raises(Missing, match="dinov2_vitb14_pretrain.pth"):
        flow_loss(FlowLossConfig(lpips=0), weights=tmp_path, size=256)
    assert not flow_loss(FlowLossConfig(lpips=0, repa=0), weights=tmp_path, size=256).helpers


@pytest.mark.parametrize("name", ["dar-tokenizer", "dar-b", "dar-l", "dar-xl", "shapes-dar-tokenizer", "shapes-dar",
                                  "cifar-dar-tokenizer", "cifar-dar"])
def test_recipes_are_registered(name):
    assert name in recipes and recipe(name).name == name
