"Checkpoints in pieces: every process writes and reads its own, whole or not at all, on any number of processes."
import errno
import json
import os
import shutil
import signal
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo  # noqa: F401  (each process would import it with the first shared weight)
import torch.distributed.checkpoint as dcp
import torch.distributed.nn  # noqa: F401  (its defaults keep a group alive that exists when it is imported)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.fsdp import fully_shard  # noqa: F401

from tests.forked import on_many
from tests.sharded_on_many import GRID, LINE
from tests.toy_training import RECIPE, Points, result, saves
from vgnb.core import Mismatch, digest, load_card, save_card
from vgnb.generators.generator import Loss
from vgnb.training import shared_checkpoints as room
from vgnb.training.checkpoints import (
    best,
    checkpoints,
    newest,
    open_checkpoint,
    read_checkpoint,
    sums_of,
    verify,
    write_checkpoint,
)
from vgnb.training.piece_files import Stored
from vgnb.training.run_folder import Run, mirrored
from vgnb.training.tasks import Phase, Task
from vgnb.training.trainer import Trainer

SHORT = replace(RECIPE, steps=8, batch=8)


class Net(nn.Module):
    "Five rows for two processes, a bias that one of them has alone, tied weights, a buffer."
    def __init__(self):
        super().__init__()
        self.enter, self.inner, self.again = nn.Linear(1, 5), nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
        self.leave = nn.Linear(5, 1)
        self.again.weight = self.inner.weight
        self.register_buffer("shift", torch.tensor([0.5, 0.25]))

    def forward(self, x): return self.leave(self.again(self.inner(self.enter(x + self.shift[0]).tanh())).tanh())


class Wave(Task):
    "y = sin(x), by a net that may be shared out."
    may_shard = True

    def __init__(self):
        torch.manual_seed(0)
        self.modules = {"net": Net()}

    def phases(self, step): return (Phase.of("train", "net"),)

    def loss(self, phase, batch, carry, draws, at):
        return Loss((self.modules["net"](batch["x"]) - batch["y"]).square().mean(), {})


def trainer(folder, every=(), task=None, **run):
    torch.set_num_threads(1)
    how = Run(**(dict(save_every=4, progress=False, tracker="none") | run))
    return Trainer(task or Wave(), Points(), SHORT, folder, how, every=every)


def after(t, call):
    "Have `call(step)` done on every process after each step, before anything is saved."
    real = t.stepper.__class__.__call__
    class Told(t.stepper.__class__):
        def __call__(self, step, micros):
            real(self, step, micros)
            call(step + 1)
    t.stepper.__class__ = Told


def world(processes: int, work, settings=LINE) -> list:
    "What `work(rank)` returns on each process of a run that is shared out."
    def begin(rank):
        if processes > 1: os.environ.update(settings)
        return work(rank)
    return on_many(processes, begin)


def fit(processes: int, folder, until=None, settings=LINE, **run) -> list[tuple]:
    "(the digest of all tensors at the end, as they are gathered on each process; steps)."
    def work(rank):
        t = trainer(folder, **run)
        t.fit(until)
        files = t.state.files()
        return (digest(files) if rank == 0 else None), t.step, bool(t.state.sharding)
    found = world(processes, work, settings)
    assert all(isinstance(f, tuple) for f in found), found
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    "Two processes in a line: at once, and in two sittings of which the first is kept."
    root = tmp_path_factory.mktemp("pieces")
    (root / "live.json").write_text(json.dumps(fit(2, root / "line")[0]))
    fit(2, root / "half", until=4)
    shutil.copytree(root / "half", root / "twice")
    fit(2, root / "twice")
    return root


def parts(path: Path) -> list[Path]: return sorted(path.glob("*-of-*.safetensors"))


# ---- what lies there

def test_every_process_writes_its_share_and_nothing_can_run_code(runs):
    path = newest(saves(runs / "line"))
    files = ("ema.net", "model.net", "optim.net")
    assert {p.name for p in path.iterdir()} == {"manifest.json", "pieces.json", "state.json"} | {
        f"{file}.0000{n}-of-00002.safetensors" for file in files for n in (1, 2)}
    assert len(verify(path)["files"]) == 8
    for file in files:
        one, two = (load_file(path / f"{file}.0000{n}-of-00002.safetensors") for n in (1, 2))
        (name,) = (n for n in one if n.endswith(("inner.weight", "inner.weight/exp_avg")))
        assert (len(one[name]), len(two[name])) == (3, 2)
    names = [n for p in parts(path) for n in load_file(p)]
    assert not any("again" in n for n in names)                        # tied: once
    assert names.count("model.net/shift") == 1                         # the same on both: once
    assert names.count("model.net/leave.bias") == 1                    # one row for two processes


def test_it_is_what_the_processes_hold(runs):
    "Whole tensors that were gathered from both, against what is read."
    live, step, shared = json.loads((runs / "live.json").read_text())
    files, state = read_checkpoint(newest(saves(runs / "line")))
    assert shared and step == state["step"] == 8 and digest(files) == live
    assert files["model.net"]["again.weight"] is files["model.net"]["inner.weight"]
    assert files["optim.net"]["net.leave.bias/step"].shape == ()


def test_torchs_own_reader_reads_it(runs):
    path = newest(saves(runs / "line"))
    whole = read_checkpoint(path)[0]["model.net"]["inner.weight"]
    into = {"model.net/inner.weight": torch.zeros(5, 5)}
    warnings.filterwarnings("ignore", "torch.distributed is disabled")
    dcp.load(into, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    assert torch.equal(into["model.net/inner.weight"], whole)


# ---- going on

def test_resumed_is_uninterrupted_bit_for_bit(runs): assert result(runs / "line") == result(runs / "twice")


def test_one_process_goes_on_from_pieces_and_two_from_whole_files(runs, tmp_path):
    "What each holds before its first step is what the other wrote, to the bit; ends agree to fp32."
    shutil.copytree(runs / "half", tmp_path / "one")
    written = digest(read_checkpoint(newest(saves(runs / "half")))[0])
    assert fit(1, tmp_path / "one", until=4) == [(written, 4, False)]
    fit(1, tmp_path / "one")
    last = newest(saves(tmp_path / "one"))
    assert not parts(last) and (last / "model.net.safetensors").is_file()

    for step in saves(tmp_path / "one").glob("step-*"):
        if step != last: shutil.rmtree(step)
    assert fit(2, tmp_path / "one")[0] == (digest(read_checkpoint(last)[0]), 8, True)
    a, b = (read_checkpoint(newest(saves(folder)))[0] for folder in (runs / "line", tmp_path / "one"))
    for file, tensors in a.items():
        for name, t in tensors.items(): torch.testing.assert_close(b[file][name], t, rtol=0, atol=1e-5)


def test_a_process_reads_its_own_pieces_only(runs, tmp_path):
    "From pieces the files that it wrote; from whole files its rows."
    shutil.copytree(runs / "half", tmp_path / "run")
    def work(rank):
        seen, read = [], Stored._read
        def note(self, chunk, there):
            if chunk.name.endswith(("inner.weight", "inner.weight/exp_avg")): seen.append((chunk.file.name, there[0]))
            return read(self, chunk, there)
        Stored._read = note
        trainer(tmp_path / "run").fit(until=4)
        return sorted({file for file, _ in seen}), {(rows.start, rows.stop) for _, rows in seen}

    files = ("ema.net", "model.net", "optim.net")
    for rank, found in enumerate(world(2, work)):
        assert found == ([f"{file}.0000{rank + 1}-of-00002.safetensors" for file in files], {(0, 3 - rank)})

    tensors, state = read_checkpoint(newest(saves(tmp_path / "run")))
    path = write_checkpoint(saves(tmp_path / "run"), state.pop("step"), tensors, state)
    assert not parts(path)
    for rank, found in enumerate(world(2, work)):
        assert found == ([f"{file}.safetensors" for file in files], {(3 * rank, 3 + 2 * rank)})


@pytest.mark.full
def test_a_grid_writes_each_piece_once_and_a_line_goes_on_from_it(runs, tmp_path):
    fit(4, tmp_path / "grid", until=4, settings=GRID)
    path = newest(saves(tmp_path / "grid"))
    def offsets(p):
        with safe_open(p, "pt") as f: return json.loads(f.metadata()["DCP_SHARDING_INFO"])
    boxes = [(name, str(where)) for p in parts(path) for name, where in offsets(p).items()]
    assert len(boxes) == len(set(boxes)) and {p.name.split(".")[2][:5] for p in parts(path)} == {
        "00001", "00002", "00003", "00004"}
    written = digest(read_checkpoint(path)[0])
    shutil.copytree(tmp_path / "grid", tmp_path / "line")
    assert fit(2, tmp_path / "line", until=4)[0] == (written, 4, True)
    fit(4, tmp_path / "grid", settings=GRID)
    fit(4, tmp_path / "whole", settings=GRID)
    assert result(tmp_path / "grid") == result(tmp_path / "whole")


@pytest.mark.full
def test_data_parallel_processes_go_on_from_pieces_and_back(runs, tmp_path):
    shutil.copytree(runs / "half", tmp_path / "run")
    written = digest(read_checkpoint(newest(saves(runs / "half")))[0])
    assert fit(2, tmp_path / "run", until=4, settings={})[0] == (written, 4, False)
    (live, *_), _ = fit(2, tmp_path / "run", until=6, settings={})
    assert not parts(newest(saves(tmp_path / "run")))
    assert fit(2, tmp_path / "run", until=6)[0] == (live, 6, True)


@pytest.mark.full
def test_a_run_begins_with_anothers_pieces_and_the_mirror_has_them(runs, tmp_path):
    fit(2, tmp_path / "new", resume_from=runs / "half", mirror=tmp_path / "slow")
    assert result(tmp_path / "new") == result(runs / "line")
    copy = newest(mirrored("new", Run(mirror=tmp_path / "slow")))
    assert copy.name == "step-000000008" and len(parts(copy)) == 6
    shutil.rmtree(tmp_path / "new")
    assert fit(2, tmp_path / "new", mirror=tmp_path / "slow")[0][1] == 8
    assert result(tmp_path / "new") == result(runs / "line")


# ---- damage

def lacking(path): parts(path)[3].unlink()


def cut(path):
    data = parts(path)[2].read_bytes()
    parts(path)[2].write_bytes(data[:-4])


def changed(path):
    data = bytearray(parts(path)[1].read_bytes())
    data[-1] ^= 1
    parts(path)[1].write_bytes(data)


def mixed(path):
    "The pieces of one process are those of the save before."
    other = checkpoints(path.parent)[1]
    for p in parts(path):
        if "00002-of" in p.name: shutil.copyfile(other / p.name, p)


def without_card(path): (path / "pieces.json").unlink()


@pytest.mark.parametrize("harm, words", [
    (lacking, "lacks model.net.00002-of-00002.safetensors"),
    (cut, "is damaged: model.net.00001-of-00002.safetensors"),
    (changed, "is damaged: ema.net.00002-of-00002.safetensors"),
    (mixed, "is damaged: ema.net.00002-of-00002.safetensors"),
    (without_card, "lacks pieces.json")])
def test_damage_is_one_clear_error_and_the_one_before_is_taken(runs, tmp_path, harm, words):
    shutil.copytree(saves(runs / "line"), tmp_path / "checkpoints")
    path = newest(tmp_path / "checkpoints")
    harm(path)
    for read in (verify, read_checkpoint):
        with pytest.raises(Mismatch, match=words): read(path)
    heard = []
    assert best(tmp_path / "checkpoints", heard.append).name == "step-000000004" and words in heard[0]


def resealed(path: Path, file: Path, change):
    "A piece file made anew by `change(tensors, offsets)`, and a manifest that believes it."
    tensors = load_file(file)
    with safe_open(file, "pt") as f: header = f.metadata()
    where = json.loads(header["DCP_SHARDING_INFO"])
    change(tensors, where)
    save_file(tensors, file, header | {"DCP_SHARDING_INFO": json.dumps(where)})
    manifest = load_card(path / "manifest.json")
    manifest["files"] |= sums_of([file])
    save_card(path / "manifest.json", manifest)


NAME = "model.net/inner.weight"
def shorter(tensors, where): tensors[NAME] = tensors[NAME][:1].clone()
def gone(tensors, where): del tensors[NAME]
def moved(tensors, where): where[NAME]["saved_offsets"] = [2, 0]
def beyond(tensors, where): where[NAME]["saved_offsets"] = [4, 0]
def halves(tensors, where): tensors[NAME] = tensors[NAME].half()
def strange(tensors, where): tensors["x"], where["x"] = torch.ones(1), {"saved_offsets": [0]}
def nowhere(tensors, where): del where[NAME]
def words_for(tensors, where): where[NAME]["saved_offsets"] = "here"
def too_far(tensors, where): where[NAME]["saved_offsets"] = [2 ** 70, 0]


@pytest.mark.parametrize("change, words", [
    (shorter, "is not whole: of model.net/inner.weight, 5 of 25 numbers lack"),
    (gone, "is not whole: of model.net/inner.weight, 10 of 25 numbers lack"),
    (moved, "of model.net/inner.weight, pieces overlap"),
    (beyond, "of model.net/inner.weight, a piece reaches beyond it"),
    (halves, "holds a piece of model.net/inner.weight that is not of it"),
    (strange, "holds a piece of x that is not of it"),
    (nowhere, "does not say where its pieces belong"),
    (words_for, "does not say where its pieces belong"),
    (too_far, "does not say where its pieces belong")])
def test_pieces_that_make_no_whole_are_refused_though_hashes_fit(runs, tmp_path, change, words):
    shutil.copytree(saves(runs / "line"), tmp_path / "checkpoints")
    path = newest(tmp_path / "checkpoints")
    resealed(path, parts(path)[3], change)
    for read in (verify, open_checkpoint, read_checkpoint):
        with pytest.raises(Mismatch, match=words): read(path)
    assert newest(tmp_path / "checkpoints", lambda reason: None).name == "step-000000004"


# ---- saves that fail

def no_room(rank, step=8):
    "The disk of a process is full when it writes the pieces of a step."
    real = FileSystem.create_stream
    def create(self, path, mode):
        if f".aside-{step}-" in str(path): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(self, path, mode)
    FileSystem.create_stream = create


@pytest.mark.fault
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.full), 1])
def test_a_full_disk_anywhere_is_everybodys_error_and_the_previous_stays(runs, tmp_path, victim):
    shutil.copytree(runs / "half", tmp_path / "run")
    def work(rank):
        if rank == victim: no_room(rank)
        try: trainer(tmp_path / "run").fit()
        except Exception as e: return type(e).__name__, str(e)

    one, two = world(2, work)
    assert f"process {victim}: " in one[1] and "No space left on device" in one[1]
    assert "the previous checkpoint is untouched" in one[1] and one == two and one[0] == "BadInput"
    assert [p.name for p in saves(tmp_path / "run").iterdir()] == ["step-000000004"]
    fit(2, tmp_path / "run")
    assert result(tmp_path / "run") == result(runs / "line")


@pytest.mark.fault
def test_a_file_that_gets_no_name_on_one_process_is_everybodys_error(runs, tmp_path):
    shutil.copytree(runs / "half", tmp_path / "run")
    def work(rank):
        real = Path.rename
        def rename(self, target):
            if rank == 1 and "-of-" in str(target): raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(self))
            return real(self, target)
        Path.rename = rename
        try: trainer(tmp_path / "run").fit()
        except Exception as e: return type(e).__name__, str(e)

    for kind, words in world(2, work):
        assert kind == "BadInput" and os.strerror(errno.EDQUOT) in words
        assert "the previous checkpoint is untouched" in words
    assert [p.name for p in saves(tmp_path / "run").iterdir()] == ["step-000000004"]


@pytest.mark.fault
@pytest.mark.full
def test_with_warn_a_run_goes_on_and_saves_again(runs, tmp_path):
    shutil.copytree(runs / "half", tmp_path / "run")
    def work(rank):
        if rank == 1: no_room(rank, step=6)
        done = trainer(tmp_path / "run", save_every=3, on_save_error="warn").fit()
        return done.finished

    assert world(2, work) == [True, True]
    assert [p.name[-1] for p in checkpoints(saves(tmp_path / "run"))] == ["8", "4"]
    assert result(tmp_path / "run") == result(runs / "line")


def test_a_folder_that_one_process_does_not_see_is_named(runs, tmp_path, monkeypatch):
    shutil.copytree(runs / "half", tmp_path / "run")
    def work(rank):
        write = room.write_pieces
        def elsewhere(folder, *a):
            return [p.rename(tmp_path / p.name) for p in write(folder, *a)]
        if rank == 1: room.write_pieces = elsewhere
        try: trainer(tmp_path / "run").fit()
        except Exception as e: return str(e)

    one, two = world(2, work)
    assert one == two and "must be on a disk that all processes see" in one


def test_a_number_that_is_none_in_anybodys_piece_ends_the_run(tmp_path):
    "In the memory of the optimizer, in a row that the second process holds."
    def work(rank):
        t = trainer(tmp_path / "run")
        def spoil(step):
            weight = t.task.modules["net"].inner.weight
            memory = t.state.optimizers["net"].state[weight]["exp_avg"]
            if step == 4 and rank == 1: memory.to_local().fill_(float("inf"))
        after(t, spoil)
        try: t.fit()
        except Exception as e: return str(e)

    one, two = world(2, work)
    assert one == two and "stopped at step 4: net.inner.weight/exp_avg of optim.net is not finite" in one


# ---- signals and kills

@pytest.mark.fault
@pytest.mark.full
def test_a_signal_while_pieces_are_written_waits_for_them_and_writes_the_last(runs, tmp_path):
    "One process is told to stop while the other one's disk is slow: both leave with 75, and both saves are there."
    def work(rank):
        begun, may = threading.Event(), threading.Event()
        real = FileSystem.create_stream
        def slow(self, path, mode):
            begun.set()
            if ".aside-4-" in str(path): may.wait(60)
            return real(self, path, mode)
        if rank == 1: FileSystem.create_stream = slow
        t = trainer(tmp_path / "run")
        def tell(step):
            if (step, rank) != (6, 1): return
            assert begun.wait(60) and not checkpoints(saves(tmp_path / "run"))
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Timer(0.2, may.set).start()
        after(t, tell)
        done = t.fit()
        return done.code, done.step, done.reason

    assert world(2, work) == [(75, 6, "SIGTERM")] * 2
    assert [p.name[-1] for p in checkpoints(saves(tmp_path / "run"))] == ["6", "4"]
    fit(2, tmp_path / "run")
    assert result(tmp_path / "run") == result(runs / "line")


@pytest.mark.fault("F2")
@pytest.mark.full
@pytest.mark.parametrize("victim", [0, 1])
def test_a_kill_while_pieces_are_written_leaves_the_one_before(runs, tmp_path, victim):
    "SIGKILL when a process has written one of its three files; nothing hangs, and the run ends with the same bits."
    shutil.copytree(runs / "half", tmp_path / "run")
    def work(rank):
        real, calls = FileSystem.create_stream, iter(range(10))
        def die(self, path, mode):
            if rank == victim and next(calls) == 1: os.kill(os.getpid(), signal.SIGKILL)
            return real(self, path, mode)
        FileSystem.create_stream = die
        begun = time.monotonic()
        try: trainer(tmp_path / "run").fit()
        except BaseException as e: return type(e).__name__, time.monotonic() - begun

    found = world(2, work)
    assert found[victim] is None and found[1 - victim][1] < 60
    assert [p.name[-1] for p in checkpoints(saves(tmp_path / "run"))] == ["4"]
    fit(2, tmp_path / "run")
    assert result(tmp_path / "run") == result(runs / "line") and not list(saves(tmp_path / "run").glob(".aside*"))
