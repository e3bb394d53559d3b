"""Processes that are killed for real, at random moments: what they were making ends with the same bytes.

The full forms have the counts that nbs/studies/990_what_breaks.ipynb reports; deaths at each single call are in
tests/test_job_kills.py and tests/test_saving.py.
"""
import contextlib
import errno
import fcntl
import io
import mmap
import os
import random
import re
import resource
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.forked import on_many, on_two
from tests.test_ends import ENV, LAUNCH, last_step
from tests.test_job_kills import pipe  # noqa: F401  (a fixture)
from tests.toy_training import RECIPE, Pair, Points, child, has_ended, result, saves, train, until
from vgnb import core
from vgnb.cli import explained
from vgnb.core import Mismatch, VgnbError
from vgnb.data.shapes import Shapes
from vgnb.data.transforms import Augment
from vgnb.jobs import SampleJob, planned_labels
from vgnb.places import locked
from vgnb.processes import Processes, read_ahead
from vgnb.training.checkpoints import checkpoints, newest, verify
from vgnb.training.extract import extract_codes
from vgnb.training.run_folder import Run
from vgnb.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
FULL = pytest.mark.full


class Shared:
    "A number that forked processes share."
    def __init__(self): self.place = mmap.mmap(-1, 8)

    @property
    def value(self) -> float: return np.frombuffer(self.place, float)[0].item()

    @value.setter
    def value(self, x: float): self.place[:] = np.float64(x).tobytes()


def group(work) -> int:
    "The id of a process group of its own that does `work`."
    pid = child(work)
    os.setpgid(pid, pid)
    return pid


def ended(pid: int) -> int:
    "The exit code of a child; -9 after SIGKILL."
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def runs(group: int) -> bool:
    "Whether a process of a group still runs: a kill is asked for, and comes a moment later."
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX": return True
    return False


def killed_until_done(work, kills: int, wait) -> int:
    "`work` in a process group that is killed after `wait()`, again and again, then left to end. How often it died."
    for n in range(kills):
        pid = group(work)
        wait(n, lambda pid=pid: has_ended(pid))
        os.killpg(pid, signal.SIGKILL)
        if ended(pid) != -9: return n
        until(lambda pid=pid: not runs(pid))
    pid = group(work)
    assert ended(pid) == 0
    return kills


# ---- one of two processes

class Falls(Pair):
    "The victim is killed in a step, while the other waits for it in a sum."
    def __init__(self, rank: int, step: int, when: Shared):
        super().__init__()
        self.rank, self.step, self.when = rank, step, when

    def loss(self, phase, batch, carry, draws, at):
        if at.step == self.step and int(os.environ["RANK"]) == self.rank:
            self.when.value = time.time()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(phase, batch, carry, draws, at)


@pytest.mark.fault("F3")
@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=FULL)])
def test_who_waits_for_the_dead_ends_within_seconds(tmp_path, kills, figures):
    rng, seconds = random.Random(0), []
    for n in range(kills):
        when, step = Shared(), rng.randrange(1, 12)
        def work(rank, n=n, when=when, step=step):
            run = Run(save_every=4, progress=False, tracker="none")
            try: Trainer(Falls(n % 2, step, when), Points(), RECIPE, tmp_path / str(n), run).fit(20)
            except Exception as e: return time.time(), explained(e)

        found = on_two(work)
        assert found[n % 2] is None, "the victim lives"
        end, words = found[1 - n % 2]
        assert words == "another process of this run ended; what went wrong is said by it"
        seconds.append(end - when.value)
    assert max(seconds) < 30
    figures(kills=kills, ended=len(seconds), seconds=round(max(seconds), 2))


KILLED = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from tests.toy_training import RECIPE, Pair, Points
from vgnb.cli import run_main
from vgnb.training.run_folder import Run
from vgnb.training.trainer import Trainer

class Falls(Pair):
    def phases(self, step):
        if step == 5 and os.environ["RANK"] == {rank!r}: os.kill(os.{victim}(), signal.SIGKILL)
        time.sleep(0.02)
        return super().phases(step)

RUN = Run(progress=False, tracker="none")

def main(argv): return Trainer(Falls(), Points(), RECIPE, {out!r}, RUN).fit({steps}).code
if __name__ == "__main__": sys.exit(run_main(main))
"""


@pytest.mark.fault("F3")
@FULL
@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_launcher_names_who_was_killed(tmp_path, rank, figures):
    words = dict(root=str(ROOT), rank=rank, victim="getpid", steps=9, out=str(tmp_path / "run"))
    (tmp_path / "falls.py").write_text(KILLED.format(**words))
    command = [*LAUNCH, tmp_path / "falls.py"]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert f"process {rank} was ended by SIGKILL" in done.stderr
    figures(launched=1, named=1)


@pytest.mark.fault("F3")
@FULL
def test_processes_end_with_their_launcher_and_save(tmp_path, figures):
    "Killed outright, it can tell them nothing; the system does. Nothing holds the folder afterwards."
    steps, out = RECIPE.steps, tmp_path / "run"
    words = dict(root=str(ROOT), rank="1", victim="getppid", steps=steps, out=str(out))
    (tmp_path / "falls.py").write_text(KILLED.format(**words))
    command = [*LAUNCH, tmp_path / "falls.py"]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL and "Traceback" not in done.stderr, done.stderr
    saved = last_step(out)                             # its pipes are closed: nobody is left
    assert 5 <= saved < steps
    with locked(out): pass
    figures(launchers=1, saved=1)


# ---- readers

class Dying(torch.utils.data.Dataset):
    "Item `at` is the last that its reader fetches."
    def __init__(self, at: int, how: str, when: Shared): self.at, self.how, self.when = at, how, when
    def __len__(self): return 60

    def __getitem__(self, k):
        if k == self.at:
            self.when.value = time.time()
            if self.how == "SIGKILL": os.kill(os.getpid(), signal.SIGKILL)
            os._exit(137)                          # what a container says when memory has run out
        return k


@pytest.mark.fault("F11")
@pytest.mark.parametrize("deaths", [2, pytest.param(10, marks=FULL)])
def test_a_reader_that_dies_is_one_error_at_once(deaths, figures):
    rng, seconds = random.Random(1), []
    for n in range(deaths):
        when, how = Shared(), ("SIGKILL", "memory")[n % 2]
        at, workers = rng.randrange(60), rng.randrange(1, 3)
        loader = torch.utils.data.DataLoader(Dying(at, how, when), None, num_workers=workers)
        got = []
        with pytest.raises(VgnbError, match="a data worker died .*run the same command again") as e:
            for k in read_ahead(loader): got.append(k)
        seconds.append(time.time() - when.value)
        assert re.search(r"pid(\(s\))? \d+|exit code (-9|137)", str(e.value)), e.value
        assert got == list(range(len(got))) and len(got) <= at
    assert max(seconds) < 10
    figures(deaths=deaths, named=deaths, seconds=round(max(seconds), 2))


# ---- disks

def refuses(number: int, at: int):
    "A disk that answers the n-th wait for it with an error."
    calls = iter(range(10 ** 6))
    def fsync(path):
        if next(calls) >= at: raise OSError(number, os.strerror(number), str(path))
    core._fsync = fsync


def is_full(most: int):
    "No file may have more bytes."
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


DISKS = {
    "full at 700": lambda: is_full(700), "EIO at once": lambda: refuses(errno.EIO, 0),
    "full at 0": lambda: is_full(0), "full at 300": lambda: is_full(300), "full at 1500": lambda: is_full(1500),
    "full at 1000": lambda: is_full(1000), "EIO in the third": lambda: refuses(errno.EIO, 2),
    "ENOSPC in the fifth": lambda: refuses(errno.ENOSPC, 4), "EROFS": lambda: refuses(errno.EROFS, 0),
    "EDQUOT in the second": lambda: refuses(errno.EDQUOT, 1)}


@pytest.mark.fault("F8")
@pytest.mark.parametrize("disk", [d if not n else pytest.param(d, marks=FULL) for n, d in enumerate(DISKS)])
@pytest.mark.parametrize("how", ["stop", "warn"])
def test_a_disk_that_refuses_leaves_the_previous_checkpoint(tmp_path, disk, how, figures):
    "At step 12 it begins to; the save of step 15 is the first that meets it."
    train(tmp_path, until=10)
    class Filling(Pair):
        def phases(self, step):
            if step == 12: DISKS[disk]()
            return super().phases(step)

    def work(rank):
        with contextlib.redirect_stderr(io.StringIO()) as err:
            run = Run(save_every=5, progress=False, tracker="none", on_save_error=how)
            try: step = Trainer(Filling(), Points(), RECIPE, tmp_path, run).fit(20).step
            except VgnbError as e: return str(e)
            return step, err.getvalue()

    (found,) = on_many(1, work)
    if how == "stop": assert "could not be written" in found and "\n" not in found
    else:
        lines = found[1].splitlines()
        assert found[0] == 20 and all(line.startswith("warning: ") for line in lines), found
        assert any("could not be written" in line for line in lines), lines
    assert [p.name for p in checkpoints(saves(tmp_path))] == ["step-000000010"] and verify(newest(saves(tmp_path)))
    assert not list(saves(tmp_path).glob(".aside*"))
    figures(refusals=1, whole=1, left_over=0)


# ---- two at once

@pytest.mark.fault("F19")
@pytest.mark.parametrize("races", [1, pytest.param(20, marks=FULL)])
def test_of_two_that_go_on_at_once_one_is_refused(tmp_path, races, figures):
    "Both have waited at one line; the other is refused in the name of the one that runs."
    whole = tmp_path / "whole"
    train(whole, until=30)
    refused = 0
    for n in range(races):
        folder, line = tmp_path / str(n), os.pipe()
        train(folder, until=10)
        def work(named, folder=folder, line=line):
            os.close(line[1])
            os.read(line[0], 1)                          # until the line is open
            try: train(folder, slow=0.01, until=30)
            except Mismatch as e:
                named.value = int(re.search(r"is in use by process (\d+)", str(e))[1])
                return 2
            return 0

        named = [Shared(), Shared()]
        pids = [child(lambda mark=mark: work(mark)) for mark in named]
        for end in line: os.close(end)
        codes = [ended(pid) for pid in pids]
        assert sorted(codes) == [0, 2], codes
        refused += named[codes.index(2)].value == pids[codes.index(0)]
        assert result(folder) == result(whole)
    assert refused == races
    figures(races=races, refused=refused, mixed=0)


@pytest.mark.fault("F19")
def test_of_many_threads_one_owns_a_place(tmp_path):
    "The kernel lets a process in that is in already."
    line, found = threading.Barrier(8), []
    def come():
        line.wait()
        try:
            with locked(tmp_path):
                found.append("in")
                time.sleep(0.2)
        except Mismatch as e: found.append(str(e).partition(": ")[2])

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert sorted(found) == sorted(["in", *[f"is in use by this process ({os.getpid()})"] * 7])
    with locked(tmp_path): pass


@pytest.mark.fault("F19")
def test_an_owner_who_has_yet_to_write_its_name_is_waited_for(tmp_path):
    "Between the lock and the name in it lies a moment, long on a busy machine."
    line = os.pipe()
    def own():
        with open(tmp_path / "lock", "a+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            os.write(line[1], b"1")
            time.sleep(0.2)
            file.write("77 on another")
            file.flush()
            time.sleep(60)

    pid = child(own)
    os.read(line[0], 1)
    try:
        with pytest.raises(Mismatch, match="in use by process 77 on another"), locked(tmp_path): pass
    finally:
        os.kill(pid, signal.SIGKILL)
        ended(pid)
    with locked(tmp_path): assert (tmp_path / "lock").read_text().startswith(str(os.getpid()))


# ---- extraction and sampling

@pytest.mark.fault("F20")
@pytest.mark.parametrize("kills, count, shard", [(2, 640, 32), pytest.param(20, 12_000, 1000, marks=FULL)])
def test_an_extraction_that_is_killed_ends_with_the_same_bytes(tmp_path, pipe, kills, count, shard, figures):  # noqa: F811
    "Killed after so many pictures; a shard that was published is never made again."
    rng, read, batch = random.Random(0), Shared(), Shapes.batch
    augment = Augment("center", 32)
    def extract(folder):
        extract_codes(pipe.tokenizer, Shapes(count, 32), folder, augment, shard_size=shard, progress=False)

    def counted(source, ids):
        read.value += len(ids)
        return batch(source, ids)

    def work():
        torch.set_num_threads(1)
        Shapes.batch = counted
        extract(tmp_path / "killed")
        return 0

    def wait(n, is_over):
        enough = read.value + rng.uniform(0, 1.5 * shard)
        until(lambda: read.value >= enough or is_over(), 600)
        time.sleep(rng.uniform(0, 0.02))

    assert killed_until_done(work, kills, wait) == kills
    extract(tmp_path / "whole")
    files = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in (tmp_path / "whole", tmp_path / "killed")]
    assert files[0] == files[1] and len(files[0]) == count // shard + 2
    again = int(read.value) - count
    redone = -(-again // (shard + 64))                  # shards, and the batch that was read ahead of one
    assert redone <= kills
    figures(kills=kills, runs=1, identical=1, redone=redone)


@pytest.mark.fault("F21")
@pytest.mark.parametrize("kills, world", [(2, 1), pytest.param(20, 2, marks=FULL)])
def test_a_sampling_job_that_is_killed_ends_with_the_same_bytes(tmp_path, pipe, kills, world, figures):  # noqa: F811
    "Killed as soon as it has some parts more; a part that was published is never made again."
    rng, out = random.Random(0), tmp_path / "killed" / "s.npz"
    parts, log = out.with_name(".s.npz.parts"), tmp_path / "made.txt"
    def job(out): return Noting(pipe, planned_labels(40 * kills, 10), out, part=4, record=None).noting(log)

    def sample(rank):
        torch.set_num_threads(1)
        job(out).run(Processes() if world > 1 else None, progress=False)
        return "done"

    def work(): return 0 if on_many(world, sample) == ["done"] * world else 1

    def wait(n, is_over):
        enough = len(list(parts.glob("*.part"))) + rng.randrange(0, 5)
        until(lambda: len(list(parts.glob("*.part"))) >= enough or is_over(), 600)
        time.sleep(rng.uniform(0, 0.02))

    assert killed_until_done(work, kills, wait) == kills
    made = [int(line) for line in log.read_text().split()]
    job(tmp_path / "whole" / "s.npz").run(progress=False)
    assert out.read_bytes() == (tmp_path / "whole" / "s.npz").read_bytes()
    with np.load(out) as z: assert len(z["arr_0"]) == 40 * kills
    again = len(made) - len(set(made))
    assert set(made) == set(range(0, 40 * kills, 4)) and again <= world * kills
    figures(kills=kills, runs=1, identical=1, twice=0, parts_again=again)


class Noting(SampleJob):
    "Writes down which parts it makes."
    def noting(self, log: Path):
        self.log = log
        return self

    def make(self, start):
        with open(self.log, "a") as f: f.write(f"{start}\n")
        return super().make(start)


# ---- growth

def megabytes() -> float: return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
def open_files() -> int: return len(os.listdir("/proc/self/fd"))
def shared_memory() -> set[str]: return set(os.listdir("/dev/shm"))


def growth(sizes: list[float]) -> float:
    """MB between two entries of the later half, when what is kept for the next call is full.

    The median of slopes over a quarter: the allocator takes some memory at once, now and then.
    """
    later, over = np.array(sizes[len(sizes) // 2:]), len(sizes) // 4
    return float(np.median(later[over:] - later[:-over]) / over)


@pytest.mark.fault("F22")
@FULL
def test_four_thousand_steps_take_no_more_memory(tmp_path, figures):
    def work(rank):
        sizes, files = [], []
        def note(trainer):
            sizes.append(megabytes())
            files.append(open_files())
        recipe = replace(RECIPE, steps=4000)
        train(tmp_path, recipe=recipe, every=((100, note),), workers=2)
        return sizes, files

    ((sizes, files),) = on_many(1, work)
    more = min(files[20:]) - min(files[4:20])             # a checkpoint may be being written at any of them
    seen = f"{growth(sizes):.3f} MB, {more} files, {sizes}, {files}"
    assert len(sizes) == 40 and growth(sizes) < 0.1 and more <= 0, seen
    figures(steps=4000, megabytes_a_100=round(growth(sizes), 4), more_files=max(0, more), steps_mb=sizes)


@pytest.mark.fault("F22")
@FULL
def test_four_thousand_batches_of_samples_take_no_more_memory(pipe, figures):  # noqa: F811
    def work(rank):
        torch.set_num_threads(1)
        sizes, files = [], []
        for n in range(4000):
            pipe.sample([n % 10] * 4, seed=n)
            if n % 20 == 19:
                sizes.append(megabytes())
                files.append(open_files())
        return sizes, files

    ((sizes, files),) = on_many(1, work)
    seen = f"{growth(sizes) * 5:.3f} MB, {sizes[::10]}, {files[::10]}"
    assert growth(sizes) * 5 < 0.1 and files[5] == files[-1], seen
    figures(batches=4000, megabytes_a_100=round(growth(sizes) * 5, 4), more_files=0, batches_mb=sizes[4::5])


@pytest.mark.fault("F22")
@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=FULL)])
def test_killed_readers_leave_no_shared_memory(tmp_path, kills, figures):
    before, reached = shared_memory(), Shared()
    def note(trainer): reached.value = trainer.step
    def work(): return train(tmp_path, slow=0.01, every=((1, note),), workers=2)[0].code
    def wait(n, is_over):
        begun = reached.value
        until(lambda: reached.value > begun + 5 or is_over())
    for n in range(kills):
        pid = group(work)
        wait(n, lambda pid=pid: has_ended(pid))
        os.killpg(pid, signal.SIGKILL)
        assert ended(pid) == -9
    left = shared_memory() - before
    assert not left
    figures(killed_readers=2 * kills, shared_left=len(left))
