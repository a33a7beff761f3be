"""How a run goes: its folder, the loss, the optimiser, steps and evaluations, samples."""

import math
import typing
from dataclasses import dataclass

from minialpaca.config.rules import check, is_device


@dataclass(frozen=True)
class RunConfig:
    SECTION: typing.ClassVar[str] = "run"

    dir: str = "runs/pretrain"
    """The folder that holds everything about this run."""
    seed: int = 0
    """Fixes initial weights, data order and dropout; two runs with one seed are equal bit for bit on a CPU with the same number of threads."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1` or `mps`."""
    resume: str = "auto"
    """`auto` continues the run found in the folder; `never` refuses a folder that already holds one."""
    allow_change: bool = False
    """Whether a run may go on with other values of optim, train, loss, adversarial or samples than it began with; that is recorded."""

    def __post_init__(self):
        check(self, {
            "dir": (bool(self.dir.strip()), "name a folder"),
            "seed": (0 <= self.seed < 2**32, "must lie in 0 … 2³² − 1"),
            "device": (is_device(self.device), "use auto, cpu, cuda, cuda:N or mps"),
            "resume": (self.resume in ("auto", "never"), "use auto or never"),
        })


@dataclass(frozen=True)
class LossConfig:
    SECTION: typing.ClassVar[str] = "loss"

    l2: float = 0.0
    """λ of L_adapt = L + λ‖θ‖₂², θ being all that is trained; AdamW's weight_decay is another thing (docs/LEDGER.md)."""
    label_smoothing: float = 0.0
    """The part of the target's probability that is spread evenly over all classes, in training; groups that take several labels are left alone."""
    r_drop: float = 0.0
    """α of R-Drop: how much two passes with different dropout have to agree; each step then takes two passes."""

    def __post_init__(self):
        check(self, {
            "l2": (0 <= self.l2 < 1e30, "must not be negative, and small enough for fp32"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "must be at least 0 and below 1"),
            "r_drop": (0 <= self.r_drop < 1e30, "must not be negative, and small enough for fp32"),
        })


@dataclass(frozen=True)
class OptimConfig:
    SECTION: typing.ClassVar[str] = "optim"

    lr: float = 1e-3
    """The highest learning rate."""
    schedule: str = "cosine"
    """After the warm-up: `cosine` or `linear` down to `min_lr_ratio` · lr at the last step, or `constant`."""
    min_lr_ratio: float = 0.1
    """Where the schedule ends, as a part of lr."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises in a straight line to lr."""
    weight_decay: float = 0.1
    """AdamW's decoupled decay, on matrices and embeddings; norms and biases are spared."""
    beta1: float = 0.9
    """AdamW's decay rate of the first moment."""
    beta2: float = 0.95
    """AdamW's decay rate of the second moment."""
    adam_eps: float = 1e-8
    """AdamW's ε in the denominator."""
    clip_norm: float = 1.0
    """The largest L2 norm of the whole gradient; 0 turns clipping off."""

    def __post_init__(self):
        check(self, {
            "lr": (0 < self.lr < math.inf, "must be positive and finite"),
            "schedule": (self.schedule in ("cosine", "linear", "constant"), "use cosine, linear or constant"),
            "min_lr_ratio": (0 <= self.min_lr_ratio <= 1, "must lie in 0 … 1"),
            "warmup_steps": (self.warmup_steps >= 0, "must not be negative"),
            "weight_decay": (0 <= self.weight_decay * self.lr < 1, f"must not be negative, and times optim.lr = {self.lr:g} below 1: a step takes that part of a weight away"),
            "beta1": (0 <= self.beta1 < 1, "must be at least 0 and below 1"),
            "beta2": (0 <= self.beta2 < 1, "must be at least 0 and below 1"),
            "adam_eps": (0 < self.adam_eps < 1, "must be positive and small"),
            "clip_norm": (0 <= self.clip_norm < math.inf, "must be a finite number and not negative; 0 turns clipping off"),
        })


@dataclass(frozen=True)
class TrainConfig:
    SECTION: typing.ClassVar[str] = "train"

    steps: int = 0
    """Optimiser steps; 0 takes `epochs`."""
    epochs: float = 1.0
    """Passes over the training data, where `steps` is 0."""
    batch_size: int = 16
    """Sequences in one micro-batch."""
    accumulation: int = 1
    """Micro-batches in one optimiser step."""
    eval_every: int = 200
    """Steps between evaluations (there is one before the first step and one after the last)."""
    eval_batches: int = 0
    """Validation batches in one evaluation, always the same ones; 0 takes all."""
    precision: str = "auto"
    """What products of matrices are computed in: `fp32`, `bf16`, `fp16` (with loss scaling), or `auto`: bf16 where a GPU computes it natively, fp16 on older ones, fp32 elsewhere. Weights, gradients and sums are fp32 in any case."""
    deterministic: bool = False
    """Equal bits or none: only algorithms whose sums do not depend on timing (slower on a GPU), tried out before the first step; continued in the same surroundings only."""
    parallel: str = "ddp"
    """How several processes (torchrun's) share a step: `ddp`, each holds the whole model, and gradients are added up once a step; `fsdp`, each holds a part of weights, gradients and moments, and gathers a layer when it is computed: less memory, more traffic, the same sums."""
    recompute: bool = False
    """Whether layers keep nothing but their input and are computed again on the way back (activation checkpointing): less memory, a third more time, the same numbers."""
    compile: str = "auto"
    """Whether layers are compiled by torch.compile before the first step: `on`, `off`, or `auto`: in long runs on a GPU, or in bf16 on a CPU that has a C++ compiler, where it was measured to pay. The numbers are the same up to rounding."""
    save_every: int = 0
    """Steps between checkpoints besides those at evaluations; 0 for none."""
    keep: int = 1
    """How many of the newest checkpoints stay, besides the `best`."""
    best_by: str = "val_loss"
    """What makes a checkpoint the `best`: `val_loss`, or in classification `val_accuracy` or `val_macro_f1`."""
    patience: int = 0
    """Stop early after this many evaluations without a better `best_by`; 0 never does."""

    def __post_init__(self):
        check(self, {name: (getattr(self, name) >= 1, "must be at least 1")
                     for name in ("eval_every", "keep")})
        check(self, {name: (1 <= getattr(self, name) <= 1_000_000, "must lie in 1 … 1,000,000") for name in ("batch_size", "accumulation")})
        check(self, {name: (getattr(self, name) >= 0, "must not be negative")
                     for name in ("steps", "eval_batches", "save_every", "patience")})
        check(self, {"epochs": (0 < self.epochs < math.inf, "must be positive and finite"),
                     "precision": (self.precision in ("auto", "fp32", "bf16", "fp16"), "use auto, fp32, bf16 or fp16"),
                     "compile": (self.compile in ("auto", "on", "off"), "use auto, on or off"),
                     "parallel": (self.parallel in ("ddp", "fsdp"), "use ddp or fsdp"),
                     "best_by": (self.best_by in ("val_loss", "val_accuracy", "val_macro_f1"),
                                 "use val_loss, val_accuracy or val_macro_f1")})


@dataclass(frozen=True)
class SampleConfig:
    SECTION: typing.ClassVar[str] = "samples"

    prompts: tuple[str, ...] = ()
    """What is asked at each evaluation and at the end (text to go on from, or instructions); where empty, from the validation data."""
    count: int = 4
    """How many validation prompts are taken where `prompts` is empty."""
    max_new_tokens: int = 48
    """The longest sample, in tokens."""

    def __post_init__(self):
        check(self, {"count": (0 <= self.count <= 1000, "must lie in 0 … 1,000"),
                     "max_new_tokens": (self.max_new_tokens >= 1, "must be at least 1")})
