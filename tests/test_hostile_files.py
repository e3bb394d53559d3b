"""Files that were made to do harm: programs in place of numbers, headers that lie, members that climb out, bombs.

The full forms have the counts that nbs/studies/990_what_breaks.ipynb reports.
"""
import importlib
import io
import json
import math
import os
import pickle
import random
import resource
import runpy
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from tests.test_damaged_files import MAGIC, Call, forged_npz, raw_safetensors, torch_bytes
from vgnb.core import BadInput, BadItem, Mismatch, VgnbError
from vgnb.data.halton_codes import read_pickled_codes
from vgnb.data.images import open_images
from vgnb.data.shapes import Shapes
from vgnb.data.stored import decode_image
from vgnb.evaluation.features import load_extractor
from vgnb.evaluation.samples import load_statistics, open_samples, read_npz
from vgnb.saved import load_tensors
from vgnb.tensor_files import read_tensors
from vgnb.tokenizers.lpips import load_lpips
from vgnb.zoo import load_published

ROOT = Path(__file__).resolve().parents[1]


class Meter:
    "Seconds of the processor and MB of memory that what runs inside takes at most."
    def __init__(self): self.seconds = self.megabytes = 0.0

    def __enter__(self): self.start, self.before = time.process_time(), self.most()

    def __exit__(self, *error):
        self.seconds = max(self.seconds, round(time.process_time() - self.start, 3))
        self.megabytes = max(self.megabytes, (self.most() - self.before) / 1000)

    def most(self) -> int: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# ---- pickles that call something

CALLS = {    # what each would do, given the folder it would show in
    "os.system": lambda mark: Call(os.system, f"touch {mark}/os.system"),
    "eval": lambda mark: Call(eval, f"__import__('os').mkdir({str(mark / 'eval')!r})"),
    "exec": lambda mark: Call(exec, f"open({str(mark / 'exec')!r}, 'w')"),
    "importlib": lambda mark: Call(importlib.import_module, "antigravity"),
    "subprocess": lambda mark: Call(subprocess.call, ["touch", str(mark / "subprocess")]),
    "getattr": lambda mark: Call(getattr, "word", "upper"),
    "numpy": lambda mark: Call(np.memmap, str(mark / "numpy"), np.uint8, "w+", 0, (4,)),
    "a pickle inside": lambda mark: Call(pickle.loads, pickle.dumps(Call(os.mkdir, str(mark / "inside")))),
    "a file": lambda mark: Call(io.FileIO, str(mark / "file"), "w"),
    "a script": lambda mark: Call(runpy.run_path, str(mark / "script.py"))}


def in_zip(thing): return torch_bytes({"model": {"w": torch.zeros(2)}, "args": thing})
def in_old_file(thing): return torch_bytes({"w": thing}, old=True)
def in_plain_pickle(thing): return pickle.dumps({"code": thing, "y": 1})


FORMS = (in_zip, in_old_file, in_plain_pickle)
READERS = {      # how the file is called where each looks for it, and who reads it
    "m.pt": read_tensors,
    "model.pth": load_published,
    "vgg16.pth": lambda file: load_lpips(file.parent),
    "i.pth": lambda file: load_extractor("inception", file),
    "s.pt": load_statistics,
    "s.npz": open_samples,
    "x.pth": lambda file: read_pickled_codes(file.read_bytes(), "x.pth")}


@pytest.mark.fault("F13")
@pytest.mark.parametrize("names", [["m.pt", "x.pth"], pytest.param(list(READERS), marks=pytest.mark.full)], ids=len)
def test_no_pickle_of_thirty_runs_whoever_reads_it(tmp_path, names, figures):
    mark = tmp_path / "mark"
    mark.mkdir()
    (mark / "script.py").write_text(f"open({str(mark / 'script')!r}, 'w')")
    told = 0
    for call in CALLS.values():
        for form in FORMS:
            data = form(call(mark))
            for name in names:
                (tmp_path / name).write_bytes(data)
                with pytest.raises(VgnbError, match=name) as e: READERS[name](tmp_path / name)
                assert "\n" not in str(e.value)
                told += 1
    assert [p.name for p in mark.iterdir()] == ["script.py"] and "antigravity" not in sys.modules
    figures(pickles=len(CALLS) * len(FORMS), readings=told, named=told, ran=0)


@pytest.mark.fault("F13")
def test_a_refused_pickle_says_what_to_do(tmp_path):
    for form in (in_zip, in_old_file):
        (tmp_path / "m.pt").write_bytes(form(Call(os.system, "true")))
        advice = r"not tensors \(.*system\).* ask its authors for safetensors, or convert it"
        with pytest.raises(Mismatch, match=advice):
            read_tensors(tmp_path / "m.pt")
    evil = np.array([Call(os.mkdir, str(tmp_path / "mark"))], dtype=object)
    np.savez(tmp_path / "s.npz", arr_0=evil)
    with pytest.raises(Mismatch, match="holds Python objects"): open_samples(tmp_path / "s.npz")
    assert not (tmp_path / "mark").exists()


# ---- headers of safetensors

def entry(**changes) -> dict: return {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]} | changes


def repeated(header: dict) -> bytes:
    "The same name twice, which a dictionary cannot say."
    text = json.dumps(header)
    return (text[:-1] + "," + text[1:]).encode()


def headers(rng: random.Random):
    "A changed header for ever: of each kind in turn."
    wild = (-1, 0, 1, 47, 48, 49, 52, 2 ** 31, 2 ** 62, 2 ** 64, 1e300, None, "x", [], math.nan)
    while True:
        a, b, c = (rng.choice(wild) for _ in range(3))
        yield {"w": entry(data_offsets=[a, b])}
        yield {"w": entry(shape=[a, b, c][:rng.randrange(4)])}
        yield {"w": entry(shape=[math.nan, 4])}
        yield {"w": entry(), "v": entry(data_offsets=[rng.randrange(48), 48])}
        yield repeated({"w": entry()})
        yield {"w": entry(dtype=rng.choice(("F128", "", None, 3, "BOOL", "I64", "F8_E4M3", "x" * 10_000)))}
        yield {"w": rng.choice((a, [], {}, {"shape": [3, 4]}, {"dtype": "F32"}, {"data_offsets": [0, 48]}))}
        yield {"": entry(), "__metadata__": rng.choice(({"vgnb": a}, {"vgnb": "["}, a, {"x": {"y": 1}}))}
        yield b"[" * rng.randrange(1, 90_000)
        yield json.dumps({"w": entry()}).encode()[:rng.randrange(1, 55)]


def mutations(count: int):
    "(file's bytes) of `count` files that lie."
    rng = random.Random(0)
    whole, made = save({"w": torch.arange(12.).view(3, 4), "b": torch.zeros(3)}), headers(rng)
    names = 10_000 if count < 100 else 1_000_000
    yield raw_safetensors(("{" + ",".join(f'"{i}":{json.dumps(entry())}' for i in range(names)) + "}").encode())
    yield struct.pack("<Q", 2 ** 63) + whole[8:]
    yield struct.pack("<Q", 99_999_999) + whole[8:]
    for n in range(count - 3):
        if n % 3: yield raw_safetensors(next(made), bytes(48))
        else:
            data = bytearray(whole)
            for _ in range(rng.randrange(1, 6)): data[rng.randrange(len(data))] = rng.randrange(256)
            yield bytes(data[:rng.randrange(len(data) + 1)])


@pytest.mark.fault("F14")
@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.full)])
def test_no_header_of_safetensors_is_believed(count, tmp_path, figures):
    file, refused = tmp_path / "m.safetensors", 0
    meter = Meter()
    for data in mutations(count):
        file.write_bytes(data)
        for read in (read_tensors, load_tensors):
            try:
                with meter: found = read(file)
            except Mismatch as e:
                refused += 1
                assert "m.safetensors" in str(e) and "\n" not in str(e)
            else: assert sum(t.nbytes for t in found.values()) <= len(data)
    assert meter.seconds < 2 and meter.megabytes < 500 and refused > count
    figures(mutations=count, crashes=0, seconds=meter.seconds, megabytes=meter.megabytes)


# ---- members that climb out, addresses that are commands

NAMES = ("../evil.jpg", "/tmp/../evil.jpg", "a/../../evil.jpg", "a/\udcff.jpg", "a/x\0y.jpg", f"a/{'n' * 5000}.jpg",
         "a/;touch evil.jpg", "a/$(touch evil).jpg", "a/|touch evil.jpg")
LINKS = (("a/link.jpg", tarfile.SYMTYPE, "/etc/passwd"), ("a/hard.jpg", tarfile.LNKTYPE, "../../etc/passwd"),
         ("a/device.jpg", tarfile.CHRTYPE, ""), ("a/block.jpg", tarfile.BLKTYPE, ""),
         ("a/pipe.jpg", tarfile.FIFOTYPE, ""))
ADDRESSES = ("wds://pipe:touch evil", "pipe:touch evil", "wds://x.tar;touch evil", "wds://$(touch evil).tar",
             "wds://`touch evil`.tar", "wds://{touch evil|a}.tar", "datasets://pipe:touch evil", "wds://|touch evil")


@pytest.fixture
def no_process(monkeypatch):
    "Whatever would start a process fails, and is counted."
    started = []
    def refuse(*a, **k):
        started.append(a)
        raise AssertionError(f"a process was started: {a}")
    for name in ("system", "popen", "posix_spawn", "fork", "execv", "execve"): monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    return started


def files_below(folder: Path) -> set[str]: return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.mark.fault("F15")
def test_members_stay_inside_and_addresses_start_nothing(tmp_path, monkeypatch, no_process, figures):
    place = tmp_path / "room" / "in"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    with tarfile.open(place / "t.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for k, name in enumerate(NAMES): add(tar, name, jpeg(k))
        for name, kind, target in LINKS:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    before = files_below(tmp_path)
    read = 0
    for uri in (place / "t.tar", f"wds://{place}/t.tar", f"wds://{place}/t.tar?streaming=1"):
        try: read += len(list(open_images(uri, max_bad=99).iter_items()))
        except VgnbError as e: assert "\n" not in str(e)
    for uri in ADDRESSES:
        with pytest.raises(VgnbError): list(open_images(uri).iter_items())
    assert files_below(tmp_path) == before and no_process == [] and read > 0
    figures(members=len(NAMES) + len(LINKS), addresses=len(ADDRESSES), outside=0, started=0)


# ---- bombs

def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(side: int, height: int | None = None, *more: bytes) -> bytes:
    "A PNG of a few kB that claims to be so large; all its pixels are zero."
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, height or side, 1, 0, 0, 0, 0))
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(side // 8 + 1)) for _ in range(64)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def gif(frames: int) -> bytes:
    "A GIF whose frames claim 30,000 x 30,000 pixels, each packed into a few bytes."
    head = b"GIF89a" + struct.pack("<HHBBB", 30_000, 30_000, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 30_000, 30_000, 0) + b"\2\2\x4c\1\0"
    return head + frame * frames + b";"


def packed_text(size: int) -> bytes: return chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(size), 9))


PICTURES = {
    "60,000 a side": lambda: png(60_000),
    "4 x 65,000": lambda: png(4, 65_000),
    "GIF of 100,000 frames": lambda: gif(100_000),
    "text that unpacks 1,000:1": lambda: png(60_000, None, packed_text(2 ** 26)),
    "profile of garbage": lambda: png(60_000, None, chunk(b"iCCP", b"x\0\0" + zlib.compress(os.urandom(9999)))),
    "EXIF of garbage": lambda: png(60_000, None, chunk(b"eXIf", b"MM\0*" + b"\xff" * 9999))}


@pytest.mark.fault("F16")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bombs_are_refused_before_they_take_memory(tmp_path, figures):
    meter = Meter()
    decode_image(jpeg(0))                                     # what Pillow imports when it is first needed
    for name, make in PICTURES.items():
        data = make()
        assert len(data) < 4_000_000, name
        with meter, pytest.raises(BadItem, match="bomb: "): decode_image(data, "bomb")
    forged_npz(tmp_path / "a.npz", (300, 1024, 1024, 3), zipfile.ZIP_DEFLATED, 900 * 2 ** 20)
    with meter, pytest.raises(Mismatch, match="a.npz"): open_samples(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "b.npz", arr_0=np.zeros((900, 64, 64, 3), np.uint8))
    with meter, pytest.raises(Mismatch, match="b.npz"): read_npz(tmp_path / "b.npz", "arr_0", limit=1_000_000)
    (tmp_path / "c.pt").write_bytes(MAGIC + b"\x80\x02c__builtin__\nbytearray\nJ\x00\x00\x00\x7f\x85R.")
    with meter, pytest.raises(Mismatch, match="c.pt"): read_tensors(tmp_path / "c.pt")
    assert meter.megabytes < 100 and meter.seconds < 1, (meter.megabytes, meter.seconds)
    bombs = len(PICTURES) + 3
    figures(bombs=bombs, refused=bombs, megabytes=meter.megabytes, seconds=meter.seconds)


# ---- a set with everything in it

def jpeg(k: int, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Shapes(200, 32)[k].image.save(file, kind)
    return file.getvalue()


def add(tar, name: str, data: bytes):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def changed_until_bad(rng: random.Random, whole: bytes) -> bytes:
    "A picture with some bytes changed and its end cut off, so that it cannot be decoded."
    while True:
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 20)): data[rng.randrange(len(data))] = rng.randrange(256)
        data = bytes(data[:rng.randrange(len(data) // 2)])
        try: decode_image(data)
        except BadItem: return data


@pytest.mark.fault("F10")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("bad", [12, pytest.param(100, marks=pytest.mark.full)])
def test_good_pictures_are_counted_exactly_among_bad_ones(bad, tmp_path, figures):
    "In a folder, its tar and a loader of two processes: 20 good ones, changed ones, an empty file, folders, odd names."
    rng, folder = random.Random(0), tmp_path / "set"
    (folder / "a" / "folder.png").mkdir(parents=True)
    for k in range(20): (folder / "a" / f"good-{k}.jpg").write_bytes(jpeg(k))
    os.rename(folder / "a" / "good-19.jpg", os.fsencode(folder / "a") + b"/good-\xff.jpg")
    for k in range(bad):
        kind = ("JPEG", "PNG")[k % 2]
        (folder / "a" / f"bad-{k}.{kind.lower()}").write_bytes(changed_until_bad(rng, jpeg(k, kind)))
    (folder / "a" / "bad-empty.png").write_bytes(b"")
    with tarfile.open(tmp_path / "set.tar", "w") as tar: tar.add(folder / "a", "a")

    for uri in (folder, tmp_path / "set.tar"):
        with pytest.raises(BadItem, match="bad-"): list(open_images(uri).iter_items(shuffle=False))
        source = open_images(uri, max_bad=bad + 1)
        assert len(list(source.iter_items())) == 20
        assert len(source.bad) == bad + 1 and all("bad-" in e.name and e.reason for e in source.bad)
    loader = torch.utils.data.DataLoader(Reading(folder), batch_size=None, num_workers=2)
    found = list(loader)
    assert sum(word == "" for word in found) == 20 and sum("bad-" in word for word in found) == bad + 1
    figures(pictures=bad + 1, crashes=0, miscounted=0)


class Reading(torch.utils.data.Dataset):
    "What reading each picture said."
    def __init__(self, folder): self.source = open_images(folder, max_bad=999)
    def __len__(self): return len(self.source)

    def __getitem__(self, i):
        try: self.source[i]
        except BadItem as e: return str(e)
        return ""


@pytest.mark.fault("F10")
def test_a_checksum_of_samples_that_does_not_fit_is_named(tmp_path):
    np.savez(tmp_path / "s.npz", arr_0=np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3))
    raw = bytearray((tmp_path / "s.npz").read_bytes())
    raw[300] ^= 1
    (tmp_path / "s.npz").write_bytes(raw)
    with pytest.raises(BadInput, match="s.npz"): open_samples(tmp_path / "s.npz").images[:]
