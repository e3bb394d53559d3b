"""Quantizers whose tables move: updates, k-means on a stream, searches and losses of the VQ-KD framework.

What the pages show is not repeated here.
"""
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.codebooks_on_two import BATCH, CASES, batches, begun, clustered, trained
from tests.test_tokenizers import Together, in_threads, same_state
from vgnb.core import BadInput
from vgnb.draws import At, Keyed
from vgnb.kinds import from_json, to_json
from vgnb.saved import fill, load_tensors
from vgnb.tokenizers import codebook_updates
from vgnb.tokenizers.codebook_updates import Anchors, Ema, Normalise
from vgnb.tokenizers.fsq import FSQ, FSQConfig
from vgnb.tokenizers.losses import discriminator_loss, generator_loss
from vgnb.tokenizers.nearest import distances, exact, kmeans, members, nearest
from vgnb.tokenizers.objectives import VQGANLossConfig, vqgan_loss
from vgnb.tokenizers.quantizers import Revive, VectorConfig, VectorQuantizer, build_quantizer
from vgnb.tokenizers.streamed_kmeans import Clusters, clusters_of, set_codebook, stream_kmeans
from vgnb.tokenizers.stylegan2 import StyleGAN2Critic, with_deviation
from vgnb.tokenizers.vqgan import VQGAN, VQGANConfig, vqgan
from vgnb.tokenizers.vqkd_quantizers import read_quantizer, write_quantizer
from vgnb.training.checkpoints import fill_optimizer, optimizer_tensors
from vgnb.training.optimizers import make_optimizer
from vgnb.training.recipes import Optim
from vgnb.training.tasks import TokenizerTask

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
MOVED = {name: config for name, config in CASES.items() if name != "fsq"}


def at(step, count=BATCH): return At(torch.arange(count), step=step)


# Two processes ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", CASES)
def test_two_processes_end_with_the_table_of_one(name):
    found, both = {}, Together(2)
    def work(rank): found[rank] = trained(CASES[name], both.rank(rank), rank, 2)
    in_threads(work, (0,), (1,))
    one = trained(CASES[name])
    assert same_state(found[0], one) and same_state(found[1], one)
    if name in MOVED: assert not same_state(one, begun(CASES[name]).state_dict())


def test_a_stream_is_clustered_alike_however_it_is_cut():
    found, both = {}, Together(2)
    def work(rank): found[rank] = clustered(both.rank(rank), rank, 2)
    in_threads(work, (0,), (1,))
    one = clustered()
    assert all(torch.equal(other, one) for other in (found[0], found[1], clustered(size=400), clustered(size=1)))


@pytest.mark.full
def test_real_processes_end_with_the_tables_of_one(tmp_path):
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, launch in (("two", two), ("one", [])):
        words = [sys.executable, *launch, "-m", "tests.codebooks_on_two", str(tmp_path / name)]
        done = subprocess.run(words, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
    assert [json.loads((tmp_path / name / "world.json").read_text()) for name in ("two", "one")] == [2, 1]
    files = ("two/states-0", "two/states-1", "one/states-0")
    first, second, one = (load_tensors(tmp_path / f"{name}.safetensors") for name in files)
    assert same_state(first, one) and same_state(second, one) and "clusters/table" in one


def test_sums_are_the_same_in_any_order_and_as_exact_as_floats_can_say():
    g = torch.Generator().manual_seed(0)
    for scale in (1e-20, 1.0, 1e20):
        z = scale * torch.randn(3000, 5, generator=g) * torch.rand(3000, 1, generator=g) ** 4
        codes = torch.randint(7, (3000,), generator=g)
        one, order = members(z, codes, 8), torch.randperm(3000, generator=g)
        other = members(z[order], codes[order], 8)
        assert torch.equal(one.mean, other.mean) and torch.equal(one.count, other.count)
        sums = torch.zeros(8, 5, dtype=torch.float64).index_add_(0, codes, z.double())
        torch.testing.assert_close(one.mean[:7], (sums / one.count[:, None])[:7].float(), rtol=1e-6, atol=1e-9 * scale)
        assert one.count[7] == 0 and not one.mean[7].any()
    assert members(torch.full((3, 2), torch.inf), torch.zeros(3, dtype=torch.int64), 2).mean[0].isnan().all()
    assert not members(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), 2).mean.any()


# What moves a table, and what does not ---------------------------------------------------------------------------

@pytest.mark.parametrize("name", CASES)
def test_a_look_changes_nothing(name):
    quantizer = build_quantizer(CASES[name])
    with torch.no_grad():
        for p in quantizer.parameters(): p.mul_(1.7)                   # off the sphere, as an optimizer leaves it
    before = {k: v.clone() for k, v in quantizer.state_dict().items()}
    quantizer.train()(batches()[0], Keyed(0), at(0), learn=False)
    quantizer.eval()(batches()[0], Keyed(0), at(0))
    assert same_state(quantizer.state_dict(), before)


def test_only_the_published_form_rewrites_a_table_that_is_looked_at():
    z = batches()[0]
    for compat, changes in ((None, False), ("upstream", True)):
        quantizer = VectorQuantizer(VectorConfig(8, 4, updates=(Normalise(),), usage=0, compat=compat)).eval()
        quantizer.table.data *= 2
        before = quantizer.table.detach().clone()
        found = quantizer(z)
        assert torch.equal(quantizer.table, before) != changes
        torch.testing.assert_close(found.z, quantizer.lookup(found.codes))
        torch.testing.assert_close(found.z.norm(dim=1), torch.ones(8, 10))


def test_a_resting_table_is_not_even_put_back_on_the_sphere():
    quantizer = VectorQuantizer(VectorConfig(8, 4, updates=(Normalise(), Ema()), usage=0)).train()
    quantizer.table.data *= 2
    before, quantizer.rests = quantizer.table.detach().clone(), True
    quantizer(batches()[0])
    assert torch.equal(quantizer.table, before)
    quantizer.rests = False
    quantizer(batches()[0])
    torch.testing.assert_close(quantizer.table.norm(dim=1), torch.ones(8))


@pytest.mark.parametrize("choose", ["nearest", "multinomial", "cached"])
def test_a_dead_row_is_put_on_a_feature(choose):
    quantizer = VectorQuantizer(VectorConfig(6, 4, l2=False, updates=(Anchors(choose),), usage=0)).train()
    z = batches()[0]
    rows = quantizer.flat(z)
    quantizer.table.data[:] = 500.0
    quantizer.table.data[0] = rows.mean(0)
    assert set(quantizer(z, Keyed(0), at(0)).codes.unique().tolist()) == {0}
    gaps = torch.cdist(quantizer.table[1:].detach(), rows).min(1).values
    assert (gaps < 1.5).all()                                          # eps of 500 is left
    torch.testing.assert_close(quantizer.table[0].detach(), rows.mean(0))


def test_rows_in_use_stay_where_they_are():
    quantizer = VectorQuantizer(VectorConfig(4, 2, l2=False, updates=(Anchors(),), usage=0)).train()
    corners = torch.tensor([[9.0, 0], [0, 9.0], [-9.0, 0], [0, -9.0]])
    quantizer.table.data.copy_(corners)
    z = corners.repeat(20, 1) + 0.1 * torch.randn(80, 2)
    for step in range(3): quantizer(z, Keyed(0), at(step, 80))
    torch.testing.assert_close(quantizer.table.detach(), corners, atol=1e-5, rtol=0)
    torch.testing.assert_close(quantizer.updates[0].probability, torch.full((4,), 0.25 * (1 - 0.99 ** 3)))


def test_far_anchors_are_the_published_fault():
    z, found = torch.linspace(0, 30, 40)[:, None], {}
    for compat in (None, "upstream"):
        config = VectorConfig(50, 1, l2=False, updates=(Anchors("multinomial"),), usage=0, compat=compat)
        quantizer = VectorQuantizer(config)
        quantizer.table.data[:] = 0.0
        found[compat], _ = quantizer.updates[0].anchors(quantizer, z, Keyed(0), at(0))
    assert found[None].max() < 10 and found["upstream"].min() > 20


def test_anchors_are_drawn_in_parts_without_a_difference(monkeypatch):
    quantizer = VectorQuantizer(VectorConfig(9, 4, l2=False, updates=(Anchors("multinomial"),), usage=0))
    z = quantizer.flat(batches()[0])
    whole, _ = quantizer.updates[0].anchors(quantizer, z, Keyed(0), at(3))
    monkeypatch.setattr(codebook_updates, "_BOUND", 2 * len(z))
    parts, _ = quantizer.updates[0].anchors(quantizer, z, Keyed(0), at(3))
    other, _ = quantizer.updates[0].anchors(quantizer, z, Keyed(0), at(4))
    assert torch.equal(whole, parts) and not torch.equal(whole, other)


@pytest.mark.parametrize("name", MOVED)
def test_what_a_quantizer_remembers_travels_in_its_state(name):
    "Stopped after two steps and loaded into a new one, it goes on as if nothing had been."
    config = CASES[name]
    one = build_quantizer(config).train()
    for step in (0, 1): one(batches()[step], Keyed(0), at(step))
    two = fill(build_quantizer(config), {k: v.clone() for k, v in one.state_dict().items()}).train()
    for quantizer in (one, two):
        for step in (2, 3): quantizer(batches()[step], Keyed(0), at(step))
    assert same_state(one.state_dict(), two.state_dict())


def test_a_table_without_a_loss_is_no_parameter_of_a_training():
    config = VQGANConfig(CASES["vq-kd"], width=32, mults=(1, 2), attention=(), z=32, depth=1)
    tokenizer = VQGAN(config)
    names = {k for named in TokenizerTask(tokenizer, plain()).groups().values() for k in named}
    assert names == {f"tokenizer.{k}" for k, _ in tokenizer.named_parameters()} - {"tokenizer.quantizer.table"}
    (tokenizer.train()(torch.rand(2, 3, 16, 16) * 2 - 1, Keyed(0), at(0, 2)).output.sum()).backward()
    assert tokenizer.quantizer.table.grad is None


def plain(): return vqgan_loss(VQGANLossConfig(lpips=0, gan=0), weights="nowhere", size=16)


@pytest.mark.parametrize("update", [Ema(), Anchors(), Anchors("cached")])
def test_updates_from_batches_refuse_accumulation(update):
    config = VQGANConfig(VectorConfig(8, 4, updates=(update,)), width=32, mults=(1, 2), attention=(), z=32, depth=1)
    task = TokenizerTask(VQGAN(config), plain())
    task.check(1)
    with pytest.raises(BadInput, match="accumulate=2: must be 1 while rows"): task.check(2)


# Searches --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("config", [
    *CASES.values(), VectorConfig(4096, 4), VectorConfig(4096, 4, l2=False),
    VectorConfig(4096, 4, l2=False, search="cosine"), FSQConfig((8, 8, 5, 5))], ids=str)
def test_bf16_autocast_changes_no_code_and_no_table(config):
    many = torch.randn(BATCH, 4, 200, generator=torch.Generator().manual_seed(1))
    found = []
    for on in (False, True):
        torch.manual_seed(0)
        quantizer = build_quantizer(config).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            codes = [quantizer(many + step, Keyed(0), at(step)).codes for step in (0, 1)]
        found.append((codes, quantizer.state_dict()))
    (plain, before), (auto, after) = found
    assert all(torch.equal(a, b) for a, b in zip(plain, auto)) and same_state(before, after)


def test_the_search_by_angle_is_the_smallest_cosine_distance_with_ties_to_the_first():
    g = torch.Generator().manual_seed(0)
    z, table = torch.randn(500, 6, generator=g), torch.randn(40, 6, generator=g) * torch.rand(40, 1, generator=g)
    table[7], table[3] = 5 * table[2], 0
    with exact(z): found = nearest(z, table, by="cosine")
    margin = distances(z, table, "cosine")
    best = margin.gather(1, found[:, None])[:, 0]
    assert (best <= margin.min(1).values + 1e-6).all() and 7 not in found
    assert torch.equal(found, nearest(3 * z, table, bound=41, by="cosine"))


def test_codes_by_angle_are_named_as_such():
    def model(**kw):
        config = VQGANConfig(VectorConfig(8, 4, **kw), width=32, mults=(1, 2), attention=(), z=32, depth=1)
        torch.manual_seed(0)
        return VQGAN(config)
    plain, by_angle = (model(l2=False, search=s).coding() for s in ("l2", "cosine"))
    assert plain != by_angle and model().coding() == model(search="cosine").coding()
    small = dict(width=32, mults=(1, 2), attention=(), z=32, depth=1)
    fsq = [VQGAN(VQGANConfig(FSQConfig(levels), **small)) for levels in ((5, 3), (3, 5))]
    fsq[1].load_state_dict(fsq[0].state_dict())
    assert fsq[0].coding() != fsq[1].coding()


def test_plain_kmeans_and_the_stream_find_equally_good_centres():
    g = torch.Generator().manual_seed(0)
    z = torch.cat([torch.randn(200, 3, generator=g) + 8 * torch.randn(3, generator=g) for _ in range(6)])
    def error(table): return float((z - table[nearest(z, table)]).square().sum(1).mean())
    def stream(start): return [(torch.arange(1200), z)][start:]
    streams = [stream_kmeans(stream, Clusters(30, 3), Keyed(s)) for s in range(4)]
    plain = [kmeans(z, 30, Keyed(s)) for s in range(4)]
    ours, theirs = (sum(map(error, tables)) / 4 for tables in (streams, plain))
    assert abs(ours / theirs - 1) < 0.3


def test_clusters_refuse_another_pass_and_take_their_quantizers_search():
    quantizer = VectorQuantizer(VectorConfig(5, 3, l2=False, search="cosine", usage=0))
    clusters, z = clusters_of(quantizer), torch.randn(50, 3)
    clusters.add(torch.arange(50), z, Keyed(0))
    clusters.turn()
    set_codebook(quantizer, clusters)
    assert all((z == row).all(1).any() for row in quantizer.table)
    for wild in (9 * z, z * torch.nan):
        with pytest.raises(BadInput, match="features='larger or not a"): clusters.add(torch.arange(50), wild, Keyed(0))
    clusters.add(torch.arange(20), z[:20], Keyed(0))
    with pytest.raises(BadInput, match="features=20: must be 50"): clusters.turn()


def test_unfinished_numbers_are_refused_by_the_first_pass():
    clusters = Clusters(2, 3)
    clusters.add(torch.arange(4), torch.tensor([[1.0, torch.inf, 0]]).expand(4, 3), Keyed(0))
    with pytest.raises(BadInput, match="finite"): clusters.turn()


# FSQ -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("levels", [(3,), (4,), (8, 8, 5, 5, 5), (16, 3, 7), (2 ** 16, 2 ** 16, 2 ** 16)])
@pytest.mark.parametrize("share", [0.0, 1e-3, 0.9])
def test_every_digit_survives_the_round_trip(levels, share):
    eps = share / (max(levels) - 1)
    quantizer = FSQ(FSQConfig(levels, usage=0, eps=eps)).eval()
    g = torch.Generator().manual_seed(0)
    drawn = [torch.randint(n, (2000,), generator=g) for n in levels]
    codes = (torch.stack(drawn, -1) * quantizer.place).sum(-1)
    digits = codes[:, None] // quantizer.place % quantizer.levels
    assert torch.equal((digits * quantizer.place).sum(-1), codes) and codes.max() < quantizer.vocab[0]
    rows = quantizer.lookup(codes)
    assert torch.equal(rows, (digits - quantizer.levels // 2) / (quantizer.levels // 2))
    far = quantizer(torch.tensor([[60.0] * len(levels), [-60.0] * len(levels)])).codes
    assert far.tolist() == [quantizer.vocab[0] - 1, 0]


# The framework's words -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_lattice_is_the_same_whatever_the_model_was_cast_to(dtype):
    config = FSQConfig((8, 8, 5, 5, 5), usage=0)
    z = 3 * torch.randn(2, 5, 64, 64, generator=torch.Generator().manual_seed(0))
    here, there = build_quantizer(config).eval(), build_quantizer(config).eval().to(dtype)
    one, other = here(z), there(z)
    assert torch.equal(one.codes, other.codes) and torch.equal(one.z, other.z) and other.z.dtype == torch.float32
    assert torch.equal(here.lookup(one.codes), there.lookup(one.codes))


@pytest.mark.parametrize("config", [c for c in CASES.values() if isinstance(c, FSQConfig | VectorConfig)], ids=str)
def test_what_can_be_written_in_the_frameworks_words_is_read_again(config):
    try: spec = write_quantizer(config)
    except BadInput as e: assert e.argument in ("quantizer", "updates", "l2")
    else: assert replace(read_quantizer(spec), usage=config.usage) == config
    assert from_json(to_json(config)) == config


# Objectives, discriminators, optimizers --------------------------------------------------------------------------

@pytest.mark.parametrize("batch", [1, 2, 3, 4, 6, 7, 8])
def test_any_batch_is_grouped_for_its_deviation(batch):
    x = torch.randn(batch, 2, 3, 3)
    out = with_deviation(x)[:, 2, 0, 0]
    group = max(g for g in (1, 2, 3, 4) if batch % g == 0)
    for first in range(batch // group):
        own = x[first::batch // group]
        value = (own.var(0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(out[first::batch // group], value.expand(group))


def test_the_objective_builds_the_critic_it_names():
    game = dict(gen_loss="non-saturating", disc_loss="vanilla", r1=10, start=0)
    config = VQGANLossConfig(lpips=0, discriminator="stylegan2", **game)
    objective = vqgan_loss(config, weights="nowhere", size=16)
    critic, images = objective.modules["discriminator"], torch.rand(2, 3, 16, 16) * 2 - 1
    assert isinstance(critic, StyleGAN2Critic)
    total, parts = objective.for_discriminator(images, {"output": -images}, 0)
    total.backward()
    assert parts["r1"] > 0 and all(p.grad is not None for p in critic.parameters() if p is not critic.head.bias)


def test_lars_memory_is_saved_and_a_refused_step_leaves_it():
    named = {"w": torch.nn.Parameter(torch.randn(3, 2)), "b": torch.nn.Parameter(torch.randn(2))}
    first = make_optimizer(Optim("lars", lr=0.1, weight_decay=0.01), named)
    for p in named.values(): p.grad = torch.randn_like(p)
    first.step()
    tensors = {k: v.clone() for k, v in optimizer_tensors(first, named).items()}
    second = make_optimizer(Optim("lars", lr=0.1, weight_decay=0.01), named)
    fill_optimizer(second, named, tensors)
    assert set(tensors) == {"w/momentum", "b/momentum"} and same_state(optimizer_tensors(second, named), tensors)

    before = [p.detach().clone() for p in named.values()]
    second.found_inf = torch.tensor(1.0)
    for p in named.values(): p.grad = torch.full_like(p, torch.nan)
    second.step()
    assert all(torch.equal(a, b) for a, b in zip(before, named.values()))
    assert same_state(optimizer_tensors(second, named), tensors)


CACHED = VectorConfig(4, 2, updates=(Anchors("cached"),))


def recorded(**parts):
    "A quantizer's record in the framework's words."
    embedding = {"num_embeddings": 8, "embedding_dim": 4}
    return read_quantizer({"embedding": embedding, "distance": {"type": "L2Distance"}} | parts)


def lost(*losses): return recorded(losses={str(n): loss for n, loss in enumerate(losses)})


UNIT = {"type": "CommitmentLoss", "mse": {"norm": True}}
REFUSED = [
    ("decay", lambda: Ema(2.0), "<= 1"),
    ("decay", lambda: Anchors(decay=1), "below 1"),
    ("choose", lambda: Anchors("closest"), "nearest"),
    ("updates", lambda: VectorQuantizer(VectorConfig(4, 2, l2=False, updates=(Normalise(),))), "l2=True"),
    ("draws", lambda: VectorQuantizer(CACHED)(torch.zeros(8, 2)), "cached anchors"),
    ("search", lambda: VectorConfig(search="angle"), "cosine"),
    ("vq", lambda: VectorConfig(vq=-1.0), ">= 0"),
    ("temperature", lambda: VectorConfig(temperature=0.0), "above 0"),
    ("levels", lambda: FSQConfig((8, 2)), ">= 3"),
    ("eps", lambda: FSQConfig((5, 9), eps=0.125), "0.125"),
    ("usage", lambda: FSQConfig((256, 256, 257)), "2^24"),
    ("features", lambda: VectorQuantizer(VectorConfig(9, 2)).kmeans_init(torch.zeros(8, 2), Keyed(0)), "(9)"),
    ("usage", lambda: VectorQuantizer(VectorConfig(2 ** 24 + 1, 1)), "2^24"),
    ("ids", lambda: Clusters(2, 3).add(torch.tensor([2 ** 32]), torch.zeros(1, 3), Keyed(0)), "2^32"),
    ("callbacks", lambda: read_quantizer({"embedding": {}, "callbacks": [{"type": "EMA"}]}), "VQKDCallback"),
    ("updates", lambda: write_quantizer(VectorConfig(l2=False, updates=(Revive(),))), "unknown to the VQ-KD"),
    ("schedules.0.of", lambda: VQGANLossConfig(schedules=(from_json({"kind": "weight.warm-up", "of": "l3"}),)), "l2"),
    ("optim.name", lambda: Optim("lasr"), "lars"),
    ("by", lambda: nearest(torch.zeros(2, 3), torch.zeros(2, 3), by="angle"), "cosine"),
    ("by", lambda: distances(torch.zeros(2, 3), torch.zeros(2, 3), "angle"), "cosine"),
    ("iterations", lambda: VectorQuantizer(VectorConfig(2, 2)).kmeans_init(torch.zeros(8, 2), Keyed(0), -1), ">= 0"),
    ("size", lambda: kmeans(torch.zeros(4, 2), 0, Keyed(0)), ">= 1"),
    ("losses", lambda: lost({"type": "VQGANLoss"}, {"type": "CommitmentLoss"}), "beta only once"),
    ("losses", lambda: lost({"type": "CodebookLoss"}, UNIT), "all have mse.norm, or none"),
    ("losses.VQGANLoss", lambda: lost({"type": "VQGANLoss", "reduction": "sum"}), "weight and beta"),
    ("losses.weight", lambda: lost({"type": "VQGANLoss", "weight": {"type": "warmup"}}), "finite number"),
    ("losses.beta", lambda: lost({"type": "VQGANLoss", "beta": "0.25"}), "finite number"),
    ("callbacks.anchor.sync", lambda: recorded(callbacks=[
        {"type": "CVQVAECallback", "anchor": {"type": "NearestAnchor", "sync": "False"}}]), "True"),
    ("schedules", lambda: VQGANLossConfig(schedules=3), "list"),
    ("schedules.0", lambda: VQGANLossConfig(schedules=(3,)), "warm-up"),
    ("depth", lambda: vqgan_loss(VQGANLossConfig(lpips=0, depth=4), weights="", size=32), "pictures of 32 pixels"),
    ("compat", lambda: discriminator_loss("hinge", torch.zeros(1), torch.zeros(1), "published"), "upstream"),
    ("compat", lambda: generator_loss("hinge", torch.zeros(1), "published"), "upstream"),
    ("VectorConfig field", lambda: vqgan("VQ-16", quantizer=dict(codebok=3)), "did you mean codebook?"),
]


@pytest.mark.parametrize("argument,call,words", REFUSED, ids=[f"{n}-{a}" for n, (a, _, _) in enumerate(REFUSED)])
def test_bad_input_is_one_clear_error(argument, call, words):
    with pytest.raises(BadInput) as e: call()
    assert str(e.value).startswith(f"{argument}=") and words in str(e.value)
