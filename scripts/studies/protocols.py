"""How far a Fréchet distance moves when one thing of its protocol changes, and nothing else.

    python scripts/studies/protocols.py                             # measure the shipped models, print
    python scripts/studies/protocols.py --record                    # and write nbs/studies/protocols.json
    python scripts/studies/protocols.py --cifar data/cifar10 --record    # with a row of photographs
    python scripts/studies/protocols.py --count 100 --seeds 0 1 --out runs/trial      # a small trial

Samples of one generator and reconstructions of two tokenizers, seen by shapes-judge. A row switches one field: how
labels are drawn, which codes may be drawn, how many pictures there are, how floats become bytes, what they are compared
with, how that was cropped. Both sides of a row share all that the switch leaves alone (codes, pictures, noise), so that
their difference is the switch's. Every seed has its own samples, held-out pictures and noise; the error of a shift is
its 95% interval over the seeds. Beside each row stands the published dispute about that field, where there is one.
Minutes on one CPU core; killed at any point, the same command goes on.
"""
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
FILE = ROOT / "nbs" / "studies" / "protocols.json"
ROWS = 50                  # pictures a pass
SIDE = 32                  # of the pictures measured, in pixels
HELD_OUT = 1000            # + the study's seed: that of shapes which no model was trained on
SIDES = {"samples": SIDE, "rebuilt": SIDE, "large": 3 * SIDE, "denoised": 40}     # shapes as they are drawn
LOW = 24                   # a photograph's height, cut from 32: its centre crop's side


@dataclass
class Options:
    "What to measure, and on how much."
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    "of sampling, of the held-out pictures, of the decoder's noise"
    count: int = 1000
    "samples and held-out pictures; the reference of samples has five times as many"
    pipeline: str = "tiny-rar"
    "whose samples are measured, and whose tokenizer's reconstructions; shipped, or a folder"
    denoiser: str = "tiny-dar"
    "whose tokenizer stands for D-AR's; shipped, or a folder"
    cifar: Path | None = None
    "folder with train.parquet and test.parquet of CIFAR-10: one more row, of photographs"
    out: Path = Path("runs/protocols")
    "where finished pieces are kept"
    record: bool = False
    "write nbs/studies/protocols.json"


@dataclass(frozen=True)
class Protocol:
    "What a Fréchet distance rests on, beside the model; the defaults are the base of every row."
    count: int                      # pictures that are measured
    labels: str = "balanced"        # or "random": each label drawn by itself
    top_k: int = 0                  # likeliest codes that may be drawn; 0 = all
    uint8: str = "round"            # how floats became bytes, see `to_uint8`
    reference: str = "held-out"     # of samples; "few" = as many as they are; "own", "training" = of rebuilt pictures
    crop: str = "adm"               # of the reference's pictures; "bilinear" = another filter; "none" = whole pictures
    originals: str = "as drawn"     # bytes of the reference's pictures; "truncate" = from floats, by this rule


class Published(NamedTuple):
    "A public dispute about a field: two numbers of one model."
    model: str
    before: float        # under what stands for our base
    after: float
    what: str            # the switch, in its authors' words
    source: str          # address


class Switch(NamedTuple):
    "One row: what changes, and of what the distance is."
    name: str
    field: str                  # of `Protocol`
    value: object               # what it changes to; None: filled in by `switches`
    kind: str                   # "samples", or what is rebuilt: "rebuilt", "large", "denoised", "photographs"
    words: str                  # from what to what
    published: Published | None = None


ISSUES = "https://github.com/FoundationVision/LlamaGen/issues"
LABELS = Switch("labels", "labels", "random", "samples", "balanced → each drawn by itself")
TRUNCATION = Switch("truncation", "top_k", None, "samples", "all codes → the likeliest sixteenth", Published(
    "LlamaGen-L, 384 px", 3.075, 7.428, "top-k off → 1,000 of 16,384 codes",
    "https://github.com/FoundationVision/LlamaGen/blob/main/tools/draw_figure.py"))
COUNT = Switch("count", "count", None, "samples", "all samples → a quarter of them", Published(
    "NCSN++, CIFAR-10", 3.0, 32.17, "50,000 samples (“below 3”) → 1,000",
    "https://github.com/dexin-peng/score_sde_pytorch/issues/7"))
BYTES = Switch("bytes of the samples", "uint8", "truncate", "samples", "rounded → cut")
FEWER = Switch("reference of samples", "reference", "few", "samples", "five pictures a sample → one", Published(
    "LlamaGen-B, 256 px", 5.46, 6.13, "statistics of the training set → 50,000 pictures of the validation set",
    f"{ISSUES}/48"))
OWN = Switch("reference of reconstructions", "reference", "training", "rebuilt",
             "their own originals → pictures of the training set", Published(
                 "LlamaGen's tokenizer", 2.19, 4.28, "validation set → statistics of the training set", f"{ISSUES}/34"))
FILTER = Switch("filter of the crop", "crop", "bilinear", "large", "box and bicubic → bilinear")
CROP = Switch("crop of the originals", "crop", "none", "denoised", "cropped as the inputs were → whole", Published(
    "D-AR's tokenizer", 1.5, 2.2, "the same centre crops → whole pictures",
    "https://github.com/showlab/D-AR/issues/3"))
CUT = Switch("bytes of the originals", "originals", "truncate", "denoised", "as they are → floats that were cut")
PHOTOGRAPHS = Switch("crop of photographs", "crop", "none", "photographs", CROP.words, CROP.published)
SWITCHES = (LABELS, TRUNCATION, COUNT, BYTES, FEWER, OWN, FILTER, CROP, CUT)


def switches(o: Options, vocab: int) -> tuple[Switch, ...]:
    "The rows, their values filled in."
    known = {TRUNCATION: vocab // 16, COUNT: o.count // 4}
    rows = SWITCHES + ((PHOTOGRAPHS,) if o.cifar else ())
    return tuple(row._replace(value=known.get(row, row.value)) for row in rows)


# ---- pictures

def landscape(source, height: int):
    "Square pictures of a source without their upper and lower rims: wider than high, as most photographs are."
    from vgnb.data.sources import ImageSource

    class Landscape(ImageSource):
        classes = source.classes
        fingerprint = f"{source.fingerprint}-{height}-high"

        def __len__(self): return len(source)

        def __getitem__(self, i):
            item = source[i]
            w, h = item.image.size
            rim = (h - height) // 2
            return item._replace(image=item.image.crop((0, rim, w, rim + height)))

    return Landscape()


def opened(source, **how):
    "Pictures as the evaluator opens them, read once."
    from vgnb.evaluation.samples import Samples, open_samples
    found = open_samples(source, **how)
    return Samples(np.asarray(found.images[:]), found.labels, id=found.id, classes=found.classes)


def cut(pictures):
    "Pictures that went through floats in [-1, 1] and were cut to bytes: what D-AR's script writes as originals."
    from vgnb.data.transforms import to_tensor, to_uint8
    from vgnb.evaluation.samples import Samples
    return Samples(to_uint8(to_tensor(pictures.images), "truncate").numpy(), pictures.labels)


@dataclass
class Bench:
    "The models, the judge, and what was made or looked at before."
    o: Options
    codes: dict = field(default_factory=dict)      # of samples: (seed, top_k) -> {id: (n, L)}
    looks: dict = field(default_factory=dict)      # of references: id -> features

    def __post_init__(self):
        from vgnb.evaluation.features import load_extractor
        from vgnb.pipeline import from_pretrained
        self.pipe, self.denoiser = from_pretrained(self.o.pipeline), from_pretrained(self.o.denoiser)
        self.judge = load_extractor("shapes-judge")
        self.original, self.rebuilt = cache(self.original), cache(self.rebuilt)

    def forget(self):
        "Drop what belongs to one seed."
        for kept in (self.codes, self.looks): kept.clear()
        for kept in (self.original, self.rebuilt): kept.cache_clear()

    # ---- samples

    def drawn(self, p: Protocol, seed: int) -> tuple[torch.Tensor, np.ndarray]:
        "(codes, labels): the k-th sample of a class is the same under any labels and any count."
        from vgnb.jobs import planned_labels
        classes, pool = len(self.pipe.classes), self.codes.setdefault((seed, p.top_k), {})
        labels = planned_labels(p.count, classes, p.labels, seed=seed).numpy()
        before = [int((labels[:i] == label).sum()) for i, label in enumerate(labels)]
        ids = [classes * k + int(label) for k, label in zip(before, labels)]
        missing = [i for i in ids if i not in pool]
        if missing:
            how = {"top_k": p.top_k} if p.top_k else {}
            new = self.pipe.codes([i % classes for i in missing], ids=missing, seed=seed, **how)
            pool.update(zip(missing, new))
        return torch.stack([pool[i] for i in ids]), labels

    def samples(self, p: Protocol, seed: int):
        "Samples of the generator, as bytes."
        from vgnb.evaluation.samples import Samples
        from vgnb.tokenizers.pictures import pictures
        codes, labels = self.drawn(p, seed)
        images = pictures(self.pipe.tokenizer, codes, rows=ROWS, shape=self.pipe.grid.shape, rule=p.uint8)
        return Samples(images, labels)

    # ---- what they are compared with

    def source(self, kind: str, count: int, seed: int):
        "Held-out pictures of a kind, as they are before any crop."
        from vgnb.data.images import open_images
        from vgnb.data.shapes import Shapes
        if kind == "photographs":
            return landscape(some(open_images(f"datasets://{self.o.cifar}?split=test"), count, seed), LOW)
        source = Shapes(count, SIDES[kind], seed=HELD_OUT + seed)
        return landscape(source, SIDE) if kind == "denoised" else source

    def original(self, kind: str, crop: str, reference: str, seed: int):
        "Pictures of the reference, or those that are to be rebuilt."
        from vgnb.data.shapes import Shapes
        count = self.o.count * (5 if reference in ("held-out", "training") else 1)
        if reference == "training": return first(Shapes(), count)
        as_it_is = crop == "none" or kind in ("samples", "rebuilt")
        how = {} if as_it_is else dict(size=LOW if kind == "photographs" else SIDE, crop=crop)
        return opened(self.source(kind, count, seed), **how)

    def compared(self, kind: str, p: Protocol, seed: int):
        "The reference of a protocol."
        found = self.original(kind, p.crop, p.reference, seed)
        return cut(found) if p.originals == "truncate" else found

    # ---- reconstructions

    def rebuilt(self, kind: str, seed: int):
        "The cropped originals, through codes and back."
        from vgnb.draws import Keyed
        from vgnb.evaluation.samples import Samples
        from vgnb.tokenizers.pictures import codes_of, pictures
        tokenizer = (self.denoiser if kind == "denoised" else self.pipe).tokenizer
        originals = self.original(kind, "adm", "own", seed)
        codes = codes_of(tokenizer, originals.images, ROWS)
        return Samples(pictures(tokenizer, codes, rows=ROWS, draws=Keyed(seed)), originals.labels)

    # ---- what is measured

    def look(self, reference):
        "The judge's features of pictures that several rows are compared with."
        from vgnb.evaluation.measure import look_at
        if reference.id not in self.looks: self.looks[reference.id] = look_at(self.judge, reference)
        return self.looks[reference.id]

    def report(self, kind: str, p: Protocol, seed: int):
        "The distance under a protocol, with the record that the evaluator makes of it."
        from vgnb.evaluation.measure import measure
        from vgnb.kinds import to_json
        made = self.samples(p, seed) if kind == "samples" else self.rebuilt(kind, seed)
        reference = self.compared(kind, p, seed)
        how = {"top_k": p.top_k} if p.top_k else {}
        sampler = to_json(self.pipe.settings(**how)) if kind == "samples" else None
        return measure(made, reference, self.judge, metrics=("fid",), uint8_rule=p.uint8, seed=seed, sampler=sampler,
                       base=self.look(reference))


def first(source, count: int):
    "The first pictures of a source that has many."
    from vgnb.evaluation.samples import Samples
    images, labels = source.batch(np.arange(count))
    return Samples(images, labels, id=f"first {count} of {source.fingerprint}", classes=source.classes)


def some(source, count: int, seed: int):
    "Some photographs of a source, others for each seed."
    from vgnb.core import check_int
    from vgnb.data.sources import ImageSource
    check_int("count", count, 10, len(source) // 2)
    chosen = np.random.default_rng(seed).permutation(len(source))[:count]

    class Some(ImageSource):
        classes = source.classes
        fingerprint = f"{source.fingerprint}-{count}-{seed}"

        def __len__(self): return count

        def __getitem__(self, i): return source[int(chosen[i])]

    return Some()


def base_of(row: Switch, o: Options) -> Protocol:
    "The protocol that a row starts from."
    return Protocol(o.count, reference="held-out" if row.kind == "samples" else "own")


def switched(bench: Bench, row: Switch, seed: int) -> dict:
    "One row with one seed: the distance before and after, and which fields of the evaluator's record tell them apart."
    before = base_of(row, bench.o)
    pair = [bench.report(row.kind, p, seed) for p in (before, replace(before, **{row.field: row.value}))]
    told = pair[0].differences(pair[1])
    if pair[0].protocol.sampler != pair[1].protocol.sampler: told.append("sampler")
    found = {"seed": seed, "before": pair[0].values["fid"], "after": pair[1].values["fid"], "told_by": told}
    if row.field in ("reference", "crop") and row.kind != "samples":
        p = replace(before, **{row.field: row.value})
        real = [bench.compared(row.kind, q, seed) for q in (before, p)]
        found["between_references"] = between(bench, *real)
    return found


def between(bench: Bench, a, b) -> float:
    "The distance of two sets of real pictures."
    from vgnb.evaluation.measure import measure
    return measure(a, b, bench.judge, metrics=("fid",), base=bench.look(b)).values["fid"]


def interval(shifts, of: int = 1) -> tuple[float, float]:
    "(mean, half the width of its 95% interval) of independent shifts; Student's t, for so many intervals at once."
    from scipy import stats
    n = len(shifts)
    return float(np.mean(shifts)), float(stats.t.ppf(1 - 0.025 / of, n - 1) * np.std(shifts, ddof=1) / np.sqrt(n))


def summary(row: Switch, points: list[dict], of: int = 1) -> dict:
    "A row of the record, one of so many: the shift, its error, and what both say beside the published sign."
    shifts = [p["after"] - p["before"] for p in points]
    mean, error = interval(shifts)
    bases, _ = interval([p["before"] for p in points])
    grown, spread = interval([np.log(p["after"] / p["before"]) for p in points])
    sign = 0 if abs(mean) <= error else int(np.sign(mean))
    public = row.published
    together = interval(shifts, of)[1]
    if public: public = public._asdict() | {"sign": int(np.sign(public.after - public.before))}
    if not sign: verdict = "within the noise"
    elif not public: verdict = "no published number"
    else: verdict = "as published" if sign == public["sign"] else "against the published one"
    return {"name": row.name, "field": row.field, "kind": row.kind, "words": row.words, "value": row.value,
            "base": bases, "shift": mean, "error": error, "sign": sign, "verdict": verdict, "error_of_all": together,
            "factor": [float(np.exp(x)) for x in (grown, grown - spread, grown + spread)],     # and its 95% interval
            "published": public, "seeds": points}


# ---- what is committed

def settings(o: Options, bench: Bench) -> dict:
    "What the numbers rest on; pieces of others are not taken."
    return {"seeds": list(o.seeds), "count": o.count, "pipeline": o.pipeline, "denoiser": o.denoiser,
            "sampling": str(bench.pipe.sampling), "extractor": bench.judge.id, "torch": torch.__version__,
            "numpy": np.__version__}


def piece(o: Options, bench: Bench, row: Switch, seed: int, facts: dict) -> dict:
    "What a row found with a seed; from its file, where it was done before. Errors: it was, with other settings."
    from scripts.studies.pieces import kept
    path = o.out / f"seed-{seed}" / f"{row.kind}-{row.name.replace(' ', '-')}.json"
    own = {k: v for k, v in facts.items() if k != "seeds"} | {"value": row.value}
    return kept(path, lambda: switched(bench, row, seed), own, o.out)


def command(o: Options) -> str:
    "What repeats this measurement."
    words = ["python scripts/studies/protocols.py"]
    if o.cifar: words += ["--cifar", "data/cifar10"]
    if o.seeds != Options.seeds: words += ["--seeds", *o.seeds]
    if o.count != Options.count: words += ["--count", o.count]
    if o.pipeline != Options.pipeline: words += ["--pipeline", o.pipeline]
    if o.denoiser != Options.denoiser: words += ["--denoiser", o.denoiser]
    return " ".join(map(str, [*words, "--record"]))


def check_options(o: Options):
    "What could fail, before any work."
    from vgnb.core import Missing, check, check_int, check_ints
    check_ints("seeds", o.seeds, 0)
    several = len(set(o.seeds)) == len(o.seeds) >= 2
    check(several, "seeds", o.seeds, "must be at least two different ones: the error of a shift is taken over them")
    check_int("count", o.count, 40)
    check(o.count % 40 == 0, "count", o.count, "must be a multiple of 40: a quarter of it must have all classes alike")
    is_there = o.cifar is None or (o.cifar / "test.parquet").is_file()
    check(is_there, "cifar", o.cifar, "must hold test.parquet of CIFAR-10", Missing)


def shown(row: dict) -> str:
    "A line for a person."
    public = row["published"]
    beside = f"; published {public['before']:g} → {public['after']:g}" if public else ""
    return f"{row['name']:>30}  {row['base']:8.3f}  {row['shift']:+8.3f} ± {row['error']:.3f}  {row['verdict']}{beside}"


def main(o: Options) -> int:
    check_options(o)
    torch.set_num_threads(1)
    bench = Bench(o)
    facts, rows = settings(o, bench), switches(o, bench.pipe.tokenizer.vocab[0])
    points = {row: [] for row in rows}
    for seed in o.seeds:
        for row in rows:
            points[row].append(piece(o, bench, row, seed, facts))
            print(f"seed {seed}, {row.name}: {points[row][-1]}", flush=True)
        bench.forget()

    found = [summary(row, points[row], len(rows)) for row in rows]
    for row in found: print(shown(row))
    if not o.record: return 0
    device = f"{platform.processor() or platform.machine()}, one thread"
    base = {"samples": asdict(base_of(LABELS, o)), "reconstructions": asdict(base_of(OWN, o))}
    study = {"command": command(o), "device": device} | facts | {"base": base, "rows": found}
    FILE.write_text(json.dumps(study, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda words: main(typed_cli(Options, args=words, description=__doc__))))
