"""A disk that really fills up while a checkpoint is written: a small tmpfs with room for every number of bytes less than it needs.

    python -m benchmarks.reliability --step 4096        (as root: it mounts a tmpfs of its own, and unmounts it)

The free space is not asked for beforehand here, as if somebody else had taken it between the question and the writing. For
every amount of room, a page more each time, a second checkpoint is saved. Where that fails, the message has to name the cause in
one line, and `last` and `best` have to load and compare; where it does not, the new one has to.
"""

import argparse
import collections
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch

from minialpaca.errors import UserError
from minialpaca.storage import checkpoint, space

WEIGHTS = 60_000  # floats: 240 kB of model, as much again of moments


def content(step: int) -> dict[str, dict]:
    return {"model": {"w": torch.full((WEIGHTS,), float(step))}, "optimizer": {"state": {0: {"m": torch.full((WEIGHTS,), -float(step))}}}}


def loaded(run: Path, name: str) -> int:
    """The step whose numbers the pointer leads to."""
    place = checkpoint.find(run, name)
    checkpoint.verify(place)
    step = checkpoint.read_state(place)["step"]
    for stem, wanted in content(step).items():
        read = space.tensors_in(checkpoint.read_tensors(place, stem))
        if not all(torch.equal(a, b) for a, b in zip(read, space.tensors_in(wanted), strict=True)):
            raise SystemExit(f"{place}: {stem} is another one")
    return step


def attempt(disk: Path, room: int) -> str:
    """Save step 1, leave `room` bytes, save step 2: what came of it."""
    run = disk / "run"
    checkpoint.save(run, 1, content(1), {"step": 1}, best=True)
    free = space.free(disk)
    with open(disk / "ballast", "wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, max(1, free - room))
    try:
        with mock.patch.object(space, "free", lambda folder: sys.maxsize):
            checkpoint.save(run, 2, content(2), {"step": 2}, best=True)
        said = "saved"
    except UserError as error:
        said = str(error).partition("written: ")[2]
        if "no space left on device; the one before is untouched" not in said:
            raise SystemExit(f"{room} bytes of room: {error}") from None
    found = loaded(run, "last"), loaded(run, "best")
    if found[0] != (2 if said == "saved" else 1) or found[1] < found[0]:
        raise SystemExit(f"{room} bytes of room, {said}: last and best are {found}")
    subprocess.run(["rm", "-rf", str(run), str(disk / "ballast")], check=True)
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step", type=int, default=4096, help="bytes between two amounts of room")
    args = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("needs root: it mounts a small tmpfs")
    with tempfile.TemporaryDirectory() as disk:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
        try:
            rooms = range(0, space.size_of(content(1)) + 100_000, args.step)
            outcomes = collections.Counter(attempt(Path(disk), room) for room in rooms)
        finally:
            subprocess.run(["umount", disk], check=True)
    print(f"{len(rooms)} amounts of room, {rooms[0]:,} to {rooms[-1]:,} bytes:")
    for said, n in outcomes.items():
        print(f"{n:>5}  {said}")


if __name__ == "__main__":
    main()
