"A run goes on with another number of processes: the same examples in every step, the same state but for rounding."
import math
import shutil
from pathlib import Path

import pytest
import torch

from tests.forked import on_many
from tests.players_on_many import RECIPE, Players
from tests.toy_training import Points
from vgnb.processes import Processes
from vgnb.training.checkpoints import newest, read_checkpoint
from vgnb.training.feed import Feed, Share, stream
from vgnb.training.run_folder import Run
from vgnb.training.trackers import read_log
from vgnb.training.trainer import Trainer

pytestmark = pytest.mark.fault
A_STEP = 1e-6      # relative error of a step in fp32; only the order of its sums differs


def order(share: Share, workers: int, steps: int) -> dict[int, list]:
    "{row of the run: (example, epoch, its noisy value to the bit)} of one process, by its loader."
    feed, found = Feed(Points(), 24, 0, share), {}
    for k, (index, epochs, batch) in enumerate(stream(feed, 0, steps, workers)):
        step, micro = divmod(k, share.accumulate)
        first = step * 24 + share.rows(24, micro).start
        rows = zip(index.tolist(), epochs.tolist(), batch["x"].flatten().tolist(), strict=True)
        found |= {first + i: (example, epoch, x.hex()) for i, (example, epoch, x) in enumerate(rows)}
    return found


EVERY_WAY = [(world, workers, accumulate) for world in (1, 2, 3, 4) for workers in (0, 1, 3) for accumulate in (1, 2)]


@pytest.mark.fault("F5")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("ways", [[(2, 0, 2), (1, 1, 1), (4, 0, 1)], pytest.param(EVERY_WAY, marks=pytest.mark.full)],
                         ids=len)
def test_examples_come_in_one_order_however_they_are_read(ways, figures):
    "Over the end of an epoch: which example, and what was drawn for it."
    steps = 12
    whole = order(Share(), 0, steps)
    assert list(whole) == list(range(24 * steps)) and {epoch for _, epoch, _ in whole.values()} == {0, 1}
    for world, workers, accumulate in ways:
        parts = [order(Share(rank, world, accumulate), workers, steps) for rank in range(world)]
        assert sum(map(len, parts)) == len(whole)
        assert {row: what for part in parts for row, what in part.items()} == whole, (world, workers, accumulate)
    figures(configurations=len(ways), same=len(ways))


class Noted(Players):
    "Players that write down what they see: step, example, its noisy value to the bit."
    def __init__(self, processes, folder: Path):
        super().__init__(processes)
        self.file = folder / f"seen-{processes.rank}.txt"

    def loss(self, phase, batch, carry, draws, at):
        if phase.name == "net":
            rows = zip(at.ids.flatten().tolist(), batch["x"].flatten().tolist())
            with open(self.file, "a") as f: f.writelines(f"{at.step} {i} {x.hex()}\n" for i, x in rows)
        return super().loss(phase, batch, carry, draws, at)


def sitting(folder: Path, world: int, until: int | None = None):
    "Go on with a run on `world` processes."
    folder.mkdir(exist_ok=True)
    def work(rank):
        torch.set_num_threads(1)
        run = Run(save_every=8, log_every=1, progress=False, accumulate=2)
        return Trainer(Noted(Processes(), folder), Points(), RECIPE, folder, run).fit(until).step
    assert on_many(world, work) == [until or RECIPE.steps] * world


def seen(folder: Path) -> list[tuple]:
    "(step, example, value) of all processes, in order."
    lines = (line.split() for file in folder.glob("seen-*.txt") for line in file.read_text().splitlines())
    return sorted((int(step), int(i), x) for step, i, x in lines)


def distance(a: Path, b: Path) -> float:
    "Of two runs' newest checkpoints: the largest relative distance of a file's tensors."
    files, others = (read_checkpoint(newest(folder / "checkpoints"))[0] for folder in (a, b))
    assert files.keys() == others.keys() and len(files) == 5
    def norm(tensors): return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))
    return max(norm(t - others[f][k] for k, t in files[f].items()) / norm(others[f].values()) for f in files)


def one_step_apart(begun: Path, room: Path, worlds: tuple[int, ...]) -> dict[int, float]:
    "How far a step on each of `worlds` is from that of one process; both go on from the run in `begun`."
    step = int(newest(begun / "checkpoints").name[-9:]) + 1
    for world in {1, *worlds}:
        shutil.copytree(begun, room / f"step-on-{world}")
        sitting(room / f"step-on-{world}", world, step)
    return {world: distance(room / f"step-on-{world}", room / "step-on-1") for world in worlds}


@pytest.mark.fault("F6")
@pytest.mark.parametrize("worlds", [(2, 1), pytest.param((2, 1, 4, 3), marks=pytest.mark.full)], ids=str)
def test_another_number_of_processes_goes_on(tmp_path, figures, worlds):
    "Sixteen steps on one process, and in sittings of other worlds; two players, micro-batches, an unused table."
    sitting(tmp_path / "whole", 1)
    for k, world in enumerate(worlds, 1):
        sitting(tmp_path / "elastic", world, RECIPE.steps * k // len(worlds))
        if k == 1: shutil.copytree(tmp_path / "elastic", tmp_path / "begun")
    assert seen(tmp_path / "elastic") == seen(tmp_path / "whole")
    assert len(seen(tmp_path / "whole")) == RECIPE.steps * RECIPE.batch

    apart = one_step_apart(tmp_path / "begun", tmp_path, worlds)
    assert 0 <= max(apart.values()) <= A_STEP, apart
    assert distance(tmp_path / "elastic", tmp_path / "whole") <= RECIPE.steps * A_STEP
    logs = [{line["step"]: line["net.loss"] for line in read_log(tmp_path / name / "log.jsonl")}
            for name in ("elastic", "whole")]
    assert logs[0].keys() == logs[1].keys() == set(range(1, RECIPE.steps + 1))
    for step, loss in logs[0].items(): assert loss == pytest.approx(logs[1][step], rel=step * A_STEP), step
    losses = max(abs(loss / logs[1][step] - 1) for step, loss in logs[0].items())
    figures(worlds=len(worlds), same_order=len(worlds), a_step=max(apart.values()), losses=losses)
    assert distance(tmp_path / "begun", tmp_path / "whole") > 1000 * A_STEP                       # it would be seen
