"""Decoder, encoder, encoder-decoder: the whole against the papers' loops, and against itself by other roads."""

import dataclasses
import re
import sys

import pytest
import spelled
import tiny
import torch
from asked import architecture, close, mask, say
from spelled import listed

from minialpaca import cache as cache_module
from minialpaca import model as model_module
from minialpaca.cache import KVCache
from minialpaca.model import CrossAttention, rotate, spelled_attention


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
