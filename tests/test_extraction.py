"""What others left behind, and what is looked at once: published codes, ImageNet's layouts, compiled and shared
extraction, FID references."""
import contextlib
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
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import OfflineModeIsEnabled
from torch._dynamo.backends.registry import lookup_backend

from vgnb.core import BadInput, BadItem, Mismatch, Missing
from vgnb.data.codes import CodeStore
from vgnb.data.halton_codes import read_pickled_codes
from vgnb.data.images import open_images
from vgnb.data.layouts import store_from
from vgnb.data.shapes import Shapes
from vgnb.data.stored import KaggleImages
from vgnb.data.transforms import Augment, to_tensor
from vgnb.evaluation.features import Extractor, Features, load_extractor
from vgnb.evaluation.measure import measure
from vgnb.evaluation.reference import chosen_ids, extract_reference
from vgnb.evaluation.samples import load_statistics, open_samples
from vgnb.saved import load_model
from vgnb.tokenizers.vqgan import vqgan
from vgnb.training.commands import TrainOptions, open_codes, train
from vgnb.training.extract import extract_codes
from vgnb.training.recipes import recipe
from vgnb.training.run_folder import Run

# ---- pickled codes

CODE = np.arange(12, dtype=np.uint16).reshape(3, 4)


class Call:
    "A pickle that calls something."
    def __init__(self, f, *args): self.call = f, args
    def __reduce__(self): return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("code", [
    CODE,
    CODE.astype(">u2"),
    np.asfortranarray(CODE),
    CODE.astype(np.int64),
    CODE.astype(np.uint8)[::2, ::-1]])
def test_every_way_to_pickle_an_array_reads_the_same(protocol, code):
    for y in (7, np.int64(7)):
        got, label = read_pickled_codes(pickle.dumps({"code": code, "y": y}, protocol))
        assert got.dtype == np.int64 and label == 7
        assert (got == code).all()


OLDER_NAMES = {      # in protocol 4 and 5 with their lengths, in protocol 2 as they are
    b"\x8c\x16numpy._core.multiarray": b"\x8c\x15numpy.core.multiarray",
    b"\x8c\x13numpy._core.numeric": b"\x8c\x12numpy.core.numeric",
    b"cnumpy._core": b"cnumpy.core"}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_pickled_by_older_numpy_read_the_same(protocol):
    "They name numpy.core where newer ones name numpy._core."
    data = pickle.dumps({"code": CODE, "y": 3}, protocol)
    old = data
    for new_name, name in OLDER_NAMES.items(): old = old.replace(new_name, name)
    assert old != data
    if protocol >= 4: old = old[:3] + (len(old) - 11).to_bytes(8, "little") + old[11:]    # the frame is a byte shorter
    assert (read_pickled_codes(old)[0] == CODE).all()


@pytest.mark.fault("F13")
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_no_pickle_runs(tmp_path, protocol):
    mark = str(tmp_path / "mark")
    evil = [
        Call(os.mkdir, mark), Call(eval, f"__import__('os').mkdir({mark!r})"), Call(getattr, "word", "upper"),
        Call(open, mark, "w"), Call(np.memmap, mark, np.uint8, "w+", 0, (4,)), Call(np.fromfile, mark),
        Call(io.FileIO, mark, "w"), print, np.array, np.ndarray.tofile]
    for thing in evil:
        for where in ({"code": thing, "y": 1}, {"code": CODE, "y": thing}, {"code": CODE, "y": 1, "more": thing},
                      thing, [thing]):
            with pytest.raises(BadItem, match="x.pth: is no pickle of an integer array and a number: it names"):
                read_pickled_codes(pickle.dumps(where, protocol), "x.pth")
    assert not os.path.exists(mark)


class Forged:
    "An array that claims a shape, a dtype and bytes."
    def __init__(self, *claims): self.claims = claims
    def __reduce__(self):
        shape, kind, raw = self.claims
        return CODE.__reduce__()[0], (np.ndarray, (0,), b"b"), (1, shape, np.dtype(kind), False, raw)


def hand_made(shape, kind, raw, y=1): return pickle.dumps({"code": Forged(shape, kind, raw), "y": y})


WHOLE = pickle.dumps({"code": CODE, "y": 1})
NO_GRID = r"must be an integer array \(h, w\)"
LIES = [    # a pickle, words of the error
    (hand_made((10 ** 9, 10 ** 9), "u2", b"12"), "is no pickle"),
    (hand_made((2, 2), "O", [1] * 4), "none of integers"),
    (hand_made((2, 2), "f4", b"x" * 16), "none of integers"),
    (hand_made((-1, 2), "u2", b"x" * 7), "is no pickle"),
    (hand_made((4,), "u2", b"x" * 8), NO_GRID),
    (hand_made((0, 4), "u2", b""), NO_GRID),
    (hand_made((1, 1), "u2", b"12", True), "found bool"),
    (hand_made((1, 1), "u2", b"12", "7"), "found str"),
    (WHOLE[:-9], "is no pickle"),
    (b"", "is no pickle"),
    (b"\x80\x04.", "is no pickle"),
    (pickle.dumps(CODE), "must hold code and y"),
    (pickle.dumps({"code": CODE}), "must hold code and y"),
    (pickle.dumps({"code": [[1]], "y": 1}), "must be an integer array"),
    (pickle.dumps({"code": np.zeros((2, 2)), "y": 1}), "none of integers"),
    (b"\x80\x02K\x01r\xff\xff\xff\x7f.", "must hold code and y"),
    (b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.", "is no pickle"),
    (b"0" * ((1 << 22) + 1), "more than"),
    (b"\x80\x02\x82\x01.", "is no pickle"),
    (b"\x80\x02U\x01aQ.", "is no pickle"),
]


def test_a_pickle_that_lies_is_a_named_error():
    sound, _ = read_pickled_codes(hand_made((2, 2), "u2", CODE[:1].tobytes()))
    assert (sound == CODE[:1].reshape(2, 2)).all()                                    # the forgery itself is sound
    for data, words in LIES:
        with pytest.raises(BadItem, match=f"x.pth: .*{words}"): read_pickled_codes(data, "x.pth")


def test_one_changed_byte_is_codes_or_a_named_error():
    g = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(WHOLE)
        data[g.integers(len(data))] = g.integers(256)
        with contextlib.suppress(BadItem): read_pickled_codes(bytes(data))


def pickled(path, code, y): path.write_bytes(pickle.dumps({"code": code, "y": y}))


@pytest.fixture
def halton(tmp_path):
    "36 items of 4 x 4 codes in Train, 5 in Eval."
    for split, n in (("Train", 36), ("Eval", 5)):
        folder = tmp_path / "set" / split
        folder.mkdir(parents=True)
        for i in range(n): pickled(folder / f"{i:07d}.pth", np.full((4, 4), i, np.uint16), i % 10)
    return tmp_path / "set"


def test_pickled_codes_by_split(halton):
    learnt = store_from("halton", f"{halton}/", vocab=48, classes=10)
    held_out = open_codes(f"halton://{halton}?split=eval&vocab=48&classes=10")
    assert (len(learnt), len(held_out), learnt.grid, learnt.augs) == (36, 5, (4, 4), ("row 0",))
    assert learnt.fingerprint != held_out.fingerprint
    assert len(store_from("halton", halton / "Eval", vocab=48)) == 5
    assert learnt[17][0].unique().tolist() == [17] and learnt[17][1:] == (7, 17)


@pytest.mark.parametrize("code, y, words", [
    (np.zeros((4, 5), np.uint16), 0, r"must hold codes \(4, 4\)"),
    (np.full((4, 4), 48, np.uint16), 0, r"codes must lie in \[0, 48\)"),
    (np.zeros((4, 4), np.uint16), 10, "label must lie in")])
def test_faults_of_pickled_codes_are_named(halton, code, y, words):
    store = store_from("halton", halton, vocab=48, classes=10)
    pickled(halton / "Train" / "0000003.pth", code, y)
    with pytest.raises(BadItem, match=f"0000003.pth: {words}"): store.batch([0, 3])


def test_a_missing_file_leaves_a_gap_and_a_strange_one_is_refused(halton):
    store = store_from("halton", halton, vocab=48, classes=10)
    (halton / "Train" / "0000003.pth").unlink()
    assert store_from("halton", halton, vocab=48).ids.tolist() == [i for i in range(36) if i != 3]
    with pytest.raises(BadItem, match="cannot be read"): store[3]
    (halton / "Train" / "notes.pth").write_bytes(b"")
    with pytest.raises(BadInput, match="notes.pth"): store_from("halton", halton)


def test_a_generator_trains_on_pickled_codes(halton, tmp_path):
    model = replace(recipe("shapes-generator").model, layers=1, dim=32)
    data = f"halton://{halton}?vocab=48&classes=10"
    r = recipe("shapes-generator", data=data, steps=2, batch=8, precision="fp32", model=model)
    assert train(TrainOptions(r, tmp_path / "run", run=Run(progress=False))).code == 0
    assert load_model(tmp_path / "run" / "model").vocab == (48,)


# ---- rows

@pytest.fixture
def rows(tmp_path):
    "As published: uint16 rows with the begin token, torch format, a dataset_dict.json that names the last split only."
    def row(i):
        codes = (np.arange(9) + i) % 16
        mask = np.ones(10, np.uint16)
        return {"input_ids": np.array([17, *codes], np.uint16), "attention_mask": mask, "label": i % 4}

    def save(split, n, change=lambda i, row: row):
        table = datasets.Dataset.from_list([change(i, row(i)) for i in range(n)])
        table.set_format("torch")
        datasets.DatasetDict({split: table}).save_to_disk(str(tmp_path / "pgm"))
        return tmp_path / "pgm"

    datasets.disable_progress_bars()
    return save


def test_published_rows_by_split_mapped_and_without_their_begin_token(rows):
    rows("train", 30)
    folder = rows("eval", 6)
    assert json.loads((folder / "dataset_dict.json").read_text()) == {"splits": ["eval"]}
    whole = store_from("pgm", folder, vocab=16, classes=4)
    held_out = store_from("pgm", folder, vocab=16, classes=4, split="eval")
    assert (len(whole), len(held_out), whole.grid) == (30, 6, (3, 3))
    assert len(store_from("pgm", folder / "train", vocab=16)) == 30
    files = whole.rows.cache_files
    assert files and files[0]["filename"].startswith(str(folder / "train"))                # mapped where it lies

    codes, labels = whole.batch([29, 3, 3])
    assert codes[:, :, 0].tolist() == [((np.arange(9) + i) % 16).tolist() for i in (29, 3, 3)]
    assert labels.tolist() == [1, 3, 3] and codes.dtype == labels.dtype == torch.int64
    for i in (0, 11): assert torch.equal(whole[i][0][0], whole.batch([i])[0][0])
    copy = pickle.loads(pickle.dumps(whole))
    assert torch.equal(copy.batch([5])[0], whole.batch([5])[0])


def without_end(row): return dict(row, input_ids=row["input_ids"][:-1], attention_mask=row["attention_mask"][:-1])
def without_begin(row): return dict(row, input_ids=row["input_ids"][1:], attention_mask=row["attention_mask"][1:])
def masked_end(row): return dict(row, attention_mask=np.array([1] * 9 + [0], np.uint16))
def begin_throughout(row): return dict(row, input_ids=np.array([17] * 10, np.uint16))
def wrong_label(row): return dict(row, label=4)


@pytest.mark.parametrize("change, words", [
    (without_end, r"must hold codes \(1, 9, 1\)"),
    (without_begin, "must be the begin token 17"),
    (masked_end, "must be codes throughout, but its attention_mask leaves out 1 of 10"),
    (begin_throughout, r"codes must lie in \[0, 16\)"),
    (wrong_label, "label must lie in")])
def test_a_row_that_is_none_is_named(rows, change, words):
    folder = rows("train", 4, lambda i, row: change(row) if i == 2 else row)
    store = store_from("pgm", folder, vocab=16, classes=4)
    for read in (lambda: store[2], lambda: store.batch([0, 2])):
        with pytest.raises(BadItem, match=f"row 2: {words}"): read()
    assert store.batch([0, 1, 3])[1].tolist() == [0, 1, 3]


# ---- ImageNet

def jpeg(i):
    f = io.BytesIO()
    Shapes(40, 40)[i].image.save(f, "JPEG")
    return f.getvalue()


INDEX, LABELS = "imagenet_class_index.json", "ILSVRC2012_val_labels.json"
PICTURES = "ILSVRC/Data/CLS-LOC"
VAL = "ILSVRC2012_val_{:08d}"


@pytest.fixture
def kaggle(tmp_path):
    root = tmp_path / "imagenet"
    for n in range(8):
        synset = f"n0000000{n % 4}"
        for place in (f"train/{synset}/{synset}_{n}.JPEG", f"val/{VAL.format(n)}.JPEG"):
            path = root / PICTURES / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(n))
    classes = ("tench", "crane", "maillot", "crane")
    (root / INDEX).write_text(json.dumps({str(k): [f"n0000000{k}", name] for k, name in enumerate(classes)}))
    (root / LABELS).write_text(json.dumps({f"{VAL.format(n)}.JPEG": f"n0000000{n % 4}" for n in range(8)}))
    return root


def test_kaggles_two_ways_of_naming_and_labelling(kaggle):
    def both(): return open_images(kaggle), open_images(f"kaggle://{kaggle}?split=val")
    learnt, held_out = both()
    assert isinstance(learnt, KaggleImages)
    assert learnt.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and held_out.labels.tolist() == [0, 1, 2, 3] * 2
    assert held_out.classes == ["tench", "crane (n00000001)", "maillot", "crane (n00000003)"]
    assert held_out.read(5) == jpeg(5) and learnt[3].key == "n00000001/n00000001_5.JPEG"

    for name in (INDEX, LABELS): (kaggle / name).unlink()
    synsets = "n00000000 tench\nn00000001 crane\nn00000002 maillot\nn00000003 crane\n"
    (kaggle / "LOC_synset_mapping.txt").write_text(synsets)
    lines = "".join(f"{VAL.format(n)},n0000000{n % 4} 85 1 499 272 \n" for n in (4, 1, 7, 2, 3, 0, 5, 6))
    (kaggle / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + lines)
    assert [source.fingerprint for source in both()] == [learnt.fingerprint, held_out.fingerprint]


def rename_a_synset(root): (root / PICTURES / "train/n00000001").rename(root / PICTURES / "train/n9")


def remove_val(root):
    for path in (root / PICTURES / "val").iterdir(): path.unlink()


@pytest.mark.parametrize("damage, split, words", [
    (lambda root: (root / INDEX).unlink(), "train", "imagenet_class_index.json or LOC_synset_mapping.txt"),
    (lambda root: (root / LABELS).unlink(), "val", "or LOC_val_solution.csv"),
    (lambda root: (root / INDEX).write_text('{"1": ["n1", "a"]}'), "train", "must give every class from 0 on"),
    (lambda root: (root / INDEX).write_text("["), "train", "valid JSON"),
    (lambda root: (root / LABELS).write_text('{"ILSVRC2012_val_00000000.JPEG": "n00000000"}'), "val",
     "7 are of none, the first ILSVRC2012_val_00000001.JPEG"),
    (rename_a_synset, "train", "of the 4 known synsets; 2 are of none"),
    (remove_val, "val", "must hold pictures")])
def test_what_kaggles_layout_lacks_is_named(kaggle, damage, split, words):
    damage(kaggle)
    with pytest.raises(BadInput, match=words): open_images(f"kaggle://{kaggle}?split={split}")


SPLITS = {"train": range(6), "validation": range(6, 10)}


def write_shard(path, ids):
    "A webdataset shard with jpg, cls and json."
    with tarfile.open(path, "w") as tar:
        for i in ids:
            about = json.dumps({"label": i % 4, "height": 40, "filename": f"{i}.JPEG"}).encode()
            for kind, data in (("cls", str(i % 4).encode()), ("jpg", jpeg(i)), ("json", about)):
                info = tarfile.TarInfo(f"n0_{i}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "Shards named by split, in wds/, and parquet files with image and label, in table/."
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    for folder in ("wds", "table"): (tmp_path / folder).mkdir()
    for shard, ids in (("train-0000", range(3)), ("train-0001", range(3, 6)), ("validation-00", range(6, 10))):
        write_shard(tmp_path / "wds" / f"imagenet1k-{shard}.tar", ids)
    columns = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b", "c", "d"]))
    for split, ids in SPLITS.items():
        content = {"image": [{"bytes": jpeg(i), "path": None} for i in ids], "label": [i % 4 for i in ids]}
        table = datasets.Dataset.from_dict(content, columns)
        table.to_parquet(tmp_path / "table" / f"{split}-00000-of-00001.parquet")
    return tmp_path


def test_the_hubs_imagenet_layouts(hub):
    for place in ("wds", "table"):
        for split, ids in SPLITS.items():
            source = open_images(f"datasets://{hub}/{place}?split={split}")
            assert [source.read(i) for i in range(len(source))] == [jpeg(i) for i in ids]
            assert source.labels.tolist() == [i % 4 for i in ids] and len(source.classes) == 4
    streamed = list(open_images(f"datasets://{hub}/wds?split=train&streaming=1").iter_items())
    assert sorted(i.label for i in streamed) == [0, 0, 1, 1, 2, 3]
    with pytest.raises(BadInput, match="must be one of train, validation"):
        open_images(f"datasets://{hub}/wds?split=val")


GATED = ("Dataset 'timm/imagenet-1k-wds' is a gated dataset on the Hub. "
         "You must be authenticated to access it.")
GONE = "Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."


@pytest.mark.parametrize("error, cause, words", [
    (DatasetNotFoundError(GATED), None, "is gated: accept its terms on its page, then log in"),
    (DatasetNotFoundError(GONE), None, "cannot be opened: Dataset 'a/b' doesn't exist"),
    (ConnectionError("Couldn't reach 'x' on the Hub"), None, "cannot be reached: .*HF_HUB_OFFLINE"),
    (FileNotFoundError("x"), OfflineModeIsEnabled("off"), "cannot be reached")])
def test_a_repository_that_is_gated_or_far_away_says_what_to_do(monkeypatch, error, cause, words):
    def fail(*a, **k): raise error from cause
    monkeypatch.setattr(datasets, "load_dataset", fail)
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
    calls = []
    def counting(graph, inputs):
        whole = lookup_backend("aot_eager")(graph, inputs)
        def run(*args):
            calls.append(0)
            return whole(*args)
        return run

    def extract(name, **kw):
        augment = Augment("center", 32, flip=True)
        return extract_codes(tokenizer, Shapes(37, 32), tmp_path / name, augment, batch=8, shard_size=20,
                             progress=False, **kw)

    assert len(extract("plain")) == 37
    extract("compiled", compile=counting)
    assert contents(tmp_path / "plain") == contents(tmp_path / "compiled")
    # once to try it, then 20 and 17 pictures of two views by four, the last batch padded
    assert len(calls) == 1 + 5 + 5


def test_a_backend_that_fails_is_named_before_anything_is_written(tokenizer, tmp_path):
    def broken(graph, inputs): raise OSError("no compiler here")
    with pytest.raises(BadInput, match="backend=.*cannot compile the tokenizer here"):
        extract_codes(tokenizer, Shapes(9, 32), tmp_path / "s", Augment("center", 32), compile=broken)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("world, total, shard", [(2, 37, 10), (3, 37, 5), (2, 8, 100)])
def test_nothing_is_lost_permuted_or_done_twice(tokenizer, tmp_path, monkeypatch, world, total, shard):
    seen, source, batch = [], Shapes(total, 32, seed=2), Shapes.batch
    def noting(self, ids):
        seen.extend(map(int, ids))
        return batch(self, ids)

    def extract(name, **kw):
        return extract_codes(tokenizer, source, tmp_path / name, Augment("center", 32), batch=4, shard_size=shard,
                             progress=False, **kw)

    monkeypatch.setattr(Shapes, "batch", noting)
    for rank in reversed(range(world)):                       # the one that writes the index comes last
        try: extract("shared", processes=Part(rank, world))
        except BadInput as e: assert rank and "unfinished" in str(e)
    assert sorted(seen) == list(range(total))
    assert extract("alone").ids.tolist() == list(range(total))
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")

    codes, labels = CodeStore(tmp_path / "shared").batch(range(total))
    each = [tokenizer.tokens(tokenizer.encode(to_tensor(batch(source, [i])[0]))) for i in range(total)]
    assert (codes == torch.cat(each)).float().mean() > 0.99
    assert (labels.numpy() == source.labels(np.arange(total))).all()


# ---- references

class Mean(Extractor):
    "Mean colour and its square; `looked` counts pictures."
    id, dims, looked = "mean@0", 6, 0
    def look(self, images):
        self.looked += len(images)
        x = images.float().mean((2, 3))
        return Features(torch.cat([x, x ** 2 / 255], 1))


def features_of(source) -> np.ndarray: return Mean()(source.batch(range(len(source)))[0]).pool.double().numpy()


def test_a_reference_is_numpys_mean_and_covariance_from_any_number_of_processes(tmp_path):
    source, net = Shapes(53, 32), Mean()
    features = features_of(source)
    def extract(name, net, **kw):
        return extract_reference(source, tmp_path / name, net, keep=20, batch=7, shard_size=10, progress=False, **kw)

    for rank in (1, 0): extract("two.npz", net, processes=Part(rank, 2))
    assert net.looked == 53                                        # the last partial batch is in, nothing twice
    found = extract("one.npz", Mean())
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.npz", "two.npz"]

    back = open_samples(tmp_path / "one.npz")
    np.testing.assert_allclose(back.statistics.mean, features.mean(0), rtol=1e-6)
    np.testing.assert_allclose(back.statistics.cov, np.cov(features.T), rtol=1e-5)
    kept = chosen_ids(53, 20)
    assert len(set(kept)) == 20 and back.protocol["chosen"] == "first of a keyed order, seed 0"
    assert found.count == 53 and back.points == 20 and np.allclose(back.features, features[kept])
    assert back.protocol["size"] == [32, 32] and back.protocol["images"] == source.fingerprint


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_kept_features_do_not_beat_against_classes_that_take_turns(classes):
    labels = np.arange(10_000) % classes
    for keep in (100, 1_000, 5_000):
        seen = len(set(labels[chosen_ids(10_000, keep)]))
        assert seen > 0.5 * min(classes, keep), "every n-th picture would be of few classes"
        assert (chosen_ids(10_000, keep) == chosen_ids(10_000, keep)).all()
    assert (chosen_ids(10_000, 20_000) == np.arange(10_000)).all() and not len(chosen_ids(10_000, 0))


def test_a_reference_whose_features_were_chosen_otherwise_is_another_one(tmp_path, monkeypatch):
    extract_reference(Shapes(53, 32), tmp_path / "a.npz", Mean(), keep=20, progress=False)
    monkeypatch.setattr("vgnb.evaluation.reference._CHOSEN", "every n-th")
    with pytest.raises(BadInput, match="rests on something else"):
        extract_reference(Shapes(53, 32), tmp_path / "a.npz", Mean(), keep=20, progress=False)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_reference_in_other_formats(tmp_path, name):
    source = Shapes(53, 32)
    extract_reference(source, tmp_path / name, Mean(), progress=False)
    np.testing.assert_allclose(load_statistics(tmp_path / name).cov, np.cov(features_of(source).T), rtol=1e-4)
    if name != "a.pt": return
    published = torch.load(tmp_path / name, weights_only=True)
    assert set(published) == {"mu", "cov"} and published["cov"].dtype == torch.float32


@pytest.fixture
def torn(tmp_path):
    "Twelve pictures, of which two cannot be read."
    (tmp_path / "p").mkdir()
    for i in range(12): (tmp_path / "p" / f"{i:02}.jpg").write_bytes(jpeg(i) if i not in (0, 7) else b"torn")
    return tmp_path / "p"


def test_pictures_that_cannot_be_read_are_counted_or_fatal(torn, tmp_path):
    def extract(max_bad, **kw):
        samples = open_samples(torn, 24, max_bad=max_bad)
        return extract_reference(samples, tmp_path / "r.npz", Mean(), batch=5, progress=False, **kw)

    with pytest.raises(BadItem, match="00.jpg"): extract(max_bad=0)
    with pytest.raises(BadItem, match="07.jpg"): extract(max_bad=1)
    assert not (tmp_path / "r.npz").exists()
    assert extract(max_bad=2, workers=1).count == 10
    assert open_samples(tmp_path / "r.npz").protocol["left_out"] == 2


def test_the_parts_of_another_crop_are_not_taken(torn, tmp_path):
    plan = dict(format="vgnb.looks/1", total=12, images="other", extractor="mean@0", dims=6, size=[24, 24],
                shard_size=1024)
    (tmp_path / "q.npz.parts").mkdir()
    (tmp_path / "q.npz.parts" / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "q.npz.parts" / "00000.npz").write_bytes(b"a part")
    with pytest.raises(Mismatch, match="images is"):
        extract_reference(open_samples(torn, 24, max_bad=2), tmp_path / "q.npz", Mean(), progress=False)


def test_stored_features_serve_only_their_extractor_and_their_size_is_noted(tmp_path):
    judge, stored = load_extractor("shapes-judge"), tmp_path / "r.npz"
    extract_reference(Shapes(90, 32), stored, judge, keep=90, progress=False)
    samples, metrics = Shapes(80, 32, seed=5).batch(range(80))[0], ("fid", "pr", "dc")
    fresh, found = measure(samples, Shapes(90, 32), judge, metrics), measure(samples, stored, judge, metrics)
    assert fresh.values == pytest.approx(found.values, rel=1e-6)
    assert found.protocol.reference_protocol["count"] == 90

    with pytest.raises(Mismatch, match="another extractor"): measure(samples, stored, renamed(judge), ("fid",))
    with pytest.raises(BadInput, match="must hold pictures for pr"): measure(samples, stored, Mean(), ("pr",))
    large = measure(Shapes(80, 48, seed=5).batch(range(80))[0], stored, judge, ("fid",))
    assert any("48x48, the reference's pictures were 32x32" in note for note in large.notes)


def renamed(judge):
    other = object.__new__(type(judge))
    other.__dict__.update(judge.__dict__, id="other@0")
    return other
