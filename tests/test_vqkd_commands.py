"The VQ-KD framework by its commands: names put together, starts of every kind, features where pixels are asked."
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.run_scripts import Scripts, main_of
from tests.test_tokenizers import same_state
from tests.test_vqkd_models import PAINT, VQKD_SMALL, VQKD_WIDE, framework_file, made
from vgnb.core import BadInput, Mismatch, Missing
from vgnb.data.codes import CodePlan, CodeWriter
from vgnb.data.shapes import Shapes
from vgnb.data.transforms import Augment, to_tensor
from vgnb.draws import At, Keyed
from vgnb.generators.proposal import VQKD_PROPOSAL, ProposalConfig, ProposalTransformer
from vgnb.kinds import changed
from vgnb.pipeline import Pipeline
from vgnb.recipes.vqkd_recipes import VQKD_NAMES, vqkd_recipe
from vgnb.saved import load_model, load_tensors, save_model
from vgnb.shipped import open_part
from vgnb.tokenizers.feature_tokenizer import CENTRES, SPHERE, VQKD
from vgnb.tokenizers.fsq import FSQConfig
from vgnb.tokenizers.lpips import LPIPS
from vgnb.tokenizers.pixel_decoder import PIXEL_DECODERS, PixelDecoder, PixelDecoderConfig
from vgnb.tokenizers.quantizers import VectorConfig, build_quantizer
from vgnb.tokenizers.teachers import Teacher, TeacherConfig
from vgnb.tokenizers.vit import ViTConfig
from vgnb.training.commands import (
    GeneratorOptions,
    TrainOptions,
    build_generator,
    build_tokenizer,
    first_word,
    parse,
    train,
)
from vgnb.training.recipes import recipe, recipe_function
from vgnb.training.run_folder import Run
from vgnb.training.trackers import read_log
from vgnb.training.trainer import Trainer
from vgnb.views.desk import reconstruct

ROOT = Path(__file__).resolve().parents[1]
EYE = TeacherConfig(ViTConfig(32, 8, 48, 2, 4))
GPT2 = ProposalConfig(2, 32, 4, vocab=64, grid=(4, 4), classes=10, block="gpt2", positions=30)
HOW = dict(data="shapes://?n=64&size=32", augment=Augment("center", 32))
QUIET = Run(progress=False, tracker="jsonl", log_every=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A saved VQ-KD, codes that may be its own, a proposal network."
    place = tmp_path_factory.mktemp("commands")
    tokenizer = made(VQKD, VQKD_SMALL)
    save_model(place / "eye", made(Teacher, EYE), EYE)
    save_model(place / "features", tokenizer, VQKD_SMALL)
    network = replace(GPT2, block="llama")
    save_model(place / "network", ProposalTransformer(network).eval(), network, coding=tokenizer.coding())
    plan = CodePlan((64,), (4, 4), 20, "made up", classes=tuple("0123456789"))
    writer = CodeWriter(place / "codes", plan)
    codes = torch.randint(64, (20, 1, 16, 1), generator=torch.Generator().manual_seed(0))
    writer.write(0, codes, [i % 10 for i in range(20)], range(20))
    writer.finish()
    return place


@pytest.fixture(scope="module")
def scripts(place): return Scripts(place)


# ---- names that nobody published

COMPOSED = {
    "vqgan/4096_dd1_f8_satin_ddp": ("tokenizer", dict(codebook=4096)),
    "cvqvae/2048_dd2_aglwg05_sa_med2d_20m_ddp": ("tokenizer", dict(codebook=2048)),
    "fsq/64000_dd1_satin_ddp": ("tokenizer", dict(levels=(8, 8, 8, 5, 5, 5))),
    "vqkd/mae_1024_satin_ddp": ("tokenizer", dict(codebook=1024)),
    "cluster/dino_4096_laion_aesthetics_ddp": ("tokenizer", dict(codebook=4096, dim=768)),
    "llamagen/vqgan_512x4_f8_satin_ddp": ("tokenizer", dict(codebook=512, dim=4)),
    "decoder/llamagen_dd2": ("tokenizer", None),
    "ar/c2i_llama_medium_cfg_satin_ddp": ("generator", None)}


@pytest.mark.parametrize("name", COMPOSED)
def test_a_name_of_known_words_is_a_recipe_wherever_names_are_taken(name):
    kind, fields = COMPOSED[name]
    assert name not in VQKD_NAMES
    options = first_word(name, kind)
    assert options.recipe == recipe(name) == vqkd_recipe(name) and options.recipe.name == name
    assert options.out.parts[-2:] == tuple(name.split("/"))
    assert f"scripts/train_{kind}.py {name}" in recipe_function(name).__doc__
    for field, value in (fields or {}).items(): assert getattr(options.recipe.model.quantizer, field) == value


@pytest.mark.parametrize("name, kind, words", [
    ("vqgan/4096_dd1_f9_satin_ddp", "tokenizer", "'f9_satin_ddp' begins with no word of vqgan: imagenet, "),
    ("vqgan/4096_dd1_satin", "tokenizer", "must say its strategy"),
    ("vqgan/4096_2048_satin_ddp", "tokenizer", "says its codebook twice"),
    ("cluster/convnext_8192_satin_ddp", "tokenizer", "begins with no word of cluster: clip, dino, vit, mae"),
    ("fsq/4096_satin_ddp", "tokenizer", "codes='4096': must be 8000 or 64000"),
    ("vqgan/0_satin_ddp", "tokenizer", "codebook=0"),
    ("ar/c2i_llama_medium_satin_ddp", "tokenizer", "this one is for scripts/train_generator.py"),
    ("vqgan/4096_satin_ddp", "generator", "this one is for scripts/train_tokenizer.py"),
    ("ic/satin_ddp", "tokenizer", "scripts/probe_codes.py"),
    ("ar/c2i_llama_medium_imagenet_ddp", "tokenizer", "this one is for scripts/train_generator.py"),
    ("vqgan/8192_imagenet_ddp", "generator", "this one is for scripts/train_tokenizer.py"),
    ("vqgan/8192_dd2_agwlg075_imagenet_ddp", "tokenizer", "8192, dd2, aglwg075, stylegan2"),
    ("vqgan/8192_dd2_agwlg05_imagenet_ddp", "tokenizer", "; did you mean aglwg05?"),
    ("vqgan/8192_dd_imagenet_ddp", "tokenizer", "; did you mean dd2?"),
    ("vqgan/8192_imagnet_ddp", "tokenizer", "; did you mean imagenet?"),
    ("vqkd/openclip_l_14_8192_imagenet_ddp", "tokenizer", "; did you mean openclip_L_14?"),
    ("vqgn/8192_imagenet_ddp", "tokenizer", "; did you mean vqgan/8192_imagenet_ddp?"),
    ("vqkd/clip_8192_imagenet", "tokenizer", "must say its strategy, too: ddp"),
    ("vqkd/clip_imagenet", "tokenizer", "must say its codebook, its strategy, too: such as 8192; ddp"),
    ("fsq/satin_ddp", "tokenizer", "must say its codebook, too: such as 8000, 64000"),
    ("ar/c2i_llama_large_imagenet_ddp", "generator", "; its size can be medium"),
    ("vqgan", "tokenizer", "must be one of"),
    ("dalle/8192_imagenet_ddp", "tokenizer", "must be one of")])
def test_a_name_that_breaks_the_grammar_is_refused_with_what_is_allowed(name, kind, words):
    with pytest.raises(BadInput) as e: first_word(name, kind)
    assert words in str(e.value) and "\n" not in str(e.value) and "\\d" not in str(e.value)


@pytest.mark.full
def test_a_composed_name_is_a_command(scripts):
    words = ["train_tokenizer.py", "fsq/8000_dd1_satin_ddp"]
    small = "--data shapes://?n=40&size=32 --model.width 32 --model.z 16 --loss.lpips 0 --augment.size 32 --batch 2"
    ran = scripts(*words, *small.split(), "--out", "fsq", "--dry-run")
    assert ran.code == 0 and "recipe   fsq/8000_dd1_satin_ddp. FSQ: 8,000 codes; " in ran.out, ran
    assert "SATIN" in scripts(*words, "--help").out
    wrong = scripts("train_tokenizer.py", "fsq/8000_dd_satin_ddp", "--out", "fsq")
    assert wrong.code == 2 and len(wrong.err.strip().splitlines()) == 1 and "'dd_satin_ddp' begins with no" in wrong.err


@pytest.mark.full
def test_a_composed_name_trains_and_goes_on(tmp_path):
    def options(name):
        model = dict(width=32, mults=(1, 1, 2), attention=(), z=16)
        r = vqkd_recipe(name, model=model, loss=dict(lpips=0.0), batch=2, steps=1, **HOW)
        return TrainOptions(r, tmp_path, run=QUIET)
    name = "fsq/8000_dd1_satin_ddp"
    assert train(options(name)).finished and train(options(name)).finished
    assert json.loads((tmp_path / "run.json").read_text())["config"]["name"] == name
    assert load_model(tmp_path / "model").config.quantizer.levels == (8, 8, 5, 5, 5)
    assert len(read_log(tmp_path / "log.jsonl")) == 1, "the second time there was nothing left to do"
    with pytest.raises(Mismatch, match="recipe.*fsq/8000_dd1_satin_ddp"): train(options("fsq/8000_dd2_satin_ddp"))


def test_a_run_says_whether_it_goes_on_or_was_finished(place, tmp_path, capsys):
    small = replace(GPT2, block="llama", layers=1, class_dropout=0)
    r = vqkd_recipe("ar/c2i_llama_medium_imagenet_ddp", model=small, data=str(place / "codes"), batch=2, steps=2)
    whole, task, data = build_generator(r)
    began = []
    Trainer(task, data, whole, tmp_path, QUIET).fit(until=1, opened=began.append)
    assert began == [0] and capsys.readouterr().out == ""
    said = []
    for _ in range(2):
        assert train(GeneratorOptions(r, tmp_path, run=QUIET)).finished
        said.append(capsys.readouterr().out.splitlines())
    where = f"2 steps: the model is in {tmp_path / 'model'}"
    assert said == [["going on from step 1 of 2", f"finished, {where}"], [f"finished already, {where}"]]


def test_a_strangers_recipe_may_have_a_name_that_is_none(place):
    "Of a recipe in a file the name is the writer's own."
    r = replace(vqkd_recipe("ar/c2i_llama_medium_imagenet_ddp", model=replace(GPT2, block="llama")), name="ar/mine",
                data=str(place / "codes"))
    assert build_generator(r)[0].model.classes == 10


# ---- where trainings begin

def spoken(vocab=200, seed=5):
    "(entries of a small GPT-2 under the names of its own file, the model they are of)."
    config = replace(GPT2, vocab=vocab - 11, grid=(4, 4))
    model = ProposalTransformer(config, seed=seed)
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters(): p.data += 0.1 * torch.randn(p.shape, generator=g)
    state = VQKD_PROPOSAL.table(config).export(model.state_dict(), model)
    bare = {k.removeprefix("_transformer._transformer.transformer."): v.contiguous() for k, v in state.items()}
    head = bare.pop("_transformer._transformer.lm_head.weight")
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 30, 30).tril() for i in range(config.layers)}
    return bare | masks, head, model


@pytest.mark.parametrize("written", ["as published", "with its head", "as a pickle", "half precision"])
def test_a_proposal_network_begins_as_gpt2(written, place, tmp_path):
    entries, head, speaker = spoken()
    file = tmp_path / ("pytorch_model.bin" if written == "as a pickle" else "model.safetensors")
    if written == "with its head":
        entries = {f"transformer.{k}": v for k, v in entries.items()} | {"lm_head.weight": head.clone()}
    if written == "half precision": entries = {k: v.half() for k, v in entries.items()}
    (torch.save if written == "as a pickle" else save_file)(entries, file)

    r = vqkd_recipe("ar/c2i_gpt2_medium_cfg_imagenet_ddp", model=GPT2, data=str(place / "codes"), batch=4, steps=1)
    _, task, _ = build_generator(replace(r, start=str(file)))
    model = task.modules["generator"]
    near = dict(atol=1e-3, rtol=1e-3) if written == "half precision" else dict(atol=0, rtol=0)
    def same(a, b): torch.testing.assert_close(a, b, **near)
    words = torch.cat((speaker.condition.table.weight, speaker.tokens.weight))
    same(model.condition.table.weight, words[:11])
    same(model.tokens.weight, words[11:75])
    same(model.positions.weight, speaker.positions.weight)
    for name, value in model.blocks.state_dict().items(): same(value, speaker.blocks.state_dict()[name])
    assert "entries taken over" in str(task.started["generator"])


def test_more_codes_than_words_begin_as_drawn(place, tmp_path):
    entries, _, speaker = spoken(vocab=40)
    save_file(entries, tmp_path / "model.safetensors")
    r = vqkd_recipe("ar/c2i_gpt2_medium_imagenet_ddp", model=replace(GPT2, class_dropout=0), data=str(place / "codes"))
    model = build_generator(replace(r, start=str(tmp_path / "model.safetensors")))[1].modules["generator"]
    fresh = ProposalTransformer(model.config)
    assert torch.equal(model.tokens.weight[:30], entries["wte.weight"][10:])
    assert torch.equal(model.tokens.weight[30:], fresh.tokens.weight[30:])


def test_a_gpt2_that_does_not_fit_is_named(place, tmp_path):
    entries, _, _ = spoken()
    file, r = tmp_path / "model.safetensors", vqkd_recipe("ar/c2i_gpt2_medium_imagenet_ddp", data=str(place / "codes"))
    assert r.start == "weights/gpt2-medium.safetensors", "as published"
    lacks = "start=.*gpt2-medium.safetensors: no such file: put GPT-2 medium's own model.safetensors .*--start ''"
    with pytest.raises(Missing, match=lacks): build_generator(r, device="meta")
    with pytest.raises(Missing, match="mine.pth: no such file$"): build_generator(replace(r, start="mine.pth"))
    assert build_generator(replace(r, start=""), device="meta")[1].started == {}
    save_file(entries, file)
    own = replace(GPT2, class_dropout=0)
    for wrong, words in ((dict(positions=31), "positions.weight"), (dict(dim=64), "64 channels"),
                         (dict(layers=3), "blocks.2"), (dict(block="llama"), "is none of the models known")):
        with pytest.raises(Mismatch, match=words):
            build_generator(replace(r, model=replace(own, **wrong), start=str(file)))
    save_file(entries | {"ln_f.weight": torch.full((32,), torch.nan)}, file)
    with pytest.raises(BadInput, match="finite|NaN|nan"): build_generator(replace(r, model=own, start=str(file)))


def test_vqkd_begins_as_published_where_that_is_asked_for(place, tmp_path):
    "Two pictures have 32 features for 64 rows: refused, or copied over the first rows."
    clip = "vqkd/clip_8192_imagenet_ddp"
    own = dict(model=replace(VQKD_SMALL, features=48), loss=dict(teacher=str(place / "eye")), batch=2, steps=1, **HOW)
    with pytest.raises(BadInput, match="batch=2: must be at least 4"):
        build_tokenizer(vqkd_recipe(clip, **own), tmp_path)
    r = vqkd_recipe(clip, compat="upstream", **own)
    task, data = build_tokenizer(r, tmp_path)
    tokenizer = task.modules["tokenizer"]
    before = tokenizer.quantizer.table.detach().clone()
    images = torch.stack([data.fetch([i], [0], Keyed(0))["images"][0] for i in (0, 1)])
    tokenizer.kmeans_init(tokenizer.enter(images), Keyed(0))
    rows = tokenizer.features(images).detach().movedim(1, -1).reshape(-1, 8)
    torch.testing.assert_close(tokenizer.quantizer.table[:32], rows)
    assert torch.equal(tokenizer.quantizer.table[32:], before[32:]) and len(VQKD.quirks) == 1

    done = train(TrainOptions(r, tmp_path / "run", run=QUIET))
    assert done.finished and load_model(tmp_path / "run" / "model").config.compat == "upstream"
    enough = changed(VQKD_SMALL, features=48, quantizer=dict(codebook=16))
    tables = []
    for compat in (None, "upstream"):
        model = made(VQKD, replace(enough, compat=compat))
        model.kmeans_init(images, Keyed(0))
        tables.append(model.quantizer.table)
    assert torch.equal(*tables), "with enough features both are k-means"


SEEING = replace(VQKD_WIDE, features=48)


def test_a_tokenizer_goes_on_from_a_folder_of_the_framework(place, tmp_path):
    "iter_<n> of a VQ-KD; k-means would set its codebook anew, and is refused."
    tokenizer = made(VQKD, SEEING)
    first = framework_file(tmp_path / "iter_10", tokenizer)
    clip = "vqkd/clip_8192_imagenet_ddp"
    own = dict(model=SEEING, kmeans=False, loss=dict(teacher=str(place / "eye")), batch=2, steps=1, **HOW)
    further, _ = build_tokenizer(changed(vqkd_recipe(clip, **own), start=str(first)), tmp_path)
    assert same_state(further.modules["tokenizer"].state_dict(), tokenizer.state_dict())
    with pytest.raises(BadInput, match="kmeans=True: must be False with start"):
        build_tokenizer(vqkd_recipe(clip, **own | dict(kmeans=True, start=str(first))), tmp_path)


@pytest.mark.full
def test_a_decoder_begins_with_a_folder_of_the_framework(tmp_path):
    "Of the tokenizer whose codes it paints; and with its own beside it."
    tokenizer = made(VQKD, SEEING)
    first = framework_file(tmp_path / "iter_10", tokenizer)
    paint = vqkd_recipe("decoder/llamagen", model=PixelDecoderConfig(SEEING, PAINT), start=str(first),
                        loss=dict(lpips=0.0), batch=2, steps=1, **HOW)
    assert train(TrainOptions(paint, tmp_path / "painter", run=QUIET)).finished
    painter, x = load_model(tmp_path / "painter" / "model"), torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(painter.encode(x), tokenizer.encode(x)) and painter.makes == "pixels"
    assert (tmp_path / "painter" / "start.json").is_file()

    second = framework_file(tmp_path / "iter_20", painter)
    again, _ = build_tokenizer(replace(paint, start=f"{first},{second}"), tmp_path)
    assert torch.equal(again.modules["tokenizer"].eval()(x).output, painter(x).output)
    nowhere = replace(paint, start=str(tmp_path / "iter_30"))
    with pytest.raises(Missing, match="start="): build_tokenizer(nowhere, tmp_path)


def test_a_proposal_network_begins_with_a_folder_of_the_framework(place, tmp_path):
    config = replace(GPT2, block="llama", layers=24, dim=64, hidden=64)
    model = ProposalTransformer(config, seed=3)
    (tmp_path / "iter_7").mkdir()
    torch.save(VQKD_PROPOSAL.table(config).export(model.state_dict(), model), tmp_path / "iter_7" / "model.pth")
    r = vqkd_recipe("ar/c2i_llama_medium_cfg_imagenet_ddp", model=config, data=str(place / "codes"))
    with pytest.raises(Mismatch, match="24 layers of width 64.*spec="):
        build_generator(replace(r, start=str(tmp_path / "iter_7")))


# ---- features where pixels are asked

FEATURES = "tokenizer='VQKD': makes features, but {} needs pixels"


@pytest.mark.parametrize("words, what", [
    ("sample.py --tokenizer features --generator network --count 2 --out made.npz", "a pipeline"),
    ("reconstruct.py --tokenizer features --data shapes://?n=4&size=32 --out again.npz", "a reconstruction"),
    ("train_generator.py shapes-vqkd --data codes --preview-every 1 --preview-tokenizer features --out x", "a preview"),
])
def test_a_tokenizer_of_features_says_so_at_once(words, what, place, scripts):
    before = sorted(p.name for p in place.iterdir())
    ran = scripts(*words.split())
    assert ran.code == 2 and len(ran.err.strip().splitlines()) == 1, ran
    assert FEATURES.format(what) in ran.err
    assert sorted(p.name for p in place.iterdir()) == before, "nothing is begun"


def test_features_are_no_pictures_to_a_pipeline_or_a_desk(place):
    tokenizer, network = load_model(place / "features"), load_model(place / "network")
    with pytest.raises(BadInput, match="makes features, but a pipeline"): Pipeline(tokenizer, network)
    with pytest.raises(BadInput, match="makes features, but a reconstruction"):
        reconstruct(tokenizer, torch.zeros(1, 32, 32, 3, dtype=torch.uint8).numpy())


def test_reconstructions_are_measured_by_lpips_too(tmp_path, monkeypatch, capsys):
    "On floats, before they become bytes; a network that is not there is named before anything is done."
    look, run = LPIPS().eval(), main_of("reconstruct.py")
    words = ["--tokenizer", "tiny-vqkd", "--data", "shapes://?n=5&size=32", "--batch", "2", "--lpips", "--out"]
    lacks = "VGG-16.*, or name the folder that has it with --weights, or leave out --lpips$"
    with pytest.raises(Missing, match=lacks): run([*words, str(tmp_path / "a.npz"), "--weights", str(tmp_path)])
    monkeypatch.setattr("vgnb.tokenizers.lpips.load_lpips", lambda folder, **how: look)
    assert run([*words, str(tmp_path / "a.npz")]) == 0
    numbers = json.loads((tmp_path / "a.json").read_text())
    images = to_tensor(Shapes(5, 32).batch(range(5))[0])
    tokenizer = open_part("tiny-vqkd", "tokenizer")
    with torch.no_grad(): wanted = look(tokenizer.decode(tokenizer.encode(images)), images).mean()
    assert abs(numbers["lpips"] - float(wanted)) < 1e-5 and f"LPIPS {numbers['lpips']:.4f}" in capsys.readouterr().out
    assert len(numbers["lpips_network"]) > 8 and numbers["l1"] > 0 and numbers["levels"][0]["entropy"] > 0


def test_a_decoder_of_pixels_goes_by_its_published_name():
    "decoder::vqkd_large of the framework, on the command line."
    for name, depth in (("vqkd", 12), ("vqkd_large", 32)):
        asked = parse("tokenizer", ["decoder/vqgan", "--model.decoder", name], "")
        assert asked.recipe.model.decoder == PIXEL_DECODERS[name] and asked.recipe.model.decoder.vit.depth == depth


@pytest.mark.full
def test_features_are_coded_trained_on_and_painted_by_the_decoder_alone(place, tmp_path, scripts):
    "Codes need no pixels; previews, samples and their measures do, and take the decoder on the same codes."
    painter = PixelDecoder.on(load_model(place / "features"), PAINT).eval()
    save_model(tmp_path / "painter", painter, painter.config)
    words = ["--data", "shapes://?n=20&size=32", "--size", 32, "--batch", 5, "--out", tmp_path / "codes"]
    assert scripts("extract_codes.py", "--tokenizer", "features", *words).code == 0

    model = changed(recipe("shapes-vqkd").model, layers=1, dim=32, heads=2, vocab=64, grid=(4, 4))
    r = recipe("shapes-vqkd", model=model, data=str(tmp_path / "codes"), steps=2, batch=4)
    previews = dict(preview_every=2, preview_tokenizer=tmp_path / "painter", preview_count=2)
    train(GeneratorOptions(r, tmp_path / "run", run=QUIET, **previews))
    assert len(list((tmp_path / "run" / "previews").glob("*.png"))) == 1
    assert len(read_log(tmp_path / "run" / "log.jsonl")) == 2

    made = scripts("sample.py", "--tokenizer", tmp_path / "painter", "--generator", tmp_path / "run", "--count", 6,
                   "--out", tmp_path / "made.npz")
    assert made.code == 0, made
    rebuilt = scripts("reconstruct.py", "--tokenizer", tmp_path / "painter", "--data", "shapes://?n=6&size=32",
                      "--size", 32, "--out", tmp_path / "rebuilt.npz", "--originals", tmp_path / "crops.npz")
    assert rebuilt.code == 0 and "codes in use" in rebuilt.out, rebuilt
    for reference, samples in (("shapes://?n=8&size=32", "made.npz"), (tmp_path / "crops.npz", "rebuilt.npz")):
        done = scripts("evaluate.py", reference, tmp_path / samples, "--extractor", "shapes-judge", "--metrics", "fid",
                       "--json", tmp_path / f"{samples}.json")
        assert done.code == 0 and "fid" in json.loads((tmp_path / f"{samples}.json").read_text())["values"], done
    for wrong in ("features", tmp_path / "codes"):
        refused = scripts("evaluate.py", "shapes://?n=8&size=32", place / wrong, "--extractor", "shapes-judge")
        assert refused.code == 2 and len(refused.err.strip().splitlines()) == 1, refused


# ---- precision

PUBLISHED = {
    "VQGAN": VectorConfig(8192, 256, l2=False),
    "CVQ-VAE": vqkd_recipe("cvqvae/8192_dd2_aglwg075_imagenet_ddp").model.quantizer,
    "FSQ": FSQConfig((8, 8, 8, 5, 5, 5)),
    "VQ-KD": SPHERE,
    "Cluster": CENTRES,
    "LlamaGen": vqkd_recipe("llamagen/vqgan_imagenet_ddp").model.quantizer}


@pytest.mark.parametrize("name", PUBLISHED)
def test_autocast_changes_no_index_of_a_published_quantizer(name):
    "At their published sizes, on features that come out of a layer in bf16."
    config, g = PUBLISHED[name], torch.Generator().manual_seed(0)
    if hasattr(config, "usage"): config = replace(config, usage=0)
    torch.manual_seed(0)
    quantizer = build_quantizer(config).train()
    z = torch.randn(2, config.dim, 60, generator=g).bfloat16()
    before = {k: v.clone() for k, v in quantizer.state_dict().items()}
    found = []
    for on in (False, True):
        quantizer.load_state_dict(before)
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            made = quantizer(z, Keyed(0), At(torch.arange(2), step=0))
        found.append((made.codes, {k: v.clone() for k, v in quantizer.state_dict().items()}))
        assert made.z.dtype == torch.float32
    (plain, after), (auto, also) = found
    assert torch.equal(plain, auto) and same_state(after, also)
    assert plain.unique().numel() > 10


# ---- two processes

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}


def command(launch, script, *words, cwd):
    words = [*launch, str(ROOT / "scripts" / script), *map(str, words)]
    return subprocess.run(words, cwd=cwd, env=ENV, capture_output=True, text=True, timeout=240)


@pytest.mark.full
def test_two_real_processes_cluster_and_probe_as_one(place, tmp_path):
    "The same centres, the same rows, the same head; one of them writes."
    pictures = ["--data", "shapes://?n=45&size=32", "--size", 32, "--batch", 4]
    cluster = ["--teacher", place / "eye", *pictures, "--codes", 12, "--iterations", 2, "--every", 2]
    probe = ["--tokenizer", "cluster", *pictures, "--val", "shapes://?n=21&size=32&seed=1", "--steps", 20]
    for name, launch in (("one", [sys.executable]), ("two", TWO)):
        (tmp_path / name).mkdir()
        done = command(launch, "cluster_features.py", *cluster, "--out", "cluster", cwd=tmp_path / name)
        assert done.returncode == 0 and done.stdout.count("finished: 720 features") == 1, done.stderr[-2000:]
        done = command(launch, "probe_codes.py", *probe, "--json", "probe.json", cwd=tmp_path / name)
        assert done.returncode == 0 and done.stdout.count("accuracy") == 1, done.stdout + done.stderr[-2000:]
    tables = [load_tensors(tmp_path / name / "cluster" / "model" / "model.safetensors") for name in ("one", "two")]
    assert same_state(*tables)
    one, two = (json.loads((tmp_path / name / "probe.json").read_text()) for name in ("one", "two"))
    assert (one["run"]["world"], two["run"]["world"]) == (1, 2)
    assert one["accuracy"] == two["accuracy"] and one["held_out"] == two["held_out"] == 21

    wrong = command(TWO, "cluster_features.py", *cluster, "--seed", 3, "--out", "cluster", cwd=tmp_path / "two")
    assert wrong.returncode != 0 and "clusters of something else (seed)" in wrong.stderr
    assert "Traceback (most recent" not in wrong.stderr.split("torch/distributed")[0]


@pytest.mark.full
def test_two_real_processes_resume_a_clustering_of_one(place, tmp_path):
    "Stopped after a pass by one process, two go on; nothing is seen twice, nothing left out."
    words = ["--teacher", place / "eye", "--data", "shapes://?n=45&size=32", "--size", 32, "--codes", 12, "--batch", 4]
    whole = command([sys.executable], "cluster_features.py", *words, "--iterations", 3, "--out", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    code = f"""
import runpy, signal, sys
import vgnb.evaluation.feature_passes as p
save = p.save_tensors
def stopping(path, state, **more):
    save(path, state, **more)
    if int(state["passes"]) == 2: signal.raise_signal(signal.SIGKILL)
p.save_tensors = stopping
sys.argv = {["x", *map(str, words), "--iterations", "3", "--out", "cut", "--every", "1"]!r}
runpy.run_path({str(ROOT / "scripts" / "cluster_features.py")!r}, run_name="__main__")
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENV, capture_output=True, text=True,
                            timeout=240)
    assert killed.returncode == -9 and not (tmp_path / "cut" / "model").exists(), killed.stderr
    done = command(TWO, "cluster_features.py", *words, "--iterations", 3, "--out", "cut", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    tables = [load_tensors(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut")]
    assert same_state(*tables)
