"""What torchrun's processes do together, for test_parallel.py: some steps of every combination; the first writes the weights.

    torchrun --nproc-per-node 2 tests/two_ranks.py OUT
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch
from ragged import MODEL, Opinionated, ragged

from minialpaca import parallel, run
from minialpaca.adversarial import attack_on
from minialpaca.config import AdapterConfig, AdversarialConfig, FinetuneConfig, ModelConfig, OptimConfig, TrainConfig
from minialpaca.errors import UserError, command
from minialpaca.heads import Classifier
from minialpaca.model import Transformer
from minialpaca.objectives import label_groups_sum
from minialpaca.precision import LossScaler
from minialpaca.trainer import Trainer

ADAPTERS = {"full": None, "lora": AdapterConfig("lora", rank=2), "adalora": AdapterConfig("adalora", rank=2, target_rank=1.0, interval=1),
            "houlsby": AdapterConfig("houlsby", bottleneck=3), "heads": AdapterConfig("lora", rank=2)}  # heads: of a classifier
ATTACKS = {"clean": AdversarialConfig(), "fgm": AdversarialConfig("fgm", 0.2), "vat": AdversarialConfig("vat", 0.2),
           "overflow": AdversarialConfig("fgm", 0.2)}  # with a loss scaler, and a gradient of the second process that is not finite
COMBINATIONS = [*((adapter, attack) for adapter in ADAPTERS for attack in ("clean", "fgm") if adapter != "heads"), ("heads", "clean"), ("full", "vat"), ("adalora", "overflow")]
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
            trained = next(p for p in model.parameters() if p.requires_grad)
            return loss + (0 * trained.flatten()[0]).sqrt()
        return loss


class Labelling(Failing):
    """Which of three classes a text's first token falls in, and which of two."""

    def loss_sum(self, model, batch):
        first = batch.tokens_BT[:, 0]
        return label_groups_sum(model(batch.tokens_BT, batch.real_BT), (first % 3, first % 2))


def weights_of(folder: Path, adapter: str, attack: str) -> tuple[dict, list[dict]]:
    """After `STEPS` steps, and what was logged of each."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**{**vars(MODEL), "dropout": 0.2})).double()
    model.recompute = adapter in RECOMPUTED
    backbone, cfg, task = model, ADAPTERS[adapter], Failing
    if adapter == "heads":
        model, task = Classifier(backbone, [3, 2], "last").double(), Labelling
    found = run.adapted(model, backbone, FinetuneConfig(adapter=cfg)) if cfg else None
    trainer = Trainer(model, task(ragged(46), 2), OptimConfig(lr=0.01, warmup_steps=2, clip_norm=0.5),
                      TrainConfig(epochs=1, accumulation=A_STEP // parallel.size(), eval_every=100), 0, folder,
                      adapter=found, attack=attack_on(backbone.embed, ATTACKS[attack], False), l2=0.001)
    if attack == "overflow":
        trainer.scaler, trainer.task.overflowing = LossScaler(), 2 * A_STEP + 1  # dealt to the second of two
    assert trainer.total_steps == STEPS
    records = [trainer.take_step() for _ in range(STEPS)]
    return model.state_dict(), [{k: v for k, v in r.items() if k != "tokens_per_s"} for r in records]


@command
def main(out: Path) -> None:
    with parallel.joined():
        assert parallel.PATIENCE == torch.distributed.group.WORLD._get_backend(torch.device("cpu")).options._timeout
        if out.name == "failing":
            Failing.failing = True
            weights_of(out, "full", "clean")
        assert parallel.size() == 2 and parallel.summed([1 + parallel.rank(), 5]) == [3, 10]
        assert parallel.from_first(lambda: f"said by {parallel.rank()}") == "said by 0"
        found = {"-".join(c): weights_of(out, *c) for c in COMBINATIONS}
        torch.save(found, out / f"rank-{parallel.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
