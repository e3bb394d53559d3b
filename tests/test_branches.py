"""Forcing a code: the same run up to that step, the same noise after it. Against two constructions of their own.

One is the plain sampler whose draws answer otherwise at one address; the other a loop by hand, without the sampler.
"""
import pytest
import torch

from vgnb.core import BadInput
from vgnb.draws import At, Keyed
from vgnb.generators.adaptive_orders import Confidence
from vgnb.generators.generator import Clock
from vgnb.generators.orders import Redrawn
from vgnb.pipeline import from_pretrained
from vgnb.sampling.branches import Branching
from vgnb.sampling.guidance import CFG
from vgnb.sampling.sampler import Sampler
from vgnb.shipped import shipped

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
        for column, cell in list(enumerate(step.positions[0].tolist()))[::3]:
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
