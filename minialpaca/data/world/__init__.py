"""The built-in world: a corpus and an instruction set from one seed.

512 invented people, towns and ships have four facts each. The corpus tells every fact in several
wordings, next to sums, comparisons, lists, songs, small stories and feelings; it asks nothing. The
instruction set asks. Facts are split by *entity*: what is asked about in validation and test was
only ever told in the corpus, so a right answer there means that knowledge from pretraining came
out in the form taught by fine-tuning. A third set, reviews, is there to be labelled.

Sentences are short, words few (under 1,200 distinct, names included), and every answer can be
marked by exact match. Everything is a pure function of the seed: each part draws from its own
random.Random, so changing one size does not move another part's draws.
"""

from minialpaca.data.world.corpus import corpus
from minialpaca.data.world.entities import FACT_KINDS, Entity, World
from minialpaca.data.world.instructions import instructions
from minialpaca.data.world.reviews import reviews
from minialpaca.errors import UserError

__all__ = ["FACT_KINDS", "Entity", "World", "corpus", "instructions", "is_world", "reviews", "seed_of"]


def is_world(source: str) -> bool:
    """Whether a data source means the built-in world: `world` or `world:SEED`."""
    return source == "world" or source.startswith("world:")


def seed_of(source: str) -> int:
    number = source.partition(":")[2] or "0"
    if not (number.isdecimal() and len(number) <= 18):
        raise UserError(f"data.source = {source!r}: write world or world:SEED, e.g. world:1")
    return int(number)
