"The VQ-KD framework's proposal networks: memory, beginnings, one vocabulary, files, and whose they are."
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vgnb.core import BadInput, Mismatch
from vgnb.draws import At, Keyed
from vgnb.families import described, recognised
from vgnb.generators.generator import Cond, Grid
from vgnb.generators.proposal import (
    VQKD_PROPOSAL,
    ProposalConfig,
    ProposalTransformer,
    UnturnedAttention,
    proposal_presets,
    read_proposal,
    write_proposal,
)
from vgnb.generators.raster import RasterConfig, RasterTransformer
from vgnb.kinds import from_json, to_json
from vgnb.layers import Noise
from vgnb.sampling.guidance import CFG
from vgnb.sampling.pick import Pick
from vgnb.sampling.sampler import Sampler
from vgnb.saved import load_model, save_model
from vgnb.zoo import build, export_published, load_published

LLAMA = ProposalConfig(2, 32, 4, vocab=24, grid=(4, 5), classes=5, hidden=48)
GPT2 = ProposalConfig(2, 32, 4, vocab=24, grid=(4, 5), classes=5, block="gpt2", positions=30)
KINDS = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "grouped": replace(LLAMA, kv_heads=2),
    "gpt2-grouped": replace(GPT2, kv_heads=1, hidden=40),
    "everywhere": replace(GPT2, class_everywhere=True),
    "no-null": replace(LLAMA, class_dropout=0),
    "gpt2-no-null": replace(GPT2, class_dropout=0)}
OWNED = ("llama", "gpt2", "no-null", "gpt2-no-null")
PICKS = (Pick(top_k=12, top_p=0.92),)


def made(config) -> ProposalTransformer:
    "A model whose every entry counts."
    model, g = ProposalTransformer(config, seed=1).eval(), torch.Generator().manual_seed(2)
    for p in model.parameters(): p.data += 0.2 * torch.randn(p.shape, generator=g)
    return model


@pytest.fixture(scope="module", params=KINDS)
def model(request): return made(KINDS[request.param])


def case(b=3, n=20, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(24, (b, n, 1), generator=g), Cond(torch.randint(5, (b,), generator=g))


# ---- memory and beginnings

@pytest.mark.parametrize("shape", [(4, 5), (2, 3), (1, 1), (5, 6), (7,)])
@torch.no_grad()
def test_cached_equals_full(model, shape):
    "On grids of any shape, the training grid and others; a second branch rests now and then."
    grid = Grid(shape)
    codes, cond = case(n=grid.n)
    other = Cond(cond.labels.flip(0)) if not model.config.class_dropout else model.null(cond)
    full = [model.logits(codes, c, grid=grid)[0] for c in (cond, other)]
    state = model.begin((cond, other), grid)
    for i in range(grid.n):
        cell = torch.full((3, 1), i)
        found = model.predict(state, cell, live=1 + (i % 3 != 1)).logits
        for branch, wanted in zip(found, full):
            torch.testing.assert_close(branch[:, 0], wanted[:, i], atol=1e-5, rtol=1e-5)
        model.accept(state, cell, codes[:, i:i + 1])


@pytest.mark.parametrize("known", [0, 1, 10, 19, 20])
def test_a_half_is_completed_each_by_itself(model, known):
    "What is given stays; neighbours in the batch change nothing, guided or not."
    codes, cond = case()
    given = (codes, (torch.arange(20) < known).expand(3, -1))
    for alpha in (1.0, 1.75) if model.config.class_dropout else (1.0,):
        sampler = Sampler(model, guidance=CFG(alpha), picks=PICKS, rows=4)
        ids = torch.arange(3)
        whole = sampler.sample(cond, ids, Keyed(5), grid=Grid((4, 5)), given=given)
        assert torch.equal(whole[:, :known], codes[:, :known])
        for i in range(3):
            one = slice(i, i + 1)
            alone = sampler.sample(
                cond.rows(one), ids[one], Keyed(5), grid=Grid((4, 5)), given=tuple(t[one] for t in given))
            assert torch.equal(alone, whole[one])


def test_guidance_is_the_published_mixture(model):
    if not model.config.class_dropout:
        with pytest.raises(BadInput): model.logits(case()[0], model.null(case()[1]))
        return
    codes, cond = case(n=1)
    grid = Grid((1, 1))
    without, with_class = (model.logits(codes, c, grid=grid)[0].detach() for c in (model.null(cond), cond))
    wanted = ((1 - 4.0) * without + 4.0 * with_class).argmax(-1)
    sampler = Sampler(model, guidance=CFG(4.0), picks=(Pick(top_k=1),), rows=4)
    assert torch.equal(sampler.sample(cond, torch.arange(3), Keyed(0), grid=grid)[..., 0], wanted)


# ---- one vocabulary

def test_training_asks_among_all_words_and_sampling_among_codes(model):
    codes, cond = case()
    c = model.config
    words = model.words(model.states(codes[..., 0], cond, Grid((4, 5))))
    assert words.shape == (3, 20, 5 + (c.class_dropout > 0) + 24)
    torch.testing.assert_close(words[..., c.class_words:], model.logits(codes, cond)[0], atol=1e-5, rtol=1e-5)
    wanted = F.cross_entropy(words.flatten(0, 1), codes.flatten() + c.class_words)
    torch.testing.assert_close(model(codes, cond, Keyed(0), At(torch.arange(3))).total, wanted)


def test_every_entry_learns(model):
    "Class words, too, though no image has one behind its first place."
    codes, cond = case(16)
    replica = ProposalTransformer(model.config)
    replica.load_state_dict(model.state_dict())
    replica.train()(codes, cond, Keyed(0), At(torch.arange(16))).total.backward()
    still = [name for name, p in replica.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert still == []


def test_classes_are_dropped_in_training_alone():
    config = replace(LLAMA, class_dropout=0.5)
    model, (codes, cond) = made(config), case(64)
    at = At(torch.arange(64))
    calm = model(codes, cond, Keyed(0), at).total
    gone = Keyed(0).uniform("class_drop", at) < 0.5
    assert 10 < int(gone.sum()) < 54
    labels = torch.where(gone, 5, cond.labels)
    words = model.words(model.states(codes[..., 0], Cond(labels), Grid((4, 5))))
    wanted = F.cross_entropy(words.flatten(0, 1), codes.flatten() + 6)
    torch.testing.assert_close(model.train()(codes, cond, Keyed(0), at).total, wanted)
    assert abs(float(calm.detach() - wanted.detach())) > 1e-4


def test_a_gpt2_drops_weights_of_attention_in_training_alone():
    "In the mean over draws a wet pass is the dry one; a draw is that of its picture and step."
    config = replace(GPT2, attention_dropout=0.3, class_dropout=0)
    model, (codes, cond) = made(config).train(), case(b=2)
    def loss(step): return model(codes, cond, Keyed(0), At(torch.arange(2), step=step)).total
    with torch.no_grad():
        wet = torch.stack([loss(step) for step in range(40)])
        dry = model.eval()(codes, cond, Keyed(0), At(torch.arange(2))).total
        assert torch.equal(model.train()(codes, cond, Keyed(0), At(torch.arange(2), step=3)).total, wet[3])
    assert wet.std() > 0 and abs(wet.mean() - dry) < 6 * wet.std() / 40 ** 0.5 + 0.02 * dry
    spec = write_proposal(config)
    assert spec["attn_pdrop"] == 0.3 and read_proposal(spec).attention_dropout == 0.3
    assert read_proposal({k: v for k, v in spec.items() if k != "attn_pdrop"}).attention_dropout == 0.1


def test_attention_written_out_is_attention():
    torch.manual_seed(0)
    plain, wet = UnturnedAttention(24, 4), UnturnedAttention(24, 4, dropout=1e-9)
    wet.load_state_dict(plain.state_dict())
    x = torch.randn(2, 7, 24)
    for mask in ("causal", None, torch.rand(2, 1, 7, 7) > 0.2):
        if torch.is_tensor(mask): mask = mask | torch.eye(7, dtype=torch.bool)
        found = wet.train()(x, None, mask, noise=Noise(Keyed(0), At(torch.arange(2))))
        torch.testing.assert_close(found, plain(x, None, mask))


def test_the_head_of_a_gpt2_is_its_embedding():
    model, (codes, cond) = made(GPT2), case()
    before = model.logits(codes, cond)[0].detach()
    model.tokens.weight.data[codes.unique()[0]] += 1
    assert not torch.allclose(before, model.logits(codes, cond)[0])
    assert not any("head" in name for name in model.state_dict())


def test_a_place_beyond_the_learned_ones_is_refused():
    codes, cond = case(n=31)
    for grid in ((31,), (1, 31)):
        with pytest.raises(BadInput, match="at most 30 cells"): made(GPT2).logits(codes, cond, grid=Grid(grid))
        with pytest.raises(BadInput, match="at most 30 cells"): ProposalTransformer(replace(GPT2, grid=grid))
        assert made(LLAMA).logits(codes, cond, grid=Grid(grid))[0].shape == (3, 31, 24)


# ---- files

WRAPS = [(kind, None) for kind in OWNED] + [(OWNED[0], "state_dict"), (OWNED[-1], "module.")]


@pytest.mark.parametrize("kind,wrap", WRAPS)
def test_published_names_there_and_back(kind, wrap, tmp_path):
    "As the framework leaves them: beside what is left of its tokenizer, bare or wrapped, in a folder of its own."
    model, (codes, cond) = made(KINDS[kind]), case()
    state = export_published(model)
    assert all(name.startswith("_transformer._transformer.") for name in state)
    beside = {"_ir._quantizer._losses.vqgan_loss._weight._steps": torch.ones((), dtype=torch.int64)}
    content = {(wrap if wrap == "module." else "") + k: v for k, v in (state | beside).items()}
    folder = tmp_path / "iter_10"
    folder.mkdir()
    torch.save({wrap: content} if wrap == "state_dict" else content, folder / "model.pth")
    spec, _ = VQKD_PROPOSAL.arguments(model.config)
    for path in (folder, folder / "model.pth"):
        again = load_published(path, spec=spec, grid=(4, 5))
        assert again.config == replace(model.config, hidden=again.config.hidden) and type(again) is type(model)
        assert torch.equal(again.logits(codes, cond)[0], model.logits(codes, cond)[0])

    spec, open_fields = VQKD_PROPOSAL.arguments(model.config)
    assert VQKD_PROPOSAL.read(spec, **open_fields) == model.config


def test_a_saved_model_is_read_back(model, tmp_path):
    save_model(tmp_path / "model", model, model.config)
    again = load_model(tmp_path / "model")
    codes, cond = case()
    assert again.config == model.config == from_json(to_json(model.config))
    assert torch.equal(again.eval().logits(codes, cond)[0], model.logits(codes, cond)[0])


def test_matrices_are_turned_and_heads_repeated():
    model = made(GPT2)
    state = export_published(model)
    inside = "_transformer._transformer."
    assert state[f"{inside}transformer.h.1.mlp.c_fc.weight"].shape == (32, 128)
    assert torch.equal(state[f"{inside}transformer.h.0.attn.c_attn.weight"].T, model.blocks[0].attention.qkv.weight)
    assert torch.equal(state[f"{inside}lm_head.weight"], state[f"{inside}transformer.wte.weight"])
    state[f"{inside}lm_head.weight"] = state[f"{inside}lm_head.weight"] + 1
    with pytest.raises(Mismatch, match="lm_head"): VQKD_PROPOSAL.table(GPT2).load(state, model)


@pytest.mark.parametrize("name", [p.name for p in VQKD_PROPOSAL.published])
def test_a_file_of_theirs_is_nobody_elses(name):
    "Nor are its arguments; and its sizes follow from its shapes."
    with torch.device("meta"): model, table = build(name)
    state = table.export(model.state_dict(), model)
    found, = recognised(state)
    assert found.family is VQKD_PROPOSAL and found.family.read(found.spec) == model.config
    for spec in (found.spec, VQKD_PROPOSAL.write(model.config)):
        assert [m.family for m in described(spec)] == [VQKD_PROPOSAL]


@pytest.mark.parametrize("block", ["llama", "gpt2"])
@pytest.mark.parametrize("codes, rate", [(8000, 0.1), (8192, 0), (64000, 0.1), (1024, 0)])
def test_words_of_any_published_codebook(block, codes, rate):
    config = replace(proposal_presets[f"{block}-medium"], vocab=codes, class_dropout=rate)
    with torch.device("meta"): model = ProposalTransformer(config)
    spec = recognised(VQKD_PROPOSAL.table(config).export(model.state_dict(), model))[0].spec
    again = VQKD_PROPOSAL.read(spec)
    assert (again.classes, again.vocab, again.class_dropout) == (1000, codes, rate)


def test_other_systems_files_and_arguments_stay_theirs():
    with torch.device("meta"): llamagen, table = build("GPT-B")
    assert VQKD_PROPOSAL not in [m.family for m in recognised(table.export(llamagen.state_dict()))]
    for spec in ({"model": "GPT-B"}, {"n_layer": 2, "dim": 48, "n_head": 4}):
        assert VQKD_PROPOSAL not in [m.family for m in described(spec)]
    line = RasterTransformer(RasterConfig(2, 32, 4, vocab=24, grid=(20,), rope="sequence", zero_prefix=False))
    with pytest.raises(BadInput): export_published(line, system="vqkd")
    for kind in KINDS.keys() - set(OWNED):
        with pytest.raises(BadInput): export_published(made(KINDS[kind]))


def test_another_size_says_what_to_do():
    state = export_published(made(LLAMA))
    with pytest.raises(Mismatch, match="spec="): recognised(state)


@pytest.mark.parametrize("wrong, word", [
    ({"vocab_size": 7}, "num_categories"), ({"image_codebook_size": 30}, "image_codebook_size"),
    ({"cond_dropout": 0.1, "vocab_size": 29}, "cond_dropout"), ({"cond_dropout": 0}, "cond_dropout"),
    ({"vocab_size": None}, "vocab_size"), ({"hidden_act": "gelu"}, "hidden_act"), ({"num_categories": 0}, "num_categ"),
    ({"attention_bias": True}, "attention_bias"), ({"tie_word_embeddings": True}, "tie_word_embeddings"),
    ({"num_key_value_heads": 2}, "num_key_value_heads"), ({"rope_scaling": {"factor": 2}}, "rope_scaling")])
def test_arguments_that_mean_another_model_are_refused(wrong, word):
    spec = VQKD_PROPOSAL.write(LLAMA)
    if "vocab_size" in wrong and wrong["vocab_size"] == 7: spec["num_categories"] = 7
    with pytest.raises(BadInput, match=word): VQKD_PROPOSAL.read(spec | wrong)
