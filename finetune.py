"""Fine-tune: a pretrained run → instructions or labelled texts → an assistant or a classifier, and its marks.

    python finetune.py                                the built-in world (configs/alpaca.toml)
    python finetune.py data.source=alpaca.json base.run=runs/pretrain run.dir=runs/mine
    python finetune.py base.weights=random run.dir=runs/scratch      what was pretraining worth?
    python finetune.py configs/classify.toml          the world's reviews, labelled

The same command again continues a run that was stopped.
"""

from minialpaca import commandline
from minialpaca.config import FinetuneConfig


def asked(arguments: list[str] | None = None) -> FinetuneConfig:
    return commandline.settings_of(FinetuneConfig, "configs/alpaca.toml", __doc__, arguments)


commandline.early(__name__, asked)

import math
from pathlib import Path

import torch

from minialpaca import classify, parallel, run, scripts, signals
from minialpaca.adversarial import attack_on
from minialpaca.data.instructions import prompt_ids
from minialpaca.errors import command
from minialpaca.evaluate import answer_rows, marks_table, write_marks
from minialpaca.model import Transformer
from minialpaca.observe import Observer, observer
from minialpaca.peft import AdaLoRA
from minialpaca.peft.ranks import RankObserver, rank_lines
from minialpaca.report import ClassObserver, class_table, write_class_marks
from minialpaca.setup import base_model, refuse_other_world, with_base_model
from minialpaca.tasks.classification import Classification, judge, truths
from minialpaca.tasks.instruction import Instruction
from minialpaca.tokenizer import Tokenizer
from minialpaca.trainer import Trainer


@command
@signals.left()
@parallel.joined()
def main(arguments: list[str] | None = None) -> None:
    settings = asked(arguments)
    device = run.pick_device(settings.run.device)
    run.refuse_merged(Path(settings.run.dir))
    settings, base_settings = with_base_model(settings)
    tokenizer = run.tokenizer_of(Path(settings.base.run))
    refuse_other_world(settings, base_settings)
    folder, labels = Path(settings.run.dir), settings.task.name == "classification"
    with run.opened(folder, settings.run.resume):
        recipe = run.refuse_other_recipe(folder, settings, tokenizer)
        task = Classification(settings, tokenizer) if labels else Instruction(settings, tokenizer)
        backbone = base_model(settings, tokenizer)
        model = (classify.classifier(settings, backbone, task.groups) if labels else backbone).to(device)
        adapter = run.adapted(model, backbone, settings)
        watch = ClassObserver(task) if labels else questioner(settings, task, tokenizer)
        shown = RankObserver(watch, adapter) if isinstance(adapter, AdaLoRA) else watch
        attack = attack_on(backbone.embed, settings.adversarial, settings.model.tie_embeddings and not labels)
        trainer = Trainer(model, task, settings.optim, settings.train, settings.run.seed, folder, shown, settings.loss.l2,
                          adapter, attack, recipe)
        trainer.refuse_unfit()
        if labels:
            classify.keep_labels(folder, task.groups)
        run.keep(folder, settings, tokenizer)
        scripts.show_settings(settings)

        scripts.show_parameters(model, device)
        if adapter:
            scripts.show_trained(adapter)
        best = trainer.fit()["best"]
        if not parallel.is_first():
            return
        if isinstance(adapter, AdaLoRA):
            print(f"\n{rank_lines(adapter)}")
        if labels:
            show_labels(settings, task, folder, best, device)
        else:
            show_assistant(task, folder, best, device, watch)


# ── an assistant ─────────────────────────────────────────────────────────────────────────────────


def questioner(settings: FinetuneConfig, task: Instruction, tokenizer: Tokenizer) -> Observer:
    return observer(tokenizer, questions(settings, task, tokenizer), settings.samples.max_new_tokens,
                    settings.model.max_seq_len)


def questions(settings: FinetuneConfig, task: Instruction, tokenizer: Tokenizer) -> list[tuple[str, list[int]]]:
    """What is asked at each evaluation: the given instructions, or some of the validation rows, one of each kind first."""
    if settings.samples.prompts:
        return [(text, prompt_ids(tokenizer, text)) for text in settings.samples.prompts]
    first_of_kind = {row.kind: row for row in reversed(task.val_rows)}
    rows = list(dict.fromkeys([*first_of_kind.values(), *task.val_rows]))[:settings.samples.count]
    return [(f"{row.instruction}{' | ' + row.input if row.input else ''}", prompt_ids(tokenizer, row.instruction, row.input))
            for row in rows]


def show_assistant(task: Instruction, folder: Path, best: float, device: torch.device, watch: Observer) -> None:
    """What the best weights answer: the test rows, marked, and the questions of each evaluation."""
    print(f"\nbest validation loss {best:.4f} nats per response token: perplexity {math.exp(min(best, 700)):,.2f}")
    model, tokenizer = run.load(folder, "best", device)
    if task.test_rows:
        mark(model, tokenizer, task, folder)
    scripts.show_answers(watch.answers(model))
    print(f"\n{folder} holds the run; talk to it: python -m minialpaca.chat {folder}")


def mark(model: Transformer, tokenizer: Tokenizer, task: Instruction, folder: Path) -> None:
    """Answer the test rows with the best weights; print the marks and keep every answer."""
    print(f"answering {len(task.test_rows)} test questions ...", flush=True)
    answers = answer_rows(model, tokenizer, task.test_rows)
    marks = write_marks(folder, task.test_rows, answers)
    print(marks_table(marks))


# ── a classifier ─────────────────────────────────────────────────────────────────────────────────


def show_labels(settings: FinetuneConfig, task: Classification, folder: Path, best: float | None,
                device: torch.device) -> None:
    """What the best weights say of the test split, or where there is none, of the validation split."""
    print(f"\nbest {settings.train.best_by} {'not measured yet' if best is None else f'{best:.4f}'}")
    labeller = classify.load_labeller(folder, "best", device)
    split, examples = ("test", task.test) if task.test else ("validation", task.val)
    judged = judge(labeller.model, examples, device, settings.train.batch_size)
    write_class_marks(folder, split, examples, judged)
    for group, (right, said) in zip(task.groups, truths(examples, judged)):
        print(f"\n{class_table(group, right, said, split)}")
    print(f"\n{folder} holds the run and its {split}_predictions.jsonl; ask it: "
          f"python -m minialpaca.classify {folder} \"a text\"")


if __name__ == "__main__":
    main()
