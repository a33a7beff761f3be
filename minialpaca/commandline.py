"""What is asked on a command line, understood before PyTorch is loaded: that takes seconds, and `--help` should not."""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from minialpaca import config
from minialpaca.config import Sampling, field_docs
from minialpaca.errors import UserError, command


DRAFTED = 4  # tokens that a draft runs ahead


def early(module: str, asked: Callable) -> None:
    """Of the module that is run, answer `--help` and refuse what is not understood, while nothing else is imported yet."""
    if module == "__main__":
        command(asked)()


# ── [CONFIG.toml] [section.key=value …] ──────────────────────────────────────────────────────────


def settings_of(form: type, default: str, about: str, arguments: list[str] | None):
    """The config that the arguments (the command line's, where None) ask for; `--help` prints every key with its sentence."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if any(a in ("-h", "--help") for a in arguments):
        name = Path(sys.argv[0]).name
        print(f"{about}\n\nusage: python {name} [CONFIG.toml, default {default}] [section.key=value ...]\n"
              f"\nThe keys and their defaults (the config file lays its values over them):\n{config.describe(form)}")
        sys.exit(0)
    files = [a for a in arguments if "=" not in a]
    if len(files) > 1 or any(f.startswith("-") for f in files):
        raise UserError(f"command line: {' '.join(files)!r}: give at most one config file, and section.key=value "
                        "for the rest; --help lists the keys")
    return config.load(form, files[0] if files else default_config(default), [a for a in arguments if "=" in a])


def default_config(name: str) -> Path:
    """Config files are looked for beside the scripts, so that these run from any folder."""
    return Path(sys.argv[0]).resolve().parent / name


# ── RUN … --option value ─────────────────────────────────────────────────────────────────────────


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line, and not the usage before it."""
        raise UserError(f"command line: {message}; {self.prog} --help tells what there is")


def parser(name: str, about: str) -> argparse.ArgumentParser:
    return Parser(prog=f"python -m minialpaca.{name}", description=about.splitlines()[0])


def add_weights(options: argparse.ArgumentParser) -> None:
    """Which weights, and where."""
    options.add_argument("--checkpoint", choices=("best", "last"), default="best",
                         help="The weights that were best in validation, or the last. (default best)")
    options.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:1 or mps. (default auto)")


def add_sampling(options: argparse.ArgumentParser) -> None:
    sentences = field_docs(Sampling)
    for f in dataclasses.fields(Sampling):
        options.add_argument(f"--{f.name.replace('_', '-')}", type=f.type, default=f.default,
                             help=f"{sentences[f.name]} (default {f.default})")
    options.add_argument("--max-new-tokens", type=int, default=None,
                         help="The longest answer, in tokens; never more than the context has room for, which is the default.")


def add_speed(options: argparse.ArgumentParser) -> None:
    options.add_argument("--int8", action="store_true", help="Hold the matrices in 8 bits with a scale for each row; fast with --compile.")
    options.add_argument("--compile", action="store_true", help="Compile the step for one token first, which takes half a minute, and the next time seconds.")
    options.add_argument("--draft", metavar="RUN", help="A smaller run with the same tokenizer that runs ahead: the same answers, sooner where it is often "
                         "right. --int8 and --compile are then its own.")
    options.add_argument("--draft-tokens", type=int, default=None, help=f"How many tokens it runs ahead. (default {DRAFTED})")


def sampling_of(args: argparse.Namespace) -> Sampling:
    if args.max_new_tokens is not None:
        at_least_one("--max-new-tokens", args.max_new_tokens)
    return Sampling(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Sampling)})


def at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise UserError(f"{name} {value}: must be at least 1")
    return value
