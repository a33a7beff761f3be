"""With the cache as without, up to the context's end; the maps that are handed out."""

import pytest
import tiny
import torch
from asked import architecture, close, mask, say

from minialpaca.cache import KVCache


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
