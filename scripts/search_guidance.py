r"""Find the guidance scale of a pipeline: a grid of scales with some images each, then the best one with all of them.

    python scripts/search_guidance.py runs/quickstart shapes://?n=5000 --extractor shapes-judge \
        --metrics fid pr accuracy --scales 1 6 --interval 1 --count 500 --final 2000
    # 31 scales x 10,000, then 50,000
    python scripts/search_guidance.py runs/randar-l VIRTUAL_imagenet256_labeled.npz --out runs/search \
        --scales 2 8 --interval 0.2
    # all GPUs
    python scripts/launch.py --nproc-per-node 8 scripts/search_guidance.py ...

REF is what evaluate.py takes: npz, statistics, folder or address. OUT gets results.json (after each scale; every value
with its protocol), search.png, the reference's features and the images of the second round. Killed, the same command
goes on; with more --scales it adds to what is there. Wrong input ends with one line on stderr and exit code 2.
"""
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vgnb.sampling.settings import Sampling

@dataclass
class Options:
    "What to search, and against what."
    pipeline: Annotated[str, tyro.conf.Positional]
    "folder of a saved pipeline, or hub repository owner/name"
    reference: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REF")]
    "npz, statistics, folder or address"
    out: Path = Path("runs/search")
    "the search's folder, made or continued"
    scales: tuple[float, float] = (2.0, 8.0)
    "lowest and highest scale"
    interval: float = 0.2
    "between two scales"
    count: int = 10_000
    "images a scale"
    final: int = 50_000
    "images at the best scale; 0 = no second round"
    metrics: tuple[Literal["fid", "is", "kid", "pr", "accuracy"], ...] = ("fid", "is", "pr")
    "what to compute; pr = precision and recall"
    by: str = "fid"
    "the value that decides: fid, kid_mean, is_mean, precision, recall or accuracy"
    setting: str = ""
    "what takes the scales: guidance.end, picks.0.temperature, picks.0.top_k, steps ...; empty = the guidance's own"
    extractor: str = "inception"
    "the network that looks: inception, shapes-judge, or one of your own"
    weights: Path | None = None
    "its weights (Inception: a local copy of torch-fidelity's file)"
    labels: Literal["balanced", "random"] = "balanced"
    "classes in turn, or drawn"
    seed: int = 0
    "all draws count from it"
    size: int | None = None
    "side of the images; None = as decoded"
    reference_size: int | None = None
    "centre-crop pictures of a folder or source to this side"
    orientation: Literal["upright", "stored"] = "upright"
    "pictures of a folder or source turned as their EXIF says, or as published code reads them"
    batch: int = 64
    "pictures that the extractor sees at once"
    part: int = 64
    "images a part of a sampling job"
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)
    "how tokens are drawn; what is not given is as the pipeline was saved"
    ema: bool | None = None
    "averaged weights: True = required, False = refused, None = where there are some"
    keep_samples: bool = False
    "keep the images of every scale"
    dry_run: bool = False
    "load, check and say what would be done"


def main(argv: list[str]) -> int:
    from vgnb.cli import first_look, typed_cli
    from vgnb.core import check
    from vgnb.generators.schedules import SCHEDULES
    from vgnb.pipeline import named_pipeline, saved_levels, saved_sampling
    named = named_pipeline(argv, first_look(Options, argv, Options("", ""), ("sampling",)).pipeline)
    usual, levels = Options(tyro.MISSING, tyro.MISSING, sampling=saved_sampling(named)), saved_levels(named)
    o = typed_cli(Options, args=argv, default=usual, flat=("sampling",), names={"--schedule": SCHEDULES},
                  description=__doc__, most={"--picks": (levels, "code levels")} if levels else None)
    check(o.pipeline == named, "pipeline", o.pipeline, "must be the first word: the others depend on it")
    o.sampling.check_steps(usual.sampling)
    from vgnb.evaluation.features import load_extractor
    from vgnb.evaluation.samples import open_samples
    from vgnb.pipeline import Pipeline
    from vgnb.processes import Processes
    from vgnb.search import GuidanceSearch, scale_grid

    scales, processes = scale_grid(*o.scales, o.interval), Processes()
    pipe = Pipeline.from_pretrained(o.pipeline, processes.device, ema=o.ema)
    pipe = Pipeline(pipe.tokenizer, pipe.generator, o.sampling, pipe.classes, pipe.grid.shape, mixed=pipe.mixed)
    reference = open_samples(o.reference, o.reference_size, orientation=o.orientation)
    search = GuidanceSearch(
        pipe, reference, load_extractor(o.extractor, o.weights, processes.device), o.out, scales, count=o.count,
        final=o.final, metrics=o.metrics, by=o.by, setting=o.setting, labels=o.labels, seed=o.seed, size=o.size,
        batch=o.batch, part=o.part, keep_samples=o.keep_samples)
    todo = search.todo()

    def say(*words):
        if processes.main: print(*words, flush=True)
    say(f"{len(scales)} scales from {scales[0]:g} to {scales[-1]:g}, {len(scales) - len(todo)} of them done:",
        f"{len(todo)} x {o.count:,} images, then {o.final:,},",
        f"against {search.reference.id} through {search.extractor.id}")
    if o.dry_run: return 0
    results = search.run(processes, say)
    say(f"best {search.setting} by {o.by}: {results['best']:g}; written to {search.file}")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
