"""Parameters: names, number, gradients, initial spread."""

import dataclasses
import math

import pytest
import tiny
import torch
import torch.nn.functional as F
from asked import architecture, close, say

from minialpaca.model import Transformer, init_std


def test_parameter_names_are_those_of_the_design():
    block = ["attn_norm", *(f"attn.{p}_proj" for p in "qkvo"), "mlp_norm"]
    block += [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    expected = {"embed.weight", "final_norm.weight", "lm_head.weight"}
    expected |= {f"layers.{i}.{name}.weight" for i in range(2) for name in block}
    assert set(tiny.model(tie_embeddings=False).state_dict()) == expected
    assert set(dict(tiny.model().named_parameters())) == expected - {"lm_head.weight"}


def test_an_encoder_has_the_decoders_parameters_and_an_encoder_decoder_two_stacks_and_what_joins_them():
    decoder, encoder = tiny.model().state_dict(), architecture("encoder").state_dict()
    assert {n: p.shape for n, p in decoder.items()} == {n: p.shape for n, p in encoder.items()}
    both = architecture("encoder_decoder")
    names = {f"encoder.{n}" for n in decoder if n.startswith("layers") or n == "final_norm.weight"}
    names |= {f"layers.{i}.{n}.weight" for i in range(2) for n in ("cross_norm", *(f"cross.{p}_proj" for p in "qkvo"))}
    assert set(both.state_dict()) == set(decoder) | names
    for i in range(2):
        for p in "qkvo":
            assert both.layers[i].cross.get_submodule(f"{p}_proj").weight.shape == both.layers[i].attn.get_submodule(
                f"{p}_proj").weight.shape


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("group", "G"), [("MHA", 6), ("GQA", 3), ("MQA", 1)])
def test_the_parameter_count_is_the_formula(group, G, tied):
    V, D, L, H, K, inner = 53, 60, 2, 6, 10, 37
    expected = V * D * (1 if tied else 2) + L * (2 * D * H * K + 2 * D * G * K + 3 * D * inner + 2 * D) + D
    model = tiny.model(tiny.GROUPS[group], tie_embeddings=tied)
    assert sum(p.numel() for p in model.parameters()) == expected
    expected += L * (2 * D * H * K + 2 * D * G * K + 3 * D * inner + 2 * D) + D  # the encoder's stack
    expected += L * (2 * D * H * K + 2 * D * G * K + D)                          # cross-attention
    both = architecture("encoder_decoder", group, tie_embeddings=tied)
    assert sum(p.numel() for p in both.parameters()) == expected


@pytest.mark.parametrize("attention", ["fused", "spelled"])
@pytest.mark.parametrize("kind", ["decoder", "encoder", "encoder_decoder"])
def test_every_parameter_gets_a_gradient(kind, attention):
    """A tensor nobody uses has none; a matrix of which a head is dropped has a block of zeros."""
    model = architecture(kind, attention=attention, tie_embeddings=False).double()
    source_BS = tiny.tokens(8, 17, seed=4) if kind == "encoder_decoder" else None
    F.cross_entropy(say(model, tiny.tokens(8, 17), source_BS).flatten(0, 1), tiny.tokens(8, 17, seed=7).flatten()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and float((p.grad == 0).double().mean()) < (0.3 if "embed" in name else 1e-9), name


# What 2be0f0d, the last commit with nothing but a decoder, computed: Σ_i c_i w_i over its initial weights in order,
# and over its logits of tokens(3, 9), c going from −1 to 1 in equal steps.
DECODER_AT_2be0f0d = [
    ("MHA", True, 38.60625826946793, 11.206659014025165), ("MHA", False, 11.924029469384077, 48.84127971575906),
    ("GQA", True, 44.89155633407046, 96.04370717848487), ("GQA", False, 14.144164787069093, 13.208239515851993),
    ("MQA", True, 39.169514456825844, -56.119805185186465), ("MQA", False, 18.011229699091274, 0.14474760662654163),
]


@pytest.mark.parametrize(("group", "tied", "weights", "logits"), DECODER_AT_2be0f0d)
def test_the_decoder_is_what_it_was_before_it_had_company(group, tied, weights, logits):
    def weighted(x):
        return float((x * torch.linspace(-1, 1, len(x), dtype=torch.float64)).sum())

    model = Transformer(dataclasses.replace(tiny.GROUPS[group], tie_embeddings=tied), seed=5).eval().double()
    assert weighted(torch.cat([p.detach().flatten() for p in model.parameters()])) == pytest.approx(weights, abs=1e-9)
    with torch.no_grad():
        assert weighted(model(tiny.tokens(3, 9)).flatten()) == pytest.approx(logits, abs=1e-9)


def test_a_tied_head_is_the_embedding_and_an_untied_one_is_not():
    tied, untied = tiny.model(), tiny.model(tie_embeddings=False)
    assert tied.lm_head.weight is tied.embed.weight
    assert not torch.equal(untied.lm_head.weight, untied.embed.weight)
    tied(tiny.tokens(1, 5)).sum().backward()
    hidden = tied.hidden(tiny.tokens(1, 5)).detach()
    unused = sorted(set(range(53)) - set(tiny.tokens(1, 5)[0].tolist()))  # these get a gradient as outputs alone
    close(tied.embed.weight.grad[unused], hidden.sum((0, 1)).expand(len(unused), 60), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("std", "n_layers"), [(0.02, 2), (0.02, 8), (0.1, 3)])
@pytest.mark.parametrize("kind", ["decoder", "encoder", "encoder_decoder"])
def test_initial_weights_have_the_spread_of_the_table(kind, std, n_layers):
    """With n numbers the measured spread lies within std (1 ± 4/√(2n)), 99.99 % of the time; the seed is fixed."""
    cfg = dataclasses.replace(tiny.GQA, architecture=kind, n_layers=n_layers, init_std=std, tie_embeddings=False)
    matrix, seen = 60**-0.5, set()
    for name, parameter in Transformer(cfg, seed=1).named_parameters():
        seen.add(name)
        if "norm" in name:
            assert init_std(cfg, name) is None and torch.equal(parameter, torch.ones(60))
            continue
        # Two sub-layers write into the stream of a block, three in a decoder that reads a source.
        writers = 3 if kind == "encoder_decoder" and name.startswith("layers.") else 2
        residual = matrix / (writers * n_layers) ** 0.5
        expected = {"embed": std, "lm_head": std, "o_proj": residual, "down_proj": residual}.get(name.split(".")[-2], matrix)
        n = parameter.numel()
        assert init_std(cfg, name) == pytest.approx(expected)
        assert abs(float(parameter.detach().pow(2).mean().sqrt()) / expected - 1) < 4 / math.sqrt(2 * n), name
        assert abs(float(parameter.detach().mean())) < 4 * expected / math.sqrt(n), name
        assert float(parameter.detach().abs().max()) > 2.8 * expected, name  # a uniform of that spread ends at √3
    assert {"layers.1.cross.o_proj.weight", "encoder.layers.1.attn.o_proj.weight"} <= seen or kind != "encoder_decoder"


def test_initial_weights_are_fixed_by_the_seed_alone():
    def first(seed: int, world: int):
        torch.manual_seed(world)
        return torch.cat([p.detach().flatten() for p in Transformer(tiny.GQA, seed).parameters()])

    assert torch.equal(first(3, world=0), first(3, world=1))
    assert not torch.equal(first(3, world=0), first(4, world=0))


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_starts_at_the_log_of_the_vocabulary(tied):
    model = Transformer(dataclasses.replace(tiny.GQA, init_std=0.02, tie_embeddings=tied))
    loss = F.cross_entropy(model(tiny.tokens(8, 29)).flatten(0, 1), tiny.tokens(8, 29, seed=7).flatten())
    assert float(loss.detach()) == pytest.approx(math.log(53), abs=0.05)
