"One set of stored bytes in four containers: the same codes for the same picture, and what moves arrives whole."
import importlib.util
import io
import json
import os
import shlex

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.run_scripts import ROOT, Scripts
from vgnb.core import BadInput, BadItem
from vgnb.data.codes import CodeStore
from vgnb.data.export import contents, export_images, source_row, suffix_of
from vgnb.data.images import open_images
from vgnb.data.shapes import Shapes
from vgnb.kinds import from_json
from vgnb.training.recipes import recipe

CLASSES = ["square", "disc", "heart"]    # not in alphabetical order, as hub data sets may have them


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    "60 JPEG, PNG and WebP pictures, no two sizes alike, classes mixed; returns the folder that holds train.parquet."
    folder, shapes = tmp_path_factory.mktemp("set"), Shapes(700, 48, seed=3)
    drawn = [shapes.classes[label] for label in shapes.labels(np.arange(700))]
    cells, labels = [], []
    for i in range(60):
        label = i * 7 % 3
        rows = [row for row, name in enumerate(drawn) if name == CLASSES[label]]
        image = shapes[rows[i]].image.resize((36 + i % 5, 40 + i % 7))
        file = io.BytesIO()
        image.save(file, ("JPEG", "PNG", "WEBP")[i % 4 % 3], quality=80)
        cells.append({"bytes": file.getvalue(), "path": None})
        labels.append(label)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=CLASSES))
    datasets.Dataset.from_dict(dict(image=cells, label=labels), features).to_parquet(folder / "train.parquet")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    "Tables are prepared here, not in the home folder."
    place, usual = tmp_path_factory.mktemp("cache"), datasets.config.HF_DATASETS_CACHE
    os.environ["HF_DATASETS_CACHE"], datasets.config.HF_DATASETS_CACHE = str(place), place
    yield place
    datasets.config.HF_DATASETS_CACHE = usual
    del os.environ["HF_DATASETS_CACHE"]


@pytest.fixture
def table(parquet, cache): return open_images(f"datasets://{parquet}?split=train")


def walk(run, uris):
    "From the table to samples, by the scripts; every container is extracted."
    made = [run("export_images.py", uris["table"], uris[c], "--shard-size", 25) for c in ("folder", "tar", "shards")]
    assert all("60 pictures written, 0 left out" in text for text in made)
    assert len({text.rsplit("contents ", 1)[1] for text in made}) == 1

    run("train_tokenizer.py", "cifar-tokenizer", "--data", uris["table"], "--out", "tokenizer",
        "--steps", 6, "--batch", 8, "--free-steps", 2, "--precision", "fp32",
        "--model.width", 16, "--model.groups", 8, "--model.quantizer.codebook", 64)
    for c, uri in uris.items():
        run("extract_codes.py", "--tokenizer", "tokenizer/model", "--data", uri, "--out", f"codes/{c}",
            "--size", 32, "--flip", "--batch", 16, "--shard-size", 25)
    run("train_generator.py", "cifar-generator", "--data", "codes/shards", "--out", "generator",
        "--steps", 2, "--batch", 8, "--precision", "fp32", "--model.layers", 1, "--model.dim", 32)
    run("sample.py", "--tokenizer", "tokenizer/model", "--generator", "generator/model",
        "--count", 6, "--out", "samples.npz")
    judged = run("evaluate.py", "photos.tar", "samples.npz", "--size", 32,
                 "--extractor", "shapes-judge", "--metrics", "fid", "--json", "fid.json")
    assert "fid" in judged


@pytest.mark.full
def test_the_scripts_give_the_same_codes_from_every_container(parquet, cache, tmp_path):
    scripts, table = Scripts(tmp_path), f"datasets://{parquet}?split=train"

    def run(*words):
        ran = scripts(*words)
        assert ran.code == 0, (words, ran.out, ran.err)
        return ran.out

    walk(run, {"table": table, "folder": "photos", "tar": "photos.tar", "shards": "wds://shards"})

    found, places = {}, {"table": table, "folder": tmp_path / "photos", "tar": tmp_path / "photos.tar",
                         "shards": f"wds://{tmp_path}/shards"}
    for c, place in places.items():
        source, store = open_images(place), CodeStore(tmp_path / "codes" / c)
        rows = [int(i) if c == "table" else source_row(source.names[i]) for i in store.ids]
        assert sorted(rows) == list(range(60))
        found[c] = {row: (codes.tolist(), store.classes[label]) for row, (codes, label, _) in zip(rows, store)}
    assert all(codes == found["table"] for codes in found.values())
    different = {str(codes) for codes, _ in found["table"].values()}
    assert len(different) > 50, "codes that hardly differ would prove nothing"
    assert sorted({label for _, label in found["folder"].values()}) == sorted(CLASSES)


def test_pictures_travel_through_every_container_and_back(table, tmp_path):
    expected = contents(table)
    uris = [f"wds://{tmp_path}/a", f"{tmp_path}/b.tar", f"{tmp_path}/c", f"{tmp_path}/d.tar"]
    source = table
    for uri in uris:
        assert export_images(source, uri, shard_size=20) == 60
        source = open_images(uri)
        assert contents(source) == expected
        assert sorted(source.classes) == sorted(CLASSES)

    shards = open_images(uris[0])
    assert [source_row(n) for n in shards.names] == list(range(60))
    assert len(list((tmp_path / "a").iterdir())) == 3
    for i in (0, 31, 59):
        assert shards.read(i) == table.read(i)
        assert np.array_equal(shards[i].image, table[i].image)

    folder, tar = open_images(tmp_path / "c"), open_images(tmp_path / "d.tar")
    assert folder.names == tar.names, "picture i of a folder is picture i of its tar"
    assert (folder.labels == tar.labels).all()
    for name in ("e.tar", "f.tar"): export_images(table, tmp_path / name)
    assert (tmp_path / "e.tar").read_bytes() == (tmp_path / "f.tar").read_bytes()


def test_contents_notice_a_byte_and_a_label(table, tmp_path):
    export_images(table, tmp_path / "a")
    one = next((tmp_path / "a" / "disc").iterdir())
    def longer(): one.write_bytes(one.read_bytes() + b"\0")
    def elsewhere(): one.rename(tmp_path / "a" / "heart" / one.name)
    for change in (longer, elsewhere):
        change()
        assert contents(open_images(tmp_path / "a")) != contents(table)


@pytest.mark.parametrize("out", ["{}/a", "{}/a.tar", "wds://{}/a"])
def test_an_export_is_there_whole_or_not_at_all(out, table, tmp_path):
    out = out.format(tmp_path)

    class Broken(type(table)):
        def read(self, i):
            if i == 40: raise BadItem("row 40", "is broken")
            return super().read(i)

    table.__class__ = Broken
    with pytest.raises(BadItem, match="row 40: is broken"):
        export_images(table, out, shard_size=10)
    assert not list(tmp_path.iterdir())
    table.max_bad = 1
    assert export_images(table, out, shard_size=10) == 59
    assert [e.name for e in table.bad] == ["row 40"]
    with pytest.raises(BadInput, match="exists already"): export_images(table, out)


def test_what_no_container_can_hold_is_refused(table, tmp_path):
    def refused(words):
        with pytest.raises((BadInput, BadItem), match=words): export_images(table, tmp_path / "a")
        assert not list(tmp_path.iterdir())

    for name in ("a/b", "..", ".hidden", "__pycache__", "", "disc "):
        table.classes = [name, "disc", "heart"]
        refused("must be a name that a folder can have")
    table.classes = CLASSES + ["ring"]
    refused("classes='ring': has no pictures")
    table.classes, table.labels = CLASSES, np.where(np.arange(60) == 5, -1, table.labels)
    refused("labels=-1")
    with pytest.raises(BadInput, match="out='s3://x'"): export_images(table, "s3://x")


def test_shards_hold_every_kind_that_a_folder_holds(tmp_path):
    (tmp_path / "bmp").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "bmp" / "x.bmp")
    folder = open_images(tmp_path / "bmp")
    export_images(folder, f"wds://{tmp_path}/shards")
    shards = open_images(f"wds://{tmp_path}/shards")
    assert contents(shards) == contents(folder)
    assert shards[0].image.getpixel((0, 0)) == (255, 0, 0)
    assert suffix_of(b"RIFF\0\0\0\0WEBPVP8 ") == "webp"


@pytest.mark.parametrize("name", ["0000001.jpg", "disc/17.jpg"])
def test_a_name_without_a_row_is_refused(name):
    with pytest.raises(BadInput, match="eight digits"): source_row(name)


# ---- the study of real photographs

STUDY = json.loads((ROOT / "nbs/studies/real_photographs.json").read_text())


def test_the_study_was_made_by_the_commands_that_its_script_runs():
    file = ROOT / "scripts/studies/real_photographs.py"
    spec = importlib.util.spec_from_file_location("real_photographs_study", file)
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    def command(words): return "python " + " ".join(shlex.quote(str(w)) for w in words)
    now = {name: command(words) for name, words, _ in study.steps(study.Options())}
    assert {name: step["command"] for name, step in STUDY["steps"].items()} == now


@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_the_study_used_the_recipe_as_it_is(kind):
    used = from_json(STUDY[kind]["recipe"])
    same = used == recipe(f"cifar-{kind}", data=used.data)
    assert same, "the recipe has changed: run scripts/studies/real_photographs.py --record again"
