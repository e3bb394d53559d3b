"""A generator of one's own: how often each code stands at each cell, for each class."""
from dataclasses import dataclass

import torch
from torch import nn

from vgnb.generators.generator import Cond, Generator, Prediction, cross_entropy
from vgnb.kinds import Kind, kinds
from vgnb.training.recipes import GeneratorRecipe, Optim, recipes

@dataclass(frozen=True)
class TableConfig:
    "A table of logits."
    vocab: int = 512
    grid: tuple[int, ...] = (4, 4)
    classes: int = 10


class Table(Generator):
    "Logits (classes + 1, cells, codes); the last row knows no class."
    traits = frozenset({"any_order"})

    def __init__(self, config, seed=0):
        super().__init__()
        self.config = config
        self.vocab = (config.vocab,)
        cells = config.grid[0] * config.grid[1]
        self.table = nn.Parameter(torch.zeros(config.classes + 1, cells, config.vocab))

    def null(self, cond): return Cond(labels=torch.full_like(cond.labels, self.config.classes))

    def logits(self, codes, cond, plan=None, *, grid=None): return (self.table[cond.labels],)

    def forward(self, codes, cond, draws, at, valid=None):
        known, unknown = self.table[cond.labels], self.table[self.null(cond).labels]
        drop = draws.uniform("drop", at)[:, None, None] < 0.1
        return cross_entropy(torch.where(drop, unknown, known), codes[..., 0], valid)

    def predict(self, state, positions, given=None, *, live, independent=False):
        rows = positions[..., None].expand(-1, -1, self.config.vocab)
        return Prediction(torch.stack([self.table[c.labels].gather(1, rows) for c in state.cond[:live]]))


kinds.register(Kind(TableConfig, Table), name="table")


@recipes.register
def shapes_table() -> GeneratorRecipe:
    "Counts of codes, learnt by gradient descent: a baseline that knows no neighbours."
    return GeneratorRecipe(model=TableConfig(), steps=200, batch=16, optim=Optim("adamw", lr=0.3))
