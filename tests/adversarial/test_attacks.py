"""What an attack adds to the gradient, against the same perturbation put in by hand; and what must not change it."""

import pytest
import spelled
import tiny
import torch
from added import Added
from torch import nn

from minialpaca.adversarial import Passes, attack_on, fault_of
from minialpaca.adversarial.direction import drawn
from minialpaca.adversarial.embedded import perturbed
from minialpaca.adversarial.matrix import moved
from minialpaca.config import AdapterConfig, AdversarialConfig, LossConfig
from minialpaca.data.batch import collate, collate_masked, collate_sources
from minialpaca.errors import UserError
from minialpaca.heads import Classifier
from minialpaca.objectives import IGNORE, label_groups_sum, next_token_pairs
from minialpaca.peft import apply
from minialpaca.tasks import next_token_loss
from minialpaca.tasks.pretrain import masked_loss, source_loss

PAD, EPS = 3, 0.5
ROWS = [([4, 5, 6, 7, 8], [IGNORE, IGNORE, 6, 7, 8]), ([9, 10, 11], [IGNORE, 10, 11]), ([12, 4, 13, 14], [IGNORE, 4, 13, 14])]
METHODS = ("fgm", "fgsm", "pgd", "freelb", "matrix")


def attack(model, method="fgm", is_tied=False, **settings):
    return attack_on(model.embed, AdversarialConfig(method, EPS, **settings), is_tied)


def loss_of(model, batch, scale=1.0, seed=0):
    def loss():
        torch.manual_seed(seed)
        return scale * next_token_loss(model, batch) / 7
    return loss


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(found, wanted, **tolerance):
    assert found.keys() == wanted.keys() and found
    for name in found:
        torch.testing.assert_close(found[name], wanted[name], **tolerance)


def by_hand(model, loss, r_BTD=None):
    """(L, {name: gradient}) at e + r, and ∂L/∂e; .grad is left clear."""
    model.zero_grad()
    embed = model.embed
    r_BTD = r_BTD.clone().requires_grad_() if r_BTD is not None else None
    if r_BTD is not None:
        model.embed = Added(embed, r_BTD)
    try:
        value = loss()
        value.backward()
    finally:
        model.embed = embed
    found = gradients(model)
    model.zero_grad()
    return value.detach(), found, None if r_BTD is None else r_BTD.grad


def wanted_of(method, model, loss, batch, c=1.0, a=1.0, steps=3, alpha=EPS):
    """({name: gradient}, L, L_adv) by loops over the papers' algorithms."""
    zero = torch.zeros(*batch.embedded_BT.shape, model.cfg.d_model, dtype=torch.float64)
    clean, by_clean, g = by_hand(model, loss, zero)
    lists = [spelled.listed(x) for x in g]
    if method == "matrix":
        weight = model.embed.weight
        G = by_clean["embed.weight"]
        with torch.no_grad():
            before = weight.clone()
            weight += torch.tensor(spelled.steepest_l2(spelled.listed(G), EPS), dtype=torch.float64)
        adversarial, by_adversarial, _ = by_hand(model, loss)
        with torch.no_grad():
            weight.copy_(before)
    else:
        if method == "pgd":
            r = [spelled.stretched(x, 0.0) for x in lists]
            for _ in range(steps):
                g = by_hand(model, loss, torch.tensor(r, dtype=torch.float64))[2]
                r = [spelled.ascended(x, spelled.listed(y), alpha, EPS) for x, y in zip(r, g)]
        else:
            r = [{"fgm": spelled.steepest_l2, "fgsm": spelled.steepest_max}[method](x, EPS) for x in lists]
        adversarial, by_adversarial, _ = by_hand(model, loss, torch.tensor(r, dtype=torch.float64))
    return {name: c * by_clean[name] + a * by_adversarial[name] for name in by_clean}, clean, adversarial


# ── the gradient ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, 2.0), (0.0, 1.0)])
@pytest.mark.parametrize("method", ["fgm", "fgsm", "pgd", "matrix"])
def test_the_gradient_is_that_of_both_losses(method, weights, tied):
    model, batch = tiny.model(tie_embeddings=tied).double().train(), collate(ROWS, PAD)
    loss, (c, a) = loss_of(model, batch), weights
    settings = {"steps": 3, "step_size": 0.3} if method == "pgd" else {"tied": True} if method == "matrix" else {}
    wanted, clean, adversarial = wanted_of(method, model, loss, batch, c, a, alpha=0.3)
    made = attack(model, method, tied, clean_weight=c, adversarial_weight=a, **settings)
    noted = made.backward(Passes(loss, batch.embedded_BT, 0))
    same(gradients(model), wanted, rtol=1e-9, atol=1e-12)
    assert noted["loss"].item() == pytest.approx(clean.item(), rel=1e-12)
    assert noted["adversarial_loss"].item() == pytest.approx(adversarial.item(), rel=1e-9)
    assert noted["adversarial_loss"] > noted["loss"] and noted["attacks_skipped"] == 0


def test_freelb_is_the_mean_of_the_gradients_on_the_way_up():
    model, batch = tiny.model().double().train(), collate(ROWS, PAD)
    loss = loss_of(model, batch)
    noted = attack(model, "freelb", steps=3, step_size=0.2).backward(Passes(loss, batch.embedded_BT, 5))
    found, losses = gradients(model), []
    bound = EPS / (model.cfg.d_model * batch.embedded_BT.sum(1)).double().sqrt()[:, None, None]
    drawn = torch.rand(*batch.embedded_BT.shape, model.cfg.d_model, generator=torch.Generator().manual_seed(5)).double()
    delta = (bound * (2 * drawn - 1) * batch.embedded_BT[..., None]).tolist()
    wanted = {}
    for _ in range(3):
        value, part, g = by_hand(model, loss, torch.tensor(delta, dtype=torch.float64))
        losses.append(value.item())
        wanted = {name: wanted.get(name, 0) + x / 3 for name, x in part.items()}
        delta = [spelled.ascended(x, spelled.listed(y), 0.2, EPS) for x, y in zip(delta, g)]
    same(found, wanted, rtol=1e-5, atol=1e-8)  # what is drawn is fp32
    assert noted["loss"].item() == pytest.approx(sum(losses) / 3, rel=1e-6) and losses == sorted(losses)


def test_without_an_attack_the_gradient_is_the_losses():
    model, batch = tiny.model().double(), collate(ROWS, PAD)
    wanted, value = by_hand(model, loss_of(model, batch))[1::-1]
    noted = attack_on(model.embed, AdversarialConfig(), False).backward(Passes(loss_of(model, batch), batch.embedded_BT, 0))
    same(gradients(model), wanted, rtol=0, atol=0)
    assert noted == {"loss": value}


# ── the perturbation ─────────────────────────────────────────────────────────────────────────────


def perturbation(model, batch, method="fgm", scale=1.0, dtype=None, **settings):
    """What reached the model in the attack's last pass, less what the embedding says."""
    said, made = [], attack(model, method, **settings)
    with perturbed_watch(model, said):
        made.backward(Passes(loss_of(model, batch, scale), batch.embedded_BT, 0))
    return (said[-1] - said[0]).detach()


class perturbed_watch:
    """Notes the first thing that a layer is given, pass by pass."""

    def __init__(self, model, said):
        self.model, self.said = model, said

    def __enter__(self):
        self.handle = self.model.layers[0].register_forward_pre_hook(lambda m, inputs: self.said.append(inputs[0].detach()))

    def __exit__(self, *_):
        self.handle.remove()


@pytest.mark.parametrize("method, settings", [("fgm", {}), ("pgd", {"step_size": 0.4})])
def test_every_examples_perturbation_has_the_length_asked_for(method, settings):
    r_BTD = perturbation(tiny.model().double().train(), collate(ROWS, PAD), method, **settings)
    assert r_BTD.square().sum((1, 2)).sqrt().tolist() == pytest.approx([EPS] * 3, rel=1e-9)


@pytest.mark.parametrize("method", ["fgm", "fgsm", "pgd"])
def test_a_perturbation_does_not_know_its_neighbours_nor_the_padding(method):
    model = tiny.model().double().train()
    alone = perturbation(model, collate(ROWS[1:2], PAD), method)
    joined = perturbation(model, collate(ROWS, PAD), method)
    n = alone.shape[1]
    torch.testing.assert_close(joined[1:2, :n], alone, rtol=1e-9, atol=1e-12)
    assert joined[1, n:].eq(0).all() and joined.shape[1] > n


@pytest.mark.parametrize("method", ["fgm", "fgsm", "pgd"])
def test_a_loss_scale_changes_nothing(method):
    model, batch = tiny.model().train(), collate(ROWS, PAD)
    torch.testing.assert_close(perturbation(model, batch, method, 2.0**16), perturbation(model, batch, method), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_what_was_accumulated_before_changes_nothing(method):
    model, batches = tiny.model().double().train(), [collate(rows, PAD) for rows in (ROWS[:1], ROWS[1:])]
    wanted = {}
    for batch in batches:
        model.zero_grad()
        attack(model, method).backward(Passes(loss_of(model, batch), batch.embedded_BT, 0))
        wanted = {name: g + wanted.get(name, 0) for name, g in gradients(model).items()}
    model.zero_grad()
    for batch in batches:
        attack(model, method).backward(Passes(loss_of(model, batch), batch.embedded_BT, 0))
    same(gradients(model), wanted, rtol=1e-9, atol=1e-12)


def test_the_loss_rises_along_the_gradient_as_fast_as_its_norm_says():
    model, batch = tiny.model(dropout=0.3).double().train(), collate(ROWS, PAD)
    loss = loss_of(model, batch)
    with perturbed(model.embed) as seen:
        loss().backward()
    slope = seen.gradient().square().sum((1, 2)).sqrt().sum().item()
    for eps in (1e-4, 1e-5):
        noted = attack_on(model.embed, AdversarialConfig("fgm", eps), False).backward(Passes(loss, batch.embedded_BT, 0))
        rise = (noted["adversarial_loss"] - noted["loss"]).item()
        assert rise == pytest.approx(eps * slope, rel=1e3 * eps)  # the same units are dropped in both passes, or it could fall


@pytest.mark.parametrize("method", ["fgm", "fgsm", "pgd", "freelb"])
def test_an_example_without_a_gradient_is_counted_once_however_many_passes(method):
    model, batch = tiny.model().double(), collate([*ROWS[:2], ([4, 5], [IGNORE, IGNORE])], PAD)
    noted = attack(model, method).backward(Passes(loss_of(model, batch), batch.embedded_BT, 0))
    assert noted["attacks_skipped"] == 1


@pytest.mark.parametrize("method, passes", [("pgd", 4), ("freelb", 3)])
@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_pass_that_breaks_on_the_way_is_counted(method, passes, broken):
    """PGD's passes between the first and the last touch no weight: a loss scaler would see nothing of them."""
    model, batch, number = tiny.model().double(), collate(ROWS, PAD), iter(range(passes))
    of_model = loss_of(model, batch)
    noted = attack(model, method, steps=3).backward(
        Passes(lambda: of_model() * (torch.inf if next(number) == broken else 1.0), batch.embedded_BT, 0))
    assert noted["attacks_skipped"] == len(ROWS) and next(number, None) is None


def test_the_matrix_attack_that_was_made_is_not_called_skipped_for_what_came_of_it():
    model, batch, number = tiny.model(tie_embeddings=False).double(), collate(ROWS, PAD), iter((1.0, torch.inf))
    of_model = loss_of(model, batch)
    noted = attack(model, "matrix").backward(Passes(lambda: of_model() * next(number), batch.embedded_BT, 0))
    assert noted["attacks_skipped"] == 0 and not noted["adversarial_loss"].isfinite()


def test_nothing_on_padding_enters_the_norm():
    """Of a loss that reads padding, too, the perturbation stands on the real places alone, and is as long."""
    model, batch = tiny.model().double(), collate(ROWS, PAD)
    of_model, said = loss_of(model, batch), []
    model.layers[0].register_forward_pre_hook(lambda layer, inputs: said.append(inputs[0]))
    attack(model).backward(Passes(lambda: of_model() + said[-1].square().sum(), batch.embedded_BT, 0))
    r_BTD = (said[1] - said[0]).detach()
    assert r_BTD[~batch.embedded_BT].eq(0).all() and not batch.embedded_BT.all()
    assert r_BTD.square().sum((1, 2)).sqrt().tolist() == pytest.approx([EPS] * len(ROWS))


def test_a_drawn_start_depends_on_the_place_in_the_batch():
    """Confessed in the ledger; within one batch it is the same whenever it is drawn."""
    long, short = torch.ones(2, 9, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)
    first, again, other = (drawn(real, 3, 1.0, torch.Generator().manual_seed(0)) for real in (short, short, long))
    assert torch.equal(first, again) and not torch.allclose(first[1] * 12**0.5, other[1, :4] * 27**0.5)
    assert not torch.allclose(first[0], first[1])


def test_what_an_attack_did_not_do_is_said():
    assert fault_of({"step": 3, "loss": 1.0, "adversarial_loss": 1.5, "attacks_skipped": 0.0}) is None and fault_of({"step": 1, "loss": 1.0}) is None
    assert fault_of({"step": 3, "loss": 1.0, "adversarial_loss": 1.5, "attacks_skipped": 2.0}).startswith("2 texts of step 3 were not attacked")
    assert "adversarial.xi" in fault_of({"step": 3, "loss": 1.0, "virtual_loss": 0.0, "attacks_skipped": 2.0})
    assert "moved nothing: virtual_loss is 0; raise adversarial.epsilon" in fault_of({"step": 3, "loss": 1.0, "virtual_loss": 0.0, "attacks_skipped": 0.0})
    assert "raise adversarial.epsilon" in fault_of({"step": 3, "loss": 1.0, "adversarial_loss": 1.0, "attacks_skipped": 0.0})


def test_an_example_without_a_gradient_is_left_alone():
    model, batch = tiny.model().double(), collate([*ROWS[:2], ([4, 5], [IGNORE, IGNORE])], PAD)
    said = perturbation(model, batch)
    assert said[2].eq(0).all() and said[0].ne(0).any()


def test_an_infinite_gradient_skips_the_attack_of_its_example_alone():
    model, batch = tiny.model().double(), collate(ROWS, PAD)
    inputs_BT, targets_BT = next_token_pairs(batch.tokens_BT, batch.labels_BT)

    def loss():
        losses_BT = nn.functional.cross_entropy(model(inputs_BT).mT, targets_BT, ignore_index=IGNORE, reduction="none")
        return losses_BT.sum(1) @ torch.tensor([1.0, torch.inf, 1.0], dtype=torch.float64)

    with perturbed_watch(model, said := []):
        noted = attack(model).backward(Passes(loss, batch.embedded_BT, 0))
    lengths = (said[1] - said[0]).square().sum((1, 2)).sqrt().tolist()
    assert noted["attacks_skipped"] == 1 and lengths == pytest.approx([EPS, 0.0, EPS])


@pytest.mark.parametrize("method", ["fgm", "fgsm", "pgd"])
def test_a_perturbation_can_be_found_without_training(method):
    model, batch = tiny.model().double(), collate(ROWS, PAD)
    r_BTD = attack(model, method).find(Passes(loss_of(model, batch), batch.embedded_BT, 0))
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(r_BTD, perturbation(model, batch, method), rtol=1e-9, atol=1e-12)


# ── nothing is left behind ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", METHODS)
def test_weights_and_hooks_are_as_before_also_after_an_exception(method):
    model, batch = tiny.model().train(), collate(ROWS, PAD)
    before, tensors = {n: p.clone() for n, p in model.named_parameters()}, {n: p.data_ptr() for n, p in model.named_parameters()}
    made, passes = attack(model, method), []

    def breaking():
        passes.append(1)
        if len(passes) == 2:
            raise KeyError("in the second pass")
        return loss_of(model, batch)()

    with pytest.raises(KeyError):
        made.backward(Passes(breaking, batch.embedded_BT, 0))
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) and p.data_ptr() == tensors[name], name
    assert not model.embed._forward_hooks
    made.backward(Passes(loss_of(model, batch), batch.embedded_BT, 0))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters()) and not model.embed._forward_hooks


def test_a_moved_matrix_comes_back_bit_for_bit_where_subtraction_would_round():
    weight = nn.Parameter(tiny.normal(50, 20, dtype=torch.float32))
    before, r = weight.detach().clone(), 1e3 * tiny.normal(50, 20, seed=9, dtype=torch.float32)
    assert not torch.equal(before + r - r, before)
    with moved(weight, r):
        assert torch.equal(weight, before + r)
    assert torch.equal(weight, before)


def test_an_attack_that_touches_nothing_is_an_error():
    model, other = tiny.model(), nn.Embedding(53, 60)
    for method in METHODS:
        made = attack_on(other, AdversarialConfig(method, EPS), False)
        with pytest.raises(RuntimeError, match="touched nothing"):
            made.backward(Passes(loss_of(model, collate(ROWS, PAD)), collate(ROWS, PAD).embedded_BT, 0))


def test_the_matrix_variant_refuses_what_it_would_do_wrong():
    tied, frozen = tiny.model(tie_embeddings=True), tiny.model()
    with pytest.raises(UserError, match="the embedding is the output head, too"):
        attack(tied, "matrix", is_tied=True)
    frozen.embed.requires_grad_(False)
    with pytest.raises(UserError, match="frozen and has no gradient"):
        attack(frozen, "matrix")


def test_attacks_on_outputs_leave_a_tied_head_alone():
    model, batch = tiny.model(tie_embeddings=True).double(), collate(ROWS, PAD)
    heads, loss = [], loss_of(model, batch)

    def watched():
        heads.append(model.lm_head.weight.detach().clone())
        return loss()

    attack(model, "fgm").backward(Passes(watched, batch.embedded_BT, 0))
    assert len(heads) == 2 and torch.equal(heads[0], heads[1])
    attack(model, "matrix", is_tied=True, tied=True).backward(Passes(watched, batch.embedded_BT, 0))
    assert len(heads) == 4 and not torch.equal(heads[2], heads[3])


# ── crossings ────────────────────────────────────────────────────────────────────────────────────

ADAPTERS = [AdapterConfig("lora", rank=2), AdapterConfig("dora", rank=2), AdapterConfig("houlsby", bottleneck=3),
            AdapterConfig("adalora", rank=2, target_rank=1.0, interval=1), AdapterConfig("prompt", length=2),
            AdapterConfig("prefix", length=2), AdapterConfig("freeze", layers="-1:")]


@pytest.mark.parametrize("method", ["fgm", "pgd", "freelb"])
@pytest.mark.parametrize("cfg", ADAPTERS, ids=lambda cfg: cfg.method)
def test_frozen_embeddings_are_attacked_as_trained_ones_are(cfg, method):
    """The gradient of what an adapter trains is that of a model in which everything is trained."""
    model, batch = tiny.model().double(), collate(ROWS, PAD)
    adapter = apply(model, cfg, 0)
    adapter.start(10)
    assert not model.embed.weight.requires_grad
    noted = attack(model, method).backward(Passes(loss_of(model, batch), batch.embedded_BT, 0))
    found = gradients(model)
    assert all(p.requires_grad for name, p in model.named_parameters() if name in found) and model.embed.weight.grad is None
    model.zero_grad()
    model.embed.weight.requires_grad_(True)
    again = attack(model, method).backward(Passes(loss_of(model, batch), batch.embedded_BT, 0))
    wanted = gradients(model)
    wanted.pop("embed.weight")
    same(found, wanted, rtol=1e-9, atol=1e-12)
    assert noted["loss"] == again["loss"] and noted["attacks_skipped"] == 0


@pytest.mark.parametrize("method", ["fgm", "pgd"])
@pytest.mark.parametrize("tie", [False, True])
def test_recomputed_layers_give_the_same_gradient(method, tie):
    model, batch = tiny.model(tie_embeddings=tie, dropout=0.2).double().train(), collate(ROWS, PAD)
    found = []
    for model.recompute in (False, True):
        model.zero_grad()
        attack(model, method).backward(Passes(loss_of(model, batch), batch.embedded_BT, 0))
        found.append(gradients(model))
    same(*found, rtol=1e-9, atol=1e-12)


def test_an_encoder_is_attacked_at_all_real_places():
    model = tiny.model(architecture="encoder").double()
    batch = collate_masked(ROWS, PAD)
    said, made = [], attack(model)
    with perturbed_watch(model, said):
        made.backward(Passes(lambda: masked_loss(model, batch, LossConfig()), batch.embedded_BT, 0))
    r_BTD = said[1] - said[0]
    assert r_BTD.square().sum((1, 2)).sqrt().tolist() == pytest.approx([EPS] * 3, rel=1e-9)
    assert torch.equal(r_BTD.ne(0).any(-1), batch.real_BT)


def test_source_and_target_are_one_sequence():
    model = tiny.model(architecture="encoder_decoder").double()
    batch = collate_sources([([4, 5, 6], [7, 8]), ([9, 10, 11, 12, 13], [14, 15, 16])], PAD)
    made, said, calls = attack(model), [], []
    handles = [model.encoder.layers[0].register_forward_pre_hook(lambda m, i: calls.append(i[0].detach())),
               model.layers[0].register_forward_pre_hook(lambda m, i: said.append(i[0].detach()))]
    made.backward(Passes(lambda: source_loss(model, batch, LossConfig()), batch.embedded_BT, 0))
    for handle in handles:
        handle.remove()
    r = torch.cat([calls[1] - calls[0], said[1] - said[0]], 1)
    assert r.square().sum((1, 2)).sqrt().tolist() == pytest.approx([EPS] * 2, rel=1e-9)
    assert batch.embedded_BT[0].tolist() == [True, True, True, False, False, True, True]
    assert r[0].ne(0).any(-1).tolist() == [True, True, True, False, False, True, False]  # of the last token nothing is asked
    assert r[1].ne(0).any(-1).all()


@pytest.mark.parametrize("pooling, architecture", [("last", "decoder"), ("mean", "encoder"), ("mean", "decoder")])
def test_a_classifier_is_attacked_the_same_way(pooling, architecture):
    backbone = tiny.model(architecture=architecture).double()
    model = Classifier(backbone, [3, 2], pooling).double()
    tokens_BT, real_BT = tiny.tokens(2, 6), torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    labels = (torch.tensor([0, 2]), torch.tensor([1, 0]))
    said = []
    with perturbed_watch(backbone, said):
        noted = attack_on(backbone.embed, AdversarialConfig("fgm", EPS), False).backward(Passes(
            lambda: label_groups_sum(model(tokens_BT, real_BT), labels), real_BT, 0))
    r_BTD = said[1] - said[0]
    assert r_BTD.square().sum((1, 2)).sqrt().tolist() == pytest.approx([EPS] * 2, rel=1e-9)
    assert r_BTD[~real_BT].eq(0).all() and noted["adversarial_loss"] > noted["loss"]
    assert all(head.weight.grad is not None for head in model.heads)
