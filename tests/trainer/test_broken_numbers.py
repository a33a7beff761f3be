"""Nothing broken reaches a weight, or a checkpoint."""

import math

import pytest
import torch
from ragged import MODEL, Ragged, make, metrics, ragged, scripted

from minialpaca.config import OptimConfig
from minialpaca.errors import UserError
from minialpaca.model import Transformer
from minialpaca.storage import checkpoint


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
    run = make(tmp_path, Ragged(ragged(8), 2, ragged(2)), OptimConfig(lr=1e300, warmup_steps=0, weight_decay=0.0), Transformer(MODEL),
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
    ("optim.warmup_steps", {"steps": 1}, {"warmup_steps": 10**18}),
])
def test_a_run_without_end_is_refused(tmp_path, name, train, optim):
    with pytest.raises(UserError, match=f"^{name}: asks for more than 2⁵³ steps"):
        make(tmp_path, Ragged(ragged(8), 2), OptimConfig(**optim), **train)
