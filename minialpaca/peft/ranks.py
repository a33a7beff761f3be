"""AdaLoRA's ranks at every evaluation, as Zhang et al. 2023 draw them (fig. 3): a row for each layer, a column for each matrix."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn

from minialpaca.log import RunLog, markdown, table
from minialpaca.observe import colour
from minialpaca.peft.adalora import AdaLoRA
from minialpaca.peft.sites import LAYER

CELL = 24  # pixels on the side of one matrix

Grid = dict[tuple[str, str], int]  # (stack and layer, matrix) → rank


@dataclass(frozen=True)
class RankObserver:
    """What `first` shows, and then the ranks."""

    first: Callable[[nn.Module, RunLog, int], None]
    adapter: AdaLoRA

    @property
    def prompts(self):
        """What `first` asks the model, for the estimate of memory."""
        return getattr(self.first, "prompts", ())

    def __call__(self, model: nn.Module, log: RunLog, step: int) -> None:
        self.first(model, log, step)
        grid = ranks(self.adapter)
        log.text("ranks", rank_table(grid), step)
        log.image("ranks", rank_picture(grid, self.adapter.cfg.rank), step)


def ranks(adapter: AdaLoRA) -> Grid:
    grid = {}
    for swap in adapter.wrappers():
        layer = LAYER.search(swap.site.path)
        end = layer.end() if layer else 0
        grid[swap.site.path[:end].rstrip(".") or "model", swap.site.path[end:]] = swap.own.rank
    return grid


def sides(grid: Grid) -> tuple[list[str], list[str]]:
    """Layers and matrices, in the order of the model."""
    return tuple(list(dict.fromkeys(names)) for names in zip(*grid))


def rank_rows(grid: Grid) -> tuple[list[tuple], tuple[str, ...]]:
    layers, matrices = sides(grid)
    return [(layer, *(grid.get((layer, matrix), "") for matrix in matrices)) for layer in layers], ("rank", *matrices)


def rank_table(grid: Grid) -> str:
    """For TensorBoard."""
    return markdown(*rank_rows(grid))


def rank_lines(adapter: AdaLoRA) -> str:
    """For the terminal: what is left of each matrix."""
    return table(*rank_rows(ranks(adapter)))


def rank_picture(grid: Grid, largest: int) -> np.ndarray:
    """Black is 0 or no place of the adapter's, white is `largest`. Returns (height, width, 3) bytes."""
    layers, matrices = sides(grid)
    share_LM = np.array([[grid.get((layer, matrix), 0) / largest for matrix in matrices] for layer in layers])
    return colour(share_LM.repeat(CELL, 0).repeat(CELL, 1))
