"""A run killed at any moment and started again equals the run that was left alone, to the bit."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from running import in_process, own_process

import finetune
import train
from minialpaca import trainer
from minialpaca.storage import checkpoint

# Runs a script and dies by SIGKILL: at the `number`-th line of the log, or at the `number`-th file synced.
DYING = """
import os, signal, sys, time
script, moment, number, *arguments = sys.argv[1:]
from minialpaca import log
from minialpaca.storage import checkpoint
import importlib
main = importlib.import_module(script).main

def dying(real, left=[int(number)]):
    def call(*args):
        result = real(*args)
        left[0] -= 1
        if left[0] == 0:
            time.sleep(0.5 * (moment == "log"))  # on a busy machine, too, what is saved beside the steps is there by then
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

owner, name = {"log": (log.RunLog, "metrics"), "sync": (os, "fsync"), "point": (checkpoint, "point")}[moment]
setattr(owner, name, dying(getattr(owner, name)))
main(arguments)
"""

CHANGES = ["train.steps=60", "train.accumulation=2", "train.batch_size=2", "train.eval_every=20", "train.save_every=7",
           "train.eval_batches=2"]


def metrics(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in record.items() if key != "tokens_per_s"} for record in records]


def curves(folder):
    """TensorBoard's points as its reader shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)]
            for tag in events.Tags()["scalars"] if tag != "tokens_per_s"}


def assert_equal_runs(one: Path, other: Path, steps: int = 60):
    assert metrics(one) == metrics(other) and [r["step"] for r in metrics(one)] == list(range(steps + 1))
    for name in ("last", "best"):
        a, b = checkpoint.find(one, name), checkpoint.find(other, name)
        assert a.name == b.name and checkpoint.read_state(a) == checkpoint.read_state(b)
        assert_equal(checkpoint.read_tensors(a, "model"), checkpoint.read_tensors(b, "model"))
        assert_equal(checkpoint.read_tensors(a, "optimizer"), checkpoint.read_tensors(b, "optimizer"))
    assert sorted(p.name for p in (one / "checkpoints").iterdir()) == sorted(p.name
                                                                             for p in (other / "checkpoints").iterdir())


def assert_equal(a, b):
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_equal(x, y)
    else:
        assert a == b


@pytest.fixture(scope="module")
def commands(pretrain_command, finetune_command):
    return {"train": (train.main, [*pretrain_command, *CHANGES, "model.dropout=0.2"]),
            "finetune": (finetune.main, [*finetune_command, *CHANGES, "base.dropout=0.2"])}


@pytest.fixture(scope="module")
def straight(commands, tmp_path_factory):
    """Both runs left alone."""
    folders = {}
    for name, (main, arguments) in commands.items():
        folders[name] = tmp_path_factory.mktemp("straight") / name
        outcome = in_process(main, [*arguments, f"run.dir={folders[name]}"])
        assert outcome.code == 0, outcome.err
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("script, moment, number, at", [
    ("train", "log", 34, 28),        # after step 33 was logged; the last checkpoint is of step 28
    ("train", "log", 29, 21),        # step 28 is logged, and its checkpoint not yet written
    ("train", "log", 5, 0),          # only what was there before the first step is saved
    ("train", "point", 5, 14),       # step 20 is the new best and `best` points at it, `last` not yet
    ("finetune", "log", 34, 28),
    ("finetune", "sync", 50, None),  # in the middle of writing a checkpoint
])
def test_a_killed_run_started_again_equals_the_one_left_alone(straight, commands, tmp_path, script, moment, number, at):
    main, arguments = commands[script]
    arguments = [*arguments, f"run.dir={tmp_path / 'run'}"]
    done = own_process(DYING, [script, moment, str(number), *arguments])
    assert done.returncode == -9, done.stderr
    before = checkpoint.read_state(checkpoint.find(tmp_path / "run"))["step"]
    assert 0 < before < 60 if at is None else before in (at, max(0, at - 7))  # one that was being written beside is lost
    shown = [step for step, _ in curves(tmp_path / "run")["loss"]]
    assert shown[:before] == list(range(1, before + 1))  # a checkpoint never knows more than the curves
    while int(time.time()) <= max(int(f.name.split(".")[3]) for f in (tmp_path / "run" / "tensorboard").iterdir()):
        time.sleep(0.05)  # TensorBoard orders event files by the second
    outcome = in_process(main, arguments)
    assert outcome.code == 0 and f"step {before} of 60, going on" in outcome.out, outcome.err
    assert_equal_runs(straight[script], tmp_path / "run")
    assert curves(straight[script]) == curves(tmp_path / "run")  # no point twice, none missing
    assert curves(tmp_path / "run") == curves(straight[script])
    again = in_process(main, arguments)  # and once more: there is nothing left to do
    assert again.code == 0 and "step 60 of 60, finished" in again.out
    assert_equal_runs(straight[script], tmp_path / "run")


def test_a_run_killed_before_its_first_checkpoint_starts_over(straight, commands, tmp_path):
    main, arguments = commands["train"]
    folder = tmp_path / "run"
    shutil.copytree(straight["train"], folder)
    shutil.rmtree(folder / "checkpoints")
    shutil.rmtree(folder / "tensorboard")
    (folder / "checkpoints" / ".writing-step-000000").mkdir(parents=True)
    assert in_process(main, [*arguments, f"run.dir={folder}"]).code == 0
    assert_equal_runs(straight["train"], folder)
    assert metrics(folder)[0].keys() == {"step", "val_loss"}


class Stop(Exception):
    pass


@pytest.mark.parametrize("name", ["masked", "span"])
def test_a_run_on_hidden_tokens_that_was_stopped_equals_the_one_left_alone(objective_command, tmp_path, monkeypatch, name):
    """What is hidden, what is dropped and the two passes of R-Drop are all functions of the step."""
    arguments = [*objective_command[name], "train.steps=12", "train.accumulation=2", "train.batch_size=2", "train.eval_every=4",
                 "train.save_every=3", "model.dropout=0.2", "loss.r_drop=1", "loss.label_smoothing=0.1", "loss.l2=1e-4"]
    one, other = tmp_path / "one", tmp_path / "other"
    assert in_process(train.main, [*arguments, f"run.dir={one}"]).code == 0
    take = trainer.Trainer.take_step

    def stopping(run):
        if run.state["step"] == 7:
            raise Stop
        return take(run)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(trainer.Trainer, "take_step", stopping)
        in_process(train.main, [*arguments, f"run.dir={other}"])
    torch.manual_seed(99)
    outcome = in_process(train.main, [*arguments, f"run.dir={other}"])
    assert outcome.code == 0 and "step 6 of 12, going on" in outcome.out, outcome.err
    assert_equal_runs(one, other, steps=12)
    assert {"loss", "l2"} <= metrics(one)[-1].keys()
