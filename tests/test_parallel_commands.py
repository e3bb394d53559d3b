"Painting with RAR, ARPG and LPD from pipeline folders, by command: what is known stays; some grids can't be."
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tests.run_scripts import Scripts
from vgnb.core import BadInput, load_json
from vgnb.data.shapes import Shapes
from vgnb.evaluation.samples import read_npz
from vgnb.generators.annealed_order import AnnealedOrderConfig, AnnealedOrderTransformer
from vgnb.generators.joint_layers import JointQueryConfig
from vgnb.generators.joint_queries import JointQueryTransformer
from vgnb.generators.two_streams import TwoStreamConfig, TwoStreamTransformer
from vgnb.pipeline import Pipeline
from vgnb.sampling.applications import Inpaint, Outpaint, cell_mask
from vgnb.sampling.settings import Sampling
from vgnb.tokenizers.vqgan import vqgan

SHAPE = (4, 6)                  # cells of 8 x 8 pixels
SMALL = dict(dim=32, heads=2, vocab=48, grid=SHAPE, classes=10, std=0.3)
RAR = dict(layers=2, hidden=48, spare=2) | SMALL
STAR = Shapes.classes.index("star")
FAMILIES = {
    "rar": (lambda: AnnealedOrderTransformer(AnnealedOrderConfig(**RAR)), {}),
    "rar-any": (lambda: AnnealedOrderTransformer(AnnealedOrderConfig(**RAR, anneal_start=None)), {"order": "random"}),
    "arpg": (lambda: TwoStreamTransformer(TwoStreamConfig(4, **SMALL, ffn_multiple=16)),
             {"order": "random", "schedule": "arpg-arccos", "steps": 4}),
    "lpd": (lambda: JointQueryTransformer(JointQueryConfig(2, **SMALL)),
            {"order": "locality", "schedule": "lpd", "steps": 4})}


def stirred(model):
    "A model in which nothing that is random in training is zero."
    g = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if p.dim() > 1 and float(p.detach().abs().max()) == 0: p.data.normal_(0, 0.2, generator=g)
    return model.eval()


PHOTOS = np.random.default_rng(3).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
MASK = np.zeros((32, 48), bool)
MASK[8:24, 8:32] = True


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with a pipeline of each family, pictures and a mask."
    at = tmp_path_factory.mktemp("parallel")
    for name, (build, settings) in FAMILIES.items():
        torch.manual_seed(0)
        tokenizer = vqgan("tiny-shapes", quantizer=dict(codebook=48), width=16, groups=8)
        settings = Sampling(rows=3, guidance=2.0, **settings)
        Pipeline(tokenizer, stirred(build()), settings, Shapes.classes).save_pretrained(at / name)
    (at / "photos").mkdir()
    for i, x in enumerate(PHOTOS): Image.fromarray(x).save(at / "photos" / f"{i}.png")
    Image.fromarray(MASK.astype(np.uint8) * 255).save(at / "mask.png")
    return at


@pytest.fixture(scope="module")
def sample(place):
    "Run sample.py with these words; the images that it wrote."
    scripts = Scripts(place)
    def run(out, *words):
        ran = scripts("sample.py", *words, "--classes", "star", "--out", out)
        assert ran.code == 0, ran
        return read_npz(place / out, "arr_0")
    return run


def pipeline(place, family): return Pipeline.from_pretrained(place / family)


def kept(pipe, application, known):
    "The painting's codes where they were known; and that all others were made."
    painting = pipe.painting(application, [STAR] * 3, PHOTOS)
    made = painting.sample()
    assert (made >= 0).all() and (made < 48).all()
    return made[:, known]


@pytest.mark.parametrize("family", FAMILIES)
def test_inpainting_and_editing(place, sample, family):
    "Another class behind a mask: codes outside of it stay, and with --paste their pixels."
    pipe, known = pipeline(place, family), ~cell_mask(torch.from_numpy(MASK)[None], SHAPE)[0]
    made = sample(f"{family}-in.npz", family, "--inpaint", "photos", "--mask", "mask.png", "--paste")
    assert (made == pipe.edit(PHOTOS, MASK, ["star"] * 3, paste=True)).all()
    assert (made[:, ~MASK] == PHOTOS[:, ~MASK]).all() and (made[:, MASK] != PHOTOS[:, MASK]).any()
    assert torch.equal(kept(pipe, Inpaint(MASK), known), pipe.encode(PHOTOS)[:, known])


@pytest.mark.parametrize("family", FAMILIES)
def test_outpainting(place, sample, family):
    "In windows of the trained grid, which is all that learned positions allow."
    pipe = pipeline(place, family)
    made = sample(f"{family}-out.npz", family, "--outpaint", "photos", "--canvas", 40, 64, "--at", 8, 16, "--paste")
    assert made.shape == (3, 40, 64, 3) and (made[:, 8:, 16:] == PHOTOS).all()
    assert (made == pipe.outpaint(PHOTOS, (40, 64), ["star"] * 3, at=(8, 16), paste=True)).all()
    known = torch.zeros(5, 8, dtype=torch.bool)
    known[1:, 2:] = True
    wide = kept(pipe, Outpaint((40, 64), at=(8, 16)), known.flatten())
    assert torch.equal(wide, pipe.encode(PHOTOS))


@pytest.mark.parametrize("family", FAMILIES)
def test_morphing(place, sample, family):
    made = sample(f"{family}-morph.npz", family, "--morph", "photos", "--frames", 2, "--mask", "mask.png")
    want = pipeline(place, family).morph(PHOTOS, ["star"] * 3, frames=2, mask=MASK)
    assert (made.reshape(3, 3, 32, 48, 3) == want.swapaxes(0, 1)).all()
    record = load_json(place / f"{family}-morph.run.json")
    assert record["config"]["work"] == "morph"


LARGER = "makes no pictures larger than its training grid (4, 6)"


@pytest.mark.parametrize("family", ["rar", "rar-any", "lpd"])
def test_learned_positions_know_their_grid_only(place, family):
    pipe = pipeline(place, family)
    with pytest.raises(BadInput, match=re.escape(f"canvas cells=(6, 8): can't be had: {name(pipe)} {LARGER}")):
        pipe.outpaint(PHOTOS, (48, 64), [STAR] * 3, ntk_boundary=0)
    with pytest.raises(BadInput, match=re.escape(f"shape=(6, 9): can't be had: {name(pipe)} {LARGER}")):
        pipe.extrapolate("star", (6, 9), spatial=(1.0, 1.0))


def name(pipe): return type(pipe.generator).__name__


def test_angles_know_any_grid(place):
    pipe = pipeline(place, "arpg")
    wide = pipe.outpaint(PHOTOS, (48, 64), ["star"] * 3, ntk_boundary=0, paste=True)
    assert (wide[:, 8:40, 8:56] == PHOTOS).all()
    assert pipe.extrapolate("star", (6, 9), spatial=(1.0, 1.0), ntk_boundary=0).shape == (1, 48, 72, 3)


@pytest.mark.parametrize("words, said", [
    ("--outpaint photos --canvas 48 64 --ntk-boundary 0", LARGER),
    ("--extrapolate 6 9", LARGER),
    ("--grid 6 9 --count 1", "grid=(6, 9): must be (4, 6)")])
@pytest.mark.parametrize("family", ["rar", "lpd"])
def test_the_command_says_it_in_a_line(place, family, words, said):
    before = sorted(place.rglob("*"))
    ran = Scripts(place)("sample.py", family, *words.split(), "--out", "no.npz")
    assert ran.code == 2 and said in ran.err and len(ran.err.splitlines()) == 1, ran
    assert sorted(place.rglob("*")) == before
