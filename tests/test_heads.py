"""Pooling and heads: a text's logits are its own, wherever its padding is and whoever stands beside it."""

import pytest
import spelled
import tiny
import torch
from spelled import listed

from minialpaca.heads import Classifier, backbone_weights, pool
from minialpaca.optim import roles

WAYS = [("decoder", "last"), ("decoder", "mean"), ("encoder", "first"), ("encoder", "mean"), ("encoder", "last"),
        ("decoder", "max"), ("encoder", "max")]
REAL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 1]]).bool()


def classifier(architecture="decoder", pooling="last", n_classes=(3, 5), seed=0, **changes) -> Classifier:
    backbone = tiny.model(architecture=architecture, **changes)
    return Classifier(backbone, n_classes, pooling, seed).eval()


def placed(ids: list[int], at: list[int], width: int, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens at these places of a row, padding elsewhere."""
    tokens_BT, real_BT = torch.full((1, width), pad), torch.zeros(1, width, dtype=torch.bool)
    tokens_BT[0, at], real_BT[0, at] = torch.tensor(ids), True
    return tokens_BT, real_BT


# ── pool ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["last", "first", "mean", "max"])
def test_pool_is_the_papers_words(how):
    hidden = tiny.normal(5, 5, 7)
    expected = [spelled.pooled(h, r, how) for h, r in zip(listed(hidden), REAL.tolist())]
    torch.testing.assert_close(pool(hidden, REAL, how), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", ["last", "first", "mean", "max"])
def test_what_stands_on_padding_does_not_matter_even_where_it_is_no_number(how):
    hidden = tiny.normal(5, 5, 7).requires_grad_()
    spoilt = hidden.masked_fill(~REAL[..., None], float("nan"))
    torch.testing.assert_close(pool(spoilt, REAL, how), pool(hidden, REAL, how), rtol=0, atol=0)
    pool(hidden, REAL, how).square().sum().backward()
    assert (hidden.grad[~REAL] == 0).all() and hidden.grad.isfinite().all()
    assert bool(hidden.grad[1, 0].any()) == (how != "last")


@pytest.mark.parametrize("how", ["last", "first", "mean", "max"])
def test_the_gradient_of_a_pool_is_its_slope(how):
    assert torch.autograd.gradcheck(lambda h: pool(h, REAL, how), (tiny.normal(5, 5, 3).requires_grad_(),))


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="median"):
        pool(tiny.normal(5, 5, 7), REAL, "median")


# ── the classifier ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("architecture, how", WAYS)
@pytest.mark.parametrize("pad", [3, 2])  # 2 is </s> as well: no id tells where a text ends
def test_logits_do_not_depend_on_padding_or_its_side(architecture, how, pad):
    model = classifier(architecture, how)
    ids = [1, 17, 8, 40, 2]
    alone = model(torch.tensor([ids]), torch.ones(1, 5, dtype=torch.bool))
    assert [z.shape for z in alone] == [(1, 3), (1, 5)] and all(z.std() > 0.01 for z in alone)
    for at in ([0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [1, 2, 4, 6, 7], [0, 2, 3, 7, 8]):
        for z, expected in zip(model(*placed(ids, at, 9, pad)), alone):
            torch.testing.assert_close(z, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture, how", WAYS)
def test_logits_do_not_depend_on_neighbours_or_their_order(architecture, how):
    model = classifier(architecture, how)
    rows = [placed(tiny.tokens(n, seed=n).tolist(), list(range(n)), 9, 3) for n in (2, 9, 5, 1)]
    tokens_BT, real_BT = torch.cat([t for t, _ in rows]), torch.cat([r for _, r in rows])
    together = model(tokens_BT, real_BT)
    for order in ([3, 0, 2, 1], [2], [1, 2]):
        for z, other in zip(model(tokens_BT[order], real_BT[order]), together):
            torch.testing.assert_close(z, other[order], rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture, how", WAYS)
def test_a_head_is_the_pooled_state_times_its_matrix(architecture, how):
    model = classifier(architecture, how).double()
    with torch.no_grad():
        for head in model.heads:
            head.bias.normal_(generator=torch.Generator().manual_seed(3))
    tokens_BT, real_BT = tiny.tokens(3, 5), REAL[:3]
    hidden = listed(model.backbone.hidden(tokens_BT, real_BT))
    for head, z_BC in zip(model.heads, model(tokens_BT, real_BT)):
        pooled = [spelled.pooled(h, r, how) for h, r in zip(hidden, real_BT.tolist())]
        expected = [[y + b for y, b in zip(spelled.times(listed(head.weight), h), listed(head.bias))] for h in pooled]
        torch.testing.assert_close(z_BC, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_heads_start_small_from_the_seed_and_leave_the_backbone_alone():
    one, again, other = (classifier(n_classes=(300, 200), seed=s) for s in (4, 4, 5))
    for a, b, c in zip(one.heads, again.heads, other.heads):
        assert torch.equal(a.weight, b.weight) and not torch.equal(a.weight, c.weight) and not a.bias.any()
        assert float(a.weight.detach().std()) == pytest.approx(tiny.GQA.init_std, rel=0.05)
    assert not torch.equal(one.heads[0].weight[:200], one.heads[1].weight)
    for name, weight in backbone_weights(one.state_dict()).items():
        assert torch.equal(weight, tiny.model().state_dict()[name])
    plain = tiny.model().state_dict()
    assert backbone_weights(plain) is plain


def test_dropout_stands_before_the_heads_and_only_in_training():
    model = classifier(dropout=0.5)
    seen = []
    model.heads[0].register_forward_pre_hook(lambda module, args: seen.append((args[0] == 0).double().mean().item()))
    tokens_BT, real_BT = tiny.tokens(8, 5), torch.ones(8, 5, dtype=torch.bool)
    model(tokens_BT, real_BT)
    model.train()(tokens_BT, real_BT)
    assert seen[0] == 0 and 0.4 < seen[1] < 0.6


def test_an_untied_language_head_is_no_part_of_what_is_trained():
    for tied in (True, False):
        model = classifier(tie_embeddings=tied)
        trained = {id(p) for ps in roles(model).values() for p in ps}
        assert (id(model.backbone.lm_head.weight) in trained) is tied
        assert {id(head.weight) for head in model.heads} <= trained
