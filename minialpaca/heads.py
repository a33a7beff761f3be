"""From a text's hidden states to the logits of its label groups.

Axes as in model.py, and C classes of a group.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minialpaca.data.order import whole
from minialpaca.model import Transformer


def pool(hidden_BTD: Tensor, real_BT: Tensor, how: str) -> Tensor:
    """h_b = hidden_{b, max R_b} or another vector (D) of text b, R_b the places of its real tokens   [pool.1]

        last    h_b = hidden_{b, max R_b}
        first   h_b = hidden_{b, min R_b}
        mean    h_b = 1/|R_b| Σ_{t ∈ R_b} hidden_bt
        max     h_bd = max_{t ∈ R_b} hidden_btd

    Wherever the padding is; of a row of nothing else the vector is finite, and unused. The last *token id* that is no
    padding would be another place where the padding's id is also the id of a token.
    """
    real_BT = real_BT | ~real_BT.any(-1, keepdim=True)  # 0/0 of such a row would reach every weight
    if how == "mean":
        return hidden_BTD.masked_fill(~real_BT[..., None], 0.0).sum(1) / real_BT.sum(1, keepdim=True)
    if how == "max":
        return hidden_BTD.masked_fill(~real_BT[..., None], -torch.inf).amax(1)
    t_T = torch.arange(real_BT.shape[1], device=real_BT.device)
    if how == "last":
        place_B = t_T.masked_fill(~real_BT, -1).amax(-1)
    elif how == "first":
        place_B = t_T.masked_fill(~real_BT, real_BT.shape[1]).amin(-1)
    else:
        raise ValueError(f"pooling {how!r}")
    return hidden_BTD[torch.arange(len(place_B), device=place_B.device), place_B]


class Classifier(nn.Module):
    """z_j = W_j Dropout(Pool(M_θ(x))) + b_j for each label group j = 1 … M   [head.1]

    Heads are numbered, not named: a column may be called `type` or `a.b`, which no module may.
    """

    def __init__(self, backbone: Transformer, n_classes: Sequence[int], pooling: str, seed: int = 0):
        super().__init__()
        self.backbone, self.pooling = backbone, pooling
        self.dropout = nn.Dropout(backbone.cfg.dropout)
        self.heads = nn.ModuleList(nn.Linear(backbone.cfg.d_model, C) for C in n_classes)
        if not backbone.cfg.tie_embeddings:
            backbone.lm_head.requires_grad_(False)  # it says nothing here; AdamW and L2 are to leave it alone
        generator = torch.Generator().manual_seed(whole(seed, 0, 7) >> 1)
        for head in self.heads:
            nn.init.normal_(head.weight, 0.0, backbone.cfg.init_std, generator=generator)
            nn.init.zeros_(head.bias)

    def forward(self, tokens_BT: Tensor, real_BT: Tensor) -> list[Tensor]:
        """For each group the logits (B, C), in fp32 at least. real_BT: False on padding, left or right or anywhere."""
        hidden_BTD = self.backbone.hidden(tokens_BT, real_BT)
        pooled_BD = self.dropout(pool(hidden_BTD, real_BT, self.pooling))
        logits = [head(pooled_BD) for head in self.heads]
        return [z.to(torch.promote_types(z.dtype, torch.float32)) for z in logits]


def backbone_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The Transformer's part of a classifier's state dict; a Transformer's own is left as it is."""
    prefix = "backbone."
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)} or weights
