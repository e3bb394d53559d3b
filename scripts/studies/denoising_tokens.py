"""Tokens in the order of denoising: what each group adds, how many steps a picture needs, what a beginning fixes.

    python scripts/studies/denoising_tokens.py                     # measure the shipped tiny D-AR, print
    python scripts/studies/denoising_tokens.py --record            # and write nbs/studies/denoising_tokens.json
    python scripts/studies/denoising_tokens.py --pipeline runs/mine --count 500

On held-out shapes: PSNR and the Fréchet distance of the judge's features after each denoising step, and with other
numbers of steps; which share of a picture's pixels changes when one group of its tokens is another picture's, and how
often the judge then sees another class; and of samples that share their first groups, how far their pictures are apart
and how often the class is the one that was asked for. Minutes on one CPU core.
"""
import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
FILE = ROOT / "nbs" / "studies" / "denoising_tokens.json"
ROWS = 50
EARLY = (4, 8)             # tokens shared, less than a group


@dataclass
class Options:
    "What to measure, and on how much."
    pipeline: str = "tiny-dar"
    "a shipped pipeline, or a folder; its tokenizer decodes group by group"
    count: int = 2000
    "held-out pictures; samples: a fifth of them"
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    "of the decoder"
    record: bool = False
    "write nbs/studies/denoising_tokens.json"


class Bench:
    "Held-out pictures, their codes, and the judge."
    def __init__(self, o: Options):
        from scripts.studies.any_order import Bench as Judged
        from vgnb.pipeline import from_pretrained
        from vgnb.sampling.streaming import need_progressive
        from vgnb.tokenizers.pictures import codes_of
        self.pipe = from_pretrained(o.pipeline)
        self.tokenizer = need_progressive(self.pipe.tokenizer, "this study")
        self.judged = Judged(o.count)
        self.real = torch.from_numpy(self.judged.real.images[:o.count])
        self.codes = codes_of(self.tokenizer, self.real, ROWS)                    # (n, m, 1)
        self.plan = self.tokenizer.plan()
        self.edges = sorted({0, *(self.plan.needs(k) for k in range(1, self.plan.steps + 1))})

    def made(self, codes, k: int | None = None, denoise: int | None = None) -> np.ndarray:
        "Pictures (n, h, w, 3) of codes, after k denoising steps or after all."
        from vgnb.draws import Keyed
        from vgnb.sampling.streaming import preview_pictures
        k = self.tokenizer.plan(denoise).steps if k is None else k
        how = dict(ids=torch.arange(len(codes)), draws=Keyed(0), rows=ROWS, denoise=denoise)
        return preview_pictures(self.tokenizer, codes, k, **how)

    def seen(self, images) -> torch.Tensor:
        "The class that the judge sees in each picture."
        from vgnb.evaluation.judge import judge_input, load_judge
        judge, _ = load_judge()
        with torch.no_grad(): return torch.cat([judge(judge_input(part)).argmax(1) for part in np.split(images, range(
            ROWS, len(images), ROWS))])

    def quality(self, images) -> dict:
        "PSNR in dB and rFID against the held-out pictures."
        from vgnb.evaluation.measure import measure
        from vgnb.evaluation.reconstruction import ReconstructionMeter
        from vgnb.evaluation.samples import Samples
        meter, bench = ReconstructionMeter(), self.judged
        meter.update(torch.from_numpy(images), self.real)
        made = Samples(images, bench.real.labels[:len(images)], id="reconstructions")
        found = measure(made, bench.real, bench.judge, metrics=("fid",), uint8_rule="round", seed=0, base=bench.base)
        return {"psnr": round(meter.compute()["psnr"], 3), "rfid": round(found.values["fid"], 4)}


def previews(b: Bench) -> list[dict]:
    "Quality after each denoising step."
    steps = range(1, b.plan.steps + 1)
    return [{"steps": k, "tokens": b.plan.needs(k), **b.quality(b.made(b.codes, k))} for k in steps]


def decoder_steps(b: Bench, o: Options) -> list[dict]:
    "Quality with other numbers of steps, all tokens there."
    return [{"steps": steps, **b.quality(b.made(b.codes, denoise=steps))} for steps in o.steps]


def groups(b: Bench) -> list[dict]:
    "What changes when one group of tokens is the next picture's; noise stays the picture's own."
    some = b.codes[:max(len(b.codes) // 5, 2)]
    whole, other, rows = b.made(some), some.roll(1, 0), []
    before = b.seen(whole)
    for group, (first, end) in enumerate(zip(b.edges, b.edges[1:])):
        mixed = some.clone()
        mixed[:, first:end] = other[:, first:end]
        made = b.made(mixed)
        apart = np.abs(made.astype(int) - whole).max(-1) > 16
        rows.append({"group": group, "pixels": round(float(apart.mean()), 4),
                     "other_class": round(float((b.seen(made) != before).float().mean()), 4)})
    return rows


def beginnings(b: Bench) -> list[dict]:
    "Samples of all classes that share their first tokens: how far apart they are, and whether they are as asked."
    classes, rows = len(b.pipe.classes), []
    labels = torch.arange(max(len(b.codes) // 5, classes)) % classes
    for edge in sorted({*EARLY, *b.edges[:-1]}):
        how = dict(seed=0, min_rows=b.pipe.sampling.rows)
        images = b.pipe.prefix(labels, edge, **how) if edge else b.pipe.sample(labels, **how)
        apart = np.sqrt(((images[1:].astype(float) - images[0]) ** 2).mean((1, 2, 3))).mean()
        right = float((b.seen(images) == labels).float().mean())
        rows.append({"tokens": edge, "apart": round(float(apart), 2), "as_asked": round(right, 4)})
    return rows


def main(o: Options) -> int:
    from vgnb.core import check_int
    check_int("count", o.count, 10, 2000)
    for steps in o.steps: check_int("steps", steps, 1)
    torch.set_num_threads(1)
    b = Bench(o)
    parts = {"previews": lambda: previews(b), "steps": lambda: decoder_steps(b, o), "groups": lambda: groups(b),
             "beginnings": lambda: beginnings(b)}
    found = {}
    for name, work in parts.items():
        print(name)
        found[name] = work()
        for row in found[name]: print("  ", *(f"{k} {v}" for k, v in row.items()), flush=True)
    if not o.record: return 0

    settings = {
        "command": "python scripts/studies/denoising_tokens.py --record", "pipeline": o.pipeline, "count": o.count,
        "torch": torch.__version__, "extractor": b.judged.judge.id,
        "device": f"{platform.processor() or platform.machine()}, one thread"}
    FILE.write_text(json.dumps(settings | found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda words: main(typed_cli(Options, args=words, description=__doc__))))
