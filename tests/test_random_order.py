"The random-order transformer where a page has no room: random groupings, resting branches, captions, precisions, memory; orders and schedules on every grid."
import copy
from dataclasses import replace

import pytest
import torch

from vgnb.core import BadInput, Mismatch
from vgnb.draws import At, Keyed
from vgnb.generators.adaptive_orders import Confidence, Uncertainty
from vgnb.generators.generator import Cond, Grid
from vgnb.generators.orders import ORDERS, Given, Raster, check_permutation, coarse_cells
from vgnb.generators.random_order import RandomOrderConfig, RandomOrderTransformer, randar_config, randar_names
from vgnb.generators.schedules import SCHEDULES, check_counts, even, randar
from vgnb.sampling.extrapolation import Extrapolation, extrapolate
from vgnb.sampling.guidance import CFG, SpatialGuidance, linear
from vgnb.sampling.pick import Pick
from vgnb.sampling.sampler import Sampler
from vgnb.sampling.settings import Sampling

SMALL = RandomOrderConfig(2, 48, 4, ffn_multiple=16, vocab=32, grid=(3, 4), classes=5, std=0.2)     # weights large enough for codes to matter
KINDS = {"class": SMALL, "grouped": replace(SMALL, kv_heads=1), "everywhere": replace(SMALL, class_everywhere=True),
         "text": replace(SMALL, condition="text", text_dim=10, text_tokens=5)}
N, GRID = 12, Grid((3, 4))


def build(config, seed=0):
    m = RandomOrderTransformer(config, seed).eval()
    m.head.weight.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(seed))
    return m


def case(config, b=3, n=N, seed=0):
    "Codes, a condition (of the captions, two are padded), and an order for each sample."
    g = torch.Generator().manual_seed(seed)
    codes, order = torch.randint(config.vocab, (b, n), generator=g), torch.rand(b, n, generator=g).argsort(1)
    if config.condition == "class": return codes, Cond(torch.randint(config.classes, (b,), generator=g)), order
    return codes, Cond(text=torch.randn(b, 5, 10, generator=g), mask=torch.arange(5) >= torch.tensor([0, 2, 4])[:b, None]), order


def grouping(n, g):
    "Random sizes that add up to n."
    sizes = []
    while sum(sizes) < n: sizes.append(min(int(torch.randint(1, 5, (), generator=g)), n - sum(sizes)))
    return sizes


@torch.no_grad()
def reference(m, codes, cond, order, done, asked, grid=GRID):
    "Logits (b, m, V) of the cells asked for behind `done` known ones, without any memory: [condition, q, x, ..., q, x, q, q, ...] and a plain triangle."
    prefix, pairs, rotary = m._sequence(codes, cond, grid, order)
    p, k = m.prefix, asked.shape[1]
    questions = pairs[:, 2 * done::2][:, :k]
    x, turned = torch.cat((prefix, pairs[:, :2 * done], questions), 1), torch.cat((rotary[:, :p + 2 * done], rotary[:, p + 2 * done::2][:, :k]), 1)
    mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()[None]
    if cond.mask is not None:
        seen = torch.cat((cond.mask, torch.ones(len(x), x.shape[1] - p, dtype=torch.bool)), 1)
        mask = mask & seen[:, None] | torch.eye(x.shape[1], dtype=torch.bool)
    return m.head(m.norm(m.blocks(x, turned, mask[:, None])[:, -k:])).float()


@pytest.mark.parametrize("kind", KINDS)
def test_cached_equals_uncached_in_any_grouping(kind):
    "Three branches, one blind to some cells, each resting at random; known cells in bulk; groups of random sizes; the state used again."
    m, state = build(KINDS[kind]), None
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        codes, cond, order = case(KINDS[kind], seed=seed)
        branches = (cond, m.null(cond), replace(m.null(cond), blind=torch.rand(3, N, generator=g) < 0.3))
        state, done = m.begin(branches, GRID, reuse=state), int(torch.randint(N, (), generator=g))
        if done: m.accept(state, order[:, :done], codes.gather(1, order[:, :done])[..., None])
        for size in grouping(N - done, g):
            cells, live = order[:, done:done + size], int(torch.randint(1, 4, (), generator=g))
            got = m.predict(state, cells, live=live).logits
            for branch, logits in zip(branches, got): torch.testing.assert_close(logits, reference(m, codes, branch, order, done, cells), atol=1e-5, rtol=1e-5)
            m.accept(state, cells, codes.gather(1, cells)[..., None]); done += size
    assert state.done == N


def test_no_leak():
    "A question sees neither the code of its own cell nor those of its group and of later ones."
    m, (codes, cond, order) = build(SMALL), case(SMALL)
    full = m.logits(codes, cond, order)[0]
    for j in range(N):
        spoiled = codes.scatter(1, order[:, j:], (codes.gather(1, order[:, j:]) + 1) % 32)
        now = m.logits(spoiled, cond, order)[0]
        assert torch.equal(now[:, :j + 1], full[:, :j + 1]) and (j == N - 1 or not torch.equal(now[:, j + 1], full[:, j + 1]))


@pytest.mark.parametrize("kind", ["class", "text"])
def test_independent_questions(kind):
    "Asked together or alone, in any order: the same logits, after which the memory is as it was."
    m, (codes, cond, order) = build(KINDS[kind]), case(KINDS[kind])
    state = m.begin((cond, m.null(cond)), GRID)
    m.accept(state, order[:, :4], codes.gather(1, order[:, :4])[..., None])
    together = m.predict(state, order[:, 4:], live=2, independent=True).logits
    for j in range(4, N):
        alone = m.predict(state, order[:, j:j + 1], live=2).logits[:, :, 0]
        torch.testing.assert_close(together[:, :, j - 4], alone, atol=1e-5, rtol=1e-5)
    chosen = order[:, [9, 5]]
    m.predict(state, order[:, 4:], live=2, independent=True)
    m.accept(state, chosen, codes.gather(1, chosen)[..., None])
    next_order = torch.cat((order[:, :4], chosen, order[:, [4, 6, 7, 8, 10, 11]]), 1)
    got = m.predict(state, next_order[:, 6:8], live=1).logits[0]
    torch.testing.assert_close(got, reference(m, codes, cond, next_order, 6, next_order[:, 6:8]), atol=1e-5, rtol=1e-5)


def test_accepting_other_cells_than_asked():
    "Questions that come to nothing leave no trace, whether one asks twice, asks again in parts, or accepts something else."
    m, (codes, cond, order) = build(SMALL), case(SMALL)
    state, cells = m.begin((cond,), GRID), order[:, :3]
    for asked in (order[:, 5:9], order[:, 3:4], cells): m.predict(state, asked, live=1)
    other = order[:, [1, 0, 2]]
    m.accept(state, other, codes.gather(1, other)[..., None])
    now = torch.cat((other, order[:, 3:]), 1)
    torch.testing.assert_close(m.predict(state, now[:, 3:6], live=1).logits[0], reference(m, codes, cond, now, 3, now[:, 3:6]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("order", ["random", "hilbert", "confidence"])
def test_a_sample_is_the_same_in_any_batch(order):
    m, ids = build(SMALL), torch.arange(11)
    how = Sampling(cfg_start=1.0, cfg_scale=2.0, top_k=20, order=order, schedule="randar", steps=5, rows=4).sampler(m)
    whole = how.sample(Cond(ids % 5), ids, Keyed(0), grid=GRID)
    for part in ([3], [10, 0, 7], [5, 6]):
        part = torch.tensor(part)
        assert torch.equal(how.sample(Cond(part % 5), part, Keyed(0), grid=GRID), whole[part])
    assert len({tuple(c.flatten().tolist()) for c in whole}) == 11


def test_resting_branches_change_nothing():
    "Guidance that starts at 1 rests its null branch for a while; the tokens are those of a run that never rests."
    class Always(CFG):
        def live(self, clock): return 2
        def mix(self, p, clock): return p.logits[1] + (p.logits[0] - p.logits[1]) * self.scale(clock)
    m, ids = build(SMALL), torch.arange(4)
    ramp = lambda clock: 1.0 if clock.done < 5 or clock.done > 9 else 3.0
    runs = [Sampler(m, ORDERS["random"], randar, g(ramp), (Pick(),), steps=8, rows=4).sample(Cond(ids), ids, Keyed(2), grid=GRID) for g in (CFG, Always)]
    assert torch.equal(*runs)


def test_one_forward_a_step_and_head_on_questions_only():
    m, seen = build(SMALL), {"blocks": [], "head": []}
    m.blocks[0].register_forward_pre_hook(lambda _, a: seen["blocks"].append(a[0].shape[1]))
    m.head.register_forward_pre_hook(lambda _, a: seen["head"].append(a[0].shape[1]))
    Sampler(m, ORDERS["halton"], even, CFG(2.0), steps=4, rows=2).sample(Cond(torch.arange(2)), torch.arange(2), Keyed(0), grid=GRID)
    assert seen["head"] == [3, 3, 3, 3] and seen["blocks"] == [1 + 3, 5 + 3, 5 + 3, 5 + 3]


def test_memory_is_taken_once():
    m, (codes, cond, order) = build(KINDS["grouped"]), case(KINDS["grouped"])
    held = lambda s: [t.data_ptr() for t in (s.cache.keys, s.cache.values, s.prefix, s.columns, s.tokens, s.instructions)]
    state = m.begin((cond, m.null(cond)), GRID)
    assert state.cache.keys.shape[2] == 1 and state.cache.length == 1 + 2 * N - 1                     # one key-value head; the last answer is never fed
    assert m.begin((m.null(cond), cond), GRID, reuse=state) is state and held(state) == held(m.begin((cond, cond), GRID, reuse=state))
    assert m.begin((cond,), GRID, reuse=state) is not state and m.begin((cond, cond), Grid((4, 4)), reuse=state) is not state
    m.instruction.data.add_(1)
    before = state.instructions.clone()
    assert not torch.equal(m.begin((cond, cond), GRID, reuse=state).instructions, before)             # new weights are seen by an old memory


def test_larger_grids_use_a_mixed_table():
    "On a grid with a base, cached = uncached too; on the base itself the table is the plain one."
    m, grid = build(SMALL), Grid((5, 7), base=(3, 4), ntk_boundary=1)
    codes, cond, order = case(SMALL, n=35)
    state = m.begin((cond,), grid)
    m.accept(state, order[:, :30], codes.gather(1, order[:, :30])[..., None])
    got = m.predict(state, order[:, 30:], live=1).logits[0]
    torch.testing.assert_close(got, reference(m, codes, cond, order, 30, order[:, 30:], grid), atol=1e-5, rtol=1e-5)
    assert torch.equal(m.table(Grid((3, 4), base=(3, 4), ntk_boundary=1), "cpu"), m.table(GRID, "cpu")) and not torch.equal(m.table(grid, "cpu"), m.table(Grid((5, 7)), "cpu"))


NOISY = replace(SMALL, class_dropout=0.5, token_dropout=0.2, residual_dropout=0.2, ffn_dropout=0.2, drop_path=0.3)


@pytest.mark.parametrize("config", [NOISY, replace(NOISY, condition="text", text_dim=10, text_tokens=5), replace(NOISY, order="raster")], ids=["class", "text", "raster"])
def test_orders_and_masks_belong_to_samples(config):
    m, (codes, cond, _) = build(config).train(), case(config)
    at = lambda ids: At(torch.tensor(ids), step=5)
    whole = m(codes, cond, Keyed(3), at([7, 8, 9])).total
    parts = [m(codes[[i]], cond.rows([i]), Keyed(3), at([7 + i])).total for i in (2, 0, 1)]
    torch.testing.assert_close(whole, sum(parts) / 3)
    valid = m(codes, cond, Keyed(3), at([7, 8, 9]), valid=torch.tensor([0, 1, 1])).total
    torch.testing.assert_close(valid, (parts[0] + parts[2]) / 2)
    others = (m(codes, cond, Keyed(3), At(torch.tensor([7, 8, 9]), step=6)).total, m(codes, cond, Keyed(4), at([7, 8, 9])).total)
    assert len({float(v.detach()) for v in (whole, *others)}) == 3


def test_training_orders_are_drawn_anew():
    "Every sample and every step has another order; raster training has one."
    m, (codes, cond, _) = build(replace(SMALL, class_dropout=0)).eval(), case(SMALL)
    loss = lambda config, step: [float(build(config)(codes[[0]], cond.rows([0]), Keyed(0), At(torch.tensor([i]), step=step)).total.detach()) for i in range(4)]
    plain = replace(SMALL, class_dropout=0)
    assert len({*loss(plain, 0), *loss(plain, 1)}) == 8 and len({*loss(replace(plain, order="raster"), 0), *loss(replace(plain, order="raster"), 1)}) == 1


def test_compiled_equals_eager():
    "The loss with every dropout on, and its gradients."
    m, (codes, cond, _) = build(replace(NOISY, layers=1)).train(), case(NOISY)
    other = copy.deepcopy(m)
    other.compile(backend="aot_eager")
    for model in (m, other): model(codes, cond, Keyed(0), At(torch.arange(3), step=2)).total.backward()
    for a, b in zip(m.parameters(), other.parameters()): torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)


def test_half_precision():
    codes, cond, order = case(SMALL)
    m = build(SMALL)
    half = copy.deepcopy(m).bfloat16()
    for model, auto in ((half, False), (m, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=auto):
            state = model.begin((cond,), GRID)
            model.accept(state, order[:, :5], codes.gather(1, order[:, :5])[..., None])
            got = model.predict(state, order[:, 5:8], live=1).logits[0]
        assert got.dtype == torch.float32 and state.cache.keys.dtype == torch.bfloat16
        torch.testing.assert_close(got, reference(m, codes, cond, order, 5, order[:, 5:8]), atol=0.1, rtol=0.1)


def test_guided_captions():
    "By default the null caption is learnt and is what guidance moves away from; with the original's fault it is a constant."
    _, cond, _ = case(KINDS["text"])
    m, faulty = build(KINDS["text"]), build(replace(KINDS["text"], compat="upstream"))
    assert torch.equal(m.null(cond).text[0], m.condition.null) and (faulty.null(cond).text == 5).all() and torch.equal(m.null(cond).mask, cond.mask)
    assert isinstance(m.condition.null, torch.nn.Parameter) and not isinstance(faulty.condition.null, torch.nn.Parameter)
    a, b = (Sampler(x, ORDERS["random"], randar, CFG(3.0), steps=4, rows=3).sample(cond, torch.arange(3), Keyed(0), grid=GRID) for x in (m, faulty))
    assert not torch.equal(a, b)


@pytest.mark.parametrize("order", ["random", "uncertainty", "spiral-out"])
def test_known_cells_stay_and_the_others_are_filled(order):
    "Any mask, another for every sample: none known, all known, whole micro-batches known."
    m, ids, g = build(SMALL), torch.arange(9), torch.Generator().manual_seed(0)
    codes, known = torch.randint(32, (9, N, 1), generator=g), torch.rand(9, N, generator=g) < torch.linspace(0, 1.2, 9)[:, None]
    known[0:3] = True; known[4] = False
    how = Sampling(cfg_scale=2.0, order=order, schedule="cosine", steps=4, rows=3).sampler(m)
    out = how.sample(Cond(ids % 5), ids, Keyed(0), grid=GRID, given=(codes, known))
    assert torch.equal(out[known], codes[known]) and (out >= 0).all() and (out < 32).all()
    alone = how.sample(Cond(ids[6:] % 5), ids[6:], Keyed(0), grid=GRID, given=(codes[6:], known[6:]))
    assert torch.equal(alone, out[6:])


def test_spatial_guidance_pays_for_what_it_needs():
    m, rows = build(SMALL), []
    m.blocks[0].register_forward_pre_hook(lambda _, a: rows.append(a[0].shape[0]))
    given = (torch.zeros(2, N, 1, dtype=torch.long), torch.arange(N).expand(2, -1) < 6)
    for scale, spatial, want in ((3.0, 2.0, 6), (3.0, 1.0, 4), (1.0, 1.0, 2)):
        rows.clear()
        Sampler(m, ORDERS["raster"], even, SpatialGuidance(scale, spatial), steps=3, rows=2).sample(Cond(torch.arange(2)), torch.arange(2), Keyed(0), grid=GRID, given=given)
        assert rows == [want] * 3
    moved = [Sampler(m, ORDERS["raster"], even, SpatialGuidance(2.0, 4.0, r), (Pick(greedy=True),), steps=3, rows=2).sample(Cond(torch.arange(2)), torch.arange(2), Keyed(0), grid=GRID, given=given) for r in (0.0, 1.0)]
    plain = Sampler(m, ORDERS["raster"], even, CFG(2.0), (Pick(greedy=True),), steps=3, rows=2).sample(Cond(torch.arange(2)), torch.arange(2), Keyed(0), grid=GRID, given=given)
    assert torch.equal(moved[0], plain) and not torch.equal(moved[1], plain)                          # nothing blinded: only the class guides


@pytest.mark.parametrize("shape", [(3, 4), (5, 6), (6, 8), (9, 12), (3, 11), (7, 4)])
@pytest.mark.parametrize("steps", [None, 5, 1])
def test_extrapolation_decides_every_cell(shape, steps):
    "Factors 1, 1.5, 2, 3 and uneven ones; the coarse cells hold the coarse picture; a sample is itself in any batch."
    m, ids = build(SMALL), torch.arange(5)
    how = Extrapolation((1.0, 2.0), (1.0, 1.5), steps=steps, rows=3, ntk_boundary=1)
    codes = extrapolate(m, Cond(ids), ids, Keyed(0), shape, how)
    assert codes.shape == (5, shape[0] * shape[1], 1) and codes.min() >= 0 and codes.max() < 32
    assert torch.equal(extrapolate(m, Cond(ids[3:]), ids[3:], Keyed(0), shape, how), codes[3:])
    plain = Extrapolation((1.0, 1.0), (1.0, 1.0), steps=steps, rows=3, ntk_boundary=1)
    coarse = coarse_cells(Grid(shape, base=(3, 4)))
    assert len(set(coarse.tolist())) == N and torch.equal(codes[:, coarse], extrapolate(m, Cond(ids), ids, Keyed(0), shape, replace(how, spatial=(1.0, 3.0)))[:, coarse])
    assert not torch.equal(codes, extrapolate(m, Cond(ids), ids, Keyed(0), shape, plain))


SHAPES = [(1, 1), (1, 9), (9, 1), (2, 3), (5, 4), (8, 8), (7, 13), (16, 6), (17,)]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_order_and_schedule_fill_every_cell_once(shape):
    grid, g = Grid(shape), torch.Generator().manual_seed(0)
    n, at = grid.n, At(torch.arange(3))
    known = torch.rand(3, n, generator=g) < 0.3
    for name, order in ORDERS.items():
        if name == "hierarchical" and len(shape) == 1: continue
        perm = check_permutation(order.plan(grid, known, Keyed(0), at), n, name)
        k = int(known.sum(1)[0])
        assert known[0, perm[0, :k]].all() and not known[0, perm[0, k:]].any()
    for name, schedule in SCHEDULES.items():
        for steps in sorted({1, 2, 3, n // 2 or 1, n, n + 5}):
            for start in sorted({0, n // 3, n - 1, n}):
                counts = check_counts(schedule(n, steps, start), n, start)
                assert len(counts) == (n - start if name == "one-by-one" else min(steps, n - start)) or name == "randar"


@pytest.mark.parametrize("order", [Confidence(), Uncertainty(), Confidence(noise=2.0)], ids=["confidence", "uncertainty", "noisy"])
def test_adaptive_orders_in_the_sampler(order):
    "Every cell is decided once, as many a step as the schedule says, and the choice follows the confidence."
    m, ids = build(SMALL), torch.arange(3)
    steps = list(Sampler(m, order, SCHEDULES["cosine"], steps=5, rows=3).stream(Cond(ids), ids, Keyed(0), grid=GRID))
    assert [s.positions.shape[1] for s in steps] == SCHEDULES["cosine"](N, 5, 0)
    assert all(sorted(torch.cat([s.positions[i] for s in steps]).tolist()) == list(range(N)) for i in range(3)) and (steps[-1].codes() >= 0).all()


def test_what_is_refused():
    m, ids = build(SMALL), torch.arange(2)
    sample = lambda cond=Cond(ids), grid=GRID, given=None, **kw: Sampling(**kw).sampler(m).sample(cond, ids, Keyed(0), grid=grid, given=given)
    ran = []
    m.blocks[0].register_forward_pre_hook(lambda *_: ran.append(1))
    for argument, call in (
            ("steps", lambda: sample(order="random", schedule="randar", steps=0)), ("steps", lambda: sample(order="random", schedule="randar", steps=13)),
            ("cfg_start", lambda: sample(cfg_start=3.0, cfg_scale=2.0)), ("cfg_start", lambda: sample(cfg_start=-1.0, cfg_scale=2.0)), ("cfg_scale", lambda: sample(cfg_scale=-2.0)),
            ("order", lambda: Sampler(m, Given([0] * N), rows=2).sample(Cond(ids), ids, Keyed(0), grid=GRID)), ("grid", lambda: sample(grid=Grid((12,)))),
            ("given known", lambda: sample(given=(torch.zeros(2, N, 1, dtype=torch.long), torch.zeros(2, 9, dtype=torch.bool)))),
            ("given codes", lambda: sample(given=(torch.full((2, N, 1), 32), torch.ones(2, N, dtype=torch.bool)))),
            ("labels", lambda: sample(Cond(torch.tensor([0, 9])))), ("grid.ntk_boundary", lambda: sample(grid=Grid((4, 4), base=(3, 4), ntk_boundary=9))),
            ("plan", lambda: m.logits(torch.zeros(2, N, dtype=torch.long), Cond(ids), torch.zeros(N, dtype=torch.long))),
            ("scale", lambda: Extrapolation(scale=(4.0, 1.0))), ("spatial", lambda: Extrapolation(spatial=(1.0, -1.0))), ("steps", lambda: Extrapolation(steps=0)),
            ("grid.base", lambda: extrapolate(m, Cond(ids), ids, Keyed(0), (2, 9))), ("order", lambda: RandomOrderConfig(order="spiral")), ("rope", lambda: RandomOrderConfig(rope="sequence"))):
        with pytest.raises(BadInput) as e: call()
        assert e.value.argument == argument, (argument, str(e.value))
    assert not ran


def test_published_names_there_and_back():
    m = build(KINDS["text"])
    theirs = randar_names.export(m.state_dict())
    assert {"pos_instruct_embeddings", "cls_embedding.uncond_embedding", "layers.1.feed_forward.w2.weight"} <= set(theirs)
    twin = randar_names.load_into(RandomOrderTransformer(replace(KINDS["text"], compat="upstream"), seed=5), theirs)
    assert all(torch.equal(a, twin.state_dict()[k]) for k, a in m.state_dict().items())
    with pytest.raises(Mismatch, match="missing"): randar_names.load_into(m, {k: v for k, v in theirs.items() if k != "pos_instruct_embeddings"})
    c = randar_config({"n_layer": 2, "n_head": 4, "dim": 48, "vocab_size": 32, "block_size": 16, "num_classes": 5, "position_order": "raster", "num_inference_steps": 88})
    assert (c.layers, c.grid, c.order, c.recompute, c.token_dropout) == (2, (4, 4), "raster", False, 0.1) and Raster().needs == frozenset()
