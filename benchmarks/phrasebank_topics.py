"""Financial PhraseBank with a second label group: what a sentence is about, by a stated rule.

    python -m benchmarks.phrasebank_topics Sentences_50Agree.txt phrasebank.csv

Writes a table text, sentiment, topic. The topic is the first of `TOPICS` one of whose word beginnings starts a word of
the sentence, and `other` where none does. Sentences that the file gives two sentiments are left out; of equal ones the
first stays.
"""

import argparse
import csv
import re
from collections import Counter, defaultdict
from pathlib import Path

TOPICS = {
    "people": "appoint employ personnel staff lay-off laid layoff redundan resign headcount job workforce worker",
    "contract": "contract order agreement deliver supply suppli award tender deal",
    "ownership": "acqui merg divest stake sharehold shares subscription takeover buy bought sell-off sale-of",
    "result": "profit loss ebit earning net operating turnover sales revenue quarter dividend eps margin",
    "operations": "plant factory production capacity invest build construct launch product technolog service expan",
    "market": "market demand price volume index pct growth grow forecast econom consum customer subscriber",
}


def topic_of(sentence: str) -> str:
    words = re.findall(r"[a-z][a-z-]*", sentence.lower())
    return next((topic for topic, beginnings in TOPICS.items()
                 if any(word.startswith(tuple(beginnings.split())) for word in words)), "other")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    sentiments: dict[str, set[str]] = defaultdict(set)
    for line in args.source.read_text(encoding="utf-8-sig").splitlines():
        sentence, _, sentiment = line.rpartition("@")
        sentiments[sentence.strip()].add(sentiment.strip())
    rows = [(sentence, *said, topic_of(sentence)) for sentence, said in sentiments.items() if len(said) == 1]
    with args.out.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "sentiment", "topic"), *rows])
    print(f"{len(rows):,} sentences, {len(sentiments) - len(rows)} with two sentiments left out -> {args.out}")
    for column, name in ((1, "sentiment"), (2, "topic")):
        print(f"{name}: " + ", ".join(f"{label} {n:,}" for label, n in Counter(r[column] for r in rows).most_common()))


if __name__ == "__main__":
    main()
