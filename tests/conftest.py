"Shared by all tests: one thread, no network libraries reaching out, the repository root on the path."
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    "The repository's top folder."
    return ROOT


def pytest_collection_modifyitems(config, items):
    "Tests marked gpu only run where there is a CUDA device: they are deselected, not skipped."
    if torch.cuda.is_available(): return
    gpu = [i for i in items if i.get_closest_marker("gpu")]
    if gpu:
        config.hook.pytest_deselected(items=gpu)
        items[:] = [i for i in items if i not in gpu]
