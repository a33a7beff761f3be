"""What train.py and finetune.py have in common: the command line, and what is said before and after."""

import sys
from pathlib import Path

import torch
from torch import nn

from minialpaca import config
from minialpaca.errors import UserError
from minialpaca.log import table, visible
from minialpaca.optim import DECAYS, roles

ANSWER, CONTINUATION = "> {}\n{}", "{}|{}"  # a text and what goes on from it stand as one, a bar where the model begins


def parse(form: type, default: str, about: str, arguments: list[str]):
    """`[CONFIG.toml] [section.key=value …]` → the config; `--help` prints every key with its sentence."""
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


def show_settings(settings) -> None:
    print(config.to_toml(settings))


def show_parameters(model: nn.Module, device: torch.device) -> None:
    """A line per role: tensors, parameters, and whether weight decay pulls at them."""
    rows = [(role, len(ps), sum(p.numel() for p in ps), "yes" if DECAYS[role] else "no")
            for role, ps in roles(model).items() if ps]
    rows.append(("all", sum(r[1] for r in rows), sum(r[2] for r in rows), ""))
    print(table(rows, ("trained", "tensors", "parameters", "decay")))
    print(f"on {device}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads\n")


def show_answers(pairs: list[tuple[str, str]], form: str = ANSWER) -> None:
    for asked, answered in pairs:
        print("\n" + visible(form.format(asked, answered)))
