"The league: cells alike, what doesn't fit is told why, nothing is done twice, nothing half done is kept."
import json
from dataclasses import replace

import pytest

from scripts.studies import league
from vgnb.core import BadInput, Mismatch

@pytest.fixture
def bench(tmp_path):
    "Five steps, a few pictures, the shipped tokenizer of planes."
    own = dict(steps=5, batch=4, count=20, pictures=64, held_out=80, groups=4, few=(2,), seeds=(0,))
    return league.Bench(league.Options(tokenizers=("VQGAN",), out=tmp_path, **own))


def asked(bench, *generators, parts=("grid",)):
    "The pieces for some generators."
    bench.o = replace(bench.o, generators=generators, parts=parts)
    return league.pieces(bench)


def test_cells_are_made_once_and_refused_ones_say_why(bench, monkeypatch):
    league.carry_out(asked(bench, "PGM", "IAR2", parts=("grid", "steps")))
    cell, refused = (json.loads(league.cell_file(bench.o, "VQGAN", g, 0).read_text()) for g in ("PGM", "IAR2"))
    assert cell["steps"] == 4 and cell["fid"] > 0 and 0 <= cell["accuracy"] <= 1 and 0 < cell["distance"] < 1
    assert cell["mflop"] > 0 and cell["train_mflop"] > 0 and cell["cpu_seconds"]["training"] > 0
    assert "two sizes" in refused["reason"] and "fid" not in refused
    few = json.loads(league.steps_file(bench.o, "PGM").read_text())["rows"]
    assert [row["steps"] for row in few] == [2] and few[0]["mflop"] < cell["mflop"]

    def again(*ignored): raise AssertionError("done twice")
    for name in ("tokenizer", "cell", "by_steps"): monkeypatch.setattr(league, name, again)
    league.carry_out(asked(bench, "PGM", "IAR2", parts=("grid", "steps")))

    monkeypatch.setattr(league, "FILE", bench.o.out / "league.json")
    league.record(bench)
    study = json.loads(league.FILE.read_text())
    assert [c["generator"] for c in study["cells"]] == ["PGM", "IAR2"] and "--steps 5" in study["command"]
    assert [c.get("sheet") for c in study["cells"]] == [0, None] and "counts" not in study["rows"][0]


def test_a_cell_that_was_stopped_is_not_kept_and_goes_on(bench, monkeypatch):
    whole, todo = league.sampled, asked(bench, "LlamaGen")
    def stop(*ignored, **more): raise KeyboardInterrupt
    monkeypatch.setattr(league, "sampled", stop)
    with pytest.raises(KeyboardInterrupt): league.carry_out(todo)
    file = league.cell_file(bench.o, "VQGAN", "LlamaGen", 0)
    assert not file.exists() and league.tokenizer_file(bench.o, "VQGAN").exists()

    weights = file.with_suffix("") / "model" / "model.safetensors"
    before = weights.read_bytes()
    monkeypatch.setattr(league, "sampled", whole)
    league.carry_out(todo)
    assert file.exists() and weights.read_bytes() == before


def test_pieces_are_asked_for_in_the_order_of_their_worth():
    o = league.Options(seeds=(0, 1, 2))
    names = [piece.file.stem for piece in league.pieces(league.Bench(o))]
    assert len(names) == len(set(names)) == 6 + 36 + 2 * 11 + 3, "tokenizers, cells, more seeds, steps"
    assert names.index("iar2-iar2-0") < names.index("vqgan-llamagen-1") < names.index("vqgan-pgm")
    assert all(names.index(word) < names.index(f"{word}-pgm-0") for word in map(league.word, league.TOKENIZERS))
    assert all(league.data_of(t) == "shapes" for t in league.TOKENIZERS)


def test_all_cells_have_one_training():
    o = league.Options()
    recipes = [league.generator_recipe(o, league.configuration(o, name, 2), "", 0) for name in league.GENERATORS]
    alike = {(r.steps, r.batch, r.seed, r.rate, r.precision, replace(r.optim, undecayed=())) for r in recipes}
    assert len(alike) == 1 and {r.model.dim for r in recipes} == {64}


def test_other_settings_and_unknown_names_are_refused(tmp_path):
    o = league.Options(out=tmp_path)
    league.check_options(o)
    with pytest.raises(Mismatch, match="another --out"): league.check_options(replace(o, steps=7))
    with pytest.raises(BadInput, match="did you mean PGM"): league.check_options(replace(o, generators=("PGN",)))


def test_the_committed_cells_have_the_scripts_settings():
    found, now = json.loads(league.FILE.read_text()), league.Options().settings()
    assert {name: found[name] for name in now} == now, "run scripts/studies/league.py --record again"
    assert found["size"] == league.SIZE and found["cells"] and found["rows"]
