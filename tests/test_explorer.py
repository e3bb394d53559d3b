"""The order explorer without a browser.

The plan is the sampler's, pictures show the plan, panels keep one clock, widgets come and go.
"""
import threading
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
import torch
from ipywidgets.widgets.widget import _instances
from PIL import Image

from vgnb.core import BadInput
from vgnb.draws import At, Keyed
from vgnb.figures import TONES, heat
from vgnb.generators.adaptive_orders import Confidence, Uncertainty
from vgnb.generators.generator import Cond, Generator, Grid, Prediction
from vgnb.generators.orders import ORDERS, Given, Order, Random
from vgnb.generators.schedules import SCHEDULES
from vgnb.moments import moments
from vgnb.order_maps import count_bars, order_panel, order_strip, step_key, step_map
from vgnb.sampling.sampler import Sampler
from vgnb.views.explorer import OrderExplorer
from vgnb.views.scenes import KNOWN, OrderChoice, Scene, fixed_orders, order_course, run_courses

class Noise(Generator):
    "Any token, with more or less confidence."
    vocab, traits = (16,), frozenset({"any_order"})
    def null(self, cond): return cond
    def predict(self, state, positions, given=None, *, live, independent=False):
        return Prediction(3 * torch.randn(1, *positions.shape, 16,
                                          generator=torch.Generator().manual_seed(state.done)))


def sampled(order, schedule, shape, steps, ids, known=None, seed=0):
    "All steps of a run."
    b, n = len(ids), shape[0] * shape[1]
    given = None
    if known is not None: given = torch.zeros(b, n, 1, dtype=torch.long), torch.from_numpy(known.ravel()).expand(b, n)
    sampler = Sampler(Noise(), order, SCHEDULES[schedule], steps=steps, rows=3)
    cond = Cond(labels=torch.zeros(b, dtype=torch.long))
    return list(sampler.stream(cond, torch.tensor(ids), Keyed(seed), grid=Grid(shape), given=given))


def colour(tone): return tuple(int(TONES[tone][k:k + 2], 16) for k in (1, 3, 5))


def middle(picture, side, y, x, h, w):
    "The colour a quarter into a cell, away from lines and numbers."
    block = side // max(h, w)
    return picture.getpixel((x * block + block // 4, y * block + block // 4))


# The plan

@pytest.mark.parametrize("order", list(fixed_orders()))
def test_the_plan_is_what_the_sampler_does(order):
    shapes = (5, 7), (8, 8), (3, 11), (6, 4), (9, 9), (4, 6), (2, 12)
    for schedule, shape, known in zip(SCHEDULES, cycle(shapes), cycle(KNOWN)):
        mask = KNOWN[known](*shape)
        run = sampled(ORDERS[order], schedule, shape, 6, [4, 0, 11], mask, seed=5)
        for sample, course in run_courses(run, shape).items():
            planned = order_course(OrderChoice(order, schedule, *shape, 6, seed=5, sample=sample, known=known))
            assert (planned.steps == course.steps).all() and planned.total == course.total == len(planned.counts)
            assert ((planned.steps < 0) == mask.ravel()).all()
            assert planned.counts.sum() == (~mask).sum() and (planned.counts > 0).all()


def test_only_orders_that_draw_depend_on_seed_and_sample():
    for name in fixed_orders():
        plans = [order_course(OrderChoice(name, "one-by-one", 7, 6, seed=seed, sample=sample))
                 for seed, sample in ((0, 0), (1, 0), (0, 1))]
        differ = [bool((plans[0].steps != p.steps).any()) for p in plans[1:]]
        assert differ == [plans[0].keyed] * 2, name


def test_a_permutation_of_ones_own_in_every_spelling():
    perm, rows = torch.arange(12).flip(0), torch.stack([torch.arange(12), torch.arange(12).roll(3)])
    choice = OrderChoice("own", "one-by-one", 3, 4, cells=", ".join(map(str, perm.tolist())))
    orders = {"mine": perm.numpy(), "rows": rows, "part": Given(perm), "shuffled": Random()}
    spelled = [order_course(replace(choice, order=o), orders) for o in ("own", "mine", "part")]
    assert all((c.steps == np.arange(11, -1, -1)).all() and not c.keyed for c in spelled)
    one = order_course(replace(choice, order="rows", sample=1), orders)
    assert one.keyed and one.steps[9] == 0
    assert (one.steps != order_course(replace(choice, order="rows"), orders).steps).any()
    assert order_course(replace(choice, order="shuffled"), orders).keyed


@pytest.mark.parametrize("changes, words", [
    (dict(steps=0), "steps=0: must be from 1 to 64, the cells of the grid"),
    (dict(steps=65), "steps=65: must be from 1 to 64"),
    (dict(steps=2.5), "steps=2.5: must be an integer"),
    (dict(height=0), "height=0: "),
    (dict(width=129), "width=129: must be an integer >= 1 and <= 128"),
    (dict(width="8"), "width='8': "),
    (dict(seed=-1), "seed=-1: "),
    (dict(sample=-1), "sample=-1: "),
    (dict(order="haltom"), "did you mean halton?"),
    (dict(order="confidence"), "order='confidence': looks at a model's confidence"),
    (dict(schedule="cosinus"), "did you mean cosine?"),
    (dict(known="hole"), "known='hole': must be one of nothing, upper half"),
    (dict(order="own"), "cells='': must be the numbers 0 to 63"),
    (dict(order="own", cells="1 2 x"), "cells='1 2 x': must be the numbers"),
    (dict(order="own", cells="0 1 2"), "must list all 64 cells"),
    (dict(order="own", cells=" ".join(["0"] * 64)), "must be a permutation"),
    (dict(order="short"), "must list all 64 cells"),
    (dict(known="small"), "known='small bool (2, 2)'"),
    (dict(order="looks"), "order='looks': looks at a model's confidence")])
def test_what_cannot_be_drawn_is_said_by_name(changes, words):
    with pytest.raises(BadInput) as e:
        order_course(replace(OrderChoice(height=8, width=8), **changes),
                     {"short": [1, 0], "looks": Confidence()},
                     {"small": np.ones((2, 2), bool)})
    assert words in str(e.value)


def test_one_by_one_ignores_the_steps_and_a_known_grid_has_none():
    assert order_course(OrderChoice("raster", "one-by-one", 4, 4, 999)).total == 16
    course = order_course(OrderChoice("halton", "cosine", 4, 4, 3, known="all"),
                          masks={"all": np.ones((4, 4), bool)})
    assert course.total == 0 and course.line(0) == "all 16 cells are known" and Scene((course,)).picture(side=64)
    one = order_course(OrderChoice("halton", "randar", 1, 1, 1))
    assert one.steps.tolist() == [0]
    assert one.line(1) == "step 1 of 1, finished · 1 of 1 cells · 1 now · largest group 1"


def test_runs_of_adaptive_orders_show_what_was_decided():
    runs = {name: sampled(order, "even", (5, 4), 4, [3, 9, 2, 7], KNOWN["inside a box"](5, 4))
            for name, order in (("sure", Confidence()), ("unsure", Uncertainty()))}
    for name, run in runs.items():
        courses = run_courses(run, (5, 4), name)
        assert list(courses) == [3, 9, 2, 7]
        assert all((c.steps < 0).sum() == KNOWN["inside a box"](5, 4).sum() and c.shape == (5, 4)
                   for c in courses.values())
        first = next(s for s in run if 9 in s.ids)  # the cells of step 0 of sample 9
        row = first.ids.tolist().index(9)
        assert sorted(np.flatnonzero(courses[9].steps == 0)) == sorted(first.positions[row].tolist())
    assert run_courses(runs["sure"])[3].shape == (20,)  # twenty cells make no square
    with pytest.raises(BadInput, match="run='run': must be whole; its last step is 3 of 4"):
        run_courses(runs["sure"][:3])
    with pytest.raises(BadInput, match="run='run': must hold at least one step"): run_courses([])
    with pytest.raises(BadInput, match="shape=.*must hold the run's 20 cells"):
        run_courses(runs["sure"], (4, 4))


# The clock

def test_one_clock_for_two_courses():
    long, short = order_course(OrderChoice(steps=12)), order_course(OrderChoice("raster", "even", steps=5))
    scene = Scene((long, short))
    assert scene.ticks == 12
    assert [replace(scene, clock=c).at(0) for c in range(13)] == list(range(13))
    assert [replace(scene, clock=c).at(1) for c in range(13)] == [0, 1, 2, 3, 4] + [5] * 8
    shares = [replace(scene, clock=c, pace="share").at(1) for c in range(13)]
    assert shares == [0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 5] and replace(scene, clock=99, pace="share").at(1) == 5
    assert replace(scene, clock=7).lines()[1].startswith("step 5 of 5, finished · 256 of 256 cells")


# The pictures

def test_a_moment_shows_known_decided_now_and_open():
    steps, side = np.array([-1, 0, 1, 2, 3, 4]), 120
    seen = step_map(steps, (2, 3), at=2, ahead=False, side=side)
    where = {k: middle(seen, side, *divmod(i, 3), 2, 3)
             for i, k in enumerate(("known", "past", "now", "open", "open", "open"))}
    assert where["known"] == colour("given") and where["now"] == colour("alarm")
    assert where["past"] == tuple(heat(0.)) and where["open"] in ((178,) * 3, (216,) * 3)
    whole = step_map(steps, (2, 3), at=2, side=side)
    assert middle(whole, side, 1, 0, 2, 3) == tuple(heat(.5))
    assert middle(whole, side, 1, 2, 2, 3) == tuple(heat(1.))
    assert middle(whole, side, 0, 2, 2, 3) == colour("alarm")
    plan = step_map(steps, (2, 3), side=side)
    assert middle(plan, side, 0, 2, 2, 3) == tuple(heat(.25))
    assert step_map(steps, (2, 3), at=0, side=side) == plan
    assert middle(step_map(steps, (2, 3), at=5, ahead=False, side=side), side, 1, 1, 2, 3) == tuple(heat(.75))


@pytest.mark.parametrize("shape", [(8, 8), (64, 64), (5, 40), (40, 5), (1, 1), (128, 3)])
@pytest.mark.parametrize("dense", [1, 2])
def test_pictures_keep_their_size_and_whole_pixels(shape, dense):
    n = shape[0] * shape[1]
    course = order_course(OrderChoice("random", "cosine", *shape, min(n, 7)))
    block = max(1, 320 // max(shape))
    grids = [step_map(course.steps, shape, at=at, dense=dense, numbers=False) for at in (0, course.total)]
    assert {g.size for g in grids} == {(block * shape[1] * dense, block * shape[0] * dense)}
    panels = [order_panel(course.steps, shape, at=at, ahead=ahead, dense=dense)
              for at in (0, course.total) for ahead in (False, True)]
    assert len({p.size for p in panels}) == 1 and panels[0].width == 336 * dense
    assert len({c for _, c in grids[1].getcolors(9999)}) <= 7 + 4


def test_numbers_stand_in_cells_with_room_and_nowhere_else():
    for shape, room in (((8, 8), True), ((16, 16), True), ((40, 40), False)):
        steps = order_course(OrderChoice("halton", "cosine", *shape, 12)).steps
        assert (step_map(steps, shape) != step_map(steps, shape, numbers=False)) == room


def test_a_sequence_is_folded():
    picture = step_map(np.arange(7), (7,), side=90)
    assert picture.size == (90, 90) and middle(picture, 90, 2, 2, 3, 3) == colour("paper")


def test_bars_are_as_high_as_the_counts():
    def height(counts, k, **kw):
        pixels = np.array(count_bars(counts, width=300, height=100, **kw))
        column = pixels[15:85, round((k + .5) * 300 / len(counts)) - 2]
        return int((column != colour("paper")).any(-1).sum())
    assert [height([1, 2, 4, 0], k) for k in range(4)] == [18, 35, 70, 0]                         # of 70 pixels
    marked = np.array(count_bars([3, 5, 2], at=2, ahead=False, width=300))
    assert tuple(marked[50, 148]) == colour("alarm") and tuple(marked[50, 248]) == colour("line")
    assert tuple(marked[50, 48]) == tuple(heat(0.))
    spike = np.ones(5000, int)
    spike[3210] = 50
    top = (np.array(count_bars(spike, width=300, height=100))[15] != colour("paper")).any(-1)
    # not lost between the pixels
    assert top.sum() == 1 and top.argmax() == 3210 * 300 // 5000


def test_keys_fit_their_width():
    for width in (90, 160, 220, 320):
        key = np.array(step_key(12, True, False, width))
        assert key.shape == (16, width, 3) and (key[:, -2:] == colour("paper")).all()


@pytest.mark.parametrize("call, words", [
    (lambda: step_map([0, 2], (1, 2), total=2), "total=2: "),
    (lambda: step_map([-2, 0], (1, 2)), "steps=[-2, 0]: "),
    (lambda: step_map(torch.rand(4), (2, 2)), "steps="),
    (lambda: step_map([0, 1], (1, 2), at=3), "at=3: "),
    (lambda: count_bars([1, 2], at=3), "at=3: "),
    (lambda: count_bars([[1]]), "counts=[[1]]: "),
    (lambda: step_map([0, 1], (1, 2), side=4), "side=4: "),
    (lambda: order_strip({"a": []}, None, (1, 1)), "runs={'a': 0}: ")])
def test_bad_numbers_have_names(call, words):
    with pytest.raises(BadInput) as e: call()
    assert str(e.value).startswith(words)


def test_strips_have_a_row_a_run_and_end_with_the_finished_picture():
    def decode(codes):
        light = torch.where(codes >= 0, 200, 0).to(torch.uint8).numpy()
        return light[..., None].repeat(3, -1).repeat(4, 1).repeat(4, 2)
    runs = {name: list(moments(sampled(ORDERS[name], "cosine", (6, 6), steps, [0, 1])))
            for name, steps in (("halton", 9), ("confidence", 4), ("random", 2))}
    strips = {n: order_strip(dict(list(runs.items())[:n]), decode, (6, 6), count=4, side=96) for n in (1, 2, 3)}
    assert (strips[3].height - strips[2].height) == (strips[2].height - strips[1].height) > 96
    pixels = np.array(strips[3])
    final = pixels[:, -104:-8]
    assert ((final == 200).all(-1).sum(0) > 3 * 90).any()  # the last column: three whole pictures
    # paper only before it
    assert not (final == 216).all(-1).any() and (pixels[:, :-110] == 216).all(-1).any()
    assert order_strip(runs, decode, (6, 6), sample=1, tokens=True).height > strips[3].height


# The widget, its front end aside

@pytest.fixture
def explorer():
    left, right = OrderChoice(height=8, width=8, steps=6), OrderChoice("random", "even", 8, 8, 4)
    e = OrderExplorer(left, right, side=96, dense=1)
    yield e
    e.close()


def test_controls_change_the_picture(explorer):
    seen = {explorer.left.image.value}
    changes = dict(order="spiral-in", schedule="root", height=10, width=5, steps=9, known="upper half")
    for name, value in changes.items():
        getattr(explorer.left, name).value = value
        assert explorer.left.image.value not in seen and explorer.left.error is None, name
        seen.add(explorer.left.image.value)
    assert explorer.left.choice == OrderChoice("spiral-in", "root", 10, 5, 9, known="upper half")
    before = explorer.right.image.value
    explorer.right.seed.value = 1
    assert explorer.right.image.value != before


def test_the_clock_reaches_both_panels_and_stays_in_range(explorer):
    assert (explorer.clock.value, explorer.clock.max, explorer.play.max) == (2, 6, 6)
    explorer.clock.value = 5
    assert explorer.left.words.startswith("step 5 of 6 · ")
    assert explorer.right.words.startswith("step 4 of 4, finished · 64 of 64 cells")
    explorer.pace.value = "share"
    assert explorer.right.words.startswith("step 4 of 4") and explorer.scene.at(1) == 4
    for _ in range(3): explorer.forward.click()
    assert explorer.clock.value == 6
    explorer.back.click()
    assert explorer.clock.value == 5
    explorer.left.steps.value = 3
    assert explorer.clock.max == 4 == explorer.play.max and explorer.clock.value == 4
    explorer.second.value = False
    assert explorer.clock.max == 3 and len(explorer.scene.courses) == 1
    assert explorer.right.box.layout.display == "none"


def test_play_takes_strides_in_long_courses_but_reaches_the_end(explorer):
    explorer.left.schedule.value, explorer.left.height.value, explorer.left.width.value = "one-by-one", 31, 29
    assert explorer.play.max == 899 and explorer.play.step == 7
    assert 50 <= explorer.play.interval <= 500 and explorer.left.steps.disabled
    explorer.play.playing = True
    explorer.clock.value = 896  # the last stride would lead beyond the end
    explorer.play.playing = False
    assert explorer.clock.value == 899 and explorer.left.words.startswith("step 899 of 899, finished")


def test_a_mistake_is_said_and_forgotten_when_mended(explorer):
    good, other = explorer.left.image.value, explorer.right.image.value
    explorer.left.steps.value = 65
    assert explorer.left.words == "⚠ steps=65: must be from 1 to 64, the cells of the grid"
    assert explorer.left.words[2:] in explorer.left.text.value
    assert explorer.left.image.value != good and explorer.right.image.value == other              # faded
    explorer.clock.value = 4
    explorer.left.steps.value = 6
    explorer.clock.value = 2
    assert explorer.left.image.value == good and explorer.left.error is None
    assert "color" not in explorer.left.text.value


def test_the_heat_map_shows_what_is_to_come(explorer):
    moment = explorer.snapshot()
    explorer.view.value = True
    heat_map = explorer.snapshot()
    share = [np.isin(np.array(p)[24:150, 8:104], (178, 216)).all(-1).mean() for p in (moment, heat_map)]
    assert share[0] > .3 and share[1] == 0 and explorer.scene.heat


def test_ones_own_order_begins_with_an_example(explorer):
    explorer.left.order.value = "own"
    assert explorer.left.cells.layout.display is None and explorer.left.error is None
    assert explorer.left.course.steps[63] == 0
    explorer.left.cells.value = "5 5"
    assert explorer.left.words.startswith("⚠ cells=")
    explorer.left.order.value = "raster"
    assert explorer.left.error is None and explorer.left.cells.layout.display == "none"


def test_only_what_matters_can_be_changed(explorer):
    assert explorer.left.seed.disabled and explorer.left.sample.disabled and not explorer.right.seed.disabled
    explorer.left.order.value = "hierarchical"
    assert not explorer.left.seed.disabled
    run = sampled(Confidence(), "cosine", (6, 6), 5, [4, 8])
    with_run = OrderExplorer(run={"confidence": run}, side=64)
    left = with_run.left
    assert left.choice.order == "confidence" and left.sample.value == 4 and left.schedule.disabled
    assert left.height.disabled and left.seed.disabled and not left.sample.disabled
    assert "uncertainty" in with_run.note.value and "confidence" not in with_run.note.value
    left.order.value = "halton"
    assert not left.schedule.disabled and left.error is None
    assert with_run.right.choice == OrderChoice("raster", "cosine", 6, 6, 5, sample=4) and not with_run.second.value
    assert left.choice == OrderChoice("halton", "cosine", 6, 6, 5, sample=4)  # on the run's grid, to compare
    with_run.close()


@pytest.mark.parametrize("shape, run_shape", [((2, 2), None), ((7,), None), ((3, 5), (3, 5))])
def test_runs_on_small_and_odd_grids_open(shape, run_shape):
    b = 2
    sampler = Sampler(Noise(), Confidence(), SCHEDULES["even"], steps=3, rows=2)
    cond = Cond(labels=torch.zeros(b, dtype=torch.long))
    run = list(sampler.stream(cond, torch.arange(b), Keyed(0), grid=Grid(shape)))
    e = OrderExplorer(run=run, shape=run_shape, side=64, dense=1)
    e.second.value = True
    assert e.left.course.shape == shape and e.left.course.total == e.right.course.total == 3
    assert not e.left.error and not e.right.error
    e.close()


def test_adaptive_orders_are_offered_only_with_a_run(explorer):
    offered = [name for _, name in explorer.left.order.options]
    assert set(offered) == {n for n, o in ORDERS.items() if not o.adaptive} | {"own"}
    assert "confidence, uncertainty" in explorer.note.value and "OrderExplorer(run=" in explorer.note.value


@pytest.mark.parametrize("call, words", [
    (lambda: OrderExplorer(OrderChoice(steps=0)), "steps=0: "),
    (lambda: OrderExplorer(right=OrderChoice(height=-1)), "height=-1: "),
    (lambda: OrderExplorer(orders={"halton": [0]}), "orders=['halton']: "),
    (lambda: OrderExplorer(masks={"nothing": 0}), "masks=['nothing']: "),
    (lambda: OrderExplorer(run={"halton": []}), "run=['halton']: "),
    (lambda: OrderExplorer(run=[]), "run='run': "),
    (lambda: OrderExplorer(side=2), "side=2: "),
    (lambda: OrderExplorer(clock=13), "clock=13: must be an integer >= 0 and <= 12"),
    (lambda: OrderExplorer(OrderChoice("confidence")), "order='confidence': ")])
def test_a_bad_explorer_is_refused_before_any_widget_is_made(call, words):
    before = set(_instances)
    with pytest.raises(BadInput) as e: call()
    assert str(e.value).startswith(words) and set(_instances) == before


def test_use_makes_no_widgets_and_closing_leaves_none():
    before, threads = set(_instances), threading.active_count()
    e = OrderExplorer(OrderChoice(height=6, width=6, steps=4), side=64, dense=1)
    made = set(_instances)
    for k in range(20):
        e.clock.value = k % 4
        e.second.value = bool(k % 2)
        e.view.value = bool(k % 3)
        e.pace.value = ("step", "share")[k % 2]
        e.left.order.value, e.left.steps.value = list(fixed_orders())[k % 5], k
    assert set(_instances) == made > before and threading.active_count() == threads
    e.close()
    assert set(_instances) == before


@pytest.mark.fault("F17")
def test_names_of_orders_are_text():
    hostile = "<img src=x onerror=1> $\\frac$"
    class Stubborn(Order):
        def check(self, grid, ids): raise BadInput("order", hostile, "must be <b>another</b>")
    e = OrderExplorer(orders={hostile: torch.arange(36), "stubborn": Stubborn()},
                      left=OrderChoice(hostile, "even", 6, 6, 3), side=64)
    assert (hostile, hostile) in e.left.order.options and isinstance(e.snapshot(), Image.Image)
    e.left.order.value = "stubborn"
    assert "<b>" in e.left.words and "<b>" not in e.left.text.value
    assert "<img" not in e.left.text.value and "$" not in e.left.text.value
    e.close()


def test_a_random_order_is_the_samples_own():
    course = order_course(OrderChoice("random", "one-by-one", 6, 6, seed=3, sample=17))
    perm = Random().permutation(Grid((6, 6)), None, Keyed(3), At(torch.tensor([17])))[0]
    assert (np.argsort(course.steps) == perm.numpy()).all()
