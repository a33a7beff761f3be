"""Likelihood: log P(continuation | context), and the choice among answers by it, without any tuning.

    python -m minialpaca.likelihood RUN "The sky is" "blue." "made of cheese."

This is how GPT-2 does tasks: whatever can be written as «which of these goes on better?» can be asked of a language
model (Radford et al. 2019, §3). A tuned run is given the context as an instruction and the answers as responses.
"""

import argparse

from minialpaca import commandline


def asked() -> argparse.Namespace:
    options = commandline.parser("likelihood", __doc__)
    options.add_argument("run", help="a run folder of a decoder")
    options.add_argument("context", help="the text before, or the instruction to a tuned run")
    options.add_argument("answers", nargs="+", help="what may follow; a space before it is implied")
    options.add_argument("--joined", action="store_true", help="no space is: for Chinese, for punctuation, or where the answers begin with theirs")
    commandline.add_weights(options)
    return options.parse_args()


commandline.early(__name__, asked)

import sys
from collections.abc import Sequence

import torch

from minialpaca import run
from minialpaca.config import FinetuneConfig
from minialpaca.data.batch import collate
from minialpaca.data.instructions import prompt_ids
from minialpaca.errors import UserError, command
from minialpaca.log import table
from minialpaca.model import Transformer
from minialpaca.objectives import IGNORE, next_token_pairs
from minialpaca.tokenizer import Tokenizer

Pair = tuple[Sequence[int], Sequence[int]]  # ids of a context (at least one) and of what follows it


@torch.no_grad()
def token_log_likelihoods(model: Transformer, pairs: Sequence[Pair], batch_size: int = 32) -> list[list[float]]:
    """What each token of each continuation adds to its log P(y | x), in nats; nothing of an empty one.

    Pairs of like length share a batch; what stands beside a pair does not change its numbers. The model should be in
    eval mode.
    """
    for context, continuation in pairs:
        refuse_misfit(len(context), len(continuation), model.cfg.max_seq_len)
    found: list[list[float]] = [[] for _ in pairs]
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    for start in range(0, len(order), batch_size):
        chosen = order[start:start + batch_size]
        for i, scores in zip(chosen, of_one_batch(model, [pairs[i] for i in chosen])):
            found[i] = scores
    return found


def of_one_batch(model: Transformer, pairs: Sequence[Pair]) -> list[list[float]]:
    """log P(y | x) = Σ_t log P(y_t | x, y_<t), given the context x   [likelihood.1]

    Not yet summed: of each continuation y the terms.
    """
    rows = [([*x, *y], [*[IGNORE] * len(x), *y]) for x, y in pairs]
    batch = collate(rows, pad=0).to(model.embed.weight.device)
    inputs_BT, targets_BT = next_token_pairs(batch.tokens_BT, batch.labels_BT)
    logits_NV = model.logits(batch.learned(model.hidden(inputs_BT)))
    targets_N = batch.learned(targets_BT)
    log_p_N = logits_NV.log_softmax(-1).gather(-1, targets_N[:, None])[:, 0]
    return [part.tolist() for part in log_p_N.split([len(y) for _, y in pairs])]


def refuse_misfit(context: int, continuation: int, limit: int) -> None:
    if context == 0:
        raise ValueError("a context needs at least one token, <s> say")
    if context + continuation - 1 > limit:  # the last token is only ever a target
        raise UserError(f"context and continuation have {context} + {continuation} tokens where the model's context holds {limit}; shorten them")


def choose(model: Transformer, context: Sequence[int], answers: Sequence[Sequence[int]], per_token: bool = False) -> int:
    """k̂ = argmax_k log P(y_k | x), or with `per_token` argmax_k 1/|y_k| log P(y_k | x)   [likelihood.2]

    The plain sum favours short answers, the mean forgives long ones; where answers differ much in length, say which one
    was used. The first of equals wins. Brown et al. 2020, §2.4, for the mean.
    """
    scores = [sum(ps) / len(ps) if per_token else sum(ps) for ps in token_log_likelihoods(model, [(context, y) for y in answers])]
    return max(range(len(scores)), key=lambda k: scores[k])


def as_ids(tokenizer: Tokenizer, context: str, answer: str, is_tuned: bool, joined: bool = False) -> Pair:
    """A tuned model ends its answer with </s>; to a pretrained one the answer is the next words of the text, or `joined` to it."""
    if is_tuned:
        return prompt_ids(tokenizer, context), [*tokenizer.encode(answer), tokenizer.eos]
    return [tokenizer.bos, *tokenizer.encode(context)], tokenizer.encode(answer, starts=not joined)


@command
def main() -> None:
    args = asked()
    settings = run.settings_of(run.Path(args.run))
    run.refuse_speechless(settings, args.run)
    model, tokenizer = run.load(args.run, args.checkpoint, run.pick_device(args.device))
    if not all(args.answers):
        raise UserError("an answer is empty; give a text for each")
    is_tuned = isinstance(settings, FinetuneConfig)
    if is_tuned and args.joined:
        raise UserError(f"--joined: {args.run} is a tuned run, whose answers follow its prompt; leave it out, or ask a pretrained run")
    pairs = [as_ids(tokenizer, args.context, answer, is_tuned, args.joined) for answer in args.answers]
    scored = [(sum(ps), sum(ps) / len(ps), answer) for ps, answer in zip(token_log_likelihoods(model, pairs), args.answers)]
    print(table(sorted(scored, reverse=True), ("log P, nats", "per token", "answer")))


if __name__ == "__main__":
    sys.exit(main())
