"""What loss scaling is worth: the built-in world in fp32, in fp16 with scaling, and in fp16 without.

    python -m benchmarks.loss_scaling --seeds 0 1 2 --out runs/loss-scaling

configs/pretrain.toml, but 16 times its batch (32,768 tokens a step) and 20 steps of warm-up, as on a GPU: each token's share of the mean
is small, and so are the gradients on their way. On a GPU (`--device cuda`) products are computed in fp16. A CPU takes ten to twenty times
as long for those, so there fp32 stands in: what enters and leaves a product, forwards and backwards, is rounded to fp16 and back. Inside
attention and between products it is milder than fp16 itself. A row a seed: validation loss, nats per token.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from benchmarks.runs import ROOT, records, spread
from minialpaca import precision, trainer

WAYS = ("fp32", "fp16 scaled", "fp16 unscaled")
RECIPE = ("train.accumulation=16", "train.eval_every=20", "optim.warmup_steps=20", "samples.count=0", "train.save_every=0")


class RoundedToHalf(torch.autograd.Function):
    """x ↦ the nearest fp16 number, in fp32; its gradient likewise."""

    @staticmethod
    def forward(ctx, x):
        return x.half().float()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.half().float()


class Rounding(TorchFunctionMode):
    """`precision.Casting(torch.float16)` where products are computed in fp32."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function not in precision.SHORT:
            return function(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return RoundedToHalf.apply(function(*map(rounded, args), **{key: rounded(value) for key, value in (kwargs or {}).items()}))


def rounded(value):
    return RoundedToHalf.apply(value) if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value


def train_one(way: str, stand_in: bool, arguments: list[str]) -> None:
    """train.py itself, its precision or its scaler exchanged."""
    import train

    if way == "fp16 unscaled":
        trainer.LossScaler = lambda: precision.LossScaler(scale=1.0, growth=1.0, backoff=1.0)
    if stand_in and way != "fp32":
        really = precision.casting
        precision.casting = lambda dtype: Rounding() if dtype == torch.float16 else really(dtype)
    train.main([str(ROOT / "configs" / "pretrain.toml"), *arguments, f"train.precision={way[:4]}"])


def measured(way: str, seed: int, folder: Path, device: str, changes: list[str]) -> float:
    """The best validation loss. Each run in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.loss_scaling", "--one", way, "--device", device, f"run.dir={folder}",
                           f"run.seed={seed}", f"run.device={device}", *RECIPE, *changes], cwd=ROOT, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"{way}, seed {seed} failed")
    return min(r["val_loss"] for r in records(folder) if "val_loss" in r)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/loss-scaling"))
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("changes", nargs="*", help="section.key=value for train.py")
    args = parser.parse_intermixed_args()
    if args.one:
        return train_one(args.one, args.device == "cpu", args.changes)
    print("| seed | " + " | ".join(WAYS) + " |\n|---|---|---|---|")
    rows = []
    for seed in args.seeds:
        rows.append([measured(way, seed, args.out.resolve() / f"{way.replace(' ', '-')}-{args.device}-{seed}", args.device, args.changes) for way in WAYS])
        print(f"| {seed} | " + " | ".join(f"{value:.4f}" for value in rows[-1]) + " |", flush=True)
    if len(rows) > 1:
        print("| mean ± sd | " + " | ".join(spread(c, 4) for c in zip(*rows)) + " |")
    return None


if __name__ == "__main__":
    main()
