"""What tuning starts from, and what a run may go on with."""

import json
import shutil

from commands import is_no_run, pretrain, tune
from conftest import alpaca_rows, sentences
import pytest
from running import module, refused, written

from minialpaca import generate
from minialpaca.tokenizer import Tokenizer


def test_a_base_that_is_missing_or_no_run_is_one_line(finetune_command, tmp_path):
    for base in (tmp_path / "nowhere", tmp_path):
        refused(tune(finetune_command, tmp_path / "run", f"base.run={base}"), f"{base}: is no run folder",
                "give the run.dir")
    assert is_no_run(tmp_path / "run")


def test_a_base_without_a_checkpoint_is_one_line_and_random_weights_need_none(finetune_command, pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "checkpoints")
    base = f"base.run={tmp_path / 'base'}"
    refused(tune(finetune_command, tmp_path / "run", base), "'best' weights are untrained yet")
    assert tune(finetune_command, tmp_path / "random", base, "base.weights=random", "train.steps=1").code == 0


def test_a_base_that_was_stopped_before_its_first_evaluation_is_refused(finetune_command, pretrain_command, tmp_path,
                                                                        monkeypatch):
    monkeypatch.setattr("minialpaca.trainer.Trainer.take_step", interrupted)
    assert pretrain(pretrain_command, tmp_path / "base").code == 130
    refused(tune(finetune_command, tmp_path / "run", f"base.run={tmp_path / 'base'}"), "weights are untrained yet")
    assert is_no_run(tmp_path / "run")


def interrupted(self):
    raise KeyboardInterrupt


def test_the_model_is_the_bases(finetune_command, tmp_path):
    refused(tune(finetune_command, tmp_path / "run", "model.n_layers=7"), "model.* is the base run's")
    assert is_no_run(tmp_path / "run")


def test_the_world_mixes_with_nothing_in_tuning(finetune_command, sources, tmp_path):
    """Own files beside it would be left out without a word."""
    from minialpaca.config import FinetuneConfig, load
    from minialpaca.errors import UserError
    from minialpaca.tasks.instruction import split_rows
    with pytest.raises(UserError, match="mixes with nothing"):
        split_rows(load(FinetuneConfig, None, [f'data.source=["{sources}/alpaca.json", "world"]']))


@pytest.mark.parametrize("script", ["train", "finetune"])
def test_a_run_does_not_go_on_with_other_data(script, pretrain_command, finetune_command, tmp_path):
    pretraining = script == "train"
    source = written(tmp_path / ("a.txt" if pretraining else "a.json"),
                     "\n".join(sentences(400)) if pretraining else json.dumps(alpaca_rows(40)))
    go = (pretrain, pretrain_command) if pretraining else (tune, finetune_command)
    assert go[0](go[1], tmp_path / "run", f"data.source={source}").code == 0
    written(source, source.read_bytes())  # rewritten, but the same
    assert go[0](go[1], tmp_path / "run", f"data.source={source}").code == 0
    written(source, source.read_text().replace("a", "e"))
    refused(go[0](go[1], tmp_path / "run", f"data.source={source}"), "the data are not those that this run began with")


def test_a_refused_recipe_touches_no_token_file(pretrain_command, pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "run")
    other = written(tmp_path / "other.txt", "\n".join(sentences(300, seed=5)))
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    refused(pretrain(pretrain_command, tmp_path / "run", f"data.source={other}"), "another recipe (data.source")
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_a_run_folder_of_the_other_script_is_named(pretrain_command, finetune_command, pretrained, tuned):
    refused(tune(finetune_command, pretrained), "holds a run of train.py; choose another run.dir")
    refused(pretrain(pretrain_command, tuned), "holds a run of finetune.py; choose another run.dir")


def test_a_warm_up_longer_than_the_run_is_noted(pretrain_command, tmp_path):
    outcome = pretrain(pretrain_command, tmp_path / "run", "train.steps=2")
    assert "note: optim.warmup_steps = 3 and only 2 steps" in outcome.out
    assert "note:" not in pretrain(pretrain_command, tmp_path / "run2", "train.steps=4").out


def test_a_tokenizer_that_is_not_the_checkpoints_is_refused(finetune_command, pretrained, tmp_path, monkeypatch):
    shutil.copytree(pretrained, tmp_path / "base")
    other = Tokenizer.train([s.upper() for s in sentences(300)], "bpe", 512)
    other.save(tmp_path / "base" / "tokenizer.model")
    outcome = tune(finetune_command, tmp_path / "run", f"base.run={tmp_path / 'base'}", "base.max_seq_len=600")
    refused(outcome, "was trained with another tokenizer than the tokenizer.model of its run folder")
    refused(module(generate.main, monkeypatch, tmp_path / "base", "x"), "was trained with another tokenizer")


def test_questions_about_another_world_than_the_bases_are_refused(finetune_command, pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "base")
    toml = tmp_path / "base" / "config.toml"
    settings = toml.read_text(encoding="utf-8")
    source = settings.partition("\nsource = ")[2].partition("\n")[0]
    toml.write_text(settings.replace(source, '["world:1"]'), encoding="utf-8")
    for asked in ("world", "world:2"):
        refused(tune(finetune_command, tmp_path / "run", f"base.run={tmp_path / 'base'}", f"data.source={asked}"),
                f"data.source = '{asked}': the base run", "was trained on world:1; set data.source=world:1")
    refused(tune(finetune_command, tmp_path / "run", "data.source=world"), "story.txt; set data.source=to files of yours")
    refused(tune(finetune_command, tmp_path / "run", "data.source=world:x"), "write world or world:SEED")
    assert is_no_run(tmp_path / "run")
