"""A tokenizer and an objective of one's own: a decoder that moves noise to the picture, and a teacher for the codes."""
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vgnb.data.transforms import Augment, resize_bicubic
from vgnb.families import Family, register
from vgnb.kinds import register_part
from vgnb.tokenizers.objectives import Objective
from vgnb.tokenizers.quantizers import VectorConfig, build_quantizer
from vgnb.tokenizers.tokenizer import Quantized, Reconstruction, Tokenizer
from vgnb.training.recipes import Optim, TokenizerRecipe, recipes

@dataclass(frozen=True)
class FlowTokenizerConfig:
    "What decides the tokenizer."
    width: int = 16                                # channels of the decoder
    steps: int = 3                                 # of the decoder, from noise to picture
    quantizer: Any = VectorConfig(16, 4, usage=0)  # or another part of its shelf

    @property
    def factor(self): return 8


class FlowTokenizer(Tokenizer):
    "One convolution encodes; the decoder is told codes, a noisy picture and the time, and says where to move it."
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.factor = config.factor
        self.quantizer = build_quantizer(config.quantizer)
        self.vocab = self.quantizer.vocab
        self.encoder = nn.Conv2d(3, self.quantizer.dim, self.factor, self.factor)
        first = nn.Conv2d(3 + self.quantizer.dim + 1, config.width, 3, padding=1)
        self.decoder = nn.Sequential(first, nn.SiLU(), nn.Conv2d(config.width, 3, 3, padding=1))

    def kmeans_init(self, images, draws, iterations=10):
        self.quantizer.kmeans_init(self.encoder(images), draws, iterations)

    def quantize(self, images): return self.quantizer(self.encoder(self.check_images(images)), learn=False)

    def lookup(self, codes): return self.quantizer.lookup(self.shaped(codes))

    def velocity(self, z, noisy, time):
        "Where noisy pictures (b, 3, h, w) go at their times (b, 1, 1, 1)."
        codes = F.interpolate(z, scale_factor=self.factor)
        return self.decoder(torch.cat((noisy, codes, time.expand_as(noisy[:, :1])), 1))

    def forward(self, images, draws=None, at=None, quantize=True):
        features = self.encoder(images)
        q = self.quantizer(features, draws, at) if quantize else Quantized(features, None, {})
        time = draws.uniform("flow.time", at)[:, None, None, None]
        noise = draws.normal("flow.noise", at, *images.shape[1:])
        guess = self.velocity(q.z, (1 - time) * noise + time * images, time)
        return Reconstruction(noise + guess, q, {"velocity": guess, "noise": noise})

    def render(self, z, *, draws=None, at=None, size=None):
        h, w = (side * self.factor for side in z.shape[-2:])
        x = draws.normal("flow.start", at, 3, h, w)
        for step in range(self.config.steps):
            time = x.new_full((len(x), 1, 1, 1), step / self.config.steps)
            x = x + self.velocity(z, x, time) / self.config.steps
        return x.clamp(-1, 1) if size is None else resize_bicubic(x.clamp(-1, 1), size)


@dataclass(frozen=True)
class TaughtFlowConfig:
    "Weights of the objective's parts."
    align: float = 0.5      # likeness of codes and what the teacher sees
    dim: int = 4            # channels of the codes' rows
    teacher: int = 8        # of the teacher's features


class Flow(Objective):
    "Flow matching (arXiv 2210.02747 eq. 21), and codes that are like a frozen teacher's features (arXiv 2410.06940)."
    def __init__(self, config):
        self.config = config
        project = nn.Conv2d(config.dim, config.teacher, 1)
        super().__init__({"project": project}, {"teacher": nn.Conv2d(3, config.teacher, 8, 8)})

    def loss(self, phase, images, made, carry, draws, at):
        flow = F.mse_loss(made.extras["velocity"], images - made.extras["noise"])
        ours = self.modules["project"](made.quantized.z)
        align = 1 - F.cosine_similarity(ours, self.helpers["teacher"](images)).mean()
        total = flow + self.config.align * align + sum(made.quantized.losses.values())
        return total, {"flow": flow.detach(), "align": align.detach()}


register(Family("flow-tokenizer", FlowTokenizerConfig, FlowTokenizer, role="tokenizer"))
register_part("objective", "flow", TaughtFlowConfig(), lambda config, weights, size: Flow(config))


@recipes.register
def shapes_flow() -> TokenizerRecipe:
    """A toy of a diffusion decoder on *shapes*, with a teacher beside it.

    Result: none is published.
    Command:

        python scripts/train_tokenizer.py shapes-flow --data shapes:// --out runs/shapes-flow"""
    return TokenizerRecipe(
        model=FlowTokenizerConfig(),
        loss=TaughtFlowConfig(),
        data="shapes://?n=64&size=32",
        augment=Augment("center", 32),
        optim=Optim(lr=3e-3),
        free_steps=2,
        steps=6,
        batch=16,
        precision="fp32")
