"The VQ-KD framework's discriminators: PatchGAN of any depth in both modes, StyleGAN2's."
import math

import torch

from tests.parity.harness import adapter
from tests.parity.llamagen_tokenizer import filled
from vgnb.families import published_model
from vgnb.tokenizers.losses import discriminator_loss, generator_loss, r1_penalty

def critic_of(case):
    return published_model(case.config, case.spec["upstream_class"], "vqkd")


@adapter("vqkd", "*.PatchGANDiscriminator")
def patchgan(case):
    model, names = critic_of(case)
    critic, image = filled(case, (model, names)).eval(), case["in.image"]
    with torch.no_grad():
        still = critic(image)
        moving = critic.train()(image)
        other = critic.eval()(case["in.image2"])
    published = names.export(critic.state_dict())
    moved = {f"out.after_train_{name.replace('.', '_')}": v for name, v in published.items() if ".running_" in name}
    return moved | {
        "out.logits_eval": still,
        "out.logits_train": moving,
        "out.logits2_eval": other,
        "out.hinge_d": discriminator_loss("hinge", other, still),
        "out.gen": generator_loss("hinge", still),
        "out.nonsat": generator_loss("non-saturating", still),
        "out.r1": r1_penalty(critic, image),
    }


@adapter("vqkd", "*.StyleGAN2Discriminator")
@torch.no_grad()
def stylegan2(case):
    model, names = critic_of(case)
    kept = names.export(model.state_dict(), model)
    state = case.fill() | {name: kept[name] for name in case.spec["keep"]}
    for name, value in state.items():
        if name.endswith("_original_weight"): state[name] = value * math.sqrt(math.prod(value.shape[1:]))
    critic = names.load_into(model, state, case.name)
    return {"out.logits": critic(case["in.image"])}
