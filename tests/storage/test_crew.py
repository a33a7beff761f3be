"""A checkpoint that several write: whole when all have written their part, and not there when one has not."""

import json

import pytest
import torch
from crews import W, saved
from running import refusal

from minialpaca.storage import checkpoint, durable


@pytest.mark.parametrize("size", [2, 3, 7])
def test_what_a_crew_saved_is_read_whole(tmp_path, size):
    """Of seven, two have no row at all."""
    assert saved(tmp_path, 4, size) == [None] * size
    place = checkpoint.find(tmp_path, "best")
    checkpoint.verify(place)
    assert torch.equal(checkpoint.read_tensors(place, "model")["w"], W)
    assert torch.equal(checkpoint.read_tensors(place, "optimizer")["m"], W * 2) and checkpoint.read_tensors(place, "optimizer")["lr"] == 0.1
    listed = json.loads((place / "manifest.json").read_text(encoding="utf-8"))["files"]
    assert set(listed) == {"state.json", *(f"{stem}-{rank}-of-{size}.pt" for stem in ("model", "optimizer") for rank in range(size))}


def test_where_one_cannot_write_all_hear_of_it_and_the_one_before_stays(tmp_path, monkeypatch):
    assert saved(tmp_path, 1) == [None, None]
    write = durable.Writer.write

    def full(writer, piece):
        if writer.path.name == "optimizer-1-of-2.pt":
            raise OSError(28, "No space left on device")
        return write(writer, piece)

    monkeypatch.setattr(durable.Writer, "write", full)
    said = saved(tmp_path, 2)
    assert said[0].startswith("process 1: ") and "no space left" in said[1]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.is_dir()] == ["step-000001"]
    assert checkpoint.find(tmp_path).name == "step-000001"


def test_where_the_first_finds_no_room_nobody_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.space, "free", lambda folder: 10)
    said = saved(tmp_path, 1)
    assert "the disk is nearly full" in said[0] and said[1].startswith("process 0: ")
    assert not (tmp_path / "checkpoints").exists()


def test_what_the_first_does_not_see_is_no_checkpoint(tmp_path, monkeypatch):
    """A folder of another disk by the same name: each host has one."""
    write_tensors = checkpoint._write_tensors

    def elsewhere(part, content, abandoned, crew):
        facts = write_tensors(part, content, abandoned, crew)
        if crew.rank == 1:
            (part / "model-1-of-2.pt").unlink()
        return facts

    monkeypatch.setattr(checkpoint, "_write_tensors", elsewhere)
    said = saved(tmp_path, 1)
    assert "model-1-of-2.pt: was written by another process and is not seen by the first one" in said[0] and checkpoint.find(tmp_path) is None


@pytest.mark.parametrize("name", ["model-0-of-2.pt", "optimizer-1-of-2.pt"])
def test_a_part_that_is_gone_or_changed_is_refused(tmp_path, name):
    saved(tmp_path, 1)
    place = checkpoint.find(tmp_path)
    content = (place / name).read_bytes()
    (place / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refusal(lambda: checkpoint.verify(place), name, "differs from the checkpoint's manifest")
    (place / name).unlink()
    refusal(lambda: checkpoint.verify(place), "incomplete", name)
    listed = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    del listed["files"][name]
    (place / "manifest.json").write_text(json.dumps(listed), encoding="utf-8")
    refusal(lambda: checkpoint.verify(place), f"lists no {name.partition('-')[0]}.pt")


def test_parts_that_do_not_fit_are_refused(tmp_path):
    saved(tmp_path, 1, of=lambda rank, size: {"model": {"w": torch.ones(2, 2 + rank)}, "optimizer": {}})
    refusal(lambda: checkpoint.read_tensors(checkpoint.find(tmp_path), "model"), "model-0-of-2.pt: does not fit model-1-of-2.pt")
