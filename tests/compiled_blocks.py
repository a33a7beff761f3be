"""What compiled blocks say beside uncompiled ones, for test_compiling.py: prints one JSON object.

    python tests/compiled_blocks.py
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tiny
import torch
import torch.nn.functional as F
from ragged import PLAIN, Ragged, make, metrics, ragged
from torch import Tensor
from torch._dynamo.utils import counters

from minialpaca import compiled_forms, compiling, precision
from minialpaca.compiling import compile_blocks
from minialpaca.model import Transformer
from minialpaca.trainer import Trainer

LENGTHS = range(5, 25)
CASES = ("by the compiler", "computed again")  # both with dropped units, and short products: of attention's map wide ones among them


def made(compiles: bool, again: bool) -> Transformer:
    model = tiny.model(n_layers=3, dropout=0.2).train()
    if compiles:
        compile_blocks(model)
    model.recompute = compiles and again
    return model


def said(model: Transformer, length: int) -> Tensor:
    tokens_BT = tiny.tokens(3, length, seed=length)
    return F.cross_entropy(model(tokens_BT[:, :-1]).flatten(0, 1), tokens_BT[:, 1:].flatten())


def trained(model: Transformer) -> list[tuple[Tensor, Tensor]]:
    """(loss, the whole gradient) of a text of each length."""
    found = []
    for length in LENGTHS:
        torch.manual_seed(length)
        with precision.casting(torch.bfloat16):
            loss = said(model, length)
            loss.backward()
        found.append((loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
        model.zero_grad(set_to_none=True)
    return found


def beside(name: str) -> dict:
    """One case by the C++ compiler, which is slow; what the other is about comes before that. There the uncompiled model takes
    the compiled one's forms, too, so that nothing is rounded elsewhere.
    """
    again, by_cpp, where = name == "computed again", compiling.compiled, compiled_forms._compiled_for_a_cpu
    if again:
        compiling.compiled = lambda: torch.compile(compiling.call, dynamic=True, backend="aot_eager")
        compiled_forms._compiled_for_a_cpu = lambda x: True
    torch._dynamo.reset()
    counters.clear()
    models = [made(compiles, again) for compiles in (False, True)]
    compiling.compiled = by_cpp
    with torch.no_grad():
        torch.manual_seed(0)
        one = said(models[0], 9)
        torch.manual_seed(0)
        evaluation = (said(models[1], 9) - one).abs().item() + counters["frames"]["ok"]
    one, other = (trained(model) for model in models)
    compiled_forms._compiled_for_a_cpu = where
    return {"compiled": counters["frames"]["ok"], "graph_breaks": sum(counters["graph_break"].values()), "evaluation": evaluation,
            "loss": max(((a - b).abs() / a).item() for (a, _), (b, _) in zip(one, other)),
            "gradient": max(((a - b).norm() / a.norm()).item() for (_, a), (_, b) in zip(one, other)),
            "same_keys": list(models[0].state_dict()) == list(models[1].state_dict())}


def runs(folder: Path) -> dict[str, list[float]]:
    """The losses of six steps: uncompiled, compiled, and compiled again after the third."""
    def tuned(name: str, compile: str, **train) -> Trainer:
        return make(folder / name, Ragged(ragged(24), 4, ragged(4, seed=1), 4), replace(PLAIN, lr=0.05), steps=6, accumulation=2,
                    compile=compile, **train)

    for compile in ("off", "on"):
        trainer = tuned(compile, compile)
        assert trainer.compiles.compiles is (compile == "on")
        trainer.fit()
    halted = tuned("halted", "on", save_every=3)
    halted._done = lambda: halted.state["step"] >= 3
    halted.fit()
    torch._dynamo.reset()
    tuned("halted", "on").fit()
    return {name: [r["loss"] for r in metrics(folder / name) if "loss" in r] for name in ("off", "on", "halted")}


if __name__ == "__main__":
    found = {name: beside(name) for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        found["runs"] = runs(Path(folder))
    print(json.dumps(found))
