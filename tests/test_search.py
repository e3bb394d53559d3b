"""Guidance search.

Killed anywhere it ends with the same numbers; it looks at the reference once, and never lets a broken number win.
"""
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vgnb.core import BadInput, Mismatch
from vgnb.data.shapes import Shapes
from vgnb.evaluation.features import load_extractor
from vgnb.generators.raster import RasterConfig, RasterTransformer
from vgnb.jobs import SampleJob
from vgnb.pipeline import Pipeline
from vgnb.sampling.pick import Pick
from vgnb.sampling.settings import Sampling
from vgnb.search import GuidanceSearch, best_scale, scale_grid, search_figure
from vgnb.tokenizers.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig
from vgnb.tokenizers.quantizers import VectorConfig

ROOT = Path(__file__).resolve().parents[1]
SCALES = (1.0, 2.0, 5.0)


class Counted:
    "The judge of the shapes; counts the pictures it is shown."
    def __init__(self): self.judge, self.seen = load_extractor("shapes-judge"), 0
    def __getattr__(self, name): return getattr(self.judge, name)
    def __call__(self, images):
        self.seen += len(images)
        return self.judge(images)


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    codes = VectorConfig(32, 8, l2=False, usage=0)
    small = MaskGITVQGANConfig(codes, width=16, mults=(1, 2, 2, 2), depth=1, groups=8)
    tokenizer = MaskGITVQGAN(small)
    small = RasterConfig(layers=1, dim=32, heads=2, ffn_multiple=16, vocab=32, grid=(4, 4), classes=10)
    generator = RasterTransformer(small, 0)
    torch.nn.init.normal_(generator.head.weight, std=0.5)  # it starts at zero: no guidance would matter
    return Pipeline(tokenizer, generator, Sampling(rows=8), Shapes(10).classes)


def search(pipe, out, **kw):
    usual = dict(pipe=pipe, reference="shapes://?n=80&seed=3", extractor=Counted(), out=out, scales=SCALES,
                 count=24, final=40, metrics=("fid", "pr", "accuracy"), part=8)
    return GuidanceSearch(**usual | kw)


@pytest.fixture(scope="module")
def whole(pipe, tmp_path_factory):
    s = search(pipe, tmp_path_factory.mktemp("search") / "whole")
    return s, s.run()


def values(results):
    return {k: r["values"] for k, r in results["scales"].items()} | {"final": results["final"]["values"]}


def test_protocol(whole):
    s, results = whole
    saved = json.loads(s.file.read_text())
    assert saved["scales"] == json.loads(json.dumps(results["scales"]))
    assert list(saved["scales"]) == ["1", "2", "5"] and saved["best"] == best_scale(results)
    assert len({r["values"]["fid"] for r in results["scales"].values()}) == 3, "scales make a difference"
    for k, r in results["scales"].items():
        p = r["protocol"]
        assert (p["count"], p["reference_count"], p["uint8_rule"], p["seed"]) == (24, 80, "round", 0)
        assert p["sampler"]["guidance"]["scale"] == float(k) and p["extractor"].startswith("shapes-judge@")
    assert results["final"]["count"] == 40 and saved["run"]["seed"] == 0
    assert (s.out / f"scale-{results['best']:g}-40.npz").exists()
    assert len(list(s.out.glob("*.npz"))) == 1


def test_the_reference_is_looked_at_once(whole, pipe):
    s, _ = whole
    assert s.extractor.seen == 80 + 3 * 24 + 40
    again = search(pipe, s.out)
    before = s.file.read_text()
    results = again.run()
    assert again.extractor.seen == 0 and values(results) == values(json.loads(before))


@pytest.mark.full
def test_killed_at_any_part_it_ends_with_the_same_numbers(whole, pipe, tmp_path, monkeypatch):
    class Kill(BaseException): pass
    real, made = SampleJob.make, []
    def make(job, start):
        if len(made) % 5 == 4:
            made.append("kill")
            raise Kill
        made.append(start)
        return real(job, start)
    monkeypatch.setattr(SampleJob, "make", make)
    kills = 0
    while True:
        try:
            results = search(pipe, tmp_path).run()
            break
        except Kill: kills += 1
    assert kills >= 2 and values(results) == values(whole[1])
    assert len(made) - kills == 3 * 3 + 5, "no part is made twice"


@pytest.mark.full
def test_a_finer_grid_and_another_count_reuse_what_is_there(pipe, tmp_path):
    first = search(pipe, tmp_path, scales=(1, 5), final=0).run()
    assert first["final"] is None
    finer = search(pipe, tmp_path, scales=(1, 2, 5))
    assert finer.todo() == [2]
    second = finer.run()
    assert second["final"]["count"] == 40
    for k in ("1", "5"): assert second["scales"][k]["values"] == first["scales"][k]["values"]
    third = search(pipe, tmp_path, scales=(1, 2, 5), final=48)
    seen = third.extractor
    assert third.run()["final"]["count"] == 48 and seen.seen == 48


def test_other_settings_can_be_searched(pipe, tmp_path):
    guided = replace_sampling(pipe, guidance=2.0)
    results = search(guided, tmp_path, setting="picks.0.temperature", scales=(0.5, 1.0), final=0,
                     metrics=("accuracy", "fid"), by="accuracy").run()
    assert [r["protocol"]["sampler"]["picks"][0]["temperature"] for r in results["scales"].values()] == [0.5, 1.0]
    assert results["plan"]["sampling"]["guidance.scale"] == 2.0


def test_whole_numbers_can_be_searched(pipe, tmp_path):
    in_steps = search(Pipeline.from_pretrained("tiny-maskgit"), tmp_path, setting="steps", scales=(2, 4))
    assert [in_steps.at(scale).sampling.steps for scale in in_steps.scales] == [2, 4]
    assert "steps" not in in_steps.plan["sampling"]
    with pytest.raises(BadInput, match="steps=2.5: must be a whole number"): in_steps.at(2.5)
    few = search(pipe, tmp_path / "few", setting="picks.0.top_k", scales=(4, 8), final=0, metrics=("accuracy",),
                 by="accuracy").run()
    assert [r["protocol"]["sampler"]["picks"][0]["top_k"] for r in few["scales"].values()] == [4, 8]
    with pytest.raises(BadInput, match="steps=3: one-by-one draws one cell a step"):
        search(pipe, tmp_path / "singly", setting="steps", scales=(3, 4))


def replace_sampling(pipe, **kw):
    return Pipeline(pipe.tokenizer, pipe.generator, replace(pipe.sampling, **kw), pipe.classes, pipe.grid.shape)


def used_otherwise(pipe, **configs):
    "The pipeline with a part of another configuration, and the same weights."
    parts = {name: getattr(pipe, name) for name in ("tokenizer", "generator")}
    for name, config in configs.items():
        part = type(parts[name])(config)
        part.load_state_dict(parts[name].state_dict())
        parts[name] = part
    return Pipeline(parts["tokenizer"], parts["generator"], pipe.sampling, pipe.classes, pipe.grid.shape)


def test_broken_numbers_cannot_win():
    def made(by, **found): return {"by": by, "scales": {k[1:]: {"values": {by: v}} for k, v in found.items()}}
    assert best_scale(made("fid", s1=math.nan, s2=3.0, s3=-math.inf, s10=2.5)) == 10
    assert best_scale(made("accuracy", s1=0.2, s2=math.inf, s3=0.9, s4=0.9)) == 3
    assert best_scale(made("fid", s2=1.0, s3=0.5), scales=(2.0,)) == 2
    with pytest.raises(BadInput, match="must be finite"): best_scale(made("fid", s1=math.nan))


def test_a_folder_of_another_search_is_refused(whole, pipe, tmp_path):
    s, _ = whole
    for change in (dict(seed=1),
                   dict(count=16),
                   dict(reference="shapes://?n=90&seed=3"),
                   dict(metrics=("fid",)),
                   dict(pipe=replace_sampling(pipe, picks=Pick(temperature=0.9)))):
        with pytest.raises(Mismatch, match="was begun with"):
            search(**{"pipe": pipe, "out": s.out} | change).run()
    for name, change in (("tokenizer", {"groups": 4}), ("generator", {"rope_base": 100.0})):
        other = used_otherwise(pipe, **{name: replace(getattr(pipe, name).config, **change)})
        (field, value), = change.items()
        with pytest.raises(Mismatch, match=f"^{name}_config.*{field}={value}: the search in .* was begun with"):
            search(other, s.out).todo()
    (tmp_path / "results.json").write_text('{"format": "something else"}')
    with pytest.raises(Mismatch, match="not a search's"): search(pipe, tmp_path).todo()


@pytest.mark.parametrize("low,high,step", [(2, 8, 0.2), (1, 1, 0.5), (0, 0.3, 0.1), (1.5, 4, 0.7)])
def test_grids_hold_their_ends(low, high, step):
    grid = scale_grid(low, high, step)
    assert grid[0] == low and grid[-1] <= high < grid[-1] + step and len(grid) == len(set(grid))
    assert (grid[-1] == high or (high - low) / step % 1 > 1e-6)


def test_the_figure_needs_a_number():
    nothing = {"scales": {}, "plan": {"setting": "guidance.scale"}, "best": None, "final": None, "by": "fid"}
    with pytest.raises(BadInput, match="at least one measured scale"): search_figure(nothing)


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    return pipe.save_pretrained(tmp_path_factory.mktemp("pipe") / "saved")


def script(*args, two=False):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if two else []
    command = [sys.executable, *launch, "scripts/search_guidance.py", *map(str, args)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=180)


WORDS = ("shapes://?n=80&seed=3", "--extractor", "shapes-judge", "--metrics", "fid", "pr", "accuracy",
         "--scales", 1, 2, "--interval", 1, "--count", 24, "--final", 40, "--part", 8)


@pytest.mark.full
def test_two_processes_find_what_one_finds(saved, whole, tmp_path):
    "Through the script, whose dry run touches nothing."
    dry = script(saved, *WORDS, "--out", tmp_path / "two", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "2 scales from 1 to 2, 0 of them done: 2 x 24 images, then 40" in dry.stdout
    assert not (tmp_path / "two").exists()
    done = script(saved, *WORDS, "--out", tmp_path / "two", two=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "two" / "results.json").read_text())
    assert found["run"]["world"] == 2
    for k in ("1", "2"):
        for name, v in whole[1]["scales"][k]["values"].items():
            assert found["scales"][k]["values"][name] == pytest.approx(v, rel=1e-5), (k, name)
    assert "best guidance.scale by fid" in done.stdout and len(done.stdout.splitlines()) == 5


@pytest.mark.parametrize("words, message", [
    (("--scales", 8, 2), "scales=(8.0, 2.0): must be the lowest scale"),
    (("--interval", 0), "interval=0.0: must be above 0"),
    (("--by", "kid_mean"), "needs kid among the metrics"),
    (("--count", 1), "count=1: must be an integer >= 2"),
    (("--setting", "scale"), "setting='scale': must be one of"),
    (("--scales", -1, 2), "scales=-1.0: must be a finite number >= 0")])
def test_wrong_input_is_one_line(saved, tmp_path, words, message, capsys, monkeypatch):
    import importlib.util

    from vgnb.cli import run_main
    spec = importlib.util.spec_from_file_location("search_guidance", ROOT / "scripts" / "search_guidance.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["search_guidance"] = module
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    assert run_main(module.main, [str(saved), *map(str, WORDS), "--out", "out", *map(str, words)]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1 and not (tmp_path / "out").exists()
