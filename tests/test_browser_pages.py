"""The notebooks as a user meets them: opened and run in a real JupyterLab with Chromium.

Opened, without a question and in colour: every fourth, with `--full` all of them. Run, with `--full`: the views, whose
widgets come alive, the tour, the tutorials and the studies.
"""
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.test_browser import ROOT, browsing, run, started

pytestmark = pytest.mark.browser

PAGES = sorted(p.relative_to(ROOT / "nbs").as_posix() for p in (ROOT / "nbs").rglob("[!_.]*.ipynb")
               if ".ipynb_checkpoints" not in p.parts)
OPENED = PAGES if os.environ.get("VGNB_TEST_FULL") else PAGES[::4]
LIVE = {"790_live": 1, "800_player": 2, "810_desk": 1, "820_explorer": 2, "822_play": 1,
        "823_compare": 1, "824_branch": 1, "827_editor": 1, "832_atlas": 1, "834_details": 1, "842_race": 2,
        "844_sight": 1, "846_sweep": 1}    # views on show, at least
LONG = [p for p in PAGES if p == "index.ipynb" or p.startswith(("tutorials/", "studies/"))]
VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def browser():
    with browsing() as one: yield one


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory) -> Path:
    "A copy of the notebooks, so that nothing run here is saved there."
    place = tmp_path_factory.mktemp("pages") / "nbs"
    return Path(shutil.copytree(ROOT / "nbs", place, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "runs")))


def unpictured(file: Path):
    "Leave a notebook's outputs out: they take a browser most of its time, and nothing here depends on them."
    page = json.loads(file.read_text())
    for cell in page["cells"]:
        if "outputs" in cell: cell["outputs"] = []
    file.write_text(json.dumps(page))


@pytest.fixture(scope="module")
def bare(tmp_path_factory, notebooks) -> Path:
    "The notebooks without their outputs."
    place = Path(shutil.copytree(notebooks, tmp_path_factory.mktemp("bare") / "nbs"))
    for page in PAGES: unpictured(place / page)
    return place


@pytest.fixture(scope="module")
def sleepy(tmp_path_factory, bare):
    "A JupyterLab whose python3 does nothing: it starts at once, and whether Lab asks depends on its name alone."
    tmp = tmp_path_factory.mktemp("sleepy")
    spec = tmp / "jupyter_data_dir" / "kernels" / "python3"
    spec.mkdir(parents=True)
    kernel = {"argv": ["sleep", "600"], "display_name": "sleeper", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(kernel))
    at_once = "--AsyncIOLoopKernelManager.shutdown_wait_time=0.1"        # nobody listens to the request to end
    with started(tmp, bare, at_once, JUPYTER_PREFER_ENV_PATH="0") as address: yield address


@pytest.fixture(scope="module")
def awake(tmp_path_factory, notebooks):
    "A JupyterLab with the real kernel."
    with started(tmp_path_factory.mktemp("awake"), notebooks) as address: yield address


READY = """() => window.jupyterapp && window.jupyterapp.commands.hasCommand("docmanager:open")
                  && window.jupyterapp.serviceManager.kernelspecs.specs"""
SEEN = """async paths => {
    const app = window.jupyterapp, asked = () => [...document.querySelectorAll(".jp-Dialog")].map(d => d.textContent);
    const opened = path => app.commands.execute("docmanager:open", {path, factory: "Notebook"});
    const widgets = await Promise.all(paths.map(opened));
    const until = Date.now() + 180000, waits = () => widgets.some(w => !w.context.isReady || !w.sessionContext.isReady);
    while (waits() && !asked().length && Date.now() < until) await new Promise(later => setTimeout(later, 20));

    const found = widgets.map(w => ({cells: w.content.model?.cells.length, mime: w.content.codeMimetype,
                                     kernel: w.sessionContext.session?.kernel?.name ?? null}));
    return [asked(), found];
}"""
CLOSE = """() => { const app = window.jupyterapp;
                   for (const w of [...app.shell.widgets("main")])
                       if (w.sessionContext) { w.sessionContext.shutdown().catch(() => {}); w.dispose(); } }"""
AT_ONCE = 16


def seen(page, paths) -> dict[str, dict]:
    "{path: what Lab made of it} of notebooks opened together; a question of Lab's is a failure."
    dialogs, found = page.evaluate(SEEN, paths)
    by_path = dict(zip(paths, found, strict=True))
    unready = [path for path, one in by_path.items() if not one["kernel"]]
    assert not dialogs, (dialogs, unready)
    return by_path


@pytest.mark.full
def test_every_notebook_opens_without_a_question_and_in_colour(sleepy, browser):
    url, token = sleepy
    page, errors = browser.new_page(viewport={"width": 1200, "height": 900}), []
    page.on("pageerror", lambda e: errors.append(str(e)))
    try:
        page.goto(f"{url}/lab?token={token}&reset", timeout=60_000)
        page.wait_for_function(READY, timeout=60_000)
        for first in range(0, len(OPENED), AT_ONCE):
            for path, found in seen(page, OPENED[first:first + AT_ONCE]).items():
                assert found["kernel"] == "python3" and found["cells"] > 1 and "python" in found["mime"], (path, found)
            assert not errors, errors
            page.evaluate(CLOSE)
            page.wait_for_timeout(100)
            errors.clear()    # a notebook that is thrown away in the middle of its start says so
    finally: page.close()


@pytest.mark.full
def test_a_notebook_that_names_no_kernel_is_noticed(sleepy, browser, bare):
    nameless = json.loads((bare / PAGES[0]).read_text()) | {"metadata": {}}
    (bare / "nameless.ipynb").write_text(json.dumps(nameless))
    url, token = sleepy
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    try:
        page.goto(f"{url}/lab?token={token}&reset", timeout=60_000)
        page.wait_for_function(READY, timeout=60_000)
        with pytest.raises(AssertionError, match="Select kernel"): seen(page, ["nameless.ipynb"])
    finally: page.close()


FAILED = """() => window.jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type === "code")
    .flatMap(c => c.model.outputs.toJSON()).filter(o => o.output_type === "error")
    .map(o => o.ename + ": " + o.evalue)"""          # of the document: what lies out of sight may not be drawn


def run_all(page, address, path: str, seconds: int):
    "Open a notebook, run all of its cells, wait for the last one or for one that fails."
    url, token = address
    page.goto(f"{url}/doc/tree/{path}?token={token}&reset", timeout=60_000)
    page.wait_for_selector(".jp-Notebook-cell", timeout=60_000)
    page.wait_for_function("() => window.jupyterapp")
    page.wait_for_selector('.jp-StatusBar-TextItem:has-text("Idle")', timeout=60_000)
    run(page, "notebook:run-all-cells")
    done = """() => { const cells = window.jupyterapp.shell.currentWidget.content.widgets;
                      const code = cells.filter(c => c.model.type === "code" && c.model.sharedModel.source.trim());
                      return code.length > 0 && code.every(c => c.model.executionCount !== null); }"""
    page.wait_for_function(f"() => ({FAILED})().length > 0 || ({done})()", timeout=1000 * seconds)


def check_run(browser, address, path: str, live: int, seconds: int):
    "Run All of a page: no error in a cell or in the browser, and so many widgets on show."
    page, errors = browser.new_page(viewport={"width": 1200, "height": 30_000}), []    # tall: everything is drawn
    page.on("pageerror", lambda e: errors.append(str(e)))
    try:
        run_all(page, address, path, seconds)
        assert page.evaluate(FAILED) == []
        views = page.locator(".jp-OutputArea-output:has(.jupyter-widgets)")
        if live: views.nth(live - 1).wait_for(timeout=20_000)
        assert page.get_by_text("Error displaying widget").count() == 0
        assert not errors, errors
        run(page, "kernelmenu:shutdown")
    finally: page.close()


@pytest.mark.full
def test_a_cell_that_fails_ends_the_wait(browser, awake, notebooks):
    "Far below what is in sight, too."
    whole = json.loads((notebooks / PAGES[0]).read_text())
    empty = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    sources = [f"print('{n}\\n' * 60)" for n in range(20)] + ["1 / 0", "never"]
    (notebooks / "failing.ipynb").write_text(json.dumps(whole | {"cells": [empty | {"source": s} for s in sources]}))
    with pytest.raises(AssertionError, match="ZeroDivisionError"): check_run(browser, awake, "failing.ipynb", 0, 120)


@pytest.mark.full
@pytest.mark.parametrize("path", [p for p in PAGES if p.startswith("views/")])
def test_run_all_of_a_view_shows_it_live(browser, awake, path):
    check_run(browser, awake, path, LIVE.get(Path(path).stem, 0), 300)


@pytest.mark.full
@pytest.mark.parametrize("path", LONG)
def test_run_all_of_a_long_page(browser, awake, path):
    live = {"index": 1, "900_folder_to_samples": 2, "905_sampling_playground": 1}
    check_run(browser, awake, path, live.get(Path(path).stem, 0), 1800)


def test_a_page_read_without_a_kernel_shows_stills():
    "What is committed holds pictures of the widgets, no views of them: nothing to be an error message."
    for path in PAGES:
        saved = json.loads((ROOT / "nbs" / path).read_text())
        kinds = [set(o.get("data", {})) for c in saved["cells"] for o in c.get("outputs", [])]
        assert not any(VIEW in kind for kind in kinds) and "widgets" not in saved["metadata"], path
        stills = sum("image/png" in kind for kind in kinds)
        assert stills >= LIVE.get(Path(path).stem, 0), path
