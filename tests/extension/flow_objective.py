"""An objective of one's own: the decoded picture guides a flow from noise, and a frozen teacher looks at the codes."""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from tests.extension.sign_quantizer import SignConfig
from vgnb.kinds import Kind, kinds
from vgnb.tokenizers.conv_tokenizer import changed
from vgnb.tokenizers.objectives import Objective
from vgnb.training.recipes import TokenizerRecipe, recipe, recipes

@dataclass(frozen=True)
class FlowConfig:
    "Weights of the parts."
    flow: float = 1.0
    align: float = 0.5       # likeness of codes and what the teacher sees
    dim: int = 6             # channels of what is decoded
    teacher: int = 8         # width of the teacher


class Flow(Objective):
    "Flow matching (arXiv 2210.02747 eq. 21) under the decoded picture, and features like a teacher's."
    def __init__(self, config):
        self.config = config
        velocity = nn.Conv2d(7, 3, 3, padding=1)                    # the noisy picture, the decoded one, the time
        project = nn.Conv2d(config.dim, config.teacher, 1)
        super().__init__({"velocity": velocity, "project": project}, {"teacher": nn.Conv2d(3, config.teacher, 8, 8)})

    def loss(self, phase, images, made, carry, draws, at):
        time = draws.uniform("time", at)[:, None, None, None]
        noise = draws.normal("noise", at, *images.shape[1:])
        noisy = (1 - time) * noise + time * images
        seen = torch.cat((noisy, made.output, time.expand_as(images[:, :1])), 1)
        flow = F.mse_loss(self.modules["velocity"](seen), images - noise)

        ours = self.modules["project"](made.quantized.z)
        theirs = self.helpers["teacher"](images)
        align = 1 - F.cosine_similarity(ours, theirs).mean()
        parts = {"flow": flow.detach(), "align": align.detach()}
        return self.config.flow * flow + self.config.align * align, parts


kinds.register(Kind(FlowConfig, lambda config, weights, size: Flow(config)), name="objective.flow")


@recipes.register
def shapes_flow() -> TokenizerRecipe:
    "The quickstart's tokenizer, towards a flow with a teacher beside it."
    shapes = recipe("shapes-tokenizer")
    return TokenizerRecipe(
        model=changed(shapes.model, width=16, groups=8, quantizer=SignConfig()),
        data="shapes://?n=64&size=32",
        augment=shapes.augment,
        loss=FlowConfig(),
        steps=6,
        batch=8)
