"""What torchrun's processes do together, for test_parallel.py: some steps of every combination; the first writes the weights.

    torchrun --nproc-per-node 2 tests/two_ranks.py OUT
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch
from ragged import MODEL, Opinionated, ragged

from minialpaca import parallel, run, shards
from minialpaca.adversarial import attack_on
from minialpaca.config import AdapterConfig, AdversarialConfig, FinetuneConfig, ModelConfig, OptimConfig, TrainConfig
from minialpaca.errors import UserError, command
from minialpaca.heads import Classifier
from minialpaca.model import Transformer
from minialpaca.objectives import cross_entropy_sum, label_groups_sum, next_token_pairs
from minialpaca.precision import LossScaler
from minialpaca.trainer import Trainer

ADAPTERS = {"full": None, "lora": AdapterConfig("lora", rank=2), "adalora": AdapterConfig("adalora", rank=2, target_rank=1.0, interval=1),
            "houlsby": AdapterConfig("houlsby", bottleneck=3), "heads": AdapterConfig("lora", rank=2),  # heads: of a classifier
            "freeze": AdapterConfig("freeze", layers="1:", also=("embedding", "head", "norm")), "prefix": AdapterConfig("prefix", length=3),
            "stacks": None}  # an encoder and a decoder
ATTACKS = {"clean": AdversarialConfig(), "fgm": AdversarialConfig("fgm", 0.2), "vat": AdversarialConfig("vat", 0.2),
           "freelb": AdversarialConfig("freelb", 0.2, steps=2),
           "overflow": AdversarialConfig("fgm", 0.2)}  # with a loss scaler, and a gradient of the second process that is not finite
COMBINATIONS = [*((adapter, attack) for adapter in ("full", "lora", "adalora", "houlsby") for attack in ("clean", "fgm")), ("heads", "clean"),
                ("full", "vat"), ("adalora", "overflow")]
SHARDED = [*COMBINATIONS, ("full", "freelb"), ("freeze", "fgm"), ("prefix", "clean"), ("stacks", "clean"), ("stacks", "recompute")]
RECOMPUTED = ("houlsby", "heads")
STEPS, A_STEP = 6, 4  # micro-batches of a step, of all processes; the last step has three


class Failing(Opinionated):
    """The second process fails at a step if asked to, or finds a gradient that is no number."""

    failing = False
    overflowing = None  # the number of a micro-batch whose gradient is NaN the first time, and whose loss is finite

    def batch(self, number):
        if self.failing and parallel.rank() == 1 and number >= 2 * A_STEP:
            raise UserError("rows.json: the second process cannot read it")
        found = super().batch(number)
        if number == self.overflowing:
            self.overflowing, self.bad_BT = None, found.tokens_BT
        return found

    bad_BT = torch.empty(0)

    def loss_sum(self, model, batch):
        loss = super().loss_sum(model, batch)
        if torch.equal(batch.tokens_BT, self.bad_BT):
            self.bad_BT = torch.empty(0)
            return loss + (0 * loss).sqrt()  # the slope of a root at 0
        return loss


class Labelling(Failing):
    """Which of three classes a text's first token falls in, and which of two."""

    def loss_sum(self, model, batch):
        first = batch.tokens_BT[:, 0]
        return label_groups_sum(model(batch.tokens_BT, batch.real_BT), (first % 3, first % 2))


class Translating(Failing):
    """Says each text again, twice, as it drops other units the second time."""

    def loss_sum(self, model, batch):
        inputs_BT, targets_BT = next_token_pairs(batch.tokens_BT, batch.labels_BT)
        said = [model(inputs_BT, sources=model.encode(batch.tokens_BT, batch.real_BT)) for _ in range(2)]
        return torch.stack([cross_entropy_sum(z.flatten(0, 1), targets_BT.flatten()) for z in said]).mean()


def trainer_of(folder: Path, adapter: str, attack: str, how: str) -> Trainer:
    torch.manual_seed(0)
    shape = {"n_layers": 2, "dropout": 0.2, "architecture": "encoder_decoder" if adapter == "stacks" else "decoder"}
    model = Transformer(ModelConfig(**{**vars(MODEL), **shape})).double()
    model.recompute = adapter in RECOMPUTED or attack == "recompute"
    backbone, cfg, task = model, ADAPTERS[adapter], Failing
    if adapter == "stacks":
        task = Translating
    if adapter == "heads":
        model, task = Classifier(backbone, [3, 2], "last").double(), Labelling
    found = run.adapted(model, backbone, FinetuneConfig(adapter=cfg)) if cfg else None
    trainer = Trainer(model, task(ragged(46), 2), OptimConfig(lr=0.01, warmup_steps=2, clip_norm=0.5),
                      TrainConfig(epochs=1, accumulation=A_STEP // parallel.size(), eval_every=100, parallel=how), 0, folder,
                      adapter=found, attack=attack_on(backbone.embed, ATTACKS.get(attack, ATTACKS["clean"]), False), l2=0.001)
    if attack == "overflow":
        trainer.scaler, trainer.task.overflowing = LossScaler(), 2 * A_STEP + 1  # dealt to the second of two
    assert trainer.total_steps == STEPS
    trainer.share()
    return trainer


def weights_of(folder: Path, adapter: str, attack: str, how: str = "ddp") -> tuple[dict, list[dict]]:
    """After `STEPS` steps, and what was logged of each."""
    trainer = trainer_of(folder, adapter, attack, how)
    records = [trainer.take_step() for _ in range(STEPS)]
    return {name: shards.whole(t) for name, t in trainer.model.state_dict().items()}, [{k: v for k, v in r.items() if k != "tokens_per_s"} for r in records]


def kept(out: Path) -> dict:
    """A run of shards, saved in the middle; what a process holds of it; and where one process's run, saved there, ends with shards."""
    trainer = trainer_of(out / "shards", "full", "fgm", "fsdp")
    half(trainer)
    held = [shards.local(p).numel() for p in trainer.model.parameters()]
    moments = [shards.local(moment).numel() for state in trainer.optimizer.state.values() for name, moment in state.items() if name != "step"]
    weights = {name: shards.whole(t) for name, t in trainer.model.state_dict().items()}
    optimizer = {i: {name: shards.whole(t) for name, t in state.items()} for i, state in trainer.optimizer.state_dict()["state"].items()}
    goes_on = trainer_of(out / "alone", "full", "fgm", "fsdp")
    return {"arrivals": arrivals(trainer_of(out / "watched", "full", "clean", "fsdp")), "numbers": (sum(held), sum(moments)), "whole": (weights, optimizer), "from one": rest(goes_on)}


def arrivals(trainer: Trainer) -> list[int]:
    """How many parameters have their part of all processes' gradient after each micro-batch of a step."""
    backward, found = trainer.attack.backward, []

    def watched(passes):
        noted = backward(passes)
        found.append(sum(p.grad is not None for p in trainer.model.parameters()))
        return noted

    trainer.attack.backward = watched
    trainer.take_step()
    return found


def half(trainer: Trainer) -> None:
    """The first steps, saved."""
    while trainer.state["step"] < STEPS // 2:
        trainer.take_step()
    with trainer.keeper.saving:
        if trainer.spread.saves:
            trainer.keeper.save(trainer.state, improved=True)


def rest(trainer: Trainer) -> dict:
    """The weights after the last step of a run that was saved in the middle."""
    assert trainer.keeper.resume(trainer.state) and trainer.state["step"] == STEPS // 2
    while trainer.state["step"] < STEPS:
        trainer.take_step()
    return {name: shards.whole(t) for name, t in trainer.model.state_dict().items()}


@command
def main(out: Path) -> None:
    with parallel.joined():
        assert parallel.PATIENCE == torch.distributed.group.WORLD._get_backend(torch.device("cpu")).options._timeout
        if out.name == "failing":
            Failing.failing = True
            weights_of(out, "full", "clean")
        assert parallel.size() == 2 and parallel.summed([1 + parallel.rank(), 5]) == [3, 10]
        assert parallel.from_first(lambda: f"said by {parallel.rank()}") == "said by 0"
        how = "fsdp" if out.name == "fsdp" else "ddp"
        found = {"-".join(c): weights_of(out / "combinations", *c, how) for c in (SHARDED if how == "fsdp" else COMBINATIONS)}
        if how == "fsdp":
            found |= kept(out)
        torch.save(found, out / f"rank-{parallel.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
