"""λ‖θ‖₂²: its gradient, once a step, and what it is not."""

import pytest
import spelled
import torch
from ragged import MODEL, PLAIN, SPLITS, Ragged, ragged, spelled_losses

from minialpaca import trainer
from minialpaca.config import ModelConfig, OptimConfig, TrainConfig
from minialpaca.errors import UserError
from minialpaca.model import Transformer
from minialpaca.trainer import Trainer


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
