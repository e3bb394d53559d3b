"""Train one of the shipped tiny models and write it into vgnb/weights/tiny.

    python scripts/train_tiny.py tokenizer             # 8x8 codes of 256, first: the generators learn its codes
    python scripts/train_tiny.py randar                # then any generator: codes, training, examination, shipping
    python scripts/train_tiny.py randar --dry-run      # what would be done
    python scripts/train_tiny.py iar2-tokenizer        # the same for two codes a place, in two stages; then: iar2
    python scripts/train_tiny.py dar-tokenizer         # and for a line of 64 tokens; then: dar
    python scripts/train_tiny.py vqkd-teacher          # a network that sees; then for codes of what it sees:
    python scripts/train_tiny.py vqkd-tokenizer        # features in one stage, their pixels in another; then: vqkd

The steps are those a user takes: train_tokenizer.py, extract_codes.py, train_generator.py with the recipe
shapes-8x8-NAME (shapes-dar); killed at any point, the same command goes on. One CPU thread (--threads), because more
gain little for models this small. A generator is examined at a third of the steps under several guidance scales, and at
all and an eighth of them under the best (one that draws token by token: at all); what was measured is written into its
card. Exits with 1, shipping nothing, when the samples' class accuracy there is below --at-least.
"""
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PICTURES = "shapes://?n=120000&size=32&seed=0"
TEACHER = "vqkd-teacher"
SCALES = (1.0, 2.0, 3.0, 5.0)      # of guidance, at which a generator is examined
ENDS = (1.0, 1.5, 2.0, 3.0)        # of the scales of attended guidance, which begin at 1
TOKENIZERS = {                     # their recipes, a stage each
    "tokenizer": ("shapes-8x8-tokenizer",),
    "iar2-tokenizer": ("shapes-iar2-tokenizer-first", "shapes-iar2-tokenizer-second"),
    "dar-tokenizer": ("shapes-dar-tokenizer",),
    "vqkd-tokenizer": ("shapes-vqkd-tokenizer", "shapes-vqkd-pixels")}
READS = {                          # whose codes a generator learns, if not the first tokenizer's
    "iar2": "iar2-tokenizer",
    "dar": "dar-tokenizer",
    "vqkd": "vqkd-tokenizer"}
RECIPES = {"dar": "shapes-dar", "vqkd": "shapes-vqkd"} # a generator's, if not shapes-8x8-NAME
SETTINGS = {                       # how the shipped pipeline samples unless asked otherwise
    "llamagen": dict(order="raster", schedule="one-by-one", rows=50),
    "randar": dict(order="random", schedule="cosine", steps=22, rows=50),
    "maskgit": dict(order="halton", schedule="arccos", steps=22, rows=50),
    "pgm": dict(order="halton", schedule="arccos", steps=22, rows=50),
    "rar": dict(order="raster", schedule="one-by-one", rows=50),
    "arpg": dict(order="random", schedule="arpg-cosine", steps=22, rows=50),
    "lpd": dict(order="locality", schedule="lpd", steps=22, rows=50),
    "iar2": dict(order="raster", schedule="one-by-one", rows=50),
    "dar": dict(order="raster", schedule="one-by-one", rows=50),
    "vqkd": dict(order="raster", schedule="one-by-one", rows=50)}
PICKS = {                          # how the shipped pipeline draws a code, if not as likely as it is
    "dar": dict(temperature=0.5),
    "vqkd": dict(temperature=0.7)}


@dataclass
class Options:
    "Which model, and where."
    name: tyro.conf.Positional[str]
    "vqkd-teacher; [iar2-|dar-|vqkd-]tokenizer; llamagen, randar, maskgit, pgm, rar, arpg, lpd, iar2, dar or vqkd"
    out: Path = Path("runs/tiny")
    "where the runs go; the tokenizer's codes are shared"
    ship: Path = ROOT / "vgnb" / "weights" / "tiny"
    "the folder of shipped models"
    at_least: float = 0.8
    "class accuracy at a third of the steps that a generator must reach"
    count: int = 1000
    "samples of each examination"
    threads: int = 1
    "CPU threads of the training"
    overwrite: bool = False
    "replace the shipped model of this name"
    dry_run: bool = False
    "say what would be done and stop"


def call(o: Options, *words) -> float:
    "Run one of the scripts; seconds. Its failure is ours."
    words = [str(w) for w in words]
    print(f"   python {' '.join(words)}", flush=True)
    if o.dry_run: return 0.0
    from vgnb.processes import run_below
    start = time.perf_counter()
    env = os.environ | {"OMP_NUM_THREADS": str(o.threads)}
    code = run_below([sys.executable, *words], cwd=ROOT, env=env)
    if code: sys.exit(code)
    return time.perf_counter() - start


def seconds(run: Path) -> int:
    "What a run took, over all its sessions, from its log."
    from vgnb.charts import read_records
    lines = [{"samples": 0}, *(r for r in read_records(run / "log.jsonl") if "per_second" in r)]
    took = [(b["samples"] - a["samples"]) / b["per_second"] for a, b in zip(lines, lines[1:])]
    return round(sum(t for t in took if t > 0))


def examine_tokenizer(folder: Path, count: int = 2000, batch: int = 250) -> dict:
    "What the tokenizer in a folder makes of held-out pictures."
    import numpy as np
    import torch

    from vgnb.data.shapes import Shapes
    from vgnb.evaluation.judge import judge_input, load_judge
    from vgnb.evaluation.reconstruction import ReconstructionMeter
    from vgnb.saved import load_model
    from vgnb.tokenizers.pictures import codes_of, pictures
    originals, labels = map(torch.from_numpy, Shapes(count, 32, seed=1).batch(np.arange(count)))
    model, meter = load_model(folder), ReconstructionMeter()
    judge, _ = load_judge()
    right, used = 0, [set() for _ in model.vocab]
    with torch.no_grad():
        for some, truth in zip(originals.split(batch), labels.split(batch)):
            codes = codes_of(model, some, batch)
            levels = model.tokens(codes).unbind(-1)
            for seen, level in zip(used, levels, strict=True): seen |= set(level.unique().tolist())
            rebuilt = torch.from_numpy(pictures(model, codes, rows=batch))
            meter.update(rebuilt, some)
            right += int((judge(judge_input(rebuilt)).argmax(1) == truth).sum())

    found, accuracy = meter.compute(), right / count
    of_codes = " and ".join(f"{len(seen)} of {size}" for seen, size in zip(used, model.vocab, strict=True))
    return {
        "psnr": round(found["psnr"], 2),
        "ssim": round(found["ssim"], 4),
        "judge_accuracy": accuracy,
        "codes_used": sum(map(len, used)),
        "held_out": count,
        "torch": torch.__version__,
        "result": f"PSNR {found['psnr']:.2f} dB, SSIM {found['ssim']:.3f}, {of_codes} codes, "
                  f"judge on reconstructions {accuracy:.1%}"}


def preview_distances(folder: Path, count: int = 200) -> dict:
    "Where a decoder shows pictures on its way: their mean squared distance to the last one, after each step."
    import numpy as np
    import torch

    from vgnb.data.shapes import Shapes
    from vgnb.saved import load_model
    from vgnb.tokenizers.pictures import codes_of
    model = load_model(folder)
    if not hasattr(model, "previews"): return {}
    originals = torch.from_numpy(Shapes(count, 32, seed=1).batch(np.arange(count))[0])
    seen = model.previews(codes_of(model, originals, count)).clamp(-1, 1)               # (b, k, 3, h, w)
    away = (seen - seen[:, -1:]).square().mean((0, 2, 3, 4)).tolist()
    return {"preview_distances": [round(d, 5) for d in away]}


def teacher(o: Options) -> int:
    "Train, examine and ship the teacher."
    import torch

    from vgnb.core import as_json
    from vgnb.shipped import ship_model
    from vgnb.tokenizers.shapes_teacher import ShapesTeacherRecipe, examine_teacher, train_shapes_teacher
    recipe = ShapesTeacherRecipe()
    print(f"   {recipe}", flush=True)
    if o.dry_run: return 0
    torch.set_num_threads(o.threads)
    start = time.process_time()
    def show(step, what, how):
        if step % 100 == 99: print(f"step {step + 1:5}  labels {what:.3f}  pixels {how:.4f}", flush=True)
    made = train_shapes_teacher(recipe, show)
    spent = round(time.process_time() - start)

    from vgnb.saved import load_model
    found = examine_teacher(load_model(ship_model(o.out / "shipped" / o.name, made)))   # what is examined is shipped
    record = {
        "command": f"python scripts/train_tiny.py {o.name}",
        "recipe": as_json(recipe),
        "size": 32,
        "seconds": spent,
        "torch": torch.__version__,
        **found,
        "result": f"shapes known from all features {found['shape_from_all']:.1%}, "
                  f"from one {found['shape_from_one']:.1%}; "
                  f"{found['pixels_from_one']:.1%} of a patch's pixels told by its feature"}
    ship_model(o.ship / o.name, made, **record)
    print(record["result"])
    return 0


def run_name(recipe: str) -> str:
    "shapes-8x8-tokenizer: tokenizer; shapes-iar2-tokenizer-first: iar2-first."
    return recipe.removeprefix("shapes-").removeprefix("8x8-").replace("-tokenizer-", "-")


def tokenizer(o: Options) -> int:
    "Train, stage after stage, examine and ship a tokenizer."
    stages = [(recipe, o.out / run_name(recipe)) for recipe in TOKENIZERS[o.name]]
    before = None
    for recipe, run in stages:
        call(o, "scripts/train_tokenizer.py", recipe, *(["--start", before] if before else []), "--out", run)
        before = run
    if o.dry_run: return 0

    from vgnb.saved import load_model
    from vgnb.shipped import ship_model
    run = stages[-1][1]
    trial = ship_model(o.out / "shipped" / o.name, load_model(run / "model"))
    found = examine_tokenizer(trial)                                # what is examined is what is shipped
    spent = sum(seconds(run) for _, run in stages)
    command = f"python scripts/train_tiny.py {o.name}"
    record = {"command": command, "size": 32, "seconds": spent} | found | preview_distances(trial)
    ship_model(o.ship / o.name, load_model(run / "model"), **record)
    print(record["result"])
    return 0


def tokenizer_of(generator: str) -> str:
    "Whose codes a generator learns."
    return READS.get(generator, "tokenizer")


def train_generator(o: Options, recipe: str, run: Path):
    "Codes, then training."
    reads = tokenizer_of(o.name)
    codes = o.out / reads.replace("tokenizer", "codes")
    call(o, "scripts/extract_codes.py", "--tokenizer", o.ship / reads, "--data", PICTURES, "--size", 32,
         "--batch", 250, "--shard-size", 8000, "--out", codes)
    call(o, "scripts/train_generator.py", recipe, "--data", codes, "--out", run)


def guidances(model) -> list:
    "What a generator is examined under: scales, or where it tells its attention to the class, attended guidance."
    from vgnb.sampling.attended_guidance import AttendedGuidance
    if "class_attention" not in model.traits: return list(SCALES)
    return [AttendedGuidance((1.0,), (end,)) for end in ENDS]


def chosen(table: list[dict], steps: int) -> dict:
    "The row whose guidance is shipped: the lowest FID among those within two points of the best accuracy."
    rows = [r for r in table if r["steps"] == steps]
    best = max(r["accuracy"] for r in rows)
    return min((r for r in rows if r["accuracy"] >= best - 0.02), key=lambda r: r["fid"])


def examine_generator(o: Options, pipe, cells: int) -> tuple[list[dict], dict]:
    "(all that was measured, the row that is shipped)."
    import torch

    from scripts.studies.any_order import Bench
    torch.set_num_threads(o.threads)
    bench, singly = Bench(o.count), pipe.generator.most == 1
    def examine(steps, guidance):
        row = bench.point(pipe, guidance=guidance, **({} if singly else {"steps": steps}))
        measured = {name: row[name] for name in ("accuracy", "fid", "seconds")}
        return {"steps": steps, "guidance": guidance, **measured, "count": o.count}
    few = cells if singly else math.ceil(cells / 3)
    table = [examine(few, guidance) for guidance in guidances(pipe.generator)]
    best = chosen(table, few)
    if not singly: table += [examine(steps, best["guidance"]) for steps in (cells, cells // 8)]
    return table, best


def sampling_of(name: str, **more):
    "How a generator samples, with some settings more."
    from vgnb.sampling.pick import Pick
    from vgnb.sampling.settings import Sampling
    if name in PICKS: more["picks"] = (Pick(**PICKS[name]),)
    return Sampling(**SETTINGS[name], **more)


def generator(o: Options) -> int:
    "Codes, training, examination, shipping."
    recipe, run = RECIPES.get(o.name, f"shapes-8x8-{o.name}"), o.out / o.name
    train_generator(o, recipe, run)
    if o.dry_run: return 0

    import torch

    from vgnb.kinds import to_json
    from vgnb.pipeline import Pipeline
    from vgnb.sampling.settings import short_form
    from vgnb.saved import load_model
    from vgnb.shipped import ship_pipeline
    reads = tokenizer_of(o.name)
    model, sampling = load_model(run / "model"), sampling_of(o.name)
    classes, grid = model.card["classes"], model.grid
    cells = math.prod(grid)
    trial = o.out / "shipped" / o.name
    ship_pipeline(trial, model, sampling, classes, grid, tokenizer=reads, result="")
    pipe = Pipeline(load_model(o.ship / reads), load_model(trial / "generator"), sampling, classes)

    table, best = examine_generator(o, pipe, cells)
    found = f"{best['accuracy']:.1%} of {o.count} samples as asked at {best['steps']} of {cells} steps"
    if best["accuracy"] < o.at_least:
        print(f"{found} is below --at-least {o.at_least:.0%}; nothing shipped", file=sys.stderr)
        return 1

    shipped = sampling_of(o.name, guidance=best["guidance"])
    record = {
        "command": f"python scripts/train_tiny.py {o.name}",
        "recipe": recipe,
        "seconds": seconds(run),
        "threads": o.threads,
        "torch": torch.__version__,
        "table": to_json(table),
        "result": f"{found}, {short_form(shipped.guidance)}"}
    ship_pipeline(o.ship / o.name, model, shipped, classes, grid, tokenizer=reads, **record)
    print(record["result"])
    return 0


def main(argv: list[str]) -> int:
    from vgnb.cli import typed_cli
    from vgnb.core import Missing, check, check_choice
    from vgnb.places import check_vacant, locked_file
    o = typed_cli(Options, args=argv, description=__doc__)
    check_choice("name", o.name, (TEACHER, *TOKENIZERS, *SETTINGS))
    work = teacher if o.name == TEACHER else tokenizer if o.name in TOKENIZERS else generator
    if o.dry_run: return work(o)
    check_vacant(o.ship / o.name, o.overwrite, "ship")
    if work is generator:
        reads = tokenizer_of(o.name)
        allowed = f"must hold {reads}, whose codes {o.name} learns: make that first, with the same --ship"
        check((o.ship / reads).is_dir(), "ship", o.ship, allowed, Missing)
    with locked_file(o.out / o.name): return work(o)


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
