"""Labelled texts: tables, JSON objects and patterned lines → texts with the labels of each group.

Whatever the form, a file is a sequence of records, column → value. `classes.text` names the columns that are
read, `classes.labels` those that are predicted. A record that is not understood is a fault named with its
file and row; the first ten are shown, and nothing is built on the rest.
"""

import codecs
import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minialpaca.config import ClassesConfig
from minialpaca.data.files import (array_objects, expand, fault, is_utf8_beyond_ascii, is_writable, line_objects, read_lines,
                                   refuse, whole_lines)
from minialpaca.errors import UserError

TABLES = {".csv": ",", ".tsv": "\t"}
SUFFIXES = tuple(kind + packed for kind in (*TABLES, ".jsonl", ".json", ".txt") for packed in ("", ".gz"))
LONGEST_CELL = 1 << 24  # characters; the csv module's own limit of 131,072 is below some articles

Record = tuple[str, dict]  # where it stands, and column → value


@dataclass(frozen=True)
class LabelledText:
    """A text and, for each label group in the order of `classes.labels`, its labels: one, or any number."""

    text: str
    labels: tuple[tuple[str, ...], ...]
    place: str = field(default="", compare=False)  # file and row, for messages


def read_texts(sources: Sequence[str], cfg: ClassesConfig) -> list[LabelledText]:
    """All labelled texts of some files. White space around texts and labels is taken away."""
    return [text for path in expand(sources, SUFFIXES) for text in _read_file(path, cfg)]


def _read_file(path: Path, cfg: ClassesConfig) -> list[LabelledText]:
    faults: list[str] = []
    texts = labelled(path, records(path, cfg, faults), cfg, faults)
    if not texts:
        raise UserError(f"{path}: holds no labelled texts")
    return texts


def labelled(source: Path, found: Iterator[Record], cfg: ClassesConfig, faults: list[str]) -> list[LabelledText]:
    """Records → labelled texts; all of them are understood, or none is handed back."""
    texts = []
    for place, record in found:
        before = len(faults)
        text = _text(source, place, record, cfg.text, faults)
        labels = tuple(_labels(source, place, record, name, cfg, faults) for name in cfg.labels)
        if len(faults) == before:
            texts.append(LabelledText(text, labels, f"{source}, {place}"))
    refuse(source, faults, "Mend or remove them, or name other columns with classes.text and classes.labels")
    return texts


# ── one record ───────────────────────────────────────────────────────────────────────────────────


def _text(path: Path, place: str, record: dict, columns: Sequence[str], faults: list[str]) -> str:
    """The columns joined by a space."""
    parts = []
    for name in columns:
        value = record.get(name)
        if name not in record:
            fault(faults, path, f"{place}: {_no_column(name, record)}")
        elif not isinstance(value, str):
            fault(faults, path, f"{place}: {name!r} is {json.dumps(value)[:40]} and no text")
        elif not is_writable(value):
            fault(faults, path, f"{place}: {name!r} holds half a surrogate pair, which no encoding can write")
        elif "\0" in value:
            fault(faults, path, f"{place}: {name!r} holds a character zero; is the file UTF-16? Then set classes.encoding")
        else:
            parts.append(value.strip())
    text = " ".join(part for part in parts if part)
    if not text and len(parts) == len(columns):
        fault(faults, path, f"{place}: the text is empty")
    return text


def _labels(path: Path, place: str, record: dict, name: str, cfg: ClassesConfig, faults: list[str]) -> tuple[str, ...]:
    """The labels of one group: exactly one, or where the group takes several, any number, each once."""
    if name not in record:
        fault(faults, path, f"{place}: {_no_column(name, record)}")
        return ()
    value, several = record[name], name in cfg.several
    if several and isinstance(value, str):
        given = value.split(cfg.separator) if value.strip() else []
    else:
        given = value if several and isinstance(value, list) else [value]
    wrong = [v for v in given if type(v) not in (str, int) or not is_writable(str(v))]
    if wrong:
        hint = f"; lists need {name!r} in classes.several" if isinstance(wrong[0], list) else ""
        fault(faults, path, f"{place}: {name!r} is {json.dumps(wrong[0])[:40]} and no label (a text or a whole number)"
                            f"{hint}")
        return ()
    labels = tuple(dict.fromkeys(str(v).strip() for v in given))
    if any("\0" in label for label in labels):
        fault(faults, path, f"{place}: {name!r} holds a character zero; is the file UTF-16? Then set classes.encoding")
    if "" in labels:
        fault(faults, path, f"{place}: {name!r} {'is empty' if labels == ('',) else 'has an empty label'}")
    return labels


def _no_column(name: str, record: dict) -> str:
    return f"there is no column {name!r} among {_names(record)}"


def _names(columns: Sequence[str]) -> str:
    shown = ", ".join(repr(str(c)[:30]) for c in list(columns)[:12])
    return shown + (" …" if len(columns) > 12 else "")


# ── files → records ──────────────────────────────────────────────────────────────────────────────


def records(path: Path, cfg: ClassesConfig, faults: list[str]) -> Iterator[Record]:
    kind = Path(path.name.removesuffix(".gz")).suffix
    lines = _decoded(path, cfg.encoding)
    if kind in TABLES:
        return _table(path, lines, TABLES[kind], cfg, faults)
    if kind == ".txt":
        return _patterned(path, lines, cfg, faults)
    lines = list(lines)
    is_array = kind == ".json" and "".join(line for _, line in lines[:20]).lstrip().startswith("[")
    return (array_objects if is_array else line_objects)(path, iter(lines), faults)


def _decoded(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    if not codecs.lookup(encoding).name.startswith("utf") and is_utf8_beyond_ascii(path):  # Latin encodings take any bytes
        raise UserError(f"{path}: reads as UTF-8 from beginning to end, so it is hardly {encoding.upper()}; set classes.encoding=utf-8")
    lines = whole_lines(read_lines(path, encoding=encoding, mend="set classes.encoding, e.g. {}"))
    for number, line in lines:
        if number == 1 and line.startswith("\u00ef\u00bb\u00bf"):  # what UTF-8's mark looks like in Latin encodings
            raise UserError(f"{path}, line 1: begins with UTF-8's byte-order mark, so it is not {encoding.upper()}; "
                            "set classes.encoding=utf-8")
        yield number, line


def _table(path: Path, lines: Iterator[tuple[int, str]], separator: str, cfg: ClassesConfig,
           faults: list[str]) -> Iterator[Record]:
    """Rows are counted as a spreadsheet counts them, the header being row 1; empty ones are skipped."""
    csv.field_size_limit(LONGEST_CELL)
    quoting = csv.QUOTE_MINIMAL if cfg.quotes else csv.QUOTE_NONE
    rows = csv.reader((line for _, line in lines), delimiter=separator, quoting=quoting, strict=True)
    columns: list[str] = []
    within: list[tuple[int, list[list[str]]]] = []
    known: list[set[str]] = [set() for _ in cfg.labels]
    try:
        for number, row in enumerate(rows, 1):
            if not columns and row:
                columns = row if cfg.header else [str(i) for i in range(1, len(row) + 1)]
                _refuse_columns(path, columns, cfg)
                if cfg.header:
                    continue
            if len(row) == len(columns):
                record = dict(zip(columns, row))
                within += [(number, inner) for inner in _rows_within(row, separator)]
                for seen, name in zip(known, cfg.labels):
                    seen.add(record[name].strip())
                yield f"row {number}", record
            elif row:
                fault(faults, path, f"row {number}: has {len(row)} cells where the first row has {len(columns)}")
        for number in dict.fromkeys(n for n, inner in within if all(_is_row(cells, columns, cfg, known) for cells in inner)):
            fault(faults, path, f"row {number}: a cell in quotation marks holds what reads as rows of their own; mend the quotes, or set "
                                "classes.quotes=false if cells are not quoted")
    except csv.Error as error:
        mend = ("save the file with line ends LF or CRLF" if "new-line" in str(error) else
                "mend the quotes, or set classes.quotes=false if cells are not quoted")
        raise UserError(f"{path}, line {rows.line_num}: is no row of a table ({str(error).partition(' - ')[0]}); {mend}") from None


def _rows_within(row: list[str], separator: str) -> Iterator[list[list[str]]]:
    """For each cell of several lines: the rows that would stand there if its quotation marks were none."""
    for i, cell in enumerate(row):
        if "\n" in cell and separator in cell:
            first, *others, last = (line.split(separator) for line in cell.split("\n"))
            yield [[*row[:i], *first], *others, [*last, *row[i + 1:]]]


def _is_row(cells: list[str], columns: list[str], cfg: ClassesConfig, known: list[set[str]]) -> bool:
    """As many cells as there are columns, and labels that other rows have."""
    labels = dict(zip(columns, cells))
    return len(cells) == len(columns) and all(labels[name].strip() in seen for name, seen in zip(cfg.labels, known))


def _refuse_columns(path: Path, columns: list[str], cfg: ClassesConfig) -> None:
    for name in (*cfg.text, *cfg.labels):
        if columns.count(name) > 1:
            raise UserError(f"{path}: has {columns.count(name)} columns {name!r}; rename the others")
        if name not in columns and set(parts := [part.strip() for part in name.split(",")]) <= set(columns):
            raise UserError(f"{path}: there is no column {name!r}; several columns are a list: {json.dumps(parts, ensure_ascii=False)}")
        if name not in columns:
            mend = ("name others with classes.text and classes.labels, or set classes.header=false where the first row "
                    "is none" if cfg.header else "give numbers, or set classes.header=true where the first row is one")
            raise UserError(f"{path}: there is no column {name!r} among {_names(columns)}; {mend}")


def _patterned(path: Path, lines: Iterator[tuple[int, str]], cfg: ClassesConfig, faults: list[str]) -> Iterator[Record]:
    pattern = line_pattern(path, cfg)
    for number, line in lines:
        if "\r" in line.rstrip("\n"):
            fault(faults, path, f"line {number}: holds a bare carriage return; save the file with line ends LF or CRLF")
        elif line.strip():
            match = pattern.fullmatch(line.rstrip("\n"))
            if match:
                yield f"line {number}", dict(zip(_braced(cfg.lines), match.groups()))
            else:
                fault(faults, path, f"line {number}: does not read {cfg.lines!r}")


def line_pattern(path: Path, cfg: ClassesConfig) -> re.Pattern:
    """`classes.lines` as a regular expression: a label is as short as can be, a text as long.

    So `{label} {text}` splits at the first space and `{text}@{label}` at the last @.
    """
    names, needed = _braced(cfg.lines), {*cfg.text, *cfg.labels}
    if len(set(names)) < len(names) or not needed <= set(names) or "}{" in cfg.lines:
        raise UserError(f"{path}: a .txt needs classes.lines, the pattern of its lines, with something between the "
                        f"columns {', '.join(f'{{{n}}}' for n in (*cfg.labels, *cfg.text))}, each once, e.g. "
                        f"'{{{cfg.labels[0]}}} {{{cfg.text[0]}}}'; it is {cfg.lines!r}")
    parts = re.split(r"\{[^{}]*\}", cfg.lines)
    groups = ["(.*)" if name in cfg.text else "(.*?)" for name in names]
    return re.compile("".join(re.escape(part) + group for part, group in zip(parts, [*groups, ""])), re.DOTALL)


def _braced(pattern: str) -> list[str]:
    return re.findall(r"\{([^{}]*)\}", pattern)
