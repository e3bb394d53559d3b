"The partition transformer where a page has no room: no leak and sampling = training in every decoder mode, uneven known cells, grids, batches, faults, precisions."
import copy
from dataclasses import replace

import pytest
import torch

from vgnb.core import BadInput, Mismatch
from vgnb.draws import At, Keyed
from vgnb.generators.adaptive_orders import Confidence
from vgnb.generators.generator import Cond, Grid
from vgnb.generators.group_swap import QUERIES, decoder_plan
from vgnb.generators.masks import draw_mask
from vgnb.generators.orders import ORDERS, check_permutation
from vgnb.generators.partition import PartitionConfig, PartitionTransformer, pgm_config, pgm_names
from vgnb.generators.schedules import SCHEDULES, halton_steps, pgm_steps
from vgnb.sampling.guidance import CFG, Unguided, linear
from vgnb.sampling.pick import Pick
from vgnb.sampling.sampler import Sampler

SMALL = PartitionConfig(2, 2, 32, 2, mlp_ratio=2, vocab=24, grid=(3, 4), classes=5)
MODES = {"cross-only": SMALL, "interleave": replace(SMALL, decoder=4, mode="interleave"), "interleave self first": replace(SMALL, mode="interleave", self_attn_first=True),
         "interleave-2-cross": replace(SMALL, decoder=3, mode="interleave-2-cross"), "interleave-2-self": replace(SMALL, decoder=4, mode="interleave-2-self", self_attn_first=True),
         "1-cross-first": replace(SMALL, mode="1-cross-first"), "no registers": replace(SMALL, registers=0), "four registers": replace(SMALL, registers=4, decoder=3, mode="interleave", self_attn_first=True),
         **{f"query {q}": replace(SMALL, query=q, network="mlp4") for q in QUERIES}}
N, GRID = 12, Grid((3, 4))


def build(config, seed=0):
    "A model none of whose weights is zero."
    m, g = PartitionTransformer(config, seed).eval(), torch.Generator().manual_seed(seed)
    for p in m.parameters():
        if not p.detach().any(): p.data.normal_(0, 0.2, generator=g)
    return m


def case(config, b=3, n=N, seed=0):
    "Codes, classes, and a group for each code."
    g = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab, (b, n), generator=g), Cond(torch.randint(config.classes, (b,), generator=g)), torch.rand(b, n, generator=g) < 0.5


@torch.no_grad()
def asked(m, codes, cond, known, positions, state=None, grid=GRID):
    "Logits (b, k, V) of positions when the cells `known` (b, j) are, from the sampling path."
    state = m.begin((cond,), grid, reuse=state)
    for cells in known.split(2, 1): m.accept(state, cells, codes.gather(1, cells)[..., None])
    return m.predict(state, positions, live=1).logits[0]


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_never_depends_on_its_own_group(mode):
    m = build(MODES[mode])
    codes, cond, groups = case(m.config)
    with torch.no_grad(): before, = m.logits(codes, cond, groups)
    for group in (False, True):
        other = torch.where(groups == group, (codes + 7) % 24, codes)
        with torch.no_grad(): after, = m.logits(other, cond, groups)
        changed = (after != before).any(-1)
        assert not changed[groups == group].any() and changed[groups != group].all()


@pytest.mark.parametrize("mode", MODES)
def test_sampling_is_training_on_the_same_partition(mode):
    "Known cells in any order and any pieces; wanted cells all at once, in two parts and one alone."
    m = build(MODES[mode])
    codes, cond, _ = case(m.config)
    perm = torch.stack([torch.randperm(N, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    for count in (0, 1, 5, 11):
        known, wanted = perm[:, :count], perm[:, count:]
        groups = torch.ones(3, N, dtype=torch.bool).scatter(1, known, False)
        with torch.no_grad(): want = m.logits(codes, cond, groups)[0].gather(1, wanted[..., None].expand(-1, -1, 24))
        for part in (slice(None), slice(0, 1), slice(0, (N - count + 1) // 2), slice(N - count - 1, None)):
            assert torch.allclose(asked(m, codes, cond, known, wanted[:, part]), want[:, part], atol=1e-5), (count, part)


def test_asking_twice_pays_the_encoder_once_and_resting_branches_pay_nothing(monkeypatch):
    m = build(SMALL)
    codes, cond, _ = case(SMALL)
    rows, real = [], m.remember
    monkeypatch.setattr(m, "remember", lambda c, *a: rows.append(len(c)) or real(c, *a))
    state, cells = m.begin((cond, m.null(cond)), GRID), torch.arange(N).expand(3, -1)
    m.accept(state, cells[:, :4], codes[:, :4, None])
    one = m.predict(state, cells[:, 4:8], live=1).logits
    both = m.predict(state, cells[:, 4:8], live=2).logits
    again = m.predict(state, cells[:, 8:], live=1).logits
    assert rows == [3, 3] and torch.allclose(both[0], one[0], atol=1e-6) and not torch.allclose(both[0], both[1], atol=1e-3)
    m.accept(state, cells[:, 4:5], codes[:, 4:5, None]); m.predict(state, cells[:, 8:], live=2)
    assert rows == [3, 3, 6]
    fresh = asked(m, codes, cond, cells[:, :4], cells[:, 8:])
    assert torch.allclose(again[0], fresh, atol=1e-6)


def test_a_state_is_reused_where_it_fits():
    m = build(SMALL)
    codes, cond, _ = case(SMALL)
    state = m.begin((cond,), GRID)
    address = state.steer.data_ptr(), state.tokens.data_ptr()
    cells = torch.arange(N).expand(3, -1)
    m.accept(state, cells[:, :3], codes[:, :3, None]); m.predict(state, cells[:, 3:], live=1)
    other = Cond((cond.labels + 1) % 5)
    again = m.begin((other,), GRID, reuse=state)
    assert again is state and (again.steer.data_ptr(), again.tokens.data_ptr()) == address and again.done == 0
    assert torch.equal(m.predict(again, cells, live=1).logits, m.predict(m.begin((other,), GRID), cells, live=1).logits)
    assert m.begin((cond, cond), GRID, reuse=state) is not state and build(replace(SMALL, compat="upstream")).begin((cond,), GRID, reuse=state) is not state


ORDERINGS = {"halton": (ORDERS["halton"], halton_steps), "rolled": (ORDERS["halton-rolled"], halton_steps), "random": (ORDERS["random"], SCHEDULES["cosine"]),
             "confidence": (Confidence(linear(4.5, 0.0, "step")), pgm_steps("arccos"))}


@pytest.mark.parametrize("name", ORDERINGS)
@pytest.mark.parametrize("mode", ("cross-only", "interleave"))
def test_sampling_ragged_known_cells(name, mode):
    "Known cells stay, all others are filled with codes, whatever each sample knows; a sample is the same in any batch."
    m, (order, schedule) = build(MODES[mode]), ORDERINGS[name]
    codes, cond, _ = case(SMALL, 5)
    known = torch.arange(N) < torch.tensor([0, 3, 7, 11, 12])[:, None]
    known = known.gather(1, torch.rand(5, N, generator=torch.Generator().manual_seed(1)).argsort(1))
    sampler = lambda rows: Sampler(m, order, schedule, CFG(linear(1.0, 3.0, "step")), (Pick(),), steps=4, rows=rows)
    got = sampler(2).sample(cond, torch.arange(5), Keyed(0), grid=GRID, given=(codes[..., None], known))[..., 0]
    assert torch.equal(got[known], codes[known]) and bool(((0 <= got) & (got < 24)).all()) and not torch.equal(got, codes)
    free = sampler(2).sample(cond, torch.arange(5), Keyed(0), grid=GRID)
    alone = sampler(2).sample(cond.rows(torch.tensor([3])), torch.tensor([3]), Keyed(0), grid=GRID)
    assert torch.equal(free[3:4], alone)


def test_a_sample_does_not_see_its_batch():
    m = build(SMALL)
    codes, cond, groups = case(SMALL)
    with torch.no_grad(): together, = m.logits(codes, cond, groups)
    for i in range(3):
        with torch.no_grad(): alone, = m.logits(codes[i:i + 1], cond.rows(slice(i, i + 1)), groups[i:i + 1])
        assert torch.allclose(alone[0], together[i], atol=1e-5)


@pytest.mark.parametrize("shape", ((2, 7), (5, 3), (6, 6), (1, 9), (14,)))
def test_other_grids(shape):
    m, grid = build(SMALL), Grid(shape)
    codes, cond, _ = case(SMALL, n=grid.n)
    perm = ORDERS["random"].plan(grid, None, Keyed(0), At(torch.arange(3)))
    groups = torch.ones(3, grid.n, dtype=torch.bool).scatter(1, perm[:, :4], False)
    with torch.no_grad(): want = m.logits(codes, cond, groups, grid=grid)[0].gather(1, perm[:, 4:, None].expand(-1, -1, 24))
    assert torch.allclose(asked(m, codes, cond, perm[:, :4], perm[:, 4:], grid=grid), want, atol=1e-5)
    if len(shape) == 2: check_permutation(Sampler(m, ORDERS["halton"], halton_steps, steps=3).order.plan(grid, None, Keyed(0), At(torch.arange(2))), grid.n)


def test_a_large_grid_in_halton_order():
    m, grid = build(replace(SMALL, encoder=1, decoder=1)), Grid((64, 64))
    perm = check_permutation(ORDERS["halton"].plan(grid, None, Keyed(0), At(torch.arange(1))), 4096)
    state = m.begin((Cond(torch.tensor([1])),), grid)
    m.accept(state, perm[:, :3000], torch.zeros(1, 3000, 1, dtype=torch.long))
    assert m.predict(state, perm[:, 3000:3400], live=1).logits.isfinite().all() and sum(halton_steps(4096, 32)) == 4096


def test_training_is_a_function_of_its_draws():
    m = build(replace(SMALL, dropout=0.3)).train()
    codes, cond, _ = case(SMALL, 8)
    loss = lambda m, at, seed=0: m(codes, cond, Keyed(seed), at).total
    at = At(torch.arange(8), step=4)
    first = loss(m, at)
    assert torch.equal(first, loss(m, at)) and not torch.equal(first, loss(m, at._replace(step=5))) and not torch.equal(first, loss(m, at, 1))
    assert not torch.equal(first, loss(build(replace(SMALL, dropout=0.0)).train(), at))                     # dropout is on
    m.zero_grad(); first.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())
    half = m(codes, cond, Keyed(0), at, valid=torch.tensor([1] * 4 + [0] * 4)).total
    small = m(codes[:4], cond.rows(slice(4)), Keyed(0), At(torch.arange(4), step=4)).total
    assert torch.allclose(half, small, atol=1e-6)


def test_the_loss_is_over_codes_in_the_drawn_groups():
    m = build(replace(SMALL, class_dropout=0.0, dropout=0.0)).train()
    codes, cond, _ = case(SMALL)
    at = At(torch.arange(3), step=1)
    want = torch.nn.functional.cross_entropy(m.logits(codes, cond, draw_mask(Keyed(0), at, N))[0].flatten(0, 1), codes.flatten())
    assert torch.allclose(m(codes, cond, Keyed(0), at).total, want, atol=1e-6)


@pytest.mark.parametrize("registers", (0, 2))
def test_one_group_may_be_empty(registers):
    m = build(replace(SMALL, registers=registers, query="learn+freqs+logsumexp"))
    codes, cond, _ = case(SMALL)
    for groups in (torch.zeros(N, dtype=torch.bool), torch.ones(N)):
        loss = m.logits(codes, cond, groups)[0].logsumexp(-1).sum()
        m.zero_grad(); loss.backward()
        assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in m.parameters())


@pytest.mark.parametrize("registers", (0, 2, 4))
def test_upstream_hides_what_the_registers_push_out(registers):
    "The last R/2 known codes make no difference; in the first step all cells get one answer; weights are the same."
    right = build(replace(SMALL, registers=registers))
    faulty = PartitionTransformer(replace(right.config, compat="upstream")).eval(); faulty.load_state_dict(right.state_dict())
    codes, cond, _ = case(SMALL)
    cells, hidden = torch.arange(N).expand(3, -1), registers // 2
    changed = codes.clone(); changed[:, 6 - max(hidden, 1):6] = (codes[:, 6 - max(hidden, 1):6] + 5) % 24
    same = [torch.equal(asked(m, codes, cond, cells[:, :6], cells[:, 6:]), asked(m, changed, cond, cells[:, :6], cells[:, 6:])) for m in (right, faulty)]
    assert same == [False, registers > 0]
    first = [asked(m, codes, cond, cells[:, :0], cells) for m in (right, faulty)]
    assert torch.equal(first[1], first[1][:, :1].expand_as(first[1])) and torch.allclose(first[0], first[0][:, :1], atol=1e-6) == (registers == 0)


def test_upstream_draws_special_ids_by_confidence_and_forgets_eval():
    faulty = build(replace(SMALL, compat="upstream", dropout=0.5)); right = build(replace(SMALL, dropout=0.5))
    codes, cond, _ = case(SMALL)
    cells = torch.arange(N).expand(3, -1)
    def width(m, independent, training=False):
        state = m.train(training).begin((cond,), GRID); m.accept(state, cells[:, :3], codes[:, :3, None])
        return m.predict(state, cells[:, 3:], live=1, independent=independent).logits
    assert width(faulty, True).shape[-1] == 26 and width(faulty, False).shape[-1] == width(right, True).shape[-1] == 24
    assert not torch.allclose(width(faulty, True), width(faulty, True, True), atol=1e-3)
    assert torch.equal(width(faulty, False), width(faulty, False, True)) and torch.equal(width(right, True), width(right, True, True))
    faulty.head.bias.data[24:] = 50
    got = Sampler(faulty.eval(), Confidence(), pgm_steps("linear"), Unguided(), (Pick(),), steps=4, rows=3, compat="upstream").sample(cond, torch.arange(3), Keyed(0), grid=GRID)
    assert bool((got == 23).all())                                                                          # every one a special id, each the last code in the end


@pytest.mark.parametrize("mode", ("cross-only", "interleave"))
def test_half_precision(mode):
    m = build(MODES[mode])
    codes, cond, groups = case(SMALL)
    with torch.no_grad(): want, = m.logits(codes, cond, groups)
    low = copy.deepcopy(m).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16): auto, = m.logits(codes, cond, groups)
    with torch.no_grad(): plain, = low.logits(codes, cond, groups)
    for got in (auto, plain, asked(low, codes, cond, torch.arange(4).expand(3, -1), torch.arange(4, N).expand(3, -1))): assert got.dtype == torch.float32 and got.isfinite().all()
    assert (auto - want).abs().mean() < 0.1 * want.abs().mean() and (plain - want).abs().mean() < 0.1 * want.abs().mean()
    with torch.autocast("cpu", torch.bfloat16):
        got = Sampler(m, ORDERS["halton"], halton_steps, CFG(2.0), steps=4, rows=3).sample(cond, torch.arange(3), Keyed(0), grid=GRID)
    assert bool((got >= 0).all())


@pytest.mark.parametrize("mode", MODES)
def test_names_go_both_ways(mode):
    m = build(MODES[mode])
    names = pgm_names(m.config)
    theirs = names.export(m.state_dict(), m)
    again = names.load_into(PartitionTransformer(m.config), theirs)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), m.state_dict().values()))
    if mode == "interleave":
        with pytest.raises(Mismatch): names.load_into(PartitionTransformer(SMALL), theirs)


SPEC = {"register": 2, "codebook_size": 24, "model": {"length": 17, "hidden_size": 32, "n_heads": 2, "n_class": 5, "encoder": {"n_blocks": 1}, "decoder": {"n_blocks": 2}}}


@pytest.mark.parametrize("bad,argument", (
    (dict(registers=3), "registers"), (dict(dim=30), "dim"), (dict(mode="crossed"), "mode"), (dict(mode="interleave-2-cross"), "decoder"), (dict(query="learn+mean"), "query"),
    (dict(network="mlp"), "network"), (dict(rate="pow"), "rate"), (dict(compat="old"), "compat"), (dict(mlp_ratio=0), "mlp_ratio"), (dict(encoder=0), "encoder")))
def test_configurations_that_cannot_be(bad, argument):
    with pytest.raises(BadInput) as e: replace(SMALL, **bad)
    assert e.value.argument == argument


def test_requests_that_cannot_be():
    m = build(SMALL)
    codes, cond, groups = case(SMALL)
    state = m.begin((cond,), GRID)
    m.accept(state, torch.arange(4).expand(3, -1), codes[:, :4, None])
    wrong = {"plan": lambda: m.logits(codes, cond), "positions": lambda: m.predict(state, torch.arange(9).expand(3, -1), live=1), "live": lambda: m.predict(state, torch.arange(4, 6).expand(3, -1), live=2),
             "labels": lambda: m.begin((Cond(torch.tensor([6])),), GRID), "branches": lambda: m.begin((cond, cond.rows(slice(2))), GRID), "grid": lambda: m.check_grid(Grid((6, 8), (3, 4))),
             "codes": lambda: m.logits(codes + 24, cond, groups), "model.length": lambda: pgm_config(SPEC | {"model": SPEC["model"] | {"length": 18}}),
             "algo.causal_attention": lambda: pgm_config(SPEC | {"algo": {"causal_attention": True}}),
             "model.swap.normalize_mode": lambda: pgm_config(SPEC | {"model": SPEC["model"] | {"swap": {"normalize_mode": "rmsnorm"}}})}
    for argument, call in wrong.items():
        with pytest.raises(BadInput) as e: call()
        assert e.value.argument == argument, (argument, str(e.value))
    with pytest.raises(BadInput): m.logits(codes, cond, torch.full((3, N), 2))
    assert pgm_config(SPEC, grid=(2, 8)).grid == (2, 8) and decoder_plan("cross-only", 2) == [True, True]
