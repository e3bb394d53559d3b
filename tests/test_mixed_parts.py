"""A generator knows whose codes it learnt: another tokenizer is refused, unless the mixture is meant."""
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from tests.run_scripts import main_of as script
from vgnb.core import Mismatch, load_json
from vgnb.data.codes import CodeStore
from vgnb.data.shapes import Shapes
from vgnb.data.transforms import Augment
from vgnb.generators.raster import RasterConfig, RasterTransformer
from vgnb.pipeline import Pipeline, from_pretrained
from vgnb.saved import load_model, save_model
from vgnb.shipped import ship_model, ship_pipeline, shipped
from vgnb.tokenizers.quantizers import Revive
from vgnb.tokenizers.semantic_detail_vq import SemanticDetailConfig
from vgnb.tokenizers.vqgan import VQGAN, VQGANConfig, vqgan
from vgnb.training.extract import extract_codes
from vgnb.training.previews import Preview
from vgnb.training.tasks import CodeData

ROOT = Path(__file__).resolve().parents[1]


def small(seed):
    torch.manual_seed(seed)
    return vqgan("tiny-shapes", quantizer=dict(codebook=64), width=16, z=16, groups=8).eval()


CONFIG = RasterConfig(1, 32, 1, ffn_multiple=16, vocab=64, grid=(4, 4), classes=10)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "Two tokenizers of one configuration, one with another decoder, codes of the first, and what learnt from them."
    place = tmp_path_factory.mktemp("parts")
    first, other, redrawn = small(0), small(1), small(0)
    for p in redrawn.decoder.parameters(): torch.nn.init.normal_(p, std=0.1)
    for name, t in (("first", first), ("other", other), ("redrawn", redrawn)): save_model(place / name, t, t.config)
    store = extract_codes(first, Shapes(12, 32), place / "codes", Augment("center", 32))
    save_model(place / "generator", RasterTransformer(CONFIG), CONFIG, **CodeData(store).facts())
    return place


def parts(place, tokenizer): return load_model(place / tokenizer), load_model(place / "generator")


def test_a_generator_is_refused_with_another_tokenizer_than_its_own(place):
    assert Pipeline(*parts(place, "first")).sample(3).shape == (1, 32, 32, 3)
    with pytest.raises(Mismatch, match=r"generator='RasterTransformer'.*this VQGAN.*mixed=True") as e:
        Pipeline(*parts(place, "other"))
    codings = [load_model(place / name).coding()[:12] for name in ("first", "other")]
    assert all(c in str(e.value) for c in codings)


def test_another_decoder_is_the_same_tokenizer(place):
    first, redrawn = (load_model(place / name) for name in ("first", "redrawn"))
    assert first.coding() == redrawn.coding()
    assert not torch.equal(first.decoder.head.weight, redrawn.decoder.head.weight)
    Pipeline(*parts(place, "redrawn"))


def test_what_a_quantizer_counts_is_no_part_of_its_codes():
    tokenizer = small(0)
    before = tokenizer.coding()
    tokenizer.quantizer.usage.add(torch.arange(5))
    assert tokenizer.coding() == before
    with torch.no_grad(): tokenizer.quantizer.table[0] += 1
    assert tokenizer.coding() != before


def test_what_two_tables_count_is_no_part_of_their_codes():
    torch.manual_seed(0)
    pair = SemanticDetailConfig(16, 32, 4, usage=512, updates=(Revive(5),))
    tokenizer = VQGAN(VQGANConfig(pair, coder="small", width=16, groups=8)).eval()
    before = tokenizer.coding()
    for level in (tokenizer.quantizer.semantic, tokenizer.quantizer.detail):
        level.usage.add(torch.arange(5))
        level.updates[0].fresh += 1
    assert tokenizer.coding() == before
    with torch.no_grad(): tokenizer.quantizer.detail.table[0] += 1
    assert tokenizer.coding() != before


@pytest.mark.parametrize("change", [dict(quantizer=dict(codebook=64, l2=False)), dict(groups=4)])
def test_options_that_no_weight_shows_are_part_of_the_codes(change):
    tokenizer = small(0)
    twin = vqgan("tiny-shapes", **(dict(quantizer=dict(codebook=64), width=16, z=16, groups=8) | change)).eval()
    twin.load_state_dict(tokenizer.state_dict())
    assert twin.coding() != tokenizer.coding()


def test_a_copy_in_half_precision_is_the_same_tokenizer(place, tmp_path):
    first, generator = parts(place, "first")
    ship_model(tmp_path / "shipped", first)
    copy = load_model(tmp_path / "shipped")
    assert not torch.equal(copy.quantizer.table, first.quantizer.table)
    assert first.coding() == copy.coding() == deepcopy(first).half().coding()
    Pipeline(copy, generator)


def test_a_mixture_that_is_meant_is_saved_and_loads_again(place, tmp_path):
    pipe = Pipeline(*parts(place, "other"), mixed=True)
    pipe.save_pretrained(tmp_path / "mixed")
    assert load_json(tmp_path / "mixed" / "pipeline.json")["mixed"] is True
    again = from_pretrained(tmp_path / "mixed")
    assert again.mixed and again.generator.card["coding"] == pipe.generator.card["coding"]
    with pytest.raises(Mismatch, match="another tokenizer"): Pipeline(again.tokenizer, again.generator)


def test_a_saved_pair_is_checked_when_its_parts_are_taken_apart(place, tmp_path):
    Pipeline(*parts(place, "first")).save_pretrained(tmp_path / "pair")
    assert "mixed" not in load_json(tmp_path / "pair" / "pipeline.json")
    generator = load_model(tmp_path / "pair" / "generator")
    with pytest.raises(Mismatch, match="another tokenizer"): Pipeline(load_model(place / "other"), generator)

    ship_model(tmp_path / "shipped" / "tokenizer", load_model(place / "other"))
    pipe = Pipeline(*parts(place, "first"))
    ship_pipeline(tmp_path / "shipped" / "raster", pipe.generator, pipe.sampling, Shapes.classes, (4, 4))
    with pytest.raises(Mismatch, match="another tokenizer"): from_pretrained(tmp_path / "shipped" / "raster")
    assert from_pretrained(tmp_path / "shipped" / "raster", mixed=True).mixed


def test_models_that_say_nothing_are_taken_as_before(place):
    for name in shipped(): assert from_pretrained(name).mixed is False
    Pipeline(load_model(place / "other"), RasterTransformer(CONFIG))


def test_the_command_names_both_and_the_way_on(place, tmp_path, capsys):
    from vgnb.cli import run_main
    words = ["--tokenizer", str(place / "other"), "--generator", str(place / "generator"), "--out",
             str(tmp_path / "s.npz"), "--count", "1", "--dry-run"]
    assert run_main(script("sample.py"), words) == 2
    said = capsys.readouterr().err
    assert str(place / "other") in said and str(place / "generator") in said and "--mixed" in said
    assert run_main(script("sample.py"), [*words, "--mixed"]) == 0


def test_a_run_writes_whose_codes_it_learnt(place, tmp_path):
    main = script("train_generator.py")
    assert main(["shapes-generator", "--data", str(place / "codes"), "--steps", "2", "--batch", "4",
                 "--out", str(tmp_path / "run")]) == 0
    card = load_model(tmp_path / "run" / "model").card
    assert card["coding"] == load_model(place / "first").coding() == CodeStore(place / "codes").coding


def test_previews_are_drawn_by_the_tokenizer_of_the_codes(place):
    store = CodeStore(place / "codes")
    Preview(load_model(place / "redrawn")).check(store)
    with pytest.raises(Mismatch, match="preview tokenizer"): Preview(load_model(place / "other")).check(store)


def test_a_finished_store_keeps_the_name_that_others_know(place):
    from vgnb.core import digest, save_json
    index = load_json(place / "codes" / "index.json")
    older = {k: v for k, v in index.items() if k not in ("coding", "fingerprint")}
    try:
        save_json(place / "codes" / "index.json", older | {"fingerprint": digest(older)})
        again = extract_codes(load_model(place / "first"), Shapes(12, 32), place / "codes", Augment("center", 32))
        assert again.fingerprint == digest(older) and again.coding == ""
    finally: save_json(place / "codes" / "index.json", index)
