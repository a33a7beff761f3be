"""How processes share a model: each has a copy of it. fsdp.py has the other way, in which each holds a part."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from minialpaca import parallel
from minialpaca.storage.crew import Alone


class Copies:
    """Each process holds the whole model, and what they found is added up once a step; or there is one process alone.

    What a trainer asks of those who share its work; `fsdp.Shards` answers otherwise.
    """

    n_parts = 1  # in how many the weights are dealt out
    in_step = False  # whether a model can be asked only by all processes at once

    @property
    def saves(self) -> bool:
        """Whether this process has something of a checkpoint to write."""
        return parallel.is_first()

    def ask(self, way: Callable):
        """What the model says, asked by `way`."""
        return way()

    def sum_after(self, now: bool) -> None:
        """Whether the backwards to come are the step's last."""

    def add_up(self, parameters: Iterable[nn.Parameter], numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gradient and the numbers of all."""
        return parallel.add_up(parameters, numbers)

    def total(self, part: Tensor) -> Tensor:
        """The sum over what the processes hold of something."""
        return part

    def length(self, part: Tensor) -> Tensor:
        """The length of a vector, of which this process holds a part that is so long."""
        return part

    def anywhere(self, found: Sequence[bool]) -> list[bool]:
        """What any process has found of its part."""
        return list(found)

    def measured(self, measure: Callable[[], dict]) -> dict:
        """What an evaluation comes to."""
        return parallel.from_first(measure)

    def shown(self, show: Callable[[], None]) -> None:
        """Ask the model something for the log."""
        if parallel.is_first():
            show()

    def held(self, it):
        """Of a model, an adapter or an optimizer what has the state_dict and load_state_dict of this process's part."""
        return it

    def crew(self) -> Alone:
        """Who writes a checkpoint together."""
        return Alone()
