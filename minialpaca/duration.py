"""How long a run is: in steps, and in the micro-batches that they are made of."""

from minialpaca.config import OptimConfig, TrainConfig
from minialpaca.errors import UserError

LONGEST = 1 << 53


def refuse_endless(train: TrainConfig, optim: OptimConfig, batches_per_epoch: int) -> None:
    """Counts that a float does not hold exactly: nobody sees their end, and the arithmetic of rates overflows."""
    counts = {"train.steps": train.steps, "optim.warmup_steps": optim.warmup_steps, "train.epochs": 0 if train.steps else train.epochs * batches_per_epoch}
    for name, count in counts.items():
        if count > LONGEST:
            raise UserError(f"{name}: asks for more than 2⁵³ steps; give a number that comes to an end")


def batches_of_run(train: TrainConfig, batches_per_epoch: int, a_step: int) -> int:
    """Micro-batches from the first step to the last, of all processes, `a_step` in each step."""
    return train.steps * a_step if train.steps else max(1, round(train.epochs * batches_per_epoch))
