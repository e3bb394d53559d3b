"What the lab's controls offer can be had: no order, schedule, class or end of a slider is refused."
import numpy as np
import pytest

import vgnb
from vgnb.matrix import refusal
from vgnb.pipeline import from_pretrained
from vgnb.shipped import shipped
from vgnb.views.play import _offered

MODELS = list(shipped())


def values(control) -> list:
    "All values of a chooser; the ends of a slider, and one between."
    if hasattr(control, "options"): return [value for _, value in control.options]
    between = (control.min + control.max) / 2
    return [control.min, control.max, int(between) if isinstance(control.value, int) else between]


def refused(live, controls) -> list:
    "(control, value, words) of what is offered and then refused; each control goes back."
    found = []
    for control in controls:
        before = control.value
        for value in () if control.disabled else values(control):
            control.value = value
            live.settle()
            if "⚠" in live.text.value: found.append((control.description, value, live.text.value))
        control.value = before
        live.settle()
    return found


@pytest.mark.parametrize("name", MODELS)
def test_no_order_or_schedule_that_is_offered_is_refused(name):
    pipe = from_pretrained(name)
    orders, schedules = _offered(pipe)
    for _, order in orders: assert not refusal(pipe, pipe.sampling.changed(order=order)), order
    for _, word in schedules: assert not refusal(pipe, pipe.sampling.changed(schedule=word)), word
    names = [word for word, _ in orders]
    if name in ("tiny-rar", "tiny-iar2"): assert names == ["raster"]
    if name in ("tiny-randar", "tiny-maskgit", "tiny-pgm", "tiny-arpg"):
        assert {"halton", "confidence"} <= set(names)


def test_a_race_offers_what_one_of_its_models_takes():
    rar = from_pretrained("tiny-rar")
    live = rar.race(0, side=48)
    assert live.orders.value == ("raster",)
    assert [word for word, _ in live.orders.options] == ["its own", "raster"]
    both = vgnb.race([rar, from_pretrained("tiny-randar")], 0, steps=(2,), side=48)
    assert {"halton", "confidence"} <= {word for _, word in both.orders.options}


@pytest.mark.full
@pytest.mark.parametrize("name", MODELS)
def test_everything_that_play_offers_samples(name):
    live = from_pretrained(name).play(0, side=64)
    if not live.steps.disabled: live.steps.value = 2
    assert refused(live, live.all) == []


@pytest.mark.full
@pytest.mark.parametrize("name", MODELS)
def test_everything_that_sight_sweep_race_and_editor_offer_samples(name):
    pipe = from_pretrained(name)
    few = {} if pipe.sampling.schedule == "one-by-one" else {"steps": 2}
    sight = pipe.sight(0, side=64, **few)
    assert refused(sight, [sight.order, sight.schedule, sight.steps]) == []
    sweep = pipe.sweep(0, scales=(1, 3), temperatures=(1,), side=24, **few)
    assert refused(sweep, [sweep.label, sweep.steps]) == []
    race = pipe.race(0, steps=(2,), side=32)
    for control in (race.label, race.schedule):
        assert refused(race, [control]) == []
    for _, order in race.orders.options:
        race.orders.value = (order,)
        assert not getattr(race.rows[0][0], "refused", ""), order
    editor = pipe.editor(0, side=64, **few)
    editor.touch(int(np.prod(pipe.grid.shape)) - 1)
    assert refused(editor, [editor.label]) == []
