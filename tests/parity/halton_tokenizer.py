"Halton-MaskGIT's tokenizer (LlamaGen's VQ models) and the preparation of its pictures."
import torch
from PIL import Image

from tests.parity.harness import adapter
from tests.parity.llamagen_tokenizer import filled
from vgnb.data.transforms import resize_crop, to_tensor
from vgnb.families import published_model

@adapter("halton", "Network.vq_model.VQ_models*")
@torch.no_grad()
def vq_model(case):
    spec = {"model": f"VQ-{case.config['f']}"} | {k: v for k, v in case.config.items() if k != "f"}
    model = filled(case, published_model(spec, system="halton", compat="upstream")).eval()
    q = model.quantize(case["in.x"])
    return {"out.h": model.features(case["in.x"]), "out.idx": q.codes.flatten(), "out.quant": q.z, "out.dec": model.decode(case["in.code"])}


@adapter("halton", "Dataset.dataloader.get_data*")
def preprocess(case):
    pictures = {k[3:]: Image.fromarray(case[k].numpy()) for k in case.inputs}
    return {f"out.{k}": to_tensor(resize_crop(p, case.config["img_size"], "bilinear")) for k, p in pictures.items()}
