"Tokenizers: the search, the order of codebook updates, processes, layouts, phases of training, what is refused."
import json
import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vgnb.core import BadInput, Mismatch
from vgnb.draws import At, Keyed
from vgnb.kinds import changed, from_json, to_json
from vgnb.pipeline import from_pretrained
from vgnb.saved import load_model, save_model
from vgnb.shipped import shipped
from vgnb.tokenizers import quantizers
from vgnb.tokenizers.coders import Decoder, Encoder
from vgnb.tokenizers.discriminators import PatchGAN, StyleGANCritic, discriminator
from vgnb.tokenizers.fsq import FSQ, FSQConfig
from vgnb.tokenizers.losses import adaptive_weight
from vgnb.tokenizers.lpips import LPIPS, load_lpips
from vgnb.tokenizers.objectives import VQGANLoss, VQGANLossConfig
from vgnb.tokenizers.pictures import codes_of, pictures
from vgnb.tokenizers.quantizers import (
    Revive,
    VectorConfig,
    VectorQuantizer,
    entropy_loss,
    kmeans,
    nearest,
    set_sync,
    straight_through,
    usage_of,
)
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
from vgnb.training.commands import parse, train
from vgnb.training.recipes import recipe
from vgnb.zoo import export_published

NARROW = VQGANConfig(VectorConfig(48, 4), width=32, mults=(1, 2), attention=(1,), z=32, depth=1)
TAMING = changed(NARROW, quantizer=dict(l2=False, legacy=True, usage=0))


@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)


def images(b=2, h=16, w=24): return torch.rand(b, 3, h, w) * 2 - 1


def same_state(a, b):
    "Whether two state dicts hold the same bits."
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


# The search ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bound", [1, 37, 64, 65, 64 * 50, 1 << 24])
def test_search_is_the_same_under_any_bound_and_never_exceeds_it(bound, monkeypatch):
    z, table = torch.randn(201, 5), torch.randn(64, 5)
    sizes, real = [], torch.addmm

    def counting(*args, **kw):
        result = real(*args, **kw)
        sizes.append(result.numel())
        return result
    monkeypatch.setattr(quantizers.torch, "addmm", counting)

    codes = nearest(z, table, bound)
    assert torch.equal(codes, torch.cdist(z.double(), table.double()).argmin(1))
    assert max(sizes) <= max(bound, 64)


def test_ties_go_to_the_first_row():
    row = torch.randn(1, 6)
    table = torch.cat([row + 1, row, row, row - 1, row])
    assert nearest(row.expand(9, 6), table).tolist() == [1] * 9


def test_entropy_loss_is_the_textbook_value_and_knows_no_parts():
    z, table = torch.randn(50, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    p = (-torch.cdist(z, table).square() / 0.01).softmax(1)
    sure = -(p * p.clamp(min=1e-30).log()).sum(1).mean()
    spread = (p.mean(0) * (p.mean(0) + 1e-5).log()).sum()
    torch.testing.assert_close(entropy_loss(z, table), sure + spread, rtol=1e-4, atol=1e-5)

    whole, parts = (torch.autograd.grad(entropy_loss(z, table, bound=b), (z, table)) for b in (1 << 24, 7 * 11))
    for a, b in zip(whole, parts): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_entropy_is_not_computed_at_weight_zero(monkeypatch):
    monkeypatch.setattr(quantizers, "entropy_loss", lambda *a: pytest.fail("computed"))
    assert set(VectorQuantizer(VectorConfig(8, 4))(torch.randn(2, 4, 3)).losses) == {"vq", "commit"}


@pytest.mark.parametrize("config", [VectorConfig(32, 4), VectorConfig(32, 4, l2=False), FSQConfig((8, 5, 5, 3))])
@pytest.mark.parametrize("grid", [(5,), (3, 4), (1, 6), (2, 2, 2)])
def test_quantizer_gives_rows_bit_for_bit_in_any_grid(config, grid):
    q = quantizers.build_quantizer(config)
    z = torch.randn(2, 4, *grid, requires_grad=True)
    out = q(z)
    assert out.codes.shape == (2, *grid) and out.codes.dtype == torch.int64
    assert torch.equal(out.z, q.lookup(out.codes)) and out.z.stride() == q.lookup(out.codes).stride()
    out.z.sum().backward()
    assert z.grad.abs().sum() > 0 and all(p.grad is None for p in q.parameters())


def test_straight_through_without_gradients_is_a_lookup():
    q = torch.randn(3, 2, requires_grad=True)
    assert not straight_through(torch.randn(3, 2), q).requires_grad


def test_published_form_reports_and_keeps_the_window():
    q = VectorQuantizer(VectorConfig(16, 4, usage=10, compat="upstream")).train()
    codes = torch.cat([q(torch.randn(2, 4, 3)).codes.flatten() for _ in range(3)])
    assert torch.equal(q.usage.recent, codes[-10:].float())
    assert q.usage.share() == len(codes[-10:].unique()) / 16
    q.eval()(torch.randn(2, 4, 3))
    assert torch.equal(q.usage.recent, codes[-10:].float()), "looking must not count"


def test_fsq_agrees_with_its_formula():
    "Index and value as written in the paper's appendix (and in VQ-KD's code), channel by channel."
    levels = (8, 5, 7, 4)
    z = torch.randn(4000, 4) * 2
    out = FSQ(FSQConfig(levels))(z)
    code, place = torch.zeros(4000, dtype=torch.int64), 1
    for i, n in enumerate(levels):
        m, o = (n - 1) * (1 - 1e-3), (n - 1) % 2
        y = (torch.tanh(z[:, i] + torch.atanh(torch.tensor(o / m))) * m - o) / 2
        torch.testing.assert_close(out.z[:, i].detach(), y.round() / (n // 2))
        code += (y.round().long() + n // 2) * place
        place *= n
    assert torch.equal(out.codes, code)


# Codebook updates ------------------------------------------------------------------------------------------------

def at(step): return At(torch.arange(4), step=step)


def reviving(size, every, **kw):
    "A quantizer whose dead rows come back."
    return VectorQuantizer(VectorConfig(size, 4, updates=(Revive(every),), **kw)).train()


def test_only_dead_rows_are_revived_and_on_time():
    q = reviving(64, 3)
    z = torch.randn(4, 4, 5)
    before, used = q.table.detach().clone(), set()
    for step in range(3):
        assert torch.equal(q.table, before), "moved before its time"
        used |= set(q(z + 0.01 * step, Keyed(0), at(step)).codes.unique().tolist())
    moved = (q.table != before).any(1)
    assert set((~moved).nonzero().flatten().tolist()) == used
    pool = q.flat(z + 0.02)
    assert all((pool == row).all(1).any() for row in q.table[moved]), "a revived row is a feature of the batch"

    again = reviving(64, 3)
    again.table.data.copy_(before)
    for step in range(3): again(z + 0.01 * step, Keyed(0), at(step))
    assert torch.equal(again.table, q.table)


def test_rows_die_again_and_come_back_again():
    "What counts is the time since the last revival: a row that was used before may be dead now."
    q = reviving(8, 1, l2=False)
    q.table.data.copy_(torch.eye(8)[:, :4] * 9)
    here, there = torch.full((4, 4, 3), 5.0), torch.full((4, 4, 3), -5.0)
    q(here, Keyed(0), at(0))
    assert q.updates[0].fresh.sum() == 0 and (q.table == 5).all(1).sum() == 7
    q(there, Keyed(0), at(1))
    assert (q.table == -5).all(1).sum() == 7, "all that were nearest to nothing in this step, not only in both"


def test_encoding_teaches_nothing():
    model = vqgan("tiny-shapes").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.encode(images(2, 32, 32))
    assert same_state(model.state_dict(), before)


def test_lookup_sees_the_updated_table():
    class Moving(VectorQuantizer):
        def update(self, z, codes, draws=None, at=None): self.table.data.neg_()
    q = Moving(VectorConfig(8, 4)).train()
    z, before = torch.randn(2, 4, 3), q.rows().detach()
    out = q(z)
    assert torch.equal(out.codes.flatten(), nearest(q.flat(z), before))
    assert torch.equal(out.z, q.lookup(out.codes)) and torch.equal(q.rows(), -before)


def test_revival_without_draws_is_refused():
    with pytest.raises(BadInput, match="draws"): reviving(8, 2)(torch.randn(1, 4, 2))


class Together:
    "Threads that play processes: every `sum` and `gather` waits for the others."
    def __init__(self, world):
        self.barrier = threading.Barrier(world, timeout=30)
        self.box = [None] * world

    def rank(self, n):
        def meet(x):
            self.box[n] = x
            self.barrier.wait()
            parts = list(self.box)
            self.barrier.wait()
            return parts

        class Rank:
            def sum(self, x): return sum(meet(x))
            def gather(self, x): return torch.cat(meet(x))
        return Rank()


def in_threads(work, *arguments):
    "Call `work` with each of some argument tuples, all at once."
    threads = [threading.Thread(target=work, args=a) for a in arguments]
    for t in threads: t.start()
    for t in threads: t.join(60)


def test_two_processes_are_one_on_the_joined_batch():
    z, first, results = torch.randn(8, 4, 6), torch.randn(32, 4), {}

    def work(name, rows, sync=None):
        q = reviving(32, 2, usage=0)
        q.table.data.copy_(first)
        if sync: set_sync(q, sync)
        for step in range(4):
            if step == 1: q.kmeans_init(rows, Keyed(1), 3)
            q(rows * (step + 1) + step, Keyed(0), At(torch.arange(len(rows)), step=step))
        results[name] = q.table.detach().clone()

    both = Together(2)
    in_threads(work, *((n, z[4 * n:4 * n + 4], both.rank(n)) for n in (0, 1)))
    work("one", z)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results["one"])


def test_adaptive_weight_averages_gradients_over_processes():
    last, both, got = torch.ones(3, requires_grad=True), Together(2), {}

    def losses(n):
        base = (last * torch.tensor([1.0, 2.0, 3.0 + 4 * n])).sum()
        return base, (last * torch.tensor([0.5, -1.0 * n, 0.1])).sum()

    def work(n): got[n] = adaptive_weight(*losses(n), last, both.rank(n)).item()
    in_threads(work, (0,), (1,))
    mean = [sum(x) / 2 for x in zip(losses(0), losses(1))]
    assert got[0] == got[1] == pytest.approx(adaptive_weight(*mean, last).item(), rel=1e-6)


def test_kmeans_is_a_function_of_seed_and_features():
    z = torch.randn(300, 3)
    a, b, c = (kmeans(z, 20, Keyed(s), 4) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and len(a.unique(dim=0)) == 20


# The model -------------------------------------------------------------------------------------------------------

PLAIN = VQGANConfig(VectorConfig(20, 16, l2=False, legacy=True, usage=0), width=32, mults=(1, 1, 2), attention=(0, 2),
                    z=16, depth=1)


@pytest.mark.parametrize("config", [NARROW, VQGANS["tiny-shapes"], PLAIN, replace(NARROW, quantizer=FSQConfig())])
def test_round_trip_at_odd_shapes_and_layouts(config):
    model = VQGAN(config).eval()
    x = images(3, 8 * 3, 8 * 5)
    with torch.no_grad(): made = model(x)
    codes = model.encode(x)
    assert codes.shape == (3, *model.code_shape(24, 40)) and codes.max() < model.vocab[0]
    assert torch.equal(model.decode(codes), made.output)
    tokens = model.tokens(codes)
    assert torch.equal(model.decode(model.untoken(tokens, codes.shape[1:])), made.output)
    last = model.to(memory_format=torch.channels_last)
    again = last.decode(last.encode(x.to(memory_format=torch.channels_last)))
    torch.testing.assert_close(again, made.output, rtol=1e-3, atol=1e-4)
    assert torch.equal(model.encode(x[:1]), codes[:1])


def test_quantizer_is_fp32_under_autocast():
    model = VQGAN(NARROW).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        made, features = model(images()), model.features(images())
    assert features.dtype == torch.bfloat16 and made.quantized.z.dtype == made.output.dtype == torch.float32
    q = model.quantizer(features.detach())
    rows = nearest(model.quantizer.flat(features), model.quantizer.rows())
    assert torch.equal(q.codes, rows.view(q.codes.shape))


@pytest.mark.parametrize("config", [NARROW, VQGANS["tiny-shapes"], replace(NARROW, quantizer=FSQConfig())])
def test_every_parameter_learns(config):
    model = VQGAN(config).train()
    made = model(images(2, 16, 16), Keyed(0), At(torch.arange(2), step=0))
    (F.mse_loss(made.output, images(2, 16, 16)) + sum(made.quantized.losses.values())).backward()
    learning = {k: p.grad is not None and p.grad.abs().sum() > 0 for k, p in model.named_parameters()}
    assert all(learns for k, learns in learning.items() if not k.endswith("qkv.bias"))


def test_unquantized_steps_touch_no_codebook():
    model = VQGAN(changed(NARROW, quantizer=dict(updates=(Revive(1),)))).train()
    before = {k: v.clone() for k, v in model.quantizer.state_dict().items()}
    made = model(images(), Keyed(0), At(torch.arange(2), step=0), quantize=False)
    assert made.quantized.codes is None and made.quantized.losses == {}
    torch.testing.assert_close(made.quantized.z.norm(dim=1), torch.ones(2, 8, 12))
    made.output.sum().backward()
    assert model.quantizer.table.grad is None and same_state(model.quantizer.state_dict(), before)


@pytest.mark.parametrize("name", VQGANS)
def test_configurations_are_json(name):
    assert from_json(json.loads(json.dumps(to_json(VQGANS[name])))) == VQGANS[name]


def test_state_returns_with_its_window():
    a = VQGAN(NARROW).train()
    a(images())
    state = llamagen_vq_names.export(a.state_dict(), a)
    b = llamagen_vq_names.load_into(VQGAN(NARROW), state)
    assert state["quantize.codebook_used"].shape == (65536,)
    assert usage_of(a) == usage_of(b) and usage_of(a)["usage"] > 0


def test_files_of_another_model_are_refused():
    state = taming_names(2).export(VQGAN(TAMING).state_dict())
    bundle = state | {"loss.discriminator.x": torch.zeros(1)}
    assert VQGAN(TAMING).load_state_dict(taming_names(2).load(bundle, VQGAN(TAMING)))
    with pytest.raises(Mismatch, match="missing"): llamagen_vq_names.load_into(VQGAN(NARROW), state)

    wider = llamagen_vq_names.export(vqgan(NARROW, quantizer=dict(codebook=49)).state_dict())
    with pytest.raises(Mismatch, match="quantizer.table"): llamagen_vq_names.load_into(VQGAN(NARROW), wider)
    half = dict(list(state.items())[: len(state) // 2])
    with pytest.raises(Mismatch, match="missing"): taming_names(2).load_into(VQGAN(TAMING), half)


def test_published_words_reach_the_configuration():
    c = llamagen_vq_config(dict(
        factory='VQ_models["VQ-8"]', codebook_size=512, codebook_embed_dim=6, codebook_l2_norm=False,
        commit_loss_beta=0.5, entropy_loss_ratio=0.1, z_channels=64, encoder_ch_mult=[1, 2], decoder_ch_mult=[2, 2],
        dropout_p=0.1))
    assert c.quantizer == VectorConfig(512, 6, l2=False, beta=0.5, entropy=0.1)
    assert (c.z, c.mults, c.decoder_mults, c.dropout) == (64, (1, 2), (2, 2), 0.1)
    with torch.device("meta"): model, names = LLAMAGEN_VQ.make({"model": "VQ-8"}, quantizer=dict(codebook=64))
    assert names.export(model.state_dict(), model)["quantize.embedding.weight"].shape == (64, 8)


def test_decoder_of_other_widths():
    model = vqgan(NARROW, decoder_mults=(2, 2), decoder_depth=1)
    assert model(images()).output.shape == (2, 3, 16, 24)


def test_a_lattice_in_place_of_the_table_trains_saves_and_is_never_written_as_llamagens(tmp_path):
    "FSQ: chosen by name, through warm-up and its end, into a folder and back; never written as LlamaGen's."
    words = ["shapes-tokenizer", "--model.quantizer", "fsq", "--model.quantizer.usage", "256", "--model.width", "16",
             "--model.groups", "8", "--data", "shapes://?n=64&size=32", "--steps", "12", "--batch", "16",
             "--free-steps", "4", "--precision", "fp32", "--log-every", "4", "--out", str(tmp_path / "run")]
    options = parse("tokenizer", words, "")
    assert options.recipe.model.quantizer == FSQConfig(usage=256)
    options.progress = False
    assert train(options).finished

    back = load_model(tmp_path / "run" / "model")
    assert isinstance(back.quantizer, FSQ) and back.vocab == (1000,) and back.config == options.recipe.model
    assert back.quantizer.usage.share() > 0
    large = VQGAN(replace(NARROW, quantizer=FSQConfig()))
    for model, system in ((back, None), (large, "llamagen")):
        with pytest.raises(BadInput, match="no published form"): export_published(model, system=system)
    assert export_published(VQGAN(NARROW))["quantize.embedding.weight"].shape == (48, 4)


def test_parts_of_a_quantizer_are_options():
    words = ["shapes-tokenizer", "--model.quantizer.codebook", "64", "--model.quantizer.updates.0.every", "7"]
    quantizer = parse("tokenizer", words, "").recipe.model.quantizer
    assert quantizer == replace(recipe("shapes-tokenizer").model.quantizer, codebook=64, updates=(Revive(7),))
    with pytest.raises(BadInput, match="must be one of fsq"):
        parse("tokenizer", ["shapes-tokenizer", "--model.quantizer", "fqs"], "")


def test_saved_with_its_counters(tmp_path):
    model = VQGAN(changed(NARROW, quantizer=dict(updates=(Revive(5),)))).train()
    model(images(), Keyed(0), At(torch.arange(2), step=0))
    save_model(tmp_path / "m", model, model.config)
    back = load_model(tmp_path / "m")
    assert same_state(model.state_dict(), back.state_dict()) and back.quantizer.updates[0].fresh.sum() == 2 * 8 * 12
    exported = export_published(model)
    assert not any(k.startswith("quantizer.") for k in exported) and "quantize.codebook_used" in exported


# The objective ---------------------------------------------------------------------------------------------------

def first_phase(compat, step, start=5):
    "The tokenizer's phase by hand: (objective, tokenizer, critic, carry, pictures, parts)."
    model, critic, carry = VQGAN(NARROW).train(), PatchGAN(width=8, depth=2).train(), {}
    objective = VQGANLoss(VQGANLossConfig(lpips=0, start=start, compat=compat), discriminator=critic)
    x = images()
    total, parts = objective.for_tokenizer(x, model(x), carry, step)
    total.backward()
    return objective, model, critic, carry, x, parts


def test_discriminator_sleeps_until_its_step():
    for step, awake in ((3, False), (4, True)):
        objective, _, critic, _, _, parts = first_phase(None, step)
        assert ("gan" in parts) == awake == objective.active(step)
        assert len(objective.phases(step)) == 1 + awake
        assert critic.layers[3].num_batches_tracked == int(awake)
    objective, _, critic, _, _, parts = first_phase("upstream", 0)
    assert "gan" in parts and critic.layers[3].num_batches_tracked == 1 and len(objective.phases(0)) == 2


def test_phases_share_one_forward_and_keep_their_gradients_apart():
    objective, model, critic, carry, x, _ = first_phase(None, 7)
    assert all(p.grad is None and p.requires_grad for p in critic.parameters())
    assert not carry["output"].requires_grad
    before = {k: p.grad.clone() for k, p in model.named_parameters()}
    objective.for_discriminator(x, carry, 7)[0].backward()
    assert all(p.grad is not None for p in critic.parameters())
    assert all(torch.equal(before[k], p.grad) for k, p in model.named_parameters())


def test_weights_of_the_objective_add_up():
    losses = {"vq": torch.tensor(0.5), "commit": torch.tensor(0.25)}
    made = Reconstruction(images(), Quantized(None, None, losses), {})
    x = images()
    objective = VQGANLoss(VQGANLossConfig(l2=2, l1=3, lpips=0, quantizer=0.1, gan=0))
    total, parts = objective.for_tokenizer(x, made, {}, 10 ** 6)
    pixels = 2 * F.mse_loss(made.output, x).item() + 3 * F.l1_loss(made.output, x).item()
    assert total == pytest.approx(pixels + 0.075, rel=1e-6)
    assert set(parts) == {"l2", "l1", "vq", "commit"}


def test_helpers_are_frozen_and_stay_out_of_what_is_saved():
    lpips = LPIPS().train()
    objective = VQGANLoss(VQGANLossConfig(gan=0), lpips)
    assert not objective.modules and objective.helpers == {"lpips": lpips} and not lpips.training
    assert not any(p.requires_grad for p in lpips.parameters())


def test_lpips_has_finite_gradients_at_equal_pictures_and_no_dropout_in_training():
    lpips, x = LPIPS().train(), images(1, 32, 32).requires_grad_()
    value = lpips(x.detach(), x)
    value.sum().backward()
    assert value.item() == 0 and x.grad.isfinite().all()
    y = images(1, 32, 32)
    assert lpips(y, x.detach()) == lpips(y, x.detach())


def test_a_pickle_is_not_taken_for_weights(tmp_path):
    for name in ("vgg16.pth", "vgg.pth"): (tmp_path / name).write_bytes(pickle.dumps({"a": print}))
    with pytest.raises(Mismatch, match="vgg16.pth: "): load_lpips(tmp_path)


def test_stylegan_critic_sees_the_whole_picture():
    x = torch.randn(1, 3, 16, 16, requires_grad=True)
    StyleGANCritic(16)(x).sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()


# The protocol, and what it refuses -------------------------------------------------------------------------------

class Bare(Tokenizer):
    "A tokenizer of codes that stand for nothing."
    def __init__(self, vocab, dims=2):
        super().__init__()
        self.vocab, self.dims, self.factor = vocab, dims, 4

    def quantize(self, images): return Quantized(images, None, {})
    def lookup(self, codes): return self.shaped(codes)
    def render(self, z, *, draws=None, at=None, size=None): return z if size is None else z[:, :size]

    def forward(self, images, draws=None, at=None, quantize=True):
        return Reconstruction(images, self.quantize(images), {})


@pytest.mark.parametrize("vocab,dims,shape,shaped", [
    ((9,), 2, (2, 16), (2, 4, 4)),
    ((9,), 2, (2, 3, 5), (2, 3, 5)),
    ((9,), 1, (2, 7), (2, 7)),
    ((9,), 1, (2, 7, 1), (2, 7)),
    ((9,), 2, (2, 3, 5, 1), (2, 3, 5)),
    ((9,), 2, (2, 1, 5), (2, 1, 5)),
    ((9, 5), 2, (2, 16, 2), (2, 4, 4, 2)),
    ((9, 5), 2, (2, 3, 5, 2), (2, 3, 5, 2)),
    ((9, 5), 1, (2, 7, 2), (2, 7, 2)),
])
def test_codes_have_levels_only_at_the_edge(vocab, dims, shape, shaped):
    t, codes = Bare(vocab, dims), torch.randint(5, shape)
    assert t.decode(codes).shape == shaped and t.decode(codes, size=1).shape[1] == 1
    tokens = t.tokens(codes)
    assert tokens.shape == (2, codes[0].numel() // len(vocab), len(vocab))
    grid = shaped[1:1 + dims]
    assert torch.equal(t.untoken(tokens, grid), codes.reshape(shaped))


def test_a_shape_of_two_meanings_is_refused_and_each_has_its_own():
    t, cells = Bare((9,)), torch.randint(9, (2, 16, 1))
    with pytest.raises(BadInput, match=r"codes=\(2, 16, 1\).*\(b, n\).*\(b, h, 1, 1\)"): t.decode(cells)
    assert t.decode(cells[..., 0]).shape == (2, 4, 4)
    assert t.decode(cells[..., None]).shape == (2, 16, 1)
    assert torch.equal(t.tokens(cells), cells)
    assert torch.equal(t.decode(t.untoken(cells, (16, 1))), cells)
    assert t.decode(cells[:, :1]).shape == (2, 1, 1)
    with pytest.raises(BadInput, match="codes"): Bare((9, 5)).decode(torch.zeros(2, 4, 4, dtype=ints))
    with pytest.raises(BadInput, match="codes"): Bare((9,), 1).decode(torch.zeros(2, 16, 2, dtype=ints))


def test_pictures_one_code_wide_are_coded_and_decoded():
    flat = codes_of(model, images(2, 16, 2))
    assert flat.shape == (2, 8, 1) and pictures(model, flat, shape=(8, 1)).shape == (2, 16, 2, 3)


def test_incomplete_tokenizers_cannot_be_built():
    class Half(Tokenizer):
        def quantize(self, images): return Quantized(images, None, {})
    with pytest.raises(TypeError, match="lookup"): Half()


model = VQGAN(NARROW).eval()
ints = torch.int64
REFUSED = [
    ("images", lambda: model.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)), "uint8"),
    ("images", lambda: model.encode(torch.zeros(3, 16, 16)), "(3, 16, 16)"),
    ("images", lambda: model.encode(torch.zeros(1, 16, 16, 3)), "(b, 3, h, w)"),
    ("images", lambda: model.encode(torch.zeros(0, 3, 16, 16)), "(0, 3, 16, 16)"),
    ("images", lambda: model.encode(torch.full((1, 3, 16, 16), 255.0)), "[-1, 1]"),
    ("images", lambda: model(torch.zeros(1, 3, 16, 17)), "multiples of 2"),
    ("images", lambda: model.encode(torch.full((1, 3, 16, 16), float("inf"))), "[-1, 1]"),
    ("images", lambda: model.encode([1, 2]), "list"),
    ("codes", lambda: model.decode(torch.full((1, 4, 4), 48)), "[0, 48)"),
    ("codes", lambda: model.decode(torch.full((1, 4, 4), -1)), "[0, 48)"),
    ("codes", lambda: model.decode(torch.zeros(1, 4, 4)), "integer"),
    ("codes", lambda: model.decode(torch.zeros(1, 5, dtype=ints)), "square"),
    ("codes", lambda: model.decode(torch.zeros(4, dtype=ints)), "(b, h, w)"),
    ("tokens", lambda: model.untoken(torch.zeros(1, 16, 2, dtype=ints)), "(b, n, 1)"),
    ("grid", lambda: model.untoken(torch.zeros(1, 16, 1, dtype=ints), (3, 5)), "16 cells"),
    ("tokenizer", lambda: Bare(None).encode(torch.zeros(1, 3, 4, 4)), "continuous"),
    ("tokenizer", lambda: vqgan("VQ16"), "VQ-16"),
    ("h", lambda: model.code_shape(15, 16), "multiple of 2"),
    ("codebook", lambda: vqgan("VQ-16", quantizer=dict(codebook=0)), ">= 1"),
    ("quantizer", lambda: VQGANConfig(quantizer=Revive(3)), "vector"),
    ("updates.0", lambda: VectorQuantizer(VectorConfig(4, 2, updates=(FSQConfig(),))), "revive"),
    ("levels", lambda: FSQConfig((8, 2)), ">= 3"),
    ("mults", lambda: VQGANConfig(mults=(0, 1)), "positive"),
    ("decoder_mults", lambda: VQGANConfig(decoder_mults=(1, 2)), "5 levels"),
    ("coder", lambda: VQGANConfig(coder="huge"), "stair"),
    ("width", lambda: Encoder(width=33), "32"),
    ("attention", lambda: Decoder(attention=(9,)), "levels"),
    ("discriminator", lambda: discriminator("patchgam"), "patchgan"),
    ("discriminator", lambda: VQGANLossConfig(discriminator="patchgam"), "patchgan"),
    ("discriminator", lambda: VQGANLoss(VQGANLossConfig(lpips=0)), "gan=0.5"),
    ("size", lambda: StyleGANCritic(100), "128"),
    ("disc_loss", lambda: VQGANLossConfig(disc_loss="hing"), "hinge"),
    ("gan", lambda: VQGANLossConfig(gan=float("nan")), "finite"),
    ("z", lambda: VectorQuantizer(VectorConfig(4, 2))(torch.zeros(1, 3, 2)), "(b, 2"),
    ("z", lambda: FSQ()(torch.zeros(1, 3, 2)), "(b, 4"),
]


@pytest.mark.parametrize("argument,call,words", REFUSED, ids=[f"{n}-{a}" for n, (a, _, _) in enumerate(REFUSED)])
def test_bad_input_is_one_clear_error(argument, call, words):
    with pytest.raises(BadInput) as e: call()
    assert str(e.value).startswith(f"{argument}=") and words in str(e.value)


def test_a_quantizer_without_a_meter_reports_nothing():
    q = VectorQuantizer(VectorConfig(4, 2, usage=0))
    assert q.usage is None and usage_of(q) == {}


def test_looking_at_values_can_be_left_out():
    wild = torch.full((1, 3, 8, 8), 9.0)
    assert check_images(wild, look=False) is wild
    with pytest.raises(BadInput, match="9.0"): check_images(wild, look=None)
    assert check_images(wild.to("meta"), look=None).is_meta, "where it is not free it is not done"


@pytest.mark.parametrize("name", shipped())
def test_what_is_no_tensor_is_refused_in_training_too(name):
    tokenizer = from_pretrained(name).tokenizer
    for each in (tokenizer, getattr(tokenizer, "frozen", tokenizer)):
        for wrong in (None, "photo.png", np.zeros((1, 3, 32, 32), np.float32)):
            words = f"images='{type(wrong).__name__}': must be a floating point tensor"
            with pytest.raises(BadInput, match=words): each(wrong)
