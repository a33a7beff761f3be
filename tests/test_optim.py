"""Parameter groups, AdamW, the schedule and clipping, against their sums."""

import dataclasses
import math

import pytest
import spelled
import tiny
import torch
from spelled import listed
from torch import nn

from minialpaca.config import OptimConfig
from minialpaca.optim import DECAYS, build_adamw, clip_by_global_norm, learning_rate, roles


class Mixed(nn.Module):
    """One parameter of every role, a tied matrix, and a frozen one."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.inner, self.norm, self.frozen = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)
        self.frozen.requires_grad_(False)


# ── groups ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", [Mixed, tiny.model, lambda: tiny.model(tie_embeddings=False)],
                         ids=["mixed", "tied", "untied"])
def test_roles_are_disjoint_and_together_the_trainable_parameters(make):
    model = make()
    found = [id(p) for parameters in roles(model).values() for p in parameters]
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert len(found) == len(set(found)) and set(found) == trainable
    grouped = [id(p) for group in build_adamw(model, OptimConfig()).param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) and set(grouped) == trainable


def test_each_parameter_has_the_role_of_the_module_that_owns_it():
    model = Mixed()
    names = {id(p): name for name, p in model.named_parameters()}
    assert {role: [names[id(p)] for p in parameters] for role, parameters in roles(model).items()} == {
        "matrix": ["inner.weight"], "embedding": ["embed.weight"], "norm": ["norm.weight", "norm.bias"],
        "bias": ["inner.bias"]}


def test_the_decoders_gains_are_norms_and_the_rest_is_not():
    model = tiny.model(tie_embeddings=False)
    sizes = {role: len(parameters) for role, parameters in roles(model).items()}
    assert sizes == {"matrix": 7 * 2 + 1, "embedding": 1, "norm": 2 * 2 + 1, "bias": 0}


def test_decay_pulls_only_where_the_table_says():
    """With zero gradients AdamW's step is decay alone: θ ← θ − lr · decay · θ."""
    model = Mixed()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
            p.grad = torch.zeros_like(p)
    build_adamw(model, OptimConfig(lr=0.1, weight_decay=0.5)).step()
    values = {name: float(p.detach().mean()) for name, p in model.named_parameters()}
    assert values == pytest.approx({"embed.weight": 0.95, "inner.weight": 0.95, "inner.bias": 1, "norm.weight": 1,
                                    "norm.bias": 1, "frozen.weight": 1, "frozen.bias": 1})
    assert DECAYS == {"matrix": True, "embedding": True, "norm": False, "bias": False}


# ── AdamW ────────────────────────────────────────────────────────────────────────────────────────


def test_adamw_steps_are_the_papers():
    cfg = OptimConfig(lr=0.3, weight_decay=0.2, beta1=0.7, beta2=0.8, adam_eps=1e-2)
    model = nn.Linear(3, 2, bias=False).double()
    start = listed(model.weight.flatten())
    gradients = [tiny.normal(2, 3, seed=s) for s in range(5)]
    rates = [0.3, 0.1, 0.2, 0.05, 0.3]
    optimiser = build_adamw(model, cfg)
    for gradient, rate in zip(gradients, rates):
        model.weight.grad = gradient.clone()
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
    expected = spelled.adamw(start, [listed(g.flatten()) for g in gradients], rates, 0.7, 0.8, 1e-2, 0.2)
    assert listed(model.weight.flatten()) == pytest.approx(expected, abs=1e-12)


def test_after_a_few_steps_every_trainable_tensor_has_moved_and_no_frozen_one():
    model = tiny.model()
    model.layers[0].requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = build_adamw(model, OptimConfig())
    for _ in range(3):
        optimiser.zero_grad()
        model(tiny.tokens(2, 9)).logsumexp(-1).mean().backward()
        optimiser.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("layers.0."), name


# ── schedule ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("schedule", "expected"), [
    ("cosine", [0.5, 1.0, 1.0, 0.1 + 0.9 * 0.75, 0.1 + 0.9 * 0.25, 0.1]),  # cos 60° = 1/2, cos 120° = −1/2
    ("linear", [0.5, 1.0, 1.0, 0.7, 0.4, 0.1]),
    ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
])
def test_the_schedule_by_pencil(schedule, expected):
    cfg = OptimConfig(lr=1.0, schedule=schedule, warmup_steps=2, min_lr_ratio=0.1)
    assert [learning_rate(cfg, step, 6) for step in range(6)] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("warmup", "total"), [(3, 17), (0, 9), (0, 1), (1, 1), (5, 3), (4, 5), (4, 6), (1, 2)])
def test_the_schedule_is_the_papers_walk(schedule, warmup, total):
    cfg = OptimConfig(lr=0.7, schedule=schedule, warmup_steps=warmup, min_lr_ratio=0.2)
    expected = spelled.learning_rates(schedule, 0.7, 0.14, warmup, total)
    assert [learning_rate(cfg, step, total) for step in range(total)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0])
def test_the_last_step_has_the_lowest_rate_and_later_ones_keep_it(schedule, ratio):
    cfg = OptimConfig(lr=3e-4, schedule=schedule, warmup_steps=7, min_lr_ratio=ratio)
    for step in (99, 100, 1000):
        assert learning_rate(cfg, step, 100) == pytest.approx(ratio * 3e-4, rel=1e-12, abs=1e-19)
    assert learning_rate(cfg, 98, 100) > ratio * 3e-4 or ratio == 1


def test_a_ratio_of_one_keeps_the_rate_and_the_warm_up_never_starts_at_zero():
    cfg = OptimConfig(lr=0.5, warmup_steps=4, min_lr_ratio=1.0)
    assert [learning_rate(cfg, s, 8) for s in range(8)] == pytest.approx([0.125, 0.25, 0.375] + [0.5] * 5)


# ── clipping ─────────────────────────────────────────────────────────────────────────────────────


def with_gradients(scale: float) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in ((3, 2), (4,), (1,), (2,))]
    for i, p in enumerate(parameters[:3]):  # the last has none
        p.grad = tiny.normal(*p.shape, seed=i) * scale
    return parameters


@pytest.mark.parametrize("limit", [0.0, 0.5, 2.0, 1e6])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_clipping_is_the_papers(limit, scale):
    parameters = with_gradients(scale)
    before = [p.grad.clone() for p in parameters[:3]]
    expected, norm = spelled.clip([listed(g.flatten()) for g in before], limit)
    assert float(clip_by_global_norm(parameters, limit)) == pytest.approx(norm, rel=1e-12)
    for p, g, wanted in zip(parameters, before, expected):
        assert listed(p.grad.flatten()) == pytest.approx(wanted, rel=1e-12)
        if limit == 0 or norm <= limit:
            assert torch.equal(p.grad, g)
    assert parameters[3].grad is None


def test_clipping_by_pencil():
    p, q = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    p.grad, q.grad = torch.tensor([3.0]), torch.tensor([-4.0])
    assert float(clip_by_global_norm([p, q], 1.0)) == 5
    assert (float(p.grad), float(q.grad)) == pytest.approx((0.6, -0.8))


def test_zero_gradients_stay_zero_under_clipping():
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.zeros(2)
    assert float(clip_by_global_norm([p], 1.0)) == 0 and p.grad.tolist() == [0, 0]


def test_an_infinite_gradient_is_reported_in_the_norm():
    parameters = with_gradients(1.0)
    parameters[1].grad[0] = math.inf
    assert math.isinf(clip_by_global_norm(parameters, 1.0))


def test_the_configs_fields_reach_the_optimiser():
    cfg = dataclasses.replace(OptimConfig(), lr=0.01, beta1=0.5, beta2=0.6, adam_eps=1e-3, weight_decay=0.3)
    groups = build_adamw(Mixed(), cfg).param_groups
    assert {(g["lr"], g["betas"], g["eps"]) for g in groups} == {(0.01, (0.5, 0.6), 1e-3)}
    assert sorted(g["weight_decay"] for g in groups) == [0.0, 0.0, 0.3, 0.3]
