"""The loop: one count per step, nothing broken reaches a weight, and a stop loses nothing."""

import json
import math
import random
import shutil

import numpy as np
import pytest
import spelled
import torch

from minialpaca import trainer
from minialpaca.adversarial import attack_on
from minialpaca.config import AdversarialConfig, ModelConfig, OptimConfig, TrainConfig
from minialpaca.data.batch import collate
from minialpaca.errors import UserError
from minialpaca.model import Transformer
from minialpaca.objectives import IGNORE
from minialpaca.optim import learning_rate
from minialpaca.storage import checkpoint
from minialpaca.tasks import Task, next_token_loss
from minialpaca.trainer import Trainer, evaluate

CPU = torch.device("cpu")
MODEL = ModelConfig(vocab_size=11, d_model=8, n_layers=1, n_heads=2, d_ff=12, max_seq_len=16, init_std=0.3)
PLAIN = OptimConfig(lr=0.01, schedule="constant", warmup_steps=0, clip_norm=0.0, weight_decay=0.0)


def ragged(n, seed=0):
    """(ids, labels) of different lengths with different numbers of labels; the fourth has none."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        ids = [rng.randrange(4, 11) for _ in range(rng.randrange(3, 15))]
        first = len(ids) if i % 20 == 3 else rng.randrange(len(ids) - 1)
        rows.append((ids, [IGNORE] * first + ids[first:]))
    return rows


class Ragged(Task):
    """A task over given rows, in their order, epoch after epoch."""

    tokenizer_sha256 = "no tokenizer"

    def __init__(self, rows, size, val=(), val_size=1):
        self.rows, self.size, self.val, self.val_size = rows, size, list(val), val_size

    def batches_per_epoch(self):
        return math.ceil(len(self.rows) / self.size)

    def batch(self, number):
        first = number % self.batches_per_epoch() * self.size
        return collate(self.rows[first:first + self.size], 3)

    def loss_sum(self, model, batch):
        return next_token_loss(model, batch)

    def validation(self):
        return [collate(self.val[i:i + self.val_size], 3) for i in range(0, len(self.val), self.val_size)]


def spelled_losses(model, rows):
    """−log P of each supervised token, row by row without padding."""
    losses = []
    for ids, labels in rows:
        log_p = model(torch.tensor([ids]))[0].double().log_softmax(-1)
        losses += [-log_p[t, labels[t + 1]] for t in range(len(ids) - 1) if labels[t + 1] != IGNORE]
    return losses


def make(tmp_path, task, optim=PLAIN, model=None, observe=None, **train):
    model = model or Transformer(MODEL).double()
    extra = {"observe": observe} if observe else {}
    tmp_path.mkdir(exist_ok=True)
    return Trainer(model, task, optim, TrainConfig(**{"eval_every": 1000, **train}), 0, tmp_path, **extra)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


# ── evaluation ───────────────────────────────────────────────────────────────────────────────────


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


# ── one step ─────────────────────────────────────────────────────────────────────────────────────

SPLITS = [(8, 1), (4, 2), (2, 4), (1, 8)]


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


# ── λ‖θ‖² ────────────────────────────────────────────────────────────────────────────────────────

L2 = 0.03


def with_l2(tmp_path, split=(8, 1), optim=PLAIN, l2=L2, model=None, **changes):
    model = model or Transformer(ModelConfig(**{**vars(MODEL), **changes})).double()
    tmp_path.mkdir(exist_ok=True)
    return Trainer(model, Ragged(ragged(8), split[0]), optim, TrainConfig(steps=3, accumulation=split[1]), 0, tmp_path, l2=l2)


def gradients_before_the_update(run):
    """What clip_by_global_norm finds, by parameter."""
    found = {}
    run.optimizer.step = lambda: found.update((n, p.grad.clone()) for n, p in run.model.named_parameters()
                                              if p.grad is not None)
    record = run.take_step()
    return found, record


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("tied", [True, False])
def test_the_norms_gradient_is_two_lambda_theta_once_a_step(tmp_path, split, tied):
    """However the step is split; the tied matrix counts once, on each of its two parts."""
    plain, _ = gradients_before_the_update(with_l2(tmp_path / "plain", l2=0.0, tie_embeddings=tied))
    run = with_l2(tmp_path / "l2", split, tie_embeddings=tied)
    found, record = gradients_before_the_update(run)
    parameters = dict(run.model.named_parameters())
    assert found.keys() == plain.keys() == parameters.keys() and ("lm_head.weight" in found) != tied
    for name, p in parameters.items():
        torch.testing.assert_close(found[name] - plain[name], 2 * L2 * p.detach(), rtol=1e-8, atol=1e-12)
    norm = spelled.squared_norm([spelled.listed(p.flatten()) for p in parameters.values()])
    assert record["l2"] == pytest.approx(L2 * norm, rel=1e-12)
    assert norm > 8  # the gains are in it, too


def test_the_log_has_the_loss_and_the_norm_apart(tmp_path):
    _, plain = gradients_before_the_update(with_l2(tmp_path / "plain", l2=0.0))
    _, record = gradients_before_the_update(with_l2(tmp_path / "l2"))
    assert record["loss"] == plain["loss"] and record["grad_norm"] != plain["grad_norm"]
    assert set(record) - set(plain) == {"l2"}


def test_frozen_parameters_are_not_in_the_norm(tmp_path):
    model = Transformer(MODEL).double()
    frozen = [model.embed.weight, model.layers[0].attn.q_proj.weight]
    for p in frozen:
        p.requires_grad_(False)
    run = with_l2(tmp_path, model=model)
    before = [p.clone() for p in frozen]
    record = run.take_step()
    trained = [spelled.listed(p.flatten()) for p in Transformer(MODEL).double().parameters()]
    without = [spelled.listed(p.flatten()) for p in before]
    norm = spelled.squared_norm(trained) - spelled.squared_norm(without)
    assert record["l2"] == pytest.approx(L2 * norm, rel=1e-10)
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(frozen, before))


def test_the_norm_goes_through_adams_moments_and_weight_decay_does_not(tmp_path):
    """Three steps of AdamW in loops: with λ on g + 2λθ, with decay on g alone. The two end elsewhere."""
    for kind in ("l2", "decay"):
        decay = 2 * L2 if kind == "decay" else 0.0
        optim = OptimConfig(lr=0.01, schedule="constant", warmup_steps=0, clip_norm=0.0, weight_decay=decay, adam_eps=1e-3)
        run = with_l2(tmp_path / kind, optim=optim, l2=L2 if kind == "l2" else 0.0)
        matrix = run.model.layers[0].mlp.up_proj.weight
        start, gradients = spelled.listed(matrix.flatten()), []
        for _ in range(3):
            losses = spelled_losses(run.model, ragged(8))
            g, = torch.autograd.grad(sum(losses) / len(losses), [matrix])
            gradients.append(spelled.listed((g + (2 * L2 * matrix.detach() if kind == "l2" else 0)).flatten()))
            run.take_step()
        wanted = spelled.adamw(start, gradients, [0.01] * 3, optim.beta1, optim.beta2, optim.adam_eps, decay)
        torch.testing.assert_close(matrix.detach().flatten(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-12)
        other = spelled.adamw(start, gradients, [0.01] * 3, optim.beta1, optim.beta2, optim.adam_eps, 2 * L2 - decay)
        assert max(abs(a - b) for a, b in zip(wanted, other)) > 1e-4


def test_without_the_norm_nothing_of_it_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "squared_norm", None)
    assert "l2" not in with_l2(tmp_path, l2=0.0).take_step()


def test_a_norm_that_is_no_number_stops_before_the_update(tmp_path):
    run = with_l2(tmp_path, l2=1e308)
    before = [p.clone() for p in run.model.parameters()]
    with pytest.raises(UserError, match=r"^step 1: loss 2\..*gradient norm inf"):
        run.take_step()
    assert all(torch.equal(p, q) for p, q in zip(run.model.parameters(), before))


# ── nothing broken reaches a weight ──────────────────────────────────────────────────────────────


class Breaking(Ragged):
    """Breaks from micro-batch 4 on, in the loss or in one weight's gradient alone."""

    how, broken = "loss", False

    def batch(self, number):
        self.broken = number >= 4
        return super().batch(number)

    def loss_sum(self, model, batch):
        loss = super().loss_sum(model, batch)
        if self.broken and self.how == "loss":
            return loss * math.inf
        if self.broken:
            gain = model.final_norm.weight[0]
            return loss + (gain - gain.detach()).abs().sqrt()  # adds 0, whose slope is no number
        return loss


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_non_finite_loss_or_gradient_stops_before_the_update(tmp_path, how):
    task = Breaking(ragged(16), 2, ragged(4, seed=1))
    task.how = how
    run = make(tmp_path, task, OptimConfig(lr=0.25, warmup_steps=0, schedule="constant"), steps=6, accumulation=2,
               eval_every=1)
    with pytest.raises(UserError) as caught:
        run.fit()
    message = str(caught.value)
    assert message.startswith("step 3: loss ") and "learning rate 0.25" in message and "\n" not in message
    assert str(checkpoint.find(tmp_path)) in message and checkpoint.find(tmp_path).name == "step-000002"
    assert ("loss inf" in message) == (how == "loss") and ("gradient norm nan" in message)
    saved = checkpoint.read_tensors(checkpoint.find(tmp_path), "model")
    assert all(torch.equal(saved[name], p) for name, p in run.model.state_dict().items())
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    moments = checkpoint.read_tensors(checkpoint.find(tmp_path), "optimizer")["state"]
    for i, state in run.optimizer.state_dict()["state"].items():
        assert all(torch.equal(state[k], moments[i][k]) for k in state)
    assert [r["step"] for r in metrics(tmp_path)] == [0, 1, 2] and run.state["step"] == 2


@pytest.mark.parametrize("train", [{"eval_every": 1}, {"save_every": 1}], ids=["evaluated", "saved"])
def test_weights_that_a_finite_gradient_broke_are_neither_saved_nor_looked_at(tmp_path, train):
    seen = []
    run = make(tmp_path, Ragged(ragged(8), 2, ragged(2)), OptimConfig(lr=1e300, warmup_steps=0), Transformer(MODEL),
               steps=3, observe=lambda model, log, step: seen.append(step), **train)
    with pytest.raises(UserError, match=r"^step 1: .* is no longer finite at learning rate 1e\+300; nothing was saved, "
                                        "the last good checkpoint is .*step-000000; lower optim.lr"):
        run.fit()
    assert seen == [0] and [p.name for p in checkpoint.steps(tmp_path)] == ["step-000000"]


def test_a_validation_loss_that_is_no_number_is_never_saved(tmp_path, monkeypatch):
    scripted(monkeypatch, [5.0, math.nan])
    seen = []
    run = make(tmp_path, Ragged(ragged(8), 2), steps=1, observe=lambda model, log, step: seen.append(step))
    with pytest.raises(UserError, match="step 1: validation loss nan at learning rate 0.01; nothing was saved"):
        run.fit()
    assert seen == [0] and checkpoint.find(tmp_path).name == "step-000000"


@pytest.mark.parametrize("name, train, optim", [
    ("train.steps", {"steps": 10**18}, {}), ("train.epochs", {"epochs": 1e308}, {}),
    ("train.accumulation", {"steps": 1, "accumulation": 10**18}, {}),
    ("optim.warmup_steps", {"steps": 1}, {"warmup_steps": 10**18}),
])
def test_a_run_without_end_is_refused(tmp_path, name, train, optim):
    with pytest.raises(UserError, match=f"^{name}: asks for more than 2⁵³ steps"):
        make(tmp_path, Ragged(ragged(8), 2), OptimConfig(**optim), **train)


# ── between steps ────────────────────────────────────────────────────────────────────────────────


def scripted(monkeypatch, losses):
    values = iter(losses)
    monkeypatch.setattr(trainer, "evaluate", lambda model, task, device: {"val_loss": next(values)})


def test_the_log_holds_the_schedule_and_each_step_once(tmp_path):
    optim = OptimConfig(lr=1e-3, schedule="linear", min_lr_ratio=0.0, warmup_steps=2)
    run = make(tmp_path, Ragged(ragged(8), 2, ragged(2)), optim, steps=5, eval_every=2)
    run.fit()
    records = metrics(tmp_path)
    assert [r["step"] for r in records] == [0, 1, 2, 3, 4, 5]
    assert [r["lr"] for r in records[1:]] == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4, 0.0])
    assert [r["lr"] for r in records[1:]] == [learning_rate(optim, s, 5) for s in range(5)]
    assert [r["step"] for r in records if "val_loss" in r] == [0, 2, 4,
                                                               5]  # before the first, every second, after the last
    assert set(records[0]) == {"step", "val_loss"}
    assert all(set(r) - {"val_loss"} == {"step", "loss", "lr", "grad_norm", "tokens_per_s"} for r in records[1:])


def test_best_is_the_lowest_and_last_is_the_last(tmp_path, monkeypatch):
    scripted(monkeypatch, [5.0, 4.0, 4.5, 3.0, 3.0, 3.5])
    run = make(tmp_path, Ragged(ragged(8), 2), steps=5, eval_every=1)
    state = run.fit()
    assert checkpoint.find(tmp_path, "best").name == "step-000003" and checkpoint.find(tmp_path).name == "step-000005"
    assert state["best"] == 3.0 and not state["stopped_early"] and state["evaluations_without_gain"] == 2
    assert checkpoint.read_state(checkpoint.find(tmp_path))["best"] == 3.0
    best = checkpoint.read_tensors(checkpoint.find(tmp_path, "best"), "model")
    assert any(not torch.equal(best[name], p) for name, p in run.model.state_dict().items())


@pytest.mark.parametrize("patience, losses, last", [
    (2, [5, 4, 4.5, 3, 3, 3.5, 9, 9], 5), (1, [5, 4, 4.5, 3], 2), (3, [5, 4, 4.5, 3, 3, 3.5, 2, 1, 1], 8),
    (0, [1, 2, 3, 4, 5, 6, 7, 8, 9], 8),
])
def test_patience_counts_evaluations_in_a_row_without_a_better_loss(tmp_path, monkeypatch, capsys, patience, losses,
                                                                    last):
    scripted(monkeypatch, losses)
    run = make(tmp_path, Ragged(ragged(8), 2), steps=8, eval_every=1, patience=patience)
    state = run.fit()
    assert state["step"] == last and state["stopped_early"] == (last < 8)
    assert ("stopped early" in capsys.readouterr().out) == (last < 8)
    again = make(tmp_path, Ragged(ragged(8), 2), steps=8, eval_every=1, patience=patience)
    assert again.fit() == state  # and a stopped run stays stopped
    assert f"step {last} of 8, finished" in capsys.readouterr().out


class Marked(Ragged):
    """Measures accuracy, too, from a script."""

    measures = ("val_loss", "val_accuracy")

    def evaluate(self, model, device):
        loss, accuracy = next(self.script)
        return {"val_loss": loss, "val_accuracy": accuracy}


def marked(script):
    task = Marked(ragged(8), 2)
    task.script = iter(script)
    return task


# The loss falls from beginning to end; accuracy has its best in the middle, and once more the same.
SCRIPT = [(9, 0.1), (8, 0.5), (7, 0.4), (6, 0.7), (5, 0.7), (4, 0.6), (3, 0.2), (2, 0.3), (1, 0.6)]


@pytest.mark.parametrize(("best_by", "best", "step"), [("val_accuracy", 0.7, 3), ("val_loss", 1, 8)])
def test_best_is_the_highest_where_more_is_better(tmp_path, capsys, best_by, best, step):
    state = make(tmp_path, marked(SCRIPT), steps=8, eval_every=1, best_by=best_by).fit()
    assert state["best"] == best and checkpoint.find(tmp_path, "best").name == f"step-{step:06}"
    assert checkpoint.find(tmp_path).name == "step-000008" and state["step"] == 8
    assert [(r["val_loss"], r["val_accuracy"]) for r in metrics(tmp_path)] == SCRIPT
    shown = capsys.readouterr().out
    assert "validation loss 6.0000, accuracy 0.7000 (best)" in shown and "loss 5.0000, accuracy 0.7000" in shown


@pytest.mark.parametrize(("best_by", "patience", "last"), [("val_accuracy", 2, 5), ("val_accuracy", 1, 2), ("val_loss", 1, 8)])
def test_patience_counts_what_best_is_chosen_by(tmp_path, capsys, best_by, patience, last):
    state = make(tmp_path, marked(SCRIPT), steps=8, eval_every=1, best_by=best_by, patience=patience).fit()
    assert state["step"] == last and state["stopped_early"] == (last < 8)
    assert ("evaluations without a better val_accuracy" in capsys.readouterr().out) == (last < 8)


def test_what_is_no_number_is_never_best(tmp_path):
    script = [(1.0, accuracy) for accuracy in (math.nan, 0.2, math.nan, 0.3)]
    state = make(tmp_path, marked(script), steps=3, eval_every=1, best_by="val_accuracy", patience=2).fit()
    assert state["best"] == 0.3 and checkpoint.find(tmp_path, "best").name == "step-000003"


@pytest.mark.parametrize(("task", "best_by", "measured"), [
    (lambda: Ragged(ragged(8), 2), "val_accuracy", "val_loss"), (lambda: marked([]), "val_macro_f1", "val_loss, val_accuracy"),
])
def test_what_a_task_does_not_measure_cannot_choose_the_best(tmp_path, task, best_by, measured):
    with pytest.raises(UserError, match=rf"^train.best_by = '{best_by}': this task measures {measured}$"):
        make(tmp_path, task(), steps=1, best_by=best_by)


def test_checkpoints_come_at_evaluations_and_every_so_many_steps(tmp_path, monkeypatch):
    saved = []
    run = make(tmp_path, Ragged(ragged(8), 2, ragged(2)), steps=9, eval_every=4, save_every=3)
    save = run.keeper.save
    monkeypatch.setattr(run.keeper, "save", lambda state, improved: (saved.append(state["step"]), save(state, improved)))
    run.fit()
    assert saved == [0, 3, 4, 6, 8, 9]


def test_the_curves_are_on_disk_before_a_checkpoint_knows_of_them(tmp_path, monkeypatch):
    events = []
    flush, save = trainer.RunLog.flush, checkpoint.save
    monkeypatch.setattr(trainer.RunLog, "flush", lambda log: (events.append("flush"), flush(log)))
    monkeypatch.setattr(checkpoint, "save", lambda *args, **more: (events.append("save"), save(*args, **more)))
    make(tmp_path, Ragged(ragged(8), 2, ragged(2)), steps=2, eval_every=1).fit()
    assert events == ["flush", "save"] * 3


def test_the_observer_looks_at_every_evaluation_and_changes_nothing(tmp_path):
    seen = []
    make(tmp_path / "a", Ragged(ragged(8), 2, ragged(2)), steps=4, eval_every=2).fit()
    make(tmp_path / "b", Ragged(ragged(8), 2, ragged(2)), steps=4, eval_every=2,
         observe=lambda model, log, step: (seen.append(step), torch.manual_seed(step), torch.rand(3))).fit()
    assert seen == [0, 2, 4]
    a, b = ({**r, "tokens_per_s": 0} for r in metrics(tmp_path / "a")), ({**r, "tokens_per_s": 0}
                                                                         for r in metrics(tmp_path / "b"))
    assert list(a) == list(b)


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 4, 5])
def test_a_stopped_run_with_dropout_goes_on_as_if_nothing_had_happened(tmp_path, stop_at):
    def run(folder, stop=None, jitter=0):
        torch.manual_seed(jitter)  # global state is another one each time
        model = Transformer(ModelConfig(**{**vars(MODEL), "dropout": 0.4}))
        optim = OptimConfig(lr=0.01, warmup_steps=3)
        one = make(folder, Ragged(ragged(20), 2, ragged(5, seed=1)), optim, model, steps=8, accumulation=2,
                   eval_every=3, save_every=2)
        if stop is not None:
            take = one.take_step

            def stopping():
                if one.state["step"] == stop:
                    raise Stop
                return take()

            one.take_step = stopping
        one.fit()
        return one

    straight = run(tmp_path / "straight")
    with pytest.raises(Stop):
        run(tmp_path / "stopped", stop_at, jitter=1)
    went_on = run(tmp_path / "stopped", jitter=2)
    assert all(torch.equal(p, q) for p, q in zip(straight.model.parameters(), went_on.model.parameters()))
    assert straight.state == went_on.state
    same = [[{k: v for k, v in r.items() if k != "tokens_per_s"} for r in metrics(tmp_path / f)]
            for f in ("straight", "stopped")]
    assert same[0] == same[1]


def fitted(folder, **changes):
    run = make(folder, Ragged(ragged(8), 2, ragged(2)), steps=4, eval_every=2, **changes)
    run.fit()
    return run


def test_a_run_whose_pointers_are_gone_goes_on_with_its_newest_checkpoint(tmp_path, capsys):
    first = fitted(tmp_path)
    for name in ("last", "best"):
        (tmp_path / "checkpoints" / name).unlink()
    capsys.readouterr()
    again = fitted(tmp_path)
    said = capsys.readouterr().out
    assert again.state == first.state and "last was missing; it points at step-000004 again" in said
    assert "step 4 of 4, finished" in said


def test_step_0_is_judged_anew_where_its_save_was_cut_short(tmp_path):
    """Killed with the folder of step 0 in place and no pointer yet."""
    straight = fitted(tmp_path / "straight", patience=3)
    run = make(tmp_path / "cut", Ragged(ragged(8), 2, ragged(2)), steps=4, eval_every=2, patience=3)
    run.take_step = lambda: (_ for _ in ()).throw(Stop)
    with pytest.raises(Stop):
        run.fit()
    for name in ("last", "best"):
        (tmp_path / "cut" / "checkpoints" / name).unlink()
    assert fitted(tmp_path / "cut", patience=3).state == straight.state
    assert checkpoint.find(tmp_path / "cut", "best").name == checkpoint.find(tmp_path / "straight", "best").name


def test_what_a_kill_after_the_last_save_left_goes_when_the_run_is_opened_again(tmp_path):
    fitted(tmp_path)
    orphan = tmp_path / "checkpoints" / "step-000001"
    shutil.copytree(checkpoint.find(tmp_path), orphan)
    fitted(tmp_path)
    assert not orphan.exists()


def test_a_checkpoint_of_another_vocabulary_shape_or_version_is_one_line(tmp_path):
    fitted(tmp_path)
    task = Ragged(ragged(8), 2, ragged(2))
    task.tokenizer_sha256 = "another"
    with pytest.raises(UserError, match="was trained with another tokenizer"):
        make(tmp_path, task, steps=4).fit()
    with pytest.raises(UserError, match="does not fit the model of its config.toml: .*size mismatch"):
        fitted(tmp_path, model=Transformer(ModelConfig(**{**vars(MODEL), "d_ff": 20})).double())
    place = checkpoint.find(tmp_path)
    tensors = {stem: checkpoint.read_tensors(place, stem) for stem in ("model", "optimizer")}
    checkpoint.save(tmp_path, 9, tensors, {"step": 9, "tokenizer": "no tokenizer"}, best=True)
    with pytest.raises(UserError, match="state.json: lacks .*; it is of another version"):
        fitted(tmp_path)


def test_an_attacks_passes_drop_the_same_units(tmp_path):
    model = Transformer(ModelConfig(**{**vars(MODEL), "dropout": 0.4})).double()
    attack = attack_on(model.embed, AdversarialConfig("fgm", 1e-9), False)
    made = Trainer(model, Ragged(ragged(4), 2), PLAIN, TrainConfig(steps=2, accumulation=2), 0, tmp_path, attack=attack)
    record = made.take_step()
    assert record["adversarial_loss"] == pytest.approx(record["loss"], rel=1e-6)


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
