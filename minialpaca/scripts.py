"""What train.py and finetune.py say before and after."""

import torch
from torch import nn

from minialpaca import config
from minialpaca.log import table, visible
from minialpaca.optim import DECAYS, roles
from minialpaca.peft import Adapter, trained_rows

ANSWER, CONTINUATION = "> {}\n{}", "{}|{}"  # a text and what goes on from it stand as one, a bar where the model begins


def show_settings(settings) -> None:
    print(config.to_toml(settings))


def show_parameters(model: nn.Module, device: torch.device) -> None:
    """A line per role: tensors, parameters, and whether weight decay pulls at them."""
    rows = [(role, len(ps), sum(p.numel() for p in ps), "yes" if DECAYS[role] else "no")
            for role, ps in roles(model).items() if ps]
    rows.append(("all", sum(r[1] for r in rows), sum(r[2] for r in rows), ""))
    print(table(rows, ("trained", "tensors", "parameters", "decay")))
    print(f"on {device}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads\n")


def show_trained(adapter: Adapter) -> None:
    """What an adapter trains, like parts of all layers in one line."""
    print(table(trained_rows(adapter), (f"trained: {adapter.cfg.method}", "places", "rank or width", "parameters", "% of base")))


def show_answers(pairs: list[tuple[str, str]], form: str = ANSWER) -> None:
    for asked, answered in pairs:
        print("\n" + visible(form.format(asked, answered)))
