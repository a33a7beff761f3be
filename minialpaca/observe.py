"""What a person would rather look at than read: sample answers, and attention maps as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minialpaca.generate import answer_all, begun, continued, generate, generate_all
from minialpaca.log import RunLog, visible
from minialpaca.model import Transformer
from minialpaca.tokenizer import Tokenizer

PICTURED = 48  # tokens in an attention picture; more would be finer than a screen
CELL = 4       # pixels on the side of one token pair


@dataclass(frozen=True)
class Observer:
    """Asks the same questions at every evaluation and shows the answers and the first one's attention."""

    tokenizer: Tokenizer
    questions: Sequence[str]          # as shown
    prompts: Sequence[Sequence[int]]  # as asked
    max_new: int

    def __call__(self, model: Transformer, log: RunLog, step: int) -> None:
        if self.prompts:
            log.text("samples", self.markdown(self.answers(model)), step)
            log.image("attention", attention_picture(model, self.prompts[0]), step)

    def answers(self, model: Transformer) -> list[tuple[str, str]]:
        was_training = model.training
        model.eval()
        with torch.no_grad():
            answers = self.reply(model)
        model.train(was_training)
        return list(zip(self.questions, answers))

    def markdown(self, pairs: list[tuple[str, str]]) -> str:
        return "\n".join(["| asked | answered |", "|---|---|", *(f"| {_cell(q)} | {_cell(a)} |" for q, a in pairs)])

    def reply(self, model: Transformer) -> list[str]:
        return answer_all(model, self.tokenizer, self.prompts, self.max_new)


@dataclass(frozen=True)
class ContinuationObserver(Observer):
    """The prompts are beginnings; the answers stand behind them, so that both joined are the text decoded together."""

    def markdown(self, pairs: list[tuple[str, str]]) -> str:
        """In one cell: two would lose the space between them."""
        return "\n".join(["| text &#124; continuation |", "|---|", *(f"| {_cell(f'{q}|{a}')} |" for q, a in pairs)])

    def reply(self, model: Transformer) -> list[str]:
        answers = generate_all(model, self.prompts, self.tokenizer.eos, self.max_new)
        return ["".join(continued(self.tokenizer, ids, answer)) for ids, answer in zip(self.prompts, answers)]


@dataclass(frozen=True)
class MaskObserver(Observer):
    """The prompts hold masks; the answers have the likeliest tokens in their place."""

    def reply(self, model: Transformer) -> list[str]:
        mask = self.tokenizer.vocab_size
        filled = []
        for ids in self.prompts:
            best_T = model(torch.tensor([ids], device=model.embed.weight.device))[0].argmax(-1).tolist()
            filled.append(spell(self.tokenizer, [b if i == mask else i for i, b in zip(ids, best_T)]))
        return filled


@dataclass(frozen=True)
class SpanObserver(Observer):
    """The prompts are sources with sentinels; the answers say what stands behind each."""

    def reply(self, model: Transformer) -> list[str]:
        device, said = model.embed.weight.device, []
        for ids in self.prompts:
            sources = model.encode(torch.tensor([ids], device=device))
            answer, = generate(model, [[self.tokenizer.bos]], self.tokenizer.eos, self.max_new, sources=sources)
            said.append(spell(self.tokenizer, answer))
        return said


def spell(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids, those behind the vocabulary (mask, sentinels) as ⟨0⟩, ⟨1⟩, …"""
    parts = [tokenizer.piece_bytes[i] if i < tokenizer.vocab_size else f" ⟨{i - tokenizer.vocab_size}⟩".encode()
             for i in ids]
    return b"".join(parts).decode("utf-8", errors="replace").removeprefix(" ")


def observer(tokenizer: Tokenizer, asked: Sequence[tuple[str, list[int]]], max_new: int, context: int) -> Observer:
    """Leaves out prompts that fill the context: they have no room for an answer."""
    fitting = [(question, ids) for question, ids in asked if len(ids) < context]
    return Observer(tokenizer, [q for q, _ in fitting], [ids for _, ids in fitting], max_new)


def continuations(tokenizer: Tokenizer, beginnings: Sequence[list[int]], max_new: int, context: int) -> Observer:
    fitting = [ids for ids in beginnings if len(ids) < context]
    return ContinuationObserver(tokenizer, [begun(tokenizer, ids) for ids in fitting], fitting, max_new)


@torch.no_grad()
def attention_picture(model: Transformer, ids: Sequence[int]) -> np.ndarray:
    """One tile per head, layers downwards, heads to the right; in a tile, queries downwards and keys to the right.

    The whole text is read, as when it is asked; of a longer one the last PICTURED tokens are shown, and what they give
    to those before is left out. Dark is 0, bright is 1. Returns (height, width, 3) bytes.
    """
    was_training = model.training
    model.eval()
    maps: list[Tensor] = []
    tokens_BT = torch.tensor([list(ids)], device=model.embed.weight.device)
    sources = model.encode(tokens_BT) if model.two_stacks else None  # then the decoder's, reading the source itself
    model.hidden(tokens_BT, maps=maps, sources=sources)
    model.train(was_training)
    shown = min(PICTURED, len(ids))  # tokens alone, not what an adapter puts before them
    layers = [np.concatenate([_tile(head) for head in layer_1HUS[0, :, -shown:, -shown:].float().cpu().numpy()], axis=1)
              for layer_1HUS in maps]
    return colour(np.concatenate(layers, axis=0))


def _tile(map_TS: np.ndarray) -> np.ndarray:
    return np.pad(map_TS.repeat(CELL, 0).repeat(CELL, 1), CELL // 2, constant_values=1.0)


def colour(values_HW: np.ndarray) -> np.ndarray:
    """0 … 1 → black, blue, orange, white; the square root lifts the many small weights."""
    stops = np.array([[0, 0, 0], [30, 60, 160], [250, 150, 40], [255, 255, 255]], dtype=float)
    place = np.sqrt(np.clip(values_HW, 0, 1)) * (len(stops) - 1)
    low = np.minimum(place.astype(int), len(stops) - 2)
    return (stops[low] + (place - low)[..., None] * (stops[low + 1] - stops[low])).astype(np.uint8)


def _cell(text: str) -> str:
    """A text inside a Markdown table: no line break, no bar, no markup."""
    escaped = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("`", "&#96;")
    return escaped.replace("\n", "<br>") or " "
