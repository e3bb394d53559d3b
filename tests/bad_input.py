"""What can be wrong with an input, in one table: argument, value, the words that say what is allowed. It drives the Python API and the scripts alike.

A row reads: whoever writes `python` (a function of the workplace) or types `command` (a script and its words) gets one error, `argument=value: ... words ...`.
Everything lies in one folder (`build`), which is also the current folder: values are relative paths.
"""
import argparse
import json
import pickle
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from PIL import Image

from vgnb import pipeline, zoo
from vgnb.core import get_settings, save_json
from vgnb.data.codes import CodePlan, CodeStore, CodeWriter
from vgnb.data.images import open_images
from vgnb.data.layouts import export_codes, store_from
from vgnb.data.shapes import Shapes
from vgnb.data.text import Captions
from vgnb.data.transforms import Augment, to_tensor
from vgnb.draws import Keyed
from vgnb.evaluation.features import load_extractor
from vgnb.evaluation.fid import measure
from vgnb.evaluation.reference import extract_reference
from vgnb.evaluation.samples import open_samples, save_samples
from vgnb.generators.generator import Cond, Generator, Grid, Loss, Prediction
from vgnb.generators.masked import MaskedConfig, MaskedTransformer, masked_presets
from vgnb.generators.orders import Given
from vgnb.generators.partition import PartitionConfig, PartitionTransformer, partition_presets
from vgnb.generators.random_order import RandomOrderConfig, RandomOrderTransformer
from vgnb.generators.raster import RasterConfig, RasterTransformer, raster_presets
from vgnb.jobs import SampleJob, planned_labels
from vgnb.order_maps import step_map
from vgnb.sampling.extrapolation import Extrapolation
from vgnb.sampling.guidance import CFG
from vgnb.sampling.pick import Pick
from vgnb.sampling.sampler import Sampler
from vgnb.sampling.settings import Sampling
from vgnb.tokenizers.objectives import VQGANLossConfig, vqgan_loss
from vgnb.tokenizers.vqgan import vqgan
from vgnb.training.checkpoints import hold, verify
from vgnb.saved import load_model, save_model
from vgnb.training.commands import TrainOptions, open_codes, train
from vgnb.training.extract import code_plan, extract_codes
from vgnb.training.feed import Share
from vgnb.training.recipes import Optim, recipe
from vgnb.kinds import from_json
from vgnb.training.trainer import Run
from vgnb.views.explorer import OrderChoice, OrderExplorer, order_course

SMALL = dict(quantizer=dict(codebook=48), width=16, groups=8)          # of the tokenizer
RASTER = RasterConfig(1, 32, 2, ffn_multiple=16, vocab=48, grid=(4, 4), classes=10, token_dropout=0, residual_dropout=0, ffn_dropout=0)


class AnyOrder(Generator):
    "Fills cells in any order, uniformly; `asked` counts its predictions."
    vocab, traits = (48,), frozenset({"any_order", "parallel"})
    def __init__(self): super().__init__(); self.asked = 0
    def null(self, cond): return cond
    def predict(self, state, positions, given=None, *, live, independent=False):
        self.asked += 1
        return Prediction(torch.zeros(live, *positions.shape, 48))


class Work:
    "The workplace: what a user has lying about, good and bad."
    def __init__(self, folder: Path):
        self.folder, self.source = folder, Shapes(40, 32)
        torch.manual_seed(0); self.tok = vqgan("tiny-shapes", **SMALL).eval()
        self.gen = RasterTransformer(RASTER).eval()
        self.pipe = pipeline.Pipeline(self.tok, self.gen, Sampling(), Shapes.classes)
        free = RandomOrderTransformer(RandomOrderConfig(1, 32, 2, ffn_multiple=16, vocab=48, grid=(4, 4), classes=10)).eval()
        self.painter = pipeline.Pipeline(self.tok, free, Sampling(order="random", schedule="randar", steps=4), Shapes.classes)
        self.photos, self.mask = self.source.batch(range(2))[0], np.arange(32 * 32).reshape(32, 32) < 300
        self.images = to_tensor(self.source.batch(range(2))[0])
        self.codes = torch.zeros(2, 16, dtype=torch.int64)
        self.cond, self.ids = Cond(labels=torch.tensor([0, 1])), torch.arange(2)

    def sampler(self, generator=None, **parts): return Sampler(generator or self.gen, **parts).sample(self.cond, self.ids, Keyed(0), grid=Grid((4, 4)))


def build(folder: Path) -> Work:
    "Fill `folder`."
    w = Work(folder)
    _pictures(folder, w.source); _models(folder, w); _codes(folder, w); _published(folder, w); _samples(folder, w)
    save_json(folder / "recipe.json", {"kind": "tokenizer", "stepz": 10})
    (folder / "odd").mkdir(); (folder / "odd" / "settings.ini").write_text("[run]\nsead = 1\n")
    r = recipe("shapes-tokenizer", data="shapes://?n=16&size=32", steps=2, batch=8, free_steps=0, precision="fp32", model=w.tok.config)
    train(TrainOptions(r, folder / "run", progress=False))
    shutil.copytree(folder / "run", folder / "damaged")
    file = next((folder / "damaged").rglob("model.tokenizer.safetensors")); file.write_bytes(file.read_bytes()[:-1] + b"!")
    return w


def _pictures(folder: Path, source):
    for i in range(12):
        item = source[i]
        for place in ("pictures", "broken"):
            path = folder / place / source.classes[item.label] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True); item.image.save(path)
    (folder / "broken" / "a").mkdir(); (folder / "broken" / "a" / "torn.png").write_bytes(b"\x89PNG but not for long")
    shutil.copytree(folder / "pictures", folder / "mixed"); shutil.copy(folder / "broken" / "a" / "torn.png", folder / "mixed" / "stray.png")
    shutil.copytree(folder / "pictures", folder / "gap"); (folder / "gap" / "void").mkdir()
    (folder / "empty").mkdir()
    (folder / "note.txt").write_text("not a picture")
    (folder / "note.tar").write_text("not a tar")
    import datasets
    pictures = [source[i].image for i in range(4)]
    datasets.Dataset.from_dict({"left": pictures, "right": pictures, "label": [0, 1, 2, 3]}).cast_column("left", datasets.Image()).cast_column("right", datasets.Image()).to_parquet(folder / "pairs.parquet")


def _models(folder: Path, w: Work):
    save_model(folder / "tok", w.tok, w.tok.config); save_model(folder / "gen", w.gen, RASTER)
    torch.manual_seed(1)
    save_model(folder / "tok2", other := vqgan("tiny-shapes", **SMALL), other.config)
    save_model(folder / "tok64", wide := vqgan("tiny-shapes", **SMALL | {"quantizer": dict(codebook=64)}), wide.config)
    w.pipe.save_pretrained(folder / "pipe"); w.painter.save_pretrained(folder / "painter")
    for name, mask in (("mask", w.mask), ("no-mask", w.mask & False), ("small-mask", w.mask[:30])): Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{name}.png")
    for name in ("half", "cut", "mixed-up"): shutil.copytree(folder / "gen", folder / name)
    from safetensors.torch import load_file, save_file
    state = load_file(folder / "gen" / "model.safetensors")
    save_file({k: v for n, (k, v) in enumerate(sorted(state.items())) if n % 2}, folder / "half" / "model.safetensors", {"kind": "raster"})
    (folder / "cut" / "model.safetensors").write_bytes((folder / "gen" / "model.safetensors").read_bytes()[:-100])
    shutil.copy(folder / "tok" / "model.safetensors", folder / "mixed-up" / "model.safetensors")
    class Evil:
        def __reduce__(self): return (Path.touch, (Path(folder / "evil-was-here"),))
    torch.save({"model": {"w": torch.zeros(1)}, "args": Evil()}, folder / "evil.pt")
    torch.save({"model": {"some.weight": torch.zeros(2)}, "args": argparse.Namespace(lr=1)}, folder / "unknown.pt")
    shutil.copytree(folder / "pipe", folder / "pipe2")
    card = json.loads((folder / "pipe2" / "pipeline.json").read_text()); card["sampling"]["top_q"] = 0.5
    save_json(folder / "pipe2" / "pipeline.json", card)
    SampleJob(w.pipe, torch.tensor([0, 1]), folder / "taken.npz").begin()


def _codes(folder: Path, w: Work):
    extract_codes(w.tok, w.source, folder / "codes", Augment("center", 32), batch=20, progress=False)
    CodeWriter(folder / "unfinished", code_plan(w.tok, w.source, Augment("center", 32)))
    shutil.copytree(folder / "codes", folder / "torn-codes")
    shard = folder / "torn-codes" / "00000.codes"; shard.write_bytes(shard.read_bytes()[:-1])


def _published(folder: Path, w: Work):
    "Codes in the masked transformer's layout, good and evil; ImageNet in Kaggle's layout without its labels."
    class Evil:
        def __reduce__(self): return (Path.touch, (Path(folder / "evil-was-here"),))
    for place, code in (("published", np.zeros((4, 4), np.uint16)), ("evil-codes", Evil())):
        (folder / place / "Train").mkdir(parents=True)
        for i in range(8): (folder / place / "Train" / f"{i:07d}.pth").write_bytes(pickle.dumps({"code": code, "y": i}))
    for n, synset in enumerate(("n01440764", "n02012849")):
        for place in (f"train/{synset}/{n}.JPEG", f"val/{n}.JPEG"):
            path = folder / "imagenet/ILSVRC/Data/CLS-LOC" / place
            path.parent.mkdir(parents=True, exist_ok=True); w.source[n].image.save(path)
    save_json(folder / "imagenet" / "imagenet_class_index.json", {"0": ["n01440764", "tench"], "1": ["n02012849", "crane"]})


def _samples(folder: Path, w: Work):
    images, labels = w.source.batch(range(8))
    save_samples(folder / "good.npz", images, labels); save_samples(folder / "one.npz", images[:1], labels[:1])
    np.savez(folder / "nameless.npz", pixels=images); np.savez(folder / "floats.npz", images.astype(np.float32))
    np.savez(folder / "objects.npz", arr_0=np.array([{"a": 1}], dtype=object)); np.savez(folder / "fewer.npz", arr_0=images, labels=labels[:5])
    np.savez(folder / "strange.npz", arr_0=images, labels=labels + 90)
    for name, by in (("statistics", ""), ("foreign", "inception-v3-clean@0")): np.savez(folder / f"{name}.npz", mu=np.zeros(64), sigma=np.eye(64), extractor=np.array(by))
    (folder / "short.npz").write_bytes((folder / "good.npz").read_bytes()[:-200])


@dataclass(frozen=True)
class Bad:
    "A row of the table."
    id: str
    argument: str                       # as the user wrote it; "" where the value is a picture's own name
    value: str                          # as the error shows it
    words: str                          # of what is allowed
    python: Callable[[Work], object] | None = None
    command: str | None = None

    @property
    def start(self) -> str: return f"{self.argument}={self.value}: " if self.argument else f"{self.value}: "


EXTRACT = "extract_codes.py --tokenizer tok --size 32 --out out --data "
TOKENIZER = "train_tokenizer.py shapes-tokenizer --out out --precision fp32 --steps 2 --batch 8 --data shapes://?n=16 "
GENERATOR = "train_generator.py shapes-generator --out out --precision fp32 --steps 2 --batch 8 --model.layers 1 --model.dim 32 --data "
MASKED = "train_generator.py shapes-8x8-maskgit --out out --precision fp32 --steps 2 --batch 8 --data codes "
PARTITION = "train_generator.py shapes-8x8-pgm --out out --precision fp32 --steps 2 --batch 8 --data codes "
SAMPLE = "sample.py pipe --count 2 --out out/s.npz "
PAINT = "sample.py painter --count 2 --out out/s.npz "
REFERENCE = "extract_reference.py {} --extractor shapes-judge"
EVALUATE = "evaluate.py good.npz {} --extractor shapes-judge --json out.json"

ROWS = [
    # pictures
    Bad("missing-folder", "uri", "nowhere", "no such folder", lambda w: open_images("nowhere"), EXTRACT + "nowhere"),
    Bad("missing-tar", "uri", "nowhere.tar", "no such tar", lambda w: open_images("nowhere.tar"), TOKENIZER + "--data nowhere.tar"),
    Bad("missing-shards", "uri", "'wds://nowhere/*.tar'", "must match at least one .tar", lambda w: open_images("wds://nowhere/*.tar"), EXTRACT + "wds://nowhere/*.tar"),
    Bad("missing-table", "uri", "'datasets://./nowhere'", "no such file or folder", lambda w: open_images("datasets://./nowhere"), EXTRACT + "datasets://./nowhere"),
    Bad("empty-folder", "uri", "empty", "must hold pictures (.jpg", lambda w: open_images("empty"), EXTRACT + "empty"),
    Bad("file-for-folder", "uri", "note.txt", "folder", lambda w: open_images("note.txt"), EXTRACT + "note.txt"),
    Bad("no-tar", "uri", "note.tar", "must be a whole, uncompressed tar", lambda w: open_images("note.tar"), EXTRACT + "note.tar"),
    Bad("classes-and-pictures", "uri", "mixed", "must hold either class folders or pictures, not both (stray.png)", lambda w: open_images("mixed"), EXTRACT + "mixed"),
    Bad("class-without-pictures", "uri", "gap", "must have pictures in every class folder; void has none", lambda w: open_images("gap"), TOKENIZER + "--data gap"),
    Bad("unknown-scheme", "uri scheme", "'ftp'", "must be one of shapes, wds, datasets", lambda w: open_images("ftp://photos"), EXTRACT + "ftp://photos"),
    Bad("unknown-uri-option", "uri option", "'sice'", "did you mean size?", lambda w: open_images("shapes://?sice=32"), EXTRACT + "shapes://?sice=32"),
    Bad("ambiguous-columns", "image", "None", "the columns left, right could be meant", lambda w: open_images("datasets://pairs.parquet"), EXTRACT + "datasets://pairs.parquet"),
    Bad("unknown-column", "label", "'labels'", "must be one of label, right; did you mean label?", lambda w: open_images("datasets://pairs.parquet?image=left&label=labels"),
        EXTRACT + "datasets://pairs.parquet?image=left&label=labels"),
    Bad("stream-to-extract", "data", None, "must have a length", lambda w: code_plan(w.tok, open_images("datasets://pairs.parquet?streaming=1&image=left"), Augment("center", 32)),
        EXTRACT + "datasets://pairs.parquet?streaming=1&image=left"),
    Bad("kaggle-without-labels", "uri", "imagenet", "must hold ILSVRC2012_val_labels.json or LOC_val_solution.csv", lambda w: open_images("kaggle://imagenet?split=val"), EXTRACT + "kaggle://imagenet?split=val"),
    Bad("kaggle-split", "split", "'test'", "must be one of train, val", lambda w: open_images("kaggle://imagenet?split=test"), EXTRACT + "kaggle://imagenet?split=test"),
    Bad("kaggle-elsewhere", "uri", "pictures/ILSVRC/Data/CLS-LOC/train", "no such folder", lambda w: open_images("kaggle://pictures"), REFERENCE.format("kaggle://pictures") + " --out out.npz"),
    Bad("negative-max-bad", "max_bad", "-1", "must be an integer >= 0", lambda w: open_images("pictures", max_bad=-1), EXTRACT + "pictures --max-bad -1"),
    Bad("corrupt-picture", "", "a/torn.png", "is no JPEG, PNG, WEBP, BMP, PPM picture", lambda w: open_images("broken")[0], "evaluate.py broken good.npz --extractor shapes-judge --json out.json"),
    Bad("missing-captions", "path", "nowhere.jsonl", "no such file or folder", lambda w: Captions("nowhere.jsonl"), EXTRACT + "nowhere.jsonl"),
    # images and codes as tensors
    Bad("images-of-bytes", "images", "'uint8'", "must be a floating point tensor (b, 3, h, w) with values in [-1, 1]", lambda w: w.tok.encode(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))),
    Bad("grey-images", "images", "(2, 1, 32, 32)", "(b, 3, h, w)", lambda w: w.tok.encode(w.images[:, :1])),
    Bad("images-of-255", "images", "[0.0, 255.0]", "values in [-1, 1]", lambda w: w.tok.encode(torch.tensor([0.0, 255.0]).expand(1, 3, 32, 16, 2).flatten(-2))),
    Bad("images-not-divisible", "images", "(36, 36)", "height and width must be multiples of 8", lambda w: w.tok.encode(torch.zeros(2, 3, 36, 36))),
    Bad("size-not-divisible", "size", "36", "must be a multiple of 8", lambda w: code_plan(w.tok, w.source, Augment("center", 36)), EXTRACT + "pictures --size 36"),
    Bad("float-pictures-to-encode", "images", "'(2, 3, 32, 32) torch.float32'", "must be uint8 of shape (b, h, w, 3)", lambda w: w.pipe.encode(w.images)),
    Bad("float-codes", "codes", "'float32'", "must have an integer dtype, with values in [0, 48)", lambda w: w.tok.decode(w.codes.float())),
    Bad("codes-beyond-the-book", "codes", "[0, 48]", "must lie in [0, 48)", lambda w: w.tok.decode(torch.tensor([[0] * 15 + [48]]))),
    Bad("negative-codes", "codes", "[-1, 0]", "must lie in [0, 48)", lambda w: w.gen(w.codes - (torch.arange(16) == 3).long(), w.cond, Keyed(0), None)),
    Bad("codes-that-fill-no-square", "codes", "15", "must fill a square", lambda w: w.tok.decode(w.codes[:, :15])),
    Bad("codes-of-another-grid", "codes", "(2, 15)", "must be (b, n) = (2, 16)", lambda w: w.gen(w.codes[:, :15], w.cond, Keyed(0), None)),
    Bad("stored-codes-beyond-the-book", "codes", "[48, 48]", "must lie in [0, 48)",
        lambda w: CodeWriter("unfinished", code_plan(w.tok, w.source, Augment("center", 32))).write(0, torch.full((1, 1, 16, 1), 48), [0], [0])),
    Bad("store-of-another-tokenizer", "codes", "codes", "were written by tokenizer", lambda w: CodeStore("codes", tokenizer="0" * 64)),
    Bad("store-begun-by-another-tokenizer", "path", "codes", "holds another store (tokenizer is",
        lambda w: extract_codes(load_model("tok2"), w.source, "codes", Augment("center", 32)), "extract_codes.py --tokenizer tok2 --size 32 --out codes --data shapes://?n=40"),
    Bad("unfinished-store", "codes", "unfinished", "is unfinished (0 shards, no index.json)", lambda w: CodeStore("unfinished"), GENERATOR + "unfinished"),
    Bad("damaged-store", "codes", "torn-codes/00000.codes", "must have", lambda w: CodeStore("torn-codes"), GENERATOR + "torn-codes"),
    Bad("no-store", "codes", "pictures", "holds no store of codes", lambda w: CodeStore("pictures"), GENERATOR + "pictures"),
    Bad("vocabulary-of-other-codes", "model.vocab", "64", "must be 48, as the codes have it",
        lambda w: train(TrainOptions(recipe("shapes-generator", data="codes", model=RasterConfig(1, 32, 2, vocab=64)), Path("out"))), GENERATOR + "codes --model.vocab 64"),
    Bad("features-without-captions", "features", "'codes'", "must be empty: this model is conditioned on classes",
        lambda w: train(TrainOptions(recipe("shapes-generator", data="codes", features="codes"), Path("out"))), GENERATOR + "codes --features codes"),
    Bad("codes-that-are-a-program", "", "evil-codes/Train/0000000.pth", "it names pathlib.", lambda w: store_from("halton", "evil-codes"), GENERATOR + "halton://evil-codes"),
    Bad("published-codes-of-another-split", "split", "'test'", "must be one of train, eval", lambda w: store_from("halton", "published", split="test"), GENERATOR + "halton://published?split=test"),
    Bad("published-codes-without-split", "path", "published", "holds neither .pth nor a folder Eval", lambda w: store_from("halton", "published", split="eval"), GENERATOR + "halton://published?split=eval"),
    Bad("rows-in-a-folder-of-codes", "path", "published", "holds neither state.json nor a folder train", lambda w: store_from("pgm", "published"), GENERATOR + "pgm://published"),
    Bad("split-of-a-layout-without", "codes option", "'split'", "must be one of vocab, classes", lambda w: open_codes("randar://published?split=train"), GENERATOR + "randar://published?split=train"),
    Bad("export-onto-codes", "out", "published/Train", "exists already", lambda w: export_codes(CodeStore("codes"), "halton", "published")),
    Bad("backend-of-compile", "backend", "'inducter'", "did you mean inductor?", lambda w: extract_codes(w.tok, w.source, "out", Augment("center", 32), compile="inducter"),
        EXTRACT + "pictures --compile --backend inducter"),
    Bad("ten-crops-of-another-crop", "crop", "'bilinear'", "can't be combined with --ten-crop", None, EXTRACT + "pictures --ten-crop --crop bilinear"),
    # what to sample
    Bad("class-beyond-the-classes", "label", "10", "must be an integer >= 0 and <= 9", lambda w: w.pipe.sample([0, 10])),
    Bad("classes-beyond-the-classes", "labels", "[0, 11]", "must be class ids in [0, 10)", lambda w: w.gen(w.codes, Cond(labels=torch.tensor([0, 11])), Keyed(0), None)),
    Bad("asked-class-beyond-the-classes", "class id", "10", "must be an integer >= 0 and <= 9", lambda w: planned_labels(4, 10, only=[10]), SAMPLE + "--classes 10"),
    Bad("unknown-class", "label", "'hart'", "did you mean heart?", lambda w: w.pipe.sample(["hart"])),
    Bad("unknown-class-word", "classes", "'hart'", "did you mean heart?", None, SAMPLE + "--classes hart"),
    Bad("no-images", "count", "0", "must be an integer >= 1", lambda w: planned_labels(0, 10), SAMPLE + "--count 0"),
    Bad("no-size", "size", "0", "must be an integer >= 1", lambda w: SampleJob(w.pipe, torch.tensor([0]), "out/s.npz", size=0), SAMPLE + "--size 0"),
    Bad("negative-seed", "seed", "-1", "must be an integer >= 0", lambda w: w.pipe.sample([0], seed=-1), SAMPLE + "--seed -1"),
    Bad("negative-id", "ids", "-1", "must be >= 0", lambda w: w.pipe.sample([0], ids=[-1])),
    Bad("not-npz", "out", "out.png", "must end in .npz", lambda w: SampleJob(w.pipe, torch.tensor([0]), "out.png"), "sample.py pipe --count 2 --out out.png"),
    Bad("out-under-a-file", "out", "note.txt", "must be a folder, or a place where one can be made; note.txt is a file", lambda w: SampleJob(w.pipe, torch.tensor([0]), "note.txt/s.npz"), "sample.py pipe --count 2 --out note.txt/s.npz"),
    Bad("another-job", "seed", "1", "another job began taken.npz with 0", lambda w: SampleJob(w.pipe, torch.tensor([0, 1]), "taken.npz", seed=1).run(),
        "sample.py pipe --count 2 --out taken.npz --seed 1"),
    Bad("caption-length", "text", "(2, 100, 64)", "must be caption features (b, 120, 64)",
        lambda w: RasterTransformer(RasterConfig(1, 32, 2, vocab=48, grid=(4, 4), condition="text", text_dim=64)).begin([Cond(text=torch.zeros(2, 100, 64))], Grid((4, 4)))),
    Bad("groups-of-another-grid", "plan", "(9,)", "must be the groups (b, n) = (1, 64) of the codes",
        lambda w: PartitionTransformer(partition_presets["tiny"]).logits(torch.zeros(1, 64, dtype=torch.int64), Cond(torch.tensor([0])), torch.zeros(9))),
    Bad("partition-of-a-larger-picture", "grid", "Grid(shape=(16, 16), base=(8, 8), ntk_boundary=0)", "must have no base: positions count along the raster",
        lambda w: PartitionTransformer(partition_presets["tiny"]).check_grid(Grid((16, 16), (8, 8)))),
    Bad("missing-prompts", "prompts", "nowhere.txt", "no such file", None, SAMPLE + "--prompts nowhere.txt"),
    # how to sample
    Bad("top-k", "top_k", "-1", "must be an integer >= 0", lambda w: Pick(top_k=-1), SAMPLE + "--sampling.top-k -1"),
    Bad("top-p", "top_p", "1.5", "must be a finite number >= 0 and <= 1", lambda w: Sampling(top_p=1.5), SAMPLE + "--sampling.top-p 1.5"),
    Bad("temperature", "temperature", "-0.5", "must be a finite number >= 0", lambda w: Pick(temperature=-0.5), SAMPLE + "--sampling.temperature -0.5"),
    Bad("negative-scale", "cfg_scale", "-1.0", "must be a finite number >= 0", lambda w: w.pipe.sample([0], cfg_scale=-1.0), SAMPLE + "--sampling.cfg-scale -1"),
    Bad("scale-of-nan", "scale", "nan", "must be a finite number >= 0", lambda w: CFG(float("nan"))),
    Bad("scale-of-nan-typed", "cfg_scale", "nan", "must be a finite number", lambda w: Sampling(cfg_scale=float("nan")), SAMPLE + "--sampling.cfg-scale nan"),
    Bad("no-steps", "steps", "0", "must be an integer >= 1", lambda w: Sampling(steps=0), SAMPLE + "--sampling.steps 0"),
    Bad("no-rows", "rows", "0", "must be an integer >= 1", lambda w: w.sampler(rows=0), SAMPLE + "--sampling.rows 0"),
    Bad("unknown-setting", "setting", "'top_q'", "did you mean top_p?", lambda w: w.pipe.sample([0], top_q=0.5)),
    Bad("unknown-setting-saved", "sampling field", "'top_q'", "did you mean top_p?", lambda w: pipeline.from_pretrained("pipe2"), "sample.py pipe2 --count 2 --out out/s.npz"),
    Bad("sharpness-of-zero", "sharpness", "0.0", "must be above 0", lambda w: Sampling(sharpness=0.0), SAMPLE + "--sampling.sharpness 0"),
    Bad("noise-of-an-order-that-does-not-look", "choice_noise", "4.5", "needs an order that looks at the model (confidence, uncertainty); this is raster", lambda w: Sampling(choice_noise=4.5), SAMPLE + "--sampling.choice-noise 4.5"),
    Bad("warmup-of-a-fixed-order", "choice_warmup", "2", "needs an order that looks at the model", lambda w: Sampling(choice_warmup=2, order="halton"), SAMPLE + "--sampling.choice-warmup 2 --sampling.order halton"),
    Bad("negative-warmup", "temp_warmup", "-1", "must be an integer >= 0", lambda w: Sampling(temp_warmup=-1), SAMPLE + "--sampling.temp-warmup -1"),
    Bad("masked-on-another-grid", "grid", "(4, 4)", "must be (8, 8): positions are learnt one by one", lambda w: MaskedTransformer(masked_presets["tiny-shapes"]).check_grid(Grid((4, 4)))),
    Bad("unknown-order", "order", "'spiral'", "must be one of raster, random", lambda w: Sampling(order="spiral"), SAMPLE + "--sampling.order spiral"),
    Bad("explorer-of-too-many-steps", "steps", "257", "must be from 1 to 256, the cells of the grid", lambda w: OrderExplorer(OrderChoice(steps=257))),
    Bad("explorer-of-an-adaptive-order", "order", "'confidence'", "looks at a model's confidence: show a run of it", lambda w: order_course(OrderChoice("confidence"))),
    Bad("map-of-a-late-moment", "at", "3", "must be an integer >= 0 and <= 2", lambda w: step_map([0, 1], (1, 2), at=3)),
    Bad("order-no-permutation", "order", "[0, 0, 1, 2, 3, 4, 5, 6]", "must be a permutation: every cell of 0..15 exactly once", lambda w: w.sampler(AnyOrder(), order=Given([0, *range(15)]))),
    Bad("order-too-short", "order", "(9,)", "must list all 16 cells", lambda w: w.sampler(AnyOrder(), order=Given(range(9)))),
    Bad("order-it-cannot-follow", "order", "'Random'", "needs a generator with the trait any_order", lambda w: w.pipe.sample([0], order="random"), SAMPLE + "--sampling.order random"),
    Bad("schedule-too-short", "schedule", "[8, 7]", "must be positive group sizes that add up to 16", lambda w: w.sampler(AnyOrder(), schedule=lambda n, steps, start: [8, 7])),
    Bad("schedule-with-nothing", "schedule", "[16, 0]", "must be positive group sizes", lambda w: w.sampler(AnyOrder(), schedule=lambda n, steps, start: [16, 0])),
    Bad("schedule-in-groups", "schedule", "[4, 4, 4, 4]", "RasterTransformer decides one cell at a time", lambda w: w.pipe.sample([0], schedule="even", steps=4),
        SAMPLE + "--sampling.schedule even --sampling.steps 4"),
    Bad("grid-of-one-number", "grid", "(16,)", "must be (h, w)", lambda w: pipeline.Pipeline(w.tok, w.gen, grid=(16,)).sample([0])),
    Bad("grid-of-nothing", "grid", "(0, 4)", "must be (n,) or (h, w) of positive integers", lambda w: Grid((0, 4)), SAMPLE + "--grid 0 4"),
    Bad("given-of-another-grid", "given codes", "(2, 9, 1)", "must be (b, n, levels) = (2, 16, 1)",
        lambda w: w.pipe.sample([0, 1], given=(torch.zeros(2, 9, 1, dtype=torch.int64), torch.ones(2, 9, dtype=torch.bool)))),
    # pictures that are there, and larger ones
    Bad("mask-of-another-size", "mask", "(30, 32)", "must be (32, 32), the size of the pictures", lambda w: w.painter.inpaint(w.photos, w.mask[:30], [0, 1])),
    Bad("mask-file-of-another-size", "mask", "(1, 30, 32)", "must be (32, 32), the size of the pictures", None, PAINT + "--inpaint pictures --mask small-mask.png"),
    Bad("mask-that-marks-nothing", "mask", "0", "must mark at least one pixel", lambda w: w.painter.inpaint(w.photos, w.mask & False, [0, 1]), PAINT + "--inpaint pictures --mask no-mask.png"),
    Bad("mask-of-floats", "mask", "'float32'", "must be bool or uint8", lambda w: w.painter.inpaint(w.photos, w.mask.astype(np.float32), [0, 1])),
    Bad("missing-mask", "mask", "nowhere.png", "no such file or folder", None, PAINT + "--inpaint pictures --mask nowhere.png"),
    Bad("no-mask", "mask", "''", "is needed", None, PAINT + "--inpaint pictures"),
    Bad("missing-pictures", "inpaint", "nowhere", "no such file or folder", None, PAINT + "--inpaint nowhere --mask mask.png"),
    Bad("no-picture", "inpaint", "note.txt", "must be a picture, a folder of pictures or an npz", None, PAINT + "--inpaint note.txt --mask mask.png"),
    Bad("two-works", "outpaint", "'pictures'", "can't be combined with inpaint", None, PAINT + "--inpaint pictures --mask mask.png --outpaint pictures"),
    Bad("stray-canvas", "canvas", "(64, 64)", "only goes with outpaint", None, PAINT + "--canvas 64 64"),
    Bad("picture-that-fits-no-cells", "images", "(30, 32)", "height and width must be multiples of 8 pixels", lambda w: w.painter.inpaint(w.photos[:, :30], w.mask[:30], [0, 1])),
    Bad("crop-that-fits-no-cells", "images", "(30, 30)", "height and width must be multiples of 8 pixels", None, PAINT + "--outpaint pictures --canvas 64 64 --crop 30"),
    Bad("edit-to-no-class", "label", "10", "must be an integer >= 0 and <= 9", lambda w: w.painter.edit(w.photos, w.mask, [0, 10])),
    Bad("paint-as-no-class", "class id", "10", "must be an integer >= 0 and <= 9", None, PAINT + "--inpaint pictures --mask mask.png --classes 10"),
    Bad("raster-asked-to-fill-gaps", "generator", "'RasterTransformer'", "must have the trait any_order to fill gaps", lambda w: w.pipe.inpaint(w.photos, w.mask, [0, 1]), SAMPLE + "--inpaint pictures --mask mask.png --crop 32"),
    Bad("fewer-labels-than-pictures", "labels", "1", "must be one for each of the 2 images", lambda w: w.painter.inpaint(w.photos, w.mask, [0])),
    Bad("smaller-canvas", "canvas", "(24, 64)", "must be larger than the images' (32, 32) pixels", lambda w: w.painter.outpaint(w.photos, (24, 64), [0, 1]), PAINT + "--outpaint pictures --canvas 24 64"),
    Bad("canvas-between-cells", "canvas", "(36, 64)", "height and width must be multiples of 8 pixels", lambda w: w.painter.outpaint(w.photos, (36, 64), [0, 1]), PAINT + "--outpaint pictures --canvas 36 64"),
    Bad("picture-outside-the-canvas", "at", "(16, 0)", "must leave the images' (32, 32) pixels inside the canvas of (40, 64)", lambda w: w.painter.outpaint(w.photos, (40, 64), [0, 1], at=(16, 0)),
        PAINT + "--outpaint pictures --canvas 40 64 --at 16 0"),
    Bad("ntk-boundary-of-a-canvas", "grid.ntk_boundary", "9", "must be an integer >= 0 and <= 4", lambda w: w.painter.outpaint(w.photos, (40, 64), [0, 1], ntk_boundary=9), PAINT + "--outpaint pictures --canvas 40 64 --ntk-boundary 9"),
    Bad("ntk-boundary-of-a-larger-grid", "grid.ntk_boundary", "9", "must be an integer >= 0 and <= 4", lambda w: w.painter.extrapolate([0], (6, 6), ntk_boundary=9), PAINT + "--extrapolate 6 6 --ntk-boundary 9"),
    Bad("negative-ntk-boundary", "ntk_boundary", "-1", "must be an integer >= 0", lambda w: Extrapolation(ntk_boundary=-1), PAINT + "--extrapolate 6 6 --ntk-boundary -1"),
    Bad("smaller-grid", "grid.base", "(4, 4)", "must be (h, w), no larger than the grid (6, 3)", lambda w: w.painter.extrapolate([0], (6, 3)), PAINT + "--extrapolate 6 3"),
    Bad("spatial-scales-that-fall", "spatial", "(3.0, 1.0)", "must not fall", lambda w: w.painter.extrapolate([0], (6, 6), spatial=(3.0, 1.0)), PAINT + "--extrapolate 6 6 --spatial-scale 3 1"),
    Bad("negative-spatial-scale", "spatial", "-2.0", "must be a finite number >= 0", lambda w: Extrapolation(spatial=(-2.0, 1.0)), PAINT + "--extrapolate 6 6 --spatial-scale -2 1"),
    Bad("larger-grid-of-a-raster", "generator", "'RasterTransformer'", "must have the trait any_order", lambda w: w.pipe.extrapolate([0], (6, 6)), SAMPLE + "--extrapolate 6 6"),
    Bad("scales-that-fall", "cfg_start", "3.0", "must be from 0 to cfg_scale=2.0: guidance grows", lambda w: Sampling(cfg_start=3.0, cfg_scale=2.0), PAINT + "--sampling.cfg-start 3 --sampling.cfg-scale 2"),
    Bad("negative-start-of-scales", "cfg_start", "-1.0", "must be from 0 to cfg_scale=2.0", lambda w: Sampling(cfg_start=-1.0, cfg_scale=2.0), PAINT + "--sampling.cfg-start -1 --sampling.cfg-scale 2"),
    Bad("more-steps-than-cells", "steps", "17", "must be from 1 to 16, the cells of the grid", lambda w: w.painter.sample([0], steps=17), PAINT + "--sampling.steps 17"),
    Bad("more-frames-than-cells", "frames", "17", "must be an integer >= 1 and <= 16", lambda w: w.painter.morph(w.photos, [0, 1], frames=17)),
    # models and files
    Bad("missing-pipeline", "where", "'nowhere'", "must be a folder written by save_pretrained", lambda w: pipeline.from_pretrained("nowhere"), "sample.py nowhere --count 2 --out out/s.npz"),
    Bad("no-pipeline", "where", "pictures", "has no pipeline.json", lambda w: pipeline.from_pretrained("pictures"), "sample.py pictures --count 2 --out out/s.npz"),
    Bad("missing-model", "model", "nowhere", "must be the folder of a saved model", lambda w: load_model("nowhere"), "extract_codes.py --tokenizer nowhere --size 32 --data shapes:// --out out"),
    Bad("no-model", "model", "pictures", "has no config.json", lambda w: load_model("pictures"), "sample.py --tokenizer pictures --generator gen --out out/s.npz"),
    Bad("generator-for-tokenizer", "tokenizer", "gen", "holds a RasterTransformer, which is no tokenizer", None, "extract_codes.py --tokenizer gen --size 32 --data shapes:// --out out"),
    Bad("tokenizer-for-generator", "model", "tok", "holds a vqgan, not a raster", lambda w: load_model("tok", kind="raster")),
    Bad("swapped", "tokenizer", "'RasterTransformer'", "must be a tokenizer", lambda w: pipeline.Pipeline(w.gen, w.tok), "sample.py --tokenizer gen --generator tok --out out/s.npz"),
    Bad("other-vocabulary", "generator", "(48,)", "must speak the tokenizer's codes (64,)", lambda w: pipeline.Pipeline(load_model("tok64"), w.gen), "sample.py --tokenizer tok64 --generator gen --out out/s.npz"),
    Bad("weights-of-another-model", "checkpoint", "'mixed-up'", "does not fit this model: ", lambda w: load_model("mixed-up"), "sample.py --tokenizer tok --generator mixed-up --out out/s.npz"),
    Bad("half-a-state-dict", "checkpoint", "'half'", "does not fit this model: 6 missing", lambda w: load_model("half"), "sample.py --tokenizer tok --generator half --out out/s.npz"),
    Bad("cut-weights", "path", "cut/model.safetensors", "must be a readable safetensors file", lambda w: load_model("cut"), "sample.py --tokenizer tok --generator cut --out out/s.npz"),
    Bad("damaged-checkpoint", "checkpoint", "damaged/checkpoints/step-000000002", "is damaged: model.tokenizer.safetensors is not the file that was written",
        lambda w: verify("damaged/checkpoints/step-000000002")),
    Bad("only-damaged-checkpoints", "folder", "damaged", "is damaged: model.tokenizer.safetensors", None, TOKENIZER.replace("--out out", "--out damaged")),
    Bad("evil-pickle", "path", "evil.pt", "holds pickled objects that are not tensors", lambda w: zoo.load_published("evil.pt"), "sample.py --tokenizer evil.pt --generator gen --out out/s.npz"),
    Bad("unknown-published-file", "checkpoint", "['some.weight']", "is none of the models known here", lambda w: zoo.load_published("unknown.pt"), "sample.py --tokenizer unknown.pt --generator gen --out out/s.npz"),
    Bad("unknown-published-name", "name", "'GPT-XS'", "must be one of", lambda w: zoo.build("GPT-XS")),
    # recipes and runs
    Bad("unknown-recipe", "recipe", "'vq-61'", "did you mean vq-16?", lambda w: recipe("vq-61"), "train_tokenizer.py vq-61 --data pictures --out out"),
    Bad("recipe-of-the-other-family", "recipe", "'gpt-b'", "must be one of", None, "train_tokenizer.py gpt-b --data pictures --out out"),
    Bad("unknown-recipe-field", "recipe field", "'stepz'", "did you mean steps?", lambda w: from_json({"kind": "tokenizer", "stepz": 10}), "train_tokenizer.py recipe.json --out out"),
    Bad("missing-recipe-file", "path", "nowhere.json", "no such file", None, "train_tokenizer.py nowhere.json --out out"),
    Bad("no-data", "data", "''", "must say where the pictures are", lambda w: train(TrainOptions(recipe("vq-16", loss=VQGANLossConfig(lpips=0)), Path("out"))), "train_tokenizer.py vq-16 --loss.lpips 0 --out out"),
    Bad("no-training-steps", "steps", "0", "must be an integer >= 1", lambda w: recipe("shapes-tokenizer", steps=0), TOKENIZER + "--steps 0"),
    Bad("unknown-mask-rate", "mask_rate", "'arcos'", "did you mean arccos?", lambda w: MaskedConfig(mask_rate="arcos"), MASKED + "--model.mask-rate arcos"),
    Bad("patches-of-three", "patch", "3", "must be one of 1, 2", lambda w: MaskedConfig(patch=3), MASKED + "--model.patch 3"),
    Bad("more-heads-than-channels", "heads", "999", "must be an integer >= 1 and <= 1", lambda w: replace(masked_presets["tiny-shapes"], heads=999), MASKED + "--model.heads 999"),
    Bad("odd-registers", "registers", "3", "must be even: half of them belong to each group", lambda w: PartitionConfig(registers=3), PARTITION + "--model.registers 3"),
    Bad("unknown-decoder", "mode", "'crossed'", "must be cross-only, interleave", lambda w: PartitionConfig(mode="crossed"), PARTITION + "--model.mode crossed"),
    Bad("decoder-of-broken-periods", "decoder", "4", "must be a multiple of 3 for mode=interleave-2-cross", lambda w: PartitionConfig(decoder=4, mode="interleave-2-cross"),
        PARTITION + "--model.mode interleave-2-cross --model.decoder 4"),
    Bad("heads-of-a-partition", "dim", "90", "must be divisible by 2 * heads=8", lambda w: replace(partition_presets["tiny"], dim=90, heads=4), PARTITION + "--model.dim 90 --model.heads 4"),
    Bad("negative-rate", "optim.lr", "-0.1", "must be a finite number >= 0", lambda w: Optim(lr=-0.1), TOKENIZER + "--optim.lr -0.1"),
    Bad("crop-not-divisible", "augment.size", "36", "must be a multiple of 8, the tokenizer's factor", lambda w: recipe("shapes-tokenizer", augment=Augment("center", 36)), TOKENIZER + "--augment.size 36"),
    Bad("batch-of-parts", "batch", "8", "must be a multiple of processes x accumulate = 1 x 3", lambda w: Share(0, 1, 3).check(8), GENERATOR + "codes --accumulate 3"),
    Bad("revival-of-parts", "accumulate", "2", "must be 1 while dead codes are revived", None, TOKENIZER + "--accumulate 2"),
    Bad("half-precision-on-a-cpu", "precision", "'fp16'", "needs an accelerator; use bf16 or fp32 here",
        lambda w: train(TrainOptions(recipe("shapes-generator", data="codes", precision="fp16"), Path("out"))), GENERATOR + "codes --precision fp16"),
    Bad("no-vgg", "weights", "weights/vgg16-397923af.pth", "no VGG-16 weights: put vgg16.safetensors or", lambda w: vqgan_loss(VQGANLossConfig(lpips=1), weights="weights", size=32), TOKENIZER + "--loss.lpips 1 --weights weights"),
    Bad("unknown-tracker", "tracker", "'papyrus'", "must be one of jsonl, none, tensorboard, wandb", lambda w: Run(tracker="papyrus"), TOKENIZER + "--tracker papyrus"),
    Bad("tracker-not-installed", "tracker", "'tensorboard'", "is not installed: pip install tensorboard", lambda w: train(TrainOptions(recipe("shapes-tokenizer"), Path("out"), tracker="tensorboard")),
        TOKENIZER + "--tracker tensorboard"),
    Bad("what-on-save-error", "on_save_error", "'shrug'", "must be one of stop, warn", lambda w: Run(on_save_error="shrug"), TOKENIZER + "--on-save-error shrug"),
    Bad("fresh-and-resume", "fresh", "True", "can't be combined with --resume", lambda w: TrainOptions(fresh=True, resume=True).run(), TOKENIZER + "--fresh --resume"),
    Bad("nothing-to-resume", "folder", "out", "has no checkpoint to resume from", lambda w: train(TrainOptions(recipe("shapes-tokenizer"), Path("out"), resume=True)), TOKENIZER + "--resume"),
    Bad("another-recipe", "batch", "16", "was started with 8", None,
        f"train_tokenizer.py run/run.json --out run --batch 16"),
    Bad("other-data", "data", "'shapes://?n=24'", "was started with 'shapes://?n=16&size=32'", None, "train_tokenizer.py run/run.json --out run --data shapes://?n=24"),
    Bad("folder-in-use", "folder", "busy", "is in use by", lambda w: hold("busy").__enter__(), TOKENIZER.replace("--out out", "--out busy")),
    Bad("run-in-a-file", "folder", "note.txt", "must be a folder, or a place where one can be made", lambda w: hold("note.txt").__enter__(), TOKENIZER.replace("--out out", "--out note.txt")),
    Bad("unknown-settings-key", "settings.ini [run] key", "'sead'", "did you mean seed?", lambda w: get_settings("odd"), "odd: train_tokenizer.py shapes-tokenizer --dry-run"),
    # numbers
    Bad("reference-of-statistics", "images", None, "must be at least two pictures", lambda w: extract_reference("statistics.npz", "out.npz", load_extractor("shapes-judge")), REFERENCE.format("statistics.npz") + " --out out.npz"),
    Bad("reference-in-another-file", "out", "out.csv", "must end in .npz, .safetensors or .pt", lambda w: extract_reference("good.npz", "out.csv", load_extractor("shapes-judge")), REFERENCE.format("good.npz") + " --out out.csv"),
    Bad("reference-over-a-file", "out", "good.npz", "exists already", lambda w: extract_reference("good.npz", "good.npz", load_extractor("shapes-judge")), REFERENCE.format("good.npz") + " --out good.npz"),
    Bad("features-beside-a-torch-file", "features", "5", "can be kept in an .npz only", lambda w: extract_reference("good.npz", "out.pt", load_extractor("shapes-judge"), keep=5), REFERENCE.format("good.npz") + " --out out.pt --features 5"),
    Bad("reference-of-another-extractor", "reference", "'inception-v3-clean@0'", "was made by another extractor", lambda w: measure("good.npz", "foreign.npz", load_extractor("shapes-judge"), ("fid",)),
        "evaluate.py foreign.npz good.npz --extractor shapes-judge --metrics fid --json out.json"),
    Bad("precision-against-statistics", "reference", None, "must hold pictures for pr, or their features", lambda w: measure("good.npz", "statistics.npz", load_extractor("shapes-judge"), ("pr",)),
        "evaluate.py statistics.npz good.npz --extractor shapes-judge --metrics pr --json out.json"),
    Bad("unknown-crop", "crop", "'centre'", "must be one of adm, bilinear, bicubic", lambda w: open_samples("pictures", 32, "centre")),
    Bad("missing-samples", "samples", "'nowhere.npz'", "no such file or folder", lambda w: open_samples("nowhere.npz"), EVALUATE.format("nowhere.npz")),
    Bad("npz-without-pictures", "npz", "nameless.npz", "must hold arr_0 (uint8 pictures) or mu and sigma; it holds pixels", lambda w: open_samples("nameless.npz"), EVALUATE.format("nameless.npz")),
    Bad("npz-of-objects", "npz", "'objects.npz[arr_0]'", "holds Python objects, which could run code", lambda w: open_samples("objects.npz"), EVALUATE.format("objects.npz")),
    Bad("npz-of-floats", "npz", "'floats.npz[arr_0]'", "must be uint8 (n, h, w, 3), not float32 (8, 32, 32, 3)", lambda w: open_samples("floats.npz"), EVALUATE.format("floats.npz")),
    Bad("npz-cut-off", "npz", "short.npz", "is not an npz of plain arrays", lambda w: open_samples("short.npz"), EVALUATE.format("short.npz")),
    Bad("fewer-labels", "labels", "5", "must be one for each of the 8 pictures", lambda w: open_samples("fewer.npz"), EVALUATE.format("fewer.npz")),
    Bad("labels-the-judge-does-not-know", "labels", "[90, 99]", "must lie in [0, 10), the classes of shapes-judge", lambda w: measure("strange.npz", "good.npz", load_extractor("shapes-judge"), ("accuracy",)),
        EVALUATE.format("strange.npz") + " --metrics accuracy"),
    Bad("too-few-for-fid", "number of samples", "1", "must be an integer >= 2", lambda w: measure("one.npz", "good.npz", load_extractor("shapes-judge"), ("fid",)), EVALUATE.format("one.npz") + " --metrics fid"),
    Bad("too-few-for-kid", "kid_size", "9", "must be at most the number of pictures, 8", lambda w: measure("good.npz", "good.npz", load_extractor("shapes-judge"), ("kid",), kid_size=9),
        EVALUATE.format("good.npz") + " --metrics kid --kid-size 9"),
    Bad("unknown-metric", "metrics", "'fad'", "must be one of fid, is, kid, pr, dc, accuracy", lambda w: measure("good.npz", "good.npz", load_extractor("shapes-judge"), ("fad",))),
    Bad("unknown-extractor", "extractor", "'resnet'", "must be one of inception, inception-clean, inception-halton, shapes-judge", lambda w: load_extractor("resnet")),
    Bad("missing-extractor-weights", "weights", "nowhere.pth", "no such file", lambda w: load_extractor("inception", "nowhere.pth"), "evaluate.py good.npz good.npz --weights nowhere.pth --json out.json"),
    Bad("unusable-device", "device", "'nonsense'", "cannot be used here", lambda w: load_extractor("shapes-judge", device="nonsense"), EVALUATE.format("good.npz") + " --device nonsense"),
    Bad("missing-record", "path", "nowhere.json", "no such file", None, "rerun.py nowhere.json"),
    Bad("no-record", "run", "recipe.json", "must be a run.json written by vgnb", None, "rerun.py recipe.json"),
]
