"""Virtual tokens before every text: prefix tuning (keys and values of each layer), prompt tuning (embeddings alone).

Axes as in model.py, and N virtual tokens.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialpaca.cache import LayerCache
from minialpaca.config import AdapterConfig
from minialpaca.errors import UserError
from minialpaca.model import Attention, Transformer, causal
from minialpaca.peft import sites
from minialpaca.peft.adapter import Adapter, Wrapper
from minialpaca.peft.linear import trained_dtype, wide
from minialpaca.peft.sites import Site


class PrefixAttention(Wrapper):
    """head_h = Attention(Q_h, [P_k; K_h], [P_v; V_h])   [prefix.1]

    P_k and P_v (G, N, K) are trained, keys and values that every query may look at; they have no positions and stand in
    no cache. P_k ~ N(0, 1), P_v = 0 at first. Li & Liang 2021, §4.2; without their detour through an MLP, which is
    thrown away after training. He et al. 2022, eq. 5, write it so.
    """

    def __init__(self, base: Attention, cfg: AdapterConfig, generator: torch.Generator):
        super().__init__(base)
        shape, weight = (base.n_kv_heads, cfg.length, base.d_head), next(base.parameters())
        dtype, device = trained_dtype(weight), weight.device
        self.k = nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype))
        self.v = nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))

    def forward(self, x_BTD: Tensor, angles: tuple[Tensor, Tensor], may_look: Tensor | None, cache: LayerCache | None,
                maps: list[Tensor] | None) -> Tensor:
        q_BHTK, k_BGSK, v_BGSK = self.base.project(x_BTD, angles, cache)
        T, S = q_BHTK.shape[2], k_BGSK.shape[2]
        if may_look is None and self.base.causal and T > 1:
            may_look = causal(S - T, T, x_BTD.device)
        if may_look is not None:
            may_look = F.pad(may_look, (self.k.shape[1], 0), value=True)
        mix = self.base.attend(q_BHTK, before(self.k, k_BGSK), before(self.v, v_BGSK), may_look, maps)
        return self.base.join(mix)


def before(prefix_GNK: Tensor, own_BGSK: Tensor) -> Tensor:
    """[P; K] along the keys   (B, G, N + S, K)"""
    prefix_BGNK = prefix_GNK.to(own_BGSK.dtype).expand(len(own_BGSK), -1, -1, -1)
    return torch.cat((prefix_BGNK, own_BGSK), dim=2)


class VirtualTokens(nn.Module):
    """X ← [P; X],  N trained vectors P before the embeddings of each text   [prompt.1]

    P (N, D) begins as embeddings of the base's own, drawn without repetition. Lester et al. 2021, §2 and §3.2.
    """

    def __init__(self, base: Transformer, cfg: AdapterConfig, generator: torch.Generator):
        super().__init__()
        chosen = torch.randperm(base.cfg.vocab_size, generator=generator)[torch.arange(cfg.length) % base.cfg.vocab_size]
        self.vectors = nn.Parameter(wide(base.embed.weight)[chosen.to(base.embed.weight.device)].clone())

    def __len__(self) -> int:
        return len(self.vectors)

    def forward(self, x_BTD: Tensor, real_BT: Tensor | None) -> tuple[Tensor, Tensor | None]:
        virtual_BND = self.vectors.to(x_BTD.dtype).expand(len(x_BTD), -1, -1)
        real_BU = None if real_BT is None else F.pad(real_BT, (len(self), 0), value=True)
        return torch.cat((virtual_BND, x_BTD), dim=1), real_BU


class Prefix(Adapter):
    beside = "gives attention keys and values of its own, which the plain model has no place for"

    def modules(self) -> Iterator[tuple[Site, Wrapper]]:
        for place in sites.called(self.model, ("attn",), self.cfg.layers):
            yield place, PrefixAttention(place.found, self.cfg, self.generator)


class Prompt(Adapter):
    beside = "puts vectors before each text, which the plain model has no place for"

    def modules(self) -> Iterator[tuple[Site, nn.Module]]:
        for path, module in self.model.named_modules():
            if isinstance(module, Transformer):
                if module.two_stacks:
                    raise UserError("adapter.method = 'prompt': is for a decoder or an encoder; an encoder_decoder has two inputs")
                yield Site(module, "virtual", f"{path}.virtual".removeprefix(".")), VirtualTokens(module, self.cfg, self.generator)
