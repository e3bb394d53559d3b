"""Generate images from a saved pipeline, or from a tokenizer and a generator.

    python scripts/sample.py runs/quickstart --count 64 --sheet grid.png
    python scripts/sample.py runs/quickstart --classes heart ring --count 16 --sampling.cfg-scale 3
    accelerate launch scripts/sample.py runs/quickstart --count 50000 --out runs/fid.npz        # all GPUs; kill it, start it again: it goes on
    python scripts/sample.py --tokenizer vq_ds16_c2i.pt --generator c2i_L_384.pt --size 256     # published files
    python scripts/sample.py --tokenizer T --generator G --prompts prompts.txt --text-encoder google/flan-t5-xl

With a generator that fills cells in any order, also from pictures (a file, a folder, a tar or an npz), and larger than in training:

    python scripts/sample.py PIPE --inpaint photo.png --mask mask.png --classes heart --count 8 --paste     # white pixels of the mask made anew, 8 variants
    python scripts/sample.py PIPE --outpaint photos/ --canvas 384 512 --at 64 128                            # pixels; the pictures' own classes
    python scripts/sample.py PIPE --extrapolate 32 32 --spatial-scale 1 2.5 --ntk-boundary 2                 # cells; guided by --sampling.cfg-scale too

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
    count: int | None = None
    "how many images; their ids are 0 ... count-1 (default: as many as there are pictures to start from, else 64)"
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
    inpaint: str = ""
    "make the marked pixels of these pictures anew: image i starts from picture i, after the last one from the first again"
    mask: str = ""
    "for --inpaint: a picture, or a folder with one for each; white is made anew"
    outpaint: str = ""
    "continue these pictures on a larger canvas"
    canvas: tuple[int, int] | None = None
    "for --outpaint: height and width of the whole in pixels"
    at: tuple[int, int] | None = None
    "for --outpaint: row and column of the picture's upper left pixel (default: in the middle)"
    extrapolate: tuple[int, int] | None = None
    "code grid (height width, in cells) larger than the generator's: a coarse picture first, then the cells between"
    spatial_scale: tuple[float, float] | None = None
    "for --extrapolate: guidance by the context, at the first and at the last cell (default: 2.5 2.5; 1 1 = none)"
    spatial_ratio: float | None = None
    "for --extrapolate: share of the coarse cells that the blinded branch doesn't see (default: 0.5)"
    ntk_boundary: int | None = None
    "rotary frequencies below it go on counting, the others are squeezed (default of --extrapolate: 2; of --outpaint: no single run but windows of the training grid)"
    crop: int | None = None
    "centre-crop pictures and masks to this side first"
    paste: bool = False
    "put the known pixels back as they were"
    seam: int = 0
    "for --paste: pixels around the mask in which old and new are mixed"
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
    from vgnb.saved import load_model
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


def encode_prompts(o: Options, pipe, count: int):
    "Left-padded features (b, t, d) and mask (b, t) of the prompts."
    from vgnb.core import Missing, check
    from vgnb.data.text import TextEncoder, left_pad
    check(o.prompts.is_file(), "prompts", o.prompts, "no such file", Missing)
    lines = [l.strip() for l in o.prompts.read_text(encoding="utf-8").splitlines() if l.strip()][:count]
    check(lines, "prompts", o.prompts, "must hold at least one line of text")
    features, mask = TextEncoder(o.text_encoder)(lines)
    return left_pad(features, mask)


def planned(o: Options, pipe, work, names):
    "What is asked of each image: its class, or its caption's features and their mask."
    from vgnb.core import check, check_choice
    from vgnb.jobs import planned_labels
    count = o.count or (len(work.images) if hasattr(work, "images") else 64)
    if o.prompts: return (None, *encode_prompts(o, pipe, count))
    check(pipe.generator.config.condition == "class", "prompts", None, "are needed: this generator follows captions")
    known = {n: i for i, n in enumerate(pipe.classes)}
    only = [int(c) if c.isdigit() else known[check_choice("classes", c, tuple(pipe.classes))] for c in o.classes]
    if only or not names or not set(names) <= set(known): return planned_labels(count, pipe.generator.config.classes, o.labels, only, o.seed), None, None
    own = [known[names[l]] for l in work.images.labels]
    return planned_labels(count, pipe.generator.config.classes, only=[own[i % len(own)] for i in range(count)]), None, None


def main(argv: list[str]) -> int:
    from vgnb.core import check, check_int, check_place
    from vgnb.jobs import SampleJob, picture_work
    from vgnb.pipeline import saved_sampling
    from vgnb.cli import typed_cli
    from vgnb.processes import Processes
    o = typed_cli(Options, args=argv, default=Options(sampling=saved_sampling(argv)), description=__doc__)
    if o.count is not None: check_int("count", o.count, 1)
    check(o.out.suffix == ".npz", "out", o.out, "must end in .npz")
    if o.sheet: check_place("sheet", o.sheet.parent)
    processes = Processes()
    pipe = open_pipeline(o, processes.device)
    work, names = picture_work(**{k: getattr(o, k) for k in ("inpaint", "mask", "outpaint", "canvas", "at", "extrapolate", "spatial_scale", "spatial_ratio", "ntk_boundary", "crop", "paste", "seam")})
    labels, text, mask = planned(o, pipe, work, names)
    job = SampleJob(pipe, labels, o.out, o.seed, o.size, o.part, text=text, mask=mask, work=work)
    if processes.main: print(f"{job.count} images {work.words(pipe)} with {pipe.sampling} on {processes.world} process(es), {processes.device}")
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
    from vgnb.cli import run_main
    sys.exit(run_main(main))
