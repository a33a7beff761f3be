"""A run is a folder: config.toml, tokenizer.model, metrics.jsonl, tensorboard/, checkpoints/."""

import contextlib
import dataclasses
import os
import shutil
from pathlib import Path

import torch
from torch import nn

from minialpaca import checkpoint, config
from minialpaca.config import FinetuneConfig, PretrainConfig, is_device
from minialpaca.errors import UserError, reason
from minialpaca.heads import backbone_weights
from minialpaca.model import Transformer
from minialpaca.tokenizer import Tokenizer

CONFIG, TOKENIZER = "config.toml", "tokenizer.model"
MAY_CHANGE = ("run.",)  # where and how a run is continued; everything else is the recipe


def open_folder(folder: Path, resume: str) -> bool:
    """Make the folder ready for writing; True where it holds a run to be continued."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder}: the run folder cannot be written: {reason(error)}; set run.dir") from None
    exists = (folder / CONFIG).exists()
    if exists and resume == "never":
        raise UserError(f"{folder}: holds a run already; choose another run.dir, delete it, or set run.resume=auto")
    return exists


@contextlib.contextmanager
def left_as_found(folder: Path):
    """Around the making of a run, up to `keep`: where the input turns out faulty, what was written so far goes again."""
    before = set(folder.iterdir()) if folder.is_dir() else None
    try:
        yield
    except UserError:
        if folder.is_dir() and not (folder / CONFIG).exists():
            for entry in set(folder.iterdir()) - (before or set()):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            if before is None:
                folder.rmdir()
        raise


def refuse_other_recipe(folder: Path, settings, tokenizer: Tokenizer) -> None:
    """A run is continued as it was begun, before anything of it is touched."""
    if not (folder / CONFIG).exists():
        return
    old = settings_of(folder)
    if type(old) is not type(settings):
        raise UserError(f"{folder}: holds a run of {'finetune.py' if isinstance(old, FinetuneConfig) else 'train.py'}; "
                        "choose another run.dir")
    changed = [d for d in config.differences(old, settings) if not d.startswith(MAY_CHANGE) or d.startswith("run.seed")]
    if changed:
        raise UserError(f"{folder}: holds a run with another recipe ({'; '.join(changed)}); go on with that one, "
                        "choose another run.dir, or delete the folder")
    if Tokenizer.load(folder / TOKENIZER).sha256 != tokenizer.sha256:
        raise UserError(f"{folder / TOKENIZER}: is not the tokenizer of this run's data; choose another run.dir")


def keep(folder: Path, settings, tokenizer: Tokenizer) -> None:
    """Write the resolved config and the tokenizer, where they are not there yet."""
    if (folder / CONFIG).exists():
        return
    tokenizer.save(folder / TOKENIZER)
    part = folder / (CONFIG + ".part")
    part.write_text(config.to_toml(settings), encoding="utf-8")
    os.replace(part, folder / CONFIG)  # last: a folder with a config has its tokenizer


def settings_of(folder: Path) -> PretrainConfig | FinetuneConfig:
    """The resolved config of a run folder."""
    if not (folder / CONFIG).is_file() or not (folder / TOKENIZER).is_file():
        raise UserError(f"{folder}: is no run folder (it lacks {CONFIG} or {TOKENIZER}); "
                        "give the run.dir of a train.py or finetune.py run")
    form = FinetuneConfig if "base" in config.read_toml(folder / CONFIG) else PretrainConfig
    return config.load(form, folder / CONFIG)


def refuse_speechless(settings: PretrainConfig | FinetuneConfig, folder: str | Path) -> None:
    """Only a decoder goes on with a text, and one that labels texts has unlearned it."""
    if isinstance(settings, FinetuneConfig) and settings.task.name == "classification":
        raise UserError(f"{folder}: holds a classifier, which answers with labels; ask it with python -m "
                        "minialpaca.classify, or give a run that is none")
    if settings.model.architecture != "decoder":
        raise UserError(f"{folder}: holds an {settings.model.architecture}, which does not go on with a text; "
                        "give a run with model.architecture = decoder")


def build(settings, device: torch.device | str = "cpu", **changes) -> Transformer:
    """The untrained model of a config; one that is too large for the machine is refused before anything is written."""
    try:
        return Transformer(dataclasses.replace(settings.model, **changes), settings.run.seed).to(device)
    except (RuntimeError, MemoryError, OverflowError, TypeError) as error:  # PyTorch's ways of saying that it is too much
        raise UserError(f"model: cannot be made on {device} ({(str(error).splitlines() or ['no memory'])[0][:200]}); "
                        "make it smaller: model.d_model, n_layers, d_ff, vocab_size") from None


def load(folder: str | Path, which: str = "best", device: torch.device | str = "cpu",
         **changes) -> tuple[Transformer, Tokenizer]:
    """The model of a run, ready to answer, and its tokenizer. `changes` go to its ModelConfig (dropout, context)."""
    folder = Path(folder)
    settings = settings_of(folder)
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    model = build(settings, **changes)
    load_weights(model, weights_of(folder, which), tokenizer)
    return model.to(device).eval(), tokenizer


def weights_of(folder: Path, which: str) -> Path:
    """The checkpoint of that name."""
    place = checkpoint.find(folder, which)
    if place is None:
        raise UserError(f"{folder}: has no {which!r} checkpoint yet; let its run reach an evaluation")
    return place


def load_weights(model: nn.Module, place: Path, tokenizer: Tokenizer) -> None:
    """A Transformer takes its part of a classifier's weights, too."""
    checkpoint.verify(place)
    if checkpoint.read_state(place)["tokenizer"] != tokenizer.sha256:
        raise UserError(f"{place}: was trained with another tokenizer than the {TOKENIZER} of its run folder")
    weights = checkpoint.read_tensors(place, "model")
    try:
        model.load_state_dict(backbone_weights(weights) if isinstance(model, Transformer) else weights)
    except RuntimeError as error:
        raise UserError(f"{place}: does not fit the model of its config.toml: "
                        f"{' '.join(str(error).split())[:300]}") from None


def pick_device(name: str) -> torch.device:
    """`auto` takes a GPU where there is one."""
    if not is_device(name):
        raise UserError(f"run.device = {name!r}: use auto, cpu, cuda, cuda:N or mps")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"run.device = {name!r}: this machine has {torch.cuda.device_count()} CUDA devices; use auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("run.device = 'mps': not available on this machine; use auto or cpu")
    return device
