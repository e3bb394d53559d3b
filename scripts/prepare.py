"""Bring what models and recipes need: published weights, LPIPS, DINOv2, teachers, Inception, references, ImageNet.

    python scripts/prepare.py --list                      # every name
    python scripts/prepare.py RandAR-L                    # a published generator, and the tokenizer of its codes
    python scripts/prepare.py vq-16 dar-tokenizer         # what these recipes need: LPIPS, DINOv2, ImageNet
    python scripts/prepare.py inception reference-256     # what evaluate.py measures FID with
    python scripts/prepare.py RAR-B --check               # and load it once, and run it

Files go to the folder of weights of settings.ini, or to --to, several at once; one that is there is compared with what
its source states of it. Killed, the same command goes on where it was. Files of the hub come through huggingface_hub,
whose login (hf auth login, or HF_TOKEN) and endpoint (HF_ENDPOINT) are its own: no token is taken here. ImageNet is
gated: accept its terms on its page first. What could not be fetched is named with its page and its place, so that it
can be put there by hand.

Exit codes: 0 all is there, 2 something named on stderr.
"""
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@dataclass
class Options:
    "What is to be there."
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    "published files, recipes, lpips, dinov2, inception, reference-256, imagenet ...; see --list"
    to: Path | None = None
    "the folder of weights; default: that of settings.ini"
    jobs: int = 4
    "files at once"
    check: bool = False
    "load each and run it once"
    list: bool = False
    "print every name with what it needs, and stop"
    dry_run: bool = False
    "print which files would be fetched from where, and stop"


def show_names():
    "Every name and where it comes from."
    from vgnb.downloads import remotes
    from vgnb.preparation import IMAGENET_HUB, IMAGENET_NAME, needed_by
    from vgnb.training.recipes import recipes
    from vgnb.zoo import table
    print(table())
    for name, files in sorted(remotes.items()): print(f"{name:28}{', '.join(map(str, files))}")
    print(f"{IMAGENET_NAME:28}{IMAGENET_HUB} through the library datasets")
    for name in sorted(recipes): print(f"{name:28}recipe, needs {', '.join(needed_by(name)) or 'nothing'}")


def bring_imagenet() -> Exception | None:
    "Let `datasets` fetch ImageNet into its own cache; what went wrong."
    from vgnb.core import VgnbError
    from vgnb.data.images import open_images
    from vgnb.preparation import IMAGENET_HUB
    try:
        for split in ("train", "validation"):
            source = open_images(f"datasets://{IMAGENET_HUB}?split={split}")
            print(f"imagenet: {len(source):,} pictures, --data 'datasets://{IMAGENET_HUB}?split={split}'")
    except VgnbError as e: return e


def tell(name: str, files: tuple, failed: dict, folder: Path) -> int:
    "A line about each file of a name -> how many are not there."
    from vgnb.downloads import by_hand
    for file in files:
        if file not in failed:
            print(f"{name}: {file.place(folder)}")
            continue
        print(f"{name}: {failed[file]}", file=sys.stderr)
        print(f"{name}: by hand: {by_hand([file], folder)[0]}", file=sys.stderr)
    return sum(file in failed for file in files)


def main(argv: list[str]) -> int:
    from vgnb.cli import typed_cli
    o = typed_cli(Options, args=argv, description=__doc__)
    from vgnb.core import VgnbError, check, get_settings
    from vgnb.downloads import by_hand, fetch_all
    from vgnb.preparation import IMAGENET_NAME, files_for, sanity

    if o.list: return show_names()
    check(o.names, "names", o.names, "must name what is to be there; --list shows every name")
    folder, parts = o.to or get_settings().paths.weights, files_for(list(o.names))
    every = [file for files in parts.values() for file in files]
    if o.dry_run:
        for line in by_hand(every, folder): print(line)
        return 0

    failed = fetch_all(every, folder, o.jobs)
    absent = sum(tell(name, files, failed, folder) for name, files in parts.items())
    lacking = bring_imagenet() if IMAGENET_NAME in parts else None
    if lacking: print(f"{IMAGENET_NAME}: {lacking}", file=sys.stderr)
    for name, files in parts.items():
        if not o.check or not files or any(file in failed for file in files): continue
        try: sanity(name, folder)
        except VgnbError as e:
            absent += 1
            print(f"{name}: does not work: {e}", file=sys.stderr)
        else: print(f"{name}: works")
    return 2 if absent or lacking else 0


if __name__ == "__main__":
    from vgnb.cli import run_main
    sys.exit(run_main(main))
