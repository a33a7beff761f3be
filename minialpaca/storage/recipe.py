"""What a run is made by, and what may become of it when the run is continued.

The same number of examples in a step may be split otherwise: train.batch_size × train.accumulation × processes is what counts.
Anything else of the recipe stays, or changes because run.allow_change asks for it. Both are recorded: in state.json of every
checkpoint to come, and in metrics.jsonl at the step from which it holds.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path

from minialpaca import parallel
from minialpaca.config import FinetuneConfig, PretrainConfig, TrainConfig
from minialpaca.errors import UserError
from minialpaca.storage import checkpoint
from minialpaca.storage.mend import newest

MAY_CHANGE = ("run.", "train.keep")  # where and how a run is continued; everything else is the recipe
WHEN_ASKED = ("optim.", "train.", "loss.", "adversarial.", "samples.", "processes")  # the rest is what the weights and data are
DATA = ("adversarial.unlabelled",)  # and so is this
SPLIT = ("train.batch_size", "train.accumulation", "processes")
SAME = (*SPLIT, "train.parallel")  # with as many examples a step, these change no mathematics


@dataclass
class Recipe:
    values: dict = field(default_factory=dict)
    changes: list[dict] = field(default_factory=list)  # of earlier continuations, and of this one at the end
    now: dict | None = None  # this one
    examples: int = 0  # of the whole run, where a number of epochs says how many; an epoch's last batch is smaller, whatever the size of the others

    def facts(self, examples: int) -> dict:
        """For state.json."""
        return {"recipe": self.values, "changes": self.changes, "examples": examples} if self.values else {}

    def batches_as_begun(self, train: TrainConfig) -> int:
        """A run by epochs is as long as it began, however its steps are split; 0 where nothing says so."""
        return 0 if train.steps else -(-self.examples // train.batch_size)


def of(settings: PretrainConfig | FinetuneConfig, processes: int) -> dict:
    """Every value of the recipe by its key, as JSON has it."""
    flat = {f"{section.name}.{f.name}": getattr(part, f.name)
            for section in fields(settings) for part in [getattr(settings, section.name)] for f in fields(part)}
    kept = {key: list(value) if isinstance(value, tuple) else value for key, value in flat.items()
            if not key.startswith(MAY_CHANGE) or key == "run.seed"}
    return {**kept, "processes": processes}


def continued(folder: Path, begun: PretrainConfig | FinetuneConfig, settings: PretrainConfig | FinetuneConfig) -> Recipe:
    """The recipe to go on with; UserError where it is another one than the run's. `begun`: what its config.toml says."""
    new = of(settings, parallel.size())
    place = newest(folder)
    state = checkpoint.read_state(place) if place else {}
    old, changes = state.get("recipe"), state.get("changes", [])
    if not (isinstance(old, dict) and isinstance(changes, list)):  # nothing was trained yet, or by an older minialpaca
        old, changes = of(begun, new["processes"]), []
    examples = state.get("examples", 0) if old.get("train.epochs") == new["train.epochs"] and not old.get("train.steps") else 0
    changed = {key: f"{key}: {old[key]!r} → {value!r}" for key, value in new.items() if key in old and old[key] != value}
    if place and new.get("adapter.method", "none") != "none":
        changed.pop("base.run", None)  # where it lies now; whether it is that base its fingerprint tells
    if not changed:
        return Recipe(new, changes, examples=examples)
    split = place and "recipe" in state and set(changed) <= set(SAME) and examples_a_step(old) == examples_a_step(new)
    if not split:
        _refuse(folder, changed, settings.run.allow_change)
    now = {"step": state.get("step", 0), "changed": list(changed.values()),
           "note": _of_split(old, new, settings) if split else "asked for by run.allow_change: from here on it is another recipe"
                   + ("" if examples_a_step(old) == examples_a_step(new) else ", and the data go on elsewhere: some examples "
                      "come twice in this epoch or not at all")}
    return Recipe(new, [*changes, now], now, examples)


def examples_a_step(recipe: dict) -> int | None:
    factors = [recipe.get(key) for key in SPLIT]
    return factors[0] * factors[1] * factors[2] if all(type(f) is int for f in factors) else None


def _refuse(folder: Path, changed: dict[str, str], asked: bool) -> None:
    fixed = [text for key, text in changed.items() if not key.startswith(WHEN_ASKED) or key in DATA]
    if asked and not fixed:
        return
    told = "; ".join(fixed if asked else changed.values())
    hint = ("; these make the weights or the data what they are and cannot change" if asked else
            "; keep train.batch_size × train.accumulation × processes as it was" if set(changed) <= set(SAME) else "")
    way = "" if fixed else "set run.allow_change=true, "
    raise UserError(f"{folder}: holds a run with another recipe ({told}{hint}); go on with that one, {way}choose another run.dir, "
                    "or delete the folder")


def _of_split(old: dict, new: dict, settings: PretrainConfig | FinetuneConfig) -> str:
    """What stays equal when as many examples a step are split otherwise."""
    if old["train.batch_size"] == new["train.batch_size"]:
        return "the same micro-batches in the same steps; only the order of sums is another"
    if isinstance(settings, PretrainConfig):
        note = "the same windows in the same steps; dropout and the order of sums are others"
    else:
        note = ("as many examples a step, but batches are of similar length: which ones is drawn anew, and some come twice in this "
                "epoch or not at all")
    return note + ("; validation is over train.eval_batches × train.batch_size examples, other ones than before"
                   if settings.train.eval_batches else "")
