"""Dropout: where it acts, when, and what it keeps in the mean."""

import pytest
import tiny
import torch
from asked import architecture, say

from minialpaca.model import Transformer


def only(model: Transformer, site: str) -> Transformer:
    """Leave dropout on in one of its four places."""
    if site != "embedding":
        model.dropout.p = 0.0
    for layer in model.layers:
        if site != "map":
            layer.attn.dropout = 0.0
        if site not in ("attention", "mlp"):
            layer.dropout.p = 0.0
        with torch.no_grad():
            if site == "attention":
                layer.mlp.down_proj.weight.zero_()
            if site == "mlp":
                layer.attn.o_proj.weight.zero_()
    return model


@pytest.mark.parametrize("attention", ["fused", "spelled"])
@pytest.mark.parametrize("site", ["embedding", "map", "attention", "mlp"])
def test_dropout_acts_in_training_and_never_in_evaluation(site, attention):
    model = only(tiny.model(attention=attention, dropout=0.3), site)
    plain = only(tiny.model(attention=attention), site)
    tokens_BT = tiny.tokens(2, 9)
    with torch.no_grad():
        assert torch.equal(model(tokens_BT), plain(tokens_BT))
        model.train(), plain.train()
        assert torch.equal(plain(tokens_BT), plain(tokens_BT))
        torch.manual_seed(0)
        first, second = model(tokens_BT), model(tokens_BT)
    assert (first - second).abs().max() > 1e-2


def switched_on(model: Transformer, site: str) -> Transformer:
    """Dropout in one of the places that an encoder–decoder adds, and nowhere else."""
    last = model.layers[-1]
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    if site.endswith("map"):
        (last.cross if site == "cross map" else model.encoder.layers[-1].attn).dropout = 0.3
    else:
        {"source": model.dropout, "encoder": model.encoder.layers[-1].dropout, "cross": last.dropout}[site].p = 0.3
    if site == "cross":
        with torch.no_grad():
            last.attn.o_proj.weight.zero_(), last.mlp.down_proj.weight.zero_()
    return model


@pytest.mark.parametrize("attention", ["fused", "spelled"])
@pytest.mark.parametrize("site", ["source", "encoder", "encoder map", "cross map", "cross"])
def test_dropout_acts_on_what_is_read_too(site, attention):
    model = switched_on(architecture("encoder_decoder", attention=attention, dropout=0.3), site)
    tokens_BT, source_BS = tiny.tokens(2, 9), tiny.tokens(2, 13, seed=4)
    seen = []
    model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))  # the embedded target
    with torch.no_grad():
        assert torch.equal(say(model, tokens_BT, source_BS), say(model, tokens_BT, source_BS))
        model.train()
        torch.manual_seed(0)
        first, second = (say(model, tokens_BT, source_BS) for _ in range(2))
        read = [model.encode(source_BS)[0].k_BGSK for _ in range(2)]
    assert (first - second).abs().max() > 1e-2
    assert torch.equal(*read) == site.startswith("cross")
    assert torch.equal(*seen[-2:]) == (site != "source")


@pytest.mark.parametrize("attention", ["fused", "spelled"])
def test_dropout_keeps_the_expected_attention(attention):
    """Uniform attention over equal values: each output is Bernoulli(0.7)/0.7 averaged, so 1 on the whole."""
    attn = tiny.model(attention=attention, dropout=0.3).layers[0].attn.train()
    ones = torch.ones(16, 6, 64, 10)
    torch.manual_seed(0)
    mix = attn.attend(ones, ones[:, :3], ones[:, :3], None, None)
    assert float(mix.mean()) == pytest.approx(1, abs=0.01) and float(mix.std()) > 0.05
