"""Merging: a run's adapter and its base → one plain run, which needs neither.

    python -m minialpaca.merge runs/lora runs/merged

For freeze, lora, dora, adalora and ia3; bitfit, houlsby, prefix and prompt add what a plain model has no place for. The sum is
made in fp32; what the merged model says otherwise than the two apart is printed. The adapter's run stays as it is.
"""

import argparse
from pathlib import Path

from minialpaca import commandline


def asked() -> argparse.Namespace:
    options = commandline.parser("merge", __doc__)
    options.add_argument("run", type=Path, help="the folder of a finetune.py run with an adapter")
    options.add_argument("out", type=Path, help="the folder to write the merged run to")
    options.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which of the run's weights. (default best)")
    return options.parse_args()


commandline.early(__name__, asked)

import dataclasses
import math
import shutil
import sys

import torch
from torch import nn

from minialpaca import classify, run
from minialpaca.config import AdapterConfig, FinetuneConfig
from minialpaca.errors import UserError, command
from minialpaca.model import Transformer
from minialpaca.peft import METHODS, active
from minialpaca.storage import checkpoint
from minialpaca.storage.place import refuse_unwritable

ELSEWHERE = "name another folder for the merged run"


def logits(model: nn.Module, backbone: Transformer) -> torch.Tensor:
    """What the model says, of the next token or of each label group, to two rows of tokens."""
    tokens_BT = torch.arange(min(64, backbone.cfg.max_seq_len) * 2).view(2, -1) % backbone.cfg.vocab_size
    return model(tokens_BT) if model is backbone else torch.cat(model(tokens_BT, torch.ones_like(tokens_BT, dtype=torch.bool)), -1)


@torch.no_grad()
def merged_state(model: nn.Module, backbone: Transformer) -> tuple[dict[str, torch.Tensor], float]:
    """The plain state dict, and the largest difference of a logit."""
    before = logits(model, backbone)
    active(model).merge()
    return model.state_dict(), (logits(model, backbone) - before).abs().max().item()


def refuse_place(source: Path, out: Path) -> None:
    """The adapter's run stays as it is, and nothing else is written over."""
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"{out}: is {source} or lies in it, whose adapter stays as it is; {ELSEWHERE}")
    refuse_unwritable(out, ELSEWHERE)
    for around in out.resolve().parents:
        if (around / run.CONFIG).exists():
            raise UserError(f"{out}: lies in {around}, which is a run, whose files are its own; {ELSEWHERE}")
    if out.is_dir() and any(out.iterdir()):
        held = "a run" if (out / run.CONFIG).exists() else "something"
        raise UserError(f"{out}: holds {held} already; name a new folder for the merged run")


def merge(source: Path, out: Path, which: str) -> float:
    """Write the merged run; returns the largest difference of a logit."""
    settings = run.settings_of(source)
    if not isinstance(settings, FinetuneConfig) or settings.adapter.method == "none":
        raise UserError(f"{source}: holds no adapter; give the run.dir of a finetune.py run with adapter.method")
    if beside := METHODS[settings.adapter.method].beside:
        raise UserError(f"{source}: {settings.adapter.method} {beside}; keep the adapter beside its base")
    refuse_place(source, out)
    tokenizer, place = run.tokenizer_of(source), run.weights_of(source, which)
    backbone = run.build(settings).eval()
    groups = classify.read_groups(source, settings.classes) if settings.task.name == "classification" else None
    if groups:
        classify.refuse_other_labels(source, place, settings, groups)
    model = classify.classifier(settings, backbone, groups).eval() if groups else backbone
    run.load_trained(model, backbone, settings, place, tokenizer.sha256)
    model.eval()  # the adapter's own dropout, too
    state, difference = merged_state(model, backbone)
    if not math.isfinite(difference):
        raise UserError(f"{source}: {place.name} says numbers that are not finite, and so would the merged run; merge another checkpoint "
                        "(--checkpoint), or tune again with a lower optim.lr")
    untied = settings.model.tie_embeddings and backbone.lm_head.weight is not backbone.embed.weight
    plain = dataclasses.replace(settings, adapter=AdapterConfig(), run=dataclasses.replace(settings.run, dir=str(out)),
                                model=dataclasses.replace(settings.model, tie_embeddings=settings.model.tie_embeddings and not untied))
    with run.opened(out, "never", ELSEWHERE):
        if groups:
            shutil.copyfile(source / classify.LABELS, out / classify.LABELS)
        facts = {key: value for key, value in checkpoint.read_state(place).items() if key not in ("base", "adapter")}
        checkpoint.save(out, facts["step"], {"model": state, "optimizer": {}}, {**facts, "merged": True}, best=True)
        run.keep(out, plain, tokenizer)
    return difference


@command
def main() -> None:
    args = asked()
    difference = merge(args.run, args.out, args.checkpoint)
    print(f"{args.out} holds the merged run; its logits differ from the adapter's by at most {difference:.2g}")
    if run.settings_of(args.run).model.tie_embeddings and not run.settings_of(args.out).model.tie_embeddings:
        print("its embedding and its head are two matrices now (model.tie_embeddings = false): the adapter had changed one of them")


if __name__ == "__main__":
    sys.exit(main())
