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
from vgnb.evaluation.fid import frechet_distance, inception_score, precision_recall
from vgnb.evaluation.samples import Statistics
from vgnb.families import published_model
from vgnb.tokenizers.maskgit_vqgan import soften
from vgnb.training.extract import extract_codes

def tokenizer(case, spec):
    return filled(case, published_model(spec, "MaskGITTokenizer", system="randar", compat="upstream")).eval()


def pixels(images): return torch.from_numpy(np.stack([np.asarray(i) for i in images]))


@adapter("randar", "RandAR.model.maskgit_tokenizer.MaskGITTokenizer")
def maskgit_tokenizer(case):
    model, x = tokenizer(case, case.config), case["in.image_u8"] / 255
    codes = model.encode(x)
    with torch.no_grad():
        recon = model.decode(codes)
        h = model.encoder(x)

    h = h.requires_grad_()
    q = model.quantizer(h)
    loss = sum(q.losses.values())
    weights = (torch.arange(q.z.numel()) % 7).view(q.z.shape) / 7       # what follows the quantizer, in short
    (loss + (q.z * weights).mean()).backward()
    used, rows = codes.unique(), case.outs["out.codebook_grad_rows"][0][0]
    gradient = model.quantizer.table.grad

    out = {
        "out.indices": codes.flatten(1),
        "out.recon": recon,
        "out.recon_u8": to_uint8(model.leave(recon), "truncate"),
        "out.vq_loss": loss,
        "out.vq_loss_grad_h": h.grad,
        "out.codebook_grad_norm": gradient.norm(),
        "out.codebook_grad_rows": gradient[used[:rows]],
        "out.get_code": soften(h.detach(), model.quantizer.rows())[1].flatten(1)}
    with torch.no_grad():
        resized = model.decode(codes, size=case.outs["out.recon_u8_resized"][0][1])
        out["out.recon_u8_resized"] = to_uint8(model.leave(resized), "truncate")
    for key in case.outs:
        if m := re.fullmatch(r"out\.soft_code_T([\d.]+)", key):
            out[key] = model.soft_codes(x, float(m[1]))[0].flatten(1, 2)
    return out


def enter(x, kind):
    "Pictures in [-1, 1] as the published tokenizer of that kind takes them."
    return x * 0.5 + 0.5 if kind == "maskgit" else x


@adapter("randar", "RandAR.dataset.augmentation.center_crop_arr*")
def preprocess(case):
    out = {}
    for name in case.outs:
        kind, i = re.fullmatch(r"out\.([a-z_]+?)(\d+)", name).groups()
        image, c = Image.fromarray(case[f"in.image{i}"].numpy()), case.config["images"][i]
        size = c["image_size"]
        if kind == "center_crop": out[name] = pixels([center_crop(image, size)])[0]
        elif kind == "tencrop": out[name] = pixels(ten_crop(image, size, (c["ten_crop_size"] + 0.5) / size))
        elif kind == "random_crop":
            choose = random.Random(100 + int(i)).randrange
            out[name] = pixels([chosen_crop(image, size, choose)])[0]
        else: out[name] = enter(to_tensor(center_crop(image, size)), kind.split("_")[1])
    return out


def write_tar(path: Path, members: dict[str, bytes], folder: str):
    "An uncompressed tar with an entry for its top folder."
    with tarfile.open(path, "w") as tar:
        top = tarfile.TarInfo(folder)
        top.type = tarfile.DIRTYPE
        tar.addfile(top)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def png(pixels) -> bytes:
    with io.BytesIO() as f:
        Image.fromarray(pixels.numpy()).save(f, "PNG")
        return f.getvalue()


def npy(array) -> bytes:
    with io.BytesIO() as f:
        np.save(f, array)
        return f.getvalue()


def codes_by_name(store, numbers=None):
    "{label/number.npy: (codes (augs, n), label)}; pictures are numbered by their ids, or as `numbers` says."
    items = [store[k] for k in range(len(store))]
    return {f"{label}/{numbers[i] if numbers else i}.npy": (codes[..., 0], label) for codes, label, i in items}


def member_numbers(source, members: list[str]) -> dict[int, int]:
    "{id of a picture: its place among the tar's pictures, as they are stored}."
    ids = {name: i for i, name in enumerate(source.names)}
    found = [next((i for name, i in ids.items() if member.endswith(name)), None) for member in members]
    return {i: n for n, i in enumerate(i for i in found if i is not None)}


@adapter("randar", "tools/extracr_latent_codes.py main()*")
def extract(case):
    "Pictures in a tar -> our store -> an archive in the published layout -> items, read without unpacking."
    a, top = case.config["args"], Path(case.config["files"][0]).parts[0]
    ten = Augment("ten-crop", a["image_size"], crop_range=a["crop_range"])
    augment = ten if a["aug_mode"] == "ten-crop" else Augment("center", a["image_size"], flip=True)
    model = tokenizer(case, case.config["tokenizer"])
    with tempfile.TemporaryDirectory() as tmp:
        home = Path(tmp)
        pictures = {name: png(case[f"in.image{i}"]) for i, name in enumerate(case.config["tar_members"])}
        write_tar(home / "train.tar", pictures, "train")
        source = open_images(home / "train.tar")
        store = extract_codes(model, source, home / "codes", augment, progress=False)
        numbers = member_numbers(source, case.config["tar_members"])
        arrays = {name: codes.numpy() for name, (codes, _) in codes_by_name(store, numbers).items()}

        write_tar(home / f"{top}.tar", {f"{top}/{name}": npy(array) for name, array in arrays.items()}, top)
        archive = store_from("randar", home / f"{top}.tar", vocab=case.config["tokenizer"]["num_embeddings"])
        items = codes_by_name(archive)

    names, rows = sorted(items), case["in.item_aug_idx"].tolist()
    out = {f"out.codes/{name}": torch.from_numpy(array) for name, array in arrays.items()}
    out["out.item_latents"] = torch.stack([items[name][0][row][None] for name, row in zip(names, rows)])
    out["out.item_labels"] = torch.tensor([items[name][1] for name in names])
    return out


@adapter("randar", "RandAR.eval.fid*")
def metrics(case):
    ref, sample, c = case["in.ref"], case["in.sample"], case.config
    of_ref, of_sample = (Statistics(x.shape[1]).update(x) for x in (ref, sample))
    precision, recall = precision_recall(sample, ref, c["nhood"])
    logits = sample @ case[c["softmax_W"]]
    values = {
        "fid": frechet_distance(of_ref, of_sample),
        "is": inception_score(logits, c["is_split_size"])[0],
        "is_single": inception_score(logits)[0],
        "precision": precision,
        "recall": recall}
    out = {f"out.{k}": torch.tensor(v, dtype=torch.float64) for k, v in values.items()}
    return out | {"out.mu_ref": of_ref.mean.float(), "out.sigma_ref": of_ref.cov}
