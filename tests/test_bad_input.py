"""Bad input gets one error that names the argument, the value and what is allowed, before any work starts: the table in bad_input.py, by hand and through the scripts."""
import hashlib
import io
import json
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import pytest
import torch

from tests.bad_input import ROWS, Bad, build
from tests.run_scripts import Scripts
from vgnb.core import VgnbError
from vgnb.data.codes import CodeStore

ROOT = Path(__file__).resolve().parents[1]
OWNER = "import sys; from vgnb.training.run_folder import locked\nwith locked(sys.argv[1]): print('holds it', flush=True); sys.stdin.read()"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    torch.set_num_threads(1)
    w = build(tmp_path_factory.mktemp("bad"))
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(w.folder / "busy")], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "holds it\n"
    yield w
    owner.communicate(timeout=30)


@pytest.fixture(scope="module")
def scripts(work):
    runner = Scripts(work.folder)
    yield runner
    runner.close()


def listing(folder) -> dict:
    "Every file's content and every folder."
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for p in sorted(folder.rglob("*"))}


@pytest.fixture
def untouched(work, monkeypatch):
    "Whatever happens in the test, no file of the workplace changes."
    monkeypatch.chdir(work.folder)
    before = listing(work.folder)
    yield
    after = listing(work.folder)
    assert after == before, {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}


def says(row: Bad, text: str) -> bool:
    "Whether an error's text is what the row promises."
    return (row.start in text if row.value is not None else f"{row.argument}=" in text or not row.argument) and row.words in text


@pytest.mark.parametrize("row", [r for r in ROWS if r.python], ids=lambda r: r.id)
def test_python(work, untouched, row):
    ran = []
    watch = torch.nn.modules.module.register_module_forward_pre_hook(lambda m, inputs: ran.append(m) if not list(m.children()) else None)
    try:
        with pytest.raises(VgnbError) as e: row.python(work)
    finally: watch.remove()
    assert says(row, str(e.value)), str(e.value)
    assert not ran, f"{len(ran)} layers were run first"


@pytest.mark.parametrize("row", [r for r in ROWS if r.command], ids=lambda r: r.id)
def test_script(work, scripts, untouched, row):
    place, _, words = row.command.rpartition(": ")
    ran = scripts(*shlex.split(words), cwd=work.folder / place)
    assert ran.code == 2, ran
    lines = ran.err.splitlines()
    assert len(lines) == 1 and says(row, lines[0]), ran.err


def test_the_table_is_wide():
    assert len(ROWS) == len({r.id for r in ROWS}) >= 25 and sum(bool(r.command) for r in ROWS) >= 25 and sum(bool(r.python) for r in ROWS) >= 25


@pytest.mark.parametrize("words", ["sample.py pipe --sampling.top-q 1", "train_tokenizer.py shapes-tokenizer --step 3", "evaluate.py good.npz", "extract_codes.py --size many"])
def test_unknown_options_are_usage_errors(scripts, untouched, words):
    ran = scripts(*words.split())
    assert ran.code == 2 and "Traceback" not in ran.err and not ran.out


@pytest.mark.parametrize("words", ["sample.py pipe --sampling.top-k -1 --out out/s.npz", "train_tokenizer.py vq-61", "evaluate.py good.npz objects.npz", "extract_codes.py --tokenizer gen --data shapes:// --out out",
                                   "train_generator.py shapes-generator --data pictures"])
def test_plain_python_says_the_same(work, scripts, untouched, words):
    "What the forked runs of the table stand for: a fresh interpreter gives the same exit code and the same line, and nothing else."
    name, *rest = words.split()
    done = subprocess.run([sys.executable, ROOT / "scripts" / name, *rest], cwd=work.folder, capture_output=True, text=True, timeout=120)
    ran = scripts(name, *rest)
    assert (done.returncode, done.stdout, done.stderr) == (ran.code, ran.out, ran.err) and ran.code == 2 and len(ran.err.splitlines()) == 1, done.stderr


# ---- a picture that can't be read: the run stops with its name, or it is left out, counted and listed

@pytest.fixture(scope="module")
def spoilt(work) -> dict:
    "The same twelve pictures, the eighth cut off in the middle, in four kinds of places: {uri: what the eighth is called there}."
    room = work.folder / "spoilt"
    table = {"image": [], "label": []}
    with tarfile.open(_made(room / "photos.tar"), "w") as tar, tarfile.open(_made(room / "shards" / "x-0.tar"), "w") as shard:
        for i in range(12):
            png = io.BytesIO(); work.source[i].image.save(png, "png")
            data, label = png.getvalue()[:len(png.getvalue()) // 2 if i == 7 else None], i // 6
            _made(room / "photos" / "ab"[label] / f"{i:02}.png").write_bytes(data)
            _add(tar, f"{'ab'[label]}/{i:02}.png", data)
            _add(shard, f"{i:02}.png", data); _add(shard, f"{i:02}.cls", str(label).encode())
            table["image"].append({"bytes": data, "path": None}); table["label"].append(label)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    raw = datasets.Features(image={"bytes": datasets.Value("binary"), "path": datasets.Value("string")}, label=datasets.Value("int64"))
    datasets.Dataset.from_dict(table, features=raw).cast(features).to_parquet(room / "photos.parquet")
    return {"spoilt/photos": "b/07.png", "spoilt/photos.tar": "b/07.png", "wds://spoilt/shards": "x-0.tar:07", "datasets://spoilt/photos.parquet": "row 7"}


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _add(tar, name: str, data: bytes):
    info = tarfile.TarInfo(name); info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_extraction_stops_or_leaves_out(work, scripts, spoilt, monkeypatch):
    monkeypatch.chdir(work.folder)
    stores = []
    for n, (uri, name) in enumerate(spoilt.items()):
        words = ["extract_codes.py", "--tokenizer", "tok", "--size", 32, "--data", uri, "--out", f"spoilt/codes{n}", "--workers", n % 2]
        ran = scripts(*words)
        assert ran.code == 2 and len(ran.err.splitlines()) == 1 and ran.err.startswith(f"{name}: cannot be decoded: "), ran
        assert not (work.folder / f"spoilt/codes{n}/index.json").exists()
        ran = scripts(*words, "--max-bad", 1)
        assert ran.code == 0 and ran.err.startswith(f"left out: {name}: cannot be decoded: ") and "11 pictures, 1 left out" in ran.out, ran
        stores.append(CodeStore(work.folder / f"spoilt/codes{n}"))
        assert stores[-1].absent.tolist() == [7] == json.loads((work.folder / f"spoilt/codes{n}/run.json").read_text())["left_out"]
    codes = [s.batch(range(11))[0] for s in stores]
    assert all(torch.equal(c, codes[0]) for c in codes) and all(s.labels.tolist() == [0] * 6 + [1] * 5 for s in stores)


def test_training_stops_or_leaves_out(work, scripts, spoilt, monkeypatch):
    monkeypatch.chdir(work.folder)
    losses = []
    for n, (uri, name) in enumerate(spoilt.items()):
        words = ["train_tokenizer.py", "run/run.json", "--data", uri, "--batch", 12, "--out", f"spoilt/run{n}", "--workers", n % 2, "--log-every", 1]
        ran = scripts(*words)
        assert ran.code == 2 and len(ran.err.splitlines()) == 1 and ran.err.startswith(f"{name}: cannot be decoded: "), ran
        assert not list((work.folder / f"spoilt/run{n}").rglob("*.safetensors"))
        ran = scripts(*words, "--max-bad", 1)
        assert ran.code == 0 and len(ran.err.splitlines()) == 1 and ran.err.startswith(f"left out: {name}: cannot be decoded: "), ran
        card = json.loads((work.folder / f"spoilt/run{n}/model/config.json").read_text())
        assert card["left_out"] == [name] and card["step"] == 2
        losses.append([json.loads(line)["tokenizer.loss"] for line in (work.folder / f"spoilt/run{n}/log.jsonl").read_text().splitlines()])
    assert len(losses[0]) == 2 and losses[0] == losses[1] == losses[2] == losses[3], losses
