"Two settings on the same noise: each side is what the pipeline samples, and what is pinned comes back."
import pytest

from vgnb.core import BadInput
from vgnb.pipeline import from_pretrained
from vgnb.sampling.guidance import CFG
from vgnb.views.compare import finished_run

SHORT = dict(schedule="even", steps=5)


@pytest.fixture(scope="module")
def pipe(): return from_pretrained("tiny-randar")


def test_each_side_is_what_the_pipeline_samples(pipe):
    ways = dict(guidance=1.0, top_k=30), dict(guidance=CFG(4.0, start=1.0), order="halton")
    pair = pipe.compare("heart", *(way | SHORT for way in ways), seed=1, side=64)
    for live, way in zip((pair.left, pair.right), ways):
        run = finished_run(live)
        assert (run.picture == pipe("heart", seed=1, **way, **SHORT)[0]).all()
        assert (run.picture == eval(run.call, {"pipe": pipe, "CFG": CFG})[0]).all(), run.call
    words = pair.text.value
    pair.left.seed.value = 2
    assert pair.right.seed.value == 2 and pair.text.value != words
    assert (finished_run(pair.right).picture == pipe("heart", seed=2, **ways[1], **SHORT)[0]).all()


def test_a_pinned_run_comes_back_to_either_side(pipe):
    pair = pipe.compare("star", SHORT, SHORT | dict(temperature=0.5), seed=3, side=64)
    assert pair.pins.disabled and pair.to_left.disabled
    pair.pin_right.click()
    pair.pin_right.click()                                     # the same run, once
    kept = finished_run(pair.right)
    pair.right.label.value = 2
    pair.right.temperature.value = 1.2
    pair.right.seed.value = 4
    pair.pin_right.click()
    assert len(pair.runs) == len(pair.pins.options) == 2 and pair.pins.value == 1
    pair.pins.value = 0
    pair.to_left.click()
    back = finished_run(pair.left)
    assert back.wish == kept.wish and (back.picture == kept.picture).all()
    assert pair.right.seed.value == 3 and pair.right.label.value == 5 and pair.right.temperature.value == 1.2
    assert set(pair._repr_mimebundle_()) == {"text/plain", "image/png"}


@pytest.mark.parametrize("way, words", [(dict(colour="red"), "^setting='colour'"), ("x", "^left='x'")])
def test_settings_that_cannot_be_are_refused_by_name(pipe, way, words):
    with pytest.raises(BadInput, match=words): pipe.compare("heart", way)
