"""One count a step: evaluation, and a step however it is split."""

import math
import random

import numpy as np
import pytest
import torch
from ragged import CPU, MODEL, PLAIN, SPLITS, Opinionated, Ragged, make, ragged, spelled_losses

from minialpaca import trainer
from minialpaca.adversarial import attack_on
from minialpaca.config import AdversarialConfig, ModelConfig, OptimConfig, TrainConfig
from minialpaca.errors import UserError
from minialpaca.model import Transformer
from minialpaca.objectives import IGNORE
from minialpaca.trainer import Trainer, evaluate

# ── evaluation ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_is_the_mean_over_tokens_without_dropout_and_puts_the_mode_back(training):
    rows = ragged(24)
    plain = Transformer(MODEL).double()
    dropping = Transformer(ModelConfig(**{**vars(MODEL), "dropout": 0.5})).double().train(training)
    losses = spelled_losses(plain.eval(), rows)
    wanted = sum(losses).item() / len(losses)
    assert evaluate(dropping, Ragged(rows, 1, rows, 5), CPU)["val_loss"] == pytest.approx(wanted, rel=1e-12)
    assert all(module.training is training for module in dropping.modules())
    means = [sum(one).item() / len(one) for row in rows if (one := spelled_losses(plain, [row]))]
    assert abs(sum(means) / len(means) - wanted) > 1e-3  # the mean of the rows' means would be another number


def test_evaluation_does_not_depend_on_the_batch_size_or_the_neighbours():
    rows, model = ragged(24), Transformer(MODEL).double()
    values = [evaluate(model, Ragged(rows, 1, order, size), CPU)["val_loss"] for size in (1, 5, 16, 24)
              for order in (rows, rows[::-1])]
    assert values == pytest.approx([values[0]] * 8, rel=1e-12)


def test_evaluation_leaves_global_random_state_and_gradients_alone():
    model = Transformer(ModelConfig(**{**vars(MODEL), "dropout": 0.5}))
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    evaluate(model, Ragged(ragged(4), 1, ragged(4), 2), CPU)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert all(p.grad is None for p in model.parameters())


def test_validation_data_without_a_supervised_token_is_refused():
    rows = [([4, 5, 6], [IGNORE] * 3)]
    for val in ([], rows):
        with pytest.raises(UserError, match="the validation data has no supervised token; give more .* objective.noise_rate"):
            evaluate(Transformer(MODEL), Ragged(rows, 1, val), CPU)


# ── one step ──────────────────────────────────────────────────────────────────────────────────────


def three_steps(tmp_path, size, accumulation, optim=PLAIN, n=20):
    """Two whole steps of 8 examples and a last one of 4."""
    run = make(tmp_path, Ragged(ragged(n), size), optim, epochs=1.0, accumulation=accumulation)
    assert run.total_steps == 3
    return [run.take_step() for _ in range(3)], run


@pytest.mark.parametrize("optim", [PLAIN, OptimConfig(lr=0.01, warmup_steps=1, clip_norm=0.05)],
                         ids=["plain", "clipped"])
def test_a_step_does_not_depend_on_how_it_is_split_into_micro_batches(tmp_path, optim):
    """Ragged rows, one of them with nothing to learn alone in its micro-batch, and a short last step."""
    outcomes = [three_steps(tmp_path, *split, optim) for split in SPLITS]
    records, first = outcomes[0]
    for other_records, other in outcomes[1:]:
        for a, b in zip(records, other_records):
            assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-10) and b["lr"] == a["lr"]
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-6)
        for p, q in zip(first.model.parameters(), other.model.parameters()):
            assert torch.allclose(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size, accumulation", SPLITS)
def test_the_logged_loss_and_gradient_are_those_of_the_mean_over_the_steps_tokens(tmp_path, size, accumulation):
    rows = ragged(20)
    run = make(tmp_path, Ragged(rows, size), epochs=1.0, accumulation=accumulation)
    for taken in (rows[:8], rows[8:16], rows[16:]):  # the last window counts its own tokens
        losses = spelled_losses(run.model, taken)
        mean = sum(losses) / len(losses)
        gradients = torch.autograd.grad(mean, list(run.model.parameters()))
        record = run.take_step()
        assert record["loss"] == pytest.approx(mean.item(), rel=1e-6)
        assert record["grad_norm"] == pytest.approx(math.sqrt(sum((g**2).sum().item() for g in gradients)), rel=1e-10)


def test_a_step_is_adamw_on_the_clipped_gradient_at_the_schedules_rate(tmp_path):
    optim = OptimConfig(lr=0.1, warmup_steps=4, clip_norm=0.5, weight_decay=0.3, adam_eps=1e-3)
    run = make(tmp_path, Ragged(ragged(8), 4), optim, steps=6, accumulation=2)
    twin = Transformer(MODEL).double()
    losses = spelled_losses(twin, ragged(8))
    (sum(losses) / len(losses)).backward()
    norm = math.sqrt(sum((p.grad**2).sum().item() for p in twin.parameters()))
    assert norm > 0.5
    with torch.no_grad():
        for name, p in twin.named_parameters():
            g = p.grad * 0.5 / norm
            p.mul_(1 - 0.025 * (0.0 if "norm" in name else 0.3)).sub_(0.025 * g / (g.abs() + 1e-3))  # m̂ = g, √v̂ = |g|
    assert run.take_step()["lr"] == 0.025
    for (name, p), q in zip(twin.named_parameters(), run.model.parameters()):
        assert torch.allclose(p, q, rtol=1e-9, atol=1e-12), name
    assert all(p.grad is None for p in run.model.parameters())


@pytest.mark.parametrize("n, size, accumulation, epochs, batches, steps", [
    (20, 8, 1, 1.0, 3, 3), (20, 4, 2, 1.0, 5, 3), (20, 4, 2, 2.0, 10, 5), (20, 4, 8, 1.0, 5, 1),
    (20, 4, 1, 0.5, 2, 2), (20, 4, 1, 0.01, 1, 1), (21, 4, 3, 1.5, 9, 3),
])
def test_epochs_become_batches_and_batches_become_steps(tmp_path, n, size, accumulation, epochs, batches, steps):
    run = make(tmp_path, Ragged(ragged(n), size), epochs=epochs, accumulation=accumulation)
    assert (run.total_batches, run.total_steps) == (batches, steps)
    taken = [len(run._micro_batches(step)) for step in range(steps)]
    assert sum(taken) == batches and taken[:-1] == [accumulation] * (steps - 1) and 0 < taken[-1] <= accumulation


def test_where_a_device_only_queues_its_work_each_micro_batch_is_asked_for_once_a_step_ahead(monkeypatch, tmp_path):
    """And the run is the same to the bit."""
    def losses(folder):
        task = Ragged(ragged(20), 4)
        asked, really = [], task.batch
        task.batch = lambda number: asked.append(number) or really(number)
        run = make(tmp_path / folder, task, epochs=2.0, accumulation=3)
        found = [(run.take_step()["loss"], len(asked)) for _ in range(run.total_steps)]
        assert asked == list(range(10)) and not run.ready.get(run.total_steps)
        return zip(*found)

    now, counts = losses("now")
    assert counts == (3, 6, 9, 10)
    monkeypatch.setattr(trainer, "queues", lambda device: True)
    ahead, counts = losses("ahead")
    assert ahead == now and counts == (6, 9, 10, 10)


def test_a_number_of_steps_goes_before_epochs(tmp_path):
    run = make(tmp_path, Ragged(ragged(20), 4), steps=7, epochs=9.0, accumulation=3)
    assert (run.total_batches, run.total_steps) == (21, 7)


def test_a_step_without_a_supervised_token_is_refused(tmp_path):
    rows = [([4, 5, 6], [IGNORE] * 3)] * 4
    run = make(tmp_path, Ragged(rows, 2), steps=2, accumulation=2)
    before = [p.clone() for p in run.model.parameters()]
    with pytest.raises(UserError, match="step 1: no supervised token in its micro-batches; raise train.batch_size or.* objective.noise_rate"):
        run.take_step()
    assert all(torch.equal(p, q) for p, q in zip(run.model.parameters(), before)) and run.state["step"] == 0


def test_an_attacks_passes_drop_the_same_units(tmp_path):
    model = Transformer(ModelConfig(**{**vars(MODEL), "dropout": 0.4})).double()
    attack = attack_on(model.embed, AdversarialConfig("fgm", 1e-9), False)
    made = Trainer(model, Ragged(ragged(4), 2), PLAIN, TrainConfig(steps=2, accumulation=2), 0, tmp_path, attack=attack)
    record = made.take_step()
    assert record["adversarial_loss"] == pytest.approx(record["loss"], rel=1e-6)


def test_virtual_passes_drop_the_same_units(tmp_path):
    model = Transformer(ModelConfig(**{**vars(MODEL), "dropout": 0.4})).double()
    attack = attack_on(model.embed, AdversarialConfig("vat", 1e-6), False)
    made = Trainer(model, Opinionated(ragged(4), 2), PLAIN, TrainConfig(steps=2, accumulation=2), 0, tmp_path, attack=attack)
    assert 0 <= made.take_step()["virtual_loss"] < 1e-9


def test_an_attacked_step_does_not_depend_on_how_it_is_split_into_micro_batches(tmp_path):
    found = []
    for size in (8, 4, 2):
        model = Transformer(MODEL, 3).double()
        attack = attack_on(model.embed, AdversarialConfig("fgm", 0.5), False)
        made = Trainer(model, Ragged(ragged(8), size), PLAIN, TrainConfig(steps=1, accumulation=8 // size), 0, tmp_path / str(size),
                       attack=attack)
        record = made.take_step()
        found.append((record["loss"], record["adversarial_loss"], record["grad_norm"]))
    assert found[1:] == [pytest.approx(found[0], rel=1e-9)] * 2 and found[0][1] > found[0][0]


def test_dropout_differs_between_steps_and_between_micro_batches(tmp_path):
    """One batch again and again at learning rate almost 0: the loss still changes, because other activations drop."""
    model = Transformer(ModelConfig(**{**vars(MODEL), "dropout": 0.4})).double()
    optim = OptimConfig(lr=1e-12, schedule="constant", warmup_steps=0)
    one = make(tmp_path, Ragged(ragged(2), 2), optim, model, steps=9, accumulation=1)
    losses = [one.take_step()["loss"] for _ in range(3)]
    both = make(tmp_path, Ragged(ragged(2), 2), optim, model, steps=9, accumulation=2)
    assert len({round(x, 6) for x in losses}) == 3 and abs(both.take_step()["loss"] - losses[0]) > 1e-6
