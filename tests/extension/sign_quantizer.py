"""A quantizer of one's own: a bit a channel, which is its sign."""
from dataclasses import dataclass

import torch

from vgnb.kinds import register_part
from vgnb.tokenizers.quantizers import Quantizer, straight_through
from vgnb.tokenizers.tokenizer import Quantized

@dataclass(frozen=True)
class SignConfig:
    "A bit a channel."
    bits: int = 6

    @property
    def vocab(self): return (2 ** self.bits,)

    @property
    def dim(self): return self.bits


class Sign(Quantizer):
    "Each channel is -1 or 1; the code is the number that its bits spell (arXiv 2310.05737)."
    def __init__(self, config=SignConfig()):
        super().__init__(config.vocab, config.dim)
        self.config = config
        self.register_buffer("place", 2 ** torch.arange(config.bits), persistent=False)

    def lookup(self, codes):
        bits = codes.long()[..., None] // self.place % 2
        return (2.0 * bits - 1).movedim(-1, 1)

    def unquantized(self, z): return z.float().tanh()

    def forward(self, z, draws=None, at=None, learn=True):
        y = self.unquantized(z)
        positive = y.detach() > 0
        codes = (positive.movedim(1, -1) * self.place).sum(-1)
        return Quantized(straight_through(y, 2.0 * positive - 1), codes, {})


register_part("quantizer", "sign", SignConfig(), Sign)
