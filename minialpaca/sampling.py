"""From logits to a token: filters and choice, as pure functions on (B, V) logits in fp32.

Each filter sets what it rules out to −∞ and always keeps at least the likeliest token.
"""

import math

import torch
from torch import Tensor

from minialpaca.config import Sampling


def choose(logits_BV: Tensor, seen_BV: Tensor, how: Sampling, generators: list[torch.Generator]) -> Tensor:
    """The next token of each row, v ~ `distribution`; where it is greedy, nothing is drawn."""
    if how.temperature == 0:
        return greedy(penalise_repetition(logits_BV, seen_BV, how.repetition_penalty))
    return draw(distribution(logits_BV, seen_BV, how), generators)


def distribution(logits_BV: Tensor, seen_BV: Tensor, how: Sampling) -> Tensor:
    """P = softmax(z / T) after the penalty and before the filters; T = 0 is greedy   [temperature.1]

    What the next token of each row is drawn from (B, V). Order: penalty, temperature, top-k, top-p, min-p. Ackley et al. 1985.
    """
    logits_BV = penalise_repetition(logits_BV, seen_BV, how.repetition_penalty)
    if how.temperature == 0:
        return torch.zeros_like(logits_BV).scatter(-1, greedy(logits_BV)[:, None], 1.0)
    # From the largest down, so that a temperature next to 0 gives −∞ and never ∞, whose softmax is NaN.
    logits_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / max(how.temperature, 1e-30)
    logits_BV = keep_top_k(logits_BV, how.top_k)
    logits_BV = keep_min_p(keep_top_p(logits_BV, how.top_p), how.min_p)
    return logits_BV.softmax(-1)


def greedy(logits_BV: Tensor) -> Tensor:
    """ŷ = argmax softmax(logits)   [generate.1]

    softmax keeps the order, so the argmax is taken of the logits; the lowest id wins a tie.
    """
    return logits_BV.argmax(-1)


def penalise_repetition(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """z_v ← z_v / ρ if z_v > 0 else z_v ρ, for tokens v seen before   [repetition.1]

    Keskar et al. 2019, §4.1, which divides whatever the sign (of a negative z that would make v likelier) and counts
    what was generated; here the prompt's tokens count too.
    """
    if penalty == 1:
        return logits_BV
    penalised_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, penalised_BV, logits_BV)


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """V' = {v : z_v ≥ the k-th largest z} stays   [topk.1]   Fan et al. 2018, §5. Ties with the k-th all stay."""
    if k == 0 or k >= logits_BV.shape[-1]:
        return logits_BV
    kth_B1 = logits_BV.topk(k, dim=-1).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < kth_B1, -math.inf)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """V' = the smallest set of likeliest tokens with Σ_{v∈V'} P(v) ≥ p stays   [nucleus.2]   Holtzman et al. 2020, eq. 2."""
    if p == 1:
        return logits_BV
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = sorted_BV.softmax(-1).cumsum(-1) - sorted_BV.softmax(-1)  # what the likelier ones hold
    drop_BV = before_BV >= p
    drop_BV[:, 0] = False
    return logits_BV.masked_fill(torch.zeros_like(drop_BV).scatter(-1, order_BV, drop_BV), -math.inf)


def keep_min_p(logits_BV: Tensor, min_p: float) -> Tensor:
    """V' = {v : P(v) ≥ p_min max_u P(u)} stays   [minp.1]   Nguyen et al. 2024, §3; in logits: z_v ≥ max z + log p_min."""
    if min_p == 0:
        return logits_BV
    return logits_BV.masked_fill(logits_BV < logits_BV.amax(-1, keepdim=True) + math.log(min_p), -math.inf)


def draw(probabilities_BV: Tensor, generators: list[torch.Generator]) -> Tensor:
    """v ~ P, each row with a generator of its own, so that a row's draws do not depend on its neighbours."""
    rows = [torch.multinomial(row_V.cpu(), 1, generator=g) for row_V, g in zip(probabilities_BV, generators)]
    return torch.cat(rows).to(probabilities_BV.device)
