"""The first ten minutes: what `import vgnb` offers, what a pipeline answers to, and the sampler one plays with.

Also the promise about batch sizes, held over the shipped models exactly as the README states it.
"""
import ast
import asyncio
import base64
import inspect
import io
import pydoc
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vgnb.core import BadInput, VgnbError
from vgnb.data.shapes import Shapes
from vgnb.generators.raster import RasterConfig, RasterTransformer, raster_presets
from vgnb.pipeline import Pipeline, from_pretrained
from vgnb.sampling.applications import box_mask
from vgnb.sampling.pick import Pick
from vgnb.sampling.sampler import Step
from vgnb.sampling.settings import Sampling
from vgnb.tokenizers.vqgan import vqgan
from vgnb.views.play import LiveSampler, Wish, _Latest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("tiny-randar", "tiny-maskgit", "tiny-pgm")
OFFERED = {"Pipeline", "from_pretrained", "zoo", "shipped", "open_images", "reopen",
           "OrderExplorer", "SamplingPlayer", "editor", "atlas", "desk", "race", "sight", "play",
           "board", "Sampling", "agreement"}


def fresh(code: str) -> str:
    "What a fresh interpreter prints."
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pipes() -> dict[str, Pipeline]: return {name: from_pretrained(name) for name in SHIPPED}


@pytest.fixture(scope="module")
def pipe(pipes) -> Pipeline: return pipes["tiny-randar"]


@pytest.fixture(scope="module")
def raster() -> Pipeline:
    torch.manual_seed(0)
    generator = RasterTransformer(raster_presets["tiny"])
    return Pipeline(vqgan("tiny-shapes"), generator, Sampling(guidance=2.0), Shapes.classes)


# ---- import vgnb

def test_importing_the_package_is_cheap_and_offers_names_by_tab():
    out = fresh("import sys, time\nbegan = time.process_time()\nimport vgnb\n"
                "print(time.process_time() - began)\nprint('torch' in sys.modules, 'numpy' in sys.modules)\n"
                "print(*dir(vgnb))\nprint('torch' in sys.modules)").splitlines()
    assert float(out[0]) <= 0.3
    assert out[1] == "False False"
    assert OFFERED <= set(out[2].split())
    assert not [name for name in out[2].split() if name.startswith("_") and not name.startswith("__")]
    assert out[3:] == ["False"]


def test_whatever_is_offered_is_there():
    import vgnb

    for name in OFFERED:
        if name == "board" and not (ROOT / "vgnb/views/board.py").exists(): continue
        assert callable(getattr(vgnb, name)) or name == "zoo", name
    assert {*SHIPPED, "tiny-dar", "tiny-iar2", "tiny-vqkd"} <= set(vgnb.shipped())
    assert vgnb.shipped.shipped_folder("tiny-pgm").is_dir()
    assert vgnb.zoo.load_published and vgnb.Pipeline is Pipeline
    from vgnb.agreement import agreement
    assert vgnb.Sampling is Sampling and vgnb.agreement.agreement is agreement      # a module that can be called
    with pytest.raises(AttributeError, match="no attribute 'pipelin'"): print(vgnb.pipelin)


def test_help_is_a_short_tour():
    import vgnb

    text = pydoc.plain(pydoc.render_doc(vgnb))
    assert "What to type first" in text and 'vgnb.from_pretrained("tiny-randar")' in text
    assert len(text.splitlines()) < 120


def test_the_code_in_the_tour_runs(monkeypatch, tmp_path):
    import vgnb

    monkeypatch.chdir(tmp_path)
    example = re.search(r"first:\n\n((?:    .*\n)+)", vgnb.__doc__)[1].replace("pipe.play()", "live = pipe.play()")
    seen = {}
    exec(inspect.cleandoc(example), seen)
    assert isinstance(seen["live"], LiveSampler)


def test_the_exporter_leaves_the_package_s_own_file_alone(tmp_path):
    "nbdev writes a version and a docstring into `__init__.py` where they are missing; here nothing is."
    from nbdev.config import read_version, update_init_mdoc, update_version

    place = tmp_path / "vgnb"
    place.mkdir()
    shutil.copy(ROOT / "vgnb/__init__.py", place)
    before = (place / "__init__.py").read_text()
    update_version(place)
    update_init_mdoc(place, desc="something else")
    assert (place / "__init__.py").read_text() == before
    assert read_version(place) == "0.1.0" and ast.get_docstring(ast.parse(before)).startswith("vgnb: ")


# ---- labels

SAME = ["heart", 6, np.int64(6), np.array(6), torch.tensor(6), np.str_("heart"), "6", ["heart"], (6,), range(6, 7),
        np.array([6]), torch.tensor([6]), torch.tensor([6], dtype=torch.uint8), ["6"]]


def test_a_label_in_any_form_is_one_class(pipe):
    for label in SAME: assert pipe.condition(label).labels.tolist() == [6], label
    mixed = ["heart", 3, np.int32(1), torch.tensor(2), None]
    assert pipe.condition(mixed).labels.tolist() == [6, 3, 1, 2, 10]
    assert pipe.condition(None).labels.tolist() == pipe.condition([None]).labels.tolist() == [10]


NO_CLASS = [3.0, 3.7, True, np.float32(2), np.bool_(True), torch.tensor(3.7), torch.tensor([1.0]), torch.tensor([True]),
            [[1, 2]], [], (), b"heart", {"heart"}, {"heart": 1}, "hart", -1, 10, "10", [3, 4.5], object]


@pytest.mark.parametrize("label", NO_CLASS, ids=str)
def test_what_is_no_class_is_refused_by_name(pipe, label):
    with pytest.raises(BadInput, match="^labels?="): pipe.sample(label)


def test_a_class_named_by_a_number_is_found_by_its_name(raster):
    named = Pipeline(raster.tokenizer, raster.generator, raster.sampling, ["10", "2", "7", *"abcdefg"])
    assert named.condition(["2", "7", "10"]).labels.tolist() == [1, 2, 0]
    assert named.condition([2, "3"]).labels.tolist() == [2, 3]
    with pytest.raises(BadInput, match="label=12"): named.condition("12")


# ---- calls

VERBS = ("sample", "stream", "codes", "edit", "inpaint", "outpaint", "extrapolate", "morph", "apply", "painting",
         "settings", "sampler", "__call__")
SETTINGS = {"order", "schedule", "steps", "guidance", "picks", "temperature", "top_k", "top_p",
            "rows", "compat", "min_rows"}


@pytest.mark.parametrize("verb", VERBS)
def test_signatures_spell_the_settings(verb):
    found = inspect.signature(getattr(Pipeline, verb)).parameters
    assert SETTINGS <= set(found)
    assert not [p for p in found.values() if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


@pytest.mark.full
def test_completion_shows_the_settings(pipe):
    from IPython.core.completer import provisionalcompleter
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shell.push({"pipe": pipe})
    for jedi in (True, False):
        shell.Completer.use_jedi = jedi
        for verb in ("sample", "stream", "edit", "outpaint", "extrapolate"):
            line = f"pipe.{verb}("
            with provisionalcompleter(): offered = {c.text for c in shell.Completer.completions(line, len(line))}
            missing = {f"{name}=" for name in SETTINGS} - offered
            assert not missing, (verb, jedi, missing)


def test_settings_of_a_call(pipe):
    hot = pipe.codes("heart", temperature=0.7, top_k=50, steps=None)
    assert torch.equal(hot, pipe.codes("heart", picks=Pick(0.7, 50)))
    assert not torch.equal(hot, pipe.codes("heart"))
    with pytest.raises(BadInput, match="did you mean temperature"): pipe.sample("heart", temprature=1.0)
    with pytest.raises(BadInput, match="temperature=-1"): pipe.sample("heart", temperature=-1)
    with pytest.raises(BadInput, match="size=0"): pipe.sample("heart", size=0)


def test_sample_can_be_watched_and_shows_a_bar(pipe, capsys):
    seen = []
    images = pipe(["heart", "star"], progress=True, watch=seen.append)
    assert (images == pipe.sample(["heart", "star"])).all()
    assert len(seen) == 22 and all(isinstance(step, Step) for step in seen)
    assert "sampling" in capsys.readouterr().err

    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:, 16:] = True
    pipe.edit(images, mask, ["star"] * 2, progress=True)
    assert "2/2" in capsys.readouterr().err


def test_a_step_prints_as_one_line(pipe):
    first = next(pipe.stream("heart"))
    assert len(repr(first).splitlines()) == 1 and len(repr(first)) < 120
    assert repr(first).startswith("Step(1 of 22: ") and first.computed == pipe.sampling.min_rows == 4


def test_a_picture_is_painted_as_it_is_stored_where_that_is_asked(pipe):
    file = io.BytesIO()
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(file, "PNG", exif=exif)
    lying, pixels = Image.open(file), np.array(photo)
    mask = box_mask((32, 32), 0, 0, 16, 16)
    how = dict(mask=mask, labels=3, paste=True)

    stored = pipe.inpaint(lying, orientation="stored", **how)
    assert (stored == pipe.inpaint(pixels, **how)).all() and (stored[0][~mask] == pixels[~mask]).all()
    assert (pipe.inpaint(lying, **how) == pipe.inpaint(np.rot90(pixels, -1).copy(), **how)).all()
    wide = pipe.outpaint(lying, (32, 48), 3, at=(0, 16), orientation="stored")
    assert (wide[0, :, 16:] == pixels).all()
    edited = pipe.edit([lying, lying], mask, 3, orientation="stored")
    assert (edited[:, ~mask] == pixels[~mask]).all()
    assert torch.equal(pipe.encode([lying], orientation="stored"), pipe.encode(pixels[None]))
    with pytest.raises(BadInput, match="orientation='sideways'"): pipe.inpaint(lying, orientation="sideways", **how)


def test_outpaint_keeps_the_known_pixels(pipe):
    heart = pipe("heart")
    wide = pipe.outpaint(heart, (32, 48), "heart")
    assert (wide[:, :, 8:40] == heart).all()
    assert (pipe.outpaint(heart, (32, 48), "heart", paste=False)[:, :, 8:40] != heart).any()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_pipeline_moves(name):
    "To a device, and its passes to another precision and back, whatever surrounds them."
    pipe, how = from_pretrained(name), dict(labels="heart", steps=5, schedule="even")
    def logits(): return next(pipe.stream(**how, keep=("logits",))).kept["logits"][0]
    before, exact = pipe.codes(**how), logits()
    assert pipe.to("cpu") is pipe and "cpu fp32" in repr(pipe)
    pipe.sampling = pipe.settings(precision="bf16")
    assert "cpu bf16" in repr(pipe)
    half = pipe.codes(**how)
    steps = list(pipe.stream(**how))
    assert torch.equal(steps[-1].codes(), half) and not torch.is_autocast_enabled("cpu")
    assert not torch.equal(logits(), exact)
    pipe.sampling = pipe.settings(precision="fp32")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pipe.codes(**how), before) and torch.equal(logits(), exact)
    for wrong in ("moon", "cuda:99", torch.bfloat16):
        with pytest.raises(VgnbError, match="^device="): pipe.to(wrong)


def test_few_samplers_are_kept(raster):
    for k in range(12): raster.sampler(top_k=k)
    assert len(raster._samplers) <= 4
    assert raster.sampler(top_k=11) is raster.sampler(top_k=11)


# ---- what it looks like

def test_a_pipeline_shows_what_it_is(pipe):
    assert len(repr(pipe).splitlines()) == 1 and "8x8 codes of 256" in repr(pipe)
    began = time.process_time()
    page = pipe._repr_html_()
    first = time.process_time() - began
    for word in ("VQGAN", "RandomOrderTransformer", "cosine, 22 steps", "CFG(scale=3.0)", "4 to 50 samples", "heart"):
        assert word in page, word
    picture = base64.b64decode(re.search(r"data:image/png;base64,([^\"]+)", page)[1])
    assert Image.open(io.BytesIO(picture)).width > 300

    began = time.process_time()
    assert pipe._repr_html_() == page
    assert time.process_time() - began < first / 5                            # drawn once


def test_the_look_changes_with_settings_and_weights(raster):
    first = raster._repr_html_()
    cooler = raster.sampling.changed(temperature=0.1)
    other = Pipeline(raster.tokenizer, raster.generator, cooler, ["<b>&", *"bcdefghij"])
    assert "<b>&" not in other._repr_html_() and "&lt;b&gt;&amp;" in other._repr_html_()
    assert other._repr_html_() != first
    with torch.no_grad(): raster.generator.head.weight.add_(0.5 * torch.randn_like(raster.generator.head.weight))
    assert raster._repr_html_() != first


def test_a_large_model_is_described_without_sampling(raster, monkeypatch):
    monkeypatch.setattr(Pipeline, "sample", lambda *a, **k: pytest.fail("sampled"))
    monkeypatch.setattr("vgnb.pipeline._count", lambda module: 60_000_000)
    large = Pipeline(raster.tokenizer, raster.generator, raster.sampling, raster.classes)
    assert "<img" not in large._repr_html_() and "60.0M" in repr(large)


# ---- one picture costs one picture, and is the same picture

HALVES = [pytest.param(name, word, marks=pytest.mark.full) for name in SHIPPED for word in ("bf16", "fp16")]
EACH = [(name, "fp32") for name in SHIPPED] + HALVES


@pytest.mark.parametrize("name,precision", EACH)
def test_a_sample_is_the_same_at_any_batch_size(pipes, name, precision):
    "The README's sentence, on a CPU: tokens and pixels are equal in micro-batches of 4, 8, 16, 32 and 50 rows."
    pipe, how = pipes[name], dict(seed=5, steps=8, precision=precision)
    ids = list(range(50))
    labels = [(7 * i + 3) % 10 for i in ids]
    codes = pipe.codes(labels, ids=ids, **how)
    images = pipe.decode(codes, ids=ids, seed=5, precision=precision)
    for first, count in ((49, 1), (11, 5), (20, 9), (30, 17)):
        part = slice(first, first + count)
        assert torch.equal(pipe.codes(labels[part], ids=ids[part], **how), codes[part]), count
        again = pipe.decode(codes[part], ids=ids[part], seed=5, precision=precision)
        assert (again == images[part]).all(), count


def test_the_strict_form_runs_one_shape(pipe):
    "What jobs use: every micro-batch is full, so that no kernel sees another shape."
    assert {step.computed for step in pipe.stream([6] * 3, min_rows=50, steps=3)} == {50}
    by_count = [next(pipe.stream([6] * count)).computed for count in (1, 4, 5, 9, 17, 33, 50)]
    assert by_count == [4, 4, 8, 16, 32, 50, 50]
    assert [step.computed for step in pipe.stream([6] * 53, steps=1)] == [50, 4]


def test_one_picture_costs_one_picture(pipe):
    def seconds(**how):
        began = time.process_time()
        pipe.sample("heart", seed=1, steps=6, **how)
        return time.process_time() - began

    assert min(seconds(), seconds()) < seconds(min_rows=50) / 2


# ---- play

def test_play_shows_what_sample_makes(pipes, raster):
    def shown(live): return live.frames.decode(torch.from_numpy(live.frames.seen[-1].codes).long())
    for pipe in (*pipes.values(), raster):
        live = pipe.play("heart", seed=2)
        assert (shown(live) == pipe("heart", seed=2)).all()
        assert live.shown.value == live.shown.max == len(live.frames.seen)
    for name, value in dict(label=3, seed=7, guidance=1.5, temperature=0.7, top_k=40).items():
        getattr(live, name).value = value
    call = live.frames.wish.call(raster.classes)
    assert "temperature=0.7" in call and (shown(live) == eval(call, {"pipe": raster})).all(), call


def test_play_offers_what_the_generator_can_do(pipe, raster):
    free, bound = pipe.play(), raster.play()
    assert {"halton", "confidence", "raster"} <= {name for name, _ in free.order.options}
    assert {name for name, _ in bound.order.options} == {"raster", "zipar", "anti-diagonals"}
    assert bound.schedule.disabled and bound.steps.disabled
    bound.order.value = dict(bound.order.options)["anti-diagonals"]
    bound.settle()
    assert len(bound.frames.seen) == 7 and "order='anti-diagonals'" in bound.frames.wish.call(raster.classes)
    assert all(control.description for control in (*free.all, free.shown, free.by))
    assert ("no class", None) in free.label.options
    free.label.value = None
    free.settle()
    assert free.frames.wish.call(pipe.classes).startswith("pipe.sample(None")


def test_play_follows_captions():
    words = dict(condition="text", text_dim=8, text_tokens=3)
    config = RasterConfig(1, 32, 2, ffn_multiple=16, vocab=512, grid=(4, 4), **words)
    pipe = Pipeline(vqgan("tiny-shapes"), RasterTransformer(config))
    text = torch.randn(1, 3, 8)
    live = pipe.play(text=text)
    made = live.frames.decode(torch.from_numpy(live.frames.seen[-1].codes).long())
    assert (made == pipe.sample(text=text)).all() and live.label.disabled and "<img" not in pipe._repr_html_()
    with pytest.raises(BadInput, match="^text="): pipe.play()
    with pytest.raises(BadInput, match="^text="): pipe.sample()


def test_a_wish_that_cannot_be_is_said_in_words(pipe):
    live = pipe.play("heart")
    good = live.image.value
    live.schedule.value = "randar"
    live.order.value = dict(live.order.options)["confidence"]
    live.settle()
    wrong = Wish(6, top_k=-1)
    list(live._sample(wrong))
    assert "⚠ top_k=-1" in live.text.value and live.image.value != good
    live.seed.value = 5
    live.settle()
    assert "⚠" not in live.text.value


def test_the_run_can_be_walked_through(pipe):
    live = pipe.play("star")
    last = live.image.value
    live.shown.value = 3
    assert live.image.value != last and "step 3 of 22" in live.text.value
    live.steps.value = 9
    live.settle()
    assert live.shown.max == 9 and live.shown.value == 3
    picture = live.snapshot()
    live.by.value = "confidence"
    assert live.snapshot().tobytes() != picture.tobytes()


def test_while_a_hand_drags_only_the_latest_counts(pipe):
    "Twenty events in a row: two runs, not twenty, and in the end the last one's picture."
    live, runs = pipe.play("heart"), []
    sample = live._sample
    live._latest.work = lambda wish: runs.append(wish) or sample(wish)
    live._latest.patience = 60.0                                        # however busy the machine is

    async def hand():
        for seed in range(1, 21):
            live.seed.value = seed
            await asyncio.sleep(0)
        assert live.busy.value
        await live._latest._task

    asyncio.run(hand())
    assert len(runs) <= 3 and live.frames.wish.seed == 20 and not live.busy.value
    assert live._latest.done == live._latest.wanted


def test_a_slow_picture_is_given_up_for_a_newer_wish():
    done = []

    def work(wish):
        for _ in range(50):
            time.sleep(0.002)
            yield
        done.append(wish)

    async def hand():
        worker = _Latest(work, lambda now: None, patience=0.0)
        for wish in "abc":
            worker.ask(wish)
            await asyncio.sleep(0.005)
        await worker._task

    asyncio.run(hand())
    assert done == ["c"]


def test_play_answers_with_a_still_where_no_kernel_is(pipe):
    shown = pipe.play("heart")._repr_mimebundle_()
    assert set(shown) == {"text/plain", "image/png"}
    assert Image.open(io.BytesIO(base64.b64decode(shown["image/png"]))).width > 300


@pytest.mark.parametrize("name", SHIPPED)
def test_the_first_picture_is_one_run_of_one_picture(pipes, name, monkeypatch):
    """From the call to the picture, and from a change to its picture: each step once, for one sample. It is decoded at
    the end, and seldom on the way: where a run takes longer than a tenth of a second."""
    pipe, rows, decoded = pipes[name], [], []
    predict, decode = pipe.generator.predict, Pipeline.decode

    def counted(state, *args, **kwargs):
        rows.append(state.b)
        return predict(state, *args, **kwargs)

    def noted(self, codes, **kwargs):
        decoded.append(len(codes))
        return decode(self, codes, **kwargs)

    monkeypatch.setattr(pipe.generator, "predict", counted)
    monkeypatch.setattr(Pipeline, "decode", noted)
    live = pipe.play("star")
    assert rows == [1] * pipe.sampling.steps and set(decoded) == {1} and len(decoded) <= 12
    before = len(decoded)
    live.seed.value += 1
    assert rows == [1] * 2 * pipe.sampling.steps and set(decoded) == {1} and before < len(decoded) <= before + 12
