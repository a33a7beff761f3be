"""What would happen: a config, a data file or a run, looked at before anything long starts. Nothing of the user's is written.

    python -m minialpaca.check configs/alpaca.toml data.source=mine.json
    python -m minialpaca.check mine.json
    python -m minialpaca.check runs/alpaca

A config's data are read as its run would read them, and two real steps are taken and forgotten. What the run would
refuse is refused here, in the same line.
"""

import sys
from pathlib import Path

from minialpaca import commandline
from minialpaca.errors import UserError

USAGE = "usage: python -m minialpaca.check CONFIG.toml | DATAFILE | RUN [section.key=value ...]"


def asked() -> tuple[Path, list[str]]:
    """What to look at, and what to change of its config."""
    arguments = sys.argv[1:]
    places = [a for a in arguments if "=" not in a or Path(a).exists()]
    changes = [a for a in arguments if a not in places]
    if not arguments or {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\n{USAGE}")
        sys.exit(0)
    if len(places) != 1:
        raise UserError(f"command line: {' '.join(arguments)!r}: give one config, data file or run folder; {USAGE}")
    return Path(places[0]), changes


commandline.early(__name__, asked)

import math
import tempfile
import time
from collections.abc import Sequence

from minialpaca import classify, config, run
from minialpaca.adversarial import attack_on
from minialpaca.config import FinetuneConfig, PretrainConfig
from minialpaca.data import corpus
from minialpaca.data.classes import TABLES, read_texts
from minialpaca.data.files import expand, read_objects
from minialpaca.data.rows import read_rows
from minialpaca.errors import command
from minialpaca.inspect_run import histogram, show_run, verdict
from minialpaca.scripts import show_trained
from minialpaca.setup import base_model, make_tokenizer, refuse_other_world, with_base_model, with_vocabulary
from minialpaca.storage.place import TOKENS, refuse_unwritable
from minialpaca.tasks.classification import Classification
from minialpaca.tasks.instruction import Instruction
from minialpaca.tasks.pretrain import TASKS
from minialpaca.trainer import Trainer

TAKEN = 2  # steps; the first warms up, the second is timed


@command
def main() -> None:
    place, changes = asked()
    if place.is_dir() and (place / run.CONFIG).exists():
        show_run(place, changes)
    elif place.suffix == ".toml":
        check_config(place, changes)
    else:
        check_file(place, changes)


# ── a config ─────────────────────────────────────────────────────────────────────────────────────


def form_of(path: Path, changes: Sequence[str] = ()) -> type:
    """Which script's config it is, told by the sections that the other one's does not have, or else by its first line."""
    table = config.read_toml(path)
    for sections in (table.keys(), {change.partition(".")[0].strip() for change in changes}):  # the file's own decide first
        if {"base", "task", "classes", "adapter"} & sections:
            return FinetuneConfig
        if {"tokenizer", "objective", "model"} & sections:
            return PretrainConfig
    first = (path.read_text(encoding="utf-8-sig").splitlines() or [""])[0]
    if "finetune.py" in first or "train.py" in first:
        return FinetuneConfig if "finetune.py" in first else PretrainConfig
    raise UserError(f"{path}: is a config of train.py or of finetune.py alike; begin it with the line "
                    f"`# python train.py {path}` or `# python finetune.py {path}`")


def check_config(path: Path, changes: Sequence[str]) -> None:
    form = form_of(path, changes)
    settings = config.load(form, path, changes)
    print(f"{path}: a config of {'finetune.py' if form is FinetuneConfig else 'train.py'}")
    if form is FinetuneConfig:
        show_trainer(*prepared_tuning(settings))
        return
    with tempfile.TemporaryDirectory(prefix="minialpaca-check-") as scratch:
        try:
            show_trainer(*prepared_pretraining(settings, Path(scratch)))
        except UserError as error:  # what is named is to be there afterwards
            raise UserError(str(error).replace(scratch, settings.run.dir)) from None


def prepared_pretraining(settings: PretrainConfig, scratch: Path) -> tuple[PretrainConfig, Trainer, str]:
    """The settings as the run would resolve them, its trainer, which writes nothing yet, and what would become of the run's folder."""
    device, folder = run.pick_device(settings.run.device), Path(settings.run.dir)
    n_bytes = corpus.size(settings.data)
    refuse_unwritable(folder, run.MEND)
    exists = run.holds_run(folder, settings.run.resume)
    tokenizer = run.tokenizer_of(folder) if exists else make_tokenizer(settings)
    settings = with_vocabulary(settings, tokenizer)
    recipe = run.refuse_other_recipe(folder, settings, tokenizer)
    if exists:
        corpus.look(folder / TOKENS, tokenizer)
    documents = sum(ends for _, ends in corpus.parts(settings.data, settings.data.source))
    task, model = TASKS[settings.objective.name](settings, tokenizer, scratch / TOKENS), run.build(settings, device)
    print(f"data: {documents:,} documents, {n_bytes:,} bytes, {len(task.train):,} training tokens, {len(task.val):,} held out; "
          f"{task.windows.n:,} windows of {task.windows.context} tokens, none truncated")
    attack = attack_on(model.embed, settings.adversarial, settings.model.tie_embeddings)
    trainer = Trainer(model, task, settings.optim, settings.train, settings.run.seed, folder, l2=settings.loss.l2, attack=attack, recipe=recipe)
    return settings, trainer, verdict(folder, trainer)


def prepared_tuning(settings: FinetuneConfig) -> tuple[FinetuneConfig, Trainer, str]:
    device, folder = run.pick_device(settings.run.device), Path(settings.run.dir)
    run.refuse_merged(folder)
    settings, base_settings = with_base_model(settings)
    tokenizer = run.tokenizer_of(Path(settings.base.run))
    refuse_other_world(settings, base_settings)
    run.holds_run(folder, settings.run.resume)
    recipe = run.refuse_other_recipe(folder, settings, tokenizer)
    labels = settings.task.name == "classification"
    task = Classification(settings, tokenizer) if labels else Instruction(settings, tokenizer)
    print("training texts by length in tokens:\n" + histogram(task.train.buckets.lengths))
    backbone = base_model(settings, tokenizer)
    model = (classify.classifier(settings, backbone, task.groups) if labels else backbone).to(device)
    adapter = run.adapted(model, backbone, settings)
    attack = attack_on(backbone.embed, settings.adversarial, settings.model.tie_embeddings and not labels)
    trainer = Trainer(model, task, settings.optim, settings.train, settings.run.seed, folder, l2=settings.loss.l2, adapter=adapter,
                      attack=attack, recipe=recipe)
    return settings, trainer, verdict(folder, trainer)


def show_trainer(settings, trainer: Trainer, what: str) -> None:
    parameters = list(trainer.model.parameters())
    print(f"{sum(p.numel() for p in parameters):,} parameters, {sum(p.numel() for p in parameters if p.requires_grad):,} of them trained")
    if trainer.adapter:
        show_trained(trainer.adapter)
    print(trainer.memory())
    trainer.refuse_hopeless()
    steps = min(TAKEN, trainer.total_steps)
    for _ in range(steps):
        started = time.perf_counter()
        trainer.take_step()
    each = time.perf_counter() - started
    print(f"{trainer.total_steps:,} steps of {settings.train.batch_size} · {trainer.a_step} rows on {trainer.device}, {each:.3g} s the "
          f"{'second' if steps > 1 else 'first'}: about {told_time(each * trainer.total_steps)}, evaluations and saving not counted")
    print(f"{settings.run.dir}: {what}")


def told_time(seconds: float) -> str:
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    return f"{math.ceil(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# ── a data file ──────────────────────────────────────────────────────────────────────────────────


def check_file(path: Path, changes: Sequence[str]) -> None:
    """Read by the reader of its kind, which names faulty rows; the lengths are in characters."""
    kind, lengths = read_as(path, changes)
    print(f"{path}: {kind}; no faulty rows")
    print(f"{len(lengths):,} rows or documents, by length in characters:\n{histogram(lengths)}")


def read_as(path: Path, changes: Sequence[str]) -> tuple[str, list[int]]:
    """(the kind that it was recognised as, the length of each row)"""
    suffixes = (*corpus.SUFFIXES, ".json", *(kind + packed for kind in TABLES for packed in ("", ".gz")))
    expand([str(path)], suffixes)
    if path.is_dir():
        raise UserError(f"{path}: is a folder and no run (it lacks {run.CONFIG}); give a file in it")
    name = path.name.removesuffix(".gz")
    first = next(read_objects(path, faults=[]), ("", {}))[1] if name.endswith((".json", ".jsonl")) else {}
    if "instruction" in first:
        config.load(FinetuneConfig, None, changes)  # a change is refused as a run would
        return "instructions in Alpaca's form", [len(row.instruction + row.input + row.output) for row in read_rows([str(path)])]
    text = corpus_settings(path, changes)
    if text and (name.endswith(".txt") or text.text_field in first and "label" not in first):
        return f"text for pretraining, data.documents = {text.documents}", document_lengths(text)
    classes = config.load(FinetuneConfig, None, changes).classes
    return "labelled texts", [len(row.text) for row in read_texts([str(path)], classes)]


def corpus_settings(path: Path, changes: Sequence[str]) -> config.CorpusConfig | None:
    """None where `classes.*` is given: then it is a file of labelled texts."""
    if any(change.startswith("classes.") for change in changes) or not path.name.endswith(corpus.SUFFIXES):
        return None
    return config.load(PretrainConfig, None, [*changes, f"data.source={str(path)!r}"]).data


def document_lengths(settings: config.CorpusConfig) -> list[int]:
    lengths, held = [], 0
    for text, ends in corpus.parts(settings, settings.source):
        held += len(text) if text.strip() else 0
        if ends and held:
            lengths.append(held)
        if ends:
            held = 0
    if not lengths:
        raise UserError(f"{settings.source[0]}: holds no text")
    return lengths


if __name__ == "__main__":
    sys.exit(main())
