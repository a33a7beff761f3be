"""What of a run is kept, and found again by the same command: tensors, counters, and what they belong to."""

from pathlib import Path

import torch
from torch import nn

from minialpaca import determinism, parallel, run
from minialpaca.config import TrainConfig
from minialpaca.data.files import other_data
from minialpaca.errors import UserError
from minialpaca.peft import Adapter
from minialpaca.precision import LossScaler
from minialpaca.spread import Copies
from minialpaca.storage import checkpoint, space
from minialpaca.storage.background import Background
from minialpaca.storage.mend import mend
from minialpaca.storage.recipe import Recipe
from minialpaca.tasks import Task


class Keeper:
    """Saves beside the training, into the checkpoints of one folder; takes up where they end."""

    def __init__(self, folder: Path, train: TrainConfig, task: Task, saved: nn.Module | Adapter,
                 optimizer: torch.optim.Optimizer, scaler: LossScaler | None, recipe: Recipe, device: torch.device,
                 spread: Copies, examples: int):
        self.folder, self.train, self.task, self.saved = folder, train, task, saved
        self.optimizer, self.scaler, self.recipe, self.device = optimizer, scaler, recipe, device
        self.held = {"model": spread.held(saved), "optimizer": spread.held(optimizer)}  # of this process
        self.crew, self.spread = spread.crew(), spread
        self.saving = Background()
        self.best_step: int | None = None  # where `best` points
        self.examples = examples  # from the first step to the last

    def refuse_little_room(self) -> None:
        """Two checkpoints lie side by side when the second is written; where one is there already, one more."""
        if parallel.is_first():
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            one = space.size_of(self.saved.state_dict()) + 2 * sum(p.numel() * p.element_size() for p in trained)
            there = bool(checkpoint.steps(self.folder))
            space.refuse_little(self.folder, one if there else 2 * one, "the next checkpoint" if there else "a run with two checkpoints")

    def refuse_unfit(self, state: dict) -> None:
        """What `resume` would refuse, before anything of the run is touched."""
        if place := checkpoint.find(self.folder):
            if (best := checkpoint.find(self.folder, "best")) and best != place:
                checkpoint.verify(best)  # or the end of the run would find it out
            run.refuse_unfit(self.saved, place, self.task.tokenizer_sha256)
            self._refuse_others(place, checkpoint.read_state(place), state)

    def save(self, state: dict, improved: bool) -> None:
        """What is now; written beside the steps to come, and in full before the next is begun."""
        self.best_step = state["step"] if improved else self.best_step
        facts = {**state, "best_by": self.train.best_by, "best_step": self.best_step, "tokenizer": self.task.tokenizer_sha256, "data": self.task.data_sha256,
                 **self.recipe.facts(self.examples), "surroundings": determinism.surroundings(self.device, self.spread.n_parts),
                 **({"prompts": self.task.prompts} if self.task.prompts else {}),
                 **({"labels": self.task.labels} if self.task.labels else {}),
                 **({"scaler": self.scaler.state_dict()} if self.scaler else {}),
                 **(self.saved.facts() if isinstance(self.saved, Adapter) else {})}
        self.saving.start({name: it.state_dict() for name, it in self.held.items()},
                          lambda tensors: checkpoint.save(self.folder, facts["step"], tensors, facts, improved, self.train.keep,
                                                          self.saving.leaving.is_set, self.crew))

    def last_good(self) -> str:
        """For a message: the checkpoint to go back to."""
        self.saving.join()
        return str(checkpoint.find(self.folder) or "none yet")

    def resume(self, state: dict) -> Path | None:
        """The last checkpoint's tensors put back, and its counters into `state`; None where there is none."""
        parallel.from_first(lambda: mend(self.folder))
        place = checkpoint.find(self.folder)
        if place is None:
            return None
        run.load_weights(self.saved, place, self.task.tokenizer_sha256, self.held["model"])
        known = checkpoint.read_state(place)
        self._refuse_others(place, known, state)
        checkpoint.restore(place, "optimizer", self.held["optimizer"], self._with_settings_of_now)
        if self.scaler and "scaler" in known:
            self.scaler.load_state_dict(known["scaler"])
        parallel.meet()  # all have read it
        self.best_step = known.get("best_step")
        if parallel.is_first():
            if "best_step" in known:  # not of an older minialpaca
                checkpoint.point_back(self.folder, place, self.best_step)
            checkpoint.clean(self.folder, self.train.keep)  # a kill after the last save leaves the folder before it
        if known["step"]:  # step 0 is evaluated once more, and judged as if for the first time
            state.update(self.counters(known, state))
        return place

    def counters(self, known: dict, state: dict) -> dict:
        """Those of `state` as they go on: what is measured otherwise from here on has no best yet, and patience may be another."""
        found = {key: known[key] for key in state}
        if known.get("best_by", self.train.best_by) != self.train.best_by:
            found |= {"best": None, "evaluations_without_gain": 0}
        return found | {"stopped_early": 0 < self.train.patience <= found["evaluations_without_gain"]}

    def _with_settings_of_now(self, saved: dict) -> dict:
        """A saved optimizer's averages, and what this one was made with: weight decay, β and ε may have been changed."""
        groups = zip(saved["param_groups"], self.optimizer.param_groups, strict=True)
        return {**saved, "param_groups": [{**now, "params": before["params"]} for before, now in groups]}

    def _refuse_others(self, place: Path, known: dict, state: dict) -> None:
        """Of another version, of other data; where the bits are promised, from other surroundings."""
        if lacking := {*state, "data"} - known.keys():
            raise UserError(f"{place / 'state.json'}: lacks {', '.join(sorted(lacking))}; it is of another version of minialpaca; choose "
                            "another run.dir")
        if known["data"] != self.task.data_sha256:
            raise other_data(self.folder)
        if self.train.deterministic:
            determinism.refuse_others(known.get("surroundings", {}), self.device, str(place), self.spread.n_parts)
