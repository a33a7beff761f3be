"""Alpaca files → rows, and which of them are held out."""

import json

import pytest

from minialpaca.data.rows import Row, hold_out, read_rows
from minialpaca.errors import UserError


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def refusal(sources):
    with pytest.raises(UserError) as caught:
        read_rows(sources)
    return str(caught.value)


def test_rows_are_read_as_they_stand(tmp_path):
    records = [{"instruction": " Add.\n", "input": "1 2", "output": "3 "}, {"instruction": "Hi", "output": ""},
               {"instruction": "Hi", "input": "", "output": "漢", "kind": "greeting", "text": "more"},
               {"instruction": "Hi", "output": "x", "kind": 7}]
    rows = [Row(" Add.\n", "1 2", "3 "), Row("Hi", "", ""), Row("Hi", "", "漢", "greeting"), Row("Hi", "", "x")]
    path = written(tmp_path / "a.json", records)
    assert read_rows([path]) == rows
    assert read_rows([written(tmp_path / "b.jsonl", "\n".join(map(json.dumps, records)))]) == rows
    assert read_rows([str(tmp_path)]) == rows + rows


FAULTY = {
    "'output' is missing": {"instruction": "a"},
    "'instruction' is missing": {"output": "a"},
    "'output' is 7 and no text": {"instruction": "a", "output": 7},
    "'output' is null and no text": {"instruction": "a", "output": None},
    "'input' is [\"x\"] and no text": {"instruction": "a", "input": ["x"], "output": "b"},
    "'input' is null and no text": {"instruction": "a", "input": None, "output": "b"},
    "'instruction' is empty": {"instruction": " \n", "output": "b"},
    "'kind' holds half a surrogate pair": {"instruction": "a", "output": "b", "kind": "\ud800"},
    "'output' holds half a surrogate pair": {"instruction": "a", "output": "b\ud800"},
}


@pytest.mark.parametrize("said", FAULTY)
def test_each_fault_is_named_with_its_record(tmp_path, said):
    good = {"instruction": "a", "output": "b"}
    assert f"2 bad records: record 2: {said}" in refusal([written(tmp_path / "a.json",
                                                                  [good, FAULTY[said], good, FAULTY[said]])])
    lines = "\n\n".join(json.dumps(r) for r in (good, FAULTY[said]))
    assert f"b.jsonl: 1 bad record: line 3: {said}" in refusal([written(tmp_path / "b.jsonl", lines)])


def test_the_first_ten_faults_are_shown_broken_lines_among_them(tmp_path):
    lines = ["{"] + [json.dumps({"instruction": "a"})] * 14
    message = refusal([written(tmp_path / "a.jsonl", "\n".join(lines))])
    assert "a.jsonl: 15 bad records: line 1: is no JSON" in message
    assert "line 10: 'output' is missing; and 5 more" in message
    assert "line 11" not in message and "\n" not in message


def test_a_file_without_examples_is_refused(tmp_path):
    assert "a.json: holds no examples" in refusal([written(tmp_path / "a.json", [])])
    assert "b.jsonl: holds no examples" in refusal([written(tmp_path / "b.jsonl", "\n\n")])


def asked(rows):
    return {(row.instruction, row.input) for row in rows}


ROWS = [Row(f"q{i % 30}", "x" if i % 2 else "", f"a{i}") for i in range(90)]  # 30 questions with three answers each


def test_no_question_is_on_both_sides_and_no_row_is_lost():
    train, val = hold_out(ROWS, 0.2, seed=3)
    assert not asked(train) & asked(val) and len(asked(val)) == 6 and len(val) == 18
    assert sorted(train + val, key=ROWS.index) == ROWS
    assert train == [r for r in ROWS if r in train] and val == [r for r in ROWS if r in val]  # in file order


def test_an_input_makes_another_question():
    rows = [Row("same", str(i), "a") for i in range(10)]
    train, val = hold_out(rows, 0.3, seed=0)
    assert len(val) == 3 and len(train) == 7


def test_the_seed_draws_what_is_held_out():
    drawn = {seed: frozenset(asked(hold_out(ROWS, 0.2, seed)[1])) for seed in range(8)}
    assert len(set(drawn.values())) > 6 and drawn[2] == frozenset(asked(hold_out(ROWS, 0.2, 2)[1]))
    assert frozenset(asked(ROWS[:6])) not in drawn.values()


@pytest.mark.parametrize("rows, fraction", [(ROWS, 0.01), (ROWS, 0.99), (ROWS[:1], 0.5), ([ROWS[0], ROWS[30]], 0.5)])
def test_holding_out_nothing_or_everything_is_refused(rows, fraction):
    with pytest.raises(UserError, match=f"data.val_fraction = {fraction}: holds out"):
        hold_out(rows, fraction, 0)
