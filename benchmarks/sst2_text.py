"""The pretraining text of the SST-2 benchmark: TinyStories and the sentences of MR, less what SST-2 is tested on.

    python -m benchmarks.sst2_text --stories tinystories_2mb.txt --mr mr_rt_polarity.pos.txt mr_rt_polarity.neg.txt \
        --held-out sst2_dev.txt sst2_test.txt --out sst2-pretrain

SST-2's sentences come from MR, tokenised and spelled a little otherwise (`-lrb-` for a bracket, other accents). A
sentence of MR is left out if it shares seven words in ten with one of a held-out split: |A ∩ B| / |A ∪ B| ≥ 0.7 over
their sets of words. Labels are not read.
"""

import argparse
import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

NEAR = 0.7


def words_of(sentence: str) -> frozenset[str]:
    plain = unicodedata.normalize("NFKD", sentence.lower().replace("-lrb-", "(").replace("-rrb-", ")"))
    return frozenset(re.findall(r"[a-z0-9]+", plain.encode("ascii", "ignore").decode()))


class Near:
    """Finds sentences that share most of their words with a given one."""

    def __init__(self, sentences: list[str]):
        self.sets = [words_of(s) for s in sentences]
        self.holders: dict[str, list[int]] = defaultdict(list)
        for i, words in enumerate(self.sets):
            for word in words:
                self.holders[word].append(i)

    def has(self, sentence: str) -> bool:
        words = words_of(sentence)
        shared = Counter(i for word in words for i in self.holders.get(word, ()))
        return any(n >= NEAR * len(words | self.sets[i]) for i, n in shared.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", type=Path, required=True)
    parser.add_argument("--mr", type=Path, nargs="+", required=True)
    parser.add_argument("--held-out", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    held_out = [line.partition(" ")[2] for p in args.held_out for line in p.read_text(encoding="utf-8").splitlines()]
    near = Near(held_out)
    sentences = [s.strip() for p in args.mr for s in p.read_text(encoding="windows-1252").splitlines() if s.strip()]
    kept = [s for s in sentences if not near.has(s)]
    stories = [" ".join(s.split()) for s in args.stories.read_text(encoding="utf-8").split("<|endoftext|>") if s.strip()]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "mr.txt").write_text("\n".join(kept) + "\n", encoding="utf-8")
    (args.out / "stories.txt").write_text("\n".join(stories) + "\n", encoding="utf-8")
    print(f"{len(held_out):,} held-out sentences; {len(sentences):,} of MR, {len(sentences) - len(kept):,} left out as near "
          f"one of them, {len(kept):,} kept; {len(stories):,} stories -> {args.out}")


if __name__ == "__main__":
    main()
