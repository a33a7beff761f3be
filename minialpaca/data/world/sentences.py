"""How a fact is told."""

import random

from minialpaca.data.world import words


def with_article(noun: str) -> str:
    """Right for the nouns of this world, where spelling and sound begin alike."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def tell(template: str, name: str, value: str) -> str:
    return template.format(name=name, value=value, a_value=with_article(value))


def enumeration(parts: list[str]) -> str:
    """a lamp, a rope and a bell"""
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def shopping(rng: random.Random, items: list[str]) -> str:
    return f"The {rng.choice(words.JOBS)} {rng.choice(words.LIST_VERBS)} {enumeration([with_article(item) for item in items])}."


def both_ways(pairs) -> list[tuple]:
    return list(dict.fromkeys(directed for a, b in pairs for directed in ((a, b), (b, a))))
