"""Marks: to the letter, by kind, whatever the batch."""

import json

import pytest
import tiny

from minialpaca import evaluate, generate
from minialpaca.data.instructions import prompt_ids
from minialpaca.data.rows import Row
from minialpaca.evaluate import answer_rows, exact_match

ROWS = [Row("q1", "", "Olten", "fact: town"), Row("q2", "", "a fox", "fact: animal"), Row("q3", "x", "3", "count"),
        Row("q4", "", "dog", "fact: town")]


def test_marks_are_counted_by_kind_by_its_first_part_and_together():
    assert exact_match(ROWS, ["Olten", "a dog", "3", "cat"]) == {
        "count": (1, 1), "fact": (1, 3), "fact: animal": (0, 1), "fact: town": (1, 2), "all": (2, 4)}


def test_the_sum_over_all_stands_last():
    assert list(exact_match(ROWS, [""] * 4)) == ["count", "fact", "fact: animal", "fact: town", "all"]


def test_rows_without_a_kind_are_counted_once():
    assert exact_match([Row("q", "", "a"), Row("q", "", "b")], ["a", "a"]) == {"all": (1, 2)}


@pytest.mark.parametrize("answer", ["olten", "Olten ", " Olten", "Olten.", "", "Olten\n"])
def test_an_answer_is_right_to_the_letter_or_wrong(answer):
    assert exact_match(ROWS[:1], [answer])["all"] == (0, 1)


def test_an_answer_too_few_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        exact_match(ROWS, ["Olten"])


@pytest.fixture(scope="module")
def model():
    return tiny.model(vocab_size=tiny.tokenizer().vocab_size, max_seq_len=200, init_std=0.3)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_rows_are_answered_alike_in_any_batch(model, monkeypatch, batch_size):
    tokenizer = tiny.tokenizer()
    whole = answer_rows(model, tokenizer, ROWS)
    monkeypatch.setattr(evaluate, "answer_all", lambda *args: generate.answer_all(*args, batch_size=batch_size))
    assert answer_rows(model, tokenizer, ROWS) == whole and len(set(whole)) == 4
    assert answer_rows(model, tokenizer, ROWS[::-1]) == whole[::-1]


def test_a_prompt_that_fills_the_context_gets_no_answer_and_the_others_theirs(model):
    tokenizer = tiny.tokenizer()
    full = Row("word " * 400, "", "3")
    assert len(prompt_ids(tokenizer, full.instruction)) > 200
    expected = answer_rows(model, tokenizer, ROWS)
    assert answer_rows(model, tokenizer, [ROWS[0], full, *ROWS[1:]]) == [expected[0], "", *expected[1:]]
    assert all(expected)


def test_the_marks_and_every_answer_are_written_down(tmp_path):
    answers = ["Olten", "ein Füchslein ▁ 😀", "3", "cat"]
    marks = evaluate.write_marks(tmp_path, ROWS, answers)
    assert marks == exact_match(ROWS, answers)
    lines = (tmp_path / "test_answers.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [(r["instruction"], r["input"], r["output"], r["kind"]) for r in records] == [
        (row.instruction, row.input, row.output, row.kind) for row in ROWS]
    assert [(r["answer"], r["right"]) for r in records] == list(zip(answers, [True, False, True, False]))
    assert json.loads((tmp_path / "test_marks.json").read_text()) == {kind: list(pair) for kind, pair in marks.items()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test_answers.jsonl", "test_marks.json"]
