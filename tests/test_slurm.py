"""The template for slurm, with stand-ins for the cluster's commands: what is started, how each kind of end is taken."""
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "scripts/slurm/run.sbatch"
TRAIN = ["scripts/train_generator.py", "gpt-b"]

# Notes its words and the signal that reaches it; what the template runs on the nodes itself is run. `code` is what the
# launched script leaves with: by itself, or once it is told.
SRUN = """#!/bin/bash
for word; do
    [ "$word" = bash ] && {{ while [ "$1" != bash ]; do shift; done; exec "$@"; }}
done
trap 'echo came > {tmp}/signal; exit {code}' TERM
echo "$@" > {tmp}/words
for i in $(seq {tenths}); do sleep 0.1; done
exit {code}
"""
SCONTROL = """#!/bin/bash
[ $1 = show ] && echo node1 || echo "$@" > {tmp}/queued
"""


def started(tmp: Path, code: int, waits: bool, *words: str, **env: str) -> subprocess.Popen:
    "The template as slurm would run it, in a place of its own."
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp / name).write_text(text.format(tmp=tmp, code=code, tenths=200 if waits else 1))
        (tmp / name).chmod(0o755)
    env = {"PATH": f"{tmp}:{os.environ['PATH']}", "SLURM_JOB_ID": "12", "SLURM_GPUS_ON_NODE": "4", "SLURM_NNODES": "2",
           "SLURM_SUBMIT_DIR": str(tmp), **env}
    return subprocess.Popen(["bash", str(TEMPLATE), *TRAIN, *words], env=env, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen, tmp: Path, told: int) -> tuple[int, bool, str]:
    "(exit code, whether it is queued again, what it said), after a signal if one is asked for."
    for _ in range(400):
        if not told or (tmp / "words").exists(): break
        time.sleep(0.05)
    if told: process.send_signal(told)
    out, err = process.communicate(timeout=60)
    return process.returncode, (tmp / "queued").exists(), out + err


ENDS = {                                       # (signal, the script's code) -> (the job's code, queued again)
    "done": (0, 0, 0, False),
    "failed": (0, 7, 7, False),
    "named": (0, 2, 2, False),
    "interrupted": (0, 75, 0, True),           # a process was told, the batch shell was not
    "limit": (signal.SIGUSR1, 75, 0, True),
    "taken back": (signal.SIGTERM, 75, 0, True),
    "another launcher": (signal.SIGUSR1, 1, 0, True),       # which turns 75 into 1
    "done in time": (signal.SIGUSR1, 0, 0, False),
    "named when told": (signal.SIGTERM, 2, 2, False)}


@pytest.mark.parametrize("told, left, code, queued", ENDS.values(), ids=ENDS)
def test_ends(tmp_path, told, left, code, queued):
    found = ended(started(tmp_path, left, bool(told)), tmp_path, told)
    assert found[:2] == (code, queued), found
    assert (tmp_path / "signal").exists() == bool(told)
    words = (tmp_path / "words").read_text()
    assert "--nnodes 2 --nproc_per_node 4 --rdzv_endpoint node1:20012" in words
    assert words.strip().endswith(" ".join(TRAIN))
    if queued: assert (tmp_path / "queued").read_text() == "requeue 12\n"


def test_a_job_is_not_queued_for_ever(tmp_path):
    found = ended(started(tmp_path, 75, False, SLURM_RESTART_COUNT="3", RESTARTS="3"), tmp_path, 0)
    assert found[:2] == (75, False) and "RESTARTS" in found[2], found


def test_data_is_copied_to_the_node_once(tmp_path):
    "Words that name it are replaced by the copy's place; what is there is not copied again."
    shared, disk = tmp_path / "shared" / "my codes", tmp_path / "disk"
    shared.mkdir(parents=True)
    (shared / "a").write_text("1")
    for _ in range(2):
        run = started(tmp_path, 0, False, "--data", str(shared), COPY=str(shared), COPY_TO=str(disk))
        assert ended(run, tmp_path, 0)[0] == 0
        assert (tmp_path / "words").read_text().strip().endswith(f"--data {disk}/my codes")
        assert (disk / "my codes/a").read_text() == "1"
        (shared / "a").write_text("2")

    run = started(tmp_path, 0, False, COPY=str(tmp_path / "nowhere"), COPY_TO=str(disk))
    code, _, said = ended(run, tmp_path, 0)
    assert code == 2 and "COPY=" in said and not list(disk.glob("*.part")), said


def test_lines_of_the_cluster_are_marked():
    "Whoever adapts the template finds them by one word; the shell takes all of it."
    text = TEMPLATE.read_text()
    assert subprocess.run(["bash", "-n", str(TEMPLATE)]).returncode == 0
    lines = "--gpus-per-node=", "--cpus-per-task=64", "--time=", "--partition=", "container=(--container", "COPY_TO="
    for word in lines:
        assert any(word in line and "# site" in line for line in text.splitlines()), word
