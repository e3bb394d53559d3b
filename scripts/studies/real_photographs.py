"""The walk of the study "real photographs": the scripts on CIFAR-10, from four containers, measured.

    python scripts/studies/real_photographs.py --dry-run       # the commands
    python scripts/studies/real_photographs.py                 # run them; half an hour on two CPU cores
    python scripts/studies/real_photographs.py --record        # and write nbs/studies/real_photographs*

DATA holds train.parquet and test.parquet of CIFAR-10 (the data set `uoft-cs/cifar10` of the Hugging Face hub, its two
files put side by side). Every step is one of the scripts, shown as it would be typed; what is done already is not done
again. Needs half a GB of disk for the copies, and vgnb[eval] for the metrics.
"""
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
CONTAINERS = ("datasets", "folder", "tar", "shards")
SPLITS = ("train", "test")


@dataclass
class Options:
    "Where things are."
    data: Path = Path("data/cifar10")
    "folder with train.parquet and test.parquet"
    out: Path = Path("runs/cifar")
    "copies, runs, codes, samples"
    count: int = 5000
    "samples"
    record: bool = False
    "write the committed measurement files"
    dry_run: bool = False
    "only show the commands"

    def uri(self, split: str, container: str) -> str:
        "Where a split lies in a container."
        place = self.out / "data" / split
        return {"datasets": f"datasets://{self.data}?split={split}",
                "folder": f"{place}",
                "tar": f"{place}.tar",
                "shards": f"wds://{place}-shards"}[container]

    def codes(self, split: str, container: str) -> Path: return self.out / "codes" / f"{split}-{container}"


def steps(o: Options):
    "(name, words of the command, what it leaves behind)."
    out = o.out
    train, test = o.uri("train", "datasets"), o.uri("test", "datasets")
    tokenizer, generator = out / "tokenizer/model", out / "generator/model"

    for split in SPLITS:
        for c in CONTAINERS[1:]:
            copy = o.uri(split, c)
            words = ["scripts/export_images.py", o.uri(split, "datasets"), copy]
            yield f"export {split} {c}", words, Path(copy.removeprefix("wds://"))

    words = ["scripts/train_tokenizer.py", "cifar-tokenizer", "--data", train, "--out", out / "tokenizer",
             "--workers", 1]
    yield "tokenizer", words, tokenizer

    for split in SPLITS:
        for c in CONTAINERS:
            codes = o.codes(split, c)
            words = ["scripts/extract_codes.py", "--tokenizer", tokenizer, "--data", o.uri(split, c), "--size", 32,
                     "--flip", "--batch", 256, "--shard-size", 5000, "--out", codes]
            yield f"codes {split} {c}", words, codes / "index.json"

    words = ["scripts/train_generator.py", "cifar-generator", "--data", o.codes("train", "datasets"),
             "--out", out / "generator"]
    yield "generator", words, generator

    samples = out / "samples.npz"
    words = ["scripts/sample.py", "--tokenizer", tokenizer, "--generator", generator, "--count", o.count, "--part", 500,
             "--guidance.scale", 2, "--rows", 50, "--out", samples, "--sheet", out / "samples.png"]
    yield "samples", words, samples

    for name, against, metrics in (("floor", train, ["fid"]),
                                   ("rfid", out / "reconstructions.npz", ["fid"]),
                                   ("gfid", samples, ["fid", "kid", "pr"]),
                                   ("ceiling", "shapes://?n=10000&size=32", ["fid"])):
        report = out / f"{name}.json"
        words = ["scripts/evaluate.py", test, against, "--extractor", "shapes-judge", "--metrics", *metrics,
                 "--json", report]
        yield name, words, report


def call(o: Options, done: dict, name: str, words: list, left: Path):
    "Run one step unless it is done; remember its command and what it took."
    line = "python " + " ".join(shlex.quote(str(w)) for w in words)
    if o.dry_run:
        print(line)
        return
    if left.exists() and name in done: return
    if name == "rfid": reconstruct(o)
    print(f"\n== {name}\n   {line}", flush=True)
    wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    code = subprocess.run([sys.executable, *map(str, words)]).returncode
    if code: sys.exit(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    done[name] = dict(command=line, seconds=round(time.perf_counter() - wall, 1), cpu_seconds=round(cpu, 1))
    (o.out / "steps.json").write_text(json.dumps(done, indent=1))


def reconstruct(o: Options):
    "What the stored codes of the test pictures decode to, as an npz beside the samples."
    from vgnb.evaluation.samples import save_samples
    images, _ = decoded(o)
    save_samples(o.out / "reconstructions.npz", images)


def decoded(o: Options):
    "(decoded test pictures (n, h, w, 3) uint8, their codes (n, 64))."
    from vgnb.data.codes import CodeStore
    from vgnb.saved import load_model
    from vgnb.tokenizers.pictures import pictures
    store = CodeStore(o.codes("test", "datasets"))
    codes = store.batch(np.arange(len(store)))[0]
    images = pictures(load_model(o.out / "tokenizer/model"), codes, rows=250, shape=store.grid)
    return images, codes[..., 0].numpy()


def compare(o: Options, split: str) -> list[dict]:
    "Codes and labels of every picture, container by container, against those read through datasets://."
    from vgnb.data.codes import CodeStore
    from vgnb.data.export import contents, source_row, stored_bytes, suffix_of
    from vgnb.data.images import open_images
    rows, first = [], None
    for c in CONTAINERS:
        source, store = open_images(o.uri(split, c)), CodeStore(o.codes(split, c))
        where = np.array([i if c == "datasets" else source_row(source.names[i]) for i in store.ids])
        assert len(set(where.tolist())) == len(store) == len(source)
        by_row = np.argsort(where)
        views = [store.batch(by_row, a)[0].numpy() for a in range(len(store.augs))]
        codes = np.stack(views, 1)                                 # (n, views, 64, 1)
        names = np.array(store.classes)[store.labels[by_row]]
        if first is None: first = codes, names, store.tokenizer
        same = (codes == first[0]).reshape(len(codes), -1)
        files = [stored_bytes(source, i) for i in range(len(source))]
        rows.append(dict(container=c,
                         formats=dict(Counter(map(suffix_of, files))),
                         bytes=sum(map(len, files)),
                         pictures=len(codes),
                         views=codes.shape[1],
                         codes=int(same.size),
                         same_codes=int(same.sum()),
                         same_pictures=int(same.all(1).sum()),
                         same_labels=int((names == first[1]).sum()),
                         same_tokenizer=store.tokenizer == first[2],
                         contents=contents(source)[:16],
                         in_source_order=bool((np.diff(where) == 1).all())))
    return rows


def measure(o: Options) -> dict:
    "Reconstruction on the 10,000 test pictures, and what evaluate.py wrote."
    import torch

    from vgnb.data.images import open_images
    from vgnb.evaluation.reconstruction import ReconstructionMeter
    source = open_images(o.uri("test", "datasets"))
    images = np.stack([np.asarray(source[i].image) for i in range(len(source))])
    rebuilt, codes = decoded(o)
    meter = ReconstructionMeter()
    for i in range(0, len(images), 500):
        meter.update(torch.from_numpy(rebuilt[i:i + 500]), torch.from_numpy(images[i:i + 500]))
    usage = np.bincount(codes.reshape(-1), minlength=512)
    p = usage[usage > 0] / usage.sum()
    reports = {name: json.loads((o.out / f"{name}.json").read_text()) for name in ("floor", "rfid", "gfid", "ceiling")}
    return dict(reconstruction={k: round(meter.compute()[k], 4) for k in ("psnr", "ssim")},
                psnr_of_the_mean_colour=round(mean_colour_psnr(images), 2),
                codes_used=int((usage > 0).sum()),
                perplexity=round(float(np.exp(-(p * np.log(p)).sum())), 1),
                usage=usage.tolist(),
                **reports)


def mean_colour_psnr(images: np.ndarray) -> float:
    "What a tokenizer reaches that keeps nothing but the mean colour of a picture."
    x = images.astype(np.float64)
    error = ((x - x.mean((1, 2), keepdims=True)) ** 2).mean((1, 2, 3))
    return float((10 * np.log10(255 ** 2 / error)).mean())


def curve(path: Path, keys: tuple, points: int = 60) -> dict:
    "A log, thinned to some columns and lines, and its median rate."
    from vgnb.training.trackers import read_log
    log = read_log(path)
    kept = [log[i] for i in sorted({int(i) for i in np.linspace(0, len(log) - 1, points)})]
    def columns(r): return {"step": r["step"], **{k: round(r[k], 5) for k in keys if r.get(k) is not None}}
    return dict(log=[columns(r) for r in kept],
                steps=log[-1]["step"],
                pictures=log[-1]["samples"],
                pictures_per_second=round(statistics.median(r["per_second"] for r in log), 1))


def trained(o: Options, part: str, keys: tuple) -> dict:
    "Log, size and recipe of a trained part."
    from vgnb.core import load_json
    folder = o.out / part
    return {**curve(folder / "log.jsonl", keys),
            "parameters": size(folder / "model"),
            "recipe": load_json(folder / "run.json")["config"]}


def record_pictures(o: Options, here: Path, source):
    "The first test picture of each class with its reconstruction, and six samples of each."
    from PIL import Image

    from vgnb.core import write_aside
    from vgnb.evaluation.samples import read_npz
    rebuilt, samples = read_npz(o.out / "reconstructions.npz", "arr_0"), read_npz(o.out / "samples.npz", "arr_0")
    asked, labels = np.array(read_npz(o.out / "samples.npz", "labels")), np.asarray(source.labels)
    firsts = [int(np.flatnonzero(labels == c)[0]) for c in range(10)]
    images = np.stack([np.asarray(source[i].image) for i in firsts])
    with write_aside(here / "real_photographs_reconstructions.npz") as p:
        np.savez_compressed(p, images=images, reconstructions=rebuilt[firsts])

    rows = [np.concatenate(list(samples[np.flatnonzero(asked == c)[:6]]), 1) for c in range(10)]   # edge to edge
    sheet = Image.fromarray(np.concatenate(rows)).quantize(256, dither=Image.Dither.NONE)
    sheet.save(here / "real_photographs_samples.png", optimize=True)


def record(o: Options, done: dict):
    "The committed files."
    from vgnb.core import run_manifest, save_json
    from vgnb.data.images import open_images
    here, source = ROOT / "nbs/studies", open_images(o.uri("test", "datasets"))
    record_pictures(o, here, source)
    study = dict(made_by="python scripts/studies/real_photographs.py --record",
                 machine="two CPU cores, shared with other work; one thread a process (OMP_NUM_THREADS=1)",
                 versions=run_manifest({}, seed=0)["versions"],
                 classes=source.classes,
                 steps=done,
                 containers={s: compare(o, s) for s in SPLITS},
                 data={s: open_images(o.uri(s, "datasets")).fingerprint for s in SPLITS},
                 tokenizer=trained(o, "tokenizer", ("l2", "usage")),
                 generator=trained(o, "generator", ("loss",)),
                 **measure(o))
    save_json(here / "real_photographs.json", study)
    for p in sorted(here.glob("real_photographs*")): print(f"{p.relative_to(ROOT)} {p.stat().st_size:,} bytes")


def size(folder: Path) -> int:
    "Parameters of a saved model."
    from vgnb.saved import load_model
    return sum(p.numel() for p in load_model(folder).parameters())


def main(o: Options) -> int:
    from vgnb.core import Missing, check
    if not o.dry_run:
        for split in SPLITS:
            check((o.data / f"{split}.parquet").is_file(), "data", o.data,
                  "must hold train.parquet and test.parquet of CIFAR-10", Missing)
        o.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    known = o.out / "steps.json"
    done = json.loads(known.read_text()) if known.exists() else {}
    for name, words, left in steps(o): call(o, done, name, words, left)
    if o.record: record(o, done)
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda words: main(typed_cli(Options, args=words, description=__doc__))))
