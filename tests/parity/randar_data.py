"RandAR's data side: the MaskGIT tokenizer, preprocessing, code extraction from a tar, metrics."
import io
import random
import re
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.parity.harness import adapter
from tests.parity.llamagen_tokenizer import filled
from vgnb.data.images import open_images
from vgnb.data.layouts import store_from
from vgnb.data.transforms import Augment, center_crop, chosen_crop, ten_crop, to_tensor, to_uint8
from vgnb.families import published_model
from vgnb.evaluation.fid import frechet_distance, inception_score, precision_recall
from vgnb.evaluation.samples import Statistics
from vgnb.tokenizers.maskgit_vqgan import soften
from vgnb.training.extract import extract_codes


def tokenizer(case, spec): return filled(case, published_model(spec, "MaskGITTokenizer", system="randar", compat="upstream")).eval()


def pixels(images): return torch.from_numpy(np.stack([np.asarray(i) for i in images]))


@adapter("randar", "RandAR.model.maskgit_tokenizer.MaskGITTokenizer")
def maskgit_tokenizer(case):
    model, x = tokenizer(case, case.config), case["in.image_u8"] / 255
    codes = model.encode(x)
    with torch.no_grad(): recon, h = model.decode(codes), model.encoder(x)
    h = h.requires_grad_()
    q = model.quantizer(h)
    loss = sum(q.losses.values())
    w = (torch.arange(q.z.numel()) % 7).view(q.z.shape) / 7
    (loss + (q.z * w).mean()).backward()
    used, (rows, _) = codes.unique(), case.outs["out.codebook_grad_rows"][0]
    out = {"out.indices": codes.flatten(1), "out.recon": recon, "out.recon_u8": to_uint8(model.leave(recon), "truncate"), "out.vq_loss": loss, "out.vq_loss_grad_h": h.grad,
           "out.codebook_grad_norm": model.quantizer.table.grad.norm(), "out.codebook_grad_rows": model.quantizer.table.grad[used[:rows]]}
    with torch.no_grad(): out["out.recon_u8_resized"] = to_uint8(model.leave(model.decode(codes, size=case.outs["out.recon_u8_resized"][0][1])), "truncate")
    for key in case.outs:
        if m := re.fullmatch(r"out\.soft_code_T([\d.]+)", key): out[key] = model.soft_codes(x, float(m[1]))[0].flatten(1, 2)
    return out | {"out.get_code": soften(h.detach(), model.quantizer.rows())[1].flatten(1)}


@adapter("randar", "RandAR.dataset.augmentation.center_crop_arr*")
def preprocess(case):
    out, ranges = {}, {"llamagen": lambda x: x, "maskgit": lambda x: x * 0.5 + 0.5}
    for name in case.outs:
        kind, i = re.fullmatch(r"out\.([a-z_]+?)(\d+)", name).groups()
        image, c = Image.fromarray(case[f"in.image{i}"].numpy()), case.config["images"][i]
        if kind == "center_crop": out[name] = pixels([center_crop(image, c["image_size"])])[0]
        elif kind == "tencrop": out[name] = pixels(ten_crop(image, c["image_size"], (c["ten_crop_size"] + 0.5) / c["image_size"]))
        elif kind == "random_crop": out[name] = pixels([chosen_crop(image, c["image_size"], random.Random(100 + int(i)).randrange)])[0]
        else: out[name] = ranges[kind.split("_")[1]](to_tensor(center_crop(image, c["image_size"])))
    return out


def write_tar(path: Path, members: dict[str, bytes], folder: str):
    "An uncompressed tar with an entry for its top folder."
    with tarfile.open(path, "w") as tar:
        top = tarfile.TarInfo(folder); top.type = tarfile.DIRTYPE; tar.addfile(top)
        for name, data in members.items():
            info = tarfile.TarInfo(name); info.size = len(data); tar.addfile(info, io.BytesIO(data))


def encoded(write) -> bytes:
    with io.BytesIO() as f: write(f); return f.getvalue()


@adapter("randar", "tools/extracr_latent_codes.py main()*")
def extract(case):
    "Pictures in a tar -> our store -> an archive in the published layout -> items, read without unpacking."
    a, out, top = case.config["args"], {}, Path(case.config["files"][0]).parts[0]
    with tempfile.TemporaryDirectory() as tmp:
        home = Path(tmp)
        pictures = {name: encoded(lambda f, i=i: Image.fromarray(case[f"in.image{i}"].numpy()).save(f, "PNG")) for i, name in enumerate(case.config["tar_members"])}
        write_tar(home / "train.tar", pictures, "train")
        augment = Augment("ten-crop", a["image_size"], crop_range=a["crop_range"]) if a["aug_mode"] == "ten-crop" else Augment("center", a["image_size"], flip=True)
        store = extract_codes(tokenizer(case, case.config["tokenizer"]), open_images(home / "train.tar"), home / "codes", augment, progress=False)
        arrays = {f"{label}/{i}.npy": codes[..., 0].numpy() for codes, label, i in (store[k] for k in range(len(store)))}
        write_tar(home / f"{top}.tar", {f"{top}/{k}": encoded(lambda f, v=v: np.save(f, v)) for k, v in arrays.items()}, top)
        archive = store_from("randar", home / f"{top}.tar", vocab=case.config["tokenizer"]["num_embeddings"])
        items = {f"{label}/{i}.npy": (codes[..., 0], label) for codes, label, i in (archive[k] for k in range(len(archive)))}
    names = sorted(items)
    out |= {f"out.codes/{k}": torch.from_numpy(v) for k, v in arrays.items()}
    return out | {"out.item_latents": torch.stack([items[k][0][row][None] for k, row in zip(names, case["in.item_aug_idx"].tolist())]),
                  "out.item_labels": torch.tensor([items[k][1] for k in names])}


@adapter("randar", "RandAR.eval.fid*")
def metrics(case):
    ref, sample, c = case["in.ref"], case["in.sample"], case.config
    a, b = (Statistics(x.shape[1]).update(x) for x in (ref, sample))
    precision, recall = precision_recall(sample, ref, c["nhood"])
    logits = sample @ case[c["softmax_W"]]
    values = {"fid": frechet_distance(a, b), "is": inception_score(logits, c["is_split_size"])[0], "is_single": inception_score(logits)[0], "precision": precision, "recall": recall}
    out = {f"out.{k}": torch.tensor(v, dtype=torch.float64) for k, v in values.items()}
    return out | {"out.mu_ref": a.mean.float(), "out.sigma_ref": a.cov}
