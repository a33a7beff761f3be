"""What is read: text to pretrain on, examples to tune on, labels; and the pieces that text is cut into."""

import typing
from dataclasses import dataclass

from minialpaca.config.rules import check, is_encoding


@dataclass(frozen=True)
class CorpusConfig:
    SECTION: typing.ClassVar[str] = "data"

    source: tuple[str, ...] = ("world",)
    """Text to pretrain on: files (.txt, .txt.gz, .jsonl, .jsonl.gz), folders, globs, or `world[:SEED]`."""
    val_source: tuple[str, ...] = ()
    """Text to validate on; where empty, a part of `source` is held out."""
    val_fraction: float = 0.05
    """The part of `source` held out: whole documents, evenly spread, or the end of a text that is too few documents."""
    documents: str = "file"
    """What one document of a .txt is: `file`, `line`, `blank_line` (paragraphs), or the line that ends one, e.g. `<|endoftext|>`."""
    text_field: str = "text"
    """The field of a .jsonl object that holds the text."""

    def __post_init__(self):
        check(self, {
            "source": (bool(self.source), "name at least one file, folder or glob, or `world`"),
            "val_fraction": (0 < self.val_fraction < 1, "must lie strictly between 0 and 1"),
            "documents": (bool(self.documents.strip()), "use file, line, blank_line or the text of a line"),
        })


@dataclass(frozen=True)
class InstructionConfig:
    SECTION: typing.ClassVar[str] = "data"

    source: tuple[str, ...] = ("world",)
    """Files, folders or globs: Alpaca-form .json or .jsonl, or for classification .csv, .tsv, .jsonl or .txt; or `world[:SEED]` (the seed of the base run's world)."""
    val_source: tuple[str, ...] = ()
    """Examples to validate on; where empty, `val_fraction` of `source` is held out (the world has its own split)."""
    test_source: tuple[str, ...] = ()
    """Examples answered at the end and marked by exact match; the world has its own."""
    val_fraction: float = 0.05
    """The part of `source` held out for validation, drawn by `run.seed`; 0 validates on the training examples."""
    over_long: str = "drop"
    """What happens to an example longer than the context: `drop`, `truncate_response` (then without EOS) or `raise`."""

    def __post_init__(self):
        check(self, {
            "source": (bool(self.source), "name at least one file, folder or glob, or `world`"),
            "val_fraction": (0 <= self.val_fraction < 1, "must be at least 0 and below 1"),
            "over_long": (self.over_long in ("drop", "truncate_response", "raise"),
                          "use drop, truncate_response or raise"),
        })


@dataclass(frozen=True)
class ClassesConfig:
    SECTION: typing.ClassVar[str] = "classes"

    text: tuple[str, ...] = ("text",)
    """The column, or columns joined by a space, that hold the text."""
    labels: tuple[str, ...] = ("label",)
    """The columns that hold the labels: M label groups, one head each."""
    several: tuple[str, ...] = ()
    """Those of `labels` that hold any number of labels (multi-label), separated by `separator`."""
    separator: str = "|"
    """What stands between several labels of one cell."""
    lines: str = ""
    """For .txt: the pattern of a line, such as `{label} {text}` (split at the first space) or `{text}@{label}` (at the last @); the names in braces are columns."""
    header: bool = True
    """Whether the first row of a .csv or .tsv names its columns; where not, they are numbered 1, 2, and so on."""
    quotes: bool = True
    """Whether cells of a .csv or .tsv may stand in quotation marks, and then hold separators and line breaks; false takes every mark as it stands."""
    encoding: str = "utf-8"
    """How the files are encoded, e.g. windows-1252; a byte-order mark is tolerated."""
    test_fraction: float = 0.0
    """The part of `data.source` held out for the test where `data.test_source` is empty, drawn by `run.seed`, in each class of the first group alike."""
    leaks: str = "drop"
    """What happens to training and validation texts that stand in a later split (training, validation, test) too, equal to the letter: `drop` from the earlier one, `keep` or `raise`; they are counted in any case."""
    over_long: str = "truncate"
    """What happens to a text longer than the context: `truncate` (its end is cut) or `raise`."""
    pooling: str = "auto"
    """Where a text's vector is read: the `last` real token, the `first` (not in a decoder, which has seen nothing there) the `mean` of all, or in each coordinate the `max`; `auto` is last in a decoder, mean in an encoder."""

    def __post_init__(self):
        check(self, {
            "text": (bool(self.text) and not set(self.text) & set(self.labels),
                     f"name at least one column, and none of classes.labels = {list(self.labels)}"),
            "labels": (bool(self.labels) and len(set(self.labels)) == len(self.labels), "name at least one column, each once"),
            "several": (set(self.several) <= set(self.labels), f"must be among classes.labels = {list(self.labels)}; several labels are a list: [\"a\", \"b\"]"),
            "separator": (bool(self.separator), "must not be empty"),
            "test_fraction": (0 <= self.test_fraction < 1, "must be at least 0 and below 1"),
            "leaks": (self.leaks in ("drop", "keep", "raise"), "use drop, keep or raise"),
            "over_long": (self.over_long in ("truncate", "raise"), "use truncate or raise"),
            "pooling": (self.pooling in ("auto", "last", "first", "mean", "max"), "use auto, last, first, mean or max"),
            "encoding": (is_encoding(self.encoding), "is no encoding that Python knows; e.g. utf-8, windows-1252, gb18030"),
        })


@dataclass(frozen=True)
class TokenizerConfig:
    SECTION: typing.ClassVar[str] = "tokenizer"

    path: str = ""
    """A SentencePiece .model file to use (Llama's, say); where empty, one is trained on `data.source`."""
    kind: str = "bpe"
    """What to train: `bpe`, `unigram` or `char`."""
    vocab_size: int = 2048
    """Upper bound on the number of pieces to train, 260 of which are control and byte pieces."""

    def __post_init__(self):
        check(self, {
            "kind": (self.kind in ("bpe", "unigram", "char"), "use bpe, unigram or char"),
            "vocab_size": (264 <= self.vocab_size <= 1_000_000, "must lie in 264 … 1,000,000"),
        })
