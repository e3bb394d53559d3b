"Multiplications and additions of a run, those of oneDNN's products included."
from math import prod

import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def of_a_product(x_shape, weight_shape, *args, **kw) -> int: return 2 * prod(x_shape) * weight_shape[0]


def counted(run) -> tuple:
    "(what a run gives, its multiplications and additions in units of 1e9)."
    with FlopCounterMode(display=False) as counter, torch.no_grad(): made = run()
    return made, round(counter.get_total_flops() / 1e9, 2)
