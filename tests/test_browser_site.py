"""The pages as a reader meets them: opened from the disk in Chromium, touched by mouse and keyboard, asked for words.

Quick: a few pages, with films of some squares. With `--full`: the whole site as `scripts/docs.py` builds it, with the
five films of the shipped models.
"""
import contextlib
import re
from pathlib import Path

import pytest

from scripts.pages.site import FILM_PAGES, Site
from tests.run_scripts import main_of
from tests.test_browser import ROOT, browsing
from tests.test_site import dead_links, lamp, shown

pytestmark = pytest.mark.browser

FEW = ("evaluation/620_fid.ipynb", "views/820_explorer.ipynb", "views/810_desk.ipynb")
MOST = 5_000_000      # bytes of all films


@pytest.fixture(scope="module")
def browser():
    with browsing() as one: yield one


@contextlib.contextmanager
def opened(browser, file: Path, wide: int = 1200):
    "A page from the disk. Its errors, and whatever it asks of anyone, fail the test."
    page, wrong = browser.new_page(viewport={"width": wide, "height": 900}), []
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else wrong.append(r.url))
    try:
        path, hash, anchor = str(file).partition("#")
        page.goto(Path(path).as_uri() + hash + anchor, timeout=30_000)
        yield page
        assert not wrong, wrong
    finally: page.close()


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    "A site of some pages; one film is plain, one is wiped, one has a strip."
    films = {"orders": shown(lamp()), "reconstructions": shown(lamp(wiped=True)), "arrivals": shown(lamp(strip=True))}
    out = tmp_path_factory.mktemp("few") / "site"
    Site(ROOT / "nbs", out, FEW, films).build(show=False)
    return out


def colours(film) -> list[str]:
    "What the canvases of a film show, the strip's not."
    return film.locator(".panels canvas").evaluate_all("cs => cs.map(c => c.toDataURL())")


def changes(film, act) -> bool:
    "Whether what a film shows is another picture after an action."
    before = colours(film)
    act()
    return colours(film) != before


def ready(page, name: str):
    "A film that has drawn something."
    film = page.locator(f'.film[data-film="{name}"]')
    film.locator(".panels canvas").first.wait_for(timeout=10_000)
    film.scroll_into_view_if_needed()
    drawn = """film => [...film.querySelectorAll(".panels canvas")].every(
                   canvas => canvas.getContext("2d").getImageData(0, 0, 1, 1).data[3])"""
    page.wait_for_function(drawn, arg=film.element_handle(), timeout=10_000)
    return film


def check_film(page, name: str):
    "Keys, sliders, choosers, the mouse and the clock move a film."
    film = ready(page, name)
    stage, canvas = film.locator(".panels"), film.locator(".panels canvas").first
    said = film.locator(".caption").inner_text()

    stage.focus()
    assert changes(film, lambda: page.keyboard.press("Home")) | changes(film, lambda: page.keyboard.press("End")), name
    assert changes(film, lambda: page.keyboard.press("ArrowLeft")), name
    slider = film.locator("input[type=range]").last
    slider.focus()
    assert changes(film, lambda: page.keyboard.press("ArrowRight")), name

    box = canvas.bounding_box()
    page.mouse.move(box["x"] + .05 * box["width"], box["y"] + .5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + .2 * box["width"], box["y"] + .5 * box["height"])
    dragged = changes(film, lambda: page.mouse.move(box["x"] + .95 * box["width"], box["y"] + .5 * box["height"]))
    page.mouse.up()
    assert dragged, name

    before = colours(film)
    film.locator(".play").click()
    page.wait_for_function("([f, was]) => f.querySelector('.panels canvas').toDataURL() !== was",
                           arg=[film.element_handle(), before[0]], timeout=5000)
    film.locator(".play").click()
    for chooser in film.locator("select").all():
        value = chooser.input_value()
        chooser.select_option(index=0 if value != "0" else 1)
        page.wait_for_timeout(50)
    assert film.locator(".caption").inner_text() != said or not said, name


def searched(page, text: str) -> list[str]:
    "Where the search leads."
    page.keyboard.press("/")
    page.locator("#search").fill(text)
    page.locator("#found a, #found p").first.wait_for(timeout=10_000)
    return page.locator("#found a").evaluate_all("links => links.map(a => a.getAttribute('href'))")


def test_films_move_by_mouse_and_keyboard(few, browser):
    with opened(browser, few / "films.html") as page:
        for name in ("orders", "reconstructions", "arrivals"): check_film(page, name)
        film = page.locator('.film[data-film="arrivals"]')
        film.locator(".strip button").nth(2).click()
        page.wait_for_function("f => f.querySelectorAll('.strip [aria-pressed=true]').length === 1",
                               arg=film.element_handle())
        assert film.locator(".caption").inner_text().endswith(" 2")
        assert page.title() == "Things to touch · vgnb"          # the hostile words of the lamp stayed words
        assert film.locator("option").nth(1).inner_text().startswith("<script>")


def test_a_film_stands_on_its_page_and_the_way_leads_on(few, browser):
    with opened(browser, few / "views/820_explorer.html") as page:
        ready(page, "orders")
        assert page.locator('[aria-current="page"]').inner_text().startswith("820")
        page.locator("a[rel=prev]").click()
        assert page.url.endswith("views/810_desk.html") and ready(page, "reconstructions")
        page.locator("header .home").click()
        assert page.url.endswith("/index.html")


def test_the_search_finds_names_and_words(few, browser):
    with opened(browser, few / "evaluation/620_fid.html") as page:
        assert searched(page, "frechet_distance")[0] == "../evaluation/620_fid.html#frechet_distance"
        assert "../evaluation/620_fid.html#kernel-distance" in searched(page, "Bińkowski polynomial")
        assert searched(page, "zzzz nothing") == [] and "nothing found" in page.locator("#found").inner_text()
        searched(page, "wipe from one")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.wait_for_url(re.compile(r"views/810_desk"))


def test_a_phone_shows_pages_without_scrolling_sideways(few, browser):
    for name in ("evaluation/620_fid.html", "films.html"):
        with opened(browser, few / name, wide=390) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
            menu = page.locator(".side .menu")
            assert menu.get_attribute("open") is None
            menu.locator("summary").click()
            assert menu.locator("a").first.is_visible()


# ---- the whole of it

@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    "The site as `scripts/docs.py` builds it."
    out = tmp_path_factory.mktemp("whole") / "site"
    main = main_of("docs.py")
    assert main(main.__globals__["Options"](out, ROOT / "nbs")) == 0
    return out


@pytest.mark.full
def test_every_link_of_the_whole_site_leads_somewhere(whole):
    assert dead_links(whole) == []
    assert sum(f.stat().st_size for f in (whole / "films").glob("*.js")) < MOST
    assert not list(whole.rglob("*.part*"))


@pytest.mark.full
def test_the_five_films_move(whole, browser):
    with opened(browser, whole / "films.html") as page:
        assert page.locator(".film").count() == len(FILM_PAGES)
        for name in FILM_PAGES: check_film(page, name)
        sweep = ready(page, "guidance")
        sweep.locator(".panels").focus()
        assert changes(sweep, lambda: page.keyboard.press("ArrowUp"))         # the temperature
    for name, path in FILM_PAGES.items():
        with opened(browser, whole / path.replace(".ipynb", ".html")) as page: ready(page, name)


@pytest.mark.full
def test_every_page_of_the_whole_site_opens_without_an_error(whole, browser):
    pages = sorted(whole.rglob("*.html"))
    assert len(pages) > 190
    for file in pages:
        with opened(browser, file) as page: assert page.locator("h1").first.inner_text()     # cards have their own
    with opened(browser, whole / "index.html") as page:
        assert any("400_guidance" in found for found in searched(page, "guidance scale"))
