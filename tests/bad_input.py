"""What can be wrong with an input, in one table: argument, value, the words that say what is allowed.

It drives the Python API and the scripts alike. A row reads: whoever writes `python` (a function of the workplace) or
types `command` (a script and its words) gets one error, `argument=value: ... words ...`. Everything lies in one folder
(`build`), which is also the current folder: values are relative paths.
"""
import argparse
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vgnb import pipeline, zoo
from vgnb.core import get_settings, save_json
from vgnb.data.codes import ArrayCodes, CodeStore, CodeWriter
from vgnb.data.images import open_images
from vgnb.data.layouts import export_codes, store_from
from vgnb.data.shapes import Shapes
from vgnb.data.text import Captions
from vgnb.data.transforms import Augment, to_tensor
from vgnb.draws import Keyed
from vgnb.evaluation.features import load_extractor
from vgnb.evaluation.measure import measure
from vgnb.evaluation.reference import extract_reference
from vgnb.evaluation.samples import open_samples, save_samples
from vgnb.generators.adaptive_orders import Confidence
from vgnb.generators.generator import Cond, Generator, Grid, Prediction
from vgnb.generators.masked import MaskedConfig, MaskedTransformer, masked_presets
from vgnb.generators.orders import Given
from vgnb.generators.partition import PartitionConfig, PartitionTransformer, partition_presets
from vgnb.generators.random_order import RandomOrderConfig, RandomOrderTransformer
from vgnb.generators.raster import RasterConfig, RasterTransformer
from vgnb.generators.semantic_detail import SemanticDetailConfig
from vgnb.jobs import SampleJob, asked_for, planned_labels
from vgnb.kinds import from_json
from vgnb.order_maps import step_map
from vgnb.places import locked
from vgnb.rejection import Rejection
from vgnb.sampling.attended_guidance import AttendedGuidance
from vgnb.sampling.extrapolation import Extrapolate
from vgnb.sampling.guidance import CFG
from vgnb.sampling.pick import HaltonPick, Pick
from vgnb.sampling.sampler import Sampler
from vgnb.sampling.settings import Sampling
from vgnb.saved import load_model, save_model
from vgnb.shipped import open_part
from vgnb.tokenizers.objectives import VQGANLossConfig, vqgan_loss
from vgnb.tokenizers.vqgan import vqgan
from vgnb.training.checkpoints import verify
from vgnb.training.commands import TrainOptions, open_codes, train
from vgnb.training.exact import check_exact
from vgnb.training.extract import code_plan, extract_codes
from vgnb.training.feed import Share
from vgnb.training.recipes import Optim, Rate, recipe
from vgnb.training.run_folder import Run
from vgnb.views.explorer import OrderExplorer
from vgnb.views.scenes import OrderChoice, order_course

SMALL = dict(quantizer=dict(codebook=48), width=16, groups=8)          # of the tokenizer
TINY = dict(ffn_multiple=16, vocab=48, grid=(4, 4), classes=10)
RASTER = RasterConfig(1, 32, 2, **TINY, token_dropout=0, residual_dropout=0, ffn_dropout=0)
CAPTIONED = RasterConfig(1, 32, 2, vocab=48, grid=(4, 4), condition="text", text_dim=64)

class AnyOrder(Generator):
    "Fills cells in any order, uniformly."
    vocab = (48,)
    traits = frozenset({"any_order"})

    def null(self, cond): return cond

    def predict(self, state, positions, given=None, *, live, independent=False):
        return Prediction(torch.zeros(live, *positions.shape, 48))


class Work:
    "The workplace: what a user has lying about, good and bad."
    def __init__(self, folder: Path):
        self.folder = folder
        self.source = Shapes(40, 32)
        torch.manual_seed(0)
        self.tok = vqgan("tiny-shapes", **SMALL).eval()
        self.gen = RasterTransformer(RASTER).eval()
        self.pipe = pipeline.Pipeline(self.tok, self.gen, Sampling(), Shapes.classes)
        free = RandomOrderTransformer(RandomOrderConfig(1, 32, 2, **TINY)).eval()
        how = Sampling(order="random", schedule="randar", steps=4)
        self.painter = pipeline.Pipeline(self.tok, free, how, Shapes.classes)

        self.photos = self.source.batch(range(2))[0]
        self.images = to_tensor(self.photos)
        self.mask = np.arange(32 * 32).reshape(32, 32) < 300
        self.codes = torch.zeros(2, 16, 1, dtype=torch.int64)
        self.flat_codes = self.codes[..., 0]                  # as a tokenizer of one level has them
        self.cond = Cond(labels=torch.tensor([0, 1]))
        self.ids = torch.arange(2)

    def train(self, codes, cond=None):
        "The generator's training loss."
        return self.gen(codes, cond or self.cond, Keyed(0), None)

    def sampler(self, generator=None, **parts):
        "Codes from a sampler of these parts."
        sampler = Sampler(generator or self.gen, **parts)
        return sampler.sample(self.cond, self.ids, Keyed(0), grid=Grid((4, 4)))

    def plan(self, source, size=32):
        "What an extraction of codes would write."
        return code_plan(self.tok, source, Augment("center", size))


def build(folder: Path) -> Work:
    "Fill `folder`."
    w = Work(folder)
    _pictures(folder, w.source)
    _models(folder, w)
    _codes(folder, w)
    _published(folder, w)
    _samples(folder, w)
    save_json(folder / "recipe.json", {"kind": "tokenizer", "stepz": 10})
    (folder / "odd").mkdir()
    (folder / "odd" / "settings.ini").write_text("[run]\nsead = 1\n")
    _runs(folder, w)
    return w


def _pictures(folder: Path, source):
    "Folders of pictures: whole ones, broken ones, mixed ones; a table with two columns of them."
    for i in range(12):
        item = source[i]
        for place in ("pictures", "broken"):
            path = folder / place / source.classes[item.label] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            item.image.save(path)
    torn = folder / "broken" / "a" / "torn.png"
    torn.parent.mkdir()
    torn.write_bytes(b"\x89PNG but not for long")
    shutil.copytree(folder / "pictures", folder / "mixed")
    shutil.copy(torn, folder / "mixed" / "stray.png")
    shutil.copytree(folder / "pictures", folder / "gap")
    (folder / "gap" / "void").mkdir()
    (folder / "empty").mkdir()
    (folder / "note.txt").write_text("not a picture")
    (folder / "note.tar").write_text("not a tar")

    pictures = [source[i].image for i in range(4)]
    table = datasets.Dataset.from_dict({"left": pictures, "right": pictures, "label": [0, 1, 2, 3]})
    for column in ("left", "right"): table = table.cast_column(column, datasets.Image())
    table.to_parquet(folder / "pairs.parquet")


class Evil:
    "An object that leaves a trace when it is unpickled."
    def __init__(self, folder: Path): self.folder = folder

    def __reduce__(self): return (Path.touch, (self.folder / "evil-was-here",))


def _models(folder: Path, w: Work):
    "Models and pipelines, some of them cut, mixed up or evil; masks; a job under way."
    save_model(folder / "tok", w.tok, w.tok.config)
    save_model(folder / "gen", w.gen, RASTER)
    save_model(folder / "captioned", RasterTransformer(CAPTIONED), CAPTIONED)
    torch.manual_seed(1)
    for name, changes in (("tok2", {}), ("tok64", {"quantizer": dict(codebook=64)})):
        other = vqgan("tiny-shapes", **SMALL | changes)
        save_model(folder / name, other, other.config)
    w.pipe.save_pretrained(folder / "pipe")
    w.painter.save_pretrained(folder / "painter")
    for name, mask in (("mask", w.mask), ("no-mask", w.mask & False), ("small-mask", w.mask[:30])):
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{name}.png")

    for name in ("half", "cut", "mixed-up"):                    # as an older version saved it: without hashes
        shutil.copytree(folder / "gen", folder / name)
        card = json.loads((folder / name / "config.json").read_text())
        for entry in ("seal", "weights"): del card[entry]
        save_json(folder / name / "config.json", card)
    weights = folder / "gen" / "model.safetensors"
    every_other = dict(sorted(load_file(weights).items())[1::2])
    save_file(every_other, folder / "half" / "model.safetensors", {"kind": "raster"})
    (folder / "cut" / "model.safetensors").write_bytes(weights.read_bytes()[:-100])
    shutil.copy(folder / "tok" / "model.safetensors", folder / "mixed-up" / "model.safetensors")

    torch.save({"model": {"w": torch.zeros(1)}, "args": Evil(folder)}, folder / "evil.pt")
    torch.save({"model": {"some.weight": torch.zeros(2)}, "args": argparse.Namespace(lr=1)}, folder / "unknown.pt")
    shutil.copytree(folder / "pipe", folder / "twice")
    shutil.rmtree(folder / "twice" / "tokenizer")
    shutil.copytree(folder / "gen", folder / "twice" / "tokenizer")
    _changed_card(folder, "pipe2", lambda sampling: sampling["picks"][0].update(top_q=0.5))
    _changed_card(folder, "pipe3", lambda sampling: sampling["order"].update(noise=4.5))
    SampleJob(w.pipe, torch.tensor([0, 1]), folder / "taken.npz").begin()


def _changed_card(folder: Path, name: str, change: Callable[[dict], None]):
    "A copy of the pipeline whose saved settings are changed."
    shutil.copytree(folder / "pipe", folder / name)
    card = json.loads((folder / name / "pipeline.json").read_text())
    del card["seal"]
    change(card["sampling"])
    save_json(folder / name / "pipeline.json", card)


def _codes(folder: Path, w: Work):
    "Stores of codes: a whole one, one that is unfinished, one with a torn shard."
    extract_codes(w.tok, w.source, folder / "codes", Augment("center", 32), batch=20, progress=False)
    CodeWriter(folder / "unfinished", w.plan(w.source))
    shutil.copytree(folder / "codes", folder / "torn-codes")
    shard = folder / "torn-codes" / "00000.codes"
    shard.write_bytes(shard.read_bytes()[:-1])


def _published(folder: Path, w: Work):
    "Codes in the masked transformer's layout, good and evil; ImageNet in Kaggle's layout without its labels."
    for place, code in (("published", np.zeros((4, 4), np.uint16)), ("evil-codes", Evil(folder))):
        (folder / place / "Train").mkdir(parents=True)
        for i in range(8):
            (folder / place / "Train" / f"{i:07d}.pth").write_bytes(pickle.dumps({"code": code, "y": i}))

    for name, codes in (("pairs", np.arange(8).reshape(2, 1, 1, 4)), ("single", np.arange(4).reshape(1, 1, 4))):
        for what, content in (("codes", codes), ("labels", np.array([0]))):
            (folder / f"{name}_{what}").mkdir()
            np.save(folder / f"{name}_{what}" / "0.npy", content)

    for n, synset in enumerate(("n01440764", "n02012849")):
        for place in (f"train/{synset}/{n}.JPEG", f"val/{n}.JPEG"):
            path = folder / "imagenet/ILSVRC/Data/CLS-LOC" / place
            path.parent.mkdir(parents=True, exist_ok=True)
            w.source[n].image.save(path)
    classes = {"0": ["n01440764", "tench"], "1": ["n02012849", "crane"]}
    save_json(folder / "imagenet" / "imagenet_class_index.json", classes)


def _samples(folder: Path, w: Work):
    "Files of samples, good and bad."
    images, labels = w.source.batch(range(8))
    save_samples(folder / "good.npz", images, labels)
    save_samples(folder / "one.npz", images[:1], labels[:1])
    np.savez(folder / "nameless.npz", pixels=images)
    np.savez(folder / "floats.npz", images.astype(np.float32))
    np.savez(folder / "objects.npz", arr_0=np.array([{"a": 1}], dtype=object))
    np.savez(folder / "fewer.npz", arr_0=images, labels=labels[:5])
    np.savez(folder / "strange.npz", arr_0=images, labels=labels + 90)
    for name, by in (("statistics", ""), ("foreign", "inception-v3-clean@0")):
        np.savez(folder / f"{name}.npz", mu=np.zeros(64), sigma=np.eye(64), extractor=np.array(by))
    (folder / "short.npz").write_bytes((folder / "good.npz").read_bytes()[:-200])


def _runs(folder: Path, w: Work):
    "A finished run, and a copy with a damaged checkpoint."
    how = dict(steps=2, batch=8, free_steps=0, precision="fp32", model=w.tok.config, rate=Rate("cosine", warmup=1))
    r = recipe("shapes-tokenizer", data="shapes://?n=16&size=32", **how)
    train(TrainOptions(r, folder / "run", run=Run(progress=False)))
    shutil.copytree(folder / "run", folder / "damaged")
    shutil.copytree(folder / "run" / "checkpoints", folder / "begun" / "checkpoints")
    file = next((folder / "damaged").rglob("model.tokenizer.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"!")


@dataclass(frozen=True)
class Bad:
    "A row of the table."
    id: str
    argument: str                       # as the user wrote it; "" where the value is a picture's own name
    value: str | None                   # as the error shows it; None = whatever
    words: str                          # of what is allowed
    python: Callable[[Work], object] | None = None
    command: str | None = None
    option: str = ""                    # what the command line calls the argument, where it is another name

    @property
    def start(self) -> str:
        "How the error begins."
        return f"{self.argument}={self.value}: " if self.argument else f"{self.value}: "

    def as_typed(self) -> "Bad":
        "The row as a command tells it."
        return replace(self, argument=self.option) if self.option else self


EXTRACT = "extract_codes.py --tokenizer tok --size 32 --out out --data "
TOKENIZER = "train_tokenizer.py shapes-tokenizer --out out --precision fp32 --steps 2 --free-steps 0 --batch 8 " \
            "--data shapes://?n=16 "
_GENERATOR = "train_generator.py {} --out out --precision fp32 --steps 2 --batch 8 "
GENERATOR = _GENERATOR.format("shapes-generator") + "--model.layers 1 --model.dim 32 --data "
MASKED = _GENERATOR.format("shapes-8x8-maskgit") + "--data codes "
PARTITION = _GENERATOR.format("shapes-8x8-pgm") + "--data codes "
SAMPLE = "sample.py pipe --count 2 --out out/s.npz "
TWO_LEVELS = "sample.py tiny-iar2 --count 2 --out out/s.npz "
PAINT = "sample.py painter --count 2 --out out/s.npz "
PARTS = "sample.py --tokenizer {} --generator {} --out out/s.npz"
REFERENCE = "extract_reference.py {} --extractor shapes-judge --out {}"
EVALUATE = "evaluate.py {} {} --extractor shapes-judge --json out.json"


def two_levels(): return pipeline.from_pretrained("tiny-iar2")
def partition(): return PartitionTransformer(partition_presets["tiny"])


def start(name: str, how=None, out="out", **changes):
    "Train with a changed recipe."
    return train(TrainOptions(recipe(name, **changes), Path(out), **(how or {})))


def measured(samples: str, reference: str, *metrics: str, **kw):
    "`samples` against `reference`, seen through the judge."
    return measure(samples, reference, load_extractor("shapes-judge"), metrics, **kw)


def make_reference(source: str, out: str, **kw):
    "The reference file of some pictures."
    return extract_reference(source, out, load_extractor("shapes-judge"), **kw)


ROWS = [
    # pictures
    Bad("missing-folder", "uri", "nowhere", "no such folder",
        lambda w: open_images("nowhere"),
        EXTRACT + "nowhere", option="data"),
    Bad("missing-tar", "uri", "nowhere.tar", "no such tar",
        lambda w: open_images("nowhere.tar"),
        TOKENIZER + "--data nowhere.tar", option="data"),
    Bad("missing-shards", "uri", "'wds://nowhere/*.tar'", "must match at least one .tar",
        lambda w: open_images("wds://nowhere/*.tar"),
        EXTRACT + "wds://nowhere/*.tar", option="data"),
    Bad("missing-table", "uri", "'datasets://./nowhere'", "no such file or folder",
        lambda w: open_images("datasets://./nowhere"),
        EXTRACT + "datasets://./nowhere", option="data"),
    Bad("empty-folder", "uri", "empty", "must hold pictures (.jpg",
        lambda w: open_images("empty"),
        EXTRACT + "empty", option="data"),
    Bad("file-for-folder", "uri", "note.txt", "folder",
        lambda w: open_images("note.txt"),
        EXTRACT + "note.txt", option="data"),
    Bad("no-tar", "uri", "note.tar", "must be a whole, uncompressed tar",
        lambda w: open_images("note.tar"),
        EXTRACT + "note.tar", option="data"),
    Bad("classes-and-pictures", "uri", "mixed", "must hold either class folders or pictures, not both (stray.png)",
        lambda w: open_images("mixed"),
        EXTRACT + "mixed", option="data"),
    Bad("class-without-pictures", "uri", "gap", "must have pictures in every class folder; void has none",
        lambda w: open_images("gap"),
        TOKENIZER + "--data gap", option="data"),
    Bad("unknown-scheme", "uri scheme", "'ftp'", "must be one of shapes, wds, datasets",
        lambda w: open_images("ftp://photos"),
        EXTRACT + "ftp://photos"),
    Bad("unknown-uri-option", "uri option", "'sice'", "did you mean size?",
        lambda w: open_images("shapes://?sice=32"),
        EXTRACT + "shapes://?sice=32"),
    Bad("ambiguous-columns", "image", "None", "the columns left, right could be meant",
        lambda w: open_images("datasets://pairs.parquet"),
        EXTRACT + "datasets://pairs.parquet"),
    Bad("unknown-column", "label", "'labels'", "must be one of label, right; did you mean label?",
        lambda w: open_images("datasets://pairs.parquet?image=left&label=labels"),
        EXTRACT + "datasets://pairs.parquet?image=left&label=labels"),
    Bad("stream-to-extract", "data", None, "must have a length",
        lambda w: w.plan(open_images("datasets://pairs.parquet?streaming=1&image=left")),
        EXTRACT + "datasets://pairs.parquet?streaming=1&image=left"),
    Bad("kaggle-without-labels", "uri", "imagenet", "must hold ILSVRC2012_val_labels.json or LOC_val_solution.csv",
        lambda w: open_images("kaggle://imagenet?split=val"),
        EXTRACT + "kaggle://imagenet?split=val"),
    Bad("kaggle-split", "split", "'test'", "must be one of train, val",
        lambda w: open_images("kaggle://imagenet?split=test"),
        EXTRACT + "kaggle://imagenet?split=test"),
    Bad("kaggle-elsewhere", "uri", "pictures/ILSVRC/Data/CLS-LOC/train", "no such folder",
        lambda w: open_images("kaggle://pictures"),
        REFERENCE.format("kaggle://pictures", "out.npz")),
    Bad("negative-max-bad", "max_bad", "-1", "must be an integer >= 0",
        lambda w: open_images("pictures", max_bad=-1),
        EXTRACT + "pictures --max-bad -1"),
    Bad("corrupt-picture", "", "a/torn.png", "is no JPEG, PNG, WEBP, BMP, PPM, GIF, TIFF, JPEG2000",
        lambda w: open_images("broken")[0],
        EVALUATE.format("broken", "good.npz")),
    Bad("missing-captions", "path", "nowhere.jsonl", "no such file or folder",
        lambda w: Captions("nowhere.jsonl"),
        EXTRACT + "nowhere.jsonl", option="data"),

    # images and codes as tensors
    Bad("images-of-bytes", "images", "'uint8'",
        "must be a floating point tensor (b, 3, h, w) with values in [-1, 1]",
        lambda w: w.tok.encode(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))),
    Bad("grey-images", "images", "(2, 1, 32, 32)", "(b, 3, h, w)", lambda w: w.tok.encode(w.images[:, :1])),
    Bad("images-of-255", "images", "[0.0, 255.0]", "values in [-1, 1]",
        lambda w: w.tok.encode(torch.tensor([0.0, 255.0]).repeat(1, 3, 32, 16))),
    Bad("images-not-divisible", "images", "(36, 36)", "height and width must be multiples of 8",
        lambda w: w.tok.encode(torch.zeros(2, 3, 36, 36))),
    Bad("size-not-divisible", "size", "36", "must be a multiple of 8",
        lambda w: w.plan(w.source, 36),
        EXTRACT + "pictures --size 36"),
    Bad("float-pictures-to-encode", "images", "'(2, 3, 32, 32) torch.float32'",
        "must be uint8 of shape (b, h, w, 3)",
        lambda w: w.pipe.encode(w.images)),
    Bad("float-codes", "codes", "'float32'", "must have an integer dtype, with values in [0, 48)",
        lambda w: w.tok.decode(w.flat_codes.float())),
    Bad("codes-beyond-the-book", "codes", "[0, 48]", "must lie in [0, 48)",
        lambda w: w.tok.decode(torch.tensor([[0] * 15 + [48]]))),
    Bad("semantic-codes-beyond-the-book", "codes", "[0, 16]",
        "must lie in [0, 16), the codebook's range at level 0 (semantic)",
        lambda w: two_levels().tokenizer.decode(torch.tensor([[[16, 0]] + [[0, 63]] * 15]))),
    Bad("detail-codes-beyond-the-book", "codes", "[0, 64]",
        "must lie in [0, 64), the codebook's range at level 1 (detail)",
        lambda w: two_levels().decode(torch.tensor([[[15, 64]] + [[15, 0]] * 63]))),
    Bad("detail-codes-to-learn", "codes", "[-1, -1]", "the codebook's range at level 1 (detail)",
        lambda w: two_levels().generator.logits(torch.tensor([[[0, -1]] * 64]), Cond(torch.tensor([0])))),
    Bad("given-detail-codes", "given codes", "[64, 64]", "the codebook's range at level 1 (detail)",
        lambda w: two_levels().sample([0], given=(torch.tensor([[[0, 64]] * 64]), torch.arange(64)[None] < 8))),
    Bad("stored-codes-of-a-level", "codes", "[64, 64]", "must lie in [0, 64), the codebook's range at level 1",
        lambda w: ArrayCodes(np.full((1, 1, 4, 2), [15, 64]), [0], (16, 64), (2, 2))),
    Bad("two-levels-for-one", "", "pairs_codes/0.npy",
        "holds 2 levels of codes, which is IAR2's layout: read it as iar2://pairs_codes",
        lambda w: store_from("llamagen", "pairs_codes"),
        GENERATOR + "llamagen://pairs_codes"),
    Bad("one-level-in-place-of-two", "", "single_codes/0.npy", "read it as llamagen://single_codes",
        lambda w: store_from("iar2", "single_codes"),
        GENERATOR + "iar2://single_codes"),
    Bad("published-codes-of-a-level", "", "pairs_codes/0.npy", "codes of level 1 must lie in [0, 2), found",
        lambda w: store_from("iar2", "pairs_codes", vocab=(256, 2))[0]),
    Bad("two-levels-written-as-one", "codes", "(48,)",
        "must have several levels for the layout iar2; these suit halton",
        lambda w: export_codes(CodeStore("codes"), "iar2", "new_codes"),
        EXTRACT.replace("--out out", "--out iar2://new_codes") + "shapes://?n=4"),
    Bad("negative-codes", "codes", "[-1, 0]", "must lie in [0, 48)",
        lambda w: w.train(w.codes - (torch.arange(16) == 3)[:, None].long())),
    Bad("codes-that-fill-no-square", "codes", "15", "must fill a square",
        lambda w: w.tok.decode(w.flat_codes[:, :15])),
    Bad("codes-of-another-grid", "codes", "(2, 15, 1)", "must be (b, n, levels) = (2, 16, 1)",
        lambda w: w.train(w.codes[:, :15])),
    Bad("stored-codes-beyond-the-book", "codes", "[48, 48]", "must lie in [0, 48)",
        lambda w: CodeWriter("unfinished", w.plan(w.source)).write(0, torch.full((1, 1, 16, 1), 48), [0], [0])),
    Bad("store-of-another-tokenizer", "codes", "codes", "were written by tokenizer",
        lambda w: CodeStore("codes", tokenizer="0" * 64)),
    Bad("store-begun-by-another-tokenizer", "path", "codes", "holds another store (tokenizer is",
        lambda w: extract_codes(load_model("tok2"), w.source, "codes", Augment("center", 32)),
        "extract_codes.py --tokenizer tok2 --size 32 --out codes --data shapes://?n=40", option="out"),
    Bad("unfinished-store", "codes", "unfinished", "is unfinished (0 shards, no index.json)",
        lambda w: CodeStore("unfinished"),
        GENERATOR + "unfinished", option="data"),
    Bad("damaged-store", "codes", "torn-codes/00000.codes", "must have",
        lambda w: CodeStore("torn-codes"),
        GENERATOR + "torn-codes", option="data"),
    Bad("no-store", "codes", "pictures", "holds no store of codes",
        lambda w: CodeStore("pictures"),
        GENERATOR + "pictures", option="data"),
    Bad("vocabulary-of-other-codes", "model.vocab", "64", "must be 48, as the codes have it",
        lambda w: start("shapes-generator", data="codes", model=RasterConfig(1, 32, 2, vocab=64)),
        GENERATOR + "codes --model.vocab 64"),
    Bad("features-without-captions", "features", "'codes'", "must be empty: this model is conditioned on classes",
        lambda w: start("shapes-generator", data="codes", features="codes"),
        GENERATOR + "codes --features codes"),
    Bad("codes-that-are-a-program", "", "evil-codes/Train/0000000.pth", "it names pathlib.",
        lambda w: store_from("halton", "evil-codes"),
        GENERATOR + "halton://evil-codes"),
    Bad("published-codes-of-another-split", "split", "'test'", "must be one of train, eval",
        lambda w: store_from("halton", "published", split="test"),
        GENERATOR + "halton://published?split=test"),
    Bad("published-codes-without-split", "path", "published", "holds neither .pth nor a folder Eval",
        lambda w: store_from("halton", "published", split="eval"),
        GENERATOR + "halton://published?split=eval"),
    Bad("rows-in-a-folder-of-codes", "path", "published", "holds neither state.json nor a folder train",
        lambda w: store_from("pgm", "published"),
        GENERATOR + "pgm://published"),
    Bad("split-of-a-layout-without", "codes option", "'split'", "must be one of vocab, classes",
        lambda w: open_codes("randar://published?split=train"),
        GENERATOR + "randar://published?split=train"),
    Bad("export-onto-codes", "out", "published/Train", "exists already",
        lambda w: export_codes(CodeStore("codes"), "halton", "published")),
    Bad("backend-of-compile", "backend", "'inducter'", "did you mean inductor?",
        lambda w: extract_codes(w.tok, w.source, "out", Augment("center", 32), compile="inducter"),
        EXTRACT + "pictures --compile --backend inducter"),
    Bad("ten-crops-of-another-crop", "crop", "'bilinear'", "can't be combined with --ten-crop",
        command=EXTRACT + "pictures --ten-crop --crop bilinear"),

    # what to sample
    Bad("class-beyond-the-classes", "label", "10", "must be an integer >= 0 and <= 9",
        lambda w: w.pipe.sample([0, 10])),
    Bad("classes-beyond-the-classes", "labels", "[0, 11]", "must be class ids in [0, 10)",
        lambda w: w.train(w.codes, Cond(labels=torch.tensor([0, 11])))),
    Bad("asked-class-beyond-the-classes", "class id", "10", "must be an integer >= 0 and <= 9",
        lambda w: planned_labels(4, 10, only=[10])),
    Bad("asked-class-word-beyond-the-classes", "classes", "10", "must be an integer >= 0 and <= 9",
        command=SAMPLE + "--classes 10"),
    Bad("unknown-class", "label", "'hart'", "did you mean heart?", lambda w: w.pipe.sample(["hart"])),
    Bad("unknown-class-word", "classes", "'hart'", "did you mean heart?", command=SAMPLE + "--classes hart"),
    Bad("no-images", "count", "0", "must be an integer >= 1",
        lambda w: planned_labels(0, 10),
        SAMPLE + "--count 0"),
    Bad("no-size", "size", "0", "must be an integer >= 1",
        lambda w: SampleJob(w.pipe, torch.tensor([0]), "out/s.npz", size=0),
        SAMPLE + "--size 0"),
    Bad("precision-by-a-long-name", "precision", "'bfloat16'", "must be one of fp32, tf32, bf16, fp16",
        lambda w: pipeline.from_pretrained("pipe", precision="bfloat16")),
    Bad("precision-of-integers", "precision", "torch.int8", "must be one of fp32, tf32, bf16, fp16",
        lambda w: w.pipe.sample([0], precision=torch.int8)),
    Bad("precision-of-the-decoder", "precision", "16", "must be one of fp32, tf32, bf16, fp16",
        lambda w: w.pipe.decode(w.codes, precision=16)),
    Bad("tf32-on-a-cpu", "precision", "'tf32'", "needs an NVIDIA GPU; here there are fp32, bf16 and fp16",
        lambda w: w.pipe.sample([0], precision="tf32"),
        SAMPLE + "--precision tf32"),
    Bad("tf32-of-codes-on-a-cpu", "precision", "'tf32'", "needs an NVIDIA GPU",
        lambda w: extract_codes(w.tok, w.source, "out", Augment("center", 32), precision="tf32"),
        EXTRACT + "pictures --precision tf32"),
    Bad("dtype-as-a-device", "device", "'torch.bfloat16'",
        "is no device; in which numbers passes are computed is a setting",
        lambda w: w.pipe.to(torch.bfloat16)),
    Bad("device-of-a-pipeline", "device", "'gpu'", "cannot be used here",
        lambda w: pipeline.from_pretrained("pipe", "gpu")),
    Bad("negative-seed", "seed", "-1", "must be an integer >= 0",
        lambda w: w.pipe.sample([0], seed=-1),
        SAMPLE + "--seed -1"),
    Bad("negative-id", "ids", "-1", "must be >= 0", lambda w: w.pipe.sample([0], ids=[-1])),
    Bad("not-npz", "out", "out.png", "must end in .npz",
        lambda w: SampleJob(w.pipe, torch.tensor([0]), "out.png"),
        "sample.py pipe --count 2 --out out.png"),
    Bad("out-under-a-file", "out", "note.txt",
        "must be a folder, or a place where one can be made; note.txt is a file",
        lambda w: SampleJob(w.pipe, torch.tensor([0]), "note.txt/s.npz"),
        "sample.py pipe --count 2 --out note.txt/s.npz"),
    Bad("another-job", "seed", "1", "another job began taken.npz with 0",
        lambda w: SampleJob(w.pipe, torch.tensor([0, 1]), "taken.npz", seed=1).run(),
        "sample.py pipe --count 2 --out taken.npz --seed 1"),
    Bad("caption-length", "text", "(2, 100, 64)", "must be caption features (b, 120, 64)",
        lambda w: RasterTransformer(CAPTIONED).begin([Cond(text=torch.zeros(2, 100, 64))], Grid((4, 4)))),
    Bad("groups-of-another-grid", "plan", "(9,)", "must be the groups (b, n) = (1, 64) of the codes",
        lambda w: partition().logits(torch.zeros(1, 64, 1).long(), Cond(torch.tensor([0])), torch.zeros(9))),
    Bad("partition-of-a-larger-picture", "grid", "Grid(shape=(16, 16), base=(8, 8), ntk_boundary=0)",
        "must have no base: positions count along the raster",
        lambda w: partition().check_grid(Grid((16, 16), (8, 8)))),
    Bad("missing-prompts", "prompts", "nowhere.txt", "no such file",
        command=PARTS.format("tok", "captioned") + " --prompts nowhere.txt"),
    Bad("prompts-without-a-line", "prompts", "/dev/null", "must hold at least one line of text",
        command=PARTS.format("tok", "captioned") + " --prompts /dev/null"),
    Bad("prompts-for-classes", "prompts", "/dev/null", "this generator takes classes, of --classes, not prompts",
        command=SAMPLE + "--prompts /dev/null"),
    Bad("missing-prompts-for-classes", "prompts", "nowhere.txt",
        "this generator takes classes, of --classes, not prompts",
        command=SAMPLE + "--prompts nowhere.txt"),
    Bad("classes-for-prompts", "classes", None, "this generator follows captions, of --prompts, and knows no classes",
        command=PARTS.format("tok", "captioned") + " --classes heart --prompts note.txt"),
    Bad("no-prompts", "prompts", "None", "are needed: this generator follows captions",
        command=PARTS.format("tok", "captioned")),

    # how to sample
    Bad("top-k", "top_k", "-1", "must be an integer >= 0",
        lambda w: Pick(top_k=-1),
        SAMPLE + "--picks.0.top-k -1"),
    Bad("top-k-of-each-level", "top_k", "(50, 100)", "picks=(Pick(top_k=50), Pick(top_k=100))",
        lambda w: two_levels().sample([0], top_k=(50, 100))),
    Bad("temperature-of-each-level", "temperature", "[0.9, 1.0]",
        "picks=(Pick(temperature=0.9), Pick(temperature=1.0))",
        lambda w: Sampling().changed(temperature=[0.9, 1.0])),
    Bad("top-p-of-each-level", "top_p", "(0.9, 1.0)", "must be one number, for all code levels",
        lambda w: HaltonPick(top_p=(0.9, 1.0))),
    Bad("scale-of-each-level", "guidance", "(1.0, 3.0)",
        "AttendedGuidance(start=(1.0, 1.0), end=(3.0, 3.0)) has scales for each",
        lambda w: two_levels().sample([0], guidance=(1.0, 3.0))),
    Bad("scales-of-each-level", "guidance", "[(1.0, 3.0), (1.0, 2.0)]",
        "must be one scale, or a guidance: AttendedGuidance",
        lambda w: Sampling(guidance=[(1.0, 3.0), (1.0, 2.0)])),
    Bad("pick-of-a-level-without-one", "--picks.1.top-k", "'None'",
        "choose it first, --picks.1 NAME, one of plain, halton",
        command=TWO_LEVELS + "--picks.1.top-k=None"),
    Bad("pick-of-a-level-by-a-word", "--picks.1.top-k", "'many'", "choose it first, --picks.1 NAME",
        command=TWO_LEVELS + "--picks.1.top_k many"),
    Bad("pick-of-a-third-level", "--picks.2.top-k", "'5'", "must be of one of the code levels: --picks.0, --picks.1",
        command=TWO_LEVELS + "--picks.2.top-k 5"),
    Bad("third-pick", "--picks.2", "'plain'", "must be of one of the code levels: --picks.0, --picks.1",
        command=TWO_LEVELS + "--picks.2 plain"),
    Bad("second-pick-of-one-level", "--picks.1.temperature", "'0.5'", "must be of one of the code levels: --picks.0",
        command=SAMPLE + "--picks.1.temperature 0.5"),
    Bad("picks-that-leave-one-out", "--picks.3.top-k", "'5'", "choose it first, --picks.1 NAME",
        command=PARTS.format("tok", "gen") + " --picks.3.top-k 5"),
    Bad("top-p", "top_p", "1.5", "must be a finite number >= 0 and <= 1",
        lambda w: Pick(top_p=1.5),
        SAMPLE + "--picks.0.top-p 1.5"),
    Bad("temperature", "temperature", "-0.5", "must be a finite number >= 0",
        lambda w: Pick(temperature=-0.5),
        SAMPLE + "--picks.0.temperature -0.5"),
    Bad("negative-scale", "scale", "-1.0", "must be a finite number >= 0",
        lambda w: w.pipe.sample([0], guidance=-1.0),
        SAMPLE + "--guidance.scale -1"),
    Bad("scale-of-nan", "scale", "nan", "must be a finite number >= 0",
        lambda w: CFG(float("nan")),
        SAMPLE + "--guidance.scale nan"),
    Bad("scale-of-nan-typed", "scale", "nan", "must be a finite number >= 0",
        lambda w: Sampling(guidance=float("nan"))),
    Bad("no-steps", "steps", "0", "must be an integer >= 1", lambda w: Sampling(steps=0), SAMPLE + "--steps 0"),
    Bad("no-rows", "rows", "0", "must be an integer >= 1", lambda w: w.sampler(rows=0), SAMPLE + "--rows 0"),
    Bad("unknown-setting", "setting", "'step'", "did you mean steps?", lambda w: w.pipe.sample([0], step=4)),
    Bad("unknown-setting-saved", "sampling.picks field", "'top_q'", "did you mean top_p?",
        lambda w: pipeline.from_pretrained("pipe2"),
        "sample.py pipe2 --count 2 --out out/s.npz"),
    Bad("sharpness-of-zero", "sharpness", "0.0", "must be above 0",
        lambda w: HaltonPick(sharpness=0.0),
        SAMPLE + "--picks.0 halton --picks.0.sharpness 0"),
    Bad("noise-of-an-order-that-does-not-look", "sampling.order field", "'noise'", "must be one of",
        lambda w: pipeline.from_pretrained("pipe3"),
        "sample.py pipe3 --count 2 --out out/s.npz"),
    Bad("order-for-a-pick", "picks", "Confidence(noise=0.0, noise_end=0.0, warmup=0, redraw=False)",
        "a registered pick",
        lambda w: Sampling(picks=Confidence())),
    Bad("negative-noise", "noise", "-4.5", "must be a finite number >= 0",
        lambda w: Confidence(noise=-4.5),
        SAMPLE + "--order confidence --order.noise -4.5"),
    Bad("warmup-of-an-order", "warmup", "-2", "must be an integer >= -1",
        lambda w: Confidence(warmup=-2),
        SAMPLE + "--order confidence --order.warmup -2"),
    Bad("unknown-guidance", "guidance", "'strong'", "must be one of unguided, cfg",
        lambda w: Sampling(guidance="strong")),
    Bad("attended-without-attention", "guidance", "'attended'",
        "needs a generator with the trait class_attention",
        lambda w: w.pipe.sample([0], guidance="attended"),
        SAMPLE + "--guidance attended"),
    Bad("attended-start", "start", "-1.0", "must be a finite number >= 0",
        lambda w: AttendedGuidance(start=-1.0),
        SAMPLE + "--guidance attended --guidance.start -1"),
    Bad("attended-ends", "end", "(2.0, 3.0)", "must have one scale, or as many as start=(1.0, 1.0, 1.0)",
        lambda w: AttendedGuidance((1.0,) * 3, (2.0, 3.0)),
        SAMPLE + "--guidance attended --guidance.start 1 1 1 --guidance.end 2 3"),
    Bad("one-size-for-two", "vocab", "48", "must be two sizes: semantic codes, detail codes",
        lambda w: SemanticDetailConfig(vocab=48)),
    Bad("one-level-for-two", "data", "'codes'", "must have 2 codes a cell for a semantic-detail model; these have 1",
        command=_GENERATOR.format("shapes-8x8-iar2") + "--data codes"),
    Bad("no-tries", "tries", "0", "must be an integer >= 1",
        lambda w: Rejection(0),
        SAMPLE + "--reject-by shapes-judge --reject-tries 0"),
    Bad("good-enough", "enough", "1.5", "must be a finite number >= 0 and <= 1",
        lambda w: Rejection(enough=1.5),
        SAMPLE + "--reject-by shapes-judge --reject-enough 1.5"),
    Bad("rejected-by-nobody", "reject_tries", "3", "only goes with reject_by", command=SAMPLE + "--reject-tries 3"),
    Bad("unknown-pick", "pick", "'halten'", "did you mean halton?", command=SAMPLE + "--picks.0 halten"),
    Bad("negative-warmup", "warmup", "-1", "must be an integer >= 0",
        lambda w: HaltonPick(warmup=-1),
        SAMPLE + "--picks.0 halton --picks.0.warmup -1"),
    Bad("masked-on-another-grid", "grid", "(4, 4)", "must be (8, 8): positions are learnt one by one",
        lambda w: MaskedTransformer(masked_presets["tiny-shapes"]).check_grid(Grid((4, 4)))),
    Bad("unknown-order", "order", "'spiral'", "did you mean spiral-in?",
        lambda w: Sampling(order="spiral"),
        SAMPLE + "--order spiral"),
    Bad("explorer-of-too-many-steps", "steps", "257", "must be from 1 to 256, the cells of the grid",
        lambda w: OrderExplorer(OrderChoice(steps=257))),
    Bad("explorer-of-an-adaptive-order", "order", "'confidence'", "looks at a model's confidence: show a run of it",
        lambda w: order_course(OrderChoice("confidence"))),
    Bad("map-of-a-late-moment", "at", "3", "must be an integer >= 0 and <= 2",
        lambda w: step_map([0, 1], (1, 2), at=3)),
    Bad("order-no-permutation", "order", "[0, 0, 1, 2, 3, 4, 5, 6]",
        "must be a permutation: every cell of 0..15 exactly once",
        lambda w: w.sampler(AnyOrder(), order=Given([0, *range(15)]))),
    Bad("order-too-short", "order", "(9,)", "must list all 16 cells",
        lambda w: w.sampler(AnyOrder(), order=Given(range(9)))),
    Bad("order-it-cannot-follow", "order", "'random'", "needs a generator with the trait any_order",
        lambda w: w.pipe.sample([0], order="random"),
        SAMPLE + "--order random"),
    Bad("schedule-too-short", "schedule", "[8, 7]", "must be positive group sizes that add up to 16",
        lambda w: w.sampler(AnyOrder(), schedule=lambda n, steps, start: [8, 7])),
    Bad("schedule-with-nothing", "schedule", "[16, 0]", "must be positive group sizes",
        lambda w: w.sampler(AnyOrder(), schedule=lambda n, steps, start: [16, 0])),
    Bad("steps-of-one-by-one", "steps", "4", "one-by-one draws one cell a step",
        lambda w: w.pipe.sample([0], steps=4),
        SAMPLE + "--steps 4"),
    Bad("schedule-in-groups", "schedule", "'even'", "RasterTransformer decides one cell at a time",
        lambda w: w.pipe.sample([0], schedule="even", steps=4),
        SAMPLE + "--schedule even --steps 4"),
    Bad("grid-of-one-number", "grid", "(16,)", "must be (h, w)",
        lambda w: pipeline.Pipeline(w.tok, w.gen, grid=(16,)).sample([0])),
    Bad("grid-of-nothing", "grid", "(0, 4)", "must be (n,) or (h, w) of positive integers",
        lambda w: Grid((0, 4)),
        SAMPLE + "--grid 0 4"),
    Bad("given-of-another-grid", "given codes", "(2, 9, 1)", "must be (b, n, levels) = (2, 16, 1)",
        lambda w: w.pipe.sample([0, 1], given=(w.codes[:, :9], torch.ones(2, 9, dtype=torch.bool)))),

    # pictures that are there, and larger ones
    Bad("mask-of-another-size", "mask", "(30, 32)", "must be (32, 32), the size of the pictures",
        lambda w: w.painter.inpaint(w.photos, w.mask[:30], [0, 1])),
    Bad("mask-file-of-another-size", "mask", "(1, 30, 32)", "must be (32, 32), the size of the pictures",
        command=PAINT + "--inpaint pictures --mask small-mask.png"),
    Bad("mask-that-marks-nothing", "mask", "0", "must mark at least one pixel",
        lambda w: w.painter.inpaint(w.photos, w.mask & False, [0, 1]),
        PAINT + "--inpaint pictures --mask no-mask.png"),
    Bad("mask-of-floats", "mask", "0.5", "must be an array: bool, uint8",
        lambda w: w.painter.inpaint(w.photos, w.mask.astype(np.float32) / 2, [0, 1])),
    Bad("missing-mask", "mask", "nowhere.png", "no such file or folder",
        command=PAINT + "--inpaint pictures --mask nowhere.png"),
    Bad("no-mask", "mask", "None", "is needed", command=PAINT + "--inpaint pictures"),
    Bad("missing-pictures", "inpaint", "nowhere", "no such file or folder",
        command=PAINT + "--inpaint nowhere --mask mask.png"),
    Bad("no-picture", "inpaint", "note.txt", "must be a picture, a folder of pictures or an npz",
        command=PAINT + "--inpaint note.txt --mask mask.png"),
    Bad("two-works", "outpaint", "'pictures'", "can't be combined with inpaint",
        command=PAINT + "--inpaint pictures --mask mask.png --outpaint pictures"),
    Bad("stray-canvas", "canvas", "(64, 64)", "only goes with outpaint", command=PAINT + "--canvas 64 64"),
    Bad("picture-that-fits-no-cells", "images", "(30, 32)", "height and width must be multiples of 8 pixels",
        lambda w: w.painter.inpaint(w.photos[:, :30], w.mask[:30], [0, 1])),
    Bad("crop-that-fits-no-cells", "images", "(30, 30)", "height and width must be multiples of 8 pixels",
        command=PAINT + "--outpaint pictures --canvas 64 64 --crop 30"),
    Bad("edit-to-no-class", "label", "10", "must be an integer >= 0 and <= 9",
        lambda w: w.painter.edit(w.photos, w.mask, [0, 10])),
    Bad("paint-as-no-class", "classes", "10", "must be an integer >= 0 and <= 9",
        command=PAINT + "--inpaint pictures --mask mask.png --classes 10"),
    Bad("raster-asked-to-fill-gaps", "generator", "'RasterTransformer'",
        "must have the trait any_order to fill gaps",
        lambda w: w.pipe.inpaint(w.photos, w.mask, [0, 1]),
        SAMPLE + "--inpaint pictures --mask mask.png --crop 32"),
    Bad("other-labels-than-pictures", "labels", "3", "must be one for each of the 2 images",
        lambda w: w.painter.inpaint(w.photos, w.mask, [0, 1, 2])),
    Bad("smaller-canvas", "canvas", "(24, 64)", "must be larger than the images' (32, 32) pixels",
        lambda w: w.painter.outpaint(w.photos, (24, 64), [0, 1]),
        PAINT + "--outpaint pictures --canvas 24 64"),
    Bad("canvas-between-cells", "canvas", "(36, 64)", "height and width must be multiples of 8 pixels",
        lambda w: w.painter.outpaint(w.photos, (36, 64), [0, 1]),
        PAINT + "--outpaint pictures --canvas 36 64"),
    Bad("picture-outside-the-canvas", "at", "(16, 0)",
        "must leave the images' (32, 32) pixels inside the canvas of (40, 64)",
        lambda w: w.painter.outpaint(w.photos, (40, 64), [0, 1], at=(16, 0)),
        PAINT + "--outpaint pictures --canvas 40 64 --at 16 0"),
    Bad("ntk-boundary-of-a-canvas", "ntk_boundary", "9", "must be an integer >= 0 and <= 4",
        lambda w: w.painter.outpaint(w.photos, (40, 64), [0, 1], ntk_boundary=9),
        PAINT + "--outpaint pictures --canvas 40 64 --ntk-boundary 9"),
    Bad("ntk-boundary-of-a-larger-grid", "ntk_boundary", "9", "must be an integer >= 0 and <= 4",
        lambda w: w.painter.extrapolate([0], (6, 6), ntk_boundary=9),
        PAINT + "--extrapolate 6 6 --ntk-boundary 9"),
    Bad("negative-ntk-boundary", "ntk_boundary", "-1", "must be an integer >= 0",
        lambda w: Extrapolate((6, 6), ntk_boundary=-1),
        PAINT + "--extrapolate 6 6 --ntk-boundary -1"),
    Bad("smaller-grid", "shape", "(6, 3)", "nowhere smaller than the training grid (4, 4)",
        lambda w: w.painter.extrapolate([0], (6, 3)),
        PAINT + "--extrapolate 6 3"),
    Bad("spatial-scales-that-fall", "spatial", "(3.0, 1.0)", "must not fall",
        lambda w: w.painter.extrapolate([0], (6, 6), spatial=(3.0, 1.0)),
        PAINT + "--extrapolate 6 6 --spatial-scale 3 1"),
    Bad("negative-spatial-scale", "spatial", "-2.0", "must be a finite number >= 0",
        lambda w: Extrapolate((6, 6), spatial=(-2.0, 1.0)),
        PAINT + "--extrapolate 6 6 --spatial-scale -2 1"),
    Bad("larger-grid-of-a-raster", "generator", "'RasterTransformer'", "must have the trait any_order",
        lambda w: w.pipe.extrapolate([0], (6, 6)),
        SAMPLE + "--extrapolate 6 6"),
    Bad("prefix-of-everything", "prefix", "16", "must be from 1 to 15: the sequence has 16 codes",
        lambda w: w.pipe.prefix([0], 16),
        SAMPLE + "--prefix 16"),
    Bad("prefix-of-nothing", "prefix", "0", "must be an integer >= 1",
        lambda w: w.painter.prefix([0], 0),
        PAINT + "--prefix 0"),
    Bad("like-without-prefix", "like", "'pictures'", "only goes with prefix",
        lambda w: asked_for(like="pictures"),
        SAMPLE + "--like pictures"),
    Bad("previews-of-a-plane", "tokenizer", "'VQGAN'", "decodes all codes of a picture at once",
        lambda w: w.pipe.preview([0], 1),
        SAMPLE + "--preview 1"),
    Bad("steps-of-a-decoder-without", "denoise", "4", "decodes in one pass",
        lambda w: w.pipe.sample([0], denoise=4),
        SAMPLE + "--denoise 4"),
    Bad("unknown-progress-of-scales", "by", "'token'", "must be one of done, after, column, step, cell",
        lambda w: CFG(2.0, start=1.0, by="token"),
        None),
    Bad("negative-start-of-scales", "start", "-1.0", "must be a finite number >= 0",
        lambda w: CFG(2.0, start=-1.0),
        PAINT + "--guidance.start -1 --guidance.scale 2"),
    Bad("more-steps-than-cells", "steps", "17", "must be from 1 to 16, the cells of the grid",
        lambda w: w.painter.sample([0], steps=17),
        PAINT + "--steps 17"),
    Bad("more-frames-than-cells", "frames", "17", "must be an integer >= 1 and <= 16",
        lambda w: w.painter.morph(w.photos, [0, 1], frames=17),
        PAINT + "--morph pictures --frames 17"),

    # models and files
    Bad("missing-pipeline", "where", "'nowhere'", "must be a folder written by save_pretrained",
        lambda w: pipeline.from_pretrained("nowhere"),
        "sample.py nowhere --count 2 --out out/s.npz", option="pipeline"),
    Bad("no-pipeline", "where", "pictures", "has no pipeline.json",
        lambda w: pipeline.from_pretrained("pictures"),
        "sample.py pictures --count 2 --out out/s.npz", option="pipeline"),
    Bad("missing-model", "model", "nowhere", "must be the folder of a saved model", lambda w: load_model("nowhere")),
    Bad("missing-tokenizer", "tokenizer", "nowhere",
        "must be the folder of a saved model, of a run or of a pipeline, a published file or its name "
        "(vgnb.zoo.table()), or one of the shipped tiny-arpg",
        lambda w: open_part("nowhere", "tokenizer"),
        "extract_codes.py --tokenizer nowhere --size 32 --data shapes:// --out out"),
    Bad("missing-tokenizer-to-rebuild", "tokenizer", "tiny-iar", "did you mean tiny-iar2?",
        command="reconstruct.py --tokenizer tiny-iar --data shapes:// --out r.npz"),
    Bad("missing-generator", "generator", "tiny-ranbar", "did you mean tiny-randar?",
        lambda w: open_part("tiny-ranbar", "generator"),
        PARTS.format("tok", "tiny-ranbar")),
    Bad("missing-preview-tokenizer", "preview_tokenizer", "nowhere", "one of the shipped tiny-arpg, tiny-dar",
        command=GENERATOR + "codes --preview-every 1 --preview-tokenizer nowhere"),
    Bad("no-model", "model", "pictures", "has no config.json",
        lambda w: load_model("pictures"),
        PARTS.format("pictures", "gen"), option="tokenizer"),
    Bad("generator-for-tokenizer", "tokenizer", "gen", "holds a raster, which is no tokenizer",
        lambda w: open_part("gen", "tokenizer"),
        "extract_codes.py --tokenizer gen --size 32 --data shapes:// --out out"),
    Bad("generator-to-rebuild-with", "tokenizer", "gen", "holds a raster, which is no tokenizer",
        command="reconstruct.py --tokenizer gen --data shapes:// --out r.npz"),
    Bad("generator-to-preview-with", "preview_tokenizer", "gen", "holds a raster, which is no tokenizer",
        command=GENERATOR + "codes --preview-every 1 --preview-tokenizer gen"),
    Bad("generator-to-start-a-tokenizer", "start", "gen", "holds a raster, which is no tokenizer",
        lambda w: start("shapes-tokenizer", start="gen", free_steps=0),
        TOKENIZER + "--start gen"),
    Bad("tokenizer-to-start-a-generator", "start", "tok", "holds a vqgan, which is no generator",
        command=GENERATOR + "codes --start tok"),
    Bad("run-to-start-a-generator", "start", "run", "holds a vqgan, which is no generator",
        command=GENERATOR + "codes --start run"),
    Bad("parts-of-a-tokenizer", "start", "tok", "holds a vqgan, which is no generator",
        command=GENERATOR + "codes --start tok --start-fit parts"),
    Bad("other-generator-to-start", "start", "tiny-maskgit", "holds a masked, not a raster; start_fit=parts",
        command=GENERATOR + "codes --start tiny-maskgit"),
    Bad("prefix-of-no-start", "start_prefix", "'model.'", "only goes with start, a published file",
        lambda w: start("shapes-tokenizer", start_prefix="model."),
        TOKENIZER + "--start-prefix model."),
    Bad("prefix-of-a-folder", "start_prefix", "'model.'",
        "only goes with a published file at start: the names in tok are ours",
        lambda w: start("shapes-tokenizer", start="tok", start_prefix="model.", free_steps=0),
        TOKENIZER + "--start tok --start-prefix model."),
    Bad("missing-start", "start", "nowhere", "must be the folder of a saved model, of a run or of a pipeline",
        lambda w: start("shapes-tokenizer", start="nowhere", free_steps=0),
        TOKENIZER + "--start nowhere"),
    Bad("missing-first-stage", "start", "nowhere",
        "no such run: train shapes-iar2-tokenizer-first, then give the folder of that run here, --start RUN",
        lambda w: start("shapes-iar2-tokenizer-second", start="nowhere"),
        "train_tokenizer.py shapes-iar2-tokenizer-second --out out --start nowhere"),
    Bad("missing-first-stage-by-default", "start", "runs/cifar/iar2-first",
        "no such run: train cifar-iar2-tokenizer-first",
        command="train_tokenizer.py cifar-iar2-tokenizer-second --out out --data shapes://?n=16 --precision fp32"),
    Bad("unfinished-first-stage", "start", "begun", "is a run that has not finished",
        command=TOKENIZER + "--start begun"),
    Bad("tokenizer-for-generator", "model", "tok", "holds a vqgan, not a raster",
        lambda w: load_model("tok", kind="raster")),
    Bad("swapped", "tokenizer", "'RasterTransformer'", "must be a tokenizer",
        lambda w: pipeline.Pipeline(w.gen, w.tok)),
    Bad("swapped-folders", "tokenizer", "gen", "holds a raster, which is no tokenizer",
        command=PARTS.format("gen", "tok")),
    Bad("tokenizer-twice", "generator", "tok", "holds a vqgan, which is no generator",
        command=PARTS.format("tok", "tok")),
    Bad("pipeline-of-two-generators", "where", "twice/tokenizer", "holds a raster, which is no tokenizer",
        lambda w: pipeline.from_pretrained("twice")),
    Bad("other-vocabulary", "generator", "(48,)", "must speak the tokenizer's codes (64,)",
        lambda w: pipeline.Pipeline(load_model("tok64"), w.gen),
        PARTS.format("tok64", "gen")),
    Bad("weights-of-another-model", "checkpoint", "'mixed-up'", "does not fit this model: ",
        lambda w: load_model("mixed-up"),
        PARTS.format("tok", "mixed-up"), option="generator"),
    Bad("half-a-state-dict", "checkpoint", "'half'", "does not fit this model: 6 missing",
        lambda w: load_model("half"),
        PARTS.format("tok", "half"), option="generator"),
    Bad("cut-weights", "path", "cut/model.safetensors", "must be a readable safetensors file",
        lambda w: load_model("cut"),
        PARTS.format("tok", "cut"), option="generator"),
    Bad("damaged-checkpoint", "checkpoint", "damaged/checkpoints/step-000000002",
        "is damaged: model.tokenizer.safetensors is not the file that was written",
        lambda w: verify("damaged/checkpoints/step-000000002")),
    Bad("only-damaged-checkpoints", "folder", "damaged", "is damaged: model.tokenizer.safetensors",
        command=TOKENIZER.replace("--out out", "--out damaged"), option="out"),
    Bad("evil-pickle", "path", "evil.pt", "holds pickled objects that are not tensors",
        lambda w: zoo.load_published("evil.pt"),
        PARTS.format("evil.pt", "gen"), option="tokenizer"),
    Bad("unknown-published-file", "path", "unknown.pt", "holds ['some.weight'], which is none of the models known here",
        lambda w: zoo.load_published(Path("unknown.pt")),
        PARTS.format("unknown.pt", "gen"), option="tokenizer"),
    Bad("unknown-published-name", "name", "'GPT-XS'", "must be one of", lambda w: zoo.build("GPT-XS")),

    # recipes and runs
    Bad("unknown-recipe", "recipe", "'vq-61'", "did you mean vq-16?",
        lambda w: recipe("vq-61"),
        "train_tokenizer.py vq-61 --data pictures --out out"),
    Bad("recipe-of-the-other-family", "recipe", "'gpt-b'", "must be of kind tokenizer",
        command="train_tokenizer.py gpt-b --data pictures --out out"),
    Bad("unknown-recipe-field", "recipe field", "'stepz'", "did you mean steps?",
        lambda w: from_json({"kind": "tokenizer", "stepz": 10}),
        "train_tokenizer.py recipe.json --out out"),
    Bad("missing-recipe-file", "path", "nowhere.json", "no such file",
        command="train_tokenizer.py nowhere.json --out out"),
    Bad("no-data", "data", "''", "must say where the pictures are",
        lambda w: start("vq-16", loss=VQGANLossConfig(lpips=0)),
        "train_tokenizer.py vq-16 --loss.lpips 0 --out out"),
    Bad("no-training-steps", "steps", "0", "must be an integer >= 1",
        lambda w: recipe("shapes-tokenizer", steps=0),
        TOKENIZER + "--steps 0"),
    Bad("unknown-mask-rate", "mask_rate", "'arcos'", "did you mean arccos?",
        lambda w: MaskedConfig(mask_rate="arcos"),
        MASKED + "--model.mask-rate arcos"),
    Bad("patches-of-three", "patch", "3", "must be one of 1, 2",
        lambda w: MaskedConfig(patch=3),
        MASKED + "--model.patch 3"),
    Bad("more-heads-than-channels", "heads", "999", "must be an integer >= 1 and <= 1",
        lambda w: replace(masked_presets["tiny-shapes"], heads=999),
        MASKED + "--model.heads 999"),
    Bad("odd-registers", "registers", "3", "must be even: half of them belong to each group",
        lambda w: PartitionConfig(registers=3),
        PARTITION + "--model.registers 3"),
    Bad("unknown-decoder", "mode", "'crossed'", "must be cross-only, interleave",
        lambda w: PartitionConfig(mode="crossed"),
        PARTITION + "--model.mode crossed"),
    Bad("decoder-of-broken-periods", "decoder", "4", "must be a multiple of 3 for mode=interleave-2-cross",
        lambda w: PartitionConfig(decoder=4, mode="interleave-2-cross"),
        PARTITION + "--model.mode interleave-2-cross --model.decoder 4"),
    Bad("heads-of-a-partition", "dim", "90", "must be divisible by 2 * heads=8",
        lambda w: replace(partition_presets["tiny"], dim=90, heads=4),
        PARTITION + "--model.dim 90 --model.heads 4"),
    Bad("negative-rate", "optim.lr", "-0.1", "must be a finite number >= 0",
        lambda w: Optim(lr=-0.1),
        TOKENIZER + "--optim.lr -0.1"),
    Bad("crop-not-divisible", "augment.size", "36", "must be a multiple of 8, the tokenizer's factor",
        lambda w: recipe("shapes-tokenizer", augment=Augment("center", 36)),
        TOKENIZER + "--augment.size 36"),
    Bad("batch-of-parts", "batch", "8", "must be a multiple of processes x accumulate = 1 x 3",
        lambda w: Share(0, 1, 3).check(8),
        GENERATOR + "codes --accumulate 3"),
    Bad("exact-of-parts", "batch", "8", "must be a multiple of exact=3",
        lambda w: Share(0, 1, exact=3).check(8),
        GENERATOR + "codes --exact 3"),
    Bad("exact-cut-twice", "accumulate", "2", "must be 1 with exact=4, which says how a batch is cut",
        lambda w: Share(0, 1, 2, exact=4).check(8),
        GENERATOR + "codes --exact 4 --accumulate 2"),
    Bad("exact-compiled", "compile", "True", "must be False with exact=4",
        lambda w: check_exact(recipe("shapes-generator", exact=4), Run(compile=True), None),
        GENERATOR + "codes --exact 4 --compile"),
    Bad("revival-of-parts", "accumulate", "2", "must be 1 while dead codes are revived",
        command=TOKENIZER + "--accumulate 2"),
    Bad("half-precision-on-a-cpu", "precision", "'fp16'", "needs an accelerator; use bf16 or fp32 here",
        lambda w: start("shapes-generator", data="codes", precision="fp16"),
        GENERATOR + "codes --precision fp16"),
    Bad("no-vgg", "weights", "weights/vgg16-397923af.pth", "no VGG-16 weights: put vgg16.safetensors or",
        lambda w: vqgan_loss(VQGANLossConfig(lpips=1), weights="weights", size=32),
        TOKENIZER + "--loss.lpips 1 --weights weights"),
    Bad("unknown-tracker", "tracker", "'papyrus'", "must be one of aim, clearml, comet_ml, dvclive, jsonl, mlflow",
        lambda w: Run(tracker="papyrus"),
        TOKENIZER + "--tracker papyrus"),
    Bad("tracker-not-installed", "tracker", "'tensorboard'", "is not installed: pip install tensorboard",
        lambda w: start("shapes-tokenizer", how=dict(run=Run(tracker="tensorboard"))),
        TOKENIZER + "--tracker tensorboard"),
    Bad("what-on-save-error", "on_save_error", "'shrug'", "must be one of stop, warn",
        lambda w: Run(on_save_error="shrug"),
        TOKENIZER + "--on-save-error shrug"),
    Bad("fresh-and-resume", "fresh", "True", "can't be combined with --resume",
        lambda w: TrainOptions(fresh=True, resume=True).how(),
        TOKENIZER + "--fresh --resume"),
    Bad("nothing-to-resume", "folder", "out", "has no checkpoint to resume from",
        lambda w: start("shapes-tokenizer", how=dict(resume=True)),
        TOKENIZER + "--resume", option="out"),
    Bad("another-recipe", "recipe", "'vq-16'", "the run in run was begun with the recipe shapes-tokenizer",
        lambda w: start("vq-16", how=dict(dry_run=True), out="run", data="pictures"),
        "train_tokenizer.py vq-16 --out run --data pictures"),
    Bad("recipe-of-the-other-kind", "recipe", "'shapes-generator'",
        "the run in run was begun with the recipe shapes-tokenizer",
        command=(GENERATOR + "codes").replace("--out out", "--out run")),
    Bad("another-recipe-in-a-dry-run", "recipe", "'shapes-8x8-tokenizer'",
        "choose another folder for shapes-8x8-tokenizer",
        command="train_tokenizer.py shapes-8x8-tokenizer --out run --dry-run"),
    Bad("another-batch", "batch", "16", "was started with 8",
        command="train_tokenizer.py run/run.json --out run --batch 16"),
    Bad("other-data", "data", "'shapes://?n=24'", "was started with 'shapes://?n=16&size=32'",
        command="train_tokenizer.py run/run.json --out run --data shapes://?n=24"),
    Bad("folder-in-use", "folder", "busy", "is in use by",
        lambda w: locked("busy").__enter__(),
        TOKENIZER.replace("--out out", "--out busy"), option="out"),
    Bad("run-in-a-file", "folder", "note.txt", "must be a folder, or a place where one can be made",
        lambda w: locked("note.txt").__enter__(),
        TOKENIZER.replace("--out out", "--out note.txt"), option="out"),
    Bad("unknown-settings-key", "settings.ini [run] key", "'sead'", "did you mean seed?",
        lambda w: get_settings("odd"),
        "odd: train_tokenizer.py shapes-tokenizer --dry-run"),

    # numbers
    Bad("reference-of-statistics", "images", None, "must be at least two pictures",
        lambda w: make_reference("statistics.npz", "out.npz"),
        REFERENCE.format("statistics.npz", "out.npz")),
    Bad("reference-in-another-file", "out", "out.csv", "must end in .npz, .safetensors or .pt",
        lambda w: make_reference("good.npz", "out.csv"),
        REFERENCE.format("good.npz", "out.csv")),
    Bad("reference-over-a-file", "out", "good.npz", "exists already",
        lambda w: make_reference("good.npz", "good.npz"),
        REFERENCE.format("good.npz", "good.npz")),
    Bad("features-beside-a-torch-file", "features", "5", "can be kept in an .npz only",
        lambda w: make_reference("good.npz", "out.pt", keep=5),
        REFERENCE.format("good.npz", "out.pt") + " --features 5"),
    Bad("reference-of-another-extractor", "reference", "'inception-v3-clean@0'", "was made by another extractor",
        lambda w: measured("good.npz", "foreign.npz", "fid"),
        EVALUATE.format("foreign.npz", "good.npz") + " --metrics fid"),
    Bad("precision-against-statistics", "reference", None, "must hold pictures for pr, or their features",
        lambda w: measured("good.npz", "statistics.npz", "pr"),
        EVALUATE.format("statistics.npz", "good.npz") + " --metrics pr"),
    Bad("unknown-crop", "crop", "'centre'", "must be one of adm, bilinear, bicubic",
        lambda w: open_samples("pictures", 32, "centre")),
    Bad("missing-samples", "samples", "'nowhere.npz'", "no such file or folder",
        lambda w: open_samples("nowhere.npz"),
        EVALUATE.format("good.npz", "nowhere.npz")),
    Bad("npz-without-pictures", "npz", "nameless.npz",
        "must hold arr_0 (uint8 pictures) or mu and sigma; it holds pixels",
        lambda w: open_samples("nameless.npz"),
        EVALUATE.format("good.npz", "nameless.npz"), option="samples"),
    Bad("npz-of-objects", "npz", "'objects.npz[arr_0]'", "holds Python objects, which could run code",
        lambda w: open_samples("objects.npz"),
        EVALUATE.format("good.npz", "objects.npz")),
    Bad("npz-of-floats", "npz", "'floats.npz[arr_0]'", "must be uint8 (n, h, w, 3), not float32 (8, 32, 32, 3)",
        lambda w: open_samples("floats.npz"),
        EVALUATE.format("good.npz", "floats.npz")),
    Bad("npz-cut-off", "npz", "short.npz", "is not an npz of plain arrays",
        lambda w: open_samples("short.npz"),
        EVALUATE.format("good.npz", "short.npz"), option="samples"),
    Bad("fewer-labels", "labels", "5", "must be one for each of the 8 pictures",
        lambda w: open_samples("fewer.npz"),
        EVALUATE.format("good.npz", "fewer.npz")),
    Bad("labels-the-judge-does-not-know", "labels", "[90, 99]", "must lie in [0, 10), the classes of shapes-judge",
        lambda w: measured("strange.npz", "good.npz", "accuracy"),
        EVALUATE.format("good.npz", "strange.npz") + " --metrics accuracy"),
    Bad("too-few-for-fid", "number of samples", "1", "must be an integer >= 2",
        lambda w: measured("one.npz", "good.npz", "fid"),
        EVALUATE.format("good.npz", "one.npz") + " --metrics fid"),
    Bad("too-few-for-kid", "kid_size", "9", "must be at most the number of pictures, 8",
        lambda w: measured("good.npz", "good.npz", "kid", kid_size=9),
        EVALUATE.format("good.npz", "good.npz") + " --metrics kid --kid-size 9"),
    Bad("unknown-metric", "metrics", "'fad'", "must be one of fid, sfid, is, kid, mind, pr, dc, accuracy",
        lambda w: measured("good.npz", "good.npz", "fad")),
    Bad("unknown-extractor", "extractor", "'resnet'",
        "must be one of dinov2, inception, inception-clean, inception-halton, inception-pytorch, shapes-judge",
        lambda w: load_extractor("resnet")),
    Bad("missing-extractor-weights", "weights", "nowhere.pth", "no such file",
        lambda w: load_extractor("inception", "nowhere.pth"),
        "evaluate.py good.npz good.npz --weights nowhere.pth --json out.json"),
    Bad("unusable-device", "device", "'nonsense'", "cannot be used here",
        lambda w: load_extractor("shapes-judge", device="nonsense"),
        EVALUATE.format("good.npz", "good.npz") + " --device nonsense"),
    Bad("network-of-codes", "extractor", "'dinov2'", "only goes with metrics that a network looks for",
        command="evaluate.py good.npz good.npz --metrics codes --tokenizer tok --extractor dinov2"),
    Bad("network-weights-of-codes", "weights", "nowhere.pth", "codes alone are the --tokenizer's",
        command="evaluate.py good.npz good.npz --metrics codes --tokenizer tok --weights nowhere.pth"),
    Bad("tokenizer-of-networks", "tokenizer", "tok", "only goes with --metrics codes",
        command=EVALUATE.format("good.npz", "good.npz") + " --metrics fid --tokenizer tok"),
    Bad("neighbours-of-fid", "k", "5", "only goes with --metrics pr or dc",
        command=EVALUATE.format("good.npz", "good.npz") + " --metrics fid --k 5"),
    Bad("subset-of-fid", "kid_size", "4", "only goes with --metrics kid",
        command=EVALUATE.format("good.npz", "good.npz") + " --metrics fid pr --kid-size 4"),
    Bad("side-of-stored-pixels", "size", "32", "only goes with folders, tars and addresses",
        command=EVALUATE.format("good.npz", "good.npz") + " --size 32"),
    Bad("crop-to-no-side", "crop", "'bicubic'", "only goes with --size",
        command=EVALUATE.format("pictures", "good.npz") + " --crop bicubic"),
    Bad("overwritten-nothing", "overwrite", "True", "only goes with --json",
        command="evaluate.py good.npz good.npz --extractor shapes-judge --overwrite"),
    Bad("reference-side-of-stored-pixels", "size", "32", "pixels in an npz stay as they are",
        command=REFERENCE.format("good.npz", "out.npz") + " --size 32"),
    Bad("reference-crop-to-no-side", "crop", "'bilinear'", "only goes with --size",
        command=REFERENCE.format("pictures", "out.npz") + " --crop bilinear"),
    Bad("range-of-one-crop", "crop_range", "1.3", "only goes with --ten-crop",
        command=EXTRACT + "pictures --crop-range 1.3"),
    Bad("backend-of-nothing", "backend", "'aot_eager'", "only goes with --compile",
        command=EXTRACT + "pictures --backend aot_eager"),
    Bad("weights-of-no-lpips", "weights", "weights", "only goes with --lpips",
        command="reconstruct.py --tokenizer tok --data pictures --out out/r.npz --weights weights"),
    Bad("system-of-a-folder", "tokenizer_system", "'llamagen'", "only goes with a published file: the names in tok",
        lambda w: open_part("tok", "tokenizer", system="llamagen"),
        EXTRACT + "pictures --tokenizer-system llamagen"),
    Bad("system-of-a-pipeline", "generator_system", "'llamagen'", "only goes with --generator, a published file",
        command=SAMPLE + "--generator-system llamagen"),
    Bad("averages-of-a-published-file", "ema", "True", "only goes with a folder of ours",
        lambda w: open_part("unknown.pt", "tokenizer", ema=True),
        EXTRACT.replace("--tokenizer tok", "--tokenizer unknown.pt") + "pictures --ema True"),
    Bad("averages-of-a-published-name", "ema", "True", "only goes with a folder of ours",
        lambda w: pipeline.from_pretrained("RandAR-L", ema=True)),
    Bad("another-system-of-a-name", "system", "'halton'", "must be left out: RandAR-L is a file of randar",
        lambda w: zoo.load_published("RandAR-L", system="halton")),
    Bad("encoder-of-no-prompts", "text_encoder", "'t5'", "only goes with --prompts",
        command=SAMPLE + "--text-encoder t5"),
    Bad("drawn-labels-of-pictures", "labels", "'random'", "these pictures have classes of their own",
        command=PAINT + "--inpaint pictures --mask mask.png --labels random"),
    Bad("missing-record", "path", "nowhere.json", "no such file", command="rerun.py nowhere.json", option="run"),
    Bad("no-record", "run", "recipe.json", "must be a run.json written by vgnb",
        command="rerun.py recipe.json"),
]
