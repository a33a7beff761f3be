"""Pretrain: text → token files → model → a run folder with its best and last checkpoint.

    python train.py                                   the built-in world (configs/pretrain.toml)
    python train.py configs/shakespeare-char.toml data.source=shakespeare.txt
    python train.py configs/x.toml optim.lr=3e-4 model.n_layers=6

The same command again continues a run that was stopped.
"""

from minialpaca import commandline
from minialpaca.config import PretrainConfig


def asked(arguments: list[str] | None = None) -> PretrainConfig:
    return commandline.settings_of(PretrainConfig, "configs/pretrain.toml", __doc__, arguments)


commandline.early(__name__, asked)

from pathlib import Path

import numpy as np

from minialpaca import parallel, run, scripts, signals
from minialpaca.adversarial import attack_on
from minialpaca.data import corpus
from minialpaca.data.noise import mask_tokens
from minialpaca.errors import command
from minialpaca.observe import MaskObserver, Observer, SpanObserver, continuations, spell
from minialpaca.setup import make_tokenizer, with_vocabulary
from minialpaca.storage.place import TOKENS
from minialpaca.tasks.pretrain import TASKS, CorpusTask
from minialpaca.tokenizer import Tokenizer
from minialpaca.trainer import Trainer


@command
@signals.left()
@parallel.joined()
def main(arguments: list[str] | None = None) -> None:
    settings = asked(arguments)
    device = run.pick_device(settings.run.device)
    corpus.size(settings.data)  # every file is looked for before anything is written
    folder = Path(settings.run.dir)
    with run.opened(folder, settings.run.resume) as exists:
        tokenizer = run.tokenizer_of(folder) if exists else make_tokenizer(settings)
        settings = with_vocabulary(settings, tokenizer)
        recipe = run.refuse_other_recipe(folder, settings, tokenizer)
        scripts.show_settings(settings)
        task = TASKS[settings.objective.name](settings, tokenizer, folder / TOKENS)
        model = run.build(settings, device)
        watch = watcher(settings, task, tokenizer)
        attack = attack_on(model.embed, settings.adversarial, settings.model.tie_embeddings)
        trainer = Trainer(model, task, settings.optim, settings.train, settings.run.seed, folder, watch, settings.loss.l2,
                          attack=attack, recipe=recipe)
        trainer.refuse_unfit()
        run.keep(folder, settings, tokenizer)
        print(f"{len(task.train):,} training tokens, {len(task.val):,} held out, vocabulary {tokenizer.vocab_size:,}")

        scripts.show_parameters(model, device)
        state = trainer.fit()
        if not parallel.is_first():
            return

        print(f"\nbest validation loss {task.describe(state['best'])}")
        best_model, _ = run.load(folder, "best", device)
        scripts.show_answers(watch.answers(best_model),
                             scripts.CONTINUATION if settings.objective.name == "causal" else scripts.ANSWER)
    print(f"\n{folder} holds the run; curves: tensorboard --logdir {folder}")


def watcher(settings: PretrainConfig, task: CorpusTask, tokenizer: Tokenizer) -> Observer:
    """Shows how texts go on, or what is said about hidden parts of them."""
    limit, context = settings.samples.max_new_tokens, settings.model.max_seq_len
    if settings.objective.name == "causal":
        return continuations(tokenizer, beginnings(settings, task, tokenizer, 8), limit, context)
    texts = [ids[:context] for ids in beginnings(settings, task, tokenizer, 32)]
    if settings.objective.name == "masked":
        noised = [mask_tokens(np.array(ids), settings.objective, task.vocabulary, 0, i)[0].tolist()
                  for i, ids in enumerate(texts)]
        return MaskObserver(tokenizer, [spell(tokenizer, ids) for ids in noised], noised, limit)
    noised = [task.corrupt(np.array(ids), 0, i)[0].tolist() for i, ids in enumerate(texts)]
    return SpanObserver(tokenizer, [spell(tokenizer, ids) for ids in noised], noised, min(limit, context - 1))


def beginnings(settings: PretrainConfig, task: CorpusTask, tokenizer: Tokenizer, n: int) -> list[list[int]]:
    """The given texts, or n tokens from here and there in the held-out text."""
    if settings.samples.prompts:
        return [[tokenizer.bos, *tokenizer.encode(text)] for text in settings.samples.prompts]
    spread = [i * len(task.val) // max(1, settings.samples.count) for i in range(settings.samples.count)]
    taken = [task.val.ids[i:i + n].tolist() for i in spread]
    return [ids for ids in taken if ids]


if __name__ == "__main__":
    main()
