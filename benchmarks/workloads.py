"""What is timed: some work in turns, so that a contestant's process can wait while the others take theirs."""

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch

from benchmarks.contestants import SHAPES, Shape, build
from benchmarks.machine import settle
from benchmarks.runs import ROOT


@dataclass(frozen=True)
class Turn:
    """Seconds of one turn, and what was done in it."""

    seconds: float
    amount: int  # tokens, or bytes
    flops: float = 0.0
    read: float = 0.0  # bytes that have to be read at least
    check: float = 0.0  # a loss, or a sum of tokens: the same for all contestants


def training(name: str, shape: Shape, device: str) -> Callable[[int], Turn]:
    """Some optimiser steps; the loss is that of the first step of the turn."""
    contestant = build(name, shape, device)
    counted = itertools.count()

    def turn(number: int) -> Turn:
        steps = {"cpu": 3, "cuda": 10}[device] if number else 1
        settle(torch.device(device))
        started = time.perf_counter()
        losses = [contestant.step(shape.rows(next(counted), shape.context + 1)) for _ in range(steps)]
        settle(torch.device(device))
        tokens = steps * shape.batch * shape.context
        return Turn(time.perf_counter() - started, tokens, tokens * shape.flops_a_token, check=losses[0])

    return turn


def decoding(name: str, shape: Shape, device: str, batch: int) -> Callable[[int], Turn]:
    """Greedy, from a prompt of an eighth of the context to its end. Each token reads every matrix once, whatever the batch."""
    contestant = build(name, shape, device)
    size = {"int8": 1, "bf16": 2}
    bytes_each = next((size[option] for option in size if option in name), 4)

    def turn(number: int) -> Turn:
        prompts_BT = shape.rows(0, shape.context // 8, batch)
        new = shape.context - shape.context // 8
        settle(torch.device(device))
        started = time.perf_counter()
        said = contestant.answer(prompts_BT, new)
        settle(torch.device(device))
        return Turn(time.perf_counter() - started, batch * new, read=new * bytes_each * shape.matrices, check=float(sum(map(sum, said))))

    return turn


def saving(name: str, shape: Shape, device: str) -> Callable[[int], Turn]:
    """A checkpoint with weights and moments, written, hashed and read back; by torch.save alone for comparison."""
    from benchmarks.contestants.ours import weights
    from minialpaca.storage import checkpoint

    model = weights(shape, device)
    state = {key: {n: p.detach().clone() for n, p in model.named_parameters()} for key in ("model", "exp_avg", "exp_avg_sq")}
    folder = Path(tempfile.mkdtemp())

    def turn(number: int) -> Turn:
        started = time.perf_counter()
        if name == "ours":
            checkpoint.save(folder, number, state, {}, False)
        else:
            torch.save(state, folder / "state.pt")
        return Turn(time.perf_counter() - started, 3 * 4 * sum(p.numel() for p in model.parameters()))

    return turn


def tokenising(name: str, shape: Shape, device: str) -> Callable[[int], Turn]:
    """Text into a token file, as train.py writes one; beside it SentencePiece on one core, line by line, and nothing written."""
    from minialpaca.config import CorpusConfig
    from minialpaca.data import corpus, world
    from minialpaca.tokenizer import Tokenizer

    folder = Path(tempfile.mkdtemp())
    lines = [line for text in world.corpus(world.World.build(0)) for line in text.splitlines() if line] * 4
    source = folder / "world.txt"
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = Tokenizer.train(lines, vocab_size=2048)
    cfg = CorpusConfig(source=(str(source),), documents="line", val_fraction=0.05)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)

    def turn(number: int) -> Turn:
        started = time.perf_counter()
        if name == "ours":
            count = sum(map(len, corpus.prepare(cfg, tokenizer, folder / str(number)))) - 2 * len(lines)
        else:
            with open(source, encoding="utf-8") as text:
                count = sum(len(pieces.encode(line.rstrip("\n"))) for line in text)
        return Turn(time.perf_counter() - started, source.stat().st_size, check=count)

    return turn


def loading(name: str, shape: Shape, device: str) -> Callable[[int], Turn]:
    """Batches of windows of the built-in world."""
    from minialpaca.config import PretrainConfig, load
    from minialpaca.setup import make_tokenizer, with_vocabulary
    from minialpaca.tasks.pretrain import CausalLM

    folder = Path(tempfile.mkdtemp())
    settings = load(PretrainConfig, ROOT / "configs/pretrain.toml", [f"run.dir={folder}", f"train.batch_size={shape.batch}",
                                                                     f"model.max_seq_len={shape.context}"])
    tokenizer = make_tokenizer(settings)
    task = CausalLM(with_vocabulary(settings, tokenizer), tokenizer, folder / "tokens")

    def turn(number: int) -> Turn:
        started = time.perf_counter()
        for i in range(100):
            task.batch(100 * number + i)
        return Turn(time.perf_counter() - started, 100 * shape.batch * shape.context)

    return turn


def starting(name: str, shape: Shape, device: str) -> Callable[[int], Turn]:
    """A process that imports the package, or that says its help."""
    command = {"import": ["-c", "import minialpaca"], "help": ["train.py", "--help"], "python": ["-c", ""]}[name]

    def turn(number: int) -> Turn:
        started = time.perf_counter()
        subprocess.run([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        return Turn(time.perf_counter() - started, 1)

    return turn


WORKLOADS: dict[str, Callable[..., Callable[[int], Turn]]] = {
    "train": training,
    "decode": lambda *how: decoding(*how, 1),
    "decode8": lambda *how: decoding(*how, 8),
    "tokenise": tokenising,
    "load": loading,
    "save": saving,
    "start": starting,
}
