"The VQ-KD framework's metrics: pictures, codes, LPIPS, the FID network, Fréchet distance, and the linear probe."
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from tests.parity.harness import adapter
from tests.parity.llamagen_tokenizer import filled
from vgnb.data.transforms import to_uint8
from vgnb.evaluation.code_probe import ProbeHead, probe_head_names
from vgnb.evaluation.features import PyTorchInception
from vgnb.evaluation.fid import frechet_distance
from vgnb.evaluation.reconstruction import CodebookMeter, l1, mse, psnr, ssim
from vgnb.evaluation.samples import Statistics
from vgnb.tokenizers.lpips import LPIPS
from vgnb.tokenizers.vqkd_training_files import vqkd_lpips_names

@adapter("vqkd", "metrics")
@torch.no_grad()
def metrics(case):
    codes = CodebookMeter(case.config["codebook_size"])
    for name in sorted(case.inputs):
        if name.startswith("in.quant_"): codes.update(case[name])
    seen = codes.compute("upstream")

    pred, image = case["in.pred"], case["in.image"]
    pair = to_uint8(pred, "truncate"), to_uint8(image, "truncate")
    eye = filled(case, (LPIPS("upstream"), vqkd_lpips_names())).eval()
    return {
        "out.usage": torch.tensor(seen["usage"]),
        "out.ppl": torch.tensor(seen["codebook_ppl"]),
        "out.l1": l1(*pair),
        "out.mse": mse(*pair),
        "out.psnr": psnr(*pair),
        "out.ssim": ssim(*pair),
        "out.lpips": eye(pred, image)}


@adapter("vqkd", "todd.tasks.image_generation.fid")
def distance(case):
    gt, pred = (Statistics(x.shape[1]).update(x) for x in (case["in.gt"], case["in.pred"]))
    return {
        "out.fid": torch.tensor(frechet_distance(pred, gt)),
        "out.mu_gt": gt.mean.float(),
        "out.sigma_gt": gt.cov.float()}


@adapter("vqkd", "image_classification.BaseModel._head")
@torch.no_grad()
def probe_head(case):
    head = filled(case, (ProbeHead(case.config["in_features"], case.config["num_categories"]), probe_head_names()))
    rows = case["in.features"]
    logits = head.train()(rows)
    return {
        "out.train_logits": logits,
        "out.loss": F.cross_entropy(logits, case["in.category"]),
        "out.running_mean": head.norm.running_mean.clone(),
        "out.running_var": head.norm.running_var.clone(),
        "out.eval_logits": head.eval()(rows)}


@adapter("vqkd", "todd FID Inception")
def network(case):
    counters = {k: torch.zeros(case.spec["manifest"][k]) for k in case.spec["keep"]}
    with tempfile.TemporaryDirectory() as folder:
        save_file(case.fill() | counters, Path(folder) / "w.safetensors")
        look = PyTorchInception(Path(folder) / "w.safetensors")
    seen = {name: look(case[name].permute(0, 2, 3, 1)).pool for name in case.inputs}
    return {name.replace("in.image", "out.feat"): pool for name, pool in seen.items()}
