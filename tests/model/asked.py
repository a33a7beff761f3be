"""How a tiny model of each architecture is asked, and what counts as equal."""

import tiny
import torch

from minialpaca.model import Transformer

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def close(a, b, **tolerance):
    torch.testing.assert_close(torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64),
                               **(tolerance or EXACT))


def architecture(kind: str, group: str = "GQA", **changes) -> Transformer:
    return tiny.model(tiny.GROUPS[group], architecture=kind, **changes)


def say(model, tokens_BT, source_BS=None, real_BT=None, real_BS=None):
    """The logits, of a source where there is one."""
    sources = None if source_BS is None else model.encode(source_BS, real_BS)
    return model(tokens_BT, real_BT, sources=sources)


def mask(padding: str, B: int, T: int):
    if padding == "none":
        return None
    if padding == "holes":
        return torch.rand(B, T, generator=torch.Generator().manual_seed(3)) < 0.6
    lengths = torch.tensor([T - 3 * b for b in range(B)])[:, None]
    place = torch.arange(T)
    return place >= T - lengths if padding == "left" else place < lengths
