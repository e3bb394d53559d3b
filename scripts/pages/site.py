"""All pages of a static site: what leads from one to another, the search's index, films; only changes are built."""
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from jinja2 import Environment, FileSystemLoader

from scripts.pages.reader import Source, Writer, picture_beside, read, url_of
from vgnb.core import BadInput, check, check_place, load_json, sweep_aside, write_aside
from vgnb.figures import png_bytes
from vgnb.places import locked
from vgnb.progress import Progress

HERE = Path(__file__).resolve().parent
RECORD = "built.json"             # in the site: what stands there, and what it was made of
MADE_BY = "vgnb-site/1"           # in the record: other tools call a file built.json, too
ASSETS = ("style.css", "site.js", "films.js")
FILM_PAGES = {                    # a film and the page beside whose widget it stands
    "orders": "views/820_explorer.ipynb", "sampling": "views/800_player.ipynb", "guidance": "views/822_play.ipynb",
    "reconstructions": "views/810_desk.ipynb", "arrivals": "sampling/450_streaming.ipynb",
    "branches": "views/824_branch.ipynb"}
WORD = re.compile(r"[^\W_][\w]*")


@dataclass
class Card:
    "What the site knows of a page without reading it again."
    path: str
    number: str
    title: str
    summary: str
    module: str
    digest: str
    names: list[list[str]]        # (name, kind, about)
    targets: list[str]            # all that its prose may link

    @property
    def url(self) -> str: return url_of(self.path)


@dataclass
class Built:
    "A page that stands in the site."
    key: str                      # of all that it was made of
    parts: list[list[str]]        # (anchor, title, text)
    files: list[str]              # its own, and its figures


@dataclass
class Floor:
    "A chapter: its rooms in the order of the tour."
    name: str
    about: str
    paths: list[str] = field(default_factory=list)

    @property
    def anchor(self) -> str: return self.name.lower().replace(" ", "-")


def notebooks(nbs: Path, only: tuple[str, ...] = ()) -> list[str]:
    "Paths below nbs/ of all notebooks, or of those that fit one of the patterns; the index always."
    found = [p.relative_to(nbs) for p in sorted(nbs.rglob("*.ipynb"))]
    paths = [p.as_posix() for p in found if not any(part.startswith((".", "_")) for part in p.parts)]
    for pattern in only:
        check(any(fnmatch(path, pattern) for path in paths), "only", pattern, f"must fit notebooks below {nbs}")
    return [p for p in paths if not only or p == "index.ipynb" or any(fnmatch(p, pattern) for pattern in only)]


def floors(tour: str, paths: list[str]) -> list[Floor]:
    "The chapters that the tour tells, in its order; a page that it forgets stands at the end."
    found, left = [], [p for p in paths if p != "index.ipynb"]
    for paragraph in re.split(r"\n\s*\n", tour):
        told = re.match(r"\*\*([^*]+)\*\*\s+—\s+([^.\n]*)", paragraph)
        if not told: continue
        floor = Floor(told[1], told[2])
        for target in re.findall(r"\]\(([^)#\s]+\.ipynb)", paragraph):
            if normpath(target) not in left: continue
            left.remove(normpath(target))
            floor.paths.append(normpath(target))
        if floor.paths: found.append(floor)
    return [*found, Floor("More", "pages that the tour does not tell", left)] if left else found


def digest(*things) -> str: return hashlib.sha256(json.dumps(things, sort_keys=True).encode()).hexdigest()


def record_of(out: Path) -> dict:
    "What a site says of itself; empty if none of ours stands there."
    try: found = load_json(out / RECORD)
    except BadInput: return {}
    return found if isinstance(found, dict) and found.get("made_by") == MADE_BY else {}


def check_out(out: Path) -> Path:
    "A place for a site: empty, or a site that was built here."
    check_place("out", out)
    known = not out.exists() or record_of(out) or not any(out.iterdir())
    check(known, "out", out, f"must be a new or empty folder, or a site built before (its {RECORD} tells); "
          "other files are there")
    return out


def are_texts(found, n: int | None = None) -> bool:
    "Whether it is a list of strings, of `n` if that is said."
    return isinstance(found, list) and all(isinstance(x, str) for x in found) and n in (None, len(found))


def are_rows(found) -> bool: return isinstance(found, list) and all(are_texts(row, 3) for row in found)


def lies_below(out: Path, file) -> bool:
    "Whether a record's entry is a file of the site: written as we write it, and not led outside by a link."
    if not isinstance(file, str) or normpath(file) != file or Path(file).is_absolute(): return False
    try:
        root, place, entry = out.resolve(), (out / file).resolve(), (out / file).parent.resolve() / Path(file).name
        return root in place.parents and root in entry.parents and not place.is_dir()
    except (OSError, RuntimeError, ValueError): return False        # a loop of links, a zero byte, a name too long


def known_files(out: Path, record: dict) -> list[str]:
    "A record's files that lie in the site: only these may be removed."
    files = record.get("files")
    return [file for file in files if lies_below(out, file)] if isinstance(files, list) else []


def known_pages(out: Path, record: dict) -> tuple[dict[str, Card], dict[str, Built], dict[str, str]]:
    "A record's cards, pages and keys of films; nothing of one that has other fields."
    try:
        cards = {path: Card(**card) for path, card in record["cards"].items()}
        pages = {path: Built(**page) for path, page in record["pages"].items()}
        films = dict(record["films"])
    except (AttributeError, KeyError, TypeError, ValueError): return {}, {}, {}
    texts = [[c.number, c.title, c.summary, c.module, c.digest] for c in cards.values()]
    fine = all(map(are_texts, texts)) and all(are_rows(c.names) and are_texts(c.targets) for c in cards.values())
    fine = fine and all(card.path == path for path, card in cards.items())
    fine = fine and all(are_rows(page.parts) and are_texts(page.files) for page in pages.values())
    if not fine: return {}, {}, {}
    ours = {path: page for path, page in pages.items()
            if page.files[:1] == [url_of(path)] and all(lies_below(out, file) for file in page.files)}
    return cards, ours, films


class Site:
    "A site below `out` of the notebooks below `nbs`."
    def __init__(self,
        nbs: Path, out: Path,
        only: tuple[str, ...] = (),                  # patterns of paths; links to other pages become plain text
        films: dict[str, Callable] | None = None,    # name -> what makes it; all of its pages' films
        film_key: str = "",                          # changes when a film would come out otherwise
        force: bool = False,                         # build everything again
    ):
        self.nbs, self.out, self.films, self.film_key = nbs, check_out(out), films or {}, film_key
        self.paths = notebooks(nbs, only)
        check("index.ipynb" in self.paths, "nbs", nbs, "must hold index.ipynb, the tour")
        before = record_of(out)
        self.cards, self.built, self.film_keys = known_pages(out, {} if force else before)
        self.files_before = known_files(out, before)      # even if all is built again: some of it may be gone
        self.files: set[str] = set()
        self.sources: dict[str, Source] = {}
        self.changed: list[str] = []

    # ---- reading

    def source(self, path: str) -> Source:
        if path not in self.sources: self.sources[path] = read(self.nbs, path)
        return self.sources[path]

    def card(self, path: str) -> Card:
        "What there is to know of a notebook; read again only if it changed."
        now = hashlib.sha256((self.nbs / path).read_bytes()).hexdigest()
        if path in self.cards and self.cards[path].digest == now: return self.cards[path]
        s = self.source(path)
        names = [[n.name, n.kind, n.about.partition("\n")[0]] for n in s.exported()]
        return Card(path, s.number, s.title, s.summary, s.module, now, names, sorted(s.targets()))

    @cached_property
    def pages(self) -> dict[str, str]: return {path: card.url for path, card in self.cards.items()}

    @cached_property
    def named(self) -> dict[str, str]:
        "Where a name is described; one that several rooms export is nowhere."
        found: dict[str, set[str]] = {}
        for card in self.cards.values():
            for name, _, _ in card.names: found.setdefault(name, set()).add(f"{card.url}#{name}")
        return {name: next(iter(urls)) for name, urls in found.items() if len(urls) == 1}

    @cached_property
    def floors(self) -> list[Floor]:
        tour = "\n\n".join(c.source for c in self.source("index.ipynb").cells if c.cell_type == "markdown")
        return floors(tour, self.paths)

    @cached_property
    def template(self):
        how = dict(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        return Environment(loader=FileSystemLoader(HERE), **how).get_template("page.html")

    @cached_property
    def builder(self) -> str:
        "Changes when pages would come out otherwise: the builder's own files."
        files = sorted(f for f in HERE.iterdir() if f.suffix in (".py", ".html"))
        return digest([f.read_text(encoding="utf-8") for f in files])

    # ---- writing

    def write(self, url: str, content: str | bytes):
        "A file of the site; one that is the same already is left alone."
        data, file = content.encode() if isinstance(content, str) else content, self.out / url
        self.files.add(url)
        if file.is_file() and file.read_bytes() == data: return
        with write_aside(file) as aside: aside.write_bytes(data)

    def around(self, path: str) -> dict:
        "What leads from a page to others: its floor, what comes before and after."
        line = ["index.ipynb", *(p for floor in self.floors for p in floor.paths)]
        at = line.index(path)
        near = {"before": line[at - 1] if at else None, "after": line[at + 1] if at + 1 < len(line) else None}
        cards = {name: self.cards[p] for name, p in near.items() if p}
        floor = next((f for f in self.floors if path in f.paths), None)
        rooms = [self.cards[p] for p in floor.paths] if floor else []
        return {"floor": floor, "rooms": rooms, "floors": self.floors, **cards}

    def render(self, url: str, title: str, body: str, **more) -> str:
        here = dirname(url) or "."

        def to(target: str) -> str:
            path, hash, anchor = target.partition("#")
            return relpath(path, here) + hash + anchor

        plain = {"floor": None, "rooms": [], "floors": self.floors, "number": "", "summary": "", "module": ""}
        more = plain | {"touched": bool(self.films)} | more
        return self.template.render(url=url, title=title, body=body, to=to, root=relpath(".", here), **more)

    def film_of(self, path: str) -> str:
        "The film that stands on a page."
        return next((name for name, page in FILM_PAGES.items() if page == path and name in self.films), "")

    def key(self, path: str) -> str:
        "Of all that a page is made of."
        card, around = self.cards[path], self.around(path)
        links = {t: self.pages.get(normpath(join(dirname(path), t.partition("#")[0]))) or self.named.get(t)
                 for t in card.targets}
        near = (*around["rooms"], around.get("before"), around.get("after"))
        shown = [[c.url, c.number, c.title] for c in near if c]
        names = [floor.name for floor in self.floors]
        beside = [picture for t in card.targets if (picture := picture_beside(self.nbs, path, t))]
        pictures = [hashlib.sha256(picture.read_bytes()).hexdigest() for picture in beside]
        return digest(card.digest, links, pictures, shown, names, self.film_of(path), bool(self.films), self.builder)

    def stands(self, path: str, key: str) -> bool:
        "Whether the page is there as it would be built now."
        page = self.built.get(path)
        return page is not None and page.key == key and all((self.out / f).is_file() for f in page.files)

    def page(self, path: str, key: str) -> Built:
        "Build a page."
        card, figures = self.cards[path], []

        def keep(data: bytes, ending: str) -> str:
            url = f"figures/{hashlib.sha256(data).hexdigest()[:20]}.{ending}"
            self.write(url, data)
            figures.append(url)
            return url

        writer = Writer(self.source(path), self.pages, self.named, keep, self.nbs)
        body = writer.body()
        around = self.around(path)
        summary = writer.markdown.render(card.summary) if card.summary else ""
        html = self.render(card.url, card.title, body, path=path, number=card.number, summary=summary,
                           module=card.module, headings=writer.headings, film=self.film_of(path), **around)
        self.write(card.url, html)
        return Built(key, [[p.anchor, p.title, p.text] for p in writer.parts], [card.url, *figures])

    def make_films(self, progress: Progress):
        "Films that would come out otherwise than they stand here, each with its still."
        for name, make in self.films.items():
            files = [f"films/{name}.js", f"films/{name}.png"]
            self.files |= set(files)
            there = all((self.out / f).is_file() for f in files)
            if not there or self.film_keys.get(name) != self.film_key:
                data, still = make()
                code = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
                self.write(files[0], f"(window.FILMS = window.FILMS || {{}})[{json.dumps(name)}] = {code};\n")
                self.write(files[1], png_bytes(still))
                self.changed.append(f"films/{name}")
            self.film_keys[name] = self.film_key
            progress.update()
        self.film_keys = {name: key for name, key in self.film_keys.items() if name in self.films}

    # ---- what is made of all pages

    def listings(self):
        "The pages of rooms, of names and of films, the search's index, and what all pages use."
        self.listing("rooms.html", "All rooms", "Floor by floor, in the order of the tour.", floors=self.floors,
                     cards=self.cards)
        names = [(*name, card) for card in self.cards.values() for name in card.names]
        names.sort(key=lambda name: (name[0].lower(), name[0]))
        self.listing("names.html", "All names", "Everything that is exported, where it is described.", names=names)
        homes = {name: self.cards.get(FILM_PAGES.get(name, "")) for name in self.films}
        self.listing("films.html", "Things to touch", "They work here, without a kernel.", films=list(self.films),
                     homes=homes)
        self.write("search.js", search_index([self.cards[p] for p in self.paths], self.built))
        for name in ASSETS: self.write(name, (HERE / name).read_bytes())

    def listing(self, url: str, title: str, summary: str, **more):
        "A page of the site's own."
        body = self.template.environment.get_template(url).render(**more)
        self.write(url, self.render(url, title, body, summary=summary, films=more.get("films")))

    def record(self, finished: bool):
        "Note what stands here; unfinished, files of before stay known."
        files = sorted(self.files if finished else self.files | set(self.files_before))
        pages = {path: asdict(page) for path, page in self.built.items()}
        cards = {path: asdict(card) for path, card in self.cards.items()}
        record = {"made_by": MADE_BY, "cards": cards, "pages": pages, "films": self.film_keys, "files": files}
        with write_aside(self.out / RECORD) as aside: aside.write_text(json.dumps(record), encoding="utf-8")

    def build(self, show: bool | None = None) -> list[str]:
        "Build what changed; returns its names."
        self.out.mkdir(parents=True, exist_ok=True)
        with locked(self.out, ".lock", "out"):
            if not (self.out / RECORD).is_file(): self.record(False)       # the place is ours from now on
            for folder in {self.out, *((self.out / file).parent for file in self.files_before)}: sweep_aside(folder)
            with Progress(2 * len(self.paths) + len(self.films), "piece", what="site", show=show) as progress:
                self.cards = {path: self.card(path) for path in self.paths if not progress.update()}
                self.built = {path: page for path, page in self.built.items() if path in self.cards}
                try:
                    for path in self.paths: self.one(path, progress)
                    self.make_films(progress)
                finally: self.record(False)
            self.listings()
            for gone in set(self.files_before) - self.files: (self.out / gone).unlink(missing_ok=True)
            self.record(True)
        return self.changed

    def one(self, path: str, progress: Progress):
        "A page, unless it stands."
        key = self.key(path)
        if not self.stands(path, key):
            self.built[path] = self.page(path, key)
            self.changed.append(path)
        self.files |= set(self.built[path].files)
        progress.update()


# ---- the search

def search_index(cards: list[Card], built: dict[str, Built]) -> str:
    "Every word with the parts of pages that hold it, as a script: a page on a disk may not read other files."
    pages, parts, found = [], [], {}
    for card in cards:
        pages.append([card.url, f"{card.number} {card.title}".strip(), card.summary])
        for anchor, title, text in built[card.path].parts:
            for word in sorted({w.lower() for w in WORD.findall(f"{title} {text}")}):
                if len(word) < 40: found.setdefault(word, []).append(len(parts))
            parts.append([len(pages) - 1, anchor, title, text.strip()[:110]])
    names = [[name, k, about[:110]] for k, card in enumerate(cards) for name, _, about in card.names]
    words = {word: " ".join(steps(numbers)) for word, numbers in sorted(found.items())}
    index = {"pages": pages, "parts": parts, "names": names, "words": words}
    code = json.dumps(index, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    return f"window.SEARCH = {code};\n"


def steps(numbers: list[int]) -> list[str]:
    "Increasing numbers as steps from one to the next, which are short."
    return [str(b - a) for a, b in zip([0, *numbers], numbers)]
