"""Pictures that say how they were made: every family renders again to its SHA-256, what differs is said, and files from
anywhere are read without harm."""
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vgnb
from tests.run_scripts import main_of as script
from vgnb.core import BadInput, Mismatch, Missing
from vgnb.data.codes import ArrayCodes
from vgnb.data.shapes import Shapes
from vgnb.generators.schedules import SCHEDULES
from vgnb.glance import TensorTree
from vgnb.kinds import OpenRegistry
from vgnb.pipeline import Pipeline, from_pretrained
from vgnb.pngs import KEYWORD, encode_png, pixel_hash, read_png
from vgnb.reopened import reopen
from vgnb.sampling.applications import Inpaint, Morph, Outpaint
from vgnb.sampling.extrapolation import Extrapolate
from vgnb.sampling.origins import origin_from
from vgnb.sampling.prefix import Continue, Prefix
from vgnb.sampling.settings import Sampling
from vgnb.shipped import shipped, shipped_folder
from vgnb.views.play import LiveSampler, wish_of

QUICK = ("tiny-randar", "tiny-pgm")
RED = Image.new("RGB", (8, 8), "red")


@pytest.fixture(scope="module")
def pipe() -> Pipeline: return from_pretrained("tiny-randar")


@pytest.fixture(scope="module")
def hearts(pipe, tmp_path_factory):
    "A sheet of two samples, as bytes."
    file = tmp_path_factory.mktemp("hearts") / "h.png"
    pipe.save(file, ["heart", None], seed=3, ids=[5, 9], steps=6, guidance=2.0)
    return file.read_bytes()


# ---- the same again

@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.full) for n in shipped()])
def test_every_family_renders_to_its_hash(tmp_path, name):
    "One sample, whose picture it is; then a sheet of three with other settings. Nothing but the file is known."
    made_by = from_pretrained(name)
    one = made_by.save(tmp_path / "one.png", ["heart"], seed=2, ids=[7])
    opened = reopen(tmp_path / "one.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one.png")), one[0])
    assert (opened.labels, opened.ids, opened.settings) == (["heart"], [7], made_by.sampling)
    again = opened.again()
    assert again.same and not again.differs and again.sha256 == pixel_hash(one)

    three = made_by.save(tmp_path / "three.png", ["star", "heart", None], seed=1, temperature=0.8, size=48)
    opened = reopen(tmp_path / "three.png", pipe=opened.pipe)
    assert opened.labels == ["star", "heart", "no class"] and opened.settings.picks[0].temperature == 0.8
    again = opened.again()
    assert again.same and not again.differs and np.array_equal(again.images, three)
    assert all(np.array_equal(opened.cell(k), three[k]) for k in range(3))


def test_a_recipe_is_small_and_names_no_folder_of_this_machine(pipe, hearts):
    note, _ = read_png(hearts)
    text = json.dumps(note)
    assert len(text) < 2000 and note["model"] == "tiny-randar"
    here = Pipeline.from_pretrained(shipped_folder("tiny-randar"))
    for told in (text, json.dumps(here.origin("heart").note())):
        assert str(Path.home()) not in told and str(Path(vgnb.__file__).parent) not in told
    assert here.where == "tiny-randar"


def test_a_folder_is_named_as_it_was_given(pipe, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    from_pretrained("mine").save("a.png", "heart", steps=4)
    opened = reopen("a.png")
    assert opened.origin.model == "mine" and opened.again().same
    monkeypatch.chdir("/")
    with pytest.raises(Missing, match="no folder here, and nothing is fetched"): reopen(tmp_path / "a.png").again()
    assert reopen(tmp_path / "a.png", pipe=pipe).again().same


PHOTOS, _ = Shapes(2, 32, seed=1, difficulty=0.1).batch(range(2))
RIGHT = np.arange(32)[None].repeat(32, 0) >= 15


@pytest.mark.parametrize("what, takes", [
    (Inpaint(RIGHT, paste=True), True),
    (Inpaint(np.stack([RIGHT, ~RIGHT])), True),
    pytest.param(Outpaint((48, 64), (16, 24), paste=True), True, marks=pytest.mark.full),
    pytest.param(Outpaint((48, 48), ntk_boundary=2), True, marks=pytest.mark.full),
    pytest.param(Morph(3, order="spiral-out", mask=RIGHT), True, marks=pytest.mark.full),
    pytest.param(Extrapolate((12, 12)), False, marks=pytest.mark.full),
    (Prefix(40), False),
    (Continue(40), True),
], ids=lambda v: type(v).__name__)
def test_paintings_render_again_without_their_photos(pipe, tmp_path, what, takes):
    made = pipe.save(tmp_path / "a.png", ["heart", "star"], what=what, images=PHOTOS if takes else None, steps=5)
    opened = reopen(tmp_path / "a.png", pipe=pipe)
    again = opened.again()
    assert again.same and not again.differs and np.array_equal(again.images, made)


def test_a_mixed_seam_asks_for_the_photos(pipe, tmp_path):
    pipe.save(tmp_path / "a.png", ["heart"], what=Inpaint(RIGHT, True, 2), images=PHOTOS[:1], steps=3)
    opened = reopen(tmp_path / "a.png", pipe=pipe)
    with pytest.raises(BadInput, match="images=None: are needed"): opened.again()
    assert opened.again(images=PHOTOS[:1]).same


def test_tokens_that_were_given_come_along(pipe, tmp_path):
    codes, known = np.full((2, 64, 1), 7), np.arange(64)[None].repeat(2, 0) < 20
    pipe.save(tmp_path / "a.png", ["heart", "star"], given=(codes, known), steps=3)
    opened = reopen(tmp_path / "a.png", pipe=pipe)
    given = opened.origin.codes_given()
    assert np.array_equal(given.known, known) and given.codes.sum() == 7 * 40 and opened.again().same


@pytest.mark.full
def test_previews_and_other_numbers(tmp_path):
    made_by = from_pretrained("tiny-dar", precision="bf16")
    made_by.save(tmp_path / "a.png", ["heart"], preview=2, denoise=4)
    opened = reopen(tmp_path / "a.png")
    assert opened.settings.precision == "bf16" and opened.again().same


# ---- what differs is said

def shown(hearts) -> tuple[dict, Image.Image]:
    note, picture = read_png(hearts)
    return {k: v for k, v in note.items() if k != "pixels"}, picture


def with_note(picture, note) -> bytes: return encode_png(picture, note)


def test_pixels_that_were_changed(pipe, hearts):
    "The chunk stays, as some editors leave it; in the second cell, and in the margin."
    note, picture = read_png(hearts)
    cells = origin_from(note).cells
    for at, words, same in ((cells.box(1)[:2], "1 of 2 samples differ: cells [1]", False),
                            ((0, 0), "its samples are as they were", True)):
        painted = picture.copy()
        painted.putpixel(at, (1, 2, 3))
        with_text = with_raw(painted, json.dumps(note))
        again = reopen(with_text, pipe=pipe).again()
        assert again.same == same and words in str(again) and "changed after the picture was written" in str(again)


def with_body(body: bytes, picture=RED, keyword=KEYWORD) -> bytes:
    "A PNG with an iTXt chunk that holds this behind its keyword."
    body = keyword.encode() + body
    chunk = struct.pack(">I", len(body)) + b"iTXt" + body + struct.pack(">I", zlib.crc32(b"iTXt" + body))
    plain = encode_png(picture)
    return plain[:33] + chunk + plain[33:]


def with_raw(picture, text, packed=False, keyword=KEYWORD) -> bytes:
    "A PNG with this text in its chunk, whatever it is."
    text = text.encode() if isinstance(text, str) else text
    body = b"\0\1\0\0\0" + zlib.compress(text, 9) if packed else b"\0\0\0\0\0" + text
    return with_body(body, picture, keyword)


def with_sides(file: bytes, width: int, height: int) -> bytes:
    "A PNG whose header says that it is of another size."
    header = b"IHDR" + struct.pack(">II", width, height) + file[24:29]
    return file[:12] + header + struct.pack(">I", zlib.crc32(header)) + file[33:]


def test_other_circumstances_are_listed(pipe, hearts):
    note, picture = shown(hearts)
    told = with_note(picture, note | {"torch": "1.0", "device": "cuda: <b>Other</b>"})
    again = reopen(told, pipe=pipe).again()
    assert again.same and [w.split(" is ")[0] for w in again.differs] == ["device", "torch"]
    assert "not 1.0" in str(again)


def test_other_weights_are_named(hearts, tmp_path):
    changed = from_pretrained("tiny-randar")
    with torch.no_grad(): next(changed.generator.parameters()).add_(0.5)
    again = reopen(hearts, pipe=changed).again()
    assert not again.same and any("the weights of the generator are" in word for word in again.differs)


@pytest.mark.parametrize("model", ["somebody/large", "/nowhere", "../../etc", "", "x" * 5000, "a\0b"])
def test_a_model_that_is_not_here_is_asked_for(pipe, hearts, model, monkeypatch):
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("fetched"))
    note, picture = shown(hearts)
    opened = reopen(with_note(picture, note | {"model": model}))
    assert opened.settings.steps == 6                                   # all the rest is known
    with pytest.raises(Missing, match="pipe=None: is needed"): opened.again()


def test_a_picture_that_no_recipe_makes_alone(pipe, hearts):
    note, picture = shown(hearts)
    with pytest.raises(BadInput, match="picture='training'"):
        reopen(with_note(picture, note | {"work": "training"}), pipe=pipe).again()


# ---- files from anywhere

DAMAGED = {
    "no chunk": (lambda h: encode_png(RED), "carries no recipe"),
    "another's chunk": (lambda h: with_raw(RED, "{}", keyword="parameters"), "carries no recipe"),
    "no PNG": (lambda h: b"GIF89a", "is no PNG"),
    "empty": (lambda h: b"", "is no PNG"),
    "cut short": (lambda h: h[:400], "ends within a part"),
    "no pixels": (lambda h: h[:h.index(b"IDAT") - 4], "cannot be decoded"),
    "a bit flipped": (lambda h: h.replace(b'"seed":3', b'"seed":4'), "another checksum"),
    "broken JSON": (lambda h: with_raw(RED, '{"format": '), "no JSON object"),
    "no object": (lambda h: with_raw(RED, "3"), "but a int"),
    "no text": (lambda h: with_raw(RED, b"\xff\xfe{}"), "no text"),
    "nested": (lambda h: with_raw(RED, "[" * 200_000), "nested too deep"),
    "not finite": (lambda h: with_raw(RED, '{"seed": NaN}'), "no finite number"),
    "a bomb": (lambda h: with_raw(RED, b" " * 2 ** 25, packed=True), "damaged, or longer"),
    "damaged zlib": (lambda h: with_body(b"\0\1\0\0\0nonsense"), "damaged, or longer"),
    "too long": (lambda h: with_raw(RED, " " * (2 ** 20 + 1)), "damaged, or longer"),
    "twice": (lambda h: with_raw(RED, "{}")[:-12] + with_raw(RED, "{}")[33:], "2 recipes"),
    "absurd sides": (lambda h: with_sides(h, 30_000, 30_000), "sides that are refused"),
    "no sides": (lambda h: with_sides(h, 0, 8), "sides that are refused"),
    "another version": (lambda h: with_raw(RED, '{"format": "vgnb-picture/2"}'), "this version reads vgnb-picture/1"),
    "no format": (lambda h: with_raw(RED, "{}"), "recipe.format=None")}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_one_named_error(hearts, kind):
    make, words = DAMAGED[kind]
    with pytest.raises(Mismatch, match=words): reopen(make(hearts))


def test_files_that_are_none(tmp_path):
    with pytest.raises(Missing, match="no such file"): reopen(tmp_path / "x.png")
    with pytest.raises(BadInput, match="must be a PNG file"): reopen(3)


def test_a_picture_that_was_saved_again(hearts, tmp_path):
    "Pillow keeps the words while it holds the picture; a JPEG and a plain save lose them."
    picture = Image.open(io.BytesIO(hearts))
    assert reopen(picture).ids == [5, 9]
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "a.jpg")
    with pytest.raises(Mismatch, match="saved again by a program that drops it"): reopen(tmp_path / "a.png")
    with pytest.raises(Mismatch, match="is no PNG"): reopen(tmp_path / "a.jpg")
    with pytest.raises(Mismatch, match="carries no recipe"): reopen(Image.open(tmp_path / "a.jpg"))


@pytest.mark.parametrize("change, words", [
    ({"seed": "3"}, "recipe.seed"), ({"seed": -1}, "recipe.seed"), ({"seed": True}, "recipe.seed"),
    ({"ids": [0.5, 1]}, "recipe.ids"), ({"ids": [-1, 0]}, "recipe.ids"), ({"labels": [1]}, "recipe.labels"),
    ({"names": ["a"]}, "recipe.names"), ({"work": "magic"}, "recipe.work"), ({"generator": "../x"}, "recipe.generator"),
    ({"dtype": "float8"}, "recipe field"), ({"grid": [0, 8]}, "recipe.grid"), ({"grid": [2 ** 40]}, "recipe.grid"),
    ({"size": 10 ** 9}, "recipe.size"), ({"extra": 1}, "recipe field"), ({"kind": "order.raster"}, "recipe="),
    ({"sampling": 3}, "recipe.sampling"), ({"sampling": {"order": {"kind": "os.system"}}}, "kind="),
    ({"sampling": {"order": {"kind": "pick.plain"}}}, "order="), ({"sampling": {"rows": 10 ** 9}}, "rows="),
    ({"cells": {"columns": 0, "at": [0, 0], "step": [0, 0], "size": [1, 1]}}, "cells.columns"),
    ({"cells": {"columns": 2, "at": [0, 0], "step": [9000, 0], "size": [32, 32]}}, "cells="),
])
def test_entries_that_cannot_be_are_named(hearts, change, words):
    note, picture = shown(hearts)
    with pytest.raises(BadInput) as e: reopen(with_note(picture, note | change))
    assert words in str(e.value)


@pytest.mark.parametrize("given", [{}, {"grid": [8, 8]}, {"grid": [8, 8], "codes": "x"},
                                   {"grid": 3, "codes": {"shape": [1, 1, 1], "of": "<u1", "zlib": "eJxjAAAAAQAB"}},
                                   {"grid": [8, 8], "codes": {"shape": [2 ** 24, 4], "of": "<u4", "zlib": ""}}])
def test_given_codes_that_are_none(pipe, hearts, given):
    note, picture = shown(hearts)
    opened = reopen(with_note(picture, note | {"given": given, "work": "continue", "what": {"first": 3}}), pipe=pipe)
    with pytest.raises(BadInput, match="recipe.given"): opened.again()


# ---- shown

@pytest.mark.fault("F17")
def test_the_words_of_a_file_are_text(pipe, hearts):
    note, picture = shown(hearts)
    hostile = "<img src=x onerror=alert(1)>"
    opened = reopen(with_note(picture, note | {"model": hostile, "torch": hostile, "device": hostile}))
    assert "<img" not in opened._repr_html_() and "&lt;img" in opened._repr_html_() and hostile in repr(opened)


@pytest.mark.fault("F17")
def test_names_in_tables_are_text(pipe, monkeypatch):
    "Of classes, tensors, parts and words; and no model runs for a table."
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *a, **k: pytest.fail("a model ran"))
    hostile = "<img src=x onerror=alert(1)>"
    codes = ArrayCodes(np.zeros((2, 1, 4, 1)), [0, 0], (64,), (2, 2), classes=(hostile, "b"))
    source = Shapes(3)
    source.classes = [hostile]
    tree = TensorTree({f"{hostile}.a": torch.zeros(2, 3)}, hostile)
    shelf = OpenRegistry(hostile)
    shelf[hostile] = hostile
    for thing in (codes, source, tree, shelf):
        assert "<img" not in thing._repr_html_() and "&lt;img" in thing._repr_html_(), thing
    for thing in (pipe.sampling, pipe.sampler(), pipe.sampling.order, pipe.generator, pipe.tokenizer, SCHEDULES):
        assert "<table>" in thing._repr_html_() and len(thing._repr_html_()) < 40_000


def test_a_page_shows_samples_that_can_be_reopened(pipe):
    import base64
    found = pipe._repr_html_().partition("base64,")[2].partition('"')[0]
    opened = reopen(base64.b64decode(found), pipe=pipe)
    assert opened.count == 4 and opened.again().same


def test_a_live_sampler_takes_a_picture(pipe, hearts):
    "Controls, the picture itself as a file, and words for what cannot be taken."
    live = LiveSampler(pipe, "star", side=64)
    before = live.image.value
    live.take(hearts)
    live.settle()
    wish = wish_of(reopen(hearts).origin, pipe)
    assert (live.label.value, live.seed.value, live.id.value, live.steps.value) == (6, 3, 5, 6) and wish.seed == 3
    assert live.guidance.value == 2.0 and live.image.value != before
    saved = reopen(bytes(live.image.value), pipe=pipe)
    assert np.array_equal(saved.again().images[0], reopen(hearts, pipe=pipe).again().images[0]) and saved.again().same
    live.take(hearts, 1)
    assert live.label.value is None and live.id.value == 9

    now, words = live.image.value, live.text.value
    other = from_pretrained("tiny-pgm")
    with pytest.raises(Mismatch, match="was made with other weights"): LiveSampler(other).take(hearts)
    assert live.image.value == now and live.text.value == words
    with pytest.raises(BadInput, match="k=2"): live.take(hearts, 2)


def test_settings_without_a_control_come_along(pipe, tmp_path):
    pipe.save(tmp_path / "a.png", "heart", order="raster", schedule="even", steps=4, top_k=9)
    live = LiveSampler(pipe, side=64)
    live.take(tmp_path / "a.png")
    live.settle()
    assert live.order.value == Sampling().order and (live.steps.value, live.top_k.value) == (4, 9)
    assert live.frames.wish.changes["schedule"] == "even" and "raster" in live.frames.wish.call(pipe.classes)


# ---- commands

def test_a_sheet_of_the_command_can_be_reopened(pipe, tmp_path, capsys):
    words = ["tiny-randar", "--count", "3", "--steps", "2", "--out", tmp_path / "s.npz", "--sheet", tmp_path / "s.png"]
    assert script("sample.py")([str(w) for w in words]) == 0
    capsys.readouterr()
    opened = reopen(tmp_path / "s.png", pipe=pipe)
    again = opened.again()
    assert opened.ids == [0, 1, 2] and again.same and not again.differs
    assert np.array_equal(again.images, np.load(tmp_path / "s.npz")["arr_0"])
    assert str(tmp_path) not in json.dumps(opened.origin.note())


def test_a_strip_of_reconstructions_says_what_it_is(tmp_path, capsys):
    words = ["--tokenizer", "tiny-iar2", "--data", "shapes://?n=3&size=32", "--out", tmp_path / "r.npz",
             "--strip", tmp_path / "r.png"]
    assert script("reconstruct.py")([str(w) for w in words]) == 0
    capsys.readouterr()
    opened = reopen(tmp_path / "r.png")
    assert opened.origin.work == "reconstruction" and opened.origin.parts == ("tiny-iar2",) and opened.ids == [0, 1, 2]
    assert opened.origin.samples == pixel_hash(np.load(tmp_path / "r.npz")["arr_0"])
    with pytest.raises(BadInput, match="run the command again"): opened.again()
