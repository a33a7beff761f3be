"""Pretraining text: sources → documents → token files → windows.

Documents are read and written in a stream, so a corpus may be larger than memory. Each becomes
<s> ids </s>; the documents stand one behind another, and a window of the context's length is cut
without regard to where one ends.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from minialpaca import parallel
from minialpaca.config import CorpusConfig
from minialpaca.data import world
from minialpaca.data.files import expand, fault, is_writable, other_data, read_lines, read_objects, refuse, refuse_shared
from minialpaca.data.order import permutation, whole
from minialpaca.data.token_file import TokenFile, TokenWriter, read_header
from minialpaca.errors import UserError
from minialpaca.log import progress
from minialpaca.tokenizer import Tokenizer

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")
CHUNK = 1 << 16  # characters of a long document that are encoded together
AT_ONCE = 1 << 18  # characters that are encoded at once

Part = tuple[str, bool]  # a stretch of a document, and whether the document ends with it
OnBytes = Callable[[int], None]


# ── documents ────────────────────────────────────────────────────────────────────────────────────


def texts(cfg: CorpusConfig, on_bytes: OnBytes = lambda n: None) -> Iterator[str]:
    """All text of `cfg.source`, in stretches, for learning a vocabulary."""
    return (text for text, _ in parts(cfg, cfg.source, on_bytes))


def parts(cfg: CorpusConfig, sources: tuple[str, ...], on_bytes: OnBytes = lambda n: None) -> Iterator[Part]:
    read: set[Path] = set()  # a file that two sources name is read once
    for source in sources:
        if world.is_world(source):
            yield from _world_parts(source, on_bytes)
        else:
            for path in expand([source], SUFFIXES):
                if path.resolve() not in read:
                    read.add(path.resolve())
                    yield from _file_parts(path, cfg, on_bytes)


def _world_parts(source: str, on_bytes: OnBytes) -> Iterator[Part]:
    for document in world.corpus(world.World.build(world.seed_of(source))):
        on_bytes(len(document.encode()))
        yield document, True


def _file_parts(path: Path, cfg: CorpusConfig, on_bytes: OnBytes) -> Iterator[Part]:
    if ".jsonl" in path.name:
        return _jsonl_parts(path, cfg.text_field, on_bytes)
    lines = (line for _, line in read_lines(path, on_bytes))
    if cfg.documents == "file":
        return _one_document(lines)
    return ((text, True) for text in _split(lines, cfg.documents) if text.strip())


def _one_document(lines: Iterator[str]) -> Iterator[Part]:
    """A whole file, in stretches that end at a newline: no piece spans one, so nothing is encoded otherwise."""
    held: list[str] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= CHUNK:
            yield "".join(held), False
            held, size = [], 0
    yield "".join(held), True


def _split(lines: Iterator[str], documents: str) -> Iterator[str]:
    """Whole documents: single lines, paragraphs, or what stands between lines that read `documents`."""
    held: list[str] = []
    for line in lines:
        at_end = line.strip() == ("" if documents == "blank_line" else documents)
        if documents == "line":
            yield line.rstrip("\n")
        elif at_end:
            yield "".join(held).rstrip("\n")
            held = []
        else:
            held.append(line)
    yield "".join(held).rstrip("\n")


def _jsonl_parts(path: Path, field: str, on_bytes: OnBytes) -> Iterator[Part]:
    faults: list[str] = []
    for place, record in read_objects(path, on_bytes, faults):
        text = record.get(field)
        if isinstance(text, str) and is_writable(text):
            if text.strip():
                yield text, True
        elif isinstance(text, str):
            fault(faults, path, f"{place}: {field!r} holds half a surrogate pair, which no encoding can write")
        else:
            fault(faults, path, f"{place}: {field!r} is {'missing' if field not in record else 'no text'}")
    refuse(path, faults, "Mend these lines, or name another field with data.text_field")


# ── token files ──────────────────────────────────────────────────────────────────────────────────


def prepare(cfg: CorpusConfig, tokenizer: Tokenizer, folder: Path, learned: bool = False) -> tuple[TokenFile, TokenFile]:
    """train.bin and val.bin in `folder`, written unless they are there for these very sources and tokenizer.

    learned: a run has learned from those that are there; sources that come to others are refused, and nothing is written over.
    """
    mark = _fingerprint(cfg, tokenizer)
    train, val = folder / "train.bin", folder / "val.bin"
    there = train.exists() and val.exists()
    as_the_first_found = there and not parallel.is_first()  # which has looked; seen from another machine, files have other dates
    if as_the_first_found or there and read_header(train)["source"] == read_header(val)["source"] == mark:
        return TokenFile(train, tokenizer).verify(), TokenFile(val, tokenizer).verify()
    folder.mkdir(parents=True, exist_ok=True)
    if learned and there:
        _write_the_same(cfg, tokenizer, train, val, mark)
    else:
        _write(cfg, tokenizer, train, val, mark)
    return TokenFile(train, tokenizer), TokenFile(val, tokenizer)


def look(folder: Path, tokenizer: Tokenizer) -> None:
    """Refuse token files that `prepare` would; nothing is written."""
    for path in (folder / "train.bin", folder / "val.bin"):
        if path.exists():
            TokenFile(path, tokenizer).verify()


def _write_the_same(cfg: CorpusConfig, tokenizer: Tokenizer, train: Path, val: Path, mark: str) -> None:
    """Of sources that look different (another place, another date) and may hold the same."""
    for left in train.parent.glob(".anew-*"):  # by a kill
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=train.parent, prefix=".anew-") as anew:
        made = [Path(anew) / path.name for path in (train, val)]
        _write(cfg, tokenizer, *made, mark)
        if any(read_header(new)["sha256"] != read_header(old)["sha256"] for new, old in zip(made, (train, val))):
            raise other_data(train.parent.parent)
        for new, old in zip(made, (train, val)):
            os.replace(new, old)


def _write(cfg: CorpusConfig, tokenizer: Tokenizer, train: Path, val: Path, mark: str) -> None:
    with progress("writing tokens", size(cfg), "B") as bar, \
            TokenWriter(val, tokenizer, mark) as val_writer, TokenWriter(train, tokenizer, mark) as train_writer:
        if cfg.val_source:
            _encode(parts(cfg, cfg.source, bar.update), tokenizer, train_writer)
            _encode(parts(cfg, cfg.val_source, bar.update), tokenizer, val_writer)
        else:
            _encode(parts(cfg, cfg.source, bar.update), tokenizer, train_writer, val_writer, cfg.val_fraction)
            if not (len(train_writer) and len(val_writer)):
                raise UserError(f"data.val_fraction = {cfg.val_fraction}: holds out nothing or everything of this "
                                "little text; change it, or name data.val_source")


def _encode(stream: Iterator[Part], tokenizer: Tokenizer, writer: TokenWriter,
            val_writer: TokenWriter | None = None, val_fraction: float = 0.0) -> None:
    """Write each document; with a `val_writer`, spread the held-out ones evenly, or hold out the end of the last one.

    Document n is held out where ⌊(n + 1) f⌋ > ⌊n f⌋: for f = 1/20 every twentieth.
    """
    f = Fraction(str(val_fraction)) if val_writer is not None else Fraction(0)  # 0.05 is 1/20 here, and 60 · 0.05 exactly 3
    a, b = f.numerator, f.denominator
    number = 0
    for batch in _gathered(stream):
        encoded = tokenizer.encode_all([(text, starts) for text, starts, _ in batch])
        for ids, (_, starts, ends) in zip(encoded, batch):
            to = val_writer if (number + 1) * a // b > number * a // b else writer
            to.write(([tokenizer.bos] if starts else []) + ids + ([tokenizer.eos] if ends else []))
            number += ends
    if val_writer is not None and number * f < 1:
        writer.move_tail(val_writer, val_fraction)


def _gathered(stream: Iterator[Part]) -> Iterator[list[tuple[str, bool, bool]]]:
    """(text, whether a document starts with it, whether it ends), as many as are encoded at once."""
    held: list[tuple[str, bool, bool]] = []
    size, starts = 0, True
    for text, ends in stream:
        held.append((text, starts, ends))
        starts, size = ends, size + len(text)
        if size >= AT_ONCE:
            yield held
            held, size = [], 0
    yield held


def size(cfg: CorpusConfig, with_val: bool = True) -> int:
    """Bytes to be read, on disk or told by the world; every file is looked for, and none may be on both sides."""
    source, val_source = ([s for s in sources if not world.is_world(s)] for sources in (cfg.source, cfg.val_source))
    refuse_shared(source, val_source, SUFFIXES, "data.val_source")
    worlds = [s for s in (*cfg.source, *(cfg.val_source if with_val else ())) if world.is_world(s)]
    told = sum(len(text.encode()) for s in worlds for text, _ in _world_parts(s, lambda n: None))
    return told + sum(path.stat().st_size for path in expand([*source, *(val_source if with_val else ())], SUFFIXES))


def _fingerprint(cfg: CorpusConfig, tokenizer: Tokenizer) -> str:
    """Changes with the sources (path, size, time), how they are cut, or the tokenizer."""
    files = expand([s for s in (*cfg.source, *cfg.val_source) if not world.is_world(s)], SUFFIXES)
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    facts = [cfg.source, cfg.val_source, cfg.val_fraction, cfg.documents, cfg.text_field, stats, tokenizer.sha256]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


# ── windows ──────────────────────────────────────────────────────────────────────────────────────


class Windows:
    """Stretches of T + 1 tokens (T to look at, the same shifted by one to predict), in a new order each epoch.

    Epoch e cuts the file into n stretches from a place of its own, so that a token is not always at
    the same position.
    """

    def __init__(self, tokens: TokenFile, context: int, seed: int):
        self.ids, self.context, self.seed = tokens.ids, context, seed
        if len(tokens) < context + 1:
            raise UserError(f"{tokens.path}: {len(tokens)} tokens are fewer than one window of model.max_seq_len + 1 "
                            f"= {context + 1}; give more text or a shorter context")
        self.n = max(1, (len(tokens) - context) // context)
        self.slack = len(tokens) - 1 - self.n * context

    def __getitem__(self, number: int) -> np.ndarray:
        """The `number`-th window of an endless sequence of epochs."""
        epoch, position = divmod(number, self.n)
        start = whole(self.seed, epoch, 1) % (self.slack + 1)
        start += int(permutation(self.n, self.seed, epoch)[position]) * self.context
        return self.ids[start:start + self.context + 1].astype(np.int64)

    def in_order(self) -> Iterator[np.ndarray]:
        """Every token once as a target, in file order, for evaluation; the last window may be short."""
        for start in range(0, len(self.ids) - 1, self.context):
            yield self.ids[start:start + self.context + 1].astype(np.int64)
