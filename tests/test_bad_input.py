"""Bad input gets one error that names the argument, the value and what is allowed, before any work starts.

The table in bad_input.py, by hand and through the scripts.
"""
import io
import json
import os
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
OWNER = """
import sys
from vgnb.places import locked
with locked(sys.argv[1]):
    print('holds it', flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    torch.set_num_threads(1)
    w = build(tmp_path_factory.mktemp("bad"))
    words = [sys.executable, "-c", OWNER, str(w.folder / "busy")]
    owner = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "holds it\n"
    yield w
    owner.communicate(timeout=30)


@pytest.fixture(scope="module")
def scripts(work):
    return Scripts(work.folder)


def listing(folder) -> dict[str, tuple]:
    "Every folder, and every file by its inode, size and last change: reading all of it anew costs each test 50 ms."
    found = {}
    for entry in os.scandir(folder):
        stat = entry.stat(follow_symlinks=False)
        found[entry.path] = () if entry.is_dir(follow_symlinks=False) else (stat.st_ino, stat.st_size, stat.st_ctime_ns)
        if entry.is_dir(follow_symlinks=False): found |= listing(entry.path)
    return found


@pytest.fixture
def untouched(work, monkeypatch):
    "Whatever happens in the test, no file of the workplace changes."
    monkeypatch.chdir(work.folder)
    before = listing(work.folder)
    yield
    after = listing(work.folder)
    assert after == before, {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}


def keeps_promise(row: Bad, text: str) -> bool:
    "Whether an error's text is what the row promises."
    if row.words not in text: return False
    if row.value is not None: return row.start in text
    return f"{row.argument}=" in text or not row.argument


@pytest.mark.fault("F18")
@pytest.mark.parametrize("row", [r for r in ROWS if r.python], ids=lambda r: r.id)
def test_python(work, untouched, figures, row):
    ran = []

    def watch(module, inputs):
        if not list(module.children()): ran.append(module)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(watch)
    try:
        with pytest.raises(VgnbError) as e: row.python(work)
    finally: hook.remove()
    assert keeps_promise(row, str(e.value)), str(e.value)
    assert not ran, f"{len(ran)} layers were run first"
    figures(rows=1, named=1, computed=0)


@pytest.mark.fault("F18")
@pytest.mark.parametrize("row", [r for r in ROWS if r.command], ids=lambda r: r.id)
def test_script(work, scripts, untouched, figures, row):
    place, _, words = row.command.rpartition(": ")
    ran = scripts(*shlex.split(words), cwd=work.folder / place)
    assert ran.code == 2, ran
    lines = ran.err.splitlines()
    assert len(lines) == 1, ran.err
    assert keeps_promise(row.as_typed(), lines[0]), ran.err
    figures(rows=1, named=1, computed=0)


def test_the_table_is_wide():
    assert len(ROWS) == len({r.id for r in ROWS})
    assert sum(bool(r.command) for r in ROWS) >= 25
    assert sum(bool(r.python) for r in ROWS) >= 25


@pytest.mark.parametrize("words", [
    "sample.py pipe --picks.0.top-q 1",
    "sample.py pipe --order.noise 4.5",                           # a raster has no noise
    "sample.py pipe --order halton --order.warmup 2",
    "train_tokenizer.py shapes-tokenizer --step 3",
    "evaluate.py good.npz",
    "extract_codes.py --size many"])
def test_unknown_options_are_usage_errors(scripts, untouched, words):
    ran = scripts(*words.split())
    assert ran.code == 2, ran
    assert "Traceback" not in ran.err
    assert not ran.out


@pytest.mark.parametrize("words", [
    "sample.py pipe --picks.0.top-k -1 --out out/s.npz",
    *(pytest.param(words, marks=pytest.mark.full) for words in (
        "train_tokenizer.py vq-61",
        "evaluate.py good.npz objects.npz",
        "extract_codes.py --tokenizer gen --data shapes:// --out out",
        "train_generator.py shapes-generator --data pictures"))])
def test_plain_python_says_the_same(work, scripts, untouched, words):
    "What the forked runs of the table stand for: a fresh interpreter gives the same exit code, the same line, no more."
    name, *rest = words.split()
    plain = [sys.executable, ROOT / "scripts" / name, *rest]
    done = subprocess.run(plain, cwd=work.folder, capture_output=True, text=True, timeout=120)
    ran = scripts(name, *rest)
    assert (done.returncode, done.stdout, done.stderr) == (ran.code, ran.out, ran.err)
    assert ran.code == 2
    assert len(ran.err.splitlines()) == 1, ran.err


# ---- a picture that can't be read: the run stops with its name, or it is left out, counted and listed

@pytest.fixture(scope="module")
def spoilt(work) -> dict:
    "Twelve pictures, the eighth cut in the middle, in four kinds of places: {uri: what the eighth is called there}."
    room = work.folder / "spoilt"
    files = {}                                                                  # picture's name -> (its bytes, label)
    for i in range(12):
        whole = io.BytesIO()
        work.source[i].image.save(whole, "png")
        data = whole.getvalue()
        files[f"{i:02}"] = (data[:len(data) // 2] if i == 7 else data, i // 6)

    with tarfile.open(_made(room / "photos.tar"), "w") as tar:
        for name, (data, label) in files.items(): _add(tar, f"{'ab'[label]}/{name}.png", data)
    with tarfile.open(_made(room / "shards" / "x-0.tar"), "w") as shard:
        for name, (data, label) in files.items():
            _add(shard, f"{name}.png", data)
            _add(shard, f"{name}.cls", str(label).encode())
    for name, (data, label) in files.items(): _made(room / "photos" / "ab"[label] / f"{name}.png").write_bytes(data)
    _table(list(files.values())).to_parquet(room / "photos.parquet")
    return {"spoilt/photos": "b/07.png",
            "spoilt/photos.tar": "b/07.png",
            "wds://spoilt/shards": "x-0.tar:07",
            "datasets://spoilt/photos.parquet": "row 7"}


def _table(files: list[tuple[bytes, int]]) -> datasets.Dataset:
    "Pictures and labels as a table whose pictures are not looked at."
    columns = {"image": [{"bytes": data, "path": None} for data, _ in files], "label": [label for _, label in files]}
    data = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    raw = datasets.Features(image=data, label=datasets.Value("int64"))
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    return datasets.Dataset.from_dict(columns, features=raw).cast(features)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _add(tar, name: str, data: bytes):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


CODES_OF = ["extract_codes.py", "--tokenizer", "tok", "--size", 32, "--data"]
TRAINED_ON = ["train_tokenizer.py", "run/run.json", "--batch", 12, "--data"]

def stops_or_leaves_out(scripts, words: list, name: str):
    "The script stops at the spoilt picture `name`, and leaves it out where one may be bad. Returns the second run."
    stopped = scripts(*words)
    assert stopped.code == 2, stopped
    assert len(stopped.err.splitlines()) == 1, stopped
    assert stopped.err.startswith(f"{name}: cannot be decoded: "), stopped
    finished = scripts(*words, "--max-bad", 1)
    assert finished.code == 0, finished
    assert finished.err.startswith(f"left out: {name}: cannot be decoded: "), finished
    return finished


def test_extraction_stops_or_leaves_out(work, scripts, spoilt, monkeypatch):
    monkeypatch.chdir(work.folder)
    stores = []
    for n, (uri, name) in enumerate(spoilt.items()):
        out = Path(f"spoilt/codes{n}")
        words = [*CODES_OF, uri, "--out", out, "--workers", n % 2]
        ran = stops_or_leaves_out(scripts, words, name)
        assert "11 pictures, 1 left out" in ran.out, ran
        assert json.loads((out / "run.json").read_text())["left_out"] == [7]
        stores.append(CodeStore(out))
        assert stores[-1].absent.tolist() == [7]

    codes = [store.batch(range(11))[0] for store in stores]
    assert all(torch.equal(c, codes[0]) for c in codes)
    assert all(store.labels.tolist() == [0] * 6 + [1] * 5 for store in stores)


def test_a_stopped_extraction_leaves_no_store(work, scripts, spoilt):
    assert scripts(*CODES_OF, "spoilt/photos", "--out", "spoilt/none").code == 2
    assert not (work.folder / "spoilt/none/index.json").exists()


def test_training_stops_or_leaves_out(work, scripts, spoilt, monkeypatch):
    monkeypatch.chdir(work.folder)
    losses = []
    for n, (uri, name) in enumerate(spoilt.items()):
        out = Path(f"spoilt/run{n}")
        words = [*TRAINED_ON, uri, "--out", out, "--workers", n % 2, "--log-every", 1]
        ran = stops_or_leaves_out(scripts, words, name)
        assert len(ran.err.splitlines()) == 1, ran
        card = json.loads((out / "model/config.json").read_text())
        assert card["left_out"] == [name]
        assert card["step"] == 2
        log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        losses.append([record["tokenizer.loss"] for record in log])
    assert len(losses[0]) == 2
    assert all(found == losses[0] for found in losses), losses


def test_a_stopped_training_leaves_no_weights(work, scripts, spoilt):
    assert scripts(*TRAINED_ON, "spoilt/photos", "--out", "spoilt/untrained").code == 2
    assert not list((work.folder / "spoilt/untrained").rglob("*.safetensors"))
