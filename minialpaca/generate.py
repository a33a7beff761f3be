"""Answering: prompts → tokens, one at a time, through the KV cache.

    python -m minialpaca.generate RUN "Where does Mirava live?"
"""

import argparse

from minialpaca import commandline


def asked() -> argparse.Namespace:
    options = commandline.parser("generate", __doc__)
    options.add_argument("run", help="a run folder; a pretrained one goes on with the text, a tuned one answers")
    options.add_argument("text", nargs="+", help="the instruction, or the text to go on from (several are taken in turn)")
    options.add_argument("--input", default="", help="the instruction's input")
    commandline.add_sampling(options)
    commandline.add_weights(options)
    commandline.add_speed(options)
    return options.parse_args()


commandline.early(__name__, asked)

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from minialpaca import run
from minialpaca.config import FinetuneConfig, Sampling
from minialpaca.data.instructions import prompt_ids
from minialpaca.decode import Stepper, swift
from minialpaca.errors import UserError, command
from minialpaca.log import visible
from minialpaca.model import Source, Transformer
from minialpaca.sampling import choose
from minialpaca.speculate import Speculator, with_draft
from minialpaca.tokenizer import Tokenizer
from minialpaca.transfer import fetch, queues, sent


@torch.no_grad()
def stream(model: Transformer | Stepper, prompts: Sequence[Sequence[int]], eos: int, max_new: int | None = None,
           how: Sampling = Sampling(), sources: list[Source] | None = None) -> Iterator[list[int | None]]:
    """At each step the new token of each row, None for rows that have ended; </s> ends a row and is given out.

    Prompts of different lengths are padded on the left; each row's result is what it would be alone.
    max_new None: as many as the context has room for. sources: for an encoder–decoder, what `model.encode` returned.
    """
    max_new = room(model, prompts, max_new)
    new, real = pad_left(prompts, model.embed.weight.device)  # (B, T) of the prompts, later (B, 1)
    places = model.n_virtual + new.shape[1] + max_new
    cache = model.new_cache(len(prompts), places)
    seen_BV = torch.zeros(len(prompts), model.cfg.vocab_size, dtype=torch.bool, device=new.device)
    for row, prompt in zip(seen_BV, prompts):
        row[torch.as_tensor(prompt, device=row.device)] = True
    generators = [torch.Generator().manual_seed(how.seed + b) for b in range(len(prompts))]
    ended, ahead = [False] * len(prompts), queues(new.device)
    logits_BV = model.next_logits(new, real, cache, sources)
    for left in reversed(range(max_new)):
        next_B = choose(logits_BV, seen_BV, how, generators)
        seen_BV.scatter_(1, next_B[:, None], True)
        told = fetch(next_B)
        if left and ahead:  # else a GPU would wait for the host; at a text's end this was asked in vain
            logits_BV = model.next_logits(next_B[:, None], None, cache, sources)
        tokens = told()
        yield [None if over else token for over, token in zip(ended, tokens)]
        ended = [over or token == eos for over, token in zip(ended, tokens)]
        if all(ended):
            return
        if left and not ahead:  # an ended row runs on unseen: nobody looks at its tokens
            logits_BV = model.next_logits(next_B[:, None], None, cache, sources)


def generate(model: Transformer | Stepper, prompts: Sequence[Sequence[int]], eos: int, max_new: int | None = None,
             how: Sampling = Sampling(), sources: list[Source] | None = None) -> list[list[int]]:
    """The new tokens of each prompt, with </s> where a row came to its end."""
    answers: list[list[int]] = [[] for _ in prompts]
    for tokens in stream(model, prompts, eos, max_new, how, sources):
        for answer, token in zip(answers, tokens):
            if token is not None:
                answer.append(token)
    return answers


def room(model: Transformer, prompts: Sequence[Sequence[int]], max_new: int | None) -> int:
    """How many tokens may be generated; refuses what would not fit the context before anything is computed."""
    longest, context = max(map(len, prompts)), model.cfg.max_seq_len
    if min(map(len, prompts)) == 0:
        raise ValueError("a prompt needs at least one token")
    if longest >= context:
        raise UserError(f"the prompt has {longest} tokens where the context holds {context}; shorten it")
    if max_new is None:
        return context - longest
    if longest + max_new > context:
        raise UserError(f"{longest} prompt tokens and {max_new} new ones do not fit the context of {context}; "
                        f"ask for at most {context - longest} new ones")
    return max_new


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """tokens (B, T) and which of them are real; None where all are."""
    longest = max(map(len, prompts))
    tokens_BT = torch.zeros(len(prompts), longest, dtype=torch.long)
    real_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    for b, prompt in enumerate(prompts):
        tokens_BT[b, longest - len(prompt):] = torch.as_tensor(prompt)
        real_BT[b, longest - len(prompt):] = True
    return sent(tokens_BT, device), None if bool(real_BT.all()) else sent(real_BT, device)


def answer_all(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], max_new: int,
               batch_size: int = 64, how: Sampling = Sampling()) -> list[str]:
    """The answers as texts; each gets at most `max_new` tokens or the room it has."""
    return [tokenizer.decode(ids) for ids in generate_all(model, prompts, tokenizer.eos, max_new, batch_size, how)]


def generate_all(model: Transformer, prompts: Sequence[Sequence[int]], eos: int, max_new: int, batch_size: int = 64,
                 how: Sampling = Sampling()) -> list[list[int]]:
    """The new tokens of any number of prompts, in batches of similar length."""
    answers: list[list[int]] = [[] for _ in prompts]
    rooms = [min(max_new, room(model, [prompt], None)) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for limit, alike in itertools.groupby(order, key=lambda i: rooms[i]):  # a long neighbour must not cut an answer
        alike = list(alike)
        for start in range(0, len(alike), batch_size):
            chosen = alike[start:start + batch_size]
            for i, ids in zip(chosen, generate(model, [prompts[i] for i in chosen], eos, limit, how)):
                answers[i] = ids
    return answers


def begun(tokenizer: Tokenizer, prompt: Sequence[int]) -> str:
    """The text of a prompt that something will follow: a character that its last bytes leave open is still to come."""
    return "".join(itertools.islice(tokenizer.stream(prompt), len(prompt)))


def continued(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Iterable[int]) -> Iterator[str]:
    """The text of `tokens` as it stands behind the prompt's: `begun` and this are the text of both, decoded together."""
    return itertools.islice(tokenizer.stream(itertools.chain(prompt, tokens)), len(prompt), None)


# ── command line ─────────────────────────────────────────────────────────────────────────────────


def quick(model: Transformer, tokenizer: Tokenizer, args: argparse.Namespace) -> Transformer | Stepper | Speculator:
    """As the options of `commandline.add_speed` ask for it."""
    if args.draft is None and args.draft_tokens is not None:
        raise UserError(f"--draft-tokens {args.draft_tokens}: is how far a draft runs ahead; name one with --draft, or leave it out")
    if args.draft is None:
        return swift(model, args.int8, args.compile)
    ahead = commandline.DRAFTED if args.draft_tokens is None else commandline.at_least_one("--draft-tokens", args.draft_tokens)
    return with_draft(model, tokenizer, args.draft, ahead, args.int8, args.compile)


def say(model: Transformer | Stepper | Speculator, tokenizer: Tokenizer, ids: list[int], max_new: int | None, how: Sampling,
        goes_on: bool = False) -> None:
    """Print as it comes an answer, or with `goes_on` what stands behind the text of `ids`; at most what fits the context."""
    fits = room(model, [ids], None)
    most = min(max_new or fits, fits)
    tokens = (model.stream(ids, tokenizer.eos, most, how) if isinstance(model, Speculator)
              else (row[0] for row in stream(model, [ids], tokenizer.eos, most, how)))
    for text in continued(tokenizer, ids, tokens) if goes_on else tokenizer.stream(tokens):
        print(visible(text), end="", flush=True)
    print()


@command
def main() -> None:
    args = asked()
    how = commandline.sampling_of(args)
    settings = run.settings_of(run.Path(args.run))
    run.refuse_speechless(settings, args.run)
    is_tuned = isinstance(settings, FinetuneConfig)
    model, tokenizer = run.load(args.run, args.checkpoint, run.pick_device(args.device))
    if args.input and not is_tuned:
        raise UserError(f"{args.run}: is a pretraining run, which knows no --input; give a finetune.py run")
    prompts = [prompt_ids(tokenizer, text, args.input) if is_tuned else [tokenizer.bos, *tokenizer.encode(text)]
               for text in args.text]
    room(model, prompts, None)  # a text that is too long is refused before the first is answered
    model = quick(model, tokenizer, args)
    for i, (text, ids) in enumerate(zip(args.text, prompts)):
        if len(prompts) > 1:
            print("\n" * (i > 0) + visible(f"> {text}"))
        say(model, tokenizer, ids, args.max_new_tokens, how, goes_on=not is_tuned)


if __name__ == "__main__":
    sys.exit(main())
