"""What may be believed of a result: numbers know the file they were measured on, records name only our scripts, and
nothing finished is overwritten."""
import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import vgnb.evaluation.reference
from tests.run_scripts import main_of as script
from vgnb import core
from vgnb.core import BadInput, Mismatch, digest_file, load_card, load_json, save_card, sweep_aside
from vgnb.data.codes import ArrayCodes, CodePlan, CodeStore, CodeWriter
from vgnb.data.export import folder_aside
from vgnb.data.layouts import convert, export_codes, layouts
from vgnb.data.shapes import Shapes
from vgnb.evaluation.features import load_extractor
from vgnb.evaluation.judge import JudgeRecipe, load_judge, save_judge
from vgnb.evaluation.reference import FeatureShards, extract_reference, reference_plan
from vgnb.evaluation.samples import open_samples, save_samples
from vgnb.pipeline import Pipeline
from vgnb.places import locked, locked_file
from vgnb.training.recipes import Recipe
from vgnb.training.run_folder import Run, RunFolder

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def quick(monkeypatch): monkeypatch.setattr(core, "_git", lambda *args: None)


def pictures(n, seed): return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), np.uint8)


# ---- evaluate.py

@pytest.fixture
def place(tmp_path):
    "Samples with their record, and a reference."
    save_samples(tmp_path / "ref.npz", pictures(30, 9))
    save_samples(tmp_path / "s.npz", pictures(30, 1), np.arange(30) % 10)
    sampler = {"guidance": {"kind": "guidance.cfg", "scale": 3.0}}
    save_card(tmp_path / "s.run.json", {
        "seed": 5, "sampler": sampler, "uint8_rule": "round", "outputs": {"s.npz": digest_file(tmp_path / "s.npz")}})
    return tmp_path


def evaluate(place, *words):
    files = [str(place / name) for name in ("ref.npz", "s.npz")]
    return script("evaluate.py")([*files, "--extractor", "shapes-judge", "--metrics", "accuracy", *map(str, words)])


def protocol(place) -> dict: return load_card(place / "n.json")["protocol"]


def test_seed_and_sampler_are_those_of_this_very_file(place, capsys):
    assert evaluate(place, "--json", place / "n.json") == 0
    assert protocol(place)["seed"] == 5 and protocol(place)["uint8_rule"] == "round"
    assert "seed 5" in capsys.readouterr().out
    record = load_card(place / "n.run.json")
    assert record["outputs"] == {"n.json": digest_file(place / "n.json")} and record["data"].startswith("s.npz@")


def changed(place): save_samples(place / "s.npz", pictures(30, 2), np.arange(30) % 10)


def without_hash(place):
    save_card(place / "s.run.json", {k: v for k, v in load_card(place / "s.run.json").items() if k != "outputs"})


def other_seed(place):
    file = place / "s.run.json"
    file.write_text(file.read_text().replace('"seed": 5', '"seed": 6'))


@pytest.mark.parametrize("change", [changed, without_hash, other_seed])
def test_a_record_of_another_file_is_not_believed(place, capsys, change):
    change(place)
    assert evaluate(place, "--json", place / "n.json") == 0
    assert protocol(place)["seed"] is None and protocol(place)["sampler"] is None
    said = capsys.readouterr()
    assert "seed 5" not in said.out and "seed 6" not in said.out and "s.run.json" in said.err


def test_numbers_of_other_samples_are_not_overwritten(place, capsys):
    assert evaluate(place, "--json", place / "n.json") == 0
    before = (place / "n.json").read_bytes()
    assert evaluate(place, "--json", place / "n.json") == 0                         # the same: nothing is done
    assert "finished already" in capsys.readouterr().out

    changed(place)
    with pytest.raises(BadInput, match="n.json: exists already"): evaluate(place, "--json", place / "n.json")
    assert (place / "n.json").read_bytes() == before
    assert evaluate(place, "--json", place / "n.json", "--overwrite") == 0
    assert (place / "n.json").read_bytes() != before


@pytest.mark.parametrize("name, value", [("outputs", [1]), ("sampler", [1]), ("seed", "x")])
def test_a_record_of_samples_in_other_types_is_not_believed(place, capsys, name, value):
    run = {k: v for k, v in load_card(place / "s.run.json").items() if k != "seal"}
    (place / "s.run.json").write_text(json.dumps(run | {name: value}))
    assert evaluate(place) == 0
    assert "does not describe this s.npz" in capsys.readouterr().err


@pytest.mark.parametrize("name, value", [("protocol", [1]), ("protocol", {}), ("values", [1]), ("values", {"fid": "x"}),
                                         ("notes", None)])
def test_numbers_of_somebody_else_stay(place, capsys, name, value):
    assert evaluate(place, "--json", place / "n.json") == 0
    report = {k: v for k, v in load_card(place / "n.json").items() if k != "seal"}
    (place / "n.json").write_text(json.dumps(report | {name: value}))
    with pytest.raises(BadInput, match="n.json: exists already"): evaluate(place, "--json", place / "n.json")


def test_a_record_of_samples_is_not_replaced_by_one_of_numbers(place):
    "Both would be s.run.json."
    with pytest.raises(BadInput, match="is the record of s.npz"): evaluate(place, "--json", place / "s.json")
    assert load_card(place / "s.run.json")["seed"] == 5 and not (place / "s.json").exists()


# ---- what is finished stays

def run(name, capsys, *words) -> str:
    "What a script prints."
    assert script(name)([str(w) for w in words]) == 0
    return capsys.readouterr().out


def test_samples_that_are_finished_stay(tmp_path, capsys):
    words = ["tiny-pgm", "--count", 2, "--steps", 2, "--out", tmp_path / "s.npz", "--sheet", tmp_path / "s.png"]
    assert "written to" in run("sample.py", capsys, *words)
    before = {p.name: digest_file(p) for p in tmp_path.iterdir()}
    assert set(before) == {"s.npz", "s.run.json", "s.png"}
    assert "finished already" in run("sample.py", capsys, *words)
    for other in (["--seed", 1], ["--seed", 1, "--out", tmp_path / "other.npz"]):          # its sheet is taken, too
        with pytest.raises(BadInput, match="exists already"): run("sample.py", capsys, *words, *other)
    assert {p.name: digest_file(p) for p in tmp_path.iterdir()} == before
    run("sample.py", capsys, *words, "--seed", 1, "--overwrite")
    assert {p.name for p in tmp_path.iterdir() if digest_file(p) == before[p.name]} == set()


def test_a_picture_of_somebody_else_is_no_sheet(tmp_path, capsys):
    "Also where the samples are finished: only the sheet that their record names may be written anew."
    words = ["tiny-pgm", "--count", 2, "--steps", 2, "--out", tmp_path / "s.npz", "--sheet", tmp_path / "s.png"]
    run("sample.py", capsys, *words)
    outputs = load_card(tmp_path / "s.run.json")["outputs"]
    assert outputs == {name: digest_file(tmp_path / name) for name in ("s.npz", "s.png")}
    for name in ("s.png", "photo.png"):
        (tmp_path / name).write_bytes(b"somebody's picture")
        with pytest.raises(BadInput, match="exists already"):
            run("sample.py", capsys, *words[:-1], tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"somebody's picture"
    (tmp_path / "s.png").unlink()
    assert "sheet of" in run("sample.py", capsys, *words)
    assert load_card(tmp_path / "s.run.json")["outputs"] == outputs


def test_codes_that_are_finished_keep_their_record(tmp_path, capsys):
    words = ["--tokenizer", ROOT / "vgnb/weights/tiny/tokenizer", "--data", "shapes://?n=12&size=32", "--size", 32]
    where = ["--out", tmp_path / "codes"]
    run("extract_codes.py", capsys, *words, *where)
    before = {p.name: digest_file(p) for p in (tmp_path / "codes").iterdir()}
    assert "finished already" in run("extract_codes.py", capsys, *words, *where, "--batch", 5)
    with pytest.raises(Mismatch, match="holds another store"): run("extract_codes.py", capsys, *words, "--flip", *where)
    assert {p.name: digest_file(p) for p in (tmp_path / "codes").iterdir()} == before


def test_a_reference_that_is_finished_stays(tmp_path, capsys):
    words = ["shapes://?n=12&size=32", "--extractor", "shapes-judge", "--out", tmp_path / "r.npz"]
    run("extract_reference.py", capsys, *words)
    before = {p.name: digest_file(p) for p in tmp_path.iterdir()}
    assert load_card(tmp_path / "r.run.json")["outputs"] == {"r.npz": before["r.npz"]}
    assert "finished already" in run("extract_reference.py", capsys, *words)
    with pytest.raises(BadInput, match="exists already"): run("extract_reference.py", capsys, *words, "--features", 5)
    assert {p.name: digest_file(p) for p in tmp_path.iterdir()} == before


def test_a_judge_that_is_finished_stays(tmp_path, capsys):
    for file in (ROOT / "vgnb" / "weights").glob("shapes-judge.*"): shutil.copy(file, tmp_path)
    words = ["--out", tmp_path / "shapes-judge.safetensors"]
    assert "finished already" in run("train_judge.py", capsys, *words)
    with pytest.raises(BadInput, match="exists already"): run("train_judge.py", capsys, *words, "--recipe.steps", 2)
    with pytest.raises(BadInput, match="exists already"): script("train_tiny.py")(["tokenizer", "--out", str(tmp_path)])


# ---- rerun.py

def record(folder, command, **more):
    folder.mkdir(exist_ok=True)
    facts = {"command": ["python", *command], "seed": 0, "versions": {}, "cwd": str(folder), "device": "cpu: x"}
    save_card(folder / "run.json", facts | more)
    return folder / "run.json"


def rerun(monkeypatch, made: dict, *words):
    "rerun.py, whose command writes the files `made` (path: content) and is returned: (exit code, command)."
    main, ran = script("rerun.py"), []

    def repeat(run, command):
        ran.append(command)
        for path, content in made.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return 0

    monkeypatch.setitem(main.__globals__, "repeat", repeat)
    return main(list(map(str, words))), ran[0] if ran else None


SCRIPT = str(ROOT / "scripts" / "sample.py")


def test_weights_that_were_shared_out_are_shared_out_again(tmp_path):
    "As the record says; a record can't set anything else in the environment."
    main = script("rerun.py")
    sharing = main.__globals__["sharing_of"]
    asked = sharing({"sharding": {"pieces": 2, "replicas": 3, "reshard": False}})
    assert asked["ACCELERATE_USE_FSDP"] == "true" and asked["FSDP_RESHARD_AFTER_FORWARD"] == "false"
    assert (asked["PARALLELISM_CONFIG_DP_SHARD_SIZE"], asked["PARALLELISM_CONFIG_DP_REPLICATE_SIZE"]) == ("2", "3")
    assert sharing({}) == sharing({"sharding": None}) == {}
    for wrong in ("x", {"pieces": 2}, {"pieces": 2, "replicas": 1, "reshard": True, "LD_PRELOAD": "evil.so"},
                  {"pieces": "2", "replicas": 1, "reshard": True}, {"pieces": 0, "replicas": 1, "reshard": True}):
        run = record(tmp_path / "a", [SCRIPT], sharding=wrong)
        with pytest.raises(BadInput, match="sharding="): main([str(run)])


def test_none_to_compare_is_a_failure(tmp_path, monkeypatch, capsys):
    run = record(tmp_path / "a", [SCRIPT, "--out", "x.npz"])
    assert rerun(monkeypatch, {tmp_path / "b.npz": b"new"}, run, "--out", tmp_path / "b.npz")[0] == 1
    assert "0 of 0" in capsys.readouterr().out


@pytest.mark.parametrize("content, code", [(b"codes", 0), (b"other", 1)])
def test_what_lies_beside_the_record_is_compared(tmp_path, monkeypatch, content, code):
    "A code store's shards count, too."
    run = record(tmp_path / "a", [str(ROOT / "scripts" / "extract_codes.py"), "--out=a"])
    (tmp_path / "a" / "00000.codes").write_bytes(b"codes")
    found = rerun(monkeypatch, {tmp_path / "b" / "00000.codes": content}, run, "--out", tmp_path / "b")
    assert found[0] == code and found[1][-2:] == ["--out", str(tmp_path / "b")]
    assert "--out=a" not in found[1]


def test_the_hash_in_the_record_is_what_counts(tmp_path, monkeypatch):
    "The file that lies there now may have been replaced since."
    (tmp_path / "x.npz").write_bytes(b"first")
    run = record(tmp_path / "a", [SCRIPT], outputs={"x.npz": digest_file(tmp_path / "x.npz"), "x.png": "a sheet"})
    for content, code in ((b"first", 0), (b"second", 1)):
        out = tmp_path / f"{code}.npz"
        assert rerun(monkeypatch, {out: content}, run, "--out", out)[0] == code


@pytest.mark.parametrize("command", [["/tmp/evil.py"], ["evil.py"], ["scripts/../../evil.py"], ["-c", "import os"], [],
                                     ["scripts/evil.py"], ["-m", "scripts/sample.py"], [3], "scripts/sample.py",
                                     ["scripts/rerun.py", "run.json"], ["scripts/mirror.py"], ["scripts/launch.py"],
                                     ["scripts/launch.py", "--nproc-per-node", "1", "/tmp/evil.py"],
                                     ["scripts/launch.py", "--nproc-per-node", "1", "scripts/rerun.py", "run.json"]])
def test_only_scripts_of_this_project_run(tmp_path, monkeypatch, command):
    run = record(tmp_path / "a", command)
    with pytest.raises(BadInput, match="command="): rerun(monkeypatch, {}, run)


def test_a_script_of_our_name_elsewhere_is_ours(tmp_path, monkeypatch):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "sample.py").write_text("raise SystemExit('strange code')")
    run = record(tmp_path / "a", [str(tmp_path / "scripts" / "sample.py"), "--count", "4"])
    assert rerun(monkeypatch, {}, run)[1][1:] == [SCRIPT, "--count", "4"]


def test_work_of_several_is_launched_by_our_launcher(tmp_path, monkeypatch):
    "Whether its record names the launcher or not."
    for words in ([SCRIPT], ["scripts/launch.py", "--nproc-per-node", "2", SCRIPT]):
        run = record(tmp_path / "a", [*words, "--seed", "1"], world=2)
        launch = [str(ROOT / "scripts" / "launch.py"), "--nproc-per-node", "2"]
        assert rerun(monkeypatch, {}, run)[1][1:] == [*launch, SCRIPT, "--seed", "1"]


@pytest.mark.parametrize("name, value", [("world", "two"), ("world", 0), ("world", True), ("versions", [1]),
                                         ("device", 3), ("cwd", None), ("seed", "x")])
def test_a_record_of_other_types_is_named(tmp_path, monkeypatch, name, value):
    run = record(tmp_path / "a", [SCRIPT], **{name: value})
    with pytest.raises(BadInput, match=f"{name}="): rerun(monkeypatch, {}, run)


def test_nothing_that_is_there_goes(tmp_path, monkeypatch):
    run = record(tmp_path / "a", [SCRIPT, "--overwrite", "--fresh", "--seed", "1"])
    assert rerun(monkeypatch, {}, run)[1][1:] == [SCRIPT, "--seed", "1"]
    (tmp_path / "there").mkdir()
    for out in ("a", "there"):
        with pytest.raises(BadInput, match="needs a new name|need a new name"):
            rerun(monkeypatch, {}, run, "--out", tmp_path / out)


def test_a_damaged_record_is_named(tmp_path, monkeypatch):
    run = record(tmp_path / "a", [SCRIPT])
    run.write_text(run.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(Mismatch, match="run.json: is not as it was written"): rerun(monkeypatch, {}, run)


# ---- training

@pytest.mark.parametrize("name, what", [("plan.json", "a store under way"), ("config.json", "a saved model"),
                                        ("pipeline.json", "a pipeline"), ("results.json", "a search")])
def test_a_run_does_not_begin_in_the_folder_of_something_else(tmp_path, name, what):
    (tmp_path / name).write_text("{}")
    (tmp_path / "run.json").write_text("the record of that")
    with pytest.raises(BadInput, match=f"holds {what}"): RunFolder(tmp_path).check()
    assert (tmp_path / "run.json").read_text() == "the record of that"


def test_a_finished_model_without_checkpoints_is_not_replaced(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(BadInput, match="holds a finished model"): RunFolder(tmp_path).check()
    RunFolder(tmp_path, Run(resume="fresh")).check()


# ---- what killed writers left

LEFT = (".aside-model-0123abcd", ".run.json.0123abcd.part.json", ".s.npz.0123abcd.part.npz", ".moved.0123abcd.part")
THEIRS = ("notes.part", ".hidden", ".aside-notes", "model", ".s.npz.parts")


def test_left_overs_are_swept_and_nothing_else(tmp_path):
    for name in (LEFT[0], LEFT[3], ".s.npz.parts", "model"): (tmp_path / name).mkdir()
    for name in (LEFT[1], LEFT[2], *THEIRS[:3]): (tmp_path / name).write_text("x")
    sweep_aside(tmp_path, "s.npz")
    assert {p.name for p in tmp_path.iterdir()} == {*LEFT, *THEIRS} - {LEFT[2]}
    sweep_aside(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == set(THEIRS)


def test_a_run_sweeps_its_folder(tmp_path):
    (tmp_path / LEFT[1]).write_text("half")
    (tmp_path / LEFT[0]).mkdir()
    assert RunFolder(tmp_path).choose(Recipe(steps=1, batch=8)) is None
    assert not list(tmp_path.glob(".*"))


# ---- stores of an older format

def test_a_store_of_the_older_format_is_read_and_completed(tmp_path, monkeypatch):
    "Its shards are sealed without their plan."
    import vgnb.data.shards as shards
    plan = CodePlan((8,), (2, 2), 20, "tokenizer", shard_size=10)
    def write(writer, shard):
        writer.write(shard, np.full((10, 1, 4, 1), shard), np.zeros(10), range(10 * shard, 10 * shard + 10))

    monkeypatch.setattr(shards, "_FORMAT", 1)
    write(CodeWriter(tmp_path / "c", plan), 0)
    monkeypatch.undo()
    assert load_json(tmp_path / "c" / "plan.json")["format"] == "vgnb.codes/1"

    writer = CodeWriter(tmp_path / "c", plan)
    assert writer.todo() == [1]
    write(writer, 1)
    writer.finish()
    store = CodeStore(tmp_path / "c")
    assert len(store) == 20 and store[15][0].unique().tolist() == [1]
    assert store.index["format"] == "vgnb.codes/1"


# ---- locks

def take_turns(place: Path, times: int):
    "Own a place again and again; a folder that is made twice says that two were inside."
    done = 0
    while done < times:
        try:
            with locked_file(place):
                place.with_suffix(".mark").mkdir()
                place.with_suffix(".mark").rmdir()
                done += 1
        except Mismatch: time.sleep(0.001)


@pytest.mark.fault("F19")
def test_a_lock_that_changes_hands_has_one_owner(tmp_path):
    "Several processes take and leave one place; never two at a time, and none is left out."
    fork = multiprocessing.get_context("fork")
    running = [fork.Process(target=take_turns, args=(tmp_path / "x.npz", 50)) for _ in range(4)]
    for process in running: process.start()
    for process in running: process.join(60)
    assert [process.exitcode for process in running] == [0] * 4
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    def refuse(*args): raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with locked_file(tmp_path / "x.npz"): pass
    assert "keeps no locks" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ---- references

def a_reference(out, seed, keep=0):
    judge = load_extractor("shapes-judge")
    return extract_reference(Shapes(12, 32, seed=seed), out, judge, keep=keep, progress=False)


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pt"])
def test_a_reference_is_another_whatever_parts_lie_beside_it(tmp_path, kind):
    out = tmp_path / f"r.{kind}"
    mean = a_reference(out, 1).mean
    before = {p.name: digest_file(p) for p in tmp_path.iterdir()}
    plan = reference_plan(open_samples(Shapes(12, 32, seed=2)), load_extractor("shapes-judge"), tmp_path / "new.npz")
    parts = tmp_path / f"{out.name}.parts"
    parts.mkdir()
    for text in (None, "[]", json.dumps(asdict(plan))):                         # empty, foreign, of the other pictures
        if text: (parts / "plan.json").write_text(text)
        with pytest.raises(BadInput, match="exists already, and rests on something else"): a_reference(out, 2)
    shutil.rmtree(parts)
    parts.mkdir()                                                               # killed before its last rmdir
    assert a_reference(out, 1).mean.float().equal(mean.float()) and not parts.exists()
    assert {p.name: digest_file(p) for p in tmp_path.iterdir()} == before


def test_parts_do_not_hide_that_other_features_were_asked(tmp_path):
    a_reference(tmp_path / "r.npz", 1)
    parts = tmp_path / "r.npz.parts"
    FeatureShards(parts, reference_plan(open_samples(Shapes(12, 32, seed=1)), load_extractor("shapes-judge"),
                                        tmp_path / "r.npz"))
    with pytest.raises(BadInput, match="exists already"): a_reference(tmp_path / "r.npz", 1, keep=5)
    assert (parts / "plan.json").exists()


def test_a_reference_is_looked_at_again_under_the_lock(tmp_path, monkeypatch):
    "Another process finishes its own between our look and our lock."
    monkeypatch.setattr(vgnb.evaluation.reference, "locked_file", lambda out: other_finishes(out, locked_file))
    def other_finishes(out, lock):
        monkeypatch.setattr(vgnb.evaluation.reference, "locked_file", lock)
        a_reference(out, 2)
        return lock(out)
    with pytest.raises(BadInput, match="exists already"): a_reference(tmp_path / "r.npz", 1)


def test_a_note_that_is_none_or_of_other_numbers(tmp_path):
    out, note = tmp_path / "r.pt", tmp_path / "r.pt.json"
    note.write_text("{}")
    with pytest.raises(BadInput, match="r.pt.json.*is not the note of a reference"): a_reference(out, 1)
    note.unlink()
    a_reference(tmp_path / "other.pt", 2)
    a_reference(out, 1)
    shutil.copy(tmp_path / "other.pt", out)
    with pytest.raises(BadInput, match="exists already"): a_reference(out, 1)


# ---- what kills leave beside cards

def test_a_judge_is_never_without_its_card(tmp_path, monkeypatch, capsys):
    place = tmp_path / "shapes-judge.safetensors"
    net, card = load_judge()
    def killed(*args): raise KeyboardInterrupt
    monkeypatch.setattr(core.os, "replace", lambda a, b: killed() if Path(b) == place else os.rename(a, b))
    with pytest.raises(KeyboardInterrupt): save_judge(place, net, JudgeRecipe())
    assert [p.name for p in tmp_path.iterdir()] == ["shapes-judge.json"]        # so it is trained again
    monkeypatch.undo()
    save_judge(place, net, JudgeRecipe())
    assert load_judge(place)[1]["sha256"] == digest_file(place)

    left = tmp_path / ".shapes-judge.json.0123abcd.part.json"
    left.write_text("{")
    assert "finished already" in run("train_judge.py", capsys, "--out", place) and not left.exists()


def test_a_pipeline_sweeps_beside_its_card(tmp_path):
    left = tmp_path / "p" / ".pipeline.json.0123abcd.part.json"
    left.parent.mkdir()
    left.write_text("{")
    Pipeline.from_pretrained("tiny-randar").save_pretrained(tmp_path / "p")
    assert sorted(p.name for p in left.parent.iterdir()) == ["README.md", "generator", "pipeline.json", "tokenizer"]


# ---- codes as others keep them

def codes_for(layout):
    vocab = (16, 300) if layouts[layout].many_levels else (300,)
    codes = np.stack([np.random.default_rng(0).integers(0, v, (6, 1, 4)) for v in vocab], -1)
    return ArrayCodes(codes, np.arange(6) % 3, vocab, (2, 2), classes=("a", "b", "c"))


@pytest.mark.parametrize("layout", sorted(layouts))
def test_an_export_has_one_owner_and_sweeps(layout, tmp_path):
    out, codes = tmp_path / "x_codes", codes_for(layout)
    targets = layouts[layout].targets(out, "train")
    def second(n):
        with pytest.raises(Mismatch, match="is in use by this process"): export_codes(codes, layout, out)
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): export_codes(codes, layout, out, callback=second)
    for p in targets:
        assert not p.exists()
        core.aside_dir(p.parent, p.name)                                        # as of a kill
        (p.parent / f".{p.name}.0123abcd.part").mkdir()                         # and as it was called before
    export_codes(codes, layout, out)
    assert all(p.is_dir() for p in targets) and not list(tmp_path.rglob(".*"))


def test_a_store_that_is_converted_has_one_owner(tmp_path):
    codes, place = codes_for("halton"), tmp_path / "store"
    with locked(place, ".lock", "path"):
        with pytest.raises(Mismatch, match="is in use"): convert(codes, place, tokenizer="t")
    convert(codes, place, tokenizer="t", shard_size=2)
    (place / ".00001.codes.0123abcd.part.codes").write_bytes(b"half")
    assert len(convert(codes, place, tokenizer="t", shard_size=2)) == 6
    assert not list(place.glob(".*"))


def test_a_folder_that_appears_meanwhile_is_not_written_into(tmp_path):
    with pytest.raises(BadInput, match="already exists"):
        with folder_aside(tmp_path / "x") as aside:
            (aside / "mine").write_text("mine")
            (tmp_path / "x").mkdir()
    assert list(tmp_path.iterdir()) == [tmp_path / "x"] and not list((tmp_path / "x").iterdir())


# ---- one way to do a thing

def test_progress_is_shown_and_work_is_launched_in_one_way():
    own = [p for folder in ("vgnb", "scripts") for p in (ROOT / folder).rglob("*.py")]
    bars = sorted(p.name for p in own if "import tqdm" in p.read_text())
    assert bars == ["downloads.py", "progress.py"]         # huggingface_hub tells a class of tqdm's what has arrived
    assert [p.name for p in own if "torch.distributed.run" in p.read_text()] == ["launch.py"]
