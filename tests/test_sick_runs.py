"A step with a number that is none changes nothing, and a run that is beyond help says so and keeps what was good."
import contextlib
import errno
import importlib.util
import io
import json
import math
import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

import vgnb.core
import vgnb.progress
import vgnb.saved
from tests.forked import on_two
from tests.toy_training import RECIPE, Pair, Points, saves
from tests.train_on_two import generator_recipe, tokenizer_recipe, write_codes
from vgnb.cli import run_main
from vgnb.core import BadInput, Mismatch, VgnbError, save_json, write_aside
from vgnb.draws import At
from vgnb.generators.generator import Loss
from vgnb.processes import Processes
from vgnb.saved import load_model, load_tensors, save_model, save_tensors
from vgnb.tokenizers.objectives import Phase
from vgnb.tokenizers.quantizers import Quantizer, Revive, UsageMeter, VectorConfig, VectorQuantizer
from vgnb.tokenizers.tokenizer import Quantized
from vgnb.tokenizers.vqgan import VQGAN
from vgnb.training.checkpoints import best, checkpoints, newest, optimizer_tensors, write_checkpoint
from vgnb.training.commands import build_generator, build_tokenizer
from vgnb.training.feed import Share
from vgnb.training.recipes import Rate, Recipe, rate_at
from vgnb.training.run_folder import Run, RunFolder
from vgnb.training.run_page import run_facts, run_page, status_line
from vgnb.training.step import Stepper, TrainState
from vgnb.training.tasks import Task
from vgnb.training.trackers import JsonLines, damaged_lines, read_log
from vgnb.training.trainer import Trainer
from vgnb.views.board import board

ROOT = Path(__file__).resolve().parents[1]
QUIET = dict(progress=False, tracker="none")


# ---- a skipped step changes nothing

class Moving(Quantizer):
    "A codebook that follows its features without a gradient, in a buffer: a later tokenizer's."
    def __init__(self):
        super().__init__((8,), 4, UsageMeter(8, 64))
        self.register_buffer("rows", torch.randn(8, 4))
        self.register_buffer("seen", torch.zeros(8), persistent=False)

    def lookup(self, codes): return self.rows[codes]

    def forward(self, z, draws=None, at=None, learn=True):
        codes = torch.cdist(z.detach(), self.rows).argmin(1)
        self.update(z.detach(), codes, draws, at)
        self.seen = self.seen + torch.bincount(codes, minlength=8)          # another tensor under the same name
        self.rows.data[codes] = 0.9 * self.rows[codes] + 0.1 * z.detach()   # behind autograd's back
        return Quantized(z, codes, {})


class Game(Task):
    "Two players with every kind of memory: batch norms, a codebook that revives, one that moves, a mask."
    again_noted = 0
    def __init__(self, poison=lambda *at: 1.0):
        torch.manual_seed(0)
        table = VectorQuantizer(VectorConfig(codebook=16, dim=4, usage=64, updates=(Revive(2),)))
        net = nn.ModuleDict({"enter": nn.Linear(1, 4), "norm": nn.BatchNorm1d(4), "table": table, "moving": Moving(),
                             "leave": nn.Linear(4, 1)})
        net.register_buffer("mask", torch.tensor([0.0, -math.inf]))
        critic = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        self.modules = {"net": net, "critic": critic}
        self.poison = poison

    def averaged(self): return ("net", "critic")
    def phases(self, step): return (Phase.of("net", "net"), Phase.of("critic", "critic"))
    def once(self, step): return step == 1

    def prepare(self, step, batches, draws, sync):
        if self.once(step) or self.again:
            self.again_noted += 1
            with torch.no_grad(): self.modules["net"]["table"].table.fill_(1 / (1 + self.again_noted))

    def loss(self, phase, batch, carry, draws, at):
        def bad(where): return self.poison(where, phase.name, at, batch)
        if phase.name == "critic":
            made = self.modules["critic"](carry["out"].detach() * bad("forward"))
            return self.ended(made.square().mean(), bad)

        net = self.modules["net"]
        z = net["norm"](net["enter"](batch["x"] * bad("forward")))
        found = net["table"](z[..., None], draws, at)
        z = net["moving"](found.z[..., 0] + 0 * z).z
        if bad("buffer") != 1: net["norm"].running_mean.data[0] = bad("buffer")       # and the loss is fine
        carry["out"] = net["leave"](z)
        return self.ended((carry["out"] - batch["y"]).square().mean() + sum(found.losses.values()), bad)

    def ended(self, loss, bad):
        if bad("gradient") != 1: loss.register_hook(lambda g: g * bad("gradient"))
        return Loss(loss * bad("loss"), {})


def everything(state) -> dict[str, bytes]:
    "What training changes, to the bit."
    found = {}
    for m, module in state.task.modules.items():
        found |= {f"{m}.{k}": t for k, t in (*module.named_parameters(), *module.named_buffers())}
    for m, ema in state.averages.items(): found |= {f"ema.{m}.{k}": t for k, t in ema.shadow.items()}
    for g, named in state.groups.items():
        found |= {f"optim.{g}.{k}": t for k, t in optimizer_tensors(state.optimizers[g], named).items()}
    return {k: t.detach().clone().contiguous().numpy().tobytes() for k, t in found.items()}


GAME = Recipe(steps=20, batch=16, precision="fp32", ema=0.9)


def micros(step: int, count: int, rank: int = 0):
    "A process's micro-batches."
    out = []
    for k in range(count):
        ids = torch.arange(8) + 8 * (2 * k + rank)
        x = torch.randn(8, 1, generator=torch.Generator().manual_seed(100 * step + 2 * k + rank))
        out.append((At(ids, step=step), {"x": x, "y": x.sin()}))
    return out


def stepper_for(task, count=1, recipe=GAME):
    processes = Processes()
    return Stepper(TrainState(task, recipe, processes), Share(processes.rank, processes.world, count))


def poisoned(where, player, value, step=3, first=0):
    "A poison for one player at one step, in the micro-batch that begins with id `first`."
    def poison(asked, phase, at, batch):
        return value if (asked, phase, at.step, int(at.ids[0])) == (where, player, step, first) else 1.0
    return poison


@pytest.mark.parametrize("where, player, value, micro", [
    ("forward", "net", math.nan, 0),
    ("forward", "net", math.inf, 1),
    ("loss", "net", math.nan, 1),
    ("gradient", "net", math.inf, 0),
    ("buffer", "net", math.nan, 0),
    ("buffer", "net", math.inf, 1),
    ("forward", "critic", math.nan, 1),
    ("loss", "critic", -math.inf, 0),
    ("gradient", "critic", math.nan, 1)])
def test_a_skipped_step_changes_nothing(where, player, value, micro):
    "Step 3 is due for a revival; what follows is as good as ever."
    task = Game(poisoned(where, player, value, first=16 * micro))
    stepper = stepper_for(task, count=2)
    for step in range(3): stepper(step, micros(step, 2))
    before = everything(stepper.state)
    stepper(3, micros(3, 2))
    after = everything(stepper.state)
    assert [k for k in before if before[k] != after[k]] == [] and before.keys() == after.keys()
    assert stepper.state.guard.numbers()["skipped"] == 1

    stepper(4, micros(4, 2))
    moved = everything(stepper.state)
    assert all(moved[k] != before[k] for k in ("net.norm.running_mean", "net.moving.rows", "net.enter.weight",
                                               "critic.1.running_var", "ema.critic.0.weight", "net.table.usage.recent"))
    assert stepper.state.not_finite(stepper.state.files()) is None


def test_what_is_prepared_once_is_prepared_again_after_a_skip():
    "Also by a run that goes on amid the skipped steps."
    task = Game(lambda where, phase, at, batch: math.nan if at.step in (1, 2) and where == "loss" else 1.0)
    stepper = stepper_for(task)
    for step in range(3): stepper(step, micros(step, 1))
    assert task.again_noted == 2

    resumed = Stepper(stepper.state)
    for step in range(3, 5): resumed(step, micros(step, 1))
    assert task.again_noted == 3


def test_fine_steps_are_those_of_the_plain_loop():
    "Weights and averages after four steps of two players, as written down by hand."
    task, by_hand = Pair(), Pair()
    for t in (task, by_hand): t.modules["net"][3].p = 0.0                     # no dropout
    recipe = replace(RECIPE, rate=Rate(), ema=0.5)
    stepper = Stepper(TrainState(task, recipe, Processes()))
    kept = {k: v.clone() for k, v in by_hand.modules["net"].state_dict().items()}
    options = dict(lr=1e-2, betas=recipe.optim.betas, weight_decay=0, fused=True)
    def groups(module):
        return [dict(params=[p for p in module.parameters() if p.dim() > 1], weight_decay=0.1),
                dict(params=[p for p in module.parameters() if p.dim() == 1])]
    optimizers = {m: torch.optim.AdamW(groups(module), **options) for m, module in by_hand.modules.items()}
    for step in range(4):
        stepper(step, micros(step, 1))
        (at, batch), carry = micros(step, 1)[0], {}
        for phase in by_hand.phases(step):
            optimizers[phase.name].zero_grad()
            by_hand.loss(phase, batch, carry, stepper.draws, at).total.backward()
            nn.utils.clip_grad_norm_(by_hand.modules[phase.name].parameters(), 1.0)
            optimizers[phase.name].step()
        for k, v in by_hand.modules["net"].state_dict().items():
            kept[k] = kept[k].lerp(v, 0.5) if v.is_floating_point() else v.clone()
    for m, module in task.modules.items():
        for k, v in module.state_dict().items(): torch.testing.assert_close(v, by_hand.modules[m].state_dict()[k])
    for k, v in stepper.state.averages["net"].state().items(): torch.testing.assert_close(v, kept[k])


def test_a_real_tokenizer_due_for_revival(tmp_path):
    "NaN among the features of one picture, in the step that revives and the one that sets the codebook."
    r = tokenizer_recipe()
    r = replace(r, loss=replace(r.loss, gan=0.1, start=0), batch=4, free_steps=2)
    task, data = build_tokenizer(r, tmp_path)
    poison = set()
    def spoil(module, args, out):
        if now in poison: out.view(-1)[0] = math.nan
        return out
    task.modules["tokenizer"].to_code.register_forward_hook(spoil)
    stepper = stepper_for(task, recipe=r)
    images = data.fetch(range(4), torch.zeros(4).numpy(), stepper.draws)

    def take(step):
        nonlocal now
        now = step
        stepper(step, [(At(torch.arange(4), step=step), images)])
    now = 0
    for step in (0, 1): take(step)
    for step in (2, 4):
        poison.add(step)
        before = everything(stepper.state)
        take(step)
        assert everything(stepper.state) == before
        table = task.modules["tokenizer"].quantizer.table.detach().clone()
        take(step + 1)
        if step == 2: assert not torch.allclose(table, task.modules["tokenizer"].quantizer.table, atol=1e-2)   # k-means
    assert stepper.state.guard.numbers() == {"skipped": 2, "streak": 0, "good": 1, "scale": 1}


@pytest.mark.fault("F12")
def test_one_process_of_two_is_enough():
    "The poison is on the second process only, in each player's part; both agree, and keep what they had."
    cases = [("forward", "net"), ("gradient", "critic"), ("buffer", "net")]
    def work(rank):
        def poison(asked, phase, at, batch):
            step = at.step - 3
            bad = rank == 1 and 0 <= step < 3 and cases[step] == (asked, phase)
            return math.nan if bad else 1.0
        stepper = stepper_for(Game(poison))
        for step in range(3): stepper(step, micros(step, 1, rank))
        before = everything(stepper.state)
        kept = []
        for step in range(3, 6):
            stepper(step, micros(step, 1, rank))
            kept.append(everything(stepper.state) == before)
        stepper(6, micros(6, 1, rank))
        after = everything(stepper.state)
        return kept, stepper.state.guard.numbers()["skipped"], after["net.enter.weight"], after == before

    one, two = on_two(work)
    assert one[:2] == two[:2] == ([True] * 3, 3), (one, two)
    assert one[2] == two[2] and not one[3] and not two[3]


SPIKE = 1e6
POISONS = ("nan", "inf", "spike")


@pytest.mark.fault("F12")
def test_twenty_poisons_are_skipped_by_both_processes(figures):
    "At twenty random (step, process, player), NaN, Inf or a loss a million times as large: nothing changes anywhere."
    rng = random.Random(0)
    steps = sorted(rng.sample(range(1, 60), 20))
    cases = {step: (rng.randrange(2), rng.choice(("net", "critic")), rng.choice(POISONS)) for step in steps}
    values = {"nan": math.nan, "inf": math.inf, "spike": SPIKE}
    recipe = replace(GAME, optim=replace(GAME.optim, skip_norm=1e3))
    def work(rank):
        def poison(asked, phase, at, batch):
            who, player, what = cases.get(at.step, (None, None, None))
            return values[what] if (asked, phase, rank) == ("loss", player, who) else 1.0
        stepper, same, skipped = stepper_for(Game(poison), recipe=recipe), [], []
        for step in range(61):
            before = everything(stepper.state)
            stepper(step, micros(step, 1, rank))
            same.append(everything(stepper.state) == before)
            skipped.append(stepper.state.guard.numbers()["skipped"])
        return same, skipped

    one, two = on_two(work)
    assert one == two
    assert [step for step, same in enumerate(one[0]) if same] == steps
    assert one[1] == [sum(step <= now for step in steps) for now in range(61)]
    figures(poisons=20, agreed=20, untouched=20)


# ---- a sick run ends sick

class Poisoned(Pair):
    "The loss of some steps is not a number."
    def __init__(self, when):
        super().__init__()
        self.when = when

    def loss(self, phase, batch, carry, draws, at):
        found = super().loss(phase, batch, carry, draws, at)
        return Loss(found.total * (math.nan if at.step in self.when else 1.0), found.parts)


def sick_trainer(folder, when=(), steps=40, data=None, **run):
    return Trainer(Poisoned(when), data or Points(), replace(RECIPE, steps=steps), folder, Run(**{**QUIET, **run}))


def steps_in(folder) -> list[int]: return [int(p.name[-9:]) for p in checkpoints(saves(folder))]


@pytest.mark.fault("F12")
def test_good_checkpoints_outlive_a_streak(tmp_path):
    run = dict(save_every=2, max_skips=9)
    with pytest.raises(VgnbError, match="step 22: 9 steps in a row .*healthy checkpoint is .*step-000000012"):
        sick_trainer(tmp_path, range(13, 99), **run).fit()
    assert steps_in(tmp_path) == [12, 10]
    again = sick_trainer(tmp_path, **run)
    assert again.fit().finished and again.state.guard.numbers()["skipped"] == 0


def test_a_checkpoint_that_fell_due_amid_skips_comes_after_them(tmp_path):
    sick_trainer(tmp_path, (9, 10), save_every=10, steps=18, keep_last=3).fit()
    assert steps_in(tmp_path) == [18, 12]


def test_a_session_that_ends_amid_skips_leaves_the_healthy_one_to_go_on_from(tmp_path):
    for until in (10, 20, 22, 24): sick_trainer(tmp_path, range(14, 99), save_every=10).fit(until)
    assert 10 in steps_in(tmp_path) and best(saves(tmp_path), lambda reason: None).name.endswith("010")
    whole = sick_trainer(tmp_path / "whole", save_every=10)
    whole.fit()
    again = sick_trainer(tmp_path, save_every=10)
    again.fit()
    assert everything(again.state) == everything(whole.state)


@pytest.mark.parametrize("when, code, words", [
    ((39,), 0, ""),
    (range(36, 40), 2, "4 steps in a row were skipped for numbers that are not finite"),
    ((), 0, "")])
def test_how_a_recipe_ends(tmp_path, when, code, words):
    with contextlib.redirect_stderr(io.StringIO()) as err:
        assert run_main(lambda argv: sick_trainer(tmp_path, when).fit().code, []) == code
    assert words in err.getvalue() and err.getvalue().count("\n") == bool(code)


class Explodes(Pair):
    "After step 5 a weight is infinite, though every gradient was fine."
    def phases(self, step):
        with torch.no_grad():
            if step == 6: self.modules["critic"].weight.fill_(math.inf)
        return super().phases(step)[:1] if step >= 5 else super().phases(step)


def test_a_run_that_ends_with_a_weight_that_is_none_says_which(tmp_path):
    trainer = Trainer(Explodes(), Points(), replace(RECIPE, steps=8), tmp_path, Run(save_every=4, **QUIET))
    with pytest.raises(VgnbError, match="step 8: weight of model.critic is not finite; the last .*step-000000004"):
        trainer.fit()
    assert steps_in(tmp_path) == [4]


@pytest.fixture
def generator(tmp_path):
    write_codes(tmp_path / "codes")
    r, task, _ = build_generator(generator_recipe(tmp_path / "codes"))
    return task.modules["generator"], r.model


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_model_with_such_a_weight_is_neither_written_nor_opened(tmp_path, generator, monkeypatch, value):
    model, config = generator
    with torch.no_grad(): next(iter(model.parameters())).view(-1)[3] = value
    name = next(iter(dict(model.named_parameters())))
    with pytest.raises(BadInput, match=f"finite.*{name}"): save_model(tmp_path / "m", model, config)
    good = {k: torch.zeros_like(v) for k, v in model.state_dict().items()}
    with pytest.raises(BadInput, match="finite"): save_model(tmp_path / "m", model, config, ema=good)
    assert not (tmp_path / "m").exists()

    with monkeypatch.context() as careless:
        careless.setattr(vgnb.saved, "check_finite", lambda *a: None)
        save_model(tmp_path / "m", model, config, ema=good)
    load_model(tmp_path / "m")                                               # its averages are fine
    with pytest.raises(BadInput, match=f"model.safetensors: must hold finite numbers; {name}"):
        load_model(tmp_path / "m", ema=False)


def main_of(name):
    "A script's `main`."
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize("words", [
    "extract_codes --tokenizer {tmp}/t --data shapes://?n=8 --size 32 --out {tmp}/made",
    "sample --tokenizer {tmp}/t --generator {tmp}/g --count 2 --out {tmp}/s.npz"])
def test_scripts_refuse_it_in_one_line(tmp_path, generator, monkeypatch, words):
    config = tokenizer_recipe().model
    tokenizer = VQGAN(config)
    with torch.no_grad(): tokenizer.to_code.weight.view(-1)[0] = math.nan
    with monkeypatch.context() as careless:
        careless.setattr(vgnb.saved, "check_finite", lambda *a: None)
        save_model(tmp_path / "t", tokenizer, config)
    save_model(tmp_path / "g", *generator)
    name, *args = words.format(tmp=tmp_path).split()
    with contextlib.redirect_stderr(io.StringIO()) as err: assert run_main(main_of(name), args) == 2
    assert "must hold finite numbers; " in err.getvalue() and err.getvalue().count("\n") == 1
    assert not (tmp_path / "made").exists() and not (tmp_path / "s.npz").exists()


# ---- what is lost, and what is told

def test_a_damaged_checkpoint_is_not_one_of_those_kept(tmp_path):
    files = {"model.net": {"w": torch.zeros(3)}}
    for step in (10, 20): write_checkpoint(tmp_path, step, files, {})
    file = tmp_path / "step-000000020" / "model.net.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    write_checkpoint(tmp_path, 30, files, {})
    assert [p.name[-2:] for p in checkpoints(tmp_path)] == ["30", "10"] and newest(tmp_path).name[-2:] == "30"
    write_checkpoint(tmp_path, 40, files, {})
    assert [p.name[-2:] for p in checkpoints(tmp_path)] == ["40", "30"]


TORN = [b'{"step": 20, "lo', b"\xff\xfe\x00binary\x00", b"[1, 2]", b"null", b'{"loss": 1}', b'{"step": "x"}',
        b"[" * 99999]


@pytest.mark.parametrize("bad", TORN, ids=range(len(TORN)))
@pytest.mark.parametrize("where", ["middle", "end"])
def test_a_bad_line_of_the_log_is_set_aside_and_told(tmp_path, capsys, bad, where):
    good = [json.dumps({"step": s, "loss": 1.0}).encode() for s in (10, 30)]
    lines = [good[0], bad, good[1]] if where == "middle" else [*good, bad]
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines))
    JsonLines(tmp_path, 20, RECIPE).log(25, {"loss": 0.5})
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == [10, 25]
    assert (tmp_path / "log.jsonl.bad").read_bytes() == bad + b"\n"
    err = capsys.readouterr().err
    number = 2 if where == "middle" else 3
    assert err.count("\n") == 1 and f"log.jsonl: line {number} is damaged, set aside in log.jsonl.bad" in err


def written(folder):
    "A log of five lines."
    tracker = JsonLines(folder, 0, RECIPE)
    for step in range(10, 60, 10): tracker.log(step, {"loss": 1 / step, "samples": 16 * step, "lr": None})
    return folder / "log.jsonl"


def test_a_flipped_digit_of_the_log_is_found_and_told(tmp_path, capsys):
    file = written(tmp_path)
    whole = file.read_bytes()
    digits = [i for i, c in enumerate(whole) if chr(c).isdigit()]
    for i in digits[::3]:
        file.write_bytes(whole[:i] + bytes([ord("0") + (whole[i] - ord("0") + 1) % 10]) + whole[i + 1:])
        line = whole[:i].count(b"\n") + 1
        assert damaged_lines(file) == [line], i
        assert [r["step"] for r in read_log(file)] == [s for s in range(10, 60, 10) if s != 10 * line]

    JsonLines(tmp_path, 50, RECIPE).log(60, {"loss": 0.5})
    said = capsys.readouterr().err
    assert f"{file}: line 5 is damaged, set aside in log.jsonl.bad" in said and said.count("\n") == 1
    assert [r["step"] for r in read_log(file)] == [10, 20, 30, 40, 60] and not damaged_lines(file)


def test_what_a_log_says_comes_back_and_stays_the_same_bytes(tmp_path, capsys):
    file = written(tmp_path)
    whole = file.read_bytes()
    assert read_log(file)[1] == {"step": 20, "loss": 1 / 20, "samples": 320, "lr": None}
    assert [json.loads(line)["step"] for line in whole.splitlines()] == [10, 20, 30, 40, 50]
    JsonLines(tmp_path, 30, RECIPE)
    assert file.read_bytes() == b"".join(whole.splitlines(keepends=True)[:3]) and not capsys.readouterr().err


def test_a_log_from_before_goes_on_with_checksums(tmp_path, capsys):
    file = tmp_path / "log.jsonl"
    file.write_text('{"step": 10, "loss": 1.0}\n')
    JsonLines(tmp_path, 10, RECIPE).log(20, {"loss": 0.5})
    assert [r["step"] for r in read_log(file)] == [10, 20] and not damaged_lines(file) and not capsys.readouterr().err
    file.write_bytes(file.read_bytes() + b'{"step": 30, "loss": 0.4, "crb": "00000000"}\n')
    assert damaged_lines(file) == [3]


@pytest.mark.parametrize("seal", ["G{rest}", "{first}", "{upper}", ""])
def test_a_damaged_checksum_on_the_first_line_is_no_old_line(tmp_path, seal):
    file = tmp_path / "log.jsonl"
    JsonLines(tmp_path, 0, None).log(10, {"loss": 0.5})
    text = file.read_text()
    crc = text.rpartition('"crc": "')[2][:8]
    bad = seal.format(rest=crc[1:], first=crc[:7], upper="ABCDEF00")
    file.write_text(text.replace(crc, bad) + '{"step": 20, "loss": 0.4}\n')
    assert damaged_lines(file) == [1, 2] and read_log(file) == []


def test_the_page_of_a_run_says_that_its_log_is_damaged(tmp_path):
    file = written(tmp_path)
    assert "damaged" not in run_page(tmp_path)
    file.write_bytes(file.read_bytes() + b'{"step": 60, "lo')                        # being written
    assert "damaged" not in run_page(tmp_path)
    file.write_bytes(file.read_bytes().replace(b"0.05", b"0.95", 1))
    assert "log.jsonl: line 2 is damaged" in run_page(tmp_path) and "line 2" in status_line(run_facts(tmp_path))
    JsonLines(tmp_path, 50, RECIPE)
    assert "now in log.jsonl.bad" in run_page(tmp_path)


def test_left_overs_are_swept_at_the_next_start(tmp_path):
    sick_trainer(tmp_path).fit(10)
    (tmp_path / "previews").mkdir()
    for name in (".aside-model-0123abcd", "checkpoints/.aside-20-0123abcd"): (tmp_path / name).mkdir()
    for name in (".run.json.0123abcd.part.json", ".log.jsonl.0123abcd.part.jsonl", ".index.html.0123abcd.part.html",
                 "previews/.step-1.png.0123abcd.part.png"): (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".partly").write_text("the user's own")
    sick_trainer(tmp_path).fit(20)
    assert [p.name for p in tmp_path.rglob(".*")] == [".partly"]


@pytest.mark.parametrize("file, content, words", [
    ("plan.json", {}, "a store"),
    ("pipeline.json", {}, "a pipeline"),
    ("config.json", {"format": "vgnb-model/1"}, "a saved model"),
    ("run.json", {"command": ["x"], "config": {"flip": True}}, "the record of another command")])
def test_another_things_folder_is_refused_even_with_fresh(tmp_path, file, content, words):
    save_json(tmp_path / file, content)
    before = (tmp_path / file).read_bytes()
    for resume in ("auto", "fresh"):
        with pytest.raises(Mismatch, match=f"holds {words}"): sick_trainer(tmp_path, resume=resume)
    assert [p.name for p in tmp_path.iterdir()] == [file] and (tmp_path / file).read_bytes() == before


def test_another_runs_folder_is_refused_though_it_has_no_checkpoint(tmp_path):
    sick_trainer(tmp_path).fit(4)
    for path in checkpoints(saves(tmp_path)): vgnb.core.remove_dir(path)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(Mismatch, match="steps=9: the run in"): sick_trainer(tmp_path, steps=9).fit()
    assert (tmp_path / "run.json").read_bytes() == before
    assert sick_trainer(tmp_path, steps=9, resume="fresh").fit().finished


@pytest.mark.fault("F8")
@pytest.mark.parametrize("number, advice", [
    (errno.ENOSPC, "free some space there"),
    (errno.EDQUOT, "free some space there"),
    (errno.EACCES, "choose another place"),
    (errno.EROFS, "choose a place that can be written to")])
@pytest.mark.parametrize("what", ["json", "tensors", "checkpoint", "log"])
def test_a_disk_that_refuses_is_named_with_what_to_do(tmp_path, monkeypatch, number, advice, what):
    def refuse(*a, **k): raise OSError(number, os.strerror(number))
    def refuse_tensors(*a, **k): raise SafetensorError(f"Error while serializing: I/O error: x (os error {number})")
    with monkeypatch.context() as full, contextlib.redirect_stderr(io.StringIO()) as err:
        full.setattr(vgnb.core, "_fsync", refuse)
        full.setattr(vgnb.saved, "save_file", refuse_tensors)
        def work(argv):
            if what == "json": save_json(tmp_path / "a.json", {})
            if what == "tensors": save_tensors(tmp_path / "a.safetensors", {})
            if what == "checkpoint": write_checkpoint(tmp_path, 10, {"a": {}}, {})
            if what == "log": JsonLines(tmp_path, 0, RECIPE)
        assert run_main(work, []) == 2
    line = err.getvalue()
    assert str(tmp_path) in line and os.strerror(number) in line and advice in line and line.count("\n") == 1, line
    assert ".part" not in line and not list(tmp_path.rglob("*.part*"))


def test_an_error_while_something_else_is_read_keeps_its_own_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="not-there"), write_aside(tmp_path / "a.json"):
        open(tmp_path / "not-there")


# ---- numbers, lines, pages

@pytest.mark.parametrize("rate, rises", [
    (Rate("cosine", warmup=10, floor=0.05), True),
    (Rate("cosine_end", warmup=10, floor=0.01), True),
    (Rate("linear", floor=0.1), False),
    (Rate("cosine_with_restarts", waves=3), False),
    (Rate("polynomial", power=2), False),
    (Rate(), False)])
def test_past_the_last_step(rate, rises):
    "Ours stays; a published cosine goes on, by the formula in its script."
    recipe = Recipe(steps=100, rate=rate, compat="upstream")
    assert recipe.rate == replace(rate, compat="upstream") and Recipe(steps=100, rate=rate).rate == rate
    assert {rate_at(rate, s, 100) for s in (100, 101, 150, 10**6)} == {rate_at(rate, 100, 100)}
    for step in range(101): assert rate_at(recipe.rate, step, 100) == rate_at(rate, step, 100)
    beyond = [rate_at(recipe.rate, s, 100) for s in (100, 105, 108)]
    assert (beyond[0] < beyond[1] < beyond[2]) == rises
    published = {"cosine": 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * 140 / 90)),
                 "cosine_end": max(0.5 * (1 + math.cos(math.pi * (150 - 90) / 10)), 0.01)}
    if rises: assert rate_at(recipe.rate, 150, 100) == pytest.approx(published[rate.shape])


def test_a_run_without_a_terminal_says_a_line_now_and_then(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(vgnb.progress, "_FIRST", 0.0)
    for folder, rank in (("a", "0"), ("b", "1")):
        monkeypatch.setenv("RANK", rank)
        sick_trainer(tmp_path / folder, progress=None).fit(5)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == (5 if rank == "0" else 0)
    monkeypatch.setenv("RANK", "0")
    sick_trainer(tmp_path / "a", progress=None).fit(6)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("step 6 of 40 (15%), ") and "net.loss" in line and "lr " in line and line.endswith(" left")


@pytest.mark.fault("F17")
def test_the_page_of_a_run_and_its_board(tmp_path):
    folder = tmp_path / "<script>alert(1)<"
    sick_trainer(folder, (6,), tracker="jsonl", log_every=2, save_every=10).fit(20)
    page = (folder / "index.html").read_text()
    assert page == run_page(folder) and "step 20 of 40 (50%)" in page and "1 steps skipped" in page
    assert "<script" not in page and "src=\"data:image/svg+xml" in page and "optim.lr" in page
    view = board(folder, every=0.02)
    assert view.status.value.startswith("step 20 of 40 (50%)") and b"critic.loss" in bytes(view.curves.value)
    view.curves.value = memoryview(view.curves.value)            # as a browser sends it back
    assert "critic.loss" in view._repr_mimebundle_()["text/html"]
    sick_trainer(folder, (6,), tracker="jsonl", log_every=2, save_every=10).fit()
    view.thread.join(20)
    assert "finished" in view.status.value and not view.thread.is_alive()
    assert RunFolder(folder).path == folder and load_tensors(newest(saves(folder)) / "model.net.safetensors")
