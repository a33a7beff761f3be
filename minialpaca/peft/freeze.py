"""Train a part of the base and leave the rest: whole layers, roles, or biases alone (BitFit)."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from minialpaca.peft import sites
from minialpaca.peft.adapter import Adapter, Wrapper
from minialpaca.peft.linear import MATRICES, plain_linear, trained_dtype, wide
from minialpaca.peft.sites import Site


class Freeze(Adapter):
    """θ_l of the chosen layers l ∈ `layers`, and the roles of `also`, are trained whole: adapt.0 over these alone.

    With layers = 0:0 the roles alone are; or a classifier's new heads alone, a linear probe.
    """

    def whole(self) -> list[Site]:
        layers = set() if self.cfg.layers == "0:0" else sites.chosen_layers(self.model, self.cfg.layers)
        return [*(s for s, _ in sites.parameters(self.model) if sites.layer_of(s.path) in layers), *super().whole()]


class Biased(Wrapper):
    """y = W x + b + β, β = 0 at first   [bitfit.1]

    β (O,) is all that is trained. Ben Zaken et al. 2022, §3.1, train the biases that a model has; ours has none, so each
    Linear is given one that starts at 0.
    """

    def __init__(self, base: nn.Linear):
        super().__init__(base)
        self.beta = nn.Parameter(torch.zeros(base.out_features, dtype=trained_dtype(base.weight), device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y + self.beta.to(y.dtype)

    def merged(self) -> nn.Linear:
        bias = self.beta if self.base.bias is None else wide(self.base.bias) + self.beta
        return plain_linear(self.base.weight, bias, self.base)


class BitFit(Adapter):
    beside = "adds biases, which the plain model has no place for"

    def modules(self) -> Iterator[tuple[Site, Wrapper]]:
        for place in self.linears(MATRICES):
            yield place, Biased(place.found)
