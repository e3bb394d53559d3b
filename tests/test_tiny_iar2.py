"The shipped IAR2: what its codes promise, at any batch size, token by token, under other generators, and by its name."
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.run_scripts import Scripts
from vgnb.core import BadInput
from vgnb.data.shapes import Shapes
from vgnb.generators.generator import Cond
from vgnb.generators.random_order import RandomOrderTransformer, random_order_presets
from vgnb.generators.semantic_detail import SemanticDetailTransformer
from vgnb.kinds import changed
from vgnb.pipeline import Pipeline, from_pretrained
from vgnb.sampling.attended_guidance import AttendedGuidance
from vgnb.sampling.settings import Sampling
from vgnb.tokenizers.pictures import codes_of

@pytest.fixture(scope="module")
def pipe() -> Pipeline: return from_pretrained("tiny-iar2")


@pytest.fixture(scope="module")
def originals(): return torch.from_numpy(Shapes(32, 32, seed=1).batch(range(32))[0])


def test_sample_17_is_the_same_at_any_batch_size(pipe):
    labels = [(7 * i + 3) % 10 for i in range(50)]
    whole = pipe.codes(labels, seed=0)
    assert whole.shape == (50, 64, 2)
    for ids in ([17], [16, 17, 18, 19, 20], list(range(9, 26))):
        some = pipe.codes([labels[i] for i in ids], ids=ids, seed=0)
        assert torch.equal(some, whole[ids]), ids
    images = pipe.decode(whole, seed=0)
    assert (pipe.decode(whole[17:18], ids=[17], seed=0) == images[17]).all()


def test_its_card_says_how_good_it_is(pipe):
    chosen = [row for row in pipe.generator.card["table"] if row["guidance"]["end"] == list(pipe.sampling.guidance.end)]
    assert chosen[0]["count"] == 1000 and chosen[0]["accuracy"] >= 0.9


def test_token_by_token_is_teacher_forcing(pipe):
    "Logits of both codes of every cell, drawn one after the other, against one pass over what was drawn."
    labels = torch.tensor([6, 1, 9])
    steps = list(pipe.stream(labels.tolist(), seed=4, guidance=1.0, keep=("logits",), rows=3, min_rows=3))
    drawn = steps[-1].codes().flatten(1, -2)                                     # (3, 64, 2)
    with torch.no_grad(): forced = pipe.generator.logits(drawn, Cond(labels))
    for level, rows in enumerate(forced):
        kept = torch.cat([step.kept["logits"][level].reshape(3, 1, -1) for step in steps], 1)
        assert torch.allclose(kept, rows, atol=1e-4), level


def test_both_codes_beat_one(pipe, originals):
    def error(tokenizer):
        with torch.no_grad(): made = tokenizer.decode(codes_of(tokenizer, originals, 32).unflatten(1, (8, 8)))
        return (made - (originals.movedim(-1, 1) / 127.5 - 1)).square().mean()
    assert error(pipe.tokenizer) < error(pipe.tokenizer.first(1)) / 2


def test_levels_that_do_not_fit_are_refused_by_name(pipe):
    one_code = RandomOrderTransformer(changed(random_order_presets["tiny"], vocab=16, grid=(8, 8)))
    others = from_pretrained("tiny-randar").tokenizer
    for tokenizer, generator in ((pipe.tokenizer, one_code), (others, pipe.generator)):
        with pytest.raises(BadInput, match="must speak the tokenizer's codes"):
            Pipeline(tokenizer, generator, Sampling(), pipe.classes)
    Pipeline(pipe.tokenizer.first(1), one_code, Sampling(), pipe.classes)            # semantic codes alone are its


def test_a_lower_half_is_drawn_below_what_is_given(pipe, originals):
    hole = torch.zeros(32, 32, dtype=torch.bool)
    hole[16:] = True
    codes = codes_of(pipe.tokenizer, originals[:4], 4).reshape(4, 64, 2)
    finished = pipe.inpaint(originals[:4], hole, ["heart"] * 4, seed=1)
    assert finished.shape == (4, 32, 32, 3)
    again = codes_of(pipe.tokenizer, torch.from_numpy(finished), 4).reshape(4, 64, 2)
    assert (again[:, :24] == codes[:, :24]).float().mean() > 0.7                     # rows that no drawn cell touches


def test_its_guidance_can_be_told_in_words(pipe):
    other = pipe.codes("heart", seed=2, guidance=AttendedGuidance((1.0,), (4.0,), 0.5))
    assert not torch.equal(other, pipe.codes("heart", seed=2, guidance=1.0))


def test_more_scales_than_levels_are_refused(pipe):
    three = AttendedGuidance((1.0, 1.0, 1.0), (2.0, 3.0, 4.0))
    words = "guidance=.*3 scales.*one for each of the 2"
    with pytest.raises(BadInput, match=words): pipe.sample("heart", guidance=three)


def test_a_scale_that_starts_at_1_is_guidance(pipe):
    "Its own: hardly any at the first cell, three at the last. Only a level whose two ends are 1 has none."
    g = pipe.sampling.guidance
    assert (g.start, g.end) == ((1.0,), (3.0,))
    own, unguided = (pipe.codes(["heart", "star"], seed=3, guidance=by) for by in (None, AttendedGuidance(1.0, 1.0)))
    assert not torch.equal(own, unguided)
    assert torch.equal(unguided, pipe.codes(["heart", "star"], seed=3, guidance=1.0))


# ---- by name, wherever a tokenizer or a generator is asked for

@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path: return tmp_path_factory.mktemp("by name")


@pytest.fixture(scope="module")
def scripts(room): return Scripts(room)


@pytest.fixture(scope="module")
def extracted(scripts):
    "Codes of its tokenizer, which was asked for by name and of no size."
    ran = scripts("extract_codes.py", "--tokenizer", "tiny-iar2", "--data", "shapes://?n=12&size=64", "--out", "codes")
    assert ran.code == 0 and not ran.err, ran
    return ran


def test_its_name_is_its_tokenizer(scripts, extracted, room):
    said = "size: 32 px, as this tokenizer was trained (--size for another)"
    assert extracted.out.splitlines()[0] == said and "(8, 8) codes of (16, 64)" in extracted.out
    assert json.loads((room / "codes/run.json").read_text())["config"]["size"] == 32
    asked = scripts("extract_codes.py", "--tokenizer", "tiny-iar2", "--data", "shapes://?n=12", "--out", "larger",
                    "--size", 64, "--dry-run")
    assert "size:" not in asked.out and "(16, 16) codes of (16, 64)" in asked.out, asked

    again = scripts("reconstruct.py", "--tokenizer", "tiny-iar2", "--data", "shapes://?n=4", "--out", "r.npz")
    assert again.code == 0 and again.out.splitlines()[0] == said, again
    assert np.load(room / "r.npz")["arr_0"].shape == (4, 32, 32, 3)


def test_a_training_takes_its_parts_by_name(scripts, extracted, room):
    "The generator to start from, the tokenizer for previews; and a warm-up that doesn't end is said in one line."
    words = ["train_generator.py", "shapes-8x8-iar2", "--data", "codes", "--steps", 2, "--batch", 4,
             "--precision", "fp32", "--start", "tiny-iar2", "--preview-every", 2, "--preview-tokenizer", "tiny-iar2",
             "--preview-count", 2, "--out", "go"]
    dry = scripts(*words, "--dry-run")
    assert dry.code == 0 and not dry.err and "warning: rate.warmup=100: is not over" in dry.out, dry
    ran = scripts(*words)
    assert ran.code == 0, ran
    told = "warning: rate.warmup=100: is not over within the 2 steps of the run: " \
           "the learning rate rises to 1% of optim.lr and no further"
    assert [line for line in ran.err.splitlines() if "warning" in line] == [told]
    assert (room / "go/previews/step-000000002.png").is_file()
    timely = scripts(*words, "--rate.warmup", 1, "--dry-run", "--fresh")
    assert timely.code == 0 and "warning" not in timely.out, timely


def test_parts_by_name_sample(scripts, room):
    pair = ["sample.py", "--tokenizer", "tiny-iar2", "--generator", "tiny-iar2", "--count", 2, "--out"]
    assert scripts(*pair, "s.npz").code == 0
    assert scripts(*pair, "b.npz", "--precision", "bf16").code == 0
    images = [np.load(room / name)["arr_0"] for name in ("s.npz", "b.npz")]
    assert images[0].shape == images[1].shape == (2, 32, 32, 3)
    record = json.loads((room / "b.run.json").read_text())
    assert record["sampler"]["precision"] == record["config"]["sampling"]["precision"] == "bf16"
    other = scripts(*pair, "s.npz", "--precision", "bf16")
    assert other.code == 2, other                                                   # what lies there is of another job
    assert "Invalid choice" in scripts(*pair, "c.npz", "--precision", "bfloat16").err


@pytest.mark.full
def test_what_help_shows_of_it_works(scripts):
    shown = re.findall(r"^    python scripts/(sample.py tiny-iar2.*)$", scripts("sample.py", "--help").out, re.M)
    assert len(shown) == 2 and "--guidance.start 1.75 1 " in shown[1]
    for i, words in enumerate([*shown, "sample.py tiny-iar2 --classes heart ring --guidance 3"]):
        ran = scripts(*words.split(), "--count", 1, "--out", f"shown{i}.npz")
        assert ran.code == 0, ran


def test_a_pipeline_is_loaded_in_a_precision():
    loaded = Pipeline.from_pretrained("tiny-iar2", precision="bf16")
    assert loaded.sampling.precision == "bf16" and from_pretrained("tiny-iar2").sampling.precision == "fp32"
    assert isinstance(loaded.generator, SemanticDetailTransformer)
    assert {p.dtype for p in loaded.generator.parameters()} == {torch.float32}
    pipes = loaded, from_pretrained("tiny-iar2")
    rough, exact = (next(p.stream("heart", keep=("logits",))).kept["logits"] for p in pipes)
    assert not torch.equal(rough[0], exact[0]) and torch.allclose(rough[0], exact[0], atol=0.5)
