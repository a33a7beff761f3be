"""What is labelled: reviews, with their sentiment and what they are about.

The words of praise and blame are split, as facts are split by entity: those of validation and test are never in
a labelled training text, only in the corpus. A right sentiment there means that what a word stands for was known
from reading.
"""

import random

from minialpaca.data.world import words
from minialpaca.data.world.entities import World, stream

SUBJECTS = {
    "food": ("soup", "meal"),
    "place": ("inn", "room", "market", "garden"),
    "art": ("book", "song", "play", "story"),
    "travel": ("guide", "journey"),
}
SENTENCES = (
    "The {thing} was {one} and {other}.",
    "{opening} the {thing} was {one}.",
    "The {job} says that the {thing} is {one}.",
    "It was {one}, the {thing} of the {job}.",
    "A review of the {thing} has the words {one} and {other}.",
)

Review = dict[str, str]  # text, sentiment, subject


def reviews(world: World, *, train: int = 800, validation: int = 120, test: int = 240) -> tuple[list[Review], ...]:
    """(train, validation, test): texts that differ pairwise, sentiments and subjects in equal parts."""
    seen: set[str] = set()
    splits = []
    for name, size, part in zip(("train", "validation", "test"), (train, validation, test), adjective_split(world)):
        rng = stream(world.seed, f"reviews/{name}")
        split: list[Review] = []
        while len(split) < size:
            review = write(rng, len(split), part)
            if review["text"] not in seen:
                seen.add(review["text"])
                split.append(review)
        rng.shuffle(split)
        splits.append(split)
    return tuple(splits)


def adjective_split(world: World) -> list[dict[str, list[str]]]:
    """For each split, sentiment → its adjectives: six of ten are labelled in training, two each held out."""
    splits: list[dict[str, list[str]]] = [{}, {}, {}]
    for sentiment, mood in words.FEELINGS.items():
        mixed = stream(world.seed, f"reviews/{sentiment}").sample(mood["adjectives"], len(mood["adjectives"]))
        for split, part in zip(splits, (mixed[4:], mixed[:2], mixed[2:4])):
            split[sentiment] = part
    return splits


def write(rng: random.Random, i: int, adjectives: dict[str, list[str]]) -> Review:
    """The running number, not the dice, chooses the labels: every split is balanced."""
    sentiment = list(adjectives)[i % 2]
    subject = list(SUBJECTS)[i // 2 % len(SUBJECTS)]
    one, other = rng.sample(adjectives[sentiment], 2)
    text = rng.choice(SENTENCES).format(thing=rng.choice(SUBJECTS[subject]), one=one, other=other,
                                        job=rng.choice(words.JOBS), opening=rng.choice(words.PAST_OPENINGS))
    return {"text": text, "sentiment": sentiment, "subject": subject}
