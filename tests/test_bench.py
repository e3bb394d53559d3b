"""What is timed, and when it isn't: the same tokens or no timing, counts that are the models' own formulas."""
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scripts.bench import FOLDER, Options, asked, below, main, told
from vgnb.cli import run_main
from vgnb.draws import Keyed
from vgnb.evaluation.bench import Case, Ceilings, Tally, drawing_by, measured, tallied
from vgnb.evaluation.workloads import WORKLOADS, Place, find_workload
from vgnb.generators.cost import run_work
from vgnb.generators.generator import Clock
from vgnb.generators.masked import HALTON
from vgnb.generators.partition import PGM
from vgnb.generators.raster import LLAMAGEN_GPT
from vgnb.kinds import from_json
from vgnb.sampling.settings import Sampling

PEERS = Path(__file__).parent / "peers"
RATES = Ceilings(1e11, 1e10)


@pytest.fixture(autouse=True)
def one_thread():
    "The command sets it; other tests may want what was."
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def bench(capsys, **options) -> tuple[int, str, str]:
    "(exit code, what was printed, what went wrong) of the command."
    code = run_main(lambda words: main(Options(**options)), [])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_second_implementation_that_draws_the_same_is_timed(tmp_path, capsys):
    peer = PEERS / "uncached_raster.py"
    code, out, err = bench(capsys, workloads=("C1",), small=True, pairs=2, versus=peer, out=tmp_path)
    assert code == 0, err
    assert "the peer takes" in out
    study = json.loads((tmp_path / "C1-uncached_raster.json").read_text())
    (row,) = study["rows"]
    assert row["pairs"] == 2 and row["apart"] == 0
    assert row["gflop_peer"] > 2 * row["gflop"]              # each token computes all before it again
    assert all(len(row[f"{clock}_ratio"]) == 3 and min(row[f"{clock}_ratio"]) > 0 for clock in ("wall", "cpu"))
    assert study["workload"] == "C1" and study["gflop_s"] > 1 and study["torch"] == torch.__version__


@pytest.mark.parametrize("right, wrong", [
    ('model["scale"]).softmax', '(model["scale"] - 1)).softmax'),        # another guidance
    ("torch.zeros(1, width // 2, dtype", "torch.ones(1, width // 2, dtype"),  # a class with a place of its own
    ("tokens[..., None]", "tokens")])
def test_other_tokens_void_the_timing(right, wrong, tmp_path, capsys):
    text = (PEERS / "uncached_raster.py").read_text()
    assert text.count(right) == 1
    peer = tmp_path / "other.py"
    peer.write_text(text.replace(right, wrong))
    code, out, err = bench(capsys, workloads=("C1",), small=True, pairs=1, versus=peer, out=tmp_path / "out")
    assert code == 2 and "versus=" in err and "ms" not in out
    assert not (tmp_path / "out").exists()


def test_the_draw_against_torchs(tmp_path, capsys):
    peer = PEERS / "torch_multinomial.py"
    code, _, err = bench(capsys, workloads=("C11",), small=True, pairs=3, versus=peer, out=tmp_path, bar=1e-6)
    assert code == 0, err
    study = json.loads((tmp_path / "C11-torch_multinomial.json").read_text())
    assert study["original"].startswith("torch.multinomial") and study["rows"][0]["apart"] == 0


def test_below_the_bar_is_told_by_the_exit_code(capsys):
    peer = PEERS / "torch_multinomial.py"
    code, _, err = bench(capsys, workloads=("C11",), small=True, pairs=1, versus=peer, bar=1e6)
    assert code == 1 and "below the bar" in err


@pytest.mark.parametrize("work, ratio, missed", [
    (2.0, (1.3, 1.4, 1.5), False),
    (1.0, (1.3, 1.4, 1.5), True),        # as many multiplications as ours
    (2.0, (0.9, 1.0, 1.3), False),       # a quarter of the pairs is above
    (2.0, (0.9, 1.0, 1.1), True)])
def test_what_counts_as_below(work, ratio, missed):
    row = {"gflop": 1.0, "gflop_peer": work, "cpu_ratio": list(ratio)}
    assert below(row, 1.2, "cpu") is missed


@pytest.mark.parametrize("options, words", [
    (dict(), "workloads=()"),
    (dict(workloads=("C12",)), "did you mean"),
    (dict(workloads=("C1",), pairs=0), "pairs=0"),
    (dict(workloads=("C1",), minutes=-1.0), "minutes=-1"),
    (dict(workloads=("C1",), bar=1.0), "needs versus"),
    (dict(workloads=("C1",), device="tpu"), "device='tpu'"),
    (dict(workloads=("G1",), device="cpu"), "with --small"),
    (dict(workloads=("C1",), record=True, small=True), "only whole sizes"),
    (dict(workloads=("C1", "C2"), versus=PEERS / "uncached_raster.py"), "one workload's"),
    (dict(workloads=("C1",), versus=PEERS / "uncached_raster.py", record=True), "ORIGIN"),
    (dict(workloads=("C1",), versus=PEERS / "nobody.py"), "must be a Python file"),
    (dict(workloads=("C1",), versus=Path(__file__)), "must define load")])
def test_what_cannot_work_is_named_beforehand(options, words, capsys):
    code, out, err = bench(capsys, **options)
    assert code == 2 and words in err and err.count("\n") == 1 and out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_is_named(capsys):
    code, _, err = bench(capsys, workloads=("gpu-all",))
    assert code == 2 and "device='cuda': is not there (G0)" in err


def test_nothing_is_begun_after_the_time(tmp_path, capsys):
    code, out, _ = bench(capsys, workloads=("G6",), device="cpu", small=True, minutes=0.0, out=tmp_path)
    rows = json.loads((tmp_path / "G6.json").read_text())["rows"]
    assert code == 0 and [row["left_out"] for row in rows] == ["out of time"] * 2 and "out of time" in out


def test_groups_of_workloads():
    assert [w.name for w in asked(Options(("cpu-all",)))] == [f"C{i}" for i in range(1, 12)]
    assert [w.name for w in asked(Options(("gpu-all", "C1")))] == [*(f"G{i}" for i in range(11)), "C1"]


@pytest.mark.parametrize("name, family", [("C1", LLAMAGEN_GPT), ("C3", HALTON), ("C4", PGM)])
def test_multiplications_are_those_of_the_formulas(name, family):
    (case,) = find_workload(name).cases(Place(small=True))
    _, tally = tallied(lambda: case.run(case.inputs))
    sampling, config = from_json(case.config["sampling"], Sampling), family.read(case.config["spec"])
    steps, cells = case.facts["steps"], case.config["cells"]
    schedule = sampling.sampler(family.make(case.config["spec"])[0]).schedule
    counts, live, done = schedule(cells, steps, 0), [], 0
    for step, count in enumerate(counts):
        live.append(sampling.guidance.live(Clock(step, steps, done, cells, count=count)))
        done += count
    assert tally.flops == 2 * case.items * run_work(config, counts, live=live)


def test_a_gpus_workload_can_be_tried_in_its_precision():
    w = find_workload("G4")
    (case,) = w.cases(Place(dtype=w.dtype, small=True))
    row = measured(case, RATES, 1)
    assert row["gflop"] > 0 and case.config["dtype"] == "bfloat16"


def test_two_precisions_are_compared_in_the_first():
    "A peer of a workload in bf16 is held against ours in fp32, then timed in bf16."
    class Peer:
        asked = []
        def load(self, config, weights): return self.asked.append(config["dtype"]) or find_case(config["dtype"])
        def run(self, model, inputs): return model.run(inputs)

    def find_case(dtype): return next(find_workload("G4").cases(Place("cpu", getattr(torch, dtype), True)))
    row = measured(find_case("bfloat16"), RATES, 1, peer=Peer(), compared=find_case("float32"))
    assert Peer.asked == ["float32", "bfloat16"] and row["apart"] == 0


def test_noise_is_shared_only_inside_and_torch_is_put_back():
    plain = torch.multinomial
    with pytest.raises(KeyError), drawing_by(Keyed(0), lambda call: None):
        assert torch.multinomial is not plain
        raise KeyError
    assert torch.multinomial is plain


def test_memory_is_that_of_the_fullest_moment():
    def run():
        for _ in range(5): torch.zeros(1000, 1000).add_(1)
        return torch.zeros(10)
    with Tally() as tally: run()
    assert 4_000_000 <= tally.peak < 8_000_000


def test_a_row_reads_well():
    case = Case("one", {}, lambda inputs: torch.ones(4, 4) @ torch.ones(4, 4), {"noise": None})
    row = measured(case, RATES, 1)
    assert "operations" in told(row, "cpu") and row["draws"] is None and "draws" not in told(row, "cpu")
    assert replace(case, name="two").compared() == {"noise": None}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_records_say_where_they_come_from(path):
    study = json.loads(path.read_text())
    name, _, peer = path.stem.partition("-")
    assert study["workload"] == name and study["about"] == WORKLOADS[name].about
    assert study["command"].startswith(f"python scripts/bench.py {name}") and "/" not in study["command"][22:]
    assert all(study[key] for key in ("device", "torch", "commit", "gflop_s", "copy_gb_s"))
    for row in study["rows"]:
        assert row["pairs"] >= 3 and row["ops"] > 0 and row["cpu_ms"][0] <= row["cpu_ms"][1] <= row["cpu_ms"][2]
        if peer: assert study["original"] and row["apart"] <= 1e-3 and len(row["cpu_ratio"]) == 3
