"""Small things to test on: a model whose dimensions all differ, a vocabulary learned in a blink."""

import dataclasses
import functools

import torch
from torch import Tensor

from minialpaca.config import ModelConfig
from minialpaca.model import Transformer
from minialpaca.tokenizer import Tokenizer

# H 6, G 3, K 10, P 5, D 60, F 37, V 53, L 2: a slice along the wrong axis has the wrong size.
# A wide init, so that attention looks somewhere in particular and greedy choices are clear.
GQA = ModelConfig(vocab_size=53, d_model=60, n_layers=2, n_heads=6, n_kv_heads=3, d_ff=37, max_seq_len=29,
                  init_std=0.15)
MHA = dataclasses.replace(GQA, n_kv_heads=0)
MQA = dataclasses.replace(GQA, n_kv_heads=1)
GROUPS = {"MHA": MHA, "GQA": GQA, "MQA": MQA}

TEXTS = (
    "The quick brown fox jumps over the lazy dog.\nMirava lives in Olten, near the river.  Two  spaces.\n",
    "### Instruction:\nWhere does Mirava live?\n\n### Response:\nIn Olten, near the river.\n",
    "Numbers 12 345 67890, brackets ( [ { < > } ] ), äöü naïve, Ελλάδα, 漢字 全角 … 😀 and a tab\tthere.\n",
)


def model(cfg: ModelConfig = GQA, seed: int = 0, **changes) -> Transformer:
    """In eval mode, with gains that are not 1, so that a forgotten gain shows, and matrices as wide as the
    embeddings, so that what an untrained model says is no single word over and over."""
    made = Transformer(dataclasses.replace(cfg, **changes), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif name.startswith(("layers.", "encoder.layers.")):
                parameter *= made.cfg.init_std * made.cfg.d_model**0.5
    return made.eval()


def tokens(*shape: int, vocab_size: int = GQA.vocab_size, seed: int = 1) -> Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@functools.cache
def tokenizer(kind: str = "bpe") -> Tokenizer:
    return Tokenizer.train(TEXTS * 3, kind, 400)
