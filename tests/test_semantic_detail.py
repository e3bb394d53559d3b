"The two-code transformer where a page has no room: resting branches, windows, attention, precisions, completion."
import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vgnb.core import BadInput, Mismatch
from vgnb.draws import At, Keyed
from vgnb.families import described, recognised
from vgnb.generators.generator import Cond, Grid
from vgnb.generators.raster import LLAMAGEN_GPT
from vgnb.generators.semantic_detail import (
    IAR2,
    SemanticDetailConfig,
    SemanticDetailTransformer,
    half_rate,
    iar2_config,
    iar2_names,
    window_cells,
    windows,
)
from vgnb.kinds import from_json, to_json
from vgnb.layers import first_weight, rotate
from vgnb.sampling.applications import Inpaint
from vgnb.sampling.attended_guidance import AttendedGuidance, iar2_guidance
from vgnb.sampling.guidance import CFG, GUIDANCES, Unguided
from vgnb.sampling.painting import Request
from vgnb.sampling.pick import Pick
from vgnb.sampling.sampler import Sampler
from vgnb.zoo import export_published, load_published

SMALL = SemanticDetailConfig(2, 48, 4, ffn_multiple=16, vocab=(12, 20), grid=(3, 4), classes=5, head_layers=2)
KINDS = {
    "full": SMALL,
    "half": replace(SMALL, rope_rate="half"),
    "grouped": replace(SMALL, kv_heads=1),
    "everywhere": replace(SMALL, class_everywhere=True),
    "turned": replace(SMALL, zero_prefix=False),
    "text": replace(SMALL, condition="text", text_dim=10, text_tokens=5),
    "one block": replace(SMALL, layers=1, head_layers=1)}
GRID = Grid((3, 4))


def build(config, seed=0):
    "A model whose outputs are not zero."
    m = SemanticDetailTransformer(config, seed).eval()
    g = torch.Generator().manual_seed(seed)
    for layer in m.outputs(): layer.weight.data.normal_(0, 0.3, generator=g)
    return m


def case(config, b=3, n=12, seed=0):
    "Codes (b, n, 2) and a condition; of the captions, two are padded."
    g = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(size, (b, n), generator=g) for size in config.vocab], -1)
    if config.condition == "class": return codes, Cond(torch.randint(config.classes, (b,), generator=g))
    mask = torch.arange(5) >= torch.tensor([0, 2, 4])[:, None]
    return codes, Cond(text=torch.randn(b, 5, 10, generator=g), mask=mask)


def cells_of(grid, b): return torch.arange(grid.n).expand(b, -1)


def decode(m, branches, codes, known=0, live=None, grid=GRID, state=None):
    "{(branch, level): {cell: logits (b, V)}} from the cache, and the state; `live[cell][level]`: branches that matter."
    state = m.begin(branches, grid, reuse=state)
    cells = cells_of(grid, len(codes))
    if known: m.accept(state, cells[:, :known], codes[:, :known])

    out = {}
    for i in range(known, grid.n):
        for level in range(2):
            now = live[i][level] if live else len(branches)
            given = codes[:, i:i + 1, :1] if level else None
            found = m.predict(state, cells[:, i:i + 1], given, live=now).logits
            for branch, logits in enumerate(found): out.setdefault((branch, level), {})[i] = logits[:, 0]
        m.accept(state, cells[:, i:i + 1], codes[:, i:i + 1])
    return out, state


def of_branch(found, level): return torch.stack(list(found[0, level].values()), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_cached_equals_full_whatever_rests(kind):
    "Three branches, one blind to some cells, each resting at random at either level; known prefixes of any length."
    m, state = build(KINDS[kind]), None
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        codes, cond = case(KINDS[kind], seed=seed)
        null = m.null(cond)
        third = replace(null, blind=torch.rand(3, 12, generator=g) < 0.3) if seed % 2 else cond
        branches = (cond, null, third)
        known = int(torch.randint(12, (), generator=g))
        live = torch.randint(1, 4, (12, 2), generator=g).tolist()

        full = [m.logits(codes, c) for c in branches]
        found, state = decode(m, branches, codes, known, live, state=state)
        for (branch, level), cells in found.items():
            for i, logits in cells.items():
                torch.testing.assert_close(logits, full[branch][level][:, i], atol=1e-5, rtol=1e-5)
    assert state.tokens.shape == (3, 12, 2)


def test_predict_twice_changes_nothing():
    "Either level may be asked again, and the second without the first."
    m, (codes, cond) = build(SMALL), case(SMALL)
    full = m.logits(codes, cond)
    state = m.begin((cond,), GRID)
    cells = cells_of(GRID, 3)
    m.accept(state, cells[:, :4], codes[:, :4])
    for given in (codes[:, 4:5, :1], None, None, codes[:, 4:5, :1], codes[:, 4:5, :1]):
        level = int(given is not None)
        logits = m.predict(state, cells[:, 4:5], given, live=1).logits[0, :, 0]
        torch.testing.assert_close(logits, full[level][:, 4], atol=1e-5, rtol=1e-5)


def test_no_causal_leak():
    "A cell's codes reach later cells only; the semantic code its own detail logits, too."
    m, (codes, cond) = build(SMALL), case(SMALL)
    full = m.logits(codes, cond)
    for cell in range(12):
        for level in range(2):
            other = codes.clone()
            other[:, cell, level] = (codes[:, cell, level] + 1) % SMALL.vocab[level]
            changed = [(a - b).abs().amax((0, 2)) > 0 for a, b in zip(m.logits(other, cond), full)]
            later = torch.arange(12) > cell
            assert torch.equal(changed[0], later)
            assert torch.equal(changed[1], later | (torch.arange(12) == cell) if level == 0 else later)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (5, 2), (3, 3), (4, 7), (24, 24)])
def test_window_is_the_naive_one(shape):
    "Thirteen slots by rows and columns of a padded picture."
    h, w = shape
    x = torch.randn(2, h * w, 3)
    padded = F.pad(x.unflatten(1, shape), (0, 0, 2, 2, 2, 0))                # two columns at the sides, two rows above
    slots = [padded[:, 2 + dy:2 + dy + h, 2 + dx:2 + dx + w] for dy in (-2, -1) for dx in range(-2, 3)]
    slots += [padded[:, 2:, 2 + dx:2 + dx + w] for dx in (-2, -1, 0)]
    naive = torch.stack(slots, 3).flatten(1, 2)
    assert torch.equal(windows(x, window_cells(h, w), torch.zeros(3)), naive)


@pytest.mark.parametrize("shape", [(5, 6), (1, 7), (7, 1), (2, 2)])
def test_another_grid_than_in_training(shape):
    "Sampling on another grid has windows, a ring and a table of that grid."
    m, grid = build(SMALL), Grid(shape)
    codes, cond = case(SMALL, n=grid.n)
    for known in {0, grid.n - 1}:
        found, state = decode(m, (cond,), codes, known, grid=grid)
        for level, full in enumerate(m.logits(codes, cond, grid=grid)):
            torch.testing.assert_close(of_branch(found, level), full[:, known:], atol=1e-5, rtol=1e-5)
        assert state.ring.shape[1] == 2 * shape[1] + 4 and state.head_cache.length == 3


def materialised(m, codes, cond, grid):
    "The mean over heads of the last block's attention to the first place, (b, n), from the whole matrix."
    x = torch.cat((m.embed_condition(cond), m.embed(codes[:, :-1], m.embed_condition(cond), None)), 1)
    table = m.table(grid, "cpu")[:grid.n]
    x = m.blocks[:-1](x, table, "causal") if len(m.blocks) > 1 else x
    attention = m.blocks[-1].attention
    q, k, _ = attention.project(m.blocks[-1].norm1(x), table)
    scores = q @ k.repeat_interleave(attention.heads // attention.kv_heads, 1).mT / attention.channels ** 0.5
    seen = torch.ones(grid.n, grid.n, dtype=torch.bool).tril()
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)[..., 0].mean(1)


@pytest.mark.parametrize("kind", ["full", "half", "grouped", "turned", "one block"])
def test_class_attention_is_the_materialised_softmax(kind):
    "With zero keys in front and without; after a bulk of known cells; the same at both levels."
    m, (codes, cond) = build(KINDS[kind]), case(KINDS[kind])
    for block in m.blocks: block.attention.qkv.weight.data.mul_(20)
    want = materialised(m, codes, cond, GRID)
    for known in (0, 5):
        state, cells = m.begin((cond, m.null(cond)), GRID), cells_of(GRID, 3)
        if known: m.accept(state, cells[:, :known], codes[:, :known])
        for i in range(known, 12):
            for given in (None, codes[:, i:i + 1, :1]):
                got = m.predict(state, cells[:, i:i + 1], given, live=2).extras["class_attention"]
                torch.testing.assert_close(got, want[:, i], atol=1e-5, rtol=1e-4)
            m.accept(state, cells[:, i:i + 1], codes[:, i:i + 1])
    assert want.std() > 0.01


def test_class_attention_needs_a_class():
    m = build(KINDS["text"])
    codes, cond = case(KINDS["text"])
    assert "class_attention" not in m.traits
    assert m.predict(m.begin((cond,), GRID), cells_of(GRID, 3)[:, :1], live=1).extras == {}
    with pytest.raises(BadInput, match="class_attention"):
        Sampler(m, guidance=AttendedGuidance(), picks=(Pick(), Pick()))


def test_weight_of_bf16_queries_is_computed_in_fp32():
    q, k = torch.randn(2, 4, 1, 16).bfloat16(), torch.randn(2, 2, 9, 16).bfloat16()
    scores = q.double() @ k.double().repeat_interleave(2, 1).mT / 4
    exact = scores.softmax(-1)[:, :, 0, 0].mean(1).float()
    torch.testing.assert_close(first_weight(q, k), exact, atol=1e-6, rtol=1e-5)


GUIDED = AttendedGuidance((1.75, 1.5), (3.0, 4.0), 0.3)
PICKS = (Pick(top_k=6), Pick(0.8, top_p=0.9))


def drawn(m, ids, guidance=GUIDED, rows=4, seed=0, given=None, picks=PICKS, min_rows=None):
    ids = torch.tensor(ids)
    sampler = Sampler(m, guidance=guidance, picks=picks, rows=rows, min_rows=min_rows)
    return sampler.sample(Cond(ids % 5), ids, Keyed(seed), grid=GRID, given=given)


def test_sample_17_is_the_same_in_any_batch():
    m = build(SMALL)
    alone = drawn(m, [17])
    assert torch.equal(alone[0], drawn(m, list(range(12, 23)))[5])
    assert torch.equal(alone[0], drawn(m, [3, 17, 4])[1])
    assert not torch.equal(alone, drawn(m, [17], seed=1))


def test_guidance_by_hand():
    "The sampler's codes are those of a loop over teacher-forced logits, scales from the materialised attention."
    m = build(SMALL)
    cond = Cond(torch.tensor([3, 1]))
    codes = torch.zeros(2, 12, 2, dtype=torch.long)
    for i in range(12):
        omega = i / 11 + GUIDED.attention * materialised(m, codes, cond, GRID)[:, i]
        for level in range(2):
            on, off = (m.logits(codes, c)[level][:, i] for c in (cond, m.null(cond)))
            scale = (GUIDED.start[level] * (1 - omega) + GUIDED.end[level] * omega)[:, None]
            codes[:, i, level] = (off + (on - off) * scale).argmax(-1)

    sampler = Sampler(m, guidance=GUIDED, picks=(Pick(greedy=True),) * 2, rows=2)
    assert torch.equal(sampler.sample(cond, torch.arange(2), Keyed(0), grid=GRID), codes)


@pytest.mark.parametrize("scales, expected", [
    (((1.0, 3.0), (1.0, 3.0)), Unguided()),
    (((0.5, 3.0), (1.0, 1.0)), Unguided()),
    (((1.5, 3.0), (1.0, 4.0)), AttendedGuidance((1.5, 1.0), (3.0, 1.0), 0.2)),
    (((0.9, 3.0), (2.0, 4.0)), AttendedGuidance((1.0, 2.0), (1.0, 4.0), 0.2)),
    (((1.5, 1.0), (2.0, 4.0)), AttendedGuidance((1.5, 2.0), (1.0, 4.0), 0.2))])
def test_a_level_whose_scale_does_not_start_above_1_is_not_guided(scales, expected):
    found = iar2_guidance(scales, 0.2)
    assert found == expected and type(found) is type(expected)


def mixed(m, guidance):
    "Greedy codes of samples 4 and 9, and (level, branches asked, logits mixed) of each prediction."
    asked = []

    class Watched(type(guidance)):
        def mix(self, p, clock):
            out = super().mix(p, clock)
            asked.append((clock.level, len(p.logits), out))
            return out

    watched = Watched(guidance.start, guidance.end, guidance.attention)
    return drawn(m, [4, 9], watched, picks=(Pick(greedy=True),) * 2), asked


@pytest.mark.parametrize("level", [0, 1])
def test_one_guided_level(level):
    "The other level is as without guidance where the codes before are the same."
    m = build(SMALL)
    start, end = [(1.0, 1.0) if i != level else (2.0, 4.0) for i in range(2)]
    guidance = AttendedGuidance(tuple(s for s, _ in (start, end)), tuple(e for _, e in (start, end)), 0.1)
    codes, asked = mixed(m, guidance)
    for i in range(2): assert {live for lev, live, _ in asked if lev == i} == {2 if i == level else 1}

    plain = m.logits(codes, Cond(torch.tensor([4, 4])))
    for cell in range(12):
        for i in range(2):
            got = asked[2 * cell + i][2][:2, 0]            # of a padded batch
            same = torch.allclose(got, plain[i][:, cell], atol=1e-5, rtol=1e-4)
            assert same == (i != level)


def test_known_beginnings_stay_and_are_followed():
    "Half-image completion: the known half stays; what follows is what the model itself led to."
    m, greedy = build(SMALL), (Pick(greedy=True),) * 2
    whole = drawn(m, [0, 1, 2], picks=greedy)
    known = torch.arange(12).expand(3, -1) < 6
    assert torch.equal(drawn(m, [0, 1, 2], given=(whole, known), picks=greedy), whole)

    other = case(SMALL, seed=5)[0]
    assert torch.equal(drawn(m, [0, 1, 2], given=(other, known))[:, :6], other[:, :6])
    with pytest.raises(BadInput, match="can't fill gaps"): drawn(m, [0, 1, 2], given=(other, ~known))


def test_painting_a_lower_half():
    "As an application: rows from the second on made anew are the completion; a gap above is refused."
    m = build(SMALL)
    codes, cond = case(SMALL)
    sampler = Sampler(m, guidance=GUIDED, picks=PICKS, rows=4)
    request = Request(sampler, cond, torch.arange(3), Keyed(0), codes, GRID)
    lower = np.arange(3)[:, None].repeat(4, 1) > 0
    known = torch.arange(12).expand(3, -1) < 4
    completed = sampler.sample(cond, torch.arange(3), Keyed(0), grid=GRID, given=(codes, known))
    assert torch.equal(Inpaint(lower).paint(request).sample(), completed)
    with pytest.raises(BadInput, match="any_order"): Inpaint(~lower).paint(request)


def test_picks_are_one_a_level():
    "A single candidate at the first level; at the second the few likeliest of a sharpened distribution."
    m = build(SMALL)
    codes = drawn(m, list(range(6)), CFG(), picks=(Pick(top_k=1), Pick(3.0, top_k=2)))
    logits = m.logits(codes, Cond(torch.arange(6) % 5))
    assert torch.equal(codes[..., 0], logits[0].argmax(-1))
    among = (codes[..., 1:] == logits[1].topk(2).indices).any(-1)
    assert among.all() and not torch.equal(codes[..., 1], logits[1].argmax(-1))

    nucleus = drawn(m, list(range(6)), CFG(), picks=(Pick(), Pick(top_p=0.0)))
    assert torch.equal(nucleus[..., 1], m.logits(nucleus, Cond(torch.arange(6) % 5))[1].argmax(-1))


NOISY = replace(SMALL, class_dropout=0.5, token_dropout=0.2, residual_dropout=0.2, ffn_dropout=0.2, drop_path=0.3)


@pytest.mark.parametrize("config", [NOISY, replace(NOISY, condition="text", text_dim=10, text_tokens=5)],
                         ids=["class", "text"])
def test_masks_belong_to_samples_and_cells(config):
    "With every dropout on, a batch's loss is the mean of its parts', in any order."
    m, (codes, cond) = build(config).train(), case(config)

    def loss(rows, step=5, seed=3):
        at = At(torch.tensor(rows) + 7, step=step)
        return m(codes[rows], cond.rows(rows), Keyed(seed), at).total

    whole, parts = loss([0, 1, 2]), [loss([i]) for i in (2, 0, 1)]
    torch.testing.assert_close(whole, sum(parts) / 3)
    others = (loss([0, 1, 2], step=6), loss([0, 1, 2], seed=4))
    assert len({float(v.detach()) for v in (whole, *others)}) == 3


def test_loss_is_the_weighted_sum():
    m, (codes, cond) = build(replace(SMALL, semantic_weight=2.5)), case(SMALL)
    loss = m(codes, cond, Keyed(0), At(torch.arange(3)))
    by_hand = [F.cross_entropy(logits.flatten(0, 1), codes[..., i].flatten()) for i, logits in
               enumerate(m.logits(codes, cond))]
    torch.testing.assert_close(loss.total, 2.5 * by_hand[0] + by_hand[1])
    torch.testing.assert_close(list(loss.parts.values()), [part.detach() for part in by_hand])
    first = m(codes, cond, Keyed(0), At(torch.arange(3)), valid=torch.tensor([1, 0, 0])).total
    torch.testing.assert_close(first, m(codes[:1], cond.rows([0]), Keyed(0), At(torch.arange(1))).total)


def test_training_after_sampling():
    "Tables made under inference mode are usable by autograd; every parameter gets a gradient."
    m = build(SMALL)
    with torch.inference_mode(): drawn(m, [0, 1])
    codes, cond = case(SMALL)
    m.train()(codes, cond, Keyed(0), At(torch.arange(3))).total.backward()
    assert all(p.grad is not None for p in m.parameters())


def test_half_precision():
    "A bf16 model and bf16 autocast both sample; logits are fp32."
    m, (codes, cond) = build(SMALL), case(SMALL)
    exact, half = m.logits(codes, cond), copy.deepcopy(m).bfloat16()
    for model, auto in ((half, False), (m, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=auto):
            found, state = decode(model, (cond,), codes)
            forced = model.logits(codes, cond)
            loss = model(codes, cond, Keyed(0), At(torch.arange(3))).total
        assert state.head_cache.keys.dtype == torch.bfloat16 and loss.isfinite()
        for level in range(2):
            got = of_branch(found, level)
            assert got.dtype == forced[level].dtype == torch.float32
            torch.testing.assert_close(got, forced[level], atol=0.05, rtol=0.05)
            torch.testing.assert_close(got, exact[level], atol=0.1, rtol=0.1)
    assert drawn(half, [0, 1]).shape == (2, 12, 2)


def test_memory_is_taken_once():
    m, (codes, cond) = build(SMALL), case(SMALL)
    state = m.begin((cond, m.null(cond)), GRID)
    memory = (state.cache.keys, state.head_cache.keys, state.ring, state.slots, state.cache.weight)
    before = [t.data_ptr() for t in memory]
    found, again = decode(m, (cond, m.null(cond)), codes, state=state)
    assert again is state and before == [t.data_ptr() for t in memory]
    torch.testing.assert_close(of_branch(found, 1), m.logits(codes, cond)[1], atol=1e-5, rtol=1e-5)


def test_half_the_rate():
    "Cells 2i and 2i + 1 are turned alike, by what the full rate gives cell i."
    full, half = (build(KINDS[kind]).table(GRID, "cpu") for kind in ("full", "half"))
    assert torch.equal(half[1::2][:6], half[2::2]) and torch.equal(half[1::2], full[1:7])
    assert torch.equal(half, half_rate(full, 1)[:13])
    x = torch.randn(1, 13, 1, 12)
    assert torch.equal(rotate(x, half)[:, 0], torch.zeros(1, 1, 12))


def test_published_files():
    "IAR2's entries are told from LlamaGen's, with all sizes; a full-rate model has no published form."
    for published in IAR2.published:
        with torch.device("meta"): model, table = IAR2.make(published.spec)
        entries = table.export(model.state_dict())
        assert [match.family for match in recognised(entries)] == [IAR2]
        assert IAR2.read(IAR2.recognise(entries)) == model.config == IAR2.read(IAR2.write(model.config))
        assert [match.family for match in described(published.spec)] == [IAR2]
        assert not IAR2.owns(replace(model.config, rope_rate="full"))
    with torch.device("meta"): other, names = LLAMAGEN_GPT.make({"model": "GPT-B"})
    assert IAR2 not in [match.family for match in recognised(names.export(other.state_dict()))]

    m = build(KINDS["half"])
    theirs = iar2_names.export(m.state_dict())
    with pytest.raises(Mismatch, match="published size"): IAR2.recognise(theirs)
    theirs.pop("mlp2.0.bias")
    with pytest.raises(Mismatch, match="missing"): iar2_names.load(theirs, m)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "steps": 3, "optimizer": {}}],
                         ids=["bare", "wrapped"])
def test_published_file(wrap, tmp_path):
    "Bare (sharded training) or wrapped with the rest of a run (replicas); and back."
    m = build(replace(SMALL, rope_rate="half", grid=(4, 4)))
    file = tmp_path / "IAR2-B.pth"
    torch.save(wrap(iar2_names.export(m.state_dict())), file)
    loaded = load_published(file, IAR2.write(m.config))
    codes, cond = case(SMALL, n=16)
    assert all(map(torch.equal, loaded.logits(codes, cond), m.logits(codes, cond)))
    entries = export_published(loaded)
    assert all(torch.equal(entries[name], t) for name, t in iar2_names.export(m.state_dict()).items())
    with pytest.raises(BadInput, match="no published form"): export_published(build(SMALL))


def test_published_arguments_keep_the_weight_of_the_semantic_codes():
    for weight in (1.0, 2.0):
        config = iar2_config({"model": "GPT-B", "w1": weight})
        assert IAR2.write(config)["w1"] == config.semantic_weight == weight and IAR2.read(IAR2.write(config)) == config


def test_settings_are_values():
    for config in (*KINDS.values(), iar2_config({"model": "GPT-L"})): assert from_json(to_json(config)) == config
    assert from_json(to_json(GUIDED)) == GUIDED and GUIDANCES["attended"] == AttendedGuidance()


@pytest.mark.parametrize("call, words", [
    (lambda m, codes, cond: m.logits(codes[..., 0], cond), "codes="),
    (lambda m, codes, cond: m.logits(codes + 8, cond), "codes="),
    (lambda m, codes, cond: m.logits(codes[:, :-1], cond), "codes="),
    (lambda m, codes, cond: m.logits(codes.float(), cond), "codes="),
    (lambda m, codes, cond: m.logits(codes, Cond(torch.tensor([0, 1, 6]))), "labels="),
    (lambda m, codes, cond: m(codes, Cond(torch.tensor([0, 1, 5])), Keyed(0), At(torch.arange(3))), "labels="),
    (lambda m, codes, cond: m.logits(codes[:2], cond), "codes="),
    (lambda m, codes, cond: m.begin((cond,), Grid((12,))), "grid="),
    (lambda m, codes, cond: m.predict(m.begin((cond,), GRID), codes[:, :1, 0] * 0, codes[:, :1], live=1), "given="),
    (lambda m, codes, cond: m.predict(m.begin((cond,), GRID), codes[:, :1, 0] * 0, live=2), "live="),
    (lambda m, codes, cond: Sampler(m, guidance=AttendedGuidance((2.0,) * 3, (3.0,) * 3), picks=(Pick(),)), "picks="),
    (lambda m, codes, cond: replace(SMALL, vocab=(3, 4, 5)), "vocab="),
    (lambda m, codes, cond: replace(SMALL, dim=8, heads=2), "dim="),
    (lambda m, codes, cond: replace(SMALL, semantic_weight=-1.0), "semantic_weight="),
    (lambda m, codes, cond: iar2_config({"model": "GPT-M"}), "model=")])
def test_bad_rows(call, words):
    codes, cond = case(SMALL)
    with pytest.raises(BadInput, match=words): call(build(SMALL), codes, cond)
