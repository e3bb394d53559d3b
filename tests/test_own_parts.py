"""The study of parts of your own: the page's own cells, nothing twice, other seeds' rows stay."""
import ast
import json

import numpy as np
import pytest

from scripts.studies import own_parts as study
from vgnb.core import BadInput, Mismatch

FACTS = {"page": "a page@0123", "count": 20, "judge": "a judge", "torch": "2"}


def written(text: str) -> list[ast.Module]: return [ast.parse(text)]


def found(share: float) -> dict:
    "What a seed finds, for two mixtures."
    return {"loss": 1.0, "rows": [{"mixture": name, "as_asked": share} for name in "ab"]}


def with_seed(seed: int, share: float) -> dict:
    rows = [{"seed": seed, **row} for row in found(share)["rows"]]
    return {"loss": 1.0, "rows": rows}


def test_the_record_is_of_the_page_as_it_stands():
    record = json.loads(study.FILE.read_text())
    now = f"{study.PAGE.stem}@{study.digest(study.cells())}"
    assert record["page"] == now, "run scripts/studies/own_parts.py --record again"
    seeds = sorted({row["seed"] for row in record["rows"]})
    mixtures = list(dict.fromkeys(row["mixture"] for row in record["rows"]))
    assert len(record["rows"]) == len(seeds) * len(mixtures) and len(seeds) > 1
    assert sorted(map(int, record["losses"])) == seeds
    for row in record["rows"]:
        assert np.isclose(row["as_asked"], np.mean(list(row["classes"].values())))


def test_a_page_is_told_by_what_its_cells_do():
    plain = study.digest(written('import os\n\ndef f(a):\n    "More."\n    return a + 1'))
    same = 'def f(a):\n    "What it does."\n    return (a +\n            1)     # one more'
    assert study.digest(written(same)) == plain
    assert study.digest(written(same.replace("1)", "2)"))) != plain


def test_a_name_that_no_cell_defines_is_refused():
    with pytest.raises(BadInput, match="names.*nowhere"): study.cells(names={"Ripple", "nowhere"})


def test_a_finished_seed_is_not_done_again(tmp_path, monkeypatch):
    asked = []

    def found_with(page, place, seed):
        asked.append(seed)
        return found(0.5)

    monkeypatch.setattr(study, "found_with", found_with)
    o = study.Options(out=tmp_path)
    assert study.piece(None, o, 3, FACTS) == study.piece(None, o, 3, FACTS) == found(0.5)
    study.piece(None, o, 3, FACTS | {"page": "a page@4567"})
    assert asked == [3, 3], "another text of the page is another piece"
    with pytest.raises(Mismatch, match="out"): study.piece(None, o, 3, FACTS | {"torch": "3"})


def test_other_seeds_stay_in_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "FILE", tmp_path / "record.json")
    study.record(study.Options(seeds=(2, 0)), {0: with_seed(0, 0.1), 2: with_seed(2, 0.3)}, FACTS)
    study.record(study.Options(seeds=(1, 2)), {1: with_seed(1, 0.2), 2: with_seed(2, 0.4)}, FACTS)
    record = json.loads(study.FILE.read_text())
    shares = [(row["seed"], row["as_asked"]) for row in record["rows"]]
    assert shares == [(0, 0.1)] * 2 + [(1, 0.2)] * 2 + [(2, 0.4)] * 2
    assert record["command"].endswith("own_parts.py --seeds 0 1 2 --record")

    before = study.FILE.read_text()
    o, other = study.Options(seeds=(5,)), FACTS | {"torch": "3"}
    with pytest.raises(Mismatch, match="record"): study.record(o, {5: with_seed(5, 1)}, other)
    assert study.FILE.read_text() == before
