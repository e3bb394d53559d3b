"Tokenizers: exactness of the search, order of codebook updates, processes, layouts, phases of training, and what is refused."
import json
import threading
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

from vgnb.core import BadInput, Mismatch
from vgnb.draws import At, Keyed
from vgnb.tokenizers import quantizers
from vgnb.tokenizers.coders import Decoder, Encoder
from vgnb.tokenizers.discriminators import PatchGAN, StyleGANCritic, discriminator
from vgnb.tokenizers.losses import LPIPS, VQGANLoss, VQGANLossConfig, adaptive_weight, load_lpips
from vgnb.tokenizers.quantizers import VectorQuantizer, entropy_loss, kmeans, nearest, straight_through
from vgnb.tokenizers.tokenizer import Quantized, Reconstruction, Tokenizer, check_images
from vgnb.tokenizers.vqgan import (
    LLAMAGEN_VQ,
    VQGAN,
    VQGANS,
    VQGANConfig,
    llamagen_vq_config,
    llamagen_vq_names,
    taming_names,
    vqgan,
)

NARROW = VQGANConfig(codebook=48, dim=4, width=32, mults=(1, 2), attention=(1,), z=32, depth=1)


@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)


def images(b=2, h=16, w=24): return torch.rand(b, 3, h, w) * 2 - 1


# The search -------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bound", [1, 37, 64, 65, 64 * 50, 1 << 24])
def test_search_is_the_same_under_any_bound_and_never_exceeds_it(bound, monkeypatch):
    z, table, sizes, real = torch.randn(201, 5), torch.randn(64, 5), [], torch.addmm
    monkeypatch.setattr(quantizers.torch, "addmm", lambda *a, **k: sizes.append((r := real(*a, **k)).numel()) or r)
    codes = nearest(z, table, bound)
    assert torch.equal(codes, torch.cdist(z.double(), table.double()).argmin(1)) and max(sizes) <= max(bound, 64)


def test_ties_go_to_the_first_row():
    row = torch.randn(1, 6)
    assert nearest(row.expand(9, 6), torch.cat([row + 1, row, row, row - 1, row])).tolist() == [1] * 9


def test_entropy_loss_is_the_textbook_value_and_knows_no_parts():
    z, table = torch.randn(50, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    p = (-torch.cdist(z, table).square() / 0.01).softmax(1)
    book = -(p * p.clamp(min=1e-30).log()).sum(1).mean() + (p.mean(0) * (p.mean(0) + 1e-5).log()).sum()
    torch.testing.assert_close(entropy_loss(z, table), book, rtol=1e-4, atol=1e-5)
    whole, parts = (torch.autograd.grad(entropy_loss(z, table, bound=b), (z, table)) for b in (1 << 24, 7 * 11))
    for a, b in zip(whole, parts): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_entropy_is_not_computed_at_weight_zero(monkeypatch):
    monkeypatch.setattr(quantizers, "entropy_loss", lambda *a: pytest.fail("computed"))
    assert set(VectorQuantizer(8, 4)(torch.randn(2, 4, 3)).losses) == {"vq", "commit"}


@pytest.mark.parametrize("l2", [True, False])
def test_quantizer_gives_rows_bit_for_bit_in_any_grid(l2):
    for grid in [(5,), (3, 4), (1, 6), (2, 2, 2)]:
        q = VectorQuantizer(32, 4, l2=l2)
        z = torch.randn(2, 4, *grid, requires_grad=True)
        out = q(z)
        assert out.codes.shape == (2, *grid) and out.codes.dtype == torch.int64 and torch.equal(out.z, q.lookup(out.codes))
        out.z.sum().backward()
        assert z.grad.abs().sum() > 0 and q.table.grad is None


def test_straight_through_without_gradients_is_a_lookup():
    q = torch.randn(3, 2, requires_grad=True)
    assert not straight_through(torch.randn(3, 2), q).requires_grad


def test_published_form_reports_and_keeps_the_window():
    q = VectorQuantizer(16, 4, window=10, compat="upstream").train()
    codes = torch.cat([q(torch.randn(2, 4, 3)).codes.flatten() for _ in range(3)])
    assert torch.equal(q.recent, codes[-10:].float()) and q.usage() == len(codes[-10:].unique()) / 16
    q.eval()(torch.randn(2, 4, 3))
    assert torch.equal(q.recent, codes[-10:].float()), "looking must not count"


# Codebook updates -------------------------------------------------------------------------------------------------------------------------------

def at(step): return At(torch.arange(4), step=step)


def test_only_dead_rows_are_revived_and_on_time():
    q = VectorQuantizer(64, 4, revive=3).train()
    z = torch.randn(4, 4, 5)
    before, used = q.table.detach().clone(), set()
    for step in range(3):
        assert torch.equal(q.table, before), "moved before its time"
        used |= set(q(z + 0.01 * step, Keyed(0), at(step)).codes.unique().tolist())
    moved = (q.table != before).any(1)
    assert set((~moved).nonzero().flatten().tolist()) == used
    pool = q.flat(z + 0.02)
    assert all((pool == row).all(1).any() for row in q.table[moved]), "a revived row is a feature of the batch"
    again = VectorQuantizer(64, 4, revive=3); again.table.data.copy_(before)
    for step in range(3): again(z + 0.01 * step, Keyed(0), at(step))
    assert torch.equal(again.table, q.table)


def test_encoding_teaches_nothing():
    model = vqgan("tiny-shapes").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.encode(images(2, 32, 32))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_lookup_sees_the_updated_table():
    class Moving(VectorQuantizer):
        def update(self, z, codes, draws=None, at=None): self.table.data.neg_()
    q = Moving(8, 4).train()
    z, before = torch.randn(2, 4, 3), q.rows().detach()
    out = q(z)
    assert torch.equal(out.codes.flatten(), nearest(q.flat(z), before)) and torch.equal(out.z, q.lookup(out.codes)) and torch.equal(q.rows(), -before)


def test_revival_without_draws_is_refused():
    with pytest.raises(BadInput, match="draws"): VectorQuantizer(8, 4, revive=2).train()(torch.randn(1, 4, 2))


class Together:
    "Threads that play processes: every `sum` and `gather` waits for the others."
    def __init__(self, world): self.barrier, self.box = threading.Barrier(world, timeout=30), [None] * world
    def rank(self, n):
        def meet(x):
            self.box[n] = x; self.barrier.wait(); parts = list(self.box); self.barrier.wait(); return parts
        return type("Rank", (), {"sum": lambda _, x: sum(meet(x)), "gather": lambda _, x: torch.cat(meet(x))})()


def test_two_processes_are_one_on_the_joined_batch():
    z, init, results = torch.randn(8, 4, 6), torch.randn(32, 4), {}
    def work(name, rows, sync=None):
        q = VectorQuantizer(32, 4, revive=2, window=0).train()
        q.table.data.copy_(init)
        if sync: q.sync = sync
        for step in range(4):
            if step == 1: q.start(rows, Keyed(1), 3)
            q(rows * (step + 1) + step, Keyed(0), At(torch.arange(len(rows)), step=step))
        results[name] = q.table.detach().clone()
    both = Together(2)
    threads = [threading.Thread(target=work, args=(n, z[4 * n:4 * n + 4], both.rank(n))) for n in (0, 1)]
    for t in threads: t.start()
    for t in threads: t.join(60)
    work("one", z)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results["one"])


def test_adaptive_weight_averages_gradients_over_processes():
    last, both, got = torch.ones(3, requires_grad=True), Together(2), {}
    def loss(n): return (last * torch.tensor([1.0, 2.0, 3.0 + 4 * n])).sum(), (last * torch.tensor([0.5, -1.0 * n, 0.1])).sum()
    def work(n): got[n] = adaptive_weight(*loss(n), last, both.rank(n)).item()
    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 1)]
    for t in threads: t.start()
    for t in threads: t.join(60)
    mean = [sum(x) / 2 for x in zip(loss(0), loss(1))]
    assert got[0] == got[1] == pytest.approx(adaptive_weight(*mean, last).item(), rel=1e-6)


def test_kmeans_is_a_function_of_seed_and_features():
    z = torch.randn(300, 3)
    a, b, c = (kmeans(z, 20, Keyed(s), 4) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and len(a.unique(dim=0)) == 20


# The model --------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("config", [NARROW, VQGANS["tiny-shapes"], VQGANConfig(codebook=20, dim=16, l2=False, legacy=True, window=0, width=32, mults=(1, 1, 2), attention=(0, 2), z=16, depth=1)])
def test_round_trip_at_odd_shapes_and_layouts(config):
    model = VQGAN(config).eval()
    x = images(3, 8 * 3, 8 * 5)
    with torch.no_grad(): made = model(x)
    codes = model.encode(x)
    assert codes.shape == (3, *model.code_shape(24, 40)) and codes.max() < model.vocab[0]
    assert torch.equal(model.decode(codes), made.output) and torch.equal(model.decode(model.untoken(model.tokens(codes), codes.shape[1:])), made.output)
    last = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last.decode(last.encode(x.to(memory_format=torch.channels_last))), made.output, rtol=1e-3, atol=1e-4)
    assert torch.equal(model.encode(x[:1]), codes[:1])


def test_quantizer_is_fp32_under_autocast():
    model = VQGAN(NARROW).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        made, features = model(images()), model.features(images())
    assert features.dtype == torch.bfloat16 and made.quantized.z.dtype == made.output.dtype == torch.float32
    q = model.quantizer(features.detach())
    assert torch.equal(q.codes, nearest(model.quantizer.flat(features), model.quantizer.rows()).view(q.codes.shape))


@pytest.mark.parametrize("config", [NARROW, VQGANS["tiny-shapes"]])
def test_every_parameter_learns(config):
    model = VQGAN(config).train()
    made = model(images(2, 16, 16), Keyed(0), At(torch.arange(2), step=0))
    (F.mse_loss(made.output, images(2, 16, 16)) + sum(made.quantized.losses.values())).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for k, p in model.named_parameters() if not k.endswith("qkv.bias"))


def test_configurations_are_json():
    for name, config in VQGANS.items(): assert VQGANConfig(**json.loads(json.dumps(asdict(config)))) == config, name


def test_state_returns_with_its_window():
    a = VQGAN(NARROW).train(); a(images())
    state = llamagen_vq_names.export(a.state_dict(), a)
    b = llamagen_vq_names.load_into(VQGAN(NARROW), state)
    assert state["quantize.codebook_used"].shape == (65536,) and a.quantizer.usage() == b.quantizer.usage() > 0


def test_files_of_another_model_are_refused():
    taming = VQGANConfig(codebook=48, dim=4, l2=False, legacy=True, window=0, width=32, mults=(1, 2), attention=(1,), z=32, depth=1)
    state = taming_names(2).export(VQGAN(taming).state_dict())
    assert VQGAN(taming).load_state_dict(taming_names(2).load(state | {"loss.discriminator.x": torch.zeros(1)}, VQGAN(taming)))
    with pytest.raises(Mismatch, match="missing"): llamagen_vq_names.load_into(VQGAN(NARROW), state)
    with pytest.raises(Mismatch, match="quantizer.table"): llamagen_vq_names.load_into(VQGAN(NARROW), llamagen_vq_names.export(vqgan(NARROW, codebook=49).state_dict()))
    half = dict(list(state.items())[: len(state) // 2])
    with pytest.raises(Mismatch, match="missing"): taming_names(2).load_into(VQGAN(taming), half)


def test_published_words_reach_the_configuration():
    c = llamagen_vq_config(dict(factory='VQ_models["VQ-8"]', codebook_size=512, codebook_embed_dim=6, codebook_l2_norm=False, z_channels=64, commit_loss_beta=0.5, entropy_loss_ratio=0.1,
                              encoder_ch_mult=[1, 2], decoder_ch_mult=[2, 2], dropout_p=0.1))
    assert (c.codebook, c.dim, c.l2, c.z, c.beta, c.entropy, c.mults, c.decoder_mults, c.dropout) == (512, 6, False, 64, 0.5, 0.1, (1, 2), (2, 2), 0.1)
    with torch.device("meta"): model, names = LLAMAGEN_VQ.make({"model": "VQ-8"}, codebook=64)
    assert names.export(model.state_dict(), model)["quantize.embedding.weight"].shape == (64, 8)


def test_decoder_of_other_widths():
    model = vqgan(NARROW, decoder_mults=(2, 2), decoder_depth=1)
    assert model(images()).output.shape == (2, 3, 16, 24)


# The loss ---------------------------------------------------------------------------------------------------------------------------------------

def phases(compat, step, start=5):
    "One iteration by hand: (tokenizer, critic, parts of the generator's phase)."
    model, critic, carry = VQGAN(NARROW).train(), PatchGAN(width=8, depth=2).train(), {}
    objective, x = VQGANLoss(VQGANLossConfig(lpips=0, start=start, compat=compat)), images()
    total, parts = objective.generator(x, model(x), carry, step, critic)
    total.backward()
    return objective, model, critic, carry, x, parts


def test_discriminator_sleeps_until_its_step():
    for step, awake in ((3, False), (4, True)):
        objective, _, critic, _, _, parts = phases(None, step)
        assert ("gan" in parts) == awake == objective.active(step) and (critic.layers[3].num_batches_tracked == int(awake))
    _, _, critic, _, _, parts = phases("upstream", 0)
    assert "gan" in parts and critic.layers[3].num_batches_tracked == 1


def test_phases_share_one_forward_and_keep_their_gradients_apart():
    objective, model, critic, carry, x, _ = phases(None, 7)
    assert all(p.grad is None and p.requires_grad for p in critic.parameters()) and not carry["output"].requires_grad
    before = {k: p.grad.clone() for k, p in model.named_parameters()}
    objective.discriminator(x, carry, 7, critic)[0].backward()
    assert all(p.grad is not None for p in critic.parameters()) and all(torch.equal(before[k], p.grad) for k, p in model.named_parameters())


def test_weights_of_the_objective_add_up():
    made = Reconstruction(images(), Quantized(None, None, {"vq": torch.tensor(0.5), "commit": torch.tensor(0.25)}), {})
    x = images()
    total, parts = VQGANLoss(VQGANLossConfig(l2=2, l1=3, lpips=0, quantizer=0.1, gan=0)).generator(x, made, {}, 10 ** 6)
    assert total == pytest.approx(2 * F.mse_loss(made.output, x).item() + 3 * F.l1_loss(made.output, x).item() + 0.075, rel=1e-6)
    assert set(parts) == {"l2", "l1", "vq", "commit"}


def test_lpips_has_finite_gradients_at_equal_pictures_and_no_dropout_in_training():
    lpips, x = LPIPS().train(), images(1, 32, 32).requires_grad_()
    value = lpips(x.detach(), x)
    value.sum().backward()
    assert value.item() == 0 and x.grad.isfinite().all()
    y = images(1, 32, 32)
    assert lpips(y, x.detach()) == lpips(y, x.detach())


def test_a_pickle_is_not_taken_for_weights(tmp_path):
    import pickle
    for name in ("vgg16.pth", "vgg.pth"): (tmp_path / name).write_bytes(pickle.dumps({"a": print}))
    with pytest.raises(Mismatch, match="state dict"): load_lpips(tmp_path)


def test_stylegan_critic_sees_the_whole_picture():
    x = torch.randn(1, 3, 16, 16, requires_grad=True)
    StyleGANCritic(16)(x).sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()


# The protocol, and what it refuses --------------------------------------------------------------------------------------------------------------

class Bare(Tokenizer):
    "A tokenizer of codes that stand for nothing."
    def __init__(self, vocab, dims=2):
        super().__init__(); self.vocab, self.dims, self.factor = vocab, dims, 4
    def quantize(self, images): return Quantized(images, None, {})
    def lookup(self, codes): return self.shaped(codes)
    def render(self, z, *, draws=None, at=None, size=None): return z if size is None else z[:, :size]
    def forward(self, images, draws=None, at=None): return Reconstruction(images, self.quantize(images), {})


@pytest.mark.parametrize("vocab,dims,shape,shaped", [((9,), 2, (2, 16), (2, 4, 4)), ((9,), 2, (2, 3, 5), (2, 3, 5)), ((9,), 1, (2, 7), (2, 7)),
                                                     ((9, 5), 2, (2, 16, 2), (2, 4, 4, 2)), ((9, 5), 2, (2, 3, 5, 2), (2, 3, 5, 2)), ((9, 5), 1, (2, 7, 2), (2, 7, 2))])
def test_codes_have_levels_only_at_the_edge(vocab, dims, shape, shaped):
    t, codes = Bare(vocab, dims), torch.randint(5, shape)
    assert t.decode(codes).shape == shaped and t.decode(codes, size=1).shape[1] == 1
    tokens = t.tokens(codes)
    assert tokens.shape == (2, codes[0].numel() // len(vocab), len(vocab))
    grid = shaped[1:1 + dims]
    assert torch.equal(t.untoken(tokens, grid), codes.reshape(shaped))


def test_incomplete_tokenizers_cannot_be_built():
    class Half(Tokenizer):
        def quantize(self, images): return Quantized(images, None, {})
    with pytest.raises(TypeError, match="lookup"): Half()


model = VQGAN(NARROW).eval()
REFUSED = [
    ("images", lambda: model.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)), "uint8"), ("images", lambda: model.encode(torch.zeros(3, 16, 16)), "(3, 16, 16)"),
    ("images", lambda: model.encode(torch.zeros(1, 16, 16, 3)), "(b, 3, h, w)"), ("images", lambda: model.encode(torch.zeros(0, 3, 16, 16)), "(0, 3, 16, 16)"),
    ("images", lambda: model.encode(torch.full((1, 3, 16, 16), 255.0)), "[-1, 1]"), ("images", lambda: model(torch.zeros(1, 3, 16, 17)), "multiples of 2"),
    ("images", lambda: model.encode(torch.full((1, 3, 16, 16), float("inf"))), "[-1, 1]"), ("images", lambda: model.encode([1, 2]), "list"),
    ("codes", lambda: model.decode(torch.full((1, 4, 4), 48)), "[0, 48)"), ("codes", lambda: model.decode(torch.full((1, 4, 4), -1)), "[0, 48)"),
    ("codes", lambda: model.decode(torch.zeros(1, 4, 4)), "integer"), ("codes", lambda: model.decode(torch.zeros(1, 5, dtype=torch.int64)), "square"),
    ("codes", lambda: model.decode(torch.zeros(4, dtype=torch.int64)), "(b, h, w)"), ("tokens", lambda: model.untoken(torch.zeros(1, 16, 2, dtype=torch.int64)), "(b, n, 1)"),
    ("grid", lambda: model.untoken(torch.zeros(1, 16, 1, dtype=torch.int64), (3, 5)), "16 cells"), ("tokenizer", lambda: Bare(None).encode(torch.zeros(1, 3, 4, 4)), "continuous"),
    ("tokenizer", lambda: vqgan("VQ16"), "VQ-16"), ("h", lambda: model.code_shape(15, 16), "multiple of 2"), ("codebook", lambda: vqgan("VQ-16", codebook=0), ">= 1"),
    ("mults", lambda: VQGANConfig(mults=(0, 1)), "positive"), ("decoder_mults", lambda: VQGANConfig(decoder_mults=(1, 2)), "5 levels"), ("coder", lambda: VQGANConfig(coder="huge"), "stair"),
    ("width", lambda: Encoder(width=33), "32"), ("attention", lambda: Decoder(attention=(9,)), "levels"), ("discriminator", lambda: discriminator("patchgam"), "patchgan"),
    ("size", lambda: StyleGANCritic(100), "128"), ("disc_loss", lambda: VQGANLossConfig(disc_loss="hing"), "hinge"), ("gan", lambda: VQGANLossConfig(gan=float("nan")), "finite"),
    ("z", lambda: VectorQuantizer(4, 2)(torch.zeros(1, 3, 2)), "(b, 2"), ("window", lambda: VectorQuantizer(4, 2, window=0).usage(), "remembers"),
]


@pytest.mark.parametrize("argument,call,words", REFUSED, ids=[f"{n}-{a}" for n, (a, _, _) in enumerate(REFUSED)])
def test_bad_input_is_one_clear_error(argument, call, words):
    with pytest.raises(BadInput) as e: call()
    assert str(e.value).startswith(f"{argument}=") and words in str(e.value)


def test_looking_at_values_can_be_left_out():
    wild = torch.full((1, 3, 8, 8), 9.0)
    assert check_images(wild, look=False) is wild
