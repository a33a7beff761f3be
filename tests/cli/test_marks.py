"""`python -m minialpaca.evaluate`: the marks that finetune.py ended with, again, and those of other rows."""

import json

import pytest
from commands import tune
from running import module, refused

from minialpaca import evaluate


@pytest.fixture(scope="module")
def assistant(finetune_command, sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "assistant"
    outcome = tune(finetune_command, folder, f"data.test_source={sources / 'alpaca.json'}")
    assert outcome.code == 0, outcome.err
    return folder


def test_an_assistant_is_marked_as_at_the_end_of_its_tuning(assistant, monkeypatch):
    marks = json.loads((assistant / "test_marks.json").read_text())
    outcome = module(evaluate.main, monkeypatch, assistant)
    told = {row.split()[0]: [int(cell) for cell in row.split()[1:3]] for row in outcome.out.splitlines() if row.split()[0] in marks}
    assert outcome.code == 0 and told == marks and marks["all"][1] == 40


def test_other_rows_are_marked_instead_and_need_nothing_of_the_runs_data(assistant, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "Instruction", None)
    rows = [{"instruction": "How many ropes?", "input": "", "output": "x", "kind": "mine"}] * 3
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    outcome = module(evaluate.main, monkeypatch, assistant, "--checkpoint", "last", tmp_path / "rows.json")
    assert outcome.out.splitlines()[-2].split()[:3] == ["mine", "0", "3"], outcome.err


def test_a_classifier_tells_its_classes(tmp_path, finetune_command, monkeypatch):
    texts = [{"text": f"It was {word} {i}.", "label": mood} for i in range(12) for word, mood in (("lovely", "good"), ("awful", "bad"))]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    command = [*finetune_command, "task.name=classification", f"data.source={tmp_path / 'texts.jsonl'}", "data.test_source=[]", "data.val_fraction=0.3",
               "train.patience=0"]
    outcome = tune(command, tmp_path / "run")
    assert outcome.code == 0, outcome.err
    refused(module(evaluate.main, monkeypatch, tmp_path / "run"), "its data have no test split; name a file with rows")
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, [{"text": "A lovely inn.", "label": "good"}, {"text": "Cold soup.", "label": "bad"}])))
    told = module(evaluate.main, monkeypatch, tmp_path / "run", tmp_path / "other.jsonl")
    assert module(evaluate.main, monkeypatch, tmp_path / "run", tmp_path / "texts.jsonl").code == 0  # what it was trained on, too
    (tmp_path / "odd.jsonl").write_text(json.dumps({"text": "Soup.", "label": "odd"}))
    refused(module(evaluate.main, monkeypatch, tmp_path / "run", tmp_path / "odd.jsonl"), "odd")
    assert told.code == 0 and "accuracy" in told.out and [line.split()[0] for line in told.out.splitlines() if line.split()[0] in ("good", "bad")] == ["bad", "good"]


def test_what_has_learned_no_answers_is_one_line(pretrained, monkeypatch):
    refused(module(evaluate.main, monkeypatch, pretrained), "was pretrained and has learned neither to answer nor to label")
