"""The whole walk on two CPU cores: images -> tokenizer -> codes -> generator -> samples -> numbers.

    bash scripts/quickstart.sh                          # on the drawn *shapes* images; makes the environment first
    bash scripts/quickstart.sh --data path/to/images    # on a folder of images, classes taken from the sub-folders

Runs the same five scripts you would run yourself and shows each command. Killed at any point, the same command goes on
where it was. Leaves in OUT report.html (self-contained), samples.npz, metrics.json, and a pipeline that
`Pipeline.from_pretrained(OUT)` and sample.py load.
"""
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


@dataclass
class Options:
    "What to run the walk on."
    data: str = ""
    "images: a folder, x.tar, wds://..., datasets://...; '' = the drawn shapes"
    out: Path = Path("runs/quickstart")
    "where everything goes"
    count: int = 1000
    "how many images to sample"
    tokenizer_steps: int | None = None
    "training steps of the tokenizer; None = the recipe's"
    generator_steps: int | None = None
    "training steps of the generator; None = the recipe's"
    seed: int = 0
    "all draws count from it"
    max_bad: int = 0
    "unreadable images to leave out and list before one stops the run"
    fresh: bool = False
    "start over, even if OUT holds an earlier run"

    @property
    def shapes(self) -> bool: return not self.data or self.data.startswith("shapes://")

    @property
    def uri(self) -> str: return self.data or "shapes://?n=60000&size=32&seed=0"


def call(title: str, *words) -> float:
    "Run one of the scripts, showing its command; seconds it took. Its failure is ours."
    from vgnb.processes import run_below
    words = [str(w) for w in words if w != ""]
    print(f"\n== {title}\n   python {' '.join(words)}", flush=True)
    start = time.perf_counter()
    code = run_below([sys.executable, *words], cwd=ROOT)
    if code: sys.exit(code)
    return time.perf_counter() - start


def steps(flag: str, value: int | None) -> list:
    "An option, if it was given."
    return [] if value is None else [flag, value]


def train(o: Options, out: Path) -> dict:
    "Tokenizer, codes, generator; seconds each."
    from vgnb.core import remove_dir
    again = ["--fresh"] if o.fresh else []
    if o.fresh and (out / "codes" / "plan.json").exists(): remove_dir(out / "codes")
    spent = {}
    spent["tokenizer"] = call(
        "1/5 train the tokenizer", "scripts/train_tokenizer.py", "shapes-tokenizer", "--data", o.uri, "--seed", o.seed,
        "--max-bad", o.max_bad, "--out", out / "tokenizer-run", *steps("--steps", o.tokenizer_steps), *again)
    spent["codes"] = call(
        "2/5 extract the codes", "scripts/extract_codes.py", "--tokenizer", out / "tokenizer-run/model",
        "--data", o.uri, "--size", 32, "--batch", 250, "--shard-size", 4000, "--max-bad", o.max_bad,
        "--out", out / "codes")
    spent["generator"] = call(
        "3/5 train the generator", "scripts/train_generator.py", "shapes-generator", "--data", out / "codes",
        "--seed", o.seed, "--out", out / "generator-run", *steps("--steps", o.generator_steps), *again)
    return spent


def assemble(out: Path):
    "The trained parts as one pipeline in OUT."
    from vgnb.pipeline import Pipeline
    from vgnb.sampling.settings import Sampling
    from vgnb.saved import load_model
    tokenizer, generator = load_model(out / "tokenizer-run/model"), load_model(out / "generator-run/model")
    pipe = Pipeline(tokenizer, generator, Sampling(guidance=2.0, rows=50), generator.card["classes"])
    pipe.save_pretrained(out)
    return pipe


def held_out(o: Options, source, count: int):
    "(images, labels, words) to measure against: never seen on shapes, the training pictures on a user's folder."
    import numpy as np

    from vgnb.data.shapes import Shapes
    from vgnb.data.transforms import center_crop
    if o.shapes:
        others = Shapes(count, source.size, seed=source.seed + 1, difficulty=source.difficulty)
        images, labels = others.batch(np.arange(count))
        return images, labels, f"{count} held-out shapes (another seed)"
    n = len(source)
    picked = [source[int(i)] for i in np.linspace(0, n - 1, min(count, n)).astype(int)]
    images = np.stack([np.asarray(center_crop(p.image, 32)) for p in picked])
    return images, np.array([p.label for p in picked]), f"{len(picked)} of the {n} training images"


def reconstruct(pipe, images):
    "(codes, reconstructions, PSNR and SSIM)."
    import torch

    from vgnb.evaluation.reconstruction import ReconstructionMeter
    codes = pipe.encode(images)
    rebuilt = pipe.decode(codes)
    meter = ReconstructionMeter()
    for i in range(0, len(images), 500):
        meter.update(torch.from_numpy(rebuilt[i:i + 500]), torch.from_numpy(images[i:i + 500]))
    means = meter.compute()
    return codes, rebuilt, {"psnr": means["psnr"], "ssim": means["ssim"]}


def judged(source, images, labels) -> dict:
    "How far the accuracy of samples can be believed: the judge's own, and that of a simple rule."
    import numpy as np
    import torch

    from vgnb.data.shapes import nearest_mean_accuracy
    from vgnb.evaluation.judge import judge_input, load_judge
    net, _ = load_judge()
    with torch.no_grad(): scores = [net(judge_input(images[i:i + 500])) for i in range(0, len(images), 500)]
    right = torch.cat(scores).argmax(1) == torch.as_tensor(labels)
    train = source.batch(np.arange(min(10_000, len(source))))
    return {"difficulty": source.difficulty,
            "judge_accuracy": float(right.float().mean()),
            "nearest_mean_accuracy": nearest_mean_accuracy(train, (images, labels))}


def evaluate(o: Options, out: Path, pipe, source) -> tuple[dict, dict]:
    "metrics.json, and the pictures that the report shows."
    import numpy as np

    from vgnb.evaluation.features import load_extractor
    from vgnb.evaluation.measure import measure
    from vgnb.evaluation.samples import Samples, read_npz
    images, labels, words = held_out(o, source, max(2000, o.count))
    codes, rebuilt, close = reconstruct(pipe, images)
    samples, asked = (np.array(read_npz(out / "samples.npz", k)) for k in ("arr_0", "labels"))

    judge = load_extractor("shapes-judge")
    real = Samples(images, labels, id=words)
    drawn = Samples(samples, asked, id=f"{len(samples)} samples")
    rec = measure(Samples(rebuilt, id=f"reconstructions of {words}"), real, judge, metrics=("fid",)).values
    kinds = ("fid", "pr", "accuracy") if o.shapes else ("fid", "pr")
    gen = measure(drawn, real, judge, metrics=kinds, uint8_rule="round", seed=o.seed).values

    def fid(value, count):
        return {"value": value, "extractor": judge.id, "count": count, "reference_count": len(images)}
    metrics = {"data": o.uri, "reference": words, "extractor": judge.id, **close,
               "rfid": fid(rec["fid"], len(rebuilt)), "gfid": fid(gen["fid"], len(samples)),
               "precision": gen["precision"], "recall": gen["recall"],
               "sample_accuracy": gen.get("accuracy"), "samples": len(samples),
               "codes_used": int(len(codes.unique())), "codebook": pipe.tokenizer.vocab[0]}
    if o.shapes: metrics |= judged(source, images, labels)
    else:
        metrics["sample_accuracy_reason"] = (
            "the judge knows shapes only; it lends its features to FID, precision and recall, "
            "whose values compare runs on the same images")
    return metrics, dict(images=images, labels=labels, rebuilt=rebuilt, samples=samples, asked=asked, codes=codes)


def numbers(metrics: dict) -> list[dict]:
    "The rows of the report's table."
    rows = []
    for name, v in metrics.items():
        if name == "seconds": continue
        rests_on = ""
        if isinstance(v, dict):
            rests_on = f"{v['count']} against {v['reference_count']} images, features of {v['extractor']}"
            v = v["value"]
        rows.append({"number": name, "value": "null" if v is None else v, "rests on": rests_on})
    return rows


def curves(log: list[dict], name: str) -> str:
    "The training of one part, as a figure."
    from vgnb.charts import curves_figure
    from vgnb.report import html_figure
    logged = [k for k in ("loss", "tokenizer.loss", "l2", "lr") if any(k in record for record in log)]
    return html_figure(curves_figure(log, keys=logged or None), f"The {name}'s training.")


def report(o: Options, out: Path, pipe, metrics: dict, seen: dict, spent: dict):
    "report.html: pictures first, then numbers with what they rest on."
    import numpy as np
    import torch

    from vgnb.charts import codebook_figure, read_records
    from vgnb.figures import reconstruction_sheet, tile_sheet
    from vgnb.moments import moments, sampling_strip
    from vgnb.report import html_figure, html_page, html_table
    names = pipe.classes or ["images"]

    rows, classes = [], []                                         # the first samples of each class
    for c, name in enumerate(names[:20]):
        of_class = np.flatnonzero(seen["asked"] == c)[:12]
        if not len(of_class): continue
        rows.append([seen["samples"][i] for i in of_class])
        classes.append(name)
    samples = tile_sheet(rows, names=classes, side=48)

    stream = pipe.stream([min(6, len(names) - 1)], seed=o.seed, rows=1)
    strip = sampling_strip(list(moments(stream)), pipe.tokenizer.decode, pipe.grid.shape,
                           title="one sample, as its codes arrive")

    first = [np.flatnonzero(seen["labels"] == c)[:1] for c in range(min(len(names), 10))]
    shown = [int(i) for of_class in first for i in of_class]
    rebuilt = reconstruction_sheet(seen["images"][shown], seen["rebuilt"][shown],
                                   [names[int(seen["labels"][i])] for i in shown], side=80)

    usage = torch.bincount(seen["codes"].flatten(), minlength=metrics["codebook"]).numpy()
    logs = {name: read_records(out / f"{name}-run" / "log.jsonl") for name in ("tokenizer", "generator")}
    page = html_page(
        "vgnb quickstart",
        ("p", f"A tokenizer and a generator, trained on {o.uri}. No pretrained weights were read but the judge's. "
              f"This run took {sum(spent.values()) / 60:.1f} minutes; what an earlier one had done is not repeated."),
        ("h2", "Samples"),
        html_figure(samples, "Class-conditional samples, one row a class.", limit=None),
        html_figure(strip, "Codes arrive in raster order; undecided cells are hatched.", limit=None),
        ("h2", "Reconstructions"),
        html_figure(rebuilt, f"Originals ({metrics['reference']}), what 16 codes keep of them, and the error.",
                    limit=None),
        html_figure(codebook_figure(usage, "codes"),
                    f"{metrics['codes_used']} of {metrics['codebook']} codes are used."),
        ("h2", "Numbers"),
        html_table(numbers(metrics)),
        ("h2", "Training"),
        *(curves(log, name) for name, log in logs.items()),
        ("h2", "Time"),
        html_table([{"step": name, "seconds": round(v, 1)} for name, v in spent.items()]))
    (out / "report.html").write_text(page, encoding="utf-8")


def main(o: Options) -> int:
    from vgnb.core import check, check_int, save_json, write_run
    from vgnb.data.images import open_images
    check_int("count", o.count, 100)
    out, begun = o.out.resolve(), time.perf_counter()
    source = open_images(o.uri, max_bad=o.max_bad)
    check(not source.streaming, "data", o.uri, "must have a length (a stream cannot be revisited)")
    print(f"{len(source):,} images of {len(source.classes) or 1} class(es) from {o.uri}; everything goes to {out}")
    spent = train(o, out)
    pipe = assemble(out)
    spent["samples"] = call(
        "4/5 sample", "scripts/sample.py", out, "--count", o.count, "--part", 100, "--seed", o.seed,
        "--out", out / "samples.npz", "--sheet", out / "samples.png", *(["--overwrite"] if o.fresh else []))
    print("\n== 5/5 measure and report", flush=True)
    start = time.perf_counter()
    metrics, seen = evaluate(o, out, pipe, source)
    spent["numbers"] = time.perf_counter() - start
    metrics["seconds"] = {k: round(v, 1) for k, v in spent.items()}
    save_json(out / "metrics.json", metrics)
    report(o, out, pipe, metrics, seen, spent)
    write_run(out, vars(o), seed=o.seed, data=source.fingerprint)
    say(o, out, metrics, time.perf_counter() - begun)
    return 0


def say(o: Options, out: Path, m: dict, seconds: float):
    "The numbers a person wants to see at the end."
    print(f"\nreconstruction  PSNR {m['psnr']:.2f} dB, SSIM {m['ssim']:.3f},",
          f"{m['codes_used']} of {m['codebook']} codes used")
    for k in ("rfid", "gfid"):
        v = m[k]
        print(f"{k:14}  {v['value']:.3f}  ({v['count']} against {v['reference_count']} images,",
              f"features of {v['extractor']})")
    print(f"samples         precision {m['precision']:.3f}, recall {m['recall']:.3f}")
    if o.shapes:
        print(f"sample accuracy {m['sample_accuracy']:.1%} of {m['samples']} samples are what was asked for,",
              f"says {m['extractor']}")
        print(f"  (on held-out images of difficulty {m['difficulty']} the judge is right on {m['judge_accuracy']:.1%},",
              f"a nearest-class-mean pixel classifier on {m['nearest_mean_accuracy']:.1%})")
    else: print(f"sample accuracy null: {m['sample_accuracy_reason']}")
    print(f"\n{seconds / 60:.1f} minutes. Open {out / 'report.html'}")


if __name__ == "__main__":
    from vgnb.cli import typed_cli
    from vgnb.core import VgnbError
    try: sys.exit(main(typed_cli(Options, description=__doc__)))
    except VgnbError as e:
        print(e, file=sys.stderr)
        sys.exit(2)
