"""The same model in several programs: one shape, one set of weights, the same tokens.

    ours           minialpaca's own trainer and generation
    transformers   LlamaForCausalLM, and `peft` on top of it for LoRA
    litgpt         litgpt.GPT, and its own LoRA

A contestant is written `package` or `package:option+option`. Options, of which each takes those that it knows:

    bf16      products in bf16: ours by train.precision, the others by torch.autocast
    tuned     what a careful user would turn on: the faster library for fp32 products on this CPU, AdamW in one pass
    compile   torch.compile
    frozen    decoding: compiled with the weights as constants
    int8      decoding: matrices in 8 bits, ours alone
    lora      r = 8 on q, k, v, o
    adalora, fgm, recompute    ours alone
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """A Llama: RMSNorm, rotary positions, SwiGLU, no biases, an untied head."""

    vocab_size: int = 8192
    d_model: int = 384
    n_layers: int = 6
    n_heads: int = 6
    d_ff: int = 1024
    context: int = 256
    batch: int = 8
    held: str = "fp32"  # what matrices are stored in

    @property
    def matrices(self) -> int:
        """Parameters that a token is multiplied by."""
        return self.n_layers * (4 * self.d_model**2 + 3 * self.d_model * self.d_ff) + self.vocab_size * self.d_model

    @property
    def flops_a_token(self) -> int:
        """Of training, forward and backward: 6 for each parameter of a matrix, and attention's two products with the half
        of the context that a token sees on average: 3 · 2 · 2 · L D T/2."""
        return 6 * self.matrices + 6 * self.n_layers * self.d_model * self.context

    def rows(self, number: int, length: int, batch: int | None = None) -> Tensor:
        """Random ids, the same for all; none that is a control id of ours."""
        return torch.randint(4, self.vocab_size, (batch or self.batch, length), generator=torch.Generator().manual_seed(number))


SHAPES = {"small": Shape(), "gpt2": Shape(50304, 768, 12, 12, 2048, 1024, 16), "1b": Shape(32000, 2048, 16, 32, 8192, 1024, 8),
          "7b": Shape(32000, 4096, 32, 32, 11008, 2048, 1, "bf16"), "tiny": Shape(64, 16, 2, 2, 24, 16, 2)}


class Contestant(Protocol):
    def step(self, tokens_BT: Tensor) -> float:
        """One optimiser step on rows of context + 1 tokens; the loss before it, mean over the tokens."""

    def answer(self, prompts_BT: Tensor, new: int) -> list[list[int]]:
        """Greedy, `new` tokens for each row, no end."""


def build(name: str, shape: Shape, device: str) -> Contestant:
    """«package:option+option», with the same weights for all."""
    package, _, options = name.partition(":")
    wanted = set(filter(None, options.split("+")))
    if package == "ours":
        from benchmarks.contestants.ours import Ours as Chosen
    elif package in ("transformers", "peft"):
        from benchmarks.contestants.hugging_face import Llama as Chosen
        wanted |= {"lora"} if package == "peft" else set()
    elif package == "litgpt":
        from benchmarks.contestants.litgpt import Lit as Chosen
    else:
        raise SystemExit(f"{name}: no such contestant; use ours, transformers, peft or litgpt")
    if strange := wanted - Chosen.OPTIONS:
        raise SystemExit(f"{name}: {package} has no option {', '.join(sorted(strange))}; it takes {', '.join(sorted(Chosen.OPTIONS))}")
    return Chosen(shape, wanted, device)
