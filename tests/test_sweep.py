"A table of settings on the same noise: each place is what the pipeline samples; the coarse table comes first."
import asyncio
import itertools

import numpy as np
import pytest
import torch

from vgnb.core import BadInput
from vgnb.draws import Keyed
from vgnb.pipeline import from_pretrained
from vgnb.sampling.attended_guidance import AttendedGuidance
from vgnb.sampling.guidance import CFG
from vgnb.sampling.pick import HaltonPick, Pick
from vgnb.views.sweep import LiveSweep, Sweep, batch_sampler, coarse_to_fine, sweep, sweep_picture

SHORT = dict(schedule="even", steps=3)


@pytest.fixture(scope="module")
def pipe(): return from_pretrained("tiny-randar")


def last(steps): return list(steps)[-1]


def small(pipe, scales=(1, 3), temperatures=(0.5, 1.0), **kwargs) -> LiveSweep:
    return pipe.sweep("heart", scales=scales, temperatures=temperatures, **({"side": 32} | SHORT | kwargs))


def test_every_place_is_what_the_pipeline_samples(pipe):
    table = last(sweep(pipe, "heart", (1, 4), (0.0, 1.0, 1.5), seed=3, id=2, order="halton", top_k=20, **SHORT))
    assert table.whole and table.shape == (3, 2) and table.temperatures == (1.5, 1.0, 0.0)
    for (r, temperature), (c, scale) in itertools.product(enumerate(table.temperatures), enumerate(table.scales)):
        how = dict(seed=3, ids=[2], guidance=scale, temperature=temperature, order="halton", top_k=20)
        assert (table.codes[r, c] == pipe.codes("heart", **how, **SHORT)[0].numpy()).all(), (r, c)
        assert (table.pictures[r, c] == pipe.sample("heart", **how, **SHORT)[0]).all(), (r, c)


@pytest.mark.parametrize("name, how", [
    pytest.param("tiny-iar2", dict(scales=(1.0, 3.0)), marks=pytest.mark.full),
    ("tiny-maskgit", dict(scales=(1.0, 3.0), order="confidence", schedule="cosine", steps=4)),
    ("tiny-pgm", dict(scales=(2.0, 5.0), schedule="cosine", steps=4)),
    pytest.param("tiny-lpd", dict(scales=(1.0, 5.0), steps=5), marks=pytest.mark.full)])
def test_every_family_in_one_batch(name, how):
    pipe = from_pretrained(name)
    scales, settings = how["scales"], {k: v for k, v in how.items() if k != "scales"}
    table = last(sweep(pipe, 3, scales, (0.5, 1.0), seed=1, **settings))
    for (r, temperature), (c, scale) in itertools.product(enumerate(table.temperatures), enumerate(scales)):
        attended = isinstance(pipe.sampling.guidance, AttendedGuidance)
        guidance = AttendedGuidance((1.0,), (scale,), 0.05) if attended else scale
        codes = pipe.codes(3, seed=1, guidance=guidance, temperature=temperature, **settings)
        assert (table.codes[r, c] == codes[0].numpy()).all(), (r, c)


def test_rows_of_any_guidance_and_pick(pipe):
    "Parts that move, that rest, that end early; picks of other kinds; a batch that is filled up."
    parts = [(CFG(4.0, start=1.0), Pick(top_p=0.8)), (CFG(3.0, interval=1), HaltonPick(warmup=1)),
             (CFG(1.0), Pick(0.0))]
    ways = [pipe.settings(guidance=g, picks=p, **SHORT) for g, p in parts]
    sampler = batch_sampler(pipe.generator, ways)
    sampler.rows, sampler.min_rows = 8, 4
    ids = torch.zeros(3, dtype=torch.long)
    found = sampler.sample(pipe.condition([6] * 3), ids, Keyed(5), grid=pipe.grid)
    for codes, (g, p) in zip(found, parts):
        assert torch.equal(codes, pipe.codes("heart", seed=5, guidance=g, picks=p, **SHORT)[0])
    with pytest.raises(BadInput, match="^ways="): batch_sampler(pipe.generator, [*ways, pipe.settings(steps=5)])


@pytest.mark.parametrize("rows, columns, most", [(1, 1, 16), (1, 7, 16), (5, 4, 16), (12, 12, 5), (2, 3, 1)])
def test_the_coarse_comes_first(rows, columns, most):
    batches = coarse_to_fine(rows, columns, most)
    places = [place for batch in batches for place in batch]
    assert sorted(places) == sorted(itertools.product(range(rows), range(columns)))
    assert all(0 < len(batch) <= most for batch in batches)
    corners = set(itertools.product((0, rows - 1), (0, columns - 1)))
    assert set(places[:len(corners)]) == corners
    far = [max(min(abs(r - a) for a, _ in places[:k + 1]) for r in range(rows)) for k in range(len(places))]
    assert far == sorted(far, reverse=True) and far[-1] == 0


def test_the_picture_shows_what_is_there(pipe):
    table = last(sweep(pipe, "heart", (1, 3), (1.0,), **SHORT))
    image = np.asarray(sweep_picture(table, side=32, gap=4))
    for c in range(2): assert (image[2:34, c * 36 + 2:c * 36 + 34] == table.pictures[0, c]).all()
    half = Sweep(table.scales, table.temperatures, {}, {(0, 0): table.pictures[0, 0]})
    pale = np.asarray(sweep_picture(half, side=32, gap=4))
    assert (pale[2:34, 2:34] == table.pictures[0, 0]).all() and not half.whole and half.near((0, 1)) == (0, 0)
    assert pale[2:34, 38:70].mean() > image[2:34, 2:34].mean()
    framed = np.asarray(sweep_picture(table, (0, 1), side=32, gap=4))
    assert (framed != image).any() and (framed[:, :36] == image[:, :36]).all()


def test_a_click_opens_the_place_with_its_settings(pipe):
    live = small(pipe, seed=1)
    words = live.buttons[0, 1].tooltip
    live.buttons[0, 1].click()
    assert words == "guidance 3, temperature 1" and live.chosen == (0, 1)
    player = live.player
    assert (player.guidance.value, player.temperature.value, player.seed.value) == (3.0, 1.0, 1)
    assert (player.frames.seen[-1].codes[0] == live.table.codes[0, 1]).all()
    live.buttons[1, 0].click()
    live.settle()
    assert live.player is player and (player.frames.seen[-1].codes[0] == live.table.codes[1, 0]).all()
    assert (live.row.value, live.column.value) == (1, 1)
    live.row.value = 2
    live.settle()
    assert live.chosen == (0, 0) and (player.frames.seen[-1].codes[0] == live.table.codes[0, 0]).all()
    call = live._chosen_wish().call(pipe.classes)
    assert (eval(call, {"pipe": pipe, "CFG": CFG})[0] == live.table.pictures[0, 0]).all(), call
    live.close_.click()
    assert live.player is None and live.beside.children == ()



def test_what_is_open_follows_another_table(pipe):
    "Other scales, another class and another seed move the table; the picture beside it is its chosen place."
    live = small(pipe)
    live.open((1, 0))
    live.settle()
    for control, value in ((live.scales, "1, 2, 4"), (live.label, 5), (live.seed, 2)):
        control.value = value
        live.settle()
        open_, place = live.player, live.table.codes[live.chosen]
        assert (open_.frames.seen[-1].codes[0] == place).all(), control.description

def test_pins_stay_and_mistakes_are_said(pipe):
    live = small(pipe)
    live.pin.click()
    live.pin.click()                                           # the same, once
    live.seed.value = 4
    live.pin.click()
    assert len(live.pins) == 2 and live.sheet.layout.display is None
    picture = live.image.value
    live.scales.value = "1, two"
    assert "⚠ scales=" in live.text.value and live.image.value != picture
    live.scales.value = "1 2 3"
    assert live.table.shape == (2, 3) and len(live.buttons) == 6 and "⚠" not in live.text.value
    assert set(live._repr_mimebundle_()) == {"text/plain", "image/png"}


def test_the_newest_wish_wins(pipe):
    live = small(pipe)
    shown = []
    plain = live._show
    live._show = lambda table, wish: (shown.append(wish.seed), plain(table, wish))

    async def hand():
        for seed in range(1, 9):
            live.seed.value = seed
            await asyncio.sleep(0)
        assert live.busy.value
        await live._latest._task

    asyncio.run(hand())
    assert shown[-1] == 8 and len(set(shown)) <= 4 and live._shown.seed == 8 and not live.busy.value


@pytest.mark.parametrize("how, words", [
    (dict(scales=()), "^scales="), (dict(scales=[-1.0]), "^scales=-1"), (dict(temperatures=["hot"]), "^temperatures="),
    (dict(seed=-1), "^seed="), (dict(side=3), "^side="), (dict(colour=1), "^setting='colour'")])
def test_what_means_nothing_is_refused_by_name(pipe, how, words):
    with pytest.raises(BadInput, match=words): small(pipe, **how)


@pytest.mark.parametrize("eight", [dict(layers="int8"), dict(cache="fp8")])
def test_a_table_in_eight_bits_is_that_of_samples_in_eight_bits(pipe, eight):
    table = last(sweep(pipe, "heart", (2.0,), (1.0,), seed=1, steps=4, **eight))
    alone = pipe("heart", seed=1, guidance=2.0, steps=4, **eight)
    assert (table.pictures[0, 0] == alone[0]).all()
    assert not (alone == pipe("heart", seed=1, guidance=2.0, steps=4)).all()
