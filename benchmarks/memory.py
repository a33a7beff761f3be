"""The memory estimate beside the measured peak: full tuning and LoRA, several sizes, each in a process of its own.

    python -m benchmarks.memory
    python -m benchmarks.memory --device cuda

Five optimiser steps of the trainer itself, on random tokens, with a save behind the first. On a CPU the peak is how far the process's largest resident size
(VmHWM) rises above what importing and one tiny step took; on CUDA it is torch.cuda.max_memory_allocated. A process's size is also
what its allocator holds back: glibc keeps freed tensors of up to 32 MiB in pieces that the next ones do not fit. So each case runs
twice: with MALLOC_MMAP_THRESHOLD_=262144, which gives them back, and as it comes. The seconds are those of the last four steps.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from benchmarks import contestants
from benchmarks.contestants import Shape
from benchmarks.runs import alone, peak_bytes

SHAPES = {
    "small": Shape(4096, 256, 4, 4, 688, 256, 8),
    "middle": Shape(8192, 384, 6, 6, 1024, 256, 8),
    "large": Shape(8192, 512, 8, 8, 1376, 256, 8),
    "124M": contestants.SHAPES["gpt2"], "1B": contestants.SHAPES["1b"], "7B, held in bf16": contestants.SHAPES["7b"],
}
VARIANTS = {"": {}, "recompute": {"recompute": True}, "accumulation 2": {"accumulation": 2}}
CASES = {"cpu": [*((shape, method, "") for shape in list(SHAPES)[:3] for method in ("none", "lora")),
                 *(("middle", method, variant) for method in ("none", "lora") for variant in list(VARIANTS)[1:])],
         "cuda": [("124M", "none", ""), ("7B, held in bf16", "lora", "recompute"), ("1B", "none", ""), ("124M", "lora", ""),
                  ("124M", "none", "recompute"), ("1B", "none", "recompute"), ("7B, held in bf16", "lora", "")]}


def trainer_of(shape: Shape, method: str, variant: str, device: str, folder: str):
    """A trainer on random tokens, every row as long as the context."""
    from benchmarks.contestants.ours import Given, weights
    from minialpaca.config import AdapterConfig, ModelConfig, OptimConfig, TrainConfig
    from minialpaca.model import Transformer
    from minialpaca.peft import apply
    from minialpaca.trainer import Trainer

    train = TrainConfig(batch_size=shape.batch, steps=5, **VARIANTS[variant])
    if device == "cuda":
        model = weights(shape, device)
    else:  # tied, as most runs on a CPU are
        model = Transformer(ModelConfig(vocab_size=shape.vocab_size, d_model=shape.d_model, n_layers=shape.n_layers, n_heads=shape.n_heads,
                                        d_ff=shape.d_ff, max_seq_len=shape.context))
    model.recompute = train.recompute
    adapter = apply(model, AdapterConfig(method, **({"targets": ("q_proj", "k_proj", "v_proj", "o_proj")} if method == "lora" else {})))
    return Trainer(model, Given(shape), OptimConfig(), train, 0, Path(folder), adapter=adapter)


def worker(shape: str, method: str, variant: str, device: str) -> dict[str, int]:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        trainer_of(Shape(64, 16, 1, 2, 24, 8, 2), method if method == "none" else "lora", "", device, folder).take_step()
        before = peak_bytes()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer = trainer_of(SHAPES[shape], method, variant, device, folder)
        trainer.take_step()
        if device == "cpu":  # from the first save on there is a copy of what is saved
            trainer.keeper.save(trainer.state, improved=False)
            trainer.keeper.saving.join()
        started = time.perf_counter()
        for _ in range(4):
            trainer.take_step()
        seconds = time.perf_counter() - started
    measured = torch.cuda.max_memory_allocated() if device == "cuda" else peak_bytes() - before
    return {"estimated": trainer.memory().peak, "measured": measured, "seconds": seconds, "parameters": sum(p.numel() for p in trainer.model.parameters())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(*args.worker, args.device)))
        return
    print("| model | M parameters | trained | estimated MiB | measured MiB | estimated / measured | s | as it comes MiB | s |\n"
          "|---|---|---|---|---|---|---|---|---|")
    for case in CASES[args.device]:
        found, loose = (alone("memory", "--device", args.device, "--worker", *case, **extra)
                        for extra in ({"MALLOC_MMAP_THRESHOLD_": "262144"}, {})) if args.device == "cpu" else 2 * [
                            alone("memory", "--device", "cuda", "--worker", *case)]
        ours, theirs = found["estimated"] / 2**20, found["measured"] / 2**20
        trained = {"none": "all", "lora": "LoRA"}[case[1]] + (f", {case[2]}" if case[2] else "")
        print(f"| {case[0]} | {found['parameters'] / 1e6:.1f} | {trained} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.2f} | "
              f"{found['seconds']:.1f} | {loose['measured'] / 2**20:,.0f} | {loose['seconds']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
