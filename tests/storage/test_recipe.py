"""What may change when a run is continued, and what is recorded of it."""

import json

import pytest
import torch
from running import in_process, json_lines, refused

import finetune
import train
from minialpaca import config, parallel, run
from minialpaca.storage import checkpoint, recipe
from minialpaca.trainer import Trainer


class Stop(Exception):
    pass


def stopped_at(monkeypatch, step, main, arguments):
    """Dies before the step after `step`."""
    take = Trainer.take_step

    def stopping(trainer):
        if trainer.state["step"] == step:
            raise Stop
        return take(trainer)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Trainer, "take_step", stopping)
        in_process(main, arguments)


def windows_of(monkeypatch, main, arguments):
    """Which windows each step took, and the outcome."""
    from minialpaca.tasks.pretrain import CorpusTask
    taken, batch, take = {}, CorpusTask.batch, Trainer._micro_batches

    def micro(trainer, step):
        taken[step] = []
        monkeypatch.setattr(CorpusTask, "batch", lambda task, n: (taken[step].append((n * task.batch_size, task.batch_size)), batch(task, n))[1])
        return take(trainer, step)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_micro_batches", micro)
        outcome = in_process(main, arguments)
    return {step: [i for first, n in found for i in range(first, first + n)] for step, found in taken.items()}, outcome


@pytest.fixture
def begun(pretrain_command, tmp_path, monkeypatch):
    """A run with micro-batches of 4, two a step, stopped after step 4 of 8."""
    command = [*pretrain_command, f"run.dir={tmp_path / 'run'}", "train.steps=8", "train.save_every=1", "train.eval_batches=0"]
    stopped_at(monkeypatch, 4, train.main, [*command, "train.batch_size=4", "train.accumulation=2"])
    return tmp_path / "run", command


@pytest.mark.parametrize("size, times", [(8, 1), (2, 4)])
def test_as_many_examples_a_step_may_be_split_otherwise_and_it_is_recorded(begun, tmp_path, monkeypatch, size, times):
    folder, command = begun
    straight, _ = windows_of(monkeypatch, train.main, [*command, f"run.dir={tmp_path / 'other'}", "train.batch_size=4", "train.accumulation=2"])
    again = [*command, f"train.batch_size={size}", f"train.accumulation={times}"]
    taken, outcome = windows_of(monkeypatch, train.main, again)
    assert outcome.code == 0 and "step 4 of 8, going on" in outcome.out, outcome.err
    assert taken == {step: straight[step] for step in range(4, 8)}
    change = {"step": 4, "changed": [f"train.batch_size: 4 → {size}", f"train.accumulation: 2 → {times}"],
              "note": "the same windows in the same steps; dropout and the order of sums are others"}
    assert [r for r in json_lines(folder / "metrics.jsonl") if "changed" in r] == [change]
    state = checkpoint.read_state(checkpoint.find(folder))
    assert state["changes"] == [change] and state["recipe"]["train.batch_size"] == size and state["recipe"]["processes"] == 1
    assert run.settings_of(folder).train.batch_size == size
    weights = [checkpoint.read_tensors(checkpoint.find(f), "model") for f in (folder, tmp_path / "other")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-4)
    assert in_process(train.main, again).code == 0  # and nothing new is recorded
    assert len(json_lines(folder / "metrics.jsonl")) == 10


@pytest.mark.parametrize("size, times", [(8, 1), (1, 8)])
def test_a_run_by_epochs_is_as_long_as_it_began_however_it_is_split(pretrain_command, tmp_path, monkeypatch, size, times):
    """An epoch's last batch is smaller than the others, and how much smaller depends on them."""
    command = [*pretrain_command, f"run.dir={tmp_path / 'run'}", "train.steps=0", "train.epochs=0.7", "train.save_every=1", "train.eval_batches=1", "samples.count=0"]
    whole = in_process(train.main, [*command, f"run.dir={tmp_path / 'whole'}", "train.batch_size=4", "train.accumulation=2"])
    assert whole.code == 0, whole.err
    stopped_at(monkeypatch, 2, train.main, [*command, "train.batch_size=4", "train.accumulation=2"])
    for changes in ([f"train.batch_size={size}", f"train.accumulation={times}"],) * 2:  # and the second time nothing has changed
        assert in_process(train.main, [*command, *changes]).code == 0
        assert [r["lr"] for r in json_lines(tmp_path / "run" / "metrics.jsonl") if "lr" in r] == pytest.approx(
            [r["lr"] for r in json_lines(tmp_path / "whole" / "metrics.jsonl") if "lr" in r])


def test_where_last_is_lost_a_change_is_still_one_of_the_newest_checkpoint(begun):
    folder, command = begun
    (folder / "checkpoints" / "last").unlink()
    assert in_process(train.main, [*command, "train.batch_size=8", "train.accumulation=1"]).code == 0  # a split, which nobody has to ask for
    assert [change["step"] for change in checkpoint.read_state(checkpoint.find(folder))["changes"]] == [4]


def test_other_data_are_refused_before_the_tokens_are_written_over(pretrain_command, sources, tmp_path, monkeypatch):
    folder, text = tmp_path / "run", tmp_path / "story.txt"
    text.write_bytes((sources / "story.txt").read_bytes())
    command = [*pretrain_command, f"data.source={text}", f"run.dir={folder}", "train.save_every=1"]
    stopped_at(monkeypatch, 2, train.main, command)
    before = {p: p.read_bytes() for p in (folder / "tokens").rglob("*")}
    (folder / "tokens" / ".anew-left").mkdir()
    text.write_bytes(text.read_bytes() + b"One more line.\n")
    refused(in_process(train.main, command), "the data are not those that this run began with; put them back")
    assert before == {p: p.read_bytes() for p in (folder / "tokens").rglob("*")}
    text.write_bytes((sources / "story.txt").read_bytes())  # the same, of another date
    outcome = in_process(train.main, command)
    assert outcome.code == 0 and "step 2 of 6, going on" in outcome.out, outcome.err


def test_a_batch_that_is_not_full_is_one_more():
    begun = recipe.Recipe(examples=13)
    assert [begun.batches_as_begun(config.TrainConfig(batch_size=size)) for size in (1, 4, 13, 20)] == [13, 4, 1, 1]
    assert begun.batches_as_begun(config.TrainConfig(batch_size=4, steps=7)) == 0


def test_what_was_changed_on_a_finished_run_is_kept(begun):
    folder, command = begun
    command = [*command, "train.batch_size=4", "train.accumulation=2"]
    assert in_process(train.main, command).code == 0
    assert in_process(train.main, [*command, "train.steps=6", "run.allow_change=true"]).code == 0
    assert run.settings_of(folder).train.steps == 6 == checkpoint.read_state(checkpoint.find(folder))["recipe"]["train.steps"]
    assert in_process(train.main, [*command, "train.steps=6"]).code == 0
    assert len([r for r in json_lines(folder / "metrics.jsonl") if "changed" in r]) == 1


def test_killed_before_its_first_save_a_change_is_recorded_once(begun, monkeypatch):
    folder, command = begun
    again = [*command, "train.batch_size=8", "train.accumulation=1"]
    stopped_at(monkeypatch, 4, train.main, again)
    assert "changes" in checkpoint.read_state(checkpoint.find(folder)) and run.settings_of(folder).train.batch_size == 8
    assert in_process(train.main, again).code == 0
    assert len([r for r in json_lines(folder / "metrics.jsonl") if "changed" in r]) == 1
    assert len(checkpoint.read_state(checkpoint.find(folder))["changes"]) == 1


def test_the_number_of_processes_counts(begun, monkeypatch):
    folder, command = begun
    monkeypatch.setattr(parallel, "size", lambda: 2)
    begun_with = run.settings_of(folder)
    halved = config.load(type(begun_with), folder / "config.toml", ["train.accumulation=1"])
    found = recipe.continued(folder, begun_with, halved)
    assert found.now["note"].startswith("the same micro-batches in the same steps")
    assert found.now["changed"] == ["train.accumulation: 2 → 1", "processes: 1 → 2"]
    with pytest.raises(run.UserError, match=r"another recipe \(processes: 1 → 2; keep train.batch_size × train.accumulation × processes"):
        recipe.continued(folder, begun_with, begun_with)


@pytest.mark.parametrize("changes, parts", [
    (["train.batch_size=4", "train.accumulation=1"], ["train.accumulation: 2 → 1", "keep train.batch_size ×", "run.allow_change"]),
    (["train.batch_size=8", "train.accumulation=1", "optim.lr=0.5"], ["optim.lr: 0.01 → 0.5", "set run.allow_change=true"]),
    (["train.batch_size=4", "train.accumulation=2", "model.d_ff=48", "run.allow_change=true"], ["model.d_ff: 24 → 48", "cannot change"]),
    (["train.batch_size=4", "train.accumulation=2", "run.seed=7", "run.allow_change=true"], ["run.seed: 0 → 7", "cannot change"]),
])
def test_anything_else_is_refused_with_the_difference_and_nothing_is_touched(begun, changes, parts):
    folder, command = begun
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    refused(in_process(train.main, [*command, *changes]), *parts)
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_texts_without_labels_are_data_and_cannot_change():
    with pytest.raises(run.UserError, match=r"\(adversarial.unlabelled: a → b; these make the weights or the data what they are"):
        recipe._refuse("run", {"adversarial.epsilon": "adversarial.epsilon: 1 → 2", "adversarial.unlabelled": "adversarial.unlabelled: a → b"}, True)
    recipe._refuse("run", {"adversarial.epsilon": "adversarial.epsilon: 1 → 2"}, True)


def test_what_was_asked_for_goes_on_and_is_recorded(begun):
    folder, command = begun
    asked = [*command, "train.batch_size=4", "train.accumulation=1", "optim.lr=0.002", "run.allow_change=true"]
    outcome = in_process(train.main, asked)
    assert outcome.code == 0 and "note: from step 4 on: optim.lr: 0.01 → 0.002; train.accumulation: 2 → 1 (asked for" in outcome.out, outcome.err
    change, = checkpoint.read_state(checkpoint.find(folder))["changes"]
    assert "the data go on elsewhere" in change["note"] and change["step"] == 4
    assert in_process(train.main, [*asked, "run.allow_change=false"]).code == 0


def test_in_tuning_batches_of_similar_length_are_drawn_anew_and_the_note_says_so(finetune_command, tmp_path, monkeypatch):
    command = [*finetune_command, f"run.dir={tmp_path / 'run'}", "train.save_every=1"]
    stopped_at(monkeypatch, 3, finetune.main, command)
    outcome = in_process(finetune.main, [*command, "train.batch_size=2", "train.accumulation=2"])
    assert outcome.code == 0 and "batches are of similar length" in outcome.out, outcome.err
    assert json.loads((checkpoint.find(tmp_path / "run") / "state.json").read_text())["changes"][0]["step"] == 3
