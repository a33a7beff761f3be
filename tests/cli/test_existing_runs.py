"""A run folder that is there already: continued as it was begun, or refused untouched."""

import errno
import os
import shutil

from commands import is_no_run, pretrain, tune
import pytest
from running import refused

from minialpaca import config
from minialpaca.tokenizer import Tokenizer


def listing(folder):
    return sorted((str(p.relative_to(folder)), p.stat().st_size) for p in folder.rglob("*")
                  if p.is_file() and "tensorboard" not in str(p))


def test_another_recipe_in_an_existing_folder_is_refused_and_touches_nothing(pretrain_command, finetune_command,
                                                                             pretrained, tuned):
    for run, folder, change in ((pretrain, pretrained, "optim.lr=0.5"), (pretrain, pretrained, "run.seed=1"),
                                (tune, tuned, "optim.lr=0.5"), (tune, tuned, "data.over_long=raise")):
        before = listing(folder)
        outcome = run(pretrain_command if run is pretrain else finetune_command, folder, change)
        refused(outcome, f"{folder}: holds a run with another recipe ({change.partition('=')[0]}: ")
        assert listing(folder) == before


def test_resume_never_refuses_a_folder_that_holds_a_run(pretrain_command, finetune_command, pretrained, tuned,
                                                        tmp_path):
    refused(pretrain(pretrain_command, pretrained, "run.resume=never"), f"{pretrained}: holds a run already",
            "run.resume=auto")
    refused(tune(finetune_command, tuned, "run.resume=never"), f"{tuned}: holds a run already")
    assert pretrain(pretrain_command, tmp_path / "run", "run.resume=never", "train.steps=1").code == 0


def test_a_finished_run_says_so_and_changes_nothing(pretrain_command, finetune_command, pretrained, tuned):
    for run, command, folder in ((pretrain, pretrain_command, pretrained), (tune, finetune_command, tuned)):
        before = listing(folder)
        outcome = run(command, folder)
        assert outcome.code == 0 and outcome.err == "" and "step 6 of 6, finished" in outcome.out
        assert listing(folder) == before


def test_a_damaged_checkpoint_is_one_line_when_a_run_goes_on(pretrain_command, pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "run")
    (model,) = (tmp_path / "run" / "checkpoints").glob("*/model.pt")
    model.write_bytes(model.read_bytes()[:-1])
    refused(pretrain(pretrain_command, tmp_path / "run"), "model.pt: differs from the checkpoint's manifest")


def test_another_tokenizer_in_a_stopped_run_is_refused_before_anything_is_written(pretrain_command, pretrained, tmp_path,
                                                                                    tokenizer):
    shutil.copytree(pretrained, tmp_path / "run")
    place = tmp_path / "run" / "tokenizer.model"
    own = Tokenizer.load(place)
    assert own.vocab_size == tokenizer.vocab_size and own.sha256 != tokenizer.sha256
    tokenizer.save(place)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    refused(pretrain(pretrain_command, tmp_path / "run"), "was trained with another tokenizer than the tokenizer.model")
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_checkpoints_without_a_config_are_refused_before_one_is_written(pretrain_command, finetune_command, pretrained,
                                                                        tuned, tmp_path):
    for script, command, folder in ((pretrain, pretrain_command, pretrained), (tune, finetune_command, tuned)):
        copy = tmp_path / folder.name
        shutil.copytree(folder, copy)
        (copy / "config.toml").unlink()
        before = listing(copy)
        refused(script(command, copy, "optim.lr=0.5"), f"{copy}: holds checkpoints and no config.toml")
        assert listing(copy) == before


def test_an_impossible_value_in_a_runs_config_is_told_with_the_file(pretrain_command, pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "run")
    toml = tmp_path / "run" / "config.toml"
    for good, bad in (("\nlr = 0.01", "\nlr = -1.0"), ("\nlr = -1.0", "\nlr = 'x'")):
        toml.write_text(toml.read_text(encoding="utf-8").replace(good, bad), encoding="utf-8")
        said = refused(pretrain(pretrain_command, tmp_path / "run"), f"error: {toml}: optim.lr = ")
        assert said.count(str(toml)) == 1


def test_changed_token_files_are_told_when_a_run_goes_on(pretrain_command, pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "run")
    tokens = tmp_path / "run" / "tokens" / "train.bin"
    tokens.write_bytes(tokens.read_bytes()[:-2] + b"\xff\xff")
    refused(pretrain(pretrain_command, tmp_path / "run"), "train.bin: differs from the digest in its header", "delete it")
    tokens.unlink()
    assert pretrain(pretrain_command, tmp_path / "run").code == 0


@pytest.mark.parametrize("name", ["tokenizer.model", "config.toml"])
def test_a_full_disk_is_told_with_the_file_and_leaves_no_run(pretrain_command, tmp_path, monkeypatch, name):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if name == "tokenizer.model":
        monkeypatch.setattr(Tokenizer, "save", full)
    else:
        monkeypatch.setattr(config, "to_toml", lambda settings: "", raising=True)
        replace = os.replace
        monkeypatch.setattr(os, "replace", lambda a, b: full() if b.name == name else replace(a, b))
    refused(pretrain(pretrain_command, tmp_path / "run"), f"{name}: cannot be written: no space left on device")
    assert is_no_run(tmp_path / "run")
