"""What is asked: thirteen kinds of instruction, every answer marked by exact match.

Facts are split by entity: what validation and test ask about was only ever told in the corpus.
"""

import random
from collections.abc import Callable
from itertools import combinations_with_replacement

from minialpaca.data.rows import Row
from minialpaca.data.world import words
from minialpaca.data.world.entities import FACT_KINDS, LARGEST_TERM, NUMBERS, Entity, World, stream
from minialpaca.data.world.sentences import belongs, both_ways, canonical_answer, shopping

Splits = tuple[list[Row], list[Row], list[Row]]


def entity_split(world: World) -> tuple[list[Entity], list[Entity], list[Entity]]:
    """(train, validation, test) entities: 70, 10 and 20 % of each kind."""
    splits = ([], [], [])
    for kind in FACT_KINDS:
        group = [entity for entity in world.entities if entity.kind == kind]
        stream(world.seed, f"split/{kind}").shuffle(group)
        a, b = round(0.7 * len(group)), round(0.8 * len(group))
        for split, part in zip(splits, (group[:a], group[a:b], group[b:])):
            split.extend(part)
    return splits


def instructions(
    world: World,
    *,
    phrasings: int = 3,
    train_per_kind: int = 1500,
    validation_per_kind: int = 20,
    test_per_kind: int = 40,
) -> Splits:
    """(train, validation, test). The sizes per kind are upper bounds where a kind has fewer.

    Training asks each fact in `phrasings` (1 to 3) of its three wordings; test asks each fact of
    each test entity once, however many that makes.
    """
    sizes = (validation_per_kind, test_per_kind, train_per_kind)
    parts = [
        fact_questions(world, phrasings, validation_per_kind),
        arithmetic_examples(stream(world.seed, "arithmetic"), sizes),
        opposite_examples(stream(world.seed, "opposite"), sizes),
    ]
    for draw in (compare, list_things, count_things, order_numbers, rewrite, sentiment, reading, repeat):
        parts.append(drawn_examples(stream(world.seed, draw.__name__), world, draw, sizes))
    splits = tuple([example for part in parts for example in part[i]] for i in range(3))
    for name, split in zip(("train", "validation", "test"), splits):
        stream(world.seed, f"shuffle/{name}").shuffle(split)
    return splits


def fact_questions(world: World, phrasings: int, validation_per_kind: int) -> Splits:
    rng = stream(world.seed, "facts")

    def ask(entities, times):
        for entity in entities:
            for attribute in entity.facts:
                _, _, questions = words.ATTRIBUTES[entity.kind][attribute]
                for question in rng.sample(questions, times):
                    answer = canonical_answer(entity, attribute)
                    yield Row(question.format(name=entity.name), "", answer, f"fact: {entity.kind}")

    train, validation, test = entity_split(world)
    asked = list(ask(validation, 1))
    rng.shuffle(asked)
    few = [example for kind in FACT_KINDS for example in [e for e in asked if e.kind == f"fact: {kind}"][:validation_per_kind]]
    return list(ask(train, phrasings)), few, list(ask(test, 1))


def arithmetic_examples(rng: random.Random, sizes: tuple[int, int, int]) -> Splits:
    """Split by unordered pair: with 5 + 7 in training, 7 + 5 in test would be no question."""
    pairs = list(combinations_with_replacement(range(LARGEST_TERM + 1), 2))
    groups = three_parts(rng, pairs, n_validation=5, n_test=14)
    answered = [[({"a": a, "b": b}, words.SUM_SENTENCES[0].format(a=a, b=b, c=a + b)) for a, b in both_ways(group)]
                for group in groups]
    return worded(rng, "arithmetic", answered, sizes)


def opposite_examples(rng: random.Random, sizes: tuple[int, int, int]) -> Splits:
    """Split by pair, both directions asked: no word of a test pair is ever asked or answered in training."""
    groups = three_parts(rng, words.OPPOSITES, n_validation=6, n_test=12)
    answered = [[({"word": word}, words.OPPOSITE_SENTENCES[0].format(word=word, other=other))
                 for word, other in both_ways(group)] for group in groups]
    return worded(rng, "opposite", answered, sizes)


def three_parts(rng: random.Random, pairs, n_validation: int, n_test: int) -> tuple[list, list, list]:
    mixed = rng.sample(pairs, len(pairs))
    held_out = n_validation + n_test
    return mixed[held_out:], mixed[:n_validation], mixed[n_validation:held_out]


def worded(rng: random.Random, kind: str, groups: list, sizes: tuple[int, int, int]) -> Splits:
    """Training asks in every wording, validation and test once in a random one."""
    wordings = words.WORDING[kind]
    n_validation, n_test, n_train = sizes
    train, validation, test = (
        [
            Row(wording.format(**terms), "", answer, kind)
            for terms, answer in group
            for wording in (wordings if i == 0 else [rng.choice(wordings)])
        ]
        for i, group in enumerate(groups)
    )
    for split in (train, validation, test):
        rng.shuffle(split)
    return train[:n_train], validation[:n_validation], test[:n_test]


def drawn_examples(rng: random.Random, world: World, draw: Callable, sizes: tuple[int, int, int]) -> Splits:
    """Examples with inputs that differ pairwise, so that no held-out input occurs in training."""
    examples: dict[str, Row] = {}
    for _ in range(20 * sum(sizes)):  # a bound: there are, for instance, only 1,200 different reviews
        if len(examples) == sum(sizes):
            break
        # The running number, not the dice, chooses labels and lengths: every split is balanced.
        example = draw(rng, world, len(examples))
        examples.setdefault(example.input, example)
    drawn = list(examples.values())
    n_validation, n_test, _ = sizes
    return drawn[n_validation + n_test :], drawn[:n_validation], drawn[n_validation : n_validation + n_test]


def compare(rng: random.Random, world: World, i: int) -> Row:
    numbers = rng.sample(NUMBERS, 2)
    asked = ("older", "heavier", "younger", "lighter")[i % 4]
    if asked in ("older", "younger"):
        names = rng.sample(world.people(), 2)
        told = [f"{name} is {number} years old." for name, number in zip(names, numbers)]
    else:
        names = rng.sample(words.ITEMS, 2)
        told = [f"The {name} weighs {number} pounds." for name, number in zip(names, numbers)]
    wanted = max(numbers) if asked in ("older", "heavier") else min(numbers)
    return Row(rng.choice(words.WORDING[asked]), " ".join(told), names[numbers.index(wanted)], "compare")


def list_things(rng: random.Random, world: World, i: int) -> Row:
    items = rng.sample(words.ITEMS, 2 + i % 3)
    told = shopping(rng, rng.choice(world.people()), items)
    return Row(rng.choice(words.WORDING["list"]), told, ", ".join(items), "list")


def count_things(rng: random.Random, world: World, i: int) -> Row:
    items = rng.sample(words.ITEMS, 2 + i % 4)
    told = shopping(rng, rng.choice(world.people()), items)
    return Row(rng.choice(words.WORDING["count"]), told, str(len(items)), "count")


def order_numbers(rng: random.Random, world: World, i: int) -> Row:
    numbers = rng.sample(NUMBERS, 3)
    mixed, ordered = (", ".join(map(str, ns)) for ns in (numbers, sorted(numbers)))
    return Row(rng.choice(words.WORDING["order"]), mixed, ordered, "order")


def rewrite(rng: random.Random, world: World, i: int) -> Row:
    person = rng.choice(world.people())
    present, past, endings = words.VERBS[i % len(words.VERBS)]
    ending = rng.choice(endings)
    now, before = f"{person} {present} {ending}.", f"{person} {past} {ending}."
    return Row(rng.choice(words.WORDING["rewrite"]), now, before, "rewrite")


def sentiment(rng: random.Random, world: World, i: int) -> Row:
    label = ("positive", "negative")[i % 2]
    mood = words.FEELINGS[label]
    review = f"The {rng.choice(words.REVIEWED)} was {rng.choice(mood['adjectives'])}. {rng.choice(mood['closings'])}"
    return Row(rng.choice(words.WORDING["sentiment"]), review, label, "sentiment")


def reading(rng: random.Random, world: World, i: int) -> Row:
    n = 2 + i % 2
    owners, items = rng.sample(world.people(), n), rng.sample(words.ITEMS, n)
    told = [belongs(item, owner) for item, owner in zip(items, owners)]
    k = rng.randrange(n)
    return Row(rng.choice(words.WORDING["reading"]).format(item=items[k]), " ".join(told), told[k], "reading")


def repeat(rng: random.Random, world: World, i: int) -> Row:
    """Copying, over all the words that questions turn on: so a name that no question of training holds can be said."""
    line = " ".join(rng.sample([*world.names(), *words.ITEMS, *(w for pair in words.OPPOSITES for w in pair)], 2 + i % 3))
    return Row(rng.choice(words.WORDING["repeat"]), line, line, "repeat")
