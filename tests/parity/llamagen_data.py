"""Preprocessing of pictures: crops, ten views, tensors, bytes and contact sheets."""
import random
import re

import numpy as np
import torch
from PIL import Image

from vgnb.data.transforms import center_crop, chosen_crop, contact_sheet, resize_bicubic, ten_crop, to_tensor, to_uint8

from .harness import adapter

def pixels(images): return torch.from_numpy(np.stack([np.asarray(i) for i in images]))


@adapter("llamagen", "dataset.augmentation + script transforms")
def preprocess(case):
    size, out = case.config["image_size"], {}
    pictures = {k[len("in.img"):]: Image.fromarray(case[k].numpy()) for k in case.inputs if k.startswith("in.img")}
    for name in case.outs:
        kind, i, seed = re.fullmatch(r"out\.(center|random|tencrop|tensor|uint8_bicubic|uint8|grid)(\d*)(?:_seed(\d+))?", name).groups()
        if kind == "center": out[name] = pixels([center_crop(pictures[i], size)])[0]
        elif kind == "random": out[name] = pixels([chosen_crop(pictures[i], size, random.Random(int(seed)).randrange)])[0]
        elif kind == "tencrop": out[name] = pixels(ten_crop(pictures[i], size, case.config["crop_range"])).movedim(-1, 1)
        elif kind == "tensor": out[name] = to_tensor(center_crop(pictures[i], size))
        elif kind == "uint8": out[name] = to_uint8(case["in.decoded"])
        elif kind == "uint8_bicubic": out[name] = to_uint8(resize_bicubic(case["in.decoded"], case.outs[name][0][1:3]))
        else: out[name] = contact_sheet(case["in.decoded"], columns=4)
    return out
