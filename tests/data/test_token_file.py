"""Token files: what is written is what is read, or nothing is."""

import errno
import hashlib
import json
import os

import numpy as np
import pytest

from minialpaca.data import token_file
from minialpaca.data.token_file import FORMAT, HEADER_BYTES, TokenFile, TokenWriter, read_header
from minialpaca.errors import UserError
from minialpaca.tokenizer import Tokenizer


class Vocabulary:
    """As much of a tokenizer as a token file looks at."""

    def __init__(self, vocab_size=300, sha256="ab" * 32):
        self.vocab_size, self.sha256 = vocab_size, sha256


def written(path, ids, vocabulary=None):
    with TokenWriter(path, vocabulary or Vocabulary(), "mark") as writer:
        writer.write(ids)
    return path


def test_ids_come_back_in_order_over_several_buffers(tmp_path, monkeypatch):
    monkeypatch.setattr(token_file, "BUFFER", 10)
    with TokenWriter(tmp_path / "a.bin", Vocabulary(), "mark") as writer:
        for start in range(0, 100, 7):
            writer.write(list(range(start, min(start + 7, 100))))
            assert len(writer) == min(start + 7, 100)
    tokens = TokenFile(tmp_path / "a.bin", Vocabulary())
    assert tokens.ids.tolist() == list(range(100)) and len(tokens) == 100
    assert os.listdir(tmp_path) == ["a.bin"]


def test_the_header_names_format_type_count_digest_tokenizer_and_source(tmp_path):
    path = written(tmp_path / "a.bin", [5, 6, 7])
    data = path.read_bytes()
    assert json.loads(data[:HEADER_BYTES]) == read_header(path) == {
        "format": FORMAT, "dtype": "uint16", "tokenizer": "ab" * 32, "source": "mark", "count": 3,
        "sha256": hashlib.sha256(data[HEADER_BYTES:]).hexdigest()}
    assert data[HEADER_BYTES:] == bytes([5, 0, 6, 0, 7, 0])  # little-endian


@pytest.mark.parametrize("vocab_size, dtype", [(65_536, "uint16"), (65_537, "uint32")])
def test_the_last_id_fits_on_either_side_of_65536(tmp_path, vocab_size, dtype):
    vocabulary = Vocabulary(vocab_size)
    path = written(tmp_path / "a.bin", [0, vocab_size - 1], vocabulary)
    tokens = TokenFile(path, vocabulary)
    assert tokens.ids.dtype == np.dtype(dtype) and tokens.ids.tolist() == [0, vocab_size - 1]


def test_no_tokens_are_a_file_too(tmp_path):
    tokens = TokenFile(written(tmp_path / "a.bin", []), Vocabulary())
    assert len(tokens) == 0 and tokens.ids.tolist() == []


def test_another_tokenizer_is_refused(tmp_path):
    path = written(tmp_path / "a.bin", [1, 2])
    with pytest.raises(UserError, match="written with another tokenizer"):
        TokenFile(path, Vocabulary(sha256="cd" * 32))


def test_two_vocabularies_of_one_size_are_told_apart(tmp_path):
    one, other = (Tokenizer.train([text * 20], "char", 264) for text in ("abcd ", "efgh "))
    assert one.vocab_size == other.vocab_size
    path = written(tmp_path / "a.bin", one.encode("abcd"), one)
    assert one.decode(TokenFile(path, one).ids.tolist()) == "abcd"
    with pytest.raises(UserError, match="written with another tokenizer"):
        TokenFile(path, other)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-2], lambda b: b + b"\0\0"])
def test_a_truncated_or_longer_file_is_refused(tmp_path, damage):
    path = written(tmp_path / "a.bin", [1, 2, 3])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"bytes where its header says 518; delete it"):
        TokenFile(path, Vocabulary())


@pytest.mark.parametrize("content", [
    b"", b" " * 512, b"[1]".ljust(512), b"\xff" * 600,
    json.dumps({"format": "minialpaca tokens 0"}).encode().ljust(512),
    json.dumps({"format": FORMAT, "dtype": "float32", "count": 0}).encode().ljust(512),
    json.dumps({"format": FORMAT, "dtype": "uint16", "count": -1}).encode().ljust(512),
    json.dumps({"format": FORMAT, "dtype": "uint16", "count": "3"}).encode().ljust(512),
])
def test_what_is_no_token_file_is_refused(tmp_path, content):
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is no token file of this version"):
        TokenFile(path, Vocabulary())


def test_a_missing_file_and_an_unwritable_place_are_refused(tmp_path):
    with pytest.raises(UserError, match="a.bin: cannot be read: no such file"):
        TokenFile(tmp_path / "a.bin", Vocabulary())
    with pytest.raises(UserError, match="a.bin: cannot be written: no such file"):
        TokenWriter(tmp_path / "no" / "a.bin", Vocabulary(), "mark")


def test_an_exception_leaves_nothing_behind_and_the_old_file_untouched(tmp_path):
    path = written(tmp_path / "a.bin", [1, 2, 3])
    for target in (path, tmp_path / "new.bin"):
        with pytest.raises(ZeroDivisionError), TokenWriter(target, Vocabulary(), "other") as writer:
            writer.write([9] * 10)
            raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["a.bin"] and TokenFile(path, Vocabulary()).ids.tolist() == [1, 2, 3]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_one_clear_error_and_leaves_nothing_behind(tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(UserError, match="a.bin: cannot be written: no space left on device"):
        written(tmp_path / "a.bin", [1, 2, 3])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("buffer", [3, 1 << 20])
@pytest.mark.parametrize("fraction, kept", [(0.25, 75), (0.1, 90), (0.005, 100), (0.999, 0)])
def test_a_moved_tail_is_lost_nowhere_and_nothing_is_doubled(tmp_path, monkeypatch, buffer, fraction, kept):
    monkeypatch.setattr(token_file, "BUFFER", buffer)
    with TokenWriter(tmp_path / "b.bin", Vocabulary(), "mark") as other, \
            TokenWriter(tmp_path / "a.bin", Vocabulary(), "mark") as writer:
        writer.write(list(range(100)))
        writer.move_tail(other, fraction)
        writer.write([200])  # what comes afterwards stands behind what was kept
    assert TokenFile(tmp_path / "a.bin", Vocabulary()).ids.tolist() == [*range(kept), 200]
    assert TokenFile(tmp_path / "b.bin", Vocabulary()).ids.tolist() == list(range(kept, 100))
