"""The widgets, driven once each by keyboard and mouse in a real JupyterLab with Chromium.

Nothing of the user's Jupyter settings is read or written.
"""
import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from PIL import Image

from tests.test_style import ROOT, notebook
from vgnb.data.shapes import Shapes

pytestmark = pytest.mark.browser

CHROMIUM = "apt-get install -y --no-install-recommends chromium fonts-dejavu-core"

PLAYER = """
import numpy as np
import torch

from vgnb.draws import Keyed
from vgnb.generators.generator import Cond, Generator, Grid, Prediction
from vgnb.generators.orders import Random
from vgnb.generators.schedules import even
from vgnb.sampling.sampler import Sampler
from vgnb.views.player import SamplingPlayer

class Noise(Generator):
    vocab, traits = (64,), frozenset({"any_order"})
    def null(self, cond): return cond
    def predict(self, state, positions, given=None, *, live, independent=False):
        return Prediction(torch.randn(1, *positions.shape, 64, generator=torch.Generator().manual_seed(state.done)))

def decode(codes):
    c = codes.numpy()
    return (np.stack([c // 16, c // 4 % 4, c % 4], -1) * 85).astype(np.uint8).repeat(4, 1).repeat(4, 2)

sampler = Sampler(Noise(), Random(), even, steps=6, rows=4)
steps = sampler.stream(Cond(labels=torch.arange(4)), torch.arange(4), Keyed(0), grid=Grid((8, 8)))
labels = ["one", "<img src=x onerror=document.title=1>", "$\\\\frac$", "four"]
player = SamplingPlayer(steps, decode, (8, 8), labels=labels, side=160)
player
"""

DESK = """
import torch
from vgnb.data.shapes import Shapes
from vgnb.tokenizers.vqgan import vqgan
from vgnb.views.desk import ReconstructionDesk

torch.manual_seed(0)
pixels, labels = Shapes().batch(range(4))
models = {"untrained": vqgan("tiny-shapes", quantizer=dict(codebook=64), width=16, z=16),
          "grey": lambda x: x.mean(1, keepdim=True).expand_as(x)}
desk = ReconstructionDesk(pixels, models, labels=["<b>bold</b>", "b", "c", "d"], side=160)
desk
"""

EXPLORER = ("""
from vgnb.views.explorer import OrderExplorer
from vgnb.views.scenes import OrderChoice

explorer = OrderExplorer(OrderChoice("halton", "cosine", 8, 8, 6), side=200)
busy = 0
explorer
""", """
import time
try: time.sleep(busy)
except KeyboardInterrupt: pass
busy = 60
""")


PLAY = """
import vgnb

pipe = vgnb.from_pretrained("tiny-randar")
live = pipe.play("heart")
live
"""

COMPARE = """
import vgnb

pipe = vgnb.from_pretrained("tiny-randar")
pair = pipe.compare("heart", dict(guidance=1.0, steps=6), dict(guidance=4.0, steps=6), seed=1)
pair
"""

BRANCH = """
import vgnb

pipe = vgnb.from_pretrained("tiny-randar")
live = pipe.branch("heart", seed=1)
live
"""

RACE = """
import vgnb

live = vgnb.race(["tiny-randar", "tiny-rar"], "heart", ("halton", "random"), (3, 5), side=64)
live
"""

SIGHT = """
import vgnb

live = vgnb.sight(["tiny-randar", "tiny-lpd"], "heart", steps=6)
live
"""

SWEEP = """
import vgnb

pipe = vgnb.from_pretrained("tiny-randar")
live = pipe.sweep("heart", scales=(1, 2, 4), temperatures=(0.5, 1), steps=8, seed=1)
live
"""

EDITOR = """
import vgnb

pipe = vgnb.from_pretrained("tiny-maskgit")
live = pipe.editor("heart", seed=1)
live
"""

ATLAS = """
import vgnb

live = vgnb.atlas("tiny-randar")
live
"""

DETAILS = """
import vgnb

pipe = vgnb.from_pretrained("tiny-iar2")
live = pipe.details("heart", seed=1)
live
"""

RUNS = """
import json
from pathlib import Path
from vgnb.views.board import board

def noted(name, *steps):
    "Lines of a log, as a run that trains would add them."
    folder = Path("training") / name
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.jsonl", "a") as log:
        for s in steps: log.write(json.dumps({"step": s, "samples": 8 * s, "loss": 1 / (1 + s), "lr": 0.1}) + "\\n")

for name in ("one", "<img src=x onerror=document.title=1>"): noted(name, 1, 2, 3)
live = board("training", every=0.5)
live
""", """
noted("a late one", *range(1, 9))
"""


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def started(tmp, root, *words, **env):
    "A JupyterLab of our own over the folder `root`: (address, token). What it needs beside stands in `tmp`."
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    own = {name: str(tmp / name.lower()) for name in names}
    env = {**os.environ, **own, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **env}
    news = tmp / "jupyter_config_dir" / "labconfig" / "page_config.json"
    news.parent.mkdir(parents=True)
    news.write_text(json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))
    port, token = _free_port(), secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}",
               "--ServerApp.port_retries=0", "--allow-root", f"--IdentityProvider.token={token}",
               "--expose-app-in-browser", f"--ServerApp.root_dir={root}",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", *words]
    with open(tmp / "lab.log", "w") as log:
        server = subprocess.Popen(command, env=env, cwd=root, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(240):
                assert server.poll() is None, "JupyterLab ended: " + (tmp / "lab.log").read_text()[-2000:]
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{url}/api/status?token={token}", timeout=2).close()
                    break
                time.sleep(.25)
            yield url, token
        finally:
            server.terminate()
            try: server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(5)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab with the widgets' pages: (address, token). Ends with the module."
    tmp = tmp_path_factory.mktemp("lab")
    root = tmp / "root"
    root.mkdir()
    for name, cells in (("player", [PLAYER]), ("desk", [DESK]), ("explorer", EXPLORER), ("play", [PLAY]),
                        ("compare", [COMPARE]),
                        ("branch", [BRANCH]), ("race", [RACE]), ("sight", [SIGHT]), ("sweep", [SWEEP]),
                        ("editor", [EDITOR]), ("atlas", [ATLAS]), ("details", [DETAILS]),
                        ("runs", RUNS)):
        (root / f"{name}.ipynb").write_text(notebook(*map(str.strip, cells)))
    with started(tmp, root) as address: yield address


@contextlib.contextmanager
def browsing():
    "A browser; a missing one is a failure that says how to install it."
    try: playwright = importlib.import_module("playwright.sync_api")
    except ImportError: pytest.fail("the browser tests need playwright: pip install playwright", pytrace=False)
    binary = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    if not binary: pytest.fail(f"the browser tests need Chromium: {CHROMIUM}", pytrace=False)
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=binary, headless=True,
                                    args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def chromium():
    with browsing() as browser: yield browser


def run(page, command: str):
    "One of JupyterLab's commands; in braces, so that nobody waits for its end."
    page.evaluate('() => { window.jupyterapp.commands.execute("%s"); }' % command)


@contextlib.contextmanager
def opened(lab, chromium, name: str):
    """A page with the notebook run and its widget on show.

    Errors of the page's own scripts, and what they report to the console from then on, fail the test.
    """
    url, token = lab
    page, errors = chromium.new_page(viewport={"width": 1200, "height": 900}), []
    page.on("pageerror", lambda e: errors.append(str(e)))
    try:
        page.goto(f"{url}/doc/tree/{name}.ipynb?token={token}&reset", timeout=60_000)
        page.wait_for_selector(".jp-Notebook-cell", timeout=60_000)
        page.wait_for_function("() => window.jupyterapp")
        page.wait_for_selector('.jp-StatusBar-TextItem:has-text("Idle")', timeout=60_000)
        run(page, "notebook:run-all-cells")
        page.locator(".jp-OutputArea-output .widget-image").first.wait_for(timeout=60_000)
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        nameless = page.locator('.jp-OutputArea-output [title="null"]').evaluate_all("es => es.map(e => e.outerHTML)")
        assert not nameless, nameless
        yield page
        assert not errors, errors
    finally: page.close()


def options(page, n: int) -> list[str]:
    "What the n-th chooser offers (ipywidgets writes no-break spaces)."
    chooser = page.locator(".jp-OutputArea-output select").nth(n)
    return [text.replace("\xa0", " ") for text in chooser.locator("option").all_inner_texts()]


def shown(page, n: int = 0) -> str:
    "A digest of the picture in the widget's n-th image, as the browser holds it."
    image = page.locator(".jp-OutputArea-output .widget-image").nth(n)
    pixels = image.evaluate("async e => Array.from(new Uint8Array(await (await fetch(e.src)).arrayBuffer()))")
    return hashlib.sha256(bytes(pixels)).hexdigest()


def changed(page, before: str, n: int = 0) -> str:
    "Wait until the n-th picture is another one; returns its digest."
    for _ in range(100):
        if (now := shown(page, n)) != before: return now
        page.wait_for_timeout(100)
    raise AssertionError("the picture did not change")


@pytest.mark.full
def test_sampling_player(chromium, lab, tmp_path):
    with opened(lab, chromium, "player") as page:
        page.get_by_text("step 6 of 6 · 64 of 64 tokens").wait_for(timeout=20_000)              # finished
        page.get_by_text("colour").first.wait_for(timeout=5_000)
        first = shown(page)
        handle = page.locator(".noUi-handle").first
        handle.focus()
        page.keyboard.press("ArrowLeft")
        page.get_by_text("step 5 of 6").wait_for(timeout=10_000)
        second = changed(page, first)
        assert options(page, 0) == ["0 one", "1 <img src=x onerror=document.title=1>", "2 $\\frac$", "3 four"]
        page.locator(".jp-OutputArea-output select").first.select_option(index=1)
        other = changed(page, second)
        page.get_by_role("button", name="confidence").click()
        changed(page, other)
        handle.focus()
        page.keyboard.press("Home")
        page.get_by_text("step 1 of 6 · 10 of 64 tokens").wait_for(timeout=10_000)
        page.locator(".jupyter-widgets.widget-play button, .widget-play button").first.click()  # play runs to the end
        page.get_by_text("step 6 of 6 · 64 of 64 tokens").wait_for(timeout=15_000)
        page.locator(".jp-OutputArea-output:has(.widget-vbox)").first.screenshot(path=tmp_path / "player.png")
        assert (tmp_path / "player.png").stat().st_size > 5_000 and page.title() != "1"


@pytest.mark.full
def test_reconstruction_desk(chromium, lab, tmp_path):
    with opened(lab, chromium, "desk") as page:
        words = page.get_by_text("PSNR").first
        words.wait_for(timeout=20_000)
        first, numbers = shown(page), words.inner_text()
        page.locator(".noUi-handle").first.focus()
        page.keyboard.press("ArrowRight")
        wiped = changed(page, first)
        assert words.inner_text() == numbers
        page.get_by_role("button", name="error map").click()
        mapped = changed(page, wiped)
        page.locator(".jp-OutputArea-output select").nth(1).select_option("grey")
        grey = changed(page, mapped)
        assert words.inner_text() != numbers
        page.locator(".jp-OutputArea-output select").first.select_option(index=2)
        changed(page, grey)
        assert options(page, 0) == ["0 <b>bold</b>", "1 b", "2 c", "3 d"]
        page.locator(".jp-OutputArea-output:has(.widget-vbox)").first.screenshot(path=tmp_path / "desk.png")
        assert (tmp_path / "desk.png").stat().st_size > 5_000


@pytest.mark.full
def test_order_explorer(chromium, lab, tmp_path):
    with opened(lab, chromium, "explorer") as page:
        output = page.locator(".jp-OutputArea-output:has(.widget-image)").first
        select = output.locator("select")
        number = output.locator('input[type="number"]')
        def says(text): output.get_by_text(text).first.wait_for(timeout=20_000)
        says("step 2 of 6")
        offered = options(page, 0)
        assert "halton" in offered and not {"confidence", "uncertainty"} & set(offered)
        assert output.get_by_text("Not offered: confidence").is_visible()
        picture = shown(page)
        select.nth(0).select_option("spiral-in")
        picture = changed(page, picture)
        select.nth(1).select_option("even")
        picture = changed(page, picture)
        says("largest group 11")
        number.nth(2).fill("65")
        number.nth(2).press("Enter")                                        # a mistake, in words
        says("steps=65: must be from 1 to 64, the cells of the grid")
        faded = changed(page, picture)
        number.nth(2).fill("9")
        number.nth(2).press("Enter")
        says("step 2 of 9")
        picture = changed(page, faded)
        handle = output.locator(".noUi-handle").first
        handle.focus()
        page.keyboard.press("ArrowRight")                                   # scrub
        says("step 3 of 9")
        picture = changed(page, picture)
        output.locator("button:has(.fa-step-forward)").click()
        says("step 4 of 9")
        picture = changed(page, picture)
        output.get_by_role("button", name="heat map").click()
        picture = changed(page, picture)
        images = output.locator(".widget-image")
        assert [images.nth(i).is_visible() for i in (0, 1)] == [True, False]
        output.get_by_role("button", name="second panel").click()
        images.nth(1).wait_for(timeout=20_000)
        second = shown(page, 1)
        select.nth(3).select_option("random")                               # the second panel's own order
        second = changed(page, second, 1)
        assert shown(page) == picture
        number.nth(8).fill("1")
        number.nth(8).press("Enter")                                        # and its seed
        changed(page, second, 1)
        output.screenshot(path=tmp_path / "explorer.png")
        sleeper = page.locator(".jp-Notebook-cell").nth(1).locator(".jp-InputPrompt")
        readout = output.locator(".widget-slider .widget-readout").first
        sleeper.click()
        run(page, "notebook:run-cell")                                    # once more: now it keeps the kernel busy
        page.wait_for_function("e => e.textContent.includes('*')", arg=sleeper.element_handle(), timeout=20_000)
        output.locator(".widget-play button").first.click()                 # play
        page.wait_for_function("e => +e.textContent >= 6", arg=readout.element_handle(), timeout=20_000)
        assert "*" in sleeper.inner_text()  # the clock did not wait for the kernel
        run(page, "notebook:interrupt-kernel")
        says("step 9 of 9, finished · 64 of 64 cells")
        says("step 6 of 6, finished · 64 of 64 cells")
        assert (tmp_path / "explorer.png").stat().st_size > 20_000


def test_play(chromium, lab, tmp_path):
    "The sampler, live: a picture at once, another class, a slider that is dragged, a step of the run."
    with opened(lab, chromium, "play") as page:
        output = page.locator(".jp-OutputArea-output:has(.widget-image)").first
        select = output.locator("select")
        def says(text): output.get_by_text(text).first.wait_for(timeout=20_000)
        says("step 22 of 22 · 64 of 64 tokens")
        says("pipe.sample('heart', seed=0)")
        picture = shown(page)

        select.nth(0).select_option("star")
        picture = changed(page, picture)
        says("pipe.sample('star', seed=0)")

        seed = output.locator(".noUi-handle").first
        box = seed.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        seen = {picture}
        for k in range(1, 400):
            page.mouse.move(x + 3 * (k % 30 + 1), y)
            page.wait_for_timeout(40)
            seen.add(shown(page))
            if len(seen) > 2 and k >= 30: break
        assert len(seen) > 2                                               # it moves while the hand does
        page.mouse.move(x + 90, y)
        page.mouse.up()
        at = int(seed.get_attribute("aria-valuenow").split(".")[0])
        says(f"pipe.sample('star', seed={at})")                            # and ends where the hand has come to rest
        assert at > 10 and shown(page) != picture
        picture = shown(page)

        seed.focus()
        page.keyboard.press("ArrowRight")
        says(f"pipe.sample('star', seed={at + 1})")
        picture = changed(page, picture)

        steps = output.locator(".noUi-handle").last
        steps.focus()
        page.keyboard.press("ArrowLeft")
        says("step 21 of 22")
        picture = changed(page, picture)
        output.get_by_role("button", name="confidence").click()
        changed(page, picture)
        output.screenshot(path=tmp_path / "play.png")
        assert (tmp_path / "play.png").stat().st_size > 20_000


@pytest.mark.full
def test_compare(chromium, lab, tmp_path):
    "What is shared moves both sides, a column's slider one; a pinned run comes back to the other."
    with opened(lab, chromium, "compare") as page:
        output = page.locator(".jp-OutputArea-output:has(.widget-image)").first
        def both(*texts):
            "Wait until both sides say so, and their runs are over."
            for _ in range(200):
                counts = [output.get_by_text(text).count() for text in ("step 6 of 6", *texts)]
                if min(counts) >= 2: return         # a pinned run is named in its list, too
                page.wait_for_timeout(100)
            raise AssertionError(f"both sides must say {texts}")
        both("pipe.sample('heart', seed=1")
        output.get_by_text("tokens differ").wait_for(timeout=20_000)
        left, right, difference = (shown(page, n) for n in range(3))
        assert left != right

        output.locator("select").first.select_option("star")
        both("pipe.sample('star', seed=1")
        handles = output.locator(".noUi-handle")
        handles.first.focus()
        page.keyboard.press("ArrowRight")                                  # the seed, of both
        both("pipe.sample('star', seed=2")
        after = [shown(page, n) for n in range(3)]
        assert not set(after) & {left, right, difference}

        output.get_by_role("button", name="pin").first.click()             # what stands on the left
        pinned = output.get_by_text("1: pipe.sample('star', seed=2")
        pinned.wait_for(state="attached", timeout=20_000)
        handles.nth(3).focus()                                # guidance, of the left side alone
        page.keyboard.press("ArrowRight")
        output.get_by_text("guidance=1.1").first.wait_for(timeout=20_000)
        changed(page, after[0])
        assert shown(page, 1) == after[1]
        output.get_by_role("button", name="to the right").click()
        both("pipe.sample('star', seed=2")
        assert changed(page, after[1], 1) == after[0]         # the pinned picture, to the bit
        output.screenshot(path=tmp_path / "compare.png")
        assert (tmp_path / "compare.png").stat().st_size > 20_000


@pytest.mark.full
def test_branch(chromium, lab, tmp_path):
    "A cell is clicked on the map and in the picture, another code forced, undone, redone; the arrow keys move."
    with opened(lab, chromium, "branch") as page:
        output = page.locator(".jp-OutputArea-output:has(.widget-image)").first
        def says(text): output.get_by_text(text).first.wait_for(timeout=60_000)
        says("step 22 of 22")
        picture, tokens = shown(page, 0), shown(page, 1)

        output.locator('button[title="cell 2,7"]').click()                  # one that is drawn in the first step
        says("cell 2,7 · step 1 of 22")
        framed, tokens = changed(page, picture), changed(page, tokens, 1)
        code = re.search(r"code (\d+) at", output.inner_text())[1]
        rows = output.locator('button[title^="force code"]')
        titles = rows.evaluate_all("es => es.map(e => e.title)")
        assert len(titles) == 8 and f"force code {code}" in titles
        chosen = next(title for title in titles if title != f"force code {code}")
        output.locator(f'button[title="{chosen}"]').click()
        says(f"forced: the noise chose {code}")
        forced = changed(page, framed)
        output.screenshot(path=tmp_path / "branch.png")
        assert (tmp_path / "branch.png").stat().st_size > 20_000

        undo, redo = (output.get_by_role("button", name=word) for word in ("undo", "redo"))
        def over(word): output.locator("button:disabled", has_text=word).wait_for(timeout=20_000)
        undo.click()
        assert changed(page, forced) == framed                              # the same picture, to the bit
        over("undo")
        redo.click()
        assert changed(page, framed) == forced
        over("redo")

        output.locator('button[title="cell 5,1, in the picture"]').click()
        says("cell 5,1")
        output.locator(".noUi-handle").first.focus()
        page.keyboard.press("ArrowRight")
        says("cell 6,1")
        output.locator(".noUi-handle").nth(1).focus()
        page.keyboard.press("ArrowLeft")
        says("cell 6,0")


@pytest.mark.full
def test_race(chromium, lab, tmp_path):
    "Lanes of two models, some of them refused: the clock by its keys, by playing, at another pace; other orders."
    with opened(lab, chromium, "race") as page:
        output = page.locator(".jp-OutputArea-output:has(.widget-image)").first
        def says(text): output.get_by_text(text).first.wait_for(timeout=60_000)
        says("after 100 % of each lane's work")
        picture = shown(page)
        handle = output.locator(".noUi-handle").last                        # the clock
        handle.focus()
        page.keyboard.press("Home")
        says("after 0 % of each lane's work")
        picture = changed(page, picture)
        page.keyboard.press("ArrowRight")
        says("after 2 % of each lane's work")
        output.get_by_role("button", name="same step").click()
        says("after step 0 of 5")
        output.locator(".widget-play button").first.click()
        says("after step 5 of 5")
        picture = shown(page)
        output.get_by_role("button", name="same work", exact=True).click()
        says("100 % of the costliest lane")
        output.screenshot(path=tmp_path / "race.png")
        orders = output.locator("select[multiple]").first
        orders.select_option(["raster"])                                    # one that both models take
        picture = changed(page, picture)
        number = output.locator("input[type=text]").first
        number.fill("2, x")
        number.press("Enter")
        says("must be numbers of steps, such as 4, 8, 16")
        number.fill("2")
        number.press("Enter")
        says("100 % of the costliest lane")
        assert changed(page, picture) and (tmp_path / "race.png").stat().st_size > 20_000


@pytest.mark.full
def test_sight(chromium, lab, tmp_path):
    "Steps and queries by the arrow keys, another model, another order."
    with opened(lab, chromium, "sight") as page:
        output = page.locator(".jp-OutputArea-output:has(.widget-image)").first
        def says(text): output.get_by_text(text).first.wait_for(timeout=60_000)
        says("query 1 of")
        picture = shown(page)
        step, query = output.locator(".noUi-handle").nth(-2), output.locator(".noUi-handle").last
        step.focus()
        page.keyboard.press("End")
        picture = changed(page, picture)
        query.focus()
        page.keyboard.press("ArrowRight")
        says("query 2 of")
        picture = changed(page, picture)
        output.screenshot(path=tmp_path / "sight.png")
        select = output.locator("select")
        select.first.select_option("tiny-lpd")
        picture = changed(page, picture)
        assert "locality" in options(page, 1)
        select.nth(1).select_option("raster")
        changed(page, picture)
        assert (tmp_path / "sight.png").stat().st_size > 20_000


@pytest.mark.full
def test_sweep(chromium, lab, tmp_path):
    "A click opens a place with its controls; pin, arrow keys, other scales, and the player closed again."
    with opened(lab, chromium, "sweep") as page:
        output = page.locator(".jp-OutputArea-output:has(.widget-image)").first
        def says(text): output.get_by_text(text).first.wait_for(timeout=60_000)
        says("guidance 2, temperature 0.5")
        picture = shown(page)
        output.locator('button[title="guidance 4, temperature 0.5"]').click()
        says("guidance 4, temperature 0.5")
        says("step 8 of 8 · 64 of 64 tokens")                               # the player beside it
        picture = changed(page, picture)
        output.get_by_role("button", name="pin").click()
        says("pinned as number 1")
        output.screenshot(path=tmp_path / "sweep.png")
        column = output.locator(".noUi-handle").nth(2)
        column.focus()
        page.keyboard.press("ArrowLeft")
        says("guidance 2, temperature 0.5")
        picture = changed(page, picture)
        output.get_by_role("button", name="close").click()
        output.get_by_text("step 8 of 8").wait_for(state="detached", timeout=20_000)
        scales = output.locator("input[type=text]").first
        scales.fill("1, 9")
        scales.press("Enter")
        output.locator('button[title="guidance 9, temperature 1"]').wait_for(timeout=60_000)
        changed(page, picture)
        assert (tmp_path / "sweep.png").stat().st_size > 20_000


def handed_in(page, name: str, size: int):
    "A file is chosen with the button for a picture of one's own."
    with io.BytesIO() as file:
        Image.fromarray(Shapes(size=size).batch([3])[0][0]).save(file, "png")
        content = file.getvalue()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="own picture").first.click()
    chooser.value.set_files([{"name": name, "mimeType": "image/png", "buffer": content}])


@pytest.mark.full
def test_editor(chromium, lab, tmp_path):
    "Cells are marked by mouse and keyboard and drawn anew, another class, undo, one's own picture, a larger canvas."
    with opened(lab, chromium, "editor") as page:
        output = page.locator(".jp-OutputArea-output:has(.widget-image)").first
        def says(text): output.get_by_text(text).first.wait_for(timeout=60_000)
        def press(name): output.get_by_role("button", name=name).click()
        says("0 of 64 cells are marked")
        first = shown(page)
        press("box")
        output.locator('button[title="cell 2,2, in the picture"]').click()
        says("1 of 64 cells are marked")
        output.locator('button[title="cell 5,4"]').click()
        says("12 of 64 cells are marked")
        press("dots")
        handle = output.locator(".noUi-handle").nth(1)                        # the row
        handle.focus()
        page.keyboard.press("ArrowRight")
        output.get_by_role("button", name="mark here").focus()
        page.keyboard.press("Enter")
        says("13 of 64 cells are marked")
        marked = changed(page, first)

        press("draw anew")
        says("13 of 64 cells as heart, seed 2")
        drawn = changed(page, marked)
        output.locator("select").first.select_option("star")
        says("13 of 64 cells as star, seed 2")
        star = changed(page, drawn)
        output.screenshot(path=tmp_path / "editor.png")
        press("undo")
        says("13 of 64 cells as heart, seed 2")
        press("undo")
        says("heart, seed 1 ")
        assert changed(page, star) in (drawn, marked)
        output.locator("button:disabled", has_text="undo").wait_for(timeout=20_000)
        assert shown(page) == marked                                          # the same picture, to the bit

        handed_in(page, "<img src=x onerror=document.title=1>.png", 96)
        says("is 96x96 pixels and must be 32x32")
        output.locator('input[type="checkbox"]').first.check()
        says("32x32 pixels")
        press("out-paint")
        output.locator('button[title="cell 7,11, in the picture"]').wait_for(timeout=60_000)
        says("4 cells more on the left")
        output.screenshot(path=tmp_path / "editor-wide.png")
        assert page.title() != "1" and (tmp_path / "editor.png").stat().st_size > 20_000


@pytest.mark.full
def test_atlas(chromium, lab, tmp_path):
    "A code is looked at by a click and by the arrow keys, a neighbour put in its place."
    with opened(lab, chromium, "atlas") as page:
        output = page.locator(".jp-OutputArea-output:has(.widget-image)").first
        def says(text): output.get_by_text(text).first.wait_for(timeout=60_000)
        says("256 codes came")
        usage = shown(page)
        output.locator('button[title="code 17"]').click()
        says("code 17 came")
        usage = changed(page, usage)
        output.locator('button[title="neighbour 3"]').click()
        usage = changed(page, usage)
        output.locator(".noUi-handle").first.focus()
        page.keyboard.press("ArrowRight")
        says("code 18 came")
        changed(page, usage)
        output.screenshot(path=tmp_path / "atlas.png")
        assert (tmp_path / "atlas.png").stat().st_size > 20_000


@pytest.mark.full
def test_details(chromium, lab, tmp_path):
    "The other level is held, a variation is taken, and undone; the seed moves by the arrow keys."
    with opened(lab, chromium, "details") as page:
        output = page.locator(".jp-OutputArea-output:has(.widget-image)").first
        def says(text): output.get_by_text(text).first.wait_for(timeout=60_000)
        says("semantic codes kept")
        layers, row = shown(page, 0), shown(page, 1)
        output.get_by_role("button", name="detail", exact=True).click()
        says("detail codes kept, semantic codes drawn anew as heart, seed 2")
        row = changed(page, row, 1)
        output.locator('button[title="take variation 2"]').click()
        says("variation 2 of seed 2")
        changed(page, layers, 0)
        output.get_by_role("button", name="undo").click()
        output.locator("button:disabled", has_text="undo").wait_for(timeout=60_000)
        assert shown(page, 0) == layers
        output.locator(".noUi-handle").first.focus()
        page.keyboard.press("ArrowRight")
        says("drawn anew as heart, seed 3")
        output.screenshot(path=tmp_path / "details.png")
        assert (tmp_path / "details.png").stat().st_size > 20_000


@pytest.mark.full
def test_runs_on_one_axis(chromium, lab, tmp_path):
    "Runs are compared, another quantity is chosen, and one that comes later joins by itself."
    with opened(lab, chromium, "runs") as page:
        output = page.locator(".jp-OutputArea-output:has(.widget-image)").first
        def says(text): output.get_by_text(text).first.wait_for(timeout=60_000)
        says("3 runs, 0 finished")
        curves = shown(page)
        output.locator("select").first.select_option("lr")
        changed(page, curves)
        output.screenshot(path=tmp_path / "runs.png")
        assert page.title() != "1" and (tmp_path / "runs.png").stat().st_size > 10_000


@pytest.mark.full
def test_desk_side_by_side(chromium, lab, tmp_path):
    with opened(lab, chromium, "desk") as page:
        output = page.locator(".jp-OutputArea-output:has(.widget-image)").first
        def says(text): output.get_by_text(text).first.wait_for(timeout=60_000)
        says("PSNR")
        one = shown(page)
        output.get_by_role("button", name="side by side").click()
        says("2 tokenizers, one picture")
        both = changed(page, one)
        handed_in(page, "<img src=x onerror=document.title=1>.png", 96)
        says("must be 32x32")
        output.locator('input[type="checkbox"]').first.check()
        changed(page, both)
        output.screenshot(path=tmp_path / "desk.png")
        assert page.title() != "1" and (tmp_path / "desk.png").stat().st_size > 20_000
