"Lanes on the same noise: each is what the pipeline samples, its work what the formulas add up to, and the clock exact."
import asyncio

import numpy as np
import pytest

import vgnb
from vgnb.core import BadInput
from vgnb.generators.cost import run_work, work_by_step
from vgnb.generators.masked import MaskedConfig
from vgnb.generators.orders import ORDERS, Given
from vgnb.matrix import why_not
from vgnb.pipeline import from_pretrained
from vgnb.views.race import TICKS, Lane, Race, Tiles, Track, lanes, race, race_picture, track_words

@pytest.fixture(scope="module")
def pipe(): return from_pretrained("tiny-randar")


def ran(lane, label=6, seed=0) -> Track:
    track = Track(lane, label, seed)
    for _ in track.steps(): pass
    return track


def small(pipe, label="heart", orders=("random", "halton"), steps=(2, 3), **kwargs):
    return race(pipe, label, orders, steps, side=48, **kwargs)


def test_every_lane_is_what_the_pipeline_samples(pipe):
    live = small(pipe, seed=2, temperature=0.8)
    for row, order in zip(live.rows, ("random", "halton"), strict=True):
        for track, steps in zip(row, (2, 3), strict=True):
            codes = pipe.codes("heart", seed=2, order=order, steps=steps, temperature=0.8)
            assert (track.seen[-1].codes == codes.numpy()).all() and len(track.seen) == steps


@pytest.mark.parametrize("order, guidance, live", [("halton", 3.0, 2), ("raster", 1.0, 1)])
def test_the_work_is_what_the_formulas_say(pipe, order, guidance, live):
    track = ran(lanes({"": pipe}, order, [6], guidance=guidance)[0][0])
    counts = [known.sum() for known in (m.drawn[0] == m.step for m in track.seen)]
    assert track.work[-1] == run_work(pipe.generator.config, counts, live=live)
    assert track.passes.tolist() == [live * k for k in range(7)] and (np.diff(track.work) > 0).all()


def test_an_order_that_looks_pays_for_what_it_asks(pipe):
    track = ran(lanes({"": pipe}, "confidence", [4])[0][0])
    counts = [int((m.drawn[0] == m.step).sum()) for m in track.seen]
    assert track.work[-1] == run_work(pipe.generator.config, counts, adaptive=True, live=2)
    assert [asked for _, asked, _ in track.asked] == [64 - sum(counts[:k]) for k in range(4)]


def test_work_by_step_adds_up_and_a_branch_that_rests_catches_up(pipe):
    config = pipe.generator.config
    steps = [(0, 10, 2), (10, 20, 1), (30, 34, 2)]
    each = work_by_step(config, 64, steps)
    assert sum(each) == run_work(config, [10, 20, 34], live=[2, 1, 2]) and len(each) == 3
    assert each[2] == config.step_work(64, 30, 34, 10) + config.step_work(64, 30, 34, 0)
    assert work_by_step(config, 64, []) == []
    masked = MaskedConfig(grid=(8, 8))
    first, second = work_by_step(masked, 64, [(0, 32, 1), (32, 32, 1)])
    assert first - second == masked.condition_work()


def test_a_refused_lane_says_what_the_matrix_says(pipe):
    rar = from_pretrained("tiny-rar")
    rows = lanes({"randar": pipe, "rar": rar}, ("halton", "raster"), (4, 8))
    assert [[bool(lane.refused) for lane in row] for row in rows] == [[False] * 2, [False] * 2, [True], [False]]
    assert rows[2][0].refused == why_not(rar, order="halton") and rows[2][0].name == "rar · halton"
    too_many = lanes({"": pipe}, None, [4, 65])[0]
    assert not too_many[0].refused and "64" in too_many[1].refused
    live = race([pipe, rar], "heart", ("halton",), (2,), side=48)
    assert isinstance(live.rows[1][0], Lane) and isinstance(live.rows[0][0], Track)


def test_the_clock_shows_a_step_when_it_is_paid(pipe):
    cheap, dear = tracks = [ran(lane) for lane in lanes({"": pipe}, "halton", (2, 8))[0]]
    for clock in range(TICKS + 1):
        for pace, whole in (("share", None), ("work", dear.work[-1])):
            scene = Race((tuple(tracks),), clock, pace)
            for track in tracks:
                at, most = scene.at(track), whole or track.work[-1]
                assert track.work[at] * TICKS <= clock * most
                assert at == len(track.seen) or track.work[at + 1] * TICKS > clock * most
    end = Race((tuple(tracks),), TICKS, "work")
    assert [end.at(t) for t in tracks] == [2, 8] and cheap.work[-1] < dear.work[-1]
    step = Race((tuple(tracks),), 5, "step")
    assert [step.at(t) for t in tracks] == [2, 5] and step.ticks == 8


def test_the_picture_is_the_state(pipe):
    rows = (tuple(ran(lane) for lane in lanes({"": pipe}, "halton", (2, 4))[0]),)
    tiles = Tiles(48)
    first, again = (np.asarray(race_picture(Race(rows, TICKS // 2), tiles)) for _ in range(2))
    fresh = np.asarray(race_picture(Race(rows, TICKS // 2), Tiles(48)))
    assert (first == again).all() and (first == fresh).all()
    assert (first != np.asarray(race_picture(Race(rows, TICKS), tiles))).any()
    plain = pipe.decode(rows[0][0].seen[-1].codes.astype(np.int64), min_rows=1)[0]
    assert (np.asarray(Tiles(32).of(rows[0][0], 2)[1]) == plain).all()
    assert [p.size for p in tiles.of(rows[0][0], 2)] == [(48, 48)] * 2
    assert "ms" not in " ".join(track_words(rows[0][0], 2)) and "ms" in track_words(rows[0][0], 2, True)[1]
    with pytest.raises(BadInput, match="^pace="): race_picture(Race(rows, 0, "time"))
    with pytest.raises(BadInput, match="^clock="): race_picture(Race(rows, TICKS + 1))


def test_what_ran_is_kept_and_a_mistake_is_said(pipe):
    live = small(pipe)
    before, picture = live.rows, live.image.value
    live.orders.value = ("halton", "raster")
    assert [row[0].lane.name for row in live.rows] == ["halton", "raster"]
    assert live.rows[0][0].seen is before[1][0].seen
    for name, wrong, right in (("steps", "2; 3", "2"), ("orders", (), ("raster",)), ("steps", "", "2 3")):
        getattr(live, name).value = wrong
        assert f"⚠ {name}=" in live.text.value and live.image.value != picture
        getattr(live, name).value = right
        assert "⚠" not in live.text.value
    assert set(live._repr_mimebundle_()) == {"text/plain", "image/png"}


def test_the_newest_wish_wins(pipe):
    live = small(pipe)

    async def hand():
        for seed in range(1, 9):
            live.seed.value = seed
            await asyncio.sleep(0)
        assert live.busy.value
        await live._latest._task
        assert not live.busy.value

    asyncio.run(hand())
    assert {track.seed for row in live.rows for track in row} == {8}
    assert len({key[-1] for key in live._kept}) <= 4                    # most of those between were never begun


def test_an_order_of_ones_own_and_a_class_that_is_missing(pipe):
    mine = Given(np.arange(63, -1, -1))
    live = race(pipe, "heart", {"backwards": mine, "halton": ORDERS["halton"]}, (4,), side=48)
    assert [row[0].lane.name for row in live.rows] == ["backwards", "halton"]
    assert live.rows[0][0].seen[0].drawn[0, -1] == 0
    other = from_pretrained("tiny-maskgit")
    other.classes = ["x" + name for name in other.classes]
    both = race({"a": pipe, "b": other}, "heart", steps=(2,), side=48)
    assert isinstance(both.rows[1][0], Lane) and "heart" in both.rows[1][0].refused


@pytest.mark.parametrize("how, words", [
    (dict(orders="haltom"), "^order='haltom'"), (dict(steps=()), "^steps="), (dict(steps=(0,)), "^steps=0"),
    (dict(label="house"), "^label="), (dict(colour=3), "^setting='colour'"), (dict(schedule="slow"), "^schedule=")])
def test_what_means_nothing_is_refused_by_name(pipe, how, words):
    with pytest.raises(BadInput, match=words): pipe.race(**{"label": "heart"} | how)


def test_the_front_door():
    assert vgnb.race is race
