"""One clear line, whatever the message holds and whatever the terminal can show."""

import sys

import pytest
from running import in_process, own_process

from minialpaca.errors import UserError, command


@pytest.mark.parametrize(("error", "line"), [
    (UserError("a\nb.txt: is bad"), "error: a\\nb.txt: is bad\n"),
    (UserError("x\x1b[31m, 漢字\u2028 \udcff"), "error: x\\x1b[31m, 漢字\\u2028 \\udcff\n"),
    (OSError(28, "No space left on device", "out.txt"), "error: out.txt: no space left on device\n"),
])
def test_a_message_is_one_line(error, line):
    @command
    def main():
        raise error

    outcome = in_process(main)
    assert (outcome.code, outcome.err) == (2, line)


def test_an_interruption_has_a_code_of_its_own():
    @command
    def main():
        raise KeyboardInterrupt

    assert in_process(main).code == 130


def test_a_terminal_that_cannot_show_a_character_is_shown_its_number(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    code = "from minialpaca.errors import command\n@command\ndef main():\n    print('漢')\nmain()"
    done = own_process(code, [])
    assert (done.returncode, done.stdout) == (0, "\\u6f22\n"), (done.stderr, sys.version)
