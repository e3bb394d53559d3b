"""The walk of the study "real photographs": the scripts on CIFAR-10, from four containers, measured.

    python scripts/studies/real_photographs.py --dry-run                      # the commands
    python scripts/studies/real_photographs.py                                # run them; half an hour on two CPU cores
    python scripts/studies/real_photographs.py --record                       # and write nbs/studies/real_photographs.json and its pictures

DATA holds train.parquet and test.parquet of CIFAR-10 (the data set `uoft-cs/cifar10` of the Hugging Face hub, its two files put side by side). Every step is one
of the scripts, shown as it would be typed; what is done already is not done again. Needs half a GB of disk for the copies, and vgnb[eval] for the metrics.
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
import tyro

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
        return {"datasets": f"datasets://{self.data}?split={split}", "folder": f"{place}", "tar": f"{place}.tar", "shards": f"wds://{place}-shards"}[container]

    def codes(self, split: str, container: str) -> Path: return self.out / "codes" / f"{split}-{container}"


def steps(o: Options):
    "(name, words of the command, what it leaves behind)."
    out, test = o.out, o.uri("test", "datasets")
    judge = ["--extractor", "shapes-judge"]
    for split in SPLITS:
        for c in CONTAINERS[1:]:
            yield f"export {split} {c}", ["scripts/export_images.py", o.uri(split, "datasets"), o.uri(split, c)], Path(o.uri(split, c).removeprefix("wds://"))
    yield "tokenizer", ["scripts/train_tokenizer.py", "cifar-tokenizer", "--data", o.uri("train", "datasets"), "--out", out / "tokenizer", "--workers", 1], out / "tokenizer/model"
    for split in SPLITS:
        for c in CONTAINERS:
            yield f"codes {split} {c}", ["scripts/extract_codes.py", "--tokenizer", out / "tokenizer/model", "--data", o.uri(split, c), "--size", 32, "--flip", "--batch", 256,
                                         "--shard-size", 5000, "--out", o.codes(split, c)], o.codes(split, c) / "index.json"
    yield "generator", ["scripts/train_generator.py", "cifar-generator", "--data", o.codes("train", "datasets"), "--out", out / "generator"], out / "generator/model"
    yield "samples", ["scripts/sample.py", "--tokenizer", out / "tokenizer/model", "--generator", out / "generator/model", "--count", o.count, "--part", 500, "--sampling.cfg-scale", 2,
                      "--sampling.rows", 50, "--out", out / "samples.npz", "--sheet", out / "samples.png"], out / "samples.npz"
    for name, a, b, metrics in (("floor", test, o.uri("train", "datasets"), ["fid"]), ("rfid", test, out / "reconstructions.npz", ["fid"]),
                                ("gfid", test, out / "samples.npz", ["fid", "kid", "pr"]), ("ceiling", test, "shapes://?n=10000&size=32", ["fid"])):
        yield name, ["scripts/evaluate.py", a, b, *judge, "--metrics", *metrics, "--json", out / f"{name}.json"], out / f"{name}.json"


def call(o: Options, done: dict, name: str, words: list, left: Path):
    "Run one step unless it is done; remember its command and what it took."
    line = "python " + " ".join(shlex.quote(str(w)) for w in words)
    if o.dry_run: print(line); return
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
    import torch

    from vgnb.data.codes import CodeStore
    from vgnb.data.transforms import to_uint8
    from vgnb.saved import load_model
    tokenizer, store = load_model(o.out / "tokenizer/model").eval(), CodeStore(o.codes("test", "datasets"))
    codes = store.batch(np.arange(len(store)))[0]
    with torch.no_grad(): images = [to_uint8(tokenizer.decode(tokenizer.untoken(part, store.grid))).numpy() for part in codes.split(250)]
    return np.concatenate(images), codes[..., 0].numpy()


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
        codes = np.stack([store.batch(np.argsort(where), a)[0].numpy() for a in range(len(store.augs))], 1)          # (n, views, 64, 1), by row
        names = np.array(store.classes)[store.labels[np.argsort(where)]]
        if first is None: first = codes, names, store.tokenizer
        same = (codes == first[0]).reshape(len(codes), -1)
        files = [stored_bytes(source, i) for i in range(len(source))]
        rows.append(dict(container=c, formats=dict(Counter(map(suffix_of, files))), bytes=sum(map(len, files)), pictures=len(codes), views=codes.shape[1], codes=int(same.size), same_codes=int(same.sum()), same_pictures=int(same.all(1).sum()),
                         same_labels=int((names == first[1]).sum()), same_tokenizer=store.tokenizer == first[2], contents=contents(source)[:16], in_source_order=bool((np.diff(where) == 1).all())))
    return rows


def measure(o: Options) -> dict:
    "Reconstruction on the 10,000 test pictures, and what evaluate.py wrote."
    import torch

    from vgnb.data.images import open_images
    from vgnb.evaluation.reconstruction import ReconstructionMeter
    source, (rebuilt, codes) = open_images(o.uri("test", "datasets")), decoded(o)
    images, meter = np.stack([np.asarray(source[i].image) for i in range(len(source))]), ReconstructionMeter()
    for i in range(0, len(images), 500): meter.update(torch.from_numpy(rebuilt[i:i + 500]), torch.from_numpy(images[i:i + 500]))
    flat = images.reshape(len(images), -1).astype(np.float64)
    mean = 10 * np.log10(255 ** 2 / ((flat - np.repeat(images.mean((1, 2)), 1024, 0).reshape(len(images), -1)) ** 2).mean(1))
    usage = np.bincount(codes.reshape(-1), minlength=512)
    p = usage[usage > 0] / usage.sum()
    return dict(reconstruction={k: round(meter.compute()[k], 4) for k in ("psnr", "ssim")}, psnr_of_the_mean_colour=round(float(mean.mean()), 2), codes_used=int((usage > 0).sum()),
                perplexity=round(float(np.exp(-(p * np.log(p)).sum())), 1), usage=usage.tolist(),
                **{name: json.loads((o.out / f"{name}.json").read_text()) for name in ("floor", "rfid", "gfid", "ceiling")})


def curve(path: Path, keys: tuple, points: int = 60) -> dict:
    "A log, thinned to some columns and lines, and its median rate."
    from vgnb.training.trackers import read_log
    log = read_log(path)
    kept = [log[i] for i in sorted({int(i) for i in np.linspace(0, len(log) - 1, points)})]
    return dict(log=[{"step": r["step"], **{k: round(r[k], 5) for k in keys if r.get(k) is not None}} for r in kept], steps=log[-1]["step"], pictures=log[-1]["samples"],
                pictures_per_second=round(statistics.median(r["per_second"] for r in log), 1))


def record(o: Options, done: dict):
    "The committed files."
    from PIL import Image

    from vgnb.core import load_json, run_manifest, save_json, write_aside
    from vgnb.data.images import open_images
    from vgnb.evaluation.samples import read_npz
    here, source = ROOT / "nbs/studies", open_images(o.uri("test", "datasets"))
    labels = np.asarray(source.labels)
    rebuilt, samples, asked = read_npz(o.out / "reconstructions.npz", "arr_0"), read_npz(o.out / "samples.npz", "arr_0"), np.array(read_npz(o.out / "samples.npz", "labels"))
    firsts = [int(np.flatnonzero(labels == c)[0]) for c in range(10)]
    with write_aside(here / "real_photographs_reconstructions.npz") as p: np.savez_compressed(p, images=np.stack([np.asarray(source[i].image) for i in firsts]), reconstructions=rebuilt[firsts])
    tiles = [np.concatenate(list(samples[np.flatnonzero(asked == c)[:6]]), 1) for c in range(10)]                        # edge to edge, one row a class
    Image.fromarray(np.concatenate(tiles)).quantize(256, dither=Image.Dither.NONE).save(here / "real_photographs_samples.png", optimize=True)
    run = run_manifest({}, seed=0)
    save_json(here / "real_photographs.json", dict(
        made_by="python scripts/studies/real_photographs.py --record", machine="two CPU cores, shared with other work; one thread a process (OMP_NUM_THREADS=1)", versions=run["versions"],
        classes=source.classes, steps=done, containers={s: compare(o, s) for s in SPLITS}, data={s: open_images(o.uri(s, "datasets")).fingerprint for s in SPLITS},
        tokenizer=curve(o.out / "tokenizer/log.jsonl", ("l2", "usage")) | {"parameters": size(o.out / "tokenizer/model"), "recipe": load_json(o.out / "tokenizer/run.json")["config"]},
        generator=curve(o.out / "generator/log.jsonl", ("loss",)) | {"parameters": size(o.out / "generator/model"), "recipe": load_json(o.out / "generator/run.json")["config"]},
        **measure(o)))
    for p in sorted(here.glob("real_photographs*")): print(f"{p.relative_to(ROOT)} {p.stat().st_size:,} bytes")


def size(folder: Path) -> int:
    "Parameters of a saved model."
    from vgnb.saved import load_model
    return sum(p.numel() for p in load_model(folder).parameters())


def main(o: Options) -> int:
    from vgnb.core import Missing, check
    if not o.dry_run:
        for split in SPLITS: check((o.data / f"{split}.parquet").is_file(), "data", o.data, "must hold train.parquet and test.parquet of CIFAR-10", Missing)
        o.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    known = o.out / "steps.json"
    done = json.loads(known.read_text()) if known.exists() else {}
    for name, words, left in steps(o): call(o, done, name, words, left)
    if o.record: record(o, done)
    return 0


if __name__ == "__main__":
    from vgnb.core import VgnbError
    try: sys.exit(main(tyro.cli(Options, description=__doc__)))
    except VgnbError as e: print(e, file=sys.stderr); sys.exit(2)
