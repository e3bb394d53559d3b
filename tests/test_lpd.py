"LPD where a page has no room: any cut of any order, waiting branches and groups, orders in numbers, files, scripts."
import argparse
import copy
import math
from dataclasses import replace

import pytest
import torch

from vgnb.core import BadInput, Mismatch
from vgnb.draws import At, Keyed
from vgnb.families import published_model, recognised
from vgnb.generators.generator import Cond, Grid, Plan
from vgnb.generators.joint_queries import JointQueryTransformer, joint_query_presets, lpd_config, lpd_names, resized
from vgnb.generators.locality import LocalityAware, lpd_sizes, lpd_steps
from vgnb.generators.orders import ORDERS, Random, check_permutation
from vgnb.generators.random_order import RandomOrderTransformer, random_order_presets
from vgnb.generators.schedules import SCHEDULES, check_counts, even
from vgnb.sampling.applications import Inpaint, Morph, Outpaint
from vgnb.sampling.guidance import CFG
from vgnb.sampling.painting import Request
from vgnb.sampling.pick import Pick
from vgnb.sampling.sampler import Sampler
from vgnb.saved import load_model, save_model
from vgnb.zoo import export_published, load_published

SMALL = replace(joint_query_presets["tiny"], layers=2, dim=48, heads=3, vocab=32, grid=(3, 4), classes=5,
                steps=(12, 5, 2), class_everywhere=False, std=0.3)
KINDS = {"plain": SMALL, "everywhere": replace(SMALL, class_everywhere=True), "line": replace(SMALL, grid=(12,))}
GRID = Grid((3, 4))
N = GRID.n


def build(config=SMALL, seed=0): return JointQueryTransformer(config, seed).eval()


def case(b=3, seed=0):
    "Codes (b, n, 1), labels, and an order (b, n) for each sample."
    g = torch.Generator().manual_seed(seed)
    codes, labels = torch.randint(32, (b, N, 1), generator=g), torch.randint(5, (b,), generator=g)
    return codes, Cond(labels), torch.rand(b, N, generator=g).argsort(1)


def at(codes, cells): return codes.gather(1, cells[..., None])


def grouping(n, g):
    "Random sizes that add up to n."
    sizes = []
    while sum(sizes) < n: sizes.append(min(int(torch.randint(1, 6, (), generator=g)), n - sum(sizes)))
    return sizes


def close(a, b): torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def run(m, codes, cond, plan, live):
    "Logits of each step, (live, b, k, V)."
    state, out = m.begin((cond, m.null(cond)), Grid(m.grid)), []
    if plan.known: m.accept(state, plan.perm[:, :plan.known], at(codes, plan.perm[:, :plan.known]))
    for step, columns in enumerate(plan.groups()):
        cells = plan.perm[:, columns]
        out.append(m.predict(state, cells, live=live(step)).logits)
        m.accept(state, cells, at(codes, cells))
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_cached_equals_uncached_in_any_grouping(kind):
    "With cells known or not, and a null branch that rests now and then."
    m, (codes, cond, order) = build(KINDS[kind]), case()
    g = torch.Generator().manual_seed(1)
    for known in (0, 1, 5):
        plan = Plan(order, grouping(N - known, g))
        with torch.no_grad(): whole = [m.logits(codes, c, plan)[0] for c in (cond, m.null(cond))]
        rest = [1 + int(torch.randint(2, (), generator=g)) for _ in plan.counts]
        for logits, columns in zip(run(m, codes, cond, plan, rest.__getitem__), plan.groups()):
            for branch, one in enumerate(logits): close(one, whole[branch][:, columns])


def test_groups_that_wait_keep_their_sizes():
    "Accepted twice without a question between: two groups, whose tokens don't see the later one's."
    m, (codes, cond, order) = build(), case()

    @torch.no_grad()
    def asked(*edges):
        state = m.begin((cond,), GRID)
        for a, b in zip(edges, edges[1:]): m.accept(state, order[:, a:b], at(codes, order[:, a:b]))
        return m.predict(state, order[:, edges[-1]:edges[-1] + 3], live=1).logits[0]

    def known(sizes): return m.logits(codes, cond, Plan(order, [*sizes, 3, N - 8]))[0][:, 5:8].detach()

    close(asked(0, 2, 5), known([2, 3]))
    close(asked(0, 5), known([5]))
    assert (asked(0, 2, 5) - asked(0, 5)).abs().max() > 1e-3


def test_asked_twice_and_asked_for_others():
    "A question leaves nothing behind: asked again, or for other cells first, the answer is the same."
    m, (codes, cond, order) = build(), case()
    with torch.no_grad():
        state = m.begin((cond,), GRID)
        m.accept(state, order[:, :4], at(codes, order[:, :4]))
        first = m.predict(state, order[:, 4:7], live=1).logits
        m.predict(state, order[:, 7:12], live=1)
        close(m.predict(state, order[:, 4:7], live=1).logits, first)
        back = m.predict(state, order[:, [6, 4, 5]], live=1).logits
    close(back[:, :, [1, 2, 0]], first)                          # a set: the order in which it is asked is nothing
    alone = m.logits(codes, cond, Plan(order, [4, 1, 7]))[0][:, 4:5].detach()
    assert (first[0, :, :1] - alone).abs().max() > 1e-3           # but another set has another answer


def test_padded_equals_unpadded():
    "Rows that only fill a batch up change nothing, nor do the other samples."
    m, (codes, cond, order) = build(), case(4)
    plan = Plan(order, [1, 3, 8])
    whole = m.logits(codes, cond, plan)[0]
    for rows in (slice(0, 1), slice(1, 3)):
        close(m.logits(codes[rows], cond.rows(rows), Plan(order[rows], plan.counts))[0], whole[rows])


@pytest.mark.parametrize("order", ["locality", "random", "hilbert"])
def test_a_sample_is_the_same_in_any_batch(order):
    m, ids = build(), torch.arange(11)
    guidance = CFG(2.0, start=1.0, by="column")
    sampler = Sampler(m, ORDERS[order], lpd_sizes, guidance, (Pick(top_k=20),), steps=5, rows=4)
    whole = sampler.sample(Cond(ids % 5), ids, Keyed(0), grid=GRID)
    for part in ([3], [10, 0, 7], [5, 6]):
        part = torch.tensor(part)
        assert torch.equal(sampler.sample(Cond(part % 5), part, Keyed(0), grid=GRID), whole[part])
    assert len({tuple(c.flatten().tolist()) for c in whole}) == 11


def test_known_cells_stay_and_the_others_are_filled():
    "Any mask, another for every sample: none known, all known."
    m, ids, g = build(), torch.arange(9), torch.Generator().manual_seed(0)
    codes = torch.randint(32, (9, N, 1), generator=g)
    known = torch.rand(9, N, generator=g) < torch.linspace(0, 1.2, 9)[:, None]
    sampler = Sampler(m, LocalityAware(repulsion=1.0), lpd_sizes, CFG(2.0), steps=4, rows=3)
    out = sampler.sample(Cond(ids % 5), ids, Keyed(0), grid=GRID, given=(codes, known))
    assert torch.equal(out[known], codes[known]) and (out >= 0).all() and (out < 32).all()
    alone = sampler.sample(Cond(ids[6:] % 5), ids[6:], Keyed(0), grid=GRID, given=(codes[6:], known[6:]))
    assert torch.equal(alone, out[6:])


def test_applications():
    "Painting in, out and morphing; a larger canvas in one run would need positions that are not there."
    m, (codes, cond, _) = build(), case()
    sampler = Sampler(m, ORDERS["locality"], lpd_sizes, CFG(2.0), steps=4, rows=3)
    request = Request(sampler, cond, torch.arange(3), Keyed(0), codes)
    mask = torch.zeros(3, 3, 4, dtype=torch.bool)
    mask[:, :2, 1:3] = True
    painted = Inpaint(mask).paint(request).sample()
    kept = ~mask.flatten(1)
    assert torch.equal(painted[kept], codes[kept])
    frames = Morph(frames=3, order="locality").paint(request).frames()
    assert frames.shape == (3, 3, N, 1) and (frames >= 0).all()
    wider = Outpaint((3, 6)).paint(request).sample().view(3, 3, 6)              # in windows of its own grid
    assert torch.equal(wider[:, :, 1:5], codes.view(3, 3, 4)) and (wider >= 0).all()
    with pytest.raises(BadInput, match="training grid"): Outpaint((3, 6), ntk_boundary=0).paint(request)


def test_a_resting_branch_costs_nothing_and_a_step_is_one_forward():
    m, (_, cond, _), rows = build(), case(), []
    m.blocks[0].register_forward_pre_hook(lambda _, args: rows.append(tuple(args[0].shape[:2])))
    ids = torch.arange(3)
    sampler = Sampler(m, ORDERS["locality"], lpd_sizes, CFG(1.0), steps=5, rows=3)
    sampler.sample(cond, ids, Keyed(0), grid=GRID)
    sizes = lpd_sizes(N, 5)
    assert rows == [(3, before + size) for before, size in zip((1, *sizes), sizes)]


# Training

def test_a_step_is_a_function_of_its_draws():
    "Orders and dropped labels belong to samples, groups to the step; another step has others."
    config = replace(SMALL, dropout=0.2, class_dropout=0.5)
    m, (codes, cond, _) = build(config).train(), case(6)

    def loss(rows, step):
        rows = torch.tensor(rows)
        return m(codes[rows], cond.rows(rows), Keyed(0), At(rows, step=step)).total.detach()

    whole = loss(range(6), 4)
    torch.testing.assert_close((loss([0, 1], 4) + loss([2, 3, 4, 5], 4) * 2) / 3, whole, atol=1e-5, rtol=1e-5)
    assert loss(range(6), 5) != whole and loss(range(6), 4) == whole
    weighted = m(codes, cond, Keyed(0), At(torch.arange(6), step=4), torch.tensor([1., 1, 0, 0, 0, 0])).total.detach()
    torch.testing.assert_close(weighted, loss([0, 1], 4), atol=1e-5, rtol=1e-5)


def test_every_grouping_is_drawn():
    m, (codes, cond, _), lengths = build(), case(), []
    m.blocks[0].register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    for step in range(40): m(codes, cond, Keyed(3), At(torch.arange(3), step=step))
    assert set(lengths) == {1 + 2 * N - sizes[-1] for sizes in SMALL.groupings()}


def test_initial_weights_are_a_function_of_seed_and_name():
    one, same, other = build(), build(), build(seed=1)
    deeper = build(replace(SMALL, layers=3))
    for (name, a), b, c in zip(one.state_dict().items(), same.state_dict().values(), other.state_dict().values()):
        assert torch.equal(a, b) and torch.equal(a, deeper.state_dict()[name])
        fixed = "norm" in name or "enter" in name or (name.endswith("bias"))
        assert torch.equal(a, c) == fixed, name
    qkv = one.blocks[0].attention.qkv.weight
    assert 0.9 < qkv.abs().max() / math.sqrt(6 / (48 + 144)) <= 1 and 0.25 < one.positions.std() < 0.35


@pytest.mark.full
def test_compiled_equals_eager():
    "The loss with every dropout on, and its gradients, in several groupings."
    m, (codes, cond, _) = build(replace(SMALL, layers=1, dropout=0.2)).train(), case()
    compiled = copy.deepcopy(m)
    compiled.compile(backend="aot_eager")
    for step in range(2):
        for model in (m, compiled): model(codes, cond, Keyed(0), At(torch.arange(3), step=step)).total.backward()
    for a, b in zip(m.parameters(), compiled.parameters()):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.full
def test_half_precision():
    "Under autocast, training and sampling run; logits are fp32 and near those of fp32."
    m, (codes, cond, order) = build(), case()
    plan = Plan(order, [1, 4, 7])
    whole = m.logits(codes, cond, plan)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = m.logits(codes, cond, plan)[0]
        steps = torch.cat(run(m, codes, cond, plan, lambda step: 2), 2)[0]
    assert half.dtype == torch.float32
    assert (half - whole).abs().mean() < 0.05 * whole.std() and (steps - whole).abs().mean() < 0.05 * whole.std()


# Orders

def away(a, b, w): return abs(a // w - b // w), abs(a % w - b % w)


def support(cell, known, w):
    "What known cells around it amount to."
    beside = [away(cell, k, w) for k in known]
    return sum(1 if sum(d) == 1 else 0.5 ** 0.5 for d in beside if max(d) == 1)


def walked(cells, known, n, w, reach=2):
    "How many of a step's cells were taken as near ones; each must be the best supported outside of the others' boxes."
    score = {c: support(c, known, w) for c in range(n) if c not in known}
    for count, cell in enumerate(cells):
        free = [c for c in score if score[c] >= 1 and all(max(away(c, k, w)) > reach for k in cells[:count])]
        if not free: return count
        assert cell in free and score[cell] == pytest.approx(max(score[c] for c in free))
    return len(cells)


@pytest.mark.parametrize("shape, steps", [((8, 8), 8), ((12, 12), 14), ((5, 9), 7), ((1, 12), 4), ((12,), 4)])
def test_an_order_keeps_its_rules(shape, steps):
    "Each cell once, as many in a step as asked; none within the box of another of its step while near ones are left."
    grid, w = Grid(shape), shape[-1]
    plan = LocalityAware().plan(grid, None, lpd_sizes, steps, Keyed(0), At(torch.arange(4)))
    check_permutation(plan.perm, grid.n)
    assert plan.counts == lpd_sizes(grid.n, steps)
    near = 0
    for perm in plan.perm.tolist():
        for columns in plan.groups(): near += walked(perm[columns], set(perm[:columns.start]), grid.n, w)
    assert near >= 0.25 * plan.perm.numel()


def test_an_order_belongs_to_its_sample():
    "Equal at any batch and place in it; another seed, sample or number of steps has another."
    grid, ids = Grid((8, 8)), torch.tensor([5, 700, 2, 5])

    def perm(ids, seed=0, steps=12):
        return LocalityAware().plan(grid, None, lpd_sizes, steps, Keyed(seed), At(ids)).perm

    some = perm(ids)
    assert torch.equal(some[0], some[3]) and not torch.equal(some[0], some[2])
    assert torch.equal(perm(torch.arange(601))[[5, 2]], some[[0, 2]])          # more than are computed at once
    assert not torch.equal(perm(ids, seed=1), some) and not torch.equal(perm(ids, steps=11), some)


def test_first_cells_are_spread_evenly():
    first = LocalityAware().plan(Grid((4, 4)), None, lpd_sizes, 4, Keyed(0), At(torch.arange(3200))).perm[:, 0]
    assert (first.bincount(minlength=16) - 200).abs().max() < 60


@pytest.mark.parametrize("n", [1, 2, 12, 64, 100, 256, 1024])
def test_group_sizes_never_decrease_and_begin_with_one(n):
    for steps in {1, 2, 3, 7, n // 3 + 1, n, n + 5, *lpd_steps(n)}:
        for start in {0, 1, n // 2, n}:
            sizes = check_counts(SCHEDULES["lpd"](n, steps, start), n, start)
            assert sizes == sorted(sizes) and len(sizes) == min(steps, n - start)
            assert len(sizes) < 2 or sizes[0] == 1


def test_other_models_follow_it_and_it_follows_other_schedules():
    small = replace(random_order_presets["tiny"], layers=1, dim=32, heads=2, vocab=16, grid=(4, 4))
    m = RandomOrderTransformer(small).eval()
    for schedule in (even, SCHEDULES["randar"]):
        sampler = Sampler(m, ORDERS["locality"], schedule, steps=4, rows=2)
        codes = sampler.sample(Cond(torch.arange(2)), torch.arange(2), Keyed(0), grid=Grid((4, 4)))
        assert (codes >= 0).all()


# Refusals

PERM = torch.arange(N)[None]


@pytest.mark.parametrize("argument, call", [
    ("grid", lambda m, s: m.begin((Cond(torch.tensor([0])),), Grid((4, 4)))),
    ("grid", lambda m, s: m.begin((Cond(torch.tensor([0])),), Grid((3, 4), base=(2, 2)))),
    ("grid", lambda m, s: m.logits(torch.zeros(1, 16, 1).long(), Cond(torch.tensor([0])), grid=Grid((4, 4)))),
    ("plan", lambda m, s: m.logits(*s, Plan(PERM, [1, 0, N - 1]))),
    ("plan", lambda m, s: m.logits(*s, Plan(PERM, [1, N]))),
    ("plan", lambda m, s: m.logits(*s, Plan(PERM, [1.5, N - 1.5]))),
    ("plan", lambda m, s: m.logits(*s, Plan(PERM * 0, [1, N - 1]))),
    ("plan", lambda m, s: m.logits(*s, [1, N - 1])),
    ("labels", lambda m, s: m.logits(s[0], Cond(torch.tensor([6])))),
    ("codes", lambda m, s: m.logits(s[0] + 40, s[1])),
    ("schedule", lambda m, s: Sampler(m, Random(), lambda *_: [1, 3]).sample(s[1], PERM[0, :1], Keyed(0), grid=GRID)),
    ("order", lambda m, s: Sampler(m, ORDERS["confidence"])),
    ("guidance", lambda m, s: Sampler(build(replace(SMALL, class_dropout=0)), guidance=CFG(2.0)).sample(
        s[1], PERM[0, :1], Keyed(0), grid=GRID)),
    ("proximity", lambda m, s: LocalityAware(proximity=-1.0)),
    ("steps", lambda m, s: replace(SMALL, steps=(0,))),
    ("schedule", lambda m, s: replace(SMALL, schedule="fast")),
    ("grid", lambda m, s: resized(m, (5,))),
])
def test_what_is_refused(argument, call):
    codes, cond, _ = case(1)
    with pytest.raises(BadInput) as e: call(build(), (codes, cond))
    assert e.value.argument.startswith(argument)


# Files

def test_published_files_there_and_back(tmp_path):
    "As the authors save it, with optimizer and arguments beside; other sizes need their arguments."
    spec = {"img_size": 64, "decoder_embed_dim": 48, "decoder_depth": 2, "decoder_num_heads": 3, "class_num": 5,
            "vqgan_vocab_size": 32, "attn_dropout": 0.1, "proj_dropout": 0.1}
    m = build(lpd_config(spec))
    theirs = export_published(m, tmp_path / "m.safetensors")
    assert {"fake_latent", "pos_embed", "mask_token", "blocks.1.mlp.fc2.bias"} <= theirs.keys()
    content = {"model": theirs, "optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(model="lpd_l")}
    torch.save(content, tmp_path / "checkpoint-last.pth")
    again = load_published(tmp_path / "checkpoint-last.pth", spec=spec)
    codes, cond = torch.zeros(1, 16, 1).long(), Cond(torch.tensor([1]))
    assert torch.equal(again.logits(codes, cond)[0], m.logits(codes, cond)[0])
    with pytest.raises(Mismatch, match="no published size"): load_published(tmp_path / "m.safetensors")


def test_published_sizes_are_recognised():
    for name in ("l-256", "xl-512"):
        config = joint_query_presets[name]
        with torch.device("meta"): state = lpd_names.export(JointQueryTransformer(config).state_dict())
        match, = recognised(state)
        assert match.family.system == "lpd" and match.family.read(match.spec) == config
    with torch.device("meta"): m, _ = published_model({"model": "lpd_xl"}, system="lpd")
    assert (m.config.layers, m.config.dim) == (36, 1280)


def test_a_saved_model_is_the_same_and_a_resized_one_is_another(tmp_path):
    m, (codes, cond, _) = build(), case()
    save_model(tmp_path / "m", m, m.config)
    assert torch.equal(load_model(tmp_path / "m").logits(codes, cond)[0], m.logits(codes, cond)[0])
    larger = resized(m, (6, 8), steps=(48, 8))
    assert larger.grid == (6, 8) and len(larger.config.groupings()) == 2
    assert larger.logits(torch.zeros(3, 48, 1).long(), cond)[0].shape == (3, 48, 32)
    ours, theirs = m.state_dict(), larger.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name != "positions")
