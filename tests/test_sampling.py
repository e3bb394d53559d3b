"""The promise about samples: sample 17 of seed 0 is the same tokens at any batch size, in any order, on one process or two, by any route."""
import json
import os
import subprocess
import sys

import pytest
import torch

from vgnb.draws import Keyed
from vgnb.generators.generator import Cond, Grid
from vgnb.generators.raster import RasterTransformer, raster_presets
from vgnb.sampling.settings import Sampling

def model(dtype=torch.float32):
    g = RasterTransformer(raster_presets["tiny"], seed=1)
    torch.nn.init.normal_(g.head.weight, 0, 0.1, generator=torch.Generator().manual_seed(2))
    return g.to(dtype).eval()


def draw(g, ids, **kw):
    "Codes (b, 16, 1) of sample ids; the class follows from the id."
    ids = torch.as_tensor(ids)
    return Sampling(cfg_scale=2.0, top_k=100, **kw).sampler(g).sample(Cond(labels=ids % 10), ids, Keyed(0), grid=Grid((4, 4)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sample_17_is_the_same_at_any_batch_size(dtype):
    g = model(dtype)
    alone = draw(g, [17])[0]
    for batch in (1, 2, 7, 64):
        first = 17 // batch * batch
        assert torch.equal(draw(g, range(first, first + batch))[17 - first], alone), batch
    mixed = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    whole = draw(g, range(64))
    assert torch.equal(draw(g, mixed), whole[mixed])
    assert len({tuple(c.flatten().tolist()) for c in whole}) > 55, "different ids must give different samples"


def test_other_seeds_and_ids_differ():
    g = model()
    other = Sampling(cfg_scale=2.0, top_k=100).sampler(g).sample(Cond(labels=torch.tensor([7])), torch.tensor([17]), Keyed(1), grid=Grid((4, 4)))
    assert not torch.equal(other[0], draw(g, [17])[0]) and not torch.equal(draw(g, [27])[0], draw(g, [17])[0])


def test_caches_of_an_earlier_call_leave_no_trace():
    "The same sampler object, used for other batches in between, repeats itself; its state is taken over, not made again."
    g = model()
    sampler = Sampling(cfg_scale=2.0).sampler(g)
    run = lambda ids: sampler.sample(Cond(labels=ids % 10), ids, Keyed(0), grid=Grid((4, 4)))
    first = run(torch.arange(8)); state = sampler._state
    run(torch.arange(100, 108))
    assert torch.equal(run(torch.arange(8)), first) and sampler._state is state


WORKER = """
import json, sys, torch
sys.path.insert(0, {root!r})
from tests.test_sampling import draw, model
from vgnb.processes import Processes
p = Processes()
ids = torch.arange(64).split(8)[p.rank::p.world]
codes = [draw(model(), part) for part in ids]
print("RESULT", json.dumps([p.world, [int(i) for part in ids for i in part], torch.cat(codes).flatten(1).tolist()]), flush=True)
p.wait()
"""


def test_two_processes_draw_what_one_draws(root, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(root=str(root)))
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    r = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)], env=env, capture_output=True, text=True, timeout=300)
    results = [json.loads(l.split("RESULT", 1)[1]) for l in r.stdout.splitlines() if "RESULT" in l]
    assert len(results) == 2 and all(world == 2 for world, *_ in results), r.stdout + r.stderr
    got = {i: codes for _, ids, rows in results for i, codes in zip(ids, rows)}
    whole = draw(model(), range(64)).flatten(1).tolist()
    assert [got[i] for i in range(64)] == whole


def test_evaluation_size_is_bicubic_and_other_grids_work():
    "A model sampled on another grid than it was trained on, decoded, resized as the published evaluation does."
    import numpy as np
    import torch.nn.functional as F

    from vgnb.data.transforms import to_uint8
    from vgnb.pipeline import Pipeline
    from vgnb.tokenizers.vqgan import vqgan
    torch.manual_seed(0)
    pipe = Pipeline(vqgan("tiny-shapes"), model(), grid=(6, 6))
    codes = pipe.codes([1, 2])
    assert codes.shape == (2, 36, 1)
    with torch.no_grad(): pixels = pipe.tokenizer.decode(codes.view(2, 6, 6))
    assert pixels.shape[-2:] == (48, 48)
    want = to_uint8(F.interpolate(pixels, size=(32, 32), mode="bicubic")).numpy()
    got = pipe.decode(codes, size=32)
    assert np.abs(got.astype(int) - want.astype(int)).max() <= 1 and got.shape == (2, 32, 32, 3)
