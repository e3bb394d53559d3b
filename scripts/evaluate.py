"""Compare samples with a reference: FID, sFID, IS, KID, MIND, precision and recall, the codes they take, and accuracy.

    python scripts/evaluate.py REF.npz SAMPLES.npz          # Inception; weights downloaded once, or --weights FILE
    python scripts/evaluate.py shapes://?n=5000 runs/x/samples.npz --extractor shapes-judge --metrics fid pr accuracy
    python scripts/evaluate.py photos/ out_pngs/ --size 256 --json metrics.json     # folders of pictures
    python scripts/evaluate.py originals.npz reconstructions.npz --metrics fid      # rFID
    python scripts/evaluate.py real.npz samples.npz --metrics codes --tokenizer tiny-maskgit   # no network that looks

REF and SAMPLES are npz files as the published evaluators exchange them (arr_0 uint8 (n, h, w, 3); REF may hold mu and
sigma, which are then used for FID; SAMPLES may hold labels; scripts/extract_reference.py writes REF of a data set),
folders of pictures, tars, or addresses of data sources (shapes://, datasets://, wds://). REF may be statistics alone;
mu_s and sigma_s in it serve sFID.

A number is printed with what it rests on: counts, labels, extractor (its weights' hash), reference. SAMPLES.run.json
beside SAMPLES.npz adds the sampler's settings and seed, if it holds the hash of this very file. Several processes
(accelerate launch) share the pictures. Wrong input ends with one line on stderr and exit code 2, before anything is
computed.
"""
import contextlib
import sys
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

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
    extractor: str | None = None
    """the network that looks: inception (None), inception-clean, inception-halton, inception-pytorch, dinov2,
    shapes-judge, or one of your own; numbers of different extractors have nothing to do with each other"""
    weights: Path | None = None
    "its weights (Inception: a local copy of torch-fidelity's file)"
    metrics: tuple[Literal["fid", "sfid", "is", "kid", "mind", "pr", "dc", "accuracy", "codes"], ...] = (
        "fid", "is", "kid", "pr")
    """what to compute; mind = sliced distance, pr = precision and recall, dc = density and coverage, codes = how
    differently a --tokenizer spends its codes; accuracy needs labels in SAMPLES and an extractor that knows their
    classes: by name where SAMPLES (or its run.json) has names, else by number"""
    tokenizer: Path | None = None
    "whose codes count for `codes`: folder of a run, of a saved model, of a pipeline; a shipped name; a published file"
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
    mind_size: int | None = None
    "pictures of either side that count for MIND; None = 5000, or all of the smaller side"
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


READ_BY = {"is_split": ("is",), "is_shuffle": ("is",), "kid_subsets": ("kid",), "kid_size": ("kid",),
           "mind_size": ("mind",), "k": ("pr", "dc"), "tokenizer": ("codes",)}      # option -> metrics


def check_options(o: Options):
    "Nothing is asked that these metrics and these pictures leave unread."
    from vgnb.cli import check_read
    from vgnb.evaluation.samples import is_stored
    read = {name: (bool({*metrics} & {*o.metrics}), f"--metrics {' or '.join(metrics)}")
            for name, metrics in READ_BY.items()}
    networks = o.metrics != ("codes",), "metrics that a network looks for; codes alone are the --tokenizer's"
    sources = not (is_stored(o.reference) and is_stored(o.samples))
    cropped = sources, "folders, tars and addresses; pixels in an npz stay as they are"
    check_read(o, read | {"extractor": networks, "weights": networks, "size": cropped, "orientation": cropped,
                          "crop": (o.size is not None, "--size"), "overwrite": (o.json is not None, "--json")})


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


def measured_before(o: Options, samples, reference, looker: str, settings: dict):
    "The report at --json, if it is of these very pictures, eyes and settings; None if there is none yet."
    from vgnb.core import as_json, load_card
    from vgnb.evaluation.measure import MetricProtocol, Report
    from vgnb.places import check_record, check_times, check_vacant
    if o.json is None: return None
    record = o.json.with_suffix(".run.json")
    check_record(record, o.json.name, o.overwrite, "json")
    if o.overwrite or not o.json.exists(): return None

    known = load_card(o.json, "json")
    asked = {"samples": samples.id, "reference": reference.id, "extractor": looker, "settings": as_json(settings)}
    same = is_report(known) and {k: known["protocol"].get(k) for k in asked} == asked
    if not same: check_vacant(o.json, argument="json")
    if record.exists(): check_times(o.json, load_card(record, "json"), times_of(samples, reference), "json")
    return Report(known["values"], MetricProtocol(**known["protocol"]), known["notes"])


def times_of(samples, reference) -> dict:
    "When the files of both sides were last changed; empty where neither has any."
    return {name: side.times for name, side in (("samples", samples), ("reference", reference)) if side.times}


@dataclass
class Eyes:
    "What looks at the pictures: a network, a tokenizer, or both; and what each of them is asked."
    extractor: Any = None                           # where a metric needs one
    tokenizer: Any = None                           # for `codes`
    asked: dict = field(default_factory=dict)       # of `measure`
    settings: dict = field(default_factory=dict)    # as the report will hold them
    stored: Any = None                              # statistics of the reference that serve the extractor

    @property
    def id(self) -> str:
        from vgnb.evaluation.code_distance import coder_id
        return self.extractor.id if self.extractor else coder_id(self.tokenizer)


def opened(o: Options, samples, reference, device) -> Eyes:
    "The eyes that the metrics need. Errors: everything that could fail, before any picture is looked at."
    from vgnb.evaluation.features import load_extractor
    from vgnb.evaluation.measure import check_request
    eyes, of_pictures = Eyes(), tuple(m for m in o.metrics if m != "codes")
    if of_pictures or not o.metrics:
        o.extractor = o.extractor or "inception"
        eyes.extractor = load_extractor(o.extractor, o.weights, device)
        eyes.asked = dict(metrics=of_pictures, is_split=o.is_split, is_shuffle=o.is_shuffle, kid_subsets=o.kid_subsets,
                          kid_size=o.kid_size, mind_size=o.mind_size, k=o.k)
        eyes.settings, eyes.stored = check_request(samples, reference, eyes.extractor, **eyes.asked)
    if "codes" in o.metrics: _open_coder(o, eyes, samples, reference, device)
    return eyes


def _open_coder(o: Options, eyes: Eyes, samples, reference, device):
    "The tokenizer among the eyes."
    from vgnb.core import check
    from vgnb.evaluation.code_distance import check_codes, coder_id
    from vgnb.evaluation.features import check_device
    from vgnb.shipped import open_part
    check(o.tokenizer is not None, "tokenizer", None, "must name whose codes are counted: --tokenizer tiny-maskgit")
    check_device(device)
    eyes.tokenizer = open_part(o.tokenizer, "tokenizer", device=device)
    check_codes(samples, reference, eyes.tokenizer)
    told = {"tokenizer": coder_id(eyes.tokenizer)} if eyes.extractor else {}
    eyes.settings = {**eyes.settings, "metrics": [*eyes.settings.get("metrics", []), "codes"], **told}


def looked(o: Options, eyes: Eyes, samples, reference, processes, facts: dict):
    "The report of all that was asked."
    from vgnb.evaluation.code_distance import measure_codes
    from vgnb.evaluation.measure import measure
    reports, how = [], dict(batch=o.batch, processes=processes, **facts)
    sides = {"samples": samples, "reference": reference}
    if eyes.extractor:
        with progress_of(sides, processes) as progress:
            reports.append(measure(samples, reference, eyes.extractor, progress=progress, **eyes.asked, **how))
    if eyes.tokenizer is not None:
        with progress_of(sides, processes) as progress:
            reports.append(measure_codes(samples, reference, eyes.tokenizer, progress=progress, **how))
    report = reports[0]
    for other in reports[1:]:
        report.values |= other.values
        report.notes += [note for note in other.notes if note not in report.notes]
    report.protocol.settings = eyes.settings
    return report


def announce(o: Options, samples, reference, eyes: Eyes):
    "What will be compared."
    from vgnb.evaluation.measure import label_note, size_note
    statistics = " and stored statistics" if eyes.stored else ""
    print(f"{len(samples)} samples ({samples.id}) against {len(reference)} pictures{statistics} ({reference.id}),",
          f"through {eyes.id}")
    unlike = size_note(samples, reference)
    if unlike: print(f"note: {unlike}")
    by_number = label_note(samples, eyes.extractor) if "accuracy" in o.metrics else None
    if by_number: print(f"note: {by_number}")
    if o.dry_run: print(f"would compute {', '.join(o.metrics)} with {eyes.settings}; dry run, stopping here")


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
    from vgnb.evaluation.samples import open_samples
    from vgnb.places import locked_file
    from vgnb.processes import Processes

    check_options(o)
    check(o.json is None or o.json.parent.is_dir(), "json", o.json, "its folder must exist")
    check_int("batch", o.batch, 1)
    how = dict(size=o.size, crop=o.crop, orientation=o.orientation)
    reference, samples = open_samples(o.reference, **how), open_samples(o.samples, **how)
    processes = Processes()
    device = o.device or processes.device
    eyes = opened(o, samples, reference, device)
    if processes.main: announce(o, samples, reference, eyes)
    if o.dry_run: return 0

    with contextlib.ExitStack() as stack:
        if o.json: processes.together(lambda: stack.enter_context(locked_file(o.json, "json")))
        known = processes.together(lambda: measured_before(o, samples, reference, eyes.id, eyes.settings))
        if known:
            if processes.main: print(f"{known}\nfinished already, in {o.json}")
            return 0

        facts = processes.together(lambda: recorded(o, samples))
        if o.uint8_rule: facts["uint8_rule"] = o.uint8_rule
        report = looked(o, eyes, samples, reference, processes, facts)
        if processes.main: publish(o, report, device, processes, times_of(samples, reference))
    return 0


def publish(o: Options, report, device, processes, times: dict):
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
    run = run_manifest(to_json(o), seed=p.seed or 0, data=p.samples, device=device, world=processes.world,
                       reference=p.reference, extractor=p.extractor, times=times,
                       outputs={o.json.name: digest_file(o.json)})
    save_card(o.json.with_suffix(".run.json"), run)
    print(f"written to {o.json}")


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
