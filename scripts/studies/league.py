"""A league of tokenizers and generators: each pair is trained alike, for a minute or two of one CPU core.

    python scripts/studies/league.py --jobs 2                  # all of it on two cores: prepare, train, measure
    python scripts/studies/league.py --parts grid              # a piece: seed 0 of every pair
    python scripts/studies/league.py --generators PGM --tokenizers FSQ VQGAN --parts grid
    python scripts/studies/league.py --cifar data/cifar10      # with a row on photographs: train.parquet, test.parquet
    python scripts/studies/league.py --parts --record          # nothing more: write nbs/studies/league*

Six tokenizers (four as they are shipped, FSQ and Cluster as the study of image understanding trains them) and six
families of generators, all of one size, with the same pictures, batch and steps. What doesn't go together is kept with
the reason that the parts give. Each finished piece is a small file in OUT and is not made again; killed at any point,
the same command goes on, and several such commands at a time share the work.
"""
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
FILE = ROOT / "nbs" / "studies" / "league.json"
Part = Literal["grid", "seeds", "steps", "cifar"]
PARTS = get_args(Part)
SHIPPED = {"VQGAN": "tiny-randar", "VQ-KD": "tiny-vqkd", "D-AR": "tiny-dar", "IAR2": "tiny-iar2"}
TOKENIZERS = ("VQGAN", "FSQ", "VQ-KD", "Cluster", "D-AR", "IAR2")
PHOTOGRAPHS = "VQGAN of photographs"           # the tokenizer of the row on CIFAR-10
GENERATORS = {"LlamaGen": "dar", "RandAR": "randar", "MaskGIT": "maskgit", "PGM": "pgm", "RAR": "rar", "IAR2": "iar2"}
IN_GROUPS = ("RandAR", "MaskGIT", "PGM")       # families that draw several cells in a step
ROW, COLUMN = "VQGAN", "LlamaGen"              # where there are three seeds
SIZE = dict(layers=3, dim=64, heads=2, class_everywhere=True)
OWN = {                                        # what makes a shipped configuration one of that size
    "LlamaGen": {},
    "RandAR": {},
    "MaskGIT": dict(ffn=192),
    "PGM": dict(encoder=2, decoder=1),
    "RAR": dict(hidden=192, class_everywhere=False),
    "IAR2": dict(head_layers=1)}


@dataclass
class Options:
    "What to train, and where."
    parts: tuple[Part, ...] = PARTS
    "seed 0 of every pair; more seeds along a row and a column; quality against steps; photographs"
    tokenizers: tuple[str, ...] = TOKENIZERS
    "only these rows"
    generators: tuple[str, ...] = tuple(GENERATORS)
    "only these columns"
    seeds: tuple[int, ...] = (0, 1, 2)
    "along the row and the column; the first is that of all pairs"
    cifar: Path | None = None
    "folder with train.parquet and test.parquet of CIFAR-10; without it there is no row on photographs"
    out: Path = Path("runs/league")
    "where the pieces go"
    jobs: int = 1
    "processes, one thread each"
    steps: int = 1000
    "of a generator's training"
    batch: int = 16
    "pictures a step"
    count: int = 500
    "samples of a measurement"
    pictures: int = 16_000
    "shapes to train on"
    held_out: int = 2000
    "pictures to measure against"
    groups: int = 16
    "steps in which families that draw several cells at once fill 64"
    few: tuple[int, ...] = (32, 16, 8, 4, 2)
    "such steps in quality against steps"
    guidance: float = 2.0
    "scale, for all"
    share: float = 1.0
    "of the steps in which tokenizers are trained that are not shipped"
    record: bool = False
    "write nbs/studies/league.json and its picture"

    def settings(self) -> dict:
        "What decides a piece, beside its name."
        names = ("steps", "batch", "count", "pictures", "held_out", "groups", "guidance", "share")
        return {name: getattr(self, name) for name in names} | {"few": list(self.few)}


class Piece(NamedTuple):
    "Work that leaves a file, and the files it needs."
    file: Path
    work: Callable[[], dict]
    needs: tuple[Path, ...] = ()


# ---- pictures and who looks at them

class Field:
    "Pictures to train on, others to measure against, and the judge, who knows the classes of shapes."
    def __init__(self, o: Options, data: str):
        from vgnb.evaluation.features import load_extractor
        from vgnb.evaluation.measure import look_at
        from vgnb.evaluation.samples import Samples, open_samples
        self.judge = load_extractor("shapes-judge")
        self.metrics = ("fid", "accuracy") if data == "shapes" else ("fid",)
        self.train = address(o, data)
        held_out = "shapes://?n=2000&size=32&seed=1" if data == "shapes" else f"datasets://{o.cifar}?split=test"
        found, n = open_samples(held_out), o.held_out
        self.real = Samples(found.images[:n], found.labels[:n], id=f"{n} held-out pictures")
        self.base = look_at(self.judge, self.real)

    def judged(self, images, labels) -> dict:
        "FID, and of shapes the accuracy, of pictures."
        from vgnb.evaluation.measure import measure
        from vgnb.evaluation.samples import Samples
        made = Samples(images, np.asarray(labels), id=f"{len(images)} pictures")
        values = measure(made, self.real, self.judge, metrics=self.metrics, uint8_rule="round", seed=0,
                         base=self.base).values
        return {name: round(values[name], 4) for name in self.metrics}


class Bench:
    "What all pieces share: the options, and each field, looked at once."
    def __init__(self, o: Options): self.o, self.fields = o, {}

    def field(self, data: str) -> Field:
        "The pictures of a data set."
        if data not in self.fields: self.fields[data] = Field(self.o, data)
        return self.fields[data]


# ---- where things lie

def word(name: str) -> str: return name.lower().replace(" ", "-")


def tokenizer_file(o: Options, name: str) -> Path: return o.out / "tokenizers" / f"{word(name)}.json"


def cell_file(o: Options, tokenizer: str, generator: str, seed: int) -> Path:
    return o.out / "cells" / f"{word(tokenizer)}-{word(generator)}-{seed}.json"


def steps_file(o: Options, generator: str) -> Path: return o.out / "steps" / f"{word(ROW)}-{word(generator)}.json"


def data_of(tokenizer: str) -> str: return "cifar" if tokenizer == PHOTOGRAPHS else "shapes"


def pieces(bench: Bench) -> list[Piece]:
    "All that is asked for, what is worth most first, and before each what it needs."
    o, found = bench.o, {}
    first, *more = o.seeds
    pairs = [(t, g) for t in o.tokenizers for g in o.generators]
    crossing = [(t, g) for t, g in pairs if t == ROW or g == COLUMN]

    def add(file: Path, work: Callable[[], dict], *needs: Path): found.setdefault(file, Piece(file, work, needs))

    def add_cell(t: str, g: str, seed: int):
        add(tokenizer_file(o, t), lambda: tokenizer(bench, t))
        add(cell_file(o, t, g, seed), lambda: cell(bench, t, g, seed), tokenizer_file(o, t))

    if "grid" in o.parts:
        for pair in pairs: add_cell(*pair, first)
    if "seeds" in o.parts:
        for seed in (first, *more):
            for pair in crossing: add_cell(*pair, seed)
    if "steps" in o.parts:
        for g in (g for g in o.generators if g in IN_GROUPS):
            add_cell(ROW, g, first)
            add(steps_file(o, g), lambda g=g: by_steps(bench, g), cell_file(o, ROW, g, first))
    if "cifar" in o.parts and o.cifar is not None:
        for g in o.generators: add_cell(PHOTOGRAPHS, g, first)
    return list(found.values())


def carry_out(todo: list[Piece]):
    "Each piece once, whoever makes it; those that another process has, or that wait for one, are looked at again."
    from vgnb.core import Mismatch, save_json
    from vgnb.places import locked_file
    while todo:
        left = []
        for piece in todo:
            if piece.file.exists(): continue
            with ExitStack() as stack:
                try: stack.enter_context(locked_file(piece.file))
                except Mismatch: ready = False                          # another process is at it
                else: ready = all(need.exists() for need in piece.needs)
                if not ready: left.append(piece)
                elif not piece.file.exists():
                    print(piece.file.stem, flush=True)
                    save_json(piece.file, piece.work())
        if len(left) == len(todo): time.sleep(2)
        todo = left


# ---- tokenizers

def address(o: Options, data: str) -> str:
    "Where the pictures to train on are."
    shapes = f"shapes://?n={o.pictures}&size=32&seed=0"
    return shapes if data == "shapes" else f"datasets://{o.cifar}?split=train"


def stages(o: Options, name: str) -> dict:
    "{part: recipe of it} of a tokenizer that is not shipped; a part may read the one before it, which is trained then."
    from scripts.studies import image_understanding as study
    from vgnb.kinds import changed
    theirs = study.Options(out=o.out / "tokenizers", share=o.share)
    if name == "Cluster":
        return {"features": lambda: study.feature_recipe(theirs, name, 0),
                "painting": lambda: study.painting_recipe(theirs, name, 0)}
    if name == "FSQ": return {"pixels": lambda: study.pixel_recipe(theirs, name, 0)}
    table = study.pixel_recipe(theirs, "VQGAN", 0)
    finer = changed(table.model, quantizer=dict(codebook=512))               # photographs are more than flat colours
    return {"pixels": lambda: replace(table, model=finer, data=address(o, data_of(name)))}


def open_tokenizer(o: Options, name: str):
    "A shipped tokenizer, or the one that was trained here."
    from vgnb.saved import load_model
    from vgnb.shipped import open_part
    if name in SHIPPED: return open_part(SHIPPED[name], "tokenizer")
    return load_model(place_of(o, name) / list(stages(o, name))[-1] / "model")


def place_of(o: Options, name: str) -> Path:
    "Where a tokenizer's trainings and its codes lie."
    from scripts.studies import image_understanding as study
    return study.Options(out=o.out / "tokenizers").place(word(name), 0)


def tokenizer(bench: Bench, name: str) -> dict:
    "Train it, if it is not shipped; write the codes that generators learn; look at reconstructions: the ceiling."
    from scripts.studies.image_understanding import train
    from scripts.studies.pieces import kept
    from vgnb.data.codes import CodeStore
    from vgnb.tokenizers.pictures import codes_of
    o, place, spent = bench.o, place_of(bench.o, name), {}
    if name not in SHIPPED:
        for part, made in stages(o, name).items():
            spent[part] = kept(place / f"{part}.json", lambda m=made, p=part: train(m(), place / p))["cpu_seconds"]
    model, pictures = open_tokenizer(o, name), bench.field(data_of(name))
    spent["codes"] = kept(place / "codes.json", lambda: extract(model, pictures.train, place / "codes"))["cpu_seconds"]
    start = time.process_time()
    held_out = codes_of(model, pictures.real.images, 250)                                # (m, n, L)
    known = CodeStore(place / "codes", verify=False).batch(np.arange(o.count))[0]
    found = rebuilt(pictures, model, held_out) | {"counts": counts(held_out, model.vocab)}
    facts = {"tokenizer": name, "data": data_of(name), "vocab": list(model.vocab), "cells": held_out.shape[1],
             "dims": model.dims, "parameters": sum(p.numel() for p in model.parameters())}
    spent["measuring"] = round(time.process_time() - start, 1)
    return facts | found | {"distance": distance(known, found["counts"]), "cpu_seconds": spent}


def extract(model, pictures: str, out: Path) -> dict:
    "The codes that generators learn."
    from scripts.studies.image_understanding import Watch
    from vgnb.data.images import open_images
    from vgnb.data.transforms import Augment
    from vgnb.training.extract import extract_codes
    watch = Watch(out.with_suffix(".seconds"))
    extract_codes(model, open_images(pictures), out, Augment("center", 32), batch=250, shard_size=5000, progress=False)
    return {"cpu_seconds": watch.note()}


def rebuilt(pictures: Field, model, codes: torch.Tensor) -> dict:
    "The held-out pictures against what their codes decode to, and how the codebook is used."
    from vgnb.evaluation.reconstruction import CodebookMeter, ReconstructionMeter
    from vgnb.tokenizers.pictures import pictures as decoded
    images, meter = decoded(model, codes, rows=250), ReconstructionMeter()
    for pair in zip(torch.from_numpy(images).split(250), torch.from_numpy(pictures.real.images).split(250)):
        meter.update(*pair)
    used = [CodebookMeter(size).update(level) for size, level in zip(model.vocab, codes.unbind(-1))]
    return {"psnr": round(meter.compute()["psnr"], 3)} | pictures.judged(images, pictures.real.labels) | {
            "used": [round(level.usage, 4) for level in used],
            "perplexity": [round(level.perplexity, 1) for level in used]}


def counts(codes: torch.Tensor, vocab: tuple[int, ...]) -> list[list[int]]:
    "How often each code of each level occurs."
    return [torch.bincount(level.flatten(), minlength=size).tolist() for size, level in zip(vocab, codes.unbind(-1))]


def distance(codes: torch.Tensor, real: list[list[int]]) -> float:
    "Total variation between how often codes (b, n, L) and those of real pictures occur: 0 alike, 1 apart; a mean."
    ours, levels = counts(codes, tuple(map(len, real))), []
    for pair in zip(ours, real):
        p, q = (np.asarray(level) / np.sum(level) for level in pair)
        levels.append(np.abs(p - q).sum() / 2)
    return round(float(np.mean(levels)), 4)


# ---- a cell

def configuration(o: Options, name: str, dims: int):
    "A family's shipped configuration, at the size of all."
    from vgnb.saved import read_config
    from vgnb.shipped import part_folder
    config = read_config(part_folder(f"tiny-{GENERATORS[name]}", "generator"))["config"]
    changes = {f.name: SIZE[f.name] for f in fields(config) if f.name in SIZE} | OWN[name]
    if name == "LlamaGen" and dims == 2: changes |= dict(rope="grid", grid=(8, 8))       # shipped for a line
    if name == "RAR": changes |= dict(anneal_start=o.steps // 2, anneal_end=o.steps * 3 // 4)
    return replace(config, **changes)


def sampling(o: Options, name: str, steps: int | None = None) -> dict:
    "How a family samples: as its shipped model does, with the guidance and the steps of all."
    from scripts.train_tiny import SETTINGS
    settings = SETTINGS[GENERATORS[name]]
    return settings | dict(guidance=o.guidance) | (dict(steps=steps or o.groups) if name in IN_GROUPS else {})


def fitting(o: Options, model, name: str) -> tuple:
    "(a tokenizer and a fresh generator as a pipeline, or None; why they don't go together, or nothing)."
    from vgnb.core import VgnbError
    from vgnb.matrix import pair, why_not
    try: pipe = pair(model, configuration(o, name, model.dims))
    except VgnbError as e: return None, str(e)
    return pipe, why_not(pipe, **sampling(o, name))


def generator_recipe(o: Options, config, codes: Path, seed: int):
    "The training that all cells have."
    from vgnb.recipes.rar_recipes import UNDECAYED
    from vgnb.training.recipes import recipe
    shapes = recipe("shapes-generator")
    is_rar = hasattr(config, "anneal_start")
    optim = replace(shapes.optim, undecayed=UNDECAYED) if is_rar else shapes.optim
    rate = replace(shapes.rate, warmup=min(100, o.steps // 2))
    own = dict(name="", model=config, data=str(codes), steps=o.steps, batch=o.batch, seed=seed)
    return replace(shapes, optim=optim, rate=rate, precision="fp32", **own)


def cell(bench: Bench, tokenizer: str, generator: str, seed: int) -> dict:
    "Train a generator on a tokenizer's codes and look at its samples; or why there is none."
    from scripts.studies.image_understanding import train
    o, model = bench.o, open_tokenizer(bench.o, tokenizer)
    row = {"tokenizer": tokenizer, "generator": generator, "seed": seed, "data": data_of(tokenizer)}
    pipe, reason = fitting(o, model, generator)
    if reason: return row | {"reason": reason}

    run, codes = cell_file(o, tokenizer, generator, seed).with_suffix(""), place_of(o, tokenizer) / "codes"
    recipe = generator_recipe(o, pipe.generator.config, codes, seed)
    parameters, work = sum(p.numel() for p in pipe.generator.parameters()), training_work(pipe.generator, codes)
    spent = {"training": train(recipe, run)["cpu_seconds"]}
    start = time.process_time()
    found = sampled(bench, tokenizer, generator, seed, picture=run.with_suffix(".png"))
    spent["measuring"] = round(time.process_time() - start, 1)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)                   # only the model is needed from now on
    return row | {"parameters": parameters, "train_mflop": work} | found | {"cpu_seconds": spent}


def training_work(model, codes: Path) -> float:
    "10^6 operations of a training step a picture, forward and backward."
    import copy

    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from vgnb.data.codes import CodeStore
    from vgnb.draws import At, Keyed
    from vgnb.generators.generator import Cond
    some, labels = CodeStore(codes, verify=False).batch(np.arange(16))
    model = copy.deepcopy(model).train()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(some, Cond(labels=labels), Keyed(0), At(torch.arange(16))).total.backward()
    return round(counter.get_total_flops() / 16 / 1e6, 1)


def sampled(bench: Bench, tokenizer: str, generator: str, seed: int, steps=None, picture: Path | None = None) -> dict:
    "What a trained generator's samples are worth, and what one costs."
    from PIL import Image

    from vgnb.draws import Keyed
    from vgnb.generators.cost import run_work
    from vgnb.pipeline import Pipeline
    from vgnb.saved import load_model
    o, settings = bench.o, sampling(bench.o, generator, steps)
    run = cell_file(o, tokenizer, generator, seed).with_suffix("")
    pipe = Pipeline(open_tokenizer(o, tokenizer), load_model(run / "model"))
    labels = np.arange(o.count) % pipe.generator.classes
    sizes = pipe.sampler(**settings).groups(pipe.grid, None, torch.arange(1), Keyed(seed))[0]
    start = time.process_time()
    codes = pipe.codes(labels.tolist(), seed=seed, **settings)
    spent = time.process_time() - start
    images = pipe.decode(codes, seed=seed, rows=50)
    if picture: Image.fromarray(np.concatenate(list(images[:10]), 1)).save(picture)
    real = json.loads(tokenizer_file(o, tokenizer).read_text())["counts"]
    found = bench.field(data_of(tokenizer)).judged(images, labels) | {
        "distance": distance(codes, real),
        "steps": len(sizes),
        "mflop": round(2 * run_work(pipe.generator.config, sizes, live=2) / 1e6, 1),
        "ms": round(1000 * spent / o.count, 2)}
    print("  ", "  ".join(f"{k} {v}" for k, v in found.items()), flush=True)
    return found


def by_steps(bench: Bench, generator: str) -> dict:
    "Quality against steps of the row's first cell of a family: {rows: ...}."
    start, seed = time.process_time(), bench.o.seeds[0]
    rows = [sampled(bench, ROW, generator, seed, steps=steps) for steps in bench.o.few]
    return {"tokenizer": ROW, "generator": generator, "seed": seed, "rows": rows,
            "cpu_seconds": {"measuring": round(time.process_time() - start, 1)}}


# ---- what is committed

def finished(o: Options, folder: str) -> list[dict]:
    "The pieces of a kind that are finished."
    return [json.loads(file.read_text()) for file in sorted((o.out / folder).glob("*.json"))]


def record(bench: Bench):
    "Gather what is finished, in the order of the tables."
    from PIL import Image
    o, names = bench.o, (*TOKENIZERS, PHOTOGRAPHS)
    def place(row): return names.index(row["tokenizer"]), list(GENERATORS).index(row["generator"]), row["seed"]
    cells = sorted(finished(o, "cells"), key=place)
    rows = sorted(finished(o, "tokenizers"), key=lambda row: names.index(row["tokenizer"]))
    for row in rows: del row["counts"]
    shown = [c for c in cells if c["seed"] == o.seeds[0] and "reason" not in c]
    for k, c in enumerate(shown): c["sheet"] = k
    sheet = [np.asarray(Image.open(cell_file(o, c["tokenizer"], c["generator"], c["seed"]).with_suffix(".png")))
             for c in shown]
    steps = sorted(finished(o, "steps"), key=place)
    seconds = sum(sum(row["cpu_seconds"].values()) for row in (*rows, *cells, *steps) if "cpu_seconds" in row)
    device = f"{platform.processor() or platform.machine()}, one thread a process"
    study = {"command": command(o), "device": device, "torch": torch.__version__,
             "extractor": bench.field("shapes").judge.id, "seeds": o.seeds, "size": SIZE,
             "tokenizers": TOKENIZERS, "generators": list(GENERATORS), "photographs": PHOTOGRAPHS} | o.settings() | {
             "cpu_minutes": round(seconds / 60, 1), "floor": floor(bench), "rows": rows, "cells": cells,
             "steps_of_row": steps}
    FILE.write_text(json.dumps(study, indent=1) + "\n")
    if sheet:
        picture = Image.fromarray(np.concatenate(sheet)).quantize(256, dither=Image.Dither.NONE)
        picture.save(FILE.with_suffix(".png"), optimize=True)


def floor(bench: Bench) -> dict:
    "What as many real pictures reach as are sampled."
    from vgnb.evaluation.samples import open_samples
    pictures = bench.field("shapes")
    real = open_samples(pictures.train)
    return pictures.judged(np.asarray(real.images[:bench.o.count]), np.asarray(real.labels)[:bench.o.count])


def command(o: Options) -> str:
    "What repeats this measurement."
    words = ["python scripts/studies/league.py", "--jobs 2"]
    if (o.out / "tokenizers" / f"{word(PHOTOGRAPHS)}.json").exists(): words.append("--cifar data/cifar10")
    for name, value in o.settings().items():
        if value == Options().settings()[name]: continue
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else (value,))]
    return " ".join((*words, "--record"))


# ---- how it is carried out

def check_options(o: Options):
    "Refuse other settings than those of the pieces that are there, and names that are none."
    from vgnb.core import Mismatch, Missing, check, check_choice, load_json, save_json
    for name in o.tokenizers: check_choice("tokenizers", name, TOKENIZERS)
    for name in o.generators: check_choice("generators", name, tuple(GENERATORS))
    check(o.jobs >= 1, "jobs", o.jobs, "must be at least 1")
    check(len(o.seeds) > 0, "seeds", o.seeds, "must be at least one")
    there = o.cifar is None or all((o.cifar / f"{split}.parquet").is_file() for split in ("train", "test"))
    check(there, "cifar", o.cifar, "must hold train.parquet and test.parquet of CIFAR-10", Missing)
    file, now = o.out / "settings.json", o.settings() | {"size": SIZE}
    before = load_json(file) if file.exists() else now
    odd = next((name for name in now if before.get(name) != now[name]), "")
    check(not odd, odd, now.get(odd), f"must be {before.get(odd)}, as in {file}; or choose another --out", Mismatch)
    o.out.mkdir(parents=True, exist_ok=True)
    save_json(file, now)


def main(o: Options) -> int:
    check_options(o)
    torch.set_num_threads(1)
    if "cifar" in o.parts and o.cifar is None: print("without --cifar FOLDER there is no row on photographs")
    words = [sys.executable, *(w for w in sys.argv if w != "--record"), "--jobs", "1"]
    helpers = [subprocess.Popen(words) for _ in range(o.jobs - 1)]
    bench = Bench(o)
    try: carry_out(pieces(bench))
    except BaseException:
        for helper in helpers: helper.terminate()
        raise
    finally:
        for helper in helpers: helper.wait()
    if o.record: record(bench)
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda words: main(typed_cli(Options, args=words, description=__doc__))))
