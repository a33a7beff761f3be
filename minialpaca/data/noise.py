"""Noise for pretraining: which tokens are hidden, and what stands in their place.

Both kinds are pure functions of (ids, key), so a text is hidden otherwise in each epoch and a resumed run hides
what the uninterrupted one would have hidden. Control ids (<s>, </s>, padding, unknown) are never hidden. The mask
and the sentinels are ids behind the tokenizer's own, so no text encodes to them, whatever the vocabulary.
"""

from dataclasses import dataclass

import numpy as np

from minialpaca.config import ObjectiveConfig
from minialpaca.data.order import raw
from minialpaca.objectives import IGNORE
from minialpaca.tokenizer import Tokenizer

SENTINELS = 100  # as in T5: with a mean span of 3 and 15 % noise enough for 2,000 tokens
ADDED = {"causal": 0, "masked": 1, "span": SENTINELS}  # ids that an objective needs behind the tokenizer's


def uniform(n: int, *key: int) -> np.ndarray:
    """n numbers in [0, 1) that depend on the key alone."""
    return (raw(n, *key) >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class Vocabulary:
    """What noise has to know about ids."""

    control: frozenset[int]
    ordinary: np.ndarray  # ids that text encodes to
    first_added: int      # the mask, or the first sentinel

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Vocabulary":
        control = frozenset(i for i in range(tokenizer.vocab_size) if tokenizer.is_control(i))
        return cls(control, np.array([i for i in range(tokenizer.vocab_size) if i not in control]), tokenizer.vocab_size)

    def may_hide(self, ids: np.ndarray) -> np.ndarray:
        return ~np.isin(ids, list(self.control))


def mask_tokens(ids: np.ndarray, how: ObjectiveConfig, vocabulary: Vocabulary, *key: int) -> tuple[np.ndarray, np.ndarray]:
    """x̃_t = mask (80 %), a random token (10 %) or x_t (10 %) for t ∈ C;   y_t = x_t for t ∈ C, else IGNORE   [pretrain.2]

    Returns the noised ids x̃, which are x elsewhere, and the labels y. A token that is no control id is in C with
    probability `noise_rate` (15 %). So a word that stands there is no proof of being right, and none of being wrong.
    Where chance chose none, the nearest to it is: the max(1, …) of their create_pretraining_data.py.
    Devlin et al. 2019, §3.1 and appendix A.1.
    """
    chance, fate, other = uniform(3 * len(ids), *key).reshape(3, -1)
    allowed = vocabulary.may_hide(ids)
    chosen = (chance < how.noise_rate) & allowed
    if allowed.any() and not chosen.any():
        chosen[np.where(allowed, chance, 1.0).argmin()] = True
    masked = chosen & (fate < 1 - how.random_rate - how.keep_rate)
    random = chosen & ~masked & (fate < 1 - how.keep_rate)
    drawn = vocabulary.ordinary[(other * len(vocabulary.ordinary)).astype(int)]
    noised = np.where(masked, vocabulary.first_added, np.where(random, drawn, ids))
    return noised, np.where(chosen, ids, IGNORE)


def span_counts(n: int, rate: float, mean_span: float) -> tuple[int, int]:
    """h = round(n · rate) of n ≥ 2 tokens are hidden, in round(h / mean_span) stretches   [t5.spans]

    Each at least one; a token is left to be shown before each stretch, and a sentinel to end the target.
    """
    hidden = min(max(round(n * rate), 1), n - 1)
    return hidden, min(max(round(hidden / mean_span), 1), hidden, n - hidden, SENTINELS - 1)


def span_noise(n: int, rate: float, mean_span: float, *key: int) -> np.ndarray:
    """Which of n tokens are hidden, so many as `span_counts` says; of a single one, none.

    Hidden and shown stretches alternate, beginning with a shown one; the lengths of each kind are a random
    composition of its total. Raffel et al. 2020, §3.1.4 and §3.3.4, as in their code (random_spans_noise_mask).
    """
    if n == 1:
        return np.array([False])
    hidden, stretches = span_counts(n, rate, mean_span)
    lengths = np.empty(2 * stretches, dtype=int)
    lengths[0::2] = composition(n - hidden, stretches, *key, 0)
    lengths[1::2] = composition(hidden, stretches, *key, 1)
    return np.repeat(np.arange(2 * stretches) % 2 == 1, lengths)


def composition(total: int, parts: int, *key: int) -> np.ndarray:
    """`parts` positive lengths with this sum, all such sequences equally likely: parts − 1 cuts among total − 1 places."""
    cuts = np.sort(np.argsort(raw(total - 1, *key), kind="stable")[:parts - 1]) + 1
    return np.diff(np.concatenate(([0], cuts, [total])))


def corrupt_spans(ids: np.ndarray, hidden: np.ndarray, vocabulary: Vocabulary, bos: int, eos: int) -> tuple[np.ndarray, np.ndarray]:
    """s = u_0 ⟨0⟩ u_1 ⟨1⟩ …,   y = <s> ⟨0⟩ h_0 ⟨1⟩ h_1 … ⟨K⟩ </s>,   for x = u_0 h_0 u_1 h_1 …, h hidden   [pretrain.3]

        source   Thank you ⟨0⟩ me to your party ⟨1⟩ week.
        target   <s> ⟨0⟩ for inviting ⟨1⟩ last ⟨2⟩ </s>

    A control id among the hidden ones is shown, which may cut a stretch in two; stretches beyond the last sentinel
    but one, which ends the target, are shown as well. Raffel et al. 2020, figure 2.
    """
    hidden = hidden & vocabulary.may_hide(ids)
    begins = hidden & ~np.concatenate(([False], hidden[:-1]))
    has_sentinel = np.cumsum(begins) < SENTINELS
    hidden, begins = hidden & has_sentinel, begins & has_sentinel
    number = np.cumsum(begins) - 1
    sentinel = vocabulary.first_added + number
    source = np.where(begins, sentinel, ids)[begins | ~hidden]
    target = [bos]
    for start in np.flatnonzero(begins):
        length = int(np.argmin(np.append(hidden[start:], False)))
        target += [int(sentinel[start]), *map(int, ids[start:start + length])]
    return source, np.array([*target, vocabulary.first_added + int(number[-1]) + 1, eos])
