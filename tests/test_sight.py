"""What a mask says, the model does: a code that a query sees moves its logits, one that it doesn't see moves nothing.

Codes are asked of the teacher-forced path, which shares no mask with sampling; queries of sampling itself.
"""
import itertools

import pytest
import torch

from vgnb.core import BadInput, Mismatch
from vgnb.draws import Keyed
from vgnb.generators.generator import Cond, Generator, Grid, Plan
from vgnb.generators.masked import MaskedConfig, MaskedTransformer
from vgnb.generators.partition import PartitionConfig, PartitionTransformer
from vgnb.generators.random_order import RandomOrderTransformer
from vgnb.pipeline import from_pretrained
from vgnb.shipped import shipped
from vgnb.views.sight import (
    APART,
    ASKED,
    OPEN,
    SEEN,
    TOGETHER,
    UNSEEN,
    Column,
    Layout,
    Sight,
    layout,
    mask_picture,
    running_mask,
    sight,
    sight_picture,
    sights,
)

STILL = 1e-5       # kernels may round otherwise in another row of a batch
AT_ONCE = ("tiny-randar", "tiny-iar2", "tiny-pgm", "tiny-rar")       # those in groups are asked in sampling, too
IN_GROUPS = ("tiny-randar", "tiny-lpd", "tiny-arpg", "tiny-maskgit", "tiny-pgm")


@pytest.fixture(scope="module")
def pipes():
    found = {}

    def pipe(name):
        if name not in found: found[name] = from_pretrained(name)
        return found[name]

    return pipe


def seen_run(pipe, **how):
    groups = {} if pipe.sampling.schedule == "one-by-one" else {"schedule": "even", "steps": 5}
    return list(sights(pipe, 3, **(groups | how)))


def forced(pipe, codes, run, at):
    "Teacher-forced logits of all cells in reading order, one (b, n, V) a level, as far as step `at` goes."
    g, cond = pipe.generator, pipe.condition([3] * len(codes))
    n = pipe.grid.n
    known = torch.zeros(n, dtype=torch.bool)
    known[[cell for s in run[:at - 1] for cell in s.decided]] = True
    if isinstance(g, MaskedTransformer): return g.logits(codes, cond, (~known).expand(len(codes), -1))
    if isinstance(g, PartitionTransformer): return g.logits(codes, cond, known)
    if g.plans == "nothing": return g.logits(codes, cond)
    order = [cell for s in run for cell in s.decided]
    logits, = g.logits(codes, cond, Plan(torch.tensor(order), [len(s.decided) for s in run]))
    return (logits[:, torch.tensor(order).argsort()],)


@torch.no_grad()
def moved_by(pipe, run, at):
    "For each query of a step: the cells whose code moves its logits."
    n, sight = pipe.grid.n, run[at - 1]
    codes = pipe.codes(3, min_rows=1).repeat(n + 1, 1, 1)
    vocab = torch.tensor(pipe.generator.vocab)
    for cell in range(n): codes[cell + 1, cell] = (codes[cell + 1, cell] + 1) % vocab
    levels = forced(pipe, codes, run, at)
    many = len(sight.asked) // max(len(sight.names), 1)
    out = []
    for query, cell in enumerate(sight.asked):
        logits = levels[query // many][:, cell]
        far = (logits[1:] - logits[:1]).abs().amax(-1)
        out.append(set((far > STILL).nonzero()[:, 0].tolist()))
    return out


@pytest.mark.parametrize("name", [name if name in AT_ONCE else pytest.param(name, marks=pytest.mark.full)
                                  for name in shipped()])
def test_a_code_moves_exactly_the_queries_that_see_it(pipes, name):
    pipe = pipes(name)
    run = seen_run(pipe)
    at = len(run) // 2 + 1
    seen = [run[at - 1].codes(query) for query in range(len(run[at - 1].asked))]
    assert moved_by(pipe, run, at) == seen
    assert all(10 < len(codes) < 60 for codes in seen)          # there was something to see, and something to miss


@torch.no_grad()
def answers(pipe, run, at, asked):
    "Logits (k, V) of sampling itself in step `at`, with other cells asked for."
    g, ids = pipe.generator, pipe.codes(3, min_rows=1)
    state = g.begin((pipe.condition(3),), pipe.grid)
    for s in run[:at - 1]:
        cells = torch.tensor([s.decided])
        g.predict(state, cells, live=1)
        g.accept(state, cells, ids[:, cells[0]])
    return g.predict(state, torch.tensor([asked]), live=1).logits[0, 0]


@pytest.mark.parametrize("name", IN_GROUPS)
def test_queries_see_each_other_as_the_mask_says(pipes, name):
    pipe = pipes(name)
    run = seen_run(pipe)
    sight, asked = run[2], list(run[2].asked)
    spare = run[3].asked[0]
    plain = answers(pipe, run, 3, asked)
    for other in (0, len(asked) - 1):
        swapped = answers(pipe, run, 3, [spare if k == other else cell for k, cell in enumerate(asked)])
        moves = ((swapped - plain).abs().amax(-1) > STILL).tolist()
        for query in range(len(asked)):
            if query == other: continue
            queries = [k for k, c in enumerate(sight.columns) if c == Column("query", asked[other])]
            sees = any(sight.mask[query, k] for k in queries)
            assert moves[query] == sees, (query, other)
    kinds = {"tiny-randar": {TOGETHER, APART}, "tiny-lpd": {TOGETHER}, "tiny-maskgit": {TOGETHER}}.get(name, {APART})
    among = {int(sight.cells(query)[cell]) for query in range(len(asked)) for cell in asked}
    assert among == kinds | {ASKED}


@pytest.mark.parametrize("name, group", [("tiny-randar", lambda i, j: j < i), ("tiny-lpd", lambda i, j: True),
                                         ("tiny-arpg", lambda i, j: False), ("tiny-rar", lambda i, j: False)])
def test_the_running_mask_is_the_papers_picture(pipes, name, group):
    run = seen_run(pipes(name))
    sizes = [len(s.decided) for s in run]
    of = [k for k, size in enumerate(sizes) for _ in range(size)]
    states = running_mask(run)
    for i in range(0, 64, 3):
        for j in range(64):
            want = SEEN if of[j] < of[i] else OPEN if of[j] > of[i] else ASKED if i == j else \
                TOGETHER if group(i, j) else APART
            assert states[i, j] == want, (i, j)
    assert (running_mask(run, 1)[sizes[0]:] == OPEN).all()


def test_independent_queries_and_known_cells(pipes):
    "RandAR asked by an order that looks: no query sees another. Given cells are seen from the first step on."
    pipe = pipes("tiny-randar")
    known = torch.zeros(1, 64, dtype=torch.bool)
    known[:, :40] = True
    run = list(sights(pipe, 3, given=(pipe.codes(3), known), order="confidence", schedule="even", steps=3))
    assert run[0].codes(5) == set(range(40)) and len(run[0].asked) == 24 and len(run[0].decided) == 8
    queries = [k for k, c in enumerate(run[1].columns) if c.kind == "query"]
    assert (run[1].mask[:, queries] == torch.eye(16, dtype=torch.bool).numpy()).all()
    assert running_mask(run).shape == (24, 64)


def test_rows_at_once_hide_what_is_ahead(pipes):
    "In a raster model a known code may come later in reading order than the cell that is asked for."
    pipe = pipes("tiny-vqkd")
    run = list(sights(pipe, 3, order="zipar"))
    for at in (10, 15):
        known = {c.cell for c in run[at - 1].columns if c.kind == "code"}
        for query, cell in enumerate(run[at - 1].asked):
            assert run[at - 1].codes(query) == {c for c in known if c < cell}
            assert (run[at - 1].cells(query)[[c for c in known if c > cell]] == UNSEEN).all()
        assert max(known) > min(run[at - 1].asked)
        sampled_moves(pipe.sampler(order="zipar").generator, pipe, run, at)


@torch.no_grad()
def sampled_moves(generator, pipe, run, at):
    "In sampling itself: another code at a cell moves exactly the queries that see it."
    n, sight = pipe.grid.n, run[at - 1]
    codes = pipe.codes(3, min_rows=1).repeat(n + 1, 1, 1)
    for cell in range(n): codes[cell + 1, cell] = (codes[cell + 1, cell] + 1) % torch.tensor(pipe.generator.vocab)
    state = generator.begin((pipe.condition([3] * (n + 1)),), pipe.grid)
    def cells_of(cells): return torch.tensor([cells]).expand(n + 1, -1)
    for s in run[:at - 1]:
        generator.predict(state, cells_of(s.decided), live=1)
        generator.accept(state, cells_of(s.decided), codes[:, list(s.decided)])
    logits = generator.predict(state, cells_of(sight.asked), live=1).logits[0]
    far = (logits[1:] - logits[:1]).abs().amax(-1) > STILL                 # (changed cell, query)
    found = [set(far[:, query].nonzero()[:, 0].tolist()) for query in range(len(sight.asked))]
    assert found == [sight.codes(query) for query in range(len(sight.asked))]


@pytest.mark.parametrize("name", IN_GROUPS)
def test_a_code_moves_the_queries_of_sampling_too(pipes, name):
    pipe = pipes(name)
    sampled_moves(pipe.generator, pipe, seen_run(pipe), 3)


def test_a_second_code_sees_the_first(pipes):
    run = list(itertools.islice(sights(pipes("tiny-iar2"), 3), 11))
    assert run[10].codes(0) == set(range(10)) and run[10].codes(1) == set(range(11))
    assert run[10].names == ("semantic", "detail")


def test_registers_and_guidance_that_rests():
    "Families with registers and without; a branch that rests catches up without changing what the first one is shown."
    partition = PartitionTransformer(PartitionConfig(1, 1, 32, 2, vocab=16, grid=(4, 4), classes=3, registers=4))
    masked = MaskedTransformer(MaskedConfig(layers=1, dim=32, heads=2, vocab=16, grid=(4, 4), classes=3, registers=2))
    cells, cond = torch.arange(16)[None], Cond(torch.zeros(1, dtype=torch.long))
    for g, registers in ((partition.eval(), 3), (masked.eval(), 2)):
        state = g.begin((cond,), Grid((4, 4)))
        g.accept(state, cells[:, :5], cells[:, :5, None])
        columns, call = layout(g, state, [7, 9])
        assert [c.kind for c in columns].count("register") == registers and call == -1
        assert [c.cell for c in columns if c.kind == "code"] == list(range(5))
    coarse = MaskedTransformer(MaskedConfig(layers=1, dim=32, heads=2, vocab=16, grid=(4, 4), classes=3, patch=2))
    with pytest.raises(BadInput, match="^patch="): layout(coarse, coarse.begin((cond,), Grid((4, 4))), [0])


def test_what_says_nothing_or_the_wrong_thing_is_refused(pipes):
    with pytest.raises(BadInput, match="^generator='Generator'.*layout.register"): layout(Generator(), None, [])

    class Longer(RandomOrderTransformer):
        "One column too many."

    @layout.register
    def _(generator:Longer, state, asked): return Layout([Column("class")] * 3)

    pipe = from_pretrained("tiny-randar")
    pipe.generator.__class__ = Longer
    with pytest.raises(Mismatch, match="^layout=3"): next(sights(pipe, 3))
    assert "predict" not in vars(pipe.generator)                    # nobody listens any more


def test_the_pictures_and_their_errors(pipes):
    run = seen_run(pipes("tiny-randar"))
    assert isinstance(run[0], Sight) and sight_picture(run, 1).width > 400
    with pytest.raises(BadInput, match="^at="): sight_picture(run, 6)
    with pytest.raises(BadInput, match="^query="): sight_picture(run, 1, 64)
    with pytest.raises(BadInput, match="^run="): sight_picture([])
    assert mask_picture(run[2]).height > mask_picture(run[0]).height - 200


def test_under_the_hand(pipes):
    live = sight({name: pipes(name) for name in ("tiny-randar", "tiny-rar")}, 3, steps=4)
    first, words = live.image.value, live.text.value
    live.step.value = 4
    live.query.value = live.query.max
    assert live.image.value != first and live.text.value != words
    assert f"query {len(live.run[3].asked)} of" in live.text.value
    live.step.value = 1
    assert live.query.value <= len(live.run[0].asked)
    live.model.value = "tiny-rar"
    assert len(live.run) == 64 and live.steps.disabled and live.step.max == 64
    live.model.value = "tiny-randar"
    live.schedule.value = "one-by-one"
    assert len(live.run) == 64 and live.query.max == 1
    live.order.value = next(value for name, value in live.order.options if name == "halton")
    assert live.run[0].decided == live.run[0].asked
    assert set(live._repr_mimebundle_()) == {"text/plain", "image/png"}


@pytest.mark.parametrize("how, words", [(dict(order="haltom"), "^order="), (dict(seed=-1), "^seed="),
                                        (dict(side=8), "^side="), (dict(colour=1), "colour")])
def test_what_cannot_be_seen_is_said(pipes, how, words):
    if "colour" in how:
        assert words in sight(pipes("tiny-randar"), 3, **how).text.value
        return
    with pytest.raises(BadInput, match=words): sight(pipes("tiny-randar"), 3, **how)


def test_listening_changes_no_token(pipes):
    pipe = pipes("tiny-pgm")
    plain = [s.tokens for s in pipe.stream(3, seed=5, min_rows=1, steps=4)]
    for _ in sights(pipe, 3, seed=5, steps=4): pass
    again = pipe.sampler(min_rows=1, steps=4).stream(pipe.condition(3), torch.tensor([0]), Keyed(5), grid=pipe.grid)
    assert all(torch.equal(a, b.tokens) for a, b in zip(plain, again))
