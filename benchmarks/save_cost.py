"""What saving costs: a state of 125 million parameters (weights and AdamW's moments, 1.5 GB) beside one step's time.

    python -m benchmarks.save_cost --rounds 8 --dir /a/disk/to/measure

`step`: one optimiser step on a single row of 256 tokens, the shortest there is, in fp32. `stall`: how long the training waits
for a save, which is the copy of the tensors; the first copy also has to get the memory. `slowed`: how much longer the steps take
while a save is written beside them, summed over these steps. `save`: the writing itself, with nothing beside it. `bare`: that
without the integrity checks (no SHA-256, nothing read back); `no sha`, `no read`: that without the one or the other. The four take
turns in the order, after a save that is not counted: the first one behind the steps takes longer, whichever it is.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch

from minialpaca.config import ModelConfig, OptimConfig
from minialpaca.data.batch import collate
from minialpaca.model import Transformer
from minialpaca.optim import build_adamw
from minialpaca.storage import checkpoint, durable
from minialpaca.storage.background import Background
from minialpaca.tasks import next_token_loss

SIZE = ModelConfig(vocab_size=52_000, d_model=768, n_layers=12, n_heads=12, d_ff=2048, max_seq_len=256)


class NoHash:
    """SHA-256's stand-in that does nothing."""

    def update(self, piece) -> None:
        pass

    def hexdigest(self) -> str:
        return ""


def clocked(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def without(sha: bool, read: bool) -> contextlib.ExitStack:
    """`sha`, `read`: leave out that check."""
    stack = contextlib.ExitStack()
    if sha:
        stack.enter_context(mock.patch.object(durable.hashlib, "sha256", NoHash))
    if read:
        stack.enter_context(mock.patch.object(durable.Writer, "_reads_back", lambda writer: True))
    return stack


def prepared(device: torch.device):
    """(the model, what takes a step, what the state is)"""
    model = Transformer(SIZE).to(device).train()
    optimizer = build_adamw(model, OptimConfig())
    ids = torch.randint(SIZE.vocab_size, (SIZE.max_seq_len + 1,)).tolist()
    batch = collate([(ids, ids)], 3).to(device)

    def step() -> None:
        (next_token_loss(model, batch) / batch.n_supervised).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return model, step, lambda: {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def round_of(run: Path, number: int, step, state, saving: Background) -> dict[str, float]:
    found = {"step": statistics.median(clocked(step) for _ in range(3))}
    found["stall"] = clocked(lambda: saving.start(state(), lambda tensors: checkpoint.save(run, number, tensors, {}, False)))
    steps = []
    while saving.thread.is_alive():
        steps.append(clocked(step))
    saving.join()
    found["slowed"] = max(0.0, sum(steps) - found["step"] * len(steps))
    ways = [("save", (False, False)), ("bare", (True, True)), ("no sha", (True, False)), ("no read", (False, True))]
    checkpoint.save(run, number, saving.copy, {}, False)  # the first one after the steps takes longer, whichever it is
    for name, parts in ways[number % 4:] + ways[:number % 4]:  # in turn, and with an idle disk before each
        os.sync()
        with without(*parts):
            found[name] = clocked(lambda: checkpoint.save(run, number, saving.copy, {}, False))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--dir", default=None, help="a folder on the disk to measure; the system's temporary one if left out")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    model, step, state = prepared(torch.device(args.device))
    step()
    run, saving, rows = Path(tempfile.mkdtemp(dir=args.dir)), Background(), []
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} million parameters, {args.device}, {torch.get_num_threads()} threads")
    try:
        for number in range(args.rounds):
            rows.append(round_of(run, number, step, state, saving))
            print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in rows[-1].items()), flush=True)
    finally:
        shutil.rmtree(run)
    middle = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    print(f"median: the training waits {middle['stall']:.2f} s of a step's {middle['step']:.2f} s ({middle['stall'] / middle['step']:.0%}); "
          f"integrity is {1 - middle['bare'] / middle['save']:.0%} of a save of {middle['save']:.2f} s (SHA-256 "
          f"{1 - middle['no sha'] / middle['save']:.0%}, reading back {1 - middle['no read'] / middle['save']:.0%})")


if __name__ == "__main__":
    main()
