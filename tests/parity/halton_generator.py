"Halton-MaskGIT's generator side: the masked transformer, both samplers, orders, schedules, masks, training steps."
import torch

from tests.parity.harness import adapter
from vgnb.generators.generator import Cond
from vgnb.generators.masked import MaskedTransformer, halton_config, halton_names


def model(case, spec=None, **changes):
    "The case's model, loaded through the importer; single entries are set as the case says."
    state = case.fill()
    for name, o in (case.spec.get("override") or {}).items(): state[name][o["index"]] = o["value"]
    spec = case.config if spec is None else spec
    return halton_names.load_into(MaskedTransformer(halton_config(spec, compat="upstream", **changes)), state, case.name).eval()


@adapter("halton", "Network.transformer.Transformer")
@torch.no_grad()
def transformer(case):
    m, codes = model(case), case["in.x"].flatten(1)
    hidden, out = codes == m.config.vocab, {}
    for name, gone in (("out.logits", case["in.drop"]), ("out.logits_flip", ~case["in.drop"])):
        cond = Cond(torch.where(gone, m.config.classes, case["in.y"]))
        out[name], = m.logits(codes.masked_fill(hidden, 0), cond, hidden, seen=case.inputs.get("in.mask"))
    return out
