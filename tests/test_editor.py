"Cells marked and drawn anew, codebooks leafed through, one of two codes held: by hand and in code."
import asyncio
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from vgnb import reopen
from vgnb.core import BadInput, Missing
from vgnb.data.shapes import Shapes
from vgnb.figures import PALETTE, rgb
from vgnb.generators.raster import RasterConfig, RasterTransformer
from vgnb.pipeline import Pipeline, from_pretrained
from vgnb.tokenizers.tokenizer import Quantized, Reconstruction, Tokenizer
from vgnb.tokenizers.vqgan import vqgan
from vgnb.views.atlas import Atlas, LiveAtlas, atlas, usage_curves
from vgnb.views.board import RunsBoard, board
from vgnb.views.branch import Plot
from vgnb.views.desk import Rebuilt, ReconstructionDesk, desk
from vgnb.views.details import Detailing, LiveDetails
from vgnb.views.editor import LiveEditor, marked_map
from vgnb.views.edits import Editing, as_cells, touched_cells
from vgnb.views.own import own_picture

SHORT = dict(schedule="even", steps=4)
HOSTILE = "<img src=x onerror=window.hit=1>.png"
HALF = torch.arange(64) >= 32


@pytest.fixture(scope="module")
def pipes():
    known: dict[str, Pipeline] = {}
    def of(name: str) -> Pipeline: return known.setdefault(name, from_pretrained(name))
    return of


def png(size: int = 32, seed: int = 5) -> bytes:
    "A drawn shape as a file."
    with io.BytesIO() as file:
        Image.fromarray(Shapes(size=size, seed=seed).batch([17])[0][0]).save(file, "png")
        return file.getvalue()


def hand_in(upload, content: bytes, name: str): upload._open(content, name)

# ---- edits


@pytest.mark.parametrize("name", ["tiny-randar", "tiny-maskgit", "tiny-pgm"])
def test_cells_that_nobody_marked_keep_their_codes(pipes, name):
    edits = Editing(pipes(name), "heart", seed=1, **SHORT)
    first = edits.now
    assert (edits.picture() == pipes(name)("heart", seed=1, **SHORT)[0]).all()
    marked = touched_cells([(1, 4), (7, 4)], (8, 8), "stroke", 4)
    for label in (..., "star", None):
        draft = edits.redraw(marked, label, seed=7)
        assert torch.equal(draft.codes[~marked], first.codes[~marked]) and (draft.when[marked] >= 0).all()
        assert torch.equal(draft.kept, ~marked)
    assert (edits.all[2].codes != edits.all[1].codes).any() and edits.all[3].label is None


def test_an_edit_is_the_sample_that_the_pipeline_draws(pipes):
    pipe = pipes("tiny-maskgit")
    edits = Editing(pipe, "heart", seed=1, **SHORT)
    given = edits.now.codes[None], ~HALF[None]
    draft = edits.redraw(HALF, "star", seed=3)
    assert torch.equal(draft.codes[None], pipe.codes("star", seed=3, given=given, min_rows=1, **SHORT))
    edits.redraw(HALF, "ring", seed=4)
    assert torch.equal(edits.redraw(HALF, "star", seed=3).codes, draft.codes)    # what was there before doesn't matter


def test_undo_leads_back_and_a_new_edit_forgets_what_was_undone(pipes):
    edits = Editing(pipes("tiny-maskgit"), "heart", **SHORT)
    first, a = edits.now, edits.redraw([3], seed=1)
    b = edits.redraw([4], seed=1)
    assert [edits.undo(), edits.undo(), edits.redo()] == [a, first, a]
    c = edits.redraw([5], seed=1)
    assert c.parent is a and not edits.can_redo and b in edits.all and edits.undo() is a
    with pytest.raises(BadInput, match="^redo="): (edits.redo(), edits.redo())


def test_a_canvas_grows_on_every_side(pipes):
    edits = Editing(pipes("tiny-randar"), "heart", **SHORT)
    first = edits.now
    for side, shape, place in (("left", (8, 11), np.s_[:, 3:]), ("up", (10, 8), np.s_[2:, :]),
                               ("right", (8, 11), np.s_[:, :8]), ("down", (10, 8), np.s_[:8, :])):
        draft = edits.outpaint(side, 3 if 11 in shape else 2)
        inside = draft.codes.reshape(*shape, 1)[place].reshape(64, 1)
        assert draft.shape == shape and torch.equal(inside, first.codes)
        assert draft.touched.sum() == draft.touched.numel() - 64
        assert edits.picture(keep=True).shape == (shape[0] * 4, shape[1] * 4, 3)
        assert edits.undo() is first
    edits.outpaint("right", 3)
    wide, marked = edits.now, as_cells([(0, 10), (7, 0)], (8, 11))
    assert torch.equal(edits.redraw(marked, "star").codes[~marked], wide.codes[~marked])


def test_ones_own_pixels_stay_where_nobody_drew(pipes, tmp_path):
    edits = Editing(pipes("tiny-maskgit"), "ring", picture=png(96), fit=True, **SHORT)
    original = own_picture(png(96), (32, 32), fit=True)
    assert (edits.picture(keep=True) == original).all() and edits.now.kept.all()
    edits.redraw(HALF, seed=2)
    kept = edits.picture(keep=True)
    assert (kept[:16] == original[:16]).all() and (kept[16:] == edits.picture()[16:]).all()
    edits.save(tmp_path / "edited.png")
    opened = reopen(tmp_path / "edited.png", pipes("tiny-maskgit"))
    assert opened.again().same and opened.labels == ["ring"]
    edits.save(tmp_path / "kept.png", keep=True)
    with Image.open(tmp_path / "kept.png") as saved: assert (np.asarray(saved) == kept).all()
    with pytest.raises(BadInput, match="^file="): edits.save(tmp_path / "edited.jpg")


@pytest.mark.parametrize("wrong, words", [
    (lambda e: e.redraw([64]), "^cell=64"), (lambda e: e.redraw([(0, 8)]), r"^cell=\(0, 8\)"),
    (lambda e: e.redraw([]), "^marked="), (lambda e: e.redraw(torch.zeros(64, dtype=torch.bool)), "^mask="),
    (lambda e: e.redraw(np.ones((3, 3), bool)), "^mask="), (lambda e: e.redraw([3], "hart"), "^label='hart'"),
    (lambda e: e.redraw([3], seed=-1), "^seed=-1"), (lambda e: e.outpaint("north", 2), "^side='north'"),
    (lambda e: e.outpaint("left", 10_000), "^by=10000"),
    (lambda e: e.open(png(48)), "48x48 pixels and must be 32x32"),
    (lambda e: e.open(b"dear diary"), "^picture=.* is no JPEG"),
    (lambda e: e.open("no-such-file.png"), "no such file")])
def test_what_cannot_be_edited_is_refused_by_name(pipes, wrong, words):
    edits = Editing(pipes("tiny-maskgit"), "heart", schedule="even", steps=1)
    with pytest.raises(BadInput, match=words): wrong(edits)
    assert len(edits.all) == 1 and not edits.can_undo


def test_a_raster_model_goes_on_and_fills_no_gaps(pipes):
    edits = Editing(pipes("tiny-vqkd"), "star")
    with pytest.raises(BadInput, match="any_order"): edits.redraw([3])
    first = edits.now
    draft = edits.redraw(range(60, 64), "heart")
    assert torch.equal(draft.codes[:60], first.codes[:60]) and len(edits.all) == 2


def test_captions_are_followed_where_there_are_no_classes():
    words = dict(condition="text", text_dim=8, text_tokens=3)
    config = RasterConfig(1, 32, 2, ffn_multiple=16, vocab=512, grid=(4, 4), **words)
    pipe = Pipeline(vqgan("tiny-shapes"), RasterTransformer(config))
    live = pipe.editor(text=torch.randn(1, 3, 8), side=64)
    first = live.edits.now
    live.on_tokens[12].click()
    live.redraw.click()
    assert live.label.disabled and torch.equal(live.edits.now.codes[:12], first.codes[:12])
    assert "as the caption says" in live.text.value
    with pytest.raises(BadInput, match="^label="): live.edits.redraw(range(12, 16), 3)
    with pytest.raises(BadInput, match="^text="): pipe.editor()

# ---- under the hand


def small(pipe, label="heart", **how) -> LiveEditor: return LiveEditor(pipe, label, side=128, **SHORT | how)


def test_clicks_sliders_and_brushes_mark(pipes):
    live = small(pipes("tiny-maskgit"))
    live.on_picture[9].click()
    live.on_tokens[18].click()
    assert live._marked() == (9, 18) and live.cell == 18 and "2 of 64 cells are marked" in live.text.value
    live.place[0].value, live.place[1].value = 7, 7                          # what the arrow keys do
    live.here.click()
    assert live._marked() == (9, 18, 63)
    live.wipe.value = True
    live.on_tokens[9].click()
    live.wipe.value = False
    live.others.click()
    assert len(live._marked()) == 62 and 9 in live._marked()
    live.none.click()
    live.how.value = "box"
    for cell in (9, 27, 45, 54): live.on_picture[cell].click()                 # two boxes, not a chain of three
    assert live._marked() == (9, 10, 11, 17, 18, 19, 25, 26, 27, 45, 46, 53, 54)
    live.mark([(0, 0)])
    assert live._marked() == (0,)
    with pytest.raises(BadInput, match="^cell="): live.mark([(8, 0)])
    assert set(live._repr_mimebundle_()) == {"text/plain", "image/png"}


def test_marked_cells_follow_the_class_and_the_seed(pipes):
    live = small(pipes("tiny-maskgit"))
    first = live.edits.now
    live.seed.value = 3
    assert live.edits.now is first and "no cell is marked" in live.text.value
    live.mark(HALF)
    for seed in (4, 5, 6): live.seed.value = seed
    dragged = live.edits.now
    assert len(live.edits.all) == 2 and dragged.parent is first and "seed 6" in live.text.value
    live.redraw.click()
    assert live.seed.value == 7 and len(live.edits.all) == 3 and live.edits.now.parent is dragged
    live.label.value = 5
    star = live.edits.now
    assert star.label == 5 and torch.equal(star.codes[~HALF], first.codes[~HALF]) and not live.undo.disabled
    assert (live.edits.picture() == pipes("tiny-maskgit").decode(star.codes[None], seed=7)[0]).all()
    for _ in range(3): live.undo.click()
    assert live.edits.now is first and live.undo.disabled and not live.redo.disabled
    live.run.value = len(live.edits.all) - 1
    assert live.edits.now is star


def test_the_newest_wish_wins_and_undo_gives_up_what_is_drawn(pipes):
    live = small(pipes("tiny-maskgit"))
    first = live.edits.now
    live.mark(HALF)

    async def hand():
        for seed in (11, 12, 13):
            live.seed.value = seed
            await asyncio.sleep(0)
        assert live.busy.value
        await live._grower._task
        await live._drawer._task
        assert len(live.edits.all) == 2 and live.edits.now.seed == 13 and not live.busy.value
        live.redraw.click()
        await asyncio.sleep(0)
        live.undo.click()
        await live._grower._task
        await live._drawer._task

    asyncio.run(hand())
    assert live.edits.now is first and len(live.edits.all) == 2


def test_an_upload_is_taken_or_refused_in_words(pipes):
    live = small(pipes("tiny-maskgit"))
    first = live.edits.now
    hand_in(live.upload, b"dear diary", "diary <b>.txt")
    assert "⚠" in live.text.value and "is no JPEG" in live.text.value and "<b>" not in live.text.value
    hand_in(live.upload, png(96), HOSTILE)
    assert "must be 32x32" in live.text.value and "<img" not in live.text.value and live.edits.now is first
    live.upload.fit.value = True                                               # the same file once more
    assert live.edits.now.original.shape == (32, 32, 3) and "<img" not in live.text.value
    live.mark([(0, 0)])
    live.redraw.click()
    live.grow.click()
    assert live._shape == (8, 12) and len(live.on_tokens) == 96 and not live.marked.any()
    live.undo.click()
    assert live._shape == (8, 8) and len(live.on_tokens) == 64 and not live.undo.disabled


def test_a_model_that_only_goes_on_has_one_brush(pipes):
    live = LiveEditor(pipes("tiny-vqkd"), "star", side=128)
    assert live.how.value == "from here on" and live.how.disabled and live.grow.disabled
    live.on_tokens[50].click()
    live.on_tokens[60].click()
    assert live._marked() == (60, 61, 62, 63)
    live.redraw.click()
    assert not live.edits.now.differs(live.edits.now.parent)[:60].any()


def test_marked_cells_are_outlined_and_no_others():
    plot, marked = Plot((3, 5), 100), torch.zeros(15, dtype=torch.bool)
    marked[[0, 1, 14]] = True
    grey = Image.new("RGB", plot.size, (128, 128, 128))
    changed = (np.asarray(marked_map(grey, plot, marked)) != 128).any(-1).reshape(3, 20, 5, 20).any((1, 3)).ravel()
    assert (changed == marked.numpy()).all()
    line = (np.asarray(marked_map(grey, plot, marked)) == rgb(PALETTE[1])).all(-1)
    assert line[10, 0] and not line[10, 19] and not line[10, 20] and line[10, 39]      # around both, not between

# ---- the atlas


class Mosaic(Tokenizer):
    vocab, factor = (4096,), 4

    def __init__(self, makes="pixels"):
        super().__init__()
        self.makes = makes

    def quantize(self, images):
        z = torch.nn.functional.avg_pool2d(images, 4).add(1).mul(8).floor().clamp(0, 15)
        r, g, b = z.long().unbind(1)
        return Quantized(z, r * 256 + g * 16 + b, {})

    @property
    def quantizer(self): return self
    def lookup(self, codes): return torch.stack([codes // 256, codes // 16 % 16, codes % 16], 1).float()
    def render(self, z, *, draws=None, at=None, size=None):
        return (z / 7.5 - 1).repeat_interleave(4, 2).repeat_interleave(4, 3)

    def forward(self, images, draws=None, at=None):
        q = self.quantize(images)
        return Reconstruction(self.render(q.z), q, {})


def test_the_atlas_counts_finds_neighbours_and_exchanges(pipes):
    tokenizer = pipes("tiny-randar").tokenizer
    pixels = Shapes(40, 32).batch(np.arange(40))[0]
    book = Atlas(tokenizer, pixels)
    assert (book.gallery.count == np.bincount(book.codes.flatten().numpy(), minlength=256)).all()
    code = book.gallery.common(1)[0]
    near = book.near(code, 5)
    far = (book.rows - book.rows[code]).norm(dim=1)
    assert [k for k, _ in near] == [k for k in far.argsort().tolist() if k != code][:5]
    picture = book.holding(code)[0]
    before, after = book.codes[picture], book.replaced(picture, code, 3)
    assert torch.equal(after[before != code], before[before != code]) and (after[before == code] == 3).all()
    whole, other = book.exchanged(picture, code, 3)
    assert (whole == tokenizer_pictures(pipes("tiny-randar"), before)).all() and (whole != other).any()
    for wrong in (lambda: book.near(256), lambda: book.replaced(40, 0, 1), lambda: book.replaced(0, 0, -1)):
        with pytest.raises(BadInput): wrong()


def tokenizer_pictures(pipe, codes): return pipe.decode(codes[None], rows=1, min_rows=1)[0]


def test_leafing_by_click_and_by_slider(pipes):
    live = atlas(pipes("tiny-randar"), Shapes(40, 32).batch(np.arange(40))[0], side=128)
    assert isinstance(live, LiveAtlas) and len(live.buttons) == 256
    seen = live.usage.value
    live.buttons[17].click()
    assert live.code.value == 17 and live.usage.value != seen and "code 17 " in live.text.value
    live.rows[2].click()
    assert live.other.value == live.atlas.near(17)[2][0]
    live.code.value = 30
    assert "code 30 " in live.text.value
    with pytest.raises(BadInput, match="^code="): live.look(256)
    assert set(live._repr_mimebundle_()) == {"text/plain", "image/png"}


def test_a_large_codebook_shows_its_commonest_codes_and_features_have_no_pictures():
    live = LiveAtlas(Mosaic(), side=128)
    assert len(live.buttons) == 1024 and live.atlas.gallery.common(1)[0] in live.atlas.shown and live.code.max == 4095
    features = LiveAtlas(Mosaic("features"), side=128)
    assert features.snapshot().width > 300 and features.exchange.value
    class Smooth(Mosaic): vocab = None
    with pytest.raises(BadInput, match="continuous"): LiveAtlas(Smooth())
    with pytest.raises(BadInput, match="^images="): LiveAtlas(Mosaic(), np.zeros((1, 30, 30, 3), np.uint8))
    with pytest.raises(BadInput, match="^where="): atlas(3)


@pytest.mark.full
def test_levels_have_books_of_their_own_and_lines_no_patches(pipes):
    two = pipes("tiny-iar2").atlas(side=128)
    two.level.value = 1
    assert len(two.atlas.rows) == 64 and "64 codes" in two.text.value and len(two.buttons) == 64
    line = pipes("tiny-dar").atlas(Shapes(8, 32).batch(np.arange(8))[0], side=128)
    assert not line.atlas.gallery.patches and line.atlas.gallery.count.sum() == 8 * 64 and line.snapshot()


def noted(folder, name: str, lines, record=None):
    "A run's folder with a log."
    (folder / name).mkdir()
    (folder / name / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if record: (folder / name / "run.json").write_text(json.dumps(record))
    return folder / name


def test_usage_over_training_comes_from_the_log(tmp_path):
    a = noted(tmp_path, "a", [{"step": s, "usage.0": s / 10, "usage.1": .5, "loss": 1.0} for s in range(10)])
    b = noted(tmp_path, "<b>b", [{"step": s, "loss": 1.0} for s in range(10)])
    assert [ax.get_title(loc="left") for ax in usage_curves([a, b]).axes[:2]] == ["usage.0", "usage.1"]
    with pytest.raises(BadInput, match="^runs="): usage_curves(b)
    assert LiveAtlas(Mosaic(), side=128, run=a).curves.value

# ---- two codes a cell


def test_one_level_is_held_and_the_other_drawn(pipes):
    pipe = pipes("tiny-iar2")
    study = Detailing(pipe, "heart", seed=1)
    codes = study.now.codes
    assert torch.equal(codes[None], pipe.codes("heart", seed=1, min_rows=1))
    for level, keep in enumerate(study.names):
        made = study.vary(keep, "star", seed=2, count=2)
        assert (made[..., level] == codes[:, level]).all() and (made[..., 1 - level] != codes[:, 1 - level]).any()
    assert torch.equal(study.vary("semantic", "heart", seed=1, count=1)[0], codes)       # its own noise
    assert study.rough().shape == (32, 32, 3) and (study.rough() != study.seen(codes[None])[0]).any()


@pytest.mark.full
def test_the_details_desk_takes_variations_and_own_pictures(pipes):
    live = LiveDetails(pipes("tiny-iar2"), "heart", count=1)
    first = live.study.now
    live.rows[0].click()
    assert live.study.now is not first and torch.equal(live.study.now.codes[:, 0], first.codes[:, 0])
    live.undo.click()
    assert live.study.now is first and live.undo.disabled and not live.redo.disabled
    hand_in(live.upload, b"dear diary", HOSTILE)
    assert "is no JPEG" in live.text.value and "<img" not in live.text.value
    hand_in(live.upload, png(), HOSTILE)
    assert live.study.now.original is not None and "<img" not in live.text.value
    with pytest.raises(BadInput, match="^pipe="): pipes("tiny-randar").details()
    with pytest.raises(BadInput, match="^picture="): pipes("tiny-iar2").details(picture=png(64))

# ---- several tokenizers, several runs


def test_tokenizers_side_by_side_say_what_they_made_or_why_not(pipes, tmp_path):
    (tmp_path / "mine.png").write_bytes(png(64))
    models = {"randar": pipes("tiny-randar"), HOSTILE: Mosaic(), "features": Mosaic("features"),
              "same": lambda x: x, "untrained": vqgan("tiny-shapes", width=16, z=16)}
    live = desk(models, tmp_path / "mine.png", size=32, fit=True, side=64)
    assert live.pixels.shape == (1, 32, 32, 3) and "mine.png" in live.choice.options[0][0]
    assert live.text.value.startswith("PSNR") and "SSIM" in live.text.value and "codes in 64 places" in live.text.value
    live.view.value = "side by side"
    image = live.pixels[0]
    made = {name: Rebuilt.of(name, getattr(model, "tokenizer", model), image) for name, model in models.items()}
    assert "needs pixels" in made["features"].why and made["features"].picture is None
    assert made["same"].measured(image).startswith("PSNR inf") and made["same"].spent() == "no codes"
    used = len(pipes("tiny-randar").encode(image[None]).unique())
    assert made["randar"].spent() == f"{used} codes in 64 places"
    hand_in(live.upload, png(48), HOSTILE)
    assert "must be 32x32" in live.text.value and len(live.choice.options) == 1
    live.upload.fit.value = True
    assert live.choice.value == 1 and len(live.own) == 1 and live.snapshot().width > 300
    live.view.value = "one"
    with pytest.raises(BadInput, match="needs pixels"): live.tokenizer.value = 2
    with pytest.raises(BadInput, match="^tokenizers="): ReconstructionDesk(image, {})
    with pytest.raises(Missing): desk(Mosaic(), "no-such-file.png")


def test_several_runs_on_one_axis_are_followed(tmp_path):
    lines = [{"step": s, "samples": 4 * s, "loss": 1 / (1 + s), "lr": .1} for s in range(5)]
    noted(tmp_path, "a", lines, {"config": {"steps": 4, "optim": {"lr": .1}}})
    noted(tmp_path, HOSTILE, lines[:2], {"config": {"steps": 4, "optim": {"lr": HOSTILE}}})
    live = board(tmp_path, every=0)
    assert isinstance(live, RunsBoard) and live.status.value == "2 runs, 1 finished"
    assert list(live.quantity.options) == ["loss", "lr", "all"] and live.quantity.value == "loss"
    assert "optim.lr" in live.table.value and "<img" not in live.table.value
    seen = bytes(live.curves.value)
    live.refresh()
    assert bytes(live.curves.value) == seen
    with open(tmp_path / HOSTILE / "log.jsonl", "a") as log:
        for line in lines[2:]: log.write(json.dumps(line) + "\n")
    noted(tmp_path, "late", [])
    live.quantity.value = "lr"
    live.refresh()
    assert bytes(live.curves.value) != seen and live.status.value == "3 runs, 2 finished"
    assert live.quantity.value == "lr"
    live.axis.value = "samples"
    assert live.snapshot().width > 300 and len(live.states()) == 3
    named = board({"one": tmp_path / "a", "not yet": tmp_path / "none"}, every=0)
    assert named.status.value == "2 runs, 1 finished" and "no run here yet" in named.table.value
    with pytest.raises(BadInput, match="^runs="): RunsBoard([], every=0)
