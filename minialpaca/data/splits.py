"""Training, validation and test: what is held out, and what stands on two sides.

Equal texts are on one side, and where a split leaks into another that is counted and said; scores on texts
that were trained on measure memory.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minialpaca.config import ClassesConfig, CorpusConfig, FinetuneConfig
from minialpaca.data import corpus, world
from minialpaca.data.classes import LabelledText, labelled, read_texts
from minialpaca.data.order import permutation
from minialpaca.errors import UserError

Texts = list[LabelledText]
SHOWN = 5


@dataclass(frozen=True)
class Splits:
    train: Texts
    val: Texts
    test: Texts  # may be empty


def split_texts(settings: FinetuneConfig) -> Splits:
    """The labelled texts as `data` and `classes` ask for them, without leaks."""
    data, classes = settings.data, settings.classes
    if any(world.is_world(source) for source in data.source):
        train, val, test = _world(data.source, classes)
    else:
        train, val, test = read_texts(data.source, classes), [], []
    val = read_texts(data.val_source, classes) if data.val_source else val
    test = read_texts(data.test_source, classes) if data.test_source else test
    if not (val and test):
        train, held_val, held_test = hold_out(train, 0 if val else data.val_fraction,
                                              0 if test else classes.test_fraction, settings.run.seed)
        val, test = val or held_val, test or held_test
    for name, texts in (("training", train), ("validation", val), ("test", test)):
        _report_repeats(name, texts)
    val = without_leaks("validation", val, "test", test, classes.leaks)
    train = without_leaks("training", train, "test", test, classes.leaks)
    train = without_leaks("training", train, "validation", val, classes.leaks)
    if not val:
        print("no validation texts: the training texts are measured instead")
    return Splits(train, val or train, test)


def unlabelled_texts(settings: FinetuneConfig, splits: Splits) -> list[str]:
    """The texts of `adversarial.unlabelled`, each once, without those that the model will be marked on."""
    found = corpus.texts(CorpusConfig(source=settings.adversarial.unlabelled, documents="line"))
    distinct = dict.fromkeys(text.strip() for text in found)
    texts = [LabelledText(text, (), f"unlabelled text {i}") for i, text in enumerate(distinct, 1) if text]
    if not texts:
        raise UserError(f"adversarial.unlabelled = {list(settings.adversarial.unlabelled)}: holds no text")
    for name, later in (("validation", splits.val), ("test", splits.test)):
        texts = without_leaks("unlabelled", texts, name, later if later is not splits.train else [], settings.classes.leaks)
    return [text.text for text in texts]


def _world(source: Sequence[str], classes: ClassesConfig) -> tuple[Texts, Texts, Texts]:
    if len(source) > 1:
        raise UserError(f"data.source = {list(source)}: {source[0]!r} stands alone or not at all")
    splits = world.reviews(world.World.build(world.seed_of(source[0])))
    return tuple(labelled(Path(source[0]), ((f"{name} {i}", review) for i, review in enumerate(split, 1)), classes, [])
                 for name, split in zip(("train", "validation", "test"), splits))


# ── holding out ──────────────────────────────────────────────────────────────────────────────────


def hold_out(texts: Texts, val_fraction: float, test_fraction: float, seed: int) -> tuple[Texts, Texts, Texts]:
    """(train, validation, test), drawn by the seed, in each class of the first group alike.

    Equal texts go to one side. In every group each class keeps a training text: the first that the draw meets.
    """
    if val_fraction + test_fraction >= 1:
        raise UserError(f"data.val_fraction + classes.test_fraction = {val_fraction + test_fraction:g}: must be below "
                        "1, so that something is left to train on")
    copies: dict[str, Texts] = defaultdict(list)
    for text in texts:
        copies[text.text].append(text)
    distinct = list(copies)
    drawn = [copies[distinct[i]] for i in permutation(len(distinct), seed, 0, 2)]
    sides = {"validation": _quota(drawn, val_fraction, "data.val_fraction"),
             "test": _quota(drawn, test_fraction, "classes.test_fraction")}
    side_of = _deal(drawn, sides, kept=_first_of_each_class(drawn))
    for side, fraction in (("validation", val_fraction), ("test", test_fraction)):
        if fraction and side not in side_of.values():
            raise UserError(f"{side}: where each class keeps a training text none of {len(drawn)} distinct texts is "
                            "left to hold out; give more texts, or a file for this split")
    return tuple([t for t in texts if side_of.get(t.text) == side] for side in (None, "validation", "test"))


def _quota(drawn: list[Texts], fraction: float, key: str) -> dict[tuple, int]:
    """How many of each class: the rounded fraction of the running total, so that small classes add up, too."""
    n = round(fraction * len(drawn))
    if fraction and not 0 < n < len(drawn):
        raise UserError(f"{key} = {fraction:g}: holds out {n} of {len(drawn)} distinct texts; change it, or name a "
                        "file")
    quota, before = {}, 0
    sizes: dict[tuple, int] = defaultdict(int)
    for equal in drawn:
        sizes[equal[0].labels[0]] += 1
    for label in sorted(sizes):
        quota[label] = round(fraction * (before + sizes[label])) - round(fraction * before)
        before += sizes[label]
    return quota


def _first_of_each_class(drawn: list[Texts]) -> set[str]:
    kept: dict[tuple[int, str], str] = {}
    for equal in drawn:
        for text in equal:
            for group, labels in enumerate(text.labels):
                for label in labels:
                    kept.setdefault((group, label), text.text)
    return set(kept.values())


def _deal(drawn: list[Texts], sides: dict[str, dict[tuple, int]], kept: set[str]) -> dict[str, str]:
    """text → side, for those that leave the training split."""
    side_of = {}
    for equal in drawn:
        text, label = equal[0].text, equal[0].labels[0]
        for side, quota in sides.items():
            if text not in kept and text not in side_of and quota[label]:
                quota[label] -= 1
                side_of[text] = side
    return side_of


# ── what stands twice ────────────────────────────────────────────────────────────────────────────


def without_leaks(name: str, texts: Texts, later: str, later_texts: Texts, policy: str) -> Texts:
    """`texts` without those that stand in a later split too, by policy: `drop`, `keep`, or an error (`raise`)."""
    there = {text.text: text.place for text in later_texts}
    leaked = [text for text in texts if text.text in there]
    if not leaked:
        return texts
    shown = "; ".join(f"{text.place} = {there[text.text]}" for text in leaked[:SHOWN]) + "; …" * (len(leaked) > SHOWN)
    said = f"{len(leaked)} {name} text{'s stand' if len(leaked) > 1 else ' stands'} in the {later} split too: {shown}"
    if policy == "raise":
        raise UserError(f"{said}; take them out, or set classes.leaks to drop or keep")
    print(f"{said}; {'dropped from' if policy == 'drop' else 'kept in'} the {name} split (classes.leaks = {policy})")
    kept = texts if policy == "keep" else [text for text in texts if text.text not in there]
    if not kept:
        raise UserError(f"every {name} text stands in the {later} split too; give splits that differ")
    return kept


def _report_repeats(name: str, texts: Texts) -> None:
    """How many texts repeat another of their split, and how many have been given different labels."""
    labels: dict[str, set] = defaultdict(set)
    for text in texts:
        labels[text.text].add(tuple(frozenset(group) for group in text.labels))
    split_minds = [text for text, given in labels.items() if len(given) > 1]
    if len(labels) < len(texts):
        places = [text.place for text in texts if text.text in split_minds[:SHOWN]]
        contradicting = f"; {len(split_minds)} of them with different labels" + (
            f": {'; '.join(places)}{'; …' if len(split_minds) > SHOWN else ''}" if split_minds else "")
        print(f"{name}: {len(texts) - len(labels)} texts repeat another{contradicting}")
