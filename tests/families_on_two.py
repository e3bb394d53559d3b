"""Gradients of every family of generators, shared out over two processes, held against those of each half by itself.

    python -m tests.families_on_two FOLDER      FOLDER/NAME.json: {parameter: difference, as a share of the largest}
"""
import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch._dynamo  # noqa: F401  (each process would import it with the first shared weight)
import torch.distributed.nn  # noqa: F401

import vgnb.generators.joint_queries  # noqa: F401  (registers its kind)
from tests.sharded_on_many import LINE, world
from vgnb.draws import At, Keyed
from vgnb.generators.joint_layers import joint_query_presets
from vgnb.generators.masked import masked_presets
from vgnb.generators.masked_text import MaskedTextConfig
from vgnb.generators.partition import partition_presets
from vgnb.generators.proposal import proposal_presets
from vgnb.generators.random_order import random_order_presets
from vgnb.generators.rar_files import annealed_order_presets
from vgnb.generators.raster import raster_presets
from vgnb.generators.semantic_detail import semantic_detail_presets
from vgnb.generators.two_streams import two_stream_presets
from vgnb.kinds import kind_of, kinds
from vgnb.processes import Processes
from vgnb.training.data_parallel import PhaseLoss
from vgnb.training.pieces import assembled
from vgnb.training.sharded import Sharded, Sharding, blocks_of, shard
from vgnb.training.tasks import GeneratorTask

FAMILIES = {
    "raster": raster_presets["tiny"],
    "random-order": random_order_presets["tiny"],
    "semantic-detail": semantic_detail_presets["tiny"],
    "annealed-order": annealed_order_presets["tiny"],
    "two-streams": two_stream_presets["tiny"],
    "joint-queries": joint_query_presets["tiny"],
    "proposal": proposal_presets["tiny"],
    "masked": masked_presets["tiny-shapes"],
    "masked-text": MaskedTextConfig(2, 32, 4, vocab=16, grid=(4, 4), code_dim=32, text_dim=24, text_tokens=5),
    "partition": partition_presets["tiny"],
    "partition-across": replace(partition_presets["tiny"], mode="interleave"),
}


def built(config) -> GeneratorTask:
    "A model whose layers all matter: none is zero."
    model = kinds[kind_of(config)].build(config, 0)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters(): p.add_(0.02 * torch.randn(p.shape, generator=g))
    return GeneratorTask(model.train())


def condition(model, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    "Labels, or made-up captions."
    if model.conditioned_on == "class": return {"labels": rows % model.classes}
    shape = 4, model.config.text_tokens, model.config.text_dim
    text = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    return {"text": text[rows], "mask": torch.ones(2, shape[1], dtype=torch.bool)}


def gradients(task, engine, half: int) -> dict[str, torch.Tensor]:
    "Of two of four made-up rows."
    model, g = task.modules["generator"], torch.Generator().manual_seed(1)
    n = torch.Size(model.grid).numel()
    codes = torch.stack([torch.randint(size, (4, n), generator=g) for size in model.vocab], -1)      # (4, n, L)
    rows = torch.arange(4).chunk(2)[half]
    batch = {"codes": codes[rows]} | condition(model, rows)
    engine(task.phases(0)[0], batch, {}, Keyed(0), At(rows, step=1)).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def compare(name: str, folder: Path):
    "One process's part."
    torch.set_num_threads(1)
    processes, task = Processes(), built(FAMILIES[name])
    halves = []
    for half in range(2):
        plain = copy.deepcopy(task)
        halves.append(gradients(plain, PhaseLoss(plain), half))
    shard(task, Sharding(pieces=2), processes)
    assert blocks_of(task.modules["generator"])
    found = gradients(task, Sharded(PhaseLoss(task)), processes.rank)
    assert {k for k, g in found.items() if g is None} == {k for k, g in halves[0].items() if g is None}
    mean = {k: (g + halves[1][k]) / 2 for k, g in halves[0].items() if g is not None}
    largest = max(g.abs().max() for g in mean.values())
    differences = {k: float((assembled(found[k]) - g).abs().max() / largest) for k, g in mean.items()}
    if processes.main: (folder / f"{name}.json").write_text(json.dumps(differences))


def main(folder: Path):
    for name in FAMILIES: world(2, LINE, lambda n=name: compare(n, folder))


if __name__ == "__main__": main(Path(sys.argv[1]))
