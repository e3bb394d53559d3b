"The VQ-KD framework's data: crops with every draw given, ten views, bytes, and which pictures are held out."
import re

import numpy as np
import torch
from PIL import Image

from tests.parity.harness import adapter
from vgnb.data.sources import held_out
from vgnb.data.transforms import cut_resize, flip, resize_crop, ten_crop, to_tensor, to_uint8

def channels_first(*pictures):
    "Pictures as uint8 (n, 3, h, w)."
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2)


def bilinear(image, size): return resize_crop(image, size, "bilinear")


def augmented(kind, image, size, box, mirrored):
    "One random view whose draws are given."
    top, left, height, width = box.tolist()
    if kind == "weak":
        given = iter((top, left))
        view = resize_crop(image, size, choose=lambda n: next(given))
    else:
        view = cut_resize(image, (left, top, left + width, top + height), size)
    return channels_first(flip(view) if int(mirrored) else view)[0]


@adapter("vqkd", "datasets/transforms")
def preprocess(case):
    size, ten = case.config["image_size"], case.config["tencrop"]
    out = {}
    for name in case.outs:
        if name == "out.decoded":
            out[name] = to_uint8(case["in.dec"], "truncate").permute(0, 3, 1, 2)
            continue
        kind, shape = re.fullmatch(r"out\.(\w+)\.(\d+x\d+)", name).groups()
        image = Image.fromarray(case[f"in.image{shape}"].permute(1, 2, 0).numpy())
        if kind == "none": out[name] = channels_first(resize_crop(image, size))[0]
        elif kind == "encoded": out[name] = to_tensor(resize_crop(image, size))
        elif kind == "tencrop":
            views = ten_crop(image, ten["ten_crop"], crop=lambda image, _: bilinear(image, ten["resize"]))
            out[name] = channels_first(*views)
        else:
            box, mirrored = case[f"in.{kind}_box.{shape}"], case[f"in.{kind}_flip.{shape}"]
            out[name] = augmented(kind, image, size, box, mirrored)
    return out


@adapter("vqkd", "vq.datasets.SplitMixin")
def split(case):
    total, count = case.config["total"], case.config["num_val_samples"]
    out = {}
    for kind in ("plain", "shuffle"):
        train, val = held_out(total, count, spread=kind == "shuffle")
        out |= {f"out.train_{kind}": torch.from_numpy(train), f"out.val_{kind}": torch.from_numpy(val)}
    return out
