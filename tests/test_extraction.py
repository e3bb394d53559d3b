"What others left behind, and what is looked at once: published codes, ImageNet's layouts, compiled and shared extraction, FID references."
import io
import json
import os
import pickle
import tarfile
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch

from vgnb.core import BadInput, BadItem, Mismatch, Missing
from vgnb.data.codes import CodeStore
from vgnb.data.halton_codes import read_pickled_codes
from vgnb.data.images import open_images
from vgnb.data.layouts import store_from
from vgnb.data.shapes import Shapes
from vgnb.data.stored import KaggleImages
from vgnb.data.transforms import Augment
from vgnb.evaluation.features import Extractor, Features, load_extractor
from vgnb.evaluation.fid import measure
from vgnb.evaluation.reference import extract_reference
from vgnb.evaluation.samples import load_statistics, open_samples
from vgnb.tokenizers.vqgan import vqgan
from vgnb.saved import load_model
from vgnb.training.commands import TrainOptions, open_codes, train
from vgnb.training.extract import extract_codes
from vgnb.training.recipes import recipe


# ---- pickled codes

CODE = np.arange(12, dtype=np.uint16).reshape(3, 4)


class Call:
    "A pickle that calls something."
    def __init__(self, f, *args): self.call = f, args
    def __reduce__(self): return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("code", [CODE, CODE.astype(">u2"), np.asfortranarray(CODE), CODE.astype(np.int64), CODE.astype(np.uint8)[::2, ::-1]])
def test_every_way_to_pickle_an_array_reads_the_same(protocol, code):
    for y in (7, np.int64(7)):
        got, label = read_pickled_codes(pickle.dumps({"code": code, "y": y}, protocol))
        assert got.dtype == np.int64 and (got == code).all() and label == 7


def test_arrays_pickled_by_older_numpy_read_the_same():
    "They name numpy.core where newer ones name numpy._core."
    for protocol in (2, 4, 5):
        data = pickle.dumps({"code": CODE, "y": 3}, protocol)
        old = data.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray").replace(b"\x8c\x13numpy._core.numeric", b"\x8c\x12numpy.core.numeric").replace(b"cnumpy._core", b"cnumpy.core")
        if protocol >= 4 and old != data: old = old[:3] + (len(old) - 11).to_bytes(8, "little") + old[11:]         # the frame is a byte shorter
        assert old != data and (read_pickled_codes(old)[0] == CODE).all()


def test_no_pickle_runs(tmp_path):
    mark = str(tmp_path / "mark")
    evil = [Call(os.mkdir, mark), Call(eval, f"__import__('os').mkdir({mark!r})"), Call(getattr, "word", "upper"), Call(open, mark, "w"), Call(np.memmap, mark, np.uint8, "w+", 0, (4,)),
            Call(np.fromfile, mark), Call(io.FileIO, mark, "w"), print, np.array, np.ndarray.tofile]
    for thing in evil:
        for where in ({"code": thing, "y": 1}, {"code": CODE, "y": thing}, {"code": CODE, "y": 1, "more": thing}, thing, [thing]):
            for protocol in (0, 2, 4, 5):
                with pytest.raises(BadItem, match="x.pth: is no pickle of an integer array and a number: it names"): read_pickled_codes(pickle.dumps(where, protocol), "x.pth")
    assert not os.path.exists(mark)


class Forged:
    "An array that claims a shape, a dtype and bytes."
    def __init__(self, *claims): self.claims = claims
    def __reduce__(self):
        shape, kind, raw = self.claims
        return CODE.__reduce__()[0], (np.ndarray, (0,), b"b"), (1, shape, np.dtype(kind), False, raw)


def hand_made(shape, kind, raw, y=1): return pickle.dumps({"code": Forged(shape, kind, raw), "y": y})


def test_a_pickle_that_lies_is_a_named_error():
    assert (read_pickled_codes(hand_made((2, 2), "u2", CODE[:1].tobytes()))[0] == CODE[:1].reshape(2, 2)).all()           # the forgery itself is sound
    whole = pickle.dumps({"code": CODE, "y": 1})
    bad = {hand_made((10 ** 9, 10 ** 9), "u2", b"12"): "is no pickle", hand_made((2, 2), "O", [1] * 4): "none of integers", hand_made((2, 2), "f4", b"x" * 16): "none of integers", hand_made((-1, 2), "u2", b"x" * 7): "is no pickle",
           hand_made((4,), "u2", b"x" * 8): r"must be an integer array \(h, w\)", hand_made((0, 4), "u2", b""): r"must be an integer array \(h, w\)", hand_made((1, 1), "u2", b"12", True): "found bool",
           hand_made((1, 1), "u2", b"12", "7"): "found str", whole[:-9]: "is no pickle", b"": "is no pickle", b"\x80\x04.": "is no pickle", pickle.dumps(CODE): "must hold code and y",
           pickle.dumps({"code": CODE}): "must hold code and y", pickle.dumps({"code": [[1]], "y": 1}): "must be an integer array", pickle.dumps({"code": np.zeros((2, 2)), "y": 1}): "none of integers",
           b"\x80\x02K\x01r\xff\xff\xff\x7f.": "must hold code and y", b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.": "is no pickle", b"0" * ((1 << 22) + 1): "more than", b"\x80\x02\x82\x01.": "is no pickle", b"\x80\x02U\x01aQ.": "is no pickle"}
    for data, words in bad.items():
        with pytest.raises(BadItem, match=f"x.pth: .*{words}"): read_pickled_codes(data, "x.pth")
    g = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole); data[g.integers(len(data))] = g.integers(256)
        try: read_pickled_codes(bytes(data))
        except BadItem: pass


@pytest.fixture
def halton(tmp_path):
    "36 items of 4 x 4 codes in Train, 5 in Eval."
    for split, n in (("Train", 36), ("Eval", 5)):
        (tmp_path / "set" / split).mkdir(parents=True)
        for i in range(n): (tmp_path / "set" / split / f"{i:07d}.pth").write_bytes(pickle.dumps({"code": np.full((4, 4), i, np.uint16), "y": i % 10}))
    return tmp_path / "set"


def test_pickled_codes_by_split_and_their_faults(halton):
    train_set, eval_set = store_from("halton", f"{halton}/", vocab=48, classes=10), open_codes(f"halton://{halton}?split=eval&vocab=48&classes=10")
    assert (len(train_set), len(eval_set), train_set.grid, train_set.augs) == (36, 5, (4, 4), ("row 0",)) and train_set.fingerprint != eval_set.fingerprint
    assert len(store_from("halton", halton / "Eval", vocab=48)) == 5 and train_set[17][0].unique().tolist() == [17] and train_set[17][1:] == (7, 17)
    file = halton / "Train" / "0000003.pth"
    for code, y, words in ((np.zeros((4, 5), np.uint16), 0, r"must hold codes \(4, 4\)"), (np.full((4, 4), 48, np.uint16), 0, r"codes must lie in \[0, 48\)"), (np.zeros((4, 4), np.uint16), 10, "label must lie in")):
        file.write_bytes(pickle.dumps({"code": code, "y": y}))
        with pytest.raises(BadItem, match=f"0000003.pth: {words}"): train_set.batch([0, 3])
    file.unlink()
    assert store_from("halton", halton, vocab=48).ids.tolist() == [i for i in range(36) if i != 3]
    with pytest.raises(BadItem, match="cannot be read"): train_set[3]
    (halton / "Train" / "notes.pth").write_bytes(b"")
    with pytest.raises(BadInput, match="notes.pth"): store_from("halton", halton)


def test_a_generator_trains_on_pickled_codes(halton, tmp_path):
    r = recipe("shapes-generator", data=f"halton://{halton}?vocab=48&classes=10", steps=2, batch=8, precision="fp32", model=replace(recipe("shapes-generator").model, layers=1, dim=32))
    done = train(TrainOptions(r, tmp_path / "run", progress=False))
    assert done.code == 0 and load_model(tmp_path / "run" / "model").vocab == (48,)


# ---- rows

@pytest.fixture
def rows(tmp_path):
    "As published: uint16 rows with the begin token, torch format, a dataset_dict.json that names the last split only."
    def save(split, n, change=lambda i, r: r):
        made = [change(i, {"input_ids": np.array([17, *((np.arange(9) + i) % 16)], np.uint16), "attention_mask": np.ones(10, np.uint16), "label": i % 4}) for i in range(n)]
        table = datasets.Dataset.from_list(made); table.set_format("torch")
        datasets.DatasetDict({split: table}).save_to_disk(str(tmp_path / "pgm"))
        return tmp_path / "pgm"
    datasets.disable_progress_bars()
    return save


def test_published_rows_by_split_mapped_and_without_their_begin_token(rows):
    rows("train", 30); folder = rows("eval", 6)
    assert json.loads((folder / "dataset_dict.json").read_text()) == {"splits": ["eval"]}
    whole, held = store_from("pgm", folder, vocab=16, classes=4), store_from("pgm", folder, vocab=16, classes=4, split="eval")
    assert (len(whole), len(held), whole.grid) == (30, 6, (3, 3)) and len(store_from("pgm", folder / "train", vocab=16)) == 30
    assert whole.rows.cache_files and whole.rows.cache_files[0]["filename"].startswith(str(folder / "train"))                # mapped where it lies
    x, y = whole.batch([29, 3, 3])
    assert x[:, :, 0].tolist() == [((np.arange(9) + i) % 16).tolist() for i in (29, 3, 3)] and y.tolist() == [1, 3, 3] and x.dtype == y.dtype == torch.int64
    assert all(torch.equal(whole[i][0][0], whole.batch([i])[0][0]) for i in (0, 11))
    copy = pickle.loads(pickle.dumps(whole))
    assert torch.equal(copy.batch([5])[0], whole.batch([5])[0])


@pytest.mark.parametrize("change, words", [
    (lambda r: dict(r, input_ids=r["input_ids"][:-1], attention_mask=r["attention_mask"][:-1]), r"row 2: must hold codes \(1, 9, 1\)"),
    (lambda r: dict(r, input_ids=r["input_ids"][1:], attention_mask=r["attention_mask"][1:]), "row 2: must be the begin token 17"),
    (lambda r: dict(r, attention_mask=np.array([1] * 9 + [0], np.uint16)), "row 2: must be codes throughout, but its attention_mask leaves out 1 of 10"),
    (lambda r: dict(r, input_ids=np.array([17] * 10, np.uint16)), r"row 2: codes must lie in \[0, 16\)"),
    (lambda r: dict(r, label=4), "row 2: label must lie in")])
def test_a_row_that_is_none_is_named(rows, change, words):
    held = store_from("pgm", rows("train", 4, lambda i, r: change(r) if i == 2 else r), vocab=16, classes=4)
    for read in (lambda: held[2], lambda: held.batch([0, 2])):
        with pytest.raises(BadItem, match=words): read()
    assert held.batch([0, 1, 3])[1].tolist() == [0, 1, 3]


# ---- ImageNet

def jpeg(i):
    f = io.BytesIO(); Shapes(40, 40)[i].image.save(f, "JPEG")
    return f.getvalue()


@pytest.fixture
def kaggle(tmp_path):
    for n in range(8):
        synset = f"n0000000{n % 4}"
        for place in (f"train/{synset}/{synset}_{n}.JPEG", f"val/ILSVRC2012_val_{n:08d}.JPEG"):
            path = tmp_path / "imagenet/ILSVRC/Data/CLS-LOC" / place
            path.parent.mkdir(parents=True, exist_ok=True); path.write_bytes(jpeg(n))
    root = tmp_path / "imagenet"
    (root / "imagenet_class_index.json").write_text(json.dumps({str(k): [f"n0000000{k}", name] for k, name in enumerate(("tench", "crane", "maillot", "crane"))}))
    (root / "ILSVRC2012_val_labels.json").write_text(json.dumps({f"ILSVRC2012_val_{n:08d}.JPEG": f"n0000000{n % 4}" for n in range(8)}))
    return root


def test_kaggles_two_ways_of_naming_and_labelling(kaggle):
    val, found = open_images(f"kaggle://{kaggle}?split=val"), open_images(kaggle)
    assert isinstance(found, KaggleImages) and found.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and val.labels.tolist() == [0, 1, 2, 3] * 2
    assert val.classes == ["tench", "crane (n00000001)", "maillot", "crane (n00000003)"] and val.read(5) == jpeg(5) and found[3].key == "n00000001/n00000001_5.JPEG"
    marks = found.fingerprint, val.fingerprint
    for name in ("imagenet_class_index.json", "ILSVRC2012_val_labels.json"): (kaggle / name).unlink()
    (kaggle / "LOC_synset_mapping.txt").write_text("n00000000 tench\nn00000001 crane\nn00000002 maillot\nn00000003 crane\n")
    (kaggle / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(f"ILSVRC2012_val_{n:08d},n0000000{n % 4} 85 1 499 272 \n" for n in (4, 1, 7, 2, 3, 0, 5, 6)))
    assert (open_images(kaggle).fingerprint, open_images(f"kaggle://{kaggle}?split=val").fingerprint) == marks


@pytest.mark.parametrize("damage, split, words", [
    (lambda r: (r / "imagenet_class_index.json").unlink(), "train", "imagenet_class_index.json or LOC_synset_mapping.txt"), (lambda r: (r / "ILSVRC2012_val_labels.json").unlink(), "val", "or LOC_val_solution.csv"),
    (lambda r: (r / "imagenet_class_index.json").write_text('{"1": ["n1", "a"]}'), "train", "must give every class from 0 on"), (lambda r: (r / "imagenet_class_index.json").write_text("["), "train", "valid JSON"),
    (lambda r: (r / "ILSVRC2012_val_labels.json").write_text('{"ILSVRC2012_val_00000000.JPEG": "n00000000"}'), "val", "7 are of none, the first ILSVRC2012_val_00000001.JPEG"),
    (lambda r: (r / "ILSVRC/Data/CLS-LOC/train/n00000001").rename(r / "ILSVRC/Data/CLS-LOC/train/n9"), "train", "of the 4 known synsets; 2 are of none"),
    (lambda r: [p.unlink() for p in (r / "ILSVRC/Data/CLS-LOC/val").iterdir()], "val", "must hold pictures")])
def test_what_kaggles_layout_lacks_is_named(kaggle, damage, split, words):
    damage(kaggle)
    with pytest.raises(BadInput, match=words): open_images(f"kaggle://{kaggle}?split={split}")


def test_the_hubs_imagenet_layouts(tmp_path, monkeypatch):
    "Webdataset shards named by split with jpg, cls and json, and parquet files with image and label."
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache"); datasets.disable_progress_bars()
    (tmp_path / "wds").mkdir(); (tmp_path / "table").mkdir()
    for shard, ids in (("train-0000", range(3)), ("train-0001", range(3, 6)), ("validation-00", range(6, 10))):
        with tarfile.open(tmp_path / "wds" / f"imagenet1k-{shard}.tar", "w") as tar:
            for i in ids:
                for kind, data in (("cls", str(i % 4).encode()), ("jpg", jpeg(i)), ("json", json.dumps({"label": i % 4, "height": 40, "filename": f"{i}.JPEG"}).encode())):
                    info = tarfile.TarInfo(f"n0_{i}.{kind}"); info.size = len(data); tar.addfile(info, io.BytesIO(data))
    kinds = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b", "c", "d"]))
    for split, ids in (("train", range(6)), ("validation", range(6, 10))):
        table = datasets.Dataset.from_dict({"image": [{"bytes": jpeg(i), "path": None} for i in ids], "label": [i % 4 for i in ids]}, kinds)
        table.to_parquet(tmp_path / "table" / f"{split}-00000-of-00001.parquet")
    for place in ("wds", "table"):
        for split, ids in (("train", range(6)), ("validation", range(6, 10))):
            source = open_images(f"datasets://{tmp_path}/{place}?split={split}")
            assert [source.read(i) for i in range(len(source))] == [jpeg(i) for i in ids] and source.labels.tolist() == [i % 4 for i in ids] and len(source.classes) == 4
    streamed = list(open_images(f"datasets://{tmp_path}/wds?split=train&streaming=1").iter_items())
    assert sorted(i.label for i in streamed) == [0, 0, 1, 1, 2, 3]
    with pytest.raises(BadInput, match="must be one of train, validation"): open_images(f"datasets://{tmp_path}/wds?split=val")


def test_a_repository_that_is_gated_or_far_away_says_what_to_do(monkeypatch):
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import OfflineModeIsEnabled
    def fails(error, cause=None):
        def load(*a, **k): raise error from cause
        monkeypatch.setattr(datasets, "load_dataset", load)
    gated, gone = DatasetNotFoundError("Dataset 'timm/imagenet-1k-wds' is a gated dataset on the Hub. You must be authenticated to access it."), DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed.")
    for error, cause, words in ((gated, None, "is gated: accept its terms on its page, then log in"), (gone, None, "cannot be opened: Dataset 'a/b' doesn't exist"),
                                (ConnectionError("Couldn't reach 'x' on the Hub"), None, "cannot be reached: .*HF_HUB_OFFLINE"), (FileNotFoundError("x"), OfflineModeIsEnabled("off"), "cannot be reached")):
        fails(error, cause)
        with pytest.raises(Missing, match=words) as e: open_images("datasets://timm/imagenet-1k-wds?split=train")
        assert len(str(e.value).splitlines()) == 1


# ---- codes, compiled and shared

@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return vqgan("tiny-shapes", quantizer=dict(codebook=64), width=16, z=16, groups=8).eval()


def contents(folder): return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


class Part:
    "One process of several, run one after the other."
    device = "cpu"
    def __init__(self, rank, world): self.rank, self.world, self.main = rank, world, rank == 0
    def wait(self): pass
    def together(self, work): return work() if self.main else None


def test_compiled_extraction_runs_what_it_compiled_and_gives_the_same_store(tokenizer, tmp_path):
    from torch._dynamo.backends.registry import lookup_backend
    ran = []
    def counting(graph, inputs):
        whole = lookup_backend("aot_eager")(graph, inputs)
        def run(*args): ran.append(args[-1].shape if torch.is_tensor(args[-1]) else None); return whole(*args)
        return run
    plain = extract_codes(tokenizer, Shapes(37, 32), tmp_path / "plain", Augment("center", 32, flip=True), batch=8, shard_size=20, progress=False)
    extract_codes(tokenizer, Shapes(37, 32), tmp_path / "compiled", Augment("center", 32, flip=True), batch=8, shard_size=20, compile=counting, progress=False)
    assert contents(tmp_path / "plain") == contents(tmp_path / "compiled") and len(plain) == 37
    assert len(ran) == 1 + 5 + 5                           # once to try it, then 20 and 17 pictures of two views by four, the last batch padded


def test_a_backend_that_fails_is_named_before_anything_is_written(tokenizer, tmp_path):
    def broken(graph, inputs): raise OSError("no compiler here")
    with pytest.raises(BadInput, match="backend=.*cannot compile the tokenizer here"): extract_codes(tokenizer, Shapes(9, 32), tmp_path / "s", Augment("center", 32), compile=broken)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("world, total, shard", [(2, 37, 10), (3, 37, 5), (2, 8, 100)])
def test_nothing_is_lost_permuted_or_done_twice(tokenizer, tmp_path, monkeypatch, world, total, shard):
    seen, source = [], Shapes(total, 32, seed=2)
    batch = Shapes.batch
    monkeypatch.setattr(Shapes, "batch", lambda self, ids: (seen.extend(map(int, ids)), batch(self, ids))[1])
    for rank in reversed(range(world)):                       # the one that writes the index comes last
        try: extract_codes(tokenizer, source, tmp_path / "shared", Augment("center", 32), batch=4, shard_size=shard, progress=False, processes=Part(rank, world))
        except BadInput as e: assert rank and "unfinished" in str(e)
    assert sorted(seen) == list(range(total))
    store = extract_codes(tokenizer, source, tmp_path / "alone", Augment("center", 32), batch=4, shard_size=shard, progress=False)
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone") and store.ids.tolist() == list(range(total))
    codes, y = CodeStore(tmp_path / "shared").batch(range(total))
    from vgnb.data.transforms import to_tensor
    one = torch.cat([tokenizer.tokens(tokenizer.encode(to_tensor(batch(source, [i])[0]))) for i in range(total)])
    assert (codes == one).float().mean() > 0.99 and (y.numpy() == source.labels(np.arange(total))).all()


# ---- references

class Mean(Extractor):
    "Mean colour and its square; `looked` counts pictures."
    id, dims, looked = "mean@0", 6, 0
    def look(self, images):
        self.looked += len(images); x = images.float().mean((2, 3))
        return Features(torch.cat([x, x ** 2 / 255], 1))


def test_a_reference_is_numpys_mean_and_covariance_from_any_number_of_processes(tmp_path):
    source, features = Shapes(53, 32), Mean()(Shapes(53, 32).batch(range(53))[0]).pool.double().numpy()
    net = Mean()
    for rank in (1, 0): extract_reference(source, tmp_path / "two.npz", net, keep=20, batch=7, shard_size=10, progress=False, processes=Part(rank, 2))
    assert net.looked == 53                                        # the last partial batch is in, nothing twice
    s = extract_reference(source, tmp_path / "one.npz", Mean(), keep=20, batch=7, shard_size=10, progress=False)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes() and sorted(p.name for p in tmp_path.iterdir()) == ["one.npz", "two.npz"]
    back = open_samples(tmp_path / "one.npz")
    np.testing.assert_allclose(back.statistics.mean, features.mean(0), rtol=1e-6); np.testing.assert_allclose(back.statistics.cov, np.cov(features.T), rtol=1e-5)
    kept = np.unique(np.linspace(0, 52, 20).round().astype(int))
    assert s.count == 53 and back.points == 20 and np.allclose(back.features, features[kept]) and back.protocol["size"] == [32, 32] and back.protocol["images"] == source.fingerprint
    for name in ("a.safetensors", "a.pt"):
        extract_reference(source, tmp_path / name, Mean(), progress=False)
        np.testing.assert_allclose(load_statistics(tmp_path / name).cov, np.cov(features.T), rtol=1e-4)
    published = torch.load(tmp_path / "a.pt", weights_only=True)
    assert set(published) == {"mu", "cov"} and published["cov"].dtype == torch.float32


def test_pictures_that_cannot_be_read_are_counted_or_fatal(tmp_path):
    (tmp_path / "p").mkdir()
    for i in range(12): (tmp_path / "p" / f"{i:02}.jpg").write_bytes(jpeg(i) if i not in (0, 7) else b"torn")
    with pytest.raises(BadItem, match="00.jpg"): extract_reference(open_samples(tmp_path / "p", 24), tmp_path / "r.npz", Mean(), batch=5, progress=False)
    with pytest.raises(BadItem, match="07.jpg"): extract_reference(open_samples(tmp_path / "p", 24, max_bad=1), tmp_path / "r.npz", Mean(), batch=5, progress=False)
    assert not (tmp_path / "r.npz").exists()
    s = extract_reference(open_samples(tmp_path / "p", 24, max_bad=2), tmp_path / "r.npz", Mean(), batch=5, progress=False, workers=1)
    assert s.count == 10 and open_samples(tmp_path / "r.npz").protocol["left_out"] == 2
    with pytest.raises(Mismatch, match="images is"):                                           # the parts of another crop are not taken
        (tmp_path / "q.npz.parts").mkdir()
        (tmp_path / "q.npz.parts" / "plan.json").write_text(json.dumps(dict(format="vgnb.looks/1", total=12, images="other", extractor="mean@0", dims=6, size=[24, 24], shard_size=1024)))
        extract_reference(open_samples(tmp_path / "p", 24, max_bad=2), tmp_path / "q.npz", Mean(), progress=False)


def test_stored_features_serve_only_their_extractor_and_their_size_is_noted(tmp_path):
    judge = load_extractor("shapes-judge")
    extract_reference(Shapes(90, 32), tmp_path / "r.npz", judge, keep=90, progress=False)
    x = Shapes(80, 32, seed=5).batch(range(80))[0]
    full, stored = measure(x, Shapes(90, 32), judge, metrics=("fid", "pr", "dc")), measure(x, tmp_path / "r.npz", judge, metrics=("fid", "pr", "dc"))
    assert full.values == pytest.approx(stored.values, rel=1e-6) and stored.protocol.reference_protocol["count"] == 90
    with pytest.raises(Mismatch, match="another extractor"): measure(x, tmp_path / "r.npz", _renamed(judge), metrics=("fid",))
    with pytest.raises(BadInput, match="must hold pictures for pr"): measure(x, tmp_path / "r.npz", Mean(), metrics=("pr",))
    large = measure(Shapes(80, 48, seed=5).batch(range(80))[0], tmp_path / "r.npz", judge, metrics=("fid",))
    assert any("48x48, the reference's pictures were 32x32" in n for n in large.notes)


def _renamed(judge):
    other = object.__new__(type(judge)); other.__dict__.update(judge.__dict__, id="other@0")
    return other
