"""Names of one's own: a schedule, a path, a curve, a layout of codes, an extractor and a tracker."""
import json
from pathlib import Path

import numpy as np

from vgnb.data.layouts import PublishedCodes, layouts
from vgnb.evaluation.features import Extractor, Features, extractors
from vgnb.generators.orders import PATHS
from vgnb.generators.schedules import CURVES, SCHEDULES, Curve
from vgnb.training.trackers import Tracker, trackers

CURVES["cube"] = Curve(lambda t, m: t ** 3, lambda t, m: 1 - t ** 3)


@PATHS.register
def columns(h, w): return np.arange(h * w).reshape(h, w).T.ravel()


@SCHEDULES.register
def halves(n, steps, start=0):
    "Half of what is left in each step."
    counts, left = [], n - start
    while left:
        counts.append(-(-left // 2))
        left -= counts[-1]
    return counts


@layouts.register(name="lines")
class Lines(PublishedCodes):
    "A text file with a line a picture: its label, then its codes."
    def __init__(self, path, vocab=16, classes=10):
        self.rows = np.loadtxt(path, dtype=np.int64, ndmin=2)
        self.ids = np.arange(len(self.rows))
        self._describe(vocab, None, classes)

    def _read(self, i): return self.rows[i, 1:][None, :, None], int(self.rows[i, 0])


@extractors.register(name="corner")
class Corner(Extractor):
    "The upper left pixels."
    dims, id = 12, "corner@1"

    def __init__(self, weights=None, device="cpu"): self.device = device

    def look(self, images): return Features(images[:, :, :2, :2].flatten(1).float() / 255)


@trackers.register(name="last")
class Last(Tracker):
    "`last.json`: only the newest line."
    def __init__(self, folder, step, recipe): self.path = Path(folder) / "last.json"

    def log(self, step, values): self.path.write_text(json.dumps({"step": step, **values}))
