"""Settings that are impossible, and what the settings of an objective lead to."""

import dataclasses
import gzip
import json
import math
import os
import re
import shutil

from commands import is_no_run, pretrain, tune
from conftest import OBJECTIVES
import pytest
from running import in_process, refused, written

import finetune
import train
from minialpaca import config
from minialpaca.tokenizer import Tokenizer

BAD_SETTINGS = {
    "optim.warmup=1": ["command line: unknown key optim.warmup; did you mean optim.warmup_steps?"],
    "train.batchsize=1": ["did you mean train.batch_size?"],
    "model.n_heads=3": ["model.d_model"],
    "optim.lr=-1": ["optim.lr = -1.0: must be positive"],
    "optim.lr=fast": ["optim.lr = 'fast' must be a number"],
    "train.steps=1.5": ["train.steps = 1.5 must be a whole number"],
    "run.device=tpu": ["run.device = 'tpu': use auto, cpu"],
    "run.device=cuda:99": ["this machine has"],
    "data.val_fraction=1": ["data.val_fraction = 1.0: must lie strictly"],
    "model.vocab_size=300": ["model.vocab_size = 300: tokenizer and objective have"],
    "tokenizer.path=/nowhere.model": ["/nowhere.model: tokenizer cannot be read: no such file"],
    "lr=1": ["'lr=1' is no override; write section.key=value"],
    "data.val_fraction=1e-320": ["data.val_fraction = 1e-320: holds out nothing"],
    "train.best_by=val_accuracy": ["this task measures val_loss"],
    f"train.steps={10**18}": ["train.steps: asks for more than 2⁵³ steps"],
    "other.toml": ["give at most one config file"],
    "--lr": ["give at most one config file"],
}


@pytest.mark.parametrize("change, said", BAD_SETTINGS.items(), ids=[name[:40] for name in BAD_SETTINGS])
def test_bad_settings_are_one_line_and_leave_no_run(pretrain_command, tmp_path, change, said):
    refused(pretrain(pretrain_command, tmp_path / "new" / "run", change), *said)
    assert is_no_run(tmp_path / "new")


@pytest.mark.parametrize("change, said", [
    ("train.best_by=val_accuracy", "this task measures val_loss"), ("base.weights=last", "is no complete checkpoint"),
    (f"optim.warmup_steps={10**18}", "optim.warmup_steps: asks for more than 2⁵³ steps"),
])
def test_bad_settings_of_tuning_leave_no_run_either(finetune_command, pretrained, tmp_path, change, said):
    shutil.copytree(pretrained, tmp_path / "base")
    (tmp_path / "base" / "checkpoints" / "last").write_text("step-000999\n")
    refused(tune(finetune_command, tmp_path / "new" / "run", f"base.run={tmp_path / 'base'}", change), said)
    assert is_no_run(tmp_path / "new")


@pytest.mark.parametrize("change", ["data.documents=line", "data.documents=file",
                                    "objective.name=masked model.architecture=encoder"])
@pytest.mark.parametrize("name, content", [("a.txt", b"\xef\xbb\xbf"), ("a.txt.gz", gzip.compress(b""))],
                         ids=["a mark", "a gz of nothing"])
def test_text_without_a_character_cannot_validate(pretrain_command, pretrained, tmp_path, change, name, content):
    source = written(tmp_path / "data" / name, content)
    refused(pretrain(pretrain_command, tmp_path / "run", f"data.val_source={source}", *change.split(),
                     f"tokenizer.path={pretrained / 'tokenizer.model'}"), "data.val_source: no character stands in")
    assert is_no_run(tmp_path / "run")


@pytest.mark.parametrize("content, said", [
    ("[optim]\nlr = \n", "is not valid TOML"), (b"[run]\ndir = '\xff'\n", "is not UTF-8"),
    (None, "no such config file"),
    ("[optim]\nwarmup = 1\n", "unknown key optim.warmup; did you mean optim.warmup_steps?"),
    ("lr = 1\n", "'lr' stands outside a section; did you mean optim.lr?"),
])
def test_a_bad_config_file_is_one_line(tmp_path, content, said):
    path = tmp_path / "a.toml"
    if content is not None:
        written(path, content)
    refused(in_process(train.main, [str(path), f"run.dir={tmp_path / 'run'}"]), str(path), said)
    assert is_no_run(tmp_path / "run")


@pytest.mark.parametrize("main, form", [(train.main, config.PretrainConfig), (finetune.main, config.FinetuneConfig)])
def test_help_names_every_key_with_its_sentence(main, form):
    outcome = in_process(main, ["--help"])
    assert outcome.code == 0 and outcome.err == ""
    flat = "".join(outcome.out.split())  # lines are broken at spaces and hyphens
    n = 0
    for section in (f.name for f in dataclasses.fields(form)):
        for key, sentence in config.field_docs(type(config.default_of(form, section))).items():
            assert f"{section}.{key}=" in flat and "".join(sentence.split()) in flat
            n += 1
    assert n > 35


@pytest.mark.parametrize("main", [train.main, finetune.main])
def test_a_folder_that_cannot_be_written_is_one_line(pretrain_command, finetune_command, tmp_path, main):
    written(tmp_path / "file", "in the way")
    command = pretrain_command if main is train.main else finetune_command
    for folder in (tmp_path / "file" / "run", tmp_path / "file"):
        refused(in_process(main, [*command, f"run.dir={folder}"]), f"{folder}: cannot be a run folder",
                "choose another run.dir")


@pytest.mark.parametrize(("changes", "needed"), [
    (["objective.name=masked"], "encoder"), (["objective.name=span"], "encoder_decoder"),
    (["model.architecture=encoder"], "decoder"), (["model.architecture=encoder_decoder"], "decoder"),
    (["objective.name=masked", "model.architecture=encoder_decoder"], "encoder"),
    (["objective.name=span", "model.architecture=encoder"], "encoder_decoder"),
], ids=" ".join)
def test_an_objective_on_another_architecture_is_one_line_that_names_the_right_one(pretrain_command, tmp_path, changes, needed):
    said = refused(pretrain(pretrain_command, tmp_path / "run", *changes), "is for another architecture than model.architecture")
    assert said.endswith(f"; set model.architecture={needed}\n")
    assert is_no_run(tmp_path / "run")


@pytest.mark.parametrize(("name", "change", "said"), [
    ("masked", "objective.noise_rate=0", "objective.noise_rate = 0.0: must lie strictly between 0 and 1"),
    ("masked", "objective.keep_rate=0.95", "objective.keep_rate = 0.95: must lie in 0 … 1 − objective.random_rate"),
    ("masked", "model.vocab_size=512", "model.vocab_size = 512: tokenizer and objective have 513 ids; set 0 or more"),
    ("span", "model.vocab_size=611", "model.vocab_size = 611: tokenizer and objective have 612 ids; set 0 or more"),
    ("span", "objective.mean_span=0.5", "objective.mean_span = 0.5: must be at least 1"),
    ("span", "model.max_seq_len=3", "makes a target of 4, which does not fit the context"),
    ("span", "train.best_by=val_accuracy", "train.best_by = 'val_accuracy': this task measures val_loss"),
    ("masked", "loss.label_smoothing=1", "loss.label_smoothing = 1.0: must be at least 0 and below 1"),
    ("masked", "loss.l2=-1", "loss.l2 = -1.0: must not be negative"),
    ("masked", "loss.r_drop=inf", "loss.r_drop = inf: must not be negative"),
])
def test_settings_that_hide_too_much_or_too_little_are_one_line(objective_command, tmp_path, name, change, said):
    refused(in_process(train.main, [*objective_command[name], change, f"run.dir={tmp_path / 'run'}"]), said)
    assert is_no_run(tmp_path / "run")


def test_what_the_tuning_does_not_measure_cannot_choose_its_best(finetune_command, tmp_path):
    refused(tune(finetune_command, tmp_path / "run", "train.best_by=val_macro_f1"),
            "train.best_by = 'val_macro_f1': this task measures val_loss")
    assert is_no_run(tmp_path / "run")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_on_hidden_tokens_learns_shows_samples_and_leaves_a_whole_run(hiding, name):
    folder, outcome = hiding[name]
    assert outcome.code == 0 and outcome.err == ""
    assert {"config.toml", "tokenizer.model", "metrics.jsonl", "tensorboard", "checkpoints"} <= set(os.listdir(folder))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [r["step"] for r in records] == list(range(7))
    losses = [r["val_loss"] for r in records if "val_loss" in r]
    V = config.load(config.PretrainConfig, folder / "config.toml").model.vocab_size
    assert V == Tokenizer.load(folder / "tokenizer.model").vocab_size + {"masked": 1, "span": 100}[name]
    assert losses[0] == pytest.approx(math.log(V), abs=0.05) and losses[-1] < losses[0] - 0.3
    assert f"best validation loss {min(losses):.4f} nats per hidden token" in outcome.out
    asked, answered = outcome.out.partition("\n> ")[2].splitlines()[:2]
    assert "⟨0⟩" in asked and len(answered) > 3
    if name == "masked":  # all that is no mask stands in the answer as it was
        shown = re.escape(asked).replace(re.escape(" ⟨0⟩"), ".*").replace(re.escape("⟨0⟩"), ".*")
        assert re.fullmatch(shown, answered, re.DOTALL)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_given_texts_are_what_is_shown(objective_command, tmp_path, name):
    outcome = in_process(train.main, [*objective_command[name], f"run.dir={tmp_path / 'run'}", "train.steps=1",
                                      'samples.prompts=["Mira has 72 bells. Bado has 15 ropes.", "Kira", ""]'])
    assert outcome.code == 0, outcome.err
    shown = [line for line in outcome.out.splitlines() if line.startswith("> ")]
    assert len(shown) == 3 and "bells" in shown[0] and shown[2] == "> "
