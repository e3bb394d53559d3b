"Halton-MaskGIT's network for captions."
import torch

from tests.parity.harness import adapter
from vgnb.generators.generator import Cond
from vgnb.generators.masked_text import MaskedTextTransformer, halton_text_config, halton_text_names


@adapter("halton", "Network.txt_transformer.Transformer")
@torch.no_grad()
def transformer(case):
    text, codes = case["in.y"], case["in.x"].flatten(1)
    config = halton_text_config(case.config, text_tokens=text.shape[1], compat="upstream")
    m, hidden = halton_text_names.load_into(MaskedTextTransformer(config), case.fill(), case.name).eval(), codes == config.vocab
    plain = codes.masked_fill(hidden, 0)
    gone = text.masked_fill(case["in.drop"][:, None, None], 0)
    return {"out.logits": m.logits(plain, Cond(text=gone), hidden)[0], "out.logits_nodrop": m.logits(plain, Cond(text=text), hidden)[0]}
