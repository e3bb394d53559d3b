"Pictures: one set of bytes in every container, damaged input, streams, and random choices that belong to the picture."
import functools
import http.server
import io
import json
import pickle
import random
import struct
import tarfile
import zlib

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.served import served
from vgnb.core import BadInput, BadItem, Missing
from vgnb.data.images import open_images
from vgnb.data.shapes import Shapes, draw_shapes, shape_ranges
from vgnb.data.stored import decode_image
from vgnb.data.transforms import (
    Augment,
    chosen_crop,
    contact_sheet,
    load_batch,
    random_crop,
    resize_short,
    to_tensor,
    to_uint8,
)
from vgnb.draws import At, Keyed

def encode(image, kind="JPEG"):
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return file.getvalue()


def add(tar, name, data, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    tar.addfile(info, io.BytesIO(data))


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files: add(tar, name, data)
    return path


def write_folder(folder, files):
    for name, data in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def pixels(source): return [(np.asarray(item.image).tobytes(), source.classes[item.label]) for item in whole(source)]
def whole(source): return [source[i] for i in range(len(source))]
def ids(source, *args, **kw): return [item.id for item in source.iter_items(*args, **kw)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def photos(tmp_path):
    "40 JPEG files in class folders; returns (folder, [(class/name, bytes)] in folder order)."
    shapes, files = Shapes(n=40, size=40, seed=5), []
    for i in range(40):
        item = shapes[i]
        files.append((f"{shapes.classes[item.label]}/{i:03d}.jpg", encode(item.image)))
    return write_folder(tmp_path / "photos", files), sorted(files)


# ---- shapes

def test_a_shape_does_not_depend_on_its_batch_and_scales():
    source = Shapes(seed=7, difficulty=0.6)
    some = np.random.default_rng(0).integers(0, 2 ** 32, 300)
    images, labels = source.batch(some)
    order = np.random.default_rng(1).permutation(300)
    for part in (order[:1], order[1:8], order[8:70], order[70:]):
        again, same = source.batch(some[part])
        assert (again == images[part]).all()
        assert (same == labels[part]).all()

    large, same = Shapes(size=128, seed=7, difficulty=0.6).batch(some[:40])
    small = large.reshape(40, 32, 4, 32, 4, 3).mean((2, 4))
    assert (same == labels[:40]).all()
    assert np.abs(small - images[:40]).mean() < 2


def test_shapes_lie_in_the_frame_stand_upright_and_are_balanced():
    u = np.random.default_rng(0).uniform(size=(500, 32))
    u[:, 7:], u[:, 5:7] = 0, 1                                   # black ground, vivid shape
    middle = u.copy()
    middle[:, 2:4] = 0.5
    labels = np.arange(500) % 10
    for d in (0, 0.25, 1):
        there, here = (draw_shapes(labels, v, 64, d).max(-1).sum((1, 2), dtype=float) for v in (u, middle))
        apart = np.abs(there / here - 1).max()
        assert apart < 0.02, "a shape that is moved keeps its area: no part of it left the frame"

    upright = draw_shapes(np.arange(10), np.full((10, 32), 0.5), 64, 0).max(-1) > 120
    def rows(k): return upright[k].sum(1)[upright[k].any(1)]
    assert rows(2)[2] < rows(2)[-3], "a triangle is wide below"
    assert rows(6)[8] > rows(6)[-8], "a heart is narrow below"
    for seed in (0, 9):
        assert (np.bincount(Shapes(seed=seed).labels(np.arange(500, 1500)), minlength=10) == 100).all()
    assert shape_ranges()["angle"] == 30


# ---- one set of bytes, every container

@pytest.fixture
def containers(photos, tmp_path):
    "The photos in every container: (address for `open_images` of each, of the streams, classes)."
    folder, files = photos
    groups = [name.split("/")[0] for name, _ in files]
    classes = sorted(set(groups))
    write_tar(tmp_path / "train.tar", [(f"train/{n}", d) for n, d in files])
    write_tar(tmp_path / "dot.tar", [(f"./{n}", d) for n, d in files])

    (tmp_path / "wds").mkdir()
    for k in range(4):
        samples = []
        for i in range(10):
            samples += [(f"{i:03d}.txt", groups[10 * k + i].encode()), (f"{i:03d}.jpg", files[10 * k + i][1])]
        write_tar(tmp_path / "wds" / f"p-{k}.tar", samples)

    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=classes))
    cells = [{"bytes": data, "path": None} for _, data in files]
    table = datasets.Dataset.from_dict(dict(image=cells, label=groups), features)
    (tmp_path / "hub").mkdir()
    table.to_parquet(tmp_path / "hub" / "train.parquet")
    table.select(range(3)).to_parquet(tmp_path / "hub" / "test.parquet")
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=table, test=table.select(range(3))).save_to_disk(tmp_path / "splits")
    lines = [f"photos/{name},{group}\n" for (name, _), group in zip(files, groups)]
    (tmp_path / "list.csv").write_text("file,kind\n" + "".join(lines))

    indexed = [tmp_path / "train.tar", tmp_path / "dot.tar",
               f"wds://{tmp_path}/wds", f"wds://{tmp_path}/wds/p-{{0..3}}.tar",
               f"datasets://{tmp_path}/hub", f"datasets://{tmp_path}/hub/train.parquet",
               f"datasets://{tmp_path}/saved", f"datasets://{tmp_path}/splits",
               f"datasets://{tmp_path}/list.csv?image=file&label=kind", f"datasets://{folder}"]
    streamed = [f"wds://{tmp_path}/wds?streaming=1", f"datasets://{tmp_path}/hub?streaming=1&buffer=16",
                f"datasets://{tmp_path}/saved?streaming=1", f"datasets://{tmp_path}/splits?split=train&streaming=1"]
    return indexed, streamed, classes


def test_the_same_bytes_give_the_same_items_everywhere(photos, containers, tmp_path):
    first = open_images(photos[0])
    expected = pixels(first)
    indexed, streamed, classes = containers
    for uri in indexed:
        source = open_images(uri)
        assert pixels(source) == expected, uri
        assert source.classes == classes, uri
        assert ids(source, 3, 1) == ids(first, 3, 1), uri
    assert len(open_images(f"datasets://{tmp_path}/hub?split=test")) == 3
    assert len(open_images(f"datasets://{tmp_path}/splits?split=test")) == 3

    for uri in streamed:
        stream = open_images(uri, classes=classes)
        items = stream.iter_items(2, 4, shuffle=False)
        assert [(np.asarray(i.image).tobytes(), stream.classes[i.label]) for i in items] == expected, uri
        shares = ids(stream, 2, 4, 0, 2) + ids(stream, 2, 4, 1, 2)
        assert len(set(shares)) == len(shares) == 40, uri
        assert ids(stream, 2, 4) == ids(stream, 2, 4) != ids(stream, 3, 4), uri


def test_a_fingerprint_survives_a_copy_and_notices_other_bytes(photos, tmp_path):
    folder, files = photos
    write_folder(tmp_path / "copy", files)
    copy = open_images(tmp_path / "copy").fingerprint
    assert copy == open_images(folder).fingerprint
    assert copy != open_images(folder, alpha="white").fingerprint
    (tmp_path / "copy" / files[0][0]).write_bytes(files[1][1])
    assert copy != open_images(tmp_path / "copy").fingerprint


def test_workers_read_a_tar_through_their_own_handles(photos, tmp_path):
    source = open_images(write_tar(tmp_path / "t.tar", photos[1]))
    expected = pixels(source)
    assert pixels(pickle.loads(pickle.dumps(source))) == expected
    def collate(items): return [np.asarray(item.image).tobytes() for item in items]
    loader = torch.utils.data.DataLoader(source, num_workers=2, batch_size=4, collate_fn=collate)
    assert sum(loader, []) == [p for p, _ in expected]


# ---- damage

@pytest.mark.fault("F10")
def test_bad_pictures_are_named_counted_or_fatal(photos):
    folder, files = photos
    empty, torn = files[3][0], files[9][0]
    (folder / empty).write_bytes(b"")
    (folder / torn).write_bytes(files[9][1][:300])
    with pytest.raises(BadItem, match=empty): open_images(folder)[3]
    with pytest.raises(BadItem, match="max_bad=1 is used up"):
        list(open_images(folder, max_bad=1).iter_items())

    source = open_images(folder, max_bad=2)
    for epoch in (0, 1): assert len(ids(source, epoch)) == 38
    assert {e.name for e in source.bad} == {empty, torn}
    assert all(e.reason for e in source.bad)
    x, labels, kept = load_batch(source, range(12), Augment("center", 32), Keyed(0))
    assert x.shape == (10, 3, 32, 32)
    assert len(labels) == 10
    assert kept.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 10, 11]


@pytest.mark.fault("F10")
def test_mutated_pictures_never_crash():
    rng, image = random.Random(0), Shapes(size=48)[3].image
    files = [encode(image, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "PPM")]
    failed = 0
    for n in range(250):
        data = bytearray(files[n % 5])
        for _ in range(rng.randrange(1, 20)): data[rng.randrange(len(data))] = rng.randrange(256)
        try: assert decode_image(bytes(data[:rng.randrange(8, len(data) + 1)]), "x").mode == "RGB"
        except BadItem as e:
            failed += 1
            assert e.name == "x"
    assert failed > 100


@pytest.mark.fault("F16")
@pytest.mark.parametrize("side", [9000, 60000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(BadItem, match="pixels"): decode_image(png, "bomb")


def test_sixteen_bit_and_palette_pictures():
    deep = Image.fromarray(np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16))
    assert (np.asarray(decode_image(encode(deep, "PNG")))[..., 0].ravel() == np.arange(256)).all()
    palette = Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4)
    assert decode_image(encode(palette, "PNG")).getpixel((0, 0)) == (10, 200, 30)


@pytest.mark.fault("F10")
def test_a_tar_that_is_not_whole_is_an_error_not_a_short_data_set(photos, tmp_path):
    data = write_tar(tmp_path / "t.tar", photos[1]).read_bytes()
    with tarfile.open(tmp_path / "t.tar") as tar: starts = [m.offset for m in tar]
    damaged = bytearray(data)
    damaged[starts[20] + 150] ^= 0xFF
    for part in (data[:starts[20]], data[:starts[20] + 700], bytes(damaged), data[:100], b""):
        (tmp_path / "t.tar").write_bytes(part)
        (tmp_path / "w.tar").write_bytes(part)
        for uri in (tmp_path / "t.tar", f"wds://{tmp_path}/w.tar"):
            with pytest.raises(BadInput, match="whole, uncompressed tar"): open_images(uri)
        stream = open_images(f"wds://{tmp_path}/w.tar?streaming=1", classes=["a"])
        with pytest.raises(BadInput, match="whole, readable tar"): list(stream.iter_items())


@pytest.mark.fault("F15")
def test_hostile_members_touch_nothing(photos, tmp_path):
    jpg = photos[1][0][1]
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "t.tar", "w") as tar:
        for name in ("../evil.jpg", "/abs/evil.jpg", "a/\udcff.jpg"): add(tar, name, jpg)
        add(tar, "a/link.jpg", b"", tarfile.SYMTYPE, "/etc/passwd")
        add(tar, "a/hard.jpg", b"", tarfile.LNKTYPE, "a/x.jpg")
        add(tar, "a/dev.jpg", b"", tarfile.CHRTYPE)
    source = open_images(tmp_path / "in" / "t.tar")
    assert len(pixels(source)) == 3
    assert source.fingerprint
    assert all(n.encode() for n in source.names)
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == ["t.tar"]
    assert not (tmp_path / "evil.jpg").exists()


# ---- shards

def test_labels_of_shards(photos, tmp_path):
    jpg = photos[1][0][1]
    def as_json(value): return {"jpg": jpg, "json": json.dumps(value).encode()}

    def opened(*samples, **kw):
        files = [(f"{i}.{kind}", data) for i, sample in enumerate(samples) for kind, data in sample.items()]
        return open_images(f"wds://{write_tar(tmp_path / 'p.tar', files)}", **kw)

    assert opened(as_json(3), as_json({"label": 1, "name": "x"})).labels.tolist() == [3, 1]
    assert opened({"jpg": jpg, "txt": b"b\n"}, {"jpg": jpg, "txt": b"a"}).classes == ["a", "b"]
    assert opened({"png": jpg}, {"jpeg": jpg}).classes == ["all"]
    assert opened({"seg.png": b"?", "jpg": jpg, "cls": b"0"})[0].label == 0

    torn = opened({"jpg": jpg, "cls": b"0"}, {"cls": b"1"}, {"jpg": jpg, "cls": b"\xff"},
                  as_json({"label": 1, "cls": 2}), {"jpg": jpg, "cls": b"7"}, classes=["x", "y"], max_bad=4)
    assert ids(torn) == [0]
    assert len(torn.bad) == 4
    with pytest.raises(BadInput, match="all numbers or all class names"):
        opened({"jpg": jpg, "cls": b"0"}, {"jpg": jpg, "txt": b"cat"})
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
    with served(functools.partial(Handler, directory=tmp_path)) as address: yield address


def shards(folder, files, count):
    each = len(files) // count
    for k in range(count):
        samples = []
        for name, data in files[each * k:each * (k + 1)]:
            stem = name.split("/")[1].removesuffix(".jpg")
            samples += [(f"{stem}.jpg", data), (f"{stem}.cls", b"2")]
        write_tar(folder / f"s-{k:02d}.tar", samples)


def test_http_shards_are_dealt_out_whole_and_survive_dropped_connections(photos, tmp_path, server):
    shards(tmp_path, photos[1], 4)
    source = open_images(f"wds://{server}/s-{{00..03}}.tar?buffer=5")
    def keys(*args, **kw): return [item.key for item in source.iter_items(*args, **kw)]
    assert source.streaming
    with pytest.raises(TypeError): len(source)

    shares = []
    for rank in (0, 1):
        Handler.served.clear()
        shares += keys(1, rank=rank, world=2)
        assert len(Handler.served) == len(set(Handler.served)) == 2
    assert len(set(shares)) == 40
    assert all(item.label == 2 for item in source.iter_items())
    three = [key for rank in range(3) for key in keys(1, rank=rank, world=3)]
    assert sorted(three) == sorted(shares)

    calm = keys(7)
    Handler.cuts = [3000, 700]
    assert keys(7) == calm
    assert not Handler.cuts
    Handler.cuts = [3000] * 3
    with pytest.raises(BadInput, match="s-0.*readable tar"): keys(7)
    with pytest.raises(Missing, match="404"):
        list(open_images(f"wds://{server}/none.tar").iter_items())


def test_shards_on_the_hub_go_through_its_file_system(photos, tmp_path, monkeypatch):
    import fsspec
    import huggingface_hub
    hub = fsspec.filesystem("memory")
    shards(tmp_path, photos[1], 2)
    for p in tmp_path.glob("s-*.tar"): hub.pipe(f"/datasets/me/set/{p.name}", p.read_bytes())

    class Fake:
        def glob(self, pattern): return [p.lstrip("/") for p in hub.glob(pattern.removeprefix("hf:/"))]
        def open(self, path, mode): return hub.open(path.removeprefix("hf:/"), mode)

    monkeypatch.setattr(huggingface_hub, "HfFileSystem", Fake)
    source = open_images("wds://hf://datasets/me/set/s-*.tar")
    assert source.shards == ["hf://datasets/me/set/s-00.tar", "hf://datasets/me/set/s-01.tar"]
    assert len(ids(source)) == 40
    with pytest.raises(Missing): open_images("wds://hf://datasets/me/set/t-*.tar")


def test_a_stream_of_names_needs_classes(photos, tmp_path):
    write_tar(tmp_path / "s.tar", [("0.jpg", photos[1][0][1]), ("0.txt", b"cat")])
    uri = f"wds://{tmp_path}/s.tar?streaming=1"
    with pytest.raises(BadInput, match="classes=None"): ids(open_images(uri))
    with pytest.raises(BadItem, match="label 'cat', none of the 1 classes"):
        ids(open_images(uri, classes=["dog"]))


# ---- tables

def test_columns_are_guessed_only_when_there_is_one_candidate(photos, tmp_path):
    cells = [{"bytes": photos[1][i][1], "path": None} for i in range(2)]
    picture, number, name = datasets.Image(), datasets.Value("int64"), datasets.Value("string")

    def saved(kinds, **columns):
        datasets.Dataset.from_dict(columns, datasets.Features(kinds)).to_parquet(tmp_path / "t.parquet")
        return f"datasets://{tmp_path}/t.parquet"

    one = saved(dict(photo=picture, caption=name), photo=cells, caption=["a", "b"])
    assert open_images(one).classes == ["all"]
    one = saved(dict(photo=picture, target=name), photo=cells, target=["b", "a"])
    assert open_images(one).labels.tolist() == [1, 0]

    kinds = dict(a=picture, b=picture, label=number, cls=number)
    two = saved(kinds, a=cells, b=cells, label=[0, 1], cls=[4, 2])
    with pytest.raises(BadInput, match="a, b could be meant"): open_images(two)
    with pytest.raises(BadInput, match="label, cls could be meant"): open_images(two + "?image=a")
    assert open_images(two + "?image=a&label=cls").labels.tolist() == [4, 2]
    assert open_images(two + "?image=b&label=none").labels.tolist() == [0, 0]

    shares = saved(dict(image=picture, label=datasets.Value("float32")), image=cells, label=[0.5, 1])
    with pytest.raises(BadInput, match="numbers or names"): open_images(shares)
    gap = saved(dict(image=picture, label=number), image=[cells[0], None], label=[0, 1])
    missing = open_images(gap, max_bad=1)
    assert ids(missing) == [0]
    assert "row 1" in str(missing.bad[0])


# ---- bad addresses

@pytest.mark.parametrize("uri, words", [
    ("nowhere", "no such folder"),
    ("nowhere.tar", "no such tar"),
    ("x.parquet", r"is a parquet file: read .* datasets://.*\?split=train, .*datasets://.*x.parquet$"),
    ("x.JSON", "is a json file: .*datasets://.*name their folder"),
    ("folder://{}/x.csv", "is a csv file: .*datasets://"),
    ("x.zip", "is a zip file: unpack it .*as a .tar"),
    ("x.npz", "is a file of arrays"),
    ("mixed/x.png", "is a single picture: name its folder, .*mixed$"),
    ("a.txt", "is a file, where a folder of pictures or a .tar is meant"),
    ("void", "must hold pictures"),
    ("mixed", "not both"),
    ("wds://{}/void", "at least one .tar"),
    ("wds://pipe:cat x", "must be a folder"),
    ("s3://x", "must be one of shapes, wds, datasets"),
    ("shapes://?n=0", "n=0"),
    ("shapes://?difficulty=2", "difficulty=2.0"),
    ("shapes://?diffculty=0", "did you mean difficulty"),
    ("shapes://?size=x", "whole number"),
    ("datasets://{}/nowhere", "no such file or folder"),
    ("datasets://{}/void", "cannot be opened"),
    ("datasets://{}/a.txt", "must be one of .parquet"),
    ("wds://{}/void?buffer=1&stream=1", "did you mean streaming"),
])
def test_a_bad_address_is_one_sentence(tmp_path, uri, words):
    (tmp_path / "void").mkdir()
    for name in ("a.txt", "x.parquet", "x.JSON", "x.csv", "x.zip", "x.npz"): (tmp_path / name).write_text("x")
    dot = encode(Image.new("RGB", (2, 2)), "PNG")
    write_folder(tmp_path, [("mixed/x.png", dot), ("mixed/c/y.png", dot)])
    with pytest.raises(BadInput, match=words):
        open_images(uri.format(tmp_path) if "://" in uri else tmp_path / uri)


# ---- transforms

KINDS = ("center", "random-crop", "ten-crop", "resize", "resize-crop", "area-crop")


@pytest.mark.parametrize("augment", [Augment(kind, 24, flip=True) for kind in KINDS])
def test_a_view_depends_on_picture_id_and_epoch_only(photos, augment):
    source, draws = open_images(photos[0]), Keyed(3)
    def views(some, epoch): return load_batch(source, some, augment, draws, epoch=epoch)[0]
    together = views(range(40), 2)
    order = np.random.default_rng(0).permutation(40)
    assert torch.equal(views(order, 2), together[order])
    assert torch.equal(views([11], 2)[0], together[11])
    assert not torch.equal(views(range(40), 3), together)


class Slow(Shapes):
    "Shapes without a `batch`: each picture is asked for."
    batch = property(lambda self: (_ for _ in ()).throw(AttributeError("batch")))
    def __getitem__(self, i): return Shapes(self.n, self.size, self.seed)[i]


@pytest.mark.parametrize("augment", [Augment("center", 24, flip=True), Augment("resize", 24),
                                     Augment("resize-crop", 24, flip=True)])
def test_the_fast_path_draws_what_the_slow_path_draws(augment):
    fast, slow = Shapes(n=64, size=24), Slow(n=64, size=24)
    assert augment.keeps(fast)
    assert not augment.keeps(slow)
    quick, careful = (load_batch(source, range(64), augment, Keyed(1), 5) for source in (fast, slow))
    for x, y in zip(quick, careful): assert torch.equal(x, y)


def test_random_crop_is_uniform_over_the_published_ranges():
    image = Image.fromarray(np.arange(50 * 40 * 3, dtype=np.uint32).reshape(50, 40, 3).astype(np.uint8))
    asked, seen = [], []

    def last(n):
        asked.append(n)
        return n - 1

    class Spy(Keyed):
        def uniform(self, name, at, *shape):
            u = super().uniform(name, at, *shape)
            seen.append(u)
            return u

    chosen_crop(image, 32, last)
    assert asked == [9, 40 * 50 // 40 - 32 + 1, 40 - 32 + 1], "short side 32..40, then the row, then the column"
    for i in range(300):
        assert random_crop(image, 32, Spy(0), At(torch.tensor([i]))).size == (32, 32)
    u = torch.cat(seen)
    assert u.shape == (300, 3)
    assert torch.histc(u[:, 0] * 9, 9, 0, 9).min() > 15
    assert resize_short(image, 32).size == (32, 40)


def test_bytes_survive_the_round_trip_and_rules_are_named():
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    x = to_tensor(images)
    assert x.abs().max() <= 1
    for rule in ("round", "save-image"): assert (to_uint8(x, rule).numpy() == images).all()
    lost = images.astype(int) - to_uint8(x, "truncate").numpy()
    assert set(np.unique(lost)) == {0, 1}
    assert (contact_sheet(x[:1]).numpy() == images[0]).all()


@pytest.mark.parametrize("call", [
    lambda: to_uint8(torch.zeros(1, 3, 2, 2), "floor"),
    lambda: to_tensor(np.zeros((4, 16, 16, 2), np.uint8)),
    lambda: Augment("centre"),
    lambda: Augment(size=0),
    lambda: Augment("ten-crop", crop_range=0.9),
])
def test_what_a_transform_cannot_do_is_refused(call):
    with pytest.raises(BadInput): call()
