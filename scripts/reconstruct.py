"""Pictures through a tokenizer and back: how close they come, and which codes they take.

    python scripts/reconstruct.py --tokenizer runs/shapes-tokenizer/model --size 32 \\
        --data 'shapes://?n=2000&seed=1' --out runs/rebuilt.npz

The tokenizer is a model folder (train_tokenizer.py writes <run>/model) or a published file. Each picture's centre goes
through it; what comes back is held against the very same crop: PSNR and SSIM a picture, and of each level of codes
the share in use and the perplexity. --out gets the reconstructions, --originals the crops, both as evaluate.py takes
them (rFID):

    python scripts/evaluate.py originals.npz rebuilt.npz --metrics fid

--levels 1 rebuilds from the first level of codes alone, where a tokenizer has several. --compare 256 brings crops and
reconstructions to another side first (bicubic), as the systems do that encode 384 px and are judged at 256.

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
    tokenizer: Path                # folder of a saved tokenizer, or a published file
    data: str                      # pictures: a folder, a .tar, wds://..., datasets://..., shapes://..., kaggle://...
    out: Path                      # NAME.npz, the reconstructions; NAME.json beside it gets the numbers
    originals: Path | None = None  # also write the crops they are compared with, an .npz
    levels: int | None = None      # of codes to rebuild from, the first ones; None = all
    size: int = 256                # side of the crops that the tokenizer sees
    compare: int | None = None     # side at which pictures are compared and written; None = size
    crop: Literal["adm", "bilinear", "bicubic"] = "adm"    # how pictures come to their side
    count: int | None = None       # only so many pictures, the first ones
    batch: int = 32                # pictures the tokenizer sees at once
    orientation: Literal["upright", "stored"] = "upright"  # turned as their EXIF says, or as published code reads them
    ema: bool | None = None        # averaged weights; None = where there are some
    tokenizer_system: str = ""     # whose published file the tokenizer is, where its name doesn't tell
    overwrite: bool = False        # reconstructions that lie there may go
    dry_run: bool = False          # say what would happen, and stop


def opened(o: Options):
    "The tokenizer, of so many levels of codes as asked for, and the pictures."
    from vgnb.core import check
    from vgnb.data.images import open_images
    from vgnb.saved import load_model
    from vgnb.tokenizers.pictures import need_pixels
    from vgnb.tokenizers.tokenizer import Tokenizer
    from vgnb.zoo import load_published
    if o.tokenizer.is_file(): tokenizer = load_published(o.tokenizer, system=o.tokenizer_system or None)
    else: tokenizer = load_model(o.tokenizer, ema=o.ema)
    is_tokenizer = isinstance(tokenizer, Tokenizer)
    check(is_tokenizer, "tokenizer", o.tokenizer, f"holds a {type(tokenizer).__name__}, which is no tokenizer")
    need_pixels(tokenizer, "a reconstruction")
    if o.levels is not None: tokenizer = tokenizer.first(o.levels)

    source = open_images(o.data, orientation=o.orientation)
    check(not source.streaming, "data", o.data, "must have a length; leave streaming=1 out")
    return tokenizer, source


def named(tokenizer) -> dict:
    "What tells this tokenizer from every other: its kind, a hash of its weights, and the name of its codes."
    from vgnb.core import digest
    from vgnb.kinds import kind_of
    found = {"kind": kind_of(tokenizer.config), "weights": digest(tokenizer.state_dict())}
    return found if tokenizer.vocab is None else found | {"coding": tokenizer.coding()}


def rebuilt(o: Options, tokenizer, source, count: int):
    "Batches of (crops, reconstructions), both (b, side, side, 3) uint8, and the codes (b, n, levels) or None."
    import numpy as np
    import torch

    from vgnb.data.transforms import Augment, load_batch, resize_bicubic, to_uint8
    from vgnb.draws import At, Keyed
    augment = Augment("center", o.size) if o.crop == "adm" else Augment("resize", o.size, filter=o.crop)
    device = next(tokenizer.parameters()).device
    side = o.compare or o.size
    for first in range(0, count, o.batch):
        ids = np.arange(first, min(first + o.batch, count))
        images, _, _ = load_batch(source, ids, augment, Keyed(0))
        images = images.to(device)
        with torch.no_grad():
            made = tokenizer.quantize(tokenizer.enter(images))
            at = At(torch.from_numpy(ids).to(device))
            pixels = tokenizer.leave(tokenizer.render(made.z, draws=Keyed(0), at=at, size=side))
            crops = images if side == o.size else resize_bicubic(images, side)
        codes = None if made.codes is None else tokenizer.tokens(made.codes)
        yield to_uint8(crops).cpu(), to_uint8(pixels).cpu(), codes


def measured(o: Options, tokenizer, source, count: int) -> tuple[dict, Any, Any]:
    "(the numbers, crops or None, reconstructions)."
    import torch

    from vgnb.evaluation.reconstruction import CodebookMeter, ReconstructionMeter
    from vgnb.progress import Progress
    meter, books = ReconstructionMeter(), [CodebookMeter(v) for v in tokenizer.vocab or ()]
    crops, again = [], []                              # crops are kept only where they are asked for
    with Progress(count, "picture") as progress:
        for originals, pictures, codes in rebuilt(o, tokenizer, source, count):
            meter.update(pictures, originals)
            for level, book in enumerate(books): book.update(codes[..., level])
            if o.originals: crops.append(originals)
            again.append(pictures)
            progress.update(len(pictures))
    numbers = meter.compute() | {"levels": [book.compute() for book in books]}
    return numbers, torch.cat(crops) if crops else None, torch.cat(again)


def main(argv: list[str]) -> int:
    from vgnb.cli import typed_cli
    o = typed_cli(Options, args=argv, description=__doc__)
    from vgnb.core import check, check_int, check_place, run_manifest, save_card
    from vgnb.evaluation.samples import save_samples
    from vgnb.kinds import to_json
    from vgnb.places import check_vacant
    for name in ("out", "originals"):
        path = getattr(o, name)
        if path is None: continue
        check(path.suffix == ".npz", name, path, "must end in .npz")
        check_place(name, path.parent)
        check_vacant(path, o.overwrite, name)
    card = o.out.with_suffix(".json")
    check_vacant(card, o.overwrite, "out", "the numbers")
    differ = o.originals is None or o.originals.resolve() != o.out.resolve()
    check(differ, "originals", o.originals, "must be another file than out, which gets the reconstructions")
    for name in ("size", "compare", "batch", "count"):
        if getattr(o, name) is not None: check_int(name, getattr(o, name), 1)
    tokenizer, source = opened(o)
    tokenizer.code_shape(o.size, o.size)               # refuses a side that the factor does not divide
    count = min(o.count or len(source), len(source))
    vocab = " x ".join(f"{v:,}" for v in tokenizer.vocab or ()) or "no"
    print(f"{count:,} pictures of {o.size} px through {vocab} codes -> {o.out}")
    if o.dry_run: return 0

    numbers, crops, pictures = measured(o, tokenizer, source, count)
    save_samples(o.out, pictures)
    if o.originals: save_samples(o.originals, crops)
    run = run_manifest(to_json(o), seed=0, data=source.fingerprint, device="cpu", world=1, tokenizer=named(tokenizer))
    save_card(card, numbers | {"run": run})
    print(f"PSNR {numbers['psnr']:.2f} dB, SSIM {numbers['ssim']:.4f}")
    for level, book in enumerate(numbers["levels"]):
        print(f"level {level}: {book['usage']:.1%} of {book['protocol']['vocab']:,} codes in use, "
              f"perplexity {book['perplexity']:.1f}")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
