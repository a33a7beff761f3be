"""The sections of a config: a frozen dataclass for each concern, a sentence under each field, impossible values refused.

`PretrainConfig` and `FinetuneConfig` at the end gather what each script needs to know.
"""

import codecs
import dataclasses
import math
import re
import typing
from dataclasses import dataclass, field

from minialpaca.errors import UserError


def _check(config, rules: dict[str, tuple[bool, str]]) -> None:
    """Raise for the first field whose rule is broken: `model.n_heads = 7: must divide model.d_model`."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        for text in value if isinstance(value, tuple) else [value]:
            if isinstance(text, str) and not _is_plain(text):
                raise UserError(f"{config.SECTION}.{f.name} = {text!r}: holds a character that no file name or text can hold")
            if f.name.endswith("source") and not text.strip():  # an unset shell variable must not mean the working directory
                raise UserError(f"{config.SECTION}.{f.name} = {list(value)}: one of them is blank; name a file or leave it out")
            if isinstance(value, int) and abs(value) >= 2**63:
                raise UserError(f"{config.SECTION}.{f.name} = {str(value)[:30]}…: is larger than any machine counts")
    for name, (holds, rule) in rules.items():
        if not holds:
            raise UserError(f"{config.SECTION}.{name} = {getattr(config, name)!r}: {rule}")


def _refuse_idle(config, used_by: dict[str, tuple[str, ...]]) -> None:
    """A key that the chosen method does not look at would be set in vain."""
    default = {f.name: f.default for f in dataclasses.fields(config)}
    _check(config, {key: (config.method in methods or getattr(config, key) == default[key],
                          f"means nothing to {config.SECTION}.method = {config.method!r}; leave it out, or use {', '.join(methods)}")
                    for key, methods in used_by.items()})


def _is_plain(text: str) -> bool:
    """Neither half a surrogate pair (from bytes that are no UTF-8) nor a NUL."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def is_device(name: str) -> bool:
    return bool(re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name))


@dataclass(frozen=True)
class RunConfig:
    SECTION: typing.ClassVar[str] = "run"

    dir: str = "runs/pretrain"
    """The folder that holds everything about this run."""
    seed: int = 0
    """Fixes initial weights, data order and dropout; two runs with one seed are equal bit for bit on a CPU with the same number of threads."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1` or `mps`."""
    resume: str = "auto"
    """`auto` continues the run found in the folder; `never` refuses a folder that already holds one."""
    allow_change: bool = False
    """Whether a run may go on with other values of optim, train, loss, adversarial or samples than it began with; that is recorded."""

    def __post_init__(self):
        _check(self, {
            "dir": (bool(self.dir.strip()), "name a folder"),
            "seed": (0 <= self.seed < 2**32, "must lie in 0 … 2³² − 1"),
            "device": (is_device(self.device), "use auto, cpu, cuda, cuda:N or mps"),
            "resume": (self.resume in ("auto", "never"), "use auto or never"),
        })


@dataclass(frozen=True)
class CorpusConfig:
    SECTION: typing.ClassVar[str] = "data"

    source: tuple[str, ...] = ("world",)
    """Text to pretrain on: files (.txt, .txt.gz, .jsonl, .jsonl.gz), folders, globs, or `world[:SEED]`."""
    val_source: tuple[str, ...] = ()
    """Text to validate on; where empty, a part of `source` is held out."""
    val_fraction: float = 0.05
    """The part of `source` held out: whole documents, evenly spread, or the end of a text that is too few documents."""
    documents: str = "file"
    """What one document of a .txt is: `file`, `line`, `blank_line` (paragraphs), or the line that ends one, e.g. `<|endoftext|>`."""
    text_field: str = "text"
    """The field of a .jsonl object that holds the text."""

    def __post_init__(self):
        _check(self, {
            "source": (bool(self.source), "name at least one file, folder or glob, or `world`"),
            "val_fraction": (0 < self.val_fraction < 1, "must lie strictly between 0 and 1"),
            "documents": (bool(self.documents.strip()), "use file, line, blank_line or the text of a line"),
        })


@dataclass(frozen=True)
class InstructionConfig:
    SECTION: typing.ClassVar[str] = "data"

    source: tuple[str, ...] = ("world",)
    """Files, folders or globs: Alpaca-form .json or .jsonl, or for classification .csv, .tsv, .jsonl or .txt; or `world[:SEED]` (the seed of the base run's world)."""
    val_source: tuple[str, ...] = ()
    """Examples to validate on; where empty, `val_fraction` of `source` is held out (the world has its own split)."""
    test_source: tuple[str, ...] = ()
    """Examples answered at the end and marked by exact match; the world has its own."""
    val_fraction: float = 0.05
    """The part of `source` held out for validation, drawn by `run.seed`; 0 validates on the training examples."""
    over_long: str = "drop"
    """What happens to an example longer than the context: `drop`, `truncate_response` (then without EOS) or `raise`."""

    def __post_init__(self):
        _check(self, {
            "source": (bool(self.source), "name at least one file, folder or glob, or `world`"),
            "val_fraction": (0 <= self.val_fraction < 1, "must lie in 0 … 1"),
            "over_long": (self.over_long in ("drop", "truncate_response", "raise"),
                          "use drop, truncate_response or raise"),
        })


@dataclass(frozen=True)
class TokenizerConfig:
    SECTION: typing.ClassVar[str] = "tokenizer"

    path: str = ""
    """A SentencePiece .model file to use (Llama's, say); where empty, one is trained on `data.source`."""
    kind: str = "bpe"
    """What to train: `bpe`, `unigram` or `char`."""
    vocab_size: int = 2048
    """Upper bound on the number of pieces to train, 260 of which are control and byte pieces."""

    def __post_init__(self):
        _check(self, {
            "kind": (self.kind in ("bpe", "unigram", "char"), "use bpe, unigram or char"),
            "vocab_size": (264 <= self.vocab_size <= 1_000_000, "must lie in 264 … 1,000,000"),
        })


@dataclass(frozen=True)
class ModelConfig:
    SECTION: typing.ClassVar[str] = "model"

    architecture: str = "decoder"
    """`decoder` (looks back: GPT, Llama), `encoder` (looks both ways: BERT) or `encoder_decoder` (T5)."""
    vocab_size: int = 0
    """V, the number of token ids; 0 takes the tokenizer's, and those that the objective adds."""
    d_model: int = 192
    """D, the width of the residual stream."""
    n_layers: int = 4
    """The number of blocks, in each stack where there are two."""
    n_heads: int = 6
    """H, the number of query heads."""
    n_kv_heads: int = 0
    """G, the number of key and value heads (grouped-query attention); 0 means one for each query head."""
    d_ff: int = 512
    """F, the inner width of SwiGLU; 8/3 · d_model gives the parameters of a classic 4 · d_model feed-forward."""
    max_seq_len: int = 128
    """The context: the most tokens that are looked at together."""
    dropout: float = 0.0
    """The probability with which activations are dropped in training (embedding, attention map, both sub-layers)."""
    tie_embeddings: bool = True
    """Whether `lm_head` shares its matrix with `embed`."""
    rope_theta: float = 10_000.0
    """θ, the base of the rotary wavelengths 2π θ^(2i/d_head)."""
    norm_eps: float = 1e-5
    """ε under the root of RMSNorm."""
    init_std: float = 0.02
    """σ of the initial `embed` and `lm_head`; the matrices between have 1/√d_model, and 1/√(2 n_layers d_model) into the residual stream."""
    attention: str = "fused"
    """`fused` (PyTorch's scaled_dot_product_attention) or `spelled` (softmax(QKᵀ/√d)V step by step)."""

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    def __post_init__(self):
        whole = {name: (getattr(self, name) >= 1, "must be at least 1")
                 for name in ("d_model", "n_layers", "n_heads", "d_ff", "max_seq_len")}
        _check(self, whole)
        _check(self, {
            "architecture": (self.architecture in ("decoder", "encoder", "encoder_decoder"),
                             "use decoder, encoder or encoder_decoder"),
            "vocab_size": (self.vocab_size >= 0, "must not be negative"),
            "n_heads": (self.d_model % self.n_heads == 0, f"must divide model.d_model = {self.d_model}"),
            "n_kv_heads": (self.n_kv_heads >= 0 and self.n_heads % self.kv_heads == 0,
                           f"must divide model.n_heads = {self.n_heads}"),
            "dropout": (0 <= self.dropout < 1, "must lie in 0 … 1"),
            "rope_theta": (1 < self.rope_theta < math.inf, "must be larger than 1"),
            "norm_eps": (0 < self.norm_eps < 1, "must lie in 0 … 1"),
            "init_std": (0 < self.init_std < math.inf, "must be positive"),
            "attention": (self.attention in ("fused", "spelled"), "use fused or spelled"),
        })
        _check(self, {"d_model": (self.d_head % 2 == 0,
                                  f"d_model / n_heads = {self.d_head} must be even: rotary positions turn pairs")})


@dataclass(frozen=True)
class ObjectiveConfig:
    SECTION: typing.ClassVar[str] = "objective"

    name: str = "causal"
    """What pretraining predicts: `causal` (the next token; a decoder), `masked` (hidden tokens; an encoder) or `span` (hidden stretches; an encoder_decoder)."""
    noise_rate: float = 0.15
    """The part of the tokens that is hidden (masked, span)."""
    random_rate: float = 0.1
    """masked: the part of the hidden tokens that shows another token instead of the mask."""
    keep_rate: float = 0.1
    """masked: the part of the hidden tokens that shows itself."""
    mean_span: float = 3.0
    """span: the mean length of a hidden stretch, in tokens."""

    def __post_init__(self):
        _check(self, {
            "name": (self.name in ARCHITECTURE_OF, "use causal, masked or span"),
            "noise_rate": (0 < self.noise_rate < 1, "must lie strictly between 0 and 1"),
            "random_rate": (0 <= self.random_rate <= 1, "must lie in 0 … 1"),
            "keep_rate": (0 <= self.keep_rate <= 1 - self.random_rate, "must lie in 0 … 1 − objective.random_rate"),
            "mean_span": (1 <= self.mean_span < math.inf, "must be at least 1"),
        })


ARCHITECTURE_OF = {"causal": "decoder", "masked": "encoder", "span": "encoder_decoder"}


@dataclass(frozen=True)
class LossConfig:
    SECTION: typing.ClassVar[str] = "loss"

    l2: float = 0.0
    """λ of L_adapt = L + λ‖θ‖₂², θ being all that is trained; AdamW's weight_decay is another thing (docs/LEDGER.md)."""
    label_smoothing: float = 0.0
    """The part of the target's probability that is spread evenly over all classes, in training."""
    r_drop: float = 0.0
    """α of R-Drop: how much two passes with different dropout have to agree; each step then takes two passes."""

    def __post_init__(self):
        _check(self, {
            "l2": (0 <= self.l2 < math.inf, "must not be negative"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "must lie in 0 … 1"),
            "r_drop": (0 <= self.r_drop < math.inf, "must not be negative"),
        })


@dataclass(frozen=True)
class TaskConfig:
    SECTION: typing.ClassVar[str] = "task"

    name: str = "instruction"
    """What is learned: `instruction` (to answer) or `classification` (to label texts; the section `classes` says how, `samples` and `data.over_long` have no use there)."""

    def __post_init__(self):
        _check(self, {"name": (self.name in ("instruction", "classification"), "use instruction or classification")})


@dataclass(frozen=True)
class ClassesConfig:
    SECTION: typing.ClassVar[str] = "classes"

    text: tuple[str, ...] = ("text",)
    """The column, or columns joined by a space, that hold the text."""
    labels: tuple[str, ...] = ("label",)
    """The columns that hold the labels: M label groups, one head each."""
    several: tuple[str, ...] = ()
    """Those of `labels` that hold any number of labels (multi-label), separated by `separator`."""
    separator: str = "|"
    """What stands between several labels of one cell."""
    lines: str = ""
    """For .txt: the pattern of a line, such as `{label} {text}` (split at the first space) or `{text}@{label}` (at the last @); the names in braces are columns."""
    header: bool = True
    """Whether the first row of a .csv or .tsv names its columns; where not, they are numbered 1, 2, and so on."""
    quotes: bool = True
    """Whether cells of a .csv or .tsv may stand in quotation marks, and then hold separators and line breaks; false takes every mark as it stands."""
    encoding: str = "utf-8"
    """How the files are encoded, e.g. windows-1252; a byte-order mark is tolerated."""
    test_fraction: float = 0.0
    """The part of `data.source` held out for the test where `data.test_source` is empty, drawn by `run.seed`, in each class of the first group alike."""
    leaks: str = "drop"
    """What happens to training and validation texts that stand in a later split (training, validation, test) too, equal to the letter: `drop` from the earlier one, `keep` or `raise`; they are counted in any case."""
    over_long: str = "truncate"
    """What happens to a text longer than the context: `truncate` (its end is cut) or `raise`."""
    pooling: str = "auto"
    """Where a text's vector is read: the `last` real token, the `first` (not in a decoder, which has seen nothing there) the `mean` of all, or in each coordinate the `max`; `auto` is last in a decoder, mean in an encoder."""

    def __post_init__(self):
        _check(self, {
            "text": (bool(self.text) and not set(self.text) & set(self.labels),
                     f"name at least one column, and none of classes.labels = {list(self.labels)}"),
            "labels": (bool(self.labels) and len(set(self.labels)) == len(self.labels), "name at least one column, each once"),
            "several": (set(self.several) <= set(self.labels), f"must be among classes.labels = {list(self.labels)}; several labels are a list: [\"a\", \"b\"]"),
            "separator": (bool(self.separator), "must not be empty"),
            "test_fraction": (0 <= self.test_fraction < 1, "must lie in 0 … 1"),
            "leaks": (self.leaks in ("drop", "keep", "raise"), "use drop, keep or raise"),
            "over_long": (self.over_long in ("truncate", "raise"), "use truncate or raise"),
            "pooling": (self.pooling in ("auto", "last", "first", "mean", "max"), "use auto, last, first, mean or max"),
            "encoding": (_is_encoding(self.encoding), "is no encoding that Python knows; e.g. utf-8, windows-1252, gb18030"),
        })


def _is_encoding(name: str) -> bool:
    try:
        return bool(codecs.lookup(name)._is_text_encoding)
    except (LookupError, ValueError):
        return False


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
        _check(self, {
            "run": (bool(self.run.strip()), "name the folder of a run"),
            "weights": (self.weights in ("best", "last", "random"), "use best, last or random"),
            "dropout": (0 <= self.dropout < 1, "must lie in 0 … 1"),
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
    """All but prompt: which layers, as a slice: `:` all, `-2:` the last two, `1:3` the second and third. `freeze` trains these whole; the others are put into these."""
    targets: tuple[str, ...] = ()
    """bitfit, lora, dora, adalora, ia3: the Linears, by the end of their names (q_proj, mlp.up_proj, lm_head); where empty, those of the method's paper."""
    also: tuple[str, ...] = ()
    """All: what is trained whole besides, in all layers: `embedding`, `norm`, `bias`, `head`; a classifier's new heads always are."""
    rank: int = 8
    """lora, dora, adalora: r, the rank that a change of a matrix begins with."""
    alpha: float = 16.0
    """lora, dora, adalora: α of the scale α/r."""
    rank_stabilised: bool = False
    """lora, dora: the scale is α/√r instead."""
    dropout: float = 0.0
    """lora, dora, adalora: dropout of the input on its way through the low-rank part."""
    bottleneck: int = 16
    """houlsby: the width m between the two projections."""
    placement: str = "both"
    """houlsby: after `both` sub-layers (Houlsby et al. 2019), or after the `mlp` alone (Pfeiffer et al. 2021)."""
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
        _check(self, {
            "method": (self.method in ADAPTERS, f"use {', '.join(ADAPTERS[:-1])} or {ADAPTERS[-1]}"),
            "layers": (bool(re.fullmatch(r"(-?\d{1,4})?:(-?\d{1,4})?", self.layers)), "write a slice, such as : or -2: or 1:3"),
            "targets": (all(t.strip() for t in self.targets), "one of them is blank"),
            "also": (set(self.also) <= set(ROLES), f"use {', '.join(ROLES)}"),
            "rank": (self.rank >= 1, "must be at least 1"),
            "alpha": (0 < self.alpha < math.inf, "must be positive"),
            "dropout": (0 <= self.dropout < 1, "must lie in 0 … 1"),
            "bottleneck": (self.bottleneck >= 1, "must be at least 1"),
            "placement": (self.placement in ("both", "mlp"), "use both or mlp"),
            "length": (self.length >= 1, "must be at least 1"),
            "target_rank": (0 < self.target_rank and (self.method != "adalora" or self.target_rank <= self.rank),
                            f"must be positive and at most adapter.rank = {self.rank}"),
            "warmup_part": (0 <= self.warmup_part < 1, "must lie in 0 … 1"),
            "final_part": (0 <= self.final_part < 1 - self.warmup_part,
                           "must lie in 0 … 1 − adapter.warmup_part, so that there is time to prune"),
            "interval": (self.interval >= 1, "must be at least 1"),
            "orthogonality": (0 <= self.orthogonality < math.inf, "must not be negative"),
            "sensitivity_decay": (0 < self.sensitivity_decay < 1, "must lie strictly between 0 and 1"),
            "uncertainty_decay": (0 < self.uncertainty_decay < 1, "must lie strictly between 0 and 1"),
        })
        _refuse_idle(self, USED_BY)


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
    """vat: texts without labels, one a line of a .txt or .txt.gz, or the field `text` of a .jsonl; as many a step as labelled ones."""

    def __post_init__(self):
        _check(self, {
            "method": (self.method in ATTACKS, f"use {', '.join(ATTACKS[:-1])} or {ATTACKS[-1]}"),
            "epsilon": (0 < self.epsilon < math.inf, "must be positive: it is the length of the perturbation"),
            "clean_weight": (0 <= self.clean_weight < math.inf, "must not be negative"),
            "adversarial_weight": (0 < self.adversarial_weight < math.inf, "must be positive; adversarial.method=none trains without attacks"),
            "steps": (1 <= self.steps <= 1000, "must lie in 1 … 1000"),
            "step_size": (0 <= self.step_size < math.inf, "must not be negative"),
            "xi": (0 < self.xi < math.inf, "must be positive: at 0 the divergence is flat"),
            "power_iterations": (1 <= self.power_iterations <= 1000, "must lie in 1 … 1000"),
            "unlabelled": (all(source.strip() for source in self.unlabelled), "one of them is blank"),
        })
        _refuse_idle(self, ATTACKS_USE)


@dataclass(frozen=True)
class OptimConfig:
    SECTION: typing.ClassVar[str] = "optim"

    lr: float = 1e-3
    """The highest learning rate."""
    schedule: str = "cosine"
    """After the warm-up: `cosine` or `linear` down to `min_lr_ratio` · lr at the last step, or `constant`."""
    min_lr_ratio: float = 0.1
    """Where the schedule ends, as a part of lr."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises in a straight line to lr."""
    weight_decay: float = 0.1
    """AdamW's decoupled decay, on matrices and embeddings; norms and biases are spared."""
    beta1: float = 0.9
    """AdamW's decay rate of the first moment."""
    beta2: float = 0.95
    """AdamW's decay rate of the second moment."""
    adam_eps: float = 1e-8
    """AdamW's ε in the denominator."""
    clip_norm: float = 1.0
    """The largest L2 norm of the whole gradient; 0 turns clipping off."""

    def __post_init__(self):
        _check(self, {
            "lr": (0 < self.lr < math.inf, "must be positive"),
            "schedule": (self.schedule in ("cosine", "linear", "constant"), "use cosine, linear or constant"),
            "min_lr_ratio": (0 <= self.min_lr_ratio <= 1, "must lie in 0 … 1"),
            "warmup_steps": (self.warmup_steps >= 0, "must not be negative"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "must not be negative"),
            "beta1": (0 <= self.beta1 < 1, "must lie in 0 … 1"),
            "beta2": (0 <= self.beta2 < 1, "must lie in 0 … 1"),
            "adam_eps": (0 < self.adam_eps < 1, "must be positive and small"),
            "clip_norm": (0 <= self.clip_norm < math.inf, "must not be negative"),
        })


@dataclass(frozen=True)
class TrainConfig:
    SECTION: typing.ClassVar[str] = "train"

    steps: int = 0
    """Optimiser steps; 0 takes `epochs`."""
    epochs: float = 1.0
    """Passes over the training data, where `steps` is 0."""
    batch_size: int = 16
    """Sequences in one micro-batch."""
    accumulation: int = 1
    """Micro-batches in one optimiser step."""
    eval_every: int = 200
    """Steps between evaluations (there is one before the first step and one after the last)."""
    eval_batches: int = 0
    """Validation batches in one evaluation, always the same ones; 0 takes all."""
    precision: str = "auto"
    """What products of matrices are computed in: `fp32`, `bf16`, `fp16` (with loss scaling), or `auto`: bf16 where a GPU computes it natively, fp16 on older ones, fp32 elsewhere. Weights, gradients and sums are fp32 in any case."""
    deterministic: bool = False
    """Equal bits or none: only algorithms whose sums do not depend on timing (slower on a GPU), tried out before the first step; continued in the same surroundings only."""
    recompute: bool = False
    """Whether layers keep nothing but their input and are computed again on the way back (activation checkpointing): less memory, a third more time, the same numbers."""
    save_every: int = 0
    """Steps between checkpoints besides those at evaluations; 0 for none."""
    keep: int = 1
    """How many of the newest checkpoints stay, besides the `best`."""
    best_by: str = "val_loss"
    """What makes a checkpoint the `best`: `val_loss`, or in classification `val_accuracy` or `val_macro_f1`."""
    patience: int = 0
    """Stop early after this many evaluations without a better `best_by`; 0 never does."""

    def __post_init__(self):
        _check(self, {name: (getattr(self, name) >= 1, "must be at least 1")
                      for name in ("batch_size", "accumulation", "eval_every", "keep")})
        _check(self, {name: (getattr(self, name) >= 0, "must not be negative")
                      for name in ("steps", "eval_batches", "save_every", "patience")})
        _check(self, {"epochs": (0 < self.epochs < math.inf, "must be positive"),
                      "precision": (self.precision in ("auto", "fp32", "bf16", "fp16"), "use auto, fp32, bf16 or fp16"),
                      "best_by": (self.best_by in ("val_loss", "val_accuracy", "val_macro_f1"),
                                  "use val_loss, val_accuracy or val_macro_f1")})


@dataclass(frozen=True)
class SampleConfig:
    SECTION: typing.ClassVar[str] = "samples"

    prompts: tuple[str, ...] = ()
    """What is asked at each evaluation and at the end (text to go on from, or instructions); where empty, from the validation data."""
    count: int = 4
    """How many validation prompts are taken where `prompts` is empty."""
    max_new_tokens: int = 48
    """The longest sample, in tokens."""

    def __post_init__(self):
        _check(self, {"count": (self.count >= 0, "must not be negative"),
                      "max_new_tokens": (self.max_new_tokens >= 1, "must be at least 1")})


def _refuse_wordless_vat(adversarial: AdversarialConfig, task: str) -> None:
    _check(adversarial, {"method": (adversarial.method != "vat" or task == "classification",
                                    "compares what a classifier says of a text; use it with task.name=classification")})


def _refuse_two_passes(loss: LossConfig, adversarial: AdversarialConfig) -> None:
    """R-Drop asks the embedding twice for one loss; what a perturbation of its «sequence» is, no paper says."""
    _check(loss, {"r_drop": (not loss.r_drop or adversarial.method == "none",
                             f"is not defined together with adversarial.method = {adversarial.method!r}; leave one of them out")})


def _refuse_idle_r_drop(loss: LossConfig, dropout: float, name: str) -> None:
    """Without dropout both passes are one, at twice the price."""
    _check(loss, {"r_drop": (not loss.r_drop or dropout > 0, f"compares two passes with dropout; set {name}, or loss.r_drop=0")})


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
        _check(self.objective, {"name": (self.model.architecture == needed, f"is for another architecture than model.architecture = "
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
        _refuse_idle_r_drop(self.loss, self.base.dropout, "base.dropout")
        _refuse_two_passes(self.loss, self.adversarial)
        _refuse_wordless_vat(self.adversarial, self.task.name)
