"The masked transformers where a page has no room: any batch, memory used again, patches, precisions, ragged given cells, settings, saved weights."
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
from vgnb.sampling.guidance import CFG
from vgnb.sampling.sampler import Sampler
from vgnb.sampling.settings import Sampling
from vgnb.saved import load_model, save_model
from vgnb.training.optimizers import Average

SMALL = MaskedConfig(2, 46, 5, ffn=64, vocab=32, grid=(4, 6), classes=5, registers=2, dropout=0, attention_dropout=0, std=0.3)    # heads of 9: 45 of 46
TEXT = MaskedTextConfig(2, 32, 4, 64, 24, vocab=32, grid=(4, 6), text_dim=10, text_tokens=5, std=0.3)
KINDS = {"class": SMALL, "patches": replace(SMALL, patch=2), "no registers": replace(SMALL, registers=0), "text": TEXT, "text patches": replace(TEXT, patch=2)}
GRID, N = Grid((4, 6)), 24


def build(config, seed=0):
    "A model whose conditions matter from the start."
    m = (MaskedTextTransformer if isinstance(config, MaskedTextConfig) else MaskedTransformer)(config, seed).eval()
    g = torch.Generator().manual_seed(seed)
    for name, p in m.named_parameters():
        if "modulation" in name or name.endswith("text.weight"): p.data.normal_(0, 0.3, generator=g)
    return m


def conditions(config, b, seed=0):
    g = torch.Generator().manual_seed(seed)
    if isinstance(config, MaskedConfig): return Cond(torch.randint(config.classes, (b,), generator=g))
    return Cond(text=torch.randn(b, 5, 10, generator=g), mask=torch.arange(5) < torch.randint(2, 6, (b, 1), generator=g))


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_step_answers_is_what_the_whole_model_says(kind):
    "Random canvases, cells and numbers of live branches; the state used again for other conditions."
    m, state = build(KINDS[kind]), None
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        cond, codes, hidden = conditions(m.config, 3, seed), torch.randint(32, (3, N), generator=g), torch.rand(3, N, generator=g) < 0.6
        state = m.begin((cond, m.null(cond)), GRID, reuse=state)
        everywhere = torch.arange(N).expand(3, -1)
        m.accept(state, everywhere, codes.masked_fill(hidden, -1)[..., None])
        asked, live = torch.rand(3, N, generator=g).argsort(1)[:, :seed + 1], 1 + seed % 2
        got = m.predict(state, asked, live=live, independent=True).logits
        assert got.shape == (live, 3, seed + 1, 32) and got.dtype == torch.float32
        for branch, logits in zip((cond, m.null(cond)), got):
            torch.testing.assert_close(logits, m.logits(codes, branch, hidden)[0].gather(1, asked[..., None].expand(-1, -1, 32)), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("order", ["halton", "halton-rolled", "confidence", "random"])
@pytest.mark.parametrize("kind", ["class", "text"])
def test_a_sample_is_the_same_in_any_batch(kind, order):
    m, many = build(KINDS[kind]), torch.arange(7)
    how = Sampling(cfg_scale=2.0, order=order, schedule="halton", steps=5, rows=3, choice_noise=2.0 * (order == "confidence")).sampler(m)
    cond = conditions(m.config, 7)
    whole = how.sample(cond, many, Keyed(0), grid=GRID)
    part = torch.tensor([6, 2])
    assert torch.equal(how.sample(cond.rows(part), part, Keyed(0), grid=GRID), whole[part]) and int(whole.max()) < 32
    assert not torch.equal(how.sample(cond, many, Keyed(1), grid=GRID), whole)


def test_given_cells_are_all_seen_from_the_first_step():
    "Samples know different numbers of cells; each is filled as if it were alone, every cell once, and nothing given is touched."
    m, ids = build(SMALL), torch.arange(3)
    g = torch.Generator().manual_seed(0)
    codes, known = torch.randint(32, (3, N, 1), generator=g), torch.rand(3, N, generator=g) < torch.tensor([[0.2], [0.5], [0.8]])
    cond = conditions(SMALL, 3)
    how = Sampler(m, ORDERS["halton"], SCHEDULES["even"], steps=4, rows=3)
    first, *_ = how.stream(cond, ids, Keyed(0), grid=GRID, given=(codes, known), keep=("logits",))
    for i in range(3):
        whole = m.logits(codes[i:i + 1], cond.rows([i]), ~known[i:i + 1])[0][0]
        torch.testing.assert_close(first.kept["logits"][0][i], whole[first.positions[i]], atol=2e-5, rtol=2e-5)
    done = how.sample(cond, ids, Keyed(0), grid=GRID, given=(codes, known))
    assert torch.equal(done[known], codes[known]) and (done >= 0).all()
    redrawn = Sampler(m, Confidence(redraw=True), confidence_steps("arccos"), steps=4, rows=3, compat="upstream").sample(cond, ids, Keyed(0), grid=GRID, given=(codes, known))
    assert not torch.equal(redrawn[known], codes[known]) and (redrawn >= 0).all()


def test_hidden_codes_and_other_samples_have_no_influence():
    m, g = build(SMALL), torch.Generator().manual_seed(1)
    codes, hidden, cond = torch.randint(32, (4, N), generator=g), torch.rand(4, N, generator=g) < 0.5, conditions(SMALL, 4)
    logits, = m.logits(codes, cond, hidden)
    assert torch.equal(m.logits(torch.where(hidden, 31 - codes, codes), cond, hidden)[0], logits)
    moved = codes.clone(); moved[1] = 31 - moved[1]
    others = [0, 2, 3]
    assert torch.equal(m.logits(moved, cond, hidden)[0][others], logits[others]) and not torch.equal(m.logits(moved, cond, hidden)[0][1], logits[1])


@pytest.mark.parametrize("kind", ["class", "text"])
def test_training_is_keyed_by_sample(kind):
    "Masks, dropped conditions and dropout of a sample are its own; a weight of 0 takes a sample out."
    c = replace(KINDS[kind], dropout=0.2, class_dropout=0.5) if kind == "text" else replace(SMALL, dropout=0.2, attention_dropout=0.2, class_dropout=0.5)
    m, ids = build(c).train(), torch.arange(6)
    codes, cond = torch.randint(32, (6, N), generator=torch.Generator().manual_seed(0)), conditions(c, 6)
    whole = m(codes, cond, Keyed(0), At(ids, step=4)).total
    each = torch.stack([m(codes[[i]], cond.rows([i]), Keyed(0), At(ids[[i]], step=4)).total for i in range(6)])
    torch.testing.assert_close(whole, each.mean(), atol=1e-5, rtol=1e-5)
    half = m(codes, cond, Keyed(0), At(ids, step=4), valid=torch.tensor([1, 1, 1, 0, 0, 0])).total
    torch.testing.assert_close(half, each[:3].mean(), atol=1e-5, rtol=1e-5)
    again = build(replace(c, recompute=True)).train()
    for model in (m, again): model.zero_grad(); model(codes, cond, Keyed(0), At(ids, step=4)).total.backward()
    for (name, p), q in zip(m.named_parameters(), again.parameters()): torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-5, msg=name)


def test_half_precision_stays_near_and_states_do_not_mix():
    m, cond = build(SMALL), conditions(SMALL, 2)
    cells = torch.arange(N).expand(2, -1)
    full = m.begin((cond,), GRID)
    wide = m.predict(full, cells, live=1).logits
    with torch.autocast("cpu", torch.bfloat16):
        half = m.begin((cond,), GRID, reuse=full)
        narrow = m.predict(half, cells, live=1).logits
        assert m.begin((cond,), GRID, reuse=half) is half
    assert half is not full and narrow.dtype == torch.float32 and (wide - narrow).abs().max() < 0.3
    assert m.begin((cond,), GRID, reuse=full) is full and torch.equal(m.predict(full, cells, live=1).logits, wide)


def test_tied_weights_are_one(tmp_path):
    "The head is the embedding: one entry of our own, two of the published ones; averaged once, or twice as in the original."
    m = build(SMALL)
    assert halton_names.export(m.state_dict(), m)["head.weight"] is m.state_dict()["tokens.weight"] or torch.equal(halton_names.export(m.state_dict(), m)["head.weight"], m.tokens.weight)
    save_model(tmp_path / "m", m, m.config)
    again = load_model(tmp_path / "m")
    assert type(again) is MaskedTransformer and all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), m.state_dict().values()))
    for compat, left in ((None, 0.9), ("upstream", 0.81)):
        model = build(replace(SMALL, compat=compat))
        average, old = Average(model, 0.9), {k: v.clone() for k, v in model.state_dict().items()}
        with torch.no_grad(): [p.add_(1.0) for p in model.parameters()]
        average.update(torch.tensor(True))
        gap = {k: float((old[k] + 1 - v).mean()) for k, v in average.state().items()}
        assert gap["tokens.weight"] == pytest.approx(left, abs=1e-5) and gap["places.weight"] == pytest.approx(0.9, abs=1e-5)


def test_text_names_are_whole():
    m = build(replace(TEXT, patch=2))
    state = halton_text_names.export(m.state_dict(), m)
    other = halton_text_names.load_into(build(replace(TEXT, patch=2), 1), state)
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), m.state_dict().values())) and "transformer.layers.1.cross_attn.mha.in_proj_weight" in state


@pytest.mark.parametrize("bad,says", [
    (dict(choice_noise=1.0), "choice_noise"), (dict(choice_warmup=2, order="halton"), "choice_warmup"), (dict(sharpness=0.0), "sharpness"), (dict(sharpness_start=-1.0), "sharpness_start"),
    (dict(temp_warmup=-1), "temp_warmup"), (dict(temp_pow=float("nan")), "temp_pow"), (dict(cfg_by="cells"), "cfg_by"), (dict(schedule="haltn"), "did you mean halton")])
def test_settings_name_what_is_wrong(bad, says):
    with pytest.raises(BadInput, match=says): Sampling(**bad)


def test_published_settings_are_reachable():
    "Halton-MaskGIT's launch settings and its confidence sampler as plain values; each cell once, guidance rising to 1 + w."
    m, ids = build(SMALL), torch.arange(2)
    cond = conditions(SMALL, 2)
    halton = Sampling(cfg_scale=1.5, order="halton-rolled", schedule="halton", steps=8, sharpness=1.2, sharpness_start=1.0, temp_warmup=1, top_k=10, rows=2)
    steps = list(halton.sampler(m).stream(cond, ids, Keyed(0), grid=GRID))
    assert [s.positions.shape[1] for s in steps] == halton_steps(N, 8) and sorted(torch.cat([s.positions[1] for s in steps]).tolist()) == list(range(N))
    how = Sampling(cfg_scale=4.0, cfg_start=1.0, cfg_by="step", order="confidence", schedule="confidence-arccos", steps=8, choice_noise=4.5, rows=2)
    sampler = how.sampler(m)
    assert isinstance(sampler.guidance, CFG) and [round(sampler.guidance.scale(s.clock), 4) for s in sampler.stream(cond, ids, Keyed(0), grid=GRID)] == [round(1 + 3 * i / 7, 4) for i in range(8)]
    assert not sampler.order.redraw and replace(how, compat="upstream").sampler(m).order.redraw


def test_captioned_models_are_saved_and_found_again(tmp_path):
    m = build(TEXT)
    save_model(tmp_path / "m", m, m.config)
    again = load_model(tmp_path / "m")
    assert type(again) is MaskedTextTransformer and again.config == TEXT and all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), m.state_dict().values()))
