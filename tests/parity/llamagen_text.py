"LlamaGen's caption cleaning (text pairs, no tensors)."
from vgnb.data.text import clean_caption

from .harness import adapter


@adapter("llamagen", "language.t5.T5Embedder.text_preprocessing")
def captions(case):
    return [clean_caption(text) for text, _ in case.spec["pairs"]]
