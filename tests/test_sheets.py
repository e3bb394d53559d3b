"What the lab composes carries its recipe: branches, races, sweeps and diagrams are made again."
import io

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import vgnb
from vgnb.core import BadInput, Mismatch
from vgnb.pipeline import Pipeline, from_pretrained
from vgnb.pngs import encode_png, pixel_hash, read_png
from vgnb.sampling.origins import origin_from

SHORT = dict(schedule="cosine", steps=4)


@pytest.fixture(scope="module")
def pipe() -> Pipeline: return from_pretrained("tiny-randar")


def again(image, pipe=None): return vgnb.reopen(bytes(image), pipe).again()


def other(live, cell: int, level: int) -> int:
    "A listed code that doesn't stand in a cell."
    return next(code for code in live._codes if code != int(live.tree.now.codes[cell, level]))


def saved(live) -> bytes:
    "The still picture of a view, as a page holds it."
    return encode_png(live.snapshot(), live.carried())


def test_a_branch_with_forced_codes(pipe):
    live = pipe.branch("heart", seed=1, side=128, count=4, id=2, order="confidence", **SHORT)
    plain = again(live.picture.value, pipe)
    assert plain.same and not plain.differs
    assert (plain.images == pipe("heart", seed=1, ids=[2], order="confidence", **SHORT)).all()
    first = live.tree.now
    for row in (1, 2):
        live.look(int(first.when.argsort(stable=True)[row]))
        live.force(other(live, live.cell, 0))
    assert len(live.tree.now.forced) == 2
    for picture in (live.picture.value, live.tokens.value, live.list.value, saved(live)):
        made = again(picture)
        assert made.same and not made.differs
        assert (made.images[0] == live.pictures.of(live.tree.now)).all()
        assert not (made.images == plain.images).all()
    assert vgnb.reopen(bytes(live.picture.value)).origin.work == "branch"


def test_a_branch_of_given_tokens_and_two_levels():
    pipe = from_pretrained("tiny-iar2")
    known = np.arange(64)[None] < 56
    given = pipe.codes("star", seed=9), known
    live = pipe.branch("heart", seed=1, side=128, count=4, given=given)
    live.look(60)
    live.level.value = 1
    live.force(other(live, 60, 1))
    made = again(live.picture.value, pipe)
    assert made.same and not made.differs and live.tree.now.forced[0].level == 1


def test_a_table_of_guidance_and_temperature(pipe):
    axes = dict(scales=(1, 4), temperatures=(0.5, 1.5))
    live = pipe.sweep("heart", **axes, seed=2, id=3, side=40, **SHORT)
    made = again(live.image.value, pipe)
    assert made.same and not made.differs and made.images.shape == (4, 32, 32, 3)
    last = pipe("heart", seed=2, ids=[3], guidance=4.0, temperature=0.5, **SHORT)[0]
    assert (made.images[3] == last).all()
    live.open((0, 1))
    assert again(saved(live), pipe).same and again(live.player.image.value, pipe).same


def test_a_race_with_its_times_and_what_refused(pipe):
    both = {"a": pipe, "rar": from_pretrained("tiny-rar")}
    live = vgnb.race(both, "heart", ("halton", "raster"), (2, 3), side=48, temperature=0.8)
    live.pace.value = "work"
    live.clock.value = live.clock.max // 3
    made = again(live.image.value, pipe)
    assert made.same and not made.differs
    assert (made.images[0] == np.asarray(read_png(bytes(live.image.value))[1])).all()
    still = again(saved(live))
    assert still.same and (still.images[0] == np.asarray(live.snapshot())).all()
    live.schedule.value = "one-by-one"         # whatever steps its own settings say
    assert not [lane.refused for lane in live.rows[0] if hasattr(lane, "refused")]


@pytest.mark.parametrize("name", ["tiny-randar", "tiny-iar2"])
def test_a_diagram_of_sight(name):
    pipe = from_pretrained(name)
    live = pipe.sight("heart", seed=1, side=96)
    live.step.value = 5
    live.query.value = live.query.max
    made = again(live.image.value, pipe)
    assert made.same and not made.differs
    assert (made.images[0] == np.asarray(live.snapshot())).all()


def test_what_is_otherwise_is_said(pipe):
    live = pipe.branch("heart", side=128, count=4, **SHORT)
    note, picture = read_png(bytes(live.picture.value))
    painted = Image.fromarray(255 - np.asarray(picture))
    other = vgnb.reopen(encode_png(painted, {k: v for k, v in note.items() if k != "pixels"}), pipe)
    assert other.again().same                    # nobody can tell: whoever writes a file hashes it
    buffer, info = io.BytesIO(), PngInfo()
    info.add_itxt("vgnb", Image.open(io.BytesIO(live.picture.value)).info["vgnb"])
    painted.save(buffer, "PNG", pnginfo=info)
    made = vgnb.reopen(buffer.getvalue(), pipe).again()
    assert not made.same and "pixels were changed" in str(made)


@pytest.mark.parametrize("change, words", [
    (dict(forced=[[0, 0, 64, 1, .5]]), "^cell=64"),
    (dict(forced=[[0, 0, 3, 256, .5]]), "^code=256"),
    (dict(forced=[[0, 1, 3, 2, .5]]), "^level=1"), (dict(forced=[[0, 0, 3]]), "^recipe.forced"),
    (dict(forced=[[0, .5, 3, 1, 0]]), "^recipe.forced"), (dict(work="race"), "^recipe.more"),
    (dict(work="race", more={"rows": [[{}]], "models": {}}), "^recipe.more"),
    (dict(work="race", more={"rows": [["x"]], "models": {}}), "^recipe.more"),
    (dict(work="race", more={"rows": [], "models": {}}), "^recipe.more"),
    (dict(work="race", more={"rows": [[{}]], "models": {"a": 5}}), "^recipe.more"),
    (dict(work="race", more={"rows": [[{}]], "models": {}, "seconds": 5}), "^recipe.more"),
    (dict(work="sweep"), "^scales"), (dict(work="sight"), "^recipe.more")])
def test_entries_of_strangers_are_named(pipe, change, words):
    live = pipe.branch("heart", side=64, count=2, **SHORT)
    note, picture = read_png(bytes(live.picture.value))
    note = {k: v for k, v in note.items() if k != "pixels"} | change
    file = encode_png(picture, note)
    with pytest.raises((BadInput, Mismatch), match=words): vgnb.reopen(file, pipe).again()


def test_a_recipe_comes_back_from_its_note(pipe):
    live = pipe.branch("heart", side=64, count=2, **SHORT)
    origin = origin_from(live.carried())
    assert origin.marked and origin.forced == ()
    assert origin.samples == pixel_hash(live.pictures.of(live.tree.now)[None])
