"""Merging: a run's adapter and its base → one plain run, which needs neither.

    python -m minialpaca.merge runs/lora runs/merged

The sum is made in fp32; what the merged model says otherwise than the two apart is printed. The adapter's run stays as it is.
"""

import argparse
import dataclasses
import shutil
import sys
from pathlib import Path

import torch
from torch import nn

from minialpaca import checkpoint, classify, run
from minialpaca.config import AdapterConfig, FinetuneConfig
from minialpaca.errors import UserError, command
from minialpaca.model import Transformer
from minialpaca.peft import active
from minialpaca.tokenizer import Tokenizer


def merged_state(model: nn.Module, backbone: Transformer) -> tuple[dict[str, torch.Tensor], float]:
    """The plain state dict, and the largest difference of a logit."""
    tokens_BT = torch.arange(min(64, backbone.cfg.max_seq_len) * 2).view(2, -1) % backbone.cfg.vocab_size
    with torch.no_grad():
        before = backbone(tokens_BT)
        active(model).merge()
        difference = (backbone(tokens_BT) - before).abs().max().item()
    return model.state_dict(), difference


def merge(source: Path, out: Path, which: str) -> float:
    """Write the merged run; returns the largest difference of a logit."""
    settings = run.settings_of(source)
    if not isinstance(settings, FinetuneConfig) or settings.adapter.method == "none":
        raise UserError(f"{source}: holds no adapter; give the run.dir of a finetune.py run with adapter.method")
    if settings.adapter.method == "bitfit":
        raise UserError(f"{source}: bitfit adds biases, which the plain model has no place for; keep the adapter beside its base")
    tokenizer, place = Tokenizer.load(source / run.TOKENIZER), run.weights_of(source, which)
    backbone = run.build(settings).eval()
    groups = classify.read_groups(source, settings.classes) if settings.task.name == "classification" else None
    model = classify.classifier(settings, backbone, groups).eval() if groups else backbone
    run.load_trained(model, backbone, settings, place, tokenizer.sha256)
    model.eval()  # the adapter's own dropout, too
    state, difference = merged_state(model, backbone)
    untied = settings.model.tie_embeddings and backbone.lm_head.weight is not backbone.embed.weight
    plain = dataclasses.replace(settings, adapter=AdapterConfig(), run=dataclasses.replace(settings.run, dir=str(out)),
                                model=dataclasses.replace(settings.model, tie_embeddings=settings.model.tie_embeddings and not untied))
    with run.opened(out, "never"):
        if groups:
            shutil.copyfile(source / classify.LABELS, out / classify.LABELS)
        facts = {key: value for key, value in checkpoint.read_state(place).items() if key not in ("base", "adapter")}
        checkpoint.save(out, facts["step"], {"model": state, "optimizer": {}}, facts, best=True)
        run.keep(out, plain, tokenizer)
    return difference


@command
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minialpaca.merge", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a finetune.py run with an adapter")
    parser.add_argument("out", type=Path, help="the folder to write the merged run to")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    args = parser.parse_args()
    difference = merge(args.run, args.out, args.checkpoint)
    print(f"{args.out} holds the merged run; its logits differ from the adapter's by at most {difference:.2g}")


if __name__ == "__main__":
    sys.exit(main())
