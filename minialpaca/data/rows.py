"""Alpaca files → rows: instruction, input, output, each checked before anything is built on it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minialpaca.data.files import expand, fault, is_writable, read_objects, refuse
from minialpaca.data.order import permutation
from minialpaca.errors import UserError

SUFFIXES = (".json", ".jsonl", ".jsonl.gz")
HALF = "{!r} holds half a surrogate pair, which no encoding can write"


@dataclass(frozen=True)
class Row:
    """One example as it stands in the file; `kind` groups the marks, where the data has kinds."""

    instruction: str
    input: str
    output: str
    kind: str = "all"
    place: str = field(default="", compare=False)  # where it stands, for messages

    def record(self) -> dict[str, str]:
        return {"instruction": self.instruction, "input": self.input, "output": self.output, "kind": self.kind}


def read_rows(sources: Sequence[str]) -> list[Row]:
    """All rows of Alpaca-form files; a missing, empty or non-text field is a fault named with its place."""
    return [row for path in expand(sources, SUFFIXES) for row in _read_file(path)]


def _read_file(path: Path) -> list[Row]:
    faults: list[str] = []
    rows = []
    for place, record in read_objects(path, faults=faults):
        found = _faults_of(record)
        for text in found:
            fault(faults, path, f"{place}: {text}")
        if not found:
            rows.append(Row(record["instruction"], record.get("input", ""), record["output"],
                            record["kind"] if isinstance(record.get("kind"), str) else "all", f"{path.name} {place}"))
    refuse(path, faults, "Mend or remove them")
    if not rows:
        raise UserError(f"{path}: holds no examples")
    return rows


def _faults_of(record: dict) -> list[str]:
    """An `input` may be absent; an empty `output` is no fault (Stanford's data has 28), it is left out later."""
    found = []
    for name in ("instruction", "input", "output"):
        value = record.get(name, "" if name == "input" else None)
        if name not in record and name != "input":
            found.append(f"{name!r} is missing")
        elif not isinstance(value, str):
            found.append(f"{name!r} is {json.dumps(value)[:40]} and no text")
        elif not is_writable(value):
            found.append(HALF.format(name))
        elif name == "instruction" and not value.strip():
            found.append("'instruction' is empty")
    if isinstance(record.get("kind"), str) and not is_writable(record["kind"]):
        found.append(HALF.format("kind"))
    return found


def hold_out(rows: list[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(train, validation), drawn by the seed. Rows that ask the same go to the same side."""
    asked = list(dict.fromkeys((row.instruction, row.input) for row in rows))
    n = round(fraction * len(asked))
    if not 0 < n < len(asked):
        raise UserError(f"data.val_fraction = {fraction}: holds out {n} of {len(asked)} distinct questions; "
                        "change it, or name data.val_source")
    held = {asked[i] for i in permutation(len(asked), seed, 0, 2)[:n]}
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        sides[(row.instruction, row.input) in held].append(row)
    return sides
