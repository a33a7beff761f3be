"""Finding and reading files."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import refusal, written

from minialpaca.data import files
from minialpaca.data.files import expand, read_lines, read_objects, refuse

# ── expand ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def tree(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.txt", "sub/deep/d.txt", "sub/note.md"):
        written(tmp_path / name, "x")
    return tmp_path


def test_a_file_a_folder_and_a_glob_are_expanded_in_sorted_order(tree):
    assert expand([str(tree / "b.txt")], [".txt"]) == [tree / "b.txt"]
    assert expand([str(tree)], [".txt"]) == [tree / n for n in ("a.txt", "b.txt", "sub/c.txt", "sub/deep/d.txt")]
    assert expand([str(tree / "*.txt")], [".txt"]) == [tree / "a.txt", tree / "b.txt"]
    assert expand([str(tree / "**" / "*.txt")], [".txt"]) == expand([str(tree)], [".txt"])


def test_a_file_named_twice_is_there_once_and_sources_keep_their_order(tree):
    named = [str(tree / "b.txt"), str(tree / "*.txt"), str(tree / "b.txt")]
    assert expand(named, [".txt"]) == [tree / "b.txt", tree / "a.txt"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path):
    path = written(tmp_path / "a[1].txt", "x")
    assert expand([str(path)], [".txt"]) == [path]


@pytest.mark.parametrize("source", ["nothing.txt", "no-folder/", "*.csv"])
def test_a_source_that_matches_nothing_is_refused_by_name(tree, source):
    refusal(lambda: expand([str(tree / source)], [".txt"]), str(tree / source.rstrip("/")),
            "no such file, folder or glob")


def test_an_empty_file_a_folder_without_text_and_a_wrong_ending_are_refused(tree):
    empty = written(tree / "empty.txt", "")
    refusal(lambda: expand([str(empty)], [".txt"]), f"{empty}: is empty")
    refusal(lambda: expand([str(tree)], [".txt"]), f"{empty}: is empty")
    refusal(lambda: expand([str(tree / "sub/note.md")], [".txt", ".gz"]), "note.md: unknown kind of file", ".txt, .gz")
    refusal(lambda: expand([str(tree / "sub")], [".json"]), "no .json in this folder")


# ── read_lines ───────────────────────────────────────────────────────────────────────────────────


def test_crlf_becomes_lf_and_a_bom_is_dropped(tmp_path):
    path = written(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\nthree \xef\xbb\xbf\r\n\r\nfour\rfive")
    assert list(read_lines(path)) == [(1, "one\n"), (2, "two\n"), (3, "three \ufeff\n"), (4, "\n"), (5, "four\rfive")]


def test_gz_reads_like_the_plain_file(tmp_path):
    text = "one\r\n漢字\n\nlast"
    plain, packed = written(tmp_path / "a.txt", text), written(tmp_path / "a.txt.gz", gzip.compress(text.encode()))
    assert list(read_lines(packed)) == list(read_lines(plain)) == [(1, "one\n"), (2, "漢字\n"), (3, "\n"), (4, "last")]


@pytest.mark.parametrize("pack", [lambda b: b, gzip.compress])
def test_invalid_utf8_is_refused_with_its_line_number(tmp_path, pack):
    path = written(tmp_path / ("a.txt.gz" if pack is gzip.compress else "a.txt"), pack(b"good\ngood\nbad \xff here\n"))
    refusal(lambda: list(read_lines(path)), f"{path}, line 3: is not UTF-8", "iconv")


def test_a_file_that_ends_within_a_character_is_refused(tmp_path):
    path = written(tmp_path / "a.txt", b"good\n\xe6\xbc")
    refusal(lambda: list(read_lines(path)), f"{path}, line 2: is not UTF-8")


def test_a_cut_off_or_broken_gz_is_refused_with_the_line_that_was_reached(tmp_path):
    packed = gzip.compress(b"".join(b"line %d %s\n" % (i, bytes(str(hash(i * i)), "ascii") * 3) for i in range(20_000)))
    cut = written(tmp_path / "cut.txt.gz", packed[:len(packed) // 2])
    message = refusal(lambda: list(read_lines(cut)), str(cut), "broken or cut off")
    assert int(message.partition("line ")[2].partition(":")[0]) > 1000
    refusal(lambda: list(read_lines(written(tmp_path / "no.txt.gz", b"no gzip at all"))),
            "line 1: the gzip file is broken")
    broken = bytearray(packed)
    broken[len(packed) // 2] ^= 0xFF
    refusal(lambda: list(read_lines(written(tmp_path / "b.txt.gz", bytes(broken)))), "broken or cut off")


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    refusal(lambda: list(read_lines(tmp_path)), f"{tmp_path}: cannot be read")


@given(st.lists(st.text(st.sampled_from("aé漢😀\r\ufeff "), max_size=12), min_size=1, max_size=5),
       st.sampled_from(["\n", "\r\n"]), st.integers(4, 9))
def test_lines_longer_than_one_read_lose_nothing_wherever_they_are_cut(tmp_path_factory, lines, ending, longest):
    lines = [line.rstrip("\r") for line in lines]
    path = written(tmp_path_factory.mktemp("long") / "a.txt", ending.join(lines) + ending)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "LONGEST_READ", longest)
        read = list(read_lines(path))
    whole = "\n".join(lines) + "\n"
    assert "".join(text for _, text in read) == whole.removeprefix("\ufeff")
    for number, line in enumerate(lines, 1):
        assert "".join(text for n, text in read if n == number).lstrip("\ufeff") == (line + "\n").lstrip("\ufeff")
    assert all(len(text.encode()) <= longest + 4 for _, text in read)


def test_a_line_never_has_to_fit_in_memory(tmp_path):
    path = written(tmp_path / "a.txt", b"\xe6\xbc\xa2" * (files.LONGEST_READ // 2) + b"\nend\n")
    read = list(read_lines(path))
    assert [n for n, _ in read] == [1, 1, 2] and max(len(text.encode()) for _, text in read) <= files.LONGEST_READ
    assert "".join(text for _, text in read) == "漢" * (files.LONGEST_READ // 2) + "\nend\n"


@pytest.mark.parametrize("pack", [lambda b: b, gzip.compress])
def test_the_progress_bar_hears_every_byte_on_disk_once(tmp_path, pack):
    content = pack("".join(f"{i} 漢字 {i * i}\r\n" for i in range(50_000)).encode())
    path = written(tmp_path / ("a.txt.gz" if pack is gzip.compress else "a.txt"), content)
    heard = []
    n_lines = sum(1 for _ in read_lines(path, heard.append))
    assert n_lines == 50_000 and sum(heard) == len(content) and min(heard) >= 0
    assert max(heard) < len(content)  # as it goes, not all at the end


# ── read_objects ─────────────────────────────────────────────────────────────────────────────────

OBJECTS = [{"a": 1}, {"a": "漢 \n"}, {}]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.jsonl.gz"])
def test_objects_are_the_same_from_all_three_forms(tmp_path, name):
    lines = "\n  \n".join(json.dumps(o) for o in OBJECTS)  # blank lines between them
    content = json.dumps(OBJECTS, indent=1) if name == "a.json" else lines
    path = written(tmp_path / name, gzip.compress(content.encode()) if name.endswith("gz") else content)
    places = ["record 1", "record 2", "record 3"] if name == "a.json" else ["line 1", "line 3", "line 5"]
    assert list(read_objects(path)) == list(zip(places, OBJECTS))


def test_an_object_longer_than_one_read_is_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST_READ", 16)
    records = [{"text": "漢字" * 40}, {"text": "b"}]
    path = written(tmp_path / "a.jsonl", "\n".join(json.dumps(r, ensure_ascii=False) for r in records))
    assert list(read_objects(path)) == [("line 1", records[0]), ("line 2", records[1])]


def test_bad_lines_are_collected_with_their_numbers_and_the_good_ones_still_come(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"a": 1}\n{"a": \n\n[1]\n"text"\n' + "[" * 100_000 + '\n{"a": 2}\n')
    faults = []
    assert [record for _, record in read_objects(path, faults=faults)] == [{"a": 1}, {"a": 2}]
    assert [f.partition(":")[0] for f in faults] == ["line 2", "line 4", "line 5", "line 6"]
    assert "is no JSON (" in faults[0] and faults[1] == "line 4: is no JSON object"
    refusal(lambda: list(read_objects(path)), f"{path}, line 2: is no JSON")  # without a list the first one raises


def test_faults_of_an_array_are_named_by_record(tmp_path):
    path = written(tmp_path / "a.json", '[{"a": 1}, 7, {"a": 2}, null]')
    faults = []
    assert [place for place, _ in read_objects(path, faults=faults)] == ["record 1", "record 3"]
    assert faults == ["record 2: is no object", "record 4: is no object"]


@pytest.mark.parametrize("content, said", [
    ('[{"a": 1},', "is no JSON"), ('{"a": 1}', "holds dict where an array"), ("3", "holds int where an array"),
    ('{"a": 1}\n{"a": 2}\n', "one object a line needs the ending .jsonl"), ("[" * 100_000, "is no JSON"),
])
def test_a_json_file_that_is_no_array_of_objects_is_refused(tmp_path, content, said):
    path = written(tmp_path / "a.json", content)
    refusal(lambda: list(read_objects(path)), str(path), said)


def test_the_first_ten_faults_are_shown_and_the_rest_counted(tmp_path):
    refuse(tmp_path, [], "Mend")  # none: nothing happens
    message = refusal(lambda: refuse(tmp_path, [f"line {i}: bad" for i in range(1, 24)], "Mend them"),
                      "23 bad records: line 1: bad; ", "line 10: bad; and 13 more. Mend them")
    assert "line 11" not in message
    assert "1 bad record: line 1: bad. Mend" in refusal(lambda: refuse(tmp_path, ["line 1: bad"], "Mend"))
