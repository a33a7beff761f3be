"""minialpaca: its trainer's own step, its own generation."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.contestants import Shape
from minialpaca.adversarial import attack_on
from minialpaca.config import AdapterConfig, AdversarialConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from minialpaca.data.batch import TextBatch, collate
from minialpaca.decode import swift
from minialpaca.generate import generate
from minialpaca.model import Transformer, init_std
from minialpaca.peft import apply
from minialpaca.precision import DTYPES
from minialpaca.tasks import Task, next_token_loss
from minialpaca.trainer import Trainer

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ADAPTERS = {"lora": AdapterConfig("lora", targets=ATTENTION, rank=8),
            "adalora": AdapterConfig("adalora", targets=ATTENTION, rank=12, target_rank=8)}
NEVER = -1


def weights(shape: Shape, device: str = "cpu") -> Transformer:
    """On a GPU drawn there: to draw seven billion numbers takes a CPU a minute."""
    cfg = ModelConfig(vocab_size=shape.vocab_size, d_model=shape.d_model, n_layers=shape.n_layers, n_heads=shape.n_heads,
                      d_ff=shape.d_ff, max_seq_len=shape.context, tie_embeddings=False)
    if device == "cpu":
        return Transformer(cfg)
    with torch.device("meta"):
        model = Transformer(cfg)
    model = model.to(DTYPES[shape.held]).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            std = init_std(cfg, name)
            parameter.fill_(1.0) if std is None else parameter.normal_(0.0, std, generator=generator)
    return model


class Given(Task):
    """The rows that everybody is given: those of a step's number."""

    tokenizer_sha256, data_sha256, loss = "", "", LossConfig()

    def __init__(self, shape: Shape):
        self.shape = shape

    def batches_per_epoch(self) -> int:
        return 1

    def longest(self) -> tuple[int, int]:
        return self.shape.context, 0

    def batch(self, number: int) -> TextBatch:
        return collate([(ids, ids) for ids in self.shape.rows(number, self.shape.context + 1)], pad=3)

    def loss_sum(self, model, batch):
        return next_token_loss(model, batch)

    def validation(self):
        return []


class Ours:
    OPTIONS = {"bf16", "compile", "int8", "frozen", "recompute", *ADAPTERS, "fgm"}

    def __init__(self, shape: Shape, options: set[str], device: str):
        self.model, self.options, self.given = weights(shape, device), options, Given(shape)
        self.shape, self.device, self.stepper = shape, torch.device(device), None
        self.trainer = None

    def _trainer(self) -> Trainer:
        adapter = next((apply(self.model, cfg) for name, cfg in ADAPTERS.items() if name in self.options), None)
        self.model.recompute = "recompute" in self.options
        attack = attack_on(self.model.embed, AdversarialConfig("fgm", epsilon=0.1) if "fgm" in self.options else AdversarialConfig(), False)
        train = TrainConfig(batch_size=self.shape.batch, steps=10**6, precision="bf16" if "bf16" in self.options else "fp32",
                            compile="on" if "compile" in self.options else "off")
        folder = Path(tempfile.mkdtemp())
        return Trainer(self.model, self.given, OptimConfig(), train, 0, folder, adapter=adapter, attack=attack)

    def step(self, tokens_BT: Tensor) -> float:
        """Its trainer asks for the rows itself, as it would for a run's."""
        self.trainer = self.trainer or self._trainer()
        return self.trainer.take_step()["loss"]

    def answer(self, prompts_BT: Tensor, new: int) -> list[list[int]]:
        if self.stepper is None:
            model = self.model.bfloat16() if "bf16" in self.options else self.model
            self.stepper = swift(model, "int8" in self.options, "compile" in self.options)
        return generate(self.stepper, prompts_BT.tolist(), NEVER, new)
