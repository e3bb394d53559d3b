"""The pages that read anywhere: what stands on them, that their links lead somewhere, that nothing in them runs."""
import base64
import io
import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.pages.formulas import Unknown, formula, mathml
from scripts.pages.names import names_of
from scripts.pages.site import RECORD, Site, floors, notebooks, steps
from tests.run_scripts import main_of
from tests.test_links import prose
from vgnb.core import BadInput
from vgnb.figures import png_bytes
from vgnb.views.films import FILMS, Axis, Film, film, film_data, order_film

ROOT = Path(__file__).resolve().parents[1]


# ---- formulas

@pytest.mark.parametrize("latex, wanted", [
    ("x_0", "<msub><mi>x</mi><mn>0</mn></msub>"),
    ("10^{-5}", "<msup><mn>10</mn><mrow><mo>−</mo><mn>5</mn></mrow></msup>"),
    (r"\tfrac12", "<mfrac><mn>1</mn><mn>2</mn></mfrac>"),
    (r"\mathrm{sg}", "<mi mathvariant='normal'>sg</mi>"),
    (r"\mu_a^2", "<msubsup><mi>μ</mi><mi>a</mi><mn>2</mn></msubsup>"),
    ("a<b", "<mrow><mi>a</mi><mo>&lt;</mo><mi>b</mi></mrow>")])
def test_a_formula_is_drawn_by_the_browser(latex, wanted):
    assert mathml(latex) == f"<math>{wanted}</math>"


@pytest.mark.parametrize("latex", [r"\foo", "x_", "{a", r"\mathcal{Q}", "}"])
def test_what_is_no_known_formula_stays_as_it_is_written(latex):
    with pytest.raises(Unknown): mathml(latex)
    assert formula(latex) == f"<code>{latex}</code>"


def test_every_formula_of_the_pages_is_read():
    found = []
    for path in notebooks(ROOT / "nbs"):
        text = re.sub(r"```.*?```|`[^`\n]*`", "", prose(ROOT / "nbs" / path), flags=re.S)
        found += [a or b for a, b in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", text, flags=re.S)]
    assert len(found) > 150 and all(mathml(latex.strip()) for latex in found)


# ---- names

CELL = '''
_HIDDEN = 1
SCALE = 2.5    # of everything

@dataclass
class Plan(Base):
    "How many when."
    total: int = 3      # in all
    _kept: int = 0

    def __init__(self, a): pass
    def counts(self) -> list: return []
    def _secret(self): pass

@patch
def draw(self:Plan,
    side:int=4,    # pixels
) -> str:
    "Show it."
    return "x"

def one(x:dict={1: 2}) -> int: return x[1]
def _none(): pass
'''


def test_names_are_read_with_signatures_and_comments():
    found = {name.name: name for name in names_of(CELL)}
    assert list(found) == ["SCALE", "Plan", "Plan.draw", "one"]
    assert found["SCALE"].signature == "SCALE = 2.5    # of everything"
    assert found["Plan"].signature == "class Plan(Base):\n    total: int = 3      # in all"
    assert [member.name for member in found["Plan"].members] == ["Plan.__init__", "Plan.counts"]
    assert found["Plan.draw"].signature == "def draw(self:Plan,\n    side:int=4,    # pixels\n) -> str:"
    assert (found["Plan.draw"].about, found["Plan.draw"].kind) == ("Show it.", "method")
    assert found["one"].signature == "def one(x:dict={1: 2}) -> int:"


# ---- films

def pixels(film: Film, *at: int) -> np.ndarray:
    "What a page finds in its sprites: a row for each state of the axes between the first and the last."
    panel = film_data(film)["panels"][0]
    sheet = Image.open(io.BytesIO(base64.b64decode(panel["sprites"][at[0]].split(",")[1]))).convert("RGB")
    row = int(np.ravel_multi_index(at[1:-1], film.positions[1:-1])) if at[1:-1] else 0
    x, y, w, h = at[-1] * panel["w"], row * panel["h"], panel["w"], panel["h"]
    return np.array(sheet)[y:y + h, x:x + w]


def test_sprites_hold_every_picture_exactly():
    few = order_film(("even", "cosine"), side=4, steps=3)
    noise = np.random.default_rng(0).integers(0, 256, (2, 2, 3, 8, 8, 3), np.uint8)     # too many for a palette
    axes = Axis("x", ("a", "b")), Axis("y", ("a", "b")), Axis("z", ("a", "b", "c"))
    many = Film("", "", axes, {"noise": noise}, np.full((2, 2, 3), "", object))
    for one in (few, many):
        panel = next(iter(one.panels.values()))
        for at in ((0, 0, 0), (1, 1, 2), (1, 0, 1)): assert np.array_equal(pixels(one, *at), panel[at]), at
    assert film_data(few) == film_data(order_film(("even", "cosine"), side=4, steps=3))


@pytest.mark.full
@pytest.mark.parametrize("name", FILMS)
def test_a_film_comes_out_the_same_each_time(name):
    assert film_data(film(name)) == film_data(film(name))


# ---- a small site

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=document.title='taken'>"
TOUR = """## The chapters

**Basics** — what stands below.
[000 first](000_first.ipynb): the first ·
[010 second](more/010_second.ipynb): the second"""


def cell(source: str, *outputs) -> dict:
    "A code cell."
    return {"cell_type": "code", "metadata": {}, "execution_count": None, "source": source, "outputs": list(outputs)}


def text(source: str) -> dict: return {"cell_type": "markdown", "metadata": {}, "source": source}


def data(**mimes) -> dict:
    return {"output_type": "display_data", "metadata": {}, "data": {k.replace("_", "/"): v for k, v in mimes.items()}}


def save(nbs: Path, path: str, title: str, *cells):
    cells = [text(f"# {title}\n\n> About {title}."), *cells]
    cells = [{"id": str(k)} | c for k, c in enumerate(cells)]
    page = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (nbs / path).parent.mkdir(parents=True, exist_ok=True)
    (nbs / path).write_text(json.dumps(page))


@pytest.fixture
def nbs(tmp_path) -> Path:
    "Three notebooks."
    place = tmp_path / "nbs"
    save(place, "index.ipynb", "tour", text("![a lamp](lamp.png) ![no](https://example.org/x.png) ![out](../out.png)"),
         text(TOUR))
    for name in (place / "lamp.png", tmp_path / "out.png"): name.write_bytes(png_bytes(lamp().picture()))
    save(place, "000_first.ipynb", "first", cell("#| default_exp first"), cell("#| export\n" + CELL),
         text("## Anger & <b>bold</b>\n\nSee `Plan` and [second](more/010_second.ipynb), [gone](gone.ipynb), "
              "[web](https://example.org) and $x_0$. Headings: [here](#Anger-&-%3Cb%3Ebold%3C/b%3E), "
              "[there](more/010_second.ipynb#A-part)."))
    save(place, "more/010_second.ipynb", "second", text(f"# A part\n\n{HOSTILE}\n\n[x](javascript:alert(1)) `<i>`"),
         cell("#| hide\nsecret = 1"),
         cell(f"print({HOSTILE!r})", {"output_type": "stream", "name": "stdout", "text": HOSTILE},
              data(text_html=f"<b>fine</b><style>b {{}}</style>{HOSTILE}<a href='//host/x'>y</a>", text_plain="p"),
              data(text_plain=HOSTILE)))
    return place


def lamp(wiped: bool = False, strip: bool = False) -> Film:
    "Squares in two colours and three brightnesses."
    share = np.linspace(0, 1, 3)[:, None, None, None] * np.ones((8, 8, 1))
    pictures = (np.array([(255, 120, 0), (0, 120, 255)])[:, None, None, None] * share).astype(np.uint8)
    panels = {"lamp": pictures, "other": 255 - pictures} if wiped else {"lamp": pictures}
    axes = Axis("colour", ("orange", HOSTILE)), Axis("light", ("0", "1", "2"), 1)
    captions = np.array([[f"{c} {k}" for k in range(3)] for c in ("orange", HOSTILE)], object)
    return Film("Lamp", "It shines.", axes, panels, captions, wiped=wiped, strip=strip)


def shown(film: Film): return lambda: (film_data(film), film.picture())


def built(nbs: Path, out: Path, **how) -> list[str]: return sorted(Site(nbs, out, **how).build(show=False))


TAG = re.compile(r"<[a-z][^>]*>")
ADDRESS = re.compile(r'\s(?:href|src)="([^"]*)"')
ANCHOR = re.compile(r'\sid="([^"]*)"')


def tags(file: Path) -> str:
    "The tags of a page, without the text between them."
    return "\n".join(TAG.findall(file.read_text()))


def dead_links(site: Path) -> list[str]:
    "Every internal link of every page that leads nowhere."
    @cache
    def anchors(file: Path) -> set[str]: return set(ANCHOR.findall(tags(file)))

    dead = []
    for page in sorted(site.rglob("*.html")):
        for address in ADDRESS.findall(tags(page)):
            if re.match(r"(https?|mailto|data):", address): continue
            path, _, anchor = address.partition("#")
            target = (page.parent / path).resolve() if path else page
            fine = target.is_file() and (not anchor or target.suffix != ".html" or anchor in anchors(target))
            if not fine: dead.append(f"{page.relative_to(site)} -> {address}")
    return dead


def test_a_small_site_links_searches_and_escapes(nbs, tmp_path):
    out = tmp_path / "site"
    assert len(built(nbs, out, films={"orders": shown(lamp())})) == 4        # a film, too
    assert dead_links(out) == []

    tour = (out / "index.html").read_text()
    assert tour.count("<img") == 1 and re.search(r'<img src="figures/\w+.png" loading="lazy" alt="a lamp">', tour)
    first, second = ((out / f).read_text() for f in ("000_first.html", "more/010_second.html"))
    assert '<a href="more/010_second.html">second</a>' in first
    assert '<a href="#anger-b-bold-b">here' in first and '<a href="more/010_second.html#a-part">there' in first
    assert '<a class="name" href="000_first.html#Plan">' in first
    assert "gone.html" not in first and '<a href="https://example.org">web</a>' in first
    assert 'id="Plan.draw"' in first and "&lt;b&gt;bold&lt;/b&gt;" in first and "<msub><mi>x</mi>" in first
    assert '<a rel="prev" href="../000_first.html">' in second and 'aria-current="page"' in second
    assert "secret" not in second and "<b>fine</b>" in second and "<a href='//host" not in second
    assert not re.search(r"<script(?! defer)|onerror=[^&]*>|href=\"javascript", re.sub(r"&lt;.*?&gt;", "", second))
    assert "import vgnb.first" in first

    index = (out / "search.js").read_text()
    found = json.loads(index.removeprefix("window.SEARCH = ").removesuffix(";\n"))
    part = int(found["words"]["anger"])
    assert found["parts"][part][1:3] == ["anger-b-bold-b", "Anger & <b>bold</b>"] and "<" not in index
    assert ["one", "Plan.draw"] == [name for name, *_ in found["names"] if name in ("one", "Plan.draw")][::-1]


def test_only_what_changed_is_built_again(nbs, tmp_path):
    out = tmp_path / "site"
    films = {"orders": shown(lamp())}
    assert built(nbs, out, films=films) == ["000_first.ipynb", "films/orders", "index.ipynb", "more/010_second.ipynb"]
    assert built(nbs, out, films=films) == []
    save(nbs, "more/010_second.ipynb", "second", text("Other words."))
    assert built(nbs, out, films=films) == ["more/010_second.ipynb"]
    save(nbs, "more/010_second.ipynb", "a new name", text("Other words."))
    assert built(nbs, out, films=films) == ["000_first.ipynb", "more/010_second.ipynb"]     # its neighbour names it
    assert built(nbs, out, films=films, film_key="other weights") == ["films/orders"]
    (nbs / "lamp.png").write_bytes(png_bytes(lamp().picture(1, 2)))
    assert built(nbs, out, films=films, film_key="other weights") == ["index.ipynb"]
    (out / "000_first.html").unlink()
    assert built(nbs, out, films=films, film_key="other weights") == ["000_first.ipynb"]
    (nbs / "more/010_second.ipynb").unlink()
    built(nbs, out)
    assert not (out / "more/010_second.html").exists() and not (out / "films/orders.js").exists()
    assert dead_links(out) == []


def test_a_killed_build_goes_on(nbs, tmp_path):
    out, site = tmp_path / "site", Site(nbs, tmp_path / "site")
    page, done = site.page, []

    def killed(path, key):
        if done: raise KeyboardInterrupt
        done.append(path)
        return page(path, key)

    site.page = killed
    with pytest.raises(KeyboardInterrupt): site.build(show=False)
    (out / ".search.js.01234567.part.js").write_text("half")
    assert built(nbs, out) == sorted({"000_first.ipynb", "index.ipynb", "more/010_second.ipynb"} - set(done))
    assert not list(out.rglob(".*"))          # neither a lock nor what a kill left


def test_a_record_reaches_nothing_outside_its_site(nbs, tmp_path):
    out, mine = tmp_path / "site", tmp_path / "mine.html"
    built(nbs, out)
    mine.write_text("keep me")
    (out / "gone.html").write_text("stale")
    (out / "link.html").symlink_to(mine)
    record = json.loads((out / RECORD).read_text())
    assert "url" not in record["cards"]["000_first.ipynb"]
    (tmp_path / "back.html").symlink_to(out / "index.html")
    (out / "up").symlink_to(tmp_path)
    outside = ["../mine.html", str(mine), "link.html", "up/mine.html", "up/back.html"]
    odd = [*outside, "", ".", "figures", "./index.html", str(out / "index.html"), "a\0", "a" * 300, 3]
    record["files"] += [*odd, "gone.html"]
    record["pages"]["000_first.ipynb"]["files"] += ["../mine.html"]
    record["pages"]["index.ipynb"]["files"] = []
    (out / RECORD).write_text(json.dumps(record))
    assert built(nbs, out) == ["000_first.ipynb", "index.ipynb"]
    assert mine.read_text() == "keep me" and (tmp_path / "back.html").is_symlink()
    assert (out / "index.html").is_file() and not (out / "gone.html").exists()
    assert not set(odd) & set(json.loads((out / RECORD).read_text())["files"]) and dead_links(out) == []


@pytest.mark.parametrize("change", [
    {"cards": {"000_first.ipynb": {"path": "000_first.ipynb", "url": "../mine.html"}}}, {"cards": 3}, {"pages": None},
    {"films": [1]}, {"pages": {"index.ipynb": {"key": "", "parts": [["a"]], "files": []}}}, {"files": "index.html"}])
def test_a_record_with_other_fields_counts_as_none(nbs, tmp_path, change):
    out = tmp_path / "site"
    Site(nbs, out).build(show=False)
    record = json.loads((out / RECORD).read_text()) | change
    (out / RECORD).write_text(json.dumps(record))
    site = Site(nbs, out)
    assert site.files_before == [] if "files" in change else not (site.cards or site.built or site.film_keys)


@pytest.mark.parametrize("record", [
    "", "{", "[]", "{}", '{"made_by": "another"}', '{"cards": {}, "files": ["mine.txt"]}'])
def test_a_folder_of_another_tool_is_not_taken(nbs, tmp_path, record):
    (tmp_path / "full").mkdir()
    for name, content in (("mine.txt", "keep me"), (RECORD, record)): (tmp_path / "full" / name).write_text(content)
    with pytest.raises(BadInput, match="new or empty folder"): Site(nbs, tmp_path / "full", force=True)
    assert (tmp_path / "full/mine.txt").read_text() == "keep me"


def test_building_all_again_removes_pages_that_are_gone(nbs, tmp_path):
    out = tmp_path / "site"
    built(nbs, out)
    (nbs / "more/010_second.ipynb").unlink()
    assert built(nbs, out, force=True) == ["000_first.ipynb", "index.ipynb"]
    assert not (out / "more/010_second.html").exists() and dead_links(out) == []


def test_links_of_documents_are_built_again_when_their_targets_move(nbs, tmp_path):
    out, code = tmp_path / "site", 'class Box:\n    "Beside `Lid`."\n    def open(self):\n        "As `Key`."'
    save(nbs, "more/010_second.ipynb", "second with `Hinge`", cell("#| export\n" + code))
    save(nbs, "020_third.ipynb", "third")
    built(nbs, out)
    page = out / "more/010_second.html"
    assert not re.search('#(Lid|Key|Hinge)"', page.read_text())
    for name in ("Lid", "Key", "Hinge"):
        save(nbs, "020_third.ipynb", "third", cell(f"#| export\n{name} = 1"))
        assert built(nbs, out) == ["020_third.ipynb", "more/010_second.ipynb"], name
        assert f'href="../020_third.html#{name}"' in page.read_text()


@pytest.mark.parametrize("rule", ["---", "***"])
def test_a_line_across_heads_no_part(nbs, tmp_path, rule):
    save(nbs, "000_first.ipynb", "first", text(f"{rule}\n\nbefore\n\n## Part\n\nbelow"), text(f"{rule}\n\nafter"))
    site = Site(nbs, tmp_path / "site")
    site.build(show=False)
    first, part = site.built["000_first.ipynb"].parts
    assert "before" in first[2] and "below" not in first[2]
    assert part[:2] == ["part", "Part"] and part[2].split() == ["below", "after"]


def test_some_pages_alone_have_no_dead_links(nbs, tmp_path):
    built(nbs, tmp_path / "site", only=("more/*",))
    assert dead_links(tmp_path / "site") == [] and not (tmp_path / "site/000_first.html").exists()


def test_a_bad_place_is_named(nbs, tmp_path):
    main, options = main_of("docs.py"), main_of("docs.py").__globals__["Options"]
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "mine.txt").write_text("keep me")
    file.write_text("")
    for out, words in ((full, "new or empty folder"), (file, "is a file"), (file / "below", "is a file")):
        with pytest.raises(BadInput, match=words): main(options(out, nbs, films=False))
    assert [f.name for f in full.iterdir()] == ["mine.txt"]
    with pytest.raises(BadInput, match="only='x.*must fit"): main(options(tmp_path / "s", nbs, ("x*",), films=False))
    with pytest.raises(BadInput, match="index.ipynb"): main(options(tmp_path / "s", full, films=False))


def test_the_default_place_is_ignored_by_git():
    assert "/_site/" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_tour_tells_every_floor():
    paths = notebooks(ROOT / "nbs")
    found = floors(prose(ROOT / "nbs/index.ipynb"), paths)
    assert found[0].name == "Basics" and found[-1].name == "Studies"
    assert sorted(["index.ipynb", *(path for floor in found for path in floor.paths)]) == sorted(paths)


def test_numbers_of_parts_travel_as_steps():
    assert steps([3, 4, 10]) == ["3", "1", "6"]
