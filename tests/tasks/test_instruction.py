"""Tuning: what is asked of the response alone."""

import pytest
import tiny
import torch
from ragged import Ragged
from ragged import make as trainer_of

from minialpaca import config
from minialpaca.config import FinetuneConfig, OptimConfig
from minialpaca.data.instructions import encode, prompt_ids, prompt_text
from minialpaca.data.rows import Row
from minialpaca.generate import generate
from minialpaca.tasks.instruction import Instruction
from minialpaca.tokenizer import Tokenizer
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
    plain, task = make(), make("base.dropout=0.3", *changes)
    model = tiny.model(vocab_size=tokenizer.vocab_size, max_seq_len=128, dropout=0.3).double()
    cpu = torch.device("cpu")
    assert evaluate(model.train(), task, cpu) == evaluate(model, plain, cpu)

    def loss(of: Instruction) -> float:
        torch.manual_seed(0)
        return float(of.loss_sum(model, of.batch(0)).detach())

    assert abs(loss(task) - loss(plain)) > 1e-3 and loss(task) == loss(task)


def test_twenty_examples_are_learned_by_heart_and_every_greedy_answer_ends(tmp_path):
    """Prompt, mask, shift, end, cache and left padding at once: a slip in one, and an answer is another or goes on."""
    asked = [(verb, noun) for verb in ("Where is", "Who has", "Count", "Name") for noun in ("Mirava", "Olten", "fox", "dog", "river")]
    rows = [Row(f"{verb} {noun}?", "", f"{noun[::-1]}{' ' + verb if i % 3 else ''}.") for i, (verb, noun) in enumerate(asked)]
    tokenizer = Tokenizer.train([prompt_text(row.instruction) + "\n" for row in rows], "bpe", 400)
    examples = [(e.ids, e.labels) for e in (encode(tokenizer, row) for row in rows)]
    model = tiny.model(vocab_size=tokenizer.vocab_size, max_seq_len=max(len(ids) for ids, _ in examples) + 20)
    optim = OptimConfig(lr=0.006, weight_decay=0.0, warmup_steps=5, schedule="constant")
    run = trainer_of(tmp_path, Ragged(examples, 20, examples, 20), optim, model, steps=35)
    first, *_, last = [run.take_step()["loss"] for _ in range(35)]
    assert last < 0.05 < 1 < first
    answers = generate(model.eval(), [prompt_ids(tokenizer, row.instruction) for row in rows], tokenizer.eos)
    assert len({len(answer) for answer in answers}) > 3
    assert answers == [[*tokenizer.encode(row.output), tokenizer.eos] for row in rows]
