"The applications, for every family that fills cells in any order: what is kept, what is made anew and how often, whatever else is in the batch; from files, too."
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
from vgnb.sampling.applications import box_mask, brush_mask, cell_mask, check_mask, inpaint, morph, outpaint, paste, placed, windows
from vgnb.sampling.extrapolation import Extrapolation, _Coarse, extrapolate, extrapolation
from vgnb.sampling.settings import Sampling
from vgnb.tokenizers.vqgan import vqgan

SHAPE, N, V = (4, 6), 24, 32
MARK = V - 1      # a code that only the model makes: given codes are smaller


class Stub(Generator):
    "A family of its own: logits depend on what is known, and on nothing else."
    vocab, traits = (V,), frozenset({"any_order", "parallel"})
    def __init__(self):
        super().__init__()
        self.config = RandomOrderConfig(1, 16, 1, vocab=V, grid=SHAPE, classes=5)
        self.effect = torch.nn.Parameter(torch.randn(V, V, generator=torch.Generator().manual_seed(3)))
    def null(self, cond): return cond
    def predict(self, state, positions, given=None, *, live, independent=False):
        seen = self.effect[state.tokens[:, :state.done, 0]].sum(1)[None, :, None]
        return Prediction((seen + self.effect[positions % V]).detach().expand(live, -1, -1, -1))


FAMILIES = {
    "random-order": lambda: RandomOrderTransformer(RandomOrderConfig(2, 32, 2, ffn_multiple=16, vocab=V, grid=SHAPE, classes=5, std=0.2)),
    "masked": lambda: MaskedTransformer(MaskedConfig(1, 32, 2, ffn=32, vocab=V, grid=SHAPE, classes=5)),
    "partition": lambda: PartitionTransformer(PartitionConfig(1, 1, 32, 2, vocab=V, grid=SHAPE, classes=5)),
    "stub": Stub}
LARGER = ["random-order"]                       # families that take grids other than their own


def build(family):
    "The family's model, with weights large enough for codes to matter."
    m, g = FAMILIES[family]().eval(), torch.Generator().manual_seed(7)
    for p in m.parameters():
        if p.dim() > 1 and float(p.detach().abs().max()) == 0: torch.nn.init.normal_(p, 0, 0.2, generator=g)
    return m


def sampling(order="random", **kw): return Sampling(**dict(cfg_scale=2.0, order=order, schedule="cosine", steps=4, rows=3) | kw)


def given(b=7, shape=SHAPE, seed=0):
    "(codes (b, n), ids, cond)."
    g = torch.Generator().manual_seed(seed)
    return torch.randint(MARK, (b, shape[0] * shape[1]), generator=g), torch.arange(b), Cond(torch.arange(b) % 5)


def ragged(b=7, shape=SHAPE):
    "A mask of its own for each sample: from one cell to all of them."
    g = torch.Generator().manual_seed(1)
    m = torch.rand(b, *shape, generator=g) < torch.linspace(0.1, 1.1, b)[:, None, None]
    m[0] = False; m[0, 1, 2] = True
    return m


@dataclass
class Book:
    "What was accepted: how often each cell, and which tokens."
    counts: torch.Tensor
    tokens: torch.Tensor


def watched(m, n=N):
    "The model draws `MARK` wherever it is asked; the books of its runs, one a call of begin."
    books, begin, predict, accept = [], m.begin, m.predict, m.accept
    def new_begin(branches, grid, reuse=None):
        books.append(Book(torch.zeros(branches[0].b, grid.n).long(), torch.full((branches[0].b, grid.n), -1)))
        return begin(branches, grid, reuse=None)
    def new_predict(state, positions, given=None, **kw):
        p = predict(state, positions, given, **kw)
        return p._replace(logits=torch.full_like(p.logits, -1e4).index_fill(3, torch.tensor([MARK]), 1e4))
    def new_accept(state, positions, tokens):
        books[-1].counts.scatter_add_(1, positions, (tokens[..., 0] >= 0).long()); books[-1].tokens.scatter_(1, positions, tokens[..., 0])    # -1 = told to be unknown
        accept(state, positions, tokens)
    m.begin, m.predict, m.accept = new_begin, new_predict, new_accept
    return books


@pytest.mark.parametrize("order", ["random", "hilbert", "confidence", "uncertainty"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_marked_cell_is_decided_once_by_the_model_and_no_other_ever(family, order):
    m, (codes, ids, cond), mask = build(family), given(), ragged()
    books = watched(m)
    painting = inpaint(sampling(order).sampler(m), cond, ids, Keyed(0), codes, mask)
    seen = torch.zeros(7, N).long()
    for s in painting.stream(): seen[s.ids] = seen[s.ids].scatter_add(1, s.positions, torch.ones_like(s.positions))
    assert torch.equal(seen, mask.flatten(1).long())
    for index, book in zip(painting.batches(), books, strict=True):
        marked = mask.flatten(1)[index]
        assert (book.counts == 1).all(), "a cell accepted twice, or never"
        assert torch.equal(book.tokens[:len(index)], torch.where(marked, MARK, codes[index]))
    made = painting.sample()[..., 0]
    assert torch.equal(made, torch.where(mask.flatten(1), MARK, codes))


@pytest.mark.parametrize("order", ["random", "uncertainty"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_is_the_same_in_any_company(family, order):
    "Ragged masks: alone, in other batches, in another order."
    m, (codes, ids, cond), mask = build(family), given(), ragged()
    how = sampling(order, top_k=12).sampler(m)
    run = lambda rows: inpaint(how, cond.rows(rows), ids[rows], Keyed(3), codes[rows], mask[rows]).sample()
    whole = run(torch.arange(7))
    for rows in ([4], [6, 0, 2], [5, 4, 3, 2, 1]): assert torch.equal(run(torch.tensor(rows)), whole[rows])
    assert torch.equal(whole[..., 0][~mask.flatten(1)], codes[~mask.flatten(1)]) and len({tuple(c) for c in whole[4:, :, 0].tolist()}) == 3
    other = inpaint(how, cond, ids, Keyed(4), codes, mask).sample()
    assert not torch.equal(other, whole)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("picture, canvas, at", [((4, 6), (8, 12), (3, 5)), ((4, 6), (4, 15), (0, 9)), ((3, 5), (9, 9), None), ((6, 7), (7, 7), (1, 0)), ((2, 2), (4, 6), (2, 4))])
def test_outpainting_keeps_the_picture_where_it_was_put(family, picture, canvas, at):
    "Square and not, pictures larger and smaller than the training grid: in windows, for every family."
    m, (codes, ids, cond) = build(family), given(4, picture)
    watched(m)
    painting = outpaint(sampling().sampler(m), cond, ids, Keyed(0), codes, picture, canvas, at)
    made, (y, x) = painting.sample().view(4, *canvas), at or ((canvas[0] - picture[0]) // 2, (canvas[1] - picture[1]) // 2)
    assert torch.equal(made[:, y:y + picture[0], x:x + picture[1]].flatten(1), codes)
    assert int((made != MARK).sum()) == codes.numel(), "what is not the picture's is the model's"
    cells = torch.cat([s.positions[0] for s in painting.stream() if 0 in s.ids.tolist()])
    assert sorted(cells.tolist()) == sorted(set(range(canvas[0] * canvas[1])) - set(placed(picture, canvas, at).tolist()))


@pytest.mark.parametrize("ntk", [0, 2, 4])
@pytest.mark.parametrize("family", LARGER)
def test_outpainting_in_one_run(family, ntk):
    m, (codes, ids, cond) = build(family), given(4)
    how = sampling(steps=9).sampler(m)
    run = lambda rows, boundary=ntk: outpaint(how, cond.rows(rows), ids[rows], Keyed(0), codes[rows], SHAPE, (7, 11), (3, 2), boundary).sample()
    made = run(torch.arange(4))
    assert torch.equal(made[..., 0].view(4, 7, 11)[:, 3:7, 2:8].flatten(1), codes) and int(made.max()) < V
    assert torch.equal(run([2]), made[[2]]) and not torch.equal(made, run(torch.arange(4), 4 - ntk if ntk != 2 else 0))


@pytest.mark.parametrize("family", ["masked"])
def test_a_model_with_one_grid_says_so(family):
    m, (codes, ids, cond) = build(family), given(2)
    with pytest.raises(BadInput): outpaint(sampling().sampler(m), cond, ids, Keyed(0), codes, SHAPE, (8, 12), None, 2)
    with pytest.raises(BadInput): extrapolation(m, cond, ids, Keyed(0), (8, 12))


def test_windows_reach_everything_and_always_hold_something_known():
    g = torch.Generator().manual_seed(0)
    for _ in range(40):
        canvas = tuple(torch.randint(3, 20, (2,), generator=g).tolist())
        window = tuple(int(torch.randint(1, c + 1, (), generator=g)) for c in canvas)
        picture = tuple(int(torch.randint(1, c + 1, (), generator=g)) for c in canvas)
        at = tuple(int(torch.randint(0, c - p + 1, (), generator=g)) for c, p in zip(canvas, picture))
        known = torch.zeros(canvas[0] * canvas[1], dtype=torch.bool); known[placed(picture, canvas, at)] = True
        alone = min(window) == 1
        for cells in windows(canvas, known, window):
            assert len(set(cells.tolist())) == window[0] * window[1] and (alone or known[cells].any()) and not known[cells].all()
            known[cells] = True
        assert known.all()


@pytest.mark.parametrize("family", FAMILIES)
def test_morphs(family):
    m, (codes, ids, cond), region = build(family), given(4), box_mask(SHAPE, 1, 1, 2, 4)
    how, goal = sampling().sampler(m), Cond((cond.labels + 1) % 5)
    step = morph(how, goal, ids, Keyed(0), codes, 4, "halton", mask=region)
    frames = step.frames()[..., 0]
    assert frames.shape == (4, 4, N) and (frames[:, :, ~region.flatten()] == codes[:, ~region.flatten()]).all() and torch.equal(step.frames()[..., 0], frames)
    for before, after in zip((codes, *frames), frames): assert int((before != after).sum(1).max()) <= 2
    cells = torch.cat([s.positions for s in step.stream() if 0 in s.ids.tolist()], 1)[0]
    assert sorted(cells.tolist()) == region.flatten().nonzero()[:, 0].tolist()
    fresh = morph(how, goal, ids, Keyed(0), codes, 3, "spiral-out", afresh=True).frames()
    assert torch.equal(fresh[-1], how.sample(goal, ids, Keyed(0), grid=Grid(SHAPE))) and int((fresh[0, ..., 0] != codes).sum(1).max()) <= 8
    alone = morph(how, goal.rows([2]), ids[[2]], Keyed(0), codes[[2]], 3, "spiral-out", afresh=True).frames()
    assert torch.equal(alone[:, 0], fresh[:, 2])


def test_steps_can_be_read_at_any_later_time():
    m, (codes, ids, cond) = build("random-order"), given(3)
    painting = morph(sampling().sampler(m), cond, ids, Keyed(0), codes, 3)
    now = [(s, s.codes(), s.filled()) for s in painting.stream()]
    for s, then, filled in now: assert torch.equal(s.codes(), then) and torch.equal(s.filled(), filled) and s.clock.total == N
    assert [s.clock.step for s, *_ in now] == list(range(now[0][0].clock.steps)) and torch.equal(now[-1][1], painting.sample())


@pytest.mark.parametrize("shape", [(6, 9), (8, 12), (12, 18), (4, 13), (7, 6)], ids=["1.5x", "2x", "3x", "wider", "taller"])
@pytest.mark.parametrize("steps", [None, 7])
def test_extrapolation_decides_every_cell_once_the_last_group_too(shape, steps):
    m, (_, ids, cond) = build("random-order"), given(4)
    how = Extrapolation((1.0, 2.0), (1.0, 1.5), steps=steps, rows=3, ntk_boundary=1)
    painting = extrapolation(m, cond, ids, Keyed(0), shape, how)
    coarse, seen, n = coarse_cells(Grid(shape, base=SHAPE)), [], shape[0] * shape[1]
    low, made = painting.frames(seen.append)
    for i in range(4):
        cells = torch.cat([s.positions[s.ids.tolist().index(i)] for s in seen if i in s.ids.tolist()])
        assert sorted(cells.tolist()) == list(range(n)) and sorted(cells[:N].tolist()) == sorted(coarse.tolist())
    assert torch.equal(low[:, coarse], made[:, coarse]) and (low >= 0).sum() == 4 * N and int(made.min()) >= 0
    if steps is None: return
    small = how.sampler(m, _Coarse(Keyed(0)), N, False).sample(cond, ids, Keyed(0).fork("coarse"), grid=Grid(SHAPE))
    assert torch.equal(made[:, coarse], small), "the coarse picture, cell by cell"
    assert torch.equal(made, extrapolate(m, cond, ids, Keyed(0), shape, how))
    faulty = extrapolate(m, cond, ids, Keyed(0), shape, replace(how, compat="upstream"))
    last = [s for s in seen if s.clock.step == s.clock.steps - 1]
    assert torch.equal(faulty, made.masked_fill(torch.cat([s.filled() == s.clock.step for s in last])[..., None], -1)) and (faulty < 0).any()


@pytest.mark.parametrize("factor", [1, 4, 8])
def test_cells_that_a_mask_touches(factor):
    g = torch.Generator().manual_seed(0)
    m = torch.rand(3, 4 * factor, 6 * factor, generator=g) < 0.03 / factor
    m[0, 0, 0] = True
    want = torch.tensor([[bool(one[y * factor:(y + 1) * factor, x * factor:(x + 1) * factor].any()) for y in range(4) for x in range(6)] for one in m])
    assert torch.equal(cell_mask(m, SHAPE), want) and torch.equal(cell_mask(check_mask(m.byte() * 200, 3, tuple(m.shape[1:])), SHAPE), want)
    assert torch.equal(cell_mask(check_mask(m.numpy(), 3, tuple(m.shape[1:])), SHAPE), want)
    stroke = brush_mask((20, 30), [(2, 3), (15, 25)], 2)
    assert 60 < int(stroke.sum()) < 130 and bool(stroke[2, 3]) and bool(stroke[14, 24]) and not bool(stroke[15, 3])


@pytest.mark.parametrize("seam", [0, 1, 5])
def test_pasting(seam):
    g = np.random.default_rng(0)
    old, new = (g.integers(0, 256, (2, 24, 40, 3), dtype=np.uint8) for _ in range(2))
    mask = torch.stack([box_mask((24, 40), 8, 10, 6, 9), brush_mask((24, 40), [(5, 5), (18, 30)], 3)])
    out = paste(new, old, mask, seam)
    assert (out[mask] == new[mask]).all()
    far = torch.nn.functional.max_pool2d(mask[:, None].float(), 2 * seam + 1, 1, seam)[:, 0] == 0
    assert (out[far] == old[far]).all() and far.any()
    ring = ~far & ~mask
    assert ring.any() == (seam > 0)
    if seam: assert (np.minimum(old, new)[ring] <= out[ring]).all() and (out[ring] <= np.maximum(old, new)[ring]).all() and (out[ring] != old[ring]).any()


def test_a_seam_falls_evenly():
    old, new, mask = np.zeros((1, 1, 9, 3), np.uint8), np.full((1, 1, 9, 3), 200, np.uint8), torch.arange(9)[None] < 2
    assert paste(new, old, mask, 3)[0, 0, :, 0].tolist() == [200, 200, 150, 100, 50, 0, 0, 0, 0]


# ---- pipelines

def pipeline(family="random-order", **kw):
    torch.manual_seed(0)
    m = {"random-order": lambda: RandomOrderTransformer(RandomOrderConfig(1, 32, 2, ffn_multiple=16, vocab=48, grid=SHAPE, classes=10, std=0.2)),
         "masked": lambda: MaskedTransformer(MaskedConfig(1, 32, 2, ffn=32, vocab=48, grid=SHAPE, classes=10)),
         "partition": lambda: PartitionTransformer(PartitionConfig(1, 1, 32, 2, vocab=48, grid=SHAPE, classes=10)),
         "raster": lambda: RasterTransformer(RasterConfig(1, 32, 2, ffn_multiple=16, vocab=48, grid=SHAPE, classes=10))}[family]()
    return Pipeline(vqgan("tiny-shapes", quantizer=dict(codebook=48), width=16, groups=8), m, Sampling() if family == "raster" else sampling(**kw), Shapes.classes)


def photos(b=3, size=(32, 48)):
    return np.random.default_rng(b).integers(0, 256, (b, *size, 3), dtype=np.uint8)


@pytest.mark.parametrize("family", ["random-order", "masked", "partition"])
def test_pipelines_paint(family):
    pipe, x = pipeline(family), photos()
    mask = torch.stack([box_mask((32, 48), 3, 5, 9, 20), brush_mask((32, 48), [(2, 2), (30, 40)], 3), box_mask((32, 48), 0, 0, 32, 47)])
    steps = []
    whole = pipe.inpaint(x, mask, [0, 1, 2], seed=2, watch=steps.append)
    cells = cell_mask(mask, SHAPE)
    again = pipe.inpainting(x, mask, [0, 1, 2], seed=2)
    assert torch.equal(again.sample()[..., 0][~cells], pipe.encode(x)[..., 0][~cells]) and {int(i) for s in steps for i in s.ids} == {0, 1, 2}
    for i in range(3): assert (pipe.inpaint(x[i], mask[i], [i], ids=[i], seed=2)[0] == whole[i]).all()
    pasted = pipe.inpaint(x, mask, [0, 1, 2], seed=2, paste=True)
    assert (pasted[~mask] == x[~mask]).all() and (pasted[mask] == whole[mask]).all()
    assert (pipe.edit(x, mask, ["disc"] * 3)[~mask] == x[~mask]).all()
    wide = pipe.outpaint(x, (40, 80), [0, 1, 2], at=(8, 16), paste=True)
    assert wide.shape == (3, 40, 80, 3) and (wide[:, 8:, 16:64] == x).all()
    middle = pipe.outpaint(x, (48, 64), [0, 1, 2], paste=True, seam=2)
    assert (middle[:, 10:38, 10:54] == x[:, 2:-2, 2:-2]).all()
    assert pipe.morph(x, [3, 4, 5], frames=2).shape == (3, 3, 32, 48, 3)


def test_other_sizes_than_the_training_grid():
    "Square pictures for a model of a grid that is not; only the picture's own grid counts."
    pipe, x = pipeline(), photos(2, (40, 40))
    mask = box_mask((40, 40), 17, 0, 7, 40)
    made = pipe.inpaint(x, mask, [1, 2], paste=True)
    assert made.shape == (2, 40, 40, 3) and (made[:, ~mask] == x[:, ~mask]).all() and pipe.inpainting(x, mask, [1, 2]).known.sum(1).tolist() == [20, 20]


def test_nothing_runs_before_everything_is_checked():
    pipe, raster, x, mask, ran = pipeline(), pipeline("raster"), photos(), box_mask((32, 48), 0, 0, 8, 8), []
    watch = torch.nn.modules.module.register_module_forward_pre_hook(lambda m, inputs: ran.append(m))
    try:
        for argument, call in (("mask", lambda: pipe.inpaint(x, mask[:30], [0] * 3)), ("mask", lambda: pipe.inpaint(x, mask.float(), [0] * 3)), ("mask", lambda: pipe.inpaint(x, mask & ~mask, [0] * 3)),
                               ("images", lambda: pipe.inpaint(x[:, :30], mask[:30], [0] * 3)), ("images", lambda: pipe.inpaint(x / 255, mask, [0] * 3)), ("labels", lambda: pipe.inpaint(x, mask, [0] * 2)),
                               ("label", lambda: pipe.edit(x, mask, [10] * 3)), ("generator", lambda: raster.inpaint(x, mask, [0] * 3)), ("seam", lambda: pipe.inpaint(x, mask, [0] * 3, paste=True, seam=-1)),
                               ("steps", lambda: pipe.inpaint(x, mask, [0] * 3, steps=25)), ("steps", lambda: pipe.inpaint(x, mask, [0] * 3, steps=0)),
                               ("canvas", lambda: pipe.outpaint(x, (24, 64), [0] * 3)), ("canvas", lambda: pipe.outpaint(x, (50, 64), [0] * 3)), ("canvas", lambda: pipe.outpaint(x, (32, 48), [0] * 3)),
                               ("at", lambda: pipe.outpaint(x, (40, 64), [0] * 3, at=(16, 0))), ("at", lambda: pipe.outpaint(x, (40, 64), [0] * 3, at=(-8, 0))), ("at", lambda: pipe.outpaint(x, (40, 64), [0] * 3, at=(4, 0))),
                               ("grid.ntk_boundary", lambda: pipe.outpaint(x, (40, 64), [0] * 3, ntk_boundary=9)), ("grid.ntk_boundary", lambda: pipe.extrapolate([0], (8, 8), ntk_boundary=9)),
                               ("spatial", lambda: pipe.extrapolate([0], (8, 8), spatial=(2.0, 1.0))), ("spatial", lambda: pipe.extrapolate([0], (8, 8), spatial=(-2.0, 1.0))), ("grid.base", lambda: pipe.extrapolate([0], (8, 5))),
                               ("frames", lambda: pipe.morph(x, [0] * 3, frames=25)), ("order", lambda: pipe.morph(x, [0] * 3, order="spiral"))):
            with pytest.raises(BadInput) as e: call()
            assert e.value.argument == argument, (argument, str(e.value))
    finally: watch.remove()
    assert not ran


# ---- the command line

@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with a pipeline, pictures in class folders, masks."
    at = tmp_path_factory.mktemp("paint")
    pipeline(rows=4).save_pretrained(at / "pipe"); pipeline("raster").save_pretrained(at / "raster")
    for i, (x, name) in enumerate(zip(photos(4), ("star", "ring", "ring", "heart"))):
        for path in (at / "photos" / name / f"{i}.png", at / "flat" / f"{i}.png"): path.parent.mkdir(parents=True, exist_ok=True); Image.fromarray(x).save(path)
        mask = np.zeros((32, 48), np.uint8); mask[4:4 + 6 * (i + 1), 10:30] = 255
        (at / "masks").mkdir(exist_ok=True); Image.fromarray(mask).save(at / "masks" / f"{i}.png")
    return at


@pytest.fixture(scope="module")
def scripts(place):
    runner = Scripts(place)
    yield runner
    runner.close()


def test_inpainting_from_files(place, scripts):
    words = ["sample.py", "pipe", "--inpaint", "photos", "--mask", "masks/1.png", "--paste", "--out", "a.npz", "--part", 2]
    before = sorted(place.rglob("*"))
    ran = scripts(*words, "--dry-run")
    assert ran.code == 0 and "4 images from 4 pictures" in ran.out and "marked" in ran.out and sorted(place.rglob("*")) == before, ran
    assert scripts(*words).code == 0
    made, mask = read_npz(place / "a.npz", "arr_0"), np.asarray(Image.open(place / "masks/1.png")) > 127
    files = sorted((place / "photos").rglob("*.png"), key=lambda p: p.relative_to(place / "photos").as_posix())
    assert (made[:, ~mask] == np.stack([np.asarray(Image.open(f)) for f in files])[:, ~mask]).all()
    assert read_npz(place / "a.npz", "labels").tolist() == [Shapes.classes.index(f.parent.name) for f in files]           # each as its own class
    record = load_json(place / "a.run.json")
    assert record["config"]["work"] == "inpaint" and record["outputs"] == {"a.npz": digest_file(place / "a.npz")}
    assert scripts("sample.py", "pipe", "--inpaint", "flat", "--mask", "masks", "--classes", "star", "--count", 6, "--out", "b.npz").code == 0
    many = read_npz(place / "b.npz", "arr_0")
    assert len(many) == 6 and (many[4] != many[0]).any() and set(read_npz(place / "b.npz", "labels").tolist()) == {Shapes.classes.index("star")}


def test_a_painting_can_be_repeated(place, scripts):
    words = ["sample.py", "pipe", "--inpaint", "flat/0.png", "--mask", "masks/0.png", "--classes", "ring", "--count", 3, "--seed", 5, "--out", "c.npz"]
    assert scripts(*words).code == 0
    python, script, *recorded = load_json(place / "c.run.json")["command"]                                               # what rerun.py starts
    assert Path(script).name == "sample.py" and recorded == [str(w) for w in words[1:]]
    assert scripts("sample.py", *recorded[:-1], "d.npz").code == 0 and digest_file(place / "d.npz") == digest_file(place / "c.npz")
    assert len({x.tobytes() for x in read_npz(place / "c.npz", "arr_0")}) == 3                                            # variants of one picture
    changed = scripts(*[{"masks/0.png": "masks/3.png", "c.npz": "e.npz"}.get(w, w) for w in words])
    assert changed.code == 0 and digest_file(place / "e.npz") != digest_file(place / "c.npz")


def test_outpainting_and_extrapolation_from_files(place, scripts):
    ran = scripts("sample.py", "pipe", "--outpaint", "flat", "--canvas", 48, 56, "--at", 16, 8, "--paste", "--out", "f.npz", "--sheet", "f.png")
    assert ran.code == 0 and (place / "f.png").is_file(), ran
    made = read_npz(place / "f.npz", "arr_0")
    assert made.shape == (4, 48, 56, 3) and (made[:, 16:, 8:] == photos(4)).all()
    assert scripts("sample.py", "pipe", "--outpaint", "flat", "--canvas", 48, 56, "--ntk-boundary", 2, "--count", 1, "--out", "g.npz").code == 0
    ran = scripts("sample.py", "pipe", "--extrapolate", 6, 9, "--spatial-scale", 1, 2, "--ntk-boundary", 0, "--count", 3, "--out", "h.npz")
    assert ran.code == 0 and "3 images on grid (6, 9), larger than (4, 6)" in ran.out and read_npz(place / "h.npz", "arr_0").shape == (3, 48, 72, 3), ran
    assert json.loads((place / "h.run.json").read_text())["config"]["spatial"] == [1.0, 2.0]
    assert scripts("sample.py", "pipe", "--extrapolate", 6, 9, "--count", 1, "--size", 32, "--out", "i.npz").code == 0 and read_npz(place / "i.npz", "arr_0").shape == (1, 32, 32, 3)


@pytest.mark.parametrize("words, said", [
    ("pipe --inpaint flat", "mask='': is needed"), ("pipe --inpaint flat --mask nowhere.png", "mask=nowhere.png: no such file or folder"), ("pipe --mask masks", "mask='masks': only goes with inpaint"),
    ("pipe --inpaint flat --mask masks --outpaint flat --canvas 48 48", "outpaint='flat': can't be combined with inpaint"), ("pipe --outpaint flat", "canvas=None: is needed"),
    ("pipe --outpaint flat --canvas 24 64", "canvas=(24, 64): must be larger than the images' (32, 48) pixels"), ("pipe --outpaint flat --canvas 40 64 --at 16 0", "at=(16, 0): must leave the images' (32, 48) pixels inside"),
    ("pipe --extrapolate 6 9 --spatial-scale 3 1", "spatial=(3.0, 1.0): must not fall"), ("pipe --extrapolate 6 9 --ntk-boundary 30", "grid.ntk_boundary=30: must be an integer >= 0 and <="),
    ("raster --inpaint flat --mask masks/0.png", "generator='RasterTransformer': must have the trait any_order"), ("pipe --inpaint pipe/pipeline.json --mask masks/0.png", "inpaint=pipe/pipeline.json: must be a picture")])
def test_what_the_command_refuses(place, scripts, words, said):
    before = sorted(place.rglob("*"))
    ran = scripts("sample.py", *words.split(), "--out", "no/no.npz")
    assert ran.code == 2 and said in ran.err and len(ran.err.splitlines()) == 1 and sorted(place.rglob("*")) == before, ran
