"""Bad input gets one error that names the argument, the value and what is allowed, before any work starts: the table in bad_input.py, by hand and through the scripts."""
import hashlib
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.bad_input import ROWS, Bad, build
from tests.run_scripts import Scripts
from vgnb.core import VgnbError

ROOT = Path(__file__).resolve().parents[1]
OWNER = "import sys; from vgnb.training.checkpoints import hold\nwith hold(sys.argv[1]): print('holds it', flush=True); sys.stdin.read()"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    torch.set_num_threads(1)
    w = build(tmp_path_factory.mktemp("bad"))
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(w.folder / "busy")], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "holds it\n"
    yield w
    owner.communicate(timeout=30)


@pytest.fixture(scope="module")
def scripts(work):
    runner = Scripts(work.folder)
    yield runner
    runner.close()


def listing(folder) -> dict:
    "Every file's content and every folder."
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for p in sorted(folder.rglob("*"))}


@pytest.fixture
def untouched(work, monkeypatch):
    "Whatever happens in the test, no file of the workplace changes."
    monkeypatch.chdir(work.folder)
    before = listing(work.folder)
    yield
    after = listing(work.folder)
    assert after == before, {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}


def says(row: Bad, text: str) -> bool:
    "Whether an error's text is what the row promises."
    return (row.start in text if row.value is not None else f"{row.argument}=" in text or not row.argument) and row.words in text


@pytest.mark.parametrize("row", [r for r in ROWS if r.python], ids=lambda r: r.id)
def test_python(work, untouched, row):
    ran = []
    watch = torch.nn.modules.module.register_module_forward_pre_hook(lambda m, inputs: ran.append(m) if not list(m.children()) else None)
    try:
        with pytest.raises(VgnbError) as e: row.python(work)
    finally: watch.remove()
    assert says(row, str(e.value)), str(e.value)
    assert not ran, f"{len(ran)} layers were run first"


@pytest.mark.parametrize("row", [r for r in ROWS if r.command], ids=lambda r: r.id)
def test_script(work, scripts, untouched, row):
    place, _, words = row.command.rpartition(": ")
    ran = scripts(*shlex.split(words), cwd=work.folder / place)
    assert ran.code == 2, ran
    lines = ran.err.splitlines()
    assert len(lines) == 1 and says(row, lines[0]), ran.err
