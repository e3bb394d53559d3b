"The VQ-KD framework's models: sizes, teachers that never move, features where pixels are asked, frozen codes, files."
import contextlib
import copy
import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from vgnb.core import BadInput, Mismatch, Missing, VgnbError
from vgnb.data.transforms import Augment
from vgnb.draws import At, Keyed
from vgnb.evaluation.code_probe import ProbeRecipe
from vgnb.families import families, published_model, recognised
from vgnb.generators.proposal import ProposalConfig, read_proposal
from vgnb.kinds import changed, from_json, kind_of, kinds, to_json
from vgnb.recipes.vqkd_recipes import VQKD_NAMES, explain_name, vqkd_recipe
from vgnb.saved import load_model, save_model
from vgnb.shipped import open_part
from vgnb.tokenizers.codebook_updates import Anchors, Ema
from vgnb.tokenizers.convnext import ConvNeXtConfig
from vgnb.tokenizers.discriminators import PatchGANConfig
from vgnb.tokenizers.feature_objective import FeatureLoss, FeatureLossConfig, feature_loss, find_teacher
from vgnb.tokenizers.feature_tokenizer import (
    CENTRES,
    SPHERE,
    VQKD,
    Cluster,
    ClusterConfig,
    VQKDConfig,
    feature_tokenizer,
)
from vgnb.tokenizers.fsq import FSQConfig
from vgnb.tokenizers.loss_weights import InTurn, Steps
from vgnb.tokenizers.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig
from vgnb.tokenizers.objectives import VQGANLoss, VQGANLossConfig
from vgnb.tokenizers.pictures import need_pixels, pictures
from vgnb.tokenizers.pixel_decoder import (
    PIXEL_DECODERS,
    ConvDecoderConfig,
    PixelDecoder,
    PixelDecoderConfig,
    ViTDecoderConfig,
)
from vgnb.tokenizers.quantizers import VectorConfig
from vgnb.tokenizers.teachers import (
    TEACHERS,
    CLIPTeacherConfig,
    ConvNeXtTeacherConfig,
    Teacher,
    TeacherConfig,
    ViTTeacherConfig,
    load_teacher,
    official_names,
)
from vgnb.tokenizers.vit import RESIZES, ViT, ViTConfig, stretched
from vgnb.tokenizers.vit_coder import ViTCoder
from vgnb.tokenizers.vqgan import VQGAN, VQGANConfig
from vgnb.tokenizers.vqkd_files import load_cluster, load_pixel_decoder
from vgnb.tokenizers.vqkd_quantizers import read_quantizer
from vgnb.tokenizers.vqkd_training_files import read_training
from vgnb.tokenizers.vqkd_words import model_of, read_cluster, read_pixel_decoder, read_vqgan, read_vqkd
from vgnb.training.commands import TrainOptions, train
from vgnb.training.run_folder import Run
from vgnb.training.start import begin_with
from vgnb.training.tasks import Task, TokenizerTask
from vgnb.training.trackers import read_log
from vgnb.zoo import export_published, load_published

BEIT = ViTConfig(32, 8, 48, 2, 4, key_bias=False, resize="offset")
ROWS = replace(SPHERE, codebook=64, dim=8, usage=0)
VQKD_SMALL = VQKDConfig(ROWS, BEIT, replace(BEIT, size=4, patch=1, channels=8, depth=1), 24)
WIDE = replace(BEIT, dim=768, heads=12, depth=1)      # heads are known for published widths alone
VQKD_WIDE = VQKDConfig(ROWS, WIDE, replace(WIDE, size=4, patch=1, channels=8), 24)
EYE = TeacherConfig(ViTConfig(32, 8, 48, 2, 4))
CLUSTER = ClusterConfig(replace(CENTRES, codebook=32, dim=48, usage=0), EYE)
CONV = dict(width=32, mults=(1, 2), attention=(1,), z=16)
PAINT = ConvDecoderConfig(16, 32, (1, 1, 1, 2), 1, (3,))
L2 = {"embedding": {"num_embeddings": 64, "embedding_dim": 8}, "distance": {"type": "L2Distance"},
      "losses": {"vqgan_loss": {"type": "VQGANLoss"}}}
NORMALISED = L2 | {"callbacks": [{"type": "NormalizeCallback"}]}
ANCHORED = L2 | {"callbacks": [{"type": "CVQVAECallback", "ema": {}, "anchor": {"type": "NearestAnchor"}}]}
LATTICE = {"num_scalars_per_channel": [8, 5, 4]}


def made(build, config):
    torch.manual_seed(0)
    return build(config).eval()


@pytest.fixture(scope="module")
def images(): return torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(3)) * 2 - 1


# ---- sizes

@pytest.mark.parametrize("how", RESIZES)
def test_rows_of_a_table_follow_the_height_and_columns_the_width(how):
    "A table that only knows its rows is the same in every column of any grid, and the other way round."
    n = torch.arange(6.0)
    rows, columns = n[:, None].expand(6, 6), n.expand(6, 6)
    tall, wide = stretched(torch.stack((rows, columns))[None], 9, 4, how)[0]
    assert torch.allclose(tall, tall[:, :1].expand(9, 4), atol=1e-5)
    assert torch.allclose(wide, wide[:1].expand(9, 4), atol=1e-5)
    assert (tall.diff(dim=0) >= -1e-5).all() and tall[-1, 0] > tall[0, 0]


@pytest.mark.parametrize("resize", RESIZES)
@torch.no_grad()
def test_a_turned_picture_gives_turned_features(resize):
    "Where the weights know no direction, height and width are treated alike."
    net = made(ViT, ViTConfig(32, 8, 48, 2, 4, resize=resize))
    patch = net.patches.weight
    patch.copy_((patch + patch.mT) / 2)
    grid = net.positions[:, 1:].unflatten(1, (4, 4))
    net.positions[:, 1:] = ((grid + grid.transpose(1, 2)) / 2).flatten(1, 2)
    x = torch.randn(1, 3, 24, 56)
    torch.testing.assert_close(net(x.mT), net(x).mT, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("build, config", [(VQKD, VQKD_SMALL), (Cluster, CLUSTER)])
@pytest.mark.parametrize("sides", [(32, 32), (16, 56), (48, 16)])
def test_features_at_any_size(build, config, sides):
    model = made(build, config)
    x = torch.rand(2, 3, *sides) * 2 - 1
    codes = model.encode(x)
    assert codes.shape == (2, *model.code_shape(*sides)) == (2, sides[0] // 8, sides[1] // 8)
    assert torch.equal(model.decode(codes), model(x).output)
    with pytest.raises(BadInput, match="multiples of 8"): model.encode(x[..., :-1])


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers_take_what_their_cells_fill(name):
    config = TEACHERS[name]
    if isinstance(config, ConvNeXtTeacherConfig): body = replace(config.body, widths=(16, 32), depths=(1, 1))
    else: body = replace(config.body, size=2 * config.body.patch, dim=48, depth=1, heads=4, hidden=64)
    teacher = made(Teacher, replace(config, body=body))
    cell = body.factor
    x = torch.rand(1, 3, 3 * cell, cell) * 2 - 1
    assert teacher(x).shape == (1, body.features, 3, 1)
    with pytest.raises(BadInput, match=f"multiples of {cell}"): teacher(x[..., 1:])
    sized = Teacher(replace(teacher.config, view=(2 * cell, 2 * cell), grid=(5, 4)))
    assert sized(x[..., 1:]).shape == (1, body.features, 5, 4), "a view takes pictures of any size"
    assert from_json(to_json(sized.config)) == sized.config


# ---- teachers

@pytest.mark.parametrize("wrong", [255.0, 1.5, float("nan")])
def test_a_teacher_refuses_pictures_that_are_not_on_its_scale(images, wrong):
    with pytest.raises(BadInput, match=r"values in \[-1, 1\]"): made(Teacher, EYE)(images * 0 + wrong)


@pytest.mark.parametrize("call", [
    lambda: load_teacher("shapes", foo=1), lambda: find_teacher("shapes", "", foo=1),
    lambda: feature_tokenizer("vqkd-shapes", foo=1), lambda: vqkd_recipe(VQKD_NAMES[0], foo=1)])
def test_a_field_that_is_not_there_is_named(call):
    with pytest.raises(BadInput, match="field='foo'"): call()


def test_a_teacher_never_moves(images):
    teacher = made(Teacher, EYE).train()
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    x = images.clone().requires_grad_()
    assert not teacher(x).requires_grad


def test_the_published_shift_is_kept_only_on_request(images):
    right = made(Teacher, ViTTeacherConfig(EYE.body))
    late = Teacher(replace(right.config, compat="upstream"))
    late.load_state_dict(right.state_dict())
    square = images[..., :32]
    straight, shifted = right(square).flatten(2), late(square).flatten(2)
    assert torch.equal(straight[..., :-1], shifted[..., 1:])
    assert torch.equal(late(square), late(square)), "a second call sees what the first saw"
    assert len(Teacher.quirks) == 2


def test_a_missing_file_is_named_before_any_work(tmp_path):
    for name in TEACHERS.keys() - {"shapes"}:
        with pytest.raises(Missing, match=str(tmp_path)): load_teacher(name, tmp_path)


def scripted(state) -> torch.nn.Module:
    "Modules inside modules that have these entries, as a program."
    whole = torch.nn.Module()
    for name, value in state.items():
        *places, last = name.split(".")
        inner = whole
        for place in places:
            if not hasattr(inner, place): inner.add_module(place, torch.nn.Module())
            inner = getattr(inner, place)
        inner.register_parameter(last, torch.nn.Parameter(value.half(), requires_grad=False))
    return torch.jit.script(whole)


def test_openais_file_is_read_without_its_program(tmp_path, images):
    config = changed(TEACHERS["clip"], body=dict(size=32, patch=8, dim=48, depth=1, heads=4, out=24))
    teacher = made(Teacher, config)
    state = official_names(config).export(teacher.body.state_dict(), teacher.body)
    beside = {"logit_scale": torch.ones(()), "transformer.resblocks.0.ln_1.weight": torch.ones(4)}
    scripted(state | beside).save(str(tmp_path / "ViT-B-16.pt"))
    again = load_teacher("clip", tmp_path, body=config.body)
    assert next(again.parameters()).dtype == torch.float32
    torch.testing.assert_close(again(images), teacher(images), atol=2e-2, rtol=2e-2)     # it holds half precision
    (tmp_path / "ViT-B-16.pt").write_bytes((tmp_path / "ViT-B-16.pt").read_bytes()[:-200])
    with pytest.raises(Mismatch, match="ViT-B-16.pt"): load_teacher("clip", tmp_path, body=config.body)


# ---- features, not pixels

@pytest.mark.parametrize("build, config", [(VQKD, VQKD_SMALL), (Cluster, CLUSTER)])
def test_features_are_refused_wherever_pixels_are_asked(build, config, images):
    model = made(build, config)
    codes = model.tokens(model.encode(images))
    for call in (lambda: need_pixels(model, "a picture"),
                 lambda: pictures(model, codes, shape=(4, 6)),
                 lambda: VQGANLoss(VQGANLossConfig(lpips=0, gan=0)).check(model, 1)):
        with pytest.raises(BadInput, match="makes features, but .* needs pixels"): call()


def test_codes_alone_make_nothing(images):
    model = made(VQKD, replace(VQKD_SMALL, decoder=None))
    assert model.makes == "nothing"
    with pytest.raises(BadInput, match="decoder=None"): model.decode(model.encode(images))
    with pytest.raises(BadInput, match="makes nothing"): need_pixels(model, "a picture")


@pytest.mark.parametrize("build, config", [(VQKD, VQKD_SMALL), (Cluster, CLUSTER)])
def test_a_look_changes_no_codebook(build, config, images):
    model = made(build, config).train()
    before = copy.deepcopy(model.state_dict())
    model.encode(images)
    model.eval()(images)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.train()(images, Keyed(0), At(torch.arange(3), step=0))
    assert not torch.equal(model.quantizer.table, before["quantizer.table"]), "a training step does"


def test_kmeans_sets_the_codebook_from_features(images):
    for build, config in ((VQKD, changed(VQKD_SMALL, quantizer=dict(codebook=16))),
                          (Cluster, changed(CLUSTER, quantizer=dict(codebook=16)))):
        model = made(build, config)
        model.kmeans_init(images, Keyed(0))
        assert len(model.encode(images).unique()) > 8


# ---- pixels from frozen codes

@pytest.mark.parametrize("build, config", [(VQKD, VQKD_SMALL), (Cluster, CLUSTER)])
@pytest.mark.parametrize("part", [PAINT, ViTDecoderConfig(replace(BEIT, size=4, patch=1), 8)])
def test_a_decoder_learns_and_the_codes_stay(build, config, part, images):
    tokenizer = made(build, config)
    if isinstance(part, ViTDecoderConfig): part = changed(part, vit=dict(channels=tokenizer.config.quantizer.dim))
    painter = PixelDecoder.on(tokenizer, part).train()
    assert painter.coding() == tokenizer.coding() and painter.makes == "pixels"
    before = copy.deepcopy(painter.state_dict())
    moved = [p for p in painter.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(moved, 0.1)
    reconstruction = painter(images)
    assert reconstruction.extras["last_layer"] is painter.decoder.head.weight
    (reconstruction.output - images).square().mean().backward()
    optimizer.step()
    changed_names = {k for k, v in painter.state_dict().items() if not torch.equal(v, before[k])}
    assert changed_names and not any(k.startswith("frozen.") for k in changed_names)
    assert torch.equal(painter.encode(images), tokenizer.encode(images))
    assert painter.decode(painter.encode(images)).shape == images.shape


@torch.no_grad()
def test_the_two_decoders_never_meet(images):
    "In the published layout both are `_decoder`: a VQ-KD file that is laid under a pixel decoder would fill it."
    tokenizer = made(VQKD, VQKD_SMALL)
    same_shape = ViTDecoderConfig(VQKD_SMALL.decoder, 8)
    torch.manual_seed(1)
    painter = PixelDecoder.on(tokenizer, same_shape)
    alike = [k for k, v in painter.decoder.state_dict().items() if v.shape == tokenizer.decoder.state_dict()[k].shape]
    assert alike, "the case in which nothing would be noticed"
    ours = painter.decoder.state_dict()
    assert not any(torch.equal(ours[k], tokenizer.decoder.state_dict()[k]) for k in alike if "vit.positions" in k)
    assert not any(k.startswith("frozen.decoder") for k in painter.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("build, config", [(VQKD, VQKD_SMALL), (VQKD, replace(VQKD_SMALL, decoder=None)),
                                           (Cluster, CLUSTER)])
def test_a_decoder_begins_with_the_tokenizer_whose_codes_it_paints(build, config, images, tmp_path):
    tokenizer = made(build, config)
    save_model(tmp_path / "one", tokenizer, config)
    torch.manual_seed(1)
    task = Task()
    task.modules = {"tokenizer": PixelDecoder(PixelDecoderConfig(config, PAINT))}
    painter = task.modules["tokenizer"]
    before = copy.deepcopy(painter.decoder.state_dict())
    taken = begin_with(task, tmp_path / "one")["tokenizer"]
    assert torch.equal(painter.encode(images), tokenizer.encode(images)) and taken.skipped == {}
    assert all(torch.equal(v, before[k]) for k, v in painter.decoder.state_dict().items())

    painter.decoder.head.weight.zero_()
    save_model(tmp_path / "two", painter, painter.config)
    task.modules = {"tokenizer": PixelDecoder(painter.config)}
    begin_with(task, tmp_path / "two")
    assert not task.modules["tokenizer"].decoder.head.weight.any()
    task.modules = {"tokenizer": PixelDecoder(changed(painter.config, frozen=dict(quantizer=dict(codebook=65))))}
    with pytest.raises(Mismatch, match="quantizer.table"): begin_with(task, tmp_path / "one")


def test_a_decoder_must_make_as_many_pixels_as_a_code_has():
    tokenizer = made(VQKD, VQKD_SMALL)
    with pytest.raises(BadInput, match="must make 8 pixels"): PixelDecoder.on(tokenizer, PIXEL_DECODERS["vqgan"])


@pytest.mark.parametrize("build, config", [
    (VQKD, VQKD_SMALL),
    (VQKD, replace(VQKD_SMALL, decoder=None)),
    (Cluster, CLUSTER)])
def test_saved_and_loaded(build, config, images, tmp_path):
    model = made(build, config)
    painter = PixelDecoder.on(model, PAINT).eval()
    for name, one in (("tokenizer", model), ("painter", painter)):
        again = load_model(save_model(tmp_path / name, one, one.config))
        assert type(again) is type(one) and again.config == one.config and again.coding() == model.coding()
        assert torch.equal(again.encode(images), one.encode(images))
    assert torch.equal(again.decode(again.encode(images)), painter.decode(painter.encode(images)))


# ---- files

def vqgan(quantizer, **kw): return made(VQGAN, VQGANConfig(read_quantizer(quantizer), **CONV | kw))


def framework_file(folder: Path, model, system="vqkd") -> Path:
    "A folder iter_<n> as the framework leaves it: the tokenizer, a discriminator, counters."
    folder.mkdir(parents=True)
    family = next(f for f in families(system) if f.role == "tokenizer" and f.config is type(model.config))
    state = family.table(model.config).export(model.state_dict(), model)
    beside = {"_discriminator._discriminator.0.weight": torch.ones(4, 3, 4, 4),
              "_g_loss._weight._steps": torch.ones((), dtype=torch.int64)}
    torch.save(state | beside, folder / "model.pth")
    torch.save({"iter_": 10}, folder / "meta.pth")
    return folder


@pytest.mark.parametrize("quantizer, more", [
    (L2, {}), (NORMALISED, {}), (ANCHORED, {}), (LATTICE, {"connectors": 2}), (L2, {"attention": (), "middle": False}),
    (L2, {"decoder_mults": (1, 1), "decoder_depth": 1}), (LATTICE, {"mults": (1, 1, 2), "attention": (2,)})])
def test_a_vqgans_file_tells_its_configuration(quantizer, more, images, tmp_path):
    model = vqgan(quantizer, **more)
    if quantizer is NORMALISED: model.quantizer.table.data = torch.nn.functional.normalize(model.quantizer.table.data)
    folder = framework_file(tmp_path / "iter_10", model)
    for path in (folder, folder / "model.pth"):
        again = load_published(path)
        assert again.config == model.config
        assert torch.equal(again.encode(images), model.encode(images))
        assert torch.equal(again.decode(again.encode(images)), model.decode(model.encode(images)))


def test_a_vqkd_file_bare_wrapped_and_in_a_folder(images, tmp_path):
    model = made(VQKD, VQKD_WIDE)
    folder = framework_file(tmp_path / "iter_250000", model)
    state = torch.load(folder / "model.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "wrapped.pth")
    for path in (folder, tmp_path / "wrapped.pth"):
        again = load_published(path)
        assert isinstance(again, VQKD) and again.config == model.config
        assert torch.equal(again.encode(images), model.encode(images))


def test_a_folder_of_checkpoints_means_the_last_one(images, tmp_path):
    first, last = made(VQKD, VQKD_WIDE), made(VQKD, VQKD_WIDE)
    last.quantizer.table.data.neg_()
    for name, model in (("iter_900", first), ("iter_1000", last), ("iter_x", first)):
        framework_file(tmp_path / name, model)
    assert torch.equal(load_published(tmp_path).quantizer.table, last.quantizer.table)
    assert torch.equal(load_published(tmp_path / "iter_900").quantizer.table, first.quantizer.table)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Missing, match="a folder without model.pth or iter_"): load_published(tmp_path / "empty")


def test_beitv2_files_are_theirs_and_go_over(images, tmp_path):
    "Read by BEiT v2's names, written by the framework's, read again."
    model = made(VQKD, VQKD_WIDE)
    entries = export_published(model, system="beitv2")
    assert "encode_task_layer.2.weight" in entries and "encoder.fc_norm.weight" in entries
    torch.save({"model": entries | {"quantize.embedding.initted": torch.ones(1)}}, tmp_path / "beit.pth")
    first = load_published(tmp_path / "beit.pth")
    assert torch.equal(first.encode(images), model.encode(images))
    second = load_published(framework_file(tmp_path / "iter_1", first))
    assert torch.equal(second(images).output, model(images).output)


def test_what_was_frozen_must_be_given(images, tmp_path):
    tokenizer, cluster = made(VQKD, VQKD_WIDE), made(Cluster, CLUSTER)
    painter = PixelDecoder.on(tokenizer, PAINT).eval()
    paint, table = framework_file(tmp_path / "paint", painter), framework_file(tmp_path / "table", cluster)
    with pytest.raises(Mismatch, match="load_pixel_decoder"): load_published(paint)
    with pytest.raises(Mismatch, match="load_cluster"): load_published(table)

    again = load_pixel_decoder(paint, tokenizer)
    assert torch.equal(again.decode(again.encode(images)), painter.decode(painter.encode(images)))
    again = load_cluster(table, cluster.encoder)
    assert torch.equal(again.encode(images), cluster.encode(images))
    with pytest.raises(BadInput): load_cluster(table, made(Teacher, changed(EYE, body=dict(dim=64))))
    other = made(Teacher, replace(EYE, mean=(0.5, 0.5, 0.5)))
    with pytest.raises(Mismatch, match=r"teacher='mean \(0.5.*0.485"): load_cluster(table, other)
    with pytest.raises(BadInput, match="teacher='clip': must be a Teacher"): load_cluster(table, "clip")
    with pytest.raises(BadInput, match="tokenizer='str': must be a Tokenizer"): load_pixel_decoder(paint, "tiny-vqkd")
    with pytest.raises(BadInput): load_pixel_decoder(paint, cluster)


def test_no_file_is_taken_for_another_systems(images):
    ours = {
        "vqkd": [vqgan(L2), vqgan(LATTICE, connectors=2), made(VQKD, VQKD_WIDE)],
        "beitv2": [made(VQKD, VQKD_WIDE)],
        "llamagen": [made(VQGAN, VQGANConfig(width=32, z=16))],
        "taming": [made(VQGAN, changed(VQGANConfig(**CONV), quantizer=dict(l2=False, legacy=True, usage=0)))],
        "randar": [made(MaskGITVQGAN, MaskGITVQGANConfig(width=32, mults=(1, 2)))]}
    for system, models in ours.items():
        for model in models:
            state = export_published(model, system=system)
            assert {m.family.system for m in recognised(state)} == {system}


def test_recipes_that_say_less_mean_the_published_defaults():
    conv = {"type": "ConvConnector"}
    recipe = {"model": {"type": "VQModelRegistry.VQGAN", "encoder": {"type": "VQGANEncoder"}, "post_encode": conv,
                        "quantizer": L2, "pre_decode": conv, "decoder": {"type": "VQGANDecoder"}}}
    with torch.device("meta"): model, _ = published_model(recipe, system="vqkd")
    assert model.config == replace(VQGANConfig(), quantizer=read_quantizer(L2))
    sizes = [sum(p.numel() for p in half.parameters()) for half in (model.encoder, model.decoder)]
    assert sizes == [29_298_176, 42_449_795]
    wrong = {"post_encode": {"post_encode": {"type": "BaseConnector"}}, "width": {"decoder": {"width": 64}}}
    for word, change in wrong.items():
        with pytest.raises(BadInput, match=word): read_vqgan(recipe["model"] | change)


@torch.no_grad()
def test_two_connectors_are_two_layers(images):
    one, two = vqgan(LATTICE), vqgan(LATTICE, connectors=2)
    assert len(two.to_code) == len(two.from_code) == 2
    fused = two.to_code[1].weight.flatten(1) @ two.to_code[0].weight.flatten(1)
    one.load_state_dict({k: v for k, v in two.state_dict().items() if "_code." not in k}, strict=False)
    one.to_code.weight.copy_(fused[..., None, None])
    one.to_code.bias.copy_(two.to_code[1].weight.flatten(1) @ two.to_code[0].bias + two.to_code[1].bias)
    torch.testing.assert_close(one.features(images), two.features(images), atol=1e-5, rtol=1e-4)


def test_a_head_makes_patches_row_by_row():
    coder = ViTCoder(replace(BEIT, size=4, patch=1, channels=8), 3, 8)
    with torch.no_grad():
        coder.head.weight.zero_()
        coder.head.bias.copy_(torch.arange(192.0))
        out = coder(torch.randn(1, 8, 2, 3))
    assert out.shape == (1, 3, 16, 24)
    assert torch.equal(out[0, :, 8:, 16:].permute(1, 2, 0).flatten(), torch.arange(192.0))


@torch.no_grad()
@pytest.mark.parametrize("part", [PAINT, ViTDecoderConfig(replace(WIDE, size=4, patch=1, channels=8, depth=2), 8)])
def test_a_tokenizer_and_its_decoder_are_one_model_in_two_files(part, images, tmp_path):
    "The tokenizer's file has a decoder of features under the same names; the later file's takes its place."
    tokenizer = made(VQKD, VQKD_WIDE)
    torch.manual_seed(1)
    painter = PixelDecoder.on(tokenizer, part).eval()
    first, second = framework_file(tmp_path / "iter_10", tokenizer), framework_file(tmp_path / "iter_20", painter)
    for name in (f"{first},{second}", f"{first / 'model.pth'},{second / 'model.pth'}"):
        whole = load_published(name, system="vqkd")
        assert torch.equal(whole(images).output, painter(images).output)
        assert torch.equal(open_part(name, "tokenizer", system="vqkd").encode(images), tokenizer.encode(images))
    task = Task()
    task.modules = {"tokenizer": PixelDecoder(whole.config)}
    begin_with(task, f"{first},{second}")
    assert torch.equal(task.modules["tokenizer"].eval()(images).output, painter(images).output)
    with pytest.raises(Missing, match="no such file"): load_published(f"{first},{tmp_path / 'none.pth'}")


# ---- recipes by their published names

CONFIGURED = {
    "vqgan-8192": "vqgan/8192_imagenet_ddp",
    "vqgan-8192-dd2": "vqgan/8192_dd2_aglwg075_imagenet_ddp",
    "vqgan-8192-stylegan2": "vqgan/8192_stylegan2_imagenet_ddp",
    "cvqvae-8192-dd2": "cvqvae/8192_dd2_aglwg075_imagenet_ddp",
    "fsq-64000": "fsq/64000_imagenet_ddp",
    "llamagen-vqgan-16384": "llamagen/vqgan_imagenet_ddp",
    "llamagen-vqgan-128x16-f8": "llamagen/vqgan_128x16_f8_imagenet_ddp",
    "llamagen-vqgan-256-f8": "llamagen/vqgan_256_f8_imagenet_ddp",
    "vqkd-convnext-8192": "vqkd/convnext_8192_imagenet_ddp",
    "vqkd-openclip_bigG_14-8192": "vqkd/openclip_bigG_14_8192_imagenet_ddp",
    "vqkd-vit-16384": "vqkd/vit_16384_imagenet_ddp",
    "cluster-clip-8192": "cluster/clip_8192_imagenet_ddp",
    "decoder-llamagen-vqkd-clip": "decoder/llamagen",
    "ar-gpt2-medium-cfg-8192": "ar/c2i_gpt2_medium_cfg_imagenet_ddp"}


@pytest.mark.parametrize("manifest, name", CONFIGURED.items())
def test_a_name_means_the_published_model(manifest, name):
    spec = json.loads((Path(__file__).parent / "manifests" / f"vqkd-{manifest}.json").read_text())["config"]
    alone = {k: v for k, v in model_of(spec).items() if k != "discriminator"}
    with torch.device("meta"): model, _ = published_model(alone, system="vqkd")
    made, own = vqkd_recipe(name), model.config
    def bare(config):
        inner = config.frozen if isinstance(config, PixelDecoderConfig) else config
        if not hasattr(inner, "quantizer"): return config
        inner = changed(inner, quantizer=dict(usage=0))
        return replace(config, frozen=inner) if isinstance(config, PixelDecoderConfig) else inner
    assert bare(made.model) == bare(own)
    if "discriminator" in model_of(spec):
        game = VQGANLossConfig(**{f: getattr(made.loss, f) for f in ("depth", "discriminator", "gan", "adaptive")})
        assert game.depth == model_of(spec)["discriminator"].get("depth", 3)
        gain = model_of(spec).get("adaptive_generator_loss_weight_gain", 0.8)
        assert game.adaptive == (gain is not None) and game.gan == (gain or 0.5)


@pytest.mark.parametrize("name, words", [
    ("vqgan/8192_dd2_aglwg075_imagenet", "must say its strategy"),
    ("vqkd/dd2_clip_8192_imagenet_ddp", "begins with no word of vqkd"),
    ("vqgan/_8192_imagenet_ddp", "begins with no word"),
    ("vqgan/8192imagenet_ddp", "begins with no word"),
    ("vqgan/8192_imagenet_ddp_", "ends in"),
    ("vqgan", "must say its codebook"),
    ("vqgan/0_imagenet_ddp", "codebook=0"),
    (None, "must begin with one of vqgan/"),
    ("llamagen/vqgan_imagenet_384_128_ddp", "says its codebook after its data set"),
    ("llamagen/c2i_8192_medium_imagenet_ddp", "says 8192 in vain"),
    ("llamagen/f8_c2i_medium_imagenet_ddp", "says f8 in vain"),
    ("vqgan/8192_dd2_stylegan2_imagenet_ddp", "says dd2 in vain"),
    ("decoder/aglwg075_llamagen", "says aglwg075 in vain"),
    ("fsq/8192_imagenet_ddp", "codes='8192'")])
def test_a_name_that_says_nothing_is_refused(name, words):
    with pytest.raises(BadInput, match=words): vqkd_recipe(name)


@pytest.mark.parametrize("name, codes, side", [
    ("llamagen/vqgan_imagenet_ddp", 16384, 256),
    ("llamagen/vqgan_imagenet_384_ddp", 16384, 384),
    ("llamagen/vqgan_128_imagenet_384_ddp", 128, 384),
    ("llamagen/vqgan_256_f8_imagenet_ddp", 256, 256)])
def test_a_number_means_codes_before_the_data_set_and_pixels_after_it(name, codes, side):
    made = vqkd_recipe(name)
    assert (made.model.quantizer.codebook, made.augment.size) == (codes, side)


@pytest.mark.parametrize("one, other", [
    ("cluster/4096_dino_imagenet_ddp", "cluster/dino_4096_imagenet_ddp"),
    ("vqkd/4096_mae_imagenet_ddp", "vqkd/mae_4096_imagenet_ddp"),
    ("decoder/dd2_llamagen", "decoder/llamagen_dd2"),
    ("ar/cfg_medium_gpt2_c2i_imagenet_ddp", "ar/c2i_gpt2_medium_cfg_imagenet_ddp")])
def test_words_mean_the_same_in_any_order(one, other):
    assert replace(vqkd_recipe(one), name=other) == vqkd_recipe(other)


def test_every_word_of_a_name_is_explained_and_options_win_by_name():
    for name in VQKD_NAMES:
        said = explain_name(name)
        assert "_".join(said) == re.sub("[/-]", "_", name) and all(said.values()), name
    probe = vqkd_recipe("ic/imagenet_ddp", steps=7)
    assert (probe.steps, probe.batch, probe.optim.name) == (7, 512, "lars")
    with pytest.raises(BadInput, match="Optim field='rl'"): vqkd_recipe(VQKD_NAMES[0], optim=dict(rl=1))
    with pytest.raises(BadInput, match="field='modle'"): vqkd_recipe(VQKD_NAMES[0], modle=1)
    with pytest.raises(BadInput, match="steps=0"): vqkd_recipe(VQKD_NAMES[0], steps=0)


# ---- towards a teacher

def test_an_official_file_is_enough_to_train_from(tmp_path, images):
    "CLIP in small under its official names; a Cluster tokenizer drops the projection that VQ-KD is trained towards."
    torch.manual_seed(0)
    body = replace(CLIPTeacherConfig().body, size=32, patch=8, dim=48, depth=1, heads=4, out=24)
    eye = Teacher(CLIPTeacherConfig(body))
    save_model(tmp_path / "eye", eye, eye.config)
    pictures = images[..., :32]
    wide = feature_loss(FeatureLossConfig(str(tmp_path / "eye")), weights=tmp_path, size=32)
    student = made(VQKD, VQKD_SMALL)
    total, parts = wide.loss(wide.phases(0)[0], pictures, student(pictures), {}, Keyed(0), At(torch.arange(3)))
    assert set(parts) == {"commit", "features"} and total.requires_grad

    bare = changed(eye.config, body=dict(out=None))
    cluster = made(Cluster, ClusterConfig(replace(CENTRES, codebook=32, dim=48, usage=0), bare))
    own = FeatureLossConfig(str(tmp_path / "eye"), features=0.0)
    TokenizerTask(cluster, feature_loss(own, weights=tmp_path, size=32))
    assert torch.equal(cluster.encoder.body.patches.weight, eye.body.patches.weight)
    other = made(Cluster, replace(cluster.config, teacher=changed(bare, body=dict(heads=8))))
    with pytest.raises(Mismatch, match="whose features are clustered"):
        TokenizerTask(other, feature_loss(own, weights=tmp_path, size=32))
    with pytest.raises(Mismatch, match="makes pixels"):
        TokenizerTask(vqgan(L2), feature_loss(FeatureLossConfig(str(tmp_path / "eye")), weights=tmp_path, size=32))


def test_a_cluster_that_nothing_moves_is_refused():
    objective = FeatureLoss(FeatureLossConfig("shapes", features=0.0), made(Teacher, EYE))
    objective.check(made(Cluster, CLUSTER), 1)
    still = made(Cluster, changed(CLUSTER, quantizer=dict(vq=0.0, updates=(Ema(),))))
    with pytest.raises(BadInput, match="model.quantizer='VectorConfig': must have weights above 0"):
        objective.check(still, 1)


def test_a_map_of_other_cells_is_brought_to_the_codes(images):
    eye = made(Teacher, changed(EYE, body=dict(patch=4)))
    towards = FeatureLoss(FeatureLossConfig("here"), eye)
    student = made(VQKD, replace(VQKD_SMALL, features=48))
    assert towards.wanted(images, student(images).output).shape == (3, 48, 4, 6)


def test_a_tokenizer_of_features_is_trained_and_then_painted(tmp_path):
    "By the published recipes on small models: k-means, teacher, codebook; then a decoder on what the run has left."
    save_model(tmp_path / "eye", made(Teacher, EYE), EYE)
    student = replace(VQKD_SMALL, features=48)
    how = dict(data="shapes://?n=64&size=32", augment=Augment("center", 32), batch=8, steps=2)
    quiet = Run(progress=False, tracker="jsonl", log_every=1)
    teacher = dict(teacher=str(tmp_path / "eye"))
    clip, cluster = "vqkd/clip_8192_imagenet_ddp", "cluster/clip_8192_imagenet_ddp"
    train(TrainOptions(vqkd_recipe(clip, model=student, loss=teacher, **how), tmp_path / "features", run=quiet))
    train(TrainOptions(vqkd_recipe(cluster, model=CLUSTER, loss=teacher, **how), tmp_path / "cluster", run=quiet))
    for name, config in (("features", student), ("cluster", CLUSTER)):
        painter = PixelDecoderConfig(config, PAINT)
        own = dict(model=painter, loss=dict(lpips=0.0, start=0), start=str(tmp_path / name))
        r = vqkd_recipe("decoder/llamagen", **own, **how)
        train(TrainOptions(r, tmp_path / "painter" / name, run=quiet))
        tokenizer, whole = load_model(tmp_path / name / "model"), load_model(tmp_path / "painter" / name / "model")
        x = torch.rand(2, 3, 32, 32) * 2 - 1
        assert torch.equal(whole.encode(x), tokenizer.encode(x)) and whole.decode(whole.encode(x)).shape == x.shape
        assert tokenizer.makes == "features" and whole.makes == "pixels"
        lines = read_log(tmp_path / "painter" / name / "log.jsonl")
        assert "disc" in lines[-1] and "usage" not in lines[-1]
    assert not torch.equal(tokenizer.quantizer.table, made(Cluster, CLUSTER).quantizer.table)


# ---- records that are none

READERS = {
    "vqgan-8192-dd2": (read_vqgan, read_training), "cvqvae-8192-dd2": (read_vqgan,), "fsq-8000": (read_vqgan,),
    "vqkd-clip-8192": (read_vqkd,), "cluster-clip-8192": (read_cluster,),
    "decoder-llamagen-vqkd-clip": (read_pixel_decoder,), "decoder-vqkd-vqkd-clip": (read_pixel_decoder,),
    "ar-gpt2-medium-cfg-8192": (read_proposal,), "ar-llama-medium-cfg-8192": (read_proposal,)}


def places(record, path=()):
    "Every place in a nested record."
    inner = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


def damaged(record, path, value):
    "A record with something else, or nothing, in one place."
    record = copy.deepcopy(record)
    inner = record
    for key in path[:-1]: inner = inner[key]
    if value is None: del inner[path[-1]]
    else: inner[path[-1]] = value
    return record


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_record_is_read_or_refused_by_name(name):
    "Whatever stands in whatever place: never an error of Python's."
    spec = json.loads((Path(__file__).parent / "manifests" / f"vqkd-{name}.json").read_text())["config"]
    spec = spec if name.startswith("ar-") else model_of(spec)
    for read in READERS[name]:
        own = spec if read is read_training else {k: v for k, v in spec.items() if k != "discriminator"}
        for path in places(own):
            for value in (None, "x", -1, 0.5, [], {}, [None]):
                with contextlib.suppress(VgnbError): read(damaged(own, path, value))


TINY_PROPOSAL = ProposalConfig(1, 32, 4, vocab=8, grid=(2, 2), classes=3, block="gpt2")
CONFIGS = [BEIT, ConvNeXtConfig(), EYE, VQKD_SMALL, CLUSTER, PixelDecoderConfig(VQKD_SMALL, PAINT), PAINT,
           ViTDecoderConfig(replace(BEIT, size=4, patch=1), 8), FeatureLossConfig(), VectorConfig(64, 4),
           FSQConfig((5, 4)), Anchors(), Ema(), TINY_PROPOSAL, ProbeRecipe(), PatchGANConfig(),
           Steps(milestones=(1, 2)), InTurn(parts=(Steps(), Steps()), milestones=(3,))]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
def test_a_field_of_a_wrong_kind_is_named_before_anything_is_built(config):
    parts = (Anchors, Ema, FeatureLossConfig)              # built with what they are parts of
    for field in fields(config):
        for value in (None, "x", -1, 0, 0.5, float("nan"), (), [], True, {}, (1, "a")):
            with contextlib.suppress(VgnbError):
                other = replace(config, **{field.name: value})
                build = kinds[kind_of(other)].build if kind_of(other) and not isinstance(other, parts) else None
                with torch.device("meta"): build and build(other)
