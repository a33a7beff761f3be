"""What is held out, and what stands on two sides."""

import dataclasses
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minialpaca.config import ClassesConfig, FinetuneConfig, InstructionConfig
from minialpaca.data import world
from minialpaca.data.classes import LabelledText
from minialpaca.data.splits import hold_out, split_texts, without_leaks
from minialpaca.data.world import words
from minialpaca.errors import UserError


def texts(*pairs, place="a"):
    return [LabelledText(text, ((label,),), f"{place}, row {i}") for i, (text, label) in enumerate(pairs, 1)]


MANY = texts(*[(f"text {i}", "common" if i % 10 else "rare") for i in range(200)])


# ── holding out ──────────────────────────────────────────────────────────────────────────────────


def test_each_class_gives_its_part_and_nothing_is_lost():
    train, val, test = hold_out(MANY, 0.1, 0.2, seed=0)
    assert sorted(t.text for t in train + val + test) == sorted(t.text for t in MANY)
    for side, rare, common in ((val, 2, 18), (test, 4, 36), (train, 14, 126)):
        assert Counter(t.labels[0][0] for t in side) == {"rare": rare, "common": common}
        assert side == [t for t in MANY if t in side]  # in the order of the file


def test_the_draw_is_the_seeds():
    assert hold_out(MANY, 0.1, 0.2, 3) == hold_out(MANY, 0.1, 0.2, 3)
    assert hold_out(MANY, 0.1, 0.2, 3)[1] != hold_out(MANY, 0.1, 0.2, 4)[1]
    assert hold_out(MANY, 0.1, 0, 3)[1] == hold_out(MANY, 0.1, 0.2, 3)[1]  # a test part moves no validation text


def test_many_small_classes_add_up():
    """Each class's own tenth rounds to nothing."""
    small = texts(*[(f"text {i}", f"class {i % 40:02}") for i in range(160)])
    train, val, _ = hold_out(small, 0.1, 0, seed=0)
    assert len(val) == 16 and max(Counter(t.labels for t in val).values()) == 1


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6), st.integers(0, 3)), min_size=12, max_size=60),
       st.sampled_from([0.1, 0.3, 0.5]), st.sampled_from([0, 0.2, 0.4]), st.integers(0, 5))
def test_equal_texts_are_on_one_side_and_every_class_keeps_one_for_training(rows, val_fraction, test_fraction, seed):
    given_texts = [LabelledText(f"t{t}", ((f"a{a}",), (f"b{b}",)), str(i)) for i, (t, a, b) in enumerate(rows)]
    try:
        sides = hold_out(given_texts, val_fraction, test_fraction, seed)
    except UserError as error:
        assert "hold" in str(error)
        return
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not {t.text for t in sides[one]} & {t.text for t in sides[other]}
    for group in range(2):
        assert {t.labels[group] for t in sides[0]} == {t.labels[group] for t in given_texts}
    assert sides[1] and (sides[2] or not test_fraction) and sum(map(len, sides)) == len(rows)


@pytest.mark.parametrize("fractions, said", [
    ((0.001, 0), "data.val_fraction = 0.001: holds out 0 of 200"),
    ((0.1, 0.001), "classes.test_fraction = 0.001: holds out 0"),
    ((0.5, 0.5), "= 1: must be below 1"),
])
def test_a_part_that_holds_nothing_is_refused(fractions, said):
    with pytest.raises(UserError, match=said):
        hold_out(MANY, *fractions, 0)


def test_a_class_of_one_is_never_held_out_and_too_few_texts_are_refused():
    lone = texts(("a", "x"), ("b", "y"), ("c", "z"))
    with pytest.raises(UserError, match="validation: where each class keeps a training text none of 3 distinct texts"):
        hold_out(lone, 0.5, 0, 0)


# ── leaks ────────────────────────────────────────────────────────────────────────────────────────

EARLIER = texts(("a", "x"), ("b", "x"), ("c", "y"), ("b", "y"), place="one")
LATER = texts(("b", "x"), ("z", "y"), place="two")


def test_leaks_are_counted_named_and_dropped(capsys):
    kept = without_leaks("training", EARLIER, "test", LATER, "drop")
    assert [t.text for t in kept] == ["a", "c"]
    assert capsys.readouterr().out == ("2 training texts stand in the test split too: one, row 2 = two, row 1; one, "
                                       "row 4 = two, row 1; dropped from the training split (classes.leaks = drop)\n")


def test_leaks_are_kept_or_refused_where_that_is_asked(capsys):
    assert without_leaks("training", EARLIER, "test", LATER, "keep") == EARLIER
    assert "2 training texts stand" in capsys.readouterr().out
    with pytest.raises(UserError, match="2 training texts stand in the test split too: one, row 2 = .*classes.leaks"):
        without_leaks("training", EARLIER, "test", LATER, "raise")
    assert without_leaks("training", EARLIER, "test", LATER[1:], "raise") == EARLIER
    with pytest.raises(UserError, match="every training text stands in the test split"):
        without_leaks("training", LATER, "test", LATER, "drop")


# ── from files ───────────────────────────────────────────────────────────────────────────────────


def settings(data, **classes):
    return FinetuneConfig(data=InstructionConfig(**data), classes=ClassesConfig(**classes))


def table(path, rows):
    path.write_text("text,label\n" + "".join(f"{t},{label}\n" for t, label in rows), encoding="utf-8")
    return (str(path),)


def test_all_three_splits_against_each_other(tmp_path, capsys):
    train = table(tmp_path / "train.csv", [("a", 0), ("b", 1), ("c", 0), ("d", 1), ("e", 0), ("e", 1), ("a", 0)])
    val = table(tmp_path / "val.csv", [("b", 1), ("v", 0), ("t", 1)])
    test = table(tmp_path / "test.csv", [("c", 0), ("t", 1)])
    splits = split_texts(settings({"source": train, "val_source": val, "test_source": test}))
    assert [[t.text for t in side] for side in (splits.train, splits.val, splits.test)] == [
        ["a", "d", "e", "e", "a"], ["b", "v"], ["c", "t"]]
    out = capsys.readouterr().out
    assert "training: 2 texts repeat another; 1 of them with different labels: " in out and "row 6; " in out
    assert out.count("stand") == 3 and "1 validation text stands in the test split too" in out


def test_without_a_validation_part_the_training_texts_are_measured(tmp_path, capsys):
    source = table(tmp_path / "a.csv", [("a", 0), ("b", 1)])
    splits = split_texts(settings({"source": source, "val_fraction": 0.0}))
    assert splits.val is splits.train and splits.test == []
    assert "the training texts are measured instead" in capsys.readouterr().out


def test_a_test_file_leaves_the_whole_fraction_to_validation(tmp_path):
    source = table(tmp_path / "a.csv", [(f"t{i}", i % 2) for i in range(100)])
    test = table(tmp_path / "b.csv", [("x", 0)])
    splits = split_texts(settings({"source": source, "test_source": test, "val_fraction": 0.1}, test_fraction=0.5))
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [90, 10, 1]


# ── the world's reviews ──────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module", params=[0, 1, 7])
def reviews(request):
    return world.reviews(world.World.build(request.param))


def test_the_worlds_reviews_are_balanced_and_differ(reviews):
    assert [len(split) for split in reviews] == [800, 120, 240]
    assert len({r["text"] for split in reviews for r in split}) == 1160
    for split in reviews:
        assert set(Counter(r["sentiment"] for r in split).values()) == {len(split) // 2}
        assert set(Counter(r["subject"] for r in split).values()) == {len(split) // 4}


def test_words_of_praise_and_blame_are_on_one_side(reviews):
    adjectives = {a: mood for mood, table in words.FEELINGS.items() for a in table["adjectives"]}
    seen = []
    for split in reviews:
        used = {w: r["sentiment"] for r in split for w in re.findall(r"\w+", r["text"].lower()) if w in adjectives}
        assert all(adjectives[w] == sentiment for w, sentiment in used.items())
        seen.append(set(used))
    assert [len(s) for s in seen] == [12, 4, 4] and not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_the_world_is_a_table_whose_columns_can_be_chosen():
    splits = split_texts(settings({"source": ("world:3",)}, labels=("subject",)))
    assert splits.train[0].place == "world:3, train 1" and len(splits.train[0].labels) == 1
    with pytest.raises(UserError, match="world: 800 bad records: train 1: there is no column 'label' among"):
        split_texts(settings({"source": ("world",)}))
    with pytest.raises(UserError, match="stands alone"):
        split_texts(dataclasses.replace(settings({"source": ("world", "a.csv")})))
