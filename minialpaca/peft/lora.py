"""LoRA: a change of low rank beside each chosen matrix; and DoRA, which trains a matrix's direction and length apart.

Axes: I inputs, O outputs of a Linear, R rank; (…, I) stands for any axes before the last.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialpaca import precision
from minialpaca.config import AdapterConfig
from minialpaca.peft.adapter import Adapter, Wrapper
from minialpaca.peft.linear import plain_linear, refuse_rank, trained_dtype, wide
from minialpaca.peft.sites import Site

# ── equations ────────────────────────────────────────────────────────────────────────────────────


def low_rank(x: Tensor, A_RI: Tensor, B_OR: Tensor, scale: float) -> Tensor:
    """Δ(x) = s B A x,   so that h = W₀ x + Δ(x)   [lora.3]

    x (…, I) → (…, O); B A is never multiplied out. Hu et al. 2022, eq. 3; s by `lora_scale`.
    """
    return F.linear(scale * F.linear(x, A_RI), B_OR)  # s on the narrow side: a pass over (…, O) less each way


def lora_scale(alpha: float, rank: int, rank_stabilised: bool) -> float:
    """s = α/r, or α/√r   [lora.scale]

    Hu et al. 2022, §4.1; Kalajdzievski 2023 (rsLoRA), eq. 4: with α/r what is learned shrinks as r grows.
    """
    return alpha / (math.sqrt(rank) if rank_stabilised else rank)


def row_norms(W_OI: Tensor) -> Tensor:
    """‖W‖_c = √(Σ_i W_oi²) of what leads to each output o, as (O,)   [dora.norm]

    Liu et al. 2024 write m (1, I), one length for each column, which would be each input; their program has one for each output.
    """
    return torch.linalg.vector_norm(W_OI, dim=1)


# ── modules ──────────────────────────────────────────────────────────────────────────────────────


class LoRALinear(Wrapper):
    """h = W₀ x + b + s B A Dropout(x),   A ~ N(0, 1/I), B = 0 at first"""

    def __init__(self, base: nn.Linear, cfg: AdapterConfig, generator: torch.Generator):
        super().__init__(base)
        O, I = base.weight.shape
        dtype, device = trained_dtype(base.weight), base.weight.device
        drawn = torch.randn(cfg.rank, I, generator=generator) / math.sqrt(I)
        self.A = nn.Parameter(drawn.to(device, dtype))
        self.B = nn.Parameter(torch.zeros(O, cfg.rank, dtype=dtype, device=device))
        self.dropout = nn.Dropout(cfg.dropout)
        self.scale = lora_scale(cfg.alpha, cfg.rank, cfg.rank_stabilised)

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    def delta(self, x: Tensor) -> Tensor:
        """Computed in the dtype of A and B, handed back in that of x."""
        return low_rank(self.dropout(x).to(self.A.dtype), self.A, self.B, self.scale).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.delta(x).add_(self.base(x))  # where Δ(x) stands: nobody needs it again

    def weight(self) -> Tensor:
        """W₀ + s B A   (O, I), in fp32 at least."""
        return wide(self.base.weight) + self.scale * self.B @ self.A

    def merged(self) -> nn.Linear:
        return plain_linear(self.weight(), self.base.bias, self.base)


class DoRALinear(LoRALinear):
    """h = m ⊙ (W₀ x + s B A Dropout(x)) / ‖W₀ + s B A‖_c + b,   m = ‖W₀‖_c at first   [dora.5]

    m (O,) is trained with A and B. The norm is a constant to the gradient, as the paper advises for memory. Liu et al.
    2024, eq. 5 and 11.
    """

    def __init__(self, base: nn.Linear, cfg: AdapterConfig, generator: torch.Generator):
        super().__init__(base, cfg, generator)
        self.m = nn.Parameter(row_norms(wide(base.weight)))

    def direction(self) -> Tensor:
        """m / ‖W₀ + s B A‖_c   (O,), in fp32 whatever products are computed in; m where the norm is 0, as m is at first"""
        with precision.casting(torch.float32):
            norms_O = row_norms(self.weight().detach())
            return self.m / torch.where(norms_O > 0, norms_O, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.base.weight) + self.delta(x)
        y = (self.direction() * y).to(x.dtype)
        return y if self.base.bias is None else y + self.base.bias

    def merged(self) -> nn.Linear:
        return plain_linear(self.direction()[:, None] * self.weight(), self.base.bias, self.base)


class LoRA(Adapter):
    """Query and value projections, where nothing else is asked for (Hu et al. 2022, §5.1)."""

    layer: type[LoRALinear] = LoRALinear
    otherwise = ("q_proj", "v_proj")

    def modules(self) -> Iterator[tuple[Site, Wrapper]]:
        for place in self.linears(self.otherwise):
            refuse_rank(self.cfg.rank, place.found, place.path)
            yield place, self.layer(place.found, self.cfg, self.generator)


class DoRA(LoRA):
    """Query, key, value, up and down projections, where nothing else is asked for (Liu et al. 2024, §5.1, of a Llama)."""

    layer = DoRALinear
    otherwise = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
