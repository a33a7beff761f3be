"""The conversation: one instruction a line, its input used once, faults answered."""

import pytest
import tiny

from minialpaca import chat as chat_module
from minialpaca.chat import Chat, changed
from minialpaca.data.instructions import prompt_ids
from minialpaca.errors import UserError
from minialpaca.generate import generate
from minialpaca.sampling import Sampling


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
    shown = capsys.readouterr().out
    assert shown == "temperature=0.8, top_k=5, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=3\n"
    chat.hear("Hello")
    assert heard[0][2] == Sampling(temperature=0.8, top_k=5, seed=3)


@pytest.mark.parametrize(("assignment", "message"), [
    ("heat=1", r"^/set heat: unknown; there are temperature, top_k"), ("", "^/set : unknown"),
    ("top_k=2.5", r"^/set top_k=2\.5: is no int"), ("temperature=hot", r"^/set temperature=hot: is no float"),
    ("temperature", "is no float"), ("top_p=2", r"^top_p = 2\.0: must lie in"),
    ("temperature=nan", "^temperature = nan")])
def test_a_setting_that_cannot_be_is_refused_and_changes_nothing(heard, assignment, message):
    chat = new_chat()
    with pytest.raises(UserError, match=message):
        chat.hear(f"/set {assignment}")
    assert chat.how == Sampling(seed=3) and not heard


def test_an_unknown_command_prints_the_help_and_asks_nothing(heard, capsys):
    assert new_chat().hear("/sett temperature=1")
    out = capsys.readouterr().out
    assert all(word in out for word in ("/input", "/set", "/show", "/quit", "repetition_penalty")) and not heard


@pytest.mark.parametrize("line", ["/quit", "/exit", " /quit ", "/quit now"])
def test_quit_ends(heard, line):
    assert new_chat().hear(line) is False and not heard


@pytest.mark.parametrize("line", ["", "   ", "\t"])
def test_an_empty_line_asks_nothing_and_goes_on(heard, line):
    assert new_chat().hear(line) is True and not heard


def test_changed_keeps_the_other_settings():
    assert changed(Sampling(top_k=3, seed=9), "top_p=0.5") == Sampling(top_k=3, top_p=0.5, seed=9)


def test_the_answer_is_printed_as_it_decodes(capsys):
    tokenizer = tiny.tokenizer()
    model = tiny.model(vocab_size=tokenizer.vocab_size, max_seq_len=300, init_std=0.3)
    Chat(model, tokenizer, 6, Sampling()).hear("The")
    ids = generate(model, [prompt_ids(tokenizer, "The")], tokenizer.eos, 6)[0]
    assert capsys.readouterr().out == tokenizer.decode(ids) + "\n"
