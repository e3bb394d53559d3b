"""The study of protocols: a row switches one field, both sides share the rest; no sign is said within the noise."""
import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest

from scripts.studies import protocols as study
from vgnb.core import BadInput, Mismatch, Missing

ALL = study.SWITCHES + (study.PHOTOGRAPHS,)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    "40 pictures of everything."
    return study.Bench(study.Options(count=40, seeds=(0, 1), out=tmp_path_factory.mktemp("protocols")))


def test_a_row_switches_one_field_of_the_base():
    o = study.Options(cifar="somewhere")
    rows = study.switches(o, 256)
    assert [row.name for row in rows] == [row.name for row in ALL]
    for row in rows:
        before = asdict(study.base_of(row, o))
        after = asdict(replace(study.base_of(row, o), **{row.field: row.value}))
        assert [k for k in before if before[k] != after[k]] == [row.field], row.name
    assert {row.field for row in rows} == {"labels", "top_k", "count", "uint8", "reference", "crop", "originals"}
    assert study.switches(study.Options(), 256) == rows[:-1], "photographs only where they are given"


def test_a_published_number_names_its_model_and_where_it_stands():
    known = {row.name: row.published for row in ALL if row.published}
    assert all(p.source.startswith("https://github.com/") and p.before != p.after and p.model for p in known.values())
    pairs = {(p.before, p.after) for p in known.values()}
    assert {(2.19, 4.28), (1.5, 2.2)} <= pairs


def test_samples_are_shared_by_both_sides(bench):
    base = study.base_of(study.LABELS, bench.o)
    codes, labels = bench.drawn(base, 0)
    assert np.bincount(labels).tolist() == [4] * 10
    fewer, of_fewer = bench.drawn(replace(base, count=10), 0)
    assert (fewer == codes[:10]).all() and (of_fewer == labels[:10]).all()

    other, asked = bench.drawn(replace(base, labels="random"), 0)
    counts = np.bincount(asked, minlength=10)
    assert len(asked) == 40 and counts.max() > counts.min()
    for k in range(10):
        shared = min(4, counts[k])
        assert (other[asked == k][:shared] == codes[labels == k][:shared]).all(), "the k-th of a class is the same"
    assert not (bench.drawn(base, 1)[0] == codes).all()


def test_originals_are_cropped_or_whole_and_cut(bench):
    cropped, whole = (bench.original("denoised", crop, "own", 0) for crop in ("adm", "none"))
    assert cropped.images.shape == (40, 32, 32, 3) and whole.images.shape == (40, 32, 40, 3)
    assert (whole.images[:, :, 4:36] == cropped.images).all() and cropped.id != whole.id
    lower = cropped.images.astype(int) - study.cut(cropped).images
    assert set(np.unique(lower)) == {0, 1}

    training = bench.original("rebuilt", "adm", "training", 0)
    assert len(training) == 200 and bench.original("rebuilt", "adm", "training", 1).id == training.id
    assert bench.original("rebuilt", "adm", "own", 1).id != bench.original("rebuilt", "adm", "own", 0).id


@pytest.mark.parametrize("row, told", [(study.BYTES, "uint8_rule"), (study.COUNT._replace(value=10), "count"),
                                       (study.CROP, "reference_size")])
def test_the_evaluator_tells_both_sides_apart(bench, row, told):
    found = study.switched(bench, row, 0)
    assert told in found["told_by"] and found["before"] != found["after"]
    again = study.switched(bench, row, 0)
    assert again == found
    assert ("between_references" in found) == (row is study.CROP)


def test_truncation_is_told_by_the_sampler(bench):
    found = study.switched(bench, study.TRUNCATION._replace(value=16), 0)
    assert found["told_by"] == ["sampler"] and found["before"] != found["after"]


def test_a_sign_is_said_only_beyond_the_noise():
    def points(*shifts):
        return [{"seed": seed, "before": 2.0, "after": 2.0 + s, "told_by": []} for seed, s in enumerate(shifts)]
    clear = study.summary(study.CROP, points(0.5, 0.6, 0.55))
    assert clear["sign"] == 1 and clear["verdict"] == "as published" and clear["shift"] == pytest.approx(0.55)
    assert clear["error"] == pytest.approx(4.3027 * 0.05 / 3 ** 0.5, rel=1e-3)
    of_ten = study.summary(study.CROP, points(0.5, 0.6, 0.55), 10)["error_of_all"]
    assert clear["error_of_all"] == clear["error"] < of_ten == pytest.approx(14.089 * 0.05 / 3 ** 0.5, rel=1e-3)
    factor, low, high = clear["factor"]
    assert low < factor < high and factor == pytest.approx(2.55 / 2, abs=1e-3)
    assert study.summary(study.CROP, points(-0.5, -0.6, -0.55))["verdict"] == "against the published one"
    unsure = study.summary(study.CROP, points(0.5, -0.1, 0.4))
    assert (unsure["sign"], unsure["verdict"]) == (0, "within the noise")
    assert study.summary(study.BYTES, points(0.5, 0.6, 0.55))["verdict"] == "no published number"


@pytest.fixture
def told(tmp_path, monkeypatch):
    "A study whose numbers are made up; the list of those that were measured."
    seen = []

    def made_up(bench, row, seed):
        seen.append((row.name, seed))
        return {"seed": seed, "before": 1.0, "after": 2.0 + 0.01 * seed, "told_by": [row.field]}

    def bench(o):
        pipe = SimpleNamespace(sampling="raster", tokenizer=SimpleNamespace(vocab=(256,)))
        return SimpleNamespace(pipe=pipe, judge=SimpleNamespace(id="judge"), forget=lambda: None)

    monkeypatch.setattr(study, "switched", made_up)
    monkeypatch.setattr(study, "Bench", bench)
    monkeypatch.setattr(study, "FILE", tmp_path / "protocols.json")
    return seen


def test_a_killed_study_goes_on_and_is_recorded_with_its_command(told, tmp_path, monkeypatch, capsys):
    o = study.Options(seeds=(0, 3), count=80, out=tmp_path / "pieces", record=True)
    whole = study.switched

    def stop(bench, row, seed):
        if (row, seed) == (study.CUT, 3): raise KeyboardInterrupt
        return whole(bench, row, seed)
    monkeypatch.setattr(study, "switched", stop)
    with pytest.raises(KeyboardInterrupt): study.main(o)
    assert not study.FILE.exists() and len(told) == 2 * len(study.SWITCHES) - 1

    monkeypatch.setattr(study, "switched", whole)
    assert study.main(o) == 0 and len(told) == 2 * len(study.SWITCHES), "what was measured is not measured again"
    record = json.loads(study.FILE.read_text())
    assert record["command"] == "python scripts/studies/protocols.py --seeds 0 3 --count 80 --record"
    assert (record["seeds"], record["count"], record["extractor"]) == ([0, 3], 80, "judge")
    assert [row["name"] for row in record["rows"]] == [row.name for row in study.SWITCHES]
    assert all(len(row["seeds"]) == 2 and row["shift"] == pytest.approx(1.015) for row in record["rows"])
    assert "published 2.19 → 4.28" in capsys.readouterr().out

    with pytest.raises(Mismatch, match="other settings"): study.main(replace(o, count=120))


@pytest.mark.parametrize("bad, error", [(dict(seeds=(0,)), BadInput), (dict(seeds=(1, 1)), BadInput),
                                        (dict(seeds=(0, -1)), BadInput), (dict(count=50), BadInput),
                                        (dict(count=0), BadInput), (dict(cifar="nowhere"), Missing)])
def test_bad_options_are_refused_before_any_work(told, tmp_path, bad, error):
    from pathlib import Path
    if "cifar" in bad: bad = {"cifar": Path(tmp_path / bad["cifar"])}
    with pytest.raises(error, match=f"^{next(iter(bad))}="):
        study.main(replace(study.Options(out=tmp_path / "x"), **bad))
    assert not told and not (tmp_path / "x").exists()
