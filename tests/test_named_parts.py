"Errors call a part, a file and its place by the words of who asked, and come before any work."
import errno
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.run_scripts import main_of
from vgnb.cli import explained, typed_cli
from vgnb.core import BadInput, Mismatch, VgnbError, check_place
from vgnb.data.codes import CodePlan, CodeWriter
from vgnb.data.layouts import layouts, store_from, written_to
from vgnb.data.shapes import Shapes
from vgnb.data.transforms import Augment, to_tensor
from vgnb.draws import Keyed
from vgnb.generators.generator import Cond, Grid
from vgnb.generators.random_order import RandomOrderTransformer, random_order_presets
from vgnb.generators.raster import RasterTransformer, raster_presets
from vgnb.generators.semantic_detail import SemanticDetailConfig, SemanticDetailTransformer, semantic_detail_presets
from vgnb.kinds import called, changed
from vgnb.pipeline import named_pipeline
from vgnb.sampling.attended_guidance import AttendedGuidance
from vgnb.sampling.guidance import CFG, GUIDANCES, Ramped, SpatialGuidance
from vgnb.sampling.pick import Pick
from vgnb.sampling.sampler import Sampler
from vgnb.sampling.settings import Sampling
from vgnb.saved import save_model
from vgnb.search import GuidanceSearch, own_scale
from vgnb.tokenizers.iar2_tokenizer import IAR2_TOKENIZERS
from vgnb.tokenizers.quantizers import VectorConfig
from vgnb.tokenizers.semantic_detail_vq import SemanticDetailConfig as Pair
from vgnb.tokenizers.vqgan import VQGAN, VQGANS, VQGANConfig
from vgnb.training.commands import build_tokenizer, follow_codes, open_codes, parse
from vgnb.training.extract import code_plan, extract_published
from vgnb.training.recipes import recipe, recipes
from vgnb.training.run_folder import Run
from vgnb.zoo import export_published, load_published

SMALL = SemanticDetailConfig(2, 48, 4, ffn_multiple=16, vocab=(12, 20), grid=(3, 4), classes=5, head_layers=2)


# ---- before any work

FREE = [name for name in recipes if recipe(name).kind == "tokenizer" and recipe(name).free_steps]


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("less", [0, 1])
def test_a_run_without_quantized_steps_is_refused(name, less):
    "Whatever the quantizer: its codes would not be set, or never be seen by the decoder."
    r = recipe(name, data="shapes://?n=64&size=32")
    with pytest.raises(BadInput, match=rf"^steps={r.free_steps - less}: must be above free_steps={r.free_steps}"):
        build_tokenizer(replace(r, steps=r.free_steps - less), "nowhere", device="meta")


MODELS = {
    "raster": lambda rate: RasterTransformer(changed(raster_presets["tiny"], class_dropout=rate)),
    "random order": lambda rate: RandomOrderTransformer(changed(random_order_presets["tiny"], class_dropout=rate)),
    "two codes": lambda rate: SemanticDetailTransformer(changed(semantic_detail_presets["tiny"], class_dropout=rate))}


GUIDED = [("raster", CFG(2.0)), ("random order", CFG(2.0)), ("random order", SpatialGuidance(2.0, spatial=1.5)),
          ("two codes", CFG(2.0)), ("two codes", GUIDANCES["attended"])]


@pytest.mark.parametrize("name, part", GUIDED, ids=lambda v: v if isinstance(v, str) else called(v))
def test_guidance_without_a_null_class_is_refused_before_the_first_step(name, part):
    with torch.device("meta"): made = {rate: MODELS[name](rate) for rate in (0.0, 0.1)}
    assert part.needs <= made[0.0].traits
    for rate, m in made.items():
        one = torch.zeros(1, dtype=torch.long)
        asked = Cond(labels=one), one, Grid(tuple(m.grid))
        sampler = Sampler(m, guidance=part, picks=(Pick(),) * len(m.vocab))
        if rate: assert sampler.check_request(*asked)
        else:
            with pytest.raises(BadInput, match=rf"^guidance='{called(part)}': .*no class.*scale of 1"):
                sampler.check_request(*asked)
            with pytest.raises(BadInput, match="^guidance="): sampler.stream(*asked[:2], Keyed(0), grid=asked[2])
    assert Sampler(made[0.0], picks=(Pick(),) * len(m.vocab)).check_request(*asked)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    "Codes of one, two and three levels."
    room, found = tmp_path_factory.mktemp("codes"), {}
    for vocab in ((16,), (16, 64), (4, 4, 4)):
        plan = CodePlan(vocab=vocab, grid=(8, 8), total=4, tokenizer="toy", classes=tuple("abcdefghij"))
        writer = CodeWriter(room / str(len(vocab)), plan)
        writer.write(0, torch.zeros(4, 1, 64, len(vocab), dtype=torch.long), [0, 1, 2, 3], range(4))
        writer.finish()
        found[len(vocab)] = room / str(len(vocab))
    return found


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("name, own", [
    ("shapes-generator", 1), ("shapes-8x8-randar", 1), ("shapes-8x8-maskgit", 1), ("shapes-8x8-pgm", 1),
    ("shapes-8x8-iar2", 2), ("iar2-b", 2)])
def test_codes_of_other_levels_are_refused_by_the_data(stores, name, own, levels):
    codes = open_codes(str(stores[levels]))
    if levels == own:
        followed = follow_codes(recipe(name), codes).model
        assert tuple(getattr(followed, "levels", (followed.vocab,))) == codes.vocab
        return
    sizes = " x ".join(map(str, codes.vocab))
    with pytest.raises(Mismatch, match=rf"^data='.*': must have {own} codes? a cell .*these have {levels}, of {sizes}"):
        follow_codes(recipe(name, data=str(stores[levels])), codes)


# ---- the words of who asked

@pytest.mark.parametrize("part, word", [
    (Sampling("halton").order, "halton"), (Sampling("spiral-out").order, "spiral-out"), (CFG(7.0), "cfg"),
    (AttendedGuidance(2.0, 5.0), "attended"), (Pick(top_k=3), "plain"), (SMALL, "SemanticDetailConfig")])
def test_a_part_is_called_by_the_word_that_chose_it(part, word): assert called(part) == word


@pytest.mark.parametrize("words, start", [
    (dict(order="halton"), "order='halton': needs a generator with the trait any_order"),
    (dict(order="confidence"), "order='confidence': needs a generator"),
    (dict(guidance="spatial"), "guidance='spatial': needs a generator with the trait blind"),
    (dict(schedule="cosine", steps=4), "schedule='cosine': must be groups of one: "),
    (dict(schedule="even", steps=2), "schedule='even': must be groups of one: ")])
def test_a_raster_model_refuses_parts_by_their_words(words, start):
    m = SemanticDetailTransformer(SMALL).eval()
    with pytest.raises(BadInput) as e:
        Sampling(**words).sampler(m).check_request(Cond(torch.zeros(1).long()), torch.zeros(1).long(), Grid((3, 4)))
    assert str(e.value).startswith(start), e.value


def test_a_command_keeps_the_option_of_a_part():
    "The word `halton` is also the path of the order that it stands for."
    typed_cli(Sampling, ["--order", "halton"], Sampling())
    assert explained(BadInput("order", "halton", "is wrong")) == "order='halton': is wrong"


def test_a_folder_that_cannot_be_made_is_said_with_the_option_that_asks_for_it():
    typed_cli(Run, ["--mirror", "/slow/disk/of mine"], Run())
    gone = FileNotFoundError(errno.ENOENT, "No such file or directory", "/slow/disk")
    assert explained(gone) == "mirror=/slow/disk/of mine: /slow/disk: No such file or directory"
    other = FileNotFoundError(errno.ENOENT, "No such file or directory", "/other/disk")
    assert explained(other) == "/other/disk: No such file or directory"


@pytest.mark.parametrize("words, option", [
    ("--picks.1.top-k 4", "--picks.1"), ("--picks.1.temperature=2", "--picks.1"), ("--picks.2.top-p 1", "--picks.1")])
def test_an_option_of_a_part_that_is_not_there_says_how_to_add_it(words, option):
    with pytest.raises(BadInput) as e: typed_cli(Sampling, words.split(), Sampling())
    assert f"choose it first, {option} NAME, one of plain" in str(e.value)
    added = typed_cli(Sampling, ["--picks.1", "plain", "--picks.1.top-k", "4"], Sampling())
    assert added.picks == (Pick(), Pick(top_k=4))


def test_updates_are_left_out_or_added_by_a_word():
    def quantizer(*words):
        return parse("tokenizer", ["shapes-iar2-tokenizer-second", *words], "").recipe.model.quantizer

    own = quantizer()
    assert own.updates and quantizer("--model.quantizer.updates", "none") == replace(own, updates=())
    with pytest.raises(BadInput, match="updates.1 NAME, one of .*revive"):
        quantizer("--model.quantizer.updates.1.every", "3")
    with pytest.raises(BadInput, match=r"must say which one: --model.quantizer.updates.0; or none"):
        quantizer("--model.quantizer.updates", "revive")


def test_published_faults_say_how_updates_are_left_out():
    r = recipe("shapes-iar2-tokenizer-second", compat="upstream", start="")
    task, _ = build_tokenizer(replace(r, model=changed(r.model, quantizer=dict(updates=()))), "nowhere", device="meta")
    task.check(1)
    task, _ = build_tokenizer(r, "nowhere", device="meta")
    with pytest.raises(BadInput, match="^compat='upstream': .*--model.quantizer.updates none"): task.check(1)


# ---- the scale of a guidance

@pytest.mark.parametrize("guidance, setting", [
    (CFG(), "guidance.scale"), (SpatialGuidance(), "guidance.scale"), (AttendedGuidance(), "guidance.end")])
def test_every_guidance_says_what_a_search_moves(guidance, setting): assert own_scale(guidance) == setting


def test_a_guidance_without_a_scale_is_named():
    with pytest.raises(BadInput, match="^guidance='ramped': has no scale of its own"): own_scale(Ramped())


def test_a_search_of_attended_guidance_moves_its_end(tmp_path):
    from vgnb.evaluation.features import load_extractor
    from vgnb.pipeline import from_pretrained
    pipe = from_pretrained("tiny-iar2")
    search = GuidanceSearch(pipe, "shapes://?n=40&seed=5", load_extractor("shapes-judge"), tmp_path / "s", (1.0, 4.0),
                            count=20, final=0, metrics=("fid",))
    assert search.setting == "guidance.end" and search.at(4.0).sampling.guidance.end == (4.0,)


# ---- published files

def saved(path, entries):
    torch.save(entries, path)
    return path


@pytest.mark.full
def test_a_small_file_is_named_with_what_is_missing(tmp_path):
    "Errors name the file; arguments that describe it too shortly are held against IAR2, whose names they are."
    model = SemanticDetailTransformer(replace(SMALL, rope_rate="half"))
    file = saved(tmp_path / "small.pth", export_published(model))
    with pytest.raises(Mismatch) as e: load_published(file)
    assert str(e.value).startswith(f"path={file}: holds 2 layers of width 48") and "spec=" in str(e.value)

    short = {"n_layer": 2, "dim": 48, "n_head": 4, "num_classes": 5, "multiple_of": 16}
    for spec in (short, short | {"cluster_num": 12}, short | {"cluster_num": 12, "sub_vocab_size": 20}):
        with pytest.raises(Mismatch, match="head.blocks.2"): load_published(file, spec)
    whole = short | {"cluster_num": 12, "sub_vocab_size": 20, "factorized_n_layer": 2}
    for system in (None, "iar2"):
        assert isinstance(load_published(file, whole, system, grid=(3, 4)), SemanticDetailTransformer)


@pytest.mark.parametrize("config", [
    changed(IAR2_TOKENIZERS["VQ-16-second"], quantizer=dict(detail=64)),
    changed(VQGANS["VQ-16"], quantizer=dict(codebook=64))])
def test_a_file_without_its_usage_meter_loads_and_says_so(tmp_path, capsys, config):
    torch.manual_seed(0)
    model = VQGAN(changed(config, width=32, z=32)).eval()
    entries = export_published(model)
    meters = [name for name in entries if "codebook_used" in name]
    picture = torch.rand(1, 3, 32, 32) * 2 - 1
    for left_out in (meters[:1], meters):
        file = saved(tmp_path / "0485000.pth", {k: v for k, v in entries.items() if k not in left_out})
        got = load_published(file, system="iar2" if len(meters) > 1 else "llamagen", width=32)
        assert torch.equal(got.encode(picture), model.encode(picture))
        said = capsys.readouterr().err
        assert said.count("usage.recent") == len(left_out) and "begins empty" in said
    load_published(saved(tmp_path / "0485000.pth", entries), width=32, system="iar2" if len(meters) > 1 else "llamagen")
    assert not capsys.readouterr().err


# ---- codes as others read them

def tokenizers():
    torch.manual_seed(0)
    how = dict(coder="small", width=16, groups=8)
    kinds = {1: VectorConfig(16, 4), 2: Pair(8, 16, 4)}
    return {levels: VQGAN(VQGANConfig(q, **how)).eval() for levels, q in kinds.items()}


@pytest.mark.parametrize("layout", sorted(layouts))
def test_every_published_layout_is_written_and_read_again(tmp_path, layout, monkeypatch):
    kind = layouts[layout]
    model = tokenizers()[2 if kind.many_levels else 1]
    uri = f"{layout}://{tmp_path}/x_codes" + ("?split=eval" if "split" in kind.options else "")
    one = Augment("center", 32)
    record = extract_published(model, Shapes(6, 32), uri, one, shard_size=4)
    assert record["count"] == 6 and len(record["used"]) == len(model.vocab) and record["coding"] == model.coding()

    how = {"split": "eval"} if "split" in kind.options else {}
    vocab = model.vocab if kind.many_levels else model.vocab[0]
    again = store_from(layout, tmp_path / "x_codes", vocab=vocab, classes=10, **how)
    want = model.tokens(model.encode(to_tensor(Shapes(6, 32).batch(range(6))[0])))
    assert len(again) == 6
    read = sorted((id, codes[0].long()) for codes, _, id in (again[i] for i in range(6)))
    assert all(torch.equal(codes, want[id]) for id, codes in read) and [id for id, _ in read] == list(range(6))

    main_of("extract_codes.py")
    plan = code_plan(model, Shapes(6, 32), one, 4)
    told = open_codes(sys.modules["script_extract_codes"].address(uri, plan))        # as the script says at its end
    assert (told.vocab, told.grid, len(told.classes)) == (model.vocab, plan.grid, 10)

    monkeypatch.setattr("vgnb.training.extract.extract_codes", lambda *a, **kw: 1 / 0)
    assert extract_published(model, Shapes(6, 32), uri, one, shard_size=4) == record               # finished already
    assert not list(tmp_path.glob(".*store"))


def test_a_killed_export_goes_on_from_its_store(tmp_path, monkeypatch):
    model, uri = tokenizers()[2], f"iar2://{tmp_path}/x_codes"
    class Kill(Exception): "Stands for one."
    def killed(*a, **kw): raise Kill
    with monkeypatch.context() as m:
        m.setattr("vgnb.training.extract.export_codes", killed)
        with pytest.raises(Kill): extract_published(model, Shapes(6, 32), uri, Augment("center", 32))
    assert not (tmp_path / "x_codes").exists() and list(tmp_path.glob(".*store"))
    monkeypatch.setattr("vgnb.training.extract.codes_of", killed)                              # all are there
    assert extract_published(model, Shapes(6, 32), uri, Augment("center", 32))["count"] == 6


@pytest.mark.parametrize("where", ["save_card", "shutil"])
def test_an_export_killed_before_its_record_or_its_end_goes_on(tmp_path, monkeypatch, where):
    "The codes are there already, or even the record is: what is missing is done, and the store goes."
    model, uri = tokenizers()[2], f"iar2://{tmp_path}/x_codes"
    def again(): return extract_published(model, Shapes(6, 32), uri, Augment("center", 32))
    class Kill(Exception): "Stands for one."
    def killed(*a, **kw): raise Kill
    with monkeypatch.context() as m:
        m.setattr(f"vgnb.training.extract.{where}", killed if where == "save_card" else SimpleNamespace(rmtree=killed))
        with pytest.raises(Kill): again()
    assert (tmp_path / "x_codes").exists() and list(tmp_path.glob(".*store"))
    for name in ("codes_of", "export_codes"): monkeypatch.setattr(f"vgnb.training.extract.{name}", killed)
    assert again()["count"] == 6 and again()["used"]
    assert not list(tmp_path.glob(".*store"))


@pytest.mark.parametrize("uri, words", [
    ("iar3://x_codes", "LAYOUT://folder with one of halton, iar2, llamagen, pgm, randar"),
    ("iar2://", "must name a folder"), ("llamagen://x_codes?split=eval", "must not say split"),
    ("pgm://x?vocab=3", "must not say vocab"), ("pgm://x?split=evil", "train, eval")])
def test_a_place_that_is_none_is_refused(uri, words):
    with pytest.raises(BadInput) as e: written_to(uri)
    assert words in str(e.value)
    with pytest.raises(BadInput, match="must be a folder, not an address"): check_place("out", "iar2://somewhere/x")
    assert written_to("runs/codes") is None and check_place("out", "codes:1/x")


def test_commands(tmp_path, monkeypatch, capsys):
    "A layout and its refusals, a run's folder that stands for its model, and what a record says."
    model = tokenizers()[2]
    save_model(tmp_path / "run" / "model", model, model.config)
    monkeypatch.chdir(tmp_path)
    extract, reconstruct = main_of("extract_codes.py"), main_of("reconstruct.py")
    words = ["--tokenizer", "run/model", "--data", "shapes://?n=6&size=32", "--size", "32"]
    for out, refusal in {
        "iar://x": "one of halton, iar2",
        "iar2://x": "must end in _codes",
        "pgm://x": "must have one level"}.items():
        with pytest.raises(BadInput, match=refusal): extract([*words, "--out", out, "--dry-run"])
    assert reconstruct(["--tokenizer", "run", *words[2:], "--out", "r.npz", "--dry-run"]) == 0
    capsys.readouterr()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]

    for said in ("6 pictures, 0 left out", "finished already"):
        assert extract([*words, "--out", "iar2://theirs_codes"]) == 0 and said in capsys.readouterr().out
    assert np.load("theirs_codes/0.npy").shape == (2, 1, 1, 16)
    assert reconstruct([*words, "--out", "r.npz"]) == 0
    named = json.loads(Path("r.json").read_text())["run"]["tokenizer"]
    assert named["coding"] == model.coding() and named["kind"] == "vqgan" and len(named["weights"]) == 64


def test_a_reconstruction_leaves_out_what_cannot_be_read(tmp_path, capsys):
    for i, picture in enumerate(Shapes(4, 32).batch(range(4))[0]): Image.fromarray(picture).save(tmp_path / f"{i}.png")
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[:len(whole) // 2])
    model = tokenizers()[1]
    save_model(tmp_path / "model", model, model.config)
    words = ["--tokenizer", tmp_path / "model", "--data", tmp_path, "--size", 32, "--out", tmp_path / "r.npz"]
    reconstruct = main_of("reconstruct.py")
    with pytest.raises(VgnbError, match="max_bad=0"): reconstruct([str(w) for w in words])
    assert not (tmp_path / "r.npz").exists()

    reconstruct([str(w) for w in [*words, "--max-bad", 1]])
    assert "left out: 2.png" in capsys.readouterr().err
    assert len(np.load(tmp_path / "r.npz")["arr_0"]) == 3
    assert json.loads((tmp_path / "r.json").read_text())["left_out"] == 1


def test_a_shipped_name_after_an_option_is_no_pipeline():
    assert named_pipeline(["--tokenizer", "tiny-iar2", "--generator", "tiny-randar"], "") == ""
    assert named_pipeline(["--steps", "3", "tiny-iar2"], "") == "tiny-iar2"
