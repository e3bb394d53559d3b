"RAR where its page has no room: batches, gaps of many shapes, resting branches, painting, refusals."
from dataclasses import replace

import pytest
import torch

from tests.painted import keeps_what_is_known
from vgnb.core import BadInput
from vgnb.draws import At, Keyed
from vgnb.generators.annealed_order import AnnealedOrderConfig, AnnealedOrderTransformer, PowerCosine
from vgnb.generators.generator import Cond, Grid, Plan
from vgnb.generators.orders import Random
from vgnb.generators.rar_files import rar_config, rar_spec
from vgnb.sampling.guidance import CFG, Ramped
from vgnb.sampling.painting import Request
from vgnb.sampling.sampler import Sampler

SMALL = AnnealedOrderConfig(
    2, 48, 4, hidden=64, vocab=32, grid=(3, 4), classes=5, residual_dropout=0, ffn_dropout=0, attention_dropout=0,
    spare=2, std=0.3)
GRID = Grid((3, 4))
N = GRID.n


def build(**changes):
    "A model whose blocks do something."
    m, g = AnnealedOrderTransformer(replace(SMALL, **changes)), torch.Generator().manual_seed(0)
    for name, p in m.named_parameters():
        if "modulation" in name: p.data.normal_(0, 0.1, generator=g)
    return m.eval()


def case(b=3, seed=0):
    "Codes (b, n, 1), labels, and a mask of known cells, equally many in each row."
    g = torch.Generator().manual_seed(seed)
    known = torch.rand(b, N, generator=g).argsort(1) < 5
    return torch.randint(32, (b, N, 1), generator=g), Cond(torch.randint(5, (b,), generator=g)), known


def sampler(m, **kw): return Sampler(m, guidance=Ramped(PowerCosine(4.0, 1.5)), **({"rows": 4} | kw))


@pytest.mark.parametrize("start", [4, None])
def test_a_picture_is_the_same_at_any_batch_size(start):
    m, ids = build(anneal_start=start), torch.arange(6)
    cond = Cond(torch.arange(6) % 5)
    together = sampler(m).sample(cond, ids, Keyed(3), grid=GRID)
    for i in (0, 5):
        alone = sampler(m).sample(cond.rows(slice(i, i + 1)), ids[i:i + 1], Keyed(3), grid=GRID)
        assert torch.equal(alone[0], together[i])


def test_known_cells_stay_and_raster_weights_see_what_lies_before():
    "Gaps that differ from row to row: each missing cell gets the logits of the raster with all earlier codes."
    m, (codes, cond, known) = build(), case()
    steps = list(sampler(m).stream(cond, torch.arange(3), Keyed(0), given=(codes, known), grid=GRID, keep=("logits",)))
    filled = steps[-1].codes()
    assert torch.equal(filled[known], codes[known]) and (filled >= 0).all()
    forced = torch.stack([m.logits(filled, c)[0] for c in (cond, m.null(cond))])
    done = int(known[0].sum())
    for step in steps:
        scale = 1 + 3 * (1 - torch.tensor((step.clock.done / N) ** 1.5 * torch.pi).cos()) / 2
        rows = torch.arange(3), step.positions[:, 0]
        c, u = forced[0][rows], forced[1][rows]
        torch.testing.assert_close(step.kept["logits"][0][:, 0], u + (c - u) * scale, atol=2e-4, rtol=1e-4)
    assert steps[0].clock.done == done


def test_another_cell_accepted_than_asked_is_fed_anew():
    m, (codes, cond, _) = build(anneal_start=None), case()
    order = torch.stack([torch.randperm(N, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    state = m.begin((cond, m.null(cond)), GRID)
    out = []
    for j in range(N):
        cells = order[:, j:j + 1]
        if j < N - 1: m.predict(state, order[:, j + 1:j + 2], live=2)          # asked, but not decided
        live = 1 if j in (2, 3) else 2
        out.append(m.predict(state, cells, live=live).logits[0])
        m.accept(state, cells.clone(), codes.gather(1, cells[..., None]))
    want, = m.logits(codes, cond, Plan(order, [1] * N))
    torch.testing.assert_close(torch.cat(out, 1), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("start", [4, None])
def test_painting_keeps_what_is_known(start):
    m, (codes, cond, _) = build(anneal_start=start), case()
    request = Request(sampler(m), cond, torch.arange(3), Keyed(1), codes, GRID)
    keeps_what_is_known(request, codes)


def test_what_cannot_be_asked_is_refused_by_name():
    m, (codes, cond, _) = build(), case()
    with pytest.raises(BadInput, match="grid=.*learnt one by one"):
        sampler(m).sample(cond, torch.arange(3), Keyed(0), grid=Grid((3, 5)))
    with pytest.raises(BadInput, match="order='random': must be raster"):
        sampler(m, order=Random()).sample(cond, torch.arange(3), Keyed(0), grid=GRID)
    with pytest.raises(BadInput, match="one cell at a time"):
        sampler(m, schedule=lambda n, steps, start: [n - start]).sample(cond, torch.arange(3), Keyed(0), grid=GRID)
    with pytest.raises(BadInput, match="plan"): m.logits(codes, cond, Plan(torch.arange(N), [1, N - 1]))
    with pytest.raises(BadInput, match="labels"): m.logits(codes, Cond(torch.tensor([0, 1, 9])))
    with pytest.raises(BadInput, match="guidance"):
        Sampler(build(class_dropout=0), guidance=CFG(2.0)).sample(cond, torch.arange(3), Keyed(0), grid=GRID)
    for wrong in ({"kv_heads": 2}, {"spare": 1}, {"anneal_start": 200_000}, {"grid": (12,)}, {"drop_path": 0.1}):
        with pytest.raises(BadInput, match=next(iter(wrong))): replace(SMALL, **wrong)


def test_training_keys_orders_by_sample_and_fades_to_the_raster():
    m = build(anneal_start=2, anneal_end=6, class_dropout=0.5).train()
    codes, cond, _ = case()
    def loss(step): return float(m(codes, cond, Keyed(0), At(torch.arange(3), step=step)).total.detach())
    assert loss(0) == loss(0) != loss(1)
    m.condition.drop = 0.0
    assert loss(6) == loss(9) != loss(3)


def test_the_authors_words_come_back():
    c = replace(SMALL, grid=(4, 4), spare=1024)
    spec = rar_spec(c)
    assert rar_config(spec, std=0.3) == c and spec["model"]["generator"]["image_seq_len"] == 16
