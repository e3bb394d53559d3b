"Which way up pictures come, what becomes of absurd ones, and how a set is known again."
import io
import os
import shutil
import tarfile
import time
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

from tests.test_provenance import script
from vgnb.core import BadInput, BadItem, Mismatch
from vgnb.data.codes import CodePlan, CodeWriter
from vgnb.data.images import open_images
from vgnb.data.stored import decode_image
from vgnb.data.text import Captions
from vgnb.data.transforms import Augment, center_crop, resize_crop, resize_short
from vgnb.draws import At, Keyed
from vgnb.evaluation.features import load_extractor
from vgnb.evaluation.samples import open_samples
from vgnb.figures import to_pixels
from vgnb.generators.generator import Loss
from vgnb.jobs import SampleJob, open_masks, open_pictures
from vgnb.pipeline import Pipeline
from vgnb.sampling.applications import Inpaint
from vgnb.search import GuidanceSearch
from vgnb.tokenizers.vqgan import vqgan
from vgnb.training.commands import build_tokenizer
from vgnb.training.extract import CaptionImages, code_plan, extract_codes
from vgnb.training.recipes import Recipe, recipe
from vgnb.training.run_folder import Run
from vgnb.training.tasks import ImageData, Phase, Task
from vgnb.training.trainer import Trainer
from vgnb.upright import as_rgb, upright

ORIENTATION = 0x0112
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")
UNDO = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}      # what lays a picture as its number says


def house() -> Image.Image:
    "48 x 32, the red roof on top and a green door on the left."
    picture = Image.new("RGB", (48, 32), "white")
    ImageDraw.Draw(picture).rectangle((0, 0, 47, 11), "red")
    ImageDraw.Draw(picture).rectangle((0, 12, 11, 31), "green")
    return picture


def lying(number: int, kind: str = "PNG", picture=None) -> bytes:
    "The house as a phone would store it, held in one of eight ways."
    picture, exif, file = picture or house(), Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = number
    if number > 1: picture = picture.transpose(Image.Transpose(UNDO[number]))
    how = dict(lossless=True) if kind == "WEBP" else dict(quality=100, subsampling=0) if kind == "JPEG" else {}
    picture.save(file, kind, exif=exif, **how)
    return file.getvalue()


def is_house(picture) -> bool:
    x = np.asarray(picture).astype(int)
    return x.shape == (32, 48, 3) and abs(x - np.asarray(house())).max() < 60


def write(file: Path, data: bytes):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


# ---- which way up

@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("number", range(1, 9))
def test_every_orientation_of_every_format_is_turned_as_pillow_turns_it(kind, number):
    data = lying(number, kind)
    turned = upright(Image.open(io.BytesIO(data)))
    assert is_house(turned.convert("RGB"))
    assert turned.tobytes() == ImageOps.exif_transpose(Image.open(io.BytesIO(data))).tobytes()
    assert upright(turned).tobytes() == turned.tobytes()


@pytest.fixture
def eight(tmp_path, monkeypatch):
    "Eight orientations in every container: {name: address}."
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    files = {f"{n}.{kind.lower()}": lying(n, kind) for n, kind in enumerate(("JPEG", "PNG", "WEBP", "PNG") * 2, 1)}
    for name, data in files.items(): write(tmp_path / "photos" / "a" / name, data)
    with tarfile.open(tmp_path / "photos.tar", "w") as tar, tarfile.open(tmp_path / "s.tar", "w") as shard:
        for name, data in files.items():
            add(tar, f"a/{name}", data)
            add(shard, name, data)
            add(shard, f"{name[0]}.cls", b"0")
    cells = [{"bytes": data, "path": None} for data in files.values()]
    table = datasets.Dataset.from_dict({"image": cells}, datasets.Features(image=datasets.Image()))
    table.to_parquet(tmp_path / "t.parquet")
    here = str(tmp_path)
    return {"folder": f"{here}/photos", "tar": f"{here}/photos.tar", "shards": f"wds://{here}/s.tar",
            "stream": f"wds://{here}/s.tar?streaming=1", "rows": f"datasets://{here}/t.parquet",
            "row stream": f"datasets://{here}/t.parquet?streaming=1", "folder of rows": f"datasets://{here}/photos"}


def test_containers_agree_on_what_is_up(eight):
    for name, uri in eight.items():
        source = open_images(uri)
        items = list(source.iter_items(shuffle=False))
        assert len(items) == 8 and all(is_house(i.image) for i in items), name
        assert not any(i.image.getexif() or i.image.info for i in items), name     # nothing turns it again

        stored = open_images(uri, orientation="stored")
        sides = [i.image.size for i in stored.iter_items(shuffle=False)]
        assert sorted(sides) == [(32, 48)] * 4 + [(48, 32)] * 4, name
        assert stored.fingerprint != source.fingerprint, name
    with pytest.raises(BadInput, match="orientation"): open_images(eight["folder"], orientation="exif")


class Photos(torch.utils.data.Dataset):
    "PIL pictures as a data set of somebody else's gives them."
    classes = ["a"]
    def __init__(self, pictures): self.pictures = pictures
    def __len__(self): return len(self.pictures)
    def __getitem__(self, i): return self.pictures[i], 0


def test_pil_pictures_of_a_torch_data_set_are_turned_once(eight):
    opened = [Image.open(io.BytesIO(lying(n))) for n in range(1, 9)]
    already = [ImageOps.exif_transpose(p) for p in opened]
    converted = [p.convert("RGB") for p in opened]                              # Pillow keeps the EXIF
    rows = datasets.load_dataset("parquet", data_files=eight["rows"].removeprefix("datasets://"), split="train")
    decoded = [row["image"] for row in rows]                                    # `datasets` turns them itself
    for pictures in (opened, already, converted, decoded):
        source = open_images(Photos(pictures))
        assert all(is_house(source[i].image) for i in range(8))
    stored = open_images(Photos(opened), orientation="stored")
    assert stored[5].image.size == (32, 48) and stored.fingerprint != open_images(Photos(opened)).fingerprint


def test_whatever_else_takes_pictures_turns_them(tmp_path, eight):
    write(tmp_path / "phone.jpg", lying(6, "JPEG"))
    whole, _ = open_pictures(tmp_path / "phone.jpg")
    assert is_house(whole.images[0])
    assert all(is_house(p) for p in open_pictures(eight["folder"])[0].images[0:8])
    assert all(is_house(p) for p in next(open_samples(eight["folder"]).batches(8)))

    mask = Image.new("L", (48, 32))
    mask.paste(255, (0, 0, 48, 12))
    write(tmp_path / "mask.png", lying(8, "PNG", mask))
    kept = open_masks(tmp_path / "mask.png")
    assert kept.shape == (1, 32, 48) and kept[0, :12].all() and not kept[0, 12:].any()

    assert open_pictures(tmp_path / "phone.jpg", orientation="stored")[0].images.shape == (1, 48, 32, 3)
    assert not is_house(open_pictures(eight["folder"], orientation="stored")[0].images[1:2][0])
    assert open_masks(tmp_path / "mask.png", orientation="stored").shape == (1, 48, 32)
    with pytest.raises(BadInput, match="orientation='sideways'"): open_pictures("phone.jpg", orientation="sideways")

    phone = Image.open(tmp_path / "phone.jpg")
    assert is_house(to_pixels(phone)[0]) and is_house(to_pixels([phone, phone])[1])

    (tmp_path / "c.jsonl").write_text('{"image_path": "phone.jpg", "text": "a house"}\n')
    told = CaptionImages(Captions(tmp_path / "c.jsonl"))
    before = told.fingerprint, told.times
    assert is_house(told[0].image)
    told.orientation = "stored"
    assert told[0].image.size == (32, 48) and told.fingerprint != before[0]


def test_a_pipeline_is_given_pictures_the_right_way_up():
    pipe = Pipeline.from_pretrained("tiny-randar")
    drawn = house().resize((32, 24)).crop((0, 0, 32, 24)).resize((32, 32))
    photo = Image.open(io.BytesIO(lying(6, "PNG", drawn)))
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:, 16:] = True
    codes = [pipe.encode(given) for given in ([photo], [drawn], np.array(drawn)[None])]
    assert all(torch.equal(c, codes[0]) for c in codes)
    made = pipe.edit(photo, mask, ["star"], steps=1)
    assert (made[0, :, :16] == np.asarray(drawn)[:, :16]).all()
    with pytest.raises(BadInput, match="one height and width"): pipe.edit([photo, house()], mask, ["star"] * 2)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_leaves_a_picture_as_it_is_stored():
    base = lying(6, "JPEG")
    at = base.index(b"Exif\0\0") + 6
    assert decode_image(base).size == (48, 32)
    for k in range(0, 20, 4):
        damaged = base[:at + k] + b"\xff" * 4 + base[at + k + 4:]
        found, plain = decode_image(damaged), Image.open(io.BytesIO(damaged))
        assert found.size in ((32, 48), (48, 32)) and sorted(found.size) == sorted(plain.size)
    assert decode_image(base[:at] + b"\xff" * 20 + base[at + 20:]).size == (32, 48)


@pytest.mark.parametrize("number", [0, 9, 65535])
def test_a_number_that_is_no_orientation_turns_nothing(number):
    exif, file = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = number
    house().save(file, "PNG", exif=exif)
    assert is_house(decode_image(file.getvalue()))


def test_published_pipelines_take_pictures_as_they_are_stored(eight):
    plain = recipe("shapes-tokenizer", data=eight["folder"])
    upstream = recipe("shapes-tokenizer", data=eight["folder"], compat="upstream")
    assert (plain.orientation, upstream.orientation) == ("upright", "stored")
    data = {r.orientation: build_tokenizer(r, "none", device="meta")[1] for r in (plain, upstream)}
    assert {way: d.source.orientation for way, d in data.items()} == {"upright": "upright", "stored": "stored"}
    assert data["upright"].fingerprint != data["stored"].fingerprint
    with pytest.raises(BadInput, match="orientation"): recipe("shapes-tokenizer", orientation="sideways")


# ---- absurd sides

def flat(sides) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", sides, (200, 10, 10)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.fault("F16")
@pytest.mark.parametrize("sides", [(4, 65_000), (65_000, 4), (1, 1000), (1, 101)])
def test_a_strip_is_refused_by_name_and_counted(tmp_path, sides):
    with pytest.raises(BadItem, match="strip: .*more than 100 times"): decode_image(flat(sides), "strip")
    write(tmp_path / "a" / "strip.png", flat(sides))
    write(tmp_path / "a" / "fine.png", flat((1, 100)))
    lenient = open_images(tmp_path, max_bad=1)
    assert [i.key for i in lenient.iter_items(shuffle=False)] == ["a/fine.png"] and len(lenient.bad) == 1
    with pytest.raises(BadItem, match="strip.png"): list(open_images(tmp_path).iter_items())
    with pytest.raises(BadItem, match="a photo: "): as_rgb(Image.new("RGB", sides), "a photo")
    wrapped = open_images(Photos([house(), Image.new("RGB", sides)]), max_bad=1)
    assert len(list(wrapped.iter_items())) == 1 and wrapped.bad[0].name == "item 1"
    with pytest.raises(BadInput, match="100 times"): open_pictures(tmp_path / "a" / "strip.png")


def test_a_picture_of_a_command_is_no_bomb(tmp_path):
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    with pytest.raises(BadInput, match="bomb.png: .*9000x9000 pixels"): open_pictures(tmp_path / "bomb.png")
    write(tmp_path / "torn.png", flat((90, 90))[:60])
    with pytest.raises(BadInput, match="torn.png: must be a picture"): open_pictures(tmp_path / "torn.png")


@pytest.mark.parametrize("kind", ["center", "random-crop", "ten-crop", "resize-crop", "area-crop", "resize"])
@pytest.mark.parametrize("sides", [(4, 60_000), (60_000, 4)])
def test_a_crop_takes_no_more_than_its_window(kind, sides):
    strip = Image.new("RGB", sides, (200, 10, 10))
    start = time.perf_counter()
    x = Augment(kind, 512)(strip, Keyed(0), At(torch.tensor([3])))
    assert x.shape == (3, 512, 512) and abs(x[0] - (200 / 127.5 - 1)).max() < .02
    assert time.perf_counter() - start < 1      # whole, it would be 15 GB


def test_the_window_alone_is_the_window_of_the_whole():
    x = np.random.default_rng(0).integers(0, 255, (700, 12, 3), dtype=np.uint8)
    for picture in (Image.fromarray(x), Image.fromarray(x.transpose(1, 0, 2).copy())):
        whole = resize_short(picture, 640)                                     # 24 million pixels
        left, top = (whole.width - 640) // 2, (whole.height - 640) // 2
        expected = np.asarray(whole.crop((left, top, left + 640, top + 640))).astype(int)
        assert abs(np.asarray(center_crop(picture, 640)).astype(int) - expected).max() <= 2

        w, h = picture.width * 640 // 12, picture.height * 640 // 12
        whole = picture.resize((w, h), Image.Resampling.BILINEAR)
        box = (round((w - 640) / 2), round((h - 640) / 2))
        expected = np.asarray(whole.crop((*box, box[0] + 640, box[1] + 640))).astype(int)
        assert abs(np.asarray(resize_crop(picture, 640, "bilinear")).astype(int) - expected).max() <= 2


# ---- known again

def noise(i: int, side: int = 24, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    x = np.random.default_rng(i).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(x).save(file, kind)
    return file.getvalue()


@pytest.fixture
def set_of_200(tmp_path):
    for i in range(200): write(tmp_path / "set" / "ab"[i % 2] / f"{i:03}.png", noise(i))
    return tmp_path / "set"


def test_any_picture_of_another_size_changes_the_fingerprint(set_of_200, tmp_path):
    before = open_images(set_of_200)
    known = before.fingerprint
    for i in (1, 2, 5, 77, 198):
        file = set_of_200 / before.paths[i]
        data = file.read_bytes()
        file.write_bytes(noise(1000 + i, side=25))
        assert open_images(set_of_200).fingerprint != known, i
        file.write_bytes(data)
    assert open_images(set_of_200).fingerprint == known
    shutil.move(set_of_200, tmp_path / "moved")
    assert open_images(tmp_path / "moved").fingerprint == known


def packed(folder: Path, path: Path, shard: bool) -> Path:
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.rglob("*.png")):
            name = file.name if shard else str(file.relative_to(folder))
            add(tar, name, file.read_bytes())
            if shard: add(tar, f"{file.stem}.cls", b"0")
    return path


@pytest.mark.parametrize("scheme", ["", "wds://", "wds://?streaming=1"])
def test_a_tar_with_one_other_picture_is_another(set_of_200, tmp_path, scheme):
    start, _, end = scheme.partition("?")
    path = packed(set_of_200, tmp_path / "x.tar", bool(scheme))
    uri = f"{start}{path}{'?' + end if end else ''}"
    known = open_images(uri).fingerprint
    shutil.copyfile(path, tmp_path / "y.tar")
    (tmp_path / "y.tar").replace(path)
    assert open_images(uri).fingerprint == known
    (set_of_200 / "b" / "001.png").write_bytes(noise(1, 80))    # a tar grows by 10 kB at a time
    packed(set_of_200, path, bool(scheme))
    assert open_images(uri).fingerprint != known


def test_a_table_with_one_other_picture_is_another(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for place, odd in (("one", None), ("two", 1)):
        cells = [{"bytes": noise(i, 25 if i == odd else 24), "path": None} for i in range(200)]
        table = datasets.Dataset.from_dict({"image": cells}, datasets.Features(image=datasets.Image()))
        table.to_parquet(tmp_path / f"{place}.parquet")
        write(tmp_path / place / "1.png", noise(1, 25 if odd else 24))
        (tmp_path / f"{place}.csv").write_text(f"path\n{place}/1.png\n")
    for kind in ("parquet", "csv"):
        one, again, two = (open_images(f"datasets://{tmp_path}/{name}.{kind}") for name in ("one", "one", "two"))
        assert one.fingerprint == again.fingerprint != two.fingerprint, kind
        assert one.sizes()[0] == len(one.read(0)), kind


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return vqgan("tiny-shapes", quantizer=dict(codebook=32), width=16, z=16, groups=8).eval()


def test_work_goes_on_with_the_very_files_it_was_begun_with(set_of_200, tmp_path, tokenizer):
    "Unchanged or moved: yes. Replaced in place, of the same size or not, or copied without times: no, and says why."
    view, out = Augment("center", 16), tmp_path / "codes"
    plan = code_plan(tokenizer, open_images(set_of_200), view, 64)
    assert plan.times and CodeWriter(out, plan).todo() == [0, 1, 2, 3]
    store = extract_codes(tokenizer, open_images(set_of_200), out, view, shard_size=64, progress=False)
    assert len(store) == 200 and "times" not in store.index
    again = extract_codes(tokenizer, open_images(set_of_200), out, view, shard_size=64, progress=False)
    assert again.fingerprint == store.fingerprint

    shutil.copytree(set_of_200, tmp_path / "kept")                              # with times
    kept = extract_codes(tokenizer, open_images(tmp_path / "kept"), out, view, shard_size=64, progress=False)
    assert kept.fingerprint == store.fingerprint
    shutil.copytree(set_of_200, tmp_path / "bare", copy_function=shutil.copyfile)
    bare = open_images(tmp_path / "bare")
    assert bare.fingerprint == open_images(set_of_200).fingerprint
    with pytest.raises(Mismatch, match=r"copied without their times \(cp -p"):
        extract_codes(tokenizer, bare, out, view, shard_size=64, progress=False)
    elsewhere = extract_codes(tokenizer, bare, tmp_path / "more", view, shard_size=64, progress=False)
    assert elsewhere.fingerprint == store.fingerprint                           # times are the work's, not the store's

    file = set_of_200 / "b" / "001.png"
    same_size = bytearray(file.read_bytes())
    same_size[-30] ^= 1
    file.write_bytes(same_size)
    os.utime(file, (0, 0))
    with pytest.raises(Mismatch, match="some were changed since"):
        extract_codes(tokenizer, open_images(set_of_200), out, view, shard_size=64, progress=False)
    file.write_bytes(noise(1, 30))
    with pytest.raises(Mismatch, match="holds another store .data is"):
        extract_codes(tokenizer, open_images(set_of_200), out, view, shard_size=64, progress=False)


def test_training_goes_on_with_a_copy(set_of_200, tmp_path):
    "A job that copies its data to a fast disk first is the same job."
    shutil.copytree(set_of_200, tmp_path / "fast", copy_function=shutil.copyfile)
    view = Augment("center", 16)
    known, copied = (ImageData(open_images(place), view).fingerprint for place in (set_of_200, tmp_path / "fast"))
    assert known == copied
    (set_of_200 / "a" / "002.png").write_bytes(noise(2, 26))
    assert ImageData(open_images(set_of_200), view).fingerprint != known


def test_a_plan_of_before_says_nothing_of_times(tmp_path):
    plan = dict(vocab=(8,), grid=(2, 2), total=4, tokenizer="t")
    CodeWriter(tmp_path / "s", CodePlan(**plan))
    text = (tmp_path / "s" / "plan.json").read_text()
    (tmp_path / "s" / "plan.json").write_text(text.replace(',\n "times": ""', ""))
    assert "times" not in (tmp_path / "s" / "plan.json").read_text()
    CodeWriter(tmp_path / "s", CodePlan(**plan, times="now"))


def test_the_fingerprint_of_many_files_is_cheap(tmp_path):
    "One stat a file and 64 reads: no more memory than numbers."
    for i in range(3000): write(tmp_path / "a" / f"{i:04}.png", b"x")
    source = open_images(tmp_path)
    tracemalloc.start()
    start = time.perf_counter()
    assert source.fingerprint and source.times
    taken, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 2 and peak < 8e6


# ---- replaced by others of the same size

@pytest.fixture
def bmps(tmp_path):
    "200 files of one size; the fingerprint reads 64 of them."
    for i in range(200): write(tmp_path / "set" / f"{i:03}.bmp", noise(i, 32, "BMP"))
    return tmp_path / "set"


def replace(folder: Path):
    "Another picture of the same size where the fingerprint does not look: only the times tell."
    before = open_images(folder)
    known, times = before.fingerprint, before.times
    file = folder / before.paths[1]
    file.write_bytes(noise(1000, 32, "BMP"))
    os.utime(file, (0, 0))
    after = open_images(folder)
    assert after.fingerprint == known and after.times != times


class Colours(Task):
    "Learns the mean colour."
    def __init__(self): self.modules = {"net": torch.nn.Linear(1, 3)}
    def phases(self, step): return (Phase.of("net", "net"),)

    def loss(self, phase, batch, carry, draws, at):
        means = batch["images"].mean((2, 3))
        return Loss((self.modules["net"](means[:, :1]) - means).square().mean(), {})


def test_training_warns_where_files_were_changed(bmps, tmp_path, capsys):
    def train(steps):
        recipe = Recipe(steps=6, batch=4, precision="fp32")
        data = ImageData(open_images(bmps), Augment("center", 16))
        Trainer(Colours(), data, recipe, tmp_path / "run", Run(save_every=2, progress=False)).fit(steps)
        return [line for line in capsys.readouterr().err.splitlines() if "warning: data" in line]
    assert train(2) == train(4) == []
    replace(bmps)
    told, = train(5)
    assert "some files were changed since, or all copied without their times (cp -p" in told
    assert train(6) == []                                                       # told once


def test_samples_of_changed_pictures_are_not_finished(bmps, tmp_path):
    pipe = Pipeline.from_pretrained("tiny-randar")
    def job():
        images = open_pictures(bmps)[0]
        return SampleJob(pipe, torch.zeros(2, dtype=torch.int64), tmp_path / "s.npz", images=images, part=2,
                         what=Inpaint(torch.ones(32, 32, dtype=torch.bool)))
    if not job().begin(): job().run(progress=False)
    assert job().begin()
    replace(bmps)
    with pytest.raises(BadInput, match="exists already"): job().begin()


def test_numbers_of_changed_pictures_are_not_finished(bmps, tmp_path, capsys):
    words = ["--extractor", "shapes-judge", "--metrics", "fid", "--json", str(tmp_path / "n.json")]
    sides = ["shapes://?n=20&size=32&seed=1", str(bmps)]
    main = script("evaluate.py")
    for _ in range(2): assert main([*sides, *words]) == 0
    assert "finished already" in capsys.readouterr().out
    replace(bmps)
    with pytest.raises(Mismatch, match="n.json.* from files of other times"): main([*sides, *words])
    assert main([*sides, *words, "--overwrite"]) == main([*sides, *words]) == 0


def test_a_search_and_a_reference_rest_on_the_very_files(bmps, tmp_path):
    pipe, judge = Pipeline.from_pretrained("tiny-randar"), load_extractor("shapes-judge")
    def search():
        return GuidanceSearch(pipe, open_samples(bmps), judge, tmp_path / "search", (1.0,), count=4, final=0,
                              metrics=("fid",), part=4)
    search().run()
    assert search().todo() == []
    words = [str(bmps), "--extractor", "shapes-judge", "--out"]
    main = script("extract_reference.py")
    for name in ("r.npz", "p.pt"): assert main([*words, str(tmp_path / name)]) == 0
    replace(bmps)
    with pytest.raises(Mismatch, match="search.* from files of other times"): search().run()
    with pytest.raises(Mismatch, match="r.npz.* from files of other times"): main([*words, str(tmp_path / "r.npz")])
    with pytest.raises(BadInput, match="exists already"): main([*words, str(tmp_path / "p.pt")])
