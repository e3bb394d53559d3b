"Sample 17 of seed 0 is the same tokens at any batch size, in any order, on one process or two, by any route."
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.forked import on_many
from vgnb.data.transforms import to_uint8
from vgnb.draws import Keyed
from vgnb.generators.generator import Cond, Grid
from vgnb.generators.raster import RasterTransformer, raster_presets
from vgnb.pipeline import Pipeline, from_pretrained
from vgnb.sampling.pick import Pick
from vgnb.sampling.settings import Sampling
from vgnb.shipped import shipped
from vgnb.tokenizers.vqgan import vqgan

GRID = Grid((4, 4))
SETTINGS = Sampling(guidance=2.0, picks=Pick(top_k=100))

def model(dtype=torch.float32):
    g = RasterTransformer(raster_presets["tiny"], seed=1)
    torch.nn.init.normal_(g.head.weight, 0, 0.1, generator=torch.Generator().manual_seed(2))
    return g.to(dtype).eval()


def draw(g, ids, seed=0):
    "Codes (b, 16, 1) of sample ids; the class follows from the id."
    ids = torch.as_tensor(ids)
    return SETTINGS.sampler(g).sample(Cond(labels=ids % 10), ids, Keyed(seed), grid=GRID)


@pytest.mark.fault("R2")
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.full)])
def test_sample_17_is_the_same_at_any_batch_size(dtype):
    g = model(dtype)
    alone = draw(g, [17])[0]
    for batch in (1, 2, 7, 64):
        first = 17 // batch * batch
        together = draw(g, range(first, first + batch))
        assert torch.equal(together[17 - first], alone), batch

    whole = draw(g, range(64))
    mixed = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(g, mixed), whole[mixed])
    different = {tuple(c.flatten().tolist()) for c in whole}
    assert len(different) > 55, "different ids must give different samples"


COMPANY = [(1, 8), (2, 8), (3, 12), (7, 64), (8, 64), (64, 64)]      # samples at once, and of how many


@pytest.mark.fault("R2")
@pytest.mark.full
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", shipped())
def test_sixty_four_samples_are_the_same_in_any_company(name, precision, figures):
    """Every shipped sampler, micro-batches of eight rows: batches of six sizes, and 64 mixed up. Batches of few samples
    are made of the first eight or twelve."""
    pipe = from_pretrained(name, precision=precision)
    steps = {} if name in ("tiny-llamagen", "tiny-rar", "tiny-dar", "tiny-iar2", "tiny-vqkd") else {"steps": 8}
    def codes(ids):
        labels = [i % 10 for i in ids]
        return pipe.codes(labels, ids=torch.tensor(ids), seed=3, rows=8, min_rows=8, **steps)

    whole = codes(range(64))
    for size, count in COMPANY:
        for ids in torch.arange(count).split(size):
            assert torch.equal(codes(ids.tolist()), whole[ids]), (size, ids)
    mixed = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(codes(mixed.tolist()), whole[mixed])
    assert len({tuple(c.flatten().tolist()) for c in whole}) > 55
    figures(samplers=1, ways=len(COMPANY) + 1, different=0)


@pytest.mark.fault("R2")
@pytest.mark.full
@pytest.mark.parametrize("world", [2, 4])
def test_processes_draw_what_one_draws(world, figures):
    g = model()
    def work(rank):
        torch.set_num_threads(1)
        mine = torch.arange(64).split(8)[rank::world]
        return [(ids.tolist(), draw(g, ids).tolist()) for ids in mine]

    whole, seen = draw(g, range(64)), []
    for ids, codes in (pair for found in on_many(world, work) for pair in found):
        assert torch.equal(torch.tensor(codes), whole[ids])
        seen += ids
    assert sorted(seen) == list(range(64))
    figures(ways=1, different=0)


def test_other_seeds_and_ids_differ():
    g = model()
    sample = draw(g, [17])[0]
    assert not torch.equal(draw(g, [17], seed=1)[0], sample)
    assert not torch.equal(draw(g, [27])[0], sample)


def test_caches_of_an_earlier_call_leave_no_trace():
    "The same sampler, used for other batches in between, repeats itself; its state is taken over, not made again."
    sampler = Sampling(guidance=2.0).sampler(model())

    def run(ids): return sampler.sample(Cond(labels=ids % 10), ids, Keyed(0), grid=GRID)

    first = run(torch.arange(8))
    state = sampler._state
    run(torch.arange(100, 108))
    assert torch.equal(run(torch.arange(8)), first)
    assert sampler._state is state


WORKER = """
import json, sys, torch
sys.path.insert(0, {root!r})
from tests.test_sampling import draw, model
from vgnb.processes import Processes
p = Processes()
mine = torch.arange(64).split(8)[p.rank::p.world]
codes = torch.cat([draw(model(), part) for part in mine])
ids = torch.cat(mine).tolist()
with open(f"{{sys.argv[1]}}/{{p.rank}}.json", "w") as f: json.dump([p.world, ids, codes.flatten(1).tolist()], f)
p.wait()
"""


@pytest.mark.fault("R2")
@pytest.mark.full
def test_two_processes_draw_what_one_draws(root, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(root=str(root)))
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    launch += [str(tmp_path)]
    done = subprocess.run(launch, env=env, capture_output=True, text=True, timeout=300)

    results = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("[01].json"))]
    assert [world for world, *_ in results] == [2, 2], done.stdout + done.stderr
    drawn = {i: codes for _, ids, rows in results for i, codes in zip(ids, rows)}
    assert [drawn[i] for i in range(64)] == draw(model(), range(64)).flatten(1).tolist()


def test_evaluation_size_is_bicubic_and_other_grids_work():
    "A model sampled on another grid than it was trained on, decoded, resized as the published evaluation does."
    torch.manual_seed(0)
    pipe = Pipeline(vqgan("tiny-shapes"), model(), grid=(6, 6))
    codes = pipe.codes([1, 2])
    assert codes.shape == (2, 36, 1)

    with torch.no_grad(): pixels = pipe.tokenizer.decode(codes.view(2, 6, 6))
    assert pixels.shape[-2:] == (48, 48)
    want = to_uint8(F.interpolate(pixels, size=(32, 32), mode="bicubic")).numpy()
    made = pipe.decode(codes, size=32)
    assert made.shape == (2, 32, 32, 3)
    assert np.abs(made.astype(int) - want.astype(int)).max() <= 1


@pytest.mark.parametrize("name", ["tiny-randar", "tiny-maskgit", "tiny-pgm"])
def test_two_streams_in_turn_are_two_streams(name):
    "Each run has a memory of its own, also where a third one begins and ends between two steps."
    pipe = from_pretrained(name)
    asked = [dict(labels=label, seed=seed, steps=6, order="halton") for label, seed in (("heart", 0), ("ring", 1))]
    alone = [list(pipe.stream(**one))[-1].codes() for one in asked]
    last = [None, None]
    for step, (first, second) in enumerate(zip(*(pipe.stream(**one) for one in asked), strict=True)):
        last = [first, second]
        if step == 2: pipe.sample("disc", steps=6, order="halton")
    assert all(torch.equal(step.codes(), codes) for step, codes in zip(last, alone))
