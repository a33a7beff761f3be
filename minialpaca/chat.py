"""A conversation in the terminal: each line is an instruction, answered as it is generated.

    python -m minialpaca.chat RUN

The model is tuned on single questions, so each line stands alone; nothing earlier is remembered.
`/input TEXT` gives the next instruction its input, `/set temperature=0.8` changes the sampling,
`/help` lists the commands, `/quit` (or the end of the input) leaves.
"""

import argparse
import contextlib
import dataclasses
import io
import sys
from pathlib import Path

from minialpaca import run
from minialpaca.config import FinetuneConfig
from minialpaca.data.instructions import prompt_ids
from minialpaca.errors import UserError, command
from minialpaca.generate import sampling_arguments, sampling_of, say
from minialpaca.sampling import Sampling

HELP = """/input TEXT        give the next instruction an input
/set NAME=VALUE    change the sampling: """ + ", ".join(f.name for f in dataclasses.fields(Sampling)) + """
/show              print the sampling
/quit              leave"""


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
            self.how = changed(self.how, rest)
        elif word == "/show":
            print(", ".join(f"{name}={value}" for name, value in dataclasses.asdict(self.how).items()))
        elif word.startswith("/"):
            print(HELP)
        elif line.strip():
            ids = prompt_ids(self.tokenizer, line.strip(), self.input)
            self.input = ""
            say(self.model, self.tokenizer, ids, self.max_new, self.how)
        return True


def changed(how: Sampling, assignment: str) -> Sampling:
    """`temperature=0.8` → the sampling with that value."""
    name, _, value = (part.strip() for part in assignment.partition("="))
    types = {f.name: f.type for f in dataclasses.fields(Sampling)}
    if name not in types:
        raise UserError(f"/set {name}: unknown; there are {', '.join(types)}")
    try:
        return dataclasses.replace(how, **{name: types[name](value)})
    except ValueError:
        raise UserError(f"/set {name}={value}: is no {types[name].__name__}") from None


@command
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minialpaca.chat", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="the run folder of finetune.py")
    sampling_arguments(parser)
    args = parser.parse_args()
    how = sampling_of(args)
    settings = run.settings_of(Path(args.run))
    run.refuse_speechless(settings, args.run)
    if not isinstance(settings, FinetuneConfig):
        raise UserError(f"{args.run}: is a pretraining run and follows no instructions; give a finetune.py run, "
                        "or use python -m minialpaca.generate")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # what is no UTF-8 gets an answer of its own
    chat = Chat(*run.load(args.run, args.checkpoint, run.pick_device(args.device)), args.max_new_tokens, how)
    if sys.stdin.isatty():
        print("Ask something; /help lists the commands.")
        with contextlib.suppress(ImportError):  # Windows has none
            import readline  # noqa: F401  (line editing and history for input())
    while True:
        try:
            going_on = chat.hear(input("> " if sys.stdin.isatty() else ""))
        except EOFError:
            return
        except UserError as error:  # in a conversation a fault is answered, not the end
            print(f"error: {error}", file=sys.stderr)
            continue
        if not going_on:
            return


if __name__ == "__main__":
    main()
