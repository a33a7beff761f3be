"""The Transformer: each equation against its sum in spelled.py, then the whole against itself by other roads."""

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
    CrossAttention,
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


def test_the_map_of_bf16_is_rounded_once():
    """The softmax of the bf16 scores is taken in fp32: the float64 one to the nearest bf16, but for rare ties."""
    q, k = tiny.normal(1, 2, 30, 8, dtype=torch.bfloat16), tiny.normal(1, 2, 40, 8, seed=3, dtype=torch.bfloat16)
    _, weights = spelled_attention(q, k, k)
    scores = (q @ k.mT / math.sqrt(8)).double()
    assert weights.dtype == torch.bfloat16
    assert int((weights != scores.softmax(-1).bfloat16()).sum()) < 5


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


@pytest.mark.parametrize("attention", ["fused", "spelled"])
@pytest.mark.parametrize("group", tiny.GROUPS)
@pytest.mark.parametrize("kind", ["encoder", "encoder_decoder"])
def test_the_model_is_the_papers_encoder_and_the_papers_encoder_decoder(kind, group, attention):
    model = architecture(kind, group, attention=attention, tie_embeddings=False, rope_theta=50.0).double()
    tokens_BT, source_BS = tiny.tokens(2, 5), tiny.tokens(2, 7, seed=4) if kind == "encoder_decoder" else None
    with torch.no_grad():
        logits_BTV = say(model, tokens_BT, source_BS)
    sources = [None] * 2 if source_BS is None else source_BS.tolist()
    close(logits_BTV, [spelled.transformer(model.state_dict(), model.cfg, row, source)
                       for row, source in zip(tokens_BT.tolist(), sources)])


def architecture(kind: str, group: str = "GQA", **changes) -> Transformer:
    return tiny.model(tiny.GROUPS[group], architecture=kind, **changes)


def say(model, tokens_BT, source_BS=None, real_BT=None, real_BS=None):
    """The logits, of a source where there is one."""
    sources = None if source_BS is None else model.encode(source_BS, real_BS)
    return model(tokens_BT, real_BT, sources=sources)


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


@pytest.mark.parametrize("padding", ["none", "left", "right", "holes"])
@pytest.mark.parametrize("group", tiny.GROUPS)
@pytest.mark.parametrize("kind", ["encoder", "encoder_decoder"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_spelled_and_fused_attention_agree_in_every_architecture(kind, group, padding, dtype, tolerance):
    results = []
    for attention in ("fused", "spelled"):
        model = architecture(kind, group, attention=attention).to(dtype)
        given = (tiny.tokens(4, 13, seed=4), mask(padding, 4, 11), mask(padding, 4, 13)) if kind != "encoder" else (
            None, mask(padding, 4, 11))
        with torch.no_grad():
            results.append(say(model, tiny.tokens(4, 11), *given))
    fused, spelt = results
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


def edited(tokens_BT, place: int):
    other_BT = tokens_BT.clone()
    other_BT[:, place] = (other_BT[:, place] + 1) % 53
    return other_BT


@pytest.mark.parametrize("attention", ["fused", "spelled"])
@pytest.mark.parametrize("place", [0, 4, 8])
def test_every_logit_of_an_encoder_sees_every_token(place, attention):
    model, tokens_BT = architecture("encoder", attention=attention), tiny.tokens(2, 9)
    assert ((model(tokens_BT) - model(edited(tokens_BT, place))).abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("attention", ["fused", "spelled"])
@pytest.mark.parametrize("place", [0, 4, 8])
def test_an_encoder_decoder_sees_all_of_the_source_and_the_past_of_the_target(place, attention):
    model, tokens_BT, source_BS = architecture("encoder_decoder", attention=attention), tiny.tokens(2, 9), tiny.tokens(2, 13, seed=4)
    before = say(model, tokens_BT, source_BS)
    change = (before - say(model, edited(tokens_BT, place), source_BS)).abs().amax(-1)
    assert (change[:, :place] == 0).all() and (change[:, place:] > 1e-3).all()
    for source_place in (0, place, 12):
        assert ((before - say(model, tokens_BT, edited(source_BS, source_place))).abs().amax(-1) > 1e-3).all()


def test_the_source_knows_its_order_and_the_target_counts_its_own_positions():
    """Cross-attention has no positions, but what it reads has: the encoder's. Each stack starts at 0."""
    model, tokens_BT, source_BS = architecture("encoder_decoder").double(), tiny.tokens(2, 5), tiny.tokens(2, 13, seed=4)
    before = say(model, tokens_BT, source_BS)
    assert ((before - say(model, tokens_BT, source_BS.flip(1))).abs().amax(-1) > 1e-3).all()
    output_BSD = tiny.normal(2, 13, 60)
    cross = model.layers[0].cross
    x_BTD = tiny.normal(2, 5, 60, seed=6)
    close(cross(x_BTD, cross.source(output_BSD, None)), cross(x_BTD, cross.source(output_BSD.flip(1), None)))
    close(cross(x_BTD, cross.source(output_BSD, None)).flip(1), cross(x_BTD.flip(1), cross.source(output_BSD, None)))


@pytest.mark.parametrize("attention", ["fused", "spelled"])
@pytest.mark.parametrize("group", tiny.GROUPS)
def test_cross_attention_is_the_papers_sum_and_its_gradients_are_the_slopes(group, attention):
    cfg = dataclasses.replace(tiny.GROUPS[group], d_model=12, attention=attention, architecture="encoder_decoder")
    cross = CrossAttention(cfg).double()
    with torch.no_grad():
        for seed, parameter in enumerate(cross.parameters()):
            parameter.copy_(tiny.normal(*parameter.shape, seed=seed))
    weights = {name: listed(p) for name, p in cross.named_parameters()}
    x_BTD, output_BSD = tiny.normal(2, 3, 12), tiny.normal(2, 4, 12, seed=3)
    real_BS = torch.tensor([[True] * 4, [True, False, True, False]])

    def mixed(x_BTD, output_BSD):
        return cross(x_BTD, cross.source(output_BSD, real_BS[:, None, None]))

    for b in range(2):
        see = [real_BS[b].tolist()] * 3
        close(mixed(x_BTD, output_BSD)[b],
              spelled.sublayer_attention(weights, "", cfg, listed(x_BTD[b]), listed(output_BSD[b]), see, positions=False))
    assert torch.autograd.gradcheck(mixed, (x_BTD.requires_grad_(), output_BSD.requires_grad_()))


@pytest.mark.parametrize("kind", ["decoder", "encoder", "encoder_decoder"])
def test_sources_are_for_an_encoder_decoder_and_for_no_other(kind):
    model = architecture(kind)
    sources = architecture("encoder_decoder").encode(tiny.tokens(1, 5))
    with pytest.raises(ValueError, match=f"architecture '{kind}' with"):
        model(tiny.tokens(1, 5), sources=None if kind == "encoder_decoder" else sources)


@pytest.mark.parametrize(("kind", "length"), [("encoder", 30), ("encoder_decoder", 30)])
def test_what_is_looked_at_both_ways_ends_with_the_context_too(kind, length):
    model = architecture(kind)
    look = model if kind == "encoder" else model.encode
    look(tiny.tokens(1, 29))
    with pytest.raises(ValueError, match=r"0 \+ 30 tokens do not fit the context of 29"):
        look(tiny.tokens(1, length))


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
    size = {"B": {4}, "T": {11, 17}, "S": {11, 17}, "D": {60}, "V": {53}, "H": {6}, "G": {3}, "K": {10}, "P": {5},
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
            architecture("encoder", attention="spelled")(tiny.tokens(4, 11), mask("left", 4, 11))
            say(architecture("encoder_decoder", attention="spelled"), tiny.tokens(4, 11), tiny.tokens(4, 17),
                mask("left", 4, 11), mask("left", 4, 17))
    finally:
        sys.setprofile(None)
    assert not wrong
    assert names >= {"q_BHTK", "k_BGSK", "scores_BHTS", "map_BHTS", "x_BTD", "places_T", "places_BT", "see_TS",
                     "real_BS", "gain_D", "output_BSD", "source_BS", "x_BSD", "seen_BT"}


# ── parameters ───────────────────────────────────────────────────────────────────────────────────


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


@pytest.mark.parametrize("attention", ["fused", "spelled"])
@pytest.mark.parametrize("chunks", [[13], [5, 8], [1] * 13], ids=str)
def test_cached_logits_about_a_source_are_the_uncached_ones(chunks, attention):
    """Rows of different lengths on both sides; the source is encoded once and stays."""
    model = architecture("encoder_decoder", attention=attention)
    tokens_BT, real_BT, source_BS, real_BS = tiny.tokens(4, 13), mask("left", 4, 13), tiny.tokens(4, 17), mask("right", 4, 17)
    cache, parts, start = KVCache(model.cfg, 4, 13), [], 0
    with torch.no_grad():
        sources = model.encode(source_BS, real_BS)
        for length in chunks:
            end = start + length
            parts.append(model(tokens_BT[:, start:end], real_BT[:, start:end], cache, sources))
            start = end
        expected = say(model, tokens_BT, source_BS, real_BT, real_BS)
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


@pytest.mark.parametrize("kind", ["encoder", "encoder_decoder"])
def test_the_maps_of_an_encoder_look_ahead_and_those_of_a_decoder_that_reads_do_not(kind):
    model, maps = architecture(kind).double(), []
    sources = model.encode(tiny.tokens(2, 9)) if kind == "encoder_decoder" else None
    hidden = model.hidden(tiny.tokens(2, 7), maps=maps, sources=sources)
    close(hidden, model.hidden(tiny.tokens(2, 7), sources=sources))
    assert [tuple(m.shape) for m in maps] == [(2, 6, 7, 7)] * 2
    for map_BHTS in maps:
        close(map_BHTS.sum(-1), torch.ones(2, 6, 7))
        ahead = map_BHTS.detach().triu(1)
        assert float(ahead.abs().max()) == 0 if kind == "encoder_decoder" else float(ahead.sum((-1, -2)).min()) > 0.1
