"""Instruction data: prompts to the letter, labels that cannot slip, batches that are functions of a number."""

import copy
import random
from collections import Counter

import numpy as np
import pytest
from conftest import alpaca_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from minialpaca.data import buckets as buckets_module
from minialpaca.data.batch import collate
from minialpaca.data.buckets import Buckets
from minialpaca.data.instructions import Example, Examples, by_file, encode, fit_context, prompt_ids, prompt_text
from minialpaca.data.rows import Row
from minialpaca.errors import UserError
from minialpaca.objectives import IGNORE, next_token_pairs

ROWS = [Row(**row) for row in alpaca_rows(60)]
LONG = 10_000  # a context in which everything fits


def supervised(example):
    return [label for label in example.labels if label != IGNORE]


# ── prompts ──────────────────────────────────────────────────────────────────────────────────────


def test_the_prompts_are_stanfords_to_the_letter():
    assert prompt_text("Name a colour.") == """Below is an instruction that describes a task. Write a response that \
appropriately completes the request.

### Instruction:
Name a colour.

### Response:"""
    assert prompt_text("Translate.", "two\nlines") == """Below is an instruction that describes a task, paired with an \
input that provides further context. Write a response that appropriately completes the request.

### Instruction:
Translate.

### Input:
two
lines

### Response:"""


def test_braces_in_a_text_are_only_braces():
    assert "### Instruction:\n{input} {0} {{x}} %s\n" in prompt_text("{input} {0} {{x}} %s", "y")
    assert "### Input:\n{instruction}\n" in prompt_text("x", "{instruction}")


# ── ids and labels ───────────────────────────────────────────────────────────────────────────────

TRICKY = ["</s>", "<s>", "<pad>", "<unk>", "### Response:", "\n\n### Response:", " ", "a", "漢😀", "▁", "\n", "\\n",
          "{input}"]
texts = st.lists(st.sampled_from(TRICKY), max_size=6).map("".join) | st.text(st.characters(exclude_categories=["Cs"]),
                                                                             max_size=20)


def check(tokenizer, row):
    prompt, example = prompt_ids(tokenizer, row.instruction, row.input), encode(tokenizer, row)
    assert len(example.ids) == len(example.labels)
    assert list(example.ids[:len(prompt)]) == prompt                     # what is asked later is what was trained
    assert set(example.labels[:len(prompt)]) == {IGNORE}
    assert example.ids[len(prompt):] == example.labels[len(prompt):]     # the rest is learned, all of it
    answer = supervised(example)
    assert answer[-1] == tokenizer.eos and tokenizer.decode(answer[:-1]) == row.output
    assert len(answer) == len(tokenizer.encode(row.output)) + 1
    assert tokenizer.decode(prompt) == prompt_text(row.instruction, row.input)
    control = [(i, token) for i, token in enumerate(example.ids) if token in (tokenizer.bos, tokenizer.eos, 0, 3)]
    assert control == [(0, tokenizer.bos), (len(example.ids) - 1, tokenizer.eos)]  # one <s> in front, one </s> behind


def test_every_row_starts_with_its_prompt_and_learns_its_answer_and_eos(tokenizer):
    for row in ROWS:
        check(tokenizer, row)


@settings(max_examples=200, deadline=None)
@given(texts, texts, texts)
def test_no_text_moves_the_mask_or_makes_a_control_id(tokenizer, instruction, input, output):
    check(tokenizer, Row(instruction, input, output))


def test_eos_is_learned_even_where_it_is_the_padding_too(tokenizer):
    same = copy.copy(tokenizer)
    same.pad = same.eos
    examples = Examples(ROWS, same, LONG, "drop", "test")
    batch = examples.in_order(len(ROWS))[0]
    inputs, targets = next_token_pairs(batch.tokens_BT, batch.labels_BT)
    assert ((targets == same.eos).sum(1) == 1).all()  # in every row once: the padding is not learned
    assert (batch.tokens_BT == same.eos).sum() > len(ROWS)


# ── what is too long ─────────────────────────────────────────────────────────────────────────────

EXAMPLE = Example((1, 50, 51, 60, 61, 2), (IGNORE, IGNORE, IGNORE, 60, 61, 2))


@pytest.mark.parametrize("policy", ["drop", "truncate_response", "raise"])
@pytest.mark.parametrize("context", [5, 6, 100])
def test_what_fits_is_left_alone(context, policy):
    assert fit_context(EXAMPLE, context, policy) is EXAMPLE  # the last id is only a target: 5 places hold 6 ids


def test_over_long_examples_by_policy():
    assert fit_context(EXAMPLE, 4, "drop") is None
    assert fit_context(EXAMPLE, 4, "truncate_response") == Example((1, 50, 51, 60, 61),
                                                                   (IGNORE, IGNORE, IGNORE, 60, 61))
    assert fit_context(EXAMPLE, 3, "truncate_response") == Example((1, 50, 51, 60), (IGNORE, IGNORE, IGNORE, 60))
    for context in (2, 1):  # no room for a single response token: the prompt is never cut
        assert fit_context(EXAMPLE, context, "truncate_response") is None
    with pytest.raises(UserError, match="an example has 6 tokens where the context holds 5"):
        fit_context(EXAMPLE, 4, "raise")


@pytest.mark.parametrize("policy", ["drop", "truncate_response"])
def test_counts_are_exact_and_said(tokenizer, capsys, policy):
    rows = [*ROWS, ROWS[3], Row("empty", "", ""), Row("blank", "", " \n"), Row("long prompt " * 40, "", "a")]
    encoded = [encode(tokenizer, row) for row in rows if row.output.strip()]
    context = sorted(len(e.ids) for e in encoded)[20] - 1
    too_long = [e for e in encoded if len(e.ids) > context + 1]
    hopeless = [e for e in too_long if e.labels[context] == IGNORE]
    dropped, truncated = (len(too_long), 0) if policy == "drop" else (len(hopeless), len(too_long) - len(hopeless))
    assert 0 < len(hopeless) < len(too_long) < len(encoded)
    examples = Examples(rows, tokenizer, context, policy, "training")
    assert examples.counts == Counter(read=64, empty=2, dropped=dropped, truncated=truncated, repeated=1)
    assert len(examples.over_long) == dropped + truncated
    assert len(examples.examples) == 62 - dropped
    ends = [e.ids[-1] == tokenizer.eos for e in examples.examples]
    assert ends.count(False) == truncated  # what was cut has no </s>, because it goes on
    assert all(len(e.ids) <= context + 1 and supervised(e) for e in examples.examples)
    said = capsys.readouterr().out
    assert said.startswith(f"training: {62 - dropped} of 64 examples, ") and "over-long: " in said.splitlines()[1]
    assert f"over_long = {policy}: {dropped} dropped, {truncated} truncated; " in said
    assert said.splitlines()[0].endswith("; 2 without an output left out; 1 repeat another")


def test_over_long_rows_are_listed_with_each_file_named_once(tokenizer, capsys):
    files = ["a long name.json record"] * 8 + ["b.jsonl line"] * 4
    rows = [Row(f"{i} " + "long prompt " * 40, "", "a", place=f"{file} {i}") for i, file in enumerate(files)]
    Examples([*rows, Row("short", "", "a")], tokenizer, 200, "drop", "training")
    assert capsys.readouterr().out.splitlines()[1] == (
        "training, over-long: a long name.json record 0, 1, 2, 3, 4, 5, 6, 7; b.jsonl line 8, 9 …")
    assert by_file([Row("of no file", "", "a"), rows[0], Row("nor this", "", "b")]) == (
        "'of no file', 'nor this'; a long name.json record 0")


def test_where_nothing_is_left_the_counts_say_why(tokenizer):
    with pytest.raises(UserError, match=r"validation: none of 60 examples is left \(context 20.*60 dropped"):
        Examples(ROWS, tokenizer, 20, "drop", "validation")
    with pytest.raises(UserError, match="1 without an output left out"):
        Examples([Row("a", "", "")], tokenizer, LONG, "drop", "training")
    with pytest.raises(UserError, match="set data.over_long to drop or truncate_response"):
        Examples(ROWS, tokenizer, 20, "raise", "training")


# ── batches ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def examples(tokenizer):
    rng = random.Random(0)
    rows = [Row(f"Say {i}", "", " ".join(["lamp"] * rng.choice((1, 2, 5, 20, 60)))) for i in range(101)]
    return Examples(rows, tokenizer, LONG, "drop", "test")


def rows_of(batch, examples):
    """Which examples a batch holds: every row is compared with its ids, labels and padding."""
    by_ids = {e.ids: i for i, e in enumerate(examples.examples)}
    found = []
    for tokens, labels in zip(batch.tokens_BT.tolist(), batch.labels_BT.tolist()):
        (i,) = {by_ids[tuple(tokens[:n])] for n in range(len(tokens) + 1) if tuple(tokens[:n]) in by_ids}
        n = len(examples.examples[i].ids)
        assert tokens[n:] == [examples.tokenizer.pad] * (len(tokens) - n)
        assert labels == [*examples.examples[i].labels, *[IGNORE] * (len(tokens) - n)]
        found.append(i)
    return found


@pytest.mark.parametrize("pool", [1, 2, 32])
@pytest.mark.parametrize("size", [1, 4, 8, 101, 200])
def test_each_epoch_takes_every_example_once_in_an_order_of_its_own(examples, monkeypatch, pool, size):
    monkeypatch.setattr(examples.buckets, "pools", {size: pool})
    n = examples.n_batches(size)
    assert n == -(-101 // size)
    orders = []
    for epoch in range(3):
        taken = [rows_of(examples.batch(epoch * n + i, size, seed=5), examples) for i in range(n)]
        assert sorted(sum(taken, [])) == list(range(101))
        assert sorted(map(len, taken))[1:] == [size] * (n - 1)
        orders.append(tuple(map(tuple, taken)))
    if n > 1:
        assert len({orders[0], orders[1], orders[2]}) == 3


def test_batches_mix_differently_in_each_epoch_and_are_not_taken_by_length(examples, monkeypatch):
    monkeypatch.setattr(examples.buckets, "pools", {4: 26})
    epochs = [[rows_of(examples.batch(e * 26 + i, 4, seed=5), examples) for i in range(26)] for e in range(2)]
    assert {frozenset(b) for b in epochs[0]} != {frozenset(b) for b in epochs[1]}
    lengths, then = ([max(len(examples.examples[i].ids) for i in batch) for batch in epoch] for epoch in epochs)
    assert lengths != sorted(lengths) and lengths != sorted(lengths, reverse=True)
    assert sorted(lengths) == sorted(then) and lengths != then  # one pool: the same lengths, in another order


@pytest.mark.parametrize("size", [8, 32])
def test_of_texts_as_different_in_length_as_alpacas_padding_is_less_than_a_twentieth(size):
    """Lengths whose logarithm is normal: median 90 tokens, one in six above 200, cut at 512."""
    rng = random.Random(0)
    lengths = [min(512, 8 + int(rng.lognormvariate(4.4, 0.8))) for _ in range(9000)]
    buckets = Buckets(lengths)
    batches = [[lengths[i] for i in buckets.chosen(number, size, seed=1)] for number in range(buckets.n_batches(size))]
    assert 1 - sum(lengths) / sum(len(batch) * max(batch) for batch in batches) < 0.05


def test_as_few_batches_are_sorted_together_as_keep_padding_low():
    """Few mix better: what differs little in length has the smallest pool, and what can have no better the largest."""
    rng = random.Random(0)
    alike, ragged = [rng.randrange(40, 44) for _ in range(4000)], [min(150, int(rng.lognormvariate(4, 0.6))) for _ in range(4000)]
    assert Buckets(alike).pool(32) == 8 and 8 < Buckets(ragged).pool(32) < 64 and Buckets([1, 1000]).pool(2) == 64
    buckets, size = Buckets(ragged), 32
    pools = buckets.POOLS[:buckets.POOLS.index(buckets.pool(size)) + 1]
    assert [buckets.padding(pool, size) > buckets.PADDING for pool in pools] == [True] * (len(pools) - 1) + [False]


def test_padding_is_counted_by_hand(monkeypatch):
    monkeypatch.setattr(buckets_module, "permutation", lambda n, *key: np.arange(n))
    buckets = Buckets([5, 1, 3, 2, 4, 8, 7])
    assert buckets.padding(1, 2) == pytest.approx(1 - 30 / (2 * 5 + 2 * 3 + 2 * 8 + 7))
    assert buckets.padding(2, 2) == pytest.approx(1 - 30 / (2 * 2 + 2 * 5 + 2 * 7 + 8))  # 1 2 | 3 5 || 4 7 | 8
    assert buckets.padding(9, 2) == pytest.approx(1 - 30 / (2 * 2 + 2 * 4 + 2 * 7 + 8))


def test_a_batch_is_a_function_of_its_number_and_the_seed(examples):
    numbers = list(range(60))
    first = {i: rows_of(examples.batch(i, 4, seed=5), examples) for i in numbers}
    random.Random(1).shuffle(numbers)
    assert all(rows_of(examples.batch(i, 4, seed=5), examples) == first[i] for i in numbers)
    assert any(rows_of(examples.batch(i, 4, seed=6), examples) != first[i] for i in numbers)


def padding(batches):
    return 1 - sum(b.n_tokens for b in batches) / sum(b.tokens_BT.numel() for b in batches)


def test_sorting_within_a_pool_saves_most_of_the_padding(examples):
    plain = [collate([(e.ids, e.labels) for e in examples.examples[i:i + 4]], 3) for i in range(0, 101, 4)]
    bucketed = [examples.batch(i, 4, seed=0) for i in range(26)]
    assert padding(bucketed) < 0.25 * padding(plain) and padding(plain) > 0.2
    assert padding(examples.in_order(4)) < 0.25 * padding(plain)


def test_evaluation_takes_the_first_examples_each_time(examples):
    assert sorted(sum((rows_of(b, examples) for b in examples.in_order(8)), [])) == list(range(101))
    assert sorted(sum((rows_of(b, examples) for b in examples.in_order(8, 3)), [])) == list(range(24))
    assert len(examples.in_order(8, 3)) == 3 and len(examples.in_order(8, 50)) == 13


def test_collate_labels_padding_ignore_and_finds_every_target():
    batch = collate([((1, 5, 6, 2), (IGNORE, IGNORE, 6, 2)), ((1, 2), (IGNORE, 2)), ((1, 7, 8), (1, IGNORE, IGNORE))],
                    pad=3)
    assert batch.tokens_BT.tolist() == [[1, 5, 6, 2], [1, 2, 3, 3], [1, 7, 8, 3]]
    assert batch.labels_BT.tolist() == [[IGNORE, IGNORE, 6, 2], [IGNORE, 2, IGNORE, IGNORE],
                                        [1, IGNORE, IGNORE, IGNORE]]
    # Targets (B, T − 1), flattened: row 0 predicts 6 at 1 and 2 at 2, row 1 predicts 2 at 0.
    # A label at place 0 has no input.
    assert batch.supervised_N.tolist() == [1, 2, 3] and batch.n_supervised == 3 and batch.n_tokens == 9
    targets = next_token_pairs(batch.tokens_BT, batch.labels_BT)[1].flatten()
    assert targets[batch.supervised_N].tolist() == [6, 2, 2]
