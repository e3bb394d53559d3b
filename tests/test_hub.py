"A saved model's card, and its way to the hub and back: the hub is a folder here."
import json
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch

from vgnb import zoo
from vgnb.core import BadInput, Mismatch, Missing, load_card, save_json
from vgnb.hub import upload
from vgnb.model_cards import MARK, read_numbers
from vgnb.pipeline import from_pretrained, read_card
from vgnb.shipped import open_part

REPORT = {"values": {"fid": 2.776}, "notes": ["a note"],
          "protocol": {"count": 1000, "reference": "shapes adm 32", "reference_count": 5000, "reference_size": [32, 32],
                       "extractor": "shapes-judge@3f9a", "labels": "100 of each of 10", "seed": 0,
                       "sampler": {"steps": 22, "guidance": {"kind": "guidance.cfg", "scale": 3.0}}}}


class FakeApi:
    "As much of the hub's interface as one commit needs."
    home, commits, error = None, [], None

    def __init__(self, endpoint=None): pass

    def create_repo(self, name, private=None, exist_ok=False):
        if FakeApi.error: raise FakeApi.error
        assert exist_ok
        (FakeApi.home / name).mkdir(parents=True, exist_ok=True)

    def create_commit(self, name, operations, commit_message):
        FakeApi.commits.append((name, commit_message))
        for add in operations:
            place = FakeApi.home / name / add.path_in_repo
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(add.path_or_fileobj, place)


def snapshot(name, allow_patterns, endpoint=None):
    copy = FakeApi.home / "copies" / name
    for file in (FakeApi.home / name).rglob("*"):
        if not any(fnmatch(file.name, p) for p in allow_patterns): continue
        place = copy / file.relative_to(FakeApi.home / name)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    return str(copy)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    FakeApi.home, FakeApi.commits, FakeApi.error = tmp_path / "hub", [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return FakeApi.home


def files(folder):
    "Every file below a folder, but what says where it lies."
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if name != "README.md"}, "README.md" in found


def same(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_pipeline_goes_to_the_hub_and_comes_back(hub, tmp_path):
    pipe = from_pretrained("tiny-randar")
    sent = pipe.push_to_hub("me/tiny", licence="apache-2.0", numbers=[REPORT], message="the first")
    saved = pipe.save_pretrained(tmp_path / "here", licence="apache-2.0", numbers=[REPORT])
    assert files(hub / "me/tiny") == files(saved) and sent.size == sum(sent.files.values())
    assert sent.files.keys() == {"README.md", "pipeline.json", *(f"{part}/{file}" for part in ("tokenizer", "generator")
                                 for file in ("config.json", "model.safetensors"))}
    assert FakeApi.commits == [("me/tiny", "the first")] and "huggingface.co/me/tiny" in sent.url

    back = from_pretrained("me/tiny")
    assert same(back.generator, pipe.generator) and same(back.tokenizer, pipe.tokenizer)
    assert (back.sampling, back.classes, back.grid) == (pipe.sampling, pipe.classes, pipe.grid)
    assert back.about["licence"] == "apache-2.0" and back.about["numbers"][0]["values"] == {"fid": 2.776}
    again = back.save_pretrained(tmp_path / "again")
    assert files(again) == files(saved), "what is stated survives, and the bytes are the same"
    assert re.sub(r'"\S+again"', "", (again / "README.md").read_text()).count("fid 2.776") == 1


def test_a_part_goes_alone(hub):
    tokenizer = open_part("tiny-iar2", "tokenizer")
    assert tokenizer.push_to_hub("me/codes").files.keys() == {"README.md", "config.json", "model.safetensors"}
    assert same(open_part("hf://me/codes", "tokenizer"), tokenizer)
    assert 'open_part("hf://me/codes", "tokenizer")' in (hub / "me/codes/README.md").read_text()
    with pytest.raises(Mismatch, match="which is no generator"): open_part("hf://me/codes", "generator")


def test_a_dry_run_sends_nothing_and_needs_no_login(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    would = from_pretrained("tiny-randar").push_to_hub("me/tiny", dry_run=True)
    assert not hub.exists() and not would.url and "generator/model.safetensors" in str(would)
    assert "a dry run" in repr(would) and "README.md" in would._repr_html_()


def answer(status):
    error = OSError("no")
    error.response = SimpleNamespace(status_code=status)
    return error


@pytest.mark.parametrize("error, words", [
    (answer(401), "does not know this login"), (answer(403), "does not let this login write"),
    (answer(500), "answered with 500"), (ConnectionError("down"), r"could not be reached \(ConnectionError\)")])
def test_what_the_hub_refuses_is_said(hub, error, words):
    FakeApi.error = error
    with pytest.raises(Missing, match=f"name='me/codes': the hub {words}"):
        open_part("tiny-randar", "tokenizer").push_to_hub("me/codes")


def test_what_is_wrong_is_said_before_anything_is_saved(hub, monkeypatch):
    pipe = from_pretrained("tiny-randar")
    monkeypatch.setattr("vgnb.pipeline.save_model", None)       # would raise
    for name in ("tiny", "a/b/c", "a b/c", "me/a--b", 7):
        with pytest.raises(BadInput, match="name=.*must be owner/name"): pipe.push_to_hub(name, dry_run=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="HF_HUB_OFFLINE=1: is set"): pipe.push_to_hub("me/tiny")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(Missing, match="login=None: .*hf auth login"): pipe.push_to_hub("me/tiny")


def test_a_card_tells_what_was_measured_how(tmp_path):
    pipe = from_pretrained("tiny-maskgit")
    save_json(tmp_path / "metrics.json", REPORT)
    text = (pipe.save_pretrained(tmp_path / "p", summary="Shapes | lines\nof <b>.", numbers=[tmp_path / "metrics.json"])
            / "README.md").read_text()
    front, body = text.split("---\n")[1:3]
    assert "library_name: vgnb" in front and "license" not in front and "- masked" in front
    assert f'vgnb.from_pretrained("{tmp_path / "p"}")' in body and "python scripts/train_tiny.py maskgit" in body
    row = next(line for line in body.splitlines() if "fid 2.776" in line)
    told = ("1,000", "100 of each of 10", "seed 0", "shapes adm 32 (5,000 pictures, 32x32 px)", "22 steps", "cfg 3.0")
    assert not [word for word in told if word not in row]
    assert "Note: a note." in body and "tokenizer: not stated" in body and "| order |" in body
    with pytest.raises(Mismatch, match="numbers=.*with the protocol"):
        pipe.save_pretrained(tmp_path / "other", numbers=[{"fid": 2.7}])
    assert not (tmp_path / "other").exists()

    card = load_card(tmp_path / "p" / "pipeline.json")
    for odd in ({"licence": 3}, {"owner": "me"}, [1], {"numbers": [{"fid": 2}]}):
        plain = {k: v for k, v in card.items() if k != "seal"} | {"about": odd}
        (tmp_path / "p" / "pipeline.json").write_text(json.dumps(plain))
        with pytest.raises(Mismatch, match="strange entry: about"): from_pretrained(tmp_path / "p")


def test_what_authors_state_is_on_the_card():
    about = zoo.table()["RAR-XL"].about
    assert about["licence"] == "Apache-2.0" and "1.50" in about["result"]
    assert "train_generator.py rar-xl" in about["made"]


def test_a_page_written_by_hand_stays(tmp_path, capsys):
    pipe = from_pretrained("tiny-randar")
    whole, part = tmp_path / "pipe", tmp_path / "part"
    saves = {whole: lambda: pipe.save_pretrained(whole), part: lambda: pipe.tokenizer.save_pretrained(part)}
    for folder, save in saves.items():
        save()
        text = (folder / "README.md").read_text()
        assert text.startswith("---\n") and text.count(MARK) == 1
        (folder / "README.md").write_text(text.replace("## Parts", "## Old"))
        save()
        assert (folder / "README.md").read_text() == text and not capsys.readouterr().err, "its own page is replaced"
        (folder / "README.md").write_text("# Mine\n")
        save()
        assert (folder / "README.md").read_text() == "# Mine\n"
        assert capsys.readouterr().err.count(f"{folder / 'README.md'}: was not written by vgnb") == 1
    (whole / "tokenizer" / "README.md").write_text("# Codes\n")
    pipe.save_pretrained(whole)
    assert (whole / "tokenizer" / "README.md").read_text() == "# Codes\n"
    assert same(from_pretrained(whole).generator, pipe.generator)


def changed(**protocol):
    "The report with other entries of its protocol."
    return REPORT | {"protocol": REPORT["protocol"] | protocol}


def test_a_strangers_card_opens_nothing(tmp_path):
    folder = from_pretrained("tiny-randar").save_pretrained(tmp_path / "p")
    card = load_card(folder / "pipeline.json")
    save_json(tmp_path / "metrics.json", REPORT)
    path = str(tmp_path / "metrics.json")
    odd = [path, [path], ["/no/such/file"], REPORT, 3, [3], [None], [[REPORT]], [REPORT | {"values": [1]}],
           [REPORT | {"values": {"fid": 10 ** 400}}], [REPORT | {"notes": "ab"}], [REPORT | {"notes": [1]}],
           [REPORT | {"notes": None}], [REPORT | {"protocol": None}], [changed(count="1000")], [changed(count=True)],
           [changed(reference=[1])], [changed(extractor=None)], [changed(reference_count="5")],
           [changed(reference_size=5)]]
    for numbers in odd:
        plain = {k: v for k, v in card.items() if k != "seal"} | {"about": {"numbers": numbers}}
        (folder / "pipeline.json").write_text(json.dumps(plain))
        with pytest.raises(Mismatch, match="strange entry: about"): read_card(folder)


def test_what_cannot_be_told_costs_nothing(tmp_path):
    pipe = from_pretrained("tiny-randar")
    saves = {tmp_path / "pipe": pipe.save_pretrained, tmp_path / "part": pipe.tokenizer.save_pretrained}
    wrong = [({"numbers": [changed(count="1000")]}, "numbers=.*protocol.count must be an integer"),
             ({"numbers": [3]}, "numbers=.*must be a record"), ({"summary": "\ud800"}, "card=.*UTF-8"),
             ({"summary": 3}, "summary=3: must be a string"), ({"licence": ["mit"]}, "licence=.*must be a string")]
    for folder, save in saves.items():
        save(folder)
        before = {p: (p.read_bytes(), p.stat().st_ino) for p in folder.rglob("*") if p.is_file()}
        for about, words in wrong:
            with pytest.raises(BadInput, match=words): save(folder, **about)
        if folder.name == "pipe":
            with pytest.raises(BadInput, match="value=.*can't be written as JSON"):
                save(folder, numbers=[REPORT | {"values": {"fid": object()}}])
        assert {p: (p.read_bytes(), p.stat().st_ino) for p in folder.rglob("*") if p.is_file()} == before


def test_a_measurement_stays_as_its_owner_holds_it():
    record = SimpleNamespace(values={"fid": 2.0}, notes=[], protocol=SimpleNamespace(**REPORT["protocol"]))
    mapping = {"values": {"fid": 2.0}, "protocol": SimpleNamespace(**REPORT["protocol"])}
    assert read_numbers(changed(count=np.int64(1000)))[0]["protocol"] == REPORT["protocol"], "numpy's integers are some"
    read = read_numbers([record, mapping])
    assert read[0] == read[1] and read[0]["protocol"] == REPORT["protocol"]
    read[0]["values"]["fid"] = 1.0
    assert type(record.protocol) is type(mapping["protocol"]) is SimpleNamespace and record.values == {"fid": 2.0}


def test_what_is_hidden_stays_and_links_are_refused(tmp_path):
    folder = open_part("tiny-randar", "tokenizer").save_pretrained(tmp_path / "part")
    for hidden in (".git", ".cache/deep"): (folder / hidden).mkdir(parents=True)
    for file in (".env", ".git/config", ".cache/deep/secret"): (folder / file).write_text("secret")
    (folder / ".cache" / "link").symlink_to(tmp_path)
    would = upload(folder, "me/codes", dry_run=True)
    assert would.files.keys() == {"README.md", "config.json", "model.safetensors"}
    (tmp_path / "away").mkdir()
    for name, target in {"key": folder / ".env", "more": tmp_path / "away"}.items(): (folder / name).symlink_to(target)
    with pytest.raises(Mismatch, match="folder=.*links to others: key, more"):
        upload(folder, "me/codes", dry_run=True)
