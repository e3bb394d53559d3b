"D-AR's tokenizer: a line of tokens whose beginnings are pictures, and a decoder whose noise belongs to the sample."
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from vgnb.core import BadInput, Mismatch
from vgnb.data.transforms import resize_bicubic, to_uint8
from vgnb.draws import At, Keyed
from vgnb.kinds import changed, from_json, to_json
from vgnb.saved import load_model, save_model
from vgnb.tokenizers.dar_tokenizer import (
    DAR_TOKENIZER,
    DARTokenizer,
    DARTokenizerConfig,
    dar_tokenizer_config,
    dar_tokenizer_spec,
)
from vgnb.tokenizers.flow_decoder import FlowConfig, FlowNet, flow_plan, window_start
from vgnb.tokenizers.fsq import FSQConfig
from vgnb.tokenizers.pictures import codes_of, pictures
from vgnb.tokenizers.quantizers import VectorConfig, VectorQuantizer, usage_of
from vgnb.views.desk import reconstruct
from vgnb.zoo import export_published, load_published

FLOW = FlowConfig(32, 2, 4, 32, 16, teacher_layer=1, teacher_hidden=8, teacher_width=8)
CONFIG = DARTokenizerConfig(VectorConfig(32, 4, usage=256), flow=FLOW, width=32, layers=1, decoder_layers=2, patch=8,
                            head=16, queries=16, rows=32, groups=4, steps=4, resolution=32)

# what the authors' arguments can't say
THEIR_HEAD = dict(teacher_hidden=2048, teacher_width=768)
THEIR_SIZES = dict(quantizer=dict(usage=65536), head=64, width=64, rows=1024,
                   flow=dict(width=64, cond=64, head=64, **THEIR_HEAD))


def awake(module):
    "Every vector and matrix that starts at zero is drawn, so that each part of the network has a say."
    torch.manual_seed(1)
    for p in module.parameters():
        if not p.any(): torch.nn.init.normal_(p, std=0.3)
    return module.eval()


def small(**changes) -> DARTokenizer:
    torch.manual_seed(0)
    return awake(DARTokenizer(changed(CONFIG, **changes)))


@pytest.fixture(scope="module")
def model(): return small()


@pytest.fixture(scope="module")
def images(): return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.fixture(scope="module")
def codes(model, images): return model.encode(images)


def autocast(call, *args):
    with torch.autocast("cpu", torch.bfloat16): return call(*args)


def noise(*ids): return dict(draws=Keyed(7), at=At(torch.tensor(ids)))


def test_codes_are_a_line_of_one_length_for_each_size(model, codes):
    assert codes.shape == (5, 16) == (5, *model.code_shape(32, 32)) and model.vocab == (32,) and model.dims == 1
    wide = model.encode(torch.zeros(1, 3, 16, 64))
    assert wide.shape == (1, 16) == (1, *model.code_shape(16, 64))
    assert torch.equal(model.untoken(model.tokens(codes)), codes) and model.tokens(codes).shape == (5, 16, 1)
    assert codes_of(model, torch.zeros(3, 3, 32, 32), rows=2).shape == (3, 16, 1)


def test_a_query_does_not_see_later_ones(model, images):
    before = model.encoder(images)
    changed_query = small()
    changed_query.encoder.queries.weight.data[9] += 1
    after = changed_query.encoder(images)
    same = (before == after).all(-1).all(0)
    assert same[:9].all() and not same[9:].any()


@torch.no_grad()
def test_bytes_are_equal_at_any_batch_size(model, codes):
    ids = torch.tensor([4, 11, 0, 7, 3])
    tokens = model.tokens(codes)
    whole = pictures(model, tokens, ids=ids, draws=Keyed(7), rows=4)
    alone = [pictures(model, tokens[i:i + 1], ids=ids[i:i + 1], draws=Keyed(7), rows=4)[0] for i in range(5)]
    assert np.array_equal(whole, np.stack(alone))
    assert (pictures(model, tokens, ids=ids + 1, draws=Keyed(7), rows=4) != whole).any()


@torch.no_grad()
def test_noise_belongs_to_seed_and_sample(model, codes):
    made = model.decode(codes, **noise(0, 1, 2, 3, 4))
    again = model.decode(codes.flip(0), **noise(4, 3, 2, 1, 0)).flip(0)
    torch.testing.assert_close(made, again, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.decode(codes), model.decode(codes, draws=Keyed(0), at=At(torch.arange(5))))
    other = model.decode(codes, draws=Keyed(8), at=At(torch.arange(5)))
    assert not torch.allclose(made, other, atol=1e-2)


@pytest.mark.parametrize("changes", [
    {},
    {"solver": "euler"},
    {"steps": 7},
    {"window": 6},
    {"groups": 8, "window": 6, "steps": 3},
    {"decoder_layers": 0, "rank": None},
    {"output": 24},
    {"flow": {"shared_time": True, "adaptive_head": True}},
])
@torch.no_grad()
def test_one_pass_gives_every_preview_and_tokens_can_come_one_by_one(changes, images):
    model = small(**changes)
    codes = model.encode(images[:2])
    plan, kw = model.plan(), noise(5, 9)
    whole = model.decode(codes, **kw)
    together = model.previews(codes, **kw)
    assert together.shape[:2] == (2, plan.steps) and torch.equal(together[:, -1], whole)

    for k in range(1, plan.steps + 1):
        beginning = codes[:, :plan.needs(k)]
        assert torch.equal(model.preview(beginning, k, **kw), together[:, k - 1]), "its tokens are enough"

    state, shown = model.open(kw["at"], kw["draws"]), []
    for column in codes.T: shown.append(model.push(state, column[:, None]))
    shown = [picture for picture in shown if picture is not None]
    assert torch.equal(shown[-1], whole) and all(any(torch.equal(s, p) for p in together.unbind(1)) for s in shown)

    state = model.open(kw["at"], kw["draws"])
    assert torch.equal(model.push(state, codes[..., None]), whole)
    assert model.push(state, codes[:, :0]) is None


@torch.no_grad()
def test_a_preview_of_a_beginning_knows_nothing_of_the_rest(model, codes):
    other = codes.clone()
    other[:, 8:] = (other[:, 8:] + 5) % 32
    ours, theirs = (model.previews(c, **noise(0, 1, 2, 3, 4)) for c in (codes, other))
    assert torch.equal(ours[:, :2], theirs[:, :2]) and not torch.equal(ours[:, 2], theirs[:, 2])
    assert model.previews(codes[:, :11], **noise(0, 1, 2, 3, 4)).shape[1] == 2


@torch.no_grad()
def test_any_size(model, codes):
    assert model.decode(codes, resolution=(48, 64)).shape == (5, 3, 48, 64)
    assert model.decode(codes[:1], resolution=16).shape == (1, 3, 32, 32), "the configuration's is the least"
    assert model.previews(codes[:1], resolution=(32, 36)).shape == (1, 4, 3, 32, 36)
    assert model.preview(codes[:1], 1, resolution=40).shape == (1, 3, 40, 40)
    state = model.open(At(torch.arange(1)), resolution=40)
    assert torch.equal(model.push(state, codes[:1]), model.decode(codes[:1], resolution=40))
    image = torch.rand(1, 3, 40, 64) * 2 - 1
    assert model(image).output.shape == image.shape
    assert pictures(model, model.tokens(codes), size=48).shape == (5, 48, 48, 3)


@torch.no_grad()
def test_size_resizes_what_is_drawn(model, codes):
    "As everywhere: the picture of the tokenizer's own resolution, or of the one that is asked for, made bicubic."
    for own in ({}, {"resolution": 40}):
        whole = model.decode(codes, **own)
        for size in (48, (20, 30), 17):
            assert torch.equal(model.decode(codes, size=size, **own), resize_bicubic(whole, size))
    shown = model.previews(codes, size=20)
    assert torch.equal(shown[:, 1], resize_bicubic(model.previews(codes)[:, 1], 20))
    assert torch.equal(model.preview(codes, 2, size=20), shown[:, 1])
    state = model.open(At(torch.arange(5)), size=20)
    assert torch.equal(model.push(state, codes), shown[:, -1])
    tokens = model.tokens(codes)
    small_ones, drawn = (pictures(model, tokens, size=size, rows=5) for size in (16, None))
    assert small_ones.shape == (5, 16, 16, 3) and drawn.shape == (5, 32, 32, 3)
    cut = small(output=24)
    assert cut.decode(codes).shape[-1] == 24 and cut.decode(codes, size=28).shape[-1] == 28


@torch.no_grad()
def test_an_image_to_begin_with(model, codes, images):
    begun = [model.redraw(codes, images, start, **noise(0, 1, 2, 3, 4)) for start in range(4)]
    assert not torch.equal(begun[0], begun[1])
    zero = model.redraw(codes, images, 0, **noise(0, 1, 2, 3, 4))
    torch.testing.assert_close(zero, model.decode(codes, **noise(0, 1, 2, 3, 4)))
    twice = small(compat="upstream")
    assert torch.equal(twice.redraw(codes, images, 1, **noise(0, 1, 2, 3, 4)), begun[2]), "cut at 1, and once more"
    with pytest.raises(BadInput, match="start=2: must be an integer >= 0 and <= 1"): twice.redraw(codes, images, 2)


def test_a_training_step_looks_once(images):
    model = small().train()
    at = At(torch.arange(5), step=3)
    made = model(images, Keyed(0), at)
    extras = made.extras
    assert made.output.shape == images.shape and extras["features"].shape == (5, 64, 8)
    data = CONFIG.flow.data_std * images
    torch.testing.assert_close(extras["noisy"] + (1 - extras["time"])[:, None, None, None] * extras["target"], data)

    loss = (extras["velocity"] - extras["target"]).square().mean() + extras["features"].square().mean()
    (loss + sum(made.quantized.losses.values())).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert torch.equal(model(images, Keyed(0), at).output, made.output) and usage_of(model)["usage"] > 0
    with pytest.raises(BadInput, match="training needs draws and at"): model(images)


def test_only_tokens_that_were_looked_at_are_pulled_to_the_codebook(images):
    model = small().train()
    features = model.features(images).detach().requires_grad_()
    t = torch.tensor([0.0, 0.3, 0.5, 0.8, 1.0])
    q = model.quantized(features, t, Keyed(0), At(torch.arange(5)))
    q.losses["commit"].backward()
    ends = model.first_tokens(t) + 4
    pulled = features.grad.abs().sum(1) > 0
    assert ends.tolist() == [4, 8, 12, 16, 16]
    assert torch.equal(pulled, torch.arange(16) < ends[:, None])
    plain = model.quantizer(features[4:], learn=False).losses
    alone = model.quantized(features[4:], t[4:], Keyed(0), At(torch.arange(1))).losses
    for name, value in plain.items(): torch.testing.assert_close(alone[name], value)


class Half:
    "One of two processes, which knows what both have."
    def __init__(self, both):
        self.both = both

    def sum(self, x): return self.both
    def gather(self, x): return torch.cat((x, x))


def test_two_processes_train_the_codebook_as_one_does(images):
    "Each divides by the tokens that all processes saw, so that the mean of their losses is the loss of the whole."
    model, t = small().train(), torch.tensor([0.0, 0.3, 0.5, 1.0])
    features = model.features(images[:4]).detach()
    at = At(torch.arange(4))
    whole = model.quantized(features, t, Keyed(0), at).losses
    counts = model.first_tokens(t) + 4
    model.quantizer.sync = Half(torch.tensor([counts.sum(), 2.0]))
    halves = [model.quantized(features[i], t[i], Keyed(0), At(at.ids[i])).losses for i in (slice(0, 2), slice(2, 4))]
    for name, value in whole.items(): torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, value)


def test_weights_of_features():
    torch.manual_seed(0)
    z, weights = torch.randn(3, 4, 6), torch.rand(3, 6)
    for config in (VectorConfig(16, 4), VectorConfig(16, 4, legacy=True, entropy=0.1)):
        q = VectorQuantizer(config)
        plain, even = q(z, learn=False).losses, q(z, learn=False, weights=torch.full((3, 6), 0.3)).losses
        for name, value in plain.items(): torch.testing.assert_close(even[name], value)
        one = q(z, learn=False, weights=(torch.arange(6) < 2).expand(3, 6)).losses
        part = q(z[..., :2], learn=False).losses
        for name in ("vq", "commit"): torch.testing.assert_close(one[name], part[name])
        w, found = weights.flatten(), q(z, learn=False, weights=weights).losses["vq"]
        x, rows = q.flat(z), q.find(q.flat(z), learn=False)[1]
        factor = config.beta if config.legacy else 1
        torch.testing.assert_close(found, factor * (w * (x - rows).square().mean(1)).sum() / w.sum())


def test_a_table_that_cannot_leave_tokens_out_is_refused(images, monkeypatch):
    class Stubborn(VectorQuantizer):
        def forward(self, z, draws=None, at=None, learn=True): return super().forward(z, draws, at, learn)

    free = DARTokenizer(replace(CONFIG, quantizer=FSQConfig((4, 4, 3)))).train()
    assert not free(images, Keyed(0), At(torch.arange(5))).quantized.losses
    monkeypatch.setattr("vgnb.tokenizers.dar_tokenizer.build_quantizer", lambda config, compat: Stubborn(config))
    with pytest.raises(BadInput, match="quantizer='Stubborn': has a table"): DARTokenizer(CONFIG)


@torch.no_grad()
def test_codes_are_looked_at_once_a_push(model, codes, monkeypatch):
    looked = []
    real = DARTokenizer._check_codes
    monkeypatch.setattr(DARTokenizer, "_check_codes", lambda self, c: looked.append(c) or real(self, c))
    state = model.open(At(torch.arange(5)))
    for part in codes.split(4, 1): model.push(state, part)
    assert [c.shape[1] for c in looked] == [4, 4, 4, 4]
    with pytest.raises(BadInput, match="at most 16 tokens"): model.push(state, codes[:, :1])
    assert torch.equal(state.codes, codes), "what is refused changes nothing"


def test_unquantized_steps_and_a_first_codebook(images):
    model = small().train()
    made = model(images, Keyed(0), At(torch.arange(5)), quantize=False)
    assert made.quantized.codes is None and not made.quantized.losses
    before = model.quantizer.table.clone()
    model.kmeans_init(images, Keyed(0))
    assert not torch.equal(before, model.quantizer.table)


@torch.no_grad()
def test_continuous_has_pictures_but_no_codes(images):
    model = small(continuous=True)
    q = model.quantize(images)
    assert model.vocab is None and q.codes is None and q.z.shape == (5, 4, 16)
    torch.testing.assert_close(q.z.norm(dim=1), torch.ones(5, 16))
    assert model.render(q.z, **noise(0, 1, 2, 3, 4)).shape == images.shape
    for call in (lambda: model.encode(images), lambda: model.decode(torch.zeros(1, 16, dtype=torch.int64)),
                 lambda: model.open(At(torch.arange(1)))):
        with pytest.raises(BadInput, match="continuous"): call()


def test_the_teachers_head_runs_only_when_asked(images):
    model = small()
    runs = []
    hook = model.flow.teacher.register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        model.previews(model.encode(images))
        assert not runs
        net, x, cond = model.flow, torch.zeros(1, 3, 32, 32), torch.zeros(1, 4, 32)
        assert net(x, torch.zeros(1), cond)[1] is None and not runs
        assert net(x, torch.zeros(1), cond, features=True)[1].shape == (1, 64, 8) and runs
    hook.remove()
    deep = awake(FlowNet(replace(FLOW, teacher_grid=2)))
    with torch.no_grad(): assert deep(x, torch.zeros(1), cond, features=True)[1].shape == (1, 4, 8)
    assert FlowNet(replace(FLOW, teacher_layer=None)).teacher is None


@pytest.mark.parametrize("steps,groups,queries,window", [
    (8, 8, 256, 32),
    (3, 7, 23, 12),
    (7, 7, 23, 4),
    (50, 8, 256, 32),
    (1, 1, 1, 1),
])
def test_windows_lie_on_the_line_and_move_on(steps, groups, queries, window):
    plan = flow_plan(steps, groups, queries, window, 2.0)
    firsts = [first for first, _ in plan.windows]
    assert plan.steps == steps and firsts == sorted(firsts) and firsts[0] == 0
    assert all(end - first == window and end <= queries for first, end in plan.windows)
    assert plan.times[0] == 0 and plan.times[-1] == 1 and list(plan.times) == sorted(plan.times)
    exact = window_start(torch.arange(groups) / groups, groups, queries, 1)
    assert exact.tolist() == [g * queries // groups for g in range(groups)]


def read_by(*numbers) -> set[int]:
    "The tokens that some step is told."
    return {token for first, end in flow_plan(*numbers).windows for token in range(first, end)}


@pytest.mark.parametrize("steps,groups,queries,window", [
    (5, 5, 64, 13), (8, 8, 256, 64), (50, 8, 256, 32), (9, 8, 256, 32), (3, 8, 256, 96), (6, 4, 24, 10), (1, 3, 4, 4)])
def test_a_plan_reads_every_token(steps, groups, queries, window):
    assert read_by(steps, groups, queries, window) == set(range(queries))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_fewer_steps_skip_all_groups_alike(steps):
    assert read_by(steps, 8, 256, 32) == {n for n in range(256) if n // 32 % (8 // steps) == 0}


@pytest.mark.parametrize("steps,groups,queries,window,words", [
    (5, 5, 64, 12, "window=12: must be at least 13"),
    (8, 8, 256, 10, "window=10: must be at least 32"),
    (8, 7, 256, 36, "window=36: must be at least 37"),
    (3, 8, 256, 32, "steps=3: must be one of 1, 2, 4, or at least 8"),
    (7, 8, 256, 32, "steps=7: must be one of 1, 2, 4, or at least 8"),
    (3, 5, 50, 10, "steps=3: must be one of 1, or at least 5"),
    (2, 3, 30, 14, "steps=2: must be one of 1, or at least 3")])
def test_a_plan_that_leaves_tokens_unread_is_refused_but_for_the_published_one(steps, groups, queries, window, words):
    with pytest.raises(BadInput) as e: flow_plan(steps, groups, queries, window)
    assert words in str(e.value)
    published = flow_plan(steps, groups, queries, window, compat="upstream")
    assert len({n for first, end in published.windows for n in range(first, end)}) < queries


@pytest.mark.parametrize("changes,words", [
    (dict(groups=5), "groups=5: must divide queries=16, or window must be at least 4"),
    (dict(groups=5, window=3), "window=3: must be at least 4"),
    (dict(window=3), "window=3: must be at least 4"),
    (dict(steps=3), "steps=3: must be one of 1, 2, or at least 4")])
def test_a_configuration_that_leaves_tokens_unread_is_refused_but_for_the_published_one(changes, words):
    with pytest.raises(BadInput) as e: changed(CONFIG, **changes)
    assert words in str(e.value)
    assert changed(CONFIG, **changes, compat="upstream").groups == changes.get("groups", 4)
    said = dar_tokenizer_spec(changed(CONFIG, **THEIR_SIZES)) | {
        {"groups": "num_query_groups", "window": "queries_per_step", "steps": "num_denoising_steps"}[name]: value
        for name, value in changes.items()}
    if "window" not in changes and "groups" in changes: del said["queries_per_step"]
    with pytest.raises(BadInput, match="num_query_groups=|queries_per_step=|num_denoising_steps="):
        dar_tokenizer_config(said)
    assert dar_tokenizer_config(said, compat="upstream").compat == "upstream"


@torch.no_grad()
def test_every_preview_comes_one_after_the_other(model, codes):
    "Also where a group of tokens allows several steps, or all tokens come at once."
    for steps in (None, 8):
        together = model.previews(codes, steps=steps, **noise(0, 1, 2, 3, 4))
        for pieces in ((16,), (4, 4, 4, 4), (1, 9, 6)):
            state, shown = model.open(At(torch.arange(5)), Keyed(7), steps=steps), []
            for part in codes.split(pieces, 1): shown += model.refine(state, part)
            assert torch.equal(torch.stack(shown, 1), together)


@torch.no_grad()
def test_rows_of_another_shape_are_refused_and_so_is_what_is_no_number(model, codes):
    z = model.lookup(codes)
    assert torch.equal(model.render(z), model.decode(codes))
    for wrong, words in ((z[..., :15], "z=(5, 4, 15)"), (torch.cat((z, z[..., :1]), -1), "z=(5, 4, 17)"),
                         (z[:, :3], "z=(5, 3, 16)"), (z[0], "z=(4, 16)"), (z[:0], "z=(0, 4, 16)"), (codes, "z=(5, 16)"),
                         (z.tolist(), "z='list'"), (z * float("nan"), "z=nan"), (z / 0, "z=")):
        with pytest.raises(BadInput) as e: model.render(wrong)
        assert str(e.value).startswith(words) and ("(b, 4, 16)" in str(e.value) or "finite" in str(e.value))
    assert model.conditions(z[..., :3]).shape == (5, 3, 32)
    for wrong in (torch.cat((z, z), -1), z[..., :0], z[:, :3]):
        with pytest.raises(BadInput, match="z=.*of all tokens, or of the first ones"): model.conditions(wrong)


@torch.no_grad()
def test_a_state_is_asked_only_what_it_can_say(model, codes):
    state, conditions = model.open(At(torch.arange(5))), model.conditions(model.lookup(codes))
    with pytest.raises(BadInput, match="state=0: has taken no step"): model.seen(state)
    with pytest.raises(BadInput, match=r"conditions=\(5, 3, 32\): must have at least 4 tokens for step 1"):
        model.advance(state, conditions[:, :3])
    for _ in range(4): model.advance(state, conditions)
    with pytest.raises(BadInput, match="state=4: has taken all 4 steps"): model.advance(state, conditions)
    assert torch.equal(model.seen(state), model.decode(codes))


@torch.no_grad()
def test_an_image_to_begin_with_is_not_stretched(model, codes):
    wide = torch.rand(5, 3, 40, 64) * 2 - 1
    drawn = model.redraw(codes, wide, 1)
    assert drawn.shape == wide.shape and torch.equal(drawn, model.redraw(codes, wide, 1, resolution=(40, 64)))
    for images, kw, words in (
            (torch.zeros(5, 3, 32, 32), dict(resolution=40), "images=(5, 3, 32, 32): must be (5, 3, 40, 40)"),
            (torch.zeros(5, 3, 16, 48), {}, "images=(5, 3, 16, 48): must be (5, 3, 32, 48)"),
            (torch.zeros(5, 3, 34, 34), {}, "images=(34, 34): must be multiples of the decoder's patch"),
            (torch.zeros(5, 3, 32, 32), dict(resolution=34), "resolution=34"),
            (torch.zeros(4, 3, 32, 32), {}, "codes=(5, 16): must have a row for each of the 4 images")):
        with pytest.raises(BadInput) as e: model.redraw(codes, images, 1, **kw)
        assert str(e.value).startswith(words)
    for wrong in (codes[0], codes[:, :15]):
        with pytest.raises(BadInput, match="^codes="): model.redraw(wrong, torch.zeros(5, 3, 32, 32), 1)


@torch.no_grad()
def test_the_desk_rebuilds_pictures_of_any_side(images):
    "Large ones as large, and small ones, which are drawn larger, small."
    for model in (small(), small(continuous=True)):
        for sides in ((32, 32), (48, 64), (16, 16)):
            picture = np.zeros((1, *sides, 3), np.uint8)
            assert reconstruct(model, picture).shape == picture.shape
    model, large = small(), (torch.rand(1, 3, 64, 64) * 255).byte()
    made = model(large / 127.5 - 1).output
    assert np.array_equal(reconstruct(model, large.movedim(1, -1).numpy()), to_uint8(made).numpy())
    with pytest.raises(BadInput, match="images=30"): reconstruct(model, np.zeros((1, 30, 32, 3), np.uint8))


def test_saved_loaded_and_recognised(tmp_path, model, images):
    save_model(tmp_path / "own", model, model.config)
    back = load_model(tmp_path / "own").eval()
    assert back.coding() == model.coding() and back.config == model.config
    assert torch.equal(back.encode(images), model.encode(images))
    assert from_json(to_json(model.config), DARTokenizerConfig) == model.config

    torch.manual_seed(0)
    theirs = awake(DARTokenizer(changed(CONFIG, **THEIR_SIZES)))
    entries = export_published(theirs)
    torch.save({"ema": entries, "model": {k: v + 1 for k, v in entries.items()}, "steps": 7}, tmp_path / "t.pt")
    said = dar_tokenizer_spec(theirs.config)
    read = load_published(tmp_path / "t.pt", said)
    assert torch.equal(read.encode(images), theirs.encode(images))
    last = load_published(tmp_path / "t.pt", said, prefer=("model",))
    assert torch.equal(last.to_code.weight, theirs.to_code.weight + 1)
    whole = load_published(tmp_path / "t.pt", {"model": said}, "dar")                # their YAML as it is
    assert torch.equal(whole.encode(images), theirs.encode(images))
    wider = said | {"encoder_dim": 128}
    with pytest.raises(Mismatch): load_published(tmp_path / "t.pt", wider)
    with pytest.raises(Mismatch, match="is no published size; give its arguments"): load_published(tmp_path / "t.pt")


def test_settings_pickled_beside_the_weights_are_read_without_their_class(tmp_path, images):
    torch.manual_seed(0)
    model = awake(DARTokenizer(changed(CONFIG, **THEIR_SIZES)))
    module = type(sys)("config_util")
    exec("class Config:\n    def __init__(self, data): self._data = data", module.__dict__)
    sys.modules["config_util"] = module
    config = module.Config({"model": dar_tokenizer_spec(model.config), "other": 1})
    torch.save({"model": export_published(model), "config": config}, tmp_path / "D-AR-tokenizer_v1.pt")
    del sys.modules["config_util"]

    read = load_published(tmp_path / "D-AR-tokenizer_v1.pt")
    assert read.config.groups == 4 and torch.equal(read.encode(images), model.encode(images))
    assert torch.equal(read.decode(read.encode(images)), model.decode(model.encode(images)))


def test_settings_that_cannot_be_are_refused_by_name(tmp_path):
    torch.manual_seed(0)
    model = DARTokenizer(changed(CONFIG, **THEIR_SIZES))
    said, entries = dar_tokenizer_spec(model.config), export_published(model)
    for decoder, words in ((3, "diff_decoder=3"), (said["diff_decoder"] | {"data_std": "x"}, "data_std='x'")):
        config = {"model": said | {"diff_decoder": decoder}}
        torch.save({"model": entries, "config": config}, tmp_path / "t.pt")
        with pytest.raises(BadInput, match=words): load_published(tmp_path / "t.pt")


SAID = dar_tokenizer_spec(changed(CONFIG, **THEIR_SIZES))


def of_decoder(**words) -> dict: return SAID | {"diff_decoder": SAID["diff_decoder"] | words}


def without(*words) -> dict: return {k: v for k, v in SAID.items() if k not in words}


@pytest.mark.parametrize("spec,words", [
    ([1], "spec=[1]: must be a mapping"),
    (None, "spec=None: must be a mapping"),
    ("v1", "spec='v1': must be a mapping"),
    ({"model": [1]}, "model=[1]: must be a mapping"),
    (SAID | {"enoder_dim": 64}, "'enoder_dim': must be one of .*did you mean encoder_dim"),
    (of_decoder(dat_std=0.6), "diff_decoder word='dat_std': must be one of .*did you mean data_std"),
    (without("vq_dim", "encoder_dim"), "must say encoder_dim, vq_dim"),
    (SAID | {"diff_decoder": {}}, "diff_decoder=.*must say dim, cond_dim, depth, patch_size"),
    (SAID | {"diff_decoder": 3}, "diff_decoder=3: must be a mapping"),
    (SAID | {"vq_enable": "false"}, "vq_enable='false': must be true or false"),
    (SAID | {"query_low_rank": 0}, "query_low_rank=0: must be true or false"),
    (of_decoder(mlp_head="false"), "diff_decoder.mlp_head='false': must be true or false"),
    (of_decoder(grad_checkpointing="no"), "diff_decoder.grad_checkpointing='no': must be true or false"),
    (SAID | {"encoder_dim": [1]}, "^encoder_dim=.1.: must be an integer"),
    (SAID | {"encoder_dim": 100}, "^encoder_dim=100: must be a multiple of the head's 64"),
    (SAID | {"num_encoder_layers": 2.5}, "^num_encoder_layers=2.5"),
    (SAID | {"vq_dim": "8"}, "^vq_dim='8'"),
    (SAID | {"vq_codebook_size": 0}, "^vq_codebook_size=0"),
    (SAID | {"sampling_resolution": 30}, "^sampling_resolution=30: must be a multiple of the decoder's patch"),
    (SAID | {"output_resolution": -1}, "^output_resolution=-1"),
    (SAID | {"rope_base_len": "1e4"}, "^rope_base_len='1e4'"),
    (SAID | {"decoder_dim": 128}, "^decoder_dim=128: must be as diff_decoder.cond_dim, 64"),
    (of_decoder(in_dim=4), "diff_decoder.in_dim=4: must be 3"),
    (of_decoder(out_dim=6), "diff_decoder.out_dim=6: must be 3"),
    (of_decoder(dim=100), "diff_decoder.dim=100: must be a multiple of the head's 64"),
    (of_decoder(depth=[2]), "diff_decoder.depth=.2.: must be an integer"),
    (of_decoder(time_shift=0), "diff_decoder.time_shift=0"),
    (of_decoder(mlp_head=True), "diff_decoder.mlp_head=True: needs share_time_encoding")])
def test_the_authors_arguments_are_read_word_by_word(spec, words):
    with pytest.raises(BadInput, match=words.replace("[1]", r"\[1\]")): dar_tokenizer_config(spec)


def test_the_authors_other_arguments_are_known():
    "What they read and never use, what they leave out, and what is off."
    few = without("decoder_dim", "queries_per_step", "sampling_resolution", "rope_base_len", "query_low_rank",
                  "vq_enable", "output_resolution")
    needed = ("dim", "cond_dim", "depth", "patch_size")
    few["diff_decoder"] = {k: SAID["diff_decoder"][k] for k in needed} | {"cfg": 1.5}
    found = dar_tokenizer_config(few)
    assert found.window is None and found.window_size == 4 and found.resolution == 256 and found.flow.data_std == 1.0
    assert dar_tokenizer_config(SAID, steps=2, flow={}).steps == 2
    for wrong, words in ((dict(widht=3), "field='widht'.*did you mean width"), (dict(flow=dict(dept=1)), "'dept'")):
        with pytest.raises(BadInput, match=words): dar_tokenizer_config(SAID, **wrong)
    for wrong in (dict(flow={}), dict(flow=None), dict(continuous="false"), dict(continuous=1)):
        with pytest.raises(BadInput, match=f"{next(iter(wrong))}="): DARTokenizerConfig(**wrong)
    for name in ("shared_time", "adaptive_head", "recompute"):
        with pytest.raises(BadInput, match=f"{name}='false': must be true or false"): FlowConfig(**{name: "false"})


def test_a_misspelt_word_of_a_published_file_is_named(tmp_path):
    torch.manual_seed(0)
    torch.save(export_published(DARTokenizer(changed(CONFIG, **THEIR_SIZES))), tmp_path / "t.pt")
    assert load_published(tmp_path / "t.pt", SAID).config.groups == 4
    for spec in (SAID | {"num_querygroups": 4}, {"model": SAID | {"num_querygroups": 4}}):
        with pytest.raises(BadInput, match="did you mean num_query_groups"): load_published(tmp_path / "t.pt", spec)
    with pytest.raises(BadInput, match="spec=.1.: must be a mapping"): load_published(tmp_path / "t.pt", [1])


@pytest.mark.parametrize("changes", [
    dict(head=32), dict(rows=512), dict(solver="euler"), dict(quantizer=dict(usage=256)), dict(flow=dict(head=32)),
    dict(flow=dict(teacher_hidden=8)), dict(flow=dict(teacher_width=8)), dict(flow=dict(teacher_grid=8)),
    dict(rank=4)])
def test_what_the_authors_arguments_cannot_say_is_not_exported(changes):
    theirs = changed(CONFIG, **THEIR_SIZES)
    assert DAR_TOKENIZER.owns(theirs) and not DAR_TOKENIZER.owns(changed(theirs, **changes))
    other = DARTokenizer(changed(theirs, **changes))
    with pytest.raises(BadInput, match="has no published form"): export_published(other)


def test_the_authors_arguments_there_and_back():
    other = dict(continuous=True, output=128, rank=None, steps=16)
    for config in (DARTokenizerConfig(), DARTokenizerConfig(**other), DARTokenizerConfig(window=64)):
        assert dar_tokenizer_config(dar_tokenizer_spec(config)) == config
    whole_group = dar_tokenizer_spec(DARTokenizerConfig()) | {"queries_per_step": 32}
    assert dar_tokenizer_config(whole_group).window is None, "said or left out, it is the same"
    with torch.device("meta"): v1, table = DAR_TOKENIZER.make(DAR_TOKENIZER.published[0].spec)
    state = table.export(v1.state_dict(), v1)
    assert DAR_TOKENIZER.recognise(state) == DAR_TOKENIZER.published[0].spec
    with torch.device("meta"): deeper, table = DAR_TOKENIZER.make(DAR_TOKENIZER.published[0].spec, layers=9)
    other = table.export(deeper.state_dict(), deeper)
    with pytest.raises(Mismatch, match="9 layers of width 768 .* is no published size"): DAR_TOKENIZER.recognise(other)
    assert sum(p.numel() for p in v1.parameters()) == 307_444_672
    with pytest.raises(BadInput, match="vq_dim"): dar_tokenizer_config({"model": {"diff_decoder": {}}})


@pytest.mark.parametrize("call,words", [
    (lambda m, c: m.decode(c, steps=0), "steps=0"),
    (lambda m, c: m.decode(c, steps=10 ** 9), "steps=1000000000: must be at most 10,000"),
    (lambda m, c: small(steps=10 ** 9), "steps=1000000000: must be at most 10,000"),
    (lambda m, c: dar_tokenizer_config(SAID | {"num_denoising_steps": 10 ** 9}), "num_denoising_steps=1000000000"),
    (lambda m, c: m.preview(c, 0), "k=0"),
    (lambda m, c: m.preview(c, 5), "k=5"),
    (lambda m, c: m.preview(c[:, :7], 2), "at least 8 tokens for k=2"),
    (lambda m, c: m.previews(c[:, :3]), "at least 4 tokens for the first preview"),
    (lambda m, c: m.decode(c, resolution=30), "resolution=30: must be multiples of the decoder's patch, 4"),
    (lambda m, c: m.open(At(torch.arange(2)), resolution=0), "resolution=0"),
    (lambda m, c: m.decode(c, size=0), "size=0"),
    (lambda m, c: m.decode(c[:, :15]), "16 tokens"),
    (lambda m, c: m.previews(torch.cat((c, c), 1)), "at most 16 tokens"),
    (lambda m, c: m.decode(c + 32), "[0, 32)"),
    (lambda m, c: m.decode(c.float()), "codes"),
    (lambda m, c: m.decode(c[:0]), "codes=(0, 16): must be of one picture at least"),
    (lambda m, c: m.preview(c[:0], 1), "codes=(0, 16): must be of one picture at least"),
    (lambda m, c: m.previews(c[:0]), "codes=(0, 16): must be of one picture at least"),
    (lambda m, c: m.decode(c, at=At(torch.arange(2))), "ids of 5 samples"),
    (lambda m, c: m.decode(c, at=torch.arange(5)), "at='Tensor': must be an At of the samples' ids"),
    (lambda m, c: m.decode(c, at=At(torch.rand(5))), "at='At': must be an At of the samples' ids"),
    (lambda m, c: m.previews(c, at=At(torch.arange(5)[:, None])), "at='At': must be an At of the samples' ids"),
    (lambda m, c: m.open([0, 1]), "at='list': must be an At of the samples' ids"),
    (lambda m, c: m.decode(c, draws=0), "draws='int': must be draws, such as Keyed(seed)"),
    (lambda m, c: m.open(At(torch.arange(2)), torch.Generator()), "draws='Generator': must be draws"),
    (lambda m, c: m.push(m.open(At(torch.arange(2))), c), "a row for each of the 2 samples"),
    (lambda m, c: m.push(None, c), "state='NoneType': must be what `open` or `begin` gave"),
    (lambda m, c: m.seen("x"), "state='str': must be what `open` or `begin` gave"),
    (lambda m, c: m.advance(m.plan(), m.lookup(c)), "state='FlowPlan': must be what `open` or `begin` gave"),
    (lambda m, c: m.decode(c, resolution=100_000), "resolution=100000: must be at most 16,384"),
    (lambda m, c: m.decode(c, size=(32, 10 ** 9)), "size=1000000000: must be at most 16,384"),
    (lambda m, c: m.redraw(c, torch.zeros(5, 3, 32, 32), 4), "start=4"),
    (lambda m, c: m.redraw(c, torch.zeros(4, 3, 32, 32), 1), "images"),
    (lambda m, c: m.encode(torch.zeros(1, 3, 30, 32)), "multiples of 8"),
    (lambda m, c: small(groups=17), "groups=17"),
    (lambda m, c: small(groups=0), "groups=0"),
    (lambda m, c: small(groups="8"), "groups='8'"),
    (lambda m, c: small(rank=0), "rank=0"),
    (lambda m, c: small(window=17), "window=17"),
    (lambda m, c: small(queries=64), "queries=64"),
    (lambda m, c: small(resolution=30), "resolution=30"),
    (lambda m, c: small(head=24), "width=32"),
    (lambda m, c: small(solver="heun"), "solver='heun'"),
    (lambda m, c: small(flow=dict(adaptive_head=True)), "shared_time"),
])
def test_bad_input_is_one_error_that_names_it(model, codes, call, words):
    with pytest.raises(BadInput) as e: call(model, codes)
    assert words in str(e.value)


@torch.no_grad()
def test_half_precision_and_autocast_draw_the_same_pictures_roughly(images):
    adaptive = dict(flow=dict(shared_time=True, adaptive_head=True))
    model, half = small(**adaptive), small(**adaptive).bfloat16()
    codes = model.encode(images)
    whole = model.decode(codes)
    assert half.encode(images).shape == codes.shape
    for made in (half.decode(codes), autocast(model.decode, codes)):
        assert made.dtype == torch.float32 and (made - whole).abs().mean() < 0.1 * whole.abs().mean()
