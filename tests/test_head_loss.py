"The loss in pieces: the same loss and gradients, fewer logits at once, refused by name where it can't be."
from dataclasses import replace

import pytest
import torch

from vgnb.core import BadInput
from vgnb.draws import At, Keyed
from vgnb.generators.generator import Cond
from vgnb.generators.masked import MaskedConfig, MaskedTransformer
from vgnb.generators.partition import PartitionConfig, PartitionTransformer
from vgnb.generators.random_order import RandomOrderConfig, RandomOrderTransformer
from vgnb.generators.raster import RasterConfig, RasterTransformer
from vgnb.generators.semantic_detail import SemanticDetailConfig, SemanticDetailTransformer
from vgnb.training.plan import trace
from vgnb.training.recipes import GeneratorRecipe
from vgnb.training.tasks import GeneratorTask

TINY = dict(vocab=40, grid=(3, 4), classes=5)
STREAM = dict(layers=2, dim=16, heads=2, ffn_multiple=8, **TINY)
MODELS = {
    "raster": lambda: RasterTransformer(RasterConfig(**STREAM)),
    "random order": lambda: RandomOrderTransformer(RandomOrderConfig(**STREAM)),
    "masked": lambda: MaskedTransformer(MaskedConfig(2, 16, 2, ffn=24, **TINY)),
    "masked, hidden cells, upstream": lambda: MaskedTransformer(
        MaskedConfig(2, 16, 2, ffn=24, loss_cells="hidden", compat="upstream", **TINY)),
    "partition": lambda: PartitionTransformer(PartitionConfig(1, 1, 16, 2, **TINY))}


def awake(model):
    "Heads and modulations begin at zero: then a gradient would say nothing."
    with torch.no_grad():
        for p in model.parameters():
            if not p.any(): p.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    return model.train()


def step(model, rows, valid, half):
    "(loss, its parts, gradients) of five samples, two of them together at a time."
    GeneratorTask(model, rows)
    model.zero_grad()
    codes = torch.randint(40, (5, 12, 1), generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = model(codes, Cond(labels=torch.arange(5)), Keyed(0), At(torch.arange(5), step=3), valid)
    (7 * loss.total).backward()
    return loss, {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("half", [False, True])
def test_pieces_are_the_whole(name, half):
    "Also where a sample counts for nothing, and in half precision, where only the low bits of bf16 differ."
    model, close = awake(MODELS[name]()), 0.05 if half else 1e-5
    for valid in (None, torch.tensor([1.0, 0.0, 1.0, 1.0, 0.5])):
        (whole, grads), (pieces, others) = (step(model, rows, valid, half) for rows in (0, 2))
        assert whole.parts.keys() == pieces.parts.keys() and grads.keys() == others.keys()
        for part, value in whole.parts.items(): assert torch.allclose(value, pieces.parts[part], atol=1e-5)
        for k, g in grads.items(): assert torch.allclose(g, others[k], rtol=0, atol=close * float(g.abs().max()))


def test_a_second_backward_pass_is_refused():
    "Its gradients are made in the forward pass and given away once."
    model = awake(MODELS["raster"]())
    GeneratorTask(model, 1)
    codes, cond = torch.zeros(2, 12, 1, dtype=torch.long), Cond(labels=torch.zeros(2, dtype=torch.long))
    total = model(codes, cond, Keyed(0), At(torch.arange(2))).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"): total.backward()


def test_who_takes_all_logits_at_once_says_so():
    c = SemanticDetailConfig(layers=1, dim=16, heads=2, head_layers=1, ffn_multiple=8, vocab=(8, 16), grid=(3, 4),
                             classes=5)
    with pytest.raises(BadInput, match="loss_rows.*SemanticDetailTransformer takes all logits"):
        GeneratorTask(SemanticDetailTransformer(c), 2)
    with pytest.raises(BadInput, match="loss_rows"): GeneratorRecipe(model=c, loss_rows=-1)


def test_the_plan_knows_of_it():
    "A codebook of 16,384: all logits of 8 samples at once, or those of one."
    model = RasterConfig(1, 32, 2, ffn_multiple=8, vocab=16384, grid=(4, 4), classes=5)
    asked = GeneratorRecipe(model=model, precision="fp32", batch=8)
    whole, pieces = (trace(replace(asked, loss_rows=rows), 8) for rows in (0, 1))
    assert pieces.flops == whole.flops, "nothing is computed twice"
    assert pieces.fullest["logits"] < 0.3 * whole.fullest["logits"]
