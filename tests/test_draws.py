"Counted draws: the words of a straightforward Philox whatever is asked for, in few operations and little memory."
import math

import numpy as np
import pytest
import torch
from torch.autograd.profiler import profile

from vgnb.draws import At, Keyed

DRAWS = Keyed(3).fork("again")
LOW = np.uint64(0xFFFFFFFF)


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


def test_a_draw_is_few_operations():
    at, logits = At(torch.arange(50), torch.arange(3).expand(50, 3), step=1), torch.zeros(50, 3, 256)
    DRAWS.uniform("token", at, 256)                                    # the first call makes the key's tensors
    for most, draw in ((104, lambda: DRAWS.uniform("token", at)),
                       (112, lambda: DRAWS.uniform("token", at, 256)),
                       (116, lambda: DRAWS.gumbel("token", at, 256)),
                       (118, lambda: DRAWS.categorical("token", at, logits))):
        _, operations, _ = bill(draw)
        assert 60 < operations <= most


@pytest.mark.parametrize("b, k, n", [(8, 1, 16384), (64, 1, 16384), (64, 64, 256)])
def test_a_draw_needs_little_memory_beside_its_result(b, k, n):
    at, logits = At(torch.arange(b), torch.arange(k).expand(b, k)), torch.zeros(b, k, n)
    for draw in (DRAWS.uniform, DRAWS.gumbel):
        _, _, beside = bill(lambda draw=draw: draw("token", at, n))
        assert 0 < beside <= 8 * logits.numel()
    _, _, beside = bill(lambda: DRAWS.categorical("token", at, logits))
    assert 0 < beside <= min(12 * logits.numel(), 4 << 20), "noise is there for some of the rows at a time"
