"""Compare samples with a reference: FID, IS, KID, precision and recall, and on shapes the share drawn as asked.

    python scripts/evaluate.py REF.npz SAMPLES.npz          # Inception; weights downloaded once, or --weights FILE
    python scripts/evaluate.py shapes://?n=5000 runs/x/samples.npz --extractor shapes-judge --metrics fid pr accuracy
    python scripts/evaluate.py photos/ out_pngs/ --size 256 --json metrics.json     # folders of pictures
    python scripts/evaluate.py originals.npz reconstructions.npz --metrics fid      # rFID

REF and SAMPLES are npz files as the published evaluators exchange them (arr_0 uint8 (n, h, w, 3); REF may hold mu and
sigma, which are then used for FID; SAMPLES may hold labels; scripts/extract_reference.py writes REF of a data set),
folders of pictures, tars, or addresses of data sources (shapes://, datasets://, wds://). REF may be statistics alone.

A number is printed with what it rests on: counts, labels, extractor (its weights' hash), reference. SAMPLES.run.json
beside SAMPLES.npz adds the sampler's settings and seed. Several processes (accelerate launch) share the pictures. Wrong
input ends with one line on stderr and exit code 2, before anything is computed.
"""
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@dataclass
class Options:
    "What to compare, and how."
    reference: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REF")]
    "npz, statistics, folder or address"
    samples: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SAMPLES")]
    "npz, folder or address"
    extractor: Literal["inception", "inception-clean", "inception-halton", "shapes-judge"] = "inception"
    "the network that looks; numbers of different extractors have nothing to do with each other"
    weights: Path | None = None
    "its weights (Inception: a local copy of torch-fidelity's file)"
    metrics: tuple[Literal["fid", "is", "kid", "pr", "dc", "accuracy"], ...] = ("fid", "is", "kid", "pr")
    """what to compute; pr = precision and recall, dc = density and coverage, accuracy needs labels in SAMPLES and an
    extractor that knows the classes"""
    size: int | None = None
    "centre-crop pictures of folders and sources to this side"
    crop: Literal["adm", "bilinear", "bicubic"] = "adm"
    "how: halving with a box filter and bicubic (adm), or the short side in one antialiased step"
    batch: int = 64
    "pictures that are looked at together"
    device: str | None = None
    "where the extractor runs: cpu, cuda, cuda:1; None = an accelerator if there is one"
    is_split: int = 5000
    "samples in a part of the inception score"
    is_shuffle: int | None = None
    "seed of a keyed order for the inception score; samples sorted by class need one"
    kid_subsets: int = 100
    "subsets over which KID is averaged"
    kid_size: int | None = None
    "pictures in a subset of KID; None = 1000, or all of the smaller side"
    k: int = 3
    "neighbours for precision and recall"
    uint8_rule: str | None = None
    "how SAMPLES became bytes, recorded with the result"
    json: Path | None = None
    "also write values and protocol here, and NAME.run.json beside it"
    dry_run: bool = False
    "open everything, say what would be compared, stop"


def recorded(samples: str) -> dict:
    "Seed, sampler settings and uint8 rule from NAME.run.json beside the samples."
    from vgnb.core import load_json
    path = Path(samples).with_suffix(".run.json")
    if "://" in samples or not samples.endswith(".npz") or not path.is_file(): return {}
    run = load_json(path)
    return {"seed": run.get("seed"),
            "sampler": run.get("sampler") or run.get("config"),
            "uint8_rule": run.get("uint8_rule", "unknown")}


def announce(o: Options, samples, reference, extractor, settings: dict, stored):
    "What will be compared."
    statistics = " and stored statistics" if stored else ""
    print(f"{len(samples)} samples ({samples.id}) against {len(reference)} pictures{statistics} ({reference.id}),",
          f"through {extractor.id}")
    if o.dry_run: print(f"would compute {', '.join(o.metrics)} with {settings}; dry run, stopping here")


def main(argv: list[str]) -> int:
    from vgnb.cli import typed_cli
    o = typed_cli(Options, args=argv, description=__doc__)
    from vgnb.core import check, check_int, run_manifest, save_json
    from vgnb.evaluation.features import load_extractor
    from vgnb.evaluation.measure import check_request, measure
    from vgnb.evaluation.samples import open_samples
    from vgnb.kinds import to_json
    from vgnb.processes import Processes

    check(o.json is None or o.json.parent.is_dir(), "json", o.json, "its folder must exist")
    check_int("batch", o.batch, 1)
    reference, samples = open_samples(o.reference, o.size, o.crop), open_samples(o.samples, o.size, o.crop)
    processes = Processes()
    extractor = load_extractor(o.extractor, o.weights, o.device or processes.device)
    asked = dict(metrics=o.metrics, is_split=o.is_split, is_shuffle=o.is_shuffle, kid_subsets=o.kid_subsets,
                 kid_size=o.kid_size, k=o.k)
    settings, stored = check_request(samples, reference, extractor, **asked)
    if processes.main: announce(o, samples, reference, extractor, settings, stored)
    if o.dry_run: return 0

    facts = recorded(o.samples)
    if o.uint8_rule: facts["uint8_rule"] = o.uint8_rule
    shown = processes.main and sys.stderr.isatty()
    def progress(side, done):
        if shown: print(f"\r{side} {done}  ", end="", file=sys.stderr, flush=True)
    report = measure(samples, reference, extractor, batch=o.batch, progress=progress, processes=processes,
                     **asked, **facts)
    if shown: print(file=sys.stderr)
    if not processes.main: return 0

    print(report)
    if o.json:
        report.save(o.json)
        run = run_manifest(to_json(o), seed=facts.get("seed") or 0, data=samples.id, device=extractor.device,
                           world=processes.world, reference=reference.id, extractor=extractor.id)
        save_json(o.json.with_suffix(".run.json"), run)
        print(f"written to {o.json}")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
