"""Labelling: texts → the classes that a tuned classifier says, with their probabilities.

    python -m minialpaca.classify RUN "The soup was awful." "A lovely inn."
    python -m minialpaca.classify RUN --file texts.txt
"""

import argparse
from pathlib import Path

from minialpaca import commandline


def asked() -> argparse.Namespace:
    options = commandline.parser("classify", __doc__)
    options.add_argument("run", help="the folder of a finetune.py run with task.name = classification")
    options.add_argument("text", nargs="*", help="texts to label, each in quotation marks")
    options.add_argument("--file", type=Path, help="a file with one text a line")
    options.add_argument("--encoding", default="utf-8", help="of that file")
    commandline.add_weights(options)
    return options.parse_intermixed_args()  # options may stand between the texts


commandline.early(__name__, asked)

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minialpaca import run
from minialpaca.config import ClassesConfig, FinetuneConfig
from minialpaca.data.batch import fill_right
from minialpaca.data.buckets import Buckets
from minialpaca.data.files import read_lines, refuse, whole_lines, write_whole
from minialpaca.data.texts import Group, text_ids
from minialpaca.errors import UserError, command
from minialpaca.heads import Classifier
from minialpaca.model import Transformer
from minialpaca.storage import checkpoint
from minialpaca.storage.place import LABELS
from minialpaca.tasks.classification import learned, pooling_of, probabilities, said
from minialpaca.tokenizer import Tokenizer


@dataclass(frozen=True)
class Labeller:
    """A classifier and what its numbers mean."""

    model: Classifier
    tokenizer: Tokenizer
    groups: Sequence[Group]

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], batch_size: int = 64) -> list[Tensor]:
        """For each group the probabilities (N, C) of the texts; what does not fit the context is cut off."""
        ids = [text_ids(self.tokenizer, text.strip(), self.model.backbone.cfg.max_seq_len)[0] for text in texts]
        found = [torch.zeros(len(texts), len(group.classes), dtype=torch.float64) for group in self.groups]
        for chosen in Buckets([len(row) for row in ids]).by_length(range(len(texts)), batch_size):
            for p, group, z in zip(found, self.groups, self.logits([ids[i] for i in chosen])):
                p[chosen] = probabilities(group, z.cpu().double())
        return found

    def logits(self, ids: Sequence[Sequence[int]]) -> list[Tensor]:
        tokens_BT, real_BT = fill_right(ids, self.tokenizer.pad)
        device = self.model.backbone.embed.weight.device
        return self.model(tokens_BT.to(device), real_BT.to(device))


# ── the run folder ───────────────────────────────────────────────────────────────────────────────


def keep_labels(folder: Path, groups: Sequence[Group]) -> None:
    """Write labels.json (group → its classes in the order of their numbers), also in place of one that is damaged, or refuse to go on with other classes than the run's."""
    labels, place = {group.name: list(group.classes) for group in groups}, checkpoint.find(folder)
    known = checkpoint.read_state(place).get("labels", {}).get("classes") if place else None
    there = read_labels(folder)
    if (known or there or labels) != labels:
        raise UserError(f"{folder / LABELS}: the run has other classes than the training texts have now; take the texts it was "
                        "begun with, or choose another run.dir")
    if there != labels:
        write_whole(folder / LABELS, json.dumps(labels, ensure_ascii=False, indent=1) + "\n")


def read_labels(folder: Path) -> dict[str, list[str]] | None:
    """None where the file is missing or damaged."""
    try:
        labels = json.loads((folder / LABELS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(labels, dict) and all(
        isinstance(names, list) and names and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
        for names in labels.values())
    return labels if whole else None


def read_groups(folder: Path, classes: ClassesConfig) -> list[Group]:
    labels = read_labels(folder)
    if labels is None or not labels.keys() >= set(classes.labels):
        raise UserError(f"{folder / LABELS}: is missing or damaged; let finetune.py go on with this run once")
    return [Group(name, tuple(labels[name]), name in classes.several) for name in classes.labels]


def refuse_other_labels(folder: Path, place: Path, settings: FinetuneConfig, groups: Sequence[Group]) -> None:
    """What the numbers of the heads mean stands beside their weights, too."""
    known, here = checkpoint.read_state(place).get("labels", {}), learned(groups, pooling_of(settings))
    if known.get("classes", here["classes"]) != here["classes"]:
        raise UserError(f"{folder / LABELS}: has other classes than the checkpoint has learned; let finetune.py go on with this run once")
    if known.get("pooling", here["pooling"]) != here["pooling"]:
        raise UserError(f"{folder / run.CONFIG}: classes.pooling = {here['pooling']!r}, and the checkpoint was trained with {known['pooling']!r}; put that back")


def classifier(settings: FinetuneConfig, backbone: Transformer, groups: Sequence[Group]) -> Classifier:
    return Classifier(backbone, [len(group.classes) for group in groups], pooling_of(settings), settings.run.seed)


def load_labeller(folder: str | Path, which: str = "best", device: torch.device | str = "cpu") -> Labeller:
    """The classifier of a run, ready to label."""
    folder = Path(folder)
    settings = run.settings_of(folder)
    if not isinstance(settings, FinetuneConfig) or settings.task.name != "classification":
        raise UserError(f"{folder}: holds no classifier; give the run.dir of a finetune.py run with "
                        "task.name = classification")
    tokenizer, groups = run.tokenizer_of(folder), read_groups(folder, settings.classes)
    model = classifier(settings, run.build(settings), groups)
    place = run.weights_of(folder, which)
    refuse_other_labels(folder, place, settings, groups)
    run.load_trained(model, model.backbone, settings, place, tokenizer.sha256)
    return Labeller(model.to(device).eval(), tokenizer, groups)


# ── command line ─────────────────────────────────────────────────────────────────────────────────


def read_plain(path: Path, encoding: str) -> list[str]:
    """One text a line; an empty one would be labelled with what the data has most of."""
    ClassesConfig(encoding=encoding)  # refuses what is none
    lines = list(whole_lines(read_lines(path, encoding=encoding, mend="set --encoding, e.g. windows-1252")))
    refuse(path, [f"line {number}: is empty" for number, line in lines if not line.strip()], "Remove them")
    return [line.rstrip("\n") for _, line in lines]


def verdict(group: Group, p_C: Tensor) -> str:
    """`positive 0.981`, or all classes above one half, or `none`."""
    told = zip(group.classes, p_C.tolist(), said(group, p_C[None])[0].tolist())
    return ", ".join(f"{name} {p:.3f}" for name, p, yes in told if yes) or "none"


@command
def main() -> None:
    args = asked()
    texts = [*args.text, *(read_plain(args.file, args.encoding) if args.file else [])]
    if not texts or not all(text.strip() for text in texts):
        raise UserError("command line: give texts, none of them empty, or --file")
    labeller = load_labeller(args.run, args.checkpoint, run.pick_device(args.device))
    found = labeller(texts)
    for i, text in enumerate(texts):
        told = (f"{group.name}: {verdict(group, p[i])}" for group, p in zip(labeller.groups, found))
        print("\t".join([*told, text]))


if __name__ == "__main__":
    sys.exit(main())
