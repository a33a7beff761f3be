"""The picture of AdaLoRA's ranks: each matrix where it stands, as bright as its rank."""

import tiny
import torch

from minialpaca.config import AdapterConfig
from minialpaca.observe import colour
from minialpaca.peft import apply
from minialpaca.peft.ranks import CELL, rank_picture, rank_table, ranks


def adapted(targets=("v_proj", "down_proj")):
    """Two layers; layers.1.mlp.down_proj keeps three triplets of four, layers.0.attn.v_proj none."""
    model = tiny.model()
    adapter = apply(model, AdapterConfig("adalora", rank=4, target_rank=2, targets=targets))
    kept = {"layers.1.mlp.down_proj": [True, True, False, True], "layers.0.attn.v_proj": [False] * 4}
    for swap in adapter.wrappers():
        if swap.site.path in kept:
            swap.own.kept.copy_(torch.tensor(kept[swap.site.path]))
    return adapter


def test_the_table_has_layers_downwards_and_matrices_to_the_right():
    assert rank_table(ranks(adapted())).splitlines() == [
        "| rank | attn.v_proj | mlp.down_proj |", "| --- | --- | --- |", "| layers.0 | 0 | 4 |", "| layers.1 | 4 | 3 |"]


def test_the_picture_has_a_cell_for_each_matrix_as_bright_as_its_rank():
    picture = rank_picture(ranks(adapted()), 4)
    assert picture.shape == (2 * CELL, 2 * CELL, 3)
    for (row, column), share in {(0, 0): 0.0, (0, 1): 1.0, (1, 0): 1.0, (1, 1): 0.75}.items():
        cell = picture[row * CELL:(row + 1) * CELL, column * CELL:(column + 1) * CELL]
        assert (cell == colour(torch.tensor([[share]]).numpy())).all()
