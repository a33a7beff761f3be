"""How a fact is told."""

import random

from minialpaca.data.world import words
from minialpaca.data.world.entities import Entity


def with_article(noun: str) -> str:
    """Right for the nouns of this world, where spelling and sound begin alike."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def tell(template: str, name: str, value: str) -> str:
    return template.format(name=name, value=value, a_value=with_article(value))


def canonical_answer(entity: Entity, attribute: str) -> str:
    _, sentences, _ = words.ATTRIBUTES[entity.kind][attribute]
    return tell(sentences[0], entity.name, entity.facts[attribute])


def enumeration(parts: list[str]) -> str:
    """a lamp, a rope and a bell"""
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def belongs(item: str, owner: str) -> str:
    return f"The {item} belongs to {owner}."


def shopping(rng: random.Random, person: str, items: list[str]) -> str:
    return f"{person} {rng.choice(words.LIST_VERBS)} {enumeration([with_article(item) for item in items])}."


def both_ways(pairs) -> list[tuple]:
    return list(dict.fromkeys(directed for a, b in pairs for directed in ((a, b), (b, a))))
