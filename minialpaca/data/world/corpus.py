"""What is told: the pretraining documents. They ask nothing."""

import random
from collections.abc import Iterator, Sequence

from minialpaca.data.world import words
from minialpaca.data.world.entities import LARGEST_TERM, NUMBERS, World, stream
from minialpaca.data.world.sentences import shopping, tell


def corpus(world: World, *, tellings_per_entity: int = 16, documents_per_skill: int = 500, songs: int = 1000) -> Iterator[str]:
    """The pretraining documents, shuffled: facts (most of them), then what the other kinds need."""
    documents = list(fact_documents(world, tellings_per_entity))
    documents += grouped(stream(world.seed, "corpus/sums"), sum_sentences())
    for write in (comparison_story, shopping_story, number_story, tense_story, feeling_story):
        rng = stream(world.seed, f"corpus/{write.__name__}")
        documents += [write(rng, i) for i in range(documents_per_skill)]
    documents += songbook(stream(world.seed, "corpus/songs"), world, songs)
    stream(world.seed, "corpus/shuffle").shuffle(documents)
    yield from documents


def fact_documents(world: World, tellings: int) -> Iterator[str]:
    rng = stream(world.seed, "corpus/facts")
    for entity in world.entities:
        # Each attribute goes through all its templates, in an order of its own, before it repeats one.
        orders = {}
        for attribute in entity.facts:
            _, sentences, _ = words.ATTRIBUTES[entity.kind][attribute]
            orders[attribute] = rng.sample(sentences, len(sentences))
        for t in range(tellings):
            told = [tell(orders[a][t % len(orders[a])], entity.name, value) for a, value in entity.facts.items()]
            rng.shuffle(told)
            yield " ".join(told)


def sum_sentences(times: int = 14) -> list[str]:
    terms = range(LARGEST_TERM + 1)
    return [s.format(a=a, b=b, c=a + b) for a in terms for b in terms for s in words.SUM_SENTENCES] * times


def grouped(rng: random.Random, sentences: list[str], size: int = 4) -> list[str]:
    """Documents of a few sentences in random order."""
    rng.shuffle(sentences)
    return [" ".join(sentences[i : i + size]) for i in range(0, len(sentences), size)]


def comparison_story(rng: random.Random, i: int) -> str:
    small, large = sorted(rng.sample(NUMBERS, 2))
    return rng.choice((
        f"{large} is larger than {small}.", f"{small} is smaller than {large}.",
        f"Of {small} and {large} the larger number is {large}.", f"Of {large} and {small} the larger number is {large}.",
        f"Of {small} and {large} the smaller number is {small}.", f"Of {large} and {small} the smaller number is {small}.",
    ))


def shopping_story(rng: random.Random, i: int) -> str:
    items = rng.sample(words.ITEMS, 2 + i % 4)
    total = rng.choice((str(len(items)), words.COUNT_WORDS[len(items)]))
    return f"{shopping(rng, items)} The things are {', '.join(items)}. That makes {total} things."


def number_story(rng: random.Random, i: int) -> str:
    low, middle, high = sorted(rng.sample(NUMBERS, 3))
    mixed = rng.sample((low, middle, high), 3)
    return rng.choice((
        f"{low} is less than {middle}, and {high} is more than {middle}.",
        f"The numbers {mixed[0]}, {mixed[1]}, {mixed[2]} in order are {low}, {middle}, {high}.",
        f"From small to large, {mixed[0]}, {mixed[1]}, {mixed[2]} become {low}, {middle}, {high}.",
    ))


def tense_story(rng: random.Random, i: int) -> str:
    person = f"the {rng.choice(words.JOBS)}"
    present, past, endings = words.VERBS[i % len(words.VERBS)]
    ending = endings[i // len(words.VERBS) % len(endings)]
    told = [
        f"{rng.choice(words.PRESENT_OPENINGS)} {person} {present} {ending}.",
        f"{rng.choice(words.PAST_OPENINGS)} {person} {past} {ending}.",
    ]
    rng.shuffle(told)
    return " ".join(told)


def feeling_story(rng: random.Random, i: int) -> str:
    label = ("positive", "negative")[i % 2]
    mood = words.FEELINGS[label]
    person = f"the {rng.choice(words.JOBS)}"
    one, other = rng.sample(mood["adjectives"], 2)
    return rng.choice((
        f"The {rng.choice(words.REVIEWED)} was {one} and {person} {rng.choice(mood['reactions'])}.",
        f"{rng.choice(mood['closings'])} It was {one}. T{person[1:]} {rng.choice(mood['reactions'])}.",
        f"A review with the words {one} and {other} is {label}.",
    ))


def songbook(rng: random.Random, world: World, songs: int) -> list[str]:
    """Songs of things, and as many of names: tuning copies no name well that was never copied before."""
    things, names = Deck(rng, words.ITEMS), Deck(rng, [entity.name for entity in world.entities])
    return [song(rng, (things, names)[i // 4 % 2].deal(3 + i % 4)) for i in range(songs)]


def song(rng: random.Random, line: list[str]) -> str:
    """Words in a random order, sung three times: only looking back tells what comes next."""
    return f"The song of the {rng.choice(words.JOBS)} goes {', '.join([' '.join(line)] * 3)}."


class Deck:
    """Cards dealt in random order, all of them before one comes again (but for a rest too small for a hand)."""

    def __init__(self, rng: random.Random, cards: Sequence[str]):
        self.rng, self.cards, self.left = rng, list(cards), []

    def deal(self, n: int) -> list[str]:
        if len(self.left) < n:
            self.left = self.rng.sample(self.cards, len(self.cards))
        return [self.left.pop() for _ in range(n)]
