"""Where a command runs: clocks that are wrong, places that refuse, no home, no shared memory, odd paths, no network.

Each case is a fork with the surroundings changed; it works, or ends in one line that says what to do.
"""
import builtins
import contextlib
import errno
import io
import os
import socket
import time
from pathlib import Path

import pytest
import torch

from tests import offline
from tests.forked import on_many
from tests.run_scripts import main_of
from tests.toy_training import RECIPE, Pair, Points, result, train
from vgnb.cli import run_main
from vgnb.data.shapes import Shapes
from vgnb.pipeline import from_pretrained
from vgnb.shipped import shipped
from vgnb.training.run_folder import Run
from vgnb.training.trainer import Trainer

SAMPLE = ["tiny-pgm", "--count", "2", "--steps", "2"]


def ended(work, *around) -> tuple[int, str]:
    "(exit code, stderr) of a command in a fork, after each of `around()`."
    def there(rank):
        torch.set_num_threads(1)
        for change in around: change()
        with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
            code = run_main(lambda argv: work(), [])
        return code, err.getvalue()
    (found,) = on_many(1, there)
    assert isinstance(found, (tuple, list)), found
    return tuple(found)


def sample(out: Path):
    words = [*SAMPLE, "--out", str(out), "--sheet", str(out.with_suffix(".png"))]
    return lambda: main_of("sample.py")(words)


def made(end: tuple[int, str], out: Path) -> bool:
    code, err = end
    return code == 0 and "Traceback" not in err and out.exists() and out.with_suffix(".run.json").exists()


def one_line(end: tuple[int, str], *words: str) -> bool:
    code, err = end
    assert code == 2 and err.count("\n") == 1 and all(w in err for w in words), (code, err)
    return True


@pytest.mark.fault("F23")
@pytest.mark.parametrize("name", ["Füße und ß", *(pytest.param(name, marks=pytest.mark.full) for name in (
    "with spaces", "漢字/深い", "a'b\"c;d$e", "-rf", "n" * 200))])
def test_paths_of_every_kind_work(tmp_path, name, figures):
    out = tmp_path / name / "Bilder ü.npz"
    assert made(ended(sample(out)), out)
    figures(cases=1, fine=1)


def no_home():
    for name in ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME", "TMPDIR"): os.environ.pop(name, None)


def a_home_that_is_gone(): os.environ["HOME"] = "/nonexistent/home"


@pytest.mark.fault("F23")
@pytest.mark.parametrize("change", [no_home, pytest.param(a_home_that_is_gone, marks=pytest.mark.full)])
def test_no_home_is_needed(tmp_path, change, figures):
    assert made(ended(sample(tmp_path / "s.npz"), change), tmp_path / "s.npz")
    figures(cases=1, fine=1)


class ReadOnly:
    "Below a place nothing can be made or opened for writing, as on a file system that is mounted so."
    def __init__(self, place: Path): self.place = os.fspath(place)

    def __call__(self):
        def refused(call, writes):
            def f(path, *args, **kw):
                below = not isinstance(path, int) and os.path.abspath(os.fspath(path)).startswith(self.place)
                if below and writes(*args, **kw): raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))
                return call(path, *args, **kw)
            return f

        def for_writing(mode="r", *a, **k): return bool(set(str(mode)) & set("wax+"))
        builtins.open = io.open = refused(builtins.open, for_writing)
        for name in ("mkdir", "unlink", "rename", "replace"):
            setattr(os, name, refused(getattr(os, name), lambda *a, **k: True))
        os.open = refused(os.open, lambda flags=0, *a, **k: bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)))


@pytest.mark.fault("F23")
def test_a_read_only_place_is_one_line(tmp_path, figures):
    place = tmp_path / "ro"
    place.mkdir()
    assert one_line(ended(sample(place / "s.npz"), ReadOnly(place)), str(place), "Read-only file system")
    assert one_line(ended(lambda: train(place / "run", until=5)[0].code, ReadOnly(place)), str(place), "Read-only")
    assert not list(place.iterdir())
    figures(cases=2, fine=2)


def full_shared_memory():
    words = f"unable to allocate shared memory(shm) for file </torch_1>: {os.strerror(errno.ENOSPC)} (28)"
    def refuse(*a): raise RuntimeError(words)
    torch.UntypedStorage._share_fd_cpu_ = refuse


@pytest.mark.fault("F23")
def test_readers_without_shared_memory_say_so(tmp_path, figures):
    "torch prints a traceback for each item, and waits for ever."
    work = lambda: train(tmp_path / "run", workers=2)[0].code                    # noqa: E731
    assert one_line(ended(work, full_shared_memory), "/dev/shm", "--workers 0")
    figures(cases=1, fine=1)


@pytest.mark.fault("F23")
@pytest.mark.full
@pytest.mark.parametrize("now", [0.0, 1e11], ids=["1970", "5138"])
def test_a_clock_that_is_wrong_changes_nothing(tmp_path, now, figures):
    "Training and sampling go on from files of the future, and of 1970."
    def wrong():
        clock, begun = time.time, time.time()
        time.time = lambda: now + clock() - begun

    train(tmp_path / "run", until=20)
    for file in (tmp_path / "run").rglob("*"): os.utime(file, (now, now))
    assert ended(lambda: train(tmp_path / "run", until=40)[0].code * 0, wrong) == (0, "")
    train(tmp_path / "whole", until=40)
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    assert made(ended(sample(tmp_path / "s.npz"), wrong), tmp_path / "s.npz")
    figures(cases=2, fine=2)


# ---- no network

@pytest.mark.fault("F24")
def test_a_connection_elsewhere_is_refused_and_counted():
    with socket.socket() as s, pytest.raises(OSError, match="unreachable"): s.connect(("192.0.2.1", 80))
    assert offline.ASKED.pop() == ("192.0.2.1", 80)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()): pass
    assert not offline.ASKED


@pytest.mark.fault("F24")
@pytest.mark.parametrize("names", [["tiny-pgm"], pytest.param(list(shipped()), marks=pytest.mark.full)], ids=len)
def test_nobody_asks_for_a_connection(tmp_path, names, figures):
    "Shipped models are opened, sampled and shown; a run trains."
    def work(rank):
        torch.set_num_threads(1)
        for name in names:
            pipe = from_pretrained(name)
            assert pipe.sample(0).ndim >= 3 and pipe._repr_html_()
        Shapes(10)._repr_html_()
        Trainer(Pair(), Points(), RECIPE, tmp_path / "run", Run(progress=False)).fit(3)
        return list(offline.ASKED)

    assert on_many(1, work) == [[]]
    figures(asked=0)
