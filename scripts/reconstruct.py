"""Pictures through a tokenizer and back: how close they come, and which codes they take.

    python scripts/reconstruct.py --tokenizer runs/shapes-tokenizer --data 'shapes://?n=2000&seed=1' \\
        --out runs/rebuilt.npz

The tokenizer is the folder of a run (of train_tokenizer.py), of a saved model or of a pipeline, the name of a shipped
one (tiny-iar2, ...) or a published file. Each picture's centre goes through it, of the side that it was trained with or
of --size; what comes back is held against the very same crop: PSNR and SSIM a picture, and of each level of codes
the share in use and the perplexity. --out gets the reconstructions, --originals the crops, both as evaluate.py takes
them (rFID):

    python scripts/evaluate.py originals.npz rebuilt.npz --metrics fid

--levels 1 rebuilds from the first level of codes alone, where a tokenizer has several. --compare 256 brings crops and
reconstructions to another side first (bicubic), as the systems do that encode 384 px and are judged at 256.

The crop decides the number as much as the tokenizer does. rFID protocols take the centre (--crop adm, as most papers);
with random crops (--crop random, keyed by --seed and picture) D-AR's tokenizer was measured at 2.2 instead of 1.5.
A decoder that begins with noise draws at --size, however large; --denoise sets its steps. --compat upstream gives the
published bytes of the crops (a quarter of the grey levels one too low) and SSIM (inflated). --strip shows pictures,
previews where there are some, and reconstructions. --lpips measures how different they look, too (on floats, before
they become bytes), by the network whose files lie in --weights:

    python scripts/reconstruct.py --tokenizer D-AR-tokenizer_v1.pt --data IMAGENET/val --out runs/dar.npz \\
        --originals runs/crops.npz --precision bf16 --strip runs/dar.png

Exit codes: 0 done, 2 something named on stderr.
"""
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@dataclass
class Options:
    "Which pictures, through which tokenizer."
    tokenizer: Path                # folder of a run, of a saved model, of a pipeline; a shipped name; a published file
    data: str                      # pictures: a folder, a .tar, wds://..., datasets://..., shapes://..., kaggle://...
    out: Path                      # NAME.npz, the reconstructions; NAME.json beside it gets the numbers
    originals: Path | None = None  # also write the crops they are compared with, an .npz
    levels: int | None = None      # of codes to rebuild from, the first ones; None = all
    size: int | None = None        # side of the crops it sees; None = the tokenizer's in training, 256 if not known
    compare: int | None = None     # side at which pictures are compared and written; None = size
    crop: Literal["adm", "bilinear", "bicubic", "random"] = "adm"  # how pictures come to their side
    seed: int = 0                  # of random crops, and of a decoder's noise
    denoise: int | None = None     # steps of a decoder that begins with noise, as D-AR's; None = its own
    strip: Path | None = None      # also a PNG of the first pictures: crop, previews, reconstruction
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"    # of the tokenizer's passes; published rFIDs: bf16
    device: str | None = None      # None = the accelerator, where there is one
    lpips: bool = False            # also LPIPS; needs its files
    weights: Path | None = None    # folder with the VGG-16 and LPIPS files; None = <weights>, see settings.ini
    compat: Literal["upstream"] | None = None              # bytes and SSIM with the published faults
    count: int | None = None       # only so many pictures, the first ones
    batch: int = 32                # pictures the tokenizer sees at once
    max_bad: int = 0               # unreadable pictures to leave out and list before one stops the run
    orientation: Literal["upright", "stored"] = "upright"  # turned as their EXIF says, or as published code reads them
    ema: bool | None = None        # averaged weights; None = where there are some
    tokenizer_system: str = ""     # whose published file the tokenizer is, where its name doesn't tell
    tokenizer_prefix: str = ""     # what stands before the names in that file: model.
    overwrite: bool = False        # reconstructions that lie there may go
    dry_run: bool = False          # say what would happen, and stop


def opened(o: Options):
    "The tokenizer, of so many levels of codes as asked for, and the pictures; the side of the crops is set."
    from vgnb.core import check
    from vgnb.data.images import open_images
    from vgnb.precision import check_precision
    from vgnb.processes import Processes
    from vgnb.saved import side_of
    from vgnb.shipped import open_part
    from vgnb.tokenizers.pictures import denoising, device_of, need_pixels
    tokenizer = open_part(o.tokenizer, "tokenizer", system=o.tokenizer_system or None, ema=o.ema,
                          prefix=o.tokenizer_prefix)
    o.size, whose = side_of(tokenizer, o.size)
    if whose: print(f"size: {o.size} px, {whose}")
    need_pixels(tokenizer, "a reconstruction")
    denoising(tokenizer, o.denoise)
    if o.levels is not None: tokenizer = tokenizer.first(o.levels)
    tokenizer = tokenizer.to(o.device or Processes().device).eval()
    check_precision(o.precision, device_of(tokenizer))

    source = open_images(o.data, max_bad=o.max_bad, orientation=o.orientation)
    check(not source.streaming, "data", o.data, "must have a length; leave streaming=1 out")
    return tokenizer, source


def augment_of(o: Options):
    "How a picture becomes a crop."
    from vgnb.data.transforms import Augment
    if o.crop == "random": return Augment("random-crop", o.size)
    return Augment("center", o.size) if o.crop == "adm" else Augment("resize", o.size, filter=o.crop)


def named(tokenizer) -> dict:
    "What tells this tokenizer from every other: kind, configuration, a hash of its weights, the name of its codes."
    from vgnb.core import digest
    from vgnb.kinds import kind_of, to_json
    config = tokenizer.config
    found = {"kind": kind_of(config), "config": to_json(config), "weights": digest(tokenizer.state_dict())}
    return found if tokenizer.vocab is None else found | {"coding": tokenizer.coding()}


def rebuilt(o: Options, tokenizer, source, count: int):
    "Batches of crops and reconstructions (b, 3, side, side) in [-1, 1], codes (b, n, levels) or None, and ids (b,)."
    import numpy as np
    import torch

    from vgnb.data.transforms import load_batch, resize_bicubic
    from vgnb.draws import At, Keyed
    from vgnb.precision import arithmetic
    from vgnb.tokenizers.pictures import denoising, device_of, drawing
    augment, draws, device = augment_of(o), Keyed(o.seed), device_of(tokenizer)
    side, options = o.compare or o.size, denoising(tokenizer, o.denoise) | drawing(tokenizer, o.size)
    for first in range(0, count, o.batch):
        ids = np.arange(first, min(first + o.batch, count))
        images, _, ids = load_batch(source, ids, augment, draws)
        images = images.to(device)
        with torch.no_grad(), arithmetic(device, o.precision):
            made = tokenizer.quantize(tokenizer.enter(images))
            pixels = tokenizer.render(made.z, draws=draws, at=At(ids.to(device)), size=side, **options)
        pixels = tokenizer.leave(pixels.float())
        crops = images if side == o.size else resize_bicubic(images, side)
        yield crops.cpu(), pixels.cpu(), None if made.codes is None else tokenizer.tokens(made.codes), ids


def opened_lpips(o: Options, device):
    "LPIPS, where it is asked for: pairs (b, 3, h, w) in [-1, 1] -> (b,). Errors: `Missing` names a file."
    from vgnb.core import get_settings
    from vgnb.tokenizers.lpips import load_lpips
    if not o.lpips: return None
    instead = "name the folder that has it with --weights, or leave out --lpips"
    return load_lpips(o.weights or get_settings().paths.weights, instead=instead).to(device).eval()


def measured(o: Options, tokenizer, source, count: int, lpips=None) -> tuple[dict, Any, Any]:
    "(the numbers, crops or None, reconstructions)."
    import torch

    from vgnb.core import digest
    from vgnb.data.transforms import to_uint8
    from vgnb.evaluation.reconstruction import CodebookMeter, PlaceMeter, ReconstructionMeter
    from vgnb.progress import Progress
    from vgnb.tokenizers.pictures import device_of
    meter, vocab = ReconstructionMeter(o.compat), tokenizer.vocab or ()
    books, places = [CodebookMeter(v) for v in vocab], [PlaceMeter() for _ in vocab]
    as_published = "truncate" if o.compat else "round"
    unlike, device = 0.0, device_of(tokenizer)
    crops, again = [], []                              # crops are kept only where they are asked for
    with Progress(count, "picture") as progress:
        for originals, pixels, codes, _ in rebuilt(o, tokenizer, source, count):
            if lpips is not None: unlike += float(lpips(pixels.to(device), originals.to(device)).sum())
            originals, pictures = to_uint8(originals, as_published), to_uint8(pixels)
            meter.update(pictures, originals)
            for level, (book, place) in enumerate(zip(books, places)):
                book.update(codes[..., level])
                place.update(codes[..., level])
            if o.originals: crops.append(originals)
            again.append(pictures)
            progress.update(len(pictures))
    levels = [book.compute() | ({"dead_places": place.dead} if count > 1 else {}) for book, place in zip(books, places)]
    found = meter.compute() | {"levels": levels}
    if lpips is not None: found |= {"lpips": unlike / meter.count, "lpips_network": digest(lpips.state_dict())}
    return found, torch.cat(crops) if crops else None, torch.cat(again)


def strip_origin(o: Options, tokenizer, source, ids):
    "How a strip came to be: what its PNG carries."
    from vgnb.sampling.origins import Origin, running_on, weights_hash
    from vgnb.tokenizers.pictures import device_of
    data = {"data": source.fingerprint, "crop": o.crop, "side": o.size, "levels": o.levels, "compat": o.compat,
            "precision": o.precision}
    more = {name: value for name, value in data.items() if value is not None}
    return Origin("reconstruction", parts=(str(o.tokenizer),), tokenizer=weights_hash(tokenizer), seed=o.seed,
                  ids=tuple(ids.tolist()), size=o.compare or o.size, denoise=o.denoise, more=more,
                  **running_on(device_of(tokenizer)))


def strip_of(o: Options, tokenizer, source, count: int):
    "The first pictures, a row each: crop, every preview, reconstruction; and how they came to be."
    from vgnb.data.transforms import to_uint8
    from vgnb.draws import Keyed
    from vgnb.figures import tile_sheet
    from vgnb.sampling.origins import with_samples
    from vgnb.sampling.streaming import is_progressive, preview_pictures
    crops, pixels, codes, ids = next(rebuilt(o, tokenizer, source, count))
    crops, pixels = to_uint8(crops), to_uint8(pixels)
    origin = strip_origin(o, tokenizer, source, ids)
    if not (is_progressive(tokenizer) and codes is not None):
        rows = [list(row) for row in zip(crops, pixels)]
        sheet = tile_sheet(rows, [["picture", "reconstruction"]] * count, whole=True)
        return with_samples(origin, pixels.numpy(), sheet, skip=1)

    how = dict(ids=ids, draws=Keyed(o.seed), rows=len(ids), size=o.compare or o.size, denoise=o.denoise,
               resolution=o.size, precision=o.precision)
    previews = preview_pictures(tokenizer, codes, **how)
    plan = tokenizer.plan(o.denoise)
    captions = ["picture", *(f"{plan.needs(k)} tokens" for k in range(1, plan.steps)), "reconstruction"]
    rows = [[crop, *shown[:-1], made] for crop, shown, made in zip(crops, previews, pixels)]
    sheet = tile_sheet(rows, [captions] * count, whole=True)
    return with_samples(origin, pixels.numpy(), sheet, skip=len(captions) - 1)


def check_options(o: Options):
    "Names that are free, and numbers that can be."
    from vgnb.cli import check_read
    from vgnb.core import check, check_int, check_place
    from vgnb.places import check_vacant
    check_read(o, {"weights": (o.lpips, "--lpips")})
    check_int("seed", o.seed, 0)
    for name, suffix in (("out", ".npz"), ("originals", ".npz"), ("strip", ".png")):
        path = getattr(o, name)
        if path is None: continue
        check(path.suffix == suffix, name, path, f"must end in {suffix}")
        check_place(name, path.parent)
        check_vacant(path, o.overwrite, name)
    check_vacant(o.out.with_suffix(".json"), o.overwrite, "out", "the numbers")
    differ = o.originals is None or o.originals.resolve() != o.out.resolve()
    check(differ, "originals", o.originals, "must be another file than out, which gets the reconstructions")
    for name in ("size", "compare", "batch", "count"):
        if getattr(o, name) is not None: check_int(name, getattr(o, name), 1)


def tell(numbers: dict):
    "The numbers in words."
    lpips = f", LPIPS {numbers['lpips']:.4f}" if "lpips" in numbers else ""
    print(f"PSNR {numbers['psnr']:.2f} dB, SSIM {numbers['ssim']:.4f}{lpips}")
    for level, book in enumerate(numbers["levels"]):
        dead = f", {book['dead_places']:.1%} of the places always hold one code" if "dead_places" in book else ""
        print(f"level {level}: {book['usage']:.1%} of {book['protocol']['vocab']:,} codes in use, "
              f"perplexity {book['perplexity']:.1f}{dead}")


def main(argv: list[str]) -> int:
    from vgnb.cli import typed_cli
    o = typed_cli(Options, args=argv, description=__doc__)
    from vgnb.core import named_as, run_manifest, save_card
    from vgnb.evaluation.samples import save_samples
    from vgnb.kinds import to_json
    from vgnb.pngs import save_png
    from vgnb.tokenizers.pictures import device_of
    check_options(o)
    tokenizer, source = opened(o)
    lpips = opened_lpips(o, device_of(tokenizer))
    with named_as(h="size"): tokenizer.code_shape(o.size, o.size)       # refuses a side that the factor doesn't divide
    count = min(o.count or len(source), len(source))
    vocab = " x ".join(f"{v:,}" for v in tokenizer.vocab or ()) or "no"
    print(f"{count:,} pictures of {o.size} px through {vocab} codes -> {o.out}")
    if o.dry_run: return 0

    numbers, crops, pictures = measured(o, tokenizer, source, count, lpips)
    save_samples(o.out, pictures)
    if o.originals: save_samples(o.originals, crops)
    if o.strip:
        sheet, origin = strip_of(o, tokenizer, source, min(count, 8))
        save_png(o.strip, sheet, origin.note())
    device = str(device_of(tokenizer))
    run = run_manifest(to_json(o), seed=o.seed, data=source.fingerprint, device=device, world=1,
                       tokenizer=named(tokenizer))
    save_card(o.out.with_suffix(".json"), numbers | {"run": run, "left_out": len(source.bad)})
    for e in source.bad: print(f"left out: {e}", file=sys.stderr)
    tell(numbers)
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
