"""What is asked: twelve kinds of instruction, every answer marked by exact match.

Facts are split by entity: what validation and test ask about was only ever told in the corpus.
"""

import random
from collections.abc import Callable
from itertools import combinations, combinations_with_replacement

from minialpaca.data.rows import Row
from minialpaca.data.world import words
from minialpaca.data.world.entities import FACT_KINDS, LARGEST_TERM, NUMBERS, Entity, World, stream
from minialpaca.data.world.sentences import both_ways, shopping, tell

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
    phrasings: int = 2,
    train_per_kind: int = 1000,
    validation_per_kind: int = 20,
    test_per_kind: int = 40,
) -> Splits:
    """(train, validation, test). The sizes per kind are upper bounds where a kind has fewer; facts and names for
    training are all taken.

    Training asks each fact in `phrasings` (1 to 3) of its three wordings; test asks each fact of
    each test entity once, however many that makes.
    """
    sizes = (validation_per_kind, test_per_kind, train_per_kind)
    parts = [
        fact_questions(world, phrasings, validation_per_kind),
        arithmetic_examples(stream(world.seed, "arithmetic"), sizes),
        compare_examples(stream(world.seed, "compare"), sizes),
        name_examples(stream(world.seed, "name"), world, sizes),
    ]
    for draw in (list_things, count_things, order_numbers, rewrite, sentiment, place):
        parts.append(drawn_examples(stream(world.seed, draw.__name__), draw, sizes))
    splits = tuple([example for part in parts for example in part[i]] for i in range(3))
    for name, split in zip(("train", "validation", "test"), splits):
        stream(world.seed, f"shuffle/{name}").shuffle(split)
    return splits


def fact_questions(world: World, phrasings: int, validation_per_kind: int) -> Splits:
    rng = stream(world.seed, "facts")

    def ask(entities, times):
        for entity in entities:
            for attribute in entity.facts:
                _, sentences, questions = words.ATTRIBUTES[entity.kind][attribute]
                for question in rng.sample(questions, times):
                    answer = tell(sentences[0], entity.name, entity.facts[attribute])
                    yield Row(question.format(name=entity.name), "", answer, f"fact: {entity.kind}")

    train, validation, test = entity_split(world)
    asked = list(ask(validation, 1))
    rng.shuffle(asked)
    few = [example for kind in FACT_KINDS for example in [e for e in asked if e.kind == f"fact: {kind}"][:validation_per_kind]]
    return list(ask(train, phrasings)), few, list(ask(test, 1))


def arithmetic_examples(rng: random.Random, sizes: tuple[int, int, int]) -> Splits:
    """Split by unordered pair: with 5 + 7 in training, 7 + 5 in test would be no question."""
    pairs = list(combinations_with_replacement(range(LARGEST_TERM + 1), 2))
    groups = three_parts(rng, pairs, n_validation=3, n_test=8)
    answered = [[({"a": a, "b": b}, words.SUM_SENTENCES[0].format(a=a, b=b, c=a + b))
                 for a, b in both_ways(group)] for group in groups]
    return worded(rng, "arithmetic", answered, sizes)


def compare_examples(rng: random.Random, sizes: tuple[int, int, int]) -> Splits:
    """Split by unordered pair, as sums are; both orders, and both the larger and the smaller, are asked."""
    groups = three_parts(rng, list(combinations(NUMBERS, 2)), n_validation=4, n_test=8)
    answered = [[({"a": a, "b": b, "asked": asked}, str(best(a, b)))
                 for a, b in both_ways(group) for asked, best in (("larger", max), ("smaller", min))] for group in groups]
    return worded(rng, "compare", answered, sizes)


def name_examples(rng: random.Random, world: World, sizes: tuple[int, int, int]) -> Splits:
    """Say a name: copying, over the names of all entities, which tells nothing about them.

    Without it, training would never say the names that validation and test ask about, and a small model
    would answer with a name that it has said before. Each name is asked for in every wording but those held out.
    """
    rows = [Row(wording.format(name=entity.name), "", f"{entity.name}.", "name")
            for entity in world.entities for wording in words.WORDING["name"]]
    rng.shuffle(rows)
    n_validation, n_test, _ = sizes
    held_out = n_validation + n_test
    return rows[held_out:], rows[:n_validation], rows[n_validation:held_out]


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


def drawn_examples(rng: random.Random, draw: Callable, sizes: tuple[int, int, int]) -> Splits:
    """Examples with inputs that differ pairwise, so that no held-out input occurs in training."""
    examples: dict[str, Row] = {}
    for _ in range(20 * sum(sizes)):  # a bound: there are, for instance, only 1,200 different reviews
        if len(examples) == sum(sizes):
            break
        # The running number, not the dice, chooses labels and lengths: every split is balanced.
        example = draw(rng, len(examples))
        examples.setdefault(example.input or example.instruction, example)
    drawn = list(examples.values())
    n_validation, n_test, _ = sizes
    return drawn[n_validation + n_test :], drawn[:n_validation], drawn[n_validation : n_validation + n_test]


def list_things(rng: random.Random, i: int) -> Row:
    items = rng.sample(words.ITEMS, 2 + i % 3)
    told = shopping(rng, items)
    return Row(rng.choice(words.WORDING["list"]), told, ", ".join(items), "list")


def count_things(rng: random.Random, i: int) -> Row:
    items = rng.sample(words.ITEMS, 2 + i % 4)
    told = shopping(rng, items)
    return Row(rng.choice(words.WORDING["count"]), told, str(len(items)), "count")


def order_numbers(rng: random.Random, i: int) -> Row:
    numbers = rng.sample(NUMBERS, 3)
    mixed, ordered = (", ".join(map(str, ns)) for ns in (numbers, sorted(numbers)))
    return Row(rng.choice(words.WORDING["order"]), mixed, ordered, "order")


def rewrite(rng: random.Random, i: int) -> Row:
    person = f"The {rng.choice(words.JOBS)}"
    present, past, endings = words.VERBS[i % len(words.VERBS)]
    ending = rng.choice(endings)
    now, before = f"{person} {present} {ending}.", f"{person} {past} {ending}."
    return Row(rng.choice(words.WORDING["rewrite"]), now, before, "rewrite")


def sentiment(rng: random.Random, i: int) -> Row:
    label = ("positive", "negative")[i % 2]
    mood = words.FEELINGS[label]
    review = f"The {rng.choice(words.REVIEWED)} was {rng.choice(mood['adjectives'])}. {rng.choice(mood['closings'])}"
    return Row(rng.choice(words.WORDING["sentiment"]), review, label, "sentiment")


def place(rng: random.Random, i: int) -> Row:
    items = rng.sample(words.ITEMS, 2 + i % 4)
    asked, answer = (("first", items[0]), ("last", items[-1]))[i % 2]
    return Row(rng.choice(words.WORDING["place"]).format(place=asked), shopping(rng, items), answer, "place")
