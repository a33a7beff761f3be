"""A run folder looked at and left alone: its state, its checkpoints, what is left to do."""

from collections.abc import Sequence
from pathlib import Path

from minialpaca import classify, config, run
from minialpaca.config import FinetuneConfig
from minialpaca.data import corpus
from minialpaca.data.token_file import TokenFile
from minialpaca.errors import UserError
from minialpaca.log import kept
from minialpaca.storage import checkpoint
from minialpaca.storage.place import METRICS, TOKENS
from minialpaca.trainer import Trainer

BINS, WIDTH = 8, 40


def histogram(lengths: Sequence[int]) -> str:
    """A line per stretch of equal width: from, to, how many, a bar. The last line says the median."""
    low, high = min(lengths), max(lengths)
    step = max(1, -(-(high - low + 1) // BINS))
    counts = [0] * (-(-(high - low + 1) // step))
    for length in lengths:
        counts[(length - low) // step] += 1
    lines = [f"  {low + i * step:>8,} … {min(high, low + (i + 1) * step - 1):>8,}  {n:>9,}  {'█' * -(-WIDTH * n // max(counts))}".rstrip()
             for i, n in enumerate(counts)]
    return "\n".join([*lines, f"  median {sorted(lengths)[len(lengths) // 2]:,}"])


def verdict(folder: Path, trainer: Trainer) -> str:
    """What the same command would do with this folder; a run that it would refuse is refused here."""
    if not (folder / run.CONFIG).exists():
        return "would begin a fresh run" + ("" if folder.exists() else " (the folder is not there yet)")
    place = checkpoint.find(folder)
    if place is None:
        return "would go on from its newest whole checkpoint: the pointer `last` is lost" if checkpoint.steps(folder) else \
            "would begin anew: the run has no checkpoint yet"
    trainer.refuse_unfit()
    kept(folder / METRICS, checkpoint.read_state(place).get("step", 0))
    state = trainer.keeper.counters(checkpoint.read_state(place), trainer.state)
    if state["stopped_early"] or state["step"] >= trainer.total_steps:
        return f"is finished at step {state['step']:,}; the same command would only show its results"
    return f"would resume from step {state['step']:,} of {trainer.total_steps:,}"


def show_run(folder: Path, changes: Sequence[str]) -> None:
    """State, best, steps left; every checkpoint is compared with its manifest, and a damaged one is an error at the end."""
    if changes:
        raise UserError(f"command line: {changes[0]!r}: a run is looked at as it is; give its config to see what a change would do")
    settings = run.settings_of(folder)
    tuned = isinstance(settings, FinetuneConfig)
    print(f"{folder}: a run of {'finetune.py' if tuned else 'train.py'}, "
          f"{settings.task.name if tuned else settings.objective.name}"
          + (f", adapter {settings.adapter.method}" if tuned and settings.adapter.method != "none" else ""))
    tokenizer = run.tokenizer_of(folder)
    damaged = show_checkpoints(folder)
    labels = tuned and settings.task.name == "classification"
    if not damaged and checkpoint.find(folder) and labels:
        classify.load_labeller(folder, "last")
    if not damaged and checkpoint.find(folder) and tuned and settings.adapter.method != "none":
        show_base(folder, settings)
    place = checkpoint.find(folder)
    if place and place not in damaged:
        state = checkpoint.read_state(place)
        total = steps_of(folder, settings, state.get("recipe", {}).get("processes", 1))
        left = "merged: a whole model, which is not gone on with" if state.get("merged") else "stopped early" if state.get("stopped_early") else "steps left: unknown, its data say how many" if total is None else \
            f"{max(0, total - state['step']):,} of {total:,} steps left"
        print(f"step {state['step']:,}, best {settings.train.best_by} {told_best(state.get('best'))}, {left}")
        kept(folder / METRICS, state["step"])
        if not tuned:
            corpus.look(folder / TOKENS, tokenizer)
    elif not place and checkpoint.steps(folder):
        print("the pointer `last` is lost; the run's next start finds it again")
    if damaged:
        raise UserError(f"{folder}: {len(damaged)} damaged checkpoint{'s'[:len(damaged) > 1]}: {'; '.join(damaged.values())}")


def told_best(best: float | None) -> str:
    return "none yet" if best is None else f"{best:.4f}"


def show_base(folder: Path, settings: FinetuneConfig) -> None:
    """An adapter is nothing without its base: that it is there, and the one that it was trained on."""
    if settings.task.name != "classification":
        run.load(folder, "last")
    print(f"  base {settings.base.run}, {settings.base.weights}: the one that it was trained on")


def show_checkpoints(folder: Path) -> dict[Path, str]:
    """Those that are damaged, and how."""
    names: dict[Path | None, list[str]] = {}
    for name in ("best", "last"):
        names.setdefault(checkpoint.find(folder, name), []).append(name)
    damaged = {}
    for place in checkpoint.steps(folder):
        try:
            checkpoint.verify(place)
        except UserError as error:
            if not place.exists():  # by a run that goes on meanwhile
                continue
            damaged[place] = str(error)
        print(f"  {place.name}  {'damaged' if place in damaged else 'whole'}  {', '.join(names.get(place, []))}".rstrip())
    if not checkpoint.steps(folder):
        print("  no checkpoint yet")
    return damaged


def steps_of(folder: Path, settings: config.PretrainConfig | FinetuneConfig, processes: int) -> int | None:
    """All its steps, where that can be told without reading the data again."""
    train = settings.train
    if train.steps:
        return train.steps
    tokens = folder / TOKENS / "train.bin"
    if isinstance(settings, FinetuneConfig) or not tokens.is_file():
        return None
    n = max(1, (len(TokenFile(tokens, run.tokenizer_of(folder))) - settings.model.max_seq_len) // settings.model.max_seq_len)
    batches = max(1, round(train.epochs * -(-n // train.batch_size)))
    return -(-batches // (train.accumulation * processes))
