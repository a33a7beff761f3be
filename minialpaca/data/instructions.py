"""Instruction data: rows → ids with labels → length-bucketed batches.

One function, `prompt_ids`, writes the prompt for training, evaluation, generation and chat. Prompt
and response are encoded apart and joined as ids; labels grow beside the ids. So what is asked later is
what was trained, and the mask cannot slip, whatever the texts contain.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minialpaca.data.batch import Batch, collate
from minialpaca.data.buckets import Buckets
from minialpaca.data.rows import Row
from minialpaca.errors import UserError
from minialpaca.objectives import IGNORE
from minialpaca.tokenizer import Tokenizer

# Stanford Alpaca's two prompts, to the letter (tatsu-lab/stanford_alpaca, train.py). There is no
# newline after the last colon.
PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
PROMPT_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)

PROMPTS_ID = hashlib.sha256((PROMPT_WITH_INPUT + PROMPT_WITHOUT_INPUT).encode()).hexdigest()[:16]  # in each tuned checkpoint


@dataclass(frozen=True)
class Example:
    """A row as ids: <s> prompt response </s>, and labels that supervise the response and </s>."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]


# ── ids ──────────────────────────────────────────────────────────────────────────────────────────


def prompt_text(instruction: str, input: str = "") -> str:
    """The prompt; an empty input takes the wording without one, as at Stanford."""
    template = PROMPT_WITH_INPUT if input else PROMPT_WITHOUT_INPUT
    return template.format_map({"instruction": instruction, "input": input})


def prompt_ids(tokenizer: Tokenizer, instruction: str, input: str = "") -> list[int]:
    return [tokenizer.bos, *tokenizer.encode(prompt_text(instruction, input))]


def encode(tokenizer: Tokenizer, row: Row) -> Example:
    """ids and labels grow together: prompt ids are labelled IGNORE, response ids and </s> by themselves."""
    prompt = prompt_ids(tokenizer, row.instruction, row.input)
    response = [*tokenizer.encode(row.output), tokenizer.eos]
    return Example((*prompt, *response), (*[IGNORE] * len(prompt), *response))


def fit_context(example: Example, context: int, policy: str, place: str = "") -> Example | None:
    """An over-long example by policy: None (`drop`), its beginning (`truncate_response`), or an error (`raise`).

    A truncated response has no </s>, because it goes on. A prompt is never truncated: where it leaves
    no room for a response, the example is dropped.
    """
    limit = context + 1  # the last id is only ever a target
    if len(example.ids) <= limit:
        return example
    if policy == "raise":
        raise UserError(f"{place or 'an example'} has {len(example.ids)} tokens where the context holds {limit}; shorten it, lengthen "
                        "the context, or set data.over_long to drop or truncate_response")
    cut = Example(example.ids[:limit], example.labels[:limit])
    return cut if policy == "truncate_response" and cut.labels[-1] != IGNORE else None


def by_file(rows: Sequence[Row]) -> str:
    """`a.json record 3, 9; b.jsonl line 2`: where rows stand, each file named once; a row of no file by its question."""
    places: dict[str, list[str]] = {}
    for row in rows:
        file, _, number = row.place.rpartition(" ")
        places.setdefault(file, []).append(number or repr(row.instruction[:40]))
    return "; ".join(f"{file} {', '.join(numbers)}".lstrip() for file, numbers in places.items())


# ── examples ─────────────────────────────────────────────────────────────────────────────────────


class Examples:
    """Encoded rows that fit, in length-bucketed batches."""

    def __init__(self, rows: list[Row], tokenizer: Tokenizer, context: int, over_long: str, name: str):
        self.tokenizer, self.counts = tokenizer, Counter(read=len(rows))
        self.examples: list[Example] = []
        self.over_long: list[Row] = []
        for row in rows:
            self._take(row, context, over_long)
        self.buckets = Buckets([len(e.ids) for e in self.examples])
        self.counts["repeated"] = len(rows) - len(set(rows))
        print(f"{name}: {self.describe(over_long)}")
        if self.over_long:
            print(f"{name}, over-long: {by_file(self.over_long[:10])}{' …' if len(self.over_long) > 10 else ''}")
        if not self.examples:
            raise UserError(f"{name}: none of {len(rows)} examples is left (context {context}, data.over_long = "
                            f"{over_long}): {self.describe(over_long)}; raise base.max_seq_len, set another "
                            "data.over_long, or give shorter examples")

    def _take(self, row: Row, context: int, over_long: str) -> None:
        if not row.output.strip():
            self.counts["empty"] += 1
            return
        example = encode(self.tokenizer, row)
        fitted = fit_context(example, context, over_long, row.place)
        if fitted is not example:
            self.counts["dropped" if fitted is None else "truncated"] += 1
            self.over_long.append(row)
        if fitted is not None:
            self.examples.append(fitted)

    def describe(self, over_long: str) -> str:
        lengths = sorted(len(e.ids) for e in self.examples)
        spread = f", {lengths[0]} to {lengths[-1]} tokens (median {lengths[len(lengths) // 2]})" if lengths else ""
        return (f"{len(self.examples):,} of {self.counts['read']:,} examples{spread}; over_long = {over_long}: "
                f"{self.counts['dropped']} dropped, {self.counts['truncated']} truncated; "
                f"{self.counts['empty']} without an output left out; {self.counts['repeated']} repeat another")

    def sha256(self) -> str:
        """Of all ids and labels, in their order."""
        digest = hashlib.sha256()
        for e in self.examples:
            digest.update(np.array([len(e.ids), *e.ids, *e.labels], dtype="<i8").tobytes())
        return digest.hexdigest()

    def n_batches(self, batch_size: int) -> int:
        return self.buckets.n_batches(batch_size)

    def batch(self, number: int, batch_size: int, seed: int) -> Batch:
        """The `number`-th batch of an endless sequence of epochs. Each epoch takes every example once."""
        return self._collate(self.buckets.chosen(number, batch_size, seed))

    def in_order(self, batch_size: int, n_batches: int = 0) -> list[Batch]:
        """The first `n_batches` · `batch_size` examples (0: all), by length, for evaluation."""
        taken = range(min(len(self.examples), n_batches * batch_size or len(self.examples)))
        return [self._collate(chosen) for chosen in self.buckets.by_length(taken, batch_size)]

    def _collate(self, chosen: Sequence[int]) -> Batch:
        return collate([(self.examples[i].ids, self.examples[i].labels) for i in chosen], self.tokenizer.pad)
