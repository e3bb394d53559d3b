"Files that are not what their names say, or claim what they do not have: one line, before work starts."
import io
import json
import pickle
import resource
import shutil
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vgnb.core import BadInput, Mismatch, load_json, load_settings, save_json
from vgnb.data.text import TextEncoder
from vgnb.evaluation.features import Extractor, Features, fidelity, load_extractor
from vgnb.evaluation.judge import load_judge
from vgnb.evaluation.measure import measure, size_note
from vgnb.evaluation.samples import Samples, class_numbers, load_statistics, npz_members, open_samples, save_samples
from vgnb.kinds import from_json, to_json
from vgnb.pipeline import Pipeline, read_card
from vgnb.saved import load_model, load_tensors, read_config
from vgnb.shipped import shipped_folder
from vgnb.tensor_files import read_state, read_tensors
from vgnb.tokenizers.lpips import load_lpips
from vgnb.tokenizers.vqgan import vqgan
from vgnb.training.commands import build_tokenizer, first_word
from vgnb.training.recipes import recipe
from vgnb.zoo import export_published, load_published

@pytest.fixture(scope="module", autouse=True)
def warm():
    "What is imported when it is first needed is needed now."
    fidelity("feature_extractor_inceptionv3")
    for name in ("tiny-randar", "tiny-maskgit", "tiny-pgm"): load_model(shipped_folder(name) / "generator")


class Frugal:
    "What runs inside takes less than two seconds of a processor and 500 MB."
    def __enter__(self):
        self.start, self.before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def __exit__(self, *error):
        assert time.process_time() - self.start < 2
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before < 500_000


def torch_bytes(content, old: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


# ---- what arrives in the place of weights

STATE = {"features.0.weight": torch.arange(12.).view(3, 4), "b": torch.zeros(3)}
ARRIVED = {
    "empty": (b"", "is empty"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "git lfs pull"),
    "page": (b"\n<!doctype html>\n<html><title>404</title>", "is a web page"),
    "refusal": (b'{"error": "Access to this model is restricted"}', "is text, no weights: .*restricted"),
    "gzip": (b"\x1f\x8b\x08\0abc", "compressed with gzip"),
    "zeros": (bytes(3000), "zeros only"),
    "half": (torch_bytes(STATE)[:-100], "is cut off|must be a readable safetensors"),
    "half old": (torch_bytes(STATE, old=True)[:150], "is cut off|must be a readable safetensors"),
}


def lpips_folder(file: Path): return load_lpips(file.parent)
def pipeline_folder(file: Path): return load_model(file.parent)


PLACES = {      # the name it has there, who reads it
    "published": ("m.pt", load_published),
    "published safetensors": ("m.safetensors", load_published),
    "a published pickle": ("m.bin", read_tensors),
    "lpips": ("vgg16.pth", lpips_folder),
    "lpips safetensors": ("vgg16.safetensors", lpips_folder),
    "inception": ("i.pth", lambda file: load_extractor("inception", file)),
    "statistics": ("s.pt", load_statistics),
    "statistics safetensors": ("s.safetensors", load_statistics),
    "statistics npz": ("s.npz", open_samples),
    "judge": ("j.safetensors", load_judge),
    "checkpoint": ("c.safetensors", load_tensors),
    "model": ("model.safetensors", pipeline_folder),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("what", ARRIVED)
def test_every_reader_of_weights_says_what_it_found(place, what, tmp_path):
    name, read = PLACES[place]
    data, words = ARRIVED[what]
    file = tmp_path / name
    file.write_bytes(data)
    if place == "judge": (tmp_path / "j.json").write_text('{"sha256": ""}')
    if place == "model": shutil.copy(shipped_folder("tiny-randar") / "generator/config.json", tmp_path)
    if place == "statistics npz": words += "|is not an npz"
    if place == "statistics": words += "|is damaged .File is not a zip file"
    with Frugal(), pytest.raises(Mismatch, match=words) as error: read(file)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("what", ["empty", "pointer", "page"])
def test_a_text_encoder_says_what_its_folder_holds(what, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(ARRIVED[what][0])
    with pytest.raises(Mismatch, match=f"model.safetensors: .*{ARRIVED[what][1]}"): TextEncoder(tmp_path)


def test_a_file_is_read_as_what_it_is(tmp_path):
    (tmp_path / "a.pt").write_bytes(torch_bytes(STATE))
    (tmp_path / "b.pt").write_bytes(torch_bytes(STATE, old=True))
    save_file(STATE, tmp_path / "c.pt")
    for name in "abc": assert torch.equal(read_state(tmp_path / f"{name}.pt")["b"], STATE["b"])
    nested = {"model": STATE, "optimizer": {"state": {0: {"step": torch.tensor(3)}}}, "args": [1, "x"], "epoch": 7}
    (tmp_path / "d.pt").write_bytes(torch_bytes(nested))
    assert read_tensors(tmp_path / "d.pt")["epoch"] == 7
    with pytest.raises(Mismatch, match="must hold a state dict"): read_state(tmp_path / "d.pt")


@pytest.mark.parametrize("header", ["[]", "{", '{"aliases": 3}', '{"aliases": {"x": 3}}', '{"aliases": {"x": "none"}}',
                                    "[" * 100_000])
def test_metadata_of_a_file_of_ours_is_not_believed(header, tmp_path):
    save_file(STATE, tmp_path / "m.safetensors", {"vgnb": header})
    with pytest.raises(Mismatch, match="m.safetensors: (has a damaged header|names an alias)"):
        load_tensors(tmp_path / "m.safetensors")


# ---- small files with large claims

class Call:
    "A pickle that calls something."
    def __init__(self, f, *args): self.call = f, args
    def __reduce__(self): return self.call


def raw_safetensors(header: dict | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def many_names() -> bytes:
    nothing = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return raw_safetensors(("{" + ",".join(f'"l.{i}":{nothing}' for i in range(400_000)) + "}").encode())


def zip_of(count: int) -> bytes:
    "A torch archive whose table of contents names one entry many times."
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z: z.writestr("a/data.pkl", b"\x80\x02N.")
    whole = file.getvalue()
    start = whole.index(b"PK\1\2")
    entry, end = whole[start:-22], bytearray(whole[-22:])
    end[8:20] = struct.pack("<HHII", 0xFFFF, 0xFFFF, count * len(entry), start)
    return whole[:start] + entry * count + bytes(end)


def packed_archive() -> bytes:
    "A torch archive whose tensor is 300 MB of zeros, packed."
    source, file = zipfile.ZipFile(io.BytesIO(torch_bytes({"w": torch.zeros(10)}))), io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as z:
        for info in source.infolist(): z.writestr(info.filename, source.read(info))
    return file.getvalue()


stored = torch.storage.TypedStorage(wrap_storage=torch.zeros(4).untyped_storage(), dtype=torch.float32, _internal=True)
claimed = Call(torch._utils._rebuild_tensor_v2, stored, 0, (50_000, 20_000), (20_000, 1), False, {})
no_bytes = Call(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (10 ** 6, 10 ** 6), (10 ** 6, 1), False)
MAGIC = torch_bytes(0, old=True)[:15]      # how a torch file of before the zip begins
wide = torch.zeros(1).expand(10 ** 5, 10 ** 5)
FORGED = {
    "stride 0": lambda: torch_bytes({"w": wide}),
    "stride 0, old": lambda: torch_bytes({"w": wide}, old=True),
    "stride 0, hidden": lambda: torch_bytes({"ema": {"a": [(wide,)]}, "model": STATE}),
    "a shape beyond its bytes": lambda: torch_bytes({"w": claimed}),
    "no bytes": lambda: torch_bytes({"w": no_bytes}),
    "sparse": lambda: torch_bytes({"w": torch.zeros(3).to_sparse()}),
    "bytes from a number": lambda: MAGIC + b"\x80\x02c__builtin__\nbytearray\nJ\x00\x00\x00\x7f\x85R.",
    "an endless pickle": lambda: MAGIC + b"\x80\x02" + b"]0" * 600_000 + b"N.",
    "another pickle": lambda: pickle.dumps({"a": print}),
    "packed": packed_archive,
    "many entries": lambda: zip_of(400_000),
    "many names": many_names,
    "absurd shape": lambda: raw_safetensors(
        {"w": {"dtype": "F32", "shape": [2 ** 40, 2 ** 30], "data_offsets": [0, 4]}}, b"abcd"),
    "more than there is": lambda: raw_safetensors(
        {"w": {"dtype": "F32", "shape": [10 ** 9], "data_offsets": [0, 4 * 10 ** 9]}}, b"abcd"),
    "deep header": lambda: raw_safetensors(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "long header": lambda: struct.pack("<Q", 2 ** 62) + b"{abc",
}


@pytest.mark.fault("F14")
@pytest.mark.parametrize("claim", FORGED)
def test_small_files_with_large_claims_are_refused_at_once(claim, tmp_path):
    file = tmp_path / "forged.pt"
    file.write_bytes(FORGED[claim]())
    with Frugal(), pytest.raises(Mismatch, match="forged.pt"): read_tensors(file)


@pytest.mark.parametrize("field, value", [
    ("vocab", 3_000_000), ("vocab", 10 ** 12), ("layers", 10 ** 6), ("dim", 2 ** 20), ("classes", 10 ** 9),
    ("heads", 10 ** 6), ("ffn_multiple", 10 ** 8), ("ffn_multiple", 0), ("std", -1), ("layers", "many"),
    ("layers", 4.5),
    ("vocab", None), ("dim", -1), ("grid", 8), ("order", [[["random"]]]), ("kind", "no such"), ("kind", {"a": 1})])
def test_a_configuration_that_its_weights_cannot_have_is_refused_at_once(field, value, tmp_path):
    model = shutil.copytree(shipped_folder("tiny-randar") / "generator", tmp_path / "m")
    card = load_json(model / "config.json")
    card["config"][field] = value
    save_json(model / "config.json", card)
    with Frugal(), pytest.raises(BadInput): load_model(model)


@pytest.mark.parametrize("name", ["tiny-maskgit", "tiny-pgm", "tokenizer"])
def test_every_absurd_number_in_a_configuration_is_refused_at_once(name, tmp_path):
    source = shipped_folder("tiny-randar").parent / name if name == "tokenizer" else shipped_folder(name) / "generator"
    model = shutil.copytree(source, tmp_path / "m")
    card = load_json(model / "config.json")
    numbers = [k for k, v in card["config"].items() if isinstance(v, int) and not isinstance(v, bool) and v > 1]
    assert len(numbers) > 2
    for field in numbers:
        save_json(model / "config.json", {**card, "config": {**card["config"], field: 10 ** 9 + 7}})
        try:
            with Frugal(): load_model(model)
        except BadInput: pass


def test_a_published_file_that_names_a_billionth_layer_is_refused_at_once(tmp_path):
    model = vqgan("VQ-16", width=32, z=32, mults=(1, 1, 1, 1, 1), depth=1, quantizer=dict(codebook=16))
    state = export_published(model)
    name = next(k for k in state if ".0." in k)
    save_file({**state, name.replace(".0.", ".1000000000."): state[name].clone()}, tmp_path / "m.safetensors")
    with Frugal(), pytest.raises(BadInput): load_published(tmp_path / "m.safetensors")


@pytest.mark.parametrize("grid", [[10 ** 5, 10 ** 5], [0, 8], [8, -1], [2 ** 11, 2 ** 11]])
def test_a_pipeline_of_absurd_sides_is_refused_at_once(grid, tmp_path):
    folder = shutil.copytree(shipped_folder("tiny-randar"), tmp_path / "p")
    shutil.copytree(shipped_folder("tiny-randar").parent / "tokenizer", tmp_path / "tokenizer")
    card = load_json(folder / "pipeline.json")
    del card["seal"]                                                     # as whoever changes it by hand does
    save_json(folder / "pipeline.json", card | {"grid": grid})
    with Frugal(), pytest.raises(BadInput, match="grid"): Pipeline.from_pretrained(folder)


# ---- npz

def npz(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def forged_npz(path: Path, shape: tuple, pack: int, unpacked: int):
    "An npz of 100 bytes after the header, which says that they unpack to more."
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, dict(descr="|u1", fortran_order=False, shape=shape))
    with zipfile.ZipFile(path, "w", pack) as z: z.writestr("arr_0.npy", head.getvalue() + bytes(100))
    data = bytearray(path.read_bytes())
    for start, field in ((0, 22), (data.index(b"PK\1\2"), 24)):
        data[start + field:start + field + 4] = struct.pack("<I", head.tell() + unpacked)
    path.write_bytes(data)


@pytest.mark.fault("F16")
def test_arrays_that_unpack_without_end_are_refused_at_once(tmp_path):
    forged_npz(tmp_path / "bomb.npz", (300, 1024, 1024, 3), zipfile.ZIP_DEFLATED, 900 * 2 ** 20)
    with Frugal(), pytest.raises(Mismatch, match="no pictures shrink so far"): open_samples(tmp_path / "bomb.npz")
    forged_npz(tmp_path / "claim.npz", (2 ** 34, 4), zipfile.ZIP_STORED, 100)
    with Frugal(), pytest.raises(Mismatch, match="claims .* bytes but holds 100"): npz_members(tmp_path / "claim.npz")

    np.savez(tmp_path / "cut.npz", arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    whole = (tmp_path / "cut.npz").read_bytes()
    start = whole.index(b"\x93NUMPY")
    (tmp_path / "cut.npz").write_bytes(whole[:start + 200] + whole[start + 800:])
    with pytest.raises(Mismatch): open_samples(tmp_path / "cut.npz")

    with zipfile.ZipFile(tmp_path / "many.npz", "w") as z:
        for i in range(20_000): z.writestr(zipfile.ZipInfo(f"a_rather_long_name_of_an_array_{i}.npy"), b"")
    with Frugal(), pytest.raises(Mismatch, match="too many arrays"): npz_members(tmp_path / "many.npz")
    noise = np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "fine.npz", arr_0=noise)
    assert (open_samples(tmp_path / "fine.npz").images[:] == noise).all()


PICTURES = np.zeros((6, 8, 8, 3), np.uint8)
CLASSES = np.array([0, 3, 1, 1, 2, 3])


@pytest.mark.parametrize("key", ["labels", "arr_1", "label"])
@pytest.mark.parametrize("labels", [
    CLASSES, CLASSES.astype(np.uint8), CLASSES.astype(np.float32), CLASSES.astype(np.float16), CLASSES[:, None],
    CLASSES[None],
    np.eye(4)[CLASSES], np.eye(4, dtype=bool)[CLASSES], np.eye(4, dtype=np.uint8)[CLASSES]])
def test_labels_of_every_shape_and_type_are_the_same_classes(key, labels, tmp_path):
    found = open_samples(npz(tmp_path / "x.npz", arr_0=PICTURES, **{key: labels})).labels
    assert found.tolist() == CLASSES.tolist() and found.dtype == np.int64
    save_samples(tmp_path / "y.npz", PICTURES, labels)
    assert np.load(tmp_path / "y.npz")["labels"].tolist() == CLASSES.tolist()


def test_truth_values_are_two_classes():
    assert class_numbers(CLASSES > 1, 6).tolist() == [0, 1, 0, 0, 1, 1]


@pytest.mark.parametrize("labels, words", [
    (CLASSES + .7, "entry 0 is not"), (np.full(6, np.nan), "entry 0"), (np.eye(4)[CLASSES] * .9, "row 0 is not"),
    (np.ones((6, 4)), "row 0"), (np.zeros((6, 4), bool), "row 0"), (np.array(["a"] * 6), "one class a picture"),
    (CLASSES[:5], "one for each of the 6"), (np.zeros((6, 2, 2)), "one for each"), (np.float64(3), "one for each"),
    (CLASSES + 0j, "one class a picture")])
def test_labels_that_are_no_classes_are_refused(labels, words, tmp_path):
    npz(tmp_path / "x.npz", arr_0=PICTURES, labels=labels)
    with pytest.raises(BadInput, match=words): open_samples(tmp_path / "x.npz")
    with pytest.raises(BadInput, match=words): Samples(PICTURES, labels)
    with pytest.raises(BadInput, match=words): save_samples(tmp_path / "y.npz", PICTURES, labels)
    assert not (tmp_path / "y.npz").exists()


class Mean(Extractor):
    "Looks at the mean colour."
    id, dims = "mean@1", 3
    def look(self, images): return Features(images.float().mean((2, 3)))


def test_a_metric_says_when_sizes_differ(tmp_path):
    rng = np.random.default_rng(0)
    large, small, other = (rng.integers(0, 255, (8, s, s, 3), dtype=np.uint8) for s in (64, 32, 64))
    report = measure(large, small, Mean(), metrics=("fid",))
    assert any("samples are 64x64, the reference's pictures were 32x32" in note for note in report.notes)
    assert (report.protocol.size, report.protocol.reference_size) == ((64, 64), (32, 32))
    report.save(tmp_path / "r.json")
    assert load_json(tmp_path / "r.json")["protocol"]["reference_size"] == [32, 32]
    same = measure(large, other, Mean(), metrics=("fid",))
    assert not any("64x64" in note for note in same.notes) and size_note(Samples(large), Samples(other)) is None
    assert "reference_size" in report.differences(same)


# ---- JSON

ODD = {
    "list": "[1, 2]", "word": '"x"', "nan": '{"steps": NaN}', "infinity": '{"steps": -1e999}', "empty": " ",
    "deep": '{"model":' * 300 + "1" + "}" * 300, "bottomless": "[" * 200_000, "half": '{"steps": ',
    "latin": b"\xff{}", "long": '{"steps": ' + "9" * 5000 + "}"}


@pytest.mark.parametrize("name", ODD)
def test_settings_that_are_none_are_one_line_with_the_file(name, tmp_path):
    text = ODD[name] if isinstance(ODD[name], bytes) else ODD[name].encode()
    model = tmp_path / "m"
    model.mkdir()
    readers = {tmp_path / "r.json": lambda: first_word(str(tmp_path / "r.json"), "tokenizer"),
               model / "config.json": lambda: read_config(model),
               tmp_path / "pipeline.json": lambda: read_card(tmp_path),
               tmp_path / "run.json": lambda: load_settings(tmp_path / "run.json")}
    for file, read in readers.items():
        file.write_bytes(text)
        with Frugal(), pytest.raises(BadInput) as error: read()
        assert (file.name in str(error.value) or "m: " in str(error.value)) and len(str(error.value)) < 400


@pytest.mark.parametrize("change, words", [
    ({"steps": "many"}, "steps"), ({"steps": True}, "steps"), ({"model": 5}, "model"),
    ({"model": {"kind": "raster"}}, "model"), ({"kind": ["tokenizer"]}, "kind"), ({"kind": "raster"}, "kind|field"),
    ({"augment": [1]}, "augment"), ({"optim": {"betas": [.9]}}, "betas"), ({"optim": "adam"}, "optim"),
    ({"nonsense": 1}, "nonsense"), ({"loss": None}, "loss")])
def test_a_recipe_of_wrong_parts_names_the_part(change, words, tmp_path):
    save_json(tmp_path / "r.json", to_json(recipe("shapes-tokenizer")) | change)
    with pytest.raises(BadInput, match=words) as error: first_word(str(tmp_path / "r.json"), "tokenizer")
    assert "r.json" in str(error.value)


def test_a_recipe_with_a_byte_order_mark_is_read(tmp_path):
    plain = recipe("shapes-tokenizer")
    (tmp_path / "r.json").write_text(json.dumps(to_json(plain)), encoding="utf-8-sig")
    assert first_word(str(tmp_path / "r.json"), "tokenizer").recipe == plain
    assert from_json(json.loads(json.dumps(to_json(plain)))) == plain


# ---- arguments

@pytest.fixture(scope="module")
def pipe(): return Pipeline.from_pretrained("tiny-randar")


@pytest.mark.parametrize("labels", [
    [], torch.tensor([3.7]), torch.tensor([3.]), np.array([3.7]), [3.0], [True], np.array([True]),
    [np.bool_(1)], [-1], [10], torch.tensor([-1]), np.array([[1]]), [[1]], ["none"], {"a": 1},
    torch.tensor([True])])
def test_what_is_no_list_of_classes_is_refused(pipe, labels):
    with pytest.raises(BadInput, match="^label"): pipe.condition(labels)


@pytest.mark.parametrize("labels", [
    [3, 4], (3, 4), np.array([3, 4]), torch.tensor([3, 4]), [np.int64(3), torch.tensor(4)], range(3, 5),
    np.array([3, 4], np.uint8)])
def test_whole_numbers_are_classes(pipe, labels):
    assert pipe.condition(labels).labels.tolist() == [3, 4]


@pytest.mark.parametrize("size", [0, -4, 2.5, "32", True, (8, 0), (8,) * 3, ()])
def test_a_size_that_is_none_is_refused_before_sampling(pipe, size):
    with Frugal(), pytest.raises(BadInput, match="size"): pipe.sample([3], size=size)
    with pytest.raises(BadInput, match="size"): pipe.extrapolate([3], (12, 12), size=size)


@pytest.mark.parametrize("batch, fits", [(1, False), (15, False), (16, True)])
def test_a_batch_too_small_for_its_codebook_is_refused_before_the_first_step(batch, fits):
    "256 codes from pictures of 16 features."
    r = recipe("shapes-tokenizer", data="shapes://?n=64", batch=batch)
    codes, places = r.model.quantizer.codebook, (r.augment.size // r.model.factor) ** 2
    least = -(-codes // places)
    r = recipe("shapes-tokenizer", data="shapes://?n=64", batch=max(1, least + batch - 16))
    if fits: return build_tokenizer(r, "none", device="meta")
    words = f"batch=.*must be at least {least}: .*{codes} codes .*free_steps=0"
    with pytest.raises(BadInput, match=words): build_tokenizer(r, "none", device="meta")
    build_tokenizer(recipe("shapes-tokenizer", data="shapes://?n=64", batch=1, free_steps=0), "none", device="meta")
