"""Move pictures into another container, byte by byte: a class folder, a tar of class folders, or webdataset shards.

    python scripts/export_images.py 'datasets://data/cifar10?split=train' data/cifar10-train          # class folders
    python scripts/export_images.py 'datasets://data/cifar10?split=train' data/cifar10-train.tar
    python scripts/export_images.py data/photos wds://data/photo-shards --shard-size 10000

The stored bytes are copied, nothing is decoded or encoded again (pictures that are only drawn, shapes://, become PNG).
Each is named after its row in SOURCE (automobile/00000017.jpg), and the same pictures give the same codes from every
container. OUT is there whole or not at all; it must not exist before.

Exit codes: 0 done, 2 something named on stderr.
"""
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@dataclass
class Options:
    "From where to where."
    source: Annotated[str, tyro.conf.Positional] # a folder, x.tar, wds://..., datasets://..., shapes://...
    out: Annotated[str, tyro.conf.Positional]    # a folder, NAME.tar, or wds://FOLDER
    shard_size: int = 10_000                     # pictures a webdataset shard
    max_bad: int = 0                             # unreadable pictures to leave out and list before one stops the export
    dry_run: bool = False                        # open the source, say what would happen, and stop


def main(argv: list[str]) -> int:
    from vgnb.cli import typed_cli
    o = typed_cli(Options, args=argv, description=__doc__)
    from vgnb.data.export import contents, export_images, plan_export
    from vgnb.data.images import open_images
    from vgnb.progress import Progress

    source = open_images(o.source, max_bad=o.max_bad)
    kind, place = plan_export(source, o.out)
    print(f"{len(source):,} pictures of {len(source.classes)} class(es) from {o.source} -> {kind} {place}")
    if o.dry_run: return 0

    with Progress(len(source), "picture", what="exporting") as bar:
        count = export_images(source, o.out, o.shard_size, lambda _: bar.update())
    for e in source.bad: print(f"left out: {e}", file=sys.stderr)
    print(f"{count:,} pictures written, {len(source.bad)} left out; contents {contents(open_images(o.out))[:16]}")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
