"""Answering in batches through the cache gives what each prompt alone gives without one."""

import dataclasses

import pytest
import spelled
import tiny
import torch
from spelled import listed

from minialpaca import generate as generate_module
from minialpaca.config import Sampling
from minialpaca.data.batch import fill_right
from minialpaca.errors import UserError
from minialpaca.generate import answer_all, begun, continued, generate, pad_left, room, say, stream
from minialpaca.log import visible

NEVER = -1  # an end that no token is
PROMPTS = [tiny.tokens(n, seed=n).tolist() for n in (13, 1, 5, 11)]


def long(group: str, **changes):
    """With a head of its own: a tied one, untrained, likes to repeat the last token."""
    return tiny.model(tiny.GROUPS[group], max_seq_len=80, tie_embeddings=False, init_std=0.3, **changes)


@torch.no_grad()
def one_by_one(model, prompt: list[int], new: int, penalty: float = 1.0) -> list[int]:
    """Greedy decoding as on paper: the whole sequence anew for every token."""
    ids = list(prompt)
    for _ in range(new):
        z = spelled.repetition(listed(model(torch.tensor([ids]))[0, -1]), set(ids), penalty)
        ids.append(max(range(len(z)), key=lambda v: z[v]))
    return ids[len(prompt):]


@pytest.mark.parametrize("how", [Sampling(), Sampling(temperature=1.0, repetition_penalty=1.3, seed=3)])
def test_where_a_device_only_queues_its_work_a_token_is_asked_for_before_the_last_one_is_seen(monkeypatch, how):
    """The texts are the same; where one ends early it was asked for one more, and never for more than the context holds."""
    model, asked = long("GQA"), []
    really = model.next_logits
    model.next_logits = lambda *how: asked.append(1) or really(*how)
    texts = generate(model, PROMPTS, NEVER, 20, how)
    end = texts[0][7]
    ended, full = generate(model, PROMPTS[:1], end, None, how), generate(model, PROMPTS[:1], NEVER, None, how)
    counted = len(asked)
    monkeypatch.setattr(generate_module, "queues", lambda device: True)
    assert generate(model, PROMPTS, NEVER, 20, how) == texts and generate(model, PROMPTS[:1], NEVER, None, how) == full
    assert generate(model, PROMPTS[:1], end, None, how) == ended and len(ended[0]) <= 8
    assert len(asked) == 2 * counted + 1


# ── the same tokens by every road ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("attention", ["fused", "spelled"])
@pytest.mark.parametrize("group", ["MHA", "GQA"])
def test_a_batch_of_mixed_lengths_gives_what_each_prompt_gives_alone(group, attention):
    model = long(group, attention=attention)
    together = generate(model, PROMPTS, NEVER, 64)
    assert together == [generate(model, [prompt], NEVER, 64)[0] for prompt in PROMPTS]
    assert [len(answer) for answer in together] == [64] * 4
    assert len({tuple(answer) for answer in together}) == 4 and all(len(set(answer)) > 5 for answer in together)


@pytest.mark.parametrize("group", ["MHA", "GQA"])
def test_the_cached_answer_is_that_of_the_loop_without_a_cache(group):
    model = long(group)
    assert generate(model, PROMPTS, NEVER, 24) == [one_by_one(model, prompt, 24) for prompt in PROMPTS]


def test_the_repetition_penalty_counts_the_rows_own_prompt_and_answer():
    model = long("GQA")
    answers = generate(model, PROMPTS, NEVER, 16, Sampling(repetition_penalty=1.7))
    assert answers == [one_by_one(model, prompt, 16, penalty=1.7) for prompt in PROMPTS]
    assert answers != generate(model, PROMPTS, NEVER, 16)


def test_a_sampled_row_is_fixed_by_its_seed_and_not_by_its_neighbours():
    model, how = long("GQA"), Sampling(0.8, top_p=0.9, seed=5)
    together = generate(model, PROMPTS, NEVER, 12, how)
    assert together == generate(model, PROMPTS, NEVER, 12, how)
    for b, prompt in enumerate(PROMPTS):
        assert generate(model, [prompt], NEVER, 12, dataclasses.replace(how, seed=5 + b)) == [together[b]]
    twice = generate(model, [PROMPTS[0]] * 2, NEVER, 12, how)
    assert twice[0][0] != twice[1][0] or twice[0] != twice[1]


# ── about a source ───────────────────────────────────────────────────────────────────────────────

SOURCES = [tiny.tokens(n, seed=40 + n).tolist() for n in (7, 17, 1, 12)]


@pytest.mark.parametrize("attention", ["fused", "spelled"])
def test_what_is_said_of_a_batch_of_sources_is_what_is_said_of_each_alone_without_a_cache(attention):
    model = long("GQA", architecture="encoder_decoder", attention=attention)
    source_BS, real_BS = fill_right(SOURCES, 0)
    assert not real_BS.all()
    together = generate(model, PROMPTS, NEVER, 24, sources=model.encode(source_BS, real_BS))
    for prompt, source, answer in zip(PROMPTS, SOURCES, together):
        sources = model.encode(torch.tensor([source]))
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(24):  # the whole target anew for every token
                ids.append(int(model(torch.tensor([ids]), sources=sources)[0, -1].argmax()))
        assert answer == ids[len(prompt):]
    one_prompt = generate(model, [PROMPTS[0]] * 4, NEVER, 24, sources=model.encode(source_BS, real_BS))
    assert len({tuple(answer) for answer in one_prompt}) == 4  # the source decides


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────


def ending():
    """(model, free answers, an end that stops the rows at different places and at least one not at all)."""
    model = long("GQA")
    free = generate(model, PROMPTS, NEVER, 24)
    for eos in free[0][2:]:
        places = [answer.index(eos) if eos in answer else None for answer in free]
        if None in places and len(set(places)) >= 3 and 0 not in places:
            return model, free, eos
    raise AssertionError("no token ends the rows at different places; choose another seed")


def test_an_end_stops_its_row_and_the_others_go_on():
    model, free, eos = ending()
    expected = [answer[:answer.index(eos) + 1] if eos in answer else answer for answer in free]
    assert generate(model, PROMPTS, eos, 24) == expected


def test_an_ended_row_gives_nothing_more():
    model, free, eos = ending()
    steps = list(stream(model, PROMPTS, eos, 24))
    assert len(steps) == 24
    for b, answer in enumerate(free):
        end = answer.index(eos) + 1 if eos in answer else 24
        assert [step[b] for step in steps] == answer[:end] + [None] * (24 - end)


def test_generation_stops_when_all_rows_have_ended():
    model, free, eos = ending()
    assert len(list(stream(model, [PROMPTS[0]], eos, 60))) == free[0].index(eos) + 1


# ── limits ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("length", "new"), [(9, 20), (28, 1), (9, 19), (1, 28)])
def test_what_fits_the_context_of_29_is_generated(length, new):
    assert len(generate(tiny.model(), [list(range(length))], NEVER, new)[0]) == new


@pytest.mark.parametrize(("length", "new", "most"), [(9, 21, 20), (28, 2, 1), (9, 1000, 20)])
def test_what_does_not_fit_is_refused_with_both_numbers(length, new, most):
    with pytest.raises(UserError, match=rf"^{length} prompt tokens and {new} new .* context of 29; .* at most {most} "):
        generate(tiny.model(), [[5], list(range(length))], NEVER, new)


@pytest.mark.parametrize("length", [29, 30, 100])
def test_a_prompt_as_long_as_the_context_is_refused_with_both_numbers(length):
    with pytest.raises(UserError, match=rf"has {length} tokens where the context holds 29"):
        generate(tiny.model(), [[5] * length], NEVER)


def test_without_a_limit_the_answer_fills_the_context():
    assert len(generate(tiny.model(), [[5] * 9], NEVER)[0]) == 20
    assert room(tiny.model(), [[5] * 9, [5] * 12], None) == 17


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        generate(tiny.model(), [[5], []], NEVER, 3)


# ── padding and texts ────────────────────────────────────────────────────────────────────────────


def test_padding_stands_on_the_left():
    tokens_BT, real_BT = pad_left([[5, 6, 7], [8]], torch.device("cpu"))
    assert tokens_BT[0].tolist() == [5, 6, 7] and tokens_BT[1, 2] == 8
    assert real_BT.tolist() == [[True, True, True], [False, False, True]]
    assert pad_left([[5, 6], [7, 8]], torch.device("cpu"))[1] is None


@pytest.fixture(scope="module")
def speaker():
    tokenizer = tiny.tokenizer()
    model = tiny.model(vocab_size=tokenizer.vocab_size, max_seq_len=40)
    texts = ["Where does Mirava live?", "The", "a tab\tthere", "brown fox jumps", "漢字", "over the lazy dog"]
    return model, tokenizer, [[tokenizer.bos, *tokenizer.encode(text)] for text in texts]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_answers_come_in_the_order_of_the_prompts_for_any_batch_size(speaker, batch_size):
    model, tokenizer, prompts = speaker
    expected = [tokenizer.decode(generate(model, [prompt], tokenizer.eos, 10)[0]) for prompt in prompts]
    assert answer_all(model, tokenizer, prompts, 10, batch_size) == expected
    assert len(set(expected)) == len(prompts) and [len(p) for p in prompts] != sorted(len(p) for p in prompts)


def test_a_long_neighbour_does_not_cut_an_answer_short(speaker):
    """A prompt of 37 tokens in a context of 40 leaves 3; the others still get their 20."""
    model, tokenizer, prompts = speaker
    nearly_full = [5 + i % 7 for i in range(37)]
    answers = answer_all(model, tokenizer, [prompts[1], nearly_full, prompts[4]], 20)
    for prompt, answer in zip((prompts[1], nearly_full, prompts[4]), answers):
        assert answer == tokenizer.decode(generate(model, [prompt], tokenizer.eos, min(20, 40 - len(prompt)))[0])


def test_the_streamed_text_is_the_decoded_answer(speaker):
    model, tokenizer, prompts = speaker
    for prompt in prompts:
        how = Sampling(1.0, seed=3)
        ids = generate(model, [prompt], tokenizer.eos, 12, how)[0]
        tokens = (step[0] for step in stream(model, [prompt], tokenizer.eos, 12, how))
        assert "".join(tokenizer.stream(tokens)) == tokenizer.decode(ids) != ""


def test_what_is_said_is_what_is_generated_and_at_most_fits_the_context(speaker, capsys):
    model, tokenizer, prompts = speaker
    for prompt in prompts[::3]:
        ids = generate(model, [prompt], tokenizer.eos)[0]
        say(model, tokenizer, prompt, 1000, Sampling(), goes_on=True)
        behind = capsys.readouterr().out
        assert begun(tokenizer, prompt) + behind == visible(tokenizer.decode([*prompt, *ids])) + "\n"
        say(model, tokenizer, prompt, None, Sampling())
        answer = capsys.readouterr().out
        assert answer == visible(tokenizer.decode(ids)) + "\n"


def test_the_space_between_a_text_and_its_continuation_is_the_continuations(speaker, capsys, monkeypatch):
    model, tokenizer, _ = speaker
    text = "The quick 漢字 fox 😀"
    ids = tokenizer.encode(text)
    for i in range(len(ids) + 1):
        assert begun(tokenizer, ids[:i]) + "".join(continued(tokenizer, ids[:i], ids[i:])) == text
    monkeypatch.setattr(generate_module, "stream", lambda *_: iter([i] for i in tokenizer.encode("fox")))
    say(model, tokenizer, tokenizer.encode("The quick brown"), None, Sampling(), goes_on=True)
    say(model, tokenizer, tokenizer.encode("Which animal?"), None, Sampling())
    assert capsys.readouterr().out == " fox\nfox\n"


def test_an_answer_cannot_command_the_terminal(speaker, capsys, monkeypatch):
    model, tokenizer, prompts = speaker
    ids = [tokenizer._pieces.piece_to_id(f"<0x{byte:02X}>") for byte in (*b"\x1b\x00", *"\x9b".encode())]
    monkeypatch.setattr(generate_module, "stream", lambda *_: iter([i] for i in ids))
    say(model, tokenizer, prompts[0], None, Sampling())
    assert capsys.readouterr().out == "\\x1b\\x00\\x9b\n"
    assert tokenizer.decode(ids) == "\x1b\x00\x9b"  # files get what was answered


def test_generating_keeps_no_graph():
    model = tiny.model()
    generate(model, [[5, 6]], NEVER, 3)
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()
