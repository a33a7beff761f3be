"""Text ↔ token ids, by SentencePiece.

Three rules keep the ids honest:

1. Nothing is lost: own vocabularies use identity normalisation, keep every space, and fall back to
   bytes, so decode(encode(x)) = x for every string.
2. Control ids (bos, eos, pad) are added by id. The text "</s>" becomes ordinary pieces.
3. An id stands for bytes. One table `piece_bytes` serves decoding, streaming and bits per byte.

A text starts with an implied space, as in Llama ("Paris" and "in Paris" share the piece "▁Paris");
decoding takes it away again. A text that continues another (`starts=False`) has none.
"""

import codecs
import hashlib
import io
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece

from minialpaca.errors import UserError, reason

SPACE = "▁"  # SentencePiece's picture of a space, U+2581
UNK, BOS, EOS, PAD = 0, 1, 2, 3  # in own vocabularies; Llama's has the first three and no pad
SEVERAL_SPACES = re.compile(r"(?:^|(?<=[^ ]) )( *[^ ]*)")
LONG_WORD = 16  # characters; where there are fewer spaces than that, words are not worth looking up
MOST_WORDS = 1 << 18  # kept in memory
TRICKY = "\n\n  two spaces\ttab … ＡＢＣ 全角 漢字 😀 ▁ </s><pad>### Response:\n"


class Tokenizer:
    """A SentencePiece model and its bytes."""

    def __init__(self, model: bytes, name: str = "tokenizer", mend: str = "give a .model file"):
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError):
            raise UserError(f"{name}: is not a SentencePiece model; {mend}") from None
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.vocab_size = self._pieces.get_piece_size()
        self.bos, self.eos = self._pieces.bos_id(), self._pieces.eos_id()
        if self.bos < 0 or self.eos < 0:
            raise UserError(f"{name}: has no <s> or no </s>; train it with bos_id and eos_id")
        # What fills up short rows. Padding is known by its position, never by its id, so any id will do:
        # a vocabulary without a pad id (Llama's) uses unk, which no text encodes to.
        self.pad = self._pieces.pad_id() if self._pieces.pad_id() >= 0 else self._pieces.unk_id()
        self.piece_bytes = [self._bytes_of(i) for i in range(self.vocab_size)]
        self._newline = self._pieces.encode("\n")
        self._words_stand_alone = self._is_bpe() and not any(
            SPACE in self._pieces.id_to_piece(i).lstrip(SPACE) for i in range(self.vocab_size))
        self._seen = Remembered(lambda word: self._continue(" " + word))  # word behind a space → ids of both

    @classmethod
    def load(cls, path: str | Path, mend: str = "give a SentencePiece .model file") -> "Tokenizer":
        """Read a .model file and refuse one that loses text. `mend`: what to do where it is none."""
        try:
            model = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"{path}: tokenizer cannot be read: {reason(error)}; {mend}") from None
        if not model:  # SentencePiece takes it, and complains on stderr at the first question
            raise UserError(f"{path}: is empty; {mend}")
        tokenizer = cls(model, str(path), mend)
        for text in (TRICKY, " a", "a"):
            back = tokenizer.decode(tokenizer.encode(text))
            if back != text:
                raise UserError(f"{path}: this vocabulary loses text ({text!r} came back as {back!r}); "
                                "train one with identity normalisation and byte fallback")
        return tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], kind: str = "bpe", vocab_size: int = 2048) -> "Tokenizer":
        """Learn a vocabulary of at most `vocab_size` pieces (`bpe`, `unigram` or `char`) from a stream of texts."""
        raised: list[BaseException] = []
        lines = _remember(_lines(texts), raised)
        first = next(lines, None)
        if raised:
            raise raised[0]
        if first is None:
            raise UserError("tokenizer: there is no text to learn a vocabulary from")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=itertools.chain([first], lines), model_writer=model,
                model_type=kind, vocab_size=vocab_size, hard_vocab_limit=False, byte_fallback=True,
                normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
                character_coverage=0.9999 if kind != "char" else 1.0, user_defined_symbols=["\n"],
                unk_id=UNK, bos_id=BOS, eos_id=EOS, pad_id=PAD, minloglevel=2,
                max_sentence_length=1 << 20, num_threads=4,  # fixed: unigram's sums depend on the number of threads
                input_sentence_size=2_000_000, shuffle_input_sentence=False,
            )
        except (RuntimeError, OSError) as error:
            advice = "more pieces" if "required_chars" in str(error) else "fewer pieces or more text"
            raise raised[0] if raised else UserError(
                f"tokenizer.vocab_size = {vocab_size}: SentencePiece cannot learn this vocabulary from this text "
                f"({_last_sentence(error)}); use {advice}") from None
        if raised:
            raise raised[0]
        return cls(model.getvalue())

    def encode(self, text: str, *, starts: bool = True) -> list[int]:
        """The ids of a text, without control ids; `starts=False` where the text continues another."""
        _refuse_half_pairs(text)
        head, *rest = text.split(SPACE)
        ids = self._pieces.encode(head) if starts else self._continue(head)
        for part in rest:  # a real U+2581 would come back as a space: spell it in bytes
            ids += [self._pieces.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
            ids += self._continue(part)
        return ids

    def encode_all(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """`encode(text, starts=starts)` of many (text, starts) at once: word by word where words stand alone, each of them
        once; else (Chinese, unigram) by SentencePiece on all cores.
        """
        plain = [text if starts else "\n" + text for text, starts in texts]
        together = "".join(plain)
        _refuse_half_pairs(together)
        if self._words_stand_alone and together.count(" ") * LONG_WORD > len(together):
            return [self._by_words(text, starts) for text, starts in texts]
        found = self._pieces.encode(plain, num_threads=os.cpu_count() or 1)
        return [self.encode(text, starts=starts) if SPACE in text or not text else ids if starts else ids[len(self._newline):]
                for (text, starts), ids in zip(texts, found)]

    def _by_words(self, text: str, starts: bool) -> list[int]:
        if SPACE in text or not text:
            return self.encode(text, starts=starts)
        if len(self._seen) > MOST_WORDS:
            self._seen.clear()
        ids, space = [], " "  # a text that starts has an implied space before it
        if not starts:
            head, space, text = text.partition(" ")
            ids = self._continue(head)
        words = text.split(" ") if space else []
        if "" in words:  # of several spaces together the first is cut off, the others belong to the word
            words = SEVERAL_SPACES.findall(text)
        for word in words:
            ids += self._seen[word]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; control ids are silent, broken UTF-8 becomes U+FFFD."""
        return "".join(self.stream(ids))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Pieces of text as ids arrive: "".join(stream(ids)) = decode(ids), no character is split or lost."""
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        at_start = True
        for i in ids:
            data = self.piece_bytes[i] if i < self.vocab_size else b""  # a model may have more ids than text has
            if at_start and data:
                # The implied space. A space spelled as a byte piece is a real one.
                data, at_start = (data[1:] if self._starts_with_space(i) else data), False
            yield utf8.decode(data)
        yield utf8.decode(b"", final=True)

    def is_control(self, i: int) -> bool:
        """Whether no text encodes to this id: <s>, </s>, <pad>, <unk>."""
        return self._pieces.is_control(i) or self._pieces.is_unknown(i)

    def save(self, path: Path) -> None:
        path.write_bytes(self.model)

    def _continue(self, text: str) -> list[int]:
        # No piece spans a newline, so what follows one is encoded as it is in mid-text.
        return self._pieces.encode("\n" + text)[len(self._newline):] if text else []

    def _is_bpe(self) -> bool:
        """Its pieces are merged in the order of their scores, which are 0, −1, −2, …; a unigram's are logarithms."""
        return all(self._pieces.get_score(i).is_integer() for i in range(self.vocab_size))

    def _starts_with_space(self, i: int) -> bool:
        return self._pieces.id_to_piece(i).startswith(SPACE)

    def _bytes_of(self, i: int) -> bytes:
        piece = self._pieces.id_to_piece(i)
        if self._pieces.is_control(i):
            return b""
        if self._pieces.is_unknown(i):
            return " ⁇ ".encode()
        if self._pieces.is_byte(i):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode()


class Remembered(dict):
    """What `make` gives of a key, made once."""

    def __init__(self, make: Callable):
        super().__init__()
        self.make = make

    def __missing__(self, key):
        found = self[key] = self.make(key)
        return found


def _refuse_half_pairs(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # No position: the text may stand inside a prompt that the user did not write.
        raise UserError(f"the text is not valid Unicode: it holds {ascii(error.object[error.start])}, half a "
                        "surrogate pair; it was probably not UTF-8") from None


def _lines(texts: Iterable[str], longest: int = 10_000) -> Iterator[str]:
    """Lines of at most `longest` characters: SentencePiece's unit of training is a sentence."""
    for text in texts:
        for line in text.splitlines():
            for start in range(0, len(line), longest):
                yield line[start:start + longest]


def _remember(lines: Iterator[str], raised: list[BaseException]) -> Iterator[str]:
    """SentencePiece words what its iterator raises anew, so a fault of the text would read as one of the vocabulary."""
    try:
        yield from lines
    except BaseException as error:
        raised.append(error)


def _last_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rpartition("] ")[2][:200] or "no reason given"
