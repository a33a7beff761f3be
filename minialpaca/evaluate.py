"""Marks: exact match by kind."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from minialpaca.data.files import write_whole
from minialpaca.data.instructions import prompt_ids
from minialpaca.data.rows import Row
from minialpaca.generate import answer_all
from minialpaca.model import Transformer
from minialpaca.tokenizer import Tokenizer


def answer_rows(model: Transformer, tokenizer: Tokenizer, rows: Sequence[Row]) -> list[str]:
    """The greedy answer to each row, given as much room as the longest right answer needs and a little more.

    A prompt that fills the context gets no answer, and so a wrong one.
    """
    prompts = [prompt_ids(tokenizer, row.instruction, row.input) for row in rows]
    longest = max(len(tokenizer.encode(row.output)) for row in rows) + 8
    fits = [i for i, ids in enumerate(prompts) if len(ids) < model.cfg.max_seq_len]
    answers = [""] * len(rows)
    for i, answer in zip(fits, answer_all(model, tokenizer, [prompts[i] for i in fits], longest)):
        answers[i] = answer
    return answers


def exact_match(rows: Sequence[Row], answers: Sequence[str]) -> dict[str, tuple[int, int]]:
    """kind → (right, asked): an answer is right if it equals the output to the letter.

    Kinds such as "fact: town" are counted for "fact" as well; "all" counts everything.
    """
    marks: dict[str, list[bool]] = defaultdict(list)
    for row, answer in zip(rows, answers, strict=True):
        for kind in dict.fromkeys((row.kind.partition(":")[0], row.kind, "all")):
            marks[kind].append(answer == row.output)
    return {kind: (sum(marks[kind]), len(marks[kind])) for kind in sorted(marks, key=lambda k: (k == "all", k))}


def write_marks(folder: Path, rows: Sequence[Row], answers: Sequence[str]) -> dict[str, tuple[int, int]]:
    """`test_answers.jsonl` with every question, its right answer and the given one; `test_marks.json` with the marks."""
    records = [{**row.record(), "answer": answer, "right": answer == row.output}
               for row, answer in zip(rows, answers, strict=True)]
    marks = exact_match(rows, answers)
    write_whole(folder / "test_answers.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    write_whole(folder / "test_marks.json", json.dumps(marks, indent=1) + "\n")
    return marks
