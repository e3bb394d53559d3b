"""The study of image understanding: one budget for all, nothing done twice, other seeds' rows stay."""
import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scripts.studies import image_understanding as study
from vgnb.core import Mismatch
from vgnb.data.shapes import Shapes
from vgnb.tokenizers.vqgan import VQGAN

PIXELS = ("VQGAN", "CVQ-VAE", "FSQ")


@pytest.fixture
def options(tmp_path, monkeypatch):
    "Two steps of everything, on 64 pictures."
    monkeypatch.setattr(study.Budget, "part", lambda budget, share: replace(
        budget, pictures=64, pixels=2, vqkd=2, vqkd_painting=2, cluster=2, cluster_painting=2, network=2))
    return study.Options(seeds=(0,), out=tmp_path)


def test_all_tokenizers_have_the_same_pictures_batch_and_vocabulary():
    o = study.Options()
    recipes = {name: study.pixel_recipe(o, name, 1) for name in PIXELS}
    recipes |= {name: study.feature_recipe(o, name, 1) for name in study.OF_FEATURES}
    shared = {(r.data, r.batch, r.seed, r.precision, r.optim, r.augment, r.model.factor) for r in recipes.values()}
    assert len(shared) == 1 and {r.model.quantizer.vocab for r in recipes.values()} == {(o.budget.codes,)}
    assert len({replace(r.model, quantizer=recipes["FSQ"].model.quantizer) for r in map(recipes.get, PIXELS)}) == 1
    assert len({r.loss for r in map(recipes.get, PIXELS)}) == 1

    networks = {replace(study.network_recipe(o, name, 1, 128), data="") for name in study.TOKENIZERS}
    assert len(networks) == 1


def test_a_stopped_study_goes_on_where_it_was(options, monkeypatch):
    place, whole = options.place("Cluster", 0), study.extract

    def stop(*ignored): raise KeyboardInterrupt
    monkeypatch.setattr(study, "extract", stop)
    with pytest.raises(KeyboardInterrupt): study.trained(options, "Cluster", 0)
    assert {p.name for p in place.glob("*.json")} == {"features.json", "painting.json"}
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.is_file()}

    monkeypatch.setattr(study, "extract", whole)
    model, generator, cost = study.trained(options, "Cluster", 0)
    assert {p: p.stat().st_mtime_ns for p in before} == before, "what was done is not done again"
    assert list(cost) == ["features", "painting", "codes", "network"]
    assert model.makes == "pixels" and model.vocab == generator.vocab == (128,)
    painter = study.pixel_recipe(options, "FSQ", 0).model
    assert (model.config.decoder.width, model.config.decoder.factor) == (painter.width, painter.factor)

    monkeypatch.setattr(study, "extract", stop)
    assert study.trained(options, "Cluster", 0)[2] == cost


@pytest.mark.parametrize("name", ["VQGAN", "FSQ"])
def test_probes_read_tables_and_lattices(name, monkeypatch):
    images, labels = (torch.from_numpy(x) for x in Shapes(60, 32).batch(np.arange(60)))
    monkeypatch.setattr(study, "for_probes", lambda bench: [(images[:40], labels[:40]), (images[40:], labels[40:])])
    config = study.pixel_recipe(study.Options(), name, 0).model
    found = study.probes(None, VQGAN(config).eval(), batch=20)
    assert set(found) == {"probe_rows", "probe_counts"} and all(0 <= v <= 1 for v in found.values())


def test_seconds_are_those_of_all_sessions(tmp_path):
    first = study.Watch(tmp_path / "x.seconds")
    first.start -= 5
    assert first.note() >= 5
    assert study.Watch(tmp_path / "x.seconds").note() >= 5


def test_other_seeds_stay_and_other_settings_are_refused(options, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "FILE", tmp_path / "study.json")
    monkeypatch.setattr(study, "teacher_facts", lambda *ignored: {"name": "shapes"})
    monkeypatch.setattr(study, "sheet", lambda *ignored: np.zeros((4, 4, 3), np.uint8))
    bench = SimpleNamespace(judge=SimpleNamespace(id="judge"), real=SimpleNamespace(images=[0]), count=5)
    def rows(seed): return [{"seed": seed, "tokenizer": name} for name in reversed(study.TOKENIZERS)]

    for seed in (1, 0, 0): study.record(replace(options, seeds=(seed,)), rows(seed), bench)
    kept = json.loads(study.FILE.read_text())
    assert [(r["seed"], r["tokenizer"]) for r in kept["rows"]] == [(s, n) for s in (0, 1) for n in study.TOKENIZERS]
    assert "--seeds 0 1 --record" in kept["command"]
    bench.count = 6
    with pytest.raises(Mismatch, match="measure all seeds anew"):
        study.record(replace(options, seeds=(0,)), rows(0), bench)


def test_the_committed_rows_have_the_scripts_budget():
    found = json.loads(study.FILE.read_text())
    assert found["budget"] == asdict(study.Budget()), "run scripts/studies/image_understanding.py --record again"
    seeds = sorted({r["seed"] for r in found["rows"]})
    assert [(r["seed"], r["tokenizer"]) for r in found["rows"]] == [(s, n) for s in seeds for n in study.TOKENIZERS]
