"""All that one script needs to know, and what two sections together refuse."""

from dataclasses import dataclass, field

from minialpaca.config.adapting import AdapterConfig, AdversarialConfig, BaseConfig, TaskConfig
from minialpaca.config.data import ClassesConfig, CorpusConfig, InstructionConfig, TokenizerConfig
from minialpaca.config.model import ARCHITECTURE_OF, ModelConfig, ObjectiveConfig
from minialpaca.config.rules import check
from minialpaca.config.training import LossConfig, OptimConfig, RunConfig, SampleConfig, TrainConfig


@dataclass(frozen=True)
class PretrainConfig:
    """Everything `train.py` needs to know."""

    run: RunConfig = RunConfig()
    data: CorpusConfig = CorpusConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    loss: LossConfig = LossConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    samples: SampleConfig = SampleConfig()

    def __post_init__(self):
        _refuse_idle_r_drop(self.loss, self.model.dropout, "model.dropout")
        _refuse_two_passes(self.loss, self.adversarial)
        _refuse_wordless_vat(self.adversarial, "pretraining")
        needed = ARCHITECTURE_OF[self.objective.name]
        check(self.objective, {"name": (self.model.architecture == needed, f"is for another architecture than model.architecture = "
                                        f"{self.model.architecture!r}; set model.architecture={needed}")})


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything `finetune.py` needs to know. `model` is the base's and filled in from there."""

    run: RunConfig = RunConfig(dir="runs/alpaca")
    base: BaseConfig = BaseConfig()
    task: TaskConfig = TaskConfig()
    data: InstructionConfig = InstructionConfig()
    classes: ClassesConfig = ClassesConfig()
    model: ModelConfig = ModelConfig()
    adapter: AdapterConfig = AdapterConfig()
    loss: LossConfig = LossConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(weight_decay=0.0))
    train: TrainConfig = TrainConfig(epochs=3.0)
    samples: SampleConfig = SampleConfig()

    def __post_init__(self):
        _refuse_idle_r_drop(self.loss, max(self.base.dropout, self.adapter.dropout), "base.dropout, or adapter.dropout with LoRA")
        _refuse_two_passes(self.loss, self.adversarial)
        _refuse_wordless_vat(self.adversarial, self.task.name)


def _refuse_wordless_vat(adversarial: AdversarialConfig, task: str) -> None:
    check(adversarial, {"method": (adversarial.method != "vat" or task == "classification",
                                   "compares what a classifier says of a text; use it with task.name=classification")})


def _refuse_two_passes(loss: LossConfig, adversarial: AdversarialConfig) -> None:
    """R-Drop asks the embedding twice for one loss; what a perturbation of its «sequence» is, no paper says."""
    check(loss, {"r_drop": (not loss.r_drop or adversarial.method == "none",
                            f"is not defined together with adversarial.method = {adversarial.method!r}; leave one of them out")})


def _refuse_idle_r_drop(loss: LossConfig, dropout: float, name: str) -> None:
    """Without dropout both passes are one, at twice the price."""
    check(loss, {"r_drop": (not loss.r_drop or dropout > 0, f"compares two passes with dropout; set {name}, or loss.r_drop=0")})
