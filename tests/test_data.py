"""Pictures: one set of bytes in every container, damaged input, streams, and random choices that belong to the picture and not to the batch."""
import functools
import http.server
import io
import json
import pickle
import random
import struct
import tarfile
import threading
import zlib

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from vgnb.core import BadInput, BadItem, Missing
from vgnb.data.images import open_images
from vgnb.data.shapes import Shapes, draw_shapes, shape_ranges
from vgnb.data.stored import decode_image
from vgnb.data.transforms import Augment, chosen_crop, contact_sheet, load_batch, random_crop, resize_short, to_tensor, to_uint8
from vgnb.draws import At, Keyed


def encode(image, kind="JPEG"):
    f = io.BytesIO(); image.save(f, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return f.getvalue()


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name); info.size = len(data); tar.addfile(info, io.BytesIO(data))
    return path


def pixels(source): return [(np.asarray(source[i].image).tobytes(), source.classes[source[i].label]) for i in range(len(source))]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache"); datasets.disable_progress_bars()


@pytest.fixture
def photos(tmp_path):
    "40 JPEG files in class folders; returns (folder, [(class/name, bytes)] in folder order)."
    shapes, files = Shapes(n=40, size=40, seed=5), []
    for i in range(40):
        item = shapes[i]
        files.append((f"{shapes.classes[item.label]}/{i:03d}.jpg", encode(item.image)))
    for name, data in files: (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True); (tmp_path / "photos" / name).write_bytes(data)
    return tmp_path / "photos", sorted(files)


# ---- shapes

def test_a_shape_does_not_depend_on_its_batch_and_scales():
    s, ids = Shapes(seed=7, difficulty=0.6), np.random.default_rng(0).integers(0, 2 ** 32, 300)
    images, labels = s.batch(ids)
    order = np.random.default_rng(1).permutation(300)
    for part in (order[:1], order[1:8], order[8:70], order[70:]):
        again, same = s.batch(ids[part])
        assert (again == images[part]).all() and (same == labels[part]).all()
    large = Shapes(size=128, seed=7, difficulty=0.6).batch(ids[:40])
    small = large[0].reshape(40, 32, 4, 32, 4, 3).mean((2, 4))
    assert (large[1] == labels[:40]).all() and np.abs(small - images[:40]).mean() < 2


def test_shapes_lie_in_the_frame_stand_upright_and_are_balanced():
    u = np.random.default_rng(0).uniform(size=(500, 32)); u[:, 7:] = 0; u[:, 5:7] = 1        # black ground, vivid shape
    labels = np.arange(500) % 10
    for d in (0, 0.25, 1):
        middle = u.copy(); middle[:, 2:4] = 0.5
        there, here = (draw_shapes(labels, v, 64, d).max(-1).sum((1, 2), dtype=float) for v in (u, middle))
        assert np.abs(there / here - 1).max() < 0.02, "a shape that is moved keeps its area: no part of it left the frame"
    upright = draw_shapes(np.arange(10), np.full((10, 32), 0.5), 64, 0).max(-1) > 120
    rows = lambda k: upright[k].sum(1)[upright[k].any(1)]
    assert rows(2)[2] < rows(2)[-3], "a triangle is wide below"
    assert rows(6)[8] > rows(6)[-8], "a heart is narrow below"
    for seed in (0, 9): assert (np.bincount(Shapes(seed=seed).labels(np.arange(500, 1500)), minlength=10) == 100).all()
    assert shape_ranges()["angle"] == 30


# ---- one set of bytes, every container

def test_the_same_bytes_give_the_same_items_everywhere(photos, tmp_path):
    folder, files = photos
    write_tar(tmp_path / "train.tar", [(f"train/{n}", d) for n, d in files]); write_tar(tmp_path / "dot.tar", [(f"./{n}", d) for n, d in files])
    (tmp_path / "wds").mkdir()
    for k in range(4):
        part = [(n, d) for n, d in files[10 * k:10 * k + 10]]
        write_tar(tmp_path / "wds" / f"p-{k}.tar", [e for i, (n, d) in enumerate(part) for e in ((f"{i:03d}.txt", n.split("/")[0].encode()), (f"{i:03d}.jpg", d))])
    classes = sorted({n.split("/")[0] for n, _ in files})
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=classes))
    table = datasets.Dataset.from_dict(dict(image=[{"bytes": d, "path": None} for _, d in files], label=[n.split("/")[0] for n, _ in files]), features)
    (tmp_path / "hub").mkdir(); table.to_parquet(tmp_path / "hub" / "train.parquet"); table.select(range(3)).to_parquet(tmp_path / "hub" / "test.parquet")
    table.save_to_disk(tmp_path / "saved")
    (tmp_path / "list.csv").write_text("file,kind\n" + "".join(f"photos/{n},{n.split('/')[0]}\n" for n, _ in files))
    want = pixels(open_images(folder))
    for uri in ("train.tar", "dot.tar", f"wds://{tmp_path}/wds", f"wds://{tmp_path}/wds/p-{{0..3}}.tar", f"datasets://{tmp_path}/hub", f"datasets://{tmp_path}/hub/train.parquet",
                f"datasets://{tmp_path}/saved", f"datasets://{tmp_path}/list.csv?image=file&label=kind", f"datasets://{folder}"):
        source = open_images(uri if "://" in uri else tmp_path / uri)
        assert pixels(source) == want and source.classes == classes, uri
        assert [i.id for i in source.iter_items(3, 1)] == [i.id for i in open_images(folder).iter_items(3, 1)]
    assert len(open_images(f"datasets://{tmp_path}/hub?split=test")) == 3
    for uri in (f"wds://{tmp_path}/wds?streaming=1", f"datasets://{tmp_path}/hub?streaming=1&buffer=16", f"datasets://{tmp_path}/saved?streaming=1"):
        stream = open_images(uri, classes=classes)
        seen = [(np.asarray(i.image).tobytes(), stream.classes[i.label]) for i in stream.iter_items(2, 4, shuffle=False)]
        shares = [[i.id for i in stream.iter_items(2, 4, rank, 2)] for rank in (0, 1)]
        assert seen == want and len(set(shares[0] + shares[1])) == 40 == len(shares[0] + shares[1]), uri
        assert [i.id for i in stream.iter_items(2, 4)] == [i.id for i in stream.iter_items(2, 4)] != [i.id for i in stream.iter_items(3, 4)]


def test_a_fingerprint_survives_a_copy_and_notices_other_bytes(photos, tmp_path):
    folder, files = photos
    for name, data in files: (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True); (tmp_path / "copy" / name).write_bytes(data)
    copy = open_images(tmp_path / "copy").fingerprint
    assert copy == open_images(folder).fingerprint
    (tmp_path / "copy" / files[0][0]).write_bytes(files[1][1])
    assert open_images(tmp_path / "copy").fingerprint != copy != open_images(folder, alpha="white").fingerprint


def test_workers_read_a_tar_through_their_own_handles(photos, tmp_path):
    source = open_images(write_tar(tmp_path / "t.tar", photos[1])); want = pixels(source)
    assert pixels(pickle.loads(pickle.dumps(source))) == want
    loader = torch.utils.data.DataLoader(source, num_workers=2, batch_size=4, collate_fn=lambda items: [np.asarray(i.image).tobytes() for i in items])
    assert sum(loader, []) == [p for p, _ in want]


# ---- damage

def test_bad_pictures_are_named_counted_or_fatal(photos):
    folder, files = photos
    (folder / files[3][0]).write_bytes(b""); (folder / files[9][0]).write_bytes(files[9][1][:300])
    with pytest.raises(BadItem, match=files[3][0]): open_images(folder)[3]
    with pytest.raises(BadItem, match="max_bad=1 is used up"): list(open_images(folder, max_bad=1).iter_items())
    source = open_images(folder, max_bad=2)
    for epoch in (0, 1): assert len(list(source.iter_items(epoch))) == 38
    assert {e.name for e in source.bad} == {files[3][0], files[9][0]} and all(e.reason for e in source.bad)
    x, labels, ids = load_batch(source, range(12), Augment("center", 32), Keyed(0))
    assert x.shape == (10, 3, 32, 32) and ids.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 10, 11] and len(labels) == 10


def test_mutated_pictures_never_crash():
    rng, whole = random.Random(0), [encode(Shapes(size=48)[3].image, k) for k in ("JPEG", "PNG", "WEBP", "BMP", "PPM")]
    failed = 0
    for n in range(250):
        data = bytearray(whole[n % 5])
        for _ in range(rng.randrange(1, 20)): data[rng.randrange(len(data))] = rng.randrange(256)
        try: assert decode_image(bytes(data[:rng.randrange(8, len(data) + 1)]), "x").mode == "RGB"
        except BadItem as e: failed += 1; assert e.name == "x"
    assert failed > 100


@pytest.mark.parametrize("side", [9000, 60000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side):
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(BadItem, match="pixels"): decode_image(png, "bomb")


def test_sixteen_bit_and_palette_pictures():
    deep = Image.fromarray(np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16))
    assert (np.asarray(decode_image(encode(deep, "PNG")))[..., 0].ravel() == np.arange(256)).all()
    palette = Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4)
    assert decode_image(encode(palette, "PNG")).getpixel((0, 0)) == (10, 200, 30)


def test_a_tar_that_is_not_whole_is_an_error_not_a_short_data_set(photos, tmp_path):
    whole = write_tar(tmp_path / "t.tar", photos[1]).read_bytes()
    with tarfile.open(tmp_path / "t.tar") as tar: starts = [m.offset for m in tar]
    damaged = bytearray(whole); damaged[starts[20] + 150] ^= 0xFF
    for data in (whole[:starts[20]], whole[:starts[20] + 700], bytes(damaged), whole[:100], b""):
        (tmp_path / "t.tar").write_bytes(data); (tmp_path / "w.tar").write_bytes(data)
        for uri in (tmp_path / "t.tar", f"wds://{tmp_path}/w.tar"):
            with pytest.raises(BadInput, match="whole, uncompressed tar"): open_images(uri)
        with pytest.raises(BadInput, match="whole, readable tar"): list(open_images(f"wds://{tmp_path}/w.tar?streaming=1", classes=["a"]).iter_items())


def test_hostile_members_touch_nothing(photos, tmp_path):
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "t.tar", "w") as tar:
        for name, kind, link in (("../evil.jpg", tarfile.REGTYPE, ""), ("/abs/evil.jpg", tarfile.REGTYPE, ""), ("a/link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
                                 ("a/hard.jpg", tarfile.LNKTYPE, "a/x.jpg"), ("a/dev.jpg", tarfile.CHRTYPE, ""), ("a/\udcff.jpg", tarfile.REGTYPE, "")):
            info = tarfile.TarInfo(name); info.type, info.linkname = kind, link
            data = photos[1][0][1] if kind == tarfile.REGTYPE else b""
            info.size = len(data); tar.addfile(info, io.BytesIO(data))
    source = open_images(tmp_path / "in" / "t.tar")
    assert len(pixels(source)) == 3 and source.fingerprint and all(n.encode() for n in source.names)
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == ["t.tar"] and not (tmp_path / "evil.jpg").exists()


# ---- shards

def test_labels_of_shards(photos, tmp_path):
    jpg = photos[1][0][1]
    def opened(*parts, **kw): return open_images(f"wds://{write_tar(tmp_path / 'p.tar', [(f'{i}.{k}', d) for i, p in enumerate(parts) for k, d in p.items()])}", **kw)
    as_json = lambda v: {"jpg": jpg, "json": json.dumps(v).encode()}
    assert opened(as_json(3), as_json({"label": 1, "name": "x"})).labels.tolist() == [3, 1]
    assert opened({"jpg": jpg, "txt": b"b\n"}, {"jpg": jpg, "txt": b"a"}).classes == ["a", "b"]
    assert opened({"png": jpg}, {"jpeg": jpg}).classes == ["all"] and opened({"seg.png": b"?", "jpg": jpg, "cls": b"0"})[0].label == 0
    torn = opened({"jpg": jpg, "cls": b"0"}, {"cls": b"1"}, {"jpg": jpg, "cls": b"\xff"}, as_json({"label": 1, "cls": 2}), {"jpg": jpg, "cls": b"7"}, classes=["x", "y"], max_bad=4)
    assert [i.id for i in torn.iter_items()] == [0] and len(torn.bad) == 4
    with pytest.raises(BadInput, match="all numbers or all class names"): opened({"jpg": jpg, "cls": b"0"}, {"jpg": jpg, "txt": b"cat"})
    with pytest.raises(BadInput, match="must hold samples"): opened({"cls": b"0"})


class Handler(http.server.SimpleHTTPRequestHandler):
    cuts, served = [], []
    def log_message(self, *args): pass
    def copyfile(self, source, out):
        self.served.append(self.path)
        out.write(source.read(self.cuts.pop()) if self.cuts else source.read())


@pytest.fixture
def server(tmp_path):
    Handler.cuts, Handler.served = [], []
    s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path))
    t = threading.Thread(target=s.serve_forever); t.start()
    yield f"http://127.0.0.1:{s.server_port}"
    s.shutdown(); s.server_close(); t.join()


def shards(folder, files, count):
    each = len(files) // count
    for k in range(count):
        part = files[each * k:each * k + each]
        write_tar(folder / f"s-{k:02d}.tar", [e for n, d in part for e in ((n.split("/")[1], d), (n.split("/")[1].replace("jpg", "cls"), b"2"))])


def test_http_shards_are_dealt_out_whole_and_survive_dropped_connections(photos, tmp_path, server):
    shards(tmp_path, photos[1], 4)
    source = open_images(f"wds://{server}/s-{{00..03}}.tar?buffer=5")
    assert source.streaming
    with pytest.raises(TypeError): len(source)
    shares = []
    for rank in (0, 1):
        Handler.served.clear(); shares.append([i.key for i in source.iter_items(1, rank=rank, world=2)])
        assert len(Handler.served) == 2 == len(set(Handler.served))
    assert len(set(shares[0] + shares[1])) == 40 and all(i.label == 2 for i in source.iter_items())
    three = [[i.key for i in source.iter_items(1, rank=r, world=3)] for r in range(3)]
    assert sorted(sum(three, [])) == sorted(sum(shares, []))
    calm = [i.key for i in source.iter_items(7)]
    Handler.cuts = [3000, 700]
    assert [i.key for i in source.iter_items(7)] == calm and not Handler.cuts
    Handler.cuts = [3000] * 3
    with pytest.raises(BadInput, match="s-0.*readable tar"): list(source.iter_items(7))
    with pytest.raises(Missing, match="404"): list(open_images(f"wds://{server}/none.tar").iter_items())


def test_shards_on_the_hub_go_through_its_file_system(photos, tmp_path, monkeypatch):
    import fsspec, huggingface_hub
    hub = fsspec.filesystem("memory")
    shards(tmp_path, photos[1], 2)
    for p in tmp_path.glob("s-*.tar"): hub.pipe(f"/datasets/me/set/{p.name}", p.read_bytes())
    class Fake:
        def glob(self, pattern): return [p.lstrip("/") for p in hub.glob(pattern.removeprefix("hf:/"))]
        def open(self, path, mode): return hub.open(path.removeprefix("hf:/"), mode)
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", Fake)
    source = open_images("wds://hf://datasets/me/set/s-*.tar")
    assert source.shards == ["hf://datasets/me/set/s-00.tar", "hf://datasets/me/set/s-01.tar"] and len(list(source.iter_items())) == 40
    with pytest.raises(Missing): open_images("wds://hf://datasets/me/set/t-*.tar")


def test_a_stream_of_names_needs_classes(photos, tmp_path):
    write_tar(tmp_path / "s.tar", [("0.jpg", photos[1][0][1]), ("0.txt", b"cat")])
    with pytest.raises(BadInput, match="classes=None"): list(open_images(f"wds://{tmp_path}/s.tar?streaming=1").iter_items())
    with pytest.raises(BadItem, match="label 'cat', none of the 1 classes"): list(open_images(f"wds://{tmp_path}/s.tar?streaming=1", classes=["dog"]).iter_items())


# ---- tables

def test_columns_are_guessed_only_when_there_is_one_candidate(photos, tmp_path):
    cell = [{"bytes": photos[1][i][1], "path": None} for i in range(2)]
    def saved(features=None, **columns): datasets.Dataset.from_dict(columns, features and datasets.Features(features)).to_parquet(tmp_path / "t.parquet"); return f"datasets://{tmp_path}/t.parquet"
    picture, number, name = datasets.Image(), datasets.Value("int64"), datasets.Value("string")
    assert open_images(saved(dict(photo=picture, caption=name), photo=cell, caption=["a", "b"])).classes == ["all"]
    assert open_images(saved(dict(photo=picture, target=name), photo=cell, target=["b", "a"])).labels.tolist() == [1, 0]
    two = saved(dict(a=picture, b=picture, label=number, cls=number), a=cell, b=cell, label=[0, 1], cls=[4, 2])
    with pytest.raises(BadInput, match="a, b could be meant"): open_images(two)
    with pytest.raises(BadInput, match="label, cls could be meant"): open_images(two + "?image=a")
    assert open_images(two + "?image=a&label=cls").labels.tolist() == [4, 2] and open_images(two + "?image=b&label=none").labels.tolist() == [0, 0]
    with pytest.raises(BadInput, match="numbers or names"): open_images(saved(dict(image=picture, label=datasets.Value("float32")), image=cell, label=[0.5, 1]))
    missing = open_images(saved(dict(image=picture, label=number), image=[cell[0], None], label=[0, 1]), max_bad=1)
    assert [i.id for i in missing.iter_items()] == [0] and "row 1" in str(missing.bad[0])


# ---- bad addresses

@pytest.mark.parametrize("uri, words", [
    ("nowhere", "no such folder"), ("nowhere.tar", "no such tar"), ("void", "must hold pictures"), ("mixed", "not both"), ("wds://{}/void", "at least one .tar"),
    ("wds://pipe:cat x", "must be a folder"), ("s3://x", "must be one of shapes, wds, datasets"), ("shapes://?n=0", "n=0"), ("shapes://?difficulty=2", "difficulty=2.0"),
    ("shapes://?diffculty=0", "did you mean difficulty"), ("shapes://?size=x", "whole number"), ("datasets://{}/nowhere", "no such file or folder"),
    ("datasets://{}/void", "cannot be opened"), ("datasets://{}/a.txt", "must be one of .parquet"), ("wds://{}/void?buffer=1&stream=1", "did you mean streaming")])
def test_a_bad_address_is_one_sentence(tmp_path, uri, words):
    (tmp_path / "void").mkdir(); (tmp_path / "a.txt").write_text("x"); (tmp_path / "mixed" / "c").mkdir(parents=True)
    for p in ("mixed/x.png", "mixed/c/y.png"): (tmp_path / p).write_bytes(encode(Image.new("RGB", (2, 2)), "PNG"))
    with pytest.raises(BadInput, match=words): open_images(uri.format(tmp_path) if "://" in uri else tmp_path / uri)


# ---- transforms

@pytest.mark.parametrize("augment", [Augment(k, 24, flip=True) for k in ("center", "random-crop", "ten-crop", "resize", "resize-crop", "area-crop")])
def test_a_view_depends_on_picture_id_and_epoch_only(photos, augment):
    source, draws = open_images(photos[0]), Keyed(3)
    whole = load_batch(source, range(40), augment, draws, epoch=2)[0]
    order = np.random.default_rng(0).permutation(40)
    assert torch.equal(load_batch(source, order, augment, draws, epoch=2)[0], whole[order])
    assert torch.equal(load_batch(source, [11], augment, draws, epoch=2)[0][0], whole[11])
    assert not torch.equal(load_batch(source, range(40), augment, draws, epoch=3)[0], whole)


def test_the_fast_path_draws_what_the_slow_path_draws():
    source, draws = Shapes(n=64, size=24), Keyed(1)
    class Slow(Shapes): batch = property(lambda self: (_ for _ in ()).throw(AttributeError("batch"))); __getitem__ = lambda self, i: source[i]
    for augment in (Augment("center", 24, flip=True), Augment("resize", 24), Augment("resize-crop", 24, flip=True)):
        a, b = load_batch(source, range(64), augment, draws, 5), load_batch(Slow(n=64, size=24), range(64), augment, draws, 5)
        assert all(torch.equal(x, y) for x, y in zip(a, b))


def test_random_crop_is_uniform_over_the_published_ranges():
    image, seen = Image.fromarray(np.arange(50 * 40 * 3, dtype=np.uint32).reshape(50, 40, 3).astype(np.uint8)), []
    class Spy(Keyed):
        def uniform(self, name, at, *shape): u = super().uniform(name, at, *shape); seen.append(u); return u
    asked = []
    chosen_crop(image, 32, lambda n: asked.append(n) or n - 1)
    assert asked == [9, 40 * 50 // 40 - 32 + 1, 40 - 32 + 1], "short side 32..40, then the row, then the column"
    for i in range(300): assert random_crop(image, 32, Spy(0), At(torch.tensor([i]))).size == (32, 32)
    u = torch.cat(seen); bins = torch.histc(u[:, 0] * 9, 9, 0, 9)
    assert u.shape == (300, 3) and bins.min() > 15 and resize_short(image, 32).size == (32, 40)


def test_bytes_survive_the_round_trip_and_rules_are_named():
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    x = to_tensor(images)
    assert (to_uint8(x).numpy() == images).all() and (to_uint8(x, "save-image").numpy() == images).all() and x.abs().max() <= 1
    lost = images.astype(int) - to_uint8(x, "truncate").numpy()
    assert set(np.unique(lost)) == {0, 1}
    assert (contact_sheet(x[:1]).numpy() == images[0]).all()
    for call in (lambda: to_uint8(x, "floor"), lambda: Augment("centre"), lambda: Augment(size=0), lambda: Augment("ten-crop", crop_range=0.9), lambda: to_tensor(images[..., :2])):
        with pytest.raises(BadInput): call()
