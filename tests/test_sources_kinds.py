"One set, one meaning: the same pictures, classes, labels and order from every container, whatever else lies in it."
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.toy_training import RECIPE, Pair, Points, saves
from vgnb.core import BadInput, BadItem, Missing
from vgnb.data.export import contents, export_images
from vgnb.data.images import open_images
from vgnb.data.listing import LOOP, NOWHERE, TWICE, list_folder, read_file
from vgnb.data.sources import find_class
from vgnb.data.stored import KaggleImages
from vgnb.data.tars import FileBytes, tar_members
from vgnb.data.text import Captions
from vgnb.training.checkpoints import newest
from vgnb.training.extract import CaptionImages
from vgnb.training.feed import Feed, Share, stream
from vgnb.training.run_folder import Run
from vgnb.training.trainer import Trainer

PLAIN = ("cat/0.png", "cat/1.png", "dog/0.png", "dog/2.png", "emu/5.png")
SETS = {
    "plain": PLAIN,
    "nested": ("cat/young/0.png", "cat/old/1.png", "cat/3.png", "dog/young/2.png", "dog/old/x/4.png"),
    "numbers": ("0/a.png", "1/a.png", "2/a.png", "10/a.png", "11/a.png"),
    "padded": ("007/a.png", "7/a.png", "07/b.png", "cat/b.png"),
    "words": ("chat noir/phöto (1).png", "ñandú/0.png", "犬/0.png", "Ant/0.png", "ant/1.png"),
    "upper": ("cat/0.PNG", "cat/1.Png", "dog/0.png"),
    "no endings": ("cat/0", "cat/1", "dog/v1.0/0"),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def picture(k, kind="PNG"):
    "A picture that no other number gives."
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (k * 20 % 256, k, 255 - k)).save(file, kind)
    return file.getvalue()


def write(root, paths, data=None):
    for k, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture(k) if data is None else data)
    return root


def tar_of(path, *members):
    "(name, bytes) are files, (name, type, target) anything else."
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data, *target in members:
            info = tarfile.TarInfo(name)
            if target: info.type, info.linkname = data, target[0]
            else: info.size = len(data)
            tar.addfile(info, None if target else io.BytesIO(data))
    return path


def packed(folder, path, top="."):
    with tarfile.open(path, "w") as tar: tar.add(folder, top)
    return path


def rows(source):
    "(class name, label, pixels) in order."
    items = [source[i] for i in range(len(source))]
    return [(source.classes[i.label], i.label, np.asarray(i.image).tobytes()) for i in items]


def streamed(stream):
    items = list(stream.iter_items(shuffle=False))
    return [(stream.classes[i.label], i.label, np.asarray(i.image).tobytes()) for i in items]


def parquet(folder, path):
    source = open_images(folder)
    cells = [{"bytes": source.read(i), "path": None} for i in range(len(source))]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=source.classes))
    datasets.Dataset.from_dict(dict(image=cells, label=source.labels), features).to_parquet(path)
    return path


# ---- one set in every container

@pytest.mark.parametrize("paths", SETS.values(), ids=SETS)
def test_a_set_means_the_same_in_every_container(paths, tmp_path):
    folder = write(tmp_path / "set", paths)
    first = open_images(folder)
    expected = rows(first)
    assert first.classes == sorted({p.split("/")[0] for p in paths})
    assert [first.classes[label] for label in first.labels] == [name.split("/")[0] for name in first.names]

    tars = [packed(folder, tmp_path / f"{k}.tar", top) for k, top in enumerate((".", "set", "data/set", ""))]
    for place in (*tars, f"datasets://{folder}", f"datasets://{parquet(folder, tmp_path / 't.parquet')}"):
        source = open_images(place)
        assert rows(source) == expected, place
        assert source.classes == first.classes, place
    assert {tuple(open_images(t).names) for t in tars} == {tuple(first.names)}

    for out in (f"wds://{tmp_path}/wds", tmp_path / "out.tar", tmp_path / "out"):
        export_images(first, out, shard_size=2)
        assert rows(open_images(out)) == expected, out
    back = tmp_path / "back"
    export_images(open_images(f"wds://{tmp_path}/wds"), back)
    assert contents(open_images(back)) == contents(first)

    for address in (f"wds://{tmp_path}/wds?streaming=1", f"datasets://{folder}?streaming=1"):
        assert streamed(open_images(address, classes=first.classes)) == expected, address


def test_order_is_that_of_torchvisions_image_folder(tmp_path):
    folder = write(tmp_path / "set", ["b/x.png", "b/a-b/0.png", "b/a/0.png", "b/a/z/0.png", "B/10.png", "B/9.png"])
    found = []
    for name in sorted(e.name for e in os.scandir(folder)):
        for root, _, files in sorted(os.walk(folder / name)):
            found += [os.path.relpath(os.path.join(root, f), folder) for f in sorted(files)]
    assert open_images(folder).names == found


def test_a_tar_in_any_order_is_the_folder(tmp_path):
    folder = write(tmp_path / "set", SETS["nested"])
    members = [(p, (folder / p).read_bytes()) for p in reversed(SETS["nested"])]
    stale = ("cat/3.png", picture(99))                       # overwritten when the tar is unpacked
    assert rows(open_images(tar_of(tmp_path / "t.tar", stale, *members))) == rows(open_images(folder))


def test_a_class_folder_without_pictures_is_an_error_in_a_tar_too(tmp_path):
    folder = write(tmp_path / "set", PLAIN)
    (folder / "void").mkdir()
    for place in (folder, packed(folder, tmp_path / "t.tar"), f"datasets://{folder}"):
        with pytest.raises(BadInput, match="in every class folder; void has none"): open_images(place)


def test_shards_are_not_read_as_a_table_without_labels(tmp_path):
    export_images(open_images(write(tmp_path / "set", PLAIN)), f"wds://{tmp_path}/wds")
    with pytest.raises(BadInput, match="open them as wds://"): open_images(f"datasets://{tmp_path}/wds")
    assert open_images(f"datasets://{tmp_path}/wds?label=none").classes == ["all"]


def test_names_are_given_in_any_order_and_must_be_all(tmp_path):
    folder = write(tmp_path / "set", PLAIN)
    names = ["emu", "yak", "dog", "cat"]
    for place in (folder, packed(folder, tmp_path / "t.tar"), f"datasets://{folder}"):
        source = open_images(place, classes=names)
        assert source.classes == names
        assert source.labels.tolist() == [3, 3, 2, 2, 0]
        with pytest.raises(BadInput, match="emu is missing"): open_images(place, classes=["cat", "dog"])
    for wrong in ("cat", ["cat", "cat"], [0, 1]):
        with pytest.raises(BadInput, match="list of different names"): open_images(folder, classes=wrong)


def test_folders_called_train_and_val_are_parts_or_classes(tmp_path):
    folder = write(tmp_path / "set", ["train/cat/0.png", "train/dog/1.png", "val/cat/2.png", "val/dog/3.png"])
    source = open_images(folder)
    assert source.classes == ["train", "val"]
    assert any("parts of a set" in note for note in source.notes)
    for split in ("train", "validation", "val"):
        part = open_images(f"datasets://{folder}?split={split}")
        assert part.classes == ["cat", "dog"]
        assert len(part) == 2
    assert open_images(f"datasets://{folder}").fingerprint == open_images(folder / "train").fingerprint
    with pytest.raises(BadInput, match="split='test'"): open_images(f"datasets://{folder}?split=test")


def test_what_cannot_be_represented_is_refused_before_anything_is_written(tmp_path):
    source = open_images(write(tmp_path / "in" / "set", PLAIN))
    for name, shards_too in (("a/b", False), ("@eaDir", False), ("lost+found", False), ("x" * 256, False), ("", True)):
        source.classes = [name, "dog", "emu"]
        with pytest.raises(BadInput, match="classes="): export_images(source, tmp_path / "out")
        if shards_too:
            with pytest.raises(BadInput, match="classes="): export_images(source, f"wds://{tmp_path}/out")
        else:
            export_images(source, f"wds://{tmp_path}/out")
            assert name in open_images(f"wds://{tmp_path}/out").classes
            shutil.rmtree(tmp_path / "out")
    source.classes = ["dog", "dog", "emu"]
    with pytest.raises(BadInput, match="different names"): export_images(source, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_packed_tar_is_said_to_be_one(tmp_path):
    folder = write(tmp_path / "set", PLAIN)
    for name, mode in (("a.tar.gz", "w:gz"), ("b.tgz", "w:gz"), ("c.tar.xz", "w:xz"), ("d.tar", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as tar: tar.add(folder, ".")
        with pytest.raises(BadInput, match="whole, uncompressed tar"): open_images(tmp_path / name)


# ---- classes that somebody asks for

def test_a_class_is_found_by_name_first():
    names = ["0", "1", "10", "11", "2"]
    assert [find_class(label, names) for label in ("2", 2, "10", "4", 4)] == [4, 2, 2, 4, 4]
    assert find_class("7", [], 10) == 7
    for label, words in (("5", "<= 4"), (5, "<= 4"), ("1O", "did you mean 1"), (True, "integer"), (1.0, "integer")):
        with pytest.raises(BadInput, match=words): find_class(label, names, argument="classes")


def test_the_script_and_the_pipeline_find_the_same_class():
    from scripts.sample import Source, asked_of_each
    from vgnb.pipeline import Pipeline
    pipe = Pipeline.from_pretrained("tiny-maskgit")
    pipe.classes = ["0", "1", "10", "11", "2", *"vwxyz"]
    for asked in (["2"], ["10", "0"], ["z", "11"]):
        planned = asked_of_each(Source(count=4, classes=tuple(asked)), pipe, None, [])["labels"].tolist()
        expected = [find_class(a, pipe.classes) for a in asked]
        assert planned[:len(asked)] == pipe.condition(asked).labels.tolist() == expected
    assert asked_of_each(Source(count=1, classes=("9",)), pipe, None, [])["labels"].tolist() == [9]
    for wrong in ("12", "zz"):
        with pytest.raises(BadInput): asked_of_each(Source(count=4, classes=(wrong,)), pipe, None, [])
        with pytest.raises(BadInput): pipe.condition([wrong])


# ---- things that are no pictures of the set

STRAY = (".ipynb_checkpoints/x.png", "cat/.ipynb_checkpoints/0-checkpoint.png", "cat/@eaDir/0.png/THUMB.png",
         "__MACOSX/cat/._0.png", "dog/__MACOSX/0.png", "dog/._0.png", "cat/.DS_Store", "cat/Thumbs.db",
         "lost+found/0.png", "$RECYCLE.BIN/0.png", "System Volume Information/0.png")


def test_hidden_and_system_entries_are_skipped_and_counted_everywhere(tmp_path):
    folder = write(tmp_path / "set", PLAIN)
    expected = rows(open_images(folder))
    assert open_images(folder).notes == []
    write(folder, STRAY, picture(200))
    for place in (folder, packed(folder, tmp_path / "t.tar"), f"datasets://{folder}"):
        source = open_images(place)
        assert rows(source) == expected, place
        assert f"hidden or system entries: {len(STRAY)} (" in source.notes[0], place
    assert streamed(open_images(f"datasets://{folder}?streaming=1")) == expected

    samples = [("0.png", picture(0)), ("0.cls", b"0"), ("._0.png", picture(9)), ("__MACOSX/0.png", picture(9)),
               ("@eaDir/1.png", picture(9))]
    tar_of(tmp_path / "wds" / "s.tar", *samples)
    (tmp_path / "wds" / "._s.tar").write_bytes(b"half of a Mac file")
    shards = open_images(f"wds://{tmp_path}/wds")
    assert len(shards) == 1
    assert "hidden or system entries: 3" in shards.notes[0]
    assert len(list(open_images(f"wds://{tmp_path}/wds?streaming=1").iter_items())) == 1


def test_a_set_of_nothing_but_hidden_files_says_so(tmp_path):
    folder = write(tmp_path / "set", PLAIN)
    with pytest.raises(BadInput, match="must hold pictures.*hidden or system entries: 1"):
        open_images(packed(folder, tmp_path / "t.tar", ".cache/set"))
    assert len(open_images(write(tmp_path / ".cache", PLAIN))) == len(PLAIN)


def test_kaggles_layout_skips_them_too(tmp_path):
    train = tmp_path / "ILSVRC/Data/CLS-LOC/train"
    write(train, ["n01/n01_1.JPEG", "n02/n02_1.JPEG", "n02/.ipynb_checkpoints/n02_1.JPEG", "@eaDir/n01_1.JPEG"])
    (train / "n02" / "n02_2.JPEG").symlink_to("../n01/n01_1.JPEG")
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01 tench\nn02 crane\n")
    source = KaggleImages(tmp_path)
    assert source.paths == ["n01/n01_1.JPEG", "n02/n02_1.JPEG"]
    assert "hidden or system entries: 2" in source.notes[0]


def test_what_is_left_out_is_one_line_also_in_a_dry_run(tmp_path, caplog, capsys):
    from scripts.export_images import main
    folder = write(tmp_path / "set", [*PLAIN, "cat/notes.txt", "cat/0.jpg.1", "dog/notes.txt", "cat/._0.png"])
    (folder / "cat" / "up").symlink_to("..")
    os.mkfifo(folder / "cat" / "pipe.png")
    assert main([str(folder), str(tmp_path / "out"), "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert "5 pictures of 3 class(es)" in capsys.readouterr().out
    told, = (record.getMessage() for record in caplog.records)
    assert "no pictures by name: 3 (2 .txt, 1 .1)" in told
    assert "hidden or system entries: 1 (cat/._0.png)" in told
    assert "(cat/up)" in told
    assert "(cat/pipe.png)" in told


@pytest.mark.parametrize("labels, words", [
    ([5, 900], "classes without a picture: 899 of 901"),
    ([0, 2], "classes without a picture: 1 of 3"),
])
def test_numbers_with_gaps_are_told(labels, words, tmp_path):
    members = [m for k, n in enumerate(labels) for m in ((f"{k}.png", picture(k)), (f"{k}.cls", str(n).encode()))]
    source = open_images(f"wds://{tar_of(tmp_path / 's.tar', *members)}")
    assert source.labels.tolist() == labels
    assert any(words in note for note in source.notes)


# ---- formats

ENDINGS = {"jpg": "JPEG", "JPE": "JPEG", "jfif": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "tiff": "TIFF",
           "tif": "TIFF", "bmp": "BMP", "ppm": "PPM", "jp2": "JPEG2000", "avif": "AVIF", "": "PNG"}


def test_every_format_that_is_listed_is_read_from_every_container(tmp_path):
    for k, (ending, kind) in enumerate(ENDINGS.items()):
        path = tmp_path / "set" / "ab"[k % 2] / (f"{k:02}.{ending}" if ending else f"{k:02}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(k, kind))
    folder = open_images(tmp_path / "set")
    assert len(folder) == len(ENDINGS)
    assert folder.notes == []
    expected = rows(folder)
    assert rows(open_images(packed(tmp_path / "set", tmp_path / "t.tar"))) == expected
    assert rows(open_images(f"datasets://{tmp_path}/set")) == expected
    export_images(folder, f"wds://{tmp_path}/wds")
    assert rows(open_images(f"wds://{tmp_path}/wds")) == expected
    assert streamed(open_images(f"wds://{tmp_path}/wds?streaming=1", classes=["a", "b"])) == expected


@pytest.mark.fault("F10")
@pytest.mark.filterwarnings("ignore::UserWarning")          # Pillow's, about what is torn
def test_torn_pictures_of_the_new_formats_never_crash():
    from vgnb.data.stored import decode_image
    rng = np.random.default_rng(0)
    for kind in ("GIF", "TIFF", "JPEG2000", "AVIF", "WEBP"):
        data = np.frombuffer(picture(3, kind), np.uint8)
        for _ in range(60):
            torn = data.copy()
            torn[rng.integers(len(torn), size=3)] = rng.integers(256, size=3)
            torn = torn[:rng.integers(len(torn)) + 1]
            try: assert decode_image(torn.tobytes()).mode == "RGB"
            except BadItem as e: assert e.reason


# ---- links, loops, pipes

def linked(root):
    "A set with every link that people make, and the names that count."
    write(root, [*PLAIN, ".store/9.png", "../elsewhere/out/7.png"])
    (root / "cat" / "up").symlink_to("..")                            # the set itself
    (root / "cat" / "above").symlink_to("../..")                      # what is around it
    (root / "cat" / "self").symlink_to("self")
    (root / "ant").mkdir()
    (root / "ant" / "dogs").symlink_to("../dog")                      # met before the dogs themselves
    (root / "ant" / "1.png").symlink_to("../dog/0.png")
    (root / "ant" / "9.png").symlink_to("../.store/9.png")            # hidden, but named by a link
    (root / "ant" / "9 again.png").symlink_to("9.png")
    os.link(root / "cat" / "0.png", root / "emu" / "hard.png")        # a second name, not a link
    return sorted([*PLAIN, "ant/9 again.png", "emu/hard.png"])


def test_each_file_counts_once_and_loops_are_named(tmp_path):
    names = linked(tmp_path / "set")
    begun = time.perf_counter()
    source = open_images(tmp_path / "set")
    assert time.perf_counter() - begun < 2
    assert source.names == names
    found = list_folder(tmp_path / "set").left_out
    assert found[LOOP] == {"cat/up", "cat/above", "ant/dogs"}
    assert found[TWICE] == {"ant/1.png", "ant/9.png"}
    assert found[NOWHERE] == {"cat/self"}
    assert "cat/up" in source.notes[0]
    expected = rows(source)
    assert rows(open_images(f"datasets://{tmp_path}/set")) == expected
    (tmp_path / "link").symlink_to("set")
    assert rows(open_images(tmp_path / "link")) == expected


def test_links_in_a_tar_are_what_they_are_in_the_folder(tmp_path):
    folder = write(tmp_path / "set", PLAIN)
    (folder / "cat" / "up").symlink_to("..")
    (folder / "dog" / "again.png").symlink_to("../cat/0.png")
    os.link(folder / "cat" / "1.png", folder / "emu" / "hard.png")
    source, tar = open_images(folder), open_images(packed(folder, tmp_path / "t.tar"))
    assert rows(tar) == rows(source)
    assert tar.names == source.names == [*PLAIN, "emu/hard.png"]
    assert [n for n in tar.notes if "left out" in n] == source.notes


def test_a_farm_of_links_is_the_set_it_leads_to(tmp_path):
    folder = write(tmp_path / "set", PLAIN)
    for path in PLAIN:
        (tmp_path / "farm" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "farm" / path).symlink_to(folder / path)
    (tmp_path / "classes").mkdir()
    for name in ("cat", "dog", "emu"): (tmp_path / "classes" / name).symlink_to(folder / name)
    for place in ("farm", "classes"):
        assert rows(open_images(tmp_path / place)) == rows(open_images(folder))
        assert open_images(tmp_path / place).notes == []
    (folder / "cat" / "0.png").unlink()
    with pytest.raises(BadItem, match="cat/0.png: cannot be read"): rows(open_images(tmp_path / "farm"))


@pytest.mark.fault("F15")
def test_only_regular_files_are_opened(tmp_path, monkeypatch):
    folder = write(tmp_path / "set", PLAIN)
    os.mkfifo(folder / "cat" / "pipe.png")
    (folder / "cat" / "zero.png").symlink_to("/dev/zero")
    monkeypatch.chdir(folder / "dog")                               # a socket's path must be short
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket.png")
    source = open_images(folder)
    assert source.names == list(PLAIN)
    assert "pipes, devices or sockets: 3" in source.notes[0]
    for name in ("cat/pipe.png", "cat/zero.png", "dog/socket.png", "cat"):
        with pytest.raises(BadItem, match=name): read_file(folder / name, name)

    (folder / "emu" / "5.png").unlink()
    os.mkfifo(folder / "emu" / "5.png")                             # after the set was listed
    with pytest.raises(BadItem, match="5.png: is no regular file"): source[4]
    server.close()

    os.mkfifo(tmp_path / "p.tar")
    for place in (tmp_path / "p.tar", f"wds://{tmp_path}/p.tar", f"wds://{tmp_path}/p.tar?streaming=1",
                  f"wds://{tmp_path}?streaming=1"):
        with pytest.raises(Missing): open_images(place)
    table = datasets.Dataset.from_dict(dict(image=[str(tmp_path / "p.tar"), "/dev/zero"]))
    table.to_csv(tmp_path / "t.csv")
    for uri in (f"datasets://{tmp_path}/t.csv?image=image", f"datasets://{tmp_path}/t.csv?image=image&streaming=1"):
        listed = open_images(uri, max_bad=2)
        assert list(listed.iter_items()) == []
        assert all("is no regular file" in e.reason for e in listed.bad)


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    folder, usual = write(tmp_path / "set", PLAIN), os.scandir
    def refuse(path):
        if Path(path).name == "dog": raise PermissionError(13, "Permission denied", str(path))
        return usual(path)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(BadInput, match="dog.*Permission denied"): open_images(folder)


# ---- members of tars

def test_hard_links_and_long_names_are_read_as_tarfile_does(tmp_path):
    long = f"{'a' * 60}/{'b' * 200}.png"
    path = tar_of(tmp_path / "t.tar", ("./cat/0.png", picture(0)), ("cat/hard.png", tarfile.LNKTYPE, "./cat/0.png"),
                  (long, picture(1)), ("dog/soft.png", tarfile.SYMTYPE, "../.blobs/x"), (".blobs/x", picture(2)),
                  ("dog/chain.png", tarfile.LNKTYPE, "dog/soft.png"), ("dog/out.png", tarfile.SYMTYPE, "/etc/passwd"),
                  ("dog/lost.png", tarfile.LNKTYPE, "cat/later.png"), ("dog/pipe.png", tarfile.FIFOTYPE, ""))
    source = open_images(path)
    assert source.names == [long, "cat/0.png", "cat/hard.png", "dog/chain.png"]
    with tarfile.open(path) as tar:
        for i, name in enumerate((long, "./cat/0.png", "cat/hard.png", ".blobs/x")):
            assert source.read(i) == tar.extractfile(name).read()
    assert "lead nowhere: 2 (dog/lost.png, dog/out.png)" in source.notes[0]
    assert "pipes, devices or sockets: 1" in source.notes[0]


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    "A folder whose BMP has a hole of zeros, and its tars in every form that GNU tar writes."
    place = tmp_path_factory.mktemp("sparse")
    file = io.BytesIO()
    Image.new("RGB", (200, 200), "red").save(file, "BMP")
    data = bytearray(file.getvalue())
    data[20480:102400] = bytes(81920)
    (place / "set" / "a").mkdir(parents=True)
    with open(place / "set" / "a" / "0.bmp", "wb") as f:
        f.write(data[:20480])
        f.seek(102400)
        f.write(data[102400:])
    write(place / "set", ["b/1.png"])
    (place / "set" / "a" / "0.cls").write_text("1")
    forms = {"gnu": ["gnu"], "pax 0.0": ["pax", "0.0"], "pax 0.1": ["pax", "0.1"], "pax 1.0": ["pax", "1.0"]}
    for name, (form, *version) in forms.items():
        how = ["--sparse", f"--format={form}", *(f"--sparse-version={v}" for v in version)]
        subprocess.run(["tar", *how, "-cf", place / f"{name}.tar", "-C", place / "set", "a", "b"], check=True)
    return place


@pytest.mark.parametrize("form", ["gnu", "pax 0.0", "pax 0.1", "pax 1.0"])
def test_sparse_members_get_their_zeros_back(form, sparse):
    path = sparse / f"{form}.tar"
    assert any(m.place and m.place.pieces for m in tar_members(path)), "GNU tar left no hole"
    assert rows(open_images(path)) == rows(open_images(sparse / "set"))
    for uri in (f"wds://{path}", f"wds://{path}?streaming=1"):
        item = next(open_images(uri, max_bad=1).iter_items(shuffle=False))
        assert item.label == 1
        assert np.array_equal(item.image, Image.open(sparse / "set" / "a" / "0.bmp"))


def test_a_sparse_member_may_not_claim_what_it_likes(sparse, tmp_path):
    member = next(m for m in tar_members(sparse / "gnu.tar") if m.place and m.place.pieces)
    data = FileBytes([sparse / "gnu.tar"])
    for place, words in ((member.place._replace(size=2 ** 40), "claims"),
                         (member.place._replace(size=30_000), "outside"),
                         (member.place._replace(pieces=((-1, 5),)), "outside"),
                         (member.place._replace(pieces=((0, 120_000_000),), size=2 ** 28), "cut off")):
        with pytest.raises(BadItem, match=words): data.member(0, place, "x")


# ---- keys and labels of shards

def shard(tmp_path, *files, name="s.tar"): return f"wds://{tar_of(tmp_path / name, *files)}"


def both(uri, **kw):
    "What an index and a stream make of a shard: {key: label} and the bad ones' names with reasons, the same."
    found = []
    for address in (uri, f"{uri}?streaming=1"):
        source = open_images(address, max_bad=99, **kw)
        items = {i.key.split(":", 1)[1]: i.label for i in source.iter_items(shuffle=False)}
        found.append((items, {e.name.split(":", 1)[1] for e in source.bad}))
        assert all(e.reason for e in source.bad)
    assert found[0] == found[1]
    return found[0]


A, B, C = picture(0), picture(1), picture(2)


@pytest.mark.parametrize("files, items, bad", [
    # keys with dots
    ([("0.png", A), ("0.cls", b"3"), ("photo.v2.png", B), ("photo.v2.cls", b"1")], {"0": 3, "photo.v2": 1}, set()),
    ([("v1.0/0.png", A), ("v1.0/0.cls", b"2")], {"v1.0/0": 2}, set()),
    ([("0.png", A), ("0.cls", b"2"), ("0.seg.png", B)], {"0": 2}, set()),
    ([("a.png", A), ("a.cls", b"0"), ("a.V2.png", B), ("a.V2.cls", b"1")], {"a": 0, "a.V2": 1}, set()),
    ([("a.input.png", A), ("a.target.cls", b"1"), ("b.png", B), ("b.cls", b"0")], {"b": 0}, {"a.input", "a.target"}),
    # missing and null labels
    ([("0.png", A), ("0.cls", b"3"), ("1.png", B), ("2.png", C), ("2.cls", b"1")], {"0": 3, "2": 1}, {"1"}),
    ([("0.png", A), ("0.json", b'{"label": 1}'), ("1.png", B), ("1.json", b'{"label": null}')], {"0": 1}, {"1"}),
    ([("0.png", A), ("0.json", b"1"), ("1.png", B), ("1.json", b"null")], {"0": 1}, {"1"}),
    ([("0.png", A), ("0.json", b"1"), ("1.png", B), ("1.cls", b"")], {"0": 1}, {"1"}),
    ([("0.png", A), ("1.png", B)], {"0": 0, "1": 0}, set()),
    # labels that are none
    ([("0.png", A), ("0.json", b"1"), ("1.png", B), ("1.json", b"[0, 1]")], {"0": 1}, {"1"}),
    ([("0.png", A), ("0.json", b"1"), ("1.png", B), ("1.json", b'{"cls": 1.0}')], {"0": 1}, {"1"}),
    ([("0.png", A), ("0.json", b"1"), ("1.png", B), ("1.json", b"true")], {"0": 1}, {"1"}),
    ([("0.png", A), ("0.json", b"1"), ("1.png", B), ("1.json", b"NaN")], {"0": 1}, {"1"}),
    ([("0.png", A), ("0.json", b"1"), ("1.png", B), ("1.json", b"{")], {"0": 1}, {"1"}),
    ([("0.png", A), ("0.json", b"1"), ("1.png", B), ("1.cls", b"-1")], {"0": 1}, {"1"}),
    ([("0.png", A), ("0.cls", b"2"), ("0.json", b'{"label": 9}'), ("0.txt", b"a caption")], {"0": 2}, set()),
    # keys that come twice
    ([("0.png", A), ("0.cls", b"3"), ("1.png", B), ("1.cls", b"1"), ("0.png", C)], {"0": 3, "1": 1}, {"0"}),
    ([("0.png", A), ("0.cls", b"3"), ("0.png", C), ("0.cls", b"2")], {"0": 3}, {"0"}),
    ([("./0.png", A), ("./0.cls", b"3"), ("0.JPG", B), ("0.CLS", b"1")], {"0": 3}, {"0"}),
])
def test_every_sample_survives_or_is_named(files, items, bad, tmp_path):
    assert both(shard(tmp_path, *files)) == (items, bad)


def test_an_error_of_a_sample_names_shard_key_and_rule(tmp_path):
    uri = shard(tmp_path, ("0.png", A), ("0.cls", b"3"), ("x.v1.png", B), ("x.v1.json", b"[1]"), ("0.png", A))
    for address in (uri, f"{uri}?streaming=1"):
        source = open_images(address, max_bad=9)
        list(source.iter_items(shuffle=False))
        told = sorted(map(str, source.bad))
        assert told[0].startswith("s.tar:0: has a key that this shard had before")
        assert told[1] == "s.tar:x.v1: has label [1]: must be a whole number or a name"


def test_captions_are_captions(tmp_path):
    texts = [f"a photo number {k}" for k in range(4)]
    metas = [json.dumps(dict(caption=text, url="http://x/y", key=f"{k:05}")).encode() for k, text in enumerate(texts)]
    def named(name, **parts):
        files = [(f"{k:05}.{kind}", data[k]) for k in range(4) for kind, data in parts.items()]
        return shard(tmp_path, *files, name=name)

    pictures, txt = [picture(k) for k in range(4)], [text.encode() for text in texts]
    full = named("full.tar", png=pictures, txt=txt, json=metas)
    assert both(full) == ({f"{k:05}": 0 for k in range(4)}, set())
    assert open_images(full).classes == ["all"]

    only = named("only.tar", png=pictures, txt=txt)
    source = open_images(only)
    assert source.classes == ["all"]
    assert "captions" in source.notes[0]
    assert open_images(f"{only}?label=txt").classes == texts
    assert len(streamed(open_images(f"{only}?streaming=1&label=none"))) == 4
    with pytest.raises(BadInput, match="label=none in the address"): streamed(open_images(f"{only}?streaming=1"))
    assert len(streamed(open_images(f"{only}?streaming=1", classes=texts))) == 4

    words = named("words.tar", png=pictures, txt=[b"white shark"] * 4)
    assert open_images(words).classes == ["white shark"]


def test_text_is_a_name_and_digits_in_cls_are_a_number(tmp_path):
    files = [m for k, n in enumerate((b"10", b"2", b"007")) for m in ((f"{k}.png", picture(k)), (f"{k}.txt", n))]
    assert open_images(shard(tmp_path, *files)).classes == ["007", "10", "2"]
    known = both(shard(tmp_path, *files), classes=["2", "007", "cat"])
    assert known == ({"1": 0, "2": 1}, {"0"}), "a text that is no name is a number, and there is no class number 10"
    assert both(shard(tmp_path, *files[:4]), classes=list("abc")) == ({"1": 2}, {"0"})
    numbers = [(name.replace("txt", "cls"), data) for name, data in files]
    assert both(shard(tmp_path, *numbers))[0] == {"0": 10, "1": 2, "2": 7}
    mixed = shard(tmp_path, *numbers, ("3.png", A), ("3.cls", b"cat"))
    with pytest.raises(BadInput, match="all numbers or all class names"): open_images(mixed)


def test_links_in_shards_are_read_or_named(tmp_path):
    uri = shard(tmp_path, ("0.png", A), ("0.cls", b"3"), ("1.png", tarfile.LNKTYPE, "0.png"), ("1.cls", b"1"),
                ("2.png", C), ("2.cls", tarfile.SYMTYPE, "0.cls"),
                ("3.png", tarfile.SYMTYPE, "nowhere"), ("3.cls", b"2"))
    source = open_images(uri, max_bad=1)
    assert [(i.label, np.asarray(i.image).tobytes()) for i in source.iter_items(shuffle=False)] == [
        (label, np.asarray(Image.open(io.BytesIO(data))).tobytes()) for label, data in ((3, A), (1, A), (3, C))]
    assert "link to nowhere" in str(source.bad[0])
    stream = open_images(f"{uri}?streaming=1", max_bad=3)
    assert [i.label for i in stream.iter_items(shuffle=False)] == [3]
    assert all("leave streaming=1 out" in e.reason for e in stream.bad)


def test_a_stream_without_labels_has_none_throughout(tmp_path):
    bare = tar_of(tmp_path / "s-0.tar", ("0.png", A), ("1.png", B))
    assert [i.label for i in open_images(f"wds://{bare}?streaming=1").iter_items()] == [0, 0]
    tar_of(tmp_path / "s-1.tar", ("0.png", A), ("0.cls", b"7"))
    uri = f"wds://{tmp_path}/s-*.tar?streaming=1"
    for seed in range(3):
        with pytest.raises(BadInput, match="s-1.tar:0 has a label, s-0.tar:. has none"):
            list(open_images(uri).iter_items(seed=seed))
    assert [i.label for i in open_images(f"{uri}&label=none").iter_items()] == [0, 0, 0]
    with pytest.raises(BadInput, match="no picture has a label"): open_images(f"wds://{bare}", classes=["a", "b"])
    stream = open_images(f"wds://{bare}?streaming=1", classes=["a", "b"], max_bad=2)
    assert list(stream.iter_items()) == []


# ---- shards that are missing, or too many

def test_a_shard_that_braces_name_must_be_there(tmp_path):
    for k in (0, 2): tar_of(tmp_path / f"s-{k}.tar", ("0.png", A), ("0.cls", b"0"))
    for pattern in ("s-{0..2}.tar", "s-{0,1}.tar", "{s,t}-*.tar"):
        for option in ("", "?streaming=1"):
            with pytest.raises(Missing, match="no such shard"): open_images(f"wds://{tmp_path}/{pattern}{option}")
    for pattern in ("s-{0,2}.tar", "{s-,s-2,}*.tar"): assert len(open_images(f"wds://{tmp_path}/{pattern}")) == 2


@pytest.mark.parametrize("pattern, words", [
    ("https://host/{000000000..100000000}.tar", "1,048,576 shards at most, not 100,000,001"),
    ("/nowhere/{0..99999999999999999999}.tar", "shards at most"),
    ("https://host/{0..9}{0..9999}{0..9999}.tar", "shards at most"),
    ("/nowhere/{5..0}.tar", "count up"),
    ("/nowhere/{0..9..3}.tar", "first..last"),
    ("/nowhere/{a,{b,c}}.tar", "none within another"),
])
def test_braces_are_looked_at_before_they_are_spread(pattern, words):
    begun = time.perf_counter()
    with pytest.raises(BadInput, match=words): open_images(f"wds://{pattern}")
    assert time.perf_counter() - begun < 2


@pytest.mark.parametrize("label", [b"1000000000", b"999999999999999999"])
def test_a_label_of_a_billion_is_refused_at_once(label, tmp_path):
    uri, begun = shard(tmp_path, ("0.png", A), ("0.cls", label)), time.perf_counter()
    with pytest.raises(BadInput, match="from 0 to 1048575"): open_images(uri)
    with pytest.raises(BadItem, match=r"not in \[0, 1048576\)"): list(open_images(f"{uri}?streaming=1").iter_items())
    assert time.perf_counter() - begun < 2


# ---- labels of tables and of torch data sets

@pytest.mark.parametrize("column", [[[0, 1], [1, 0]], [0.0, 1.0], [True, False], [{"a": 1}, {"a": 2}]],
                         ids=["one-hot", "float", "bool", "object"])
def test_labels_of_tables_that_are_no_classes_are_refused(column, tmp_path):
    cells = [{"bytes": data, "path": None} for data in (A, B)]
    table = datasets.Dataset.from_dict(dict(image=cells, label=column))
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "t.parquet")
    uri = f"datasets://{tmp_path}/t.parquet"
    with pytest.raises(BadInput, match="label='label': must be a column of whole numbers or names"): open_images(uri)
    with pytest.raises(BadItem, match="must be a whole number or a name"):
        list(open_images(f"{uri}?streaming=1").iter_items())
    assert open_images(f"{uri}?label=none").classes == ["all"]


def test_a_row_without_a_label_is_named(tmp_path):
    cells = [{"bytes": data, "path": None} for data in (A, B, C)]
    for column, label in (([1, None, 0], 1), (["b", None, "a"], 1)):
        table = datasets.Dataset.from_dict(dict(image=cells, label=column)).cast_column("image", datasets.Image())
        table.to_parquet(tmp_path / f"{label}.parquet")
        source = open_images(f"datasets://{tmp_path}/{label}.parquet", max_bad=1)
        assert [i.label for i in source.iter_items(shuffle=False)] == [1, 0]
        assert "row 1: has no label" in str(source.bad[0])


@pytest.mark.parametrize("label", [3.7, True, [0, 1], "cat", torch.tensor([0, 1]), torch.tensor(0.5)], ids=str)
def test_labels_of_torch_data_sets_are_whole_numbers(label):
    class Pairs(torch.utils.data.Dataset):
        classes = ["a", "b", "c", "d"]
        def __len__(self): return 1
        def __getitem__(self, i): return Image.new("RGB", (2, 2)), label
    with pytest.raises(BadItem, match="whole number"): open_images(Pairs())


# ---- a stream on another number of processes

class Streamed(Points):
    "The toy's points, front to back."
    streaming = True
    def items(self, epoch, seed, rank, world): return (SimpleNamespace(id=i) for i in range(rank, 240, world))
    def collate(self, items, epochs, draws): return self.fetch([i.id for i in items], epochs, draws)


class Bare(Streamed):
    def collate(self, items, epochs, draws): return {}


@pytest.mark.parametrize("begun", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 13])
def test_a_stream_goes_on_with_any_number_of_processes(begun, start):
    "Each step has the examples that it has on the processes that the run began with; an epoch is ten steps."
    def steps(world, accumulate=1):
        found = {}
        for rank in range(world):
            feed = Feed(Bare(), 24, 0, Share(rank, world, accumulate))
            feed.lanes = begun
            for k, (index, epochs, _) in enumerate(stream(feed, start, 22)):
                found.setdefault(start + k // accumulate, []).extend(zip(epochs.tolist(), index.tolist()))
        return {step: sorted(rows) for step, rows in found.items()}

    whole = steps(begun)
    assert all(len(set(rows)) == 24 for rows in whole.values()) and list(whole) == list(range(start, 22))
    for world, accumulate in ((1, 1), (2, 1), (3, 2), (4, 3), (6, 1), (24, 1)): assert steps(world, accumulate) == whole


def test_a_run_remembers_the_lanes_that_its_stream_began_with(tmp_path):
    def trainer(): return Trainer(Pair(), Streamed(), RECIPE, tmp_path, Run(progress=False))
    trainer().fit(2)
    assert trainer().fit(4).step == 4
    again = trainer()
    again.lanes = 2
    again._restore(newest(saves(tmp_path)))
    assert (again.step, again.lanes) == (4, 1)


# ---- what is known before the work begins

def test_captions_without_a_picture_are_no_part_of_the_times(tmp_path, monkeypatch):
    write(tmp_path, ["0.png"])
    lines = ['{"text": "one", "image_path": "0.png"}', '{"text": "none"}', "{torn"]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    def known(): return CaptionImages(Captions(tmp_path / "c.jsonl"), max_bad=2)
    first = known()
    before = first.fingerprint, first.times
    assert [item.key for item in first.iter_items(shuffle=False)] == ["c/0"] and len(first.bad) == 2
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")                                   # other bytes and times of the folder
    (tmp_path / "elsewhere" / "x").mkdir()
    assert (known().fingerprint, known().times) == before
    os.utime(tmp_path / "0.png", (0, 0))
    assert known().fingerprint == before[0] and known().times != before[1]


@pytest.mark.parametrize("out", ["folder", "x.tar", "wds://shards"])
def test_no_class_is_lost_on_the_way(out, tmp_path):
    folder = write(tmp_path / "set", ["a/0.png", "b/1.png", "c/2.png", "c/3.png"])
    (folder / "a" / "0.png").write_bytes(b"")
    place = f"wds://{tmp_path}/shards" if "://" in out else tmp_path / out
    with pytest.raises(BadInput, match="has no picture that can be read"):
        export_images(open_images(folder, max_bad=1), place)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["set"]
    write(folder, ["a/4.png"])
    export_images(open_images(folder, max_bad=1), place)
    assert open_images(place).classes == ["a", "b", "c"]


def test_samples_without_a_label_are_told_at_opening(tmp_path):
    files = [(f"{k:03}.{kind}", data) for k in range(100) for kind, data in (("png", A), ("cls", b"%d" % (k % 3)))
             if (k, kind) not in ((77, "cls"), (78, "png"))]
    uri = shard(tmp_path, *files, ("100.png", A), ("100.json", b"[1]"))
    for allowed in (0, 2):
        with pytest.raises(BadItem, match=f"s.tar:077.*has no label.*3 of 101.*max_bad={allowed} is too few"):
            open_images(uri, max_bad=allowed)
    source = open_images(uri, max_bad=3)
    assert [n for n in source.notes if "unreadable: 3 of 101 samples (the first is s.tar:077" in n]
    assert len(list(source.iter_items())) == 98 and {e.name[-3:] for e in source.bad} == {"077", "078", "100"}


def test_a_member_without_an_ending_is_not_read_to_be_known(sparse, tmp_path, monkeypatch):
    member = tarfile.TarInfo("a/large")
    member.size = 2 ** 28
    with open(tmp_path / "t.tar", "wb") as f:
        for name, data in (("a/0.png", A), ("b/1", B)):
            plain = tarfile.TarInfo(name)
            plain.size = len(data)
            f.write(plain.tobuf() + data + bytes(-len(data) % 512))
        f.write(member.tobuf())
        f.seek(member.size, 1)
        f.write(bytes(1024))
    tracemalloc.start()
    assert open_images(tmp_path / "t.tar").names == ["a/0.png", "b/1"]
    assert tracemalloc.get_traced_memory()[1] < 2 ** 22
    tracemalloc.stop()

    subprocess.run(["cp", "-r", "--sparse=always", sparse / "set", tmp_path / "set"], check=True)
    (tmp_path / "set" / "a" / "0.bmp").rename(tmp_path / "set" / "a" / "picture")
    os.truncate(write(tmp_path / "set", ["b/hole"], b"") / "b" / "hole", 2 ** 20)
    subprocess.run(["tar", "--sparse", "-cf", tmp_path / "s.tar", "-C", tmp_path / "set", "a", "b"], check=True)
    monkeypatch.setattr("vgnb.data.tars.LARGEST", 2 ** 10)
    source = open_images(tmp_path / "s.tar")
    assert source.names == ["a/picture", "b/1.png"]
    with pytest.raises(BadItem, match="claims"): source.read(0)


def test_tars_beside_shards_are_told(tmp_path):
    tar_of(tmp_path / "wds" / "s.tar", ("0.png", A), ("0.cls", b"0"))
    for name in ("._s.tar", "more.TGZ", "more.tar.zst", "readme.md"): (tmp_path / "wds" / name).write_bytes(b"x")
    for address in (f"wds://{tmp_path}/wds", f"wds://{tmp_path}/wds?streaming=1"):
        note, = open_images(address).notes
        assert "hidden or system entries: 1 (._s.tar)" in note
        assert "have to be unpacked first: 2 (more.TGZ, more.tar.zst)" in note
    (tmp_path / "._0.tar").write_bytes(b"x")
    assert open_images(f"wds://{tmp_path}/wds/s.tar").notes == []


def test_a_source_that_is_open_is_not_asked_to_be_another(tmp_path):
    source = open_images(write(tmp_path / "set", PLAIN), max_bad=2, orientation="stored")
    for same in ({}, {"max_bad": 2}, {"orientation": "stored"}, {"classes": source.classes}, {"alpha": "drop"}):
        assert open_images(source, **same) is source
    upright = open_images(tmp_path / "set")
    for name, value in (("orientation", "stored"), ("max_bad", 3), ("alpha", "white"), ("classes", ["x", "y", "z"])):
        with pytest.raises(BadInput, match=f"{name}=.*open already"): open_images(upright, **{name: value})
