"""Data at scale: a code store of up to 100 million rows, opened and read; large JPEGs, decoded and cropped.

    python scripts/studies/data_scale.py --place /big/disk             # measure, print
    python scripts/studies/data_scale.py --place /big/disk --record    # and write nbs/studies/data_scale.json

Stores of four codes a row are written by the real writer (24 bytes a row: 2.4 GB for the largest, removed afterwards).
Each is opened by a process of its own, with and without a look at every byte, and trains nothing, but asks for what a
training asks for: shuffled batches of codes and labels, their augmentation rows drawn. Memory is what the process holds
of its own ("anonymous"), more than it held before it opened the store; pages of the files, which the system takes back
when it needs them, are told apart. `tables` is what a list of all ids and one of all labels would hold.

The pictures are 640x480, of more than 100 kB; ours is the training set's fetch with a random crop and a flip, plain a
loop of Pillow's decoder and the same arithmetic on one picture after the other, decoding alone its first part. Median
milliseconds of the processor a picture, on one core. Ten minutes, most of it writing.
"""
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from vgnb.data.codes import CodePlan, CodeStore, CodeWriter
from vgnb.data.images import open_images
from vgnb.data.transforms import Augment, flip, random_crop, to_tensor
from vgnb.draws import Keyed
from vgnb.training.feed import Feed, global_batch, visit
from vgnb.training.tasks import CodeData, ImageData

FILE = ROOT / "nbs" / "studies" / "data_scale.json"
BATCH = 256


@dataclass
class Options:
    "What to measure."
    rows: tuple[int, ...] = (1_000_000, 10_000_000, 100_000_000)
    "of the stores"
    shard: int = 16384
    "rows of a shard"
    batches: int = 200
    "that are read"
    pictures: int = 48
    "JPEGs"
    place: Path = Path(tempfile.gettempdir())
    "the disk that is written to"
    record: bool = False
    "write nbs/studies/data_scale.json"
    work: str = ""
    "a store that is to be opened, and how; for this script itself"


def memory() -> dict[str, float]:
    "MB that this process holds: of its own, and pages of files."
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(lines[key].split()[0]) / 1024 for name, key in (("own", "RssAnon"), ("files", "RssFile"))}


def clock() -> tuple[float, float]: return time.perf_counter(), time.process_time()


def since(before: tuple[float, float]) -> list[float]:
    "[seconds by the clock, by the processor]."
    return [round(b - a, 5) for a, b in zip(before, clock())]


def write(folder: Path, rows: int, shard: int) -> list[float]:
    "A store of made-up codes."
    begun = clock()
    plan = CodePlan((16384,), (2, 2), rows, "made up", classes=tuple(map(str, range(1000))), shard_size=shard)
    writer, numbers = CodeWriter(folder, plan), np.random.default_rng(0)
    for k in writer.todo():
        ids = np.arange(writer.span(k).start, writer.span(k).stop)
        codes = numbers.integers(0, 16384, (len(ids), 1, 4, 1), dtype=np.int32)
        writer.write(k, codes, ids % 1000, ids)
    writer.finish()
    return since(begun)


def look(folder: Path, verify: bool, batches: int) -> dict:
    "What a process of its own finds."
    before, begun = memory(), clock()
    store = CodeStore(folder, verify=verify)
    found = {"verify": verify, "open_s": since(begun), "own_mb": round(memory()["own"] - before["own"], 1)}
    if verify: return found | {"peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}

    feed = Feed(CodeData(store), BATCH, 0)
    begun = clock()
    for step in range(batches): global_batch(step * 1000, BATCH, len(store), 0)
    found["order_us_a_row"] = round(1e6 * since(begun)[1] / batches / BATCH, 2)
    begun = clock()
    for step in range(batches): feed[step]
    found["read_us_a_row"] = round(1e6 * since(begun)[1] / batches / BATCH, 2)
    after = memory()
    found |= {"own_after_mb": round(after["own"] - before["own"], 1), "files_mb": round(after["files"])}
    tables = store.ids, store.labels
    return found | {"tables_mb": round(sum(t.nbytes for t in tables) / 2 ** 20)}


def stores(o: Options) -> list[dict]:
    "A row of the table for each size."
    rows = []
    for n in o.rows:
        folder = Path(tempfile.mkdtemp(dir=o.place))
        try:
            row = {"rows": n, "shards": -(-n // o.shard), "write_s": write(folder / "store", n, o.shard)}
            row["gb"] = round(sum(f.stat().st_size for f in (folder / "store").iterdir()) / 1e9, 3)
            for verify in (False, True):
                told = json.dumps({"folder": str(folder / "store"), "verify": verify, "batches": o.batches})
                command = [sys.executable, __file__, "--work", told]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                row["verified" if verify else "opened"] = json.loads(done.stdout.splitlines()[-1])
        finally: shutil.rmtree(folder)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def picture(i: int) -> Image.Image:
    "Smooth colours under the grain of a camera."
    numbers = np.random.default_rng(i)
    smooth = Image.fromarray(numbers.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480), 3)
    grain = numbers.normal(0, 9, (480, 640, 1))
    return Image.fromarray((np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8))


def jpegs(o: Options) -> dict:
    "Milliseconds a picture."
    folder = Path(tempfile.mkdtemp(dir=o.place))
    try:
        files = [folder / f"{i:03d}.jpg" for i in range(o.pictures)]
        for i, file in enumerate(files): picture(i).save(file, quality=90)
        sizes = [file.stat().st_size for file in files]
        if min(sizes) < 100_000: raise SystemExit(f"the smallest picture has {min(sizes)} bytes, fewer than 100,000")
        data, draws = ImageData(open_images(folder), Augment("random-crop", 256, flip=True)), Keyed(0)

        def decoded(file): return Image.open(file).convert("RGB")
        def plain(i):
            at = visit([i], [0])
            x = to_tensor(random_crop(decoded(files[i]), 256, draws, at))
            return flip(x) if float(draws.uniform("flip", at)[0]) < 0.5 else x

        def timed(work, *args):
            begun = clock()
            work(*args)
            return 1000 * since(begun)[1]

        eight = [np.arange(k, k + 8) for k in range(0, o.pictures, 8)]
        whole = torch.stack([plain(i) for i in range(8)])
        if not torch.equal(whole, data.fetch(eight[0], np.zeros(8, np.int64), draws)["images"]):
            raise SystemExit("the two loops make different pictures")
        ways = {"decoding": [timed(lambda f: decoded(f).load(), file) for file in files],
                "plain": [timed(plain, i) for i in range(o.pictures)],
                "ours": [timed(data.fetch, ids, np.zeros(8, np.int64), draws) / 8 for ids in eight]}
    finally: shutil.rmtree(folder)
    return {"pictures": o.pictures, "kb": [round(min(sizes) / 1000), round(max(sizes) / 1000)],
            "ms": {way: round(median(times), 2) for way, times in ways.items()}}


def main(o: Options) -> int:
    torch.set_num_threads(1)
    if o.work:
        told = json.loads(o.work)
        print(json.dumps(look(Path(told["folder"]), told["verify"], told["batches"])))
        return 0
    study = {
        "command": "python scripts/studies/data_scale.py --record",
        "device": f"{platform.processor() or platform.machine()}, one thread",
        "batch": BATCH, "shard": o.shard, "jpegs": jpegs(o), "stores": stores(o)}
    print(json.dumps(study["jpegs"]))
    if o.record: FILE.write_text(json.dumps(study, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda words: main(typed_cli(Options, args=words, description=__doc__))))
