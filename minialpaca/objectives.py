"""The losses, on logits and labels; they know no model.

A loss comes as a sum over supervised tokens together with their number. Who takes the step divides,
once, by the number of the whole step: (x₁/n₁) + (x₂/n₂) ≠ (x₁+x₂)/(n₁+n₂).
"""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minialpaca.config import LossConfig

IGNORE = -100  # the label of a token that is looked at but not learned


def next_token_pairs(tokens_BT: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """inputs x_0 … x_{T−2} and targets y_1 … y_{T−1}: what stands at t is asked to predict t + 1.

    The only place in the project where targets are shifted.
    """
    return tokens_BT[:, :-1], labels_BT[:, 1:]


def cross_entropy_sum(logits_NV: Tensor, targets_N: Tensor, smoothing: float = 0.0) -> Tensor:
    """Σ_n −log softmax(z_n)_{y_n} = Σ_n (log Σ_v exp z_nv − z_{n y_n}), over n with y_n ≠ IGNORE   [pretrain.1]
    Σ_n Σ_v −q_nv log softmax(z_n)_v,  q_nv = (1 − ε) 1[v = y_n] + ε/V, with `smoothing` ε   [smoothing.1]

    The negative log-likelihood of the targets, in nats, and of spread ones; 0 with zero gradient where none is
    supervised. Szegedy et al. 2016, §7.
    """
    return F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)


def symmetric_kl_sum(one_NV: Tensor, other_NV: Tensor) -> Tensor:
    """Σ_n ½ (KL(P_n‖Q_n) + KL(Q_n‖P_n)),  P = softmax(one), Q = softmax(other)   [rdrop.2]

    = Σ_n ½ Σ_v (P_nv − Q_nv)(log P_nv − log Q_nv), the two sums over v joined. Liang et al. 2021, eq. 2.
    """
    log_p_NV, log_q_NV = one_NV.log_softmax(-1), other_NV.log_softmax(-1)
    return ((log_p_NV.exp() - log_q_NV.exp()) * (log_p_NV - log_q_NV)).sum() / 2


def kl_sum(told_NC: Tensor, said_NC: Tensor) -> Tensor:
    """Σ_n KL(P_n ‖ Q_n) = Σ_n Σ_c P_nc (log P_nc − log Q_nc),  P = softmax(told), Q = softmax(said)   [vat.kl]"""
    log_p_NC, log_q_NC = told_NC.log_softmax(-1), said_NC.log_softmax(-1)
    return (log_p_NC.exp() * (log_p_NC - log_q_NC)).sum()


def r_drop_sum(one_NV: Tensor, other_NV: Tensor, targets_N: Tensor, alpha: float, smoothing: float = 0.0) -> Tensor:
    """½ Σ_n (−log P_n(y_n) − log Q_n(y_n) + α · ½ (KL(P_n‖Q_n) + KL(Q_n‖P_n)))   [rdrop.4]

    `one` and `other` are two passes with different dropout. Half of Liang et al. 2021, eq. 4: so that the loss
    has the size of one pass, and clipping and learning rate keep their meaning.
    """
    both = cross_entropy_sum(one_NV, targets_N, smoothing) + cross_entropy_sum(other_NV, targets_N, smoothing)
    return (both + alpha * symmetric_kl_sum(one_NV, other_NV)) / 2


def regularised_sum(forward: Callable[[], Tensor], targets_N: Tensor, how: LossConfig, training: bool) -> Tensor:
    """The loss that is trained: smoothing and R-Drop where `how` asks for them; plain cross entropy in evaluation."""
    if not training:
        return cross_entropy_sum(forward(), targets_N)
    if how.r_drop:
        return r_drop_sum(forward(), forward(), targets_N, how.r_drop, how.label_smoothing)
    return cross_entropy_sum(forward(), targets_N, how.label_smoothing)


def label_groups_sum(logits: Sequence[Tensor], labels: Sequence[Tensor], smoothing: float = 0.0) -> Tensor:
    """Σ_i Σ_{j=1..M} L_j(y_ij, ŷ_ij)   [finetune.1]

    Group j: logits (B, C_j), and labels (B,) of class numbers, for which L_j is the cross entropy of a softmax
    over classes, or (B, C_j) of zeros and ones (multi-label), for which it is the sum over classes of the cross
    entropies of C_j yes-or-no questions: −y log σ(z) − (1 − y) log σ(−z).
    """
    return torch.stack([
        F.binary_cross_entropy_with_logits(z, y.to(z.dtype), reduction="sum") if y.dim() == 2
        else cross_entropy_sum(z, y, smoothing) for z, y in zip(logits, labels, strict=True)]).sum()


def regularised_groups_sum(forward: Callable[[], Sequence[Tensor]], labels: Sequence[Tensor], how: LossConfig,
                           training: bool) -> Tensor:
    """The classification loss that is trained: label groups, smoothed and each with R-Drop where `how` says so."""
    if not training:
        return label_groups_sum(forward(), labels)
    if how.r_drop:
        return torch.stack([r_drop_sum(one, other, y, how.r_drop, how.label_smoothing)
                            for one, other, y in zip(forward(), forward(), labels, strict=True)]).sum()
    return label_groups_sum(forward(), labels, how.label_smoothing)


def squared_norm(parameters: Iterable[Tensor]) -> Tensor:
    """‖θ‖₂² = Σ_i θ_i², over all parameters together; λ times this is the second term of L_adapt   [adapt.1]

    Its gradient 2λθ goes through Adam's moments like any other; weight decay does not. Loshchilov & Hutter 2019, §2.
    """
    return torch.stack([p.square().sum() for p in parameters]).sum()
