"Rows side by side where the page has no room: other families, captions, beginnings, resting branches, refusals."
from dataclasses import replace

import pytest
import torch

from vgnb.core import BadInput
from vgnb.draws import At, Keyed
from vgnb.generators.annealed_order import AnnealedOrderConfig, AnnealedOrderTransformer
from vgnb.generators.generator import Cond, Grid
from vgnb.generators.orders import Given, Raster
from vgnb.generators.proposal import ProposalConfig, ProposalTransformer
from vgnb.generators.random_order import RandomOrderConfig, RandomOrderTransformer
from vgnb.generators.raster import RasterConfig, RasterTransformer
from vgnb.generators.rows_at_once import RowsAtOnce, ZipAR
from vgnb.generators.schedules import even, one_by_one
from vgnb.kinds import from_json, to_json
from vgnb.pipeline import from_pretrained
from vgnb.sampling.guidance import CFG
from vgnb.sampling.sampler import Sampler
from vgnb.sampling.settings import Sampling

GRID = Grid((3, 4))
N = GRID.n
SMALL = RasterConfig(2, 32, 2, ffn_multiple=16, vocab=24, grid=(3, 4), classes=5, std=0.3)
CAPTIONS = replace(SMALL, condition="text", text_dim=8, text_tokens=3)
PROPOSAL = ProposalConfig(2, 32, 2, ffn_multiple=16, vocab=24, grid=(3, 4), classes=5, std=0.3, positions=N)
MODELS = {
    "llamagen": (RasterTransformer, SMALL), "captions": (RasterTransformer, CAPTIONS),
    "line": (RasterTransformer, replace(SMALL, rope="sequence", zero_prefix=False)),
    "everywhere": (RasterTransformer, replace(SMALL, class_everywhere=True, kv_heads=1)),
    "llama": (ProposalTransformer, PROPOSAL), "gpt2": (ProposalTransformer, replace(PROPOSAL, block="gpt2"))}


def build(name):
    "A model whose head is not zero."
    kind, config = MODELS[name]
    m, g = kind(config).eval(), torch.Generator().manual_seed(0)
    for layer in m.outputs(): layer.weight.data.normal_(0, 0.3, generator=g)
    return m


def asked(name, ids):
    "Classes; or captions, the second with a place of padding."
    if name != "captions": return Cond(ids % 5)
    text = torch.randn(7, 3, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(7, 3, dtype=torch.bool)
    mask[1, 0] = False
    return Cond(text=text[ids], mask=mask[ids])


def sampled(m, order, cond, ids, guidance=None, **kw):
    return Sampler(m, order, one_by_one, guidance or CFG(2.0), rows=4).sample(cond, ids, Keyed(0), grid=GRID, **kw)


@pytest.mark.parametrize("name", MODELS)
def test_the_widest_window_is_the_raster(name):
    m, ids = build(name), torch.arange(5)
    want = sampled(m, Raster(), asked(name, ids), ids)
    assert torch.equal(sampled(m, ZipAR(4), asked(name, ids), ids), want)
    assert not torch.equal(sampled(m, ZipAR(1), asked(name, ids), ids), want)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("stand_in", ["newest", "above"])
def test_a_picture_is_the_same_at_any_batch_size(name, stand_in):
    m, ids, order = build(name), torch.arange(6), ZipAR(2, stand_in)
    together = sampled(m, order, asked(name, ids), ids)
    for part in (ids[5:], ids[1:2], ids[[4, 0, 3]]):
        assert torch.equal(sampled(m, order, asked(name, part), part), together[part])


def test_a_beginning_is_kept_and_rows_go_on_from_it():
    m, ids = build("llamagen"), torch.arange(3)
    codes = torch.randint(24, (3, N, 1), generator=torch.Generator().manual_seed(2))
    for begun in (1, 5, 11):
        known = (torch.arange(N) < begun).expand(3, -1)
        made = sampled(m, ZipAR(2), Cond(ids), ids, given=(codes, known))
        assert torch.equal(made[:, :begun], codes[:, :begun]) and (made >= 0).all()
        one_row = sampled(m, ZipAR(4), Cond(ids), ids, given=(codes, known))
        assert torch.equal(one_row, sampled(m, Raster(), Cond(ids), ids, given=(codes, known)))


@torch.no_grad()
def test_a_branch_that_rested_has_missed_nothing():
    m, (order, ids) = RowsAtOnce(build("llamagen")), (ZipAR(2), torch.arange(3))
    plan = order.plan(GRID, None, one_by_one, 1, Keyed(0), At(ids))
    codes = torch.randint(24, (3, N, 1), generator=torch.Generator().manual_seed(2))
    cond = Cond(ids)

    def said(rests):
        "Logits of each step; in some of them the second branch rests."
        state, out = m.begin((cond, m.null(cond)), GRID), []
        for step, columns in enumerate(plan.groups()):
            cells, live = plan.perm[:, columns], 1 if step in rests else 2
            if step == 3: m.predict(state, cells.flip(1), live=live)               # asked before, for nothing
            out.append(m.predict(state, cells, live=live).logits)
            m.accept(state, cells, codes.gather(1, cells[..., None]))
        return out

    for rests in ((0, 2, 3), range(len(plan.counts) - 1)):
        for whole, some in zip(said(()), said(rests)):
            torch.testing.assert_close(some, whole[:len(some)], atol=1e-5, rtol=1e-5)


def test_stand_ins_differ_only_where_a_code_is_missing():
    m, ids = build("llamagen"), torch.arange(4)
    def codes(window, stand_in): return sampled(m, ZipAR(window, stand_in), Cond(ids), ids)
    for window in (1, 4): assert torch.equal(codes(window, "newest"), codes(window, "above"))
    assert not torch.equal(codes(2, "newest"), codes(2, "above"))


def test_as_a_setting_and_a_file():
    for name, order in (("zipar", ZipAR()), ("anti-diagonals", ZipAR(1))):
        assert Sampling(order=name).order == order
    settings = Sampling(order=ZipAR(3, "above"))
    assert from_json(to_json(settings), Sampling) == settings
    pipe = from_pretrained("tiny-vqkd")
    steps = list(pipe.stream(["heart"], order="anti-diagonals", rows=1))
    assert [step.positions.shape[1] for step in steps] == [*range(1, 9), *range(7, 0, -1)]


def test_models_of_any_order_are_asked_as_they_are():
    m = RandomOrderTransformer(RandomOrderConfig(1, 32, 2, ffn_multiple=16, vocab=24, grid=(3, 4), classes=5)).eval()
    sampler = Sampler(m, ZipAR(1), even)
    assert sampler.generator is m
    assert sampler.groups(GRID, None, torch.arange(1), Keyed(0)) == [(1, 2, 3, 3, 2, 1)]


def test_what_cannot_be_asked_is_refused_by_name():
    ids = torch.arange(2)
    rar = AnnealedOrderTransformer(AnnealedOrderConfig(1, 32, 2, hidden=32, vocab=24, grid=(3, 4), classes=5, spare=2))
    with pytest.raises(BadInput, match="order='?zipar.*must be raster: the weights of"):
        sampled(rar.eval(), ZipAR(2), Cond(ids), ids)
    for wrong, words in (({"window": 0}, "window"), ({"window": 1.5}, "window"), ({"stand_in": "left"}, "stand_in")):
        with pytest.raises(BadInput, match=words): ZipAR(**wrong)
    with pytest.raises(BadInput, match="any_order"): Sampler(build("llamagen"), Given(range(N)))
    with pytest.raises(BadInput, match="order='ZipAR'.*one code a cell"):
        from_pretrained("tiny-iar2")("heart", order="zipar")
