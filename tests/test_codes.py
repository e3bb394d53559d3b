"Code stores: killed writers, concurrent writers, damaged files, and published layouts."
import functools
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import vgnb.core
from vgnb.core import BadInput, BadItem, Mismatch, Missing, VgnbError, digest, load_json, save_json
from vgnb.data.codes import ArrayCodes, CodePlan, CodeStore, CodeWriter, augmentation
from vgnb.data.layouts import convert, export_codes, layouts, store_from

SCALE = Path(__file__).parents[1] / "scripts" / "studies" / "data_scale.py"
PLAN = CodePlan(vocab=(16, 300), grid=(2, 3), total=103, tokenizer="t" * 64, augs=("center", "flip"),
                classes=("a", "b", "c"), shard_size=10)
BAD = (7, *range(40, 50))      # one bad image, and a whole shard of them


def codes_of(i):
    g = np.random.default_rng(i)
    return np.stack([g.integers(0, v, (2, 2, 3)) for v in PLAN.vocab], -1)


def extract(path, rank=0, world=1, plan=PLAN):
    writer = CodeWriter(path, plan, rank, world)
    for shard in writer.todo():
        ids = [i for i in writer.span(shard) if i not in BAD]
        codes = np.stack([codes_of(i) for i in ids]) if ids else np.zeros((0, 2, 2, 3, 2), int)
        writer.write(shard, codes, [i % 3 for i in ids], ids)
    return writer


def complete(path): extract(path).finish()
def contents(folder): return {p.name: p.read_bytes() for p in folder.iterdir()}


def in_child(f):
    "Run `f` in a forked child; its exit status."
    pid = os.fork()
    if pid == 0:
        try: f()
        except BaseException: os._exit(1)
        os._exit(0)
    return pid


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("codes") / "whole"
    extract(path).finish()
    return path


def test_rows_come_back_as_they_were_written(whole):
    store = CodeStore(whole, tokenizer="t" * 64)
    assert len(store) == 103 - len(BAD)
    assert store.absent.tolist() == list(BAD)
    for row, (codes, label, id) in enumerate(store):
        assert torch.equal(codes, torch.from_numpy(codes_of(id)).reshape(2, 6, 2))
        assert (label, id) == (id % 3, store.ids[row])

    rows, aug = torch.randperm(len(store)), torch.arange(len(store)) % 2
    x, y = store.batch(rows, aug)
    assert x.dtype == y.dtype == torch.int64
    assert y.tolist() == (store.ids[rows] % 3).tolist()
    assert all(torch.equal(a, store[int(r)][0][k]) for a, r, k in zip(x, rows, aug))
    assert sum(int(u.sum()) for u in store.usage()) == len(store) * 2 * 6 * 2


def test_ids_and_rows_find_each_other_without_a_table(whole):
    "An image is missing, and a whole shard; few shards stay mapped, and none is before it is asked for."
    store = CodeStore(whole, verify=False)
    assert not store.views.kept and store.absent.tolist() == sorted(BAD)
    ids = np.array([i for i in range(103) if i not in BAD])
    order = np.random.default_rng(0).permutation(len(ids))
    assert store.ids_at(order).tolist() == ids[order].tolist() and int(store.ids_at(5)) == ids[5]
    assert store.find(ids[order]).tolist() == order.tolist()
    assert store.find([*BAD, -1, 103, 10 ** 9]).tolist() == [-1] * (len(BAD) + 3)
    assert store.ids.tolist() == ids.tolist() and store.labels.tolist() == (ids % 3).tolist()

    codes, labels = store.batch(order)
    store.views.most, store.views.kept = 2, type(store.views.kept)()
    for k in range(0, len(order), 7):
        again, those = store.batch(order[k:k + 7])
        assert torch.equal(again, codes[k:k + 7]) and torch.equal(those, labels[k:k + 7])
        assert len(store.views.kept) == 2


@pytest.mark.full
def test_ten_million_rows_are_opened_and_read_without_being_held(tmp_path):
    "As `scripts/studies/data_scale.py` measures it, in a process of its own."
    plan = CodePlan((16384,), (2, 2), 10_000_000, "made up", shard_size=16384)
    writer = CodeWriter(tmp_path / "store", plan)
    for k in writer.todo():
        ids = np.arange(writer.span(k).start, writer.span(k).stop)
        writer.write(k, (ids[:, None] + np.arange(4)) % 16384, ids % 10, ids)
    writer.finish()
    told = json.dumps({"folder": str(tmp_path / "store"), "verify": False, "batches": 100})
    done = subprocess.run([sys.executable, SCALE, "--work", told],
                          check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["tables_mb"] > 150 and found["own_mb"] < 4 and found["own_after_mb"] < 16, found
    store = CodeStore(tmp_path / "store", verify=False)
    rows = np.random.default_rng(0).integers(0, len(store), 300)
    codes, labels = store.batch(rows)
    assert (codes[..., 0].numpy() == (rows[:, None] + np.arange(4)) % 16384).all()
    assert (labels.numpy() == rows % 10).all() and (store.find(rows) == rows).all()


def test_a_large_codebook_takes_32_bits(tmp_path):
    assert CodePlan((70_000,), (2,), 3, "t").dtype == np.uint32
    writer = CodeWriter(tmp_path / "s", CodePlan((2 ** 20,), (2,), 2, "t"))
    writer.write(0, torch.tensor([[[0, 2 ** 20 - 1]], [[65_536, 7]]]), [0, 0], [0, 1])
    writer.finish()
    assert CodeStore(tmp_path / "s").batch([0, 1])[0][..., 0].tolist() == [[0, 2 ** 20 - 1], [65_536, 7]]


def die_after(calls, monkeypatch, work):
    "Run `work` in a process that ends, as if killed, at its call number `calls` of fsync or rename; True when it was."
    left = [calls]

    def wrap(f):
        def call(*a, **k):
            left[0] -= 1
            if left[0] < 0: os._exit(9)
            return f(*a, **k)
        return call

    def child():
        monkeypatch.setattr(vgnb.core.os, "fsync", wrap(os.fsync))
        monkeypatch.setattr(vgnb.core.os, "replace", wrap(os.replace))
        work()

    status = os.waitstatus_to_exitcode(os.waitpid(in_child(child), 0)[1])
    assert status in (0, 9)
    return status == 9


@pytest.mark.full
def test_killed_at_every_system_call(whole, tmp_path, monkeypatch):
    "A run that dies at its k-th fsync or rename, for every k, is completed by the next one to the same bytes."
    for calls in range(99):
        path = tmp_path / f"{calls}"
        killed = die_after(calls, monkeypatch, functools.partial(complete, path))
        if not killed: break
        if not (path / "index.json").exists():
            with pytest.raises(BadInput): CodeStore(path)
        complete(path)
        assert contents(path) == contents(whole), calls
    assert calls == 3 * (1 + 11 + 1)                       # plan, shards and index: flush, rename, flush the folder


def test_killed_again_and_again(whole, tmp_path, monkeypatch):
    "Each process publishes one shard and dies in the next; one shard a life is all that is lost."
    path, lives = tmp_path / "store", 0
    extract(path, 1, 2)
    while die_after(4, monkeypatch, lambda: extract(path, 0, 2)): lives += 1
    assert lives == 5
    CodeWriter(path, PLAN).finish()
    assert contents(path) == contents(whole)


def test_processes_that_start_together(whole, tmp_path):
    path = tmp_path / "store"
    pids = [in_child(functools.partial(extract, path, rank, 4)) for rank in range(4)]
    assert [os.waitpid(p, 0)[1] for p in pids] == [0] * 4
    CodeWriter(path, PLAN).finish()
    assert contents(path) == contents(whole)


def test_resume_with_another_number_of_processes(whole, tmp_path):
    path = tmp_path / "store"
    extract(path, 1, 2)
    extract(path, 2, 3)
    with pytest.raises(BadInput, match="of 11 shards are missing"): CodeWriter(path, PLAN).finish()
    extract(path).finish()
    assert contents(path) == contents(whole)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    writer = CodeWriter(tmp_path / "store", PLAN)
    def full(fd): raise OSError(28, "No space left on device")
    monkeypatch.setattr(vgnb.core.os, "fsync", full)
    with pytest.raises(OSError, match="No space"): writer.write(0, codes_of(0)[None], [0], [0])
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["plan.json"]


def damaged(g, kind, raw):
    "A copy of a file's bytes with one accident."
    raw = bytearray(raw)
    if kind == "bit": raw[g.randrange(len(raw))] ^= 1 << g.randrange(8)
    elif kind == "cut": del raw[g.randrange(len(raw)):]
    elif kind == "grow": raw += b"x"
    else:
        at = g.randrange(len(raw))
        raw[at:at + 64] = bytes(len(raw[at:at + 64]))
    return bytes(raw)


def same_json(raw, file):
    "A changed space between values changes nothing that is read."
    try: return json.loads(raw) == load_json(file)
    except ValueError: return False


def test_random_damage_is_found(whole, tmp_path):
    g = random.Random(0)
    files = sorted(p.name for p in whole.iterdir() if p.name != "plan.json")
    for n in range(120):
        name, kind = g.choice(files), g.choice(("bit", "cut", "zero", "grow"))
        raw = damaged(g, kind, (whole / name).read_bytes())
        if raw == (whole / name).read_bytes(): continue
        harmless = name == "index.json" and kind in ("bit", "grow") and same_json(raw, whole / name)
        if harmless: continue
        copy = tmp_path / f"{n}"
        shutil.copytree(whole, copy)
        (copy / name).write_bytes(raw)
        with pytest.raises(VgnbError): CodeStore(copy)
        shutil.rmtree(copy)


def test_a_lying_index_is_found(whole, tmp_path):
    "An index with the right hash of itself and of the shards, which know another plan."
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    index = load_json(copy / "index.json")
    del index["fingerprint"]
    index["vocab"] = [16, 200]
    save_json(copy / "index.json", dict(index, fingerprint=digest(index)))
    with pytest.raises(BadInput, match="00000.codes: is damaged, or a part of something else"): CodeStore(copy)


def test_a_lying_shard_is_found(tmp_path):
    "Whole files with right hashes, but codes outside the codebook that the plan claims."
    writer = CodeWriter(tmp_path / "store", CodePlan((200,), (2, 2), 3, "t"))
    codes = np.full((3, 1, 4, 1), 200, "<u2")
    writer.publish(0, np.arange(3), np.zeros(3, "<i8"), codes)
    writer.finish()
    with pytest.raises(BadInput, match=r"must lie in \[0, 200\) at level 0, found 200"): CodeStore(tmp_path / "store")


def test_another_run_cannot_continue_a_store(whole, tmp_path):
    other = CodePlan(**{**PLAN.__dict__, "tokenizer": "u" * 64, "augs": ("center", "flop")})
    with pytest.raises(Mismatch, match="augs is .*tokenizer is tttt.*uuuu"):
        CodeWriter(whole, other)
    with pytest.raises(Mismatch, match="tttt.*not by uuuu"): CodeStore(whole, tokenizer="u" * 64)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="is not empty and holds no store"):
        CodeWriter(tmp_path, PLAN)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(Missing, match="holds no store of codes"): CodeStore(tmp_path)


def test_a_plan_without_shards_gives_way(tmp_path, capsys):
    "An attempt that wrote nothing does not keep the next one, on other data, from the folder; any other file does."
    CodeWriter(tmp_path, PLAN)
    for change in (dict(tokenizer="u" * 64), dict(tokenizer="u" * 64, times="later")):
        other = CodePlan(**{**PLAN.__dict__, **change})
        CodeWriter(tmp_path, other)
        assert "replaced, no shard was written by it" in capsys.readouterr().err
    CodeWriter(tmp_path, other)
    assert json.loads((tmp_path / "plan.json").read_text())["tokenizer"] == "u" * 64 and not capsys.readouterr().err
    before = (tmp_path / "plan.json").read_text()
    for foreign in (before.replace("vgnb.codes/", "vgnb.features/"), before.replace("vgnb.codes/", "mine/")):
        (tmp_path / "plan.json").write_text(foreign)
        with pytest.raises(Mismatch, match="holds another store"): CodeWriter(tmp_path, PLAN)
        assert (tmp_path / "plan.json").read_text() == foreign
    (tmp_path / "plan.json").write_text(before)
    (tmp_path / "00000.codes").write_bytes(b"x")
    with pytest.raises(Mismatch, match="holds another store"): CodeWriter(tmp_path, PLAN)


ZEROS = torch.zeros(1, 2, 2, 3, 2).long()


@pytest.mark.parametrize("argument, change", [
    ("codes", dict(codes=ZEROS + 16)),
    ("codes", dict(codes=ZEROS - 1)),
    ("codes", dict(codes=ZEROS.float())),
    ("codes", dict(codes=ZEROS[:, :1])),
    ("codes", dict(codes=ZEROS.expand(2, -1, -1, -1, -1))),
    ("labels", dict(labels=[3])),
    ("labels", dict(labels=[-1])),
    ("ids", dict(ids=[10])),
    ("ids", dict(ids=[3, 3], labels=[0, 0], codes=ZEROS.expand(2, -1, -1, -1, -1))),
    ("shard", dict(shard=11)),
])
def test_bad_rows_are_refused_before_anything_is_written(tmp_path, argument, change):
    writer = CodeWriter(tmp_path / "store", PLAN)
    given = dict(dict(shard=0, codes=ZEROS, labels=[0], ids=[3]), **change)
    with pytest.raises(BadInput) as e: writer.write(**given)
    assert e.value.argument == argument
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["plan.json"]


def test_mapping_keeps_no_descriptors_and_copies_cheaply(whole):
    def descriptors(): return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    before = descriptors()
    stores = [CodeStore(whole) for _ in range(5)]
    assert descriptors() == before
    assert len(pickle.dumps(stores[0])) < 500
    loader = torch.utils.data.DataLoader(stores[0], batch_size=16, num_workers=2)
    assert torch.equal(torch.cat([c for c, _, _ in loader]), torch.stack([c for c, _, _ in stores[0]]))


def test_augmentation_is_a_function_of_seed_epoch_and_id():
    rows = augmentation(3, 5, range(5000), 10)
    assert torch.equal(torch.cat([augmentation(3, 5, [i], 10) for i in range(40)]), rows[:40])
    assert torch.equal(augmentation(3, 5, list(range(5000))[::-1], 10).flip(0), rows)
    for other in (augmentation(4, 5, range(5000), 10), augmentation(3, 6, range(5000), 10)):
        assert 0.05 < float((other == rows).float().mean()) < 0.15
    assert rows.bincount(minlength=10).min() > 400
    assert set(augmentation(0, 0, range(50), 1).tolist()) == {0}


# ---- published layouts

def save(file, a):
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, a)


def llamagen(root, n=4, size=9):
    for i in range(n):
        save(root / f"x_codes/{i}.npy", np.full((1, 2, size), i))
        save(root / f"x_labels/{i}.npy", np.array([i]))
    return root / "x_codes"


def test_randar_numbers_repeat_in_each_class(tmp_path):
    for y in (0, 2, 10):
        for k in (0, 1, 11): save(tmp_path / f"{y}/{k}.npy", np.full((2, 4), y))
    (tmp_path / "5").mkdir()
    r = store_from("randar", tmp_path, vocab=16)
    assert r.labels.tolist() == [0] * 3 + [2] * 3 + [10] * 3
    assert r.index.tolist() == [0, 1, 11] * 3
    assert r.ids.tolist() == list(range(9))
    store = convert(r, tmp_path / "store", tokenizer="t", shard_size=4)
    assert torch.equal(store.batch(range(9))[0], r.batch(range(9))[0])
    assert store.grid == (2, 2)


def test_sparse_numbers_keep_their_ids(tmp_path):
    folder = llamagen(tmp_path)
    for name in ("codes", "labels"):
        (tmp_path / f"x_{name}/3.npy").rename(tmp_path / f"x_{name}/30.npy")
    r = store_from("llamagen", folder, vocab=8)
    assert r.ids.tolist() == [0, 1, 2, 30]
    assert convert(r, tmp_path / "s", tokenizer="t", shard_size=5).ids.tolist() == [0, 1, 2, 30]


def write(array): return lambda folder: np.save(folder / "2.npy", array)
def label(array): return lambda folder: np.save(folder.parent / "x_labels/2.npy", array)
def cut(end): return lambda folder: (folder / "2.npy").write_bytes((folder / "2.npy").read_bytes()[:end])


@pytest.mark.parametrize("damage, words", [
    (cut(0), "2.npy: not a readable array"),
    (cut(-1), "2.npy: not a readable array"),
    (write(np.array([print], dtype=object)), "2.npy: not a readable array"),
    (write(np.zeros((1, 2, 9))), "2.npy: must be an integer array, found float64"),
    (write(np.zeros((1, 2, 8), int)), "2.npy: must hold codes"),
    (write(np.zeros((2, 9), int)), "2.npy: holds no item of this layout"),
    (write(np.full((1, 2, 9), 8)), r"2.npy: codes must lie in \[0, 8\), found \[8, 8\]"),
    (write(np.full((1, 2, 9), -1)), "2.npy: codes must lie in"),
    (label(np.array([4])), r"2.npy: label must lie in \[0, 4\), found 4"),
    (label(np.array([1, 2])), "x_labels/2.npy: must hold one label"),
])
def test_bad_items_are_named_and_counted(tmp_path, damage, words):
    folder = llamagen(tmp_path)
    damage(folder)
    r = store_from("llamagen", folder, vocab=8, classes=4)
    with pytest.raises(BadItem, match=words): r.batch([0, 2])
    with pytest.raises(BadItem, match=words): convert(r, tmp_path / "s", tokenizer="t")
    assert convert(r, tmp_path / "s", tokenizer="t", max_bad=1).ids.tolist() == [0, 1, 3]


def test_layout_arguments(tmp_path):
    folder = llamagen(tmp_path)
    def opened(**options): return store_from("llamagen", folder, **options)
    assert opened(vocab=8, grid=(9,)).grid == (9,)
    with pytest.raises(BadInput, match="needs 1 codebook sizes"): opened(vocab=(8, 8))
    with pytest.raises(BadInput, match="must hold the 9 positions"): opened(vocab=8, grid=(2, 2))
    with pytest.raises(BadInput, match="vocab=0: must be an integer >= 1"): opened(vocab=0)
    with pytest.raises(BadInput, match="must be a folder named"): opened(vocab=8, more=tmp_path)
    (tmp_path / "x_labels/3.npy").unlink()
    with pytest.raises(BadInput, match=r"must hold the same numbers as x_codes; \[3\] is in one only"):
        opened(vocab=8)
    with pytest.raises(Missing, match="no such folder"): store_from("iar2", tmp_path / "y_codes")


def in_memory(vocab):
    "Twelve images of two rows and 2 x 3 codes; number 5 could not be read."
    g = np.random.default_rng(0)
    codes = np.stack([g.integers(0, v, (12, 2, 6)) for v in vocab], -1)
    return ArrayCodes(codes, np.arange(12) % 3, vocab, (2, 3), classes=("a", "b", "c"), ids=np.delete(np.arange(13), 5))


@pytest.mark.parametrize("layout", sorted(layouts))
@pytest.mark.parametrize("split, aug", [("train", 0), ("eval", 1)])
def test_what_a_layout_writes_it_reads(layout, split, aug, tmp_path):
    "Every format there is, by its own writer and its own reader, whatever rooms may come."
    kind = layouts[layout]
    source = in_memory((16, 300) if kind.many_levels else (300,))
    seen = []
    out = export_codes(source, layout, tmp_path / "x_codes", aug=aug, split=split, callback=seen.append)
    assert seen == list(range(1, 13)) and not list(tmp_path.rglob(".*"))

    options = {"split": split} if "split" in kind.options else {}
    vocab = source.vocab if kind.many_levels else source.vocab[0]
    back = store_from(layout, out, vocab=vocab, classes=source.classes, grid=(2, 3), **options)
    rows = slice(None) if len(back.augs) == 2 else slice(aug, aug + 1)
    assert back.vocab == source.vocab and back.classes == source.classes
    assert back.ids.tolist() in (source.ids.tolist(), list(range(12)))              # a layout may only count rows
    for (codes, label, _), (again, same, _) in zip(source, back):
        assert torch.equal(again, codes[rows]) and same == label

    with pytest.raises(BadInput, match="exists already"):
        export_codes(source, layout, out, aug=aug, split=split)
    with pytest.raises(BadInput, match="must have (one level|several levels) for the layout"):
        export_codes(in_memory((300,) if kind.many_levels else (16, 300)), layout, tmp_path / "y_codes")
    assert not (tmp_path / "y_codes").exists()


def test_layouts_are_found_by_name(tmp_path):
    assert set(layouts) >= {"halton", "iar2", "llamagen", "pgm", "randar"}
    with pytest.raises(BadInput, match="layout='lamagen': must be one of .*did you mean llamagen"):
        store_from("lamagen", tmp_path)
    with pytest.raises(BadInput, match="layout='lamagen'"):
        export_codes(in_memory((300,)), "lamagen", tmp_path / "x")
    with pytest.raises(BadInput, match="split='test'"):
        export_codes(in_memory((300,)), "halton", tmp_path / "x", split="test")
