"The notebooks are the source of truth: they run, and exporting or cleaning them changes nothing."
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.run_scripts import Scripts

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PAGES = [p.relative_to(ROOT / "nbs").as_posix() for p in sorted((ROOT / "nbs").rglob("[!_.]*.ipynb"))
         if ".ipynb_checkpoints" not in p.parts]


def _run(tool: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([BIN / tool], cwd=cwd, capture_output=True, text=True, timeout=300)


def _tree(folder: Path) -> dict:
    "Every notebook and module below `folder`, by content."
    files = [p for d in ("nbs", "vgnb") for p in sorted((folder / d).rglob("*")) if p.suffix in (".py", ".ipynb")]
    return {p.relative_to(folder): p.read_bytes() for p in files if ".ipynb_checkpoints" not in p.parts}


def test_clean_and_export_change_nothing(root, tmp_path):
    unneeded = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "weights", "runs")
    for d in ("nbs", "vgnb"): shutil.copytree(root / d, tmp_path / d, ignore=unneeded)
    for f in ("pyproject.toml", "README.md", "settings.ini"): shutil.copy(root / f, tmp_path / f)

    before, project = _tree(tmp_path), (tmp_path / "pyproject.toml").read_bytes()
    for tool in ("nbdev-clean", "nbdev-export"):
        r = _run(tool, tmp_path)
        assert r.returncode == 0, r.stdout + r.stderr
        after = _tree(tmp_path)
        changed = sorted(str(k) for k in before.keys() | after.keys() if before.get(k) != after.get(k))
        assert not changed, f"{tool} changes {changed}: run nbdev-export and nbdev-clean, then commit"
    assert (tmp_path / "pyproject.toml").read_bytes() == project


@pytest.fixture(scope="module")
def scripts(root):
    return Scripts(root)


def with_cost(page: str):
    "Tutorials train and sample for minutes what other tests do in the small: --full runs them."
    return pytest.param(page, marks=pytest.mark.full) if page.startswith("tutorials/") else page


@pytest.mark.parametrize("page", [with_cost(page) for page in PAGES])
def test_page_runs(page, scripts):
    "In a process of its own: a page defines its room anew, and what it registers must not meet the next page."
    flags = ["--flags", "slow"] if os.environ.get("VGNB_TEST_FULL") else []
    ran = scripts(str(BIN / "nbdev-test"), f"nbs/{page}", *flags)
    assert ran.code == 0, (ran.out + ran.err)[-6000:]


# ---- the same page again

MOVES = re.compile(r"perf_counter|process_time|monotonic|time\.time|timeit|%time|getpid|gettempdir|mkdtemp|mkstemp"
                   r"|ceilings\(|measured\(|timed\(|own_time\(|spent\(|TimedDraws"       # which read clocks themselves
                   r"|by the clock")                                             # or a cell says so
ELSEWHERE = re.compile(r"0x[0-9A-Fa-f]{6,}|" + re.escape(tempfile.gettempdir()) + r"/tmp\w{8}")


@pytest.fixture(scope="module")
def twice(root, tmp_path_factory) -> list[tuple[Path, Scripts]]:
    "Two copies of the pages, each with a process of its own, whose hashes begin elsewhere."
    made = []
    for seed in ("1", "2"):
        place = tmp_path_factory.mktemp(f"hashes-{seed}")
        shutil.copytree(root / "nbs", place / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints", "runs"))
        for f in ("pyproject.toml", "README.md", "settings.ini"): shutil.copy(root / f, place / f)
        made.append((place, Scripts(place, PYTHONHASHSEED=seed)))
    return made


def shown(file: Path) -> list[str]:
    """What each code cell shows, but for addresses in memory and temporary places; nothing of cells that read a clock,
    nor progress, whose lines come by it."""
    def plain(output): return {k: v for k, v in output.items() if k not in ("execution_count", "metadata")}
    cells = [c for c in json.loads(file.read_text())["cells"] if c["cell_type"] == "code"]
    for c in cells: c["outputs"] = [o for o in c["outputs"] if o.get("name") != "stderr"]
    outputs = [[plain(o) for o in c["outputs"]] if not MOVES.search("".join(c["source"])) else [] for c in cells]
    return [ELSEWHERE.sub("elsewhere", json.dumps(o, sort_keys=True)) for o in outputs]


@pytest.mark.fault("R5")
@pytest.mark.full
@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_the_same_again(page, twice, figures):
    "In two processes: text, numbers and pixels."
    found = []
    for place, run in twice:
        ran = run(str(BIN / "nbdev-test"), f"nbs/{page}", "--save", "--n-workers", "0")
        assert ran.code == 0, (ran.out + ran.err)[-6000:]
        found.append(shown(place / "nbs" / page))
    differing = [n for n, (a, b) in enumerate(zip(*found, strict=True)) if a != b]
    figures(pages=1, different=len(differing))
    assert not differing, {n: [f[n][:300] for f in found] for n in differing}
