"""Preprocessing of pictures: crops, ten views, tensors, bytes and contact sheets."""
import random
import re

import numpy as np
import torch
from PIL import Image

from vgnb.data.transforms import center_crop, chosen_crop, contact_sheet, resize_bicubic, ten_crop, to_tensor, to_uint8

from .harness import adapter

def pixels(images): return torch.from_numpy(np.stack([np.asarray(i) for i in images]))


OUT = re.compile(r"out\.(center|random|tencrop|tensor|uint8_bicubic|uint8|grid)(\d*)(?:_seed(\d+))?")


@adapter("llamagen", "dataset.augmentation + script transforms")
def preprocess(case):
    size, out = case.config["image_size"], {}
    pictures = {k[len("in.img"):]: Image.fromarray(case[k].numpy()) for k in case.inputs if k.startswith("in.img")}
    for name in case.outs:
        kind, i, seed = OUT.fullmatch(name).groups()
        if kind == "center":
            out[name] = pixels([center_crop(pictures[i], size)])[0]
        elif kind == "random":
            draw = random.Random(int(seed)).randrange
            out[name] = pixels([chosen_crop(pictures[i], size, draw)])[0]
        elif kind == "tencrop":
            views = ten_crop(pictures[i], size, case.config["crop_range"])
            out[name] = pixels(views).movedim(-1, 1)
        elif kind == "tensor":
            out[name] = to_tensor(center_crop(pictures[i], size))
        elif kind == "uint8":
            out[name] = to_uint8(case["in.decoded"])
        elif kind == "uint8_bicubic":
            shape, _ = case.outs[name]                      # (b, h, w, 3)
            out[name] = to_uint8(resize_bicubic(case["in.decoded"], shape[1:3]))
        else:
            out[name] = contact_sheet(case["in.decoded"], columns=4)
    return out
