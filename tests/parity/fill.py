"Weights for parity fixtures, rebuilt from each parameter's published name, its shape and a seed."
import math
import zlib

import numpy as np
import torch

def fill_one(name: str, shape, seed: int) -> np.ndarray:
    "float32 values of parameter `name`: fan-in scaled matrices, 1-d weights near 1, other 1-d values near 0."
    shape = tuple(map(int, shape))
    draw = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    z = np.asarray(draw.standard_normal(math.prod(shape) or 1, dtype=np.float32)).reshape(shape)
    if name.endswith("running_var"): return np.asarray(1 + 0.1 * np.abs(z))
    if len(shape) > 1: return z / np.float32(math.sqrt(math.prod(shape[1:])))
    return np.asarray(1 + 0.1 * z if name.endswith("weight") else 0.1 * z)


def fill_state(manifest: dict, seed: int, keep=()) -> dict:
    "Published state dict of torch tensors; names in `keep` are left out."
    return {k: torch.from_numpy(np.ascontiguousarray(fill_one(k, s, seed))).reshape(tuple(s)) for k, s in manifest.items() if k not in keep}
