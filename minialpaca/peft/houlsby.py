"""Houlsby's adapters: a narrow detour behind each sub-layer."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialpaca.config import AdapterConfig
from minialpaca.peft import sites
from minialpaca.peft.adapter import Adapter, Wrapper
from minialpaca.peft.linear import trained_dtype
from minialpaca.peft.sites import Site

STD = 1e-3  # of the first weights, so that an adapter begins near the identity (the paper's §3.6 has 1e-2 and below alike)


def bottleneck(h: Tensor, down_MD: Tensor, down_M: Tensor, up_DM: Tensor, up_D: Tensor) -> Tensor:
    """a(h) = h + W_up f(W_down h + b_down) + b_up,   f = GELU   [houlsby.1]

    h (…, D), M the bottleneck's width: 2MD + D + M parameters. Houlsby et al. 2019, §2.1 and figure 2; f as in their
    program.
    """
    return h + F.linear(F.gelu(F.linear(h, down_MD, down_M)), up_DM, up_D)


class Bottleneck(Wrapper):
    """a(Sublayer(x)), before the residual addition; the sub-layer's other arguments pass through."""

    def __init__(self, base: nn.Module, cfg: AdapterConfig, generator: torch.Generator):
        super().__init__(base)
        last = [m for m in base.modules() if isinstance(m, nn.Linear)][-1]
        D, dtype, device = last.out_features, trained_dtype(last.weight), last.weight.device

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter((STD * torch.randn(shape, generator=generator).clamp(-2, 2)).to(device, dtype))

        self.down_weight, self.up_weight = drawn(cfg.bottleneck, D), drawn(D, cfg.bottleneck)
        self.down_bias = nn.Parameter(torch.zeros(cfg.bottleneck, dtype=dtype, device=device))
        self.up_bias = nn.Parameter(torch.zeros(D, dtype=dtype, device=device))

    @property
    def rank(self) -> int:
        return self.down_weight.shape[0]

    def forward(self, *args, **kwargs) -> Tensor:
        h = self.base(*args, **kwargs)
        return bottleneck(h.to(self.up_bias.dtype), self.down_weight, self.down_bias, self.up_weight, self.up_bias).to(h.dtype)


class Houlsby(Adapter):
    """After attention and MLP, the norms of these layers trained with them; or, as Pfeiffer et al. 2021 found to be as good,
    after the MLP alone and nothing with it.

    «New layer normalization parameters per task …, only 2d parameters per layer» (Houlsby et al. 2019, §2.1). Our final norm
    reads what the last layer wrote, as theirs within that layer does: it goes with the last layer. Attention to an encoder
    beside it has none (docs/LEDGER.md).
    """

    beside = "puts a detour behind attention and MLP, which is no change of a matrix"

    def whole(self) -> list[Site]:
        if self.cfg.placement == "mlp":
            return super().whole()
        adapted, last = sites.chosen_layers(self.model, self.cfg.layers), max(sites.chosen_layers(self.model, ":"))
        norms = [(s, sites.layer_of(s.path)) for s in sites.with_role(self.model, ("norm",), self.outside)]
        return [*(s for s, layer in norms if (last if layer is None else layer) in adapted), *super().whole()]

    def modules(self) -> Iterator[tuple[Site, Wrapper]]:
        names = ("attn", "mlp") if self.cfg.placement == "both" else ("mlp",)
        for place in sites.called(self.model, names, self.cfg.layers):
            yield place, Bottleneck(place.found, self.cfg, self.generator)
