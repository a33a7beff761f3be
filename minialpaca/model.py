"""The Transformer: its equations as pure functions, then the modules that hold their parameters.

    x⁰ = Embed(tokens)
    xˡ⁺½ = xˡ + Attention(RMSNorm(xˡ))
    xˡ⁺¹ = xˡ⁺½ + SwiGLU(RMSNorm(xˡ⁺½))          l = 0 … L−1
    logits = RMSNorm(xᴸ) W_headᵀ

A decoder's attention looks back, an encoder's both ways; a decoder with an encoder beside it attends to the
encoder's output between the two sub-layers.

Tensor names end in their axes:
    B batch   T query position   S key position   D model width   V vocabulary
    U places: the tokens, and what an adapter puts before them
    H query heads   G key/value heads   K head width   P = K/2 rotary pairs   F feed-forward width
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minialpaca import precision
from minialpaca.cache import KVCache, LayerCache, refuse_overflow
from minialpaca.compiled_forms import side_by_side, spelled_is_faster
from minialpaca.config import ModelConfig

# ── equations ────────────────────────────────────────────────────────────────────────────────────


def rms_norm(x: Tensor, gain_D: Tensor, norm_eps: float) -> Tensor:
    """RMSNorm(x)_i = g_i x_i / √(1/D Σ_j x_j² + ε)   [rmsnorm.4]

    x (…, D), computed in fp32, returned in x's dtype. Zhang & Sennrich 2019, eq. 4; ε as in Llama.
    """
    x32 = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + norm_eps)).to(x.dtype) * gain_D


def rotary_angles(positions: Tensor, d_head: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos mθ_i and sin mθ_i,  θ_i = θ^(−2i/K),  i = 0 … K/2 − 1   [rope.15]

    positions m (B, T) or (T,) → two tensors with a last axis of P = K/2. Always in fp32 (float64 for
    float64 positions): in bf16 positions above 256 fall together. Su et al. 2021, eq. 15.
    """
    m = positions if positions.dtype == torch.float64 else positions.float()
    i_P = torch.arange(d_head // 2, device=m.device, dtype=m.dtype)
    angles = m[..., None] * theta ** (-2 * i_P / d_head)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[x_2i, x_2i+1] ← [[cos mθ_i, −sin mθ_i], [sin mθ_i, cos mθ_i]] [x_2i, x_2i+1]   [rope.34]

    x (…, T, K); pairs are adjacent dimensions (2i, 2i+1), as in the papers of RoPE and Llama. cos and sin
    broadcast to (…, T, P). So q_m·k_n depends on m − n alone. Su et al. 2021, eq. 34.
    """
    even, odd = x.to(cos.dtype).view(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def spelled_attention(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, may_look: Tensor | None = None,
                      dropout: float = 0.0) -> tuple[Tensor, Tensor]:
    """Attention(Q, K, V) = softmax(QKᵀ/√d_k) V   [attention.1]

    may_look: True where query t may look at key s, broadcasts to (B, H, T, S); every row needs one True.
    Returns the mix (B, H, T, K) and the map softmax(…) (B, H, T, S). Softmax in fp32.
    Vaswani et al. 2017, eq. 1.
    """
    scores_BHTS = q_BHTK @ k_BHSK.mT / math.sqrt(q_BHTK.shape[-1])
    if may_look is not None:
        scores_BHTS = scores_BHTS.masked_fill(~may_look, -math.inf)
    map_dtype = torch.promote_types(scores_BHTS.dtype, torch.float32)
    map_BHTS = scores_BHTS.softmax(-1, dtype=map_dtype).to(q_BHTK.dtype)
    return F.dropout(map_BHTS, dropout) @ v_BHSK, map_BHTS


def causal(offset: int, length: int, device: torch.device) -> Tensor:
    """True where query t, at place offset + t, may look at key s: s ≤ offset + t."""
    t_T1 = torch.arange(offset, offset + length, device=device)[:, None]
    return torch.arange(offset + length, device=device) <= t_T1


def gated_swish(gate: Tensor, up: Tensor) -> Tensor:
    """SwiGLU(x) = (Swish(x W_gate) ⊙ x W_up) W_down,  Swish(z) = z σ(z)   [swiglu.6]

    The part between the matrices: gate = x W_gate and up = x W_up, both (…, F). Shazeer 2020, eq. 6.
    """
    return F.silu(gate) * up


# ── modules ──────────────────────────────────────────────────────────────────────────────────────


class RMSNorm(nn.Module):
    def __init__(self, width: int, norm_eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.norm_eps = norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.norm_eps)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; with G = H it is multi-head attention."""

    def __init__(self, cfg: ModelConfig, causal: bool = True):
        super().__init__()
        self.causal = causal
        self.n_heads, self.n_kv_heads, self.d_head = cfg.n_heads, cfg.kv_heads, cfg.d_head
        self.dropout, self.fused, self.context = cfg.dropout, cfg.attention == "fused", cfg.max_seq_len
        self.q_proj = nn.Linear(cfg.d_model, self.n_heads * self.d_head, bias=False)
        self.k_proj = nn.Linear(cfg.d_model, self.n_kv_heads * self.d_head, bias=False)
        self.v_proj = nn.Linear(cfg.d_model, self.n_kv_heads * self.d_head, bias=False)
        self.o_proj = nn.Linear(self.n_heads * self.d_head, cfg.d_model, bias=False)

    def forward(self, x_BTD: Tensor, angles: tuple[Tensor, Tensor], may_look: Tensor | None,
                cache: LayerCache | None, maps: list[Tensor] | None) -> Tensor:
        q_BHTK, k_BGSK, v_BGSK = self.project(x_BTD, angles, cache)
        return self.join(self.attend(q_BHTK, k_BGSK, v_BGSK, may_look, maps))

    def project(self, x_BTD: Tensor, angles: tuple[Tensor, Tensor], cache: LayerCache | None) -> tuple[Tensor, ...]:
        """Queries of these positions, keys and values of these and of all in the cache."""
        q, k, v = side_by_side(x_BTD, (self.q_proj, self.k_proj, self.v_proj))
        q_BHTK = rotate(self._heads(q, self.n_heads), *angles)
        k_BGTK = rotate(self._heads(k, self.n_kv_heads), *angles)
        v_BGTK = self._heads(v, self.n_kv_heads)
        return (q_BHTK, k_BGTK, v_BGTK) if cache is None else (q_BHTK, *cache.extend(k_BGTK, v_BGTK))

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:-1], heads, self.d_head).transpose(1, 2)

    def _for_each_query_head(self, x_BGSK: Tensor) -> Tensor:
        """g = ⌊hG/H⌋ is the key/value head of query head h   [gqa.1]   Ainslie et al. 2023, §2.2."""
        group = self.n_heads // self.n_kv_heads
        return x_BGSK if group == 1 else x_BGSK.repeat_interleave(group, dim=1)

    def join(self, mix_BHTK: Tensor) -> Tensor:
        return self.o_proj(mix_BHTK.transpose(1, 2).flatten(2))

    def attend(self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, may_look: Tensor | None,
                maps: list[Tensor] | None) -> Tensor:
        """may_look None: everything; where causal, one whole sequence, or a single new token, which may look at all."""
        k_BHSK, v_BHSK = self._for_each_query_head(k_BGSK), self._for_each_query_head(v_BGSK)
        T, dropout = q_BHTK.shape[2], self.dropout if self.training else 0.0
        if self.fused and maps is None and not spelled_is_faster(q_BHTK, self.context):
            looks_back = self.causal and may_look is None
            if T == 1:
                looks_back = False
            return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=may_look, dropout_p=dropout, is_causal=looks_back)
        if may_look is None and self.causal:
            may_look = causal(k_BHSK.shape[2] - T, T, q_BHTK.device)
        mix_BHTK, map_BHTS = spelled_attention(q_BHTK, k_BHSK, v_BHSK, may_look, dropout)
        if maps is not None:
            maps.append(map_BHTS)
        return mix_BHTK


@dataclass(frozen=True)
class Source:
    """What a decoder sees of its encoder's output: one layer's keys and values, and which of them are real."""

    k_BGSK: Tensor
    v_BGSK: Tensor
    may_look: Tensor | None


class CrossAttention(Attention):
    """Queries from the decoder, keys and values from the encoder's output; no positions. Vaswani et al. 2017, §3.2.3."""

    def __init__(self, cfg: ModelConfig):
        super().__init__(cfg, causal=False)

    def source(self, output_BSD: Tensor, may_look: Tensor | None) -> Source:
        return Source(*self.keys_and_values(output_BSD), may_look)

    def keys_and_values(self, output_BSD: Tensor) -> tuple[Tensor, Tensor]:
        return self._heads(self.k_proj(output_BSD), self.n_kv_heads), self._heads(self.v_proj(output_BSD), self.n_kv_heads)

    def forward(self, x_BTD: Tensor, source: Source, maps: list[Tensor] | None = None) -> Tensor:
        q_BHTK = self._heads(self.q_proj(x_BTD), self.n_heads)
        return self.join(self.attend(q_BHTK, source.k_BGSK, source.v_BGSK, source.may_look, maps))


class MLP(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(cfg.d_model, cfg.d_ff, bias=False)
        self.up_proj = nn.Linear(cfg.d_model, cfg.d_ff, bias=False)
        self.down_proj = nn.Linear(cfg.d_ff, cfg.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(gated_swish(*side_by_side(x, (self.gate_proj, self.up_proj))))


class Block(nn.Module):
    """x ← x + Attention(RMSNorm(x)); x ← x + CrossAttention(RMSNorm(x), source), where there is one; x ← x + MLP(RMSNorm(x))"""

    def __init__(self, cfg: ModelConfig, causal: bool, cross: bool = False):
        super().__init__()
        self.attn_norm = RMSNorm(cfg.d_model, cfg.norm_eps)
        self.attn = Attention(cfg, causal)
        if cross:
            self.cross_norm = RMSNorm(cfg.d_model, cfg.norm_eps)
            self.cross = CrossAttention(cfg)
        self.mlp_norm = RMSNorm(cfg.d_model, cfg.norm_eps)
        self.mlp = MLP(cfg)
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(self, x_BTD: Tensor, angles: tuple[Tensor, Tensor], may_look: Tensor | None,
                cache: LayerCache | None = None, maps: list[Tensor] | None = None, source: Source | None = None) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attn(self.attn_norm(x_BTD), angles, may_look, cache, maps))
        if source is not None:
            x_BTD = x_BTD + self.dropout(self.cross(self.cross_norm(x_BTD), source))
        return x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))


class Encoder(nn.Module):
    """Blocks that look both ways: the left half of an encoder–decoder."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.layers = nn.ModuleList(Block(cfg, causal=False) for _ in range(cfg.n_layers))
        self.final_norm = RMSNorm(cfg.d_model, cfg.norm_eps)

    def forward(self, x_BSD: Tensor, angles: tuple[Tensor, Tensor], may_look: Tensor | None,
                through: Callable[[Block], Callable[..., Tensor]] = lambda layer: layer) -> Tensor:
        for layer in self.layers:
            x_BSD = through(layer)(x_BSD, angles, may_look)
        return self.final_norm(x_BSD)


class Transformer(nn.Module):
    """M_θ = Transformer(Input, Encoder, Decoder)   [model.1]

    cfg.architecture says which stacks there are and so what the logits at position t see:
        decoder           tokens 0 … t                                          GPT, Llama
        encoder           all tokens                                            BERT
        encoder_decoder   tokens 0 … t, and through the encoder all of a source  Vaswani et al. 2017, T5
    """

    def __init__(self, cfg: ModelConfig, seed: int = 0):
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.dropout = nn.Dropout(cfg.dropout)
        self.register_module("virtual", None)  # where prompt tuning puts its vectors: called with (x_BTD, real_BT)
        self.recompute = False
        self.compiled: Callable | None = None  # compiling.py's way to call a block
        self.judged: Callable | None = None  # and to judge a slice of logits
        self.causal, self.two_stacks = cfg.architecture != "encoder", cfg.architecture == "encoder_decoder"
        if self.two_stacks:
            self.encoder = Encoder(cfg)
        self.layers = nn.ModuleList(Block(cfg, self.causal, cross=self.two_stacks) for _ in range(cfg.n_layers))
        self.final_norm = RMSNorm(cfg.d_model, cfg.norm_eps)
        self.lm_head = nn.Linear(cfg.d_model, cfg.vocab_size, bias=False)
        if cfg.tie_embeddings:
            self.lm_head.weight = self.embed.weight
        self._initialise(torch.Generator().manual_seed(seed))

    def forward(self, tokens_BT: Tensor, real_BT: Tensor | None = None, cache: KVCache | None = None,
                sources: list[Source] | None = None) -> Tensor:
        """logits (B, T, V), in fp32 at least.

        real_BT: False on padding, left or right or anywhere; None where there is none. What stands on
        padding changes nothing elsewhere. cache: the tokens follow those already in it. sources: what
        `encode` made of the source, for an encoder–decoder.
        """
        return self.logits(self.hidden(tokens_BT, real_BT, cache, sources=sources))

    def hidden(self, tokens_BT: Tensor, real_BT: Tensor | None = None, cache: KVCache | None = None,
               maps: list[Tensor] | None = None, sources: list[Source] | None = None) -> Tensor:
        """The last layer's normed output (B, T, D). `maps` collects the attention map of each layer."""
        if self.two_stacks != (sources is not None):
            raise ValueError(f"architecture {self.cfg.architecture!r} with{'out' * (sources is None)} sources")
        x_BUD, real_BU = self._embedded(tokens_BT, real_BT, cache)
        places, may_look = self._view(x_BUD, real_BU, cache)
        x_BUD = self.dropout(x_BUD)
        angles = self._angles(places, x_BUD)
        for i, layer in enumerate(self.layers):
            x_BUD = self._through(layer)(x_BUD, angles, may_look, cache.layer(i) if cache else None, maps,
                                         sources[i] if sources else None)
        if cache:
            cache.advance(x_BUD.shape[1])
        return self.final_norm(x_BUD)[:, -tokens_BT.shape[1]:]

    def new_cache(self, rows: int, places: int) -> KVCache:
        return KVCache(self.cfg, rows, places, self.embed.weight.device, self.embed.weight.dtype)

    def next_logits(self, tokens_BT: Tensor, real_BT: Tensor | None, cache: KVCache, sources: list[Source] | None = None) -> Tensor:
        """What stands behind each row's last token: logits (B, V)."""
        return self.logits(self.hidden(tokens_BT, real_BT, cache, sources=sources)[:, -1])

    def _embedded(self, tokens_BT: Tensor, real_BT: Tensor | None, cache: KVCache | None) -> tuple[Tensor, Tensor | None]:
        """The embeddings; before a text, which is before its first piece alone, what an adapter puts there."""
        x_BTD = self.embed(tokens_BT)
        return (x_BTD, real_BT) if self.virtual is None or (cache and cache.length) else self.virtual(x_BTD, real_BT)

    def _through(self, layer: Block) -> Callable[..., Tensor]:
        """The layer; where it is trained compiled, if asked for, and with `recompute` one that keeps its input alone and computes
        the rest again on the way back.
        """
        if not torch.is_grad_enabled():
            return layer
        run = functools.partial(self.compiled, layer) if self.compiled else layer
        # The reentrant one loses frozen inputs' gradients.
        return functools.partial(checkpoint, run, use_reentrant=False, context_fn=precision.as_before) if self.recompute else run

    @property
    def n_virtual(self) -> int:
        """How many places an adapter takes before each text; they are no part of the context of max_seq_len tokens."""
        return 0 if self.virtual is None else len(self.virtual)

    def encode(self, source_BS: Tensor, real_BS: Tensor | None = None) -> list[Source]:
        """The encoder's output as keys and values for each layer of the decoder: computed once, however long it speaks."""
        x_BSD = self.dropout(self.embed(source_BS))
        places, may_look = self._both_ways(x_BSD, real_BS)
        output_BSD = self.encoder(x_BSD, self._angles(places, x_BSD), may_look, self._through)
        return [layer.cross.source(output_BSD, may_look) for layer in self.layers]

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self.lm_head(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _angles(self, places: Tensor, x_BTD: Tensor) -> tuple[Tensor, ...]:
        places = places.double() if x_BTD.dtype == torch.float64 else places  # then float64 throughout
        return tuple(a.unsqueeze(-3) for a in rotary_angles(places, self.cfg.d_head, self.cfg.rope_theta))

    def _view(self, x_BTD: Tensor, real_BT: Tensor | None, cache: KVCache | None) -> tuple[Tensor, Tensor | None]:
        """Each token's position and what it may look at; None stands for plain causal, or for everything."""
        if not self.causal:
            return self._both_ways(x_BTD, real_BT)
        T, device = x_BTD.shape[1], x_BTD.device
        offset = cache.length if cache else 0
        refuse_overflow(offset, T, cache.max_len if cache else self.cfg.max_seq_len + self.n_virtual)
        real_BS = cache.note_real(real_BT, T) if cache else real_BT
        if real_BS is None:
            places_T = torch.arange(offset, offset + T, device=device)
            return places_T, causal(offset, T, device) if offset and T > 1 else None
        places_BT = (real_BS.cumsum(-1) - 1).clamp(min=0)[:, offset:]
        return places_BT, _causal_among_real(real_BS, offset, T)[:, None]

    def _both_ways(self, x_BTD: Tensor, real_BT: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Every query may look at every real key; in a row of nothing but padding at all, so that no softmax is empty."""
        refuse_overflow(0, x_BTD.shape[1], self.cfg.max_seq_len + self.n_virtual)
        if real_BT is None:
            return torch.arange(x_BTD.shape[1], device=x_BTD.device), None
        seen_BT = real_BT | ~real_BT.any(-1, keepdim=True)
        return (real_BT.cumsum(-1) - 1).clamp(min=0), seen_BT[:, None, None]

    def _initialise(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                std = init_std(self.cfg, name)
                parameter.fill_(1.0) if std is None else parameter.normal_(0.0, std, generator=generator)


def _causal_among_real(real_BS: Tensor, offset: int, length: int) -> Tensor:
    """True (B, T, S) for real keys at or before the query, and for the query itself.

    Without «itself» a padded query would have an empty row, its softmax would be NaN, and 0 · NaN
    would carry that into every weight. With it, its output is finite and unused.
    """
    see_TS = causal(offset, length, real_BS.device)
    itself_TS = torch.arange(see_TS.shape[1], device=real_BS.device) == see_TS.sum(-1, keepdim=True) - 1
    return see_TS & real_BS[:, None] | itself_TS


def init_std(cfg: ModelConfig, name: str) -> float | None:
    """W ~ N(0, std²),  std = σ, 1/√D or 1/√(nD) by parameter name; None for gains, which start at 1   [init.1]

    Embeddings σ = 0.02, as in GPT-2. Matrices 1/√D, so that a product with a normed x has variance 1 at any width
    (`down_proj` too, though its input is F wide and not normed); GPT-2's 0.02 for them too leaves attention scores
    near 0 and delays copying and recall (docs/LOG.md). The n projections that write into a residual stream share
    its growth: n = 2L, or 3L in a decoder with cross-attention. Radford et al. 2019, §2.3.
    """
    role, matrix = name.split(".")[-2], 1 / math.sqrt(cfg.d_model)
    per_layer = 3 if cfg.architecture == "encoder_decoder" and not name.startswith("encoder.") else 2
    table = dict.fromkeys(("embed", "lm_head"), cfg.init_std)
    table |= dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), matrix)
    table |= dict.fromkeys(("o_proj", "down_proj"), matrix / math.sqrt(per_layer * cfg.n_layers))
    table |= dict.fromkeys(("attn_norm", "cross_norm", "mlp_norm", "final_norm"))
    return table[role]
