"D-AR's training side: LPIPS, DINOv2, the time-conditioned discriminator, losses, three training steps."
import numpy as np
import torch
import torch.nn.functional as F

from tests.parity.harness import adapter
from tests.parity.llamagen_tokenizer import filled
from vgnb.families import published_model
from vgnb.tokenizers.lpips import LPIPS, lpips_names

@adapter("dar", "tokenizer.tokenizer_image.lpips.LPIPS")
@torch.no_grad()
def lpips(case):
    model = filled(case, (LPIPS("upstream"), lpips_names())).eval()
    a, b = case["in.a"], case["in.b"]
    return {"out.lpips": model(a, b)[:, None, None, None], "out.lpips_self": model(a, a)[:, None, None, None]}


@adapter("dar", "dinov2.models.vision_transformer.DinoVisionTransformer")
@torch.no_grad()
def dinov2(case):
    model, names = published_model(case.config, case.spec["upstream_class"], "dar")
    seen = filled(case, (model, names)).eval().features(case["in.x"])
    return {"out.x_norm_clstoken": seen[0], "out.x_norm_patchtokens": seen[1]}
