"Shared by all tests: one thread, no network libraries reaching out, the repository root on the path, who runs what."
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.offline import stay_here

FAULTS = [*(f"F{n}" for n in range(1, 25)), *(f"R{n}" for n in range(1, 7))]     # nbs/studies/990_what_breaks.ipynb
LONG = ("test_resume", "test_scripts", "test_bad_input", "test_browser", "test_parity", "test_evaluation")
stay_here()
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    "The repository's top folder."
    return ROOT


@pytest.fixture
def figures(record_property):
    "`figures(kills=50, lost=0)`: what a test counted, for the report of the whole suite."
    def note(**numbers):
        for name, value in numbers.items(): record_property(name, value)
    return note


def pytest_configure(config):
    for number in FAULTS: config.addinivalue_line("markers", f"{number}: a number of `fault`")


def pytest_itemcollected(item):
    """A test marked `fault("F9")` is marked F9, too: `-m F9` finds it, and a report tells."""
    for mark in item.iter_markers("fault"):
        for number in mark.args:
            item.add_marker(number)
            item.user_properties.append(("fault", number))


def is_page(nodeid: str) -> bool: return "::test_page_runs[" in nodeid


def rank(item) -> int:
    "What takes long comes first, so that two workers end together."
    if is_page(item.nodeid): return 0 if "[tutorials/" in item.nodeid else 3
    return 1 if item.path.stem in LONG else 2


def pytest_collection_modifyitems(config, items):
    "Tests marked gpu only run where there is a CUDA device: they are deselected, not skipped."
    items.sort(key=rank)
    if torch.cuda.is_available(): return
    gpu = [i for i in items if i.get_closest_marker("gpu")]
    if gpu:
        config.hook.pytest_deselected(items=gpu)
        items[:] = [i for i in items if i not in gpu]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "With `-n`: the tests of a file stay together, for they share what they set up; each page goes to whoever is free."
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid): return nodeid if is_page(nodeid) else nodeid.split("::")[0]

    config.option.loadscopereorder = False    # our order is by time, not by number of tests
    return ByFile(config, log)
