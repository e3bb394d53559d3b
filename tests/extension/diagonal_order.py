"""An order of one's own: the anti-diagonals of a grid, each at once whatever the schedule says."""
import torch

from vgnb.generators.orders import Order
from vgnb.kinds import register_part

class Diagonal(Order):
    "Cells by their distance from the first one, row plus column; those equally far together."
    def far(self, grid): return (torch.arange(grid.shape[0])[:, None] + torch.arange(grid.shape[1])).flatten()

    def fixed(self, grid, draws, at): return self.far(grid).argsort(stable=True)

    def counts(self, grid, schedule, steps, known):
        return [count for count in self.far(grid)[~known].bincount().tolist() if count]


register_part("order", "diagonal", Diagonal())
