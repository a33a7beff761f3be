"""A run with checkpoints never starts over: lost pointers are found again."""

import pytest
import torch

from minialpaca.errors import UserError
from minialpaca.storage import checkpoint
from minialpaca.storage.mend import mend


def save(run, step, best, improved=False):
    return checkpoint.save(run, step, {"model": {"w": torch.full((2,), float(step))}, "optimizer": {}},
                           {"step": step, "best": best}, improved)


@pytest.fixture
def run(tmp_path):
    """Step 20 was the best, step 30 is the last."""
    save(tmp_path, 20, 2.5, improved=True)
    save(tmp_path, 30, 2.5)
    return tmp_path


def pointers(run):
    return [place and place.name for place in (checkpoint.find(run, "best"), checkpoint.find(run, "last"))]


@pytest.mark.parametrize("lost", [["last"], ["best"], ["last", "best"]])
def test_a_lost_pointer_is_found_again_and_said(run, lost, capsys):
    for name in lost:
        (run / "checkpoints" / name).unlink()
    mend(run)
    assert pointers(run) == ["step-000020", "step-000030"]
    assert capsys.readouterr().out.count(" was missing; it points at step-0000") == len(lost)
    mend(run)
    assert capsys.readouterr().out == ""


def test_the_newest_that_is_whole_is_taken_and_none_is_removed(run):
    (run / "checkpoints" / "last").unlink()
    place = run / "checkpoints" / "step-000030"
    (place / "model.pt").write_bytes(b"damaged")
    mend(run)
    assert pointers(run) == ["step-000020", "step-000020"] and place.is_dir()
    (run / "checkpoints" / "last").unlink()
    (run / "checkpoints" / "step-000020" / "optimizer.pt").unlink()
    with pytest.raises(UserError, match="has no pointer last, and none of its 2 checkpoints is whole"):
        mend(run)


def test_where_nothing_was_saved_there_is_nothing_to_mend(tmp_path):
    mend(tmp_path)
    (tmp_path / "checkpoints" / ".writing-step-000000").mkdir(parents=True)
    mend(tmp_path)
    assert pointers(tmp_path) == [None, None]


def test_steps_are_in_order_beyond_a_million(run):
    save(run, 1_000_000, 2.5)
    assert [place.name for place in checkpoint.steps(run)] == ["step-000020", "step-1000000"]
