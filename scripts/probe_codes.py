"""A linear probe of a tokenizer's codes: what class a picture has, read off the mean of its rows.

    python scripts/probe_codes.py --tokenizer runs/vqkd --data IMAGENET/train --val IMAGENET/val --json runs/probe.json

The tokenizer is the folder of a run, of a saved model or of a pipeline, the name of a shipped one or a published file.
Each picture is encoded once (in ten crops with --ten-crop, mirrored, too, with --flip), its rows are averaged over the
grid, and a batch norm and a linear map are trained on them as published: LARS at 1.6 with a cosine, 30,000 steps of 512
rows (ic/imagenet_ddp of the VQ-KD framework, which encodes cropped pictures anew in each step). --val's labels are
brought to the order of --data's by the names of their classes.

    python scripts/probe_codes.py --tokenizer tiny-randar --data 'shapes://?n=4000' --val 'shapes://?n=1000&seed=1' \\
        --steps 1000

The processes of one launch share the pictures; one of them trains the head.

Exit codes: 0 done, 2 something named on stderr.
"""
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@dataclass
class Options:
    "Which tokenizer, on which pictures."
    tokenizer: Path                # folder of a run, of a saved model, of a pipeline; a shipped name; a published file
    data: str                      # pictures to train the head on: a folder, a .tar, wds://..., datasets://..., shapes://
    val: str                       # pictures to grade it on
    json: Path | None = None       # also write the result and what it rests on here
    steps: int = 30_000            # of the head
    rows: int = 512                # of a step; as many as there are, where they are fewer
    lr: float = 1.6                # of LARS
    momentum: float = 0.9          # of LARS
    seed: int = 0                  # of the head's weights and of the order
    size: int | None = None        # side of the pictures; None = the tokenizer's in training, else 256
    crop: Literal["adm", "bilinear", "bicubic"] = "bicubic"  # how pictures come to it: halving and bicubic, or one step
    flip: bool = False             # train on the mirror images, too
    ten_crop: bool = False         # train on ten crops instead of the centre
    orientation: Literal["upright", "stored"] = "upright"  # turned as their EXIF says, or as published code reads them
    batch: int = 64                # pictures seen at once
    workers: int = 0               # processes that read pictures ahead
    max_bad: int = 0               # unreadable pictures of each set to leave out and list before one stops the run
    ema: bool | None = None        # averaged weights; None = where there are some
    tokenizer_system: str = ""     # whose published file the tokenizer is, where its name doesn't tell
    tokenizer_prefix: str = ""     # what stands before the names in that file: model.
    overwrite: bool = False        # a result that lies at --json may go
    dry_run: bool = False          # say what would happen, and stop


def recipe_of(o: Options):
    "How the head is trained."
    from vgnb.core import check, named_as
    from vgnb.recipes.vqkd_recipes import vqkd_recipe
    check(0 <= o.momentum < 1, "momentum", o.momentum, "must be a number >= 0 and below 1")
    optim = dict(lr=o.lr, betas=(o.momentum, 0.0))
    with named_as(batch="rows", **{"optim.lr": "lr"}):
        return vqkd_recipe("ic/imagenet_ddp", steps=o.steps, batch=o.rows, seed=o.seed, optim=optim)


def views_of(o: Options):
    "(views of a training picture, of a held-out one)."
    from vgnb.core import check
    from vgnb.data.transforms import Augment
    check(not (o.ten_crop and o.flip), "flip", True, "can't be combined with --ten-crop, which has the mirror images")
    one = Augment("center", o.size) if o.crop == "adm" else Augment("resize", o.size, filter=o.crop)
    if o.ten_crop: return Augment("ten-crop", o.size), one
    return Augment(one.kind, o.size, o.flip, filter=one.filter), one


def main(argv: list[str]) -> int:
    from vgnb.cli import typed_cli
    o = typed_cli(Options, args=argv, description=__doc__)
    from vgnb.core import check, check_place, run_manifest, save_card
    from vgnb.data.images import open_images
    from vgnb.evaluation.code_probe import train_probe
    from vgnb.evaluation.feature_passes import Passes, dataset_rows, same_labels
    from vgnb.kinds import to_json
    from vgnb.places import check_vacant
    from vgnb.processes import Processes
    from vgnb.saved import side_of
    from vgnb.shipped import open_part
    recipe, processes = recipe_of(o), Processes()
    tokenizer = open_part(o.tokenizer, "tokenizer", system=o.tokenizer_system or None, ema=o.ema,
                          prefix=o.tokenizer_prefix)
    o.size, whose = side_of(tokenizer, o.size)
    check(o.size % tokenizer.factor == 0, "size", o.size, f"must be a multiple of {tokenizer.factor}, the tokenizer's")
    if o.json:
        check_place("json", o.json.parent)
        check_vacant(o.json, o.overwrite, "json")
    how = dict(max_bad=o.max_bad, orientation=o.orientation)
    sets = {name: open_images(getattr(o, name), **how) for name in ("data", "val")}
    classes = list(sets["data"].classes)
    check(len(classes) > 1, "data", o.data, "must have two classes at least")
    passes = {name: Passes(source, view, batch=o.batch, workers=o.workers, processes=processes, least=tokenizer.factor)
              for (name, source), view in zip(sets.items(), views_of(o))}
    same_labels(labels_of_none(), list(sets["val"].classes), classes)
    if processes.main:
        print(f"{len(sets['data']):,} pictures of {len(classes)} classes, {len(sets['val']):,} held out, {o.size} px "
              f"({whose or 'as asked'}); a head of {recipe.steps:,} steps x {recipe.batch} rows")
    if o.dry_run: return 0

    rows, labels = dataset_rows(tokenizer, passes["data"], "training pictures")
    val_rows, val_labels = dataset_rows(tokenizer, passes["val"], "held-out pictures")
    val_labels = same_labels(val_labels, list(sets["val"].classes), classes)
    for source in sets.values():
        for e in source.bad: print(f"left out: {e}", file=sys.stderr)
    if not processes.main: return 0

    probe = train_probe(rows, labels, val_rows, val_labels, len(classes), recipe)
    last = float(probe.losses[-100:].mean())
    print(f"accuracy {probe.accuracy:.4f} of {len(val_rows):,} held-out pictures (the commonest label: "
          f"{probe.chance:.4f}); cross entropy at the end {last:.3f}")
    if o.json:
        values = {"accuracy": probe.accuracy, "chance": probe.chance, "loss": last, "rows": len(rows),
                  "held_out": len(val_rows), "classes": classes, "recipe": to_json(recipe)}
        data = f"{sets['data'].fingerprint} -> {sets['val'].fingerprint}"
        save_card(o.json, values | {"run": run_manifest(to_json(o), seed=o.seed, data=data, device=processes.device,
                                                        world=processes.world)})
    return 0


def labels_of_none():
    "Labels of no picture: a look at the classes alone."
    import torch
    return torch.zeros(0, dtype=torch.int64)


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
