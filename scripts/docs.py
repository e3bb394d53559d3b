"""The notebooks as pages that need neither a server nor a network: open the index in any browser, from the disk.

    python scripts/docs.py                              # all of them, to _site/index.html
    python scripts/docs.py --out site --only "tokenizers/*"    # some; links to the others become plain text
    python scripts/docs.py --force                      # everything again

A page has what its notebook has, with the signatures of what it exports, and ways to the rooms around it. All pages
share a search and five things to touch, whose pictures tiny models of the package compute. Run again, only what
changed is built again; a killed run goes on. Nothing of a notebook is run, and no page asks anything of another host.

Exit codes: 0 done, 2 something named on stderr.
"""
import hashlib
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


@dataclass
class Options:
    "What is built, and where to."
    out: Path = Path("_site")
    "a new or empty folder, or a site that was built before"
    nbs: Path = Path("nbs")
    "the notebooks; its index.ipynb is the first page"
    only: tuple[str, ...] = ()
    "patterns of pages below nbs, such as views/8*; default: all"
    films: bool = True
    "compute the things to touch"
    force: bool = False
    "build again what did not change, too"


def of_package() -> str:
    "Changes with the package: its code and the weights that come with it."
    files = sorted(f for f in (ROOT / "vgnb").rglob("*") if f.suffix in (".py", ".safetensors", ".json"))
    return hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)).hexdigest()


def filmed(name: str) -> tuple:
    "(a film as data, its still)."
    from vgnb.views.films import film, film_data
    made = film(name)
    return film_data(made), made.picture(side=192)


def main(o: Options) -> int:
    from vgnb.core import Missing
    try:
        from scripts.pages.site import FILM_PAGES, Site
    except ModuleNotFoundError as e:
        raise Missing("module", e.name, "must be installed: pip install -e '.[dev]' has all that pages need") from None
    films = {name: partial(filmed, name) for name in FILM_PAGES} if o.films else {}
    site = Site(o.nbs, o.out, o.only, films, of_package() if films else "", o.force)
    built = site.build()
    size = sum((o.out / file).stat().st_size for file in site.files)
    print(f"{o.out / 'index.html'}: {len(site.paths)} pages, {len(built)} built, {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    from vgnb.cli import run_main, typed_cli
    sys.exit(run_main(lambda argv: main(typed_cli(Options, args=argv, description=__doc__))))
