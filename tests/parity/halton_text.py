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
    m = halton_text_names.load_into(MaskedTextTransformer(config), case.fill(), case.name).eval()
    hidden = codes == config.vocab
    known = codes.masked_fill(hidden, 0)[..., None]
    some_gone = text.masked_fill(case["in.drop"][:, None, None], 0)
    return {
        "out.logits": m.logits(known, Cond(text=some_gone), hidden)[0],
        "out.logits_nodrop": m.logits(known, Cond(text=text), hidden)[0],
    }
