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
    ObjectiveConfig,
    PretrainConfig,
    TrainConfig,
)
from minialpaca.data import noise
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


def test_bits_per_byte_by_pencil():
    """One bit for each of two predicted tokens, which stand for 1 and 2 bytes; the first is given, not predicted."""
    task = SimpleNamespace(tokenizer=SimpleNamespace(piece_bytes=[b"a", b"bc", b"defghij"]),
                           val=SimpleNamespace(ids=np.array([2, 0, 1])))
    assert CausalLM.bits_per_byte(task, math.log(2)) == pytest.approx(2 / 3)


def test_bits_per_byte_are_the_texts_nats_over_its_bytes(tmp_path):
    """ASCII: a byte a character, and one for the implied space of each document. The first <s> is never a target."""
    lines, tokenizer = [response for _, response in ROWS], tiny.tokenizer()
    (tmp_path / "train.txt").write_text("Where does the fox live? Near the river.", encoding="utf-8")
    (tmp_path / "val.txt").write_text("\n".join(lines), encoding="utf-8")
    data = CorpusConfig(source=(str(tmp_path / "train.txt"),), val_source=(str(tmp_path / "val.txt"),), documents="line")
    task = CausalLM(PretrainConfig(data=data, model=ModelConfig(max_seq_len=10)), tokenizer, tmp_path / "run")
    ids = [i for line in lines for i in (tokenizer.bos, *tokenizer.encode(line), tokenizer.eos)]
    n_bytes = sum(len(line) + 1 for line in lines)
    assert task.bits_per_byte(1.5) == pytest.approx(1.5 / math.log(2) * (len(ids) - 1) / n_bytes)


# ── hidden tokens ────────────────────────────────────────────────────────────────────────────────

MASK = 50  # ids 0 … 3 are control, 4 … 49 ordinary, from 50 on added
VOCABULARY = noise.Vocabulary(frozenset(range(4)), np.arange(4, 50), MASK)


def test_masking_follows_its_rates_and_learns_exactly_what_it_chose():
    """Of 20,000 tokens a rate p is met within 5 √(p (1 − p) / n); the key is fixed. A random token may be the same one."""
    ids = np.concatenate((np.zeros(100, dtype=int), 4 + np.arange(20_000) % 46))
    noised, labels = noise.mask_tokens(ids, ObjectiveConfig(noise_rate=0.3, random_rate=0.2, keep_rate=0.1), VOCABULARY, 7)
    chosen = labels != IGNORE
    assert (labels[chosen] == ids[chosen]).all() and (noised[~chosen] == ids[~chosen]).all() and not chosen[:100].any()
    shown = noised[chosen]
    counted = (chosen[100:].mean(), (shown == MASK).mean(), (shown == ids[chosen]).mean())
    for found, rate, n in zip(counted, (0.3, 0.7, 0.1 + 0.2 / 46), (20_000, chosen.sum(), chosen.sum())):
        assert abs(found - rate) < 5 * math.sqrt(rate * (1 - rate) / n)
    assert set(shown) == {*range(4, 50), MASK}


def test_span_noise_hides_as_many_tokens_in_as_many_stretches_as_it_says():
    firsts = set()
    for n, rate, mean, key in [(40, 0.15, 3.0, 0), (40, 0.15, 3.0, 1), (101, 0.5, 2.0, 2), (60, 0.3, 1.0, 3), (2, 0.9, 3, 4)]:
        hidden = noise.span_noise(n, rate, mean, key)
        begins = sum(bool(hidden[i] and not hidden[i - 1]) for i in range(1, n))
        assert len(hidden) == n and not hidden[0] and hidden[-1]  # shown first, hidden last
        assert sum(map(bool, hidden)) == min(round(n * rate), n - 1)
        assert begins == max(1, round(round(n * rate) / mean))
        firsts.add(int(hidden.argmax()))
    assert len(firsts) > 2  # the key matters


def test_spans_become_sentinels_by_pencil():
    """a B C d <s> E F → a ⟨0⟩ d <s> ⟨1⟩, and <s> ⟨0⟩ B C ⟨1⟩ E F ⟨2⟩ </s>; a control id that was to be hidden is shown."""
    ids = np.array([10, 11, 12, 13, 1, 14, 15])
    hidden = np.array([False, True, True, False, True, True, True])
    source, target = noise.corrupt_spans(ids, hidden, VOCABULARY, bos=1, eos=2)
    assert source.tolist() == [10, 50, 13, 1, 51]
    assert target.tolist() == [1, 50, 11, 12, 51, 14, 15, 52, 2]


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
