"""IA³: keys, values and the feed-forward's inner activations, each stretched by a learned vector."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from minialpaca.peft import sites
from minialpaca.peft.adapter import Adapter, Wrapper
from minialpaca.peft.linear import plain_linear, trained_dtype, wide
from minialpaca.peft.sites import Site

INPUT = ("down_proj",)  # Linears whose input is stretched: what they read is γ(W₁x), the inner activation


class Stretched(Wrapper):
    """y = l ⊙ (W x + b)      or, of the input,      y = W (l ⊙ x) + b,   l = 1 at first   [ia3.1]

    l (O,) for keys and values, l (I,) for what enters `down_proj`. Liu et al. 2022, §3.3:
    softmax(Q (l_k ⊙ Kᵀ)/√d_k) (l_v ⊙ V)  and  (l_ff ⊙ γ(W₁ x)) W₂. Keys are stretched before they are rotated.
    """

    def __init__(self, base: nn.Linear, of_input: bool):
        super().__init__(base)
        self.of_input = of_input
        width = base.in_features if of_input else base.out_features
        self.l = nn.Parameter(torch.ones(width, dtype=trained_dtype(base.weight), device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        if self.of_input:
            return self.base((self.l * x).to(x.dtype))
        y = self.base(x)
        return (self.l * y).to(y.dtype)

    def merged(self) -> nn.Linear:
        W_OI, bias = wide(self.base.weight), self.base.bias
        if self.of_input:
            return plain_linear(W_OI * self.l, bias, self.base)
        return plain_linear(self.l[:, None] * W_OI, None if bias is None else self.l * wide(bias), self.base)


class IA3(Adapter):
    def modules(self) -> Iterator[tuple[Site, Wrapper]]:
        for place in self.linears(("k_proj", "v_proj", *INPUT)):
            yield place, Stretched(place.found, of_input=any(sites.is_called(place.path, name) for name in INPUT))
