"""Metrics of pictures and of feature clouds."""
import torch

from vgnb.evaluation.fid import frechet_distance, inception_score, precision_recall
from vgnb.evaluation.reconstruction import ReconstructionMeter
from vgnb.evaluation.samples import Statistics

from .harness import adapter

@adapter("llamagen", "evaluations.c2i.evaluator + skimage metrics")
def eval_metrics(case):
    ref, sample, out = case["in.ref"], case["in.sample"], {}
    precision, recall = precision_recall(sample, ref, k=3)
    statistics = [Statistics(x.shape[1]).update(x) for x in (ref, sample)]
    meter = ReconstructionMeter(compat="upstream")
    restored = case["in.rec_u8"].permute(2, 0, 1)[None].double() / 255
    meter.update(restored, case["in.gt"].permute(2, 0, 1)[None])
    values = dict(fid=frechet_distance(*statistics), precision=precision, recall=recall, psnr=meter.compute()["psnr"], ssim=meter.compute()["ssim"])
    values["is"] = inception_score(case["in.logits"], case.config["is_split_size"])[0]
    for name in case.outs: out[name] = torch.tensor(values[name.removeprefix("out.")], dtype=torch.float64)
    return out
