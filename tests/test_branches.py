"""Forcing a code: the same run up to that step, the same noise after it. Against two constructions of their own.

One is the plain sampler whose draws answer otherwise at one address; the other a loop by hand, without the sampler.
"""
import asyncio

import numpy as np
import pytest
import torch

from vgnb.core import BadInput
from vgnb.draws import At, Keyed
from vgnb.figures import PALETTE, rgb
from vgnb.generators.adaptive_orders import Confidence
from vgnb.generators.generator import Clock
from vgnb.generators.orders import Redrawn
from vgnb.pipeline import from_pretrained
from vgnb.sampling.branches import Branching
from vgnb.sampling.guidance import CFG
from vgnb.sampling.sampler import Sampler
from vgnb.shipped import shipped
from vgnb.views.branch import LiveBranches, Plot, candidate_list, token_map

SHORT = dict(schedule="even", steps=8)     # as few steps as the lessons need


@pytest.fixture(scope="module")
def pipes():
    found = {}

    def pipe(name):
        if name not in found: found[name] = from_pretrained(name)
        return found[name]

    return pipe


def tree_of(pipe, label="heart", seed=0, id=0, given=None, **settings) -> Branching:
    sampler = pipe.sampler(min_rows=1, **settings)
    return Branching(sampler, pipe.condition(label), Keyed(seed), grid=pipe.grid, id=id, given=given)


class Steered(Keyed):
    "Draws that answer otherwise at some addresses: {(step, level, cell): code}."
    def __init__(self, seed, answers):
        super().__init__(seed)
        self.answers = answers

    def categorical(self, name, at, logits):
        tokens = super().categorical(name, at, logits)
        for (step, level, cell), code in self.answers.items():
            if (at.step, at.level) == (step, level): tokens[at.positions == cell] = code
        return tokens


def steered(pipe, label, seed, answers, id=0, **settings):
    "The plain sampler's codes (n, L)."
    ids = torch.tensor([id])
    sampler = pipe.sampler(min_rows=1, **settings)
    return sampler.sample(pipe.condition(label), ids, Steered(seed, answers), grid=pipe.grid)[0]


def likely(tree, cell, level=0):
    "Another code than the one that stands there."
    seen = tree.candidates(cell, level)
    return next(code for code in seen.ranked(4) if code != seen.code)


def two_forced(tree, level=0):
    "Force a code early in the run and another late; what was forced, as addresses."
    path = tree.now.when.argsort(stable=True).tolist()
    answers = {}
    for place in (len(path) // 5, 3 * len(path) // 4):
        cell = path[place]
        step = int(tree.now.when[cell])
        code = likely(tree, cell, level)
        tree.branch(cell, code, level)
        answers[step, level, cell] = code
    return answers


def agrees(pipe, level=0, seed=3, id=0, **settings):
    tree = tree_of(pipe, 2, seed, id, **settings)
    first = tree.now
    assert torch.equal(first.codes, steered(pipe, 2, seed, {}, id, **settings))
    answers = two_forced(tree, level)
    assert torch.equal(tree.now.codes, steered(pipe, 2, seed, answers, id, **settings))
    step, _, cell = min(answers)
    untouched = (first.when <= step) & (torch.arange(len(first.when)) != cell)
    assert not tree.now.differs(first)[untouched].any() and tree.now.codes[cell, level] != first.codes[cell, level]


def test_a_forced_run_is_the_plain_sampler_with_other_draws(pipes):
    agrees(pipes("tiny-randar"), **SHORT)


@pytest.mark.full
def test_either_code_of_a_cell_can_be_forced(pipes):
    agrees(pipes("tiny-iar2"), level=1, id=5)


@pytest.mark.full
@pytest.mark.parametrize("name", shipped())
def test_every_shipped_model_forced_is_the_plain_sampler_with_other_draws(pipes, name):
    agrees(pipes(name), id=7)


@pytest.mark.full
@pytest.mark.parametrize("order", ["raster", "random", "halton", "spiral-in", "hierarchical"])
def test_in_every_kind_of_order(pipes, order):
    agrees(pipes("tiny-pgm"), order=order, schedule="cosine", steps=9)
    agrees(pipes("tiny-maskgit"), order=order, schedule="one-by-one", guidance=CFG(4.0, start=1.0), top_k=40)


def by_hand(pipe, label, seed, order, counts, forced):
    "MaskGIT's loop, guided by 3, without the sampler: (codes (n,), step (n,))."
    g, n = pipe.generator, pipe.grid.n
    cond, ids, draws = pipe.condition(label), torch.tensor([0]), Keyed(seed)
    codes, when = torch.full((n,), -1), torch.full((n,), -1)
    state = g.begin((cond, g.null(cond)), pipe.grid)
    for step, count in enumerate(counts):
        open_cells = (when < 0).nonzero()[:, 0]
        with torch.no_grad(): said = g.predict(state, open_cells[None], live=2, independent=True).logits
        logits = said[1] + 3.0 * (said[0] - said[1])
        done = n - len(open_cells)
        at = At(ids, open_cells[None], done, step)
        tokens = (logits + draws.gumbel("token", at, 256)).argmax(-1)
        sure = logits.softmax(-1).gather(-1, tokens[..., None])[..., 0]
        clock = Clock(step, len(counts), done, n, count=count)
        best = order.score(sure, clock, draws, at)[0].argsort(descending=True, stable=True)[:count].sort().values
        cells, tokens = open_cells[best], tokens[0, best]
        for cell, code in forced.items(): tokens[cells == cell] = code
        codes[cells], when[cells] = tokens, step
        g.accept(state, cells[None], tokens[None, :, None])
    return codes, when


@pytest.mark.parametrize("order", [Confidence(), Confidence(noise=3.0, warmup=1)])
def test_an_order_that_looks_follows_the_forced_code(pipes, order):
    pipe = pipes("tiny-maskgit")
    tree = tree_of(pipe, 5, 1, order=order, schedule="arccos", steps=6, guidance=3.0)
    first = tree.now
    counts = torch.bincount(first.when, minlength=first.steps).tolist()
    codes, when = by_hand(pipe, 5, 1, order, counts, {})
    assert torch.equal(first.codes[:, 0], codes) and torch.equal(first.when, when)
    cell = int((first.when == 2).nonzero()[0, 0])
    absurd = int(tree.candidates(cell).mixed.argmin())
    run = tree.branch(cell, absurd)
    codes, when = by_hand(pipe, 5, 1, order, counts, {cell: absurd})
    assert torch.equal(run.codes[:, 0], codes) and torch.equal(run.when, when)
    assert run.when[cell] == 2 and run.confidence[cell] < 1e-4 and not torch.equal(run.when, first.when)


def test_candidates_are_what_the_loop_saw(pipes):
    "The four stages against the sampler's own logits, and the noise against the code it chose."
    pipe = pipes("tiny-randar")
    how = dict(top_k=9, temperature=0.8, **SHORT)
    tree = tree_of(pipe, "star", 2, **how)
    steps = list(pipe.stream("star", seed=2, min_rows=1, keep=("logits",), **how))
    for step in steps[::3]:
        for column, cell in list(enumerate(step.positions[0].tolist()))[::5]:
            seen = tree.candidates(cell)
            assert torch.equal(seen.mixed, step.kept["logits"][0][0, column])
            assert seen.step == step.clock.step and seen.code == seen.drawn == int(step.tokens[0, column, 0])
            assert int((seen.left + seen.noise).argmax()) == seen.drawn and int((~seen.cut).sum()) == 9
            sure = seen.kept[seen.code]
            torch.testing.assert_close(sure, step.confidence[0, column], rtol=1e-5, atol=1e-7)
            mixed = seen.said[1] + 3.0 * (seen.said[0] - seen.said[1])
            torch.testing.assert_close(mixed, seen.mixed, rtol=1e-5, atol=1e-5)
    assert seen.unconditional.sum() == pytest.approx(1, abs=1e-5) and len(seen.ranked(5)) == 5
    cold = tree_of(pipe, "star", 2, temperature=0.0, guidance=1.0, **SHORT).candidates(3)
    assert cold.noise is None and cold.unconditional is None and cold.drawn == int(cold.mixed.argmax())
    assert "without guidance" in repr(cold)


def test_undo_redo_and_what_stays_forced(pipes):
    tree = tree_of(pipes("tiny-randar"), "ring", 4, order="raster", **SHORT)
    first = tree.now
    a, b = (tree.branch(cell, likely(tree, cell)) for cell in (50, 30))
    assert [f.cell for f in a.forced] == [50] and [f.cell for f in b.forced] == [30] and b.parent is a
    both = tree.branch(50, likely(tree, 50))
    assert [f.cell for f in both.forced] == [30, 50]
    assert [tree.undo(), tree.undo(), tree.undo(), tree.redo()] == [b, a, first, a]
    said = "forced: the noise chose" in repr(tree.candidates(50))
    assert said and tree.branch(50, tree.candidates(50).drawn) is first
    with pytest.raises(BadInput, match="^redo="): tree.redo()
    assert [run for run in tree.all.values() if run.said is None] == []
    for code in range(4): tree.branch(20, (int(first.codes[20, 0]) + code + 1) % 256)
    assert sum(run.said is None for run in tree.all.values()) == len(tree.all) - 4
    tree.go(first)
    assert torch.equal(tree.now.codes, first.codes) and tree.candidates(10).code == int(first.codes[10, 0])


def test_what_is_given_stays_and_is_nobodys_choice(pipes):
    pipe = pipes("tiny-randar")
    known = torch.zeros(1, 64, dtype=torch.bool)
    known[:, :32] = True
    given = (pipe.codes("star", seed=9), known)
    tree = tree_of(pipe, "heart", given=given, **SHORT)
    run = tree.branch(40, likely(tree, 40))
    assert torch.equal(run.codes[:32], given[0][0, :32]) and not run.confidence[:32].isfinite().any()
    with pytest.raises(BadInput, match="^cell=5: was given"): tree.branch(5, 0)
    everything = (given[0], torch.ones_like(known))
    with pytest.raises(BadInput, match="^given known="): tree_of(pipe, "heart", given=everything)


@pytest.mark.parametrize("how, words", [
    (dict(cell=64, code=0), "^cell=64"), (dict(cell=(0, 8), code=0), r"^cell=\(0, 8\)"),
    (dict(cell="3", code=0), "^cell="), (dict(cell=0, code=256), "^code=256"), (dict(cell=0, code=-1), "^code=-1"),
    (dict(cell=0, code=0, level=1), "^level=1")])
def test_what_cannot_be_forced_is_refused_by_name(pipes, how, words):
    tree = tree_of(pipes("tiny-randar"), schedule="even", steps=1)
    with pytest.raises(BadInput, match=words): tree.branch(**how)
    assert len(tree.all) == 1


def test_what_has_no_tree_is_refused_by_name(pipes):
    pipe = pipes("tiny-maskgit")
    with pytest.raises(BadInput, match="^order=.*again in every step"): tree_of(pipe, order=Redrawn())
    with pytest.raises(BadInput, match="^cond=2"): tree_of(pipe, ["heart", "star"])
    with pytest.raises(BadInput, match="^branch="): tree_of(pipe, **SHORT).go(tree_of(pipe, "star", **SHORT).now)

    class Own:
        def ramps(self): return ()

    sampler = Sampler(pipe.generator, picks=(Own(),))
    with pytest.raises(BadInput, match="^picks='Own'"): Branching(sampler, pipe.condition(0), Keyed(0), grid=pipe.grid)

# ---- under the hand

def small(pipe, label="heart", **how) -> LiveBranches:
    return pipe.branch(label, side=128, count=4, **how if "schedule" in how else SHORT | how)


def other_row(live) -> int:
    "A row whose code doesn't stand there."
    return next(k for k, code in enumerate(live._codes) if code != live.tree.codes[0, live.cell, live.level.value])


def test_a_touched_cell_and_a_chosen_candidate(pipes):
    pipe = pipes("tiny-randar")
    live = small(pipe, seed=1)
    first, pictures = live.tree.now, live.picture.value
    assert (live.pictures.of(first) == pipe("heart", seed=1, **SHORT)[0]).all()
    early = int(first.when.argmin())
    live.on_picture[early].click()
    assert live.cell == early and [s.value for s in live.place] == list(live.tree.place_of(early))
    row = other_row(live)
    code = live._codes[row]
    assert live.rows[row].tooltip == f"force code {code}" and live.undo.disabled and live.redo.disabled
    live.rows[row].click()
    now = live.tree.now
    assert [(f.cell, f.code) for f in now.forced] == [(early, code)] and not live.undo.disabled
    assert f"forced: the noise chose {first.codes[early, 0]}" in live.text.value and "cells differ" in live.text.value
    assert (live.pictures.of(now) == pipe.decode(now.codes[None], seed=1)[0]).all() and live.picture.value != pictures
    live.undo.click()
    assert live.tree.now is first and live.undo.disabled and not live.redo.disabled
    live.run.value = now.forced
    assert live.tree.now is now
    live.force(256)
    assert "⚠ code=256" in live.text.value and live.tree.now is now
    shown = live._repr_mimebundle_()
    assert set(shown) == {"text/plain", "image/png"}


def test_the_newest_click_wins_and_undo_gives_up_what_is_drawn(pipes):
    live = small(pipes("tiny-randar"))
    first = live.tree.now
    live.look(int(first.when.argmin()))
    codes = [code for code in live._codes if code != first.codes[live.cell, 0]]

    async def hand():
        for code in codes:
            live.force(code)
            await asyncio.sleep(0)
        assert live.busy.value
        await live._grower._task
        await live._drawer._task
        assert len(live.tree.all) == 2 and live.tree.now.codes[live.cell, 0] == codes[-1] and not live.busy.value
        live.force(codes[0])
        await asyncio.sleep(0)
        live.undo.click()
        await live._grower._task
        await live._drawer._task

    asyncio.run(hand())
    assert len(live.tree.all) == 2 and live.tree.now is first and not live.redo.disabled


@pytest.mark.full
def test_two_codes_a_cell_have_two_lists(pipes):
    live = small(pipes("tiny-iar2"), schedule="one-by-one")
    live.look(10)
    semantic, words = live._codes, live.text.value
    live.level.value = 1
    assert "semantic code" in words and "detail code" in live.text.value and live._codes != semantic
    live.rows[other_row(live)].click()
    assert [(f.cell, f.level) for f in live.tree.now.forced] == [(10, 1)]


def test_what_was_cut_is_grey(pipes):
    tree = tree_of(pipes("tiny-randar"), top_k=2, **SHORT)
    seen = tree.candidates(0)
    codes = seen.ranked(4)
    thumbs = [np.zeros((8, 8, 3), np.uint8)] * 4
    rows = np.asarray(candidate_list(seen, codes, thumbs))[34:].reshape(4, 46, -1, 3)
    blue = (rows == rgb(PALETTE[0])).all(-1).any((1, 2))
    assert blue.tolist() == (~seen.cut[codes]).tolist() and 0 < blue.sum() < 4


def test_pictures_with_frames(pipes):
    tree = tree_of(pipes("tiny-randar"), **SHORT)
    first, plot = tree.now, Plot((8, 8), 128)
    cell = int(first.when.argmin())
    run = tree.branch(cell, likely(tree, cell))
    plain, dotted = token_map(run, plot, 0), token_map(run, plot, 0, first)
    moved = (np.asarray(plain) != np.asarray(dotted)).any(-1).reshape(8, 16, 8, 16).any((1, 3)).ravel()
    assert (torch.from_numpy(moved) == run.differs(first))[[k for k in range(64) if k not in (0, cell)]].all()
    orange = (np.asarray(plain) == rgb(PALETTE[1])).all(-1).reshape(8, 16, 8, 16).any((1, 3)).ravel()
    assert orange.nonzero()[0].tolist() == [cell]
    assert Plot((3, 5), 100).cut(np.zeros((30, 50, 3), np.uint8), 14).shape == (20, 20, 3)


def test_a_given_cell_has_no_candidates_to_show(pipes):
    pipe = pipes("tiny-randar")
    known = torch.zeros(1, 64, dtype=torch.bool)
    known[:, :8] = True
    live = small(pipe, given=(pipe.codes("star", seed=9), known))
    live.look(3)
    assert "was given" in live.text.value and all(row.disabled for row in live.rows)
    live.rows[0].click()
    assert len(live.tree.all) == 1


def test_a_candidate_belongs_to_the_list_on_show(pipes):
    "A cell is clicked, and a row before its list is there: the row's code goes into the cell whose list it stands in."
    live = small(pipes("tiny-randar"))
    old, row = live.cell, other_row(live)
    code = live._codes[row]

    async def hand():
        live.on_tokens[0 if old else 1].click()
        live.rows[row].click()
        await live._grower._task
        await live._drawer._task
        stale = other_row(live)
        live.undo.click()
        live.rows[stale].click()
        await live._drawer._task

    asyncio.run(hand())
    assert [[(f.cell, f.code) for f in run] for run in live.tree.all] == [[], [(old, code)]]
    assert live.tree.now.forced == () and not live.redo.disabled
