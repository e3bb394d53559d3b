"The raster transformer where a page has no room: odd schedules of branches, captions, precisions, recomputation, memory."
import copy
from dataclasses import replace

import pytest
import torch

from vgnb.core import BadInput, Mismatch
from vgnb.draws import At, Keyed
from vgnb.generators.generator import Cond, Grid
from vgnb.generators.orders import Raster
from vgnb.generators.raster import RasterConfig, RasterTransformer, llamagen_config, llamagen_gpt_names
from vgnb.sampling.guidance import CFG
from vgnb.sampling.sampler import Sampler

SMALL = RasterConfig(2, 48, 4, ffn_multiple=16, vocab=32, grid=(3, 4), classes=5)
KINDS = {"class": SMALL, "grouped": replace(SMALL, kv_heads=1), "everywhere": replace(SMALL, class_everywhere=True), "turned": replace(SMALL, zero_prefix=False),
         "sequence": replace(SMALL, rope="sequence", zero_prefix=False), "text": replace(SMALL, condition="text", text_dim=10, text_tokens=5)}


def build(config, seed=0):
    m = RasterTransformer(config, seed).eval()
    m.head.weight.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(seed))
    return m


def case(config, b=3, n=12, seed=0):
    "Codes and a condition; of the captions, two are padded."
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(config.vocab, (b, n), generator=g)
    if config.condition == "class": return codes, Cond(torch.randint(config.classes, (b,), generator=g))
    return codes, Cond(text=torch.randn(b, 5, 10, generator=g), mask=torch.arange(5) >= torch.tensor([0, 2, 4])[:, None])


def decode(m, branches, codes, known, live, grid, state=None):
    "{branch: {cell: logits (b, V)}} from the cache."
    state, cells, out = m.begin(branches, grid, reuse=state), torch.arange(grid.n).expand(len(codes), -1), {}
    if known: m.accept(state, cells[:, :known], codes[:, :known, None])
    for i in range(known, grid.n):
        for j, l in enumerate(m.predict(state, cells[:, i:i + 1], live=live[i]).logits): out.setdefault(j, {})[i] = l[:, 0]
        m.accept(state, cells[:, i:i + 1], codes[:, i:i + 1, None])
    return out, state


@pytest.mark.parametrize("kind", KINDS)
def test_cached_equals_full_whatever_rests(kind):
    "Three branches, one of them blind to a cell, each resting at random; known prefixes of any length; the state used again."
    m, grid, state = build(KINDS[kind]), Grid((3, 4)), None
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        codes, cond = case(KINDS[kind], seed=seed)
        branches = (cond, m.null(cond), replace(m.null(cond), blind=torch.rand(3, 12, generator=g) < 0.3)) if seed % 2 else (cond, m.null(cond), cond)
        known, live = int(torch.randint(12, (), generator=g)), torch.randint(1, 4, (12,), generator=g).tolist()
        full = [m.logits(codes, c)[0] for c in branches]
        got, state = decode(m, branches, codes, known, live, grid, state)
        for j, cells in got.items():
            for i, l in cells.items(): torch.testing.assert_close(l, full[j][:, i], atol=1e-5, rtol=1e-5)
    assert state.fed[0] == m.prefix + 11


def test_predict_twice_changes_nothing():
    m, grid = build(SMALL), Grid((3, 4))
    codes, cond = case(SMALL)
    state = m.begin((cond,), grid)
    m.accept(state, torch.arange(4).expand(3, -1), codes[:, :4, None])
    a, b = (m.predict(state, torch.full((3, 1), 4), live=1).logits for _ in range(2))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_memory_is_taken_once():
    "The same tensors serve the next batch; another shape, grid or precision gets its own."
    m, (codes, cond) = build(KINDS["text"]), case(KINDS["text"])
    state = m.begin((cond, m.null(cond)), Grid((3, 4)))
    kept = [t.data_ptr() for t in (state.cache.keys, state.cache.values, state.prefix, state.columns, state.tokens)]
    plain = m.begin((replace(cond, mask=None),) * 2, Grid((3, 4)), reuse=state)
    assert plain is state and not state.masked and kept == [t.data_ptr() for t in (state.cache.keys, state.cache.values, state.prefix, state.columns, state.tokens)]
    assert m.begin((cond,), Grid((3, 4)), reuse=state) is not state and m.begin((cond, cond), Grid((4, 4)), reuse=state) is not state
    other = build(replace(KINDS["text"], heads=2))
    assert other.begin((cond, cond), Grid((3, 4)), reuse=state) is not state


def test_another_grid_than_in_training():
    "Sampling on a larger grid reads a table of that grid."
    m, grid = build(SMALL), Grid((5, 6))
    codes, cond = case(SMALL, n=30)
    got = decode(m, (cond,), codes, 0, [1] * 30, grid)[0][0]
    full = m.logits(codes, cond, grid=grid)[0]
    torch.testing.assert_close(torch.stack(list(got.values()), 1), full, atol=1e-5, rtol=1e-5)
    with pytest.raises(BadInput, match="codes="): m.logits(codes, cond)


def test_training_after_sampling():
    "What sampling computes under inference mode is usable by autograd afterwards."
    m, (codes, cond) = build(SMALL), case(SMALL)
    Sampler(m, guidance=CFG(2.0), rows=3).sample(cond, torch.arange(3), Keyed(0), grid=Grid(SMALL.grid))
    m.train()(codes, cond, Keyed(0), At(torch.arange(3))).total.backward()
    assert all(p.grad is not None for p in m.parameters())


NOISY = replace(SMALL, class_dropout=0.5, token_dropout=0.2, residual_dropout=0.2, ffn_dropout=0.2, drop_path=0.3)


@pytest.mark.parametrize("config", [NOISY, replace(NOISY, condition="text", text_dim=10, text_tokens=5)], ids=["class", "text"])
def test_masks_belong_to_samples(config):
    "With every dropout on, a batch's loss is the mean of its halves', in any order: each sample has its own masks."
    m, (codes, cond) = build(config).train(), case(config)
    at = lambda ids: At(torch.tensor(ids), step=5)
    whole = m(codes, cond, Keyed(3), at([7, 8, 9])).total
    parts = [m(codes[[i]], cond.rows([i]), Keyed(3), at([7 + i])).total for i in (2, 0, 1)]
    torch.testing.assert_close(whole, sum(parts) / 3)
    other_step, other_seed = m(codes, cond, Keyed(3), At(torch.tensor([7, 8, 9]), step=6)).total, m(codes, cond, Keyed(4), at([7, 8, 9])).total
    clean = m.eval()(codes, cond, Keyed(3), at([7, 8, 9])).total
    assert len({float(v.detach()) for v in (whole, other_step, other_seed, clean)}) == 4


def test_recomputed_blocks_meet_the_same_masks():
    "Gradients with recomputed activations equal the plain ones although dropout is on and no generator state is kept."
    from torch.utils.checkpoint import checkpoint
    m, (codes, cond) = build(NOISY).train(), case(NOISY)
    def gradient(model):
        model.zero_grad(); model(codes, cond, Keyed(0), At(torch.arange(3))).total.backward()
        return [p.grad.clone() for p in model.parameters()]
    plain = gradient(m)
    for block in m.blocks:
        block.forward = lambda *a, f=block.forward, **k: checkpoint(f, *a, use_reentrant=False, preserve_rng_state=False, **k)
    for a, b in zip(plain, gradient(m)): torch.testing.assert_close(a, b)


def test_half_precision():
    "A bf16 model and bf16 autocast both sample; logits are fp32, the cache is bf16."
    codes, cond = case(SMALL)
    m = build(SMALL)
    exact, half = m.logits(codes, cond)[0], copy.deepcopy(m).bfloat16()
    state = half.begin((cond,), Grid((3, 4)))
    assert state.cache.keys.dtype == torch.bfloat16
    for model, auto in ((half, False), (m, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=auto):
            got = decode(model, (cond,), codes, 0, [1] * 12, Grid((3, 4)))[0][0]
        got = torch.stack(list(got.values()), 1)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, exact, atol=0.05, rtol=0.05)


def test_compiled_equals_eager():
    "The loss with every dropout on, and its gradients."
    m, (codes, cond) = build(replace(NOISY, layers=1)).train(), case(NOISY)
    other = copy.deepcopy(m)
    other.compile(backend="aot_eager")
    for model in (m, other): model(codes, cond, Keyed(0), At(torch.arange(3), step=2)).total.backward()
    for a, b in zip(m.parameters(), other.parameters()): torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)


def test_codes_of_any_integer_type():
    m, (codes, cond) = build(SMALL), case(SMALL)
    want = m.logits(codes, cond)[0]
    for dtype in (torch.int32, torch.uint8, torch.int16, torch.uint16): assert torch.equal(m.logits(codes.to(dtype), cond)[0], want)
    assert torch.equal(m.logits(codes[..., None], cond)[0], want)


def test_given_codes_must_be_a_beginning():
    "Known codes that leave a gap are refused before the network runs; a beginning is continued and kept."
    m, (codes, cond) = build(SMALL), case(SMALL)
    sampler = Sampler(m, order=Raster(), rows=3)
    known = torch.arange(12).expand(3, -1) < 5
    out = sampler.sample(cond, torch.arange(3), Keyed(0), given=(codes[..., None], known), grid=Grid((3, 4)))
    assert torch.equal(out[..., 0][known], codes[known])
    ran = []
    m.blocks[0].register_forward_pre_hook(lambda *_: ran.append(1))
    gap = known.clone(); gap[:, 2] = False
    with pytest.raises(BadInput, match="raster"): sampler.sample(cond, torch.arange(3), Keyed(0), given=(codes[..., None], gap), grid=Grid((3, 4)))
    assert not ran


def test_no_null_class_without_class_dropout():
    "As published, the spare row exists only if conditions are dropped; asking for it is an error."
    m = build(replace(SMALL, class_dropout=0))
    assert m.condition.table.num_embeddings == 5
    _, cond = case(SMALL)
    Sampler(m, rows=3).sample(cond, torch.arange(3), Keyed(0), grid=Grid((3, 4)))
    with pytest.raises(BadInput, match="labels="): Sampler(m, guidance=CFG(2.0), rows=3).sample(cond, torch.arange(3), Keyed(0), grid=Grid((3, 4)))


def test_published_names_there_and_back():
    m = build(KINDS["text"])
    theirs = llamagen_gpt_names.export(m.state_dict())
    assert "cls_embedding.uncond_embedding" in theirs and "layers.1.feed_forward.w2.weight" in theirs and not any(k.startswith("blocks") for k in theirs)
    for compat in (None, "upstream"):
        twin = llamagen_gpt_names.load_into(RasterTransformer(replace(KINDS["text"], compat=compat), seed=5), theirs)
        assert all(torch.equal(a, b) for a, b in zip(m.state_dict().values(), twin.state_dict().values()))
    with pytest.raises(Mismatch, match="missing"): llamagen_gpt_names.load_into(m, {k: v for k, v in theirs.items() if "layers.1" not in k})
    with pytest.raises(Mismatch, match="shape"): llamagen_gpt_names.load_into(build(SMALL), llamagen_gpt_names.export(build(replace(SMALL, vocab=33)).state_dict()))


def test_published_arguments():
    args = {"dim": 96, "n_layer": 3, "n_head": 3, "n_kv_head": None, "multiple_of": 32, "model_type": "t2i", "cls_token_num": 120, "block_size": 9, "caption_dim": 24, "vocab_size": 64, "max_seq_len": 2048}
    c = llamagen_config(args, rope="sequence")
    assert (c.dim, c.layers, c.heads, c.ffn_multiple, c.condition, c.text_tokens, c.grid, c.text_dim, c.rope) == (96, 3, 3, 32, "text", 120, (3, 3), 24, "sequence")
    assert llamagen_config({"model": "GPT-3B"}).dim // 32 == 100
    for bad in ({"model": "GPT-C"}, {"model": "GPT-B", "block_size": 200}, {"model": "GPT-B", "attn_dropout_p": 0.1}, {"model": "GPT-B", "model_type": "x2i"}):
        with pytest.raises(BadInput): llamagen_config(bad)
