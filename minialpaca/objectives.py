"""The losses, on logits and labels; they know no model.

A loss comes as a sum over supervised tokens together with their number. Who takes the step divides,
once, by the number of the whole step: (x₁/n₁) + (x₂/n₂) ≠ (x₁+x₂)/(n₁+n₂).
"""

import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # the label of a token that is looked at but not learned


def next_token_pairs(tokens_BT: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """inputs x_0 … x_{T−2} and targets y_1 … y_{T−1}: what stands at t is asked to predict t + 1.

    The only place in the project where targets are shifted.
    """
    return tokens_BT[:, :-1], labels_BT[:, 1:]


def cross_entropy_sum(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Σ_n −log softmax(z_n)_{y_n} = Σ_n (log Σ_v exp z_nv − z_{n y_n}), over n with y_n ≠ IGNORE   [pretrain.1]

    The negative log-likelihood of the targets, in nats; 0 with zero gradient where none is supervised.
    """
    return F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORE, reduction="sum")
