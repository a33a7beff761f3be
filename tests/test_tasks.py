"""What each task asks of a model: its loss against loops over the rows as they stand in the file."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import spelled
import tiny
import torch
from spelled import listed

from minialpaca.config import (
    CorpusConfig,
    FinetuneConfig,
    InstructionConfig,
    LossConfig,
    ModelConfig,
    PretrainConfig,
    TrainConfig,
)
from minialpaca.data.batch import collate_masked, collate_sources
from minialpaca.data.instructions import prompt_ids
from minialpaca.objectives import IGNORE
from minialpaca.tasks.instruction import Instruction
from minialpaca.tasks.pretrain import CausalLM, masked_loss, source_loss

ROWS = [("Where does Mirava live?", "In Olten, near the river."), ("Numbers", "12 345"), ("A fox?", "No."),
        ("Who jumps over the dog?", "The quick brown fox jumps over the lazy dog.")]


@pytest.fixture(scope="module")
def instruction(tmp_path_factory) -> Instruction:
    path = tmp_path_factory.mktemp("tasks") / "rows.json"
    path.write_text(json.dumps([{"instruction": i, "input": "", "output": o} for i, o in ROWS]), encoding="utf-8")
    settings = FinetuneConfig(data=InstructionConfig(source=(str(path),), val_fraction=0.0),
                              model=ModelConfig(max_seq_len=200), train=TrainConfig(batch_size=3))
    return Instruction(settings, tiny.tokenizer())


def nats_of(model, prompt: list[int], response: list[int]) -> float:
    """Σ_j −log P(y_j | prompt, y_<j), one prediction at a time from the whole text before it."""
    ids, total = list(prompt), 0.0
    for token in response:
        z = listed(model(torch.tensor([ids]))[0, -1])
        total -= math.log(spelled.softmax(z)[token])
        ids.append(token)
    return total


def test_instruction_tuning_costs_the_nats_of_the_responses(instruction):
    tokenizer = tiny.tokenizer()
    model = tiny.model(vocab_size=tokenizer.vocab_size, max_seq_len=200, init_std=0.3).double()
    answers = {i: [*tokenizer.encode(o), tokenizer.eos] for i, o in ROWS}
    with torch.no_grad():
        expected = sum(nats_of(model, prompt_ids(tokenizer, i), answer) for i, answer in answers.items())
        batches = list(instruction.validation())
        losses = [float(instruction.loss_sum(model, batch)) for batch in batches]
    assert len(losses) == 2 and sum(losses) == pytest.approx(expected, rel=1e-12)
    assert sum(batch.n_supervised for batch in batches) == sum(map(len, answers.values()))


def test_the_instruction_loss_has_a_gradient(instruction):
    model = tiny.model(vocab_size=tiny.tokenizer().vocab_size, max_seq_len=200)
    instruction.loss_sum(model, instruction.batch(0)).backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in model.parameters())


@pytest.mark.parametrize(("eval_batches", "expected"), [(0, 2 / 3), (1, 1 / 1)])
def test_bits_per_byte_by_pencil(eval_batches, expected):
    """One bit for each predicted token, which stand for 1 and 2 bytes; the first is given, not predicted."""
    task = SimpleNamespace(tokenizer=SimpleNamespace(piece_bytes=[b"a", b"bc", b"defghij"]), eval_batches=eval_batches,
                           batch_size=1, val=TokensOnDisk(), val_windows=SimpleNamespace(context=1))
    assert CausalLM.bits_per_byte(task, math.log(2)) == pytest.approx(expected)


class TokensOnDisk:
    ids = np.array([2, 0, 1])

    def __len__(self):
        return len(self.ids)


def test_bits_per_byte_are_the_texts_nats_over_its_bytes(tmp_path):
    """ASCII: a byte a character, and one for the implied space of each document. The first <s> is never a target."""
    lines, tokenizer = [response for _, response in ROWS], tiny.tokenizer()
    (tmp_path / "train.txt").write_text("Where does the fox live? Near the river.", encoding="utf-8")
    (tmp_path / "val.txt").write_text("\n".join(lines), encoding="utf-8")
    source, val_source = (str(tmp_path / "train.txt"),), (str(tmp_path / "val.txt"),)
    data = CorpusConfig(source=source, val_source=val_source, documents="line")
    task = CausalLM(PretrainConfig(data=data, model=ModelConfig(max_seq_len=10)), tokenizer, tmp_path / "run")
    ids = [i for line in lines for i in (tokenizer.bos, *tokenizer.encode(line), tokenizer.eos)]
    n_bytes = sum(len(line) + 1 for line in lines)
    assert task.bits_per_byte(1.5) == pytest.approx(1.5 / math.log(2) * (len(ids) - 1) / n_bytes)


# ── hidden tokens ────────────────────────────────────────────────────────────────────────────────

MASK = 50  # also the first sentinel


def test_the_masked_loss_is_that_of_the_hidden_tokens_seen_from_both_sides():
    model = tiny.model(architecture="encoder").double()
    rows = [([5, MASK, 7, MASK, 9], [IGNORE, 6, IGNORE, 8, IGNORE]), ([MASK, 11], [10, 11])]
    with torch.no_grad():
        expected = -sum(math.log(spelled.softmax(listed(model(torch.tensor([ids]))[0, t]))[y])
                        for ids, labels in rows for t, y in enumerate(labels) if y != IGNORE)
        assert float(masked_loss(model, collate_masked(rows, 3), LossConfig())) == pytest.approx(expected, rel=1e-12)


def test_the_span_loss_is_that_of_the_target_given_the_source():
    model = tiny.model(architecture="encoder_decoder").double()
    rows = [([10, 50, 13, 51], [1, 50, 11, 12, 51, 14, 2]), ([50, 20], [1, 50, 21, 2])]
    with torch.no_grad():
        expected = 0.0
        for source, target in rows:
            logits_TV = model(torch.tensor([target]), sources=model.encode(torch.tensor([source])))[0]
            expected -= sum(math.log(spelled.softmax(listed(logits_TV[t]))[y]) for t, y in enumerate(target[1:]))
        assert float(source_loss(model, collate_sources(rows, 3), LossConfig())) == pytest.approx(expected, rel=1e-12)
