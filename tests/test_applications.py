"""The applications, for every family that fills cells in any order.

What is kept, what is made anew and how often, whatever else is in the batch; from files, too.
"""
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.run_scripts import Scripts
from vgnb.core import BadInput, digest_file, load_json
from vgnb.data.shapes import Shapes
from vgnb.draws import Keyed
from vgnb.evaluation.samples import read_npz
from vgnb.generators.generator import Cond, Generator, Grid, Prediction
from vgnb.generators.masked import MaskedConfig, MaskedTransformer
from vgnb.generators.orders import coarse_cells
from vgnb.generators.partition import PartitionConfig, PartitionTransformer
from vgnb.generators.random_order import RandomOrderConfig, RandomOrderTransformer
from vgnb.generators.raster import RasterConfig, RasterTransformer
from vgnb.pipeline import Pipeline
from vgnb.sampling.applications import (
    Inpaint,
    Morph,
    Outpaint,
    box_mask,
    brush_mask,
    cell_mask,
    check_mask,
    paste,
    placed,
    windows,
)
from vgnb.sampling.extrapolation import Extrapolate, _Coarse
from vgnb.sampling.guidance import CFG
from vgnb.sampling.painting import Request
from vgnb.sampling.pick import Pick
from vgnb.sampling.settings import Sampling
from vgnb.tokenizers.vqgan import vqgan

SHAPE, N, V = (4, 6), 24, 32
MARK = V - 1      # a code that only the model makes: given codes are smaller

class Stub(Generator):
    "A family of its own: logits depend on what is known, and on nothing else."
    vocab = (V,)
    traits = frozenset({"any_order"})
    grid = SHAPE
    classes = 5

    def __init__(self):
        super().__init__()
        self.effect = torch.nn.Parameter(torch.randn(V, V, generator=torch.Generator().manual_seed(3)))

    def null(self, cond): return cond

    def predict(self, state, positions, given=None, *, live, independent=False):
        seen = self.effect[state.tokens[:, :state.done, 0]].sum(1)[None, :, None]
        logits = (seen + self.effect[positions % V]).detach()
        return Prediction(logits.expand(live, -1, -1, -1))


def random_order(**kw):
    return RandomOrderTransformer(RandomOrderConfig(2, 32, 2, ffn_multiple=16, grid=SHAPE, std=0.2, **kw))

def masked(**kw):
    return MaskedTransformer(MaskedConfig(1, 32, 2, ffn=32, grid=SHAPE, **kw))

def partition(**kw):
    return PartitionTransformer(PartitionConfig(1, 1, 32, 2, grid=SHAPE, **kw))

def raster(**kw):
    return RasterTransformer(RasterConfig(1, 32, 2, ffn_multiple=16, grid=SHAPE, **kw))


NETWORKS = {"random-order": random_order, "masked": masked, "partition": partition}
FAMILIES = [*NETWORKS, "stub"]
LARGER = ["random-order"]                       # families that take grids other than their own


def build(family):
    "The family's model, with weights large enough for codes to matter."
    m = Stub() if family == "stub" else NETWORKS[family](vocab=V, classes=5)
    g = torch.Generator().manual_seed(7)
    for p in m.parameters():
        empty = p.dim() > 1 and float(p.detach().abs().max()) == 0
        if empty: torch.nn.init.normal_(p, 0, 0.2, generator=g)
    return m.eval()


def sampling(order="random", **kw):
    return Sampling(**dict(guidance=2.0, order=order, schedule="cosine", steps=4, rows=3) | kw)


def request(sampler, seed=0, b=7, shape=SHAPE):
    "Pictures of random codes, each to become class id mod 5."
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(MARK, (b, shape[0] * shape[1], 1), generator=g)
    ids = torch.arange(b)
    return Request(sampler, Cond(ids % 5), ids, Keyed(seed), codes, Grid(shape))


def rows_of(r, rows):
    "The same request for some of its samples."
    rows = torch.as_tensor(rows)
    return replace(r, cond=r.cond.rows(rows), ids=r.ids[rows], codes=r.codes[rows])


def ragged(b=7, shape=SHAPE):
    "A mask of its own for each sample: from one cell to all of them."
    g = torch.Generator().manual_seed(1)
    m = torch.rand(b, *shape, generator=g) < torch.linspace(0.1, 1.1, b)[:, None, None]
    m[0] = False
    m[0, 1, 2] = True
    return m


@dataclass
class Book:
    "What was accepted: how often each cell, and which tokens."
    counts: torch.Tensor
    tokens: torch.Tensor


def watched(m):
    "The model draws `MARK` wherever it is asked; the books of its runs, one a call of begin."
    books = []
    begin, predict, accept = m.begin, m.predict, m.accept

    def new_begin(branches, grid, reuse=None):
        shape = (branches[0].b, grid.n)
        books.append(Book(torch.zeros(shape).long(), torch.full(shape, -1)))
        return begin(branches, grid, reuse=None)

    def new_predict(state, positions, given=None, **kw):
        p = predict(state, positions, given, **kw)
        logits = torch.full_like(p.logits, -1e4)
        logits[..., MARK] = 1e4
        return p._replace(logits=logits)

    def new_accept(state, positions, tokens):
        book = books[-1]
        book.counts.scatter_add_(1, positions, torch.ones_like(positions))
        book.tokens.scatter_(1, positions, tokens[..., 0])
        accept(state, positions, tokens)

    m.begin, m.predict, m.accept = new_begin, new_predict, new_accept
    return books


def cells_of(steps, sample):
    "The cells (n,) that steps decided for one sample, in this order."
    mine = [s.positions[s.ids.tolist().index(sample)] for s in steps if sample in s.ids.tolist()]
    return torch.cat(mine).tolist()


# ---- paintings of codes

@pytest.mark.parametrize("order", ["random", "hilbert", "confidence", "uncertainty"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_marked_cell_is_decided_once_by_the_model_and_no_other_ever(family, order):
    m, mask = build(family), ragged()
    books = watched(m)
    r = request(sampling(order).sampler(m))
    painting = Inpaint(mask).paint(r)
    codes, marked = r.codes[..., 0], mask.flatten(1)

    seen = torch.zeros(7, N).long()
    for s in painting.stream(): seen[s.ids] = seen[s.ids].scatter_add(1, s.positions, torch.ones_like(s.positions))
    assert torch.equal(seen, marked.long())

    want = torch.where(marked, MARK, codes)
    for index, book in zip(painting.batches(), books, strict=True):
        assert (book.counts == 1).all(), "a cell accepted twice, or never"
        assert torch.equal(book.tokens[:len(index)], want[index])
    assert torch.equal(painting.sample()[..., 0], want)


@pytest.mark.fault("R2")
@pytest.mark.parametrize("order", ["random", "uncertainty"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_is_the_same_in_any_company(family, order):
    "Ragged masks: alone, in other batches, in another order."
    mask = ragged()
    r = request(sampling(order, picks=Pick(top_k=12)).sampler(build(family)), seed=3)

    def run(rows): return Inpaint(mask[rows]).paint(rows_of(r, rows)).sample()

    whole = run(torch.arange(7))
    for rows in ([4], [6, 0, 2], [5, 4, 3, 2, 1]): assert torch.equal(run(torch.tensor(rows)), whole[rows]), rows
    kept = ~mask.flatten(1)
    assert torch.equal(whole[kept], r.codes[kept])
    assert len({tuple(c) for c in whole[4:, :, 0].tolist()}) == 3
    other = Inpaint(mask).paint(replace(r, draws=Keyed(4))).sample()
    assert not torch.equal(other, whole)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("picture, canvas, at", [
    ((4, 6), (8, 12), (3, 5)),
    ((4, 6), (4, 15), (0, 9)),
    ((3, 5), (9, 9), None),
    ((6, 7), (7, 7), (1, 0)),
    ((2, 2), (4, 6), (2, 4))])
def test_outpainting_keeps_the_picture_where_it_was_put(family, picture, canvas, at):
    "Square and not, pictures larger and smaller than the training grid: in windows, for every family."
    m = build(family)
    watched(m)
    r = request(sampling().sampler(m), b=4, shape=picture)
    painting = Outpaint(canvas, at).paint(r)
    made = painting.sample().view(4, *canvas)

    top, left = at or ((canvas[0] - picture[0]) // 2, (canvas[1] - picture[1]) // 2)
    inside = made[:, top:top + picture[0], left:left + picture[1]]
    assert torch.equal(inside.flatten(1), r.codes[..., 0])
    assert int((made != MARK).sum()) == r.codes.numel(), "what is not the picture's is the model's"

    others = set(range(canvas[0] * canvas[1])) - set(placed(picture, canvas, at).tolist())
    assert sorted(cells_of(painting.stream(), 0)) == sorted(others)


@pytest.mark.parametrize("boundary, another", [(0, 4), (2, 0), (4, 0)])
@pytest.mark.parametrize("family", LARGER)
def test_outpainting_in_one_run(family, boundary, another):
    r = request(sampling(steps=9).sampler(build(family)), b=4)

    def run(rows, boundary): return Outpaint((7, 11), (3, 2), boundary).paint(rows_of(r, rows)).sample()

    made = run(range(4), boundary)
    assert torch.equal(made.view(4, 7, 11)[:, 3:7, 2:8].flatten(1), r.codes[..., 0])
    assert int(made.max()) < V
    assert torch.equal(run([2], boundary), made[[2]])
    assert not torch.equal(run(range(4), another), made)


@pytest.mark.parametrize("what", [Outpaint((8, 12), None, 2), Extrapolate((8, 12))], ids=["outpaint", "extrapolate"])
def test_a_model_with_one_grid_says_so(what):
    r = request(sampling().sampler(build("masked")), b=2)
    with pytest.raises(BadInput): what.paint(r)


def test_windows_reach_everything_and_always_hold_something_known():
    g = torch.Generator().manual_seed(0)

    def between(low, high): return int(torch.randint(low, high + 1, (), generator=g))

    for _ in range(40):
        canvas = (between(3, 19), between(3, 19))
        window = tuple(between(1, c) for c in canvas)
        picture = tuple(between(1, c) for c in canvas)
        at = tuple(between(0, c - p) for c, p in zip(canvas, picture))
        known = torch.zeros(canvas[0] * canvas[1], dtype=torch.bool)
        known[placed(picture, canvas, at)] = True
        thin = min(window) == 1                                 # may stand where nothing is known yet
        for cells in windows(canvas, known, window):
            assert len(set(cells.tolist())) == window[0] * window[1]
            assert thin or known[cells].any()
            assert not known[cells].all()
            known[cells] = True
        assert known.all()


@pytest.mark.parametrize("family", FAMILIES)
def test_morphs_change_a_region_step_by_step(family):
    region = box_mask(SHAPE, 1, 1, 2, 4)
    r = request(sampling().sampler(build(family)), b=4)
    painting = Morph(4, "halton", mask=region).paint(replace(r, cond=Cond((r.cond.labels + 1) % 5)))
    frames = painting.frames()[..., 0]
    codes, marked = r.codes[..., 0], region.flatten()
    assert frames.shape == (4, 4, N)
    assert (frames[:, :, ~marked] == codes[:, ~marked]).all()
    assert torch.equal(painting.frames()[..., 0], frames)
    for before, after in zip((codes, *frames), frames): assert int((before != after).sum(1).max()) <= 2
    assert sorted(cells_of(painting.stream(), 0)) == marked.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_morphs_made_afresh_end_as_a_sample(family):
    sampler = sampling().sampler(build(family))
    r = request(sampler, b=4)
    r = replace(r, cond=Cond((r.cond.labels + 1) % 5))
    what = Morph(3, "spiral-out", afresh=True)
    frames = what.paint(r).frames()
    assert torch.equal(frames[-1], sampler.sample(r.cond, r.ids, r.draws, grid=Grid(SHAPE)))
    assert int((frames[0] != r.codes).sum(1).max()) <= 8
    alone = what.paint(rows_of(r, [2])).frames()
    assert torch.equal(alone[:, 0], frames[:, 2])


def test_steps_can_be_read_at_any_later_time():
    painting = Morph(3).paint(request(sampling().sampler(build("random-order")), b=3))
    now = [(s, s.codes(), s.filled()) for s in painting.stream()]
    for s, codes, filled in now:
        assert torch.equal(s.codes(), codes)
        assert torch.equal(s.filled(), filled)
        assert s.clock.total == N
    first, last = now[0][0], now[-1][1]
    assert [s.clock.step for s, *_ in now] == list(range(first.clock.steps))
    assert torch.equal(last, painting.sample())


# ---- larger pictures

def larger(steps, compat=None):
    "A request for four pictures larger than in training."
    schedule = "one-by-one" if steps is None else "randar"
    how = Sampling("random", schedule, steps or 1, CFG(2.0, start=1.0), rows=3, compat=compat)
    return replace(request(how.sampler(build("random-order")), b=4), codes=None, grid=None)


THRICE = pytest.param((12, 18), marks=pytest.mark.full)


@pytest.mark.parametrize("shape", [(6, 9), (8, 12), THRICE, (4, 13), (7, 6)],
                         ids=["1.5x", "2x", "3x", "wider", "taller"])
@pytest.mark.parametrize("steps", [None, 7])
def test_extrapolation_decides_every_cell_once_the_last_group_too(shape, steps):
    r = larger(steps)
    painting = Extrapolate(shape, (1.0, 1.5), ntk_boundary=1).paint(r)
    seen = []
    low, made = painting.frames(seen.append)
    coarse = coarse_cells(Grid(shape, base=SHAPE))
    for i in range(4):
        cells = cells_of(seen, i)
        assert sorted(cells) == list(range(shape[0] * shape[1]))
        assert sorted(cells[:N]) == sorted(coarse.tolist())
    assert torch.equal(low[:, coarse], made[:, coarse])
    assert (low >= 0).sum() == 4 * N
    assert int(made.min()) >= 0

    small = replace(r.sampler, order=_Coarse(r.draws), steps=min(r.sampler.steps, N))
    sample = small.sample(r.cond, r.ids, r.draws.fork("coarse"), grid=Grid(SHAPE))
    assert torch.equal(made[:, coarse], sample), "the coarse picture, cell by cell"


@pytest.mark.parametrize("shape", [(6, 9), (12, 18), (7, 6)])
def test_the_published_loop_forgets_the_last_group(shape):
    what = Extrapolate(shape, (1.0, 1.5), ntk_boundary=1)
    painting = what.paint(larger(7))
    seen = []
    made = what.codes(painting, seen.append)
    assert torch.equal(made, painting.sample())

    last = torch.cat([s.filled() == s.clock.step for s in seen if s.clock.step == s.clock.steps - 1])
    faulty = what.codes(what.paint(larger(7, compat="upstream")))
    assert torch.equal(faulty, made.masked_fill(last[..., None], -1))
    assert (faulty < 0).any()


# ---- pixels

@pytest.mark.parametrize("factor", [1, 4, 8])
def test_cells_that_a_mask_touches(factor):
    g = torch.Generator().manual_seed(0)
    m = torch.rand(3, 4 * factor, 6 * factor, generator=g) < 0.03 / factor
    m[0, 0, 0] = True
    size = tuple(m.shape[1:])

    def touched(one, y, x): return bool(one[y * factor:(y + 1) * factor, x * factor:(x + 1) * factor].any())

    want = torch.tensor([[touched(one, y, x) for y in range(4) for x in range(6)] for one in m])
    assert torch.equal(cell_mask(m, SHAPE), want)
    assert torch.equal(cell_mask(check_mask(m.byte() * 200, 3, size), SHAPE), want)
    assert torch.equal(cell_mask(check_mask(m.numpy(), 3, size), SHAPE), want)


def test_a_brush_marks_its_stroke():
    stroke = brush_mask((20, 30), [(2, 3), (15, 25)], 2)
    assert 60 < int(stroke.sum()) < 130
    assert stroke[2, 3]
    assert stroke[14, 24]
    assert not stroke[15, 3]


@pytest.mark.parametrize("seam", [0, 1, 5])
def test_pasting(seam):
    g = np.random.default_rng(0)
    old, new = (g.integers(0, 256, (2, 24, 40, 3), dtype=np.uint8) for _ in range(2))
    mask = torch.stack([box_mask((24, 40), 8, 10, 6, 9), brush_mask((24, 40), [(5, 5), (18, 30)], 3)])
    out = paste(new, old, mask, seam)
    assert (out[mask] == new[mask]).all()

    far = torch.nn.functional.max_pool2d(mask[:, None].float(), 2 * seam + 1, 1, seam)[:, 0] == 0
    assert far.any()
    assert (out[far] == old[far]).all()

    ring = ~far & ~mask
    assert ring.any() == (seam > 0)
    assert (np.minimum(old, new)[ring] <= out[ring]).all()
    assert (out[ring] <= np.maximum(old, new)[ring]).all()
    assert (out[ring] != old[ring]).any() == (seam > 0)


def test_a_seam_falls_evenly():
    old = np.zeros((1, 1, 9, 3), np.uint8)
    new = np.full((1, 1, 9, 3), 200, np.uint8)
    mask = torch.arange(9)[None] < 2
    assert paste(new, old, mask, 3)[0, 0, :, 0].tolist() == [200, 200, 150, 100, 50, 0, 0, 0, 0]


# ---- pipelines

def pipeline(family="random-order", **kw):
    torch.manual_seed(0)
    model = raster if family == "raster" else NETWORKS[family]
    settings = Sampling() if family == "raster" else sampling(**kw)
    tokenizer = vqgan("tiny-shapes", quantizer=dict(codebook=48), width=16, groups=8)
    return Pipeline(tokenizer, model(vocab=48, classes=10), settings, Shapes.classes)


def photos(b=3, size=(32, 48)):
    return np.random.default_rng(b).integers(0, 256, (b, *size, 3), dtype=np.uint8)


@pytest.mark.parametrize("family", NETWORKS)
def test_pipelines_inpaint(family):
    pipe, x = pipeline(family), photos()
    stroke = brush_mask((32, 48), [(2, 2), (30, 40)], 3)
    mask = torch.stack([box_mask((32, 48), 3, 5, 9, 20), stroke, box_mask((32, 48), 0, 0, 32, 47)])
    steps = []
    whole = pipe.inpaint(x, mask, [0, 1, 2], seed=2, watch=steps.append)
    assert {int(i) for s in steps for i in s.ids} == {0, 1, 2}

    kept = ~cell_mask(mask, SHAPE)
    again = pipe.painting(Inpaint(mask), [0, 1, 2], x, seed=2)
    assert torch.equal(again.sample()[kept], pipe.encode(x)[kept])
    for i in range(3):
        alone = pipe.inpaint(x[i], mask[i], [i], ids=[i], seed=2)
        assert (alone[0] == whole[i]).all(), i

    pasted = pipe.inpaint(x, mask, [0, 1, 2], seed=2, paste=True)
    assert (pasted[~mask] == x[~mask]).all()
    assert (pasted[mask] == whole[mask]).all()
    edited = pipe.edit(x, mask, ["disc"] * 3)
    assert (edited[~mask] == x[~mask]).all()


@pytest.mark.parametrize("family", NETWORKS)
def test_pipelines_outpaint_and_morph(family):
    pipe, x = pipeline(family), photos()
    wide = pipe.outpaint(x, (40, 80), [0, 1, 2], at=(8, 16), paste=True)
    assert wide.shape == (3, 40, 80, 3)
    assert (wide[:, 8:, 16:64] == x).all()
    middle = pipe.outpaint(x, (48, 64), [0, 1, 2], paste=True, seam=2)
    assert (middle[:, 10:38, 10:54] == x[:, 2:-2, 2:-2]).all()
    assert pipe.morph(x, [3, 4, 5], frames=2).shape == (3, 3, 32, 48, 3)


def test_other_sizes_than_the_training_grid():
    "Square pictures for a model of a grid that is not; only the picture's own grid counts."
    pipe, x = pipeline(), photos(2, (40, 40))
    mask = box_mask((40, 40), 17, 0, 7, 40)
    made = pipe.inpaint(x, mask, [1, 2], paste=True)
    assert made.shape == (2, 40, 40, 3)
    assert (made[:, ~mask] == x[:, ~mask]).all()
    assert pipe.painting(Inpaint(mask), [1, 2], x).known.sum(1).tolist() == [20, 20]


X = photos()
MASK = box_mask((32, 48), 0, 0, 8, 8)
ASKED = [0] * 3
REFUSED = [                   # (argument, what is asked of a pipeline that fills cells in any order)
    ("mask", lambda p: p.inpaint(X, MASK[:30], ASKED)),
    ("mask", lambda p: p.inpaint(X, MASK.float() * 0.5, ASKED)),
    ("mask", lambda p: p.inpaint(X, MASK & ~MASK, ASKED)),
    ("images", lambda p: p.inpaint(X[:, :30], MASK[:30], ASKED)),
    ("images", lambda p: p.inpaint(X / 255, MASK, ASKED)),
    ("labels", lambda p: p.inpaint(X, MASK, [0] * 2)),
    ("label", lambda p: p.edit(X, MASK, [10] * 3)),
    ("seam", lambda p: p.inpaint(X, MASK, ASKED, paste=True, seam=-1)),
    ("steps", lambda p: p.inpaint(X, MASK, ASKED, steps=25)),
    ("steps", lambda p: p.inpaint(X, MASK, ASKED, steps=0)),
    ("canvas", lambda p: p.outpaint(X, (24, 64), ASKED)),
    ("canvas", lambda p: p.outpaint(X, (50, 64), ASKED)),
    ("canvas", lambda p: p.outpaint(X, (32, 48), ASKED)),
    ("at", lambda p: p.outpaint(X, (40, 64), ASKED, at=(16, 0))),
    ("at", lambda p: p.outpaint(X, (40, 64), ASKED, at=(-8, 0))),
    ("at", lambda p: p.outpaint(X, (40, 64), ASKED, at=(4, 0))),
    ("ntk_boundary", lambda p: p.outpaint(X, (40, 64), ASKED, ntk_boundary=9)),
    ("ntk_boundary", lambda p: p.extrapolate([0], (8, 8), ntk_boundary=9)),
    ("spatial", lambda p: p.extrapolate([0], (8, 8), spatial=(2.0, 1.0))),
    ("spatial", lambda p: p.extrapolate([0], (8, 8), spatial=(-2.0, 1.0))),
    ("shape", lambda p: p.extrapolate([0], (8, 5))),
    ("frames", lambda p: p.morph(X, ASKED, frames=25)),
    ("order", lambda p: p.morph(X, ASKED, order="spiral"))]


@pytest.fixture
def ran():
    "The modules that ran in the test."
    found = []
    watch = torch.nn.modules.module.register_module_forward_pre_hook(lambda m, inputs: found.append(m))
    yield found
    watch.remove()


@pytest.fixture(scope="module")
def pipe(): return pipeline()


@pytest.mark.parametrize("argument, ask", REFUSED, ids=[f"{i}-{a}" for i, (a, _) in enumerate(REFUSED)])
def test_nothing_runs_before_everything_is_checked(pipe, ran, argument, ask):
    with pytest.raises(BadInput) as e: ask(pipe)
    assert e.value.argument == argument, str(e.value)
    assert not ran


def test_a_raster_fills_no_gaps(ran):
    with pytest.raises(BadInput) as e: pipeline("raster").inpaint(X, MASK, ASKED)
    assert e.value.argument == "generator"
    assert not ran


# ---- the command line

@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with a pipeline, pictures in class folders, masks."
    at = tmp_path_factory.mktemp("paint")
    pipeline(rows=4).save_pretrained(at / "pipe")
    pipeline("raster").save_pretrained(at / "raster")
    (at / "masks").mkdir()
    for i, (x, name) in enumerate(zip(photos(4), ("star", "ring", "ring", "heart"))):
        for path in (at / "photos" / name / f"{i}.png", at / "flat" / f"{i}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x).save(path)
        mask = np.zeros((32, 48), np.uint8)
        mask[4:4 + 6 * (i + 1), 10:30] = 255
        Image.fromarray(mask).save(at / "masks" / f"{i}.png")
    return at


@pytest.fixture(scope="module")
def scripts(place):
    return Scripts(place)


@pytest.fixture
def sample(place, scripts):
    "Run sample.py with these words; returns what it wrote."
    def run(out, *words):
        ran = scripts("sample.py", *words, "--out", out)
        assert ran.code == 0, ran
        return read_npz(place / out, "arr_0"), read_npz(place / out, "labels").tolist()
    return run


def test_a_dry_run_says_what_it_would_paint(place, scripts):
    before = sorted(place.rglob("*"))
    words = ["pipe", "--inpaint", "photos", "--mask", "masks/1.png", "--paste", "--out", "none.npz"]
    ran = scripts("sample.py", *words, "--dry-run")
    assert ran.code == 0, ran
    assert "4 images from 4 pictures" in ran.out
    assert "marked" in ran.out
    assert sorted(place.rglob("*")) == before


def test_inpainting_from_files(place, sample):
    words = ["pipe", "--inpaint", "photos", "--mask", "masks/1.png", "--paste", "--part", 2]
    made, labels = sample("a.npz", *words)
    files = sorted((place / "photos").rglob("*.png"), key=lambda p: p.relative_to(place / "photos").as_posix())
    kept = np.asarray(Image.open(place / "masks/1.png")) <= 127
    there = np.stack([np.asarray(Image.open(f)) for f in files])
    assert (made[:, kept] == there[:, kept]).all()
    assert labels == [Shapes.classes.index(f.parent.name) for f in files]                 # each as its own class
    record = load_json(place / "a.run.json")
    assert record["config"]["work"] == "inpaint"
    assert record["outputs"] == {"a.npz": digest_file(place / "a.npz")}


def test_more_samples_than_pictures_with_a_mask_each(sample):
    words = ["pipe", "--inpaint", "flat", "--mask", "masks", "--classes", "star", "--count", 6]
    made, labels = sample("b.npz", *words)
    assert len(made) == 6
    assert (made[4] != made[0]).any()
    assert set(labels) == {Shapes.classes.index("star")}


def test_a_painting_can_be_repeated(place, sample):
    words = ["pipe", "--inpaint", "flat/0.png", "--mask", "masks/0.png", "--classes", "ring", "--count", 3, "--seed", 5]
    made, _ = sample("c.npz", *words)
    assert len({x.tobytes() for x in made}) == 3                                          # variants of one picture
    _, script, *recorded = load_json(place / "c.run.json")["command"]                     # what rerun.py starts
    assert Path(script).name == "sample.py"
    assert recorded == [*map(str, words), "--out", "c.npz"]

    sample("d.npz", *recorded[:-2])
    assert digest_file(place / "d.npz") == digest_file(place / "c.npz")
    sample("e.npz", *[{"masks/0.png": "masks/3.png"}.get(w, w) for w in words])
    assert digest_file(place / "e.npz") != digest_file(place / "c.npz")


def test_outpainting_from_files(place, sample):
    words = ["pipe", "--outpaint", "flat", "--canvas", 48, 56]
    made, _ = sample("f.npz", *words, "--at", 16, 8, "--paste", "--sheet", "f.png")
    assert (place / "f.png").is_file()
    assert made.shape == (4, 48, 56, 3)
    assert (made[:, 16:, 8:] == photos(4)).all()
    made, _ = sample("g.npz", *words, "--ntk-boundary", 2, "--count", 1)
    assert made.shape == (1, 48, 56, 3)


def test_pictures_from_files_as_they_are_stored(place, sample):
    exif = Image.Exif()
    exif[0x0112] = 6
    shown = Image.fromarray(photos(1)[0])                                      # 32 x 48 as it is stored
    shown.save(place / "phone.png", exif=exif)
    Image.fromarray(np.uint8(255) * (np.arange(48) < 16) * np.ones((32, 1), np.uint8)).save(place / "m.png", exif=exif)
    words = ["pipe", "--inpaint", "phone.png", "--mask", "m.png", "--paste", "--count", 1]
    made, _ = sample("st.npz", *words, "--orientation", "stored")
    assert (made[0, :, 16:] == photos(1)[0][:, 16:]).all()
    turned, _ = sample("up.npz", *words)
    assert turned.shape == (1, 48, 32, 3)


def test_morphing_from_files(place, sample):
    "Each sample's pictures in a row: as it decodes, then every frame."
    pipe = Pipeline.from_pretrained(place / "pipe")
    made, labels = sample("m.npz", "pipe", "--morph", "flat", "--frames", 3, "--classes", "star", "--count", 2)
    star = Shapes.classes.index("star")
    assert labels == [star] * 8
    want = pipe.morph(photos(4)[:2], [star] * 2, frames=3)
    assert (made.reshape(2, 4, 32, 48, 3) == want.swapaxes(0, 1)).all()


def test_larger_pictures_by_command(place, scripts, sample):
    words = ["pipe", "--extrapolate", 6, 9]
    ran = scripts("sample.py", *words, "--spatial-scale", 1, 2, "--ntk-boundary", 0, "--count", 3, "--out", "h.npz")
    assert ran.code == 0, ran
    assert "3 images on grid (6, 9), larger than in training" in ran.out
    assert read_npz(place / "h.npz", "arr_0").shape == (3, 48, 72, 3)
    assert json.loads((place / "h.run.json").read_text())["config"]["spatial"] == [1.0, 2.0]
    made, _ = sample("i.npz", *words, "--count", 1, "--size", 32)
    assert made.shape == (1, 32, 32, 3)


@pytest.mark.parametrize("words, message", [
    ("pipe --inpaint flat", "mask=None: is needed"),
    ("pipe --inpaint flat --mask=", "mask='': no such file or folder"),
    ("pipe --inpaint= --mask masks", "inpaint='': no such file or folder"),
    ("pipe --inpaint flat --mask nowhere.png", "mask=nowhere.png: no such file or folder"),
    ("pipe --mask masks", "mask='masks': only goes with inpaint"),
    ("pipe --inpaint flat --mask masks --outpaint flat --canvas 48 48",
     "outpaint='flat': can't be combined with inpaint"),
    ("pipe --outpaint flat", "canvas=None: is needed"),
    ("pipe --outpaint flat --canvas 24 64", "canvas=(24, 64): must be larger than the images' (32, 48) pixels"),
    ("pipe --outpaint flat --canvas 40 64 --at 16 0", "at=(16, 0): must leave the images' (32, 48) pixels inside"),
    ("pipe --extrapolate 6 9 --spatial-scale 3 1", "spatial=(3.0, 1.0): must not fall"),
    ("pipe --extrapolate 6 9 --ntk-boundary 30", "ntk_boundary=30: must be an integer >= 0 and <="),
    ("pipe --frames 3", "frames=3: only goes with morph"),
    ("pipe --morph flat --frames 0", "frames=0: must be an integer >= 1"),
    ("pipe --orientation stored", "orientation='stored': only goes with inpaint or outpaint or morph"),
    ("pipe --morph flat --crop 0", "crop=0: must be an integer >= 1"),
    ("pipe --morph flat --morph-order spiral", "order='spiral': must be one of"),
    ("pipe --inpaint flat --mask masks --afresh", "afresh=True: only goes with morph"),
    ("pipe --morph flat --seam 0", "seam=0: only goes with inpaint or outpaint"),
    ("pipe --outpaint flat --canvas 40 64 --seam 2", "seam=2: only goes with paste"),
    ("raster --inpaint flat --mask masks/0.png", "generator='RasterTransformer': must have the trait any_order"),
    ("pipe --inpaint pipe/pipeline.json --mask masks/0.png", "inpaint=pipe/pipeline.json: must be a picture")])
def test_what_the_command_refuses(place, scripts, words, message):
    before = sorted(place.rglob("*"))
    ran = scripts("sample.py", *words.split(), "--out", "no/no.npz")
    assert ran.code == 2, ran
    assert message in ran.err
    assert len(ran.err.splitlines()) == 1
    assert sorted(place.rglob("*")) == before
