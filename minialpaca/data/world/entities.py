"""Who and what there is: invented people, towns and ships with four facts each."""

import random
import re
from dataclasses import dataclass

from minialpaca.data.world import words

FACT_KINDS = ("person", "town", "thing")
POPULATION = {"person": 320, "town": 96, "thing": 96}
N_HOMES = 24  # people live in this many of the towns: few enough to learn as values
LARGEST_TERM = 6
NUMBERS = range(1, 10)  # numbers to compare and to sort: one digit, one token

# What a name ends in tells its kind: Mirava (a person), Tolen (a town), Velusk (a ship).
# kind -> (syllables, vowels of the last one, what may close it)
NAME_SHAPES = {
    "person": (3, "aoi", ("",)),
    "town": (2, "aeiou", ("n", "l", "r")),
    "thing": (2, "aeiou", ("sk", "x", "nd")),
}


@dataclass(frozen=True)
class Entity:
    name: str
    kind: str  # one of FACT_KINDS
    facts: dict[str, str]  # attribute -> value, in the order of words.ATTRIBUTES


@dataclass(frozen=True)
class World:
    seed: int
    entities: tuple[Entity, ...]

    @classmethod
    def build(cls, seed: int = 0) -> "World":
        rng = stream(seed, "world")
        names = invent_names(rng)
        homes = names["town"][:N_HOMES]
        entities = []
        for kind in FACT_KINDS:
            for name in names[kind]:
                pools = {attribute: pool or homes for attribute, (pool, _, _) in words.ATTRIBUTES[kind].items()}
                entities.append(Entity(name, kind, {attribute: rng.choice(pool) for attribute, pool in pools.items()}))
        return cls(seed, tuple(entities))


def stream(seed: int, part: str) -> random.Random:
    """A generator of its own for each part; a string seed is hashed with SHA-512, not with hash()."""
    return random.Random(f"minialpaca/{seed}/{part}")


def invent_names(rng: random.Random) -> dict[str, list[str]]:
    """Unique names, none the beginning of another (a shorter answer must not look half right)."""
    taken_words = vocabulary_of_tables()
    names: dict[str, list[str]] = {kind: [] for kind in FACT_KINDS}
    seen, beginnings = set(), set()
    for kind in FACT_KINDS:
        while len(names[kind]) < POPULATION[kind]:
            name = invent_name(rng, kind)
            own_beginnings = {name[:n] for n in range(1, len(name) + 1)}
            if name in beginnings or own_beginnings & seen or name.lower() in taken_words:
                continue
            seen.add(name)
            beginnings |= own_beginnings
            names[kind].append(name)
    return names


def invent_name(rng: random.Random, kind: str) -> str:
    consonants, vowels = "bdgklmnrstv", "aeiou"
    n_syllables, last_vowels, closings = NAME_SHAPES[kind]
    start = "".join(rng.choice(consonants) + rng.choice(vowels) for _ in range(n_syllables - 1))
    return (start + rng.choice(consonants) + rng.choice(last_vowels) + rng.choice(closings)).capitalize()


def vocabulary_of_tables() -> set[str]:
    """Every lower-cased word written in words.py."""
    found: set[str] = set()

    def visit(table):
        if isinstance(table, str):
            found.update(re.findall(r"[a-z]+", table.lower()))
        elif isinstance(table, dict):
            visit(tuple(table.items()))
        elif isinstance(table, (tuple, list)):
            for value in table:
                visit(value)

    visit([value for name, value in vars(words).items() if name.isupper()])
    return found
