"""Pictures and samples: what is shown is what the model does."""

import numpy as np
import pytest
import tiny
import torch

from minialpaca import observe
from minialpaca.generate import generate
from minialpaca.observe import CELL, MaskObserver, SpanObserver, attention_picture, continuations, observer, spell


class Log:
    def __init__(self):
        self.texts, self.images = {}, {}

    def text(self, name, text, step):
        self.texts[name, step] = text

    def image(self, name, pixels, step):
        self.images[name, step] = pixels


def tiles(picture: np.ndarray, layers: int, heads: int, tokens: int) -> np.ndarray:
    """Brightness (layers, heads, T, T): the middle of each cell, without the frames."""
    side = tokens * CELL + 2 * (CELL // 2)
    grid = picture.astype(int).sum(-1).reshape(layers, side, heads, side).transpose(0, 2, 1, 3)
    return grid[:, :, CELL // 2 + 1:-(CELL // 2):CELL, CELL // 2 + 1:-(CELL // 2):CELL]


def test_the_picture_has_a_tile_per_layer_and_head():
    picture = attention_picture(tiny.model(), tiny.tokens(11).tolist())
    side = 11 * CELL + 2 * (CELL // 2)
    assert picture.shape == (2 * side, 6 * side, 3) and picture.dtype == np.uint8
    assert (picture[0] == 255).all() and (picture[:, 0] == 255).all()  # white frames


def test_the_picture_is_black_where_the_future_is_and_brighter_where_the_weight_is_larger():
    model, ids, maps = tiny.model(), tiny.tokens(11), []
    model.hidden(ids[None], maps=maps)
    bright = tiles(attention_picture(model, ids.tolist()), 2, 6, 11)
    future = np.triu(np.ones((11, 11), bool), 1)
    assert (bright[:, :, future] == 0).all()
    assert (bright[:, :, 0, 0] == 3 * 255).all()  # the first token can only look at itself
    for layer in range(2):
        for head in range(6):
            weight = maps[layer][0, head].detach().numpy()
            order = np.argsort(weight, axis=None)
            assert (np.diff(bright[layer, head].ravel()[order]) >= -2).all()  # −2: three channels cut to bytes
            assert len(np.unique(bright[layer, head])) > 10


def test_of_a_long_text_the_end_is_shown_as_it_is_when_the_whole_is_read():
    model, ids, n = tiny.model(max_seq_len=80), tiny.tokens(70).tolist(), observe.PICTURED
    maps = []
    model.hidden(torch.tensor([ids]), maps=maps)
    bright = tiles(attention_picture(model, ids), 2, 6, n)
    shown = np.concatenate([np.concatenate([observe._tile(head.detach().numpy()) for head in layer[0, :, -n:, -n:]], 1)
                            for layer in maps])
    assert np.array_equal(attention_picture(model, ids), observe.colour(shown))
    assert (bright[:, :, 0, 0] < 3 * 255).any()  # the first token shown looks at those before it, too
    assert not np.array_equal(attention_picture(model, ids), attention_picture(model, ids[-n:]))


@pytest.mark.parametrize("training", [True, False])
def test_looking_leaves_the_model_as_it_was(training):
    tokenizer = tiny.tokenizer()
    model = tiny.model(vocab_size=tokenizer.vocab_size, dropout=0.5).train(training)
    watch = observer(tokenizer, [("q", [5, 6, 7])], 4, 29)
    random = torch.get_rng_state()
    assert np.array_equal(attention_picture(model, [5, 6, 7]), attention_picture(model, [5, 6, 7]))
    assert watch.answers(model) == watch.answers(model)
    watch(model, Log(), 1)
    assert model.training is training and torch.equal(torch.get_rng_state(), random)
    assert all(module.training is training for module in model.modules())


def test_an_observer_shows_question_and_answer_side_by_side_and_the_first_ones_attention():
    tokenizer = tiny.tokenizer()
    model = tiny.model(vocab_size=tokenizer.vocab_size, max_seq_len=60, init_std=0.3)
    asked = [("a|b\n<c>", [5 + i % 9 for i in range(50)]), ("the other", [9, 10])]
    watch, log = observer(tokenizer, asked, 5, 60), Log()
    watch(model, log, 7)
    answers = dict(watch.answers(model))
    assert list(answers) == ["a|b\n<c>", "the other"] and answers["the other"] != answers["a|b\n<c>"]
    rows = log.texts["samples", 7].splitlines()
    assert rows[:2] == ["| asked | answered |", "|---|---|"] and len(rows) == 4
    assert rows[2].startswith("| a&#124;b<br>&lt;c> | ") and all(row.count("|") == 3 for row in rows[2:])
    assert np.array_equal(log.images["attention", 7], attention_picture(model, asked[0][1]))


def test_a_continuation_stands_behind_its_text_as_both_decode_together(monkeypatch):
    tokenizer = tiny.tokenizer()
    model = tiny.model(vocab_size=tokenizer.vocab_size, max_seq_len=60, init_std=0.3)
    texts = ["The quick brown", "in Olten, near", "漢"]
    prompts = [[tokenizer.bos, *tokenizer.encode(text)] for text in texts]
    prompts += [[tokenizer.bos], prompts[2][:-1], [5] * 60]  # nothing, half a character, and what fills the context
    watch, log = continuations(tokenizer, prompts, 9, 60), Log()
    pairs = watch.answers(model)
    assert [text for text, _ in pairs] == [*texts, "", ""]
    answers = [generate(model, [ids], tokenizer.eos, 9)[0] for ids in prompts[:5]]
    assert ["".join(pair) for pair in pairs] == [tokenizer.decode([*p, *a]) for p, a in zip(prompts, answers)]
    watch(model, log, 7)
    rows = log.texts["samples", 7].splitlines()
    assert rows[:2] == ["| text &#124; continuation |", "|---|"] and len(rows) == 7
    assert rows[2].startswith("| The quick brown&#124;") and all(row.count("|") == 2 for row in rows[2:])
    monkeypatch.setattr(observe, "generate_all", lambda model, prompts, *_: [tokenizer.encode("fox")] * len(prompts))
    assert watch.answers(model)[::3] == [("The quick brown", " fox"), ("", "fox")]


@pytest.mark.parametrize("made", [observer, continuations])
def test_control_characters_are_shown_and_not_sent(made):
    tokenizer = tiny.tokenizer()
    bell = tokenizer._pieces.piece_to_id("<0x07>")
    asked = [bell, 9] if made is continuations else ("\x07", [bell, 9])
    watch, log = made(tokenizer, [asked], 3, 29), Log()
    watch(tiny.model(vocab_size=tokenizer.vocab_size), log, 1)
    assert r"\x07" in log.texts["samples", 1] and "\x07" not in log.texts["samples", 1]


def test_prompts_that_fill_the_context_are_left_out():
    asked = [("short", [5] * 3), ("just fits", [5] * 28), ("full", [5] * 29), ("over", [5] * 40)]
    watch = observer(tiny.tokenizer(), asked, 5, 29)
    assert list(watch.questions) == ["short", "just fits"] and [len(p) for p in watch.prompts] == [3, 28]


def test_with_nothing_to_ask_nothing_is_shown():
    log = Log()
    observer(tiny.tokenizer(), [], 5, 29)(tiny.model(), log, 1)
    assert log.texts == log.images == {}


# ── hidden parts ─────────────────────────────────────────────────────────────────────────────────


def test_spelling_shows_what_stands_behind_the_vocabulary_by_number():
    tokenizer = tiny.tokenizer()
    V, ids = tokenizer.vocab_size, tokenizer.encode("The quick fox")
    assert spell(tokenizer, ids) == "The quick fox"
    assert spell(tokenizer, [tokenizer.bos, *ids, V, *tokenizer.encode("jumps"), V + 17, tokenizer.eos]) == "The quick fox ⟨0⟩ jumps ⟨17⟩"
    assert spell(tokenizer, [V, *ids]) == "⟨0⟩ The quick fox" and spell(tokenizer, []) == ""


def test_a_masks_answer_is_the_likeliest_token_in_its_place_and_the_rest_as_it_was():
    tokenizer = tiny.tokenizer()
    V = tokenizer.vocab_size
    model = tiny.model(vocab_size=V + 1, architecture="encoder", init_std=0.3)
    prompts = [[tokenizer.bos, V, *tokenizer.encode("brown fox"), V], tokenizer.encode("jumps over")]
    watch, log = MaskObserver(tokenizer, ["one", "two"], prompts, 3), Log()
    answers = dict(watch.answers(model))
    with torch.no_grad():
        best = model(torch.tensor([prompts[0]]))[0].argmax(-1).tolist()
    assert len(set(best)) > 2
    assert answers["one"] == spell(tokenizer, [prompts[0][0], best[1], *prompts[0][2:-1], best[-1]])
    assert answers["two"] == "jumps over"  # nothing hidden, nothing changed
    watch(model, log, 4)
    assert "| one | " in log.texts["samples", 4] and ("attention", 4) in log.images


def test_a_spans_answer_is_what_the_decoder_says_of_the_source():
    tokenizer = tiny.tokenizer()
    V = tokenizer.vocab_size
    model = tiny.model(vocab_size=V + 100, architecture="encoder_decoder", init_std=0.3)
    prompts = [[*tokenizer.encode("The quick"), V, *tokenizer.encode("fox")], tokenizer.encode("lazy dog near")]
    watch, log = SpanObserver(tokenizer, ["one", "two"], prompts, 6), Log()
    answers = dict(watch.answers(model))
    for name, source in zip(("one", "two"), prompts):
        with torch.no_grad():
            sources = model.encode(torch.tensor([source]))
        said, = generate(model, [[tokenizer.bos]], tokenizer.eos, 6, sources=sources)
        assert answers[name] == spell(tokenizer, said)
    assert answers["one"] != answers["two"]
    watch(model, log, 4)
    assert "| one | " in log.texts["samples", 4] and ("attention", 4) in log.images


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("kind", "architecture"), [(MaskObserver, "encoder"), (SpanObserver, "encoder_decoder")])
def test_looking_at_hidden_parts_leaves_the_model_as_it_was(kind, architecture, training):
    tokenizer = tiny.tokenizer()
    model = tiny.model(vocab_size=tokenizer.vocab_size + 100, architecture=architecture, dropout=0.5).train(training)
    watch = kind(tokenizer, ["q"], [[5, tokenizer.vocab_size, 7]], 4)
    random = torch.get_rng_state()
    assert watch.answers(model) == watch.answers(model)
    watch(model, Log(), 1)
    assert model.training is training and torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())


def test_an_encoders_picture_is_bright_on_both_sides_and_a_reading_decoders_on_one():
    for architecture, ahead in (("encoder", True), ("encoder_decoder", False)):
        bright = tiles(attention_picture(tiny.model(architecture=architecture), tiny.tokens(11).tolist()), 2, 6, 11)
        future = np.triu(np.ones((11, 11), bool), 1)
        assert (bright[:, :, future] > 0).mean() > 0.9 if ahead else (bright[:, :, future] == 0).all()
