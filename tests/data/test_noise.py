"""What is hidden in pretraining: how often, how evenly, never a control id, and nothing lost."""

import collections
import itertools
import math

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from minialpaca.config import ObjectiveConfig
from minialpaca.data.noise import (
    SENTINELS,
    Vocabulary,
    composition,
    corrupt_spans,
    mask_tokens,
    span_counts,
    span_noise,
    uniform,
)
from minialpaca.objectives import IGNORE

TOKENIZER = tiny.tokenizer()
VOCABULARY = Vocabulary.of(TOKENIZER)
MASK = TOKENIZER.vocab_size
CONTROL = [TOKENIZER.bos, TOKENIZER.eos, TOKENIZER.pad, 0]
MANY = 200_000


def text(n: int, seed: int = 0) -> np.ndarray:
    """Ids without control ids."""
    return np.random.default_rng(seed).integers(4, TOKENIZER.vocab_size, n)


def is_binomial(count: int, n: int, p: float) -> bool:
    """Within four standard deviations: 99.99 % of all draws; the keys are fixed."""
    return abs(count - n * p) <= 4 * math.sqrt(n * p * (1 - p))


def chi_square(counts, expected) -> float:
    return sum((n - e) ** 2 / e for n, e in zip(counts, expected, strict=True))


def test_the_vocabulary_knows_what_text_encodes_to():
    assert VOCABULARY.control == set(CONTROL) and VOCABULARY.first_added == TOKENIZER.vocab_size
    assert sorted([*VOCABULARY.control, *VOCABULARY.ordinary.tolist()]) == list(range(TOKENIZER.vocab_size))
    assert VOCABULARY.may_hide(np.array([5, *CONTROL, 4])).tolist() == [True, False, False, False, False, True]


def test_uniform_numbers_fill_the_unit_interval_evenly_and_hang_on_the_key():
    u = uniform(100_000, 7, 8)
    assert 0 <= u.min() < 1e-4 and 1 - 1e-4 < u.max() < 1
    assert chi_square(np.bincount((u * 20).astype(int)), [5000] * 20) < 43.8  # 19 degrees of freedom, p = 0.001
    assert np.array_equal(u, uniform(100_000, 7, 8)) and not np.array_equal(u, uniform(100_000, 8, 7))
    assert np.array_equal(u[:9], uniform(9, 7, 8))


# ── masked language modelling ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("rate", "random", "keep"), [(0.15, 0.1, 0.1), (0.4, 0.5, 0.25), (0.15, 0.0, 0.3), (0.15, 0.3, 0.0)])
def test_fifteen_in_a_hundred_are_chosen_and_shown_80_10_10(rate, random, keep):
    ids, how = text(MANY), ObjectiveConfig(noise_rate=rate, random_rate=random, keep_rate=keep)
    noised, labels = mask_tokens(ids, how, VOCABULARY, 1, 2, 3)
    chosen = labels != IGNORE
    n, same = int(chosen.sum()), 1 / len(VOCABULARY.ordinary)  # a random token is the old one once in V times
    assert is_binomial(n, MANY, rate)
    assert is_binomial(int((noised[chosen] == MASK).sum()), n, 1 - random - keep)
    assert is_binomial(int((noised[chosen] == ids[chosen]).sum()), n, keep + random * same)
    assert is_binomial(int((chosen[1:] & chosen[:-1]).sum()), MANY - 1, rate**2)  # neighbours are drawn independently


def test_labels_stand_exactly_on_the_chosen_and_nothing_else_is_touched():
    ids = text(MANY)
    noised, labels = mask_tokens(ids, ObjectiveConfig(), VOCABULARY, 1)
    chosen = labels != IGNORE
    assert np.array_equal(labels[chosen], ids[chosen]) and np.array_equal(noised[~chosen], ids[~chosen])
    assert set(labels[~chosen].tolist()) == {IGNORE}
    everything = ObjectiveConfig(random_rate=0.0, keep_rate=0.0)
    noised, labels = mask_tokens(ids, everything, VOCABULARY, 1)
    assert np.array_equal(labels != IGNORE, chosen)  # who is chosen does not hang on what is shown instead
    assert np.array_equal(noised == MASK, chosen)


@pytest.mark.parametrize(("random", "keep"), [(0.0, 1.0), (1.0, 0.0), (0.3, 0.7)])
def test_where_all_is_kept_or_random_nothing_is_masked(random, keep):
    noised, labels = mask_tokens(text(MANY), ObjectiveConfig(random_rate=random, keep_rate=keep), VOCABULARY, 1)
    assert (noised != MASK).all() and (labels != IGNORE).sum() > 1000


def test_random_tokens_are_drawn_evenly_from_all_that_text_encodes_to():
    """Whatever the token and wherever it stands; chi-square over V − 1 degrees of freedom."""
    ids = np.full(MANY, 5)
    how = ObjectiveConfig(noise_rate=0.5, random_rate=1.0, keep_rate=0.0)
    noised, labels = mask_tokens(ids, how, VOCABULARY, 1)
    shown = collections.Counter(noised[labels != IGNORE].tolist())
    n, V = sum(shown.values()), len(VOCABULARY.ordinary)
    assert set(shown) == set(VOCABULARY.ordinary.tolist())
    value = chi_square([shown[v] for v in VOCABULARY.ordinary.tolist()], [n / V] * V)
    assert abs(value - (V - 1)) < 4 * math.sqrt(2 * (V - 1))


def test_control_ids_are_neither_chosen_nor_drawn_nor_the_mask():
    ids = np.random.default_rng(0).permutation(np.concatenate([text(MANY // 2), np.repeat(CONTROL, MANY // 8)]))
    is_control = np.isin(ids, CONTROL)
    noised, labels = mask_tokens(ids, ObjectiveConfig(noise_rate=0.9, random_rate=0.9, keep_rate=0.0), VOCABULARY, 1)
    assert (labels[is_control] == IGNORE).all() and np.array_equal(noised[is_control], ids[is_control])
    assert not np.isin(noised[~is_control], CONTROL).any()
    assert is_binomial(int((labels != IGNORE).sum()), int((~is_control).sum()), 0.9)
    assert MASK not in range(TOKENIZER.vocab_size) and noised.max() == MASK


def test_the_same_key_hides_the_same_and_another_another():
    ids = text(400)
    results = [mask_tokens(ids, ObjectiveConfig(), VOCABULARY, *key) for key in ((0, 1, 4), (0, 1, 4), (0, 2, 4), (1, 1, 4), (0, 1, 5))]
    assert np.array_equal(results[0], results[1])
    for one, other in itertools.combinations(results[1:], 2):
        assert not np.array_equal(one[1], other[1])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_short_texts_are_masked_like_long_ones(n):
    fates = [mask_tokens(text(n), ObjectiveConfig(noise_rate=0.5), VOCABULARY, k)[1] for k in range(2000)]
    assert all(len(labels) == n for labels in fates)
    chosen = [int((labels != IGNORE).sum()) for labels in fates]
    assert is_binomial(sum(chosen) - sum(c == 1 for c in chosen) // (n + 1), 2000 * n, 0.5)  # of those with one, (½)ⁿ had none


def test_no_text_is_left_without_a_hidden_token():
    """The nearest to being chosen is, and it is never a control id."""
    rare = ObjectiveConfig(noise_rate=1e-9)
    for k in range(200):
        ids = np.array([TOKENIZER.bos, *text(6, k), TOKENIZER.eos])
        (place,) = np.flatnonzero(mask_tokens(ids, rare, VOCABULARY, k)[1] != IGNORE)
        assert place == 1 + uniform(3 * len(ids), k)[1:7].argmin()
    assert (mask_tokens(np.array(CONTROL), rare, VOCABULARY, 0)[1] == IGNORE).all()


# ── spans: how many, how long ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("n", "rate", "mean", "hidden", "stretches"), [
    (512, 0.15, 3.0, 77, 26),                                     # T5's own: 76.8 and 25.67
    (100, 0.15, 3.0, 15, 5), (96, 0.15, 3.0, 14, 5), (30, 0.15, 3.0, 4, 1),   # 4.5 → 4, and 4/3 → 1: rounded one after the other
    (64, 0.15, 5.0, 10, 2), (10, 0.5, 1.0, 5, 5), (10, 0.9, 1.0, 9, 1), (10, 0.6, 1.0, 6, 4),
    (4, 0.15, 3.0, 1, 1), (3, 0.15, 3.0, 1, 1), (2, 0.15, 3.0, 1, 1), (2, 0.99, 1.0, 1, 1), (3, 0.99, 3.0, 2, 1),
    (2048, 0.15, 3.0, 307, 99),                                   # 102 without the limit of 100 sentinels
])
def test_the_number_of_hidden_tokens_and_stretches_by_pencil(n, rate, mean, hidden, stretches):
    assert span_counts(n, rate, mean) == (hidden, stretches)


def stretches_of(hidden: np.ndarray) -> list[tuple[bool, int]]:
    return [(kind, len(list(group))) for kind, group in itertools.groupby(hidden.tolist())]


@pytest.mark.parametrize(("rate", "mean"), [(0.15, 3.0), (0.5, 1.0), (0.3, 2.5), (0.9, 4.0), (0.01, 10.0)])
def test_exactly_so_many_tokens_are_hidden_in_exactly_so_many_stretches_after_a_shown_one(rate, mean):
    for n in [*range(2, 60), 96, 128, 511, 512, 2048]:
        hidden = span_noise(n, rate, mean, n, 7)
        runs = stretches_of(hidden)
        assert len(hidden) == n and (int(hidden.sum()), sum(kind for kind, _ in runs)) == span_counts(n, rate, mean)
        assert runs[0][0] is False and runs[-1][0] is True
        assert np.array_equal(hidden, span_noise(n, rate, mean, n, 7))


def test_spans_lie_elsewhere_with_another_key_and_cover_every_place_but_the_first():
    drawn = [span_noise(20, 0.3, 2.0, 0, k) for k in range(400)]  # 6 hidden in 3 stretches: 10 × 78 ways
    assert len({tuple(hidden) for hidden in drawn}) > 250
    often = np.sum(drawn, axis=0)
    assert often[0] == 0 and (often[1:] > 40).all() and often[-1] == 400
    # what is hidden and what is shown is cut independently
    pairs = collections.Counter((stretches_of(h)[1][1] > 1, stretches_of(h)[0][1] > 4) for h in drawn)
    n = sum(pairs.values())
    for a, b in itertools.product((True, False), repeat=2):
        together = sum(pairs[a, x] for x in (True, False)) * sum(pairs[x, b] for x in (True, False)) / n
        assert abs(pairs[a, b] - together) < 4 * math.sqrt(together)


@pytest.mark.parametrize(("total", "parts"), [(6, 3), (5, 2), (7, 6), (4, 4), (4, 1), (1, 1)])
def test_all_compositions_are_equally_likely(total, parts):
    """All C(total − 1, parts − 1) of them; chi-square at p = 0.001, by Wilson and Hilferty's approximation."""
    every = [c for c in itertools.product(range(1, total + 1), repeat=parts) if sum(c) == total]
    assert len(every) == math.comb(total - 1, parts - 1)
    drawn = collections.Counter(tuple(composition(total, parts, 3, k).tolist()) for k in range(3000))
    assert set(drawn) == set(every)
    free = len(every) - 1
    limit = free * (1 - 2 / (9 * free) + 3.09 * math.sqrt(2 / (9 * free))) ** 3 if free else 1e-9
    assert chi_square([drawn[c] for c in every], [3000 / len(every)] * len(every)) < limit


# ── spans: source and target ─────────────────────────────────────────────────────────────────────


def spans(ids, hidden):
    source, target = corrupt_spans(np.asarray(ids), np.asarray(hidden, dtype=bool), VOCABULARY, TOKENIZER.bos, TOKENIZER.eos)
    return source.tolist(), target.tolist()


def sentinel(k: int) -> int:
    return TOKENIZER.vocab_size + k


def test_the_papers_example():
    """Raffel et al. 2020, figure 2: Thank you ⟨for inviting⟩ me to your party ⟨last⟩ week."""
    source, target = spans(range(11, 21), [0, 0, 1, 1, 0, 0, 0, 0, 1, 0])
    assert source == [11, 12, sentinel(0), 15, 16, 17, 18, sentinel(1), 20]
    assert target == [TOKENIZER.bos, sentinel(0), 13, 14, sentinel(1), 19, sentinel(2), TOKENIZER.eos]


def test_a_control_id_is_shown_and_cuts_its_stretch_in_two():
    eos, bos = TOKENIZER.eos, TOKENIZER.bos
    source, target = spans([11, 12, eos, bos, 13, 14], [0, 1, 1, 1, 1, 1])
    assert source == [11, sentinel(0), eos, bos, sentinel(1)]
    assert target == [bos, sentinel(0), 12, sentinel(1), 13, 14, sentinel(2), eos]
    assert spans([11, eos], [0, 1]) == ([11, eos], [bos, sentinel(0), eos])  # nothing left to hide


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_shortest_texts(n):
    """Of one token nothing is hidden; of two to four, the last."""
    ids = list(range(11, 11 + n))
    source, target = spans(ids, span_noise(n, 0.15, 3.0, 5))
    said = [] if n == 1 else [sentinel(0), ids[-1]]
    assert source == (ids if n == 1 else [*ids[:-1], sentinel(0)])
    assert target == [TOKENIZER.bos, *said, sentinel(len(said) // 2), TOKENIZER.eos]


def put_back(source: list[int], target: list[int]) -> tuple[list[int], int]:
    """(the original, the number of stretches): each sentinel of the source replaced by what the target says behind it."""
    first = TOKENIZER.vocab_size
    assert target[0] == TOKENIZER.bos and target[-1] == TOKENIZER.eos
    said: dict[int, list[int]] = {}
    for i in target[1:-1]:
        if i >= first:
            assert i == first + len(said)  # 0, 1, 2, … in this order
            said[i] = []
        else:
            said[first + len(said) - 1].append(i)
    *between, last = said
    assert said[last] == [] and all(said[k] for k in between)
    assert [i for i in source if i >= first] == between
    return [token for i in source for token in (said[i] if i >= first else [i])], len(between)


ANY_ID = st.one_of(st.integers(4, TOKENIZER.vocab_size - 1), st.sampled_from(CONTROL))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(ANY_ID, st.booleans()), min_size=1, max_size=60))
def test_source_and_target_together_are_the_original(tokens):
    ids, hidden = [i for i, _ in tokens], [h for _, h in tokens]
    source, target = spans(ids, hidden)
    back, stretches = put_back(source, target)
    assert back == ids
    wanted = [h and i not in CONTROL for i, h in tokens]
    assert stretches == sum(kind for kind, _ in stretches_of(np.array(wanted)))
    assert [i for i in source if i < TOKENIZER.vocab_size] == [i for i, h in zip(ids, wanted) if not h]
    assert not set(target[1:-1]) & set(CONTROL)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 700), st.sampled_from([0.15, 0.5, 0.9]), st.sampled_from([1.0, 3.0, 8.0]), st.integers(0, 2**40))
def test_a_whole_text_is_hidden_and_put_back(n, rate, mean, key):
    ids = text(n)
    source, target = spans(ids, span_noise(n, rate, mean, key))
    back, stretches = put_back(source, target)
    assert back == ids.tolist()
    hidden, wanted = span_counts(n, rate, mean) if n > 1 else (0, 0)
    assert stretches == wanted and len(source) == n - hidden + wanted and len(target) == hidden + wanted + 3


def test_stretches_without_a_sentinel_of_their_own_are_shown():
    """99 have one and the hundredth ends the target, also where control ids cut more stretches than were asked for."""
    ids = list(range(4, 304))
    source, target = spans(ids, [False, True, True] * 100)
    back, stretches = put_back(source, target)
    assert back == ids and stretches == SENTINELS - 1 and target[-2] == sentinel(SENTINELS - 1)
    assert source[-3:] == ids[-3:] and source[-4] == sentinel(98)
    for key in range(10):
        ids = text(2048)
        ids[::40] = TOKENIZER.eos
        back, stretches = put_back(*spans(ids, span_noise(2048, 0.15, 3.0, key)))
        assert back == ids.tolist() and stretches <= SENTINELS - 1
