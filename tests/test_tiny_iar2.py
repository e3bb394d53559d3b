"The shipped IAR2: what its codes promise, at any batch size, token by token, under other generators."
import pytest
import torch

from vgnb.core import BadInput
from vgnb.data.shapes import Shapes
from vgnb.generators.generator import Cond
from vgnb.generators.random_order import RandomOrderTransformer, random_order_presets
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
