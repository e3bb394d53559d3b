"What share of its processors' peak a run reaches: in the lines of its log and in its record, if it is told the peak."
import json
from dataclasses import replace

import pytest
import torch

from tests.train_on_two import generator_recipe, write_codes
from vgnb.core import BadInput
from vgnb.training.commands import TrainOptions, train
from vgnb.training.plan import other_peak, peak_flops, product_rate, trace
from vgnb.training.run_folder import Run
from vgnb.training.trackers import read_log

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    path = tmp_path_factory.mktemp("reached") / "codes"
    write_codes(path)
    return path


def run(codes, folder, peak, **changes):
    "(lines of the log, the record) of four steps."
    recipe = replace(generator_recipe(codes, **changes), steps=4)
    train(TrainOptions(recipe, folder, run=Run(progress=False, log_every=2, peak=peak)))
    return read_log(folder / "log.jsonl"), json.loads((folder / "run.json").read_text())


def test_every_line_says_it(codes, tmp_path):
    lines, record = run(codes, tmp_path / "run", "measured")
    work, recipe = record["work"], record["config"]
    flops = trace(replace(generator_recipe(codes), steps=4), 16).flops
    assert work["flops"] == flops and work["peak"] > 1e8 and work["source"] == "measured"
    for line in lines:
        reached = line["per_second"] / recipe["batch"] * work["flops"] / work["peak"]
        assert line["mfu"] == pytest.approx(reached, rel=0.02, abs=1e-4)


def test_the_loss_in_pieces_counts_alike(codes, tmp_path):
    "And is recorded with the recipe."
    lines, record = run(codes, tmp_path / "run", "0.5", loss_rows=4)
    assert record["config"]["loss_rows"] == 4 and record["work"]["peak"] == 0.5e12
    assert record["work"]["flops"] == trace(replace(generator_recipe(codes), steps=4), 16).flops
    assert all(0 < line["mfu"] for line in lines)


def test_a_run_that_is_not_told_says_nothing(codes, tmp_path):
    lines, record = run(codes, tmp_path / "run", None)
    assert record["work"] is None and not any("mfu" in line for line in lines)


def test_a_peak_that_is_none_is_refused_before_anything(codes, tmp_path):
    with pytest.raises(BadInput, match="peak='fast'.*h100.*measured"): run(codes, tmp_path / "run", "fast")
    assert not (tmp_path / "run").exists()


def test_peaks():
    assert peak_flops("2.5", "fp32") == 2.5e12 and peak_flops("h200", "bf16") == 989e12
    assert product_rate(side=64, tries=2) > 0


def test_a_gpus_peak_on_another_processor_is_said_once(codes, tmp_path, capsys, monkeypatch):
    run(codes, tmp_path / "run", "h100")
    told = [line for line in capsys.readouterr().err.splitlines() if "peak=" in line]
    assert len(told) == 1 and told[0].startswith("warning: peak=h100: this run computes on a CPU")

    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert "peak=h100: this run computes on NVIDIA H200" in other_peak("h100", gpu)
    assert [other_peak(peak, gpu) for peak in ("h200", "measured", "700", None)] == [""] * 4


def test_a_share_above_the_whole_is_said_once(codes, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr("vgnb.training.trainer.Work.share", lambda self, rate: 1.5)     # however busy the processor is
        lines, _ = run(codes, tmp_path / "run", "0.001")
    told = [line for line in capsys.readouterr().err.splitlines() if "mfu=" in line]
    assert [line["mfu"] for line in lines] == [1.5, 1.5]
    assert len(told) == 1 and "more than all of peak=0.001, which is too low" in told[0]
    run(codes, tmp_path / "other", "10000")
    assert "mfu=" not in capsys.readouterr().err
