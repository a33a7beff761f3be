"""A conversation in the terminal: each line is an instruction, answered as it is generated.

    python -m minialpaca.chat RUN

The model is tuned on single questions, so each line stands alone; nothing earlier is remembered.
`/input TEXT` gives the next instruction its input, `/set temperature=0.8` changes the sampling,
`/help` lists the commands, Ctrl-C stops an answer, `/quit` (or Ctrl-C or the end of the input where
a line is awaited) leaves.
"""

import argparse

from minialpaca import commandline


def asked() -> argparse.Namespace:
    options = commandline.parser("chat", __doc__)
    options.add_argument("run", help="the run folder of finetune.py")
    commandline.add_sampling(options)
    commandline.add_weights(options)
    commandline.add_speed(options)
    return options.parse_args()


commandline.early(__name__, asked)

import contextlib
import dataclasses
import io
import sys
from pathlib import Path

from minialpaca import run
from minialpaca.config import FinetuneConfig, Sampling
from minialpaca.data.instructions import prompt_ids
from minialpaca.errors import UserError, command
from minialpaca.generate import quick, say

SETTINGS = {**{f.name: f.type for f in dataclasses.fields(Sampling)}, "max_new_tokens": int}
HELP = f"""/input TEXT        give the next instruction an input
/set NAME=VALUE    change the sampling: {', '.join(SETTINGS)}
/show              print the sampling; each answer moves the seed on by one
/quit              leave
Ctrl-C             stop an answer; where a line is awaited, leave"""


class Chat:
    """Holds the sampling and the pending input; `hear` takes one line, False ends the conversation."""

    def __init__(self, model, tokenizer, max_new: int | None, how: Sampling):
        self.model, self.tokenizer, self.max_new, self.how, self.input = model, tokenizer, max_new, how, ""

    def hear(self, line: str) -> bool:
        word, _, rest = line.strip().partition(" ")
        if word in ("/quit", "/exit"):
            return False
        if word == "/input":
            self.input = rest
        elif word == "/set":
            self.change(*setting(rest))
        elif word == "/show":
            shown = {**dataclasses.asdict(self.how), "max_new_tokens": self.max_new or "what fits"}
            print(", ".join(f"{name}={value}" for name, value in shown.items()))
        elif word.startswith("/"):
            if word != "/help":
                print(f"error: {word}: unknown command; there are", file=sys.stderr)
            print(HELP)
        elif line.strip():
            self.answer(line.strip())
        return True

    def change(self, name: str, value: int | float) -> None:
        if name == "max_new_tokens":
            self.max_new = commandline.at_least_one(name, value)
        else:
            self.how = dataclasses.replace(self.how, **{name: value})

    def answer(self, instruction: str) -> None:
        ids = prompt_ids(self.tokenizer, instruction, self.input)
        self.input = ""
        try:
            say(self.model, self.tokenizer, ids, self.max_new, self.how)
        except KeyboardInterrupt:  # from somebody who is there to ask the next question
            if not sys.stdin.isatty():
                raise
            print(" [stopped]")
        # With one seed the same question would draw the same answer again and again.
        self.how = dataclasses.replace(self.how, seed=self.how.seed + 1)


def setting(assignment: str) -> tuple[str, int | float]:
    """`temperature=0.8` → ("temperature", 0.8)."""
    name, equals, value = assignment.partition("=" if "=" in assignment else " ")
    name, value = name.strip().replace("-", "_"), value.strip()
    if name not in SETTINGS:
        raise UserError(f"/set {name or 'what'}: {'unknown; there are' if name else 'write NAME=VALUE, with one of'} "
                        f"{', '.join(SETTINGS)}")
    if equals != "=":
        raise UserError(f"/set {assignment.strip()}: write /set {name}={value or 'VALUE'}")
    try:
        return name, SETTINGS[name](value)
    except ValueError:
        raise UserError(f"/set {name}={value}: is no {SETTINGS[name].__name__}") from None


@command
def main() -> None:
    args = asked()
    how = commandline.sampling_of(args)
    settings = run.settings_of(Path(args.run))
    run.refuse_speechless(settings, args.run)
    if not isinstance(settings, FinetuneConfig):
        raise UserError(f"{args.run}: is a pretraining run and follows no instructions; give a finetune.py run, "
                        "or use python -m minialpaca.generate")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # what is no UTF-8 gets an answer of its own
    model, tokenizer = run.load(args.run, args.checkpoint, run.pick_device(args.device))
    chat = Chat(quick(model, tokenizer, args), tokenizer, args.max_new_tokens, how)
    if sys.stdin.isatty():
        print("Ask something; /help lists the commands.")
        with contextlib.suppress(ImportError):  # Windows has none
            import readline  # noqa: F401  (line editing and history for input())
    converse(chat)


def converse(chat: Chat) -> None:
    while True:
        try:
            if not chat.hear(input("> " if sys.stdin.isatty() else "")):
                return
        except EOFError:
            return
        except UserError as error:  # in a conversation a fault is answered, not the end
            print(f"error: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
