"""Speculative decoding: a small model drafts a few tokens, the large one reads them in one pass and keeps what it might have said.

What comes out is distributed as the large model's own choices are, whatever the draft is; greedy, it is the same text. A draft
that is often right makes it faster, for one pass over several tokens costs hardly more than over one. Leviathan et al. 2023,
algorithm 1; Chen et al. 2023 found the same.

Axes as in model.py, and M tokens drafted, with N = M + 1 places behind which one comes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from minialpaca import run
from minialpaca.config import Sampling
from minialpaca.decode import Stepper, swift
from minialpaca.errors import UserError
from minialpaca.model import Transformer
from minialpaca.sampling import distribution, draw
from minialpaca.tokenizer import Tokenizer

# ── equations ────────────────────────────────────────────────────────────────────────────────────


def chance(p_V: Tensor, q_V: Tensor, token: int) -> float:
    """P(x stays) = min(1, p(x)/q(x))   [speculative.1]

    x ~ q was drafted, p is what the large model would draw from. Leviathan et al. 2023, §2.3.
    """
    return min(1.0, (p_V[token] / q_V[token]).item())


def residual(p_V: Tensor, q_V: Tensor) -> Tensor:
    """p′(v) = max(0, p(v) − q(v)) / Σ_u max(0, p(u) − q(u))   [speculative.2]

    What stands in for a token that did not stay; then v ~ p altogether. Where p ≤ q everywhere, which is equality but for
    rounding, it is p. Leviathan et al. 2023, §2.3.
    """
    more_V = (p_V - q_V).clamp(min=0)
    total = more_V.sum()
    return more_V / total if total > 0 else p_V


def judged(p_NV: Tensor, q_MV: Tensor, drafted: Sequence[int], generator: torch.Generator) -> list[int]:
    """Those of the drafted tokens that stay, up to the first that does not, and one of the large model's own behind them.

    p (N, V) is what it would draw each of them from, and the one behind; q (M, V) what they were drawn from.
    """
    for n, token in enumerate(drafted):
        if torch.rand((), generator=generator).item() >= chance(p_NV[n], q_MV[n], token):
            return [*drafted[:n], *draw(residual(p_NV[n], q_MV[n])[None], [generator]).tolist()]
    return [*drafted, *draw(p_NV[-1:], [generator]).tolist()]


# ── decoding ─────────────────────────────────────────────────────────────────────────────────────


class Reader:
    """A model beside a text that grows, and shrinks again where a draft was not kept."""

    def __init__(self, model: Transformer | Stepper, places: int):
        self.model, self.cache = model, model.new_cache(1, model.n_virtual + places)

    def unread(self, ids: Sequence[int]) -> Tensor:
        done = max(0, self.cache.length - self.model.n_virtual)
        return torch.tensor([ids[done:]], device=self.model.embed.weight.device)

    def last(self, ids: Sequence[int]) -> Tensor:
        """What stands behind the text: logits (1, V)."""
        return self.model.next_logits(self.unread(ids), None, self.cache)

    def each(self, ids: Sequence[int]) -> Tensor:
        """What stands behind each token that it had not read: logits (T, V)."""
        return self.model(self.unread(ids), cache=self.cache)[0]

    def forget(self, kept: int) -> None:
        """All but that many tokens of the text."""
        self.cache.length = min(self.cache.length, self.model.n_virtual + kept)


class Speculator:
    """A model that speaks one text at a time, with a draft that runs ahead of it; `drafted` and `kept` count its tokens."""

    def __init__(self, model: Transformer, draft: Transformer | Stepper, ahead: int = 4):
        self.model, self.draft, self.ahead = model, draft, ahead
        self.cfg, self.embed, self.n_virtual = model.cfg, model.embed, model.n_virtual
        self.drafted = self.kept = 0

    @torch.no_grad()
    def stream(self, prompt: Sequence[int], eos: int, max_new: int, how: Sampling = Sampling()) -> Iterator[int]:
        """The tokens behind a prompt, `eos` included; at most `max_new`, which have to fit the model's context."""
        ids, end, context = list(prompt), len(prompt) + max_new, self.draft.cfg.max_seq_len
        large, small = Reader(self.model, end), Reader(self.draft, min(end, context))
        generator = torch.Generator().manual_seed(how.seed)
        while len(ids) < end:
            ahead = max(0, min(self.ahead, end - len(ids) - 1, context - len(ids) + 1))  # nothing where its context ends
            said = self._round(large, small, ids, ahead, how, generator)
            for token in said:
                yield token
                if token == eos:
                    return
            ids += said
            for reader in (large, small):
                reader.forget(len(ids) - 1)  # the last one is not read yet

    def _round(self, large: Reader, small: Reader, ids: list[int], ahead: int, how: Sampling, generator: torch.Generator) -> list[int]:
        """Draft, read, judge: one token at least, and one more than was drafted at most."""
        tokens, q_MV = self._run_ahead(small, ids, ahead, how, generator)
        seen_NV = torch.cat([self._seen([*ids, *tokens[:m]]) for m in range(len(tokens) + 1)])
        p_NV = distribution(large.each([*ids, *tokens])[-len(tokens) - 1:], seen_NV, how).cpu()
        said = judged(p_NV, q_MV, tokens, generator)
        self.drafted, self.kept = self.drafted + len(tokens), self.kept + len(said) - 1
        return said

    def _run_ahead(self, small: Reader, ids: list[int], ahead: int, how: Sampling,
                   generator: torch.Generator) -> tuple[list[int], Tensor]:
        """Drafted tokens, and what they were drawn from (M, V)."""
        tokens: list[int] = []
        found = [torch.empty(0, self.cfg.vocab_size)]
        for _ in range(ahead):
            found.append(distribution(small.last([*ids, *tokens]), self._seen([*ids, *tokens]), how).cpu())
            tokens += draw(found[-1], [generator]).tolist()
        return tokens, torch.cat(found)

    def _seen(self, ids: Sequence[int]) -> Tensor:
        """(1, V): True for what stands in the text."""
        seen_1V = torch.zeros(1, self.cfg.vocab_size, dtype=torch.bool, device=self.embed.weight.device)
        seen_1V[0, torch.tensor(ids, device=seen_1V.device)] = True
        return seen_1V


def with_draft(model: Transformer, tokenizer: Tokenizer, folder: str, ahead: int, int8: bool, compiled: bool) -> Speculator:
    """The model with the run in `folder` as its draft; `int8` and `compiled` are the draft's, which alone goes token by token."""
    run.refuse_speechless(run.settings_of(Path(folder)), folder)
    draft, its_own = run.load(folder, device=model.embed.weight.device)
    if its_own.sha256 != tokenizer.sha256 or draft.cfg.vocab_size != model.cfg.vocab_size:
        raise UserError(f"--draft {folder}: has another vocabulary than the model; give a run that was trained with the same tokenizer")
    return Speculator(model, swift(draft, int8, compiled), ahead)
