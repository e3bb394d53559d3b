"Counted draws: the words of a straightforward Philox whatever is asked for, in few operations and little memory."
import math
import time

import numpy as np
import pytest
import torch
from torch.autograd.profiler import profile

from vgnb import draws, native
from vgnb.draws import At, Keyed, philox
from vgnb.sampling.pick import Pick, filtered

DRAWS = Keyed(3).fork("again")
LOW = np.uint64(0xFFFFFFFF)
LOOP = draws._loops
WAYS = ["in place", *(["one loop"] if native._compiler() else [])]


@pytest.fixture(autouse=True, params=WAYS)
def way(request, monkeypatch):
    "Everything here holds with a compiler and without."
    if request.param == "in place": monkeypatch.setattr(draws, "_loops", lambda: None)
    else: assert draws._loops() is not None
    return request.param


def words(key, *counter):
    "Philox4x32-10 in unsigned numbers, (..., 4)."
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(c).astype(np.int64).view(np.uint64) for c in counter))
    for r in range(10):
        k0, k1 = (np.uint64((k + r * w) % 2 ** 32) for k, w in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True))
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = p1 >> np.uint64(32) ^ c1 ^ k0, p1 & LOW, p0 >> np.uint64(32) ^ c3 ^ k1, p0 & LOW
    return np.stack([c0, c1, c2, c3], -1)


def reference(name, at, *shape):
    "Words of a draw, (b, k, *shape) uint32."
    b, n = len(at.ids), math.prod(shape)
    cells = np.zeros((b, 1), np.int64) if at.positions is None else at.positions.numpy().astype(np.int64)
    when = np.broadcast_to(np.asarray(at.step * 256 + at.level), (1, 1, 1))
    blocks = np.arange((n + 3) // 4)
    found = words(DRAWS.key(name), blocks, at.ids.numpy()[:, None, None], cells[..., None], when)
    found = found.reshape(*cells.shape, 4 * len(blocks))[..., :n].astype(np.uint32)
    return torch.from_numpy((found[:, 0] if at.positions is None else found).astype(np.int64)).unflatten(-1, shape)


def bill(draw):
    "What a call gives, its operations, and the bytes that it held at most beside what it held at the end."
    with profile(profile_memory=True) as profiler: made = draw()
    operations = [e for e in profiler.function_events if e.name.startswith("aten::") and e.cpu_parent is None]
    events = sorted(profiler.kineto_results.events(), key=lambda e: e.start_ns())
    held = np.cumsum([0, *(e.nbytes() for e in events if e.name() == "[memory]")])
    return made, len(operations), int(held.max() - held[-1])


@pytest.mark.parametrize("b, k, shape", [
    (0, 2, (3,)), (3, 0, (5,)), (2, 3, (0,)), (1, 5, (2, 0, 3)), (3, 4, (1,)), (5, 7, (2, 3)), (3, 2, (4,)),
    (30, 7, (11,)), (2, 1, (70001,)), (40000, 1, (1,)), (70, 1, (1024,)), (2, 5, (16387,)), (1, 20000, (3,))])
def test_words_are_those_of_the_plain_way(b, k, shape):
    cells = torch.randint(0, 2 ** 34, (b, k), generator=torch.Generator().manual_seed(0))
    for at in (At(torch.arange(b)),
               At(torch.arange(b), cells, step=3, level=1),
               At(torch.arange(b) + 2 ** 33 - 2, cells, step=2 ** 40),            # words of more than 32 bits
               At(torch.arange(b, dtype=torch.int32), cells.to(torch.int32), step=torch.tensor(7)),
               At(-1 - torch.arange(b), cells, step=-5)):
        want = reference("any", at, *shape)
        assert torch.equal(DRAWS.bits("any", at, *shape), want)
        u = DRAWS.uniform("any", at, *shape)
        assert u.dtype == torch.float32 and torch.equal(u, ((want >> 9).float() + 0.5) * 2.0 ** -23)
        assert torch.equal(DRAWS.gumbel("any", at, *shape), -torch.log(-torch.log(u)))


def test_a_draw_without_a_shape_is_the_first_word():
    for at in (At(torch.arange(3)), At(torch.arange(3), torch.arange(8).view(1, 8).expand(3, 8))):
        assert torch.equal(DRAWS.bits("one", at), reference("one", at, 1)[..., 0])
        assert torch.equal(DRAWS.uniform("one", at), DRAWS.uniform("one", at, 5)[..., 0])


def test_every_sample_may_have_a_step_of_its_own():
    steps, at = torch.tensor([4, 0, 9]), At(torch.arange(3), torch.arange(8).expand(3, 8))
    together = DRAWS.uniform("step", at._replace(step=steps[:, None, None]), 7)
    for i, step in enumerate(steps.tolist()):
        assert torch.equal(together[[i]], DRAWS.uniform("step", At(at.ids[[i]], at.positions[[i]], step=step), 7))
    whole = DRAWS.uniform("step", At(at.ids, step=steps[:, None, None]), 20000)
    assert torch.equal(whole[1:2], DRAWS.uniform("step", At(at.ids[1:2]), 20000))


@pytest.mark.parametrize("b, k, n", [(3, 2, 5), (1, 1, 70001), (9, 4, 16384)])
def test_the_rest_follows_from_the_words(b, k, n):
    at = At(torch.arange(b), torch.arange(k).expand(b, k), step=2)
    logits = torch.randn(b, k, n, generator=torch.Generator().manual_seed(1))
    logits = logits.masked_fill(logits < 0.5, -torch.inf)
    noise = DRAWS.gumbel("rest", at, n)
    for scores in (logits, logits.double(), logits.bfloat16()):
        assert torch.equal(DRAWS.categorical("rest", at, scores), (scores.float() + noise).argmax(-1))

    keys = DRAWS.bits("rest", At(at.ids, step=2), n)
    assert torch.equal(DRAWS.permutation("rest", at, n), keys.argsort(dim=-1, stable=True))
    u = DRAWS.uniform("rest", at, n, 2)
    normal = torch.sqrt(-2 * torch.log(u[..., 0])) * torch.cos(2 * math.pi * u[..., 1])
    assert torch.equal(DRAWS.normal("rest", at, n), normal)


@pytest.mark.parametrize("width, scale", [(1, 4.0), (5, 0.0), (70, 1.0), (1000, 12.0)])
def test_who_wins_is_who_has_the_largest_sum(width, scale):
    "Flat logits and steep ones, most or all of them cut, of few bits, seen through strides; addresses too large."
    V = 1024 + width
    logits = scale * torch.randn(3, V, 7, generator=torch.Generator().manual_seed(width)).transpose(1, 2)
    at = At(torch.arange(3) + 2 ** 31, torch.arange(7).expand(3, 7), step=width)
    cut, whole = logits.masked_fill(logits < 1.5 * scale, -torch.inf), torch.full_like(logits, -torch.inf)
    one = whole.clone()
    one[..., 5] = 0
    for scores in (logits, cut, cut.bfloat16(), logits.double(), whole, one):
        for where in (at, at._replace(ids=at.ids + 2 ** 32), at._replace(step=torch.arange(3)[:, None, None])):
            sums = scores.float() + DRAWS.gumbel("who", where, V)
            assert torch.equal(DRAWS.categorical("who", where, scores), sums.argmax(-1))
    assert torch.equal(DRAWS.categorical("who", at, one), torch.full((3, 7), 5))
    odd = logits.clone()
    odd[1, 2, 3], odd[2, 0, 9] = torch.nan, torch.inf
    assert torch.equal(DRAWS.categorical("who", at, odd), (odd + DRAWS.gumbel("who", at, V)).argmax(-1))


@pytest.mark.parametrize("size", [2.0 ** 20, 1e7, 1e8, 1e12])
def test_of_large_numbers_that_are_equal_the_first_wins(size):
    "A float's spacing is larger than the noise: sums are equal, and the first of them has to be found."
    at, logits = At(torch.arange(500), torch.zeros(500, 1, dtype=torch.int64)), torch.full((500, 1, 1100), -size)
    assert torch.equal(DRAWS.categorical("who", at, logits), (logits + DRAWS.gumbel("who", at, 1100)).argmax(-1))


def test_addresses_of_every_kind_are_read_as_they_are():
    "Steps of few bits, a cell's own; functions that torch maps. A float is none."
    ids, cells = torch.arange(3), torch.arange(6).view(3, 2)
    few = DRAWS.uniform("at", At(ids, cells, step=torch.tensor(2, dtype=torch.int32)), 5)
    assert torch.equal(few, DRAWS.uniform("at", At(ids, cells, step=2), 5))
    own = torch.arange(6).view(3, 2, 1)
    each = DRAWS.uniform("at", At(ids, cells, step=own), 5)
    for i, j in ((0, 1), (2, 0)):
        one = DRAWS.uniform("at", At(ids[i:i + 1], cells[i:i + 1, j:j + 1], step=int(own[i, j])), 5)
        assert torch.equal(each[i, j], one[0, 0])
    logits = torch.randn(4, 3, 2, 1100, generator=torch.Generator().manual_seed(0))
    drawn = torch.func.vmap(lambda rows: DRAWS.categorical("at", At(ids, cells), rows))(logits)
    assert all(torch.equal(a, DRAWS.categorical("at", At(ids, cells), b)) for a, b in zip(drawn, logits, strict=True))
    for step in (2.0, torch.tensor(2.0)):
        with pytest.raises((TypeError, RuntimeError)): DRAWS.uniform("at", At(ids, cells, step=step), 5)


def test_a_draw_asks_nothing_of_settings_that_are_wrong(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("[of somebody else]\nx = 1\n")
    monkeypatch.chdir(tmp_path)
    native.native.cache_clear()
    assert (native.native("draws", draws._LOOP) is None) == (not native._compiler())


def test_the_bounds_hold_for_every_uniform():
    "All 2^23 of them: least noise, noise, largest noise of their bin."
    low, high, wide = draws._bounds()
    u = ((torch.arange(2 ** 23, dtype=torch.float64) + 0.5) * 2.0 ** -23).float()
    noise, bins = -torch.log(-torch.log(u)), ((1 - u).view(torch.int32) >> 18) & 1023
    assert (low[bins] < noise).all() and (noise < high[bins]).all() and (high - low).max() < wide


def test_a_draw_is_few_operations(way):
    at, logits = At(torch.arange(50), torch.arange(3).expand(50, 3), step=1), torch.zeros(50, 3, 256)
    DRAWS.uniform("token", at, 256)                                    # the first call makes the key's tensors
    for in_place, as_loop, draw in ((103, 8, lambda: DRAWS.uniform("token", at)),
                                    (111, 8, lambda: DRAWS.uniform("token", at, 256)),
                                    (115, 13, lambda: DRAWS.gumbel("token", at, 256)),
                                    (117, 16, lambda: DRAWS.categorical("token", at, logits))):
        _, operations, _ = bill(draw)
        assert operations <= as_loop if way == "one loop" else 60 < operations <= in_place


@pytest.mark.parametrize("b, k, n", [(8, 1, 16384), (64, 1, 16384), (64, 64, 256)])
def test_a_draw_needs_little_memory_beside_its_result(b, k, n, way):
    at, logits = At(torch.arange(b), torch.arange(k).expand(b, k)), torch.zeros(b, k, n)
    for draw in (DRAWS.uniform, DRAWS.gumbel):
        _, _, beside = bill(lambda draw=draw: draw("token", at, n))
        assert beside == 0 if way == "one loop" else 0 < beside <= 8 * logits.numel()
    _, _, beside = bill(lambda: DRAWS.categorical("token", at, logits))
    assert 0 < beside <= min(12 * logits.numel(), 4 << 20), "noise is there for some of the rows at a time"


@pytest.mark.parametrize("spoiled", ["no compiler", "a compiler that fails", "no home", "a home of somebody else"])
def test_whatever_the_machine_lacks_the_numbers_are_there(spoiled, tmp_path, monkeypatch):
    want = DRAWS.uniform("token", At(torch.arange(9)), 99)
    fails = tmp_path / "cc"
    fails.write_text("#!/bin/sh\nexit 1\n")
    fails.chmod(0o755)
    if spoiled == "no compiler": monkeypatch.setattr(native, "_compiler", lambda: None)
    if spoiled == "a compiler that fails": monkeypatch.setenv("CC", str(fails))
    monkeypatch.setenv("XDG_CACHE_HOME", str(fails if spoiled == "no home" else tmp_path))
    if spoiled == "a home of somebody else":
        (tmp_path / "vgnb" / "native").mkdir(parents=True, mode=0o777)
        (tmp_path / "vgnb" / "native").chmod(0o777)
    native.native.cache_clear()
    made = native.native("draws", draws._LOOP)
    native.native.cache_clear()
    assert (made is None) == ("compiler" in spoiled) or not native._compiler()
    assert not list(tmp_path.rglob("*.so")), "nothing is put where others write"
    monkeypatch.setattr(draws, "native", lambda *asked: made)
    monkeypatch.setattr(draws, "_loops", LOOP.__wrapped__)
    assert torch.equal(DRAWS.uniform("token", At(torch.arange(9)), 99), want)


# ---- the published vectors, statistics, cost: what nbs/studies/990_what_breaks.ipynb reports

PUBLISHED = [    # (counter, key, words) of the authors' known answers (Salmon et al., 2011: Random123's kat_vectors)
    ((0, 0, 0, 0), (0, 0), (0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8)),
    ((LOW,) * 4, (LOW,) * 2, (0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd)),
    ((0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344), (0xa4093822, 0x299f31d0),
     (0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1))]


@pytest.mark.fault("R1")
@pytest.mark.parametrize("how", ["eager", pytest.param("compiled", marks=pytest.mark.full)])
def test_the_published_vectors_come_out(how, figures):
    # with the key as a constant: for one that changes, torch 2.13's compiler writes C++ that is none
    f = philox if how == "eager" else torch.compile(philox, fullgraph=True, dynamic=False)
    for counter, key, want in PUBLISHED:
        found = f(tuple(torch.tensor([int(c)]) for c in counter), tuple(map(int, key)))
        assert tuple(int(w) for w in found) == want
    at, logits = At(torch.arange(64)), torch.randn(64, 1, 999, generator=torch.Generator().manual_seed(0))
    draw = DRAWS.categorical if how == "eager" else torch.compile(lambda *a: DRAWS.categorical(*a))
    assert torch.equal(draw("token", at, logits[:, 0]), DRAWS.categorical("token", at, logits[:, 0]))
    figures(vectors=len(PUBLISHED))


@pytest.mark.fault("R1")
@pytest.mark.full
def test_a_million_draws_are_even_and_neighbours_have_nothing_in_common(figures):
    "Streams whose seeds, names, ids or steps are neighbours."
    from scipy import stats
    n = 10 ** 6
    ids = At(torch.arange(n))
    streams = {
        "seed 0": Keyed(0).uniform("token", ids), "seed 1": Keyed(1).uniform("token", ids),
        "name": Keyed(0).uniform("tokeo", ids), "step 1": Keyed(0).uniform("token", ids._replace(step=1)),
        "position 1": Keyed(0).uniform("token", At(torch.arange(n), torch.ones(n, 1, dtype=torch.int64))).flatten()}
    chances = [stats.chisquare(torch.histc(u, 1000, 0, 1).numpy()).pvalue for u in streams.values()]
    assert all(0.001 < p < 0.999 for p in chances), chances
    found = np.corrcoef(torch.stack(list(streams.values())).numpy()) - np.eye(len(streams))
    later = np.corrcoef(streams["seed 0"][1:].numpy(), streams["seed 0"][:-1].numpy())[0, 1]
    most = max(abs(found).max(), abs(later))
    assert most < 0.003, found
    figures(draws=n, correlation=round(float(most), 5), least_chance=round(float(min(chances)), 4))


@pytest.mark.fault("R3")
@pytest.mark.full
@pytest.mark.parametrize("pick", [Pick(), Pick(top_k=8), Pick(top_p=0.8), Pick(temperature=0.7, top_k=20, top_p=0.9)],
                         ids=["plain", "top-k", "top-p", "all three"])
def test_choices_have_the_probabilities_that_were_asked_for(pick, figures):
    from scipy import stats
    n = 200_000
    logits = 1.5 * torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(3))
    asked = filtered(logits, pick.temperature, pick.top_k, pick.top_p).double().softmax(-1).flatten()
    drawn = torch.cat([pick(logits.expand(len(ids), 1, 32), None, Keyed(0), At(ids, torch.zeros(len(ids), 1).long()))[0]
                       for ids in torch.arange(n).split(20_000)])
    counts = torch.bincount(drawn.flatten(), minlength=32).double()
    assert (counts[asked == 0] == 0).all()
    variation = float((counts / n - asked).abs().sum() / 2)
    chance = stats.chisquare(counts[asked > 0].numpy(), n * asked[asked > 0].numpy()).pvalue
    assert variation < 0.01 and chance > 0.001, (variation, chance)
    figures(draws=n, variation=round(variation, 5), unlikely=0)


@pytest.mark.fault("R4")
@pytest.mark.full
def test_a_counted_draw_costs_about_what_a_draw_costs(figures):
    "64 tokens of 16,384, processor time, medians of seven in turn: the draw alone, so a bound for sampling with it."
    logits, at = torch.randn(64, 1, 16_384, generator=torch.Generator().manual_seed(0)), At(torch.arange(64))
    at = at._replace(positions=torch.zeros(64, 1, dtype=torch.int64))
    def counted(): return DRAWS.categorical("token", at, logits)
    def consumed(): return torch.multinomial(logits[:, 0].softmax(-1), 1)
    times = {counted: [], consumed: []}
    for n in range(8):
        for draw, taken in times.items():
            begun = time.process_time()
            for _ in range(4): draw()
            if n: taken.append(time.process_time() - begun)
    eager = float(np.median(times[counted]) / np.median(times[consumed]))
    assert eager <= 1.25, times
    figures(eager=round(eager, 3))
