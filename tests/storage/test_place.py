"""A place where no run can be written is refused before anything is read or written, by training and by check in one line."""

import os

import pytest
from commands import pretrain
from running import module, refused

from minialpaca import check
from minialpaca.errors import UserError
from minialpaca.storage import place
from minialpaca.storage.place import FILES, FOLDERS, refuse_unwritable


def refused_alike(command, run, monkeypatch, *parts):
    """By training and by check, in one line."""
    said = refused(pretrain(command, run), *parts)
    assert said == refused(module(check.main, monkeypatch, *command, f"run.dir={run}"))


def test_what_is_not_there_yet_or_a_run_folder_is_fit(pretrained, tmp_path):
    for folder in (tmp_path / "a" / "b", tmp_path, pretrained):
        refuse_unwritable(folder, "mend it")
    (tmp_path / "link").symlink_to(tmp_path)
    refuse_unwritable(tmp_path / "link" / "run", "mend it")
    assert [p.name for p in tmp_path.iterdir()] == ["link"]


def test_a_file_a_dead_link_and_a_long_name_are_no_place(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name, why in (("file", "file is no folder"), ("file/run", "file is no folder"), ("x" * 300, "file name too long"),
                      ("link", f"link is a link to {tmp_path / 'gone'}, which is not there"), ("link/run", "which is not there")):
        with pytest.raises(UserError) as raised:
            refuse_unwritable(tmp_path / name, "mend it")
        assert str(raised.value).startswith(f"{tmp_path / name}: cannot be a run folder: ") and f"{why}; mend it" in str(raised.value)


def test_read_only_is_told_of_the_folder_that_is(tmp_path, monkeypatch):
    (tmp_path / place.BOARD).mkdir()
    for closed, asked in ((tmp_path, tmp_path), (tmp_path, tmp_path / "new"), (tmp_path / place.BOARD, tmp_path)):
        monkeypatch.setattr(os, "access", lambda path, mode, closed=closed: path != closed)
        with pytest.raises(UserError, match=f"cannot be written: {closed} is read-only for you; mend it"):
            refuse_unwritable(asked, "mend it")


@pytest.mark.parametrize("name", FILES + FOLDERS)
def test_a_part_of_the_other_kind_is_refused_alike_by_training_and_by_check(name, pretrain_command, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    (run / name).mkdir() if name in FILES else (run / name).write_text("mine")
    refused_alike(pretrain_command, run, monkeypatch, f"{run / name}: is not a {'file' if name in FILES else 'folder'}", "move it away")
    assert [p.name for p in run.iterdir()] == [name]


@pytest.mark.parametrize("name", [place.TOKENIZER, place.LABELS, place.METRICS, place.CHECKPOINTS, place.TOKENS, place.PROBE, place.METRICS + place.PART])
def test_what_is_of_no_run_is_not_written_over(name, pretrain_command, tmp_path, monkeypatch):
    """Where a lock's file stands, it is what a dead run left."""
    run = tmp_path / "run"
    run.mkdir()
    (run / name).mkdir() if name in FOLDERS else (run / name).write_text("precious")
    refused_alike(pretrain_command, run, monkeypatch, f"{run / name}: is there already and of no run", "move it away")
    assert [p.name for p in run.iterdir()] == [name] and (name in FOLDERS or (run / name).read_text() == "precious")
    (run / place.LOCK).touch()
    refuse_unwritable(run, "mend it")


def test_no_run_goes_among_the_checkpoints_of_another(pretrained, tmp_path):
    (tmp_path / "link").symlink_to(pretrained)
    for inside in (pretrained / "checkpoints" / "step-000015", pretrained / "tokens", tmp_path / "link" / "tensorboard" / "a"):
        with pytest.raises(UserError, match=f"lies in {pretrained}, which is a run"):
            refuse_unwritable(inside, "mend it")
    refuse_unwritable(pretrained / "tuned", "mend it")
