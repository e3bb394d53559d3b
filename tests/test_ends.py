"""A signal to a whole process group, a reader that dies: what is done is kept, one line says so, the exit code tells.

    python -m tests.test_ends FOLDER CASE ...     runs the cases one after the other, each in a fork of one warm process
"""
import contextlib
import importlib.util
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from pathlib import Path

import pytest
import torch

from tests.toy_training import RECIPE, Pair, Points, saves, until
from tests.train_on_two import tokenizer_recipe, write_codes
from vgnb import processes
from vgnb.core import VgnbError
from vgnb.processes import is_launched, read_ahead
from vgnb.training.checkpoints import checkpoints
from vgnb.training.run_folder import Run

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


# ---- in the warm process

def started(work, err: Path) -> int:
    "A forked process with a group of its own that runs `work()`, stderr in a file; its id."
    from vgnb.cli import run_main
    pid = os.fork()
    if pid: return pid
    code = 99
    try:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)         # whoever runs these tests may have been told to ignore it
        os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = run_main(lambda argv: work(), [])
    except BaseException: traceback.print_exc()
    finally: os._exit(code)


def ended(pid: int, err: Path) -> dict:
    "How it ended."
    _, status = os.waitpid(pid, 0)
    alive = [p for p in Path("/proc").glob("[0-9]*") if session_of(p) == pid]
    return {"code": os.waitstatus_to_exitcode(status), "err": err.read_text(), "left": [p.name for p in alive]}


def session_of(process: Path) -> int | None:
    "The session of a process that lives."
    with contextlib.suppress(OSError):
        words = (process / "stat").read_text().rpartition(")")[2].split()
        return int(words[3]) if words[0] != "Z" else None


def toy(folder: Path, save_every: int = 10) -> int:
    "A run of the toy task whose steps take a while; its exit code, and its last words. Step 5 leaves a mark."
    from vgnb.training.trainer import Trainer
    run = Run(save_every=save_every, workers=2, progress=False, tracker="none")
    mark = (5, lambda trainer: (folder / "under-way").touch())
    done = Trainer(Pair(slow=0.01), Points(), RECIPE, folder, run, every=(mark,)).fit()
    if not done.finished: print(f"{done.reason}: step {done.step}", file=sys.stderr)
    return done.code


def first_checkpoint(folder: Path): return until(lambda: checkpoints(saves(folder)))


def signalled(folder: Path, number: int, times: int = 1) -> dict:
    "Training with two readers; the signal goes to the whole group, and before to its leader, as `timeout` sends it."
    pid = started(lambda: toy(folder / "run"), folder / "err")
    first_checkpoint(folder / "run")
    for _ in range(times - 1): os.kill(pid, number)
    os.killpg(pid, number)
    return ended(pid, folder / "err")


def dead_reader(folder: Path) -> dict:
    "The kernel kills a reader, long before a checkpoint is due."
    pid = started(lambda: toy(folder / "run", save_every=10_000), folder / "err")
    until((folder / "run" / "under-way").exists)
    readers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(readers[0]), signal.SIGKILL)
    return ended(pid, folder / "err") | {"readers": len(readers)}


def script(name: str, *words) -> int:
    "The `main` of a script."
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(w) for w in words])


def stopped_and_finished(folder: Path, name: str, words: list, part) -> dict:
    "A script that gets SIGTERM once its first part is there, then runs again to its end."
    pid = started(lambda: script(name, *words), folder / "err")
    until(lambda: part() or os.path.exists(folder / "err") and (folder / "err").read_text())
    os.killpg(pid, signal.SIGTERM)
    found = ended(pid, folder / "err")
    pid = started(lambda: script(name, *words), folder / "again")
    return found | {"again": ended(pid, folder / "again")}


def extraction(folder: Path) -> dict:
    from vgnb.saved import save_model
    from vgnb.tokenizers.vqgan import VQGAN
    config = tokenizer_recipe().model
    save_model(folder / "model", VQGAN(config), config)
    words = ["--tokenizer", folder / "model", "--data", "shapes://?n=240&size=32", "--out", folder / "codes",
             "--size", 32, "--batch", 4, "--shard-size", 8, "--workers", 2, "--progress", False]
    return stopped_and_finished(folder, "extract_codes", words, lambda: list((folder / "codes").glob("*.codes")))


def sampling(folder: Path) -> dict:
    words = ["tiny-maskgit", "--count", 96, "--part", 8, "--steps", 4, "--out", folder / "s.npz"]
    return stopped_and_finished(folder, "sample", words, lambda: list(folder.glob(".s.npz.parts/*.part")))


def reference(folder: Path) -> dict:
    words = ["shapes://?n=2000&size=32", "--out", folder / "r.npz", "--extractor", "shapes-judge", "--batch", 8,
             "--shard-size", 32, "--workers", 1, "--progress", False]
    parts = folder / "r.npz.parts"
    return stopped_and_finished(folder, "extract_reference", words, lambda: list(parts.glob("*.looks")))


def hanging(folder: Path) -> dict:
    "Work that hangs on its way out: of SIGTERM, SIGINT at once and SIGINT a second later, the last one ends it."
    def work():
        try:
            (folder / "under-way").touch()
            time.sleep(60)
        finally: time.sleep(60)

    pid = started(work, folder / "err")
    until((folder / "under-way").exists)
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    time.sleep(1.2)
    alive = os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGINT)
    return ended(pid, folder / "err") | {"alive": alive}


CASES = {
    "hanging": hanging,
    "SIGTERM": lambda folder: signalled(folder, signal.SIGTERM),
    "SIGINT": lambda folder: signalled(folder, signal.SIGINT),
    "SIGHUP": lambda folder: signalled(folder, signal.SIGHUP),
    "twice": lambda folder: signalled(folder, signal.SIGINT, times=2),
    "dead": dead_reader,
    "extraction": extraction,
    "sampling": sampling,
    "reference": reference}
SLOW = {"SIGTERM", "SIGINT", "SIGHUP", "reference"}      # with --full: their relatives say the same


def quick(*names) -> list:
    "The cases as parameters of a test."
    return [pytest.param(name, marks=pytest.mark.full) if name in SLOW else name for name in names]


def main(root: Path, *names: str):
    import torch
    torch.set_num_threads(1)
    for name in names:
        folder = root / name
        folder.mkdir()
        print(json.dumps([name, CASES[name](folder)]), flush=True)


# ---- the tests

@pytest.fixture(scope="module")
def found(request, tmp_path_factory) -> dict:
    "How every case ended that a test asks for."
    asked = {getattr(item, "callspec", None) and item.callspec.params.get("case") for item in request.session.items}
    names = [name for name in CASES if name in asked | {"hanging", "dead"}]
    root = tmp_path_factory.mktemp("ends")
    command = [sys.executable, "-m", "tests.test_ends", str(root), *names]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return {"root": root, **dict(map(json.loads, done.stdout.splitlines()))}


def last_step(folder: Path) -> int: return int(checkpoints(saves(folder))[0].name[-9:])


@pytest.mark.fault("F7")
@pytest.mark.parametrize("case", quick("SIGTERM", "SIGINT", "SIGHUP", "twice"))
def test_training_with_readers_saves_and_leaves(found, case):
    end = found[case]
    name = "SIGINT" if case == "twice" else case
    assert end["code"] == 75 and end["left"] == []
    assert end["err"] == f"{name}: step {last_step(found['root'] / case / 'run')}\n"


@pytest.mark.fault("F11")
def test_a_dead_reader_is_one_line_and_nothing_is_lost(found):
    end = found["dead"]
    assert end["code"] == 2 and end["left"] == [] and end["readers"] == 2
    assert end["err"].startswith("a data worker died") and end["err"].count("\n") == 1
    assert last_step(found["root"] / "dead" / "run") >= 5


def test_a_second_interrupt_ends_what_hangs(found):
    end = found["hanging"]
    assert end["alive"] and (end["code"], end["left"], end["err"]) == (130, [], "")


def said(end: dict) -> list[str]:
    "Its lines on stderr, without those of progress, which a slow machine sees."
    return [line for line in end["err"].splitlines() if not line.startswith("sampling: part ")]


@pytest.mark.parametrize("case", quick("extraction", "sampling", "reference"))
def test_work_in_parts_leaves_with_a_line_and_goes_on(found, case):
    end = found[case]
    assert (end["code"], end["left"]) == (75, []), end["err"]
    assert said(end) == ["SIGTERM: stopped; run the same command again to go on"]
    assert (end["again"]["code"], said(end["again"])) == (0, [])


def test_a_board_outlives_what_it_cannot_read(tmp_path, monkeypatch):
    from vgnb.core import BadInput
    from vgnb.views.board import Board, _follow, board
    errors = iter([ValueError("half a line"), KeyError("step"), BadInput("path", "log.jsonl", "is damaged")])
    said, shown = [], board(tmp_path / "later", every=0)
    def refresh(self):
        said.append(self.status.value)
        error = next(errors, None)
        if error: raise error
        self.finished = True

    monkeypatch.setattr(Board, "refresh", refresh)
    _follow(weakref.ref(shown), threading.Event(), 0.01)
    assert shown.finished and len(said) == 4
    assert all("trying again" in words for words in said[1:])


def test_a_reader_whose_listener_has_left_says_nothing(capfd):
    class Asked(torch.utils.data.Dataset):
        def __getitem__(self, k):
            sys.excepthook(ConnectionResetError, ConnectionResetError("the other end is gone"), None)
            sys.excepthook(ValueError, ValueError("of its own"), None)
            return k

    loader = torch.utils.data.DataLoader(Asked(), None, sampler=range(2), num_workers=1)
    assert list(read_ahead(loader)) == [0, 1]
    assert capfd.readouterr().err.splitlines() == ["ValueError: of its own"] * 2


def test_a_death_that_is_heard_while_it_is_told_changes_no_words(monkeypatch):
    "A dead reader's pipe may end before the signal of its death is answered, which must not raise over the error."
    def ended_pipe(items): raise EOFError

    def obituary(readers: list, otherwise=None) -> str:
        os.kill(readers[0].pid, signal.SIGKILL)
        readers[0].join(60)                                  # the signal is answered here
        return told(readers, otherwise)

    loader = torch.utils.data.DataLoader(range(9), None, num_workers=2)
    told = processes._obituary
    monkeypatch.setattr(torch.utils.data.dataloader._MultiProcessingDataLoaderIter, "_next_data", ended_pipe)
    monkeypatch.setattr(processes, "_obituary", obituary)
    with pytest.raises(VgnbError, match="a data worker died .exit code -9"): list(read_ahead(loader))


LAUNCH = [sys.executable, "scripts/launch.py", "--nproc-per-node", "2"]


def launched(*words) -> subprocess.Popen:
    command = [*LAUNCH, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            start_new_session=True)


@pytest.mark.fault("F7")
@pytest.mark.full
def test_two_processes_end_in_the_same_words(tmp_path):
    "SIGTERM to the launcher's group; and bad input, which both see."
    write_codes(tmp_path / "codes")
    options = "--steps 4000 --batch 4 --precision fp32 --model.dim 32 --model.layers 1 --model.vocab 48 --save-every 5"
    both = ["scripts/train_generator.py", "shapes-generator", "--data", tmp_path / "codes", "--workers", "1"]
    training = launched(*both, *options.split(), "--out", tmp_path / "run")
    wrong = launched(*both, "--batch", "7", "--out", tmp_path / "wrong")
    _, err = wrong.communicate(timeout=120)
    assert wrong.returncode == 2 and "Traceback" not in err
    lines = sorted(line.removeprefix("process 1: ") for line in err.splitlines())
    assert set(lines) == {"batch=7: must be a multiple of processes x accumulate = 2 x 1"}

    until(lambda: checkpoints(saves(tmp_path / "run")))
    os.killpg(training.pid, signal.SIGTERM)
    _, err = training.communicate(timeout=120)
    step = last_step(tmp_path / "run")
    words = f"SIGTERM: checkpoint of step {step} published in {tmp_path / 'run'}; run the same command again to go on\n"
    assert (training.returncode, err) == (75, words)


@pytest.mark.fault("F3")
@pytest.mark.parametrize("codes, code, said", [
    ({0: 2, 1: -9}, 2, ["process 1 was ended by SIGKILL, as the system does when memory runs out"]),
    ({1: -11}, 2, ["process 1 was ended by SIGSEGV; when that is mended, the same command goes on"]),
    ({0: 75, 1: 75}, 75, []), ({0: 3, 1: 75}, 3, []), ({0: 1}, 1, [])])
def test_who_was_ended_by_a_signal_is_named(codes, code, said, capsys):
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
    failures = {rank: ProcessFailure(rank, 7, number, "none") for rank, number in codes.items()}
    assert runpy.run_path(str(ROOT / "scripts" / "launch.py"))["ended_with"](failures) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(said) and all(line.startswith(words) for line, words in zip(lines, said))


@pytest.mark.parametrize("parent, launched", [
    (["bin/accelerate", "launch", "x.py"], True), (["bin/accelerate-launch", "x.py"], True),
    (["-m", "accelerate.commands.launch", "x.py"], True), (["bash", "-c", "x \udce9"], False)])
def test_a_launcher_is_known_by_its_words(parent, launched, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    words = b"\0".join(os.fsencode(word) for word in ["python", "/" + parent[0], *parent[1:]])
    monkeypatch.setattr(Path, "read_bytes", lambda path: words)
    assert is_launched() == launched


if __name__ == "__main__": main(Path(sys.argv[1]), *sys.argv[2:])


@pytest.mark.fault("F11")
@pytest.mark.full
@pytest.mark.parametrize("how", ["shared", "between", "deaf"])
def test_a_dead_reader_of_one_process_ends_both_within_seconds(tmp_path, how):
    "Whether the other is told, finds the line cut, or waits where no signal reaches it (see tests/dead_on_two.py)."
    run = launched("tests/dead_on_two.py", tmp_path, how)
    _, err = run.communicate(timeout=120)
    seconds = time.time() - float((tmp_path / "died").read_text())
    assert run.returncode == 2 and seconds < 20, (seconds, err)
    said = sorted(err.splitlines())
    assert any(line.startswith("process 1: a data worker died") for line in said), err
    assert len(said) == (1 if how == "deaf" else 2) and "Traceback" not in err
