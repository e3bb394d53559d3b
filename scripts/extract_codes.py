"""Turn pictures into codes, once.

    python scripts/extract_codes.py --tokenizer runs/shapes-tokenizer --data shapes:// --out runs/shapes-codes

The tokenizer is the folder of a run (of train_tokenizer.py), of a saved model or of a pipeline, the name of a shipped
one (tiny-iar2, ...) or a published file (vq_ds16_c2i.pt, maskgit-vqgan-imagenet-f16-256.bin, ...). Pictures come to
the side that it was trained with, or to --size. Each picture becomes one row (its centre), two with --flip, or ten with
--ten-crop (five crops of a --crop-range larger centre crop, and their mirror images). --data may also be a .jsonl file
of captions with image_path, for text-conditional models. The processes of one launch share a store, and after a
kill the same command writes what is missing:

    python scripts/launch.py --nproc-per-node 8 scripts/extract_codes.py \\
        --tokenizer runs/vq-16/model --data IMAGENET/train --out runs/codes --ten-crop

For programs that read codes as their authors keep them, --out llamagen://folder_codes (or iar2://, randar://, halton://,
pgm://) writes that layout; train_generator.py reads it again with --data.

Exit codes: 0 done, 2 something named on stderr.
"""
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@dataclass
class Options:
    "Which pictures, by which tokenizer, in which views."
    tokenizer: Path                # folder of a run, of a saved model, of a pipeline; a shipped name; a published file
    # pictures: a folder, a .tar, wds://..., datasets://..., shapes://..., kaggle://..., or captions in a .jsonl
    data: str
    # the code store, made or completed; or LAYOUT://folder for codes as others read them: llamagen, iar2, randar,
    # halton, pgm (halton and pgm: ?split=eval)
    out: str
    size: int | None = None        # side of the views in pixels; None = the tokenizer's in training, 256 if not known
    # how pictures come to that side: halving with a box filter and bicubic, or one antialiased step
    # (bilinear: published for the masked and the partition transformers)
    crop: Literal["adm", "bilinear", "bicubic"] = "adm"
    flip: bool = False             # also the mirror image
    ten_crop: bool = False         # ten crops instead of the centre
    crop_range: float = 1.1        # of ten-crop: how much larger the centre crop is that they lie in
    batch: int = 64                # pictures the tokenizer sees at once; the codes don't depend on how many processes
    shard_size: int = 1024         # pictures a file of the store covers
    workers: int = 0               # processes that read pictures ahead
    compile: bool = False          # compile the encoding; a compiled network may round the last bit differently
    backend: str = "inductor"      # of --compile; aot_eager only traces
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"   # of the tokenizer's passes; part of what codes are
    orientation: Literal["upright", "stored"] = "upright"  # turned as their EXIF says, or as published code reads them
    max_bad: int = 0               # unreadable pictures to leave out and list before one stops the run
    ema: bool | None = None        # averaged weights; None = where there are some
    tokenizer_system: str = ""     # whose published file the tokenizer is, where its name doesn't tell
    tokenizer_prefix: str = ""     # what stands before the names in that file: model.
    progress: bool | None = None   # a progress bar; None = on a terminal, elsewhere a line now and then
    dry_run: bool = False          # say what would happen, and stop


def check_views(o: Options):
    "Options that go together."
    from vgnb.cli import check_read
    from vgnb.core import check
    check_read(o, {"crop_range": (o.ten_crop, "--ten-crop"), "backend": (o.compile, "--compile")})
    check(not (o.ten_crop and o.flip), "flip", True,
          "can't be combined with --ten-crop, which has the mirror images already")
    check(not o.ten_crop or o.crop == "adm", "crop", o.crop,
          "can't be combined with --ten-crop, whose crops lie in adm's")


def chosen_views(o: Options):
    "The crop of each picture, as asked for."
    from vgnb.data.transforms import Augment
    if o.crop != "adm": return Augment("resize", o.size, o.flip, filter=o.crop)
    return Augment("ten-crop" if o.ten_crop else "center", o.size, o.flip, o.crop_range)


def opened(o: Options):
    "The tokenizer and the pictures."
    from vgnb.data.images import open_images
    from vgnb.data.text import Captions
    from vgnb.shipped import open_part
    from vgnb.training.extract import CaptionImages
    tokenizer = open_part(o.tokenizer, "tokenizer", system=o.tokenizer_system or None, ema=o.ema,
                          prefix=o.tokenizer_prefix)
    if not o.data.endswith(".jsonl"):
        return tokenizer, open_images(o.data, max_bad=o.max_bad, orientation=o.orientation)
    source = CaptionImages(Captions(o.data), o.max_bad)
    source.orientation = o.orientation
    return tokenizer, source


def extracted(o: Options, tokenizer, source, plan, processes) -> tuple[int, list[int], list[int], bool]:
    "(pictures, those left out, codes in use of each level, whether a record said so before) of the store, recorded."
    from vgnb.core import run_manifest, write_run
    from vgnb.data.layouts import written_to
    from vgnb.kinds import to_json
    from vgnb.training.extract import extract_codes, extract_published, is_recorded
    how = dict(batch=o.batch, shard_size=o.shard_size, workers=o.workers, compile=o.backend if o.compile else None,
               precision=o.precision, progress=o.progress, processes=processes)
    run = dict(config=to_json(o), seed=0, data=source.fingerprint, device=processes.device, world=processes.world)
    if written_to(o.out):
        record = extract_published(tokenizer, source, o.out, chosen_views(o), record=run_manifest(**run), **how)
        return record["count"], record["left_out"], record["used"], False

    store = extract_codes(tokenizer, source, o.out, chosen_views(o), **how)
    left_out, finished = store.absent.tolist(), is_recorded(o.out, codes=store.fingerprint)
    if finished or not processes.main: return len(store), left_out, [], finished
    write_run(o.out, tokenizer=plan.tokenizer, codes=store.fingerprint, left_out=left_out, **run)
    return len(store), left_out, [int((u > 0).sum()) for u in store.usage()], False


def address(uri: str, plan) -> str:
    "Where codes in a published layout are read with all that their files don't say."
    facts = {"vocab": plan.vocab, "classes": (len(plan.classes),) if plan.classes else (), "grid": plan.grid}
    query = "&".join(f"{name}={','.join(map(str, value))}" for name, value in facts.items() if value)
    return f"{uri}{'&' if '?' in uri else '?'}{query}"


def main(argv: list[str]) -> int:
    from vgnb.cli import typed_cli
    o = typed_cli(Options, args=argv, description=__doc__)
    from vgnb.core import check_place
    from vgnb.data.layouts import written_to
    from vgnb.precision import check_precision, slow_precision
    from vgnb.processes import Processes
    from vgnb.saved import side_of
    from vgnb.training.extract import check_published, code_plan
    check_views(o)
    tokenizer, source = opened(o)
    o.size, whose = side_of(tokenizer, o.size)
    views = chosen_views(o)
    plan, processes = code_plan(tokenizer, source, views, o.shard_size, o.precision), Processes()
    check_precision(o.precision, processes.device)
    published = written_to(o.out)
    was_there = bool(published) and check_published(plan, o.out)
    if not published: check_place("out", o.out)
    if processes.main:
        if whose: print(f"size: {o.size} px, {whose}")
        print(f"{plan.total:,} pictures of {len(plan.classes) or 'no'} classes x {len(plan.augs)} views -> "
              f"{plan.grid} codes of {plan.vocab} in {o.out}, on {processes.world} process(es)")
        if slow := slow_precision(processes.device, o.precision): print(f"warning: {slow}", file=sys.stderr)
    if o.dry_run: return 0

    count, left_out, used, recorded = extracted(o, tokenizer, source, plan, processes)
    for e in source.bad: print(f"left out: {e}", file=sys.stderr)
    if not processes.main: return 0
    if was_there or recorded:
        print(f"finished already: {count:,} pictures in {o.out}")
        return 0
    in_use = ", ".join(f"{u:,} of {v:,}" for u, v in zip(used, plan.vocab))
    print(f"{count:,} pictures, {len(left_out)} left out; codes used: {in_use}")
    if published: print(f"read as {address(o.out, plan)}: files of this layout say neither codebook sizes nor classes")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
