"""Virtual adversarial training, against the divergences of perturbations put in by hand."""

import functools
import math

import pytest
import spelled
import tiny
import torch
from added import Added

from minialpaca import precision
from minialpaca.adversarial import Passes, View, attack_on, vat
from minialpaca.adversarial.vat import divergence_sum, random_directions
from minialpaca.config import AdversarialConfig
from minialpaca.heads import Classifier
from minialpaca.objectives import label_groups_sum

EPS, XI, GROUPS = 0.5, 0.2, [3, 2]


def classifier():
    made = Classifier(tiny.model(), GROUPS, "last").double()
    with torch.no_grad():
        for head in made.heads:
            head.weight *= 20
    return made


@pytest.fixture(autouse=True)
def drawn_in_float64(monkeypatch):
    """What is drawn is fp32, and so is its length: a step of the power iteration makes a rounding of 10⁻⁷ 10⁻⁵."""
    monkeypatch.setattr(torch, "randn", functools.partial(torch.randn, dtype=torch.float64))


def texts(seed):
    return tiny.tokens(3, 6, seed=seed), torch.arange(6) < torch.tensor([6, 4, 2])[:, None]


def by_hand(model, sets, share, c, a, iterations):
    """{name: gradient} of c L + a Σ KL · share, with every perturbation added to a look-up in the open."""
    embed, labels = model.backbone.embed, (torch.tensor([0, 2, 1]), torch.tensor([1, 0, 1]))

    def logits(tokens_BT, real_BT, r_BTD):
        model.backbone.embed = Added(embed, r_BTD)
        try:
            return model(tokens_BT, real_BT)
        finally:
            model.backbone.embed = embed

    total = c * label_groups_sum(logits(*sets[0], 0), labels) / 3
    for number, (tokens_BT, real_BT) in enumerate(sets):
        told = [z.detach() for z in logits(tokens_BT, real_BT, 0)]
        d = torch.randn(3, 6, 60, generator=torch.Generator().manual_seed(7 + number)) * real_BT[..., None]
        d = torch.tensor([spelled.steepest_l2(row.tolist(), 1.0) for row in d], dtype=torch.float64)
        for _ in range(iterations):
            d.requires_grad_()
            moved = sum(kl(p, q) for p, q in zip(told, logits(tokens_BT, real_BT, XI * d)))
            g, = torch.autograd.grad(moved, d)
            d = torch.tensor([spelled.steepest_l2(row.tolist(), 1.0) for row in g], dtype=torch.float64)
        total = total + a * share * sum(kl(p, q) for p, q in zip(told, logits(tokens_BT, real_BT, EPS * d)))
    return torch.autograd.grad(total, list(model.heads.parameters()) + [embed.weight])


def kl(told, said):
    p, q = told.softmax(-1), said.softmax(-1)
    return sum(p[n, c] * (p[n, c].log() - q[n, c].log()) for n in range(len(p)) for c in range(p.shape[1]))


def passes_of(model, sets, share, seed=7):
    labels = (torch.tensor([0, 2, 1]), torch.tensor([1, 0, 1]))
    views = [View(lambda s=s: model(*s), s[1], share) for s in sets]
    return Passes(lambda: label_groups_sum(model(*sets[0]), labels) / 3, sets[0][1], seed, views)


def test_virtual_training_is_the_papers_sum():
    model, sets = classifier(), [texts(1), texts(2)]
    share = 1 / 8  # a power of two rounds nothing: rotary angles are fp32, also in float64
    wanted = by_hand(model, sets, share, 0.7, 1.3, 2)
    cfg = AdversarialConfig("vat", EPS, clean_weight=0.7, adversarial_weight=1.3, xi=XI, power_iterations=2)
    noted = attack_on(model.backbone.embed, cfg, False).backward(passes_of(model, sets, share))
    for p, g in zip(list(model.heads.parameters()) + [model.backbone.embed.weight], wanted):
        torch.testing.assert_close(p.grad, g, rtol=1e-6, atol=1e-9)
    assert noted["virtual_loss"] > 0 and noted["attacks_skipped"] == 0


def test_the_virtual_direction_is_where_the_divergence_bends_most():
    """By hand: 200 random directions of the same length, none of which moves the model's opinion as far."""
    model, (tokens_BT, real_BT) = classifier(), texts(1)
    cfg = AdversarialConfig("vat", 1e-3, xi=1e-3, power_iterations=20)
    made, view = attack_on(model.backbone.embed, cfg, False), View(lambda: model(tokens_BT, real_BT), real_BT, 1.0)
    with torch.no_grad():
        told = view.says()
    r_BTD, _ = made._direction(view, told, torch.Generator().manual_seed(0))
    assert r_BTD.square().sum((1, 2)).sqrt().tolist() == pytest.approx([1e-3] * 3, rel=1e-6) and r_BTD[~real_BT].eq(0).all()

    def moved(r):
        handle = model.backbone.embed.register_forward_hook(lambda m, i, e: e + r)
        with torch.no_grad():
            said = view.says()
        handle.remove()
        return divergence_sum(told, said).item()

    others = [1e-3 * random_directions(real_BT, 60, torch.Generator().manual_seed(k)) for k in range(200)]
    assert moved(r_BTD) > 3 * max(map(moved, others))


def test_the_direction_is_found_at_the_loss_scale():
    """What reaches the tokens before the last through fp16 products is below fp16 where nothing lifts it."""
    model, tokens_BT, real_BT = Classifier(tiny.model(init_std=0.02), [2], "last"), tiny.tokens(4, 24), torch.ones(4, 24, dtype=torch.bool)
    made = attack_on(model.backbone.embed, AdversarialConfig("vat", EPS), False)
    with torch.no_grad():
        model.heads[0].weight.copy_(0.002 * tiny.normal(2, 60))  # as new as a head is at first

    def direction(dtype, scale):
        view = View(lambda: model(tokens_BT, real_BT), real_BT, scale / 4)
        with precision.casting(dtype):
            with torch.no_grad():
                told = view.says()
            return made._direction(view, told, torch.Generator().manual_seed(1))[0][:, :-1]

    wanted = direction(torch.float32, 1.0)
    torch.testing.assert_close(direction(torch.float32, 2.0**16), wanted, rtol=1e-4, atol=1e-6)
    assert (direction(torch.float16, 2.0**16) - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_direction_is_looked_for_in_fp32(monkeypatch, dtype):
    """In bf16 ξ d moves a logit by less than it is rounded by, and the direction would be chance."""
    model, (tokens_BT, real_BT) = Classifier(tiny.model(), GROUPS, "last"), texts(1)
    made = attack_on(model.backbone.embed, AdversarialConfig("vat", EPS, xi=1e-3), False)
    found, direction = [], made._direction

    def noting(*arguments):
        found.append(direction(*arguments)[0])
        return found[-1], torch.tensor(0)

    monkeypatch.setattr(made, "_direction", noting)
    for one in (torch.float32, dtype):
        with precision.casting(one):
            virtual, _ = made._divergence(View(lambda: model(tokens_BT, real_BT), real_BT, 1.0), torch.Generator().manual_seed(1))
        assert virtual > 0
    assert torch.equal(*found) and found[0].norm() > 0


def test_random_directions_have_length_one_in_every_example_and_nothing_on_padding():
    _, real_BT = texts(1)
    d_BTD = random_directions(real_BT, 60, torch.Generator().manual_seed(0))
    assert d_BTD.square().sum((1, 2)).tolist() == pytest.approx([1.0] * 3, rel=1e-6) and d_BTD[~real_BT].eq(0).all()
    assert abs(d_BTD.sum().item()) < 3 * math.sqrt(3)  # both signs


def test_no_text_moves_another(monkeypatch):
    model, (tokens_BT, real_BT) = classifier(), texts(1)
    begun_BTD = random_directions(real_BT, 60, torch.Generator().manual_seed(3))
    monkeypatch.setattr(vat, "random_directions", lambda real_BT, *rest: begun_BTD[:len(real_BT)])
    cfg = AdversarialConfig("vat", EPS, xi=XI)
    found = []
    for rows in (slice(0, 3), slice(0, 1)):
        said = []
        handle = model.backbone.layers[0].register_forward_pre_hook(lambda m, i: said.append(i[0].detach()))
        part = View(lambda r=rows: model(tokens_BT[r], real_BT[r]), real_BT[rows], 1.0)
        attack_on(model.backbone.embed, cfg, False).backward(Passes(lambda: part.says()[0].sum(), real_BT[rows], 3, [part]))
        handle.remove()
        found.append((said[-1] - said[0])[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-9)
