"Saving while training goes on: the right moment's numbers, one at a time, no error lost, nothing torn by a kill."
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vgnb.training.run_folder
from tests.forked import on_many
from tests.toy_training import RECIPE, Pair, Points, die_at, result, saves, train
from vgnb.core import BadInput, VgnbError
from vgnb.training import checkpoints as room
from vgnb.training.checkpoints import Background, HostCopies, checkpoints, newest, read_checkpoint, write_checkpoint
from vgnb.training.run_folder import Run, RunFolder, mirrored
from vgnb.training.trainer import Outcome, Trainer

pytestmark = pytest.mark.fault
SHORT = replace(RECIPE, steps=30)
KILLS, SIGNALS = 30, 20      # of the full form


def steps_in(folder) -> list[int]: return [int(p.name[-9:]) for p in checkpoints(folder)]


def trainer(folder, every=(), recipe=SHORT, task=None, **run):
    how = Run(**(dict(save_every=10, progress=False, tracker="none") | run))
    return Trainer(task or Pair(), Points(), recipe, folder, how, every=every)


class Gate:
    "Stands before every writing: waits until it is open, and notes how many write at once."
    def __init__(self, monkeypatch, error=None):
        self.open, self.began, self.error = threading.Event(), threading.Event(), error
        self.busy, self.most, self.steps = 0, 0, []
        monkeypatch.setattr(vgnb.training.run_folder, "write_checkpoint", self)

    def __call__(self, folder, step, *args, **kw):
        self.busy += 1
        self.most = max(self.most, self.busy)
        self.began.set()
        assert self.open.wait(60)
        self.busy -= 1
        self.steps.append(step)
        if self.error: raise self.error
        return write_checkpoint(folder, step, *args, **kw)


# ---- the right moment

def test_what_is_written_is_the_state_of_its_step(tmp_path, monkeypatch):
    "Nothing is written before step 17; what lies there then is the state of step 10."
    train(tmp_path / "straight", until=10)
    gate = Gate(monkeypatch)
    trainer(tmp_path / "run", every=((17, lambda t: gate.open.set()),), recipe=RECIPE).fit(19)
    assert gate.steps == [10, 19]
    old = read_checkpoint(checkpoints(saves(tmp_path / "run"))[1])[0]
    straight = read_checkpoint(newest(saves(tmp_path / "straight")))[0]
    assert old.keys() == straight.keys()
    for file, tensors in straight.items():
        assert all(torch.equal(t, old[file][name]) for name, t in tensors.items()), file


def test_memory_is_kept_and_what_shares_it_stays_together():
    tied, plain = torch.randn(3, 2), torch.arange(4)
    files = {"a": {"x": tied, "y": tied, "column": tied[:, 0]}, "b": {"z": plain, "none": torch.zeros(0)}}
    copies = HostCopies()
    first = copies.take(files)
    kept = dict(copies.kept)
    tied.mul_(2)
    assert torch.equal(first["a"]["x"] * 2, tied) and first["a"]["x"] is first["a"]["y"]
    second = copies.take(files)
    assert torch.equal(second["a"]["x"], tied) and all(copies.kept[k] is t for k, t in kept.items())
    assert torch.equal(second["a"]["column"], tied[:, 0]) and second["a"]["column"].is_contiguous()
    third = copies.take({"a": {"x": torch.zeros(5)}})
    assert third["a"]["x"].shape == (5,) and list(copies.kept) == [("a", "x")]


# ---- one at a time

def test_one_save_at_a_time_and_all_of_them(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    threading.Timer(0.2, gate.open.set).start()
    trainer(tmp_path, save_every=3, keep_last=9).fit()
    assert gate.steps == list(range(3, 31, 3)) and gate.most == 1
    assert steps_in(saves(tmp_path)) == sorted(gate.steps, reverse=True)[:9]


def test_a_wait_is_silent_unless_it_is_long(monkeypatch, capsys):
    background = Background()
    background.start("short work", lambda: time.sleep(0.02))
    background.wait()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(room, "_SLOW", 0.01)
    background.start("long work", lambda: time.sleep(0.1))
    background.wait()
    assert capsys.readouterr().err == "waiting for long work, which takes long\n"


# ---- no error is lost

def settled(t):
    "Wait for the thread, as nobody does in a real run."
    while t.folder.background.is_busy(): time.sleep(0.01)


FULL = BadInput("checkpoint", "step-000000010", "could not be written (No space left on device)")


def test_a_failed_save_ends_the_run_before_the_next_step(tmp_path, monkeypatch):
    gate = Gate(monkeypatch, error=FULL)
    gate.open.set()
    run = trainer(tmp_path, every=((11, settled),), tracker="jsonl")
    with pytest.raises(BadInput, match="could not be written .No space"): run.fit()
    assert run.step in (10, 11) and gate.steps == [10] and steps_in(saves(tmp_path)) == []


def test_a_save_that_fails_at_the_end_ends_the_run(tmp_path, monkeypatch):
    Gate(monkeypatch, error=FULL).open.set()
    with pytest.raises(BadInput, match="could not be written .No space"): trainer(tmp_path, save_every=99).fit()


class Ill(Pair):
    "Fails at step 12, and only then lets the writing fail."
    def __init__(self, gate):
        super().__init__()
        self.gate = gate

    def phases(self, step):
        if step < 12: return super().phases(step)
        self.gate.open.set()
        raise VgnbError("ill at step 12")


def test_a_failed_save_is_told_beside_another_error(tmp_path, monkeypatch, capsys):
    gate = Gate(monkeypatch, error=FULL)
    with pytest.raises(VgnbError, match="ill at step 12"): trainer(tmp_path, task=Ill(gate)).fit()
    assert capsys.readouterr().err == f"warning: {FULL}\n"


def test_with_warn_the_run_goes_on_and_its_end_is_published(tmp_path, monkeypatch, capsys):
    gate = Gate(monkeypatch, error=FULL)
    gate.open.set()
    def mended(t): gate.error = settled(t)
    done = trainer(tmp_path, every=((29, mended),), on_save_error="warn").fit()
    assert done == Outcome(30, True) and gate.steps == [10, 20, 30] and steps_in(saves(tmp_path)) == [30]
    assert capsys.readouterr().err == f"warning: {FULL}\n" * 2


def test_with_warn_a_failed_last_step_is_tried_again(tmp_path, monkeypatch):
    "The save that fell due at the last step failed; the one at the end does not take it for written."
    gate = Gate(monkeypatch, error=FULL)
    gate.open.set()
    def mended(t): gate.error = None
    run = trainer(tmp_path, on_save_error="warn")
    settle = run._settle
    def settle_then_mend():
        settle()
        if 30 in gate.steps: mended(run)
    monkeypatch.setattr(run, "_settle", settle_then_mend)
    assert run.fit().finished and gate.steps == [10, 20, 30, 30] and steps_in(saves(tmp_path)) == [30]


def test_both_processes_end_with_the_error_of_the_one_that_writes(tmp_path):
    def work(rank):
        def refuse(folder, step, *a, **k): raise FULL
        vgnb.training.run_folder.write_checkpoint = refuse
        run = trainer(tmp_path, every=((11, settled),))
        try: run.fit()
        except VgnbError as e: return run.step, str(e)

    one, two = on_many(2, work)
    assert one == two and one[0] in (10, 11) and "No space left on device" in one[1]


# ---- signals

def test_a_signal_finishes_what_is_being_written_and_writes_the_last(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    def tell(t):
        assert gate.began.wait(60) and steps_in(saves(tmp_path)) == []
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Timer(0.2, gate.open.set).start()

    done = trainer(tmp_path, every=((13, tell),), recipe=RECIPE).fit()
    assert done == Outcome(13, False, "SIGTERM") and done.code == 75
    assert gate.steps == [10, 13] == sorted(steps_in(saves(tmp_path)))


@pytest.mark.fault("F7")
@pytest.mark.full
def test_twenty_signals_leave_within_five_seconds(tmp_path, figures):
    "SIGTERM and SIGINT in turn, at twenty moments of a run that saves all the time."
    seconds = []
    for n in range(SIGNALS):
        def work(rank, n=n):
            at = 5 + 3 * n
            begun = []
            def tell(t):
                if t.step != at: return
                begun.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGINT if n % 2 else signal.SIGTERM)
            done = trainer(tmp_path / str(n), every=((1, tell),), recipe=RECIPE, save_every=2).fit()
            return done.code, done.step, steps_in(saves(tmp_path / str(n)))[0], time.monotonic() - begun[0]
        (found,) = on_many(1, work)
        code, step, last, took = found
        assert (code, step) == (75, last), found
        seconds.append(took)
    assert max(seconds) < 5
    figures(signals=SIGNALS, published=SIGNALS, seconds=round(max(seconds), 2))


# ---- kills

def test_a_run_that_is_killed_while_a_thread_writes_ends_the_same(tmp_path):
    "SIGKILL between two steps, while the save of step 20 has written half of its files."
    train(tmp_path / "whole", until=40)
    folder = tmp_path / "killed"
    def work(rank):
        half = threading.Event()
        save = room.save_tensors
        def slow(path, tensors, **meta):
            save(path, tensors, **meta)
            if ".aside-20-" in str(path): half.set()
            if half.is_set(): time.sleep(30)
        room.save_tensors = slow
        def kill(t):
            assert half.wait(60)
            os.kill(os.getpid(), signal.SIGKILL)
        trainer(folder, every=((23, kill),), recipe=RECIPE).fit(40)

    assert on_many(1, work) == [None]
    assert steps_in(saves(folder)) == [10] and list(saves(folder).glob(".aside-20*"))
    train(folder, until=40)
    assert result(folder) == result(tmp_path / "whole") and not list(saves(folder).glob(".aside*"))


@pytest.mark.fault("F2")
@pytest.mark.full
@pytest.mark.parametrize("victim", [0, 1])
def test_thirty_kills_of_either_process_while_two_train_and_save(tmp_path, figures, victim):
    """The writing process dies at its n-th call that touches the disk, the other one at a step while the first writes:
    what is left is whole, and the run ends with the same bits as if nobody had died."""
    def run(folder, until, dies=None):
        def work(rank):
            if dies is not None and rank == victim == 0: die_at(dies)
            task = Dies(dies) if dies is not None and rank == victim == 1 else Pair(slow=0.002)
            run = Run(save_every=4, progress=False, tracker="none")
            return Trainer(task, Points(), RECIPE, folder, run).fit(until).step
        return on_many(2, work)

    run(tmp_path / "begun", 4)
    shutil.copytree(tmp_path / "begun", tmp_path / "whole")
    run(tmp_path / "whole", 24)
    deaths, left = 0, set()
    for n in range(KILLS):
        folder = tmp_path / str(n)
        shutil.copytree(tmp_path / "begun", folder)
        found = run(folder, 24, dies=90 * n // KILLS if victim == 0 else 5 + 18 * n // KILLS)
        deaths += found[victim] is None
        step = int(newest(saves(folder), warn=pytest.fail).name[-9:])
        left.add(step)
        assert step >= 4 and run(folder, 24) == [24, 24]
        assert result(folder) == result(tmp_path / "whole"), (n, step)
        shutil.rmtree(folder)
    assert deaths == KILLS and len(left) >= KILLS // 10, (deaths, left)
    figures(kills=deaths, whole=KILLS)


class Dies(Pair):
    def __init__(self, step: int):
        super().__init__(slow=0.002)
        self.last = step

    def phases(self, step):
        if step == self.last: os._exit(9)
        return super().phases(step)


# ---- which ones stay, and where else

@pytest.mark.parametrize("wrong, words", [
    (dict(keep_last=1), "keep_last=1: must be an integer >= 2"),
    (dict(keep_last=2.5), "keep_last=2.5: must be"),
    (dict(keep_every=-1), "keep_every=-1: must be an integer >= 0"),
    (dict(keep_every="often"), "keep_every='often': must be")])
def test_what_cannot_be_kept_is_refused(wrong, words):
    with pytest.raises(BadInput, match=words): Run(**wrong)


def test_some_checkpoints_stay_for_ever_here_and_on_the_mirror(tmp_path):
    "Also over a stop between two of them."
    for until in (13, None):
        run = trainer(tmp_path / "run", save_every=3, keep_every=10, mirror=tmp_path / "slow")
        run.fit(until)
    assert steps_in(saves(tmp_path / "run")) == [30, 27, 21, 12] == steps_in(mirrored("run", run.run))


def test_a_damaged_checkpoint_is_healed_by_the_mirror_which_says_so(tmp_path, capsys):
    run = dict(mirror=tmp_path / "slow")
    trainer(tmp_path / "run", **run).fit(20)
    straight = result(tmp_path / "run")
    for path in checkpoints(saves(tmp_path / "run")): (path / "state.json").write_text("{}")
    capsys.readouterr()
    again = RunFolder(tmp_path / "run", Run(**run))
    assert again.choose(SHORT).name == "step-000000020"
    said = capsys.readouterr().err
    assert f"step-000000020 comes from the mirror {tmp_path / 'slow'}\n" in said
    assert said.count("falling back to the mirror") == 2 and result(tmp_path / "run") == straight


def test_a_mirror_that_is_damaged_is_no_obstacle(tmp_path, capsys):
    run = dict(mirror=tmp_path / "slow")
    for until in (10, 20): trainer(tmp_path / "run", **run).fit(until)
    for path in checkpoints(mirrored("run", Run(**run))): (path / "state.json").write_text("{}")
    shutil.rmtree(checkpoints(saves(tmp_path / "run"))[0])
    assert trainer(tmp_path / "run", **run).fit().finished
    assert Path(newest(mirrored("run", Run(**run)))).name == "step-000000030"
