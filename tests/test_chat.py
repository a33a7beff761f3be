"""The conversation: one instruction a line, its input used once, faults answered."""

import pytest
import tiny

from minialpaca import chat as chat_module
from minialpaca.chat import Chat, converse
from minialpaca.config import Sampling
from minialpaca.data.instructions import prompt_ids
from minialpaca.errors import UserError
from minialpaca.generate import generate
from minialpaca.log import visible


@pytest.fixture
def heard(monkeypatch):
    """What `say` was asked, instead of answering."""
    asked = []
    monkeypatch.setattr(chat_module, "say", lambda model, tokenizer, *what: asked.append(what))
    return asked


def new_chat() -> Chat:
    return Chat(None, tiny.tokenizer(), 7, Sampling(seed=3))


def test_a_line_is_asked_with_the_prompt_of_training(heard):
    assert new_chat().hear("  Where does Mirava live? \n")
    assert heard == [(prompt_ids(tiny.tokenizer(), "Where does Mirava live?"), 7, Sampling(seed=3))]


def test_an_input_is_used_once(heard):
    chat = new_chat()
    for line in ("/input brown  fox", "Count the words.", "Count the words."):
        assert chat.hear(line)
    assert [ids for ids, _, _ in heard] == [prompt_ids(tiny.tokenizer(), "Count the words.", "brown  fox"),
                                            prompt_ids(tiny.tokenizer(), "Count the words.")]


def test_commands_between_leave_the_input_waiting_and_an_empty_one_clears_it(heard, capsys):
    chat = new_chat()
    for line in ("/input fox", "/set top_k=4", "/show", "/nonsense", "", "Count."):
        assert chat.hear(line)
    assert heard[0][0] == prompt_ids(tiny.tokenizer(), "Count.", "fox") and len(heard) == 1
    for line in ("/input fox", "/input", "Count."):
        assert chat.hear(line)
    assert heard[1][0] == prompt_ids(tiny.tokenizer(), "Count.")


def test_set_changes_the_sampling_that_show_prints(heard, capsys):
    chat = new_chat()
    chat.hear("/set temperature = 0.8")
    chat.hear("/set top_k=5")
    chat.hear("/show")
    shown = "temperature=0.8, top_k=5, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=3, max_new_tokens=7\n"
    assert capsys.readouterr().out == shown
    chat.hear("Hello")
    assert heard[0][2] == Sampling(temperature=0.8, top_k=5, seed=3)


def test_the_longest_answer_can_be_set_and_is_clamped_to_the_room_there_is(capsys):
    tokenizer = tiny.tokenizer()
    prompt = prompt_ids(tokenizer, "The")
    model = tiny.model(vocab_size=tokenizer.vocab_size, max_seq_len=len(prompt) + 9, init_std=0.3)
    chat = Chat(model, tokenizer, None, Sampling())
    for line in ("The", "/set max-new-tokens=200", "The", "/set max_new_tokens = 2", "The", "/show"):
        chat.hear(line)
    free, clamped, short, shown = capsys.readouterr().out.split("\n")[:4]
    answer = generate(model, [prompt], tokenizer.eos)[0]
    assert len(answer) == 9 and free == clamped == visible(tokenizer.decode(answer)) != short
    assert short == visible(tokenizer.decode(answer[:2])) and shown.endswith(", seed=3, max_new_tokens=2")
    with pytest.raises(UserError, match="^max_new_tokens 0: must be at least 1"):
        chat.hear("/set max_new_tokens=0")
    assert chat.max_new == 2


@pytest.mark.parametrize(("assignment", "message"), [
    ("heat=1", r"^/set heat: unknown; there are temperature, top_k"), ("heat 1", "^/set heat: unknown"),
    ("", "^/set what: write NAME=VALUE, with one of temperature, top_k"), ("=1", "^/set what: write NAME=VALUE"),
    ("temperature 0.8", "^/set temperature 0.8: write /set temperature=0.8$"),
    ("top-k  5 ", "^/set top-k  5: write /set top_k=5$"), ("temperature", "^/set temperature: write /set temperature=VALUE$"),
    ("top_k=2.5", r"^/set top_k=2\.5: is no int"), ("temperature=hot", r"^/set temperature=hot: is no float"),
    ("temperature=", "is no float"), ("seed=" + "9" * 30, "^seed = 9+: must lie in"), ("max_new_tokens=x", "is no int"),
    ("top_p=2", r"^top_p = 2\.0: must lie in"),
    ("temperature=nan", "^temperature = nan")])
def test_a_setting_that_cannot_be_is_refused_and_changes_nothing(heard, assignment, message):
    chat = new_chat()
    with pytest.raises(UserError, match=message):
        chat.hear(f"/set {assignment}")
    assert chat.how == Sampling(seed=3) and not heard


@pytest.mark.parametrize("line", ["/help", "/sett temperature=1"])
def test_an_unknown_command_is_named_before_the_help_and_asks_nothing(heard, capsys, line):
    assert new_chat().hear(line)
    said = capsys.readouterr()
    words = ("/input", "/set", "/show", "/quit", "repetition_penalty", "max_new_tokens", "Ctrl-C")
    assert all(word in said.out for word in words) and not heard
    assert said.err == ("" if line == "/help" else f"error: {line.split()[0]}: unknown command; there are\n")


@pytest.mark.parametrize("line", ["/quit", "/exit", " /quit ", "/quit now"])
def test_quit_ends(heard, line):
    assert new_chat().hear(line) is False and not heard


@pytest.mark.parametrize("line", ["", "   ", "\t"])
def test_an_empty_line_asks_nothing_and_goes_on(heard, line):
    assert new_chat().hear(line) is True and not heard


# ── the seed ─────────────────────────────────────────────────────────────────────────────────────


def test_each_answer_moves_the_seed_on_and_set_puts_it_back(heard):
    chat = new_chat()
    for line in ("Hello", "/show", "", "Hello", "/set seed=3", "Hello"):
        chat.hear(line)
    assert [how.seed for _, _, how in heard] == [3, 4, 3]


def test_the_same_question_draws_another_answer_and_the_same_seed_the_same_conversation(capsys):
    tokenizer = tiny.tokenizer()
    model = tiny.model(vocab_size=tokenizer.vocab_size, max_seq_len=300)
    said = []
    for _ in range(2):
        chat = Chat(model, tokenizer, 8, Sampling(temperature=1.0, seed=5))
        for _ in range(3):
            chat.hear("The")
            said.append(capsys.readouterr().out)
    assert len(set(said[:3])) == 3 and said[:3] == said[3:]


# ── Ctrl-C ───────────────────────────────────────────────────────────────────────────────────────


class Keyboard:
    def __init__(self, lines, at_terminal=True):
        self.lines, self.isatty = iter(lines), lambda: at_terminal

    def __call__(self, prompt):
        line = next(self.lines)
        if line == "^C":
            raise KeyboardInterrupt
        return line


def talk(monkeypatch, *lines, at_terminal=True):
    """What a conversation is asked, with an answer to `long` that Ctrl-C stops."""
    asked, keyboard = [], Keyboard(lines, at_terminal)

    def say(model, tokenizer, ids, max_new, how):
        asked.append(tokenizer.decode(ids).split("\n")[3])
        print("An ans", end="")
        if asked[-1] == "long":
            raise KeyboardInterrupt
        print("wer")

    monkeypatch.setattr(chat_module, "say", say)
    monkeypatch.setattr(chat_module.sys, "stdin", keyboard)
    monkeypatch.setattr("builtins.input", keyboard)
    return asked, new_chat()


def test_an_interrupt_stops_the_answer_and_not_the_conversation(monkeypatch, capsys):
    asked, chat = talk(monkeypatch, "long", "short", "/quit")
    converse(chat)
    assert asked == ["long", "short"] and capsys.readouterr().out == "An ans [stopped]\nAn answer\n"
    assert chat.how.seed == 5  # asked again, a stopped answer comes out otherwise, too


def test_an_interrupt_where_a_line_is_awaited_ends_the_conversation(monkeypatch):
    asked, chat = talk(monkeypatch, "short", "^C", "short")
    with pytest.raises(KeyboardInterrupt):
        converse(chat)
    assert asked == ["short"]


def test_an_interrupt_ends_a_list_of_questions_that_nobody_types(monkeypatch):
    asked, chat = talk(monkeypatch, "long", "short", at_terminal=False)
    with pytest.raises(KeyboardInterrupt):
        converse(chat)
    assert asked == ["long"]


def test_the_answer_is_printed_as_it_decodes(capsys):
    tokenizer = tiny.tokenizer()
    model = tiny.model(vocab_size=tokenizer.vocab_size, max_seq_len=300, init_std=0.3)
    Chat(model, tokenizer, 6, Sampling()).hear("The")
    ids = generate(model, [prompt_ids(tokenizer, "The")], tokenizer.eos, 6)[0]
    assert capsys.readouterr().out == visible(tokenizer.decode(ids)) + "\n"
