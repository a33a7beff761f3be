"""Padding: what stands there changes nothing real."""

import pytest
import tiny
import torch
import torch.nn.functional as F
from asked import architecture, close, mask, say

from minialpaca.adversarial.embedded import perturbed
from minialpaca.config import LossConfig
from minialpaca.data.batch import collate, collate_masked
from minialpaca.heads import Classifier
from minialpaca.objectives import IGNORE, label_groups_sum
from minialpaca.tasks import next_token_loss
from minialpaca.tasks.pretrain import masked_loss


@pytest.mark.parametrize("attention", ["fused", "spelled"])
@pytest.mark.parametrize("padding", ["left", "right", "holes"])
def test_what_stands_on_padding_changes_no_real_logit_and_no_gradient(padding, attention):
    real_BT = mask(padding, 4, 11)
    results = []
    for filler in (0, 17):
        model = tiny.model(attention=attention, tie_embeddings=False).double()
        tokens_BT = tiny.tokens(4, 11).masked_fill(~real_BT, filler)
        logits = model(tokens_BT, real_BT)[real_BT]
        F.cross_entropy(logits, tiny.tokens(4, 11, seed=8)[real_BT]).backward()
        results.append((logits.detach(), {name: p.grad for name, p in model.named_parameters()}))
    (logits_a, grads_a), (logits_b, grads_b) = results
    close(logits_a, logits_b)
    for name in grads_a:
        close(grads_a[name], grads_b[name])


@pytest.mark.parametrize("attention", ["fused", "spelled"])
@pytest.mark.parametrize("padding", ["left", "right", "holes"])
def test_a_padded_row_has_the_logits_it_has_alone(padding, attention):
    model = tiny.model(attention=attention).double()
    tokens_BT, real_BT = tiny.tokens(4, 11), mask(padding, 4, 11)
    logits_BTV = model(tokens_BT, real_BT)
    for b in range(4):
        close(logits_BTV[b][real_BT[b]], model(tokens_BT[b:b + 1, real_BT[b]])[0])


@pytest.mark.parametrize("attention", ["fused", "spelled"])
def test_a_row_of_nothing_but_padding_is_finite_forwards_and_backwards(attention):
    real_BT = torch.ones(3, 7, dtype=torch.bool)
    real_BT[1] = False
    real_BT[2, :6] = False
    model = tiny.model(attention=attention)
    logits = model(tiny.tokens(3, 7), real_BT)
    logits[real_BT].logsumexp(-1).sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def written(model, tokens_BT, source_BS, real_BT, real_BS):
    """Real logits, and the gradients of a loss over them."""
    logits = say(model, tokens_BT, source_BS, real_BT, real_BS)[real_BT]
    F.cross_entropy(logits, tiny.tokens(*real_BT.shape, seed=8)[real_BT]).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("attention", ["fused", "spelled"])
@pytest.mark.parametrize("padding", ["left", "right", "holes"])
@pytest.mark.parametrize("kind", ["encoder", "encoder_decoder"])
def test_padding_of_source_and_target_changes_no_real_logit_and_no_gradient(kind, padding, attention):
    """Neither what stands on it (0 or 17) nor that it is there (each row alone, without any)."""
    two = kind == "encoder_decoder"
    real_BT, real_BS = mask(padding, 4, 11), mask(padding, 4, 13).flip(0) if two else None
    tokens_BT, source_BS = tiny.tokens(4, 11), tiny.tokens(4, 13, seed=4) if two else None
    model = architecture(kind, attention=attention, tie_embeddings=False).double()
    results = []
    for filler in (0, 17):
        model.zero_grad()
        padded_BS = source_BS.masked_fill(~real_BS, filler) if two else None
        results.append(written(model, tokens_BT.masked_fill(~real_BT, filler), padded_BS, real_BT, real_BS))
    (logits_a, grads_a), (logits_b, grads_b) = results
    close(logits_a, logits_b)
    for name in grads_a:
        close(grads_a[name], grads_b[name])
    with torch.no_grad():
        alone = [say(model, tokens_BT[b:b + 1, real_BT[b]], source_BS[b:b + 1, real_BS[b]] if two else None)[0]
                 for b in range(4)]
    close(logits_a, torch.cat(alone))


@pytest.mark.parametrize("attention", ["fused", "spelled"])
@pytest.mark.parametrize("kind", ["encoder", "encoder_decoder"])
def test_a_row_of_nothing_but_padding_is_finite_in_every_architecture(kind, attention):
    real_BT = torch.ones(3, 7, dtype=torch.bool)
    real_BT[1], real_BT[2, :6] = False, False
    model = architecture(kind, attention=attention)
    given = (tiny.tokens(3, 7, seed=4), real_BT, real_BT) if kind == "encoder_decoder" else (None, real_BT)
    logits = say(model, tiny.tokens(3, 7), *given)
    logits[real_BT].logsumexp(-1).sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def decoder_loss(rows, filler):
    model = tiny.model(tie_embeddings=False).double()
    return model, model.embed, lambda: next_token_loss(model, collate([(ids, ids) for ids in rows], filler))


def encoder_loss(rows, filler):
    model = architecture("encoder", tie_embeddings=False).double()
    return model, model.embed, lambda: masked_loss(model, collate_masked([(ids, ids) for ids in rows], filler), LossConfig())


def classifier_loss(kind, pooling):
    def made(rows, filler):
        model = Classifier(architecture(kind, tie_embeddings=False), (3, 5), pooling).double().eval()
        batch, labels = collate([(ids, ids) for ids in rows], filler), torch.tensor([i % 3 if ids else IGNORE for i, ids in enumerate(rows)])
        return model, model.backbone.embed, lambda: label_groups_sum(model(batch.tokens_BT, batch.real_BT), [labels, labels])

    return made


LOSSES = {"decoder": decoder_loss, "encoder": encoder_loss} | {
    f"classifier, {kind}, {pooling}": classifier_loss(kind, pooling)
    for kind in ("decoder", "encoder") for pooling in ("last", "first", "mean", "max")}


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_a_row_of_nothing_but_padding_adds_nothing_to_loss_and_gradient(make):
    rows, results = [tiny.tokens(n, seed=n).tolist() for n in (5, 9, 2)], []
    for filler, padded in ((3, [*rows, []]), (17, [*rows, []]), (3, rows)):
        model, embedding, loss = make(padded, filler)
        with perturbed(embedding) as seen:
            value = loss()
        value.backward()
        assert value.isfinite() and value > 1
        e_BTD = seen.gradient()
        assert e_BTD[:3].any(-1).any(-1).all() and e_BTD.isfinite().all() and not e_BTD[3:].any()  # 0, exactly
        results.append((value.detach(), [p.grad for p in model.parameters() if p.grad is not None]))
    (one, of_one), (other, of_other), (without, of_without) = results
    assert one == other and all(map(torch.equal, of_one, of_other))
    close(one, without)
    assert len(of_one) == len(of_without) > 10 and all(p.isfinite().all() for p in of_one)
    for a, b in zip(of_one, of_without):
        close(a, b)
