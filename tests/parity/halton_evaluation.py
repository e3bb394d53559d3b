"Halton-MaskGIT's metrics: the FID network, its resize, FID, IS, precision, recall, density, coverage."
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.parity.harness import adapter
from vgnb.evaluation.features import HaltonInception, Inception
from vgnb.evaluation.fid import frechet_distance, inception_score, prdc
from vgnb.evaluation.samples import Statistics

@adapter("halton", "torch_fidelity.FeatureExtractorInceptionV3*")
def network(case):
    state = case.fill() | {k: torch.zeros((), dtype=torch.long) for k in case.spec["keep"]}
    state = {k: (v * case.spec.get("conv_weight_scale", 1.0) if v.dim() == 4 else v).contiguous() for k, v in state.items()}
    with tempfile.TemporaryDirectory() as folder:
        save_file(state, Path(folder) / "w.safetensors")
        seen = Inception(Path(folder) / "w.safetensors")(case["in.x"].permute(0, 2, 3, 1))
    return {"out.f2048": seen.pool, "out.logits": seen.logits}


@adapter("halton", "Metrics.inception_metrics.custom_resize_norm")
def resize(case):
    x = HaltonInception.floats(case["in.x"])                                                   # (b, 3, 299, 299)
    assert tuple(x.shape[2:]) == tuple(case.config["size"])
    some = x[:, :, ::13, ::13]
    return {"out.f32": some, "out.u8": some.to(torch.uint8), "out.mean": x.mean((2, 3))}


@adapter("halton", "Metrics.inception_metrics.MultiInceptionMetrics")
def metrics(case):
    real, fake, c = case["in.real"], case["in.fake"], case.config
    a, b = (Statistics(x.shape[1]).update(x) for x in (fake, real))
    logits = case["in.logits"][case["in.perm"]]
    score = inception_score(logits, -(-len(logits) // c["num_inception_chunks"]))[0]
    four = prdc(fake, real, c["manifold_k"], c["num_splits"])
    return {"out.fid": torch.tensor([frechet_distance(a, b)]), "out.is": torch.tensor([score]), "out.prdc": torch.tensor(list(four.values())),
            "out.mu": a.mean.float(), "out.cov": a.cov.float()}
