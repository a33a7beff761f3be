"""The decoder: each equation against its sum in spelled.py, then the whole against itself by other roads."""

import dataclasses
import math
import re
import sys

import pytest
import spelled
import tiny
import torch
import torch.nn.functional as F
from spelled import listed

from minialpaca import cache as cache_module
from minialpaca import model as model_module
from minialpaca.cache import KVCache
from minialpaca.model import (
    Transformer,
    causal,
    gated_swish,
    init_std,
    rms_norm,
    rotary_angles,
    rotate,
    spelled_attention,
)

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def close(a, b, **tolerance):
    torch.testing.assert_close(torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64),
                               **(tolerance or EXACT))


# ── equations ────────────────────────────────────────────────────────────────────────────────────


def test_rms_norm_is_the_papers_sum():
    x, gain = tiny.normal(3, 7) * 1e-2, tiny.normal(7, seed=3)  # small, so that ε matters
    close(rms_norm(x, gain, 1e-4), [spelled.rms_norm(row, listed(gain), 1e-4) for row in listed(x)])


def test_rms_norm_of_bf16_is_computed_in_fp32():
    """So that it is rounded once, at the end: the float64 result to the nearest bf16, but for rare ties in fp32."""
    x = tiny.normal(10_000).to(torch.bfloat16)
    out = rms_norm(x, torch.ones(10_000, dtype=torch.bfloat16), 1e-5)
    assert out.dtype == torch.bfloat16
    nearest = torch.tensor(spelled.rms_norm(listed(x), [1.0] * 10_000, 1e-5), dtype=torch.float64).bfloat16()
    assert int((out != nearest).sum()) < 10


def test_rotary_angles_are_positions_over_growing_wavelengths():
    positions = torch.tensor([0.0, 1.0, 6.0, 1000.0], dtype=torch.float64)
    cos, sin = rotary_angles(positions, 10, 500.0)
    angles = [[spelled.rotary_angle(m, i, 10, 500.0) for i in range(5)] for m in positions.tolist()]
    close(cos, torch.tensor(angles, dtype=torch.float64).cos())
    close(sin, torch.tensor(angles, dtype=torch.float64).sin())


def test_one_rotation_by_pencil_turns_adjacent_pairs():
    """θ = 100, K = 4, m = π/2: pair (0, 1) by 90°, pair (2, 3) by 9°."""
    cos, sin = rotary_angles(torch.tensor([math.pi / 2], dtype=torch.float64), 4, 100.0)
    turned = rotate(torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.float64), cos, sin)
    close(turned, [[0.0, 1.0, math.cos(math.pi / 20), math.sin(math.pi / 20)]])


def test_rotation_is_the_papers_matrix():
    x_BHTK = tiny.normal(2, 3, 5, 8)
    turned = rotate(x_BHTK, *rotary_angles(torch.arange(5, dtype=torch.float64), 8, 50.0))
    expected = [[[spelled.rotate(x, m, 50.0) for m, x in enumerate(head)] for head in row] for row in listed(x_BHTK)]
    close(turned, expected)


def test_rotated_scores_depend_on_the_distance_alone():
    q, k = tiny.normal(8), tiny.normal(8, seed=5)

    def score(m: float, n: float) -> float:
        at = [rotate(x[None], *rotary_angles(torch.tensor([p], dtype=torch.float64), 8, 100.0))
              for x, p in ((q, m), (k, n))]
        return float((at[0] * at[1]).sum())

    for further in (1, 100, 10_000):
        assert score(5, 0) == pytest.approx(score(further + 5, further), abs=1e-10)
    assert abs(score(5, 0) - score(0, 5)) > 0.1 and abs(score(5, 0) - score(4, 0)) > 0.1


def test_attention_is_the_papers_sum_under_any_mask():
    q, k, v = tiny.normal(2, 3, 5, 4), tiny.normal(2, 3, 7, 4, seed=3), tiny.normal(2, 3, 7, 4, seed=4)
    may_look = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    may_look[..., 3] = True
    mix, weights = spelled_attention(q, k, v, may_look)
    for b in range(2):
        for h in range(3):
            heads = spelled.attention(listed(q[b, h]), listed(k[b, h]), listed(v[b, h]), may_look[b, 0].tolist())
            close(mix[b, h], heads[0])
            close(weights[b, h], heads[1])


def test_attention_without_a_mask_looks_at_all():
    q, k, v = tiny.normal(1, 1, 2, 4), tiny.normal(1, 1, 3, 4, seed=3), tiny.normal(1, 1, 3, 4, seed=4)
    mix, _ = spelled_attention(q, k, v)
    close(mix[0, 0], spelled.attention(listed(q[0, 0]), listed(k[0, 0]), listed(v[0, 0]), [[True] * 3] * 2)[0])


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (0, 4), (3, 1), (3, 4)])
def test_causal_lets_a_query_look_at_itself_and_before(offset, length):
    expected = [[s <= offset + t for s in range(offset + length)] for t in range(length)]
    assert causal(offset, length, torch.device("cpu")).tolist() == expected


def test_gated_swish_is_the_papers_product():
    gate, up = tiny.normal(9) * 3, tiny.normal(9, seed=3)
    close(gated_swish(gate, up), [spelled.swish(g) * u for g, u in zip(listed(gate), listed(up))])


def test_mlp_gates_with_gate_proj():
    mlp = tiny.model().double().layers[0].mlp
    x = tiny.normal(4, 60)
    weights = [listed(p.weight) for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
    close(mlp(x), [spelled.swiglu(row, *weights) for row in listed(x)])


@pytest.mark.parametrize("function", [
    lambda x: rms_norm(x, tiny.normal(6, seed=9), 1e-3),
    lambda x: rotate(x, *rotary_angles(torch.arange(3, dtype=torch.float64), 6, 10.0)),
    lambda x: gated_swish(x, x.flip(0)),
    lambda x: spelled_attention(x, x.flip(1), x * 2, causal(0, 3, x.device))[0],
], ids=["rms_norm", "rotate", "gated_swish", "spelled_attention"])
def test_gradients_are_the_slopes(function):
    assert torch.autograd.gradcheck(function, (tiny.normal(1, 2, 3, 6).requires_grad_(),))


# ── the whole decoder ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("attention", ["fused", "spelled"])
@pytest.mark.parametrize("group", tiny.GROUPS)
def test_the_model_is_the_papers_decoder(group, attention):
    model = tiny.model(tiny.GROUPS[group], attention=attention, tie_embeddings=False, rope_theta=50.0).double()
    tokens_BT = tiny.tokens(2, 7)
    with torch.no_grad():
        logits_BTV = model(tokens_BT)
    close(logits_BTV, [spelled.transformer(model.state_dict(), model.cfg, row) for row in tokens_BT.tolist()])


@pytest.mark.parametrize("padding", ["none", "left", "right", "holes"])
@pytest.mark.parametrize("group", tiny.GROUPS)
@pytest.mark.parametrize(("dtype", "tolerance"),
                         [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 0.06)])
def test_spelled_and_fused_attention_agree(group, padding, dtype, tolerance):
    attend = {kind: tiny.model(tiny.GROUPS[group], attention=kind).to(dtype) for kind in ("fused", "spelled")}
    tokens_BT, real_BT = tiny.tokens(4, 11), mask(padding, 4, 11)
    with torch.no_grad():
        fused, spelt = (attend[kind](tokens_BT, real_BT) for kind in ("fused", "spelled"))
    assert fused.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close(fused, spelt, rtol=0, atol=tolerance * float(fused.abs().max()))


def mask(padding: str, B: int, T: int):
    if padding == "none":
        return None
    if padding == "holes":
        return torch.rand(B, T, generator=torch.Generator().manual_seed(3)) < 0.6
    lengths = torch.tensor([T - 3 * b for b in range(B)])[:, None]
    place = torch.arange(T)
    return place >= T - lengths if padding == "left" else place < lengths


@pytest.mark.parametrize("group", ["GQA", "MQA"])
def test_grouped_queries_are_multi_head_with_repeated_weights(group):
    grouped = tiny.model(tiny.GROUPS[group]).double()
    full = tiny.model(tiny.MHA).double()
    weights = grouped.state_dict()
    for name in [n for n in weights if "k_proj" in n or "v_proj" in n]:
        heads = weights[name].split(10)
        weights[name] = torch.cat([heads[h * len(heads) // 6] for h in range(6)])
    full.load_state_dict(weights)
    close(full(tiny.tokens(2, 9)), grouped(tiny.tokens(2, 9)))


@pytest.mark.parametrize("attention", ["fused", "spelled"])
def test_an_edited_token_changes_only_what_stands_at_and_after_it(attention):
    model = tiny.model(attention=attention)
    tokens_BT = tiny.tokens(2, 9)
    edited_BT = tokens_BT.clone()
    edited_BT[:, 4] = (edited_BT[:, 4] + 1) % 53
    before, after = model(tokens_BT), model(edited_BT)
    assert torch.equal(before[:, :4], after[:, :4])
    assert ((before - after).abs().amax(-1) > 1e-3)[:, 4:].all()


def test_rotary_tables_stay_in_fp32_when_the_model_is_bf16():
    """In bf16 the positions 256 and 257 are one number; 1000 positions need all of fp32."""
    model = tiny.model(max_seq_len=1024).bfloat16()
    seen = []
    model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    with torch.no_grad():
        model(tiny.tokens(1, 1001))
    cos, sin = (table.reshape(1001, 5) for table in seen[0])
    assert cos.dtype == sin.dtype == torch.float32
    angles = torch.tensor([[spelled.rotary_angle(m, i, 10, 10_000.0) for i in range(5)] for m in range(1001)])
    close(cos, angles.cos(), rtol=0, atol=2e-4)
    close(sin, angles.sin(), rtol=0, atol=2e-4)
    x = tiny.normal(1001, 10).bfloat16()
    turned = rotate(x, cos, sin)
    assert turned.dtype == torch.bfloat16
    close(turned, [spelled.rotate(row, m, 10_000.0) for m, row in enumerate(listed(x))], rtol=2 ** -8, atol=2e-3)


def test_logits_and_loss_inputs_are_fp32_at_least():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        wanted = torch.float64 if dtype == torch.float64 else torch.float32
        assert tiny.model().to(dtype)(tiny.tokens(1, 3)).dtype == wanted


def test_the_tensor_names_end_in_their_axes():
    """Every local tensor of model.py and cache.py whose name ends in axes is measured when its function returns."""
    size = {"B": {4}, "T": {11}, "S": {11, 17}, "D": {60}, "V": {53}, "H": {6}, "G": {3}, "K": {10}, "P": {5},
            "F": {37}, "1": {1}, "L": {2}}
    files = {model_module.__file__, cache_module.__file__}
    wrong, names = [], set()

    def look(frame, event, arg):
        if event != "return" or frame.f_code.co_filename not in files:
            return
        for name, value in frame.f_locals.items():
            axes = re.search(r"_([BTSDVHGKPFL1]+)$", name)
            if axes and isinstance(value, torch.Tensor):
                names.add(name)
                allowed = [size[axis] | ({3} if axis == "H" and frame.f_code.co_name == "rotate" else set())
                           for axis in axes[1]]
                if len(allowed) != value.dim() or any(n not in a for n, a in zip(value.shape, allowed)):
                    wrong.append((frame.f_code.co_name, name, tuple(value.shape)))

    model = tiny.model(attention="spelled")
    cache = KVCache(model.cfg, 4, 17)
    sys.setprofile(look)
    try:
        with torch.no_grad():
            model(tiny.tokens(4, 11), mask("left", 4, 11))
            cache.advance(6)  # so that S = 17 beside T = 11
            cache.k_LBGSK.zero_(), cache.v_LBGSK.zero_()
            model(tiny.tokens(4, 11), None, cache)
            spelled_attention(*tiny.normal(3, 4, 6, 11, 10))
    finally:
        sys.setprofile(None)
    assert not wrong
    assert names >= {"q_BHTK", "k_BGSK", "scores_BHTS", "map_BHTS", "x_BTD", "places_T", "places_BT", "see_TS",
                     "real_BS", "gain_D"}


# ── parameters ───────────────────────────────────────────────────────────────────────────────────


def test_parameter_names_are_those_of_the_design():
    block = ["attn_norm", *(f"attn.{p}_proj" for p in "qkvo"), "mlp_norm"]
    block += [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    expected = {"embed.weight", "final_norm.weight", "lm_head.weight"}
    expected |= {f"layers.{i}.{name}.weight" for i in range(2) for name in block}
    assert set(tiny.model(tie_embeddings=False).state_dict()) == expected
    assert set(dict(tiny.model().named_parameters())) == expected - {"lm_head.weight"}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("group", "G"), [("MHA", 6), ("GQA", 3), ("MQA", 1)])
def test_the_parameter_count_is_the_formula(group, G, tied):
    V, D, L, H, K, inner = 53, 60, 2, 6, 10, 37
    expected = V * D * (1 if tied else 2) + L * (2 * D * H * K + 2 * D * G * K + 3 * D * inner + 2 * D) + D
    model = tiny.model(tiny.GROUPS[group], tie_embeddings=tied)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_a_tied_head_is_the_embedding_and_an_untied_one_is_not():
    tied, untied = tiny.model(), tiny.model(tie_embeddings=False)
    assert tied.lm_head.weight is tied.embed.weight
    assert not torch.equal(untied.lm_head.weight, untied.embed.weight)
    tied(tiny.tokens(1, 5)).sum().backward()
    hidden = tied.hidden(tiny.tokens(1, 5)).detach()
    unused = sorted(set(range(53)) - set(tiny.tokens(1, 5)[0].tolist()))  # these get a gradient as outputs alone
    close(tied.embed.weight.grad[unused], hidden.sum((0, 1)).expand(len(unused), 60), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("std", "n_layers"), [(0.02, 2), (0.02, 8), (0.1, 3)])
def test_initial_weights_have_the_spread_of_the_table(std, n_layers):
    """With n numbers the measured spread lies within std (1 ± 4/√(2n)), 99.99 % of the time; the seed is fixed."""
    cfg = dataclasses.replace(tiny.GQA, n_layers=n_layers, init_std=std, tie_embeddings=False)
    matrix = 60**-0.5
    expected_of = {"embed": std, "lm_head": std, "o_proj": matrix / (2 * n_layers) ** 0.5}
    expected_of["down_proj"] = expected_of["o_proj"]
    for name, parameter in Transformer(cfg, seed=1).named_parameters():
        if "norm" in name:
            assert init_std(cfg, name) is None and torch.equal(parameter, torch.ones(60))
            continue
        expected = expected_of.get(name.split(".")[-2], matrix)
        n = parameter.numel()
        assert init_std(cfg, name) == pytest.approx(expected)
        assert abs(float(parameter.detach().pow(2).mean().sqrt()) / expected - 1) < 4 / math.sqrt(2 * n), name
        assert abs(float(parameter.detach().mean())) < 4 * expected / math.sqrt(n), name
        assert float(parameter.detach().abs().max()) > 2.8 * expected, name  # a uniform of that spread ends at √3


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


# ── dropout ──────────────────────────────────────────────────────────────────────────────────────


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


@pytest.mark.parametrize("attention", ["fused", "spelled"])
def test_dropout_keeps_the_expected_attention(attention):
    """Uniform attention over equal values: each output is Bernoulli(0.7)/0.7 averaged, so 1 on the whole."""
    attn = tiny.model(attention=attention, dropout=0.3).layers[0].attn.train()
    ones = torch.ones(16, 6, 64, 10)
    torch.manual_seed(0)
    mix = attn._attend(ones, ones[:, :3], ones[:, :3], None, None)
    assert float(mix.mean()) == pytest.approx(1, abs=0.01) and float(mix.std()) > 0.05


# ── padding ──────────────────────────────────────────────────────────────────────────────────────


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


# ── cache and context ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("attention", ["fused", "spelled"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "left-padded"])
@pytest.mark.parametrize("chunks", [[13], [5, 8], [12, 1], [1] * 13], ids=str)
@pytest.mark.parametrize("group", tiny.GROUPS)
def test_cached_logits_are_the_uncached_ones_at_every_position(group, chunks, padded, attention):
    model = tiny.model(tiny.GROUPS[group], attention=attention)
    tokens_BT, real_BT = tiny.tokens(4, 13), mask("left", 4, 13) if padded else None
    cache, parts, start = KVCache(model.cfg, 4, 13), [], 0
    with torch.no_grad():
        for length in chunks:
            real = real_BT[:, start:start + length] if padded else None
            parts.append(model(tokens_BT[:, start:start + length], real, cache))
            start += length
        expected = model(tokens_BT, real_BT)
    real_BT = real_BT if padded else torch.ones(4, 13, dtype=torch.bool)
    close(torch.cat(parts, 1)[real_BT], expected[real_BT], rtol=0, atol=1e-5)


def test_padding_noted_in_the_first_chunk_is_remembered_in_later_ones():
    model, tokens_BT, real_BT = tiny.model(), tiny.tokens(4, 13), mask("left", 4, 13)
    cache = KVCache(model.cfg, 4, 13)
    with torch.no_grad():
        model(tokens_BT[:, :10], real_BT[:, :10], cache)
        later = [model(tokens_BT[:, t:t + 1], None, cache) for t in (10, 11, 12)]
        close(torch.cat(later, 1), model(tokens_BT, real_BT)[:, 10:], rtol=0, atol=1e-5)


def test_padding_that_first_comes_in_a_later_chunk_keeps_the_positions_of_the_earlier_one():
    model, tokens_BT = tiny.model(), tiny.tokens(4, 13)
    real_BT = mask("holes", 4, 13)
    real_BT[:, :6] = True
    cache = KVCache(model.cfg, 4, 13)
    with torch.no_grad():
        parts = [model(tokens_BT[:, :6], None, cache), model(tokens_BT[:, 6:], real_BT[:, 6:], cache)]
        close(torch.cat(parts, 1)[real_BT], model(tokens_BT, real_BT)[real_BT], rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [28, 29, 30])
def test_the_context_ends_where_the_config_says(length):
    if length <= 29:
        assert tiny.model()(tiny.tokens(1, length)).shape == (1, length, 53)
    else:
        with pytest.raises(ValueError, match=r"0 \+ 30 tokens do not fit the context of 29"):
            tiny.model()(tiny.tokens(1, length))


@pytest.mark.parametrize("more", [3, 4, 5])
def test_the_cache_ends_where_its_room_does(more):
    """20 tokens are in; the limit is 24: the sum counts, not the new tokens alone."""
    model, cache = tiny.model(), KVCache(tiny.GQA, 1, 24)
    model(tiny.tokens(1, 20), None, cache)
    if 20 + more <= 24:
        model(tiny.tokens(1, more), None, cache)
        assert cache.length == 20 + more
    else:
        with pytest.raises(ValueError, match=r"20 \+ 5 tokens do not fit the context of 24"):
            model(tiny.tokens(1, more), None, cache)


def test_the_maps_handed_out_are_those_that_attention_used():
    """Row t of every map sums to 1 over keys 0 … t; computed beside the fused path without changing it."""
    model, maps = tiny.model().double(), []
    hidden = model.hidden(tiny.tokens(2, 7), maps=maps)
    close(hidden, model.hidden(tiny.tokens(2, 7)))
    assert [tuple(m.shape) for m in maps] == [(2, 6, 7, 7)] * 2
    for map_BHTS in maps:
        close(map_BHTS.sum(-1), torch.ones(2, 6, 7))
        assert float(map_BHTS.detach().triu(1).abs().max()) == 0
