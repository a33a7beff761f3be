"""Text ↔ ids: nothing is lost, no text becomes a control id, a stream is the text."""

import io

import pytest
import sentencepiece
import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minialpaca import tokenizer as tokenizer_module
from minialpaca.data.instructions import prompt_ids
from minialpaca.errors import UserError
from minialpaca.tokenizer import BOS, EOS, PAD, UNK, Tokenizer

KINDS = ("bpe", "unigram", "char")
NASTY = ("", " ", "  ", "\n", "\n\n", "\t", "\r\n", "\0", "▁", "▁▁ ▁", "<s>", "</s>", "<pad>", "<unk>", "<0x0A>",
         "<0xE2>", " ⁇ ", "⁇", "\u2585", "…", "ＡＢＣ", "全角", "漢字", "😀", "👩\u200d👩\u200d👧", "e\u0301", "é", "\u00a0",
         "\u3000", "\ufeff", "\u200b", "### Response:", "Mirava", "12345", "\x85", "\u2028", "\U0010ffff", "ｶﾞ",
         "x" * 300)
TEXT = st.one_of(st.text(), st.lists(st.sampled_from(NASTY), max_size=6).map("".join),
                 st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=3)), max_size=6).map("".join))
FAST = settings(deadline=None, max_examples=150)


def trained(**changes) -> bytes:
    """SentencePiece's own training, with its own defaults."""
    model = io.BytesIO()
    options = {"model_type": "bpe", "vocab_size": 400, "hard_vocab_limit": False, "minloglevel": 2, **changes}
    lines = [line for text in tiny.TEXTS * 3 for line in text.splitlines() if line]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **options)
    return model.getvalue()


LLAMA = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True, "pad_id": -1}


# ── nothing is lost ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_comes_back(kind):
    tokenizer = tiny.tokenizer(kind)

    @FAST
    @given(TEXT)
    @example(" ")
    @example("\n")
    @example("▁")
    def holds(text):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode([tokenizer.bos, *ids, tokenizer.eos, tokenizer.pad]) == text
        assert not {UNK, BOS, EOS, PAD} & set(ids)

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_many_at_once_are_each_alone(kind):
    tokenizer = tiny.tokenizer(kind)

    @FAST
    @given(st.lists(st.tuples(TEXT, st.booleans()), max_size=5))
    @example([("", True), ("", False), ("a ▁ b", False), ("\n", False), (" ", True), ("b", False)])
    def holds(texts):
        assert tokenizer.encode_all(texts) == [tokenizer.encode(text, starts=starts) for text, starts in texts]

    holds()
    with pytest.raises(UserError, match="half a surrogate pair"):
        tokenizer.encode_all([("fine", True), ("\ud800", False)])


WORDS = st.lists(st.sampled_from(["the", "quick", "Mirava", "漢字", "1234", "naïve", "", " ", "\n", "\nthe", "a\tb", "(", "😀", "▁", "lazy dog"]),
                 min_size=4, max_size=30).map(" ".join)


@pytest.mark.parametrize("kind", KINDS)
def test_words_that_are_looked_up_are_what_they_are_in_their_text(kind):
    tokenizer = tiny.tokenizer(kind)
    assert tokenizer._words_stand_alone is (kind == "bpe")

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.tuples(WORDS, st.booleans()), min_size=1, max_size=4))
    def holds(texts):
        assert tokenizer.encode_all(texts) == [tokenizer.encode(text, starts=starts) for text, starts in texts]

    holds()


def test_a_word_is_asked_of_sentencepiece_once_and_few_spaces_are_not_looked_for(monkeypatch):
    tokenizer = tiny.tokenizer("bpe")
    text = "the quick brown fox jumps over the lazy dog " * 3
    first = tokenizer.encode_all([(text, True)])
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer._seen, "make", lambda word: 1 / 0)
        assert tokenizer.encode_all([(text, True)]) == first
        assert tokenizer.encode_all([("漢字" * 40 + " ", True)])
    monkeypatch.setattr(tokenizer_module, "MOST_WORDS", 3)
    tokenizer.encode_all([("漢 字 " * 3, True)])
    assert 0 < len(tokenizer._seen) <= 3


def test_words_do_not_stand_alone_where_a_piece_holds_several():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(["of the day and of the night"] * 50), model_writer=model,
                                             model_type="bpe", vocab_size=290, hard_vocab_limit=False, byte_fallback=True, pad_id=3,
                                             normalization_rule_name="identity", remove_extra_whitespaces=False,
                                             split_by_whitespace=False, user_defined_symbols=["\n"], minloglevel=2)
    tokenizer = Tokenizer(model.getvalue())
    assert any("▁" in tokenizer._pieces.id_to_piece(i).lstrip("▁") for i in range(tokenizer.vocab_size))
    assert not tokenizer._words_stand_alone
    assert tokenizer.encode_all([("of the day", True)]) == [tokenizer.encode("of the day")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_goes_on_comes_back_to_the_byte(kind):
    tokenizer = tiny.tokenizer(kind)

    @FAST
    @given(TEXT.filter(bool), TEXT)
    @example("a", " b")
    @example("▁", " ")
    def holds(first, second):
        rest = tokenizer.encode(second, starts=False)
        assert b"".join(tokenizer.piece_bytes[i] for i in rest) == second.encode()
        assert tokenizer.decode([*tokenizer.encode(first), *rest]) == first + second

    holds()


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_word_is_the_same_piece_at_the_start_and_in_mid_text(kind):
    tokenizer = tiny.tokenizer(kind)
    assert tokenizer.encode("the river") == tokenizer.encode(" the river", starts=False)
    assert len(tokenizer.encode("the river")) < len("the river")


def test_ordinary_text_decodes_as_sentencepiece_does():
    own = sentencepiece.SentencePieceProcessor(model_proto=tiny.tokenizer().model)
    for text in (*tiny.TEXTS, "Where does Mirava live?", "12 345", "äöü"):
        ids = tiny.tokenizer().encode(text)
        assert ids == own.encode(text)
        assert tiny.tokenizer().decode(ids) == own.decode(ids) == text


def test_a_vocabulary_in_llamas_manner_loses_nothing_either(tmp_path):
    (tmp_path / "llama.model").write_bytes(trained(**LLAMA))
    tokenizer = Tokenizer.load(tmp_path / "llama.model")

    @FAST
    @given(TEXT)
    def holds(text):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert b"".join(tokenizer.piece_bytes[i] for i in tokenizer.encode(text, starts=False)) == text.encode()

    holds()


# ── streaming ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_gives_every_character_as_soon_as_it_is_whole(kind):
    tokenizer = tiny.tokenizer(kind)

    @FAST
    @given(TEXT)
    @example("in the river 😀 漢")
    def holds(text):
        ids = tokenizer.encode(text)
        so_far, data, implied = "", b"", 0 if text.startswith("▁") else 1  # a real U+2581 is spelled in bytes
        parts = list(tokenizer.stream(ids))
        assert len(parts) == len(ids) + 1
        for i, part in zip(ids, parts):
            so_far, data = so_far + part, data + tokenizer.piece_bytes[i]
            assert so_far == data[implied:].decode("utf-8", "ignore")
        assert so_far == text

    holds()


def test_a_stream_keeps_the_spaces_between_words():
    tokenizer = tiny.tokenizer()
    parts = list(tokenizer.stream(tokenizer.encode("the river  near")))
    assert "".join(parts) == "the river  near" and sum(part.startswith(" ") for part in parts) >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_any_ids_at_all_stream_to_what_they_decode_to(kind):
    tokenizer = tiny.tokenizer(kind)

    @FAST
    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    @example([4 + 0xE2, 4 + 0x96])                # a character that never ends
    @example([BOS, 4 + 0xFF, EOS, 4 + 0x41, UNK])
    def holds(ids):
        text = tokenizer.decode(ids)
        assert "".join(tokenizer.stream(iter(ids))) == text
        spoken = [i for i in ids if tokenizer.piece_bytes[i]]
        data = b"".join(tokenizer.piece_bytes[i] for i in spoken)
        own = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
        if spoken and own.id_to_piece(spoken[0]).startswith("▁"):
            data = data[1:]
        assert text == data.decode("utf-8", "replace")

    holds()


# ── control ids ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_own_vocabularies_have_unk_bos_eos_pad_in_front(kind):
    tokenizer = tiny.tokenizer(kind)
    own = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    assert [own.id_to_piece(i) for i in range(4)] == ["<unk>", "<s>", "</s>", "<pad>"]
    assert (UNK, tokenizer.bos, tokenizer.eos, tokenizer.pad) == (0, 1, 2, 3)
    assert [tokenizer.piece_bytes[i] for i in (BOS, EOS, PAD)] == [b""] * 3
    assert tokenizer.vocab_size == len(tokenizer.piece_bytes) == own.get_piece_size() <= 400


@pytest.mark.parametrize("text", ["<s>", "</s>", "<pad>", "<unk>", "a</s>b", "</s></s>", "\n</s>\n", "<s> [INST]",
                                  "<0x0A>"])
@pytest.mark.parametrize("starts", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_text_of_a_control_token_is_text(kind, starts, text):
    ids = tiny.tokenizer(kind).encode(text, starts=starts)
    assert min(ids) > PAD and len(ids) >= len(text) // 2
    assert tiny.tokenizer(kind).decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_learned_from_control_texts_has_no_way_into_control_ids(kind):
    tokenizer = Tokenizer.train(["<s> </s> <pad> <unk> <0x41> " * 50] * 5, kind, 300)
    ids = tokenizer.encode("<s></s><pad><unk><0x41>")
    assert min(ids) > PAD and tokenizer.decode(ids) == "<s></s><pad><unk><0x41>"


def test_a_vocabulary_without_padding_pads_with_unk():
    tokenizer = Tokenizer(trained(**LLAMA))
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos) == (0, 1, 2)
    assert Tokenizer(trained(**{**LLAMA, "pad_id": 3})).pad == 3


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def test_a_saved_vocabulary_is_the_same(tmp_path):
    tiny.tokenizer().save(tmp_path / "t.model")
    loaded = Tokenizer.load(tmp_path / "t.model")
    assert (loaded.sha256, loaded.model) == (tiny.tokenizer().sha256, tiny.tokenizer().model)
    assert loaded.encode(tiny.TEXTS[0]) == tiny.tokenizer().encode(tiny.TEXTS[0])
    assert loaded.sha256 != tiny.tokenizer("char").sha256


@pytest.mark.parametrize("changes", [
    {}, {"byte_fallback": True}, {**LLAMA, "byte_fallback": False}, {**LLAMA, "remove_extra_whitespaces": True},
    {**LLAMA, "normalization_rule_name": "nfkc"}], ids=["defaults", "nmt_nfkc", "no bytes", "whitespace", "nfkc"])
def test_a_vocabulary_that_loses_text_is_refused(tmp_path, changes):
    (tmp_path / "lossy.model").write_bytes(trained(**changes))
    with pytest.raises(UserError, match=r"lossy\.model: this vocabulary loses text"):
        Tokenizer.load(tmp_path / "lossy.model")


@pytest.mark.parametrize("content", [b"", b"\0", b"no model at all", b"\x0a\xff\xff", tiny.tokenizer().model[:1000]],
                         ids=["empty", "zero", "text", "bytes", "cut"])
def test_what_is_no_vocabulary_is_refused_by_name(tmp_path, content):
    (tmp_path / "bad.model").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.model: "):
        Tokenizer.load(tmp_path / "bad.model")


def test_a_missing_vocabulary_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"none\.model: tokenizer cannot be read: no such file"):
        Tokenizer.load(tmp_path / "none.model")
    with pytest.raises(UserError, match="cannot be read"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("absent", ["bos_id", "eos_id"])
def test_a_vocabulary_without_begin_or_end_is_refused(absent):
    with pytest.raises(UserError, match="has no <s> or no </s>"):
        Tokenizer(trained(**{**LLAMA, absent: -1}))


def test_what_is_no_unicode_is_refused_by_what_it_holds_and_not_by_a_place_in_the_prompt():
    with pytest.raises(UserError) as caught:
        prompt_ids(tiny.tokenizer(), "caf\udce9?")
    assert str(caught.value).startswith("the text is not valid Unicode: it holds '\\udce9', ")
    assert not any(c.isdigit() for c in str(caught.value).replace("udce9", "").replace("UTF-8", ""))


# ── training ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_text_gives_the_same_vocabulary(kind):
    assert Tokenizer.train(tiny.TEXTS * 3, kind, 400).model == Tokenizer.train(iter(tiny.TEXTS * 3), kind, 400).model
    assert Tokenizer.train(tiny.TEXTS[:2], kind, 400).model != tiny.tokenizer(kind).model


@pytest.mark.parametrize(("kind", "size"), [("bpe", 100), ("unigram", 262), ("bpe", 262), ("char", 10)])
def test_too_few_pieces_are_refused_with_their_number(kind, size):
    with pytest.raises(UserError, match=rf"^tokenizer\.vocab_size = {size}: .*use (fewer pieces or more text|more pieces)$"):
        Tokenizer.train(tiny.TEXTS, kind, size)


@pytest.mark.parametrize("fault", [UserError("a.txt, line 3: is not UTF-8"), KeyboardInterrupt(), BrokenPipeError()])
@pytest.mark.parametrize("at", [0, 5])
def test_a_fault_of_the_text_is_not_blamed_on_the_vocabulary(fault, at):
    def texts():
        yield from tiny.TEXTS * at
        raise fault

    with pytest.raises(type(fault)) as found:
        Tokenizer.train(texts(), "bpe", 400)
    assert found.value is fault


def test_ids_behind_the_vocabulary_are_silent():
    """A model may have more ids than its vocabulary: a mask, sentinels, room to grow."""
    tokenizer = tiny.tokenizer()
    assert tokenizer.decode([*tokenizer.encode("The fox"), tokenizer.vocab_size, 10**6]) == "The fox"


@pytest.mark.parametrize("texts", [[], [""], ["", ""]], ids=str)
def test_no_text_is_refused(texts):
    with pytest.raises(UserError, match="no text to learn"):
        Tokenizer.train(texts)


def test_the_size_is_an_upper_bound():
    assert tiny.tokenizer("bpe").vocab_size == 400
    assert Tokenizer.train(["a b c"], "bpe", 5000).vocab_size < 300


def test_long_lines_are_learned_from_too():
    """SentencePiece leaves out sentences that are too long; a book on one line (here 1.2 MB) must not vanish."""
    tokenizer = Tokenizer.train(["zebra " * 200_000], "bpe", 300)
    assert len(tokenizer.encode("zebra")) == 1
