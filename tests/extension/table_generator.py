"""A generator of one's own: how likely each code is at each cell, for each class."""
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from vgnb.core import check
from vgnb.families import Family, register
from vgnb.generators.generator import Generator, Grid, Prediction, check_canvas, check_classes, cross_entropy
from vgnb.layers import null_class
from vgnb.training.recipes import GeneratorRecipe, Optim, recipes

@dataclass(frozen=True)
class TableConfig:
    "What decides a table."
    vocab: int = 512                    # codebook size
    grid: tuple[int, ...] = (4, 4)      # cells (h, w)
    classes: int = 10                   # that labels name
    class_dropout: float = 0.1          # for guidance


class Table(Generator):
    "Logits (classes + 1, cells, codes), whatever the other cells are; the last row knows no class."
    traits = frozenset({"any_order"})

    def __init__(self, config, seed=0):
        super().__init__()
        self.config = config
        self.vocab = (config.vocab,)
        self.table = nn.Parameter(torch.zeros(config.classes + 1, prod(config.grid), config.vocab))

    def null(self, cond): return null_class(cond, self.classes)

    def check_cond(self, cond): check_classes(cond, self.classes, self.classes + 1)

    def check_grid(self, grid): check(grid.shape == self.grid, "grid", grid.shape, f"must be {self.grid}")

    def logits(self, codes, cond, plan=None, *, grid=None): return (self.table[cond.labels],)

    def forward(self, codes, cond, draws, at, valid=None):
        codes = check_canvas(codes, cond, self.vocab, Grid(self.grid))
        dropped = draws.uniform("class_drop", at) < self.config.class_dropout
        labels = torch.where(dropped, self.classes, cond.labels)
        return cross_entropy(self.table[labels], codes[..., 0], valid)

    def predict(self, state, positions, given=None, *, live, independent=False):
        rows = torch.arange(state.b)[:, None]
        return Prediction(torch.stack([self.table[cond.labels][rows, positions] for cond in state.cond[:live]]).float())


register(Family("table", TableConfig, Table, role="generator"))


@recipes.register
def shapes_table() -> GeneratorRecipe:
    """A table of logits on *shapes*: what a model that knows no neighbours can do.

    Result: none is published.
    Command:

        python scripts/train_generator.py shapes-table --data CODES --out runs/shapes-table"""
    return GeneratorRecipe(TableConfig(), optim=Optim(lr=0.3), steps=20, batch=40, precision="fp32")
