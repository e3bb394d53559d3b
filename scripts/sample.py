"""Generate images from a saved pipeline, or from a tokenizer and a generator.

    python scripts/sample.py runs/quickstart --count 64 --sheet grid.png
    python scripts/sample.py runs/quickstart --classes heart ring --count 16 --guidance.scale 3
    python scripts/sample.py tiny-maskgit --order confidence --order.noise 4.5 --schedule arccos --steps 12
    # all GPUs; killed, it goes on
    accelerate launch scripts/sample.py runs/quickstart --count 50000 --out runs/fid.npz
    python scripts/sample.py --tokenizer vq_ds16_c2i.pt --generator c2i_L_384.pt --size 256  # published files
    python scripts/sample.py --tokenizer T --generator G --prompts prompts.txt --text-encoder google/flan-t5-xl

With a generator that fills cells in any order, also from pictures (a file, a folder, a tar or an npz), and larger than
in training:

    python scripts/sample.py PIPE --inpaint photo.png --mask mask.png --classes heart --count 8 --paste
    python scripts/sample.py PIPE --outpaint photos/ --canvas 384 512 --at 64 128
    python scripts/sample.py PIPE --morph photos/ --frames 8 --classes star
    python scripts/sample.py PIPE --extrapolate 32 32 --spatial-scale 1 2.5 --ntk-boundary 2

Image i of a seed is the same on any number of processes. Writes OUT.npz (`arr_0` uint8 NHWC, `labels`) and
OUT.run.json. How tokens are drawn is the pipeline's own choice by default; --order, --guidance and --picks.0 take a
part by name, its fields are then options. Wrong input ends with one line and exit code 2, before anything is sampled.
"""
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vgnb.sampling.settings import Sampling

@dataclass
class Source:
    "What is sampled."
    pipeline: Annotated[str, tyro.conf.Positional] = ""
    "folder of a saved pipeline, a shipped one (tiny-randar), or hub repository owner/name"
    tokenizer: str = ""
    "instead of a pipeline: a model folder, or a published file"
    generator: str = ""
    "instead of a pipeline: a model folder, or a published file"
    system: str = ""
    "whose published files these are, where their names don't tell"
    ema: bool | None = None
    "averaged weights: required, refused, or (default) where there are some"
    count: int | None = None
    "how many samples; ids are 0 ... count-1 (default: one for each picture to start from, else 64)"
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
    grid: tuple[int, int] | None = None
    "code grid, where it differs from the generator's own"


@dataclass
class Painting:
    "Pictures that are there, and larger ones."
    inpaint: str = ""
    "make the marked pixels of these pictures anew: sample i starts from picture i, after the last from the first again"
    mask: str = ""
    "for --inpaint and --morph: a picture, or a folder with one for each; white is made anew"
    outpaint: str = ""
    "continue these pictures on a larger canvas"
    canvas: tuple[int, int] | None = None
    "for --outpaint: height and width of the whole in pixels"
    at: tuple[int, int] | None = None
    "for --outpaint: row and column of the picture's upper left pixel (default: in the middle)"
    morph: str = ""
    "turn these pictures into the classes asked for; frame by frame, one sample's pictures in a row"
    frames: int | None = None
    "for --morph: pictures on the way (default: 8)"
    extrapolate: tuple[int, int] | None = None
    "code grid (height width, in cells) larger than the generator's: a coarse picture first, then the cells between"
    spatial_scale: tuple[float, float] | None = None
    "for --extrapolate: guidance by the context, at the first and last cell (default: 2.5 2.5; 1 1 = none)"
    spatial_ratio: float | None = None
    "for --extrapolate: share of the coarse cells that the blinded branch doesn't see (default: 0.5)"
    ntk_boundary: int | None = None
    "rotary frequencies below it go on counting (default for --extrapolate: 2, for --outpaint: training-grid windows)"
    crop: int | None = None
    "centre-crop pictures and masks to this side first"
    paste: bool = False
    "put the known pixels back as they were"
    seam: int = 0
    "for --paste: pixels around the mask in which old and new are mixed"


@dataclass
class Output:
    "Where the images go."
    out: Path = Path("runs/samples.npz")
    "the file of images; its record lies beside it"
    size: int | None = None
    "side of the images, resized with bicubic interpolation (default: as decoded)"
    part: int = 64
    "samples a part of the job"
    sheet: Path | None = None
    "also write the first images as one PNG"
    dry_run: bool = False
    "load, check and say what would be done"


@dataclass
class Options:
    "What to sample, and how."
    source: Annotated[Source, tyro.conf.arg(name="")] = field(default_factory=Source)
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)
    painting: Annotated[Painting, tyro.conf.arg(name="")] = field(default_factory=Painting)
    output: Annotated[Output, tyro.conf.arg(name="")] = field(default_factory=Output)


def open_part(source: Source, argument: str, device):
    "A tokenizer or generator from a model folder or a published file."
    from vgnb.core import Missing, check
    from vgnb.saved import load_model
    from vgnb.zoo import load_published
    where = getattr(source, argument)
    check(where, argument, where or None, "is needed: give a pipeline folder, or --tokenizer and --generator")
    check(Path(where).exists(), argument, where, "no such file or folder", Missing)
    if Path(where).is_dir(): return load_model(where, ema=source.ema, device=device)
    return load_published(where, system=source.system or None).to(device)


def open_pipeline(source: Source, sampling: Sampling, device):
    "The pipeline that the options name."
    from vgnb.pipeline import Pipeline
    if source.pipeline:
        pipe = Pipeline.from_pretrained(source.pipeline, device, ema=source.ema)
    else:
        pipe = Pipeline(*(open_part(source, part, device) for part in ("tokenizer", "generator")))
    classes = pipe.classes or getattr(pipe.generator, "card", {}).get("classes")
    return Pipeline(pipe.tokenizer, pipe.generator, sampling, classes, source.grid or pipe.grid.shape)


def encode_prompts(source: Source, count: int):
    "Left-padded features (b, t, d) and mask (b, t) of the prompts."
    from vgnb.core import Missing, check
    from vgnb.data.text import TextEncoder, left_pad
    check(source.prompts.is_file(), "prompts", source.prompts, "no such file", Missing)
    lines = [line.strip() for line in source.prompts.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line][:count]
    check(lines, "prompts", source.prompts, "must hold at least one line of text")
    features, mask = TextEncoder(source.text_encoder)(lines)
    return left_pad(features, mask)


def asked_of_each(source: Source, pipe, images, names: list[str]) -> dict:
    "What is asked of each sample: its class, or its caption's features and their mask."
    from vgnb.core import check
    from vgnb.data.sources import find_class
    from vgnb.jobs import planned_labels
    count = source.count or (64 if images is None else len(images))
    if source.prompts:
        text, mask = encode_prompts(source, count)
        return {"labels": None, "text": text, "mask": mask}

    by_class = pipe.generator.conditioned_on == "class"
    check(by_class, "prompts", None, "are needed: this generator follows captions")
    known = {name: i for i, name in enumerate(pipe.classes)}
    only = [find_class(c, pipe.classes, pipe.generator.classes, "classes") for c in source.classes]
    of_the_pictures = not only and names and set(names) <= set(known)
    if of_the_pictures:
        own = [known[names[label]] for label in images.labels]
        only = [own[i % len(own)] for i in range(count)]
        return {"labels": planned_labels(count, pipe.generator.classes, only=only)}
    return {"labels": planned_labels(count, pipe.generator.classes, source.labels, only, source.seed)}


def main(argv: list[str]) -> int:
    from vgnb.cli import typed_cli
    from vgnb.core import check, check_int, check_place
    from vgnb.jobs import SampleJob, asked_for
    from vgnb.pipeline import saved_sampling
    from vgnb.processes import Processes
    default = Options(sampling=saved_sampling(argv))
    groups = ("source", "sampling", "painting", "output")
    o = typed_cli(Options, args=argv, default=default, flat=groups, description=__doc__)
    source, output = o.source, o.output
    if source.count is not None: check_int("count", source.count, 1)
    check(output.out.suffix == ".npz", "out", output.out, "must end in .npz")
    if output.sheet: check_place("sheet", output.sheet.parent)

    processes = Processes()
    pipe = open_pipeline(source, o.sampling, processes.device)
    what, images, names = asked_for(**asdict(o.painting))
    asked = asked_of_each(source, pipe, images, names)
    job = SampleJob(pipe, out=output.out, seed=source.seed, size=output.size, part=output.part,
                    what=what, images=images, **asked)
    if processes.main: print(in_words(job, processes))
    if output.dry_run: return 0

    job.run(processes)
    if processes.main:
        print(f"written to {output.out}")
        if output.sheet: write_sheet(output)
    return 0


def in_words(job, processes) -> str:
    "What is about to be done."
    start = "" if job.images is None else f"from {len(job.images)} pictures, "
    what = f"on grid {job.pipe.grid.shape}" if job.what is None else job.what.words()
    where = f"on {processes.world} process(es), {processes.device}"
    return f"{job.count * job.each} images {start}{what} with {job.pipe.sampling} {where}"


def write_sheet(output: Output):
    "The first images as one PNG."
    from vgnb.evaluation.samples import read_npz
    from vgnb.figures import tile_sheet
    images = read_npz(output.out, "arr_0")[:64]
    output.sheet.parent.mkdir(parents=True, exist_ok=True)
    tile_sheet([images[i:i + 8] for i in range(0, len(images), 8)]).save(output.sheet)
    print(f"sheet of {len(images)} images: {output.sheet}")


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
