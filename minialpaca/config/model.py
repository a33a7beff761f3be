"""The Transformer, and what it learns to predict in pretraining."""

import math
import typing
from dataclasses import dataclass

from minialpaca.config.rules import check


@dataclass(frozen=True)
class ModelConfig:
    SECTION: typing.ClassVar[str] = "model"

    architecture: str = "decoder"
    """`decoder` (looks back: GPT, Llama), `encoder` (looks both ways: BERT) or `encoder_decoder` (T5)."""
    vocab_size: int = 0
    """V, the number of token ids; 0 takes the tokenizer's, and those that the objective adds."""
    d_model: int = 192
    """D, the width of the residual stream."""
    n_layers: int = 4
    """The number of blocks, in each stack where there are two."""
    n_heads: int = 6
    """H, the number of query heads."""
    n_kv_heads: int = 0
    """G, the number of key and value heads (grouped-query attention); 0 means one for each query head."""
    d_ff: int = 512
    """F, the inner width of SwiGLU; 8/3 · d_model gives the parameters of a classic 4 · d_model feed-forward."""
    max_seq_len: int = 128
    """The context: the most tokens that are looked at together."""
    dropout: float = 0.0
    """The probability with which activations are dropped in training (embedding, attention map, both sub-layers)."""
    tie_embeddings: bool = True
    """Whether `lm_head` shares its matrix with `embed`."""
    rope_theta: float = 10_000.0
    """θ, the base of the rotary wavelengths 2π θ^(2i/d_head)."""
    norm_eps: float = 1e-5
    """ε under the root of RMSNorm."""
    init_std: float = 0.02
    """σ of the initial `embed` and `lm_head`; the matrices between have 1/√d_model, and 1/√(n d_model) where they write into a
    residual stream, n = 2 n_layers or, in a decoder with cross-attention, 3 n_layers."""
    attention: str = "fused"
    """`fused` (PyTorch's scaled_dot_product_attention) or `spelled` (softmax(QKᵀ/√d)V step by step)."""

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    def __post_init__(self):
        whole = {name: (getattr(self, name) >= 1, "must be at least 1")
                 for name in ("d_model", "n_layers", "n_heads", "d_ff", "max_seq_len")}
        check(self, whole)
        check(self, {
            "architecture": (self.architecture in ("decoder", "encoder", "encoder_decoder"),
                             "use decoder, encoder or encoder_decoder"),
            "vocab_size": (self.vocab_size >= 0, "must not be negative"),
            "n_heads": (self.d_model % self.n_heads == 0, f"must divide model.d_model = {self.d_model}"),
            "n_kv_heads": (self.n_kv_heads >= 0 and self.n_heads % self.kv_heads == 0,
                           f"must divide model.n_heads = {self.n_heads}"),
            "dropout": (0 <= self.dropout < 1, "must be at least 0 and below 1"),
            "rope_theta": (1 < self.rope_theta < math.inf, "must be larger than 1"),
            "norm_eps": (0 < self.norm_eps < 1, "must lie between 0 and 1"),
            "init_std": (0 < self.init_std < math.inf, "must be positive"),
            "attention": (self.attention in ("fused", "spelled"), "use fused or spelled"),
        })
        check(self, {"d_model": (self.d_head % 2 == 0,
                                 f"d_model / n_heads = {self.d_head} must be even: rotary positions turn pairs")})


@dataclass(frozen=True)
class ObjectiveConfig:
    SECTION: typing.ClassVar[str] = "objective"

    name: str = "causal"
    """What pretraining predicts: `causal` (the next token; a decoder), `masked` (hidden tokens; an encoder) or `span` (hidden stretches; an encoder_decoder)."""
    noise_rate: float = 0.15
    """The part of the tokens that is hidden (masked, span)."""
    random_rate: float = 0.1
    """masked: the part of the hidden tokens that shows another token instead of the mask."""
    keep_rate: float = 0.1
    """masked: the part of the hidden tokens that shows itself."""
    mean_span: float = 3.0
    """span: the mean length of a hidden stretch, in tokens."""

    def __post_init__(self):
        check(self, {
            "name": (self.name in ARCHITECTURE_OF, "use causal, masked or span"),
            "noise_rate": (0 < self.noise_rate < 1, "must lie strictly between 0 and 1"),
            "random_rate": (0 <= self.random_rate <= 1, "must lie in 0 … 1"),
            "keep_rate": (0 <= self.keep_rate <= 1 - self.random_rate, "must lie in 0 … 1 − objective.random_rate"),
            "mean_span": (1 <= self.mean_span < math.inf, "must be at least 1"),
        })


ARCHITECTURE_OF = {"causal": "decoder", "masked": "encoder", "span": "encoder_decoder"}
