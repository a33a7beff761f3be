"""Marks: exact match by kind, or what a classifier tells right.

    python -m minialpaca.evaluate RUN                  on the test split of its data, as finetune.py ends with it
    python -m minialpaca.evaluate RUN rows.json        on other rows, of the form of its data
"""

import argparse

from minialpaca import commandline


def asked() -> argparse.Namespace:
    options = commandline.parser("evaluate", __doc__)
    options.add_argument("run", help="the folder of a finetune.py run")
    options.add_argument("rows", nargs="*", help="files of rows with right answers, or of labelled texts; the run's own test split where left out")
    commandline.add_weights(options)
    return options.parse_intermixed_args()  # files may stand behind options


commandline.early(__name__, asked)

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from minialpaca import classify, run
from minialpaca.config import FinetuneConfig
from minialpaca.data.classes import read_texts
from minialpaca.data.files import write_whole
from minialpaca.data.instructions import prompt_ids
from minialpaca.data.rows import Row, read_rows
from minialpaca.data.texts import TextExamples, refuse_unknown
from minialpaca.errors import UserError, command
from minialpaca.generate import answer_all
from minialpaca.log import table
from minialpaca.model import Transformer
from minialpaca.report import class_table
from minialpaca.tasks.classification import Classification, judge, truths
from minialpaca.tasks.instruction import Instruction
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


def marks_table(marks: dict[str, tuple[int, int]]) -> str:
    return table([(kind, right, n, 100 * right / n) for kind, (right, n) in marks.items()], ("test, exact match", "right", "asked", "per cent"))


def write_marks(folder: Path, rows: Sequence[Row], answers: Sequence[str]) -> dict[str, tuple[int, int]]:
    """`test_answers.jsonl` with every question, its right answer and the given one; `test_marks.json` with the marks."""
    records = [{**row.record(), "answer": answer, "right": answer == row.output}
               for row, answer in zip(rows, answers, strict=True)]
    marks = exact_match(rows, answers)
    write_whole(folder / "test_answers.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    write_whole(folder / "test_marks.json", json.dumps(marks, indent=1) + "\n")
    return marks


# ── command line ─────────────────────────────────────────────────────────────────────────────────


@command
def main() -> None:
    args = asked()
    folder, device = Path(args.run), run.pick_device(args.device)
    settings = run.settings_of(folder)
    if not isinstance(settings, FinetuneConfig):
        raise UserError(f"{folder}: was pretrained and has learned neither to answer nor to label; give the run.dir of a finetune.py run")
    told = told_labels if settings.task.name == "classification" else told_answers
    print(told(settings, folder, args.rows, args.checkpoint, device))


def told_answers(settings: FinetuneConfig, folder: Path, files: list[str], which: str, device: torch.device) -> str:
    model, tokenizer = run.load(folder, which, device)
    rows = read_rows(files) if files else test_split(Instruction(settings, tokenizer).test_rows, folder)
    return marks_table(exact_match(rows, answer_rows(model, tokenizer, rows)))


def told_labels(settings: FinetuneConfig, folder: Path, files: list[str], which: str, device: torch.device) -> str:
    labeller = classify.load_labeller(folder, which, device)
    if files:
        texts = read_texts(files, settings.classes)
        refuse_unknown(texts, labeller.groups, "test")
        examples = TextExamples(texts, labeller.groups, labeller.tokenizer, settings.model.max_seq_len, settings.classes.over_long, "test")
    else:
        examples = test_split(Classification(settings, labeller.tokenizer).test, folder)
    judged = judge(labeller.model, examples, device, settings.train.batch_size)
    return "\n\n".join(class_table(group, right, said, "test") for group, (right, said) in zip(labeller.groups, truths(examples, judged)))


def test_split(rows, folder: Path):
    if not rows:
        raise UserError(f"{folder}: its data have no test split; name a file with rows behind it")
    return rows


if __name__ == "__main__":
    sys.exit(main())
