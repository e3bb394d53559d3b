"The VQ-KD framework's learning rates, and LARS."
import torch
from torch import nn

from tests.parity.harness import adapter
from vgnb.training.optimizers import make_optimizer
from vgnb.training.recipes import Optim, Rate, rate_at

def rate(base: float, spec: dict) -> tuple[Rate, int]:
    "(our rate, length of the run) for a scheduler in torch's words."
    if spec["type"] == "CosineAnnealingLR":
        return Rate("cosine", floor=spec.get("eta_min", 0.0) / base), spec["T_max"]
    climb, fall = spec["schedulers"]
    begun, = spec["milestones"]
    known = (spec["type"], climb["type"], fall["type"]) == ("SequentialLR", "LinearLR", "CosineAnnealingLR")
    assert known, spec
    shape = Rate("cosine", warmup=climb["total_iters"], begin=climb["start_factor"], hold=begun,
                 floor=fall.get("eta_min", 0.0) / base)
    return shape, begun + fall["T_max"]


@adapter("vqkd", "todd LRScheduleCallback")
def rates(case):
    out = {}
    for name, spec in case.config["schedules"].items():
        base, (shape, length) = spec["base_lr"], rate(spec["base_lr"], spec["scheduler"])
        asked = spec["iterations"]
        steps = asked if isinstance(asked, list) else range(asked)
        out[f"out.{name}"] = torch.tensor([base * rate_at(shape, i, length) for i in steps], dtype=torch.float64)
    return out


@adapter("vqkd", "LARSOptimizer")
def lars(case):
    c, out = case.config, {}
    named = {f"p{n}": nn.Parameter(case[f"in.p{n}"].clone()) for n in (0, 1)}
    optim = Optim("lars", lr=c["lr"], betas=(c["momentum"], 0.0), weight_decay=c["weight_decay"],
                  trust=c["trust_coefficient"])
    optimizer = make_optimizer(optim, named)
    for step in range(sum(name.endswith("_0") for name in case.inputs)):
        for n, p in enumerate(named.values()): p.grad = case[f"in.grad{step}_{n}"].clone()
        optimizer.step()
        for n, p in enumerate(named.values()): out[f"out.p{n}_after{step}"] = p.detach().clone()
    return out
