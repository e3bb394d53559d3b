"""LlamaGen's sampler a second time, for tests of `scripts/bench.py`: plain loops, no memory of keys and values.

    python scripts/bench.py C1 --small --versus tests/peers/uncached_raster.py

The weights come under the authors' names. A class stands in front; its rotary entries are zeros, as published.
"""
import math

import torch
import torch.nn.functional as F

from vgnb.evaluation.bench import drawing_by

def load(config, weights):
    "Whatever `run` needs."
    spec = config["spec"]
    width = spec["dim"] // spec["n_head"]
    return {
        "weights": weights,
        "heads": spec["n_head"],
        "layers": spec["n_layer"],
        "turns": turns(math.isqrt(config["cells"]), width),
        "scale": config["sampling"]["guidance"]["scale"],
        "null": len(weights["cls_embedding.embedding_table.weight"]) - 1}


def turns(side, width):
    "Complex factors (1 + cells, width / 2): a quarter of the channels by the row, a quarter by the column."
    rates = 10000.0 ** -(torch.arange(0, width // 2, 2) / (width // 2))
    angles = torch.arange(side)[:, None] * rates
    by_row = angles.repeat_interleave(side, 0)
    by_column = angles.repeat(side, 1)
    turned = torch.polar(torch.ones(side * side, width // 2), torch.cat((by_row, by_column), 1))
    return torch.cat((torch.zeros(1, width // 2, dtype=turned.dtype), turned))


def normed(x, weight):
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight


def turned(x, factors):
    "x (b, n, heads, width), each pair of channels as one complex number."
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * factors[:, None]).flatten(-2)


def attention(x, model, name):
    "Each place looks at itself and at those before."
    n = x.shape[1]
    q, k, v = (x @ model["weights"][f"{name}.wqkv.weight"].T).chunk(3, -1)
    q, k, v = (t.unflatten(-1, (model["heads"], -1)) for t in (q, k, v))
    q, k = (turned(t, model["turns"][:n]) for t in (q, k))
    scores = torch.einsum("bihc,bjhc->bhij", q, k) / math.sqrt(q.shape[-1])
    ahead = torch.ones(n, n).triu(1).bool()
    shares = scores.masked_fill(ahead, -torch.inf).softmax(-1)
    return torch.einsum("bhij,bjhc->bihc", shares, v).flatten(2) @ model["weights"][f"{name}.wo.weight"].T


def last_logits(model, labels, tokens):
    "(b, V) behind the class and the tokens so far, all of it computed."
    w = model["weights"]
    x = torch.cat((w["cls_embedding.embedding_table.weight"][labels][:, None], w["tok_embeddings.weight"][tokens]), 1)
    for i in range(model["layers"]):
        x = x + attention(normed(x, w[f"layers.{i}.attention_norm.weight"]), model, f"layers.{i}.attention")
        y, ffn = normed(x, w[f"layers.{i}.ffn_norm.weight"]), f"layers.{i}.feed_forward"
        gated = F.silu(y @ w[f"{ffn}.w1.weight"].T) * (y @ w[f"{ffn}.w3.weight"].T)
        x = x + gated @ w[f"{ffn}.w2.weight"].T
    return normed(x[:, -1], w["norm.weight"]) @ w["output.weight"].T


def run(model, inputs):
    "Tokens (b, n, 1)."
    labels = inputs["labels"]
    tokens = torch.zeros(len(labels), 0, dtype=torch.long)
    with drawing_by(inputs["noise"], lambda call: (torch.full((len(labels), 1), call), call)):
        for _ in range(len(model["turns"]) - 1):
            asked = last_logits(model, labels, tokens)
            free = last_logits(model, torch.full_like(labels, model["null"]), tokens)
            p = (free + (asked - free) * model["scale"]).softmax(-1)
            tokens = torch.cat((tokens, torch.multinomial(p, 1)), 1)
    return tokens[..., None]
