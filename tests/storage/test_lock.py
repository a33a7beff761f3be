"""One process at a time trains in a folder, and nobody is kept out by one that is gone."""

import subprocess
import sys

import pytest
from running import ROOT, in_process, refused

import train
from minialpaca.errors import UserError
from minialpaca.storage import lock
from minialpaca.storage.place import LOCK

HOLD = """
import sys, time
from pathlib import Path
from minialpaca.storage import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path / "run"`."""
    (tmp_path / "run").mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(holder, pretrain_command, tmp_path):
    command = [*pretrain_command, f"run.dir={tmp_path / 'run'}", "train.steps=1"]
    refused(in_process(train.main, command), f"{tmp_path / 'run'}: another process is training in this folder")
    assert [p.name for p in (tmp_path / "run").iterdir()] == [LOCK]  # nothing of the other's is cleaned away
    holder.kill()
    holder.wait()
    assert in_process(train.main, command).code == 0


def test_the_lock_holds_for_the_whole_fit(pretrain_command, tmp_path, monkeypatch):
    seen = []
    fit = train.Trainer.fit

    def watched(trainer):
        with pytest.raises(UserError, match="another process is training"), lock.held(trainer.folder):
            pass
        seen.append(trainer.folder)
        return fit(trainer)

    monkeypatch.setattr(train.Trainer, "fit", watched)
    assert in_process(train.main, [*pretrain_command, f"run.dir={tmp_path}", "train.steps=1"]).code == 0
    assert seen == [tmp_path]
    with lock.held(tmp_path):  # and is free afterwards
        pass


def test_a_lock_on_a_file_that_was_removed_keeps_nobody_out(tmp_path):
    with open(tmp_path / LOCK, "a") as file:
        (tmp_path / LOCK).unlink()
        assert not lock._take(file, tmp_path / LOCK)
        (tmp_path / LOCK).write_text("")
        assert not lock._take(file, tmp_path / LOCK)


def test_without_such_locks_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    with lock.held(tmp_path), lock.held(tmp_path):
        assert list(tmp_path.iterdir()) == []
