"""The partition transformer where a page has no room: no leak and sampling = training in every decoder mode, what is
asked together, given cells, grids, batches, faults, precisions."""
import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vgnb.core import BadInput, Mismatch
from vgnb.draws import At, Keyed
from vgnb.generators.adaptive_orders import Confidence
from vgnb.generators.generator import Cond, Grid
from vgnb.generators.group_swap import QUERIES, decoder_plan
from vgnb.generators.masks import draw_mask
from vgnb.generators.orders import ORDERS, check_permutation
from vgnb.generators.partition import PartitionConfig, PartitionTransformer, pgm_config, pgm_names
from vgnb.generators.schedules import SCHEDULES, halton_steps, pgm_steps
from vgnb.rows import gather_rows
from vgnb.sampling.guidance import CFG, Unguided
from vgnb.sampling.pick import Pick
from vgnb.sampling.sampler import Sampler

SMALL = PartitionConfig(2, 2, 32, 2, mlp_ratio=2, vocab=24, grid=(3, 4), classes=5)
MODES = {
    "cross-only": SMALL,
    "interleave": replace(SMALL, decoder=4, mode="interleave"),
    "interleave self first": replace(SMALL, mode="interleave", self_attn_first=True),
    "interleave-2-cross": replace(SMALL, decoder=3, mode="interleave-2-cross"),
    "interleave-2-self": replace(SMALL, decoder=4, mode="interleave-2-self", self_attn_first=True),
    "1-cross-first": replace(SMALL, mode="1-cross-first"),
    "no registers": replace(SMALL, registers=0),
    "four registers": replace(SMALL, registers=4, decoder=3, mode="interleave", self_attn_first=True),
    **{f"query {q}": replace(SMALL, query=q, network="mlp4") for q in QUERIES},
}
N, GRID = 12, Grid((3, 4))
CELLS = torch.arange(N).expand(3, -1)


def build(config, seed=0):
    "A model none of whose weights is zero."
    m, g = PartitionTransformer(config, seed).eval(), torch.Generator().manual_seed(seed)
    for p in m.parameters():
        if not p.detach().any(): p.data.normal_(0, 0.2, generator=g)
    return m


def published(m):
    "The same weights with the published code's faults."
    faulty = PartitionTransformer(replace(m.config, compat="upstream")).eval()
    faulty.load_state_dict(m.state_dict())
    return faulty


def case(config, b=3, n=N, seed=0):
    "Codes (b, n, 1), classes, and a group for each code."
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(config.vocab, (b, n, 1), generator=g)
    return codes, Cond(torch.randint(config.classes, (b,), generator=g)), torch.rand(b, n, generator=g) < 0.5


def random_order(b, n=N):
    return torch.stack([torch.randperm(n, generator=torch.Generator().manual_seed(i)) for i in range(b)])


def begun(m, cond, codes, known, grid=GRID):
    "A state that knows the codes of the cells `known` (b, j), accepted two by two."
    state = m.begin((cond,), grid)
    for cells in known.split(2, 1): m.accept(state, cells, gather_rows(codes, cells))
    return state


@torch.no_grad()
def asked(m, codes, cond, known, positions, grid=GRID, independent=False):
    "Logits (b, k, V) of positions when the cells `known` (b, j) are there, from the sampling path."
    return m.predict(begun(m, cond, codes, known, grid), positions, live=1, independent=independent).logits[0]


@torch.no_grad()
def trained(m, codes, cond, known, positions, grid=GRID):
    "The same from the training path: the known cells are group 0."
    groups = torch.ones(codes.shape[:2], dtype=torch.bool).scatter(1, known, False)
    return gather_rows(m.logits(codes, cond, groups, grid=grid)[0], positions)


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_never_depends_on_its_own_group(mode):
    m = build(MODES[mode])
    codes, cond, groups = case(m.config)
    with torch.no_grad(): before, = m.logits(codes, cond, groups)
    for group in (False, True):
        other = torch.where((groups == group)[..., None], (codes + 7) % 24, codes)
        with torch.no_grad(): after, = m.logits(other, cond, groups)
        changed = (after != before).any(-1)
        assert not changed[groups == group].any()
        assert changed[groups != group].all()


@pytest.mark.parametrize("mode", MODES)
def test_sampling_is_training_on_the_same_partition(mode):
    "Known cells in any order and any pieces; wanted cells all at once, in two parts and one alone."
    m = build(MODES[mode])
    codes, cond, _ = case(m.config)
    perm = random_order(3)
    for count in (0, 1, 5, 11):
        known, wanted = perm[:, :count], perm[:, count:]
        want, left = trained(m, codes, cond, known, wanted), N - count
        for part in (slice(None), slice(0, 1), slice(0, (left + 1) // 2), slice(left - 1, None)):
            got = asked(m, codes, cond, known, wanted[:, part])
            assert torch.allclose(got, want[:, part], atol=1e-5), (count, part)


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_does_not_depend_on_what_else_is_asked(mode):
    "`separate`, in mixed decoders, too: alone, with others in any order, or with padding, a cell has the same answer."
    m = build(MODES[mode])
    assert m.columns == "separate" and m.most is None
    codes, cond, _ = case(m.config)
    perm = random_order(3)
    known, rest = perm[:, :4], perm[:, 4:]
    together = asked(m, codes, cond, known, rest)
    padded = torch.cat((rest[:, :3], rest[:, 2:3].expand(-1, 4)), 1)    # three cells, then copies of the last one
    for columns, cells in (([2], rest[:, 2:3]), ([5, 0], rest[:, [5, 0]]), ([0, 1, 2], padded)):
        got = asked(m, codes, cond, known, cells)[:, :len(columns)]
        assert torch.allclose(got, together[:, columns], atol=1e-5), columns


def test_published_mixed_decoders_are_joint():
    "There the queries of a step see each other, so an order that looks at each cell by itself is refused."
    mixed, plain = (published(build(MODES[mode])) for mode in ("interleave", "cross-only"))
    assert mixed.columns == "joint" and plain.columns == "separate"
    codes, cond, _ = case(SMALL)
    many, few = (asked(mixed, codes, cond, CELLS[:, :4], CELLS[:, 4:end]) for end in (12, 6))
    assert not torch.allclose(many[:, :2], few, atol=1e-3)
    with pytest.raises(BadInput, match="joint"):
        Sampler(mixed, Confidence(), pgm_steps("arccos"), steps=3, compat="upstream")


def test_codes_have_one_level():
    m = build(SMALL)
    codes, cond, groups = case(SMALL)
    assert m.logits(codes, cond, groups)[0].shape == (3, N, 24)
    for wrong in (codes[..., 0], codes.expand(-1, -1, 2), codes[:, 1:]):
        with pytest.raises(BadInput, match="codes"): m.logits(wrong, cond, groups)
    sampler = Sampler(m, ORDERS["random"], SCHEDULES["even"], steps=3, rows=3)
    assert sampler.sample(cond, torch.arange(3), Keyed(0), grid=GRID).shape == codes.shape


def test_asking_twice_pays_the_encoder_once_and_resting_branches_pay_nothing(monkeypatch):
    m = build(SMALL)
    codes, cond, _ = case(SMALL)
    rows, real = [], m.encode
    monkeypatch.setattr(m, "encode", lambda known, *a: rows.append(len(known)) or real(known, *a))
    state = m.begin((cond, m.null(cond)), GRID)
    m.accept(state, CELLS[:, :4], codes[:, :4])
    one = m.predict(state, CELLS[:, 4:8], live=1).logits
    both = m.predict(state, CELLS[:, 4:8], live=2).logits
    again = m.predict(state, CELLS[:, 8:], live=1).logits
    assert rows == [3, 3]
    assert torch.allclose(both[0], one[0], atol=1e-6)
    assert not torch.allclose(both[0], both[1], atol=1e-3)

    m.accept(state, CELLS[:, 4:5], codes[:, 4:5])
    m.predict(state, CELLS[:, 8:], live=2)
    assert rows == [3, 3, 6]
    fresh = asked(m, codes, cond, CELLS[:, :4], CELLS[:, 8:])
    assert torch.allclose(again[0], fresh, atol=1e-6)


def test_a_state_is_reused_where_it_fits():
    m = build(SMALL)
    codes, cond, _ = case(SMALL)
    state = begun(m, cond, codes, CELLS[:, :3])
    memory = state.modulations.data_ptr(), state.tokens.data_ptr()
    m.predict(state, CELLS[:, 3:], live=1)
    other = Cond((cond.labels + 1) % 5)
    again = m.begin((other,), GRID, reuse=state)
    assert again is state and again.done == 0
    assert (again.modulations.data_ptr(), again.tokens.data_ptr()) == memory
    fresh = m.begin((other,), GRID)
    assert torch.equal(m.predict(again, CELLS, live=1).logits, m.predict(fresh, CELLS, live=1).logits)
    assert m.begin((cond, cond), GRID, reuse=state) is not state
    assert published(m).begin((cond,), GRID, reuse=state) is not state


ORDERINGS = {
    "halton": (ORDERS["halton"], halton_steps),
    "rolled": (ORDERS["halton-rolled"], halton_steps),
    "random": (ORDERS["random"], SCHEDULES["cosine"]),
    "confidence": (Confidence(noise=4.5), pgm_steps("arccos")),
}


@pytest.mark.parametrize("name", ORDERINGS)
@pytest.mark.parametrize("mode", ("cross-only", "interleave"))
def test_sampling_around_known_cells(name, mode):
    "Known cells stay, all others are filled with codes, whatever each sample knows; a sample is the same in any batch."
    m, (order, schedule) = build(MODES[mode]), ORDERINGS[name]
    codes, cond, _ = case(SMALL, 5)
    known = torch.zeros(5, N, dtype=torch.bool)
    for row, cells, count in zip(known, random_order(5), (0, 3, 7, 11, 12)): row[cells[:count]] = True

    sampler = Sampler(m, order, schedule, CFG(3.0, start=1.0, by="step"), steps=4, rows=2)
    got = sampler.sample(cond, torch.arange(5), Keyed(0), grid=GRID, given=(codes, known))
    assert torch.equal(got[known], codes[known])
    assert not torch.equal(got, codes)
    assert bool(((0 <= got) & (got < 24)).all())

    free = sampler.sample(cond, torch.arange(5), Keyed(0), grid=GRID)
    alone = sampler.sample(cond.rows(torch.tensor([3])), torch.tensor([3]), Keyed(0), grid=GRID)
    assert torch.equal(free[3:4], alone)


def test_a_sample_does_not_see_its_batch():
    m = build(SMALL)
    codes, cond, groups = case(SMALL)
    with torch.no_grad():
        together, = m.logits(codes, cond, groups)
        for i in range(3):
            row = slice(i, i + 1)
            alone, = m.logits(codes[row], cond.rows(row), groups[row])
            assert torch.allclose(alone[0], together[i], atol=1e-5)


@pytest.mark.parametrize("shape", ((2, 7), (5, 3), (6, 6), (1, 9), (14,)))
def test_other_grids(shape):
    m, grid = build(SMALL), Grid(shape)
    codes, cond, _ = case(SMALL, n=grid.n)
    perm = random_order(3, grid.n)
    known, wanted = perm[:, :4], perm[:, 4:]
    want = trained(m, codes, cond, known, wanted, grid)
    assert torch.allclose(asked(m, codes, cond, known, wanted, grid), want, atol=1e-5)


def test_a_large_grid_in_halton_order():
    m, grid = build(replace(SMALL, encoder=1, decoder=1)), Grid((64, 64))
    plan = ORDERS["halton"].plan(grid, None, halton_steps, 32, Keyed(0), At(torch.arange(1)))
    perm = check_permutation(plan.perm, 4096)
    assert sum(plan.counts) == 4096
    codes = torch.zeros(1, 4096, 1, dtype=torch.long)
    state = m.begin((Cond(torch.tensor([1])),), grid)
    m.accept(state, perm[:, :3000], codes[:, :3000])
    assert m.predict(state, perm[:, 3000:3400], live=1).logits.isfinite().all()


def test_training_is_a_function_of_its_draws():
    m = build(replace(SMALL, dropout=0.3)).train()
    dry = build(replace(SMALL, dropout=0.0)).train()
    codes, cond, _ = case(SMALL, 8)
    at = At(torch.arange(8), step=4)
    def loss(m, at=at, seed=0): return m(codes, cond, Keyed(seed), at).total

    first = loss(m)
    assert torch.equal(first, loss(m))
    for other in (loss(m, at._replace(step=5)), loss(m, seed=1), loss(dry)): assert not torch.equal(first, other)
    m.zero_grad()
    first.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())

    half = m(codes, cond, Keyed(0), at, valid=torch.tensor([1] * 4 + [0] * 4)).total
    small = m(codes[:4], cond.rows(slice(4)), Keyed(0), At(torch.arange(4), step=4)).total
    assert torch.allclose(half, small, atol=1e-6)


def test_the_loss_is_over_codes_in_the_drawn_groups():
    m = build(replace(SMALL, class_dropout=0.0, dropout=0.0)).train()
    codes, cond, _ = case(SMALL)
    at = At(torch.arange(3), step=1)
    logits, = m.logits(codes, cond, draw_mask(Keyed(0), at, N))
    want = F.cross_entropy(logits.flatten(0, 1), codes.flatten())
    assert torch.allclose(m(codes, cond, Keyed(0), at).total, want, atol=1e-6)


@pytest.mark.parametrize("registers", (0, 2))
def test_one_group_may_be_empty(registers):
    m = build(replace(SMALL, registers=registers, query="learn+freqs+logsumexp"))
    codes, cond, _ = case(SMALL)
    for groups in (torch.zeros(N, dtype=torch.bool), torch.ones(N)):
        loss = m.logits(codes, cond, groups)[0].logsumexp(-1).sum()
        m.zero_grad()
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in m.parameters())


@pytest.mark.parametrize("registers", (0, 2, 4))
def test_upstream_hides_what_the_registers_push_out(registers):
    "The last R/2 known codes make no difference; in the first step all cells get one answer; weights are the same."
    right = build(replace(SMALL, registers=registers))
    faulty = published(right)
    codes, cond, _ = case(SMALL)
    known, rest = CELLS[:, :6], CELLS[:, 6:]
    last = slice(6 - max(registers // 2, 1), 6)
    changed = codes.clone()
    changed[:, last] = (codes[:, last] + 5) % 24

    for m, hides in ((right, False), (faulty, registers > 0)):
        before, after = (asked(m, c, cond, known, rest) for c in (codes, changed))
        assert torch.equal(before, after) == hides
    ours, theirs = (asked(m, codes, cond, CELLS[:, :0], CELLS) for m in (right, faulty))
    assert torch.equal(theirs, theirs[:, :1].expand_as(theirs))
    assert torch.allclose(ours, ours[:, :1], atol=1e-6) == (registers == 0)


def test_upstream_draws_special_ids_by_confidence_and_forgets_eval():
    right = build(replace(SMALL, dropout=0.5))
    faulty = published(right)
    codes, cond, _ = case(SMALL)
    known, rest = CELLS[:, :3], CELLS[:, 3:]
    def answer(m, independent, training=False):
        return asked(m.train(training), codes, cond, known, rest, independent=independent)

    columns = [answer(m, independent).shape[-1] for m in (right, faulty) for independent in (False, True)]
    assert columns == [24, 24, 24, 26]
    assert not torch.allclose(answer(faulty, True), answer(faulty, True, training=True), atol=1e-3)
    assert torch.equal(answer(faulty, False), answer(faulty, False, training=True))
    assert torch.equal(answer(right, True), answer(right, True, training=True))

    faulty.head.bias.data[24:] = 50
    linear = pgm_steps("linear")
    sampler = Sampler(faulty.eval(), Confidence(), linear, Unguided(), (Pick(),), steps=4, rows=3, compat="upstream")
    got = sampler.sample(cond, torch.arange(3), Keyed(0), grid=GRID)
    assert bool((got == 23).all())                          # every one a special id, each the last code in the end


def test_forgotten_dropout_is_the_same_whoever_asked_before():
    "A branch that joins later in a step loses the same activations."
    m = published(build(replace(SMALL, dropout=0.5))).train()
    codes, cond, _ = case(SMALL)
    def state(): return m.begin((cond, m.null(cond)), GRID)

    late, at_once = state(), state()
    for s in (late, at_once): m.accept(s, CELLS[:, :5], codes[:, :5])
    m.predict(late, CELLS[:, 5:], live=1, independent=True)
    answers = [m.predict(s, CELLS[:, 5:], live=2, independent=True).logits for s in (late, at_once)]
    assert torch.equal(*answers)


@pytest.mark.parametrize("mode", ("cross-only", "interleave"))
def test_half_precision(mode):
    m = build(MODES[mode])
    low = copy.deepcopy(m).bfloat16()
    codes, cond, groups = case(SMALL)
    with torch.no_grad():
        want, = m.logits(codes, cond, groups)
        plain, = low.logits(codes, cond, groups)
        with torch.autocast("cpu", torch.bfloat16): auto, = m.logits(codes, cond, groups)
    sampling = asked(low, codes, cond, CELLS[:, :4], CELLS[:, 4:])
    for got in (auto, plain, sampling):
        assert got.dtype == torch.float32
        assert got.isfinite().all()
    for got in (auto, plain): assert (got - want).abs().mean() < 0.1 * want.abs().mean()

    with torch.autocast("cpu", torch.bfloat16):
        sampler = Sampler(m, ORDERS["halton"], halton_steps, CFG(2.0), steps=4, rows=3)
        assert bool((sampler.sample(cond, torch.arange(3), Keyed(0), grid=GRID) >= 0).all())


@pytest.mark.parametrize("mode", MODES)
def test_names_go_both_ways(mode):
    m = build(MODES[mode])
    names, again = pgm_names(m.config), PartitionTransformer(m.config)
    theirs = names.export(m.state_dict(), m)
    names.load_into(again, theirs)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), m.state_dict().values()))
    if mode == "interleave":
        with pytest.raises(Mismatch): names.load_into(PartitionTransformer(SMALL), theirs)


@pytest.mark.parametrize("bad,argument", (
    (dict(registers=3), "registers"),
    (dict(dim=30), "dim"),
    (dict(mode="crossed"), "mode"),
    (dict(mode="interleave-2-cross"), "decoder"),
    (dict(query="learn+mean"), "query"),
    (dict(network="mlp"), "network"),
    (dict(mask_rate="pow"), "mask_rate"),
    (dict(compat="old"), "compat"),
    (dict(mlp_ratio=0), "mlp_ratio"),
    (dict(encoder=0), "encoder"),
))
def test_configurations_that_cannot_be(bad, argument):
    with pytest.raises(BadInput) as e: replace(SMALL, **bad)
    assert e.value.argument == argument


def test_requests_that_cannot_be():
    m = build(SMALL)
    codes, cond, groups = case(SMALL)
    state = begun(m, cond, codes, CELLS[:, :4])
    wrong = {
        "plan": lambda: m.logits(codes, cond),
        "positions": lambda: m.predict(state, CELLS[:, :9], live=1),
        "live": lambda: m.predict(state, CELLS[:, 4:6], live=2),
        "labels": lambda: m.begin((Cond(torch.tensor([6])),), GRID),
        "branches": lambda: m.begin((cond, cond.rows(slice(2))), GRID),
        "grid": lambda: m.check_grid(Grid((6, 8), (3, 4))),
        "codes": lambda: m.logits(codes + 24, cond, groups),
    }
    for argument, call in wrong.items():
        with pytest.raises(BadInput) as e: call()
        assert e.value.argument == argument, (argument, str(e.value))
    with pytest.raises(BadInput): m.logits(codes, cond, torch.full((3, N), 2))
    assert decoder_plan("cross-only", 2) == [True, True]


SPEC = {"register": 2, "codebook_size": 24,
        "model": {"length": 17, "hidden_size": 32, "n_heads": 2, "n_class": 5,
                  "encoder": {"n_blocks": 1}, "decoder": {"n_blocks": 2}}}


@pytest.mark.parametrize("argument,spec", (
    ("model.length", SPEC | {"model": SPEC["model"] | {"length": 18}}),
    ("algo.causal_attention", SPEC | {"algo": {"causal_attention": True}}),
    ("model.swap.normalize_mode", SPEC | {"model": SPEC["model"] | {"swap": {"normalize_mode": "rmsnorm"}}}),
))
def test_published_arguments_that_cannot_be(argument, spec):
    with pytest.raises(BadInput) as e: pgm_config(spec)
    assert e.value.argument == argument
    assert pgm_config(SPEC, grid=(2, 8)).grid == (2, 8)
