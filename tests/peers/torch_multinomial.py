"""The draw of a token as torch has it: probabilities, then a category that consumes a generator.

    python scripts/bench.py C11 --versus tests/peers/torch_multinomial.py
"""
import torch

from vgnb.evaluation.bench import drawing_by

ORIGIN = f"torch.multinomial, torch {torch.__version__}"


def load(config, weights): return None


def run(model, inputs):
    "Tokens (rows,)."
    with drawing_by(inputs["noise"], lambda call: (inputs["cells"], 0)):
        return torch.multinomial(inputs["logits"].softmax(-1), 1)[:, 0]
