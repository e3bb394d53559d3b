"""Names that are programs: of classes, files, codes, models and orders, in whatever shows them.

Every table, page and widget that writes words is filled with them; then a parser looks for what a browser would run,
and with --full a browser opens the lot.
"""
from dataclasses import replace

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image

from tests.test_browser import browsing
from tests.toy_training import RECIPE, Pair, Points
from vgnb.data.codes import ArrayCodes
from vgnb.data.shapes import Shapes
from vgnb.generators.orders import Random
from vgnb.generators.raster import RasterConfig, RasterTransformer
from vgnb.glance import TensorTree, glance
from vgnb.kinds import OpenRegistry
from vgnb.pipeline import Pipeline
from vgnb.reopened import reopen
from vgnb.report import html_figure, html_page, html_table
from vgnb.sampling.settings import Sampling
from vgnb.tokenizers.vqgan import vqgan
from vgnb.training.run_folder import Run
from vgnb.training.run_page import run_page
from vgnb.training.trainer import Trainer
from vgnb.views.board import board
from vgnb.views.desk import ReconstructionDesk
from vgnb.views.explorer import OrderExplorer
from vgnb.views.player import SamplingPlayer
from vgnb.views.scenes import OrderChoice

HOSTILE = ["<script>window.hit=1</script>", "<img src=x onerror=window.hit=1>", "\"><svg onload=window.hit=1>",
           "<a href=javascript:window.hit=1>x</a>", "<iframe src=//example.org>", "'-window.hit=1-'",
           "<link rel=stylesheet href=http://example.org/x.css>", "${window.hit=1}{{window.hit=1}}",
           "</title></style></textarea><script>window.hit=1</script>", "<img src=http://example.org/x.png>"]


def words_of(widget: widgets.Widget) -> list[str]:
    "What a box writes as HTML, those inside it included."
    own = [widget.value] if isinstance(widget, (widgets.HTML, widgets.HTMLMath)) else []
    return own + [text for child in getattr(widget, "children", ()) for text in words_of(child)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    "{what: its HTML}, with every hostile word in it."
    torch.manual_seed(0)
    room = tmp_path_factory.mktemp("words")
    tokenizer = vqgan("tiny-shapes", width=16, z=8, groups=8, quantizer=dict(codebook=32, usage=0))
    generator = RasterTransformer(RasterConfig(1, 32, 2, ffn_multiple=16, vocab=32, grid=(4, 4), classes=10), 0)
    pipe = Pipeline(tokenizer, generator, Sampling(rows=4), HOSTILE)
    codes = ArrayCodes(np.zeros((2, 1, 4, 1)), [0, 1], (64,), (2, 2), classes=HOSTILE)
    source, shelf = Shapes(10), OpenRegistry(HOSTILE[0])
    source.classes = HOSTILE
    for word in HOSTILE: shelf[word] = word
    pipe.save(room / "x.png", HOSTILE[1], seed=1)
    told = reopen(room / "x.png", pipe=pipe)
    told.origin = replace(told.origin, model=HOSTILE[0], torch=HOSTILE[1], device=HOSTILE[2])

    folder = room / HOSTILE[1].replace("/", "|")
    recipe = replace(RECIPE, data=HOSTILE[0])
    Trainer(Pair(), Points(), recipe, folder, Run(progress=False, log_every=2, save_every=10)).fit(12)
    followed = board(folder, every=60)
    sheet = pipe.sample([0, 1], seed=1)
    order = OrderExplorer(orders={word: Random() for word in HOSTILE[:4]},
                          left=OrderChoice(HOSTILE[1], "even", 6, 6, 3), side=64)
    desk = ReconstructionDesk(sheet, {HOSTILE[0]: lambda x: x, HOSTILE[1]: lambda x: x}, labels=HOSTILE[:2], side=32)
    player = SamplingPlayer(pipe.stream([0, 1]), lambda c: np.zeros((len(c), 8, 8, 3), np.uint8), (4, 4),
                            labels=HOSTILE[:2], side=32)
    live = pipe.play(1, side=64) if hasattr(pipe, "play") else None
    runs = board({word: folder for word in HOSTILE}, every=0)
    boxes = {"explorer": order, "desk": desk, "player": player, "live sampler": live, "runs": runs,
             "editor": pipe.editor(1, side=64), "atlas": pipe.atlas(sheet, side=64)}
    found = {name: "\n".join(words_of(view.box)) for name, view in boxes.items() if view is not None}
    for view in boxes.values():
        if view is not None and hasattr(view, "close"): view.close()
    return found | {
        "pipeline": pipe._repr_html_(), "codes": codes._repr_html_(), "pictures": source._repr_html_(),
        "tensors": TensorTree({f"{word}.a": torch.zeros(2) for word in HOSTILE}, HOSTILE[0])._repr_html_(),
        "registry": shelf._repr_html_(), "picture of ours": told._repr_html_(),
        "settings": glance(HOSTILE[0], dict(zip(HOSTILE, HOSTILE))), "page of a run": run_page(folder),
        "board": followed._repr_mimebundle_()["text/html"] + followed.status.value,
        "report": html_page(HOSTILE[0], *(("p", word) for word in HOSTILE), *(("pre", word) for word in HOSTILE),
                            html_table([dict.fromkeys(HOSTILE, word) for word in HOSTILE]),
                            html_figure(Image.fromarray(sheet[0]), HOSTILE[1]))}


RUNS = ("script", "iframe", "object", "embed", "link", "base", "form", "svg[onload]")


def dangerous(html: str) -> list[str]:
    "Parts of a page that a browser would run, or fetch from elsewhere."
    page = BeautifulSoup(html, "html.parser")
    found = [str(tag)[:80] for name in RUNS for tag in page.select(name)]
    for tag in page.find_all(True):
        for key, value in tag.attrs.items():
            address = key in ("src", "href", "action", "xlink:href") and not str(value).startswith(("data:", "#"))
            if key.startswith("on") or address: found.append(f"{tag.name} {key}={str(value)[:60]}")
    return found


@pytest.mark.fault("F17")
def test_nothing_that_is_shown_could_run(pages, figures):
    assert any("window.hit" in html for html in pages.values()), "no word arrived"
    for what, html in pages.items(): assert dangerous(html) == [], what
    assert dangerous(HOSTILE[0]) and dangerous(HOSTILE[1]) and dangerous(HOSTILE[4]), "nothing would be noticed"
    figures(shown=len(pages))


@pytest.mark.fault("F17")
@pytest.mark.full
def test_a_browser_runs_nothing_and_asks_for_nothing(pages, tmp_path, figures):
    "All in one page, and each alone; the same browser does run and ask where words are not escaped."
    with browsing() as browser:
        def opened(name: str, html: str) -> tuple[int, int]:
            (tmp_path / f"{name}.html").write_text(html)
            tab, asked = browser.new_page(), []
            tab.on("request", lambda r: asked.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
            tab.goto((tmp_path / f"{name}.html").as_uri())
            tab.wait_for_timeout(300)
            hit = tab.evaluate("() => window.hit === undefined ? 0 : 1")
            tab.close()
            return hit, len(asked)

        found = [opened(f"page-{n}", html) for n, html in enumerate([*pages.values(), "\n".join(pages.values())])]
        naive = opened("naive", "\n".join(HOSTILE))
    assert naive[0] == 1 and naive[1] >= 1
    assert set(found) == {(0, 0)}, found
    figures(scripts=sum(hit for hit, _ in found), requests=sum(asked for _, asked in found))
