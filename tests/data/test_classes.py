"""Readers of labelled texts: every form gives the same texts, every fault is named with its file and row."""

import dataclasses
import gzip
import json

import pytest
from running import refusal, written

from minialpaca.config import ClassesConfig
from minialpaca.data.classes import LabelledText, line_pattern, read_texts

ONE = ClassesConfig(lines="{label} {text}")
TWO = ClassesConfig(labels=("mood", "topic"), lines="{mood}|{topic}|{text}")
TABLE = 'mood,id,topic,text\ngood,1,food,Fine soup.\nbad,2,inn,"A ""cold"", loud\nroom."\n\ngood,3,inn, Warm. \n'
TEXTS = [LabelledText("Fine soup.", (("good",), ("food",))),
         LabelledText('A "cold", loud\nroom.', (("bad",), ("inn",))),
         LabelledText("Warm.", (("good",), ("inn",)))]


def read(path, cfg=ONE, **changes):
    return read_texts([str(path)], dataclasses.replace(cfg, **changes))


def pairs(texts):
    return [(t.labels[0][0], t.text) for t in texts]


# ── forms ────────────────────────────────────────────────────────────────────────────────────────


def as_json(texts):
    return [{"mood": t.labels[0][0], "topic": t.labels[1][0], "text": t.text} for t in texts]


FORMS = {
    "a.csv": TABLE,
    "crlf.csv": TABLE.replace("\n", "\r\n"),
    "bom.csv": "\ufeff" + TABLE,
    "a.tsv": TABLE.replace(",", "\t").replace('"A ""cold""\t loud', '"A ""cold"", loud'),
    "a.jsonl": "".join(json.dumps(r) + "\n\n" for r in as_json(TEXTS)),
    "array.json": json.dumps(as_json(TEXTS), indent=1),
    "lines.json": "".join(json.dumps(r) + "\n" for r in as_json(TEXTS)),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name, content", FORMS.items(), ids=FORMS)
def test_every_form_gives_the_same_texts(tmp_path, name, content, packed):
    path = written(tmp_path / (name + ".gz" * packed), gzip.compress(content.encode()) if packed else content)
    assert read(path, TWO) == TEXTS


def test_places_are_rows_of_a_table_and_lines_of_a_text(tmp_path):
    path = written(tmp_path / "a.csv", TABLE)
    assert [t.place for t in read(path, TWO)] == [f"{path}, row {n}" for n in (2, 3, 5)]  # as a spreadsheet counts them
    path = written(tmp_path / "a.txt", "1 one\n\n0 two\n")
    assert [t.place for t in read(path)] == [f"{path}, line 1", f"{path}, line 3"]
    path = written(tmp_path / "a.json", '{"text": "a", "label": 1}\n\n{"text": "b", "label": 2}')
    assert [t.place for t in read(path)] == [f"{path}, line 1", f"{path}, line 3"]


def test_a_table_without_a_header_has_numbered_columns_and_texts_are_joined(tmp_path):
    path = written(tmp_path / "a.csv", '"3","Fears for pensions","Unions say no."\n"4","The Race is On",""\n')
    found = read(path, header=False, text=("2", "3"), labels=("1",))
    assert pairs(found) == [("3", "Fears for pensions Unions say no."), ("4", "The Race is On")]
    assert [t.place[-5:] for t in found] == ["row 1", "row 2"]


def test_quotes_may_be_only_quotes(tmp_path):
    path = written(tmp_path / "a.tsv", 'text\tlabel\n"it \'s a start\t1\nthe "end"\t0\n')
    assert pairs(read(path, quotes=False)) == [("1", '"it \'s a start'), ("0", 'the "end"')]
    refusal(lambda: read(path), str(path), "classes.quotes=false")


def test_long_cells_and_long_lines_stay_whole(tmp_path):
    long = "word " * 300_000
    path = written(tmp_path / "a.csv", f"text,label\n{long},1\nb,0\n")
    assert [len(t.text) for t in read(path)] == [len(long) - 1, 1]


@pytest.mark.parametrize("pattern, line, label, text", [
    ("{label} {text}", "1 a fine film .", "1", "a fine film ."),
    ("{text}@{label}", "mail me @home@neutral", "neutral", "mail me @home"),
    ("{label}\t{text}", "very good\ta\tb", "very good", "a\tb"),
    ("__label__{label} {text}", "__label__pos so . so", "pos", "so . so"),
    ("[{label}] ({text})", "[a] (b) (c))", "a", "b) (c)"),
    ("{id}, {text}, {label}", "7, one, two, good", "good", "one, two"),
])
def test_a_pattern_splits_at_the_first_separator_behind_a_label_and_the_last_behind_a_text(tmp_path, pattern, line,
                                                                                          label, text):
    assert pairs(read(written(tmp_path / "a.txt", line + "\r\n"), lines=pattern)) == [(label, text)]


def test_labels_may_be_whole_numbers_and_are_stripped(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"text": "a", "label": 0}\n{"text": "b", "label": " 0 "}\n')
    assert [t.labels for t in read(path)] == [(("0",),)] * 2


def test_several_labels_of_one_group(tmp_path):
    several = dataclasses.replace(TWO, several=("topic",))
    path = written(tmp_path / "a.csv", "mood,topic,text\ngood,food | inn|food,a\nbad,,b\n")
    assert [t.labels for t in read(path, several)] == [(("good",), ("food", "inn")), (("bad",), ())]
    path = written(tmp_path / "a.jsonl", '{"mood": "good", "topic": ["food", 7], "text": "a"}\n'
                                         '{"mood": "bad", "topic": [], "text": "b"}\n'
                                         '{"mood": "bad", "topic": "x|y", "text": "c"}')
    assert [t.labels[1] for t in read(path, several)] == [("food", "7"), (), ("x", "y")]


# ── encodings ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "windows-1252", "gb18030", "utf-16", "utf-16-le", "utf-32"])
def test_any_encoding_is_read_when_it_is_named(tmp_path, encoding):
    text = "café 漢字 Ċ" if encoding != "windows-1252" else "café – naïve"  # Ċ is U+010A: a byte 0x0A in UTF-16
    path = written(tmp_path / "a.txt", f"1 {text}\r\n0 b\r\n", encoding)
    assert pairs(read(path, encoding=encoding)) == [("1", text), ("0", "b")]
    packed = written(tmp_path / "a.txt.gz", gzip.compress(path.read_bytes()))
    assert pairs(read(packed, encoding=encoding)) == [("1", text), ("0", "b")]


@pytest.mark.parametrize("content, encoding, said", [
    ("1 a\n0 café\n".encode("windows-1252"), "utf-8",
     "line 2: is not UTF-8 (invalid continuation byte); set classes.encoding, e.g. windows-1252"),
    (b"1 a\n0 \x81\n", "windows-1252", "line 2: is not WINDOWS-1252 "),
    ("\ufeff1 a\n".encode(), "windows-1252",
     "line 1: begins with UTF-8's byte-order mark, so it is not WINDOWS-1252; set classes.encoding=utf-8"),
    ("1 a\n0 b\n".encode("utf-16-le") + b"\x00\xd8a\x00", "utf-16-le", "line 3: is not UTF-16-LE "),
    ("1 a\n".encode("utf-16"), "utf-8", "line 1: is not UTF-8 (invalid start byte); set classes.encoding, e.g. utf-16"),
    ("1 好\n0 天气很好，我们去公园\n".encode("gb18030"), "utf-8", "line 1: is not UTF-8 (invalid start byte); set classes.encoding, e.g. gb18030"),
    ("1 été à la mer\n".encode("windows-1252"), "utf-8", "line 1: is not UTF-8 (invalid continuation byte); set classes.encoding, e.g. windows-1252"),
    ("1 ä\n".encode("windows-1252"), "gb18030", "line 1: is not GB18030 (illegal multibyte sequence); set classes.encoding, e.g. utf-8"),
])
def test_a_wrong_encoding_is_named_with_its_line(tmp_path, content, encoding, said):
    path = written(tmp_path / "a.txt", content)
    refusal(lambda: read(path, encoding=encoding), f"{path}, {said}")


@pytest.mark.parametrize("encoding", ["windows-1252", "latin-1", "gb18030"])
def test_utf8_is_not_read_as_what_takes_any_bytes(tmp_path, encoding):
    """`cafÃ©` and `澶╂皵` would be learned without a word."""
    path = written(tmp_path / "a.txt", "1 a\n0 café 天气很好\n".encode())
    refusal(lambda: read(path, encoding=encoding), f"{path}: reads as UTF-8 from beginning to end, so it is hardly {encoding.upper()}; "
            "set classes.encoding=utf-8")
    assert pairs(read(written(tmp_path / "b.txt", b"1 a\n0 b\n"), encoding=encoding)) == [("1", "a"), ("0", "b")]


@pytest.mark.parametrize("ending, separator", [("csv", ","), ("tsv", "\t")])
def test_rows_that_stray_quotes_would_swallow_are_named(tmp_path, ending, separator):
    rows = [["text", "label"], ["fine inn", "good"], ["\"it 's great", "good"], ["poor room", "bad"], ["he says it is bad\"", "bad"], ["a", "good"], ["b", "bad"]]
    path = written(tmp_path / f"a.{ending}", "".join(separator.join(row) + "\n" for row in rows))
    refusal(lambda: read(path), f"{path}: 1 bad record: row 3: a cell in quotation marks holds what reads as rows of their own", "classes.quotes=false")
    assert [label for label, _ in pairs(read(path, quotes=False))] == ["good", "good", "bad", "bad", "good", "bad"]
    turned = written(tmp_path / f"c.{ending}", "".join(separator.join(row[::-1]) + "\n" for row in rows))
    refusal(lambda: read(turned), f"{turned}: 1 bad record: row 3: a cell in quotation marks holds")
    whole = written(tmp_path / f"b.{ending}", separator.join(["text", "label"]) + f'\n"one{separator} two\nthree{separator}four\nend"{separator}good\n')
    assert pairs(read(whole)) == [("good", f"one{separator} two\nthree{separator}four\nend")]  # four is no label, nor is two


# ── faults ───────────────────────────────────────────────────────────────────────────────────────

FAULTS = {
    "empty text": ("a.csv", "text,label\na,1\n  ,0\n", "1 bad record: row 3: the text is empty"),
    "empty label": ("a.csv", "text,label\na,1\nb,\n", "row 3: 'label' is empty"),
    "too few cells": ("a.csv", "text,label\na,1\nb\n", "row 3: has 1 cells where the first row has 2"),
    "too many cells": ("a.csv", "text,label\na, b,1\n", "row 2: has 3 cells where the first row has 2"),
    "no such column": ("a.csv", "text,class\na,1\n",
                       "there is no column 'label' among 'text', 'class'; name others with classes.text and "
                       "classes.labels, or set classes.header=false"),
    "twice the column": ("a.csv", "text,label,text\na,1,b\n", "has 2 columns 'text'"),
    "old Mac line ends": ("a.csv", "text,label\ra,1\rb,0\r", "line 1: is no row of a table (new-line character seen in unquoted field); "
                          "save the file with line ends LF or CRLF"),
    "an open quote": ("a.csv", 'text,label\n"a,1\nb,0\n', "is no row of a table (unexpected end of data)"),
    "only a header": ("a.csv", "text,label\n", "holds no labelled texts"),
    "broken JSON": ("a.jsonl", '{"text": "a", "label": 1}\n{"text": \n', "line 2: is no JSON"),
    "a broken array": ("a.json", '[{"text": "a", "label": 1},]', "is no JSON"),
    "no object": ("a.jsonl", "[1]\n", "line 1: is no JSON object"),
    "missing field": ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n',
                      "line 2: there is no column 'label' among 'text'"),
    "text missing": ("a.jsonl", '{"body": "a", "label": 1}\n',
                     "line 1: there is no column 'text' among 'body', 'label'"),
    "no text": ("a.jsonl", '{"text": 7, "label": 1}\n', "line 1: 'text' is 7 and no text"),
    "no label": ("a.jsonl", '{"text": "a", "label": null}\n', "line 1: 'label' is null and no label"),
    "half a number": ("a.jsonl", '{"text": "a", "label": 0.5}\n',
                      "line 1: 'label' is 0.5 and no label (a text or a whole number)"),
    "a truth": ("a.jsonl", '{"text": "a", "label": true}\n', "line 1: 'label' is true and no label"),
    "a list": ("a.jsonl", '{"text": "a", "label": ["x"]}\n', "lists need 'label' in classes.several"),
    "half a surrogate": ("a.jsonl", '{"text": "\\ud800", "label": 1}\n', "line 1: 'text' holds half a surrogate pair"),
    "half a label": ("a.jsonl", '{"text": "a", "label": "\\ud800"}\n', "line 1: 'label' is"),
    "no pattern": ("a.txt", "1 a\nsingle\n", "line 2: does not read '{label} {text}'"),
    "a line without text": ("a.txt", "1 a\n0  \n", "line 2: the text is empty"),
    "old Mac line ends of a text": ("a.txt", "0 a\r1 b\r0 c\r", "line 1: holds a bare carriage return; save the file with line ends LF or CRLF"),
    "a key twice": ("a.jsonl", '{"text": "a", "label": 1, "label": 2}\n', "line 1: is no JSON (the key 'label' stands twice)"),
    "a key twice in an array": ("a.json", '[{"text": "a", "text": "b", "label": 2}]', "is no JSON: the key 'text' stands twice"),
    "a zero in a text": ("a.csv", "text,label\na\0b,1\n", "row 2: 'text' holds a character zero; is the file UTF-16?"),
    "a zero in a label": ("a.jsonl", '{"text": "a", "label": "1\\u0000"}\n', "line 1: 'label' holds a character zero"),
    "UTF-16 without its mark": ("a.txt", "1 a\n0 b\n1 c".encode("utf-16-le"), "line 1: 'text' holds a character zero"),
    "another kind": ("a.md", "1 a", "unknown kind of file; give .csv"),
}


@pytest.mark.parametrize("name, content, said", FAULTS.values(), ids=FAULTS)
def test_what_is_not_understood_is_named_with_file_and_row(tmp_path, name, content, said):
    path = written(tmp_path / name, content)
    refusal(lambda: read(path), str(path), said)


def test_the_first_ten_faults_are_named_and_the_others_counted(tmp_path):
    path = written(tmp_path / "a.csv", "text,label\n" + ",1\n" * 13 + "a,1\n")
    message = refusal(lambda: read(path), f"{path}: 13 bad records: row 2: the text is empty; row 3: ",
                      "row 11: ", "; and 3 more. ")
    assert "row 12" not in message


def test_m_heads_need_m_labels(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"text": "a", "mood": "good", "topic": "food"}\n'
                                         '{"text": "b", "mood": "bad"}\n')
    refusal(lambda: read(path, TWO), f"{path}: 1 bad record: line 2: there is no column 'topic' among 'text', 'mood'")
    path = written(tmp_path / "a.csv", "text,mood\na,good\n")
    refusal(lambda: read(path, TWO), f"{path}: there is no column 'topic'")
    path = written(tmp_path / "b.csv", "text,mood,topic\na,good,\n")
    refusal(lambda: read(path, TWO), f"{path}: 1 bad record: row 2: 'topic' is empty")


def test_two_columns_in_one_name_are_told_to_be_a_list(tmp_path):
    path = written(tmp_path / "a.csv", "text,mood,topic\na,good,food\n")
    refusal(lambda: read(path, labels=("mood, topic",)), """there is no column 'mood, topic'; several columns are a list: ["mood", "topic"]""")


def test_a_record_with_two_faults_is_one_record(tmp_path):
    path = written(tmp_path / "a.csv", "text,mood,topic\n,,x\na,b,c\n")
    refusal(lambda: read(path, TWO), f"{path}: 1 bad record: row 2: the text is empty; row 2: 'mood' is empty")


def test_an_empty_label_among_several_is_a_fault(tmp_path):
    path = written(tmp_path / "a.csv", "text,label\na,x||y\n")
    refusal(lambda: read(path, several=("label",)), "row 2: 'label' has an empty label")


@pytest.mark.parametrize("pattern", ["", "{label}{text}", "{text}", "{label} {text} {text}", "{Label} {text}"])
def test_a_pattern_that_does_not_tell_the_columns_apart_is_refused(tmp_path, pattern):
    path = written(tmp_path / "a.txt", "1 a\n")
    refusal(lambda: read(path, lines=pattern), f"{path}: a .txt needs classes.lines", "'{label} {text}'")


def test_numbered_columns_need_numbers(tmp_path):
    path = written(tmp_path / "a.csv", "a,1\n")
    refusal(lambda: read(path, header=False), f"{path}: there is no column 'text' among '1', '2'; give numbers")


@pytest.mark.parametrize("change, said", [
    ({"text": ("a",), "labels": ("a",)}, "classes.text"), ({"labels": ()}, "classes.labels"),
    ({"labels": ("a", "a")}, "each once"), ({"several": ("x",)}, "classes.several"),
    ({"encoding": "klingon"}, "no encoding"), ({"pooling": "median"}, "classes.pooling"),
    ({"separator": ""}, "classes.separator"), ({"test_fraction": 1.0}, "classes.test_fraction"),
])
def test_impossible_settings_are_refused(change, said):
    refusal(lambda: ClassesConfig(**change), said)


def test_a_line_pattern_is_no_regular_expression(tmp_path):
    pattern = line_pattern(tmp_path, dataclasses.replace(ONE, lines="{label}.*{text}"))
    assert pattern.fullmatch("a.*b").groups() == ("a", "b") and not pattern.fullmatch("aXXb")
