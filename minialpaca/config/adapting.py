"""What a finished model is tuned to, how much of it moves, and how its inputs are attacked meanwhile."""

import re
import typing
from dataclasses import dataclass

from minialpaca.config.rules import check, refuse_idle


@dataclass(frozen=True)
class TaskConfig:
    SECTION: typing.ClassVar[str] = "task"

    name: str = "instruction"
    """What is learned: `instruction` (to answer) or `classification` (to label texts; the section `classes` says how, `samples` and `data.over_long` have no use there)."""

    def __post_init__(self):
        check(self, {"name": (self.name in ("instruction", "classification"), "use instruction or classification")})


@dataclass(frozen=True)
class BaseConfig:
    SECTION: typing.ClassVar[str] = "base"

    run: str = "runs/pretrain"
    """The folder of the run to start from: its model, tokenizer and weights."""
    weights: str = "best"
    """`best` or `last` checkpoint, or `random`: the same model untrained, to see what pretraining was worth."""
    dropout: float = 0.0
    """Dropout while fine-tuning."""
    max_seq_len: int = 0
    """The context while fine-tuning and afterwards; 0 keeps the base's."""

    def __post_init__(self):
        check(self, {
            "run": (bool(self.run.strip()), "name the folder of a run"),
            "weights": (self.weights in ("best", "last", "random"), "use best, last or random"),
            "dropout": (0 <= self.dropout < 1, "must be at least 0 and below 1"),
            "max_seq_len": (self.max_seq_len >= 0, "must not be negative"),
        })


ADAPTERS = ("none", "freeze", "bitfit", "lora", "dora", "houlsby", "adalora", "ia3", "prefix", "prompt")
ROLES = ("embedding", "norm", "bias", "head")
LOW_RANK = ("lora", "dora", "adalora")
USED_BY = {  # each key of [adapter] → the methods that look at it; elsewhere another value than the default is refused
    "layers": tuple(m for m in ADAPTERS if m not in ("none", "prompt")),
    "targets": ("bitfit", *LOW_RANK, "ia3"),
    "also": ADAPTERS[1:],
    "rank": LOW_RANK, "alpha": LOW_RANK, "dropout": LOW_RANK,
    "rank_stabilised": ("lora", "dora"),
    "bottleneck": ("houlsby",), "placement": ("houlsby",),
    "length": ("prefix", "prompt"),
    **dict.fromkeys(("target_rank", "warmup_part", "final_part", "interval", "orthogonality", "sensitivity_decay",
                     "uncertainty_decay"), ("adalora",)),
}


@dataclass(frozen=True)
class AdapterConfig:
    SECTION: typing.ClassVar[str] = "adapter"

    method: str = "none"
    """How few parameters are trained: `none` (all of them), `freeze`, `bitfit`, `lora`, `dora`, `houlsby`, `adalora`, `ia3`, `prefix` or `prompt`; the base's own stay as they are in all but `none`."""
    layers: str = ":"
    """All but prompt: which layers, as a slice: `:` all, `-2:` the last two, `1:3` the second and third. `freeze` trains these whole (`0:0`: none, only what `also` names and a classifier's new heads); the others are put into these."""
    targets: tuple[str, ...] = ()
    """bitfit, lora, dora, adalora, ia3: the Linears, by the end of their names (q_proj, mlp.up_proj, lm_head); where empty, those that its paper changes."""
    also: tuple[str, ...] = ()
    """All: what is trained whole besides, in all layers: `embedding`, `norm`, `bias`, `head`; a classifier's new heads always are."""
    rank: int = 8
    """lora, dora, adalora: r, the rank that a change of a matrix begins with."""
    alpha: float = 16.0
    """lora, dora, adalora: α of the scale α/r, or α/√r."""
    rank_stabilised: bool = False
    """lora, dora: the scale is α/√r instead."""
    dropout: float = 0.0
    """lora, dora, adalora: dropout of the input on its way through the low-rank part."""
    bottleneck: int = 16
    """houlsby: the width m between the two projections."""
    placement: str = "both"
    """houlsby: after `both` sub-layers (Houlsby et al. 2019), or after the `mlp` alone (Pfeiffer et al. 2021), which trains no norms besides."""
    length: int = 8
    """prefix, prompt: how many virtual tokens stand before the text."""
    target_rank: float = 4.0
    """adalora: the mean rank that is left at the end."""
    warmup_part: float = 0.1
    """adalora: t_i, the part of all steps before the budget begins to fall."""
    final_part: float = 0.3
    """adalora: t_f, the part of all steps that trains with the final budget."""
    interval: int = 10
    """adalora: ΔT, the steps between two allocations."""
    orthogonality: float = 0.1
    """adalora: γ of γ (‖PᵀP − I‖² + ‖QQᵀ − I‖²), summed over the matrices."""
    sensitivity_decay: float = 0.85
    """adalora: β₁, the decay of the sensitivity's average."""
    uncertainty_decay: float = 0.85
    """adalora: β₂, the decay of the uncertainty's average."""

    def __post_init__(self):
        check(self, {
            "method": (self.method in ADAPTERS, f"use {', '.join(ADAPTERS[:-1])} or {ADAPTERS[-1]}"),
            "layers": (bool(re.fullmatch(r"(-?\d{1,4})?:(-?\d{1,4})?", self.layers)), "write a slice, such as : or -2: or 1:3"),
            "targets": (all(t.strip() and "," not in t for t in self.targets), """name each by itself, as in ["q_proj", "v_proj"]"""),
            "also": (set(self.also) <= set(ROLES), f"""use {', '.join(ROLES)}, several as in ["embedding", "head"]"""),
            "rank": (self.rank >= 1, "must be at least 1"),
            "alpha": (0 < self.alpha < 1e30, "must be positive, and small enough for fp32: it is the strength of the change"),
            "dropout": (0 <= self.dropout < 1, "must be at least 0 and below 1"),
            "bottleneck": (self.bottleneck >= 1, "must be at least 1"),
            "placement": (self.placement in ("both", "mlp"), "use both or mlp"),
            "length": (self.length >= 1, "must be at least 1"),
            "target_rank": (0 < self.target_rank and (self.method != "adalora" or self.target_rank <= self.rank),
                            f"must be positive and at most adapter.rank = {self.rank}"),
            "warmup_part": (0 <= self.warmup_part < 1, "must be at least 0 and below 1"),
            "final_part": (0 <= self.final_part < 1 - self.warmup_part,
                           "must lie in 0 … 1 − adapter.warmup_part, so that there is time to prune"),
            "interval": (self.interval >= 1, "must be at least 1"),
            "orthogonality": (0 <= self.orthogonality < 1e30, "must not be negative, and small enough for fp32"),
            "sensitivity_decay": (0 < self.sensitivity_decay < 1, "must lie strictly between 0 and 1"),
            "uncertainty_decay": (0 < self.uncertainty_decay < 1, "must lie strictly between 0 and 1"),
        })
        refuse_idle(self, USED_BY)


FAR = 1e15  # a norm squares what it is given, and fp32 ends at 3·10³⁸
ATTACKS = ("none", "fgm", "fgsm", "pgd", "freelb", "vat", "matrix")
WEIGHED = ("fgm", "fgsm", "pgd", "vat", "matrix")
ATTACKS_USE = {  # as USED_BY, of [adversarial]
    "epsilon": ATTACKS[1:],
    "clean_weight": WEIGHED, "adversarial_weight": WEIGHED,
    "steps": ("pgd", "freelb"), "step_size": ("pgd", "freelb"),
    "tied": ("matrix",),
    "xi": ("vat",), "power_iterations": ("vat",), "unlabelled": ("vat",),
}


@dataclass(frozen=True)
class AdversarialConfig:
    SECTION: typing.ClassVar[str] = "adversarial"

    method: str = "none"
    """How inputs are perturbed in training: `none`, `fgm` (Miyato et al.: each example's embeddings along their gradient), `fgsm` (its sign), `pgd` (several steps), `freelb` (each step trains), `vat` (what a classifier says is not to move; needs no labels), or `matrix` (the common shortcut: the whole embedding matrix)."""
    epsilon: float = 1.0
    """All: ε, the length of a perturbation: L2 over an example's whole sequence; for `fgsm` of each coordinate, for `matrix` over the matrix."""
    clean_weight: float = 1.0
    """fgm, fgsm, pgd, vat, matrix: c of c · L + a · L_adv."""
    adversarial_weight: float = 1.0
    """fgm, fgsm, pgd, vat, matrix: a of c · L + a · L_adv."""
    steps: int = 3
    """pgd, freelb: the steps of the ascent; each costs a pass."""
    step_size: float = 0.0
    """pgd, freelb: α, the length of one step of the ascent; 0 takes ε."""
    tied: bool = False
    """matrix: go on where the embedding is the output head too, and move both."""
    xi: float = 0.1
    """vat: ξ, how far along a direction the divergence's gradient is taken."""
    power_iterations: int = 1
    """vat: how often the direction is made better; each costs a pass."""
    unlabelled: tuple[str, ...] = ()
    """vat: texts without labels, one a line of a .txt or .txt.gz, or the field `text` of a .jsonl; beside each labelled batch one of up to train.batch_size of them."""

    def __post_init__(self):
        check(self, {
            "method": (self.method in ATTACKS, f"use {', '.join(ATTACKS[:-1])} or {ATTACKS[-1]}"),
            "epsilon": (0 < self.epsilon < FAR, "must be positive, and small enough for its square in fp32: it is the length of the perturbation"),
            "clean_weight": (0 <= self.clean_weight < FAR, "must not be negative, and small enough for fp32"),
            "adversarial_weight": (0 < self.adversarial_weight < FAR, "must be positive, and small enough for fp32; adversarial.method=none trains without attacks"),
            "steps": (1 <= self.steps <= 1000, "must lie in 1 … 1000"),
            "step_size": (0 <= self.step_size < FAR, "must not be negative, and small enough for fp32"),
            "xi": (0 < self.xi < FAR, "must be positive, and small enough for fp32: at 0 the divergence is flat"),
            "power_iterations": (1 <= self.power_iterations <= 1000, "must lie in 1 … 1000"),
            "unlabelled": (all(source.strip() for source in self.unlabelled), "one of them is blank"),
        })
        refuse_idle(self, ATTACKS_USE)
