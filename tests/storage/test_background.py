"""Saving beside the training: of one moment, one at a time, and never silently lost."""

import json
import threading
import time

import pytest
import torch
from ragged import Ragged, make, ragged

from minialpaca.errors import UserError
from minialpaca.storage import checkpoint, durable
from minialpaca.storage.background import Background, copied


def test_a_copy_is_of_one_moment_keeps_ties_and_is_filled_again():
    w = torch.randn(4, 3).t()
    state = {"model": {"embed": w, "head": w, "part": w[0]}, "optimizer": {"state": {0: {"m": torch.ones(2)}}, "l": [1, (w, "x")], "none": None}}
    first = copied(state)
    meant = w.clone()
    w.zero_()
    assert torch.equal(first["model"]["head"], meant) and torch.equal(first["model"]["part"], meant[0])
    assert first["model"]["embed"] is first["model"]["head"] is first["optimizer"]["l"][1][0]
    assert first["optimizer"]["l"][1][1] == "x" and first["optimizer"]["none"] is None
    again = copied(state, first)
    assert again["model"]["embed"] is first["model"]["embed"] and again["optimizer"]["state"][0]["m"] is first["optimizer"]["state"][0]["m"]
    assert not first["model"]["embed"].any()


def test_what_was_tied_and_no_longer_is_gets_memory_of_its_own():
    a, b = torch.ones(2), torch.zeros(2)
    tied = copied({"a": a, "b": a})
    apart = copied({"a": a, "b": b}, tied)
    assert apart["a"].tolist() == [1, 1] and apart["b"].tolist() == [0, 0]


def test_a_save_of_step_n_has_the_weights_of_step_n_though_training_goes_on(tmp_path, monkeypatch):
    """Each save waits until two more steps were taken, or training waits for it."""
    def run(folder):
        return make(folder, Ragged(ragged(12), 2, ragged(2)), steps=6, save_every=3, eval_every=100, keep=9)

    plain = run(tmp_path / "plain")
    plain.fit()
    late = run(tmp_path / "late")
    save, main, seen = checkpoint.save, threading.current_thread(), []

    def waiting(folder, step, *rest):
        assert threading.current_thread() is not main
        until = time.monotonic() + 10
        while late.state["step"] < min(step + 2, 6) and time.monotonic() < until:
            time.sleep(0.001)
        seen.append((step, late.state["step"]))
        return save(folder, step, *rest)

    monkeypatch.setattr(checkpoint, "save", waiting)
    late.fit()
    assert [step for step, _ in seen] == [0, 3, 6] and seen[1][1] >= 5
    for one in checkpoint.steps(tmp_path / "plain"):
        other = tmp_path / "late" / "checkpoints" / one.name
        files = [json.loads((place / "manifest.json").read_text())["files"] for place in (one, other)]
        assert all(files[0][name] == files[1][name] for name in ("model.pt", "optimizer.pt"))
        assert checkpoint.read_state(one) == checkpoint.read_state(other)


def test_what_a_save_raises_stops_the_run_at_a_step_to_come(tmp_path, monkeypatch):
    run = make(tmp_path, Ragged(ragged(12), 2, ragged(2)), steps=500, save_every=3, eval_every=1000)
    write = durable.Writer._hash_and_write

    def full(writer, piece):
        if "step-000003" in str(writer.path):
            raise OSError(28, "No space left on device")
        write(writer, piece)

    monkeypatch.setattr(durable.Writer, "_hash_and_write", full)
    with pytest.raises(UserError, match="step-000003: the checkpoint cannot be written: no space left on device"):
        run.fit()
    assert 3 <= run.state["step"] < 500 and checkpoint.find(tmp_path).name == "step-000000"


def test_the_last_save_is_waited_for_and_its_error_is_heard(tmp_path, monkeypatch):
    run = make(tmp_path, Ragged(ragged(12), 2, ragged(2)), steps=2, eval_every=1000)
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *a: (time.sleep(0.2), save(*a)))
    run.fit()
    assert checkpoint.find(tmp_path).name == "step-000002"
    monkeypatch.setattr(checkpoint, "save", lambda *a: (time.sleep(0.2), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        make(tmp_path / "other", Ragged(ragged(12), 2, ragged(2)), steps=2, eval_every=1000).fit()


def test_the_cost_is_said(tmp_path, capsys):
    make(tmp_path, Ragged(ragged(12), 2, ragged(2)), steps=2, eval_every=1000).fit()
    assert "saving: 2 checkpoints, 0." in capsys.readouterr().out


def test_left_by_an_error_it_finishes_and_left_by_ctrl_c_it_lets_go():
    for error, finished in ((ValueError, True), (KeyboardInterrupt, False)):
        done, saving = [], Background()

        def work(_, done=done, saving=saving):
            for _ in range(50):
                if saving.leaving.wait(0.01):
                    raise durable.Abandoned
            done.append(True)

        with pytest.raises(error), saving:
            saving.start({}, work)
            raise error
        assert bool(done) is finished and saving.thread is None
