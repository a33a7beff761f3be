"""Tuning: what is asked of the response alone."""

import pytest
import tiny
import torch

from minialpaca import config
from minialpaca.config import FinetuneConfig
from minialpaca.tasks.instruction import Instruction
from minialpaca.trainer import evaluate


@pytest.fixture
def make(sources, tokenizer):
    def made(*changes: str) -> Instruction:
        settings = config.load(FinetuneConfig, sources / "finetune.toml", [f"data.source={sources / 'alpaca.json'}", *changes])
        return Instruction(settings, tokenizer)

    return made


@pytest.mark.parametrize("changes", [["loss.label_smoothing=0.3"], ["loss.r_drop=5"],
                                     ["loss.label_smoothing=0.1", "loss.r_drop=1"]], ids=" ".join)
def test_smoothing_and_r_drop_are_for_training_alone(make, tokenizer, changes):
    plain, task = make(), make(*changes)
    model = tiny.model(vocab_size=tokenizer.vocab_size, max_seq_len=128, dropout=0.3).double()
    cpu = torch.device("cpu")
    assert evaluate(model.train(), task, cpu) == evaluate(model, plain, cpu)

    def loss(of: Instruction) -> float:
        torch.manual_seed(0)
        return float(of.loss_sum(model, of.batch(0)).detach())

    assert abs(loss(task) - loss(plain)) > 1e-3 and loss(task) == loss(task)
