"""Generate images from a saved pipeline, or from a tokenizer and a generator.

    python scripts/sample.py runs/quickstart --count 64 --sheet grid.png
    python scripts/sample.py runs/quickstart --classes heart ring --count 16 --guidance 3
    python scripts/sample.py tiny-maskgit --order confidence --order.noise 4.5 --schedule arccos --steps 12
    # IAR2's four scales: at the first cell and at the last, of the semantic and of the detail codes
    python scripts/sample.py tiny-iar2 --guidance.start 1.75 1.5 --guidance.end 3 2.5 --guidance.attention 0.05
    # scales of 1 are none: only the semantic codes are guided
    python scripts/sample.py tiny-iar2 --guidance.start 1.75 1 --guidance.end 3 1 --precision bf16
    # all GPUs; killed, it goes on
    accelerate launch scripts/sample.py runs/quickstart --count 50000 --out runs/fid.npz
    python scripts/sample.py --tokenizer vq_ds16_c2i.pt --generator c2i_L_384.pt --size 256  # published files
    python scripts/sample.py --tokenizer T --generator G --prompts prompts.txt --text-encoder google/flan-t5-xl

With a generator that fills cells in any order, also from pictures (a file, a folder, a tar or an npz), and larger than
in training. One along the raster (LlamaGen, IAR2) goes on from the first cells: a mask that is white from some row on,
as the lower half of a picture:

    python scripts/sample.py PIPE --inpaint photo.png --mask mask.png --classes heart --count 8 --paste
    python scripts/sample.py PIPE --outpaint photos/ --canvas 384 512 --at 64 128
    python scripts/sample.py PIPE --morph photos/ --frames 8 --classes star
    python scripts/sample.py PIPE --extrapolate 32 32 --spatial-scale 1 2.5 --ntk-boundary 2

The first codes shared, with any generator: of the first sample, or of a picture:

    python scripts/sample.py PIPE --prefix 32 --classes heart star ring
    python scripts/sample.py PIPE --prefix 32 --like photo.png --classes star --count 8

With a tokenizer that decodes group by group (D-AR), after k denoising steps, and each preview:

    python scripts/sample.py PIPE --preview 4 --count 16 --sheet early.png
    python scripts/sample.py PIPE --strip previews.png --guidance.start 1.2 --guidance.scale 8 --guidance.by cell

Drawn again where a classifier doubts it (precision for variety; the record says so):

    python scripts/sample.py tiny-randar --reject-by shapes-judge --reject-tries 4

Image i of a seed is the same on any number of processes. Writes OUT.npz (`arr_0` uint8 NHWC, `labels`) and
OUT.run.json. Killed, the same command goes on; finished, it does nothing; what another command left at OUT stays unless
--overwrite is given. How tokens are drawn is the pipeline's own choice by default; --order, --guidance and --picks.0
take a part by name, its fields are then options. One pick stands for all levels of
codes; --picks.1 plain adds one for the second level, whose options are then --picks.1.top-k and so on. Wrong input ends
with one line and exit code 2, before anything is sampled.
"""
import sys
from dataclasses import asdict, dataclass, field, replace
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
    "instead of a pipeline: a folder (of a model, of its run, of a pipeline), a shipped name, or a published file"
    generator: str = ""
    "instead of a pipeline: as the tokenizer"
    tokenizer_system: str = ""
    "whose published file the tokenizer is, where its name doesn't tell"
    generator_system: str = ""
    "whose published file the generator is, where its name doesn't tell"
    tokenizer_prefix: str = ""
    "what stands before the names in the tokenizer's published file: model."
    generator_prefix: str = ""
    "what stands before the names in the generator's published file: model."
    mixed: bool = False
    "the generator was trained on another tokenizer's codes, and that is meant"
    ema: bool | None = None
    "averaged weights: True = required, False = refused, None = where there are some"
    count: int | None = None
    "how many samples; ids are 0 ... count-1; None = one for each picture to start from, else 64"
    labels: Literal["balanced", "random"] = "balanced"
    "classes in turn, or drawn"
    classes: tuple[str, ...] = ()
    "only these: names, or numbers where no class has that name; none = all"
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
    "Pictures that are there, changed or continued."
    inpaint: str | None = None
    "make the marked pixels of these pictures anew: sample i starts from picture i, after the last from the first again"
    mask: str | None = None
    "for --inpaint and --morph: a picture, or a folder with one for each; white is made anew"
    outpaint: str | None = None
    "continue these pictures on a larger canvas"
    canvas: tuple[int, int] | None = None
    "for --outpaint: height and width of the whole in pixels"
    at: tuple[int, int] | None = None
    "for --outpaint: row and column of the picture's upper left pixel; None = in the middle"
    morph: str | None = None
    "turn these pictures into the classes asked for; frame by frame, one sample's pictures in a row"
    frames: int | None = None
    "for --morph: pictures on the way; None = 8"
    morph_order: str | None = None
    "for --morph: in which order the region grows; spiral-out: from the middle; None = halton, everywhere at once"
    afresh: bool = False
    "for --morph: make the whole region anew in each picture"
    prefix: int | None = None
    "share so many codes, the first ones: those of the first sample, or of --like (D-AR: same layout, other classes)"
    like: str | None = None
    "for --prefix: pictures whose first codes are kept; one for all samples, or sample i goes on from picture i"
    crop: int | None = None
    "centre-crop pictures and masks to this side first"
    orientation: Literal["upright", "stored"] = "upright"
    "pictures and masks turned as their EXIF says, or as published code reads them"
    paste: bool = False
    "put the known pixels back as they were"
    seam: int | None = None
    "for --paste: pixels around the mask in which old and new are mixed; None = 0"

    def given(self) -> dict:
        "The options as `asked_for` takes them: None is what was not asked for, and so is a flag that is off."
        stored = "stored" if self.orientation == "stored" else None
        return asdict(self) | {"paste": self.paste or None, "afresh": self.afresh or None, "orientation": stored}


@dataclass
class Larger:
    "Pictures of more codes than the generator was trained on."
    extrapolate: tuple[int, int] | None = None
    "code grid (height width, in cells) larger than the generator's: a coarse picture first, then the cells between"
    spatial_scale: tuple[float, float] | None = None
    "for --extrapolate: guidance by the context, at the first and last cell; 1 1 = none, None = 2.5 2.5"
    spatial_ratio: float | None = None
    "for --extrapolate: share of the coarse cells that the blinded branch doesn't see; None = 0.5"
    ntk_boundary: int | None = None
    "rotary frequencies below it go on counting; None = 2 for --extrapolate, training-grid windows for --outpaint"


@dataclass
class Choosing:
    "Samples that a classifier doubts, drawn again."
    reject_by: str = ""
    "the classifier, an extractor by name: shapes-judge, ...; each sample is the candidate that it likes best"
    reject_weights: Path | None = None
    "for --reject-by: file of its weights; None = the shipped or published ones"
    reject_tries: int | None = None
    "for --reject-by: candidates of a sample at most; None = 4"
    reject_enough: float | None = None
    "for --reject-by: probability of the asked class with which a candidate is kept at once; None = 1, draw all"

    def parts(self, device) -> dict:
        "The job's rejection and classifier; nothing without --reject-by."
        from vgnb.core import check
        from vgnb.evaluation.features import load_extractor
        from vgnb.rejection import Rejection
        given = {name: value for name, value in asdict(self).items() if value not in ("", None)}
        for name, value in given.items(): check(self.reject_by, name, value, "only goes with reject_by")
        if not given: return {}
        settings = {name: given[f"reject_{name}"] for name in ("tries", "enough") if f"reject_{name}" in given}
        rejection = Rejection(**settings)
        return {"reject": rejection, "classifier": load_extractor(self.reject_by, self.reject_weights, device)}


@dataclass
class Output:
    "Where the images go."
    out: Path = Path("runs/samples.npz")
    "the file of images; its record lies beside it"
    size: int | None = None
    "side of the images, resized with bicubic interpolation; None = as decoded"
    preview: int | None = None
    "stop after so many denoising steps, where the tokenizer decodes group by group; the other tokens aren't drawn"
    denoise: int | None = None
    "steps of a decoder that begins with noise; None = its own"
    part: int = 64
    "samples a part of the job"
    sheet: Path | None = None
    "also write the first images as one PNG; the record at --out knows its hash, and no other picture is overwritten"
    strip: Path | None = None
    "also write every preview of the first samples as one PNG, one after each denoising step; recorded as the sheet is"
    overwrite: bool = False
    "what another command left in these places, finished or begun, may go"
    dry_run: bool = False
    "load, check and say what would be done"

    def pictures(self) -> list[tuple[str, Path]]:
        "The pictures that are asked for besides, by option."
        return [(name, path) for name in ("sheet", "strip") if (path := getattr(self, name)) is not None]


@dataclass
class Options:
    "What to sample, and how."
    source: tyro.conf.OmitArgPrefixes[Source] = field(default_factory=Source)
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)
    painting: tyro.conf.OmitArgPrefixes[Painting] = field(default_factory=Painting)
    larger: tyro.conf.OmitArgPrefixes[Larger] = field(default_factory=Larger)
    choosing: tyro.conf.OmitArgPrefixes[Choosing] = field(default_factory=Choosing)
    output: tyro.conf.OmitArgPrefixes[Output] = field(default_factory=Output)


def open_part(source: Source, argument: str, device):
    "A tokenizer or a generator, wherever it lies; `ema` is asked of those that may have averages."
    from vgnb.core import check
    from vgnb.shipped import is_published, open_part as opened
    where, system = getattr(source, argument), getattr(source, f"{argument}_system")
    check(where, argument, where or None, "is needed: give a pipeline folder, or --tokenizer and --generator")
    prefix = getattr(source, f"{argument}_prefix")
    of_the_other = is_published(where) and not (is_published(source.tokenizer) and is_published(source.generator))
    ema = None if of_the_other else source.ema
    return opened(where, argument, system=system or None, ema=ema, prefix=prefix, device=device)


def open_pipeline(source: Source, sampling: Sampling, device):
    "The pipeline that the options name."
    from vgnb.pipeline import Pipeline, check_coding
    if source.pipeline:
        pipe = Pipeline.from_pretrained(source.pipeline, device, ema=source.ema, mixed=source.mixed)
    else:
        parts = [open_part(source, part, device) for part in ("tokenizer", "generator")]
        pipe = Pipeline(*parts, mixed=True)                  # that they are a pair comes last: first that they fit
        if not source.mixed: check_coding(*parts, (source.tokenizer, source.generator), "--mixed")
    classes = pipe.classes or getattr(pipe.generator, "card", {}).get("classes")
    shape = source.grid or pipe.grid.shape
    opened = Pipeline(pipe.tokenizer, pipe.generator, sampling, classes, shape, mixed=True)
    opened.where = pipe.where or (source.tokenizer, source.generator)
    return opened


def read_prompts(source: Source, count: int) -> list[str]:
    "The first lines of text."
    from vgnb.core import Missing, check
    is_readable = source.prompts.exists() and not source.prompts.is_dir()
    check(is_readable, "prompts", source.prompts, "no such file", Missing)
    lines = [line.strip() for line in source.prompts.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line][:count]
    check(lines, "prompts", source.prompts, "must hold at least one line of text")
    return lines


def encode_prompts(source: Source, count: int):
    "Left-padded features (b, t, d) and mask (b, t) of the prompts."
    from vgnb.data.text import TextEncoder, left_pad
    prompts = read_prompts(source, count)      # before the encoder, which takes long to load
    features, mask = TextEncoder(source.text_encoder)(prompts)
    return left_pad(features, mask)


def asked_of_each(source: Source, pipe, images, names: list[str]) -> dict:
    "What is asked of each sample: its class, or its caption's features and their mask."
    from vgnb.cli import check_read
    from vgnb.core import check
    from vgnb.data.sources import find_class
    from vgnb.jobs import planned_labels
    count = source.count or (64 if images is None else len(images))
    by_class = pipe.generator.conditioned_on == "class"
    if not by_class:
        check(source.prompts, "prompts", None, "are needed: this generator follows captions")
        check(not source.classes, "classes", source.classes, "must be left out: this generator follows captions, "
              "of --prompts, and knows no classes")
        check_read(source, {"labels": (False, "a generator that takes classes; this one follows captions")})
        text, mask = encode_prompts(source, count)
        return {"labels": None, "text": text, "mask": mask}

    check(source.prompts is None, "prompts", source.prompts,
          "must be left out: this generator takes classes, of --classes, not prompts")
    known = {name: i for i, name in enumerate(pipe.classes)}
    only = [find_class(c, pipe.classes, pipe.generator.classes, "classes") for c in source.classes]
    of_the_pictures = not only and names and set(names) <= set(known)
    if of_the_pictures:
        check_read(source, {"labels": (False, "--classes here: these pictures have classes of their own")})
        own = [known[names[label]] for label in images.labels]
        only = [own[i % len(own)] for i in range(count)]
        return {"labels": planned_labels(count, pipe.generator.classes, only=only)}
    return {"labels": planned_labels(count, pipe.generator.classes, source.labels, only, source.seed)}


def check_options(source: Source, output: Output):
    "Words that go together, and names of files that can be."
    from vgnb.cli import check_read
    from vgnb.core import check, check_int, check_place
    for part in ("tokenizer", "generator"):
        given = getattr(source, part)
        check(not (source.pipeline and given), part, given, f"can't be combined with the pipeline {source.pipeline}")
        check_read(source, {f"{part}_{of_a_file}": (bool(given), f"--{part}, a published file")
                            for of_a_file in ("system", "prefix")})
    check_read(source, {"text_encoder": (source.prompts is not None, "--prompts")})
    if source.count is not None: check_int("count", source.count, 1)
    check(output.out.suffix == ".npz", "out", output.out, "must end in .npz")
    for name, path in output.pictures():
        check_place(name, path.parent)
        check(path.suffix.lower() == ".png", name, path, "must end in .png")
    differ = output.sheet is None or output.sheet != output.strip
    check(differ, "strip", output.strip, "must be another file than the sheet")


def main(argv: list[str]) -> int:
    from vgnb.cli import first_look, typed_cli
    from vgnb.core import check, named_as
    from vgnb.generators.schedules import SCHEDULES
    from vgnb.jobs import SampleJob, asked_for
    from vgnb.pipeline import named_pipeline, saved_levels, saved_sampling
    from vgnb.precision import slow_precision
    from vgnb.processes import Processes
    groups = ("source", "sampling", "painting", "larger", "choosing", "output")
    named = named_pipeline(argv, first_look(Options, argv, Options(), groups).source.pipeline)
    default, levels = Options(sampling=saved_sampling(named)), saved_levels(named)
    o = typed_cli(Options, args=argv, default=default, flat=groups, head="how tokens are drawn",
                  names={"--schedule": SCHEDULES}, description=__doc__,
                  most={"--picks": (levels, "code levels")} if levels else None)
    source, output = o.source, o.output
    check(source.pipeline == named, "pipeline", source.pipeline, "must be the first word: the others depend on it")
    o.sampling.check_steps(default.sampling)
    check_options(source, output)
    processes = Processes()
    pipe = open_pipeline(source, o.sampling, processes.device)
    what, images, names = asked_for(**o.painting.given(), **asdict(o.larger))
    asked = asked_of_each(source, pipe, images, names)
    with named_as(reject="reject_by"):
        job = SampleJob(pipe, out=output.out, seed=source.seed, size=output.size, part=output.part,
                        what=what, images=images, overwrite=output.overwrite, **asked,
                        preview=output.preview, denoise=output.denoise,
                        **o.choosing.parts(processes.device))
    if output.strip: check_strip(job, output.strip)
    if processes.main:
        print(in_words(job, processes))
        if slow := slow_precision(pipe.device, o.sampling.precision): print(f"warning: {slow}", file=sys.stderr)
    if output.dry_run: return 0

    processes.together(lambda: [check_free(job, output, *picture) for picture in output.pictures()])
    job.run(processes)
    if processes.main:
        print(f"finished already: {output.out}" if job.was_finished else f"written to {output.out}")
        if output.sheet: write_sheet(job, output, source)
        if output.strip: write_strip(job, output)
    return 0


def check_free(job, output: Output, name: str, path: Path):
    "A picture's name is free, or there lies the one that the finished job's record names."
    from vgnb.core import digest_file, load_card
    from vgnb.places import check_vacant
    def is_ours():
        outputs = load_card(job.record_file, "out")["outputs"]
        return path.is_file() and outputs.get(path.name) == digest_file(path)

    check_vacant(path, output.overwrite or (job.is_finished() and is_ours()), name)


def check_strip(job, path: Path):
    "Previews there can be, of samples from nothing."
    from vgnb.sampling.streaming import need_progressive
    job.check_plain("strip", path)
    need_progressive(job.pipe.tokenizer, "a strip of previews")


def in_words(job, processes) -> str:
    "What is about to be done."
    start = "" if job.images is None else f"from {len(job.images)} pictures, "
    what = f"on grid {job.pipe.grid.shape}" if job.what is None else job.what.words()
    where = f"on {processes.world} process(es), {processes.device}"
    chosen = "" if job.reject is None else f", each the one of {job.reject.words(job.classifier)}"
    how = f"{steps_of(job)}with {drawn_by(job.pipe.sampling)}"
    return f"{job.count * job.each} images {start}{what} {how}{chosen} {where}"


def steps_of(job) -> str:
    "How many steps each sample takes, where it is drawn from nothing to its end: what the order and the schedule make."
    import torch
    if job.what is not None or job.preview is not None: return ""
    first = job.cond(slice(0, 1))
    ids = torch.zeros(1, dtype=torch.long, device=job.pipe.device)
    counts, = job.pipe.sampler().check_request(first, ids, job.pipe.grid)
    return f"in {len(counts)} step{'s' * (len(counts) > 1)} "


def drawn_by(sampling: Sampling) -> str:
    "The settings that differ from the plain ones; steps only where the schedule is asked for some."
    from vgnb.sampling.settings import short_form
    return short_form(replace(sampling, steps=1) if sampling.schedule == "one-by-one" else sampling)


def write_picture(job, path: Path, sheet, origin):
    "A PNG whose hash goes into the record first: a kill in between leaves a free name."
    from vgnb.core import digest_file, load_card, save_card, write_aside
    from vgnb.pngs import encode_png
    with write_aside(path) as aside:
        aside.write_bytes(encode_png(sheet, origin.note()))
        record = load_card(job.record_file)
        record["outputs"][path.name] = digest_file(aside)
        save_card(job.record_file, record)


def write_sheet(job, output: Output, source: Source):
    "The first images as one PNG, which `vgnb.reopen` can render again."
    import numpy as np

    from vgnb.evaluation.samples import read_npz
    from vgnb.figures import tile_sheet
    from vgnb.sampling.origins import with_samples
    count = min(max(64 // job.each, 1), job.count)                     # samples, each with all of its pictures
    images = np.asarray(read_npz(output.out, "arr_0")[:count * job.each])
    prompts = read_prompts(source, count) if source.prompts else ()
    sheet = tile_sheet([images[i:i + 8] for i in range(0, len(images), 8)])
    write_picture(job, output.sheet, *with_samples(job.origin(count, prompts), images, sheet))
    print(f"sheet of {len(images)} images: {output.sheet}")


def write_strip(job, output: Output):
    "The previews of the first samples as they arrive, one sample a row."
    from vgnb.figures import tile_sheet
    count = min(job.count, 8)
    how = dict(seed=job.seed, size=job.size, denoise=job.denoise, min_rows=job.sampling.min_rows)
    rows, captions = [[] for _ in range(count)], [[] for _ in range(count)]
    for preview in job.pipe.stream_previews(job.cond(slice(0, count)), **how):
        for i, image in zip(preview.ids.tolist(), preview.images, strict=True):
            rows[i].append(image)
            captions[i].append(f"{preview.tokens} tokens")
    write_picture(job, output.strip, tile_sheet(rows, captions, whole=True), replace(job.origin(count), work="strip"))
    print(f"strip of {count} images after 1 ... {len(rows[0])} denoising steps: {output.strip}")


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
