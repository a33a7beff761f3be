"""What the foreign contestants share: the steps that a user of theirs writes, and our weights in their layout."""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def halves(weight: Tensor, n_heads: int) -> Tensor:
    """Rows of q or k for rotations that pair i with i + K/2, where ours pair 2i with 2i + 1."""
    return weight.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).reshape(weight.shape)


class Foreign:
    """A model of another program, trained by the loop of its examples: AdamW, clipping at 1."""

    OPTIONS = {"bf16", "tuned", "compile", "frozen", "lora"}

    def prepare(self, model: nn.Module, options: set[str], device: str) -> None:
        self.options, self.device = options, torch.device(device)
        if "tuned" in options and self.device.type == "cpu":
            torch.set_float32_matmul_precision("medium")
        self.model = model.to(device)
        self.called = torch.compile(self.model) if "compile" in options else self.model
        self.optimizer = None

    def short(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16) if "bf16" in self.options else contextlib.nullcontext()

    def logits(self, inputs_BT: Tensor) -> Tensor:
        return self.called(inputs_BT)

    def step(self, tokens_BT: Tensor) -> float:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if self.optimizer is None:
            self.model.train()
            self.optimizer = torch.optim.AdamW(trained, lr=1e-3, fused="tuned" in self.options or None)
        tokens_BT = tokens_BT.to(self.device)
        with self.short():
            logits_BTV = self.logits(tokens_BT[:, :-1])
        loss = F.cross_entropy(logits_BTV.float().flatten(0, 1), tokens_BT[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()
