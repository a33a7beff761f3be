"""What a user meets on the command line: one clear line for bad input, and no half-written run behind it."""

import dataclasses
import errno
import gzip
import json
import math
import os
import re
import shutil

import pytest
from conftest import OBJECTIVES, alpaca_rows, sentences
from running import in_process, module, refused, written

import finetune
import train
from minialpaca import chat, config, generate
from minialpaca.sampling import Sampling
from minialpaca.tokenizer import Tokenizer


def pretrain(pretrain_command, folder, *changes):
    return in_process(train.main, [*pretrain_command, f"run.dir={folder}", *changes])


def tune(finetune_command, folder, *changes):
    return in_process(finetune.main, [*finetune_command, f"run.dir={folder}", *changes])


def is_no_run(folder):
    return not folder.exists()


# ── bad data ─────────────────────────────────────────────────────────────────────────────────────

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


# ── bad settings ─────────────────────────────────────────────────────────────────────────────────

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
        refused(in_process(main, [*command, f"run.dir={folder}"]), f"{folder}: the run folder cannot be written",
                "set run.dir")


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
    ("masked", "loss.label_smoothing=1", "loss.label_smoothing = 1.0: must lie in 0 … 1"),
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


# ── runs that exist ──────────────────────────────────────────────────────────────────────────────


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


# ── the base run ─────────────────────────────────────────────────────────────────────────────────


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


# ── asking ───────────────────────────────────────────────────────────────────────────────────────


def test_generate_answers_each_instruction_or_goes_on_with_a_text(tuned, pretrained, monkeypatch):
    outcome = module(generate.main, monkeypatch, tuned, "How many?", "How?", "--input", "x", "--max-new-tokens", "3")
    assert outcome.code == 0 and outcome.err == "" and outcome.out.count("\n") >= 2
    assert outcome == module(generate.main, monkeypatch, tuned, "How many?", "How?", "--input", "x",
                             "--max-new-tokens", "3")
    assert module(generate.main, monkeypatch, pretrained, "Mira has", "--checkpoint", "last", "--temperature",
                  "1").code == 0


def test_several_texts_are_told_apart_and_a_limit_beyond_the_context_is_the_context(tuned, pretrained, monkeypatch):
    for folder in (tuned, pretrained):
        alone = [module(generate.main, monkeypatch, folder, text, "--max-new-tokens", "1000").out
                 for text in ("Mira has", "How\tmany?")]
        assert module(generate.main, monkeypatch, folder, "Mira has").out == alone[0]
        together = module(generate.main, monkeypatch, folder, "Mira has", "How\tmany?")
        assert together.out == f"> Mira has\n{alone[0]}\n> How\tmany?\n{alone[1]}"


def test_a_pretrained_run_shows_texts_that_go_on_and_a_tuned_one_answers(pretrain_command, tmp_path, tuned, monkeypatch):
    outcome = pretrain(pretrain_command, tmp_path / "run", "train.steps=1", 'samples.prompts=["Mira has", "Bado"]')
    one, other = outcome.out.split("\n\n")[-3:-1]
    goes_on = module(generate.main, monkeypatch, tmp_path / "run", "Mira has", "--max-new-tokens", "4").out
    assert f"{one}\n" == f"Mira has|{goes_on}" and other.startswith("Bado|")


@pytest.mark.parametrize("main", [generate.main, chat.main])
def test_help_gives_each_setting_of_the_sampling_a_sentence_and_its_default(monkeypatch, main):
    outcome = module(main, monkeypatch, "--help")
    assert outcome.code == 0 and outcome.err == ""
    said = "".join(outcome.out.split())
    for name, sentence in config.field_docs(Sampling).items():
        assert "".join(f"{sentence} (default {getattr(Sampling(), name)})".split()) in said
        assert f"--{name.replace('_', '-')}" in said
    assert "anywhereintheprompt" in said and "nevermorethanthecontexthasroomfor" in said and "(defaultbest)" in said


@pytest.mark.parametrize("arguments, said", [
    (["a " * 300], ["the prompt has ", "tokens where the context holds 96; shorten it"]),
    (["a", "b", "a " * 300], ["the prompt has "]),
    (["a", "--seed", "9" * 30], ["must lie in 0 …"]),
    (["a", "--max-new-tokens", "0"], ["--max-new-tokens 0: must be at least 1"]),
    (["a", "--temperature", "-1"], ["temperature = -1.0: must not be negative"]),
    (["a", "--top-p", "2"], ["top_p = 2.0: must lie in 0 … 1"]),
    (["a", "--device", "cuda:99"], ["this machine has"]),
])
def test_what_cannot_be_asked_is_one_line(tuned, monkeypatch, arguments, said):
    outcome = module(generate.main, monkeypatch, tuned, *arguments)
    refused(outcome, *said)
    assert outcome.out == ""


@pytest.mark.parametrize("main", [generate.main, chat.main])
def test_a_folder_that_is_no_run_is_one_line(tmp_path, monkeypatch, main):
    arguments = ["x"] if main is generate.main else []
    for folder in (tmp_path, tmp_path / "nowhere"):
        refused(module(main, monkeypatch, folder, *arguments), f"{folder}: is no run folder")


def test_a_pretraining_run_takes_no_input_and_does_not_chat(pretrained, monkeypatch):
    refused(module(generate.main, monkeypatch, pretrained, "x", "--input", "y"),
            "is a pretraining run, which knows no --input")
    refused(module(chat.main, monkeypatch, pretrained), "is a pretraining run and follows no instructions")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_does_not_go_on_with_a_text_is_refused_by_all_that_would_ask_it_to(hiding, finetune_command, tmp_path,
                                                                                monkeypatch, name):
    folder, _ = hiding[name]
    said = f"{folder}: holds an {OBJECTIVES[name]}, which does not go on with a text; give a run with model.architecture"
    refused(module(generate.main, monkeypatch, folder, "Mira has"), said)
    refused(module(chat.main, monkeypatch, folder), said)
    refused(tune(finetune_command, tmp_path / "run", f"base.run={folder}"), said)
    assert is_no_run(tmp_path / "run")


def test_chat_answers_line_by_line_and_a_fault_is_not_the_end(tuned, monkeypatch):
    lines = ["/help", "/show", "/set temperature=0.5", "/show", "/set warmth=1", "a " * 300, "/input Mira",
             "How many?", "/quit", "never"]
    outcome = module(chat.main, monkeypatch, tuned, "--max-new-tokens", "3", stdin="\n".join(lines) + "\n")
    assert outcome.code == 0
    said = outcome.err.splitlines()
    assert len(said) == 2 and "/set warmth: unknown" in said[0] and "the prompt has" in said[1]
    assert "temperature=0.0" in outcome.out and "temperature=0.5" in outcome.out and "/input TEXT" in outcome.out
    answer = module(generate.main, monkeypatch, tuned, "How many?", "--input", "Mira", "--max-new-tokens", "3",
                    "--temperature", "0.5")
    assert outcome.out.endswith(answer.out)  # the same prompt as generate's
    assert module(chat.main, monkeypatch, tuned, stdin="").code == 0  # the end of the input leaves, too


def test_the_test_answers_are_kept_and_marked(tuned):
    records = [json.loads(line) for line in (tuned / "test_answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(r["instruction"], r["output"]) for r in records] == [(r["instruction"], r["output"])
                                                                  for r in alpaca_rows(6, seed=1)]
    assert all(r["right"] == (r["answer"] == r["output"]) for r in records)


def test_a_run_folder_holds_what_the_design_says(pretrained, tuned):
    for folder in (pretrained, tuned):
        assert {"config.toml", "tokenizer.model", "metrics.jsonl", "tensorboard",
                "checkpoints"} <= set(os.listdir(folder))
        steps = [json.loads(line)["step"]
                 for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        assert steps == list(range(7))
    one, other = (config.load(form, folder / "config.toml") for form, folder in
                  ((config.PretrainConfig, pretrained), (config.FinetuneConfig, tuned)))
    assert one.model.vocab_size == other.model.vocab_size == Tokenizer.load(pretrained / "tokenizer.model").vocab_size
