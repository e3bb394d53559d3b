"LlamaGen's caption cleaning (text pairs, no tensors)."
from tests.parity.harness import adapter
from vgnb.data.text import clean_caption

@adapter("llamagen", "language.t5.T5Embedder.text_preprocessing")
def captions(case):
    return [clean_caption(text) for text, _ in case.spec["pairs"]]
