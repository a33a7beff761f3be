"""log P(continuation | context) against the decoder written as loops, and the choice by it."""

import math

import pytest
import spelled
import tiny
import torch
from running import in_process, refused

from minialpaca import likelihood
from minialpaca.errors import UserError
from minialpaca.likelihood import as_ids, choose, token_log_likelihoods

PAIRS = [([1, 7, 9], [4, 11, 30]), ([1], [8]), ([1, 5, 6, 7, 8, 9, 10], [3, 3]), ([1, 2], [44, 45, 46, 47, 48])]


def spelled_log_p(model, context, continuation):
    """Each factor of P(y | x) = Π_t P(y_t | x, y_<t) from a whole pass of its own."""
    return [math.log(spelled.softmax(spelled.transformer(model.state_dict(), model.cfg, [*context, *continuation[:t]])[-1])[y])
            for t, y in enumerate(continuation)]


def test_each_token_is_scored_given_all_before_it():
    model = tiny.model().double()
    for found, (x, y) in zip(token_log_likelihoods(model, PAIRS), PAIRS, strict=True):
        assert found == pytest.approx(spelled_log_p(model, x, y), abs=1e-12)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_neighbours_and_batch_size_change_nothing(batch_size):
    model = tiny.model().double()
    together = token_log_likelihoods(model, PAIRS[::-1], batch_size)[::-1]
    assert together == [pytest.approx(alone, abs=1e-12) for pair in PAIRS for alone in token_log_likelihoods(model, [pair])]


def test_all_continuations_of_one_token_share_one():
    """Σ_v P(v | x) = 1."""
    model = tiny.model().double()
    total = math.fsum(math.exp(ps[0]) for ps in token_log_likelihoods(model, [([1, 7], [v]) for v in range(53)]))
    assert total == pytest.approx(1, abs=1e-12)


def test_an_empty_continuation_has_nothing_to_score():
    assert token_log_likelihoods(tiny.model(), [([1, 2], []), ([1], [4])])[0] == []


class Scripted:
    """Knows how probable each of two answers is, whatever the context: 0.2 in one token, 0.3 · 0.5 in two."""

    def __init__(self, monkeypatch):
        table = {(8,): [math.log(0.2)], (9, 10): [math.log(0.3), math.log(0.5)]}
        monkeypatch.setattr(likelihood, "token_log_likelihoods",
                            lambda model, pairs: [table[tuple(y)] for _, y in pairs])


def test_the_sum_and_the_mean_may_choose_differently(monkeypatch):
    Scripted(monkeypatch)
    assert choose(None, [1], [[8], [9, 10]]) == 0                  # 0.2 > 0.15
    assert choose(None, [1], [[8], [9, 10]], per_token=True) == 1  # 0.2 < √0.15 = 0.39
    assert choose(None, [1], [[9, 10], [9, 10]]) == 0              # the first of equals


def test_what_does_not_fit_is_refused_with_both_numbers():
    limit = tiny.GQA.max_seq_len
    assert len(token_log_likelihoods(tiny.model(), [([1] * 9, [2] * (limit - 8))])[0]) == limit - 8
    with pytest.raises(UserError, match=rf"9 \+ {limit - 7} tokens where the model's context holds {limit}"):
        token_log_likelihoods(tiny.model(), [([1] * 9, [2] * (limit - 7))])
    with pytest.raises(ValueError, match="needs at least one token"):
        token_log_likelihoods(tiny.model(), [([], [2])])


def test_a_tuned_run_is_asked_as_it_was_trained(tokenizer):
    prompt, response = as_ids(tokenizer, "How many?", "99", True)
    assert tokenizer.decode(prompt).endswith("How many?\n\n### Response:") and response[-1] == tokenizer.eos
    joined = as_ids(tokenizer, "天空是", "蓝色", False, joined=True)
    assert tokenizer.decode([*joined[0], *joined[1]]) == "天空是蓝色"
    text, answer = as_ids(tokenizer, "Mira has", "99 lamps", False)
    assert text == [tokenizer.bos, *tokenizer.encode("Mira has")] and answer == tokenizer.encode("99 lamps")
    assert tokenizer.decode([*text, *answer]) == "Mira has 99 lamps"


def test_the_command_line_sorts_answers_by_likelihood(pretrained, monkeypatch):
    monkeypatch.setattr("sys.argv", ["likelihood", str(pretrained), "Mira has", "2 lamps", "漢字漢字漢字漢字", "--device=cpu"])
    lines = in_process(likelihood.main).out.splitlines()
    scores = [float(line.split()[0]) for line in lines[1:]]
    assert scores == sorted(scores, reverse=True) and lines[1].endswith("2 lamps") and len(lines) == 3
    assert torch.isfinite(torch.tensor(scores)).all()


@pytest.mark.parametrize(("arguments", "message"), [
    (["/nowhere", "x", "y"], "is no run folder"),
    (["RUN", "x", ""], "an answer is empty"),
    (["RUN", "word " * 200, "y"], "tokens where the model's context holds 96"),
])
def test_bad_input_is_one_line(arguments, message, pretrained, monkeypatch):
    monkeypatch.setattr("sys.argv", ["likelihood", *(str(pretrained) if a == "RUN" else a for a in arguments), "--device=cpu"])
    refused(in_process(likelihood.main), message)


def test_a_tuned_run_has_nothing_to_be_joined_to(tuned, pretrained, monkeypatch):
    monkeypatch.setattr("sys.argv", ["likelihood", str(tuned), "How many?", "99", "--joined", "--device=cpu"])
    assert "--joined: " in in_process(likelihood.main).err
    monkeypatch.setattr("sys.argv", ["likelihood", str(pretrained), "Mira has", ".", "--joined", "--device=cpu"])
    assert in_process(likelihood.main).out.splitlines()[-1].endswith(" .")
