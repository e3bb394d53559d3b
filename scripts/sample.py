"""Generate images from a saved pipeline, or from a tokenizer and a generator.

    python scripts/sample.py runs/quickstart --count 64 --sheet grid.png
    python scripts/sample.py runs/quickstart --classes heart ring --count 16 --sampling.cfg-scale 3
    accelerate launch scripts/sample.py runs/quickstart --count 50000 --out runs/fid.npz        # all GPUs; kill it, start it again: it goes on
    python scripts/sample.py --tokenizer vq_ds16_c2i.pt --generator c2i_L_384.pt --size 256     # published files
    python scripts/sample.py --tokenizer T --generator G --prompts prompts.txt --text-encoder google/flan-t5-xl

Image i of a seed is the same on any number of processes. Writes OUT.npz (`arr_0` uint8 NHWC, `labels`) and OUT.run.json. The defaults of --sampling.* are
the pipeline's own. Wrong input ends with one line on stderr and exit code 2, before anything is sampled.
"""
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vgnb.sampling.settings import Sampling


@dataclass
class Options:
    "What to sample, and how."
    pipeline: Annotated[str, tyro.conf.Positional] = ""
    "folder of a saved pipeline, or hub repository owner/name"
    tokenizer: str = ""
    "instead of a pipeline: a model folder, or a published file"
    generator: str = ""
    "instead of a pipeline: a model folder, or a published file"
    out: Path = Path("runs/samples.npz")
    "where the images go"
    count: int = 64
    "how many images; their ids are 0 ... count-1"
    labels: Literal["balanced", "random"] = "balanced"
    "classes in turn, or drawn"
    classes: tuple[str, ...] = ()
    "only these (names or numbers)"
    prompts: Path | None = None
    "a text file, one caption a line, for text-conditional generators"
    text_encoder: str = "google/flan-t5-xl"
    "T5 encoder for --prompts: a local folder or a hub name"
    seed: int = 0
    "all draws count from it"
    size: int | None = None
    "side of the images, resized with bicubic interpolation (default: as decoded)"
    grid: tuple[int, int] | None = None
    "code grid, where it differs from the generator's own"
    part: int = 64
    "images a part of the job"
    sheet: Path | None = None
    "also write the first images as one PNG"
    sampling: Sampling = field(default_factory=Sampling)
    "how tokens are drawn"
    ema: bool | None = None
    "averaged weights: required, refused, or (default) where there are some"
    dry_run: bool = False
    "load, check and say what would be done"


def open_part(where: str, argument: str, ema, device):
    "A tokenizer or generator from a model folder or a published file."
    from vgnb.core import Missing, check
    from vgnb.training.checkpoints import load_model
    from vgnb.zoo import load_published
    check(where, argument, where or None, f"is needed: give a pipeline folder, or --tokenizer and --generator")
    check(Path(where).exists(), argument, where, "no such file or folder", Missing)
    return load_model(where, ema=ema, device=device) if Path(where).is_dir() else load_published(where).to(device)


def open_pipeline(o: Options, device):
    "The pipeline that the options name."
    from vgnb.pipeline import Pipeline
    if o.pipeline: pipe = Pipeline.from_pretrained(o.pipeline, device, ema=o.ema)
    else: pipe = Pipeline(open_part(o.tokenizer, "tokenizer", o.ema, device), open_part(o.generator, "generator", o.ema, device))
    classes = pipe.classes or getattr(pipe.generator, "card", {}).get("classes")
    return Pipeline(pipe.tokenizer, pipe.generator, o.sampling, classes, o.grid or pipe.grid.shape)


def encode_prompts(o: Options, pipe):
    "Left-padded features (b, t, d) and mask (b, t) of the prompts."
    from vgnb.core import Missing, check
    from vgnb.data.text import TextEncoder, left_pad
    check(o.prompts.is_file(), "prompts", o.prompts, "no such file", Missing)
    lines = [l.strip() for l in o.prompts.read_text(encoding="utf-8").splitlines() if l.strip()][:o.count]
    check(lines, "prompts", o.prompts, "must hold at least one line of text")
    features, mask = TextEncoder(o.text_encoder)(lines)
    return left_pad(features, mask)


def main(argv: list[str]) -> int:
    from vgnb.core import check, check_choice, check_int, check_place
    from vgnb.jobs import SampleJob, planned_labels
    from vgnb.pipeline import saved_sampling
    from vgnb.training.commands import typed_cli
    from vgnb.training.processes import Processes
    o = typed_cli(Options, args=argv, default=Options(sampling=saved_sampling(argv)), description=__doc__)
    check_int("count", o.count, 1)
    check(o.out.suffix == ".npz", "out", o.out, "must end in .npz")
    if o.sheet: check_place("sheet", o.sheet.parent)
    processes = Processes()
    pipe = open_pipeline(o, processes.device)
    labels = text = mask = None
    if o.prompts: text, mask = encode_prompts(o, pipe)
    else:
        check(pipe.generator.config.condition == "class", "prompts", None, "are needed: this generator follows captions")
        known = {n: i for i, n in enumerate(pipe.classes)}
        only = [int(c) if c.isdigit() else known[check_choice("classes", c, tuple(pipe.classes))] for c in o.classes]
        labels = planned_labels(o.count, pipe.generator.config.classes, o.labels, only, o.seed)
    job = SampleJob(pipe, labels, o.out, o.seed, o.size, o.part, text=text, mask=mask)
    if processes.main: print(f"{job.count} images on grid {pipe.grid.shape} with {pipe.sampling} on {processes.world} process(es), {processes.device}")
    if o.dry_run: return 0
    job.run(processes)
    if processes.main:
        print(f"written to {o.out}")
        if o.sheet: write_sheet(o, pipe)
    return 0


def write_sheet(o: Options, pipe):
    "The first images as one PNG."
    from vgnb.evaluation.samples import read_npz
    from vgnb.figures import tile_sheet
    images = read_npz(o.out, "arr_0")[:64]
    o.sheet.parent.mkdir(parents=True, exist_ok=True)
    tile_sheet([images[i:i + 8] for i in range(0, len(images), 8)]).save(o.sheet)
    print(f"sheet of {len(images)} images: {o.sheet}")


if __name__ == "__main__":
    from vgnb.training.commands import run_main
    sys.exit(run_main(main))
