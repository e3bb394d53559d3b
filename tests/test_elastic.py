"""A run goes on with another number of processes: the same examples in every step, the same state but for rounding.

With `exact` it is the same state, to the bit.
"""
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.forked import on_many
from tests.players_on_many import RECIPE, Players
from tests.toy_training import Points
from tests.train_on_two import generator_recipe, tokenizer_recipe, write_codes
from vgnb.core import BadInput, Mismatch, digest
from vgnb.kinds import changed, to_json
from vgnb.processes import Processes
from vgnb.tokenizers.codebook_updates import Anchors, Ema
from vgnb.training.checkpoints import newest, read_checkpoint
from vgnb.training.commands import TrainOptions, build
from vgnb.training.exact import _repeatable, check_exact
from vgnb.training.feed import Feed, Share, stream
from vgnb.training.recipes import Recipe, check_same
from vgnb.training.run_folder import Run
from vgnb.training.sharded import Sharding
from vgnb.training.trackers import read_log
from vgnb.training.trainer import Trainer

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


def exact_sittings(recipe: Recipe, folder: Path, worlds: tuple[int, ...]) -> dict:
    "Train a recipe in equal sittings on `worlds` processes; {what a checkpoint and the log hold: sha256}."
    for k, world in enumerate(worlds, 1):
        until = recipe.steps * k // len(worlds)
        def work(rank, until=until):
            torch.set_num_threads(1)
            _, task, data = build(TrainOptions(recipe, folder))
            return Trainer(task, data, recipe, folder, Run(progress=False, log_every=1)).fit(until).step
        assert on_many(world, work) == [until] * world
    files, state = read_checkpoint(newest(folder / "checkpoints"))
    told = [{k: v for k, v in line.items() if k != "per_second"} for line in read_log(folder / "log.jsonl")]
    assert len(told) == recipe.steps and all(line["skipped"] == 0 for line in told)
    return {file: digest(tensors) for file, tensors in files.items()} | {"guard": state["guard"], "log": told}


def test_two_processes_are_one_where_they_are_exact(tmp_path):
    "A generator, four micro-batches, on one process and on two: weights, memories, averages and log, to the bit."
    write_codes(tmp_path / "codes")
    recipe = generator_recipe(tmp_path / "codes", exact=4)
    recipe = replace(recipe, steps=2, model=replace(recipe.model, layers=1), optim=replace(recipe.optim, clip=0.1))
    one, two = (exact_sittings(recipe, tmp_path / str(world), (world,)) for world in (1, 2))
    assert one == two and {"model.generator", "optim.generator", "ema.generator"} < one.keys()
    assert one["log"][-1]["norm.generator"] > 0.1                                        # clipping was at work


def moved_by_means(recipe):
    "The tokenizer's table by means and anchors instead of gradients, which one of them draws."
    updates = (Ema(0.9), Anchors("multinomial"))
    return replace(recipe, model=changed(recipe.model, quantizer=dict(updates=updates, vq=0.0)))


def with_critic(recipe, **loss):
    "A discriminator with batch norms from the third step on, balanced by its gradient."
    return replace(recipe, batch=24, steps=8, free_steps=1,
                   loss=replace(recipe.loss, gan=0.5, start=3, depth=1, adaptive=True, **loss))


def the_generator(folder: Path, precision: str) -> Recipe:
    write_codes(folder)
    return replace(generator_recipe(folder, exact=8), steps=8, precision=precision)


EXACT = {
    "generator": lambda folder: the_generator(folder, "fp32"),
    "generator in bf16": lambda folder: the_generator(folder, "bf16"),
    "tokenizer, revived": lambda folder: with_critic(tokenizer_recipe(exact=8)),
    "tokenizer, by means": lambda folder: moved_by_means(with_critic(tokenizer_recipe(exact=8), r1=0.1)),
}


@pytest.mark.full
@pytest.mark.fault("F6")
@pytest.mark.parametrize("name", EXACT)
def test_exact_runs_end_with_the_same_bits_on_any_number_of_processes(tmp_path, name):
    "On one, and two steps each on two, one, four, three; all that a checkpoint holds, and the log."
    recipe = EXACT[name](tmp_path / "codes")
    whole = exact_sittings(recipe, tmp_path / "whole", (1,))
    assert exact_sittings(recipe, tmp_path / "elastic", (2, 1, 4, 3)) == whole
    other = exact_sittings(replace(recipe, exact=4), tmp_path / "other", (1,))
    assert all(other[file] != whole[file] for file in whole if file.startswith("model."))     # it would be seen


class Streamed(Points):
    "The points, front to back."
    streaming = True
    def items(self, epoch, seed, rank, world):
        return (type("Item", (), {"id": i}) for i in range(rank, 240, world))
    def collate(self, items, epochs, draws): return self.fetch([i.id for i in items], epochs, draws)


@pytest.mark.parametrize("kind", [Points, Streamed])
def test_exact_micro_batches_hold_the_same_examples_whoever_reads_them(kind):
    "Eight micro-batches of three, by one to eight processes; every process has neighbours."
    def read(world):
        found = {}
        for rank in range(world):
            share = Share(rank, world, exact=8)
            for k, (index, epochs, _) in enumerate(stream(Feed(kind(), 24, 0, share), 9, 12)):
                step, micro = divmod(k, len(share.own))
                found[step, share.chunk(micro)] = (index.tolist(), epochs.tolist())
        return found

    whole = read(1)
    assert len(whole) == 3 * 8 and len({i for index, _ in whole.values() for i in index}) > 24
    for world in range(2, 9): assert read(world) == whole, world


def begun(folder: Path, **options) -> Trainer:
    recipe = replace(RECIPE, **{k: options.pop(k) for k in ("exact", "batch") if k in options})
    return Trainer(Players(Processes()), Points(), recipe, folder, Run(progress=False, **options))


def test_what_can_not_be_exact_is_refused_by_its_name(tmp_path):
    cases = {
        "exact=-1: must be": dict(exact=-1),
        "batch=24: must be a multiple of exact=5": dict(exact=5),
        "accumulate=2: must be 1 with exact=8": dict(exact=8, accumulate=2),
        "compile=True: must be False with exact=8": dict(exact=8, compile=True)}
    for message, options in cases.items():
        with pytest.raises(BadInput, match=message): begun(tmp_path, **options)
    with pytest.raises(BadInput, match="exact=2: must be at least 3, one for each process"):
        Share(0, 3, exact=2).check(24)
    with pytest.raises(BadInput, match="exact=8: must be 0 where weights are shared out"):
        check_exact(replace(RECIPE, exact=8), Run(), Sharding(2))


def test_a_run_keeps_its_number_of_micro_batches(tmp_path):
    "Another one, none, and one where there was none."
    begun(tmp_path, exact=8).fit(1)
    for exact in (4, 0):
        with pytest.raises(Mismatch, match=f"exact={exact}: the run in .* was started with 8"):
            begun(tmp_path, exact=exact).fit(2)
    with pytest.raises(Mismatch, match="exact=8: the run in checkpoint was started with 0"):
        check_same(to_json(RECIPE), replace(RECIPE, exact=8))


def test_an_exact_step_leaves_torch_as_it_was():
    "Who asked for warnings only has them again."
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with _repeatable(): assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally: torch.use_deterministic_algorithms(False)
