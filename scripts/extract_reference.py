r"""Look at a data set once: the statistics that FID compares with, in one file.

    # crop and network as ADM's evaluator
    python scripts/extract_reference.py IMAGENET/train --size 256 --out adm_style.npz
    # as published for the masked and the partition transformers
    python scripts/extract_reference.py kaggle://IMAGENET?split=val --size 256 --crop bilinear \
        --extractor inception-halton --out val.npz
    # clean-fid, with features for precision and recall
    python scripts/extract_reference.py photos/ --size 256 --extractor inception-clean --features 10000 --out photos.npz
    python scripts/evaluate.py val.npz samples.npz --extractor inception-halton --metrics fid is

The file holds mean, covariance, count, extractor (its weights' hash) and how the pictures were brought to their size;
evaluate.py takes it as REF, and refuses it for another extractor. OUT may also end in .safetensors, or in .pt: mu and
cov alone, as the masked transformer's code base reads them. Killed, the same command goes on where it stopped (finished
parts lie in OUT.parts). Several processes share the pictures:

    python scripts/launch.py --nproc-per-node 8 scripts/extract_reference.py IMAGENET/train \
        --size 256 --workers 8 --out train.npz

Exit codes: 0 done, 2 something named on stderr.
"""
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@dataclass
class Options:
    "Which pictures, through which network."
    images: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    "a folder, a .tar, wds://..., datasets://..., kaggle://..., shapes://..., or an npz of pictures"
    out: Path
    "the file to write: .npz, .safetensors or .pt"
    extractor: str = "inception"
    "the network that looks, and its way to 299 pixels"
    weights: Path | None = None
    "its weights (Inception: a local copy of torch-fidelity's file)"
    size: int | None = None
    "crop pictures to this side; none = they are all alike and stay as they are"
    crop: Literal["adm", "bilinear", "bicubic"] = "adm"
    "centre crop after: halving with a box filter and bicubic (adm), or the short side in one antialiased step"
    orientation: Literal["upright", "stored"] = "upright"
    "pictures turned as their EXIF says, or as published code reads them"
    features: int = 0
    "pictures, drawn with a fixed seed, whose features are kept for precision, recall and KID"
    spatial: bool = False
    "also the statistics for sFID (mu_s and sigma_s, as in ADM's files)"
    batch: int = 64
    "pictures that are looked at together"
    shard_size: int = 1024
    "pictures between two points at which a killed run can go on"
    workers: int = 0
    "processes that read pictures ahead"
    max_bad: int = 0
    "unreadable pictures to leave out and list before one stops the run"
    device: str | None = None
    "where the extractor runs: cpu, cuda, cuda:1; None = an accelerator if there is one"
    progress: bool | None = None
    "a progress bar; None = on a terminal, elsewhere a line now and then"
    dry_run: bool = False
    "open everything, say what would be looked at, stop"


def check_options(o: Options):
    "Nothing is asked that these pictures leave unread."
    from vgnb.cli import check_read
    from vgnb.evaluation.samples import is_stored
    sources = not is_stored(o.images), "folders, tars and addresses; pixels in an npz stay as they are"
    check_read(o, {"size": sources, "orientation": sources, "max_bad": sources,
                   "crop": (o.size is not None, "--size")})


def main(argv: list[str]) -> int:
    from vgnb.cli import typed_cli
    o = typed_cli(Options, args=argv, description=__doc__)
    from vgnb.core import check_place, digest_file, load_card, run_manifest, save_card
    from vgnb.evaluation.features import load_extractor
    from vgnb.evaluation.reference import extract_reference, reference_plan
    from vgnb.evaluation.samples import open_samples
    from vgnb.kinds import to_json
    from vgnb.places import check_record, check_times
    from vgnb.processes import Processes

    check_options(o)
    check_place("out", o.out.parent)
    images, processes = open_samples(o.images, o.size, o.crop, o.max_bad, o.orientation), Processes()
    extractor = load_extractor(o.extractor, o.weights, o.device or processes.device)
    plan = reference_plan(images, extractor, o.out, o.features, o.shard_size, o.spatial)
    record = o.out.with_suffix(".run.json")
    check_record(record, o.out.name)
    finished = o.out.exists() and record.exists()
    if finished: check_times(o.out, load_card(record, "out"), images.times)
    if processes.main:
        h, w = plan.size
        print(f"{plan.total:,} pictures of {w}x{h} ({plan.images}) through {plan.extractor} -> {o.out},",
              f"on {processes.world} process(es)")
    if o.dry_run: return 0

    crop = f"{o.crop} {o.size}" if o.size else "as stored"
    statistics = extract_reference(images, o.out, extractor, keep=o.features, spatial=o.spatial, batch=o.batch,
                                   shard_size=o.shard_size, workers=o.workers, progress=o.progress,
                                   processes=processes, record={"crop": crop})
    for e in getattr(getattr(images.images, "source", None), "bad", []): print(f"left out: {e}", file=sys.stderr)
    if processes.main and finished: print(f"finished already: {o.out}")
    elif processes.main:
        run = run_manifest(to_json(o), seed=0, data=plan.images, device=extractor.device, world=processes.world,
                           extractor=extractor.id, count=statistics.count, times=images.times,
                           outputs={o.out.name: digest_file(o.out)})
        save_card(record, run)
        print(f"{statistics.count:,} pictures, {plan.total - statistics.count} left out")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
