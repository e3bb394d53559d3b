"""The masked transformers where a page has no room: any batch, memory used again, what is asked together, patches,
precisions, given cells, published settings, saved weights."""
from dataclasses import replace

import pytest
import torch

from vgnb.core import BadInput
from vgnb.draws import At, Keyed
from vgnb.generators.adaptive_orders import Confidence
from vgnb.generators.generator import Cond, Grid
from vgnb.generators.masked import MaskedConfig, MaskedTransformer, halton_names
from vgnb.generators.masked_text import MaskedTextConfig, MaskedTextTransformer, halton_text_names
from vgnb.generators.orders import ORDERS
from vgnb.generators.schedules import SCHEDULES, confidence_steps, halton_steps
from vgnb.rows import gather_rows
from vgnb.sampling.guidance import CFG
from vgnb.sampling.pick import HaltonPick
from vgnb.sampling.sampler import Sampler
from vgnb.saved import load_model, save_model
from vgnb.training.optimizers import Average

SMALL = MaskedConfig(2, 46, 5, ffn=64, vocab=32, grid=(4, 6), classes=5, registers=2, dropout=0, attention_dropout=0,
                     std=0.3)                                           # heads of 9: 45 of 46
TEXT = MaskedTextConfig(2, 32, 4, 64, 24, vocab=32, grid=(4, 6), text_dim=10, text_tokens=5, std=0.3)
KINDS = {
    "class": SMALL,
    "patches": replace(SMALL, patch=2),
    "no registers": replace(SMALL, registers=0),
    "text": TEXT,
    "text patches": replace(TEXT, patch=2),
}
GRID, N = Grid((4, 6)), 24


def build(config, seed=0):
    "A model whose conditions matter from the start."
    cls = MaskedTextTransformer if isinstance(config, MaskedTextConfig) else MaskedTransformer
    m = cls(config, seed).eval()
    g = torch.Generator().manual_seed(seed)
    for name, p in m.named_parameters():
        if "modulation" in name or name.endswith("text.weight"): p.data.normal_(0, 0.3, generator=g)
    return m


def conditions(config, b, seed=0):
    g = torch.Generator().manual_seed(seed)
    if isinstance(config, MaskedConfig): return Cond(torch.randint(config.classes, (b,), generator=g))
    lengths = torch.randint(2, 6, (b, 1), generator=g)
    return Cond(text=torch.randn(b, 5, 10, generator=g), mask=torch.arange(5) < lengths)


def pictures(b, seed=0):
    "Codes (b, N, 1)."
    return torch.randint(32, (b, N, 1), generator=torch.Generator().manual_seed(seed))


def permutations(b, seed=0):
    "A random order of the cells for each sample, (b, N)."
    return torch.rand(b, N, generator=torch.Generator().manual_seed(seed)).argsort(1)


def begun(m, branches, codes, known, reuse=None):
    "A state that knows the codes of the cells `known` (b, k)."
    state = m.begin(branches, GRID, reuse=reuse)
    m.accept(state, known, gather_rows(codes, known))
    return state


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_step_answers_is_what_the_whole_model_says(kind):
    "Random canvases, cells and numbers of live branches; the state used again for other conditions."
    m, state = build(KINDS[kind]), None
    for seed in range(4):
        cond, codes, perm = conditions(m.config, 3, seed), pictures(3, seed), permutations(3, seed)
        known, asked, live = perm[:, :2 + 3 * seed], perm[:, 12:13 + seed], 1 + seed % 2
        branches = cond, m.null(cond)
        state = begun(m, branches, codes, known, reuse=state)
        got = m.predict(state, asked, live=live, independent=True).logits
        assert got.shape == (live, 3, seed + 1, 32)
        assert got.dtype == torch.float32

        hidden = torch.ones(3, N, dtype=torch.bool).scatter(1, known, False)
        for branch, logits in zip(branches, got):
            whole, = m.logits(codes, branch, hidden)
            torch.testing.assert_close(logits, gather_rows(whole, asked), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_does_not_depend_on_what_else_is_asked(kind):
    "`separate`: alone, together with others in any order, twice, or with padding, a cell has the same answer."
    m = build(KINDS[kind])
    assert m.columns == "separate" and m.most is None
    cond, codes, perm = conditions(m.config, 3), pictures(3), permutations(3)
    state = begun(m, (cond,), codes, perm[:, :8])
    rest = perm[:, 8:]
    def answer(asked): return m.predict(state, asked, live=1).logits[0]

    together = answer(rest)
    padded = torch.cat((rest[:, :3], rest[:, 2:3].expand(-1, 5)), 1)    # three cells, then copies of the last one
    for columns, asked in (([2], rest[:, 2:3]), ([5, 0], rest[:, [5, 0]]), ([0, 1, 2], padded)):
        got = answer(asked)[:, :len(columns)]
        torch.testing.assert_close(got, together[:, columns], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_have_one_level(kind):
    m = build(KINDS[kind])
    cond, codes = conditions(m.config, 2), pictures(2)
    logits, = m.logits(codes, cond)
    assert logits.shape == (2, N, 32)
    for wrong in (codes[..., 0], codes.expand(-1, -1, 2), codes[:, 1:]):
        with pytest.raises(BadInput, match="codes"): m.logits(wrong, cond)
    sampler = Sampler(m, ORDERS["random"], SCHEDULES["even"], steps=3, rows=2)
    assert sampler.sample(cond, torch.arange(2), Keyed(0), grid=GRID).shape == codes.shape


IN_ORDER = {
    "halton": ORDERS["halton"],
    "halton-rolled": ORDERS["halton-rolled"],
    "confidence": Confidence(noise=2.0),
    "random": ORDERS["random"],
}


@pytest.mark.parametrize("order", IN_ORDER)
@pytest.mark.parametrize("kind", ["class", "text"])
def test_a_sample_is_the_same_in_any_batch(kind, order):
    m, many = build(KINDS[kind]), torch.arange(7)
    sampler = Sampler(m, IN_ORDER[order], halton_steps, CFG(2.0), steps=5, rows=3)
    cond, part = conditions(m.config, 7), torch.tensor([6, 2])
    whole = sampler.sample(cond, many, Keyed(0), grid=GRID)
    assert torch.equal(sampler.sample(cond.rows(part), part, Keyed(0), grid=GRID), whole[part])
    assert int(whole.max()) < 32
    assert not torch.equal(sampler.sample(cond, many, Keyed(1), grid=GRID), whole)


def test_given_cells_are_all_seen_from_the_first_step():
    "Samples know different numbers of cells; each is filled as if it were alone, and nothing given is touched."
    m, ids = build(SMALL), torch.arange(3)
    g = torch.Generator().manual_seed(0)
    codes, cond = pictures(3), conditions(SMALL, 3)
    known = torch.rand(3, N, generator=g) < torch.tensor([[0.2], [0.5], [0.8]])
    given = codes, known

    sampler = Sampler(m, ORDERS["halton"], SCHEDULES["even"], steps=4, rows=3)
    steps = list(sampler.stream(cond, ids, Keyed(0), grid=GRID, given=given, keep=("logits",)))
    firsts = [step for step in steps if step.clock.step == 0]
    assert sorted(int(i) for step in firsts for i in step.ids) == [0, 1, 2]
    for step in firsts:
        for row, i in enumerate(step.ids.tolist()):
            whole, = m.logits(codes[i:i + 1], cond.rows([i]), ~known[i:i + 1])
            kept = step.kept["logits"][0][row]
            torch.testing.assert_close(kept, whole[0][step.positions[row]], atol=2e-5, rtol=2e-5)

    done = sampler.sample(cond, ids, Keyed(0), grid=GRID, given=given)
    assert torch.equal(done[known], codes[known])
    assert (done >= 0).all()


def test_upstream_draws_given_cells_again():
    m, cond, codes = build(SMALL), conditions(SMALL, 3), pictures(3)
    known = torch.zeros(3, N, dtype=torch.bool).scatter(1, permutations(3)[:, :10], True)
    again = Sampler(m, Confidence(redraw=True), confidence_steps("arccos"), steps=4, rows=3, compat="upstream")
    done = again.sample(cond, torch.arange(3), Keyed(0), grid=GRID, given=(codes, known))
    assert not torch.equal(done[known], codes[known])
    assert (done >= 0).all()


def test_hidden_codes_and_other_samples_have_no_influence():
    m, codes, cond = build(SMALL), pictures(4), conditions(SMALL, 4)
    hidden = torch.rand(4, N, generator=torch.Generator().manual_seed(1)) < 0.5
    logits, = m.logits(codes, cond, hidden)
    other = torch.where(hidden[..., None], 31 - codes, codes)
    assert torch.equal(m.logits(other, cond, hidden)[0], logits)

    moved = codes.clone()
    moved[1] = 31 - moved[1]
    again, = m.logits(moved, cond, hidden)
    others = [0, 2, 3]
    assert torch.equal(again[others], logits[others])
    assert not torch.equal(again[1], logits[1])


@pytest.mark.parametrize("kind", ["class", "text"])
def test_training_is_keyed_by_sample(kind):
    "Masks and dropout of a sample are its own; a weight of 0 takes a sample out; recomputation changes nothing."
    config = replace(KINDS[kind], dropout=0.2, class_dropout=0.5)
    if kind == "class": config = replace(config, attention_dropout=0.2)
    m, again, ids = build(config).train(), build(replace(config, recompute=True)).train(), torch.arange(6)
    codes, cond = pictures(6), conditions(config, 6)
    def loss(m, rows=ids, valid=None):
        return m(codes[rows], cond.rows(rows), Keyed(0), At(ids[rows], step=4), valid=valid).total

    each = torch.stack([loss(m, torch.tensor([i])) for i in range(6)])
    torch.testing.assert_close(loss(m), each.mean(), atol=1e-5, rtol=1e-5)
    half = loss(m, valid=torch.tensor([1, 1, 1, 0, 0, 0]))
    torch.testing.assert_close(half, each[:3].mean(), atol=1e-5, rtol=1e-5)

    for model in (m, again):
        model.zero_grad()
        loss(model).backward()
    for (name, p), q in zip(m.named_parameters(), again.parameters()):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-5, msg=name)


def test_half_precision_stays_near_and_states_do_not_mix():
    m, cond = build(SMALL), conditions(SMALL, 2)
    cells = torch.arange(N).expand(2, -1)
    full = m.begin((cond,), GRID)
    wide = m.predict(full, cells, live=1).logits
    with torch.autocast("cpu", torch.bfloat16):
        half = m.begin((cond,), GRID, reuse=full)
        narrow = m.predict(half, cells, live=1).logits
        assert m.begin((cond,), GRID, reuse=half) is half
    assert half is not full
    assert narrow.dtype == torch.float32 and (wide - narrow).abs().max() < 0.3
    assert m.begin((cond,), GRID, reuse=full) is full
    assert torch.equal(m.predict(full, cells, live=1).logits, wide)


def test_tied_weights_are_one(tmp_path):
    "The head is the embedding: one entry of ours, two of the published ones; averaged once, or twice as published."
    m = build(SMALL)
    theirs = halton_names.export(m.state_dict(), m)
    assert torch.equal(theirs["head.weight"], m.tokens.weight)
    save_model(tmp_path / "m", m, m.config)
    again = load_model(tmp_path / "m")
    assert type(again) is MaskedTransformer
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), m.state_dict().values()))

    for compat, left in ((None, 0.9), ("upstream", 0.81)):
        model = build(replace(SMALL, compat=compat))
        average, old = Average(model, 0.9), {k: v.clone() for k, v in model.state_dict().items()}
        with torch.no_grad():
            for p in model.parameters(): p.add_(1.0)
        average.update(torch.tensor(True))
        gap = {k: float((old[k] + 1 - v).mean()) for k, v in average.state().items()}
        assert model.tied == ("tokens.weight",)
        assert gap["tokens.weight"] == pytest.approx(left, abs=1e-5)
        assert gap["places.weight"] == pytest.approx(0.9, abs=1e-5)


def test_text_names_are_whole():
    m, other = (build(replace(TEXT, patch=2), seed) for seed in (0, 1))
    state = halton_text_names.export(m.state_dict(), m)
    halton_text_names.load_into(other, state)
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), m.state_dict().values()))
    assert "transformer.layers.1.cross_attn.mha.in_proj_weight" in state


@pytest.mark.parametrize("made,says", [
    (lambda: Confidence(noise=-1.0), "noise"),
    (lambda: Confidence(warmup=-2), "warmup"),
    (lambda: HaltonPick(sharpness=0.0), "sharpness"),
    (lambda: HaltonPick(sharpness_start=-1.0), "sharpness_start"),
    (lambda: HaltonPick(warmup=-1), "warmup"),
    (lambda: HaltonPick(power=float("nan")), "power"),
    (lambda: CFG(4.0, start=1.0, by="cells"), "by"),
    (lambda: SCHEDULES["haltn"], "did you mean halton"),
])
def test_settings_name_what_is_wrong(made, says):
    with pytest.raises(BadInput, match=says): made()


def test_published_settings_are_reachable():
    "Halton-MaskGIT's launch settings and its confidence sampler; each cell once, guidance rising to 1 + w."
    m, ids = build(SMALL), torch.arange(2)
    cond = conditions(SMALL, 2)
    pick = HaltonPick(top_k=10, sharpness=1.2, sharpness_start=1.0, warmup=1)
    sampler = Sampler(m, ORDERS["halton-rolled"], SCHEDULES["halton"], CFG(1.5), (pick,), steps=8, rows=2)
    steps = list(sampler.stream(cond, ids, Keyed(0), grid=GRID))
    assert [s.positions.shape[1] for s in steps] == halton_steps(N, 8)
    assert sorted(torch.cat([s.positions[1] for s in steps]).tolist()) == list(range(N))

    growing = CFG(4.0, start=1.0, by="step")
    order = Confidence(noise=4.5)
    sampler = Sampler(m, order, SCHEDULES["confidence-arccos"], growing, steps=8, rows=2)
    scales = [round(growing.ramp()(s.clock), 4) for s in sampler.stream(cond, ids, Keyed(0), grid=GRID)]
    assert scales == [round(1 + 3 * i / 7, 4) for i in range(8)]
    assert not order.redraw and order.published(m).redraw


def test_captioned_models_are_saved_and_found_again(tmp_path):
    m = build(TEXT)
    save_model(tmp_path / "m", m, m.config)
    again = load_model(tmp_path / "m")
    assert type(again) is MaskedTextTransformer and again.config == TEXT
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), m.state_dict().values()))
