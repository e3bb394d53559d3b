"The random-order transformer where a page has no room: any groupings, resting branches, captions, precisions, memory."
import copy
import math
from dataclasses import dataclass, replace

import pytest
import torch

from vgnb.core import BadInput, Mismatch
from vgnb.draws import At, Keyed
from vgnb.generators.adaptive_orders import Confidence, Uncertainty
from vgnb.generators.generator import Cond, Grid, Plan
from vgnb.generators.orders import ORDERS, Given, Random, Raster, check_permutation, coarse_cells
from vgnb.generators.random_order import RandomOrderConfig, RandomOrderTransformer, randar_config, randar_names
from vgnb.generators.schedules import SCHEDULES, check_counts, even, randar
from vgnb.sampling.extrapolation import Extrapolate
from vgnb.sampling.guidance import CFG, Guided, SpatialGuidance
from vgnb.sampling.painting import Request
from vgnb.sampling.pick import Pick
from vgnb.sampling.sampler import Sampler

# weights large enough for codes to matter
SMALL = RandomOrderConfig(2, 48, 4, ffn_multiple=16, vocab=32, grid=(3, 4), classes=5, std=0.2)
TEXT = replace(SMALL, condition="text", text_dim=10, text_tokens=5)
KINDS = {
    "class": SMALL,
    "grouped": replace(SMALL, kv_heads=1),
    "everywhere": replace(SMALL, class_everywhere=True),
    "text": TEXT}
GRID = Grid((3, 4))
N = GRID.n


def build(config, seed=0):
    "A model whose head is not zero."
    m = RandomOrderTransformer(config, seed).eval()
    m.head.weight.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(seed))
    return m


def case(config, b=3, n=N, seed=0):
    "Codes (b, n, 1), a condition (of the captions, two are padded), and an order (b, n) for each sample."
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(config.vocab, (b, n, 1), generator=g)
    order = torch.rand(b, n, generator=g).argsort(1)
    if config.condition == "class": return codes, Cond(torch.randint(config.classes, (b,), generator=g)), order
    mask = torch.arange(5) >= torch.tensor([0, 2, 4])[:b, None]
    return codes, Cond(text=torch.randn(b, 5, 10, generator=g), mask=mask), order


def at(codes, cells):
    "The codes (b, k, 1) of cells (b, k)."
    return codes.gather(1, cells[..., None])


def ones(order): return Plan(order, [1] * order.shape[1])


def grouping(n, g):
    "Random sizes that add up to n."
    sizes = []
    while sum(sizes) < n: sizes.append(min(int(torch.randint(1, 5, (), generator=g)), n - sum(sizes)))
    return sizes


def close(a, b, tolerance=1e-5): torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@torch.no_grad()
def reference(m, codes, cond, order, done, asked, grid=GRID):
    "Logits (b, k, V) of cells (b, k) asked for behind `done` known ones, without memory: condition, q, x, ..., q, q."
    prefix, pairs, rotary = m.sequence(codes[..., 0], cond, grid, order)
    p, k = m.prefix_places, asked.shape[1]
    assert torch.equal(asked, order[:, done:done + k])
    x = torch.cat((prefix, pairs[:, :2 * done], pairs[:, 2 * done::2][:, :k]), 1)
    turned = torch.cat((rotary[:, :p + 2 * done], rotary[:, p + 2 * done::2][:, :k]), 1)

    mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()[None]
    if cond.mask is not None:
        seen = torch.cat((cond.mask, torch.ones(len(x), x.shape[1] - p, dtype=torch.bool)), 1)
        mask = mask & seen[:, None] | torch.eye(x.shape[1], dtype=torch.bool)
    return m.head(m.norm(m.blocks(x, turned, mask[:, None])[:, -k:])).float()


def walk(m, branches, codes, plan, independent=False):
    "Logits (branches, b, n - known, V) of a predict/accept run along a plan, its known cells accepted in bulk."
    state = m.begin(branches, GRID)
    cells = plan.perm[:, :plan.known]
    if plan.known: m.accept(state, cells, at(codes, cells))

    out = []
    for group in plan.groups():
        cells = plan.perm[:, group]
        out.append(m.predict(state, cells, live=len(branches), independent=independent).logits)
        m.accept(state, cells, at(codes, cells))
    assert state.done == N and torch.equal(state.positions, plan.perm)
    return torch.cat(out, 2)


# What the model computes

@pytest.mark.parametrize("kind", KINDS)
def test_cached_equals_uncached_in_any_grouping(kind):
    "Three branches, one blind to some cells, resting at random; known cells in bulk; random groups; one state for all."
    m, state = build(KINDS[kind]), None
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        codes, cond, order = case(KINDS[kind], seed=seed)
        branches = (cond, m.null(cond), replace(m.null(cond), blind=torch.rand(3, N, generator=g) < 0.3))
        state = m.begin(branches, GRID, reuse=state)
        done = int(torch.randint(N, (), generator=g))
        if done: m.accept(state, order[:, :done], at(codes, order[:, :done]))

        for size in grouping(N - done, g):
            cells = order[:, done:done + size]
            live = int(torch.randint(1, 4, (), generator=g))
            found = m.predict(state, cells, live=live).logits
            for branch, logits in zip(branches, found):
                close(logits, reference(m, codes, branch, order, done, cells))
            m.accept(state, cells, at(codes, cells))
            done += size
    assert state.done == N and state.tokens.shape == (3, N, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_a_plan_are_what_predict_gives(kind):
    "In one pass, whatever the groups and however many cells are known; groups of one are the training sequence."
    m, g = build(KINDS[kind]), torch.Generator().manual_seed(0)
    codes, cond, order = case(KINDS[kind])
    branches = (cond, m.null(cond), replace(cond, blind=torch.rand(3, N, generator=g) < 0.3))
    training = [m.logits(codes, c, ones(order))[0] for c in branches]
    for known in (0, 1, 5):
        for sizes in ([1] * (N - known), [N - known], grouping(N - known, g)):
            plan = Plan(order, sizes)
            with torch.no_grad(): forced = torch.stack([m.logits(codes, c, plan)[0] for c in branches])
            close(forced[:, :, known:], walk(m, branches, codes, plan))
            assert forced.shape == (3, 3, N, 32)

            first = [*range(known), *(group.start for group in plan.groups())]
            close(forced[:, :, first], torch.stack(training)[:, :, first])
            if max(sizes) == 1: assert torch.equal(forced, torch.stack(training))


def test_known_cells_do_not_matter_one_by_one():
    "However many cells a plan calls known: groups of one are groups of one."
    m, (codes, cond, order) = build(SMALL), case(SMALL)
    full, = m.logits(codes, cond, ones(order))
    assert torch.equal(m.logits(codes, cond, Plan(order, [1] * 4))[0], full)
    assert torch.equal(m.logits(codes, cond, Plan(order, []))[0], full)


@pytest.mark.parametrize("kind", KINDS)
def test_padded_equals_unpadded(kind):
    "A column depends on the earlier ones of its group only: asking for more cells does not change the first ones."
    m, (codes, cond, order) = build(KINDS[kind]), case(KINDS[kind])
    assert m.columns == "ordered" and m.most is None
    state = m.begin((cond, m.null(cond)), GRID)
    m.accept(state, order[:, :3], at(codes, order[:, :3]))
    padded = m.predict(state, order[:, 3:], live=2).logits
    for k in range(1, N - 3): close(m.predict(state, order[:, 3:3 + k], live=2).logits, padded[:, :, :k])

    swapped = order[:, [4, 3, *range(5, N)]]                # the other way round the first two see something else
    assert not torch.allclose(m.predict(state, swapped, live=2).logits[:, :, 1], padded[:, :, 0], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_asked_independently(kind):
    "Asked together or alone, in any order: the same logits, after which the memory is as it was."
    m, (codes, cond, order) = build(KINDS[kind]), case(KINDS[kind])
    state = m.begin((cond, m.null(cond)), GRID)
    m.accept(state, order[:, :4], at(codes, order[:, :4]))
    together = m.predict(state, order[:, 4:], live=2, independent=True).logits
    for j in range(4, N):
        alone = m.predict(state, order[:, j:j + 1], live=2).logits[:, :, 0]
        close(together[:, :, j - 4], alone)
    backwards = m.predict(state, order[:, 4:].flip(1), live=2, independent=True).logits
    close(backwards.flip(2), together)

    chosen = order[:, [9, 5]]
    m.predict(state, order[:, 4:], live=2, independent=True)
    m.accept(state, chosen, at(codes, chosen))
    now = torch.cat((order[:, :4], chosen, order[:, [4, 6, 7, 8, 10, 11]]), 1)
    found = m.predict(state, now[:, 6:8], live=1).logits[0]
    close(found, reference(m, codes, cond, now, 6, now[:, 6:8]))


def test_groups_asked_independently_are_known_by_what_came_before():
    "In a whole run, each cell of a group gets the logits of being the first of it."
    m, (codes, cond, order) = build(SMALL), case(SMALL)
    plan = Plan(order, [1, 4, 3, 4])
    found = walk(m, (cond,), codes, plan, independent=True)
    for group in plan.groups():
        for j in range(group.start, group.stop):
            others = [i for i in range(group.start, group.stop) if i != j]
            first = order[:, [*range(group.start), j, *others, *range(group.stop, N)]]
            close(found[0, :, j], m.logits(codes, cond, ones(first))[0][:, group.start])


def test_no_leak():
    "A query sees neither the code of its own cell nor those of its group and of later ones."
    m, (codes, cond, order) = build(SMALL), case(SMALL)
    full, = m.logits(codes, cond, ones(order))
    for j in range(N):
        later = order[:, j:, None]
        spoiled = codes.scatter(1, later, (codes.gather(1, later) + 1) % 32)
        now, = m.logits(spoiled, cond, ones(order))
        assert torch.equal(now[:, :j + 1], full[:, :j + 1])
        assert j == N - 1 or not torch.equal(now[:, j + 1], full[:, j + 1])

    groups = Plan(order, [2, 5, 5])
    full, = m.logits(codes, cond, groups)
    for group in groups.groups():
        later = order[:, group.start:, None]
        spoiled = codes.scatter(1, later, (codes.gather(1, later) + 1) % 32)
        assert torch.equal(m.logits(spoiled, cond, groups)[0][:, :group.stop], full[:, :group.stop])


def test_accepting_other_cells_than_asked():
    "Queries that come to nothing leave no trace, whether one asks twice, asks in parts, or accepts something else."
    m, (codes, cond, order) = build(SMALL), case(SMALL)
    state, cells = m.begin((cond,), GRID), order[:, :3]
    for asked in (order[:, 5:9], order[:, 3:4], cells): m.predict(state, asked, live=1)
    other = order[:, [1, 0, 2]]
    m.accept(state, other, at(codes, other))
    now = torch.cat((other, order[:, 3:]), 1)
    found = m.predict(state, now[:, 3:6], live=1).logits[0]
    close(found, reference(m, codes, cond, now, 3, now[:, 3:6]))


def test_one_forward_a_step_and_head_on_queries_only():
    m, seen = build(SMALL), {"blocks": [], "head": []}
    m.blocks[0].register_forward_pre_hook(lambda _, a: seen["blocks"].append(a[0].shape[1]))
    m.head.register_forward_pre_hook(lambda _, a: seen["head"].append(a[0].shape[1]))
    sampler = Sampler(m, ORDERS["halton"], even, CFG(2.0), steps=4, rows=2)
    sampler.sample(Cond(torch.arange(2)), torch.arange(2), Keyed(0), grid=GRID)
    assert seen["head"] == [3, 3, 3, 3] and seen["blocks"] == [1 + 3, 5 + 3, 5 + 3, 5 + 3]


def addresses(state):
    tensors = (state.cache.keys, state.cache.values, state.prefix, state.visible, state.tokens, state.instructions)
    return [t.data_ptr() for t in tensors]


def test_memory_is_taken_once():
    m, (_, cond, _) = build(KINDS["grouped"]), case(KINDS["grouped"])
    state = m.begin((cond, m.null(cond)), GRID)
    assert state.cache.keys.shape[2] == 1                                   # key-value heads
    assert state.cache.length == 1 + 2 * N - 1                              # the last code is never fed
    before = addresses(state)
    assert m.begin((m.null(cond), cond), GRID, reuse=state) is state and addresses(state) == before
    assert m.begin((cond,), GRID, reuse=state) is not state
    assert m.begin((cond, cond), Grid((4, 4)), reuse=state) is not state

    instructions = state.instructions.clone()
    m.instruction.data.add_(1)
    again = m.begin((cond, cond), GRID, reuse=state)
    assert not torch.equal(again.instructions, instructions)                # new weights are seen by an old memory


def test_larger_grids_use_a_mixed_table():
    "On a grid with a base, cached = uncached too; on the base itself the table is the plain one."
    m, grid = build(SMALL), Grid((5, 7), base=(3, 4), ntk_boundary=1)
    codes, cond, order = case(SMALL, n=35)
    state = m.begin((cond,), grid)
    m.accept(state, order[:, :30], at(codes, order[:, :30]))
    found = m.predict(state, order[:, 30:], live=1).logits[0]
    close(found, reference(m, codes, cond, order, 30, order[:, 30:], grid))
    close(found, m.logits(codes, cond, Plan(order, [5]), grid=grid)[0][:, 30:])

    assert torch.equal(m.table(Grid((3, 4), base=(3, 4), ntk_boundary=1), "cpu"), m.table(GRID, "cpu"))
    assert not torch.equal(m.table(grid, "cpu"), m.table(Grid((5, 7)), "cpu"))


def test_half_precision():
    m, (codes, cond, order) = build(SMALL), case(SMALL)
    half = copy.deepcopy(m).bfloat16()
    exact = reference(m, codes, cond, order, 5, order[:, 5:8])
    for model, auto in ((half, False), (m, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=auto):
            state = model.begin((cond,), GRID)
            model.accept(state, order[:, :5], at(codes, order[:, :5]))
            found = model.predict(state, order[:, 5:8], live=1).logits[0]
        assert found.dtype == torch.float32 and state.cache.keys.dtype == torch.bfloat16
        close(found, exact, 0.1)


# Training

NOISY = replace(SMALL, class_dropout=0.5, token_dropout=0.2, residual_dropout=0.2, ffn_dropout=0.2, drop_path=0.3)
NOISY_TEXT = replace(NOISY, condition="text", text_dim=10, text_tokens=5)


@pytest.mark.parametrize("config", [NOISY, NOISY_TEXT, replace(NOISY, order="raster")], ids=["class", "text", "raster"])
def test_orders_and_masks_belong_to_samples(config):
    m, (codes, cond, _) = build(config).train(), case(config)

    def loss(rows, step=5, seed=3, valid=None):
        where = At(torch.tensor(rows) + 7, step=step)
        return m(codes[rows], cond.rows(rows), Keyed(seed), where, valid=valid).total

    everyone = [0, 1, 2]
    whole = loss(everyone)
    parts = [loss([i]) for i in everyone]
    torch.testing.assert_close(whole, sum(parts) / 3)
    torch.testing.assert_close(loss(everyone, valid=torch.tensor([0, 1, 1])), (parts[1] + parts[2]) / 2)
    assert len({float(v.detach()) for v in (whole, loss(everyone, step=6), loss(everyone, seed=4))}) == 3


def test_training_orders_are_drawn_anew():
    "Every sample and every step has another order; raster training has one."
    codes, cond, _ = case(SMALL)

    def losses(order):
        m = build(replace(SMALL, class_dropout=0, order=order))
        where = [At(torch.tensor([i]), step=step) for step in range(2) for i in range(4)]
        return {float(m(codes[[0]], cond.rows([0]), Keyed(0), a).total.detach()) for a in where}

    assert len(losses("random")) == 8 and len(losses("raster")) == 1


def test_initial_weights_are_a_function_of_the_seed():
    "The instruction, too; setting them again changes nothing."
    one, same, other = (RandomOrderTransformer(TEXT, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["instruction"], other["instruction"])
    again = RandomOrderTransformer(TEXT, 4).init_weights(3).state_dict()
    assert all(torch.equal(one[k], again[k]) for k in one)


@pytest.mark.full
def test_compiled_equals_eager():
    "The loss with every dropout on, and its gradients."
    m, (codes, cond, _) = build(replace(NOISY, layers=1)).train(), case(NOISY)
    compiled = copy.deepcopy(m)
    compiled.compile(backend="aot_eager")
    for model in (m, compiled): model(codes, cond, Keyed(0), At(torch.arange(3), step=2)).total.backward()
    for a, b in zip(m.parameters(), compiled.parameters()):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)


# Sampling

@pytest.mark.parametrize("order", [Random(), ORDERS["hilbert"], Confidence()], ids=["random", "hilbert", "confidence"])
def test_a_sample_is_the_same_in_any_batch(order):
    m, ids = build(SMALL), torch.arange(11)
    sampler = Sampler(m, order, randar, CFG(2.0, start=1.0), (Pick(top_k=20),), steps=5, rows=4)
    whole = sampler.sample(Cond(ids % 5), ids, Keyed(0), grid=GRID)
    for part in ([3], [10, 0, 7], [5, 6]):
        part = torch.tensor(part)
        assert torch.equal(sampler.sample(Cond(part % 5), part, Keyed(0), grid=GRID), whole[part])
    assert len({tuple(c.flatten().tolist()) for c in whole}) == 11


@dataclass(frozen=True)
class Late(Guided):
    "Guidance in the first and the last cells."
    always: bool = False       # run both branches all the time

    def ramp(self): return lambda clock: 1.0 if clock.done < 5 or clock.done > 9 else 3.0

    def live(self, clock): return 2 if self.always else super().live(clock)


def test_resting_branches_change_nothing():
    "Guidance that rests its null branch for a while draws the tokens of a run that never rests."
    m, ids = build(SMALL), torch.arange(4)

    def codes(guidance):
        return Sampler(m, Random(), randar, guidance, steps=8, rows=4).sample(Cond(ids), ids, Keyed(2), grid=GRID)

    assert torch.equal(codes(Late()), codes(Late(always=True)))


def test_guided_captions():
    "By default the null caption is learnt, and guidance moves away from it; with the original's fault it is constant."
    _, cond, _ = case(TEXT)
    m, faulty = build(TEXT), build(replace(TEXT, compat="upstream"))
    assert torch.equal(m.null(cond).text[0], m.condition.null) and torch.equal(m.null(cond).mask, cond.mask)
    assert (faulty.null(cond).text == 5).all()
    assert isinstance(m.condition.null, torch.nn.Parameter)
    assert not isinstance(faulty.condition.null, torch.nn.Parameter)

    def codes(model):
        sampler = Sampler(model, Random(), randar, CFG(3.0), steps=4, rows=3)
        return sampler.sample(cond, torch.arange(3), Keyed(0), grid=GRID)

    assert not torch.equal(codes(m), codes(faulty))


@pytest.mark.parametrize("order", [Random(), Uncertainty(), ORDERS["spiral-out"]], ids=lambda o: type(o).__name__)
def test_known_cells_stay_and_the_others_are_filled(order):
    "Any mask, another for every sample: none known, all known, whole micro-batches known."
    m, ids, g = build(SMALL), torch.arange(9), torch.Generator().manual_seed(0)
    codes = torch.randint(32, (9, N, 1), generator=g)
    known = torch.rand(9, N, generator=g) < torch.linspace(0, 1.2, 9)[:, None]
    known[0:3] = True
    known[4] = False

    sampler = Sampler(m, order, SCHEDULES["cosine"], CFG(2.0), steps=4, rows=3)
    out = sampler.sample(Cond(ids % 5), ids, Keyed(0), grid=GRID, given=(codes, known))
    assert torch.equal(out[known], codes[known]) and (out >= 0).all() and (out < 32).all()
    alone = sampler.sample(Cond(ids[6:] % 5), ids[6:], Keyed(0), grid=GRID, given=(codes[6:], known[6:]))
    assert torch.equal(alone, out[6:])


def test_spatial_guidance_pays_for_what_it_needs():
    m, rows = build(SMALL), []
    m.blocks[0].register_forward_pre_hook(lambda _, a: rows.append(a[0].shape[0]))
    given = (torch.zeros(2, N, 1, dtype=torch.long), torch.arange(N).expand(2, -1) < 6)

    def codes(guidance):
        sampler = Sampler(m, Raster(), even, guidance, (Pick(greedy=True),), steps=3, rows=2)
        return sampler.sample(Cond(torch.arange(2)), torch.arange(2), Keyed(0), grid=GRID, given=given)

    for scale, spatial, branches in ((3.0, 2.0, 3), (3.0, 1.0, 2), (1.0, 1.0, 1)):
        rows.clear()
        codes(SpatialGuidance(scale, spatial=spatial))
        assert rows == [2 * branches] * 3

    plain = codes(CFG(2.0))
    blind_to_nothing, blind_to_all = (SpatialGuidance(2.0, spatial=4.0, ratio=ratio) for ratio in (0.0, 1.0))
    assert torch.equal(codes(blind_to_nothing), plain) and not torch.equal(codes(blind_to_all), plain)


def enlarged(m, ids, shape, guidance=CFG(2.0, start=1.0), steps=None, spatial=(1.0, 1.5)):
    "Codes (b, h*w, 1) on a larger grid; steps=None: one cell a step."
    sampler = Sampler(m, Random(), randar, guidance, steps=steps or math.prod(shape), rows=3)
    what = Extrapolate(shape, spatial, ntk_boundary=1)
    return what.codes(what.paint(Request(sampler, Cond(ids), ids, Keyed(0))))


THRICE = pytest.param((9, 12), marks=pytest.mark.full)


@pytest.mark.parametrize("shape", [(3, 4), (5, 6), (6, 8), THRICE, (3, 11), (7, 4)])
@pytest.mark.parametrize("steps", [None, 5, 1])
def test_extrapolation_decides_every_cell(shape, steps):
    "Factors 1, 1.5, 2, 3 and uneven ones; the coarse cells hold the coarse picture; a sample is itself in any batch."
    m, ids = build(SMALL), torch.arange(5)
    made = enlarged(m, ids, shape, steps=steps)
    assert made.shape == (5, shape[0] * shape[1], 1) and made.min() >= 0 and made.max() < 32
    assert torch.equal(enlarged(m, ids[3:], shape, steps=steps), made[3:])

    coarse = coarse_cells(Grid(shape, base=(3, 4)))
    assert len(set(coarse.tolist())) == N
    other = enlarged(m, ids, shape, steps=steps, spatial=(1.0, 3.0))
    assert torch.equal(made[:, coarse], other[:, coarse])                   # the context guides in the fine pass only
    assert not torch.equal(made, enlarged(m, ids, shape, CFG(), steps, spatial=(1.0, 1.0)))


# Orders and schedules

SHAPES = [(1, 1), (1, 9), (9, 1), (2, 3), (5, 4), (8, 8), (7, 13), (16, 6), (17,)]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_order_fills_every_cell_once(shape):
    grid = Grid(shape)
    known = torch.rand(3, grid.n, generator=torch.Generator().manual_seed(0)) < 0.3
    for name, order in ORDERS.items():
        if name == "hierarchical" and len(shape) == 1: continue
        perm = check_permutation(order.permutation(grid, known, Keyed(0), At(torch.arange(3))), grid.n, name)
        k = int(known.sum(1)[0])
        assert known[0, perm[0, :k]].all() and not known[0, perm[0, k:]].any()


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_fills_every_cell_once(name):
    for n in sorted({Grid(shape).n for shape in SHAPES}):
        for steps in sorted({1, 2, 3, n // 2 or 1, n, n + 5}):
            for start in sorted({0, n // 3, n - 1, n}):
                counts = check_counts(SCHEDULES[name](n, steps, start), n, start)
                want = n - start if name == "one-by-one" else min(steps, n - start)
                assert name == "randar" or len(counts) == want


@pytest.mark.parametrize("order", [Confidence(), Uncertainty(), Confidence(noise=2.0)], ids=["sure", "unsure", "noisy"])
def test_adaptive_orders_in_the_sampler(order):
    "Every cell is decided once, as many a step as the schedule says."
    m, ids = build(SMALL), torch.arange(3)
    sampler = Sampler(m, order, SCHEDULES["cosine"], steps=5, rows=3)
    steps = list(sampler.stream(Cond(ids), ids, Keyed(0), grid=GRID))
    assert [s.positions.shape[1] for s in steps] == SCHEDULES["cosine"](N, 5, 0)
    cells = torch.cat([s.positions for s in steps], 1)
    assert torch.equal(cells.sort(1).values, torch.arange(N).expand(3, -1)) and (steps[-1].codes() >= 0).all()


# What is refused

IDS = torch.arange(2)
CODES = torch.zeros(2, N, 1, dtype=torch.long)


def sample(m, order=Random(), guidance=CFG(), cond=Cond(IDS), grid=GRID, given=None, **settings):
    sampler = Sampler(m, order, randar, guidance, rows=2, **settings)
    return sampler.sample(cond, IDS, Keyed(0), grid=grid, given=given)


REFUSED = [   # (argument, call)
    ("steps", lambda m: sample(m, steps=0)),
    ("steps", lambda m: sample(m, steps=13)),
    ("scale", lambda m: sample(m, guidance=CFG(-2.0))),
    ("start", lambda m: sample(m, guidance=CFG(2.0, start=-1.0))),
    ("order", lambda m: sample(m, Given([0] * N))),
    ("grid", lambda m: sample(m, grid=Grid((12,)))),
    ("grid.ntk_boundary", lambda m: sample(m, grid=Grid((4, 4), base=(3, 4), ntk_boundary=9))),
    ("given known", lambda m: sample(m, given=(CODES, torch.zeros(2, 9, dtype=torch.bool)))),
    ("given codes", lambda m: sample(m, given=(CODES + 32, torch.ones(2, N, dtype=torch.bool)))),
    ("labels", lambda m: sample(m, cond=Cond(torch.tensor([0, 9])))),
    ("plan", lambda m: m.logits(CODES, Cond(IDS), torch.arange(N))),
    ("plan", lambda m: m.logits(CODES, Cond(IDS), Plan(torch.zeros(N, dtype=torch.long), [1] * N))),
    ("plan", lambda m: m.logits(CODES, Cond(IDS), Plan(torch.arange(N).expand(3, -1), [1] * N))),
    ("plan", lambda m: m.logits(CODES, Cond(IDS), Plan(torch.arange(N), [8, 5]))),
    ("plan", lambda m: m.logits(CODES, Cond(IDS), Plan(torch.arange(N), [8, 0]))),
    ("codes", lambda m: m.logits(CODES[..., 0], Cond(IDS))),
    ("order", lambda m: m.features(CODES, Cond(IDS), torch.zeros(N, dtype=torch.long))),
    ("spatial", lambda m: enlarged(m, IDS, (5, 6), spatial=(1.0, -1.0))),
    ("spatial", lambda m: enlarged(m, IDS, (5, 6), spatial=(2.0, 1.0))),
    ("shape", lambda m: enlarged(m, IDS, (2, 9))),
    ("order", lambda m: RandomOrderConfig(order="spiral")),
    ("rope", lambda m: RandomOrderConfig(rope="sequence"))]


@pytest.mark.parametrize("argument, call", REFUSED, ids=[f"{i}-{row[0]}" for i, row in enumerate(REFUSED)])
def test_what_is_refused(argument, call):
    m, ran = build(SMALL), []
    m.blocks[0].register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(BadInput) as e: call(m)
    assert e.value.argument == argument, str(e.value)
    assert not ran


# Published weights

def test_published_names_there_and_back():
    m = build(TEXT)
    theirs = randar_names.export(m.state_dict())
    want = {"pos_instruct_embeddings", "cls_embedding.uncond_embedding", "layers.1.feed_forward.w2.weight"}
    assert want <= set(theirs)
    twin = randar_names.load_into(RandomOrderTransformer(replace(TEXT, compat="upstream"), seed=5), theirs)
    assert all(torch.equal(a, twin.state_dict()[k]) for k, a in m.state_dict().items())
    fewer = {k: v for k, v in theirs.items() if k != "pos_instruct_embeddings"}
    with pytest.raises(Mismatch, match="missing"): randar_names.load_into(m, fewer)


def test_published_arguments():
    spec = {"n_layer": 2, "n_head": 4, "dim": 48, "vocab_size": 32, "block_size": 16, "num_classes": 5}
    c = randar_config(spec | {"position_order": "raster", "num_inference_steps": 88})
    assert (c.layers, c.grid, c.order, c.recompute, c.token_dropout) == (2, (4, 4), "raster", False, 0.1)
