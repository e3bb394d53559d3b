"A small block in one call: torch's numbers, rows that know nothing of each other, and when it stands back."
import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vgnb import layers, small_blocks
from vgnb.layers import (
    Attention,
    Blocks,
    Cache,
    RMSNorm,
    SwiGLU,
    TransformerBlock,
    additive,
    causal_mask,
    kept_in,
    rotary_table,
)

pytestmark = pytest.mark.skipif(small_blocks._block_loop() is None, reason="no compiler of C here")


def stack(d=48, heads=4, kv=2, hidden=52, count=2, **attention):
    g = torch.Generator().manual_seed(0)
    made = Blocks(TransformerBlock(Attention(d, heads, kv, **attention), SwiGLU(d, hidden), (RMSNorm(d), RMSNorm(d)))
                  for _ in range(count))
    for p in made.parameters():
        p.data = torch.randn(p.shape, generator=g) * (p.shape[-1] ** -.5 if p.dim() > 1 else 1)
    return made.eval()


def asked(b=3, n=2, start=5, d=48, heads=4, kv=2, count=2, each=False):
    "(x, rotary, past) with a cache of numbers."
    g, c = torch.Generator().manual_seed(b * n), d // heads
    cache = Cache(count, b, kv, start + n + 3, c)
    for t in (cache.keys, cache.values): t.copy_(torch.randn(1, 1, *t.shape[2:], generator=g))
    x = torch.randn(1, n, d, generator=g) + torch.arange(b)[:, None, None]
    rotary = rotary_table(torch.rand(b, n, c // 2, generator=g) if each else torch.rand(n, c // 2, generator=g))
    return x, rotary, cache.past(start, n)


@contextlib.contextmanager
def torch_only(monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(layers, "only_numbers", lambda x: False)
        yield


def used(monkeypatch) -> list:
    "Gets what each block was computed by: True, in one call."
    calls, plain = [], layers.in_one_call
    def noted(*args):
        y = plain(*args)
        calls.append(y is not None)
        return y
    monkeypatch.setattr(layers, "in_one_call", noted)
    return calls


@pytest.mark.parametrize("shape", [dict(), dict(d=60, heads=3, kv=1, hidden=70), dict(d=96, heads=3, kv=3, hidden=256)])
@pytest.mark.parametrize("n,start", [(1, 0), (1, 9), (4, 0), (3, 7)])
@pytest.mark.parametrize("each", [False, True])
def test_its_numbers_are_torchs(monkeypatch, shape, n, start, each):
    sizes = {k: v for k, v in shape.items() if k != "hidden"}
    blocks = stack(**shape)
    calls, found = used(monkeypatch), []
    for by_torch in (False, True):
        x, rotary, past = asked(n=n, start=start, each=each, **sizes)
        mask = causal_mask(n, start)
        with torch.no_grad(), torch_only(monkeypatch) if by_torch else contextlib.nullcontext():
            found.append((blocks(x, rotary, mask, past), past))
    (ours, mine), (theirs, their) = found
    assert calls == [True, True]
    assert (ours - theirs).abs().max() < 2e-6 * theirs.abs().max()
    for a, b in zip(mine, their):
        assert torch.allclose(a.keys, b.keys, atol=1e-4) and torch.allclose(a.values, b.values, atol=1e-4)


@torch.no_grad()
def test_a_mask_of_each_row(monkeypatch):
    blocks, calls = stack(), used(monkeypatch)
    seen = torch.rand(3, 1, 2, 7, generator=torch.Generator().manual_seed(1)) < .6
    seen[..., 0] = True
    for mask in (seen, additive(seen)):
        x, rotary, past = asked()
        ours = blocks(x, rotary, mask, past)
        x, rotary, past = asked()
        with torch_only(monkeypatch): theirs = blocks(x, rotary, mask, past)
        assert (ours - theirs).abs().max() < 2e-6 * theirs.abs().max()
    assert calls == 4 * [True]


@torch.no_grad()
@pytest.mark.parametrize("hidden", [52, 70, 256])
def test_a_row_is_the_same_to_the_bit_in_any_company(hidden):
    blocks = stack(hidden=hidden)
    def run(b, n):
        x, rotary, past = asked(b=9, n=6)
        past = [p._replace(keys=p.keys[:b], values=p.values[:b]) for p in past]
        return blocks(x[:b, :n], rotary[:n], causal_mask(n, 5), past)
    whole = run(9, 6)
    for b in range(1, 10):
        for n in range(1, 7): assert torch.equal(run(b, n), whole[:b, :n]), (b, n)


@torch.no_grad()
@pytest.mark.parametrize("n", [1, 3])
def test_the_attention_to_the_first_place(n):
    blocks, told = stack(count=1), []
    for by_torch in (False, True):
        x, rotary, (past,) = asked(n=n, start=0, count=1)
        first = torch.zeros(3)
        if by_torch: blocks[0](x, rotary, causal_mask(n), past._replace(first=first))
        else: blocks(x, rotary, causal_mask(n), [past._replace(first=first)])
        told.append(first)
    assert torch.allclose(*told, atol=1e-6) and told[0].min() > 0


@torch.no_grad()
def test_no_number_is_none_that_torch_has_and_the_other_way_round(monkeypatch):
    blocks = stack()
    x, rotary, past = asked()
    x[1, 0, 3] = torch.nan
    ours = blocks(x, rotary, causal_mask(2, 5), past)
    assert ours[1].isnan().all() and ours[[0, 2]].isfinite().all()
    x, rotary, past = asked()
    x[1, 1] *= 1e20                                       # a norm whose square is infinite
    ours = blocks(x, rotary, causal_mask(2, 5), past)
    with torch_only(monkeypatch): theirs = blocks(x, rotary, causal_mask(2, 5), asked()[2])
    assert torch.equal(ours.isfinite(), theirs.isfinite())


class Listening(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return func(*args, **kwargs or {})


def _hooked(blocks): blocks[0].attention.register_forward_hook(lambda *_: None)


def _other_class(blocks):
    class Watched(SwiGLU): pass
    blocks[0].ffn.__class__ = Watched


def _patched(blocks):
    plain = blocks[0].ffn.forward
    blocks[0].ffn.forward = lambda x: plain(x)


def _half(blocks): blocks.bfloat16()


def _biased(blocks): blocks[0].attention.out.bias = torch.nn.Parameter(torch.zeros(48))


def _transposed(blocks):
    down = blocks[0].ffn.down
    down.weight.data = down.weight.data.T.contiguous().T


def _dropped_hook(blocks): blocks[0].drop1.register_forward_hook(lambda *_: None)


def _turned_elsewhere(blocks):
    plain = blocks[0].attention.project
    blocks[0].attention.project = lambda x, rotary: plain(x, rotary)


class _Wrapped(torch.nn.Parameter): "As weights in few bits are made."


def _wrapped(blocks):
    blocks[0].ffn.down.weight = _Wrapped(blocks[0].ffn.down.weight.data)


@pytest.mark.parametrize("change", [_hooked, _other_class, _patched, _biased, _transposed, _dropped_hook,
                                    _turned_elsewhere, _wrapped])
@torch.no_grad()
def test_a_block_with_something_of_its_own_runs_as_it_is(monkeypatch, change):
    blocks, calls = stack(), used(monkeypatch)
    x, rotary, past = asked()
    before = blocks(x, rotary, None, past)
    change(blocks)
    calls.clear()
    after = blocks(x, rotary, None, asked()[2])
    assert calls == [False, True] and torch.allclose(before, after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("context", [Listening, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_it_stands_back_where_more_than_numbers_is_wanted(monkeypatch, context):
    blocks, calls = stack(), used(monkeypatch)
    x, rotary, past = asked()
    with torch.no_grad(), context(): assert blocks(x, rotary, None, past).isfinite().all()
    assert not calls and not small_blocks.only_numbers(x)
    with torch.no_grad(): assert small_blocks.only_numbers(x)


def test_gradients_are_torchs(monkeypatch):
    blocks, calls = stack(), used(monkeypatch)
    x, rotary, _ = asked()
    blocks(x, rotary, "causal").sum().backward()
    assert not calls and blocks[0].ffn.up.weight.grad.isfinite().all()


@torch.no_grad()
def test_caches_and_precisions_that_it_does_not_know(monkeypatch):
    calls = used(monkeypatch)
    with kept_in(torch.float8_e4m3fn): narrow = Cache(2, 3, 2, 8, 12)
    x, rotary, _ = asked()
    assert stack()(x, rotary, None, narrow.past(0, 2)).isfinite().all() and calls == [False, False]
    calls.clear()
    blocks = stack(halves=True)
    assert blocks(x, rotary, None, asked()[2]).isfinite().all() and calls == [False, False]
    calls.clear()
    half = Cache(2, 3, 2, 8, 12, torch.bfloat16)
    assert stack().bfloat16()(x.bfloat16(), rotary, None, half.past(0, 2)).isfinite().all() and not calls


@torch.no_grad()
def test_wrong_shapes_get_torchs_error_and_touch_no_memory():
    blocks = stack()
    x, rotary, past = asked()
    for wrong in (rotary[:1, :3], rotary[:, :3]):
        with pytest.raises(RuntimeError): blocks(x, wrong, None, past)
    with pytest.raises(RuntimeError): blocks(x, rotary, None, [p._replace(start=9) for p in past])
    with pytest.raises(RuntimeError): blocks(x[..., :40], rotary, None, past)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_precision_changes_nothing(dtype):
    blocks = stack()
    x, rotary, past = asked(n=1)
    before = blocks(x, rotary, None, past)
    told = torch.zeros(3, dtype=dtype)
    torch.set_default_dtype(dtype)
    try:
        after = blocks(x, rotary, None, past)
        watched = blocks(x, rotary, None, [p._replace(first=told) for p in past])
    finally: torch.set_default_dtype(torch.float32)
    assert torch.equal(before, after) and after.dtype == torch.float32
    assert torch.allclose(watched, before, atol=1e-4) and 0 < told.min() and told.max() < 1


@torch.no_grad()
def test_addresses_that_are_none_are_never_read(monkeypatch):
    blocks, calls = stack(), used(monkeypatch)
    x, rotary, past = asked()
    for wrong in (dict(keys=past[0].keys.to("meta"), values=past[0].values.to("meta")),
                  dict(keys=past[0].keys[:1].expand(3, -1, -1, -1), values=past[0].values[:1].expand(3, -1, -1, -1))):
        with pytest.raises(RuntimeError):
            blocks(x, rotary, None, [p._replace(**wrong) for p in past])
    with pytest.raises(RuntimeError): blocks(x, rotary.to("meta"), None, past)
    assert not any(calls)
    weights = layers._weights_of(blocks[0])._replace(heads=3)
    assert small_blocks.small_block(x, weights, rotary, None, past[0].keys, past[0].values, 5) is None
    nobody = [p._replace(keys=p.keys[:0], values=p.values[:0]) for p in past]
    assert blocks(x[:0], rotary, None, nobody).shape == (0, 2, 48)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_tracing_batching_and_compiling_see_torchs_operations():
    blocks = stack().requires_grad_(False)
    x, rotary, past = asked()
    plain = blocks(x, rotary, None, past)
    traced = torch.jit.trace(lambda x: blocks(x, rotary, None, past), x, check_trace=False)
    assert torch.allclose(traced(x), plain, rtol=1e-4, atol=1e-4)
    assert torch.allclose(torch.compile(lambda x: blocks(x, rotary, None, past), backend="eager", fullgraph=True)(x),
                          plain, rtol=1e-4, atol=1e-4)
    caches = [(p.keys[None].clone(), p.values[None].clone()) for p in past]
    def one(x, caches): return blocks(x, rotary, None, [layers.Past(*cache, 5) for cache in caches])
    assert torch.allclose(torch.vmap(one)(x[None], caches)[0], plain, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_who_sees_nothing_gets_a_mixture_of_nothing(monkeypatch):
    blocks = stack()
    seen = torch.ones(3, 1, 2, 7) == 1
    seen[1, :, 0] = False
    x, rotary, past = asked()
    ours = blocks(x, rotary, seen, past)
    with torch_only(monkeypatch): theirs = blocks(x, rotary, seen, asked()[2])
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_large_blocks_are_torchs(monkeypatch):
    calls = used(monkeypatch)
    monkeypatch.setattr(small_blocks, "_SMALL", 1000)
    x, rotary, past = asked()
    stack()(x, rotary, None, past)
    assert calls == [False, False]
