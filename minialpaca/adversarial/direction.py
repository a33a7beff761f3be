"""Directions and balls in the space of embedded texts: one example at a time, whatever stands beside it in the batch.

    B examples   T places   D model width
"""

import torch
from torch import Tensor

from minialpaca.transfer import sent


def l2_norm(x_BTD: Tensor) -> Tensor:
    """‖x_b‖₂ = m_b √(Σ_td (x_btd / m_b)²),  m_b = max_td |x_btd|, as (B, 1, 1)   [fgm.norm]

    One norm over an example's whole sequence. Divided by the largest first: the square of a gradient of 10⁻²⁵ or of
    10²⁵ has no fp32. An example of nothing but zeros has the norm 0, one that holds inf or NaN is not finite.
    """
    largest_B11 = x_BTD.abs().amax((1, 2), keepdim=True)
    scaled_BTD = x_BTD / torch.where(largest_B11 > 0, largest_B11, 1.0)
    return largest_B11 * scaled_BTD.square().sum((1, 2), keepdim=True).sqrt()


def usable(g_BTD: Tensor) -> Tensor:
    """True (B, 1, 1) for examples whose gradient says where to go: finite, and not zero everywhere."""
    largest_B11 = g_BTD.abs().amax((1, 2), keepdim=True)
    return largest_B11.isfinite() & (largest_B11 > 0)


def steepest_l2(g_BTD: Tensor, epsilon: float) -> Tensor:
    """r_b = ε g_b / ‖g_b‖₂,  g = ∇_e L   [fgm.1]

    The step of length ε along which L rises fastest to first order. Zero where the gradient is not usable. Any factor
    of g, such as a loss scale, cancels. Miyato et al. 2017, eq. 5.
    """
    good_B11 = usable(g_BTD)
    g_BTD = torch.where(good_B11, g_BTD, 0.0)
    unit_BTD = g_BTD / torch.where(good_B11, g_BTD.abs().amax((1, 2), keepdim=True), 1.0)  # first of all, or ε g overflows
    return epsilon * unit_BTD / torch.where(good_B11, l2_norm(unit_BTD), 1.0)


def steepest_max(g_BTD: Tensor, epsilon: float) -> Tensor:
    """r_btd = ε sign(g_btd)   [fgsm.1]

    The steepest step whose largest coordinate is ε. Goodfellow et al. 2015, §4.
    """
    return epsilon * torch.where(usable(g_BTD), g_BTD, 0.0).sign()


def into_ball(r_BTD: Tensor, epsilon: float) -> Tensor:
    """Π(r)_b = r_b min(1, ε / ‖r_b‖₂)   [pgd.2]

    The nearest point whose length is at most ε. Madry et al. 2018, §2.1, for the L2 ball.
    """
    return r_BTD * (epsilon / l2_norm(r_BTD).clamp(min=torch.finfo(r_BTD.dtype).tiny)).clamp(max=1.0)


def ascend(r_BTD: Tensor, g_BTD: Tensor, step_size: float, epsilon: float) -> Tensor:
    """r ← Π(r + α g / ‖g‖₂)   [pgd.1]   Madry et al. 2018, §2.1; Zhu et al. 2020, algorithm 1."""
    return into_ball(r_BTD + steepest_l2(g_BTD, step_size), epsilon)


def drawn(real_BT: Tensor, d_model: int, epsilon: float, generator: torch.Generator) -> Tensor:
    """δ₀ ~ U(−ε, ε) / √N_b, N_b = D |R_b| the coordinates of example b; 0 on padding   [freelb.1]

    So ‖δ₀‖₂ is ε/√3 on average, however long the text. Zhu et al. 2020, algorithm 1, line 4.
    """
    drawn_BTD = sent(torch.rand(*real_BT.shape, d_model, generator=generator).mul_(2).sub_(1), real_BT.device)
    coordinates_B11 = (d_model * real_BT.sum(1)).clamp(min=1)[:, None, None]
    return epsilon * drawn_BTD * real_BT[..., None] / coordinates_B11.sqrt()
