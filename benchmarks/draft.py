"""What a draft is worth: one text at a time, the run alone and with a smaller run ahead of it, in turns.

    python -m benchmarks.draft runs/stories --draft runs/stories-small --ahead 2 4 8

The texts are the beginnings of the run's own held-out tokens. A row for each number of drafted tokens, greedy and drawn
(temperature 1): tokens/s, median with lowest and highest over the rounds, beside the run's own of the same round; and of the drafted tokens
the share that was kept. Greedy, the tokens have to be the same, or the command ends.
"""

import argparse
import time
from pathlib import Path

from benchmarks.runs import at_least_one, between
from minialpaca import run
from minialpaca.config import Sampling
from minialpaca.data.token_file import TokenFile
from minialpaca.decode import swift
from minialpaca.errors import command
from minialpaca.generate import room, stream
from minialpaca.speculate import Speculator, with_draft

NEVER = -1  # no text ends before its time


def timed(say, prompts: list[list[int]]) -> tuple[list[list[int]], float]:
    """What is said behind each prompt, and tokens a second."""
    started = time.perf_counter()
    said = [list(say(prompt)) for prompt in prompts]
    return said, sum(map(len, said)) / (time.perf_counter() - started)


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--ahead", type=at_least_one, nargs="+", default=[2, 4, 8])
    parser.add_argument("--texts", type=at_least_one, default=4)
    parser.add_argument("--prompt", type=at_least_one, default=16, help="tokens of each text")
    parser.add_argument("--new", type=at_least_one, default=128)
    parser.add_argument("--rounds", type=at_least_one, default=5)
    args = parser.parse_args()
    model, tokenizer = run.load(args.run)
    held_out = TokenFile(args.run / "tokens" / "val.bin", tokenizer)
    apart = len(held_out) // args.texts
    prompts = [held_out.ids[i * apart:i * apart + args.prompt].tolist() for i in range(args.texts)]
    room(model, prompts, args.new)
    alone = swift(model, int8=False, compiled=False)
    drafts: dict[int, Speculator] = {ahead: with_draft(model, tokenizer, args.draft, ahead, False, False) for ahead in args.ahead}
    print("| drafted at once | tokens | tokens/s | beside the run alone | kept % |\n|---|---|---|---|---|")
    for name, how in (("greedy", Sampling()), ("drawn", Sampling(temperature=1.0))):
        rates: dict[int, list[float]] = {ahead: [] for ahead in (0, *args.ahead)}
        for number in range(args.rounds + 1):  # the first warms up
            said = {}
            for ahead in rates:
                say = (lambda p, a=ahead: drafts[a].stream(p, NEVER, args.new, how)) if ahead else (
                    lambda p: (row[0] for row in stream(alone, [p], NEVER, args.new, how)))
                said[ahead], rate = timed(say, prompts)
                rates[ahead] += [rate] * (number > 0)
            if name == "greedy" and any(tokens != said[0] for tokens in said.values()):
                raise SystemExit("greedy, a draft has changed what is said")
        for ahead, found in rates.items():
            beside = between([rate / own for rate, own in zip(found, rates[0])])
            kept = f"{100 * drafts[ahead].kept / drafts[ahead].drafted:.0f}" if ahead else ""
            print(f"| {ahead or 'none'} | {name} | {between(found, 0)} | {beside} | {kept} |", flush=True)
            if ahead:
                drafts[ahead].kept = drafts[ahead].drafted = 0


if __name__ == "__main__":
    main()
