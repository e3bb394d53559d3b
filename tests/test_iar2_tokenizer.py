"IAR2's tokenizer: two levels of codes, the first of which stands alone; two stages, the second in turns."
import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.toy_training import result
from vgnb.core import BadInput, Mismatch
from vgnb.data.codes import CodeStore
from vgnb.data.iar2_codes import IAR2Codes
from vgnb.data.layouts import export_codes
from vgnb.data.shapes import Shapes
from vgnb.data.transforms import Augment
from vgnb.draws import At, Keyed
from vgnb.kinds import changed
from vgnb.processes import Processes
from vgnb.saved import save_model
from vgnb.tokenizers.pixel_decoder import PixelDecoderConfig, codes_alone
from vgnb.tokenizers.quantizers import Quantizer, Revive
from vgnb.tokenizers.semantic_detail_vq import SemanticDetail, SemanticDetailConfig
from vgnb.tokenizers.vqgan import VQGAN, VQGANConfig
from vgnb.training.commands import TrainOptions, build_tokenizer, open_codes, train
from vgnb.training.extract import extract_codes
from vgnb.training.recipes import Optim, Rate, recipe, recipes, stages
from vgnb.training.run_folder import Run
from vgnb.training.start import begin_with, take_over
from vgnb.training.step import Stepper, TrainState
from vgnb.training.tasks import GeneratorTask
from vgnb.training.trainer import Trainer

SMALL = dict(width=16, groups=8)
PAIR = SemanticDetailConfig(16, 32, 4, usage=512, updates=(Revive(5),))


def small() -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(VQGANConfig(PAIR, coder="small", **SMALL))


def pictures(count=4) -> torch.Tensor:
    return torch.from_numpy(Shapes(count, 32).batch(range(count))[0]).permute(0, 3, 1, 2) / 127.5 - 1


def stage(name, updates=(Revive(5),), **changes):
    "A recipe of the tiny pair, a few steps of it."
    r = recipe(f"shapes-iar2-tokenizer-{name}")
    quantizer = dict(dim=4, usage=512, updates=updates)
    model = changed(r.model, **SMALL, quantizer=quantizer)
    return replace(r, data="shapes://?n=64&size=32", steps=13, batch=8, precision="fp32", ema=0.9, model=model,
                   rate=Rate(), free_steps=4 if name == "first" else 0, **changes)


def test_decoding_the_codes_is_the_forward_pass():
    model, x = small().eval(), pictures()
    codes = model.encode(x)
    assert codes.shape == (4, *model.code_shape(32, 32)) == (4, 4, 4, 2)
    assert torch.equal(model.decode(codes), model(x).output)
    assert torch.equal(model.decode(model.untoken(model.tokens(codes))), model(x).output)


def test_the_first_level_is_a_plain_tokenizer_on_the_same_weights():
    model, x = small().eval(), pictures()
    coarse = model.first(1)
    assert coarse.vocab == (16,) and torch.equal(coarse.encode(x), model.encode(x)[..., 0])
    alone = VQGAN(coarse.config)
    alone.load_state_dict(coarse.state_dict())
    assert torch.equal(alone.eval()(x).output, coarse(x).output)
    assert {id(p) for p in coarse.parameters()} < {id(p) for p in model.parameters()}
    assert coarse.training is False and model.train().first(1).training is True


@pytest.mark.parametrize("call,words", [
    (lambda m: m.first(3), "levels=3"),
    (lambda m: m.first(1).first(2), "no levels that stand alone"),
    (lambda m: m.decode(torch.zeros(1, 4, 4, dtype=torch.int64)), "(b, n, 2)"),
    (lambda m: m.decode(torch.full((1, 4, 4, 2), 16)), "[0, 16)"),
    (lambda m: SemanticDetailConfig(detail=0), "detail=0")])
def test_refusals(call, words):
    with pytest.raises(BadInput) as e: call(small())
    assert words in str(e.value)


def test_the_levels_do_not_revive_their_rows_from_the_same_places():
    q, drawn = small().train().quantizer, []

    def spy(part):
        def forward(quantizer, z, codes, draws, at): drawn.append(draws.uniform("revive", At(torch.arange(16))))
        part.forward = forward

    for level in (q.semantic, q.detail): spy(level.updates[0])
    q(torch.randn(1, 4, 3, 3), Keyed(0), At(torch.arange(1), step=0))
    assert len(drawn) == 2 and not torch.equal(*drawn)


def stepper(**changes):
    r = stage("second", start="", **changes)
    task, data = build_tokenizer(r, "nowhere")
    return Stepper(TrainState(task, r, Processes())), task.modules["tokenizer"].quantizer


def take(s, step):
    at = At(torch.arange(8), step=step)
    s(step, [(at, {"images": pictures(8)})])


def test_the_semantic_table_moves_in_one_iteration_of_three():
    s, q = stepper(updates=())                          # only the optimizer may move it
    for step in range(6):
        before = q.semantic.table.detach().clone(), q.detail.table.detach().clone()
        take(s, step)
        assert torch.equal(q.semantic.table, before[0]) == (step % 3 != 2)
        assert not torch.equal(q.detail.table, before[1])
    assert s.state.optimizers["semantic"].state[q.semantic.table]["step"] == 2
    assert s.state.optimizers["detail"].state[q.detail.table]["step"] == 6


def test_updates_move_the_semantic_table_in_its_own_iterations_only():
    s, q = stepper(updates=(Revive(1),), optim=Optim("adamw", lr=0.0))          # only revivals may move a table
    for step in range(6):
        for level in (q.semantic, q.detail): level.table.data[1:3] = level.table.data[:1]    # idle: ties go to row 0
        before = q.semantic.table.detach().clone(), q.detail.table.detach().clone()
        seen = int((q.semantic.usage.recent >= 0).sum())
        take(s, step)
        assert torch.equal(q.semantic.table, before[0]) == (step % 3 != 2)
        assert not torch.equal(q.detail.table, before[1])
        assert int((q.semantic.usage.recent >= 0).sum()) > seen or seen == 512  # the meter does not rest


def scaled(fp16, **changes):
    "A stepper whose losses are scaled as for fp16, if asked."
    s, q = stepper(**changes)
    s.state.guard.fp16 = fp16
    if fp16: s.state.guard.scale.fill_(1024.0)
    return s, q


def second_alone(fp16, **changes):
    "The semantic table's gradient of the loss of both codes, without a phase before."
    s, q = scaled(fp16, **changes)
    whole = next(phase for phase in s.task.phases(2) if phase.name == "tokenizer")
    s.undo.keep()
    s._backward(whole, 2, [(At(torch.arange(8), step=2), {"images": pictures(8)})], [{}])
    return q.semantic.table.grad / (1024.0 if fp16 else 1.0)


@pytest.mark.parametrize("fp16", [False, True])
@pytest.mark.parametrize("clip", [1e-3, 0.0])
def test_the_gradient_of_both_is_the_clipped_first_and_the_second(fp16, clip):
    "Neither is lost, and the second is not clipped; fp16 scales what is taken along."
    how = dict(optim=Optim("adamw", lr=0.0, clip=clip))
    s, q = scaled(fp16, **how)
    seen = {}
    judge = Stepper._judge

    def spy(self, phase, *rest):
        seen[phase.name] = q.semantic.table.grad.clone()
        judge(self, phase, *rest)
        if phase.name == "semantic": seen["clipped"] = q.semantic.table.grad.clone()
        else: seen["waiting"] = self.waiting["semantic"][0].clone()

    s._judge = spy.__get__(s)
    take(s, 2)
    first, clipped, second = seen["semantic"], seen["clipped"], second_alone(fp16, **how)
    torch.testing.assert_close(clipped, first * (clip / first.norm() if clip else 1.0), rtol=1e-4, atol=0)
    assert min(first.norm(), second.norm()) > 2e-3
    torch.testing.assert_close(seen["waiting"], clipped + second, rtol=1e-5, atol=1e-7)
    assert clipped.abs().max() > 1e-4                  # far above the tolerance: it would be missed


def test_a_second_stage_begins_with_the_first_and_goes_on_bit_for_bit(tmp_path):
    "Semantic rows of the first stage, a detail table of its own; stopped twice, the same bits in every file."
    quiet = Run(progress=False)
    train(TrainOptions(stage("first"), tmp_path / "first", run=quiet))
    r = stage("second", start=str(tmp_path / "first"))

    def trainer(folder):
        task, data = build_tokenizer(r, tmp_path)
        return Trainer(task, data, r, folder, quiet)

    begun = trainer(tmp_path / "x").task.modules["tokenizer"].quantizer
    again = replace(stage("first", start=str(tmp_path / "first")), free_steps=0)
    first = build_tokenizer(again, tmp_path)[0].modules["tokenizer"]
    assert torch.equal(begun.semantic.table, first.quantizer.table)

    trainer(tmp_path / "whole").fit()
    for until in (2, 6, None): trainer(tmp_path / "parts").fit(until)
    assert result(tmp_path / "whole") == result(tmp_path / "parts")
    names = {p.name for p in next((tmp_path / "whole/checkpoints").glob("step-*")).glob("optim.*")}
    assert names == {f"optim.{g}.safetensors" for g in ("semantic", "detail", "coder")}


def test_a_run_goes_on_without_the_folder_it_started_from(tmp_path):
    quiet = Run(progress=False, save_every=5)
    train(TrainOptions(stage("first"), tmp_path / "first", run=quiet))
    options = TrainOptions(stage("second", start=str(tmp_path / "first")), tmp_path / "second", run=quiet)
    train(options)
    whole = result(tmp_path / "second")
    for path in (tmp_path / "second/model", tmp_path / "second/checkpoints/step-000000013", tmp_path / "first"):
        shutil.rmtree(path)
    train(replace(options, dry_run=True))
    assert train(options).finished and result(tmp_path / "second") == whole
    with pytest.raises(BadInput, match="no such run: train shapes-iar2-tokenizer-first"):
        train(replace(options, fresh=True))


def test_a_start_that_does_not_fit_is_refused(tmp_path):
    train(TrainOptions(stage("first"), tmp_path / "first", run=Run(progress=False)))
    r = stage("second", start=str(tmp_path / "first"))
    with pytest.raises(Mismatch, match="does not fit this model"):
        build_tokenizer(replace(r, model=changed(r.model, width=32)), tmp_path)
    with pytest.raises(BadInput, match="no such run: train shapes-iar2-tokenizer-first, .* --start RUN"):
        build_tokenizer(replace(r, start=str(tmp_path / "no")), tmp_path)


def test_every_second_stage_knows_its_first():
    """Its model is what the first level of the second one's is, or what that one keeps frozen: so the weights fit.

    (Who begins with a published file, GPT-2's, has no stage before.)"""
    begun = [name for name in recipes if recipe(name).start and not recipe(name).start.endswith(".safetensors")]
    assert set(begun) == set(stages) and all(stages[name] in recipes for name in begun)
    for name in begun:
        first, second = recipe(stages[name]).model, recipe(name).model
        is_painter = isinstance(second, PixelDecoderConfig)
        own = second.frozen if is_painter else replace(second, quantizer=second.quantizer.level(0))
        assert own == (codes_alone(first) if is_painter else first), name


def test_levels_that_do_not_stand_alone_are_not_filled(tmp_path, monkeypatch):
    first = VQGAN(VQGANConfig(PAIR.level(0), coder="small", **SMALL))
    save_model(tmp_path, first, first.config)
    monkeypatch.setattr(SemanticDetail, "first", Quantizer.first)
    with pytest.raises(Mismatch, match="start=.*must have codes of 2 levels, not of 1"):
        begin_with(GeneratorTask(small()), tmp_path)


@pytest.mark.parametrize("changes, words", [(dict(gan=0.5), "has no discriminator"), (dict(gan=0.0), "")])
def test_all_is_checked_before_anything_is_filled(tmp_path, changes, words):
    "A run without a discriminator starts a game without one; for a game with one it is refused, and nothing changed."
    train(TrainOptions(stage("second", start=""), tmp_path / "run", run=Run(progress=False)))
    r = stage("second", start="")
    task, _ = build_tokenizer(replace(r, loss=replace(r.loss, **changes)), tmp_path)
    model = task.modules["tokenizer"]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(Mismatch, match=words) if words else contextlib.nullcontext():
        begin_with(task, tmp_path / "run")
    same = all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert same == bool(words)


def test_only_what_counts_is_left_out():
    "Recent codes and idle rows belong to a training; any other buffer of a quantizer is the model's."
    one, other = small(), small()
    for model, value in ((one, 1.0), (other, 2.0)):
        model.quantizer.semantic.register_buffer("scale", torch.tensor(value))
        for level in (model.quantizer.semantic, model.quantizer.detail):
            level.usage.recent.fill_(value)
            level.updates[0].fresh.fill_(value)
    take_over(one, other)
    semantic = one.quantizer.semantic
    assert semantic.scale == 2 and semantic.usage.recent.unique() == 1 and semantic.updates[0].fresh.unique() == 1


def test_a_codebook_that_is_taken_over_is_not_set_anew():
    with pytest.raises(BadInput, match="free_steps=4: must be 0 with start"):
        build_tokenizer(stage("first", start="anything"), "nowhere")
    registered = [recipe(name) for name in recipes]
    assert not any(r.free_steps for r in registered if r.kind == "tokenizer" and r.start)


def test_extraction_and_the_published_layout(tmp_path):
    "Two levels from a tokenizer into a store, into the authors' files, and back."
    model, source = small().eval(), Shapes(6, 32)
    store = extract_codes(model, source, tmp_path / "codes", Augment("ten-crop", 32, crop_range=1.1), progress=False)
    assert isinstance(store, CodeStore) and store.vocab == (16, 32) and store.grid == (4, 4)
    export_codes(store, "iar2", tmp_path / "shapes_codes")
    file = np.load(tmp_path / "shapes_codes" / "3.npy")
    assert file.shape == (2, 1, 10, 16) and file.dtype == np.int64
    again = IAR2Codes(tmp_path / "shapes_codes", vocab=(16, 32), classes=10)
    assert torch.equal(again[3][0], store[3][0]) and again[3][1] == store[3][1]
    by_words = open_codes(f"iar2://{tmp_path / 'shapes_codes'}?vocab=16,32&classes=10")
    assert by_words.vocab == (16, 32) and torch.equal(by_words[3][0], store[3][0])
    with pytest.raises(BadInput, match="vocab='16,x': must be a whole number"): open_codes("iar2://x?vocab=16,x")


def test_the_script_rebuilds_from_one_level_or_both(tmp_path, monkeypatch):
    from scripts.reconstruct import main
    model = small().eval()
    save_model(tmp_path / "model", model, model.config)
    words = ["--tokenizer", str(tmp_path / "model"), "--data", "shapes://?n=6&size=32", "--size", "32"]
    found = {}
    for levels in (1, 2):
        out = tmp_path / f"rebuilt{levels}.npz"
        assert main([*words, "--out", str(out), "--levels", str(levels)]) == 0
        found[levels] = np.load(out)["arr_0"], json.loads(out.with_suffix(".json").read_text())
    assert len(found[1][1]["levels"]) == 1 and len(found[2][1]["levels"]) == 2
    assert found[1][0].shape == (6, 32, 32, 3) and not np.array_equal(found[1][0], found[2][0])
    with pytest.raises(BadInput, match="levels=3"): main([*words, "--out", str(tmp_path / "x.npz"), "--levels", "3"])
    assert not Path(tmp_path / "x.npz").exists()


def test_the_script_overwrites_nothing(tmp_path):
    from scripts.reconstruct import main
    model = small().eval()
    save_model(tmp_path / "model", model, model.config)
    words = ["--tokenizer", str(tmp_path / "model"), "--data", "shapes://?n=2&size=32", "--size", "32"]
    out, crops = tmp_path / "a.npz", tmp_path / "crops.npz"
    same = str(tmp_path / "model" / ".." / "a.npz")
    with pytest.raises(BadInput, match="originals=.*another file than out"):
        main([*words, "--out", str(out), "--originals", same])
    assert not out.exists()

    out.with_suffix(".json").write_text("mine")
    with pytest.raises(BadInput, match="out=.*a.json.*exists already"): main([*words, "--out", str(out)])
    assert out.with_suffix(".json").read_text() == "mine" and not out.exists()

    out.with_suffix(".json").unlink()
    assert main([*words, "--out", str(out), "--originals", str(crops)]) == 0
    assert np.load(out)["arr_0"].shape == np.load(crops)["arr_0"].shape == (2, 32, 32, 3)
    assert main([*words, "--out", str(out), "--overwrite"]) == 0


def test_the_script_keeps_crops_only_where_they_are_asked_for():
    from scripts.reconstruct import Options, measured
    model, source = small().eval(), Shapes(6, 32)
    def crops(originals):
        o = Options(Path("model"), "shapes://", Path("a.npz"), originals, size=32, batch=4)
        return measured(o, model, source, 6)[1]
    assert crops(None) is None and crops(Path("b.npz")).shape == (6, 32, 32, 3)
