"""Every kind of codebook update on batches that the processes share; run by the tests on one process and two.

    python -m tests.codebooks_on_two FOLDER
"""
import json
import sys
from pathlib import Path

import torch

from vgnb.draws import At, Keyed
from vgnb.processes import Processes
from vgnb.saved import save_tensors
from vgnb.tokenizers.codebook_updates import Anchors, Ema, Normalise
from vgnb.tokenizers.fsq import FSQConfig
from vgnb.tokenizers.quantizers import Revive, VectorConfig, build_quantizer, set_sync
from vgnb.tokenizers.semantic_detail_vq import SemanticDetailConfig
from vgnb.tokenizers.streamed_kmeans import Clusters, stream_kmeans

def table(*updates, size=24, **kw):
    "A table of 4 channels that only updates move."
    return VectorConfig(size, 4, usage=0, updates=updates, **kw)


CASES = {
    "ema": table(Ema(0.9), vq=0.0),
    "ema of any length": table(Ema(0.9), l2=False),
    "vq-kd": table(Normalise(), Ema(), search="cosine", vq=0.0, beta=1.0, unit_losses=True),
    "nearest anchors": table(Anchors(), l2=False),
    "nearest anchors by angle": table(Anchors(), l2=False, search="cosine", beta=0.0),
    "multinomial anchors": table(Anchors("multinomial"), l2=False),
    "cached anchors": table(Anchors("cached"), l2=False),
    "cached anchors of small batches": table(Anchors("cached"), l2=False, size=100),
    "cached anchors, each process its own": table(Anchors("cached", joined=False), l2=False, size=100),
    "anchors on the sphere": table(Normalise(), Anchors()),
    "anchors and revival": table(Anchors(), Ema(), Revive(2), l2=False),
    "semantic and detail": SemanticDetailConfig(8, 16, 4, usage=0, updates=(Ema(0.9), Anchors("cached"))),
    "plain, with a meter": VectorConfig(24, 4, usage=150),
    "plain rows of any length, with a meter": VectorConfig(24, 4, l2=False, usage=150, entropy=0.1),
    "ema and anchors, with a meter": VectorConfig(24, 4, usage=64, updates=(Ema(0.9), Anchors()), vq=0.0),
    "fsq": FSQConfig((5, 4, 3, 3), usage=0),
    "fsq with a meter": FSQConfig((5, 4, 3, 3), usage=150),
}
STEPS, BATCH = 5, 8


def batches(scale=3.0):
    "What all processes see together: (8, 4, 10) features a step."
    g = torch.Generator().manual_seed(0)
    return [scale * torch.randn(BATCH, 4, 10, generator=g) + step for step in range(STEPS)]


def begun(config):
    "A quantizer whose tables are the same wherever it is made."
    quantizer, g = build_quantizer(config), torch.Generator().manual_seed(0)
    for p in quantizer.parameters(): p.data.copy_(torch.randn(p.shape, generator=g) / 3)
    return quantizer


def trained(config, sync=None, rank=0, world=1) -> dict:
    "The state of a quantizer that has seen one process's share of the batches."
    quantizer = begun(config).train()
    if sync is not None: set_sync(quantizer, sync)
    own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    small = len(batches()[0]) * 10 < max(config.vocab)
    for step, batch in enumerate(batches()):
        if step == 1 and not small: quantizer.kmeans_init(batch[own], Keyed(1), 3)
        ids = torch.arange(BATCH)[own]
        quantizer(batch[own], Keyed(0), At(ids, step=step))
    return {k: v.clone() for k, v in quantizer.state_dict().items()}


def clustered(sync=None, rank=0, world=1, size=7) -> torch.Tensor:
    "Centres of a stream of which each process sees every world-th batch."
    rows = torch.cat([b.movedim(1, -1).reshape(-1, 4) for b in batches()])
    parts = list(zip(torch.arange(len(rows)).split(size), rows.split(size)))[rank::world]
    more = {} if sync is None else {"sync": sync}
    return stream_kmeans(lambda start: parts[start:], Clusters(12, 4), Keyed(0), 5, **more)


def main(out: Path):
    torch.set_num_threads(1)
    processes = Processes()
    where = dict(sync=processes, rank=processes.rank, world=processes.world)
    states = {f"{name}/{k}": v for name, config in CASES.items() for k, v in trained(config, **where).items()}
    states["clusters/table"] = clustered(**where)
    out.mkdir(parents=True, exist_ok=True)
    save_tensors(out / f"states-{processes.rank}.safetensors", states)
    if processes.main: (out / "world.json").write_text(json.dumps(processes.world))


if __name__ == "__main__": main(Path(sys.argv[1]))
