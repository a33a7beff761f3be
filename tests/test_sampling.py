"""From logits to a token: the filters against their definitions, the draw against its distribution."""

import math
from collections import Counter

import pytest
import spelled
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spelled import listed

from minialpaca.errors import UserError
from minialpaca.sampling import (
    Sampling,
    choose,
    draw,
    greedy,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
)

# P = 1/2, 1/4, 1/8, 1/8: exact in binary, so that sums meet their limits exactly
HALVES = torch.tensor([[0.125, 0.5, 0.125, 0.25]]).log()
NOTHING_SEEN = torch.zeros(1, 4, dtype=torch.bool)


def kept(filtered_BV: torch.Tensor) -> list[set[int]]:
    return [{v for v, z in enumerate(row) if z > -math.inf} for row in filtered_BV.tolist()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ── filters ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("keep", "value", "expected"), [
    (keep_top_k, 0, {0, 1, 2, 3}),
    (keep_top_k, 1, {1}),
    (keep_top_k, 2, {1, 3}),
    (keep_top_k, 3, {0, 1, 2, 3}),  # ids 0 and 2 tie for the third place
    (keep_top_k, 4, {0, 1, 2, 3}),
    (keep_top_k, 1000, {0, 1, 2, 3}),
    (keep_top_p, 0.0, {1}),
    (keep_top_p, 0.4999, {1}),
    (keep_top_p, 0.5, {1}),
    (keep_top_p, 0.5001, {1, 3}),
    (keep_top_p, 0.75, {1, 3}),
    (keep_top_p, 0.8, {0, 1, 3}),   # ids 0 and 2 tie: the lower one comes first
    (keep_top_p, 0.9, {0, 1, 2, 3}),
    (keep_top_p, 1.0, {0, 1, 2, 3}),
    (keep_min_p, 0.0, {0, 1, 2, 3}),
    (keep_min_p, 0.2499, {0, 1, 2, 3}),
    (keep_min_p, 0.2501, {1, 3}),
    (keep_min_p, 0.5001, {1}),
    (keep_min_p, 1.0, {1}),
])
def test_a_filter_keeps_what_its_definition_names_and_at_least_one_token(keep, value, expected):
    filtered = keep(HALVES, value)
    assert kept(filtered) == [expected]
    for v in expected:
        assert filtered[0, v] == HALVES[0, v]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), k=st.integers(0, 20), p=st.floats(0, 1), share=st.floats(0, 1))
def test_filters_are_the_loops(seed, k, p, share):
    logits_BV = tiny.normal(3, 17, seed=seed) * 2
    rows = listed(logits_BV)
    assert kept(keep_top_k(logits_BV, k)) == [spelled.top_k(z, k) for z in rows]
    assert kept(keep_top_p(logits_BV, p)) == [spelled.top_p(z, p) for z in rows]
    assert kept(keep_min_p(logits_BV, share)) == [spelled.min_p(z, share) for z in rows]


def test_a_filter_leaves_out_what_an_earlier_one_ruled_out():
    z = torch.tensor([[0.0, -math.inf, 1.0, -math.inf]])
    for filtered in (keep_top_k(z, 3), keep_top_p(z, 0.99), keep_min_p(z, 0.01)):
        assert kept(filtered) == [{0, 2}]


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 10.0])
def test_repetition_penalty_is_the_papers(penalty):
    logits_BV = tiny.normal(3, 9) * 2
    seen = [{0, 4, 8}, set(), set(range(9))]
    seen_BV = torch.tensor([[v in row for v in range(9)] for row in seen])
    expected = [spelled.repetition(z, s, penalty) for z, s in zip(listed(logits_BV), seen)]
    assert listed(penalise_repetition(logits_BV, seen_BV, penalty)) == [pytest.approx(z, abs=1e-12) for z in expected]


def test_a_penalty_above_one_makes_what_was_seen_less_likely_on_either_side_of_zero():
    z = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalise_repetition(z, seen, 2.0).tolist() == [[1.0, -4.0, 2.0, -2.0]]


# ── choice ───────────────────────────────────────────────────────────────────────────────────────


def test_greedy_is_the_likeliest_and_the_lowest_id_wins_a_tie():
    assert greedy(torch.tensor([[0.0, 3.0, 3.0], [5.0, 1.0, 5.0], [1.0, 2.0, 3.0]])).tolist() == [1, 0, 2]


def test_temperature_zero_takes_the_argmax_whatever_the_filters_say():
    logits_BV = tiny.normal(20, 9, dtype=torch.float32)
    seen_BV = torch.zeros(20, 9, dtype=torch.bool)
    for how in (Sampling(), Sampling(top_k=5, top_p=0.3, min_p=0.9, seed=4)):
        assert torch.equal(choose(logits_BV, seen_BV, how, [generator(b) for b in range(20)]), logits_BV.argmax(-1))


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-38, 1e-45, 1e-60, 5e-324])
def test_a_temperature_next_to_zero_is_greedy_and_never_nan(temperature):
    logits_BV = torch.tensor([[1.0, 5.0, 4.9], [-1e4, -2e4, -3e4], [1e9, 2e9, 3e9]])
    chosen = choose(logits_BV, torch.zeros(3, 3, dtype=torch.bool), Sampling(temperature), [generator()] * 3)
    assert chosen.tolist() == [1, 0, 2]


@pytest.mark.parametrize("how", [
    Sampling(1.0, top_k=1), Sampling(1.0, top_p=0.0), Sampling(1.0, min_p=1.0), Sampling(100.0, top_k=1),
    Sampling(1.0, top_k=1, top_p=0.0, min_p=1.0)], ids=str)
def test_the_strictest_filters_leave_the_likeliest(how):
    assert [choose(HALVES, NOTHING_SEEN, how, [generator(s)]).item() for s in range(30)] == [1] * 30


@pytest.mark.parametrize(("how", "expected"), [
    (Sampling(1.0), {0, 1, 2, 3}),
    (Sampling(1.0, top_k=1000), {0, 1, 2, 3}),
    (Sampling(1.0, top_k=2, top_p=0.6), {1}),        # top-k first leaves 2/3 and 1/3; top-p first would keep both
    (Sampling(1.0, top_p=0.75), {1, 3}),
    (Sampling(4.0, top_p=0.75), {0, 1, 3}),          # the temperature comes first: 0.35, 0.30 and two of 0.25 before it
    (Sampling(1.0, min_p=0.3), {1, 3}),
    (Sampling(4.0, min_p=0.3), {0, 1, 2, 3}),
    (Sampling(0.25, min_p=0.3), {1}),
], ids=str)
def test_penalty_temperature_and_filters_act_in_order(how, expected):
    rows = 300
    chosen = choose(HALVES.expand(rows, 4), NOTHING_SEEN.expand(rows, 4), how, [generator()] * rows)
    assert set(chosen.tolist()) == expected


def test_the_penalty_comes_before_the_filters():
    z = torch.tensor([[4.0, 3.0]])
    how = Sampling(1.0, top_k=1, repetition_penalty=2.0)
    assert choose(z, torch.tensor([[True, False]]), how, [generator()]).item() == 1


def chi_square(counts: Counter, probabilities: list[float]) -> float:
    n = sum(counts.values())
    return sum((counts[v] - n * p) ** 2 / (n * p) for v, p in enumerate(probabilities))


def test_draws_follow_the_distribution():
    """χ² with 4 degrees of freedom exceeds 18.5 once in a thousand; the seed is fixed."""
    probabilities = [0.4, 0.3, 0.15, 0.1, 0.05]
    rows = 6000
    counts = Counter(draw(torch.tensor([probabilities]).expand(rows, 5), [generator(1)] * rows).tolist())
    assert chi_square(counts, probabilities) < 18.5


def test_choices_follow_the_softmax_over_temperature():
    z = [1.0, 0.0, -1.0, 2.0]
    rows = 6000
    for temperature in (0.7, 2.0):
        counts = Counter(choose(torch.tensor([z]).expand(rows, 4), NOTHING_SEEN.expand(rows, 4), Sampling(temperature),
                                [generator(1)] * rows).tolist())
        assert chi_square(counts, spelled.softmax([v / temperature for v in z])) < 16.3  # 3 degrees of freedom


def test_a_rows_draws_do_not_depend_on_its_neighbours():
    logits_BV = tiny.normal(3, 40, dtype=torch.float32)
    seen_BV, how = torch.zeros(3, 40, dtype=torch.bool), Sampling(1.0, top_p=0.95)

    def sequence(rows: list[int]) -> dict[int, list[int]]:
        generators = [generator(10 + b) for b in rows]
        steps = [choose(logits_BV[rows], seen_BV[rows], how, generators).tolist() for _ in range(12)]
        return {b: [step[i] for step in steps] for i, b in enumerate(rows)}

    together = sequence([0, 1, 2])
    for b in range(3):
        assert sequence([b])[b] == together[b]
    assert sequence([2, 0])[2] == together[2]
    assert len({tuple(draws) for draws in together.values()}) == 3


@pytest.mark.parametrize(("name", "value"), [
    ("temperature", -0.1), ("temperature", math.inf), ("temperature", math.nan), ("top_k", -1), ("top_p", -0.1),
    ("top_p", 1.1), ("top_p", math.nan), ("min_p", -0.1), ("min_p", 1.1), ("repetition_penalty", 0.0),
    ("repetition_penalty", -1.0), ("repetition_penalty", math.inf), ("seed", -1)])
def test_an_impossible_sampling_is_refused_by_name(name, value):
    with pytest.raises(UserError, match=rf"^{name} = "):
        Sampling(**{name: value})


@pytest.mark.parametrize("penalty", [1e-44, 1e-4, 1e4, math.inf, math.nan])
def test_a_penalty_that_would_overflow_is_refused(penalty):
    with pytest.raises(UserError, match="repetition_penalty"):
        Sampling(repetition_penalty=penalty)
