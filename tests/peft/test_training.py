"""The trainer and the methods: what is called when, what stays as it is, and what a checkpoint holds of it."""

import dataclasses
import math

import biased
import pytest
import tiny
import torch
from ragged import PLAIN, Ragged, ragged, scripted, spelled_losses

from minialpaca import run
from minialpaca.config import AdapterConfig, FinetuneConfig, OptimConfig, TrainConfig
from minialpaca.errors import UserError
from minialpaca.heads import Classifier
from minialpaca.merge import merged_state
from minialpaca.optim import build_adamw
from minialpaca.peft import METHODS, apply
from minialpaca.peft.linear import wide
from minialpaca.peft.lora import LoRALinear
from minialpaca.storage import checkpoint
from minialpaca.trainer import Trainer, evaluate

ADALORA = AdapterConfig("adalora", targets=("q_proj", "up_proj"), rank=4, target_rank=1.5, alpha=7.0, interval=2,
                        warmup_part=0.2, final_part=0.4)

every = pytest.mark.parametrize("name", biased.CONFIGS)


def trainer(folder, cfg, split=(8, 1), optim=PLAIN, rows=24, task=Ragged, model=None, **train):
    folder.mkdir(exist_ok=True)
    model = model or biased.model().double()
    adapter = apply(model, cfg)
    biased.stir(adapter)
    return Trainer(model, task(ragged(rows), split[0], ragged(4, seed=1), 4), optim,
                   TrainConfig(**{"steps": 20, "eval_every": 1000, "accumulation": split[1], **train}), 0, folder, adapter=adapter)


def gradients(adapter):
    return {name: p.grad.clone() for name, p in adapter.trained().items()}


def assert_close(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-9, atol=1e-12, msg=name)


# ── once a step, and whole ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("split", [(8, 1), (2, 4)])
def test_the_adapter_sees_the_whole_gradient_once_a_step_and_unclipped(tmp_path, monkeypatch, split):
    tuning = trainer(tmp_path, dataclasses.replace(ADALORA, orthogonality=0.0), split, dataclasses.replace(PLAIN, clip_norm=1e-3))
    seen, note = [], tuning.adapter.before_clip
    monkeypatch.setattr(tuning.adapter, "before_clip", lambda step: (seen.append((step, gradients(tuning.adapter))), note(step)))
    for step in (1, 2, 3):
        losses, trained = spelled_losses(tuning.model, ragged(24)[8 * step - 8:8 * step]), tuning.adapter.trained()
        whole = torch.autograd.grad(sum(losses) / len(losses), list(trained.values()))
        tuning.take_step()
        assert [s for s, _ in seen] == list(range(1, step + 1))
        assert_close(seen[-1][1], dict(zip(trained, whole)))


@pytest.mark.parametrize("split", [(8, 1), (2, 4)])
def test_the_penalty_is_added_once_a_step(tmp_path, monkeypatch, split):
    with_it, without = (trainer(tmp_path / str(gamma), dataclasses.replace(ADALORA, orthogonality=gamma), split)
                        for gamma in (0.3, 0.0))
    trained, value = with_it.adapter.trained(), with_it.adapter.penalty()
    wanted = dict(zip(trained, torch.autograd.grad(value, list(trained.values()), allow_unused=True)))
    value, found = value.item(), []
    for tuning in (with_it, without):
        monkeypatch.setattr(tuning.adapter, "before_clip", lambda step, a=tuning.adapter: found.append(gradients(a)))
    records = [tuning.take_step() for tuning in (with_it, without)]
    difference = {name: g - found[1][name] for name, g in found[0].items()}
    assert_close(difference, {name: torch.zeros_like(found[0][name]) if g is None else g for name, g in wanted.items()})
    assert any(g is not None and g.abs().max() > 0.01 for g in wanted.values())
    assert records[0]["orthogonality"] == pytest.approx(value, rel=1e-9) and "orthogonality" not in records[1]
    assert records[0]["loss"] == records[1]["loss"]


class Broken(Ragged):
    """From the third micro-batch on one weight's gradient is no number; the loss is one."""

    seen = 0

    def loss_sum(self, model, batch):
        loss, w = super().loss_sum(model, batch), model.layers[1].attn.q_proj.Q
        if self.seen >= 2:
            loss = loss + (w[0, 0] - w[0, 0].detach()).abs().sqrt()  # adds 0, whose slope is no number
        self.seen += 1
        return loss


def test_a_gradient_that_is_no_number_never_reaches_the_averages(tmp_path):
    tuning = trainer(tmp_path, ADALORA, (4, 1), task=Broken)
    tuning.take_step()
    tuning.take_step()
    before = {name: t.clone() for name, t in tuning.adapter.tensors().items()}
    assert before["layers.0.attn.q_proj.sensitivity_Q"].any()
    with pytest.raises(UserError, match=r"^step 3: loss \d.*gradient norm nan"):
        tuning.take_step()
    assert all(torch.equal(before[name], t) for name, t in tuning.adapter.tensors().items())


# ── AdaLoRA along a run ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("split", [(8, 1), (2, 4)])
def test_the_ranks_follow_the_schedule_of_optimiser_steps_whatever_a_step_is_made_of(tmp_path, split):
    tuning = trainer(tmp_path, ADALORA, split, OptimConfig(lr=0.01, warmup_steps=0))
    schedule, n = tuning.adapter.schedule, len(tuning.adapter.layers())
    assert (schedule.total, schedule.warmup, schedule.final, n) == (20, 4, 8, 4)
    budget, kept = 4 * n, []
    for step in range(1, 21):
        tuning.take_step()
        if step == 12 or 4 <= step < 12 and step % 2 == 0:
            budget = round(6 + (16 - 6) * (1 - (step - 4) / 8) ** 3)
        kept.append(sum(layer.rank for layer in tuning.adapter.layers()))
        assert kept[-1] == budget
    assert kept[0] == 16 and kept[-1] == 6


def test_the_penalty_is_no_part_of_what_an_evaluation_says(tmp_path):
    tunings = [trainer(tmp_path / str(gamma), dataclasses.replace(ADALORA, orthogonality=gamma)) for gamma in (0.3, 0.0)]
    found = [evaluate(t.model, t.task, t.device) for t in tunings]
    assert tunings[0].adapter.penalty() > 0.01 and found[0]["val_loss"] > 0
    assert found[0] == found[1]


def test_no_best_is_chosen_before_the_budget_is_spent(tmp_path, monkeypatch):
    """The losses only rise, so step 0 would be best; of those with the final budget it is step 12."""
    scripted(monkeypatch, [1.0 + i / 10 for i in range(6)])
    tuning = trainer(tmp_path, ADALORA, optim=OptimConfig(lr=0.01, warmup_steps=0), eval_every=4)
    state = tuning.fit()
    assert checkpoint.find(tmp_path, "best").name == "step-000012" and state["best"] == pytest.approx(1.3)
    kept = checkpoint.read_tensors(checkpoint.find(tmp_path, "best"), "model")
    assert sum(int(t.sum()) for name, t in kept.items() if name.endswith(".kept")) == round(1.5 * 4)


def test_once_the_budget_is_spent_what_was_pruned_stays_zero_under_adams_momentum(tmp_path):
    """Before that it may come back; the momentum alone would move it at every step."""
    tuning = trainer(tmp_path, ADALORA, (4, 1), OptimConfig(lr=0.05, warmup_steps=0, weight_decay=0.1))
    for step in range(1, 21):
        tuning.take_step()
        if step >= 12:
            for layer in tuning.adapter.layers():
                assert not layer.lambdas[~layer.kept].any() and layer.lambdas[layer.kept].all()
    moments = [tuning.optimizer.state[layer.lambdas]["exp_avg"][~layer.kept] for layer in tuning.adapter.layers()]
    assert any(m.abs().max() > 1e-6 for m in moments if m.numel())


def test_the_scale_stays_alpha_over_the_rank_of_the_start(tmp_path):
    tuning = trainer(tmp_path, ADALORA, (4, 1), OptimConfig(lr=0.05, warmup_steps=0))
    for _ in range(20):
        tuning.take_step()
    assert any(0 < layer.rank < 4 for layer in tuning.adapter.layers())
    for layer in tuning.adapter.layers():
        x, kept = tiny.normal(3, layer.Q.shape[1]), layer.kept
        delta = 7 / 4 * x @ layer.Q[kept].T @ torch.diag(layer.lambdas[kept]) @ layer.P[:, kept].T
        torch.testing.assert_close(layer(x) - layer.base(x), delta, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(layer.merged()(x), layer(x), rtol=1e-9, atol=1e-12)


def test_a_matrix_that_lost_everything_is_saved_loaded_and_trained_on(tmp_path, monkeypatch):
    def made():
        return trainer(tmp_path, dataclasses.replace(ADALORA, target_rank=0.5), (4, 1), OptimConfig(lr=0.05, warmup_steps=0),
                       save_every=14)

    tuning, take = made(), Trainer.take_step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", lambda tuning: take(tuning) if tuning.state["step"] < 14 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tuning.fit()
    assert 0 in [layer.rank for layer in tuning.adapter.layers()]
    again = made()
    state = again.fit()
    assert state["step"] == 20 and math.isfinite(state["best"])
    assert [layer.kept.tolist() for layer in again.adapter.layers()] == [layer.kept.tolist() for layer in tuning.adapter.layers()]
    assert all(t.isfinite().all() for t in again.adapter.tensors().values())
    empty = next(layer for layer in again.adapter.layers() if layer.rank == 0)
    x = tiny.normal(3, empty.Q.shape[1])
    assert torch.equal(empty(x), empty.base(x))


# ── every method ─────────────────────────────────────────────────────────────────────────────────


@every
def test_with_layers_computed_again_three_steps_are_the_same_to_the_bit(tmp_path, name):
    """Where the method drops, too: what is computed again drops the same."""
    found, cfg = [], biased.CONFIGS[name]
    if cfg.method in ("lora", "dora", "adalora"):
        cfg = dataclasses.replace(cfg, dropout=0.3)
    for recompute in (False, True):
        tuning = trainer(tmp_path / str(recompute), cfg, (4, 2), OptimConfig(lr=0.01, warmup_steps=0))
        tuning.model.recompute = recompute
        before = {n: t.clone() for n, t in tuning.adapter.tensors().items()}
        for _ in range(3):
            tuning.take_step()
        assert not [n for n, t in tuning.adapter.trained().items() if torch.equal(before[n], t)]
        found.append(tuning.adapter.state_dict())
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


@every
def test_a_checkpoint_holds_what_is_in_the_model_bit_for_bit(tmp_path, name):
    tuning = trainer(tmp_path, biased.CONFIGS[name], (4, 1), OptimConfig(lr=0.01, warmup_steps=0), model=biased.model())
    tuning.fit()
    saved = checkpoint.read_tensors(checkpoint.find(tmp_path), "model")
    now = dict(tuning.model.named_parameters())
    in_model = {n: now[n] for n in tuning.adapter.tensors() if n in now}
    assert in_model.keys() == {n for n, t in saved.items() if n in now} and saved.keys() == tuning.adapter.tensors().keys()
    for n, tensor in saved.items():
        here = tuning.adapter.tensors()[n]
        assert tensor.dtype == here.dtype and torch.equal(tensor, here)
        assert n not in in_model or torch.equal(tensor, in_model[n])
    assert {id(p) for p in tuning.adapter.trained().values()} == {id(p) for p in now.values() if p.requires_grad}


# ── a classifier's new heads ─────────────────────────────────────────────────────────────────────

LABELLERS = {"freeze": {"layers": "-1:"}, "lora": {"rank": 3}, "dora": {"rank": 3},
             "adalora": {"rank": 4, "target_rank": 2.0, "interval": 2}, "houlsby": {"bottleneck": 5}, "prefix": {"length": 5}, "prompt": {"length": 5}, "bitfit": {}, "ia3": {}}
TOKENS, REAL = tiny.tokens(4, 9), torch.arange(9) < torch.tensor([[9], [4], [1], [6]])


def labeller(method, tied, seed=0):
    backbone = tiny.model(tie_embeddings=tied)
    model = Classifier(backbone, [3, 2], "last", seed)
    return model, run.adapted(model, backbone, FinetuneConfig(adapter=AdapterConfig(method, **LABELLERS[method])))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_new_heads_are_trained_saved_and_come_back(tmp_path, method, tied):
    """Into a model whose new heads began elsewhere."""
    model, adapter = labeller(method, tied)
    heads = {f"heads.{name}": p.clone() for name, p in model.heads.named_parameters()}
    optimizer = build_adamw(model, OptimConfig(lr=0.01))
    adapter.start(20)
    for step in (1, 2, 3):
        loss = sum(torch.nn.functional.cross_entropy(z, torch.tensor([0, 1, 1, 0])) for z in model.train()(TOKENS, REAL))
        loss.backward()
        adapter.before_clip(step)
        optimizer.step()
        adapter.after_update(step)
        optimizer.zero_grad()
    now = dict(model.named_parameters())
    assert len(heads) == 4 and not [name for name, before in heads.items() if torch.equal(before, now[name])]
    place = checkpoint.save(tmp_path, 3, {"model": adapter.state_dict(), "optimizer": {}},
                            {"tokenizer": "t", **adapter.facts()}, best=True)
    again, other = labeller(method, tied, seed=1)
    assert not torch.equal(again.heads[0].weight, model.heads[0].weight)
    run.load_weights(other, place, "t")
    for one, two in zip(model.eval()(TOKENS, REAL), again.eval()(TOKENS, REAL)):
        assert torch.equal(one, two)


def test_a_classifiers_merge_is_judged_by_what_it_says_of_its_groups(monkeypatch):
    model, adapter = labeller("lora", tied=False)
    biased.stir(adapter)
    tokens = torch.arange(58).view(2, 29) % 53
    before = torch.cat(model.eval()(tokens, torch.ones(2, 29, dtype=torch.bool)), -1)
    monkeypatch.setattr(LoRALinear, "weight", lambda self: 2 * wide(self.base.weight))
    _, difference = merged_state(model, model.backbone)
    after = torch.cat(model(tokens, torch.ones(2, 29, dtype=torch.bool)), -1)
    assert difference == (after - before).abs().max().item() > 1e-3
