"""A perturbation put in by hand: an embedding with something added, the other way round than a hook."""

from torch import Tensor, nn


class Added(nn.Module):
    def __init__(self, embedding: nn.Embedding, r_BTD: Tensor | float):
        super().__init__()
        self.weight, self.r_BTD = embedding.weight, r_BTD

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return nn.functional.embedding(tokens_BT, self.weight) + self.r_BTD
