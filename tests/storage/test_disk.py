"""The disk fills up at any moment of a save, or is too small from the start; and what dead runs left on it."""

import dataclasses
import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest
import torch
from running import in_process, refusal, refused
from test_checkpoint import folders, save, value_of
from ragged import MODEL, Ragged, make, ragged

import train
from minialpaca.errors import UserError
from minialpaca.model import Transformer
from minialpaca.storage import checkpoint, durable, space

OPERATIONS = ((durable.Writer, "_hash_and_write"), (os, "fsync"), (os, "replace"), (Path, "mkdir"))


def counted(patch, failing=lambda n: False):
    """Every operation that a full disk can refuse, numbered from 0; those that `failing` names say it is full."""
    count = []

    def watched(real):
        def call(*args, **kwargs):
            count.append(real.__name__)
            if failing(len(count) - 1):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)
        return call

    for owner, name in OPERATIONS:
        patch.setattr(owner, name, watched(getattr(owner, name)))
    return count


def operations_of(work):
    with pytest.MonkeyPatch.context() as patch:
        count = counted(patch)
        work()
    return list(count)


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("step", [1, 2], ids=["the step of last and best again", "a new step"])
def test_a_disk_full_at_any_write_sync_or_rename_leaves_a_whole_last_and_says_so(tmp_path, step, lasting):
    dry = tmp_path / "dry"
    save(dry, 1, best=True)
    done = operations_of(lambda: save(dry, step, best=True, value=5.0))
    assert {"_hash_and_write", "fsync", "replace", "mkdir"} == set(done) and len(done) > 30
    for number in range(len(done)):
        run = tmp_path / str(number)
        save(run, 1, best=True)
        with pytest.MonkeyPatch.context() as patch:
            counted(patch, (lambda n: n >= number) if lasting else (lambda n: n == number))
            message = refusal(lambda: save(run, step, best=True, value=5.0))
        assert f"step-{step:06d}: the checkpoint cannot be written: no space left on device; the one before is untouched" in message
        checkpoint.recover(run)
        assert not [f for f in folders(run) if f.startswith(".")], done[number]
        assert value_of(run, "last") in (1.0, 5.0) and value_of(run, "best") in (1.0, 5.0)
        assert step == 1 or value_of(run, "last") == 1.0 or value_of(run, "best") == 5.0
        save(run, 3, best=True)  # with room again it goes on
        assert value_of(run) == 3 and sorted(os.listdir(run / "checkpoints")) == ["best", "last", "step-000003"]


def test_a_kill_while_a_step_is_saved_again_loses_neither_last_nor_best(tmp_path):
    """Between the two renames the pointers name a folder that is not there; the next start puts it back."""
    class Killed(BaseException):
        pass

    save(tmp_path, 1, best=True)
    replace = os.replace

    def dying(a, b):
        if Path(a).name.startswith(checkpoint.TEMPORARY):
            raise Killed
        replace(a, b)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", dying)
        save(tmp_path, 1, best=True, value=5.0)
    assert not (tmp_path / "checkpoints" / "step-000001").exists()
    checkpoint.recover(tmp_path)
    assert value_of(tmp_path, "last") == value_of(tmp_path, "best") == 1 and folders(tmp_path) == ["step-000001"]


# ── read back ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("large", [durable.LARGE, 1], ids=["in a row", "on threads"])
@pytest.mark.parametrize("fault", ["a bit", "a byte more"])
@pytest.mark.parametrize("name", ["model.pt", "optimizer.pt", "state.json", "manifest.json"])
def test_what_the_file_has_otherwise_never_replaces_the_one_before(tmp_path, monkeypatch, name, fault, large):
    monkeypatch.setattr(durable, "LARGE", large)
    save(tmp_path, 1, best=True)
    write, end = durable.Writer._hash_and_write, durable.Writer._end

    def spoiled(writer, piece):
        """One bit of what is written is another than what was meant."""
        write(writer, piece)
        part = torch.tensor(2.0).numpy().tobytes() if name.endswith(".pt") else b'"'
        if writer.path.name == name and part in bytes(piece):
            writer.file.flush()
            place = writer.file.tell() - len(piece) + bytes(piece).find(part) + (part == b'"')
            os.pwrite(writer.file.fileno(), bytes([bytes(piece)[place - writer.file.tell() + len(piece)] ^ 1]), place)

    def longer(writer):
        if writer.path.name == name:
            writer.file.write(b"x")
        end(writer)

    monkeypatch.setattr(durable.Writer, *(("_hash_and_write", spoiled) if fault == "a bit" else ("_end", longer)))
    refusal(lambda: save(tmp_path, 2, best=True), name, "read back otherwise", "before is untouched")
    assert value_of(tmp_path, "last") == value_of(tmp_path, "best") == 1 and folders(tmp_path) == ["step-000001"]


@pytest.mark.parametrize("part", ["_hash", "_reads_back"])
def test_what_fails_beside_the_writing_fails_the_save(tmp_path, monkeypatch, part):
    def failing(*args):
        raise MemoryError("beside")

    save(tmp_path, 1, best=True)
    monkeypatch.setattr(durable, "LARGE", 1)
    monkeypatch.setattr(durable.Writer, part, failing)
    with pytest.raises(MemoryError, match="beside"):
        save(tmp_path, 2, best=True)
    assert value_of(tmp_path, "last") == 1


def test_a_state_that_could_not_be_loaded_again_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match="optimizer holds a PosixPath"):
        checkpoint.save(tmp_path, 1, {"model": {}, "optimizer": {"state": [Path("x")]}}, {}, False)


def test_what_is_not_finite_or_a_negative_zero_reads_back(tmp_path):
    odd = {"w": torch.tensor([float("nan"), -0.0, float("inf")]), "half": torch.ones(3).bfloat16(), "none": torch.zeros(0), "x": float("nan")}
    checkpoint.save(tmp_path, 1, {"model": odd, "optimizer": {"l": [1, (2, "a")]}}, {"best": float("nan")}, False)


@pytest.mark.parametrize("large", [durable.LARGE, 1000])
def test_the_hash_is_of_all_pieces_in_their_order_wherever_they_lie(tmp_path, monkeypatch, large):
    """Large tensors are hashed where they are, what only torch.save holds from a copy."""
    monkeypatch.setattr(durable, "LARGE", large)
    monkeypatch.setattr(durable, "CHUNK", large + 24)
    shared = torch.randn(5000)
    model = {"w": shared, "tied": shared, "part": shared[100:200], "turned": torch.randn(30, 40).T, "bits": torch.ones(7, dtype=torch.bool)}
    place = checkpoint.save(tmp_path, 2, {"model": model, "optimizer": {}}, {"step": 2}, False)
    checkpoint.verify(place)
    with durable.Writer(tmp_path / "file") as out:  # nothing lasts here
        scratch = bytearray(b"b" * 3000)
        for piece in (b"a", memoryview(scratch), b"c"):
            out.write(piece)
        scratch[:] = b"x" * 3000
    assert out.facts == {"bytes": 3002, "sha256": hashlib.sha256(b"a" + b"b" * 3000 + b"c").hexdigest()}


# ── room ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_estimated_size_is_that_of_the_folder(tmp_path):
    shared = torch.randn(300, 1000)
    tensors = {"model": {"a": shared, "b": shared}, "optimizer": {"state": {0: {"m": torch.randn(1000, 1000)}}}}
    place = checkpoint.save(tmp_path, 1, tensors, {}, False)
    there = sum(f.stat().st_size for f in place.iterdir())
    assert there <= space.size_of(tensors) <= there + 2 * space.AROUND


def test_too_little_room_for_a_save_is_said_before_anything_is_written(tmp_path, monkeypatch):
    save(tmp_path, 1, best=True)
    monkeypatch.setattr(space, "free", lambda folder: 100_000)
    done = operations_of(lambda: refusal(lambda: save(tmp_path, 2), "the checkpoint of step 2 needs", "97.7 KiB are free", "make room for",
                                         "run.dir"))
    assert done == [] and value_of(tmp_path) == 1


@pytest.mark.parametrize("there, enough", [(0, 2), (1, 1)])
def test_room_for_two_checkpoints_is_asked_for_before_training(tmp_path, monkeypatch, there, enough):
    """With one there already, room for one more. 3,000 words: each moment is larger than the slack."""
    task = Ragged(ragged(8), 2, ragged(2))

    def wide():
        return make(tmp_path, task, model=Transformer(dataclasses.replace(MODEL, vocab_size=3000)).double(), steps=2)

    run = wide()
    run.take_step()
    one = space.size_of({"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()})
    if there:
        wide().fit()
    monkeypatch.setattr(space, "free", lambda folder: enough * one + 30_000)
    wide()
    monkeypatch.setattr(space, "free", lambda folder: enough * one - 30_000)
    refusal(wide, "the disk is nearly full")


def test_a_run_without_room_leaves_nothing_behind(pretrain_command, tmp_path, monkeypatch):
    monkeypatch.setattr(space, "free", lambda folder: 5000)
    outcome = in_process(train.main, [*pretrain_command, f"run.dir={tmp_path / 'run'}"])
    refused(outcome, "a run with two checkpoints needs", "4.9 KiB are free")
    assert not (tmp_path / "run").exists()


# ── what stays, and how ──────────────────────────────────────────────────────────────────────────


def test_the_newest_n_stay_besides_best(tmp_path):
    for step in (10, 20, 30, 40, 50):
        checkpoint.save(tmp_path, step, {"model": {}, "optimizer": {}}, {"step": step}, step == 10, keep=3)
    assert folders(tmp_path) == [f"step-{s:06d}" for s in (10, 30, 40, 50)]
    (tmp_path / "checkpoints" / "step-000060").mkdir()  # killed before it was pointed at
    checkpoint.point(tmp_path / "checkpoints" / "last", "step-000040")
    checkpoint.clean(tmp_path, 2)
    assert folders(tmp_path) == [f"step-{s:06d}" for s in (10, 30, 40)]


def test_a_run_keeps_what_it_was_asked_to_and_that_may_change(pretrain_command, tmp_path):
    command = [*pretrain_command, f"run.dir={tmp_path / 'run'}", "train.save_every=1"]
    assert in_process(train.main, [*command, "train.keep=4"]).code == 0
    kept = {f"step-{s:06d}" for s in (3, 4, 5, 6)}
    assert kept | {checkpoint.find(tmp_path / "run", "best").name} == set(folders(tmp_path / "run"))
    assert in_process(train.main, command).code == 0
    assert set(folders(tmp_path / "run")) == {checkpoint.find(tmp_path / "run", name).name for name in ("last", "best")}


def test_what_dead_runs_left_half_written_goes_at_the_start(pretrain_command, tmp_path):
    run = tmp_path / "run"
    assert in_process(train.main, [*pretrain_command, f"run.dir={run}"]).code == 0
    before = sorted(p.relative_to(run) for p in run.rglob("*") if "tensorboard" not in p.parts)
    (run / "checkpoints" / ".writing-step-000099").mkdir()
    for name in ("checkpoints/.writing-last", "config.toml.part", "metrics.jsonl.part"):
        (run / name).write_text("half")
    assert in_process(train.main, [*pretrain_command, f"run.dir={run}"]).code == 0
    assert sorted(p.relative_to(run) for p in run.rglob("*") if "tensorboard" not in p.parts) == before


@pytest.mark.parametrize("mask, file, folder", [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o002, 0o664, 0o775)])
def test_permissions_follow_the_umask(tmp_path, mask, file, folder):
    before = os.umask(mask)
    try:
        place = save(tmp_path, 1, best=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.stat().st_mode) == folder
    assert {stat.S_IMODE(f.stat().st_mode) for f in [*place.iterdir(), place.parent / "last", place.parent / "best"]} == {file}


def test_a_writer_keeps_the_first_error_and_abandons_when_asked(tmp_path):
    with pytest.raises(durable.Abandoned), durable.Writer(tmp_path / "f", lambda: True) as out:
        torch.save({"a": torch.zeros(3)}, out)
    with pytest.raises(UserError), pytest.MonkeyPatch.context() as patch:
        counted(patch, lambda n: n == 3)
        save(tmp_path, 1)
