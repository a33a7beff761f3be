"""A run is a folder: config.toml, tokenizer.model, metrics.jsonl, tensorboard/, checkpoints/."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from minialpaca import config, parallel
from minialpaca.config import FinetuneConfig, PretrainConfig, is_device
from minialpaca.data.instructions import PROMPTS_ID
from minialpaca.errors import Stopped, UserError, reason
from minialpaca.heads import backbone_weights
from minialpaca.model import Transformer
from minialpaca.peft import METHODS, Adapter, apply
from minialpaca.storage import checkpoint, lock, recipe
from minialpaca.storage.place import CONFIG, METRICS, PART, PROBE, TOKENIZER, refuse_unwritable
from minialpaca.tokenizer import Tokenizer

MEND = "choose another run.dir"
TOO_MUCH = (RuntimeError, MemoryError, OverflowError, TypeError)  # PyTorch's ways of saying that memory will not do


@contextlib.contextmanager
def opened(folder: Path, resume: str, mend: str = MEND) -> Iterator[bool]:
    """The folder, writable and this process's alone; True where it holds a run to be continued. `mend`: what to do where not.

    Where the input turns out faulty before `keep`, what was written so far goes again.
    """
    if not parallel.is_first():  # the first one makes the folder, and lets the others follow when it is whole
        parallel.meet()
        yield True
        return
    refuse_unwritable(folder, mend)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    before = set(folder.iterdir()) if folder.is_dir() else set()
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock.held(folder))
            _sweep(folder)
            probe = folder / PROBE
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise UserError(f"{folder}: the run folder cannot be written: {reason(error)}; {mend}") from None
        try:
            yield holds_run(folder, resume)
        except (UserError, OSError, Stopped):
            if not (folder / CONFIG).exists():
                _remove(set(folder.iterdir()) - before, made)
            raise


def _sweep(folder: Path) -> None:
    """What dead runs left half-written. Whoever held the lock before is gone."""
    checkpoint.recover(folder)
    for name in (CONFIG, METRICS):
        (folder / (name + PART)).unlink(missing_ok=True)


def holds_run(folder: Path, resume: str) -> bool:
    """Whether there is a run to be continued; what cannot be is refused. Nothing is written."""
    exists = (folder / CONFIG).exists()
    if exists and not (folder / TOKENIZER).exists():
        raise UserError(f"{folder}: holds a run without its {TOKENIZER}; put it back, or {MEND}")
    if exists and resume == "never":
        raise UserError(f"{folder}: holds a run already; choose another run.dir, delete it, or set run.resume=auto")
    if not exists and (checkpoint.steps(folder) or any((folder / checkpoint.FOLDER / name).exists() for name in ("last", "best"))):
        raise UserError(f"{folder}: holds checkpoints and no {CONFIG}, which says what they are of; put it back, or choose "
                        "another run.dir")
    return exists


def _remove(entries: set[Path], folders: list[Path]) -> None:
    with contextlib.suppress(OSError):  # the fault that led here is what the user has to hear of
        for entry in entries:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for folder in folders:
            folder.rmdir()


def refuse_other_recipe(folder: Path, settings, tokenizer: Tokenizer) -> recipe.Recipe:
    """A run is continued as it was begun, before anything of it is touched; what changed all the same is in the answer."""
    if not (folder / CONFIG).exists():
        return recipe.Recipe(recipe.of(settings, parallel.size()))
    old = settings_of(folder)
    if type(old) is not type(settings):
        raise UserError(f"{folder}: holds a run of {'finetune.py' if isinstance(old, FinetuneConfig) else 'train.py'}; "
                        "choose another run.dir")
    goes_on = recipe.continued(folder, old, settings)
    if tokenizer_of(folder).sha256 != tokenizer.sha256:
        raise UserError(f"{folder / TOKENIZER}: is not the tokenizer of this run's data; choose another run.dir")
    if place := checkpoint.find(folder):  # before token files are written with another one
        _refuse_other_tokenizer(place, tokenizer.sha256)
    return goes_on


def refuse_merged(folder: Path) -> None:
    """It stands for itself: what it was made of need not be there any more."""
    refuse_unwritable(folder, MEND)
    place = checkpoint.find(folder) if (folder / CONFIG).is_file() else None
    if place and checkpoint.read_state(place).get("merged"):
        raise UserError(f"{folder}: holds a merged run, which has no optimizer to go on with; tune from it instead: "
                        f"base.run={folder} and another run.dir")


def keep(folder: Path, settings, tokenizer: Tokenizer) -> None:
    """Write the resolved config and the tokenizer, where they are not there yet, and a config that has changed."""
    if not parallel.is_first():
        return
    begun = (folder / CONFIG).exists()
    if begun and recipe.of(settings_of(folder), 1) == recipe.of(settings, 1):
        parallel.meet()
        return
    part, place = folder / (CONFIG + PART), folder / TOKENIZER
    try:
        if not begun:
            tokenizer.save(place)
        place = folder / CONFIG
        part.write_text(config.to_toml(settings), encoding="utf-8")
        os.replace(part, place)  # last: a folder with a config has its tokenizer
        parallel.meet()
    except OSError as error:
        raise UserError(f"{place}: cannot be written: {reason(error)}") from None


def settings_of(folder: Path) -> PretrainConfig | FinetuneConfig:
    """The resolved config of a run folder."""
    if not _is_run(folder):
        raise UserError(f"{folder}: is no run folder (it lacks {CONFIG} or {TOKENIZER}); "
                        "give the run.dir of a train.py or finetune.py run")
    form = FinetuneConfig if "base" in config.read_toml(folder / CONFIG) else PretrainConfig
    try:
        settings = config.load(form, folder / CONFIG)
    except UserError as error:  # an impossible value is told by its key alone, as if it had been given just now
        where = "" if str(folder / CONFIG) in str(error) else f"{folder / CONFIG}: "
        raise UserError(f"{where}{error}") from None
    if not settings.model.vocab_size:  # a run writes it out whatever was given
        raise UserError(f"{folder / CONFIG}: says no model.vocab_size, so it is not what the run wrote; it was changed or damaged")
    return settings


def tokenizer_of(folder: Path) -> Tokenizer:
    """The one that a run was begun with."""
    return Tokenizer.load(folder / TOKENIZER, "put back the one that the run wrote")


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / TOKENIZER).is_file()


def _method(settings: PretrainConfig | FinetuneConfig) -> str:
    return settings.adapter.method if isinstance(settings, FinetuneConfig) else "none"


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
        model = Transformer(dataclasses.replace(settings.model, **changes), settings.run.seed).to(device)
        model.recompute = settings.train.recompute
        return model
    except TOO_MUCH as error:
        raise UserError(f"model: cannot be made on {device} ({_short(error)}); make it smaller: model.d_model, n_layers, d_ff, "
                        "vocab_size") from None


def _short(error: Exception) -> str:
    return (str(error).splitlines() or ["no memory"])[0][:200]


def load(folder: str | Path, which: str = "best", device: torch.device | str = "cpu",
         **changes) -> tuple[Transformer, Tokenizer]:
    """The model of a run, ready to answer, and its tokenizer. `changes` go to its ModelConfig (dropout, context)."""
    folder = Path(folder)
    settings = settings_of(folder)
    tokenizer = tokenizer_of(folder)
    model = build(settings, **changes)
    load_trained(model, model, settings, weights_of(folder, which), tokenizer.sha256)
    return model.to(device).eval(), tokenizer


def load_trained(model: nn.Module, backbone: Transformer, settings, place: Path, tokenizer_sha256: str) -> None:
    """A run's weights: all of them, or those of its base and its adapter, which is left in the model."""
    _refuse_other_prompts(place)
    if _method(settings) != "none":
        _refuse_other_tokenizer(place, tokenizer_sha256)  # before the base, which may be whole
        load_base(backbone, settings, tokenizer_sha256, place.parents[1])
        load_weights(adapted(model, backbone, settings), place, tokenizer_sha256)
    else:
        load_weights(model, place, tokenizer_sha256)


def adapted(model: nn.Module, backbone: Transformer, settings: FinetuneConfig) -> Adapter | None:
    """Put the method of a config into a model; what is no part of the backbone is new, and trained in any case."""
    new = [child for child in model.children() if child is not backbone] if model is not backbone else []
    try:
        return apply(model, settings.adapter, settings.run.seed, new, idle=[backbone.lm_head] if new else [])
    except TOO_MUCH as error:
        raise UserError(f"adapter: cannot be put into the model ({_short(error)}); make it smaller: adapter.bottleneck, length, "
                        "rank") from None


def load_adapter(folder: str | Path, model: Transformer, which: str = "best") -> Adapter:
    """The adapter of a run, for a base that is loaded already; `use` puts it in. Several share one base."""
    folder = Path(folder)
    settings = settings_of(folder)
    if _method(settings) == "none" or settings.task.name == "classification":
        raise UserError(f"{folder}: holds no adapter for a bare base; give the run.dir of a finetune.py run with adapter.method "
                        "and task.name = instruction (a classifier's heads go with its adapter: classify.load_labeller)")
    place = weights_of(folder, which)
    _refuse_other_prompts(place)
    adapter = adapted(model, model, settings)
    adapter.remove()
    load_weights(adapter, place, tokenizer_of(folder).sha256)
    return adapter


def base_folder(settings: FinetuneConfig, folder: Path | None = None) -> Path:
    """base.run; a relative one counts from where the run's own run.dir does.

    That is the working directory, or, where the run is found again in a `folder` that ends in run.dir, what stands before.
    """
    given, own = Path(settings.base.run), Path(settings.run.dir)
    for here in (folder.absolute().parts, folder.resolve().parts) if folder and not own.is_absolute() else ():  # as it is called, or where a link leads
        if here[-len(own.parts):] == own.parts:
            given = Path(*here[:-len(own.parts)]) / given
            break
    if not _is_run(given):
        way = f"put the base back, or write where it is now to base.run in {folder / CONFIG}" if folder else \
            "give the run.dir of a train.py or finetune.py run"
        raise UserError(f"base.run = {settings.base.run!r}, looked for at {given.absolute()}: is no run folder (it lacks {CONFIG} "
                        f"or {TOKENIZER}); {way}")
    return given


def load_base(model: Transformer, settings: FinetuneConfig, tokenizer_sha256: str, own: Path | None = None) -> None:
    """The weights that a run starts from; `random` leaves those of its seed. `own`: where the run lies."""
    which = settings.base.weights
    if which == "random":
        return
    folder = base_folder(settings, own)
    base, place = settings_of(folder), checkpoint.find(folder, which)
    if _method(base) != "none":
        beside = METHODS[_method(base)].beside
        raise UserError(f"{folder}: holds an adapter ({base.adapter.method}) and no whole model; " + (
            f"it {beside}: give another base" if beside else f"merge it with its base: python -m minialpaca.merge {folder} OUT"))
    if place is None or (isinstance(base, PretrainConfig) and checkpoint.read_state(place).get("step") == 0):
        raise UserError(f"{folder}: its {which!r} weights are untrained yet; let train.py reach an evaluation, or set "
                        "base.weights=random to start from nothing")
    if own:
        _refuse_other_shape(folder, base, settings, own)
        _refuse_other_tokenizer(place, tokenizer_sha256, f"{own / TOKENIZER}, the adapter's; give the base that it was trained on")
    load_weights(model, place, tokenizer_sha256)


def _refuse_other_shape(folder: Path, base: PretrainConfig | FinetuneConfig, settings: FinetuneConfig, own: Path) -> None:
    free = ("dropout", "max_seq_len", "attention", "init_std")  # what a tuned model has of its own, or what does not matter
    here, there = (dataclasses.asdict(s.model) for s in (base, settings))
    for key in here:
        if key not in free and here[key] != there[key]:
            raise UserError(f"{folder}: is another model than the one that the adapter in {own} was trained on (model.{key} = {here[key]!r}, "
                            f"there {there[key]!r}); give the base that it was trained on")


def weights_of(folder: Path, which: str) -> Path:
    """The checkpoint of that name."""
    place = checkpoint.find(folder, which)
    if place is None and checkpoint.find(folder) and _method(settings_of(folder)) == "adalora":
        raise UserError(f"{folder}: adalora is pruning still, and calls nothing {which!r} before its budget is spent; let "
                        "finetune.py go on with this run, or take --checkpoint last")
    if place is None:
        raise UserError(f"{folder}: has no {which!r} checkpoint yet; let its run reach an evaluation")
    return place


def load_weights(model: nn.Module | Adapter, place: Path, tokenizer_sha256: str, held=None) -> None:
    """The weights of a checkpoint, after asking whether they are whole, and of this vocabulary, base and shape.

    A Transformer takes its part of a classifier's weights, too. held: what takes them for the model, if it does not itself.
    """
    refuse_unfit(model, place, tokenizer_sha256)
    checkpoint.restore(place, "model", held or model, backbone_weights if isinstance(model, Transformer) else dict)


def refuse_unfit(model: nn.Module | Adapter, place: Path, tokenizer_sha256: str) -> None:
    """A checkpoint that is not whole, or of another vocabulary or base."""
    checkpoint.verify(place)
    _refuse_other_tokenizer(place, tokenizer_sha256)
    if isinstance(model, Adapter):
        _refuse_other_adapter(place, model)


def _refuse_other_adapter(place: Path, adapter: Adapter) -> None:
    saved, facts = checkpoint.read_state(place), adapter.facts()
    if saved.get("base") != facts["base"]:
        raise UserError(f"{place}: is an adapter for another base than this one (in a run: what base.run and base.weights name); "
                        "give it the base that it was trained on")
    if saved.get("adapter") != facts["adapter"]:
        raise UserError(f"{place}: was trained with other settings of [adapter] than the {CONFIG} of its run folder; put those back")


def _refuse_other_tokenizer(place: Path, sha256: str, other: str = f"the {TOKENIZER} of its run folder; put that one back") -> None:
    if checkpoint.read_state(place).get("tokenizer") != sha256:
        raise UserError(f"{place}: was trained with another tokenizer than {other}")


def _refuse_other_prompts(place: Path) -> None:
    if checkpoint.read_state(place).get("prompts", PROMPTS_ID) != PROMPTS_ID:
        raise UserError(f"{place}: was tuned with other prompts than this version of minialpaca asks with; ask it with the version that tuned it")


def pick_device(name: str) -> torch.device:
    """`auto` takes a GPU where there is one."""
    if not is_device(name):
        raise UserError(f"run.device = {name!r}: use auto, cpu, cuda, cuda:N or mps")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda:") and parallel.size() > 1:
        raise UserError(f"run.device = {name!r}: each of {parallel.size()} processes needs a device of its own; use auto or cuda")
    device = torch.device(name if name != "cuda" else f"cuda:{parallel.local_rank()}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"run.device = {name!r}: this machine has {torch.cuda.device_count()} CUDA devices; use auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("run.device = 'mps': not available on this machine; use auto or cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # streams and events are those of the current one
    return device
