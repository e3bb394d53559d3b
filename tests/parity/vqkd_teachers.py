"The VQ-KD framework's teachers: features of every setting at every size, as a line of tokens and as a map."
import re

import torch

from tests.parity.harness import adapter
from tests.parity.llamagen_tokenizer import filled
from vgnb.families import find
from vgnb.tokenizers.teachers import Teacher

def pixels(case, name="in.original_image"):
    "Recorded bytes as pictures in [-1, 1]."
    return case[name].float() / 127.5 - 1


@adapter("vqkd", "*Teacher")
@torch.no_grad()
def teacher(case):
    family, out, made = find({}, case.spec["upstream_class"], "vqkd"), {}, {}
    for j, variant in enumerate(case.config["variants"]):
        config = family.read({"model": case.config["model"]} | variant, compat="upstream")
        made[j] = filled(case, (Teacher(config), family.table(config)))
    for key in case.outs:
        j, size = re.fullmatch(r"out\.v(\d+)_(?:seq|2d)(\d+)", key).groups()
        features = made[int(j)](pixels(case, f"in.image{size}"))
        out[key] = features if "_2d" in key else features.flatten(2).mT
    return out
