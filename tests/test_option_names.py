"""What is wrong on a command line is said of the option that was typed, not of an argument further in."""
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from tests.run_scripts import main_of as script
from vgnb.cli import run_main, typed_cli
from vgnb.core import BadInput

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "vgnb" / "weights" / "tiny"
CODER = f"--tokenizer {TINY}/tokenizer"
FOUR = "shapes://?n=4"
JUDGE = "--extractor shapes-judge"


WRONG = [      # X is the wrong place
    ("tokenizer", "extract_codes.py", f"--tokenizer X --data {FOUR} --out o --size 32"),
    ("data", "extract_codes.py", f"{CODER} --data X --out o --size 32"),
    ("data", "train_generator.py", "shapes-generator --data X --out g --steps 1"),
    ("data", "train_tokenizer.py", "shapes-tokenizer --data X --out t --steps 1 --free-steps 0"),
    ("tokenizer", "sample.py", f"--tokenizer X --generator {TINY}/randar/generator --out s.npz --count 1"),
    ("generator", "sample.py", f"{CODER} --generator X --out s.npz --count 1"),
    ("pipeline", "sample.py", "X --out s.npz --count 1"),
    ("inpaint", "sample.py", "tiny-randar --inpaint X --mask m.png --out s.npz --count 1"),
    ("reference", "evaluate.py", f"X {FOUR} {JUDGE}"),
    ("samples", "evaluate.py", f"{FOUR} X {JUDGE}"),
    ("weights", "evaluate.py", f"{FOUR} {FOUR} --weights X"),
    ("images", "extract_reference.py", f"X --out r.npz {JUDGE}"),
    ("pipeline", "search_guidance.py", f"X {FOUR}"),
    ("reference", "search_guidance.py", "tiny-randar X"),
    ("source", "export_images.py", "X x")]


@pytest.mark.parametrize("place", ["nowhere", "file.txt", "empty"])
@pytest.mark.parametrize("option, name, words", WRONG, ids=[f"{n}-{o}" for o, n, _ in WRONG])
def test_a_wrong_place_is_said_of_its_option(tmp_path, monkeypatch, capsys, option, name, words, place):
    monkeypatch.chdir(tmp_path)
    Path("file.txt").write_text("x")
    Path("empty").mkdir()
    assert run_main(script(name), [place if word == "X" else word for word in words.split()]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith((f"{option}={place}: ", f"{option}='{place}': ", f"{option}={tmp_path / place}: ")), err


@pytest.mark.parametrize("name, words", [
    ("extract_codes.py", f"{CODER} --data {FOUR} --size 32 --out file.txt"),
    ("train_tokenizer.py", f"shapes-tokenizer --data {FOUR} --steps 1 --free-steps 0 --out file.txt"),
    ("train_tokenizer.py", f"shapes-tokenizer --data {FOUR} --steps 1 --free-steps 0 --out file.txt/b"),
    ("sample.py", "tiny-randar --count 1 --out file.txt/s.npz"),
    ("extract_reference.py", f"{FOUR} {JUDGE} --out file.txt/r.npz")])
def test_a_place_that_cannot_be_written_is_out(tmp_path, monkeypatch, capsys, name, words):
    monkeypatch.chdir(tmp_path)
    Path("file.txt").write_text("x")
    assert run_main(script(name), words.split()) == 2
    assert capsys.readouterr().err.startswith("out=")
    assert Path("file.txt").read_text() == "x"


def test_a_file_in_a_folder_is_said_of_the_folders_option(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("codes").mkdir()
    Path("codes/index.json").write_text("torn")
    assert run_main(script("train_generator.py"), "shapes-generator --data codes --out g --steps 1".split()) == 2
    assert capsys.readouterr().err.startswith("data=codes/index.json: ")


def test_what_a_run_began_with_is_said_of_the_field_that_differs(tmp_path, monkeypatch, capsys):
    "`disc_loss` holds the same word as the `gen_loss` that was changed; nothing is wrong with it."
    monkeypatch.chdir(tmp_path)
    words = f"shapes-tokenizer --data {FOUR} --steps 1 --free-steps 0 --batch 2 --out t".split()
    words += "--model.width 8 --model.groups 4".split()
    words += "--loss.disc-loss hinge --loss.gen-loss".split()
    assert run_main(script("train_tokenizer.py"), [*words, "non-saturating"]) == 0
    capsys.readouterr()
    assert run_main(script("train_tokenizer.py"), [*words, "hinge"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("loss.gen_loss='hinge': the run in t") and "started with 'non-saturating'" in said


@dataclass
class Loss:
    gen_loss: Literal["hinge", "lecam"] = "hinge"
    disc_loss: Literal["hinge", "lecam"]|None = "hinge"


@dataclass
class Options:
    data: str = "runs/x"
    loss: Loss = field(default_factory=Loss)


@pytest.mark.parametrize("argument, value, said", [
    ("loss.gen_loss", "hinge", "loss.gen_loss"),
    ("gen_loss", "hinge", "gen_loss"),
    ("word", "hinge", "word"),
    ("model.start", "runs/x", "model.start"),
    ("codes", "runs/x", "data")])
def test_a_choice_is_not_told_of_another_option(argument, value, said, capsys):
    def main(argv):
        typed_cli(Options, args=argv)
        raise BadInput(argument, value, "is wrong")
    assert run_main(main, []) == 2
    assert capsys.readouterr().err == f"{said}='{value}': is wrong\n"
