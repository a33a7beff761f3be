"""The built-in world, checked from its text: answers are recomputed by reading the inputs."""

import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict

import pytest

from minialpaca.data.rows import Row, read_rows
from minialpaca.data.world import FACT_KINDS, World, corpus, instructions, is_world, seed_of, words
from minialpaca.data.world.__main__ import main
from minialpaca.data.world.corpus import fact_documents
from minialpaca.data.world.instructions import entity_split
from minialpaca.data.world.sentences import tell
from minialpaca.errors import UserError

SPLITS = ("train", "validation", "test")
FACT_ROWS = tuple(f"fact: {kind}" for kind in FACT_KINDS)  # what the marks call them


class Told:
    """One world with everything that is written about it."""

    def __init__(self, seed):
        self.world = World.build(seed)
        self.documents = list(corpus(self.world))
        self.train, self.validation, self.test = self.splits = instructions(self.world)
        self.examples = [example for split in self.splits for example in split]

    def of(self, kind):
        return [example for example in self.examples if example.kind == kind]


@pytest.fixture(scope="module", params=[0, 1, 7])
def told(request):
    return Told(request.param)


def word_set(texts):
    return {word.lower() for text in texts for word in re.findall(r"\w+", text)}


def test_the_seed_decides_everything():
    one, again, other = Told(3), Told(3), Told(4)
    assert one.world == again.world and one.documents == again.documents and one.splits == again.splits
    assert one.world.entities != other.world.entities
    assert not {e.name for e in one.world.entities} == {e.name for e in other.world.entities}
    assert one.documents != other.documents and one.splits != other.splits


def test_files_do_not_depend_on_the_hash_seed(tmp_path):
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "minialpaca.data.world", str(tmp_path / hash_seed), "--seed", "5"]
        done = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert files == ["corpus.txt", "test.json", "train.json", "validation.json"]
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_entities_and_names(told):
    entities = told.world.entities
    assert Counter(e.kind for e in entities) == {"person": 320, "town": 96, "thing": 96}
    for entity in entities:
        assert list(entity.facts) == list(words.ATTRIBUTES[entity.kind]) and len(entity.facts) == 4
    names = sorted(e.name for e in entities)
    assert len(set(names)) == len(names)
    # In sorted order a prefix stands directly before some word that it begins.
    assert not [pair for pair in zip(names, names[1:]) if pair[1].startswith(pair[0])]
    assert all(re.fullmatch(r"[A-Z][a-z]{4,7}", name) for name in names)
    # A name is no word: in the corpus it is never written in small letters.
    assert not {n.lower() for n in names} & set(re.findall(r"\b[a-z]+\b", " ".join(told.documents)))
    towns = {e.name for e in entities if e.kind == "town"}
    assert {e.facts["home"] for e in entities if e.kind == "person"} <= towns


def test_pools_are_sets_of_the_promised_size():
    for attributes in words.ATTRIBUTES.values():
        for attribute, (pool, sentences, questions) in attributes.items():
            assert len(set(pool)) == len(pool) and (12 <= len(pool) <= 30 or attribute == "home")
            assert len(set(sentences)) >= 6 and len(set(questions)) >= 3


def test_every_fact_is_told_in_six_ways(told):
    sentences = {s for document in told.documents for s in re.findall(r"[^.]+\.", document)}
    sentences = {s.strip() for s in sentences}
    for entity in told.world.entities:
        for attribute, value in entity.facts.items():
            ways = {tell(t, entity.name, value) for t in words.ATTRIBUTES[entity.kind][attribute][1]}
            assert len(ways & sentences) >= 6


def test_each_telling_names_its_entity_in_every_sentence_before_the_value(told):
    documents = iter(fact_documents(told.world, 12))
    for entity in told.world.entities:
        for _ in range(12):
            sentences = [s.strip() for s in re.findall(r"[^.]+\.", next(documents))]
            assert len(sentences) == 4
            said = set()
            for sentence in sentences:
                before, after = sentence.split(entity.name)
                said |= {a for a, value in entity.facts.items() if re.search(rf"\b{value}\b", after)}
                assert not any(re.search(rf"\b{value}\b", before) for value in entity.facts.values())
            assert said == set(entity.facts)
    assert next(documents, None) is None


def test_corpus_is_plain_declarative_text(told):
    assert len(told.documents) > 512 * 12
    for document in told.documents:
        assert "?" not in document and "\n" not in document and "{" not in document
        assert document.endswith(".") and document[0] == document[0].upper() and "  " not in document


def test_articles(told):
    texts = told.documents + [text for e in told.examples for text in (e.instruction, e.input, e.output)]
    for text in texts:
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text, re.IGNORECASE), text


def test_few_words_and_all_of_them_told(told):
    known = word_set(told.documents)
    assert len(known) < 1500
    assert not word_set(t for e in told.examples for t in (e.input, e.output)) - known
    templates = [q for kind in words.ATTRIBUTES.values() for _, _, questions in kind.values() for q in questions]
    templates += [wording for wordings in words.WORDING.values() for wording in wordings]
    wording_words = word_set(re.sub(r"\{\w+\}", "", template) for template in templates) | {"first", "last"}
    assert not word_set(e.instruction for e in told.examples) - known - wording_words
    assert len(known | wording_words) < 1500


def test_sizes_and_kinds(told):
    counts = [Counter(e.kind for e in split) for split in told.splits]
    assert len(counts[0]) == 12 and set(FACT_ROWS) < set(counts[0])
    assert FACT_ROWS == ("fact: person", "fact: town", "fact: thing")
    assert set(counts[0]) == set(counts[1]) == set(counts[2])
    for kind in set(counts[0]) - {*FACT_ROWS, "arithmetic", "compare"}:
        assert [c[kind] for c in counts] == [{"order": 444, "name": 2500}.get(kind, 1000), 20, 40]
    assert sum(counts[0][kind] for kind in FACT_ROWS) == 2 * 4 * (224 + 67 + 67)
    assert [counts[2][kind] for kind in FACT_ROWS] == [4 * 64, 4 * 19, 4 * 19]
    assert [counts[1][kind] for kind in FACT_ROWS] == [20, 20, 20]
    assert counts[0]["arithmetic"] >= 80 and counts[2]["arithmetic"] >= 12
    assert counts[0]["compare"] >= 280 and counts[2]["compare"] == 32


def test_no_duplicates_and_nothing_held_out_in_training(told):
    asked = [(e.instruction, e.input) for e in told.examples]
    assert len(set(asked)) == len(asked)
    # Stronger where there is an input: the input itself is new.
    inputs = [{(e.kind, e.input) for e in split if e.input} for split in told.splits]
    assert not inputs[0] & inputs[1] and not inputs[0] & inputs[2] and not inputs[1] & inputs[2]


def test_held_out_facts_are_neither_asked_nor_answered_in_training(told):
    train_names, *held_out = [{e.name for e in part} for part in entity_split(told.world)]
    assert [len(train_names), *map(len, held_out)] == [358, 52, 102]
    facts = [[e for e in split if e.kind in FACT_ROWS] for split in told.splits]
    asked = [word for e in facts[0] for word in re.findall(r"[A-Z][a-z]+", e.instruction)]
    for names, split in zip(held_out, facts[1:]):
        assert not names & set(asked)
        assert all(len(names & set(re.findall(r"\w+", e.instruction))) == 1 for e in split)
    assert set(asked) & {e.name for e in told.world.entities} == train_names


def test_fact_answers_are_the_facts(told):
    by_name = {e.name: e for e in told.world.entities}
    asked = defaultdict(Counter)
    for example in told.examples:
        if example.kind not in FACT_ROWS:
            continue
        assert example.input == ""
        (name,) = set(re.findall(r"\w+", example.instruction)) & set(by_name)
        (attribute,) = (
            attribute
            for attribute, (_, _, questions) in words.ATTRIBUTES[example.kind.removeprefix("fact: ")].items()
            if example.instruction in [q.format(name=name) for q in questions]
        )
        entity = by_name[name]
        assert f"fact: {entity.kind}" == example.kind
        assert example.output == tell(words.ATTRIBUTES[entity.kind][attribute][1][0], name, entity.facts[attribute])
        asked[attribute][example.instruction.replace(name, "X")] += 1
    assert len(asked) == 4 + 4 + 4 and all(len(wordings) >= 3 for wordings in asked.values())


def test_arithmetic(told):
    sums = []
    for split in told.splits:
        asked = [e for e in split if e.kind == "arithmetic"]
        numbers = [tuple(map(int, re.findall(r"\d+", e.instruction))) for e in asked]
        assert all(e.output == f"{a} plus {b} is {a + b}." for e, (a, b) in zip(asked, numbers))
        sums.append({frozenset(pair) for pair in numbers})
    assert not sums[0] & sums[1] and not sums[0] & sums[2] and not sums[1] & sums[2]
    text = " ".join(told.documents)
    told_sums = Counter(tuple(map(int, match)) for match in re.findall(r"\b(\d+) plus (\d+) is (\d+)\.", text))
    assert set(told_sums) == {(a, b, a + b) for a in range(7) for b in range(7)}
    assert min(told_sums.values()) >= 2


def test_compare(told):
    pairs = []
    for split in told.splits:
        met = set()
        for example in (e for e in split if e.kind == "compare"):
            numbers = list(map(int, re.findall(r"\d", example.instruction)))
            assert len(set(numbers)) == 2 and example.input == ""
            assert int(example.output) == (max if "larger" in example.instruction else min)(numbers)
            met.add(frozenset(numbers))
        pairs.append(met)
    assert not pairs[0] & pairs[1] and not pairs[0] & pairs[2] and not pairs[1] & pairs[2]
    assert sum(map(len, pairs)) == 9 * 8 / 2
    for large, small in re.findall(r"(\d) is larger than (\d)\.", " ".join(told.documents)):
        assert int(large) > int(small)
    for a, b, best, number in re.findall(r"Of (\d) and (\d) the (\w+) number is (\d)\.", " ".join(told.documents)):
        assert int(number) == {"larger": max, "smaller": min}[best](int(a), int(b))


def test_songs_repeat_their_line(told):
    songs = [re.fullmatch(r"The song of the (\w+) goes (.*)\.", d).groups()
             for d in told.documents if d.startswith("The song of the")]
    lines = [song.split(", ") for _, song in songs]
    assert len(songs) >= 1000 and all(len(line) == 3 and len(set(line)) == 1 for line in lines)
    assert {len(line[0].split()) for line in lines} == {3, 4, 5, 6}
    assert len({line[0] for line in lines}) > 0.95 * len(lines)  # to be looked back at, not learned by heart


def test_every_name_is_sung_so_that_every_name_has_been_copied_before_tuning(told):
    lines = [re.search(r"goes (.*?),", d)[1].split() for d in told.documents if d.startswith("The song of the")]
    names = {entity.name for entity in told.world.entities}
    of_names = [line for line in lines if set(line) <= names]
    assert len(of_names) == len(lines) // 2
    sung = Counter(name for line in of_names for name in line)
    assert set(sung) == names and max(sung.values()) <= 5


def parse_items(sentence):
    return re.findall(r"\ban? (\w+)", sentence)


def test_list_and_count(told):
    for example in told.of("list"):
        assert example.output == ", ".join(parse_items(example.input)) and 2 <= len(parse_items(example.input)) <= 4
    for example in told.of("count"):
        assert int(example.output) == len(parse_items(example.input)) == len(set(parse_items(example.input)))
    assert {e.output for e in told.of("count")} == {"2", "3", "4", "5"}


def test_order(told):
    for example in told.of("order"):
        numbers = [int(n) for n in example.input.split(", ")]
        assert len(set(numbers)) == 3 and example.output == ", ".join(str(n) for n in sorted(numbers))


def test_rewrite(told):
    past = {present: past for present, past, _ in words.VERBS}
    for example in told.of("rewrite"):
        the, who, verb, rest = example.input.split(" ", 3)
        assert the == "The" and who in words.JOBS and example.output == f"The {who} {past[verb]} {rest}"
    assert {e.input.split()[2] for e in told.train if e.kind == "rewrite"} == set(past)


def test_place(told):
    for example in told.of("place"):
        items = re.findall(r"\ban? (\w+)", example.input)
        (asked,) = {"first", "last"} & set(re.findall(r"\w+", example.instruction))
        assert 2 <= len(items) <= 5 and example.output == items[{"first": 0, "last": -1}[asked]]


def test_names_are_said_and_tell_nothing(told):
    names = {e.name for e in told.world.entities}
    for example in told.of("name"):
        assert example.output.rstrip(".") in names and example.input == ""
        assert len(told_names := names & set(re.findall(r"\w+", example.instruction))) == 1 and example.output == f"{told_names.pop()}."
    assert len({e.output for e in told.train if e.kind == "name"}) > 0.9 * len(names)


def test_sentiment(told):
    for split in told.splits:
        labels = Counter(e.output for e in split if e.kind == "sentiment")
        assert set(labels) == {"positive", "negative"}
        assert abs(labels["positive"] - labels["negative"]) <= 0.1 * sum(labels.values())
    signs = {a: label for label, mood in words.FEELINGS.items() for a in mood["adjectives"]}
    assert len(signs) == 20  # no adjective under both labels
    for example in told.of("sentiment"):
        assert signs[re.search(r"was (\w+)\.", example.input).group(1)] == example.output


def test_sizes_can_be_chosen_and_end_where_a_kind_is_used_up():
    world = World.build(0)
    sizes = {"train_per_kind": 10, "validation_per_kind": 4, "test_per_kind": 6}
    train, validation, test = instructions(world, phrasings=1, **sizes)
    assert Counter(e.kind for e in validation)["fact: person"] == 4
    assert Counter(e.kind for e in train)["list"] == 10 and Counter(e.kind for e in test)["compare"] == 6
    assert sum(e.kind in FACT_ROWS for e in train) == 4 * 358
    many = Counter(e.kind for e in instructions(world, train_per_kind=2000)[0])
    assert many["list"] == 2000 and 600 < many["sentiment"] <= 1140  # 1,200 reviews less the held-out 60
    assert len(list(corpus(world, tellings_per_entity=1, documents_per_skill=1, songs=1))) < 2000


def test_main_writes_alpaca_files_and_counts(tmp_path, capsys):
    main([str(tmp_path / "new" / "world"), "--seed", "2"])
    printed = capsys.readouterr().out
    assert "entities 512, facts 2048" in printed and "arithmetic" in printed
    told = Told(2)
    assert (tmp_path / "new/world/corpus.txt").read_text(encoding="utf-8").splitlines() == told.documents
    for name, split in zip(SPLITS, told.splits):
        rows = json.loads((tmp_path / "new/world" / f"{name}.json").read_text(encoding="utf-8"))
        assert rows == [example.record() for example in split]
        assert list(rows[0]) == ["instruction", "input", "output", "kind"]


def test_main_says_in_one_line_that_it_cannot_write(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "file")])
    assert stop.value.code == 2
    streams = capsys.readouterr()
    assert streams.out == "" and streams.err.count("\n") == 1 and str(tmp_path / "file") in streams.err


@pytest.mark.parametrize("name", ["corpus.txt", "train.json", "validation.json", "test.json"])
def test_main_overwrites_nothing(tmp_path, capsys, name):
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path)])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: holds {name} already; name another folder, or move what is there\n"
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text(encoding="utf-8") == "mine"


def test_help_says_how_the_files_are_used(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    said = "".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and "data.documents=line" in said and "data.test_source" in said


def test_the_files_read_back_as_the_same_rows(tmp_path):
    main([str(tmp_path), "--seed", "2"])
    for name, split in zip(SPLITS, Told(2).splits):
        assert read_rows([str(tmp_path / f"{name}.json")]) == split
        assert all(type(row) is Row for row in split)


def test_a_source_names_a_world_and_its_seed():
    assert is_world("world") and is_world("world:7") and not is_world("world.txt") and not is_world("my/world")
    assert seed_of("world") == 0 and seed_of("world:7") == 7
    for wrong in ("world:x", "world:-1", "world:1.5"):
        with pytest.raises(UserError, match="write world or world:SEED"):
            seed_of(wrong)
