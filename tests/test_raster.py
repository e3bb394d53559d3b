"The raster transformer where a page has no room: resting branches, captions, precisions, recomputation, memory."
import copy
from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from vgnb.core import BadInput, Mismatch
from vgnb.draws import At, Keyed
from vgnb.generators.generator import Cond, Grid
from vgnb.generators.orders import Raster
from vgnb.generators.raster import RasterConfig, RasterTransformer, llamagen_config, llamagen_gpt_names
from vgnb.sampling.guidance import CFG
from vgnb.sampling.sampler import Sampler

SMALL = RasterConfig(2, 48, 4, ffn_multiple=16, vocab=32, grid=(3, 4), classes=5)
TEXT = replace(SMALL, condition="text", text_dim=10, text_tokens=5)
KINDS = {
    "class": SMALL,
    "grouped": replace(SMALL, kv_heads=1),
    "everywhere": replace(SMALL, class_everywhere=True),
    "turned": replace(SMALL, zero_prefix=False),
    "sequence": replace(SMALL, rope="sequence", zero_prefix=False),
    "text": TEXT}
GRID = Grid((3, 4))


def build(config, seed=0):
    "A model whose head is not zero."
    m = RasterTransformer(config, seed).eval()
    m.head.weight.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(seed))
    return m


def case(config, b=3, n=12, seed=0):
    "Codes (b, n, 1) and a condition; of the captions, two are padded."
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(config.vocab, (b, n, 1), generator=g)
    if config.condition == "class": return codes, Cond(torch.randint(config.classes, (b,), generator=g))
    mask = torch.arange(5) >= torch.tensor([0, 2, 4])[:, None]
    return codes, Cond(text=torch.randn(b, 5, 10, generator=g), mask=mask)


def cells_of(grid, b): return torch.arange(grid.n).expand(b, -1)


def decode(m, branches, codes, known=0, live=None, grid=GRID, state=None, independent=False):
    "{branch: {cell: logits (b, V)}} from the cache, and the state; `live`: branches that matter at each cell."
    state = m.begin(branches, grid, reuse=state)
    cells = cells_of(grid, len(codes))
    if known: m.accept(state, cells[:, :known], codes[:, :known])

    out = {}
    for i in range(known, grid.n):
        now = live[i] if live else len(branches)
        found = m.predict(state, cells[:, i:i + 1], live=now, independent=independent).logits
        for branch, logits in enumerate(found): out.setdefault(branch, {})[i] = logits[:, 0]
        m.accept(state, cells[:, i:i + 1], codes[:, i:i + 1])
    return out, state


def first_branch(found): return torch.stack(list(found[0].values()), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_cached_equals_full_whatever_rests(kind):
    "Three branches, one blind to some cells, each resting at random; known prefixes of any length; one state for all."
    m, state = build(KINDS[kind]), None
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        codes, cond = case(KINDS[kind], seed=seed)
        null = m.null(cond)
        third = replace(null, blind=torch.rand(3, 12, generator=g) < 0.3) if seed % 2 else cond
        branches = (cond, null, third)
        known = int(torch.randint(12, (), generator=g))
        live = torch.randint(1, 4, (12,), generator=g).tolist()

        full = [m.logits(codes, c)[0] for c in branches]
        found, state = decode(m, branches, codes, known, live, state=state)
        for branch, cells in found.items():
            for i, logits in cells.items():
                torch.testing.assert_close(logits, full[branch][:, i], atol=1e-5, rtol=1e-5)
    assert state.fed[0] == m.prefix_places + 11
    assert state.tokens.shape == (3, 12, 1)


def test_one_cell_at_a_time():
    "It can be asked for one cell, the next; asked independently or not is the same."
    m, (codes, cond) = build(SMALL), case(SMALL)
    assert m.most == 1 and m.vocab == (32,)
    one, _ = decode(m, (cond,), codes)
    independent, _ = decode(m, (cond,), codes, independent=True)
    assert torch.equal(first_branch(one), first_branch(independent))

    state = m.begin((cond,), GRID)
    for positions in (cells_of(GRID, 3)[:, :2], torch.ones(3, 1, dtype=torch.long)):
        with pytest.raises(BadInput, match="positions="): m.predict(state, positions, live=1)


def test_predict_twice_changes_nothing():
    m, (codes, cond) = build(SMALL), case(SMALL)
    state = m.begin((cond,), GRID)
    m.accept(state, cells_of(GRID, 3)[:, :4], codes[:, :4])
    one, two = (m.predict(state, torch.full((3, 1), 4), live=1).logits for _ in range(2))
    torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-6)


def addresses(state):
    return [t.data_ptr() for t in (state.cache.keys, state.cache.values, state.prefix, state.visible, state.tokens)]


def test_memory_is_taken_once():
    "The same tensors serve the next batch; another shape, grid or model gets its own."
    m, (_, cond) = build(TEXT), case(TEXT)
    state = m.begin((cond, m.null(cond)), GRID)
    before = addresses(state)
    plain = m.begin((replace(cond, mask=None),) * 2, GRID, reuse=state)
    assert plain is state and addresses(state) == before and not state.padded

    assert m.begin((cond,), GRID, reuse=state) is not state
    assert m.begin((cond, cond), Grid((4, 4)), reuse=state) is not state
    assert build(replace(TEXT, heads=2)).begin((cond, cond), GRID, reuse=state) is not state


def test_another_grid_than_in_training():
    "Sampling on a larger grid reads a table of that grid."
    m, grid = build(SMALL), Grid((5, 6))
    codes, cond = case(SMALL, n=30)
    found, _ = decode(m, (cond,), codes, grid=grid)
    full, = m.logits(codes, cond, grid=grid)
    torch.testing.assert_close(first_branch(found), full, atol=1e-5, rtol=1e-5)
    with pytest.raises(BadInput, match="codes="): m.logits(codes, cond)


def test_training_after_sampling():
    "What sampling computes under inference mode is usable by autograd afterwards."
    m, (codes, cond) = build(SMALL), case(SMALL)
    Sampler(m, guidance=CFG(2.0), rows=3).sample(cond, torch.arange(3), Keyed(0), grid=GRID)
    m.train()(codes, cond, Keyed(0), At(torch.arange(3))).total.backward()
    assert all(p.grad is not None for p in m.parameters())


NOISY = replace(SMALL, class_dropout=0.5, token_dropout=0.2, residual_dropout=0.2, ffn_dropout=0.2, drop_path=0.3)
NOISY_TEXT = replace(NOISY, condition="text", text_dim=10, text_tokens=5)


@pytest.mark.parametrize("config", [NOISY, NOISY_TEXT], ids=["class", "text"])
def test_masks_belong_to_samples(config):
    "With every dropout on, a batch's loss is the mean of its parts', in any order: each sample has its own masks."
    m, (codes, cond) = build(config).train(), case(config)

    def loss(rows, step=5, seed=3):
        at = At(torch.tensor(rows) + 7, step=step)
        return m(codes[rows], cond.rows(rows), Keyed(seed), at).total

    everyone = [0, 1, 2]
    whole = loss(everyone)
    parts = [loss([i]) for i in (2, 0, 1)]
    torch.testing.assert_close(whole, sum(parts) / 3)

    other_step, other_seed = loss(everyone, step=6), loss(everyone, seed=4)
    m.eval()
    clean = loss(everyone)
    assert len({float(v.detach()) for v in (whole, other_step, other_seed, clean)}) == 4


def gradients(m, codes, cond):
    m.zero_grad()
    m(codes, cond, Keyed(0), At(torch.arange(3), step=2)).total.backward()
    return [p.grad.clone() for p in m.parameters()]


def test_recomputed_blocks_meet_the_same_masks():
    "Gradients with recomputed activations equal the plain ones although dropout is on and no generator state is kept."
    m, (codes, cond) = build(NOISY).train(), case(NOISY)
    plain = gradients(m, codes, cond)

    def recomputed(forward):
        return lambda *a, **k: checkpoint(forward, *a, use_reentrant=False, preserve_rng_state=False, **k)

    for block in m.blocks: block.forward = recomputed(block.forward)
    for a, b in zip(plain, gradients(m, codes, cond)): torch.testing.assert_close(a, b)


def test_half_precision():
    "A bf16 model and bf16 autocast both sample; logits are fp32, the cache is bf16."
    m, (codes, cond) = build(SMALL), case(SMALL)
    exact, half = m.logits(codes, cond)[0], copy.deepcopy(m).bfloat16()
    assert half.begin((cond,), GRID).cache.keys.dtype == torch.bfloat16

    for model, auto in ((half, False), (m, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=auto): found, state = decode(model, (cond,), codes)
        found = first_branch(found)
        assert found.dtype == torch.float32 and state.cache.keys.dtype == torch.bfloat16
        torch.testing.assert_close(found, exact, atol=0.05, rtol=0.05)


@pytest.mark.full
def test_compiled_equals_eager():
    "The loss with every dropout on, and its gradients."
    m, (codes, cond) = build(replace(NOISY, layers=1)).train(), case(NOISY)
    compiled = copy.deepcopy(m)
    compiled.compile(backend="aot_eager")
    for a, b in zip(gradients(m, codes, cond), gradients(compiled, codes, cond)):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_codes_of_any_integer_type():
    m, (codes, cond) = build(SMALL), case(SMALL)
    want = m.logits(codes, cond)[0]
    for dtype in (torch.int32, torch.uint8, torch.int16, torch.uint16):
        assert torch.equal(m.logits(codes.to(dtype), cond)[0], want)
    with pytest.raises(BadInput, match="codes="): m.logits(codes[..., 0], cond)


def test_given_codes_must_be_a_beginning():
    "Known codes that leave a gap are refused before the network runs; a beginning is continued and kept."
    m, (codes, cond) = build(SMALL), case(SMALL)
    sampler = Sampler(m, order=Raster(), rows=3)
    known = cells_of(GRID, 3) < 5
    out = sampler.sample(cond, torch.arange(3), Keyed(0), given=(codes, known), grid=GRID)
    assert torch.equal(out[known], codes[known])

    ran = []
    m.blocks[0].register_forward_pre_hook(lambda *_: ran.append(1))
    gap = known.clone()
    gap[:, 2] = False
    with pytest.raises(BadInput, match="raster"):
        sampler.sample(cond, torch.arange(3), Keyed(0), given=(codes, gap), grid=GRID)
    assert not ran


def test_no_null_class_without_class_dropout():
    "As published, the spare row exists only if conditions are dropped; asking for it is an error."
    m = build(replace(SMALL, class_dropout=0))
    assert m.condition.table.num_embeddings == 5
    _, cond = case(SMALL)
    Sampler(m, rows=3).sample(cond, torch.arange(3), Keyed(0), grid=GRID)
    guided = Sampler(m, guidance=CFG(2.0), rows=3)
    with pytest.raises(BadInput, match="labels="): guided.sample(cond, torch.arange(3), Keyed(0), grid=GRID)


def test_initial_weights_are_a_function_of_the_seed():
    "The same seed gives the same weights, another one others; setting them again changes nothing."
    for config in (SMALL, TEXT):
        one, same, other = (RasterTransformer(config, seed).state_dict() for seed in (3, 3, 4))
        assert all(torch.equal(one[k], same[k]) for k in one)
        assert not torch.equal(one["tokens.weight"], other["tokens.weight"])
        again = RasterTransformer(config, 4).init_weights(3).state_dict()
        assert all(torch.equal(one[k], again[k]) for k in one)


def test_published_names_there_and_back():
    m = build(TEXT)
    theirs = llamagen_gpt_names.export(m.state_dict())
    assert {"cls_embedding.uncond_embedding", "layers.1.feed_forward.w2.weight"} <= set(theirs)
    assert not any(k.startswith("blocks") for k in theirs)
    for compat in (None, "upstream"):
        twin = llamagen_gpt_names.load_into(RasterTransformer(replace(TEXT, compat=compat), seed=5), theirs)
        assert all(torch.equal(a, b) for a, b in zip(m.state_dict().values(), twin.state_dict().values()))

    fewer = {k: v for k, v in theirs.items() if "layers.1" not in k}
    with pytest.raises(Mismatch, match="missing"): llamagen_gpt_names.load_into(m, fewer)
    wider = llamagen_gpt_names.export(build(replace(SMALL, vocab=33)).state_dict())
    with pytest.raises(Mismatch, match="shape"): llamagen_gpt_names.load_into(build(SMALL), wider)


def test_published_arguments():
    args = {
        "dim": 96, "n_layer": 3, "n_head": 3, "n_kv_head": None, "multiple_of": 32, "model_type": "t2i",
        "cls_token_num": 120, "block_size": 9, "caption_dim": 24, "vocab_size": 64, "max_seq_len": 2048}
    c = llamagen_config(args, rope="sequence")
    want = dict(
        dim=96, layers=3, heads=3, ffn_multiple=32, condition="text", text_tokens=120, grid=(3, 3), text_dim=24,
        rope="sequence")
    assert {k: getattr(c, k) for k in want} == want
    assert llamagen_config({"model": "GPT-3B"}).dim // 32 == 100

    size = {"model": "GPT-B"}
    for bad in ({"model": "GPT-C"}, {"block_size": 200}, {"attn_dropout_p": 0.1}, {"model_type": "x2i"}):
        with pytest.raises(BadInput): llamagen_config(size | bad)
