"ARPG where its page has no room: batches, supersets, known cells, resting branches, larger grids, painting, refusals."
from dataclasses import replace

import pytest
import torch

from tests.painted import keeps_what_is_known
from vgnb.core import BadInput
from vgnb.draws import At, Keyed
from vgnb.generators.adaptive_orders import Confidence
from vgnb.generators.generator import Cond, Grid, Plan
from vgnb.generators.orders import Random
from vgnb.generators.schedules import SCHEDULES, check_counts
from vgnb.generators.two_streams import TwoStreamConfig, TwoStreamTransformer, arpg_config, arpg_spec
from vgnb.sampling.extrapolation import Extrapolate
from vgnb.sampling.guidance import CFG
from vgnb.sampling.painting import Request
from vgnb.sampling.sampler import Sampler
from vgnb.zoo import export_published

SMALL = TwoStreamConfig(4, 48, 4, ffn_multiple=16, vocab=32, grid=(3, 4), classes=5, std=0.2)
KINDS = {"plain": SMALL, "everywhere": replace(SMALL, class_everywhere=True, zero_prefix=False, turned_queries=True),
         "published": replace(SMALL, compat="upstream")}
GRID = Grid((3, 4))
N = GRID.n


def build(config=SMALL):
    "A model whose head is not zero."
    m = TwoStreamTransformer(config).eval()
    m.head.weight.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    return m


def case(b=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    order = torch.rand(b, N, generator=g).argsort(1)
    return torch.randint(32, (b, N, 1), generator=g), Cond(torch.randint(5, (b,), generator=g)), order


def sampler(m, order=None, schedule="arpg-arccos", **kw):
    more = {"rows": 4, "steps": 4} | kw
    return Sampler(m, order or Random(), SCHEDULES[schedule], CFG(3.0, start=1.0, by="after"), **more)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [Random(), Confidence()], ids=["random", "confidence"])
def test_a_picture_is_the_same_at_any_batch_size(kind, order):
    m, ids, cond = build(KINDS[kind]), torch.arange(6), Cond(torch.arange(6) % 5)
    together = sampler(m, order).sample(cond, ids, Keyed(3), grid=GRID)
    alone = sampler(m, order).sample(cond.rows(slice(5, 6)), ids[5:], Keyed(3), grid=GRID)
    assert torch.equal(alone[0], together[5])


@pytest.mark.parametrize("kind", KINDS)
def test_cached_equals_uncached_with_rests_supersets_and_known_cells(kind):
    m, (codes, cond, order) = build(KINDS[kind]), case()
    plan = Plan(order, [2, 1, 4, 3])                                 # the first two cells are known
    state, out = m.begin((cond, m.null(cond)), GRID), []
    for cell in (order[:, :1], order[:, 1:2]): m.accept(state, cell, codes.gather(1, cell[..., None]))
    for step, group in enumerate(plan.groups()):
        cells = order[:, group]
        everything = order[:, group.start:]
        if step == 2: m.predict(state, everything.flip(1), live=1)                    # asked before, for nothing
        found = m.predict(state, everything, live=1 if step == 1 else 2).logits
        torch.testing.assert_close(m.predict(state, cells, live=len(found)).logits, found[:, :, :cells.shape[1]],
                                   atol=1e-4, rtol=1e-4)
        out.append(found[:, :, :cells.shape[1]])
        m.accept(state, cells, codes.gather(1, cells[..., None]))
    for i, branch in enumerate((cond, m.null(cond))):
        want = m.logits(codes, branch, plan)[0][:, 2:]
        for found, group in zip(out, plan.groups()):
            if i >= len(found): continue
            torch.testing.assert_close(found[i], want[:, group.start - 2:group.stop - 2], atol=1e-4, rtol=1e-4)


def test_the_first_group_is_one_distribution():
    m, (_, cond, order) = build(), case()
    logits = m.predict(m.begin((cond,), GRID), order, live=1).logits[0]
    torch.testing.assert_close(logits, logits[:, :1].expand_as(logits))


def test_a_turned_query_knows_where_it_is_before_anything_is_known():
    m, (_, cond, order) = build(replace(SMALL, turned_queries=True)), case()
    logits = m.predict(m.begin((cond,), GRID), order, live=1).logits[0]
    for row in logits:
        apart = (row[:, None] - row).abs().amax(-1) + torch.eye(N)
        assert apart.min() > 1e-3


@pytest.mark.parametrize("change", [{"zero_prefix": False}, {"turned_queries": True}, {"class_everywhere": True}])
def test_published_names_have_no_room_for_what_is_not_published(change):
    with pytest.raises(BadInput, match="no published form"): export_published(build(replace(SMALL, **change)))


@pytest.mark.parametrize("kind", KINDS)
def test_painting_keeps_what_is_known(kind):
    m, (codes, cond, _) = build(KINDS[kind]), case()
    request = Request(sampler(m), cond, torch.arange(3), Keyed(1), codes, GRID)
    keeps_what_is_known(request, codes)


def test_positions_are_angles_so_any_grid_can_be_asked_for():
    codes = sampler(build(), steps=6).sample(Cond(torch.tensor([1])), torch.arange(1), Keyed(0), grid=Grid((5, 6)))
    assert codes.shape == (1, 30, 1) and (codes >= 0).all()


@pytest.mark.parametrize("curve", ["arpg-arccos", "arpg-cosine"])
def test_schedules_fill_what_is_missing(curve):
    for n in (1, 2, 7, 64):
        for start in range(n):
            for steps in (1, 2, 5, n, n + 3):
                counts = check_counts(SCHEDULES[curve](n, steps, start), n, start)
                assert len(counts) == min(steps, n - start)


def test_training_is_keyed_and_never_drops_in_eval():
    m, (codes, cond, _) = build(replace(SMALL, class_dropout=0.9)).train(), case()
    def loss(step): return float(m(codes, cond, Keyed(0), At(torch.arange(3), step=step)).total.detach())
    assert loss(0) == loss(0) != loss(1)
    m.eval()
    order = Keyed(0).permutation("order", At(torch.arange(3), step=0), N)
    logits, = m.logits(codes, cond, Plan(order, [1] * N))
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes[..., 0].gather(1, order).flatten())
    assert abs(loss(0) - float(want.detach())) < 1e-4


def test_what_cannot_be_asked_is_refused_by_name():
    m, (codes, cond, _) = build(), case()
    with pytest.raises(BadInput, match="labels"): m.logits(codes, Cond(torch.tensor([0, 1, 9])))
    with pytest.raises(BadInput, match="plan"): m.logits(codes, cond, Plan(torch.arange(N), [N, 1]))
    state = m.begin((cond,), GRID)
    with pytest.raises(BadInput, match="positions"): m.predict(state, torch.zeros(3, 0, dtype=torch.long), live=1)
    with pytest.raises(BadInput, match="guidance"):
        sampler(build(replace(SMALL, class_dropout=0))).sample(cond, torch.arange(3), Keyed(0), grid=GRID)
    wrongs = {"layers": 3, "kv_heads": 2, "drop_path": 0.1, "condition": "text", "rope": "sequence"}
    for name, value in wrongs.items():
        with pytest.raises(BadInput, match=name): replace(SMALL, **{name: value})


def test_the_authors_words_come_back():
    c = replace(SMALL, grid=(4, 4))
    assert arpg_config(arpg_spec(c)) == c and arpg_spec(c)["gpt_model"] == "ARPG-of another size"


def test_what_enlarging_needs_is_asked_for_by_its_own_name():
    m, cond = build(), Cond(torch.arange(2))
    request = Request(sampler(m), cond, torch.arange(2), Keyed(0), grid=GRID)
    for how, words in (({}, "^ntk_boundary=2: must be 0"), ({"ntk_boundary": 0}, "spatial=.*must be .1, 1.*blind")):
        with pytest.raises(BadInput, match=words): Extrapolate((6, 8), **how).paint(request)
    painting = Extrapolate((6, 8), spatial=(1, 1), ntk_boundary=0).paint(request)
    assert (painting.sample() >= 0).all()
