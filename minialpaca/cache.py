"""The KV cache: keys and values of past tokens, written in place into tensors allocated once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minialpaca.config import ModelConfig


@dataclass
class LayerCache:
    """One layer's part: room for S = max_len positions, of which `length` are taken."""

    k_BGSK: Tensor
    v_BGSK: Tensor
    length: int

    def extend(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Write T new positions and return all that are taken then."""
        end = self.length + k_BGTK.shape[2]
        self.k_BGSK[:, :, self.length:end] = k_BGTK
        self.v_BGSK[:, :, self.length:end] = v_BGTK
        return self.k_BGSK[:, :, :end], self.v_BGSK[:, :, :end]


class KVCache:
    """Keys and values of every layer for B rows of at most `max_len` tokens, padding included."""

    def __init__(self, cfg: ModelConfig, batch: int, max_len: int, device: torch.device | str = "cpu",
                 dtype: torch.dtype = torch.float32, memory: tuple[Tensor, Tensor] | None = None):
        shape = (cfg.n_layers, batch, cfg.kv_heads, max_len, cfg.d_head)
        self.k_LBGSK, self.v_LBGSK = memory or (torch.empty(shape, device=device, dtype=dtype) for _ in range(2))
        self.real_BS = torch.ones(batch, max_len, dtype=torch.bool, device=device)
        self.padded = False
        self.max_len, self.length = max_len, 0

    def layer(self, i: int) -> LayerCache:
        return LayerCache(self.k_LBGSK[i], self.v_LBGSK[i], self.length)

    def note_real(self, real_BT: Tensor | None, new: int) -> Tensor | None:
        """Remember which of `new` tokens are real; returns that for all, None while there was no padding."""
        if real_BT is not None:
            self.real_BS[:, self.length:self.length + new] = real_BT
            self.padded = True
        return self.real_BS[:, :self.length + new] if self.padded else None

    def advance(self, new: int) -> None:
        self.length += new


def refuse_overflow(taken: int, new: int, limit: int) -> None:
    if taken + new > limit:
        raise ValueError(f"{taken} + {new} tokens do not fit the context of {limit}")
