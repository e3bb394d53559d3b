"The VQ-KD framework's quantizers: looked at in eval mode, trained step by step, and FSQ."
import torch

from tests.parity.harness import adapter
from tests.parity.llamagen_tokenizer import filled
from vgnb.draws import At, Race, Recorded
from vgnb.names import NameTable
from vgnb.tokenizers.nearest import distances
from vgnb.tokenizers.quantizers import build_quantizer
from vgnb.tokenizers.vqkd_quantizers import published_start, quantizer_rules, read_quantizer

def built(case):
    "The quantizer of a case, with its published entries."
    config = read_quantizer(case.config, compat="upstream")
    return filled(case, (build_quantizer(config), NameTable(*quantizer_rules(config, "", ""))))


PARTS = {
    "VQGANLoss": ("vq", "commit"),
    "CodebookLoss": ("vq",),
    "CommitmentLoss": ("commit",),
}


@adapter("vqkd", "*VQGANQuantizer")
@adapter("vqkd", "*VQKDQuantizer")
def looked_at(case):
    quantizer, x = built(case).eval(), case["in.x"].clone().requires_grad_()
    found = quantizer(x)
    loss = sum(found.losses.values())
    ((found.z * case["in.gz"]).sum() + loss).backward()
    rows, features = quantizer.rows().detach(), quantizer.flat(x).detach()
    shown = case.outs["out.distance"][0][0]
    out = {
        "out.quant": found.codes,
        "out.z": found.z,
        "out.x_after": features,
        "out.distance": distances(features[:shown], rows, quantizer.config.search),
        "out.loss": loss,
        "out.grad_x": x.grad,
        "out.decode": quantizer.lookup(found.codes),
        "out.weight_after": quantizer.table,
    }
    for name, spec in case.config["losses"].items():
        out[f"out.loss_{name}"] = sum(found.losses.get(part, torch.zeros(())) for part in PARTS[spec["type"]])
    return out


def steps(case):
    "Step and input of each recorded step."
    count = sum(name.startswith("in.x") for name in case.inputs)
    return [(s, case[f"in.x{s}"]) for s in range(count)]


@adapter("vqkd", "*VQGANQuantizer + CVQVAECallback*")
def anchored(case):
    quantizer, out = built(case).train(), {}
    anchoring, = (u for u in quantizer.updates if hasattr(u, "probability"))
    for s, x in steps(case):
        tape = {}
        if f"in.anchor_noise{s}" in case: tape["anchor"] = Race(case[f"in.anchor_noise{s}"][None])
        if f"in.anchor_index{s}" in case: tape["anchor"] = case[f"in.anchor_index{s}"][None]
        found = quantizer(x, Recorded(tape), At(torch.arange(len(x)), step=s))
        out[f"out.quant{s}"], out[f"out.z{s}"] = found.codes, found.z
        out[f"out.loss{s}"] = sum(found.losses.values())
        out[f"out.prob{s}"] = anchoring.probability.clone()
        out[f"out.weight{s}"] = quantizer.table.detach().clone()
    return out


def start_iterations(config) -> int:
    "How often Lloyd's step is made before the first forward pass."
    lazy = config.get("init_weights", {}).get("before_init_weights", {}).get("lazy_init_weights", {})
    return lazy.get("iters", 10)


@adapter("vqkd", "*VQKDQuantizer + VQKDCallback*")
def followed(case):
    quantizer, out = built(case).train(), {}
    first = case.inputs.get("in.kmeans_init_indices")
    tape = {} if first is None else {"kmeans": first[None]}
    published_start(quantizer, case["in.x0"], Recorded(tape), start_iterations(case.config))
    for s, x in steps(case):
        x = x.clone().requires_grad_()
        found = quantizer(x)
        loss = sum(found.losses.values())
        ((found.z * case[f"in.gz{s}"]).sum() + loss).backward()
        out[f"out.quant{s}"], out[f"out.z{s}"], out[f"out.loss{s}"] = found.codes, found.z, loss
        out[f"out.grad_x{s}"] = x.grad
        out[f"out.weight{s}"] = quantizer.table.detach().clone()
    return out


@adapter("vqkd", "*FiniteScalarQuantizer")
def fsq(case):
    config = read_quantizer(case.config)
    names = NameTable(*quantizer_rules(config, "", ""))
    quantizer, x = build_quantizer(config).eval(), case["in.x"].clone().requires_grad_()
    found = quantizer(x)
    (found.z * case["in.gz"]).sum().backward()
    size, head = config.vocab[0], case.outs["out.codebook_head"][0][0]
    tail = case.outs["out.codebook_tail"][0][0]
    return {
        "out.z": found.z,
        "out.quant": found.codes,
        "out.loss": torch.tensor(float(sum(found.losses.values()))),
        "out.grad_x": x.grad,
        "out.decode": quantizer.lookup(found.codes),
        "out.codebook_head": quantizer.lookup(torch.arange(head)),
        "out.codebook_tail": quantizer.lookup(torch.arange(size - tail, size)),
        "out.codebook_size": torch.tensor(size),
        "out.embeddings_head": names.export(quantizer.state_dict(), quantizer)["_embeddings"][:head],
    }
