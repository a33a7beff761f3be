"""Between steps: the log, what is best, patience, checkpoints, and a stop that loses nothing."""

import dataclasses
import math
import shutil

import pytest
import torch
from ragged import MODEL, PLAIN, Ragged, make, metrics, ragged, scripted

from minialpaca import trainer
from minialpaca.config import ModelConfig, OptimConfig
from minialpaca.errors import Stopped, UserError
from minialpaca.model import Transformer
from minialpaca.optim import learning_rate
from minialpaca.storage import checkpoint


def test_the_log_holds_the_schedule_and_each_step_once(tmp_path):
    optim = OptimConfig(lr=1e-3, schedule="linear", min_lr_ratio=0.0, warmup_steps=2)
    run = make(tmp_path, Ragged(ragged(8), 2, ragged(2)), optim, steps=5, eval_every=2)
    run.fit()
    records = metrics(tmp_path)
    assert [r["step"] for r in records] == [0, 1, 2, 3, 4, 5]
    assert [r["lr"] for r in records[1:]] == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4, 0.0])
    assert [r["lr"] for r in records[1:]] == [learning_rate(optim, s, 5) for s in range(5)]
    assert [r["step"] for r in records if "val_loss" in r] == [0, 2, 4,
                                                               5]  # before the first, every second, after the last
    assert set(records[0]) == {"step", "val_loss"}
    assert all(set(r) - {"val_loss"} == {"step", "loss", "lr", "grad_norm", "tokens_per_s"} for r in records[1:])


def test_best_is_the_lowest_and_last_is_the_last(tmp_path, monkeypatch):
    scripted(monkeypatch, [5.0, 4.0, 4.5, 3.0, 3.0, 3.5])
    run = make(tmp_path, Ragged(ragged(8), 2), steps=5, eval_every=1)
    state = run.fit()
    assert checkpoint.find(tmp_path, "best").name == "step-000003" and checkpoint.find(tmp_path).name == "step-000005"
    assert state["best"] == 3.0 and not state["stopped_early"] and state["evaluations_without_gain"] == 2
    assert checkpoint.read_state(checkpoint.find(tmp_path))["best"] == 3.0
    best = checkpoint.read_tensors(checkpoint.find(tmp_path, "best"), "model")
    assert any(not torch.equal(best[name], p) for name, p in run.model.state_dict().items())


@pytest.mark.parametrize("patience, losses, last", [
    (2, [5, 4, 4.5, 3, 3, 3.5, 9, 9], 5), (1, [5, 4, 4.5, 3], 2), (3, [5, 4, 4.5, 3, 3, 3.5, 2, 1, 1], 8),
    (0, [1, 2, 3, 4, 5, 6, 7, 8, 9], 8),
])
def test_patience_counts_evaluations_in_a_row_without_a_better_loss(tmp_path, monkeypatch, capsys, patience, losses,
                                                                    last):
    scripted(monkeypatch, losses)
    run = make(tmp_path, Ragged(ragged(8), 2), steps=8, eval_every=1, patience=patience)
    state = run.fit()
    assert state["step"] == last and state["stopped_early"] == (last < 8)
    assert ("stopped early" in capsys.readouterr().out) == (last < 8)
    again = make(tmp_path, Ragged(ragged(8), 2), steps=8, eval_every=1, patience=patience)
    assert again.fit() == state  # and a stopped run stays stopped
    assert f"step {last} of 8, finished" in capsys.readouterr().out


class Marked(Ragged):
    """Measures accuracy, too, from a script."""

    measures = ("val_loss", "val_accuracy")

    def evaluate(self, model, device):
        loss, accuracy = next(self.script)
        return {"val_loss": loss, "val_accuracy": accuracy}


def marked(script):
    task = Marked(ragged(8), 2)
    task.script = iter(script)
    return task


# The loss falls from beginning to end; accuracy has its best in the middle, and once more the same.
SCRIPT = [(9, 0.1), (8, 0.5), (7, 0.4), (6, 0.7), (5, 0.7), (4, 0.6), (3, 0.2), (2, 0.3), (1, 0.6)]


@pytest.mark.parametrize(("best_by", "best", "step"), [("val_accuracy", 0.7, 3), ("val_loss", 1, 8)])
def test_best_is_the_highest_where_more_is_better(tmp_path, capsys, best_by, best, step):
    state = make(tmp_path, marked(SCRIPT), steps=8, eval_every=1, best_by=best_by).fit()
    assert state["best"] == best and checkpoint.find(tmp_path, "best").name == f"step-{step:06}"
    assert checkpoint.find(tmp_path).name == "step-000008" and state["step"] == 8
    assert [(r["val_loss"], r["val_accuracy"]) for r in metrics(tmp_path)] == SCRIPT
    shown = capsys.readouterr().out
    assert "validation loss 6.0000, accuracy 0.7000 (best)" in shown and "loss 5.0000, accuracy 0.7000" in shown


@pytest.mark.parametrize(("best_by", "patience", "last"), [("val_accuracy", 2, 5), ("val_accuracy", 1, 2), ("val_loss", 1, 8)])
def test_patience_counts_what_best_is_chosen_by(tmp_path, capsys, best_by, patience, last):
    state = make(tmp_path, marked(SCRIPT), steps=8, eval_every=1, best_by=best_by, patience=patience).fit()
    assert state["step"] == last and state["stopped_early"] == (last < 8)
    assert ("evaluations without a better val_accuracy" in capsys.readouterr().out) == (last < 8)


def test_continued_by_another_measure_the_old_one_is_no_best(tmp_path):
    """0.7 was an accuracy; the losses that come after it are compared with each other."""
    make(tmp_path, marked(SCRIPT), steps=4, eval_every=1, best_by="val_accuracy").fit()
    assert checkpoint.find(tmp_path, "best").name == "step-000003"
    state = make(tmp_path, marked([(5, 0), (3, 0), (4, 0)]), steps=7, eval_every=1, best_by="val_loss").fit()
    assert state["best"] == 3 and checkpoint.find(tmp_path, "best").name == "step-000006"
    assert state["evaluations_without_gain"] == 1


@pytest.mark.parametrize(("patience", "last"), [(0, 8), (3, 6), (2, 5)])
def test_stopped_early_it_goes_on_with_another_patience(tmp_path, patience, last):
    """The best is that of step 3; step 5 is the second that is no better."""
    assert make(tmp_path, marked(SCRIPT), steps=8, eval_every=1, best_by="val_accuracy", patience=2).fit()["step"] == 5
    state = make(tmp_path, marked(SCRIPT[6:]), steps=8, eval_every=1, best_by="val_accuracy", patience=patience).fit()
    assert state["step"] == last and state["stopped_early"] == (patience > 0)


@pytest.mark.parametrize("changed", [{"weight_decay": 0.5}, {"beta1": 0.5}, {"beta2": 0.5}, {"adam_eps": 1e-2}], ids=lambda c: next(iter(c)))
def test_continued_with_another_setting_the_optimizer_uses_it(tmp_path, changed):
    """As if the averages had been put into an optimizer of that setting."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        make(folder, Ragged(ragged(8), 2, ragged(2)), steps=2, save_every=1).fit()
    asked = make(one, Ragged(ragged(8), 2, ragged(2)), dataclasses.replace(PLAIN, **changed), steps=4, save_every=1)
    asked.fit()
    by_hand = make(two, Ragged(ragged(8), 2, ragged(2)), steps=4, save_every=1)
    by_hand.keeper.resume(by_hand.state)
    key = {"adam_eps": "eps"}.get(next(iter(changed)), next(iter(changed)))
    value = next(iter(changed.values()))
    for group, decays in zip(by_hand.optimizer.param_groups, [g["weight_decay"] for g in asked.optimizer.param_groups]):
        group |= {"betas": (value, 0.95)} if key == "beta1" else {"betas": (0.9, value)} if key == "beta2" else \
            {"weight_decay": decays} if key == "weight_decay" else {key: value}
    for _ in range(2):
        by_hand.take_step()
    for mine, theirs in zip(asked.model.parameters(), by_hand.model.parameters()):
        assert torch.equal(mine, theirs)
    straight = make(tmp_path / "straight", Ragged(ragged(8), 2, ragged(2)), steps=4, save_every=1)
    straight.fit()
    assert any(not torch.equal(mine, theirs) for mine, theirs in zip(asked.model.parameters(), straight.model.parameters()))


def test_asked_to_stop_in_the_last_step_it_stops_behind_it(tmp_path, monkeypatch):
    """Evaluated and saved, and not gone on with what comes after the training."""
    trainer = make(tmp_path, Ragged(ragged(8), 2, ragged(2)), steps=2)
    monkeypatch.setattr(trainer, "_asked_to_stop", lambda: trainer.state["step"] == 2)
    with pytest.raises(Stopped, match="stopped after step 2 of 2, which is saved; the same command shows its results"):
        trainer.fit()
    assert checkpoint.find(tmp_path).name == "step-000002" and "val_loss" in metrics(tmp_path)[-1]


def test_asked_to_stop_while_the_last_evaluation_goes_on_it_stops_behind_it(tmp_path):
    trainer = make(tmp_path, Ragged(ragged(8), 2, ragged(2)), steps=2)
    evaluate = trainer._evaluate

    def asked():
        trainer.stop.asked = "SIGTERM" if trainer.state["step"] == 2 else ""
        return evaluate()

    trainer._evaluate = asked
    with pytest.raises(Stopped, match="stopped after step 2 of 2"):
        trainer.fit()
    assert checkpoint.find(tmp_path).name == "step-000002"


def test_what_is_no_number_is_never_best(tmp_path):
    script = [(1.0, accuracy) for accuracy in (math.nan, 0.2, math.nan, 0.3)]
    state = make(tmp_path, marked(script), steps=3, eval_every=1, best_by="val_accuracy", patience=2).fit()
    assert state["best"] == 0.3 and checkpoint.find(tmp_path, "best").name == "step-000003"


@pytest.mark.parametrize(("task", "best_by", "measured"), [
    (lambda: Ragged(ragged(8), 2), "val_accuracy", "val_loss"), (lambda: marked([]), "val_macro_f1", "val_loss, val_accuracy"),
])
def test_what_a_task_does_not_measure_cannot_choose_the_best(tmp_path, task, best_by, measured):
    with pytest.raises(UserError, match=rf"^train.best_by = '{best_by}': this task measures {measured}$"):
        make(tmp_path, task(), steps=1, best_by=best_by)


def test_checkpoints_come_at_evaluations_and_every_so_many_steps(tmp_path, monkeypatch):
    saved = []
    run = make(tmp_path, Ragged(ragged(8), 2, ragged(2)), steps=9, eval_every=4, save_every=3)
    save = run.keeper.save
    monkeypatch.setattr(run.keeper, "save", lambda state, improved: (saved.append(state["step"]), save(state, improved)))
    run.fit()
    assert saved == [0, 3, 4, 6, 8, 9]


def test_the_curves_are_on_disk_before_a_checkpoint_knows_of_them(tmp_path, monkeypatch):
    events = []
    flush, save = trainer.RunLog.flush, checkpoint.save
    monkeypatch.setattr(trainer.RunLog, "flush", lambda log: (events.append("flush"), flush(log)))
    monkeypatch.setattr(checkpoint, "save", lambda *args, **more: (events.append("save"), save(*args, **more)))
    make(tmp_path, Ragged(ragged(8), 2, ragged(2)), steps=2, eval_every=1).fit()
    assert events == ["flush", "save"] * 3


def test_the_observer_looks_at_every_evaluation_and_changes_nothing(tmp_path):
    seen = []
    make(tmp_path / "a", Ragged(ragged(8), 2, ragged(2)), steps=4, eval_every=2).fit()
    make(tmp_path / "b", Ragged(ragged(8), 2, ragged(2)), steps=4, eval_every=2,
         observe=lambda model, log, step: (seen.append(step), torch.manual_seed(step), torch.rand(3))).fit()
    assert seen == [0, 2, 4]
    a, b = ({**r, "tokens_per_s": 0} for r in metrics(tmp_path / "a")), ({**r, "tokens_per_s": 0}
                                                                         for r in metrics(tmp_path / "b"))
    assert list(a) == list(b)


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 4, 5])
def test_a_stopped_run_with_dropout_goes_on_as_if_nothing_had_happened(tmp_path, stop_at):
    def run(folder, stop=None, jitter=0):
        torch.manual_seed(jitter)  # global state is another one each time
        model = Transformer(ModelConfig(**{**vars(MODEL), "dropout": 0.4}))
        optim = OptimConfig(lr=0.01, warmup_steps=3)
        one = make(folder, Ragged(ragged(20), 2, ragged(5, seed=1)), optim, model, steps=8, accumulation=2,
                   eval_every=3, save_every=2)
        if stop is not None:
            take = one.take_step

            def stopping():
                if one.state["step"] == stop:
                    raise Stop
                return take()

            one.take_step = stopping
        one.fit()
        return one

    straight = run(tmp_path / "straight")
    with pytest.raises(Stop):
        run(tmp_path / "stopped", stop_at, jitter=1)
    went_on = run(tmp_path / "stopped", jitter=2)
    assert all(torch.equal(p, q) for p, q in zip(straight.model.parameters(), went_on.model.parameters()))
    assert straight.state == went_on.state
    same = [[{k: v for k, v in r.items() if k != "tokens_per_s"} for r in metrics(tmp_path / f)]
            for f in ("straight", "stopped")]
    assert same[0] == same[1]


def fitted(folder, **changes):
    run = make(folder, Ragged(ragged(8), 2, ragged(2)), steps=4, eval_every=2, **changes)
    run.fit()
    return run


def test_a_run_whose_pointers_are_gone_goes_on_with_its_newest_checkpoint(tmp_path, capsys):
    first = fitted(tmp_path)
    for name in ("last", "best"):
        (tmp_path / "checkpoints" / name).unlink()
    capsys.readouterr()
    again = fitted(tmp_path)
    said = capsys.readouterr().out
    assert again.state == first.state and "last was missing; it points at step-000004 again" in said
    assert "step 4 of 4, finished" in said


def test_step_0_is_judged_anew_where_its_save_was_cut_short(tmp_path):
    """Killed with the folder of step 0 in place and no pointer yet."""
    straight = fitted(tmp_path / "straight", patience=3)
    run = make(tmp_path / "cut", Ragged(ragged(8), 2, ragged(2)), steps=4, eval_every=2, patience=3)
    run.take_step = lambda: (_ for _ in ()).throw(Stop)
    with pytest.raises(Stop):
        run.fit()
    for name in ("last", "best"):
        (tmp_path / "cut" / "checkpoints" / name).unlink()
    assert fitted(tmp_path / "cut", patience=3).state == straight.state
    assert checkpoint.find(tmp_path / "cut", "best").name == checkpoint.find(tmp_path / "straight", "best").name


def test_what_a_kill_after_the_last_save_left_goes_when_the_run_is_opened_again(tmp_path):
    fitted(tmp_path)
    orphan = tmp_path / "checkpoints" / "step-000001"
    shutil.copytree(checkpoint.find(tmp_path), orphan)
    fitted(tmp_path)
    assert not orphan.exists()


def test_a_checkpoint_of_another_vocabulary_shape_or_version_is_one_line(tmp_path):
    fitted(tmp_path)
    task = Ragged(ragged(8), 2, ragged(2))
    task.tokenizer_sha256 = "another"
    with pytest.raises(UserError, match="was trained with another tokenizer"):
        make(tmp_path, task, steps=4).fit()
    with pytest.raises(UserError, match="does not fit the model of its config.toml: .*size mismatch"):
        fitted(tmp_path, model=Transformer(ModelConfig(**{**vars(MODEL), "d_ff": 20})).double())
    place = checkpoint.find(tmp_path)
    tensors = {stem: checkpoint.read_tensors(place, stem) for stem in ("model", "optimizer")}
    checkpoint.save(tmp_path, 9, tensors, {"step": 9, "tokenizer": "no tokenizer"}, best=True)
    with pytest.raises(UserError, match="state.json: lacks .*; it is of another version"):
        fitted(tmp_path)
