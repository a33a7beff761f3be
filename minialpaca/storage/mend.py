"""Lost pointers of a run found again, so that a run with checkpoints never starts over."""

from pathlib import Path

from minialpaca.errors import UserError
from minialpaca.storage import checkpoint


def mend(run: Path) -> None:
    """Set a pointer that is gone: `last` to the newest whole checkpoint, `best` to the first one that knew the same best."""
    lost = [name for name in ("best", "last") if checkpoint.find(run, name) is None]
    if not lost or not checkpoint.steps(run):
        return
    whole = whole_ones(run)
    if not whole:
        raise UserError(f"{run / checkpoint.FOLDER}: has no pointer {' and no '.join(lost)}, and none of its {len(checkpoint.steps(run))} "
                        "checkpoints is whole; put one back, or choose another run.dir")
    last = checkpoint.find(run) or whole[-1]
    best = next((place for place in whole if _best(place) is not None and _best(place) == _best(last)), None)
    for name, place in (("best", best), ("last", last)):  # in this order, as when they are saved
        if name in lost and place:
            checkpoint.point(run / checkpoint.FOLDER / name, place.name)
            print(f"note: {run / checkpoint.FOLDER / name} was missing; it points at {place.name} again")


def newest(run: Path) -> Path | None:
    """What `last` points at, or will, once it is found again."""
    return checkpoint.find(run) or next(reversed(whole_ones(run)), None)


def whole_ones(run: Path) -> list[Path]:
    return [place for place in checkpoint.steps(run) if _is_whole(place)]


def _is_whole(place: Path) -> bool:
    try:
        checkpoint.verify(place)
    except UserError:
        return False
    return True


def _best(place: Path) -> float | None:
    return checkpoint.read_state(place).get("best")
