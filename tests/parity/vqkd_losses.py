"The VQ-KD framework's losses on fixed inputs, and its weights over time."
import re

import torch

from tests.parity.harness import adapter
from vgnb.tokenizers.loss_weights import Constant, Decay, Defer, HalfWave, InTurn, Product, Steps, Until, WarmUp
from vgnb.tokenizers.losses import discriminator_loss, generator_loss
from vgnb.tokenizers.nearest import assignment_entropy
from vgnb.tokenizers.objectives import VQGANLoss, VQGANLossConfig
from vgnb.tokenizers.quantizers import VectorConfig, VectorQuantizer
from vgnb.tokenizers.reconstruction_losses import bounded, cosine_distance

def decimal(digits: str) -> float:
    "`025` -> 0.25, `1` -> 1."
    return float(f"0.{digits[1:]}") if digits.startswith("0") and len(digits) > 1 else float(digits)


@adapter("vqkd", "losses")
def losses(case):
    rows, features = case["in.z"], case["in.x"]
    real, fake = case["in.logits_real"], case["in.logits_fake"]

    def of_quantizer(**kw):
        "A quantizer's losses for these features and the rows they got."
        config = VectorConfig(4, features.shape[1], l2=False, usage=0, **kw)
        return VectorQuantizer(config).losses(features, rows)

    hinge = discriminator_loss("hinge", real, fake)
    tokens = cosine_distance(case["in.a"], case["in.b"])
    pixels = VQGANLoss(VQGANLossConfig(l2=1, l1=1, lpips=0, gan=0))
    _, images = pixels.base(case["in.image"], case["in.pred_image"])
    out = {
        "out.codebook": of_quantizer()["vq"],
        "out.commitment": of_quantizer(beta=1.0)["commit"],
        "out.commitment_norm": of_quantizer(beta=1.0, unit_losses=True)["commit"],
        "out.entropy": assignment_entropy(case["in.distance"], case.config["entropy_temperature"], "upstream"),
        "out.cosine_embedding": tokens.mean(),
        "out.cosine_embedding_none": tokens,
        "out.d_hinge": hinge,
        "out.bounded": bounded(hinge, 0.1),
        "out.g_gan": generator_loss("hinge", fake),
        "out.g_nonsat": generator_loss("non-saturating", fake),
        "out.image_L1Loss": images["l1"],
        "out.image_MSELoss": images["l2"],
    }
    for name in case.outs:
        if found := re.fullmatch(r"out\.vqgan_beta(\d+)(?:_weight(\d+))?", name):
            beta, weight = decimal(found[1]), decimal(found[2] or "1")
            out[name] = sum(of_quantizer(vq=weight, beta=weight * beta).values())
        if found := re.fullmatch(r"out\.d_hinge_w(\d+)", name): out[name] = decimal(found[1]) * hinge
    return out


WEIGHTS = {     # of a scheduler's arguments
    "constant": lambda c: Constant(),
    "warmup": lambda c: WarmUp(start=c["start"], end=c["end"]),
    "decay": lambda c: Decay(start=c["start"], end=c["end"]),
    "defer": lambda c: Defer(to=c["to"]),
    "early_stop": lambda c: Until(at=c["at"]),
    "step": lambda c: Steps(milestones=tuple(c["milestones"]), gamma=c["gamma"]),
    "cosine": lambda c: HalfWave(duration=c["duration"], floor=c.get("min", 0.0), compat="upstream"),
    "chained": lambda c: Product(parts=tuple(map(weight, c["schedulers"]))),
    "sequential": lambda c: InTurn(parts=tuple(map(weight, c["schedulers"])), milestones=tuple(c["milestones"])),
}


def weight(spec):
    "Our schedule for a scheduler in the framework's words."
    return Product(parts=(Constant(gain=spec.get("gain", 1.0)), WEIGHTS[spec["type"]](spec)))


@adapter("vqkd", "todd.models.losses.schedulers")
def loss_weights(case):
    out = {}
    for name, (shape, _) in case.outs.items():
        found = weight(case.config[name.removeprefix("out.")])
        out[name] = torch.tensor([found(step) for step in range(1, shape[0] + 1)], dtype=torch.float64)
    return out
