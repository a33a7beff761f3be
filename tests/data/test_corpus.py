"""Pretraining text: documents, token files, windows."""

import gzip
import json
import os
import random
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from conftest import sentences
from running import written

from minialpaca import parallel
from minialpaca.config import CorpusConfig
from minialpaca.data import corpus, token_file, world
from minialpaca.data.corpus import Windows, parts, prepare, size, texts
from minialpaca.data.token_file import TokenFile, TokenWriter
from minialpaca.errors import UserError
from minialpaca.log import PlainBar


def config(*paths, **fields):
    return CorpusConfig(source=tuple(map(str, paths)), **fields)


def documents(cfg):
    """The documents as whole texts."""
    whole, held = [], ""
    for text, ends in parts(cfg, cfg.source):
        held += text
        if ends:
            whole.append(held)
            held = ""
    assert held == ""
    return whole


# ── documents ────────────────────────────────────────────────────────────────────────────────────

TEXT = "one\ntwo\n\nthree\n  \n\n<|end|>\nfour <|end|>\n<|end|>\n\nfive\n"


@pytest.mark.parametrize("mode, wanted", [
    ("file", [TEXT]),
    ("line", ["one", "two", "three", "<|end|>", "four <|end|>", "<|end|>", "five"]),
    ("blank_line", ["one\ntwo", "three", "<|end|>\nfour <|end|>\n<|end|>", "five"]),
    ("<|end|>", ["one\ntwo\n\nthree\n  ", "four <|end|>", "\nfive"]),
])
def test_what_one_document_is_can_be_chosen(tmp_path, mode, wanted):
    cfg = config(written(tmp_path / "a.txt", TEXT), documents=mode)
    assert documents(cfg) == wanted
    assert documents(config(written(tmp_path / "b.txt.gz", gzip.compress(TEXT.encode())),
                            documents=mode)) == documents(cfg)
    assert "".join(texts(cfg)) == "".join(documents(cfg))


def test_jsonl_takes_the_named_field_and_leaves_out_empty_texts(tmp_path):
    lines = [{"text": "one\n\ntwo"}, {"text": "  "}, {"text": "three", "body": 3}]
    path = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert documents(config(path)) == ["one\n\ntwo", "three"]
    other = written(tmp_path / "b.jsonl.gz", gzip.compress(b'{"body": "x"}\n'))
    assert documents(config(other, text_field="body")) == ["x"]


def test_faulty_jsonl_records_are_named_by_line(tmp_path):
    content = '{"text": "a"}\n{"body": "b"}\n{"text": 3}\n{"text": null}\nno json\n{"text": "\\ud800"}\n'
    path = written(tmp_path / "a.jsonl", content)
    with pytest.raises(UserError) as caught:
        documents(config(path))
    for said in ("5 bad records: line 2: 'text' is missing; line 3: 'text' is no text; line 4: 'text' is no text; ",
                 "line 5: is no JSON",
                 "line 6: 'text' holds half a surrogate pair", "data.text_field"):
        assert said in str(caught.value)


def test_a_file_that_two_sources_name_is_read_once(tmp_path):
    one, two = written(tmp_path / "a.txt", "one\n"), written(tmp_path / "b.txt", "two\n")
    assert documents(config(two, tmp_path, tmp_path / "*.txt")) == ["two\n", "one\n"]
    assert size(config(two, tmp_path)) == 8 and one.exists()


def test_the_world_is_a_source_among_others(tmp_path):
    path = written(tmp_path / "a.txt", "mine\n")
    told = list(world.corpus(world.World.build(4)))
    assert documents(config("world:4", path)) == [*told, "mine\n"]
    assert size(config("world:4", path)) == 5 + sum(map(len, told))


@pytest.mark.parametrize("val_source", [(), ("world:5",), ("held.jsonl",)])
def test_the_progress_bars_come_to_exactly_their_end(tmp_path, tokenizer, monkeypatch, val_source):
    """Learning reads `source` alone, writing both; what the world tells counts like a file."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "held.jsonl", '{"text": "held out"}\n' * 9)
    monkeypatch.setattr(world, "corpus", lambda built: ["Mirava lives in Olten.", "Ein Café."] * 20)
    cfg = config("world:4", written(tmp_path / "a.txt", "mine\n"), val_source=val_source)
    read, bars = [], []
    assert len(list(texts(cfg, read.append))) == 41 and sum(read) == size(cfg, with_val=False) == 20 * 32 + 5
    monkeypatch.setattr(corpus, "progress", lambda *about: bars.append(PlainBar(about[1], about[0], about[2])) or bars[-1])
    prepare(cfg, tokenizer, tmp_path / "tokens")
    assert bars[0].n == bars[0].total == size(cfg) and (size(cfg) > sum(read)) == bool(val_source)


# ── token files ──────────────────────────────────────────────────────────────────────────────────


def test_each_document_stands_between_bos_and_eos(tmp_path, tokenizer):
    lines = sentences(40)
    cfg = config(written(tmp_path / "a.txt", "\n".join(lines)), documents="line", val_fraction=0.25)
    train, val = prepare(cfg, tokenizer, tmp_path / "tokens")
    as_ids = [[tokenizer.bos, *tokenizer.encode(line), tokenizer.eos] for line in lines]
    assert val.ids.tolist() == sum(as_ids[3::4], [])  # every fourth document
    assert train.ids.tolist() == sum((ids for i, ids in enumerate(as_ids) if i % 4 != 3), [])


def test_control_text_in_a_corpus_becomes_no_control_id(tmp_path, tokenizer):
    cfg = config(written(tmp_path / "a.txt", "<s> a </s> <pad> <unk>\n" * 40), documents="file", val_fraction=0.1)
    train, val = prepare(cfg, tokenizer, tmp_path / "tokens")
    ids = [*train.ids.tolist(), *val.ids.tolist()]
    assert [i for i in ids if i < 4] == [tokenizer.bos, tokenizer.eos]


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_a_file_in_stretches_has_the_same_ids_as_the_whole_text_at_once(tmp_path, tokenizer, monkeypatch, chunk):
    rng = random.Random(chunk)
    text = "".join(s + rng.choice(("\n", "\n\n", " ", "\n  ", "\n▁")) for s in sentences(200))
    cfg = config(written(tmp_path / "a.txt", text), val_fraction=0.01)
    monkeypatch.setattr(corpus, "CHUNK", chunk)
    assert len(list(parts(cfg, cfg.source))) > (20 if chunk == 100 else 100)
    train, val = prepare(cfg, tokenizer, tmp_path / "tokens")
    assert [*train.ids.tolist(), *val.ids.tolist()] == [tokenizer.bos, *tokenizer.encode(text), tokenizer.eos]


def test_the_end_of_a_single_document_is_held_out_and_nothing_is_lost(tmp_path, tokenizer):
    text = "\n".join(sentences(100))
    train, val = prepare(config(written(tmp_path / "a.txt", text), val_fraction=0.2), tokenizer, tmp_path / "tokens")
    whole = [tokenizer.bos, *tokenizer.encode(text), tokenizer.eos]
    assert [*train.ids.tolist(), *val.ids.tolist()] == whole and len(val) == round(0.2 * len(whole))


@pytest.mark.parametrize("fraction", [0.05, 0.25, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("n", [2, 19, 20, 41])
def test_no_document_is_lost_or_on_both_sides(tmp_path, tokenizer, fraction, n):
    lines = [f"{s} ({i})" for i, s in enumerate(sentences(n))]
    cfg = config(written(tmp_path / "a.txt", "\n".join(lines)), documents="line", val_fraction=fraction)
    train, val = prepare(cfg, tokenizer, tmp_path / "tokens")
    f = Fraction(str(fraction))
    held = [i for i in range(n) if any(i * f < m <= (i + 1) * f for m in range(1, n + 1))]
    as_ids = [[tokenizer.bos, *tokenizer.encode(line), tokenizer.eos] for line in lines]
    if held:
        assert len(held) == int(n * f)
        assert val.ids.tolist() == sum((as_ids[i] for i in held), [])
        assert train.ids.tolist() == sum((ids for i, ids in enumerate(as_ids) if i not in held), [])
    else:  # too few documents to hold one out: the end of all of them
        assert [*train.ids.tolist(), *val.ids.tolist()] == sum(as_ids, []) and len(val) > 0


def test_a_validation_source_of_its_own_takes_nothing_from_training(tmp_path, tokenizer):
    a, b = written(tmp_path / "a.txt", "one lamp\n"), written(tmp_path / "b.txt", "two bells\n")
    train, val = prepare(config(a, val_source=(str(b),)), tokenizer, tmp_path / "tokens")
    for tokens, text in ((train, "one lamp\n"), (val, "two bells\n")):
        assert tokens.ids.tolist() == [tokenizer.bos, *tokenizer.encode(text), tokenizer.eos]


def test_token_files_are_kept_while_nothing_changed_and_written_anew_when_something_did(tmp_path, tokenizer,
                                                                                        monkeypatch):
    path = written(tmp_path / "a.txt", "\n".join(sentences(50)))
    writes = []
    write = corpus._write
    monkeypatch.setattr(corpus, "_write", lambda *args: (writes.append(args), write(*args)))
    first = config(path, documents="line")
    for cfg in (first, first, config(path, documents="line", val_fraction=0.2), config(path, val_fraction=0.2)):
        train, _ = prepare(cfg, tokenizer, tmp_path / "tokens")
    assert len(writes) == 3
    before = train.ids.tolist()
    written(path, path.read_text(encoding="utf-8").replace("Mira", "Arim"))  # as long as before
    os.utime(path, ns=(1, 1))
    train, _ = prepare(config(path, val_fraction=0.2), tokenizer, tmp_path / "tokens")
    assert len(writes) == 4 and train.ids.tolist() != before
    (tmp_path / "tokens" / "val.bin").unlink()
    prepare(config(path, val_fraction=0.2), tokenizer, tmp_path / "tokens")
    assert len(writes) == 5


def test_a_process_beside_the_first_takes_the_token_files_as_they_are(tmp_path, tokenizer, monkeypatch):
    """On another machine the same text may have another date."""
    path = written(tmp_path / "a.txt", "\n".join(sentences(50)))
    train, _ = prepare(config(path), tokenizer, tmp_path / "tokens")
    os.utime(path, ns=(1, 1))
    monkeypatch.setattr(corpus, "_write", lambda *_: pytest.fail("written again"))
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    assert prepare(config(path), tokenizer, tmp_path / "tokens")[0].ids.tolist() == train.ids.tolist()


def test_another_tokenizer_writes_the_token_files_anew(tmp_path, tokenizer):
    path = written(tmp_path / "a.txt", "\n".join(sentences(50)))
    other = type(tokenizer).train(sentences(50), "char", 300)
    prepare(config(path), tokenizer, tmp_path / "tokens")
    train, val = prepare(config(path), other, tmp_path / "tokens")
    assert other.decode([*train.ids.tolist(), *val.ids.tolist()]) == path.read_text(encoding="utf-8")


def test_a_fault_in_the_data_leaves_no_token_file(tmp_path, tokenizer):
    good, bad = written(tmp_path / "a.txt", "good\n" * 30), written(tmp_path / "b.txt", b"bad \xff\n")
    with pytest.raises(UserError, match=r"b.txt, line 1: is not UTF-8"):
        prepare(config(good, bad), tokenizer, tmp_path / "tokens")
    assert os.listdir(tmp_path / "tokens") == []


def test_too_little_text_to_hold_some_out_is_refused(tmp_path, tokenizer):
    with pytest.raises(UserError, match="data.val_fraction = 0.05: holds out nothing or everything"):
        prepare(config(written(tmp_path / "a.txt", "a")), tokenizer, tmp_path / "tokens")
    assert os.listdir(tmp_path / "tokens") == []


def test_a_corpus_larger_than_memory_is_streamed(tmp_path, tokenizer, monkeypatch):
    """25 MB in one line and 4 MB in many: what is held at once is a few chunks."""
    monkeypatch.setattr(token_file, "BUFFER", 1 << 12)
    monkeypatch.setattr(tokenizer, "encode_all", lambda texts: [[len(text) % 9] * 3 for text, _ in texts])  # the C++ side is not at issue
    path = tmp_path / "a.txt"
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(8):
            file.write("aé" * (1 << 20))
        file.write("\n" + ("lamp rope " * 200 + "\n") * 2_000)
    assert path.stat().st_size > 28_000_000
    tracemalloc.start()
    prepare(config(path), tokenizer, tmp_path / "tokens")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


# ── windows ──────────────────────────────────────────────────────────────────────────────────────


def windows(folder, n, context, seed=0):
    """Over the ids 0, 1, 2, …: each window tells where it was cut."""

    class Vocabulary:
        vocab_size, sha256 = 60_000, "x"

    path = folder / f"{n}.bin"
    if not path.exists():
        with TokenWriter(path, Vocabulary, "mark") as writer:
            writer.write(list(range(n)))
    return Windows(TokenFile(path, Vocabulary), context, seed)


@pytest.mark.parametrize("n, context", [(9, 8), (10, 8), (16, 8), (17, 8), (24, 8), (25, 8), (100, 8), (1000, 7)])
def test_each_epoch_takes_every_stretch_once_without_overlap(tmp_path, n, context):
    cut = windows(tmp_path, n, context)
    starts_seen = set()
    for epoch in range(30):
        taken = [cut[epoch * cut.n + i] for i in range(cut.n)]
        assert all(w.tolist() == list(range(w[0], w[0] + context + 1)) for w in taken)  # T + 1 tokens in file order
        targets = sorted(t for w in taken for t in w[1:].tolist())
        assert targets == list(range(targets[0], targets[0] + cut.n * context))  # each once, in one piece
        assert 1 <= targets[0] and targets[-1] <= n - 1  # never beyond the end
        starts_seen.add(targets[0] - 1)
    assert n - 1 - cut.n * context < 2 * context  # what an epoch leaves out is less than two windows
    assert starts_seen <= set(range(cut.slack + 1)) and (len(starts_seen) > 1) == (cut.slack > 0)


def test_epochs_and_seeds_differ_in_order_and_nothing_else_does(tmp_path):
    def order(cut, epoch):
        return [int(cut[epoch * cut.n + i][0]) for i in range(cut.n)]

    cut, other = windows(tmp_path, 1000, 7), windows(tmp_path, 1000, 7, seed=1)
    orders = [order(cut, 0), order(cut, 1), order(cut, 2), order(other, 0)]
    assert len({tuple(o) for o in orders}) == 4 and all(o != sorted(o) for o in orders)
    again = windows(tmp_path, 1000, 7)
    numbers = list(range(3 * cut.n))
    random.Random(0).shuffle(numbers)
    assert all(np.array_equal(again[i], cut[i]) for i in numbers)  # a pure function of the number, asked in any order


@pytest.mark.parametrize("n, context", [(9, 8), (10, 8), (16, 8), (17, 8), (18, 8)])
def test_evaluation_takes_every_token_once_as_a_target(tmp_path, n, context):
    taken = list(windows(tmp_path, n, context).in_order())
    assert [t for w in taken for t in w[1:].tolist()] == list(range(1, n))
    assert all(2 <= len(w) <= context + 1 and w.dtype == np.int64 for w in taken)


def test_a_text_shorter_than_one_window_is_refused(tmp_path):
    assert windows(tmp_path, 9, 8)[0].tolist() == list(range(9))
    with pytest.raises(UserError, match=r"8 tokens are fewer than one window of model.max_seq_len \+ 1 = 9"):
        windows(tmp_path, 8, 8)
