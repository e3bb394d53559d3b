"""Does image understanding make a better tokenizer? Five tokenizers on the same pictures with the same budget.

    python scripts/studies/image_understanding.py                     # train, measure, print
    python scripts/studies/image_understanding.py --record            # and write nbs/studies/image_understanding*
    python scripts/studies/image_understanding.py --seeds 0 --record  # one seed; the others' rows in the file stay
    python scripts/studies/image_understanding.py --share 0.01 --out runs/trial     # a hundredth of the steps

VQGAN, CVQ-VAE and FSQ learn pixels. VQ-KD and Cluster learn what a teacher of shapes sees, and a decoder learns to
paint their codes, both together in the time of the others. One proposal network learns the codes of each. Measured on
2,000 held-out shapes and 500 samples: reconstruction, codebook, linear probes, generation. Killed at any point, the
same command goes on.
"""
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from scripts.studies.pieces import kept

FILE = ROOT / "nbs" / "studies" / "image_understanding.json"
TOKENIZERS = ("VQGAN", "CVQ-VAE", "FSQ", "VQ-KD", "Cluster")
OF_FEATURES = ("VQ-KD", "Cluster")
SCALES = (1.0, 2.0)     # of guidance
BATCH = 32              # pictures a step of a tokenizer; a network has half as many


@dataclass
class Budget:
    "How long the parts are trained: tokenizers of features share the time of one of pixels."
    pictures: int = 16_000
    "to train on"
    codes: int = 128
    "of each tokenizer"
    pixels: int = 650
    "steps of VQGAN, CVQ-VAE, FSQ"
    vqkd: int = 560
    "steps of VQ-KD's codes"
    vqkd_painting: int = 270
    "steps of the decoder that paints them"
    cluster: int = 30
    "steps of Cluster's table, after k-means"
    cluster_painting: int = 800
    "steps of the decoder that paints its codes"
    network: int = 900
    "steps of a proposal network"

    def part(self, share: float) -> "Budget":
        "A share of all steps."
        steps = {k: max(2, round(share * v)) for k, v in asdict(self).items() if k not in ("pictures", "codes")}
        return replace(self, **steps)


@dataclass
class Options:
    "What to train, and where."
    seeds: tuple[int, ...] = (0, 1, 2)
    "of the trainings"
    tokenizers: tuple[str, ...] = TOKENIZERS
    "which of them; a record needs all"
    teacher: str = "shapes"
    "whose features are learnt: the shipped one, or the folder of a saved teacher"
    out: Path = Path("runs/image-understanding")
    "where the runs go"
    share: float = 1.0
    "of all steps, for a trial"
    record: bool = False
    "write nbs/studies/image_understanding.json and its pictures"

    @property
    def budget(self) -> Budget: return Budget().part(self.share)

    def place(self, name: str, seed: int) -> Path: return self.out / f"seed-{seed}" / name.lower()


# ---- what is trained

def of_shapes(budget: Budget, steps: int, seed: int, **changes):
    "What all tokenizers share: pictures, batch, optimizer, the loss on pixels."
    from vgnb.training.recipes import Rate, recipe
    shapes = recipe("shapes-8x8-tokenizer")
    loss = replace(shapes.loss, quantizer=1.0)
    rate = Rate("cosine", warmup=min(100, steps // 2))
    own = dict(name="", data=address(budget), batch=BATCH, steps=steps, seed=seed, rate=rate, loss=loss, free_steps=0)
    return replace(shapes, precision="fp32", **(own | changes))


def address(budget: Budget) -> str: return f"shapes://?n={budget.pictures}&size=32&seed=0"


def pixel_recipe(o: Options, name: str, seed: int):
    "VQGAN, CVQ-VAE or FSQ: one coder, three quantizers; tables begin with k-means."
    from vgnb.kinds import changed
    from vgnb.tokenizers.codebook_updates import Anchors
    from vgnb.tokenizers.fsq import FSQConfig
    from vgnb.tokenizers.quantizers import VectorConfig
    budget = o.budget
    table = VectorConfig(budget.codes, 8, l2=False, usage=0)
    lattice = FSQConfig((8, 4, 4), usage=0)
    quantizer = {"VQGAN": table, "CVQ-VAE": replace(table, updates=(Anchors(),)), "FSQ": lattice}[name]
    found = of_shapes(budget, budget.pixels, seed)
    coder = changed(found.model, width=32, groups=8, quantizer=quantizer)
    return replace(found, model=coder, free_steps=0 if name == "FSQ" else budget.pixels // 6)


def feature_recipe(o: Options, name: str, seed: int):
    "VQ-KD or Cluster: codes of what the teacher sees."
    from vgnb.tokenizers.feature_objective import FeatureLossConfig, find_teacher
    from vgnb.tokenizers.feature_tokenizer import CENTRES, SPHERE, ClusterConfig, VQKDConfig
    from vgnb.tokenizers.vit import ViTConfig
    budget, teacher = o.budget, find_teacher(o.teacher, "").config
    if name == "Cluster":
        centres = replace(CENTRES, codebook=budget.codes, dim=teacher.features)
        loss = FeatureLossConfig(teacher=o.teacher, features=0.0)
        return of_shapes(budget, budget.cluster, seed, model=ClusterConfig(centres, teacher), loss=loss, kmeans=True)

    sphere = replace(SPHERE, codebook=budget.codes, dim=16)
    encoder = ViTConfig(32, 4, dim=64, depth=3, heads=2, hidden=128, key_bias=False, resize="offset")
    decoder = replace(encoder, size=8, patch=1, channels=sphere.dim, depth=1)
    model = VQKDConfig(sphere, encoder, decoder, teacher.features)
    loss = FeatureLossConfig(teacher=o.teacher)
    return of_shapes(budget, budget.vqkd, seed, model=model, loss=loss, free_steps=budget.vqkd // 6)


def painting_recipe(o: Options, name: str, seed: int):
    "A decoder for frozen codes: that of the pixel tokenizers, towards the same loss."
    from vgnb.saved import load_model
    from vgnb.tokenizers.pixel_decoder import PixelDecoderConfig, SmallDecoderConfig
    budget, codes = o.budget, o.place(name, seed) / "features"
    coder = pixel_recipe(o, "VQGAN", seed).model
    decoder = SmallDecoderConfig(coder.width, coder.patch, coder.groups)
    model = PixelDecoderConfig(load_model(codes / "model").config, decoder)
    steps = budget.vqkd_painting if name == "VQ-KD" else budget.cluster_painting
    return of_shapes(budget, steps, seed, model=model, start=str(codes))


def network_recipe(o: Options, name: str, seed: int, vocab: int):
    "A small Llama of classes and codes."
    from vgnb.generators.proposal import ProposalConfig
    from vgnb.training.recipes import recipe
    shapes, steps = recipe("shapes-generator"), o.budget.network
    model = ProposalConfig(layers=3, dim=96, heads=3, vocab=vocab, classes=10, grid=(8, 8), class_dropout=0.1,
                           class_everywhere=True)
    rate = replace(shapes.rate, warmup=min(100, steps // 2))
    own = dict(model=model, data=str(o.place(name, seed) / "codes"), steps=steps, seed=seed, rate=rate)
    return replace(shapes, name="", batch=BATCH // 2, precision="fp32", **own)


# ---- how it is carried out

class Watch:
    "Processor seconds of a piece of work, over all its sessions."
    def __init__(self, path: Path):
        self.path, self.start = path, time.process_time()
        self.before = float(path.read_text()) if path.exists() else 0.0

    def note(self, *ignored) -> float:
        "Write down the seconds so far."
        spent = self.before + time.process_time() - self.start
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(f"{spent:.2f}\n")
        return round(spent, 1)


def train(recipe, out: Path) -> dict:
    "Carry out a recipe, from its last checkpoint on. Errors: `KeyboardInterrupt` after a signal."
    from vgnb.training.commands import TrainOptions, train as carry_out
    from vgnb.training.run_folder import Run
    watch = Watch(out.with_suffix(".seconds"))
    run = Run(log_every=min(50, recipe.steps), save_every=200, progress=False)
    done = carry_out(TrainOptions(recipe, out, run=run), on_log=watch.note)
    if not done.finished: raise KeyboardInterrupt(done.reason)
    return {"steps": recipe.steps, "cpu_seconds": watch.note()}


def extract(o: Options, model, out: Path) -> dict:
    "The codes that the proposal network learns."
    from vgnb.data.images import open_images
    from vgnb.data.transforms import Augment
    from vgnb.training.extract import extract_codes
    watch = Watch(out.with_suffix(".seconds"))
    how = dict(batch=250, shard_size=5000, progress=False)
    extract_codes(model, open_images(address(o.budget)), out, Augment("center", 32), **how)
    return {"cpu_seconds": watch.note()}


def trained(o: Options, name: str, seed: int) -> tuple[torch.nn.Module, torch.nn.Module, dict]:
    "A tokenizer that makes pixels, the network on its codes, and what each part took."
    from vgnb.saved import load_model
    place, cost = o.place(name, seed), {}
    recipes = {"pixels": pixel_recipe}
    if name in OF_FEATURES: recipes = {"features": feature_recipe, "painting": painting_recipe}
    for part, recipe in recipes.items():
        cost[part] = kept(place / f"{part}.json", lambda r=recipe, p=part: train(r(o, name, seed), place / p))
    model = load_model(place / part / "model")
    cost["codes"] = kept(place / "codes.json", lambda: extract(o, model, place / "codes"))
    network = network_recipe(o, name, seed, model.vocab[0])
    cost["network"] = kept(place / "network.json", lambda: train(network, place / "network"))
    return model, load_model(place / "network" / "model"), cost


# ---- what is measured

def rebuilt(bench, model, codes: torch.Tensor, batch: int = 250) -> dict:
    "The held-out pictures against what their codes decode to."
    from vgnb.evaluation.measure import measure
    from vgnb.evaluation.reconstruction import ReconstructionMeter
    from vgnb.evaluation.samples import Samples
    from vgnb.tokenizers.pictures import pictures
    images, meter = pictures(model, codes, rows=batch), ReconstructionMeter()
    for pair in zip(torch.from_numpy(images).split(batch), torch.from_numpy(bench.real.images).split(batch)):
        meter.update(*pair)
    made, found = Samples(images, bench.real.labels, id="reconstructions"), meter.compute()
    values = measure(made, bench.real, bench.judge, metrics=("fid", "accuracy"), uint8_rule="round", seed=0,
                     base=bench.base).values
    return {"psnr": round(found["psnr"], 3),
            "ssim": round(found["ssim"], 4),
            "rfid": round(values["fid"], 4),
            "rebuilt_accuracy": values["accuracy"]}


def codebook(model, codes: torch.Tensor) -> dict:
    "How many codes the held-out pictures use, and how evenly."
    from vgnb.evaluation.reconstruction import CodebookMeter
    meter = CodebookMeter(model.vocab[0]).update(codes)
    return {"vocab": meter.vocab, "used": meter.usage, "perplexity": round(meter.perplexity, 2)}


def read_off(known: tuple, held_out: tuple) -> float:
    "Share of the held-out (rows (n, d), labels) whose class a linear map reads off, learnt from the known ones."
    from vgnb.evaluation.code_probe import ProbeRecipe, train_probe
    return train_probe(*known, *held_out, 10, ProbeRecipe(steps=600, batch=256)).accuracy


def for_probes(bench, count: int = 4000) -> list[tuple[torch.Tensor, torch.Tensor]]:
    "(pictures (n, h, w, 3), labels): to learn from, and those held out."
    from vgnb.data.shapes import Shapes
    real = bench.real
    return [tuple(torch.from_numpy(np.asarray(x)) for x in pair)
            for pair in (Shapes(count, 32, seed=2).batch(np.arange(count)), (real.images, real.labels))]


def probes(bench, model, batch: int = 250) -> dict:
    "What a linear map reads off the mean of a picture's rows, and off how often each code occurs in it."
    from vgnb.tokenizers.pictures import codes_of
    rows, counts = [], []
    for images, labels in for_probes(bench):
        codes = codes_of(model, images, batch)
        found = torch.cat([model.lookup(model.untoken(some)).mean((2, 3)) for some in codes.split(batch)])
        rows.append((found.detach(), labels))
        one_hot = torch.nn.functional.one_hot(codes[..., 0], model.vocab[0])
        counts.append((one_hot.sum(1).float(), labels))
    return {"probe_rows": read_off(*rows), "probe_counts": read_off(*counts)}


def teacher_facts(o: Options, bench, batch: int = 250) -> dict:
    "The teacher, and what a linear map reads off the mean of its features."
    from vgnb.data.transforms import to_tensor
    from vgnb.tokenizers.feature_objective import find_teacher
    teacher = find_teacher(o.teacher, "")
    def rows(images): return torch.cat([teacher(to_tensor(x.numpy())).mean((2, 3)) for x in images.split(batch)])
    found = read_off(*((rows(images), labels) for images, labels in for_probes(bench)))
    return {"name": o.teacher, "parameters": sum(p.numel() for p in teacher.parameters()), "probe_rows": found}


@torch.no_grad()
def surprise(generator, codes: torch.Tensor, labels) -> float:
    "Nats a code of held-out pictures whose class is told."
    from vgnb.generators.generator import Cond
    total, labels = 0.0, torch.from_numpy(np.asarray(labels))
    for some, of in zip(codes.split(250), labels.split(250)):
        logits = generator.logits(some, Cond(labels=of))[0]                          # (b, n, V)
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), some.flatten(), reduction="sum"))
    return round(total / codes.numel(), 4)


def pipeline(bench, model, generator):
    "Both as one, row by row."
    from vgnb.pipeline import Pipeline
    from vgnb.sampling.settings import Sampling
    return Pipeline(model, generator, Sampling(order="raster", schedule="one-by-one", rows=50), bench.judge.names)


def generated(bench, model, generator, codes: torch.Tensor) -> dict:
    "How well the network knows the codes, and its samples without guidance and with it."
    found, pipe = {"nats": surprise(generator, codes, bench.real.labels)}, pipeline(bench, model, generator)
    for scale in SCALES:
        row = bench.point(pipe, guidance=scale)
        found |= {f"accuracy_{scale:g}": row["accuracy"], f"gfid_{scale:g}": row["fid"]}
    return found


def studied(o: Options, bench, name: str, seed: int) -> dict:
    "The row of a tokenizer."
    from vgnb.tokenizers.pictures import codes_of
    print(f"seed {seed}, {name}", flush=True)
    model, generator, cost = trained(o, name, seed)
    codes, place = codes_of(model, bench.real.images, 250), o.place(name, seed)
    looks = (("reconstruction", lambda: rebuilt(bench, model, codes) | codebook(model, codes)),
             ("probes", lambda: probes(bench, model)),
             ("samples", lambda: generated(bench, model, generator, codes)))
    row = {"seed": seed, "tokenizer": name}
    for what, look in looks: row |= kept(place / f"{what}.json", look)
    return row | {"cpu_seconds": {part: of["cpu_seconds"] for part, of in cost.items()}}


# ---- what is committed

def sheet(o: Options, bench, seed: int) -> np.ndarray:
    "A held-out picture of each class, what each tokenizer makes of it, then a sample of each network: (h, w, 3)."
    from vgnb.tokenizers.pictures import codes_of, pictures
    labels = np.asarray(bench.real.labels)
    chosen = bench.real.images[[int(np.flatnonzero(labels == k)[0]) for k in range(10)]]
    made, drawn = [chosen], []
    for name in TOKENIZERS:
        model, generator, _ = trained(o, name, seed)
        made.append(pictures(model, codes_of(model, chosen)))
        drawn.append(pipeline(bench, model, generator).sample(list(range(10)), seed=0, guidance=SCALES[-1]))
    return np.concatenate([np.concatenate(list(row), 1) for row in (*made, *drawn)])


def record(o: Options, rows: list[dict], bench):
    "Put the new seeds into the committed file. Errors: rows of other settings are in it."
    from PIL import Image

    from vgnb.core import Mismatch, check
    settings = {"torch": torch.__version__, "extractor": bench.judge.id, "count": len(bench.real.images),
                "samples": bench.count, "teacher": teacher_facts(o, bench), "budget": asdict(o.budget)}
    study = json.loads(FILE.read_text()) if FILE.exists() else settings | {"rows": []}
    others = [row for row in study["rows"] if row["seed"] not in o.seeds]
    there = {name: study[name] for name in settings}
    message = f"holds other seeds measured with {there}; measure all seeds anew"
    check(not others or there == settings, "record", str(FILE), message, Mismatch)

    every = sorted(others + rows, key=lambda row: (row["seed"], TOKENIZERS.index(row["tokenizer"])))
    seeds = " ".join(dict.fromkeys(str(row["seed"]) for row in every))
    command = f"python scripts/studies/image_understanding.py --seeds {seeds} --record"
    device = f"{platform.processor() or platform.machine()}, one thread"
    FILE.write_text(json.dumps({"command": command, "device": device} | settings | {"rows": every}, indent=1) + "\n")
    picture = Image.fromarray(sheet(o, bench, o.seeds[0])).quantize(256, dither=Image.Dither.NONE)
    picture.save(FILE.with_suffix(".png"), optimize=True)


def main(o: Options) -> int:
    from scripts.studies.any_order import Bench
    from vgnb.core import check, check_choice
    for name in o.tokenizers: check_choice("tokenizers", name, TOKENIZERS)
    whole = set(o.tokenizers) == set(TOKENIZERS) and o.share == 1
    check(whole or not o.record, "record", True, "must be left out for some of the tokenizers, or a share of the steps")
    torch.set_num_threads(1)
    bench, rows = Bench(500), []
    for seed in o.seeds:
        for name in o.tokenizers:
            rows.append(studied(o, bench, name, seed))
            print("  ", rows[-1], flush=True)
    if o.record: record(o, rows, bench)
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda words: main(typed_cli(Options, args=words, description=__doc__))))
