"""Text and instructions that are not what they should be: one clear line, and no half-written run behind it."""

import json

from commands import is_no_run, pretrain, tune
from conftest import alpaca_rows, sentences
import pytest
from running import refused, written

BAD_TEXT = {
    "missing": (None, "a.txt", ["a.txt: no such file, folder or glob"]),
    "empty": ("", "a.txt", ["a.txt: is empty"]),
    "wrong ending": ("x", "a.csv", ["a.csv: unknown kind of file"]),
    "invalid UTF-8": (b"good\n" * 20 + b"bad \xff\n", "a.txt", ["a.txt, line 21: is not UTF-8"]),
    "broken gz": (b"no gz at all", "a.txt.gz", ["a.txt.gz, line 1: the gzip file is broken or cut off"]),
    "broken JSONL": ('{"text": "a"}\n{"text": \n', "a.jsonl", ["a.jsonl: 1 bad record: line 2: is no JSON"]),
    "missing field": ('{"text": "a"}\n{"body": "b"}\n', "a.jsonl", ["line 2: 'text' is missing"]),
    "no text in the field": ('{"text": 7}\n', "a.jsonl", ["line 1: 'text' is no text"]),
    "half a surrogate pair": ('{"text": "\\ud800"}\n', "a.jsonl", ["line 1: 'text' holds half a surrogate pair"]),
    "nothing but blanks": (" \n\n", "a.txt", ["holds out nothing or everything of this little text"]),
    "too little for one window": ("Mira has a lamp.\n" * 3, "a.txt", ["fewer than one window"]),
}


@pytest.mark.parametrize("content, name, said", BAD_TEXT.values(), ids=BAD_TEXT)
@pytest.mark.parametrize("own_tokenizer", [True, False], ids=["learning a vocabulary", "with a vocabulary"])
def test_bad_text_is_one_line_and_leaves_no_run(pretrain_command, pretrained, tmp_path, content, name, said,
                                                own_tokenizer):
    source = tmp_path / "data" / name
    if content is not None:
        written(source, content)
    given = [] if own_tokenizer else [f"tokenizer.path={pretrained / 'tokenizer.model'}"]
    outcome = pretrain(pretrain_command, tmp_path / "run", f"data.source={source}", *given)
    refused(outcome, *said)
    assert is_no_run(tmp_path / "run")


def test_a_fault_leaves_what_was_in_the_folder_before(pretrain_command, tmp_path):
    note = written(tmp_path / "run" / "note.txt", "mine")
    source = written(tmp_path / "a.txt", b"bad \xff\n")
    refused(pretrain(pretrain_command, tmp_path / "run", f"data.source={source}"), "line 1: is not UTF-8")
    assert list((tmp_path / "run").iterdir()) == [note] and note.read_text() == "mine"


def test_what_is_trained_on_cannot_validate(pretrain_command, finetune_command, sources, tmp_path):
    for script, command, name in ((pretrain, pretrain_command, "story.txt"), (tune, finetune_command, "alpaca.json")):
        refused(script(command, tmp_path / "run", f"data.val_source={sources / name}"),
                "data.val_source: ", f"{name} is in data.source too")
        assert is_no_run(tmp_path / "run")


def test_after_a_fault_is_mended_the_same_command_will_do(pretrain_command, tmp_path):
    source = written(tmp_path / "a.txt", b"bad \xff\n")
    refused(pretrain(pretrain_command, tmp_path / "run", f"data.source={source}"), "line 1: is not UTF-8")
    written(source, "\n".join(sentences(400)))
    assert pretrain(pretrain_command, tmp_path / "run", f"data.source={source}", "train.steps=1").code == 0


GOOD = alpaca_rows(8)
BAD_ROWS = {
    "missing": (None, "a.json", ["a.json: no such file"]),
    "empty": ("", "a.json", ["a.json: is empty"]),
    "no rows": ("[]", "a.json", ["a.json: holds no examples"]),
    "text": ("x", "a.txt", ["a.txt: unknown kind of file; give .json, .jsonl, .jsonl.gz"]),
    "invalid UTF-8": (b'[\n{"instruction": "\xff"}]', "a.json", ["a.json, line 2: is not UTF-8"]),
    "broken JSON": ('[{"instruction": "a",\n "output": }]', "a.json", ["a.json: is no JSON: ", "line 2"]),
    "an object": ('{"a": 1}', "a.json", ["a.json: holds dict"]),
    "broken JSONL": (json.dumps(GOOD[0]) + "\n{oops\n", "a.jsonl", ["a.jsonl: 1 bad record: line 2: is no JSON"]),
    "missing field": (json.dumps([*GOOD, {"instruction": "a"}]), "a.json", ["record 9: 'output' is missing"]),
    "no text": (json.dumps([*GOOD, {"instruction": ["a"], "output": "b"}]), "a.json",
                ["record 9: 'instruction' is [\"a\"] and no text"]),
    "all over-long": (json.dumps([{"instruction": "a " * 300 + str(i), "output": "b"} for i in range(9)]), "a.json",
                      ["training: none of 7 examples is left", "7 dropped"]),
    "all empty": (json.dumps([{"instruction": str(i), "output": ""} for i in range(9)]), "a.json",
                  ["7 without an output"]),
    "one question": (json.dumps([GOOD[0]] * 5), "a.json", ["data.val_fraction = 0.2: holds out 0 of 1"]),
}


@pytest.mark.parametrize("content, name, said", BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_instructions_are_one_line_and_leave_no_run(finetune_command, tmp_path, content, name, said):
    source = tmp_path / "data" / name
    if content is not None:
        written(source, content)
    refused(tune(finetune_command, tmp_path / "run", f"data.source={source}"), *said)
    assert is_no_run(tmp_path / "run")


@pytest.mark.parametrize("field", ["val_source", "test_source"])
def test_bad_validation_and_test_data_too(finetune_command, tmp_path, field):
    source = written(tmp_path / "a.jsonl", json.dumps(GOOD[0]) + "\n{oops\n")
    refused(tune(finetune_command, tmp_path / "run", f"data.{field}={source}"),
            "a.jsonl: 1 bad record: line 2: is no JSON")
    assert is_no_run(tmp_path / "run")


def test_the_tuning_minimises_what_the_section_loss_asks_for(finetune_command, tuned, tmp_path):
    """The same first step but for the loss: its two added terms, and λ‖θ‖² in a column of its own."""
    def first(folder):
        return json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[1])

    assert tune(finetune_command, tmp_path / "run", "loss.l2=1e-3", "loss.label_smoothing=0.2", "train.steps=1").code == 0
    assert first(tmp_path / "run").keys() - first(tuned).keys() == {"l2", "val_loss"}
    assert abs(first(tmp_path / "run")["loss"] - first(tuned)["loss"]) > 1e-3


def test_over_long_raise_is_refused_and_truncation_is_counted(finetune_command, tmp_path):
    refused(tune(finetune_command, tmp_path / "run", "data.over_long=raise", "base.max_seq_len=60"), "record 2 has")
    assert is_no_run(tmp_path / "run")
    outcome = tune(finetune_command, tmp_path / "run", "data.over_long=truncate_response", "base.max_seq_len=70",
                   "train.steps=1")
    assert outcome.code == 0 and "over_long = truncate_response: " in outcome.out
