"""Compare samples with a reference: FID, IS, KID, precision and recall, and on shapes the share drawn as asked.

    python scripts/evaluate.py REF.npz SAMPLES.npz          # Inception; weights downloaded once, or --weights FILE
    python scripts/evaluate.py shapes://?n=5000 runs/x/samples.npz --extractor shapes-judge --metrics fid pr accuracy
    python scripts/evaluate.py photos/ out_pngs/ --size 256 --json metrics.json     # folders of pictures
    python scripts/evaluate.py originals.npz reconstructions.npz --metrics fid      # rFID

REF and SAMPLES are npz files as the published evaluators exchange them (arr_0 uint8 (n, h, w, 3); REF may hold mu and
sigma, which are then used for FID; SAMPLES may hold labels; scripts/extract_reference.py writes REF of a data set),
folders of pictures, tars, or addresses of data sources (shapes://, datasets://, wds://). REF may be statistics alone.

A number is printed with what it rests on: counts, labels, extractor (its weights' hash), reference. SAMPLES.run.json
beside SAMPLES.npz adds the sampler's settings and seed, if it holds the hash of this very file. Several processes
(accelerate launch) share the pictures. Wrong input ends with one line on stderr and exit code 2, before anything is
computed.
"""
import contextlib
import sys
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MADE = ("preview", "denoise", "work", "first", "rejection")  # in a sampling's plan where pictures are no plain samples


@dataclass
class Options:
    "What to compare, and how."
    reference: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REF")]
    "npz, statistics, folder or address"
    samples: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SAMPLES")]
    "npz, folder or address"
    extractor: str = "inception"
    """the network that looks: inception, inception-clean, inception-halton, inception-pytorch, dinov2, shapes-judge,
    or one of your own; numbers of different extractors have nothing to do with each other"""
    weights: Path | None = None
    "its weights (Inception: a local copy of torch-fidelity's file)"
    metrics: tuple[Literal["fid", "is", "kid", "pr", "dc", "accuracy"], ...] = ("fid", "is", "kid", "pr")
    """what to compute; pr = precision and recall, dc = density and coverage, accuracy needs labels in SAMPLES and an
    extractor that knows their classes: by name where SAMPLES (or its run.json) has names, else by number"""
    size: int | None = None
    "centre-crop pictures of folders and sources to this side"
    crop: Literal["adm", "bilinear", "bicubic"] = "adm"
    "how: halving with a box filter and bicubic (adm), or the short side in one antialiased step"
    orientation: Literal["upright", "stored"] = "upright"
    "pictures of folders and sources turned as their EXIF says, or as published code reads them"
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
    overwrite: bool = False
    "numbers of other samples or settings that lie there may go"
    dry_run: bool = False
    "open everything, say what would be compared, stop"


def made_as(run: dict) -> dict:
    "What a sampling's record says beyond its sampler: other steps of the decoder, a work of its own, rejection."
    config = run.get("config")
    if not isinstance(config, dict): return {}
    return {name: config[name] for name in MADE if config.get(name) is not None}


def recorded(o: Options, samples) -> dict:
    "Seed, sampler settings and uint8 rule from NAME.run.json beside the samples, if it describes this very file."
    from vgnb.core import BadInput, load_card
    path = Path(o.samples).with_suffix(".run.json")
    if "://" in o.samples or not o.samples.endswith(".npz") or not path.is_file(): return {}
    try:
        run = load_card(path, "samples")
    except BadInput as e:
        print(f"{e}; seed and sampler of the samples are not known", file=sys.stderr)
        return {}

    name = Path(o.samples).name
    outputs, sampler = run.get("outputs"), run.get("sampler") or run.get("config")
    sound = isinstance(outputs, dict) and isinstance(sampler, dict | None) and isinstance(run.get("seed"), int | None)
    sha = str(outputs.get(name)) if sound else ""
    if samples.id != f"{name}@{sha[:12]}":
        print(f"{path}: does not describe this {name}; its seed and sampler are not taken", file=sys.stderr)
        return {}
    return {"seed": run.get("seed"),
            "sampler": sampler and sampler | made_as(run),
            "uint8_rule": run.get("uint8_rule", "unknown")}


def is_report(known: dict) -> bool:
    "Whether a JSON object holds what a `Report` does."
    from vgnb.evaluation.measure import MetricProtocol
    values, protocol, notes = known.get("values"), known.get("protocol"), known.get("notes")
    if not (isinstance(values, dict) and isinstance(protocol, dict) and isinstance(notes, list)): return False
    of_protocol = fields(MetricProtocol)
    needed = {f.name for f in of_protocol if f.default is MISSING and f.default_factory is MISSING}
    complete = needed <= protocol.keys() <= {f.name for f in of_protocol}
    return complete and all(isinstance(v, int | float) for v in values.values())


def measured_before(o: Options, samples, reference, extractor, settings: dict):
    "The report at --json, if it is of these very pictures and settings; None if there is none yet."
    from vgnb.core import as_json, load_card
    from vgnb.evaluation.measure import MetricProtocol, Report
    from vgnb.places import check_record, check_times, check_vacant
    if o.json is None: return None
    record = o.json.with_suffix(".run.json")
    check_record(record, o.json.name, o.overwrite, "json")
    if o.overwrite or not o.json.exists(): return None

    known = load_card(o.json, "json")
    asked = {"samples": samples.id, "reference": reference.id, "extractor": extractor.id, "settings": as_json(settings)}
    same = is_report(known) and {k: known["protocol"].get(k) for k in asked} == asked
    if not same: check_vacant(o.json, argument="json")
    if record.exists(): check_times(o.json, load_card(record, "json"), times_of(samples, reference), "json")
    return Report(known["values"], MetricProtocol(**known["protocol"]), known["notes"])


def times_of(samples, reference) -> dict:
    "When the files of both sides were last changed; empty where neither has any."
    return {name: side.times for name, side in (("samples", samples), ("reference", reference)) if side.times}


def announce(o: Options, samples, reference, extractor, settings: dict, stored):
    "What will be compared."
    from vgnb.evaluation.measure import label_note, size_note
    statistics = " and stored statistics" if stored else ""
    print(f"{len(samples)} samples ({samples.id}) against {len(reference)} pictures{statistics} ({reference.id}),",
          f"through {extractor.id}")
    unlike = size_note(samples, reference)
    if unlike: print(f"note: {unlike}")
    by_number = label_note(samples, extractor) if "accuracy" in o.metrics else None
    if by_number: print(f"note: {by_number}")
    if o.dry_run: print(f"would compute {', '.join(o.metrics)} with {settings}; dry run, stopping here")


@contextlib.contextmanager
def progress_of(sides: dict, processes):
    "What `measure` tells of each side, as a bar or a line now and then."
    from vgnb.progress import Progress
    with contextlib.ExitStack() as stack:
        shown = {}
        def progress(side, done):
            share = -(-len(sides[side]) // processes.world)
            if side not in shown: shown[side] = stack.enter_context(Progress(share, "picture", what=side))
            shown[side].update(done - shown[side].done)
        yield progress


def main(argv: list[str]) -> int:
    from vgnb.cli import typed_cli
    o = typed_cli(Options, args=argv, description=__doc__)
    from vgnb.core import check, check_int
    from vgnb.evaluation.features import load_extractor
    from vgnb.evaluation.measure import check_request, measure
    from vgnb.evaluation.samples import open_samples
    from vgnb.places import locked_file
    from vgnb.processes import Processes

    check(o.json is None or o.json.parent.is_dir(), "json", o.json, "its folder must exist")
    check_int("batch", o.batch, 1)
    how = dict(size=o.size, crop=o.crop, orientation=o.orientation)
    reference, samples = open_samples(o.reference, **how), open_samples(o.samples, **how)
    processes = Processes()
    extractor = load_extractor(o.extractor, o.weights, o.device or processes.device)
    asked = dict(metrics=o.metrics, is_split=o.is_split, is_shuffle=o.is_shuffle, kid_subsets=o.kid_subsets,
                 kid_size=o.kid_size, k=o.k)
    settings, stored = check_request(samples, reference, extractor, **asked)
    if processes.main: announce(o, samples, reference, extractor, settings, stored)
    if o.dry_run: return 0

    with contextlib.ExitStack() as stack:
        if o.json: processes.together(lambda: stack.enter_context(locked_file(o.json, "json")))
        known = processes.together(lambda: measured_before(o, samples, reference, extractor, settings))
        if known:
            if processes.main: print(f"{known}\nfinished already, in {o.json}")
            return 0

        facts = processes.together(lambda: recorded(o, samples))
        if o.uint8_rule: facts["uint8_rule"] = o.uint8_rule
        with progress_of({"samples": samples, "reference": reference}, processes) as progress:
            report = measure(samples, reference, extractor, batch=o.batch, progress=progress, processes=processes,
                             **asked, **facts)
        if processes.main: publish(o, report, extractor, processes, times_of(samples, reference))
    return 0


def publish(o: Options, report, extractor, processes, times: dict):
    "Print the numbers; write them and how they came to be, if asked."
    from vgnb.core import digest_file, run_manifest, save_card
    from vgnb.kinds import to_json
    print(report)
    p = report.protocol
    told = p.sampler or {}
    made = "".join(f", {name} {told[name]}" for name in MADE if name in told)
    if p.seed is not None: print(f"samples: seed {p.seed}, guidance {told.get('guidance')}{made}")
    if o.json is None: return
    report.save(o.json)
    run = run_manifest(to_json(o), seed=p.seed or 0, data=p.samples, device=extractor.device, world=processes.world,
                       reference=p.reference, extractor=p.extractor, times=times,
                       outputs={o.json.name: digest_file(o.json)})
    save_card(o.json.with_suffix(".run.json"), run)
    print(f"written to {o.json}")


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
