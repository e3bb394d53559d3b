"""Cluster the features of a data set: a Cluster tokenizer of a teacher, or a new codebook for a tokenizer.

    python scripts/cluster_features.py --teacher clip --data IMAGENET/train --out runs/cluster-clip
    python scripts/cluster_features.py --tokenizer runs/vq-16 --data IMAGENET/train --out runs/vq-16-clustered

The teacher is one of the official ones (clip, dino, vit, mae, convnext, openclip-L-14, ...), whose file lies in
--weights, or the folder of a saved one. --tokenizer takes the folder of a run, of a saved model or of a pipeline, the
name of a shipped one or a published file; the features are what its table is searched for, and its table becomes their
centres. Every picture's centre is seen once in each pass: one that chooses the first centres, then --iterations. OUT
gets clusters.safetensors, which is brought up to date every --every batches, and in the end model/.

Stopped or killed, the same command goes on; the processes of one launch share the pictures, and the result does not
depend on how many they are, nor on --batch:

    python scripts/launch.py --nproc-per-node 8 scripts/cluster_features.py --teacher dino --data IMAGENET/train \\
        --out runs/cluster-dino

Exit codes: 0 done, 2 something named on stderr, 75 interrupted (run again).
"""
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@dataclass
class Options:
    "Whose features, of which pictures."
    data: str                      # pictures: a folder, a .tar, wds://..., datasets://..., shapes://..., kaggle://...
    out: Path                      # the folder: clusters.safetensors on the way, model/ in the end
    teacher: str = ""              # an official teacher's name, or the folder of a saved one; else --tokenizer
    tokenizer: Path | None = None  # folder of a run, of a saved model, of a pipeline; a shipped name; a published file
    codes: int | None = None       # centres; None = those of the table there is, or 8192
    iterations: int = 10           # passes after the first one, which chooses where centres begin
    seed: int = 0                  # of that choice
    size: int | None = None        # side of the pictures; None = the tokenizer's in training, else 256
    crop: Literal["adm", "bilinear", "bicubic"] = "bicubic"  # how pictures come to it: halving and bicubic, or one step
    orientation: Literal["upright", "stored"] = "upright"  # turned as their EXIF says, or as published code reads them
    weights: Path | None = None    # folder with the teachers' official files; None = <weights>, see settings.ini
    batch: int = 64                # pictures seen at once; the result does not depend on it
    every: int = 100               # batches between two states
    workers: int = 0               # processes that read pictures ahead
    max_bad: int = 0               # unreadable pictures to leave out and list before one stops the run
    ema: bool | None = None        # averaged weights of --tokenizer; None = where there are some
    tokenizer_system: str = ""     # whose published file the tokenizer is, where its name doesn't tell
    tokenizer_prefix: str = ""     # what stands before the names in that file: model.
    fresh: bool = False            # a state and a model that lie there may go
    dry_run: bool = False          # say what would happen, and stop


def subject(o: Options):
    "The tokenizer whose table the centres become."
    from dataclasses import replace

    from vgnb.cli import check_read
    from vgnb.core import check, check_int, get_settings
    from vgnb.shipped import open_part
    from vgnb.tokenizers.feature_objective import find_teacher
    from vgnb.tokenizers.feature_tokenizer import CENTRES, Cluster, ClusterConfig
    from vgnb.tokenizers.quantizers import TableQuantizer
    one = bool(o.teacher) != bool(o.tokenizer)
    check(one, "teacher", o.teacher, "must be given, or else --tokenizer: whose features are to be clustered")
    of_tokenizers = dict.fromkeys(("ema", "tokenizer_system", "tokenizer_prefix"), (not o.teacher, "--tokenizer"))
    check_read(o, {"weights": (bool(o.teacher), "--teacher")} | of_tokenizers)
    codes = check_int("codes", 8192 if o.codes is None else o.codes, 1)
    for name, least in (("iterations", 0), ("every", 0), ("seed", 0)): check_int(name, getattr(o, name), least)
    if o.teacher:
        teacher = find_teacher(o.teacher, o.weights or get_settings().paths.weights)
        plain = replace(teacher.config, view=None, grid=None)
        made = Cluster(ClusterConfig(replace(CENTRES, codebook=codes, dim=plain.features), plain))
        made.encoder.load_state_dict(teacher.state_dict())
        return made.eval()

    tokenizer = open_part(o.tokenizer, "tokenizer", system=o.tokenizer_system or None, ema=o.ema,
                          prefix=o.tokenizer_prefix)
    has_table = isinstance(getattr(tokenizer, "quantizer", None), TableQuantizer)
    message = "has no table of rows of its own that clusters could be: its codes are a lattice, of levels, or frozen"
    check(has_table, "tokenizer", type(tokenizer).__name__, message)
    rows = tokenizer.quantizer.config.codebook
    check(o.codes in (None, rows), "codes", o.codes, f"must be left out: the table of --tokenizer has {rows} rows")
    return tokenizer


def main(argv: list[str]) -> int:
    from vgnb.cli import typed_cli
    o = typed_cli(Options, args=argv, description=__doc__)
    from vgnb.core import check_place, digest, write_run
    from vgnb.data.images import open_images
    from vgnb.data.transforms import Augment
    from vgnb.evaluation.feature_passes import Passes, cluster_dataset
    from vgnb.kinds import to_json
    from vgnb.places import locked
    from vgnb.processes import Processes
    from vgnb.saved import save_model, side_of
    from vgnb.tokenizers.streamed_kmeans import clusters_of, set_codebook
    tokenizer = subject(o)
    o.size, whose = side_of(tokenizer, o.size)
    augment = Augment("center", o.size) if o.crop == "adm" else Augment("resize", o.size, filter=o.crop)
    processes = Processes()
    passes = Passes(open_images(o.data, max_bad=o.max_bad, orientation=o.orientation), augment, batch=o.batch,
                    workers=o.workers, processes=processes, least=tokenizer.factor)
    places = check_places(tokenizer, o.size, len(passes.source))
    check_place("out", o.out)
    if processes.main:
        c = tokenizer.quantizer.config
        print(f"{len(passes.source):,} pictures of {o.size} px ({whose or 'as asked'}) x {places} features -> "
              f"{c.codebook:,} centres of {c.dim} channels in {o.out}, on {processes.world} process(es)")
    if o.dry_run: return 0

    tokenizer = tokenizer.to(processes.device)
    fixed = {k: v for k, v in tokenizer.state_dict().items() if not k.startswith("quantizer.")}
    of = {"network": digest(fixed), "kind": type(tokenizer).__name__}
    def look(images): return tokenizer.features(tokenizer.enter(images))
    with owned(o.out, processes, locked):
        clear(o, processes)
        clusters = cluster_dataset(look, clusters_of(tokenizer.quantizer), passes, o.out / "clusters.safetensors", of,
                                   seed=o.seed, iterations=o.iterations, every=o.every)
        set_codebook(tokenizer.quantizer, clusters)
        for e in passes.source.bad: print(f"left out: {e}", file=sys.stderr)
        facts = dict(size=o.size, classes=list(passes.source.classes), data=passes.source.fingerprint,
                     preprocessing=repr(augment), clustered=to_json(o))
        processes.together(lambda: str(save_model(o.out / "model", tokenizer, tokenizer.config, **facts)))
        if not processes.main: return 0
        write_run(o.out, config=to_json(o), seed=o.seed, data=passes.source.fingerprint, device=processes.device,
                  world=processes.world)
    print(f"finished: {int(clusters.total):,} features, {o.iterations} iterations: the model is in {o.out / 'model'}")
    return 0


def check_places(tokenizer, size: int, count: int) -> int:
    "Features of a picture. Errors: a size that the network can't take; a set with fewer features than centres."
    import math

    from vgnb.core import check
    fits = size % tokenizer.factor == 0
    check(fits, "size", size, f"must be a multiple of {tokenizer.factor}, the pixels of a cell")
    places = math.prod(tokenizer.code_shape(size, size)[:tokenizer.dims])
    codes = tokenizer.quantizer.config.codebook
    check(count * places >= codes, "codes", codes, f"must be at most {count * places}, the features of all pictures")
    return places


def owned(out: Path, processes, locked):
    "The folder, owned by the main process while the work lasts."
    import contextlib
    stack = contextlib.ExitStack()
    processes.together(lambda: (stack.enter_context(locked(out, ".lock", "out")), None)[1])
    return stack


def clear(o: Options, processes):
    "With --fresh: nothing of an earlier run is left."
    import shutil

    def remove():
        (o.out / "clusters.safetensors").unlink(missing_ok=True)
        shutil.rmtree(o.out / "model", ignore_errors=True)
    if o.fresh: processes.together(remove)


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
