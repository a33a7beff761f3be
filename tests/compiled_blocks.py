"""What compiled blocks say beside uncompiled ones, for test_compiling.py: prints one JSON object.

    python tests/compiled_blocks.py
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tiny
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters

from minialpaca import compiling, precision
from minialpaca.compiling import compile_blocks
from minialpaca.model import Transformer

LENGTHS = range(5, 25)
CASES = {"full": {"dropout": 0.2}, "short": {}}


def made(name: str, compiles: bool) -> Transformer:
    """Compiled, its layers are computed again, too."""
    model = tiny.model(n_layers=3, **CASES[name]).train()
    if compiles:
        compile_blocks(model)
    model.recompute = compiles
    return model


def said(model: Transformer, length: int) -> Tensor:
    tokens_BT = tiny.tokens(3, length, seed=length)
    return F.cross_entropy(model(tokens_BT[:, :-1]).flatten(0, 1), tokens_BT[:, 1:].flatten())


def trained(model: Transformer, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """(loss, the whole gradient) of a text of each length."""
    found = []
    for length in LENGTHS:
        torch.manual_seed(length)
        with precision.casting(dtype):
            loss = said(model, length)
            loss.backward()
        found.append((loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
        model.zero_grad(set_to_none=True)
    return found


def beside(name: str) -> dict:
    """One case by the C++ compiler; what the other is about comes before it, and that is slow."""
    if name != "full":
        compiling.compiled = lambda: torch.compile(compiling.call, dynamic=True, backend="aot_eager")
    torch._dynamo.reset()
    counters.clear()
    models = [made(name, compiles) for compiles in (False, True)]
    with torch.no_grad():
        torch.manual_seed(0)
        one = said(models[0], 9)
        torch.manual_seed(0)
        evaluation = (said(models[1], 9) - one).abs().item() + counters["frames"]["ok"]
    one, other = (trained(model, torch.bfloat16 if name == "short" else torch.float32) for model in models)
    return {"compiled": counters["frames"]["ok"], "graph_breaks": sum(counters["graph_break"].values()), "evaluation": evaluation,
            "loss": max(((a - b).abs() / a).item() for (a, _), (b, _) in zip(one, other)),
            "gradient": max(((a - b).norm() / a.norm()).item() for (_, a), (_, b) in zip(one, other)),
            "same_keys": list(models[0].state_dict()) == list(models[1].state_dict())}


if __name__ == "__main__":
    print(json.dumps({name: beside(name) for name in CASES}))
