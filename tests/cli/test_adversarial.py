"""Adversarial training from the command line: every method, continued as if never stopped, and refused where it says nothing."""

import pytest
import torch
from commands import tune
from running import json_lines, refused

from minialpaca.config import ATTACKS
from minialpaca.errors import UserError
from minialpaca.storage import checkpoint
from minialpaca.trainer import Trainer

METHODS = [method for method in ATTACKS if method not in ("none", "vat")]


@pytest.fixture
def labels(sources, tmp_path):
    """What makes a classification of the tiny tuning command."""
    rows = [f"{'good' if i % 3 else 'bad'} Mira has {i} {'lamps' if i % 3 else 'ropes'}." for i in range(40)]
    (tmp_path / "moods.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (tmp_path / "plain.txt").write_text("\n".join(f"Bado has {i} maps." for i in range(30)) + "\n", encoding="utf-8")
    return ["task.name=classification", f"data.source={tmp_path / 'moods.txt'}", "data.test_source=[]", "classes.lines={label} {text}"]


def command(method, *more):
    tied = ["adversarial.tied=true"] if method == "matrix" else []
    return [f"adversarial.method={method}", "adversarial.epsilon=0.05", *tied, *more]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_tunes_an_assistant_from_the_config(finetune_command, tmp_path, method):
    assert tune(finetune_command, tmp_path / "run", *command(method)).code == 0
    steps = [r for r in json_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    assert len(steps) == 6 and all(r["attacks_skipped"] == 0 for r in steps)
    assert method == "freelb" or all(r["adversarial_loss"] > r["loss"] for r in steps)


@pytest.mark.parametrize("method", [*METHODS, "vat"])
def test_every_method_tunes_a_classifier_from_the_config(finetune_command, tmp_path, labels, method):
    texts = [f"adversarial.unlabelled={tmp_path / 'plain.txt'}"] if method == "vat" else []
    outcome = tune(finetune_command, tmp_path / "run", *labels, *command(method, *texts))
    assert outcome.code == 0 and (method != "vat" or "unlabelled: 30 texts" in outcome.out)
    steps = [r for r in json_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    assert len(steps) == 6 and all(r.get("virtual_loss", 0) > 0 for r in steps) == (method == "vat")


@pytest.mark.parametrize("method, adapter", [("fgm", "none"), ("fgm", "lora"), ("fgm", "houlsby"), ("freelb", "adalora"), ("pgd", "none")])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_stopped_and_continued_is_not_stopped(finetune_command, tmp_path, monkeypatch, method, adapter, accumulation):
    straight, halted = tmp_path / "straight", tmp_path / "halted"
    changes = command(method, f"adapter.method={adapter}", "train.save_every=1", f"train.accumulation={accumulation}", "base.dropout=0.1")
    if adapter == "adalora":
        changes += ["adapter.rank=4", "adapter.target_rank=2", "adapter.interval=1", "train.steps=12"]
    assert tune(finetune_command, straight, *changes).code == 0
    take = Trainer.take_step

    def three(trainer):
        if trainer.state["step"] == 3:
            raise UserError("enough")
        return take(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", three)
        refused(tune(finetune_command, halted, *changes), "enough")
    tune(finetune_command, halted, *changes)
    records = [[{k: v for k, v in r.items() if k != "tokens_per_s"} for r in json_lines(f / "metrics.jsonl")] for f in (straight, halted)]
    assert records[0] == records[1]
    saved = [torch.load(checkpoint.find(f) / "model.pt", weights_only=True) for f in (straight, halted)]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


REFUSED = {
    "epsilon 0": (["adversarial.method=fgm", "adversarial.epsilon=0"], "adversarial.epsilon = 0.0: must be positive"),
    "epsilon nan": (["adversarial.method=fgm", "adversarial.epsilon=inf"], "adversarial.epsilon = inf: must be positive"),
    "a method that is none": (["adversarial.method=fgn"], "adversarial.method = 'fgn': use none, fgm,"),
    "steps of fgm": (["adversarial.method=fgm", "adversarial.steps=5"], "adversarial.steps = 5: means nothing to adversarial.method = 'fgm'"),
    "no method": (["adversarial.epsilon=0.5"], "adversarial.epsilon = 0.5: means nothing to adversarial.method = 'none'"),
    "tied": (["adversarial.method=matrix", "base.dropout=0"], "the output head, too"),
    "vat of an assistant": (["adversarial.method=vat"], "use it with task.name=classification"),
    "with R-Drop": (["adversarial.method=fgm", "loss.r_drop=1", "base.dropout=0.1"], "not defined together with adversarial.method"),
    "matrix of a frozen embedding": (["adversarial.method=matrix", "adversarial.tied=true", "adapter.method=lora"], "is frozen"),
}


@pytest.mark.parametrize("changes, message", REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(finetune_command, tmp_path, changes, message):
    refused(tune(finetune_command, tmp_path / "run", *changes), message)
    assert not (tmp_path / "run").exists()


def test_unlabelled_texts_that_are_none_are_refused(finetune_command, tmp_path, labels):
    (tmp_path / "empty.txt").write_text("\n\n", encoding="utf-8")
    for file, message in (("missing.txt", "missing.txt"), ("empty.txt", "empty.txt")):
        outcome = tune(finetune_command, tmp_path / "run", *labels, "adversarial.method=vat", f"adversarial.unlabelled={tmp_path / file}")
        refused(outcome, message)
