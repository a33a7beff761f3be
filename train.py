"""Pretrain: text → token files → model → a run folder with its best and last checkpoint.

    python train.py                                   the built-in world (configs/pretrain.toml)
    python train.py configs/shakespeare-char.toml data.source=shakespeare.txt
    python train.py configs/x.toml optim.lr=3e-4 model.n_layers=6

The same command again continues a run that was stopped.
"""

import dataclasses
import itertools
import math
import sys
from pathlib import Path

from minialpaca import run, scripts
from minialpaca.config import PretrainConfig
from minialpaca.data import corpus
from minialpaca.data.instructions import PROMPT_WITH_INPUT, PROMPT_WITHOUT_INPUT
from minialpaca.errors import UserError, command
from minialpaca.log import progress
from minialpaca.model import Transformer
from minialpaca.observe import observer
from minialpaca.tasks.pretrain import CausalLM
from minialpaca.tokenizer import Tokenizer
from minialpaca.trainer import Trainer

PROMPT_COPIES = 200  # how often the tokenizer sees the Alpaca prompts, so that they cost few tokens later


@command
def main(arguments: list[str]) -> None:
    settings = scripts.parse(PretrainConfig, "configs/pretrain.toml", __doc__, arguments)
    device = run.pick_device(settings.run.device)
    corpus.size(settings.data)  # every file is looked for before anything is written
    folder = Path(settings.run.dir)
    exists = run.open_folder(folder, settings.run.resume)

    tokenizer = Tokenizer.load(folder / run.TOKENIZER) if exists else make_tokenizer(settings)
    settings = with_vocabulary(settings, tokenizer)
    scripts.show_settings(settings)
    task = CausalLM(settings, tokenizer, folder / "tokens")
    run.keep(folder, settings, tokenizer)
    print(f"{len(task.train):,} training tokens, {len(task.val):,} held out, vocabulary {tokenizer.vocab_size:,}")

    model = Transformer(settings.model, settings.run.seed).to(device)
    scripts.show_parameters(model, device)
    watch = observer(tokenizer, beginnings(settings, task, tokenizer), settings.samples.max_new_tokens,
                     settings.model.max_seq_len)
    state = Trainer(model, task, settings.optim, settings.train, settings.run.seed, folder, watch).fit()

    best = state["best_val_loss"]
    print(f"\nbest validation loss {best:.4f} nats per token: perplexity {math.exp(min(best, 700)):,.2f}, "
          f"{task.bits_per_byte(best):.4f} bits per byte")
    best_model, _ = run.load(folder, "best", device)
    scripts.show_answers(watch.answers(best_model))
    print(f"\n{folder} holds the run; curves: tensorboard --logdir {folder}")


def make_tokenizer(settings: PretrainConfig) -> Tokenizer:
    """The one named by `tokenizer.path`, or one trained on the text to come."""
    wanted = settings.tokenizer
    if wanted.path:
        return Tokenizer.load(wanted.path)
    with progress(f"learning {wanted.kind} pieces", corpus.size(settings.data), "B") as bar:
        prompts = [PROMPT_WITH_INPUT, PROMPT_WITHOUT_INPUT] * (PROMPT_COPIES if wanted.kind != "char" else 0)
        texts = itertools.chain(corpus.texts(settings.data, bar.update), prompts)
        return Tokenizer.train(texts, wanted.kind, wanted.vocab_size)


def with_vocabulary(settings: PretrainConfig, tokenizer: Tokenizer) -> PretrainConfig:
    given = settings.model.vocab_size
    if given and given < tokenizer.vocab_size:
        raise UserError(f"model.vocab_size = {given}: the tokenizer has {tokenizer.vocab_size} ids; set 0 or more than that")
    model = dataclasses.replace(settings.model, vocab_size=given or tokenizer.vocab_size)
    return dataclasses.replace(settings, model=model)


def beginnings(settings: PretrainConfig, task: CausalLM, tokenizer: Tokenizer) -> list[tuple[str, list[int]]]:
    """Texts to go on from: the given ones, or the first tokens of the held-out text."""
    if settings.samples.prompts:
        return [(text, [tokenizer.bos, *tokenizer.encode(text)]) for text in settings.samples.prompts]
    spread = [i * len(task.val) // max(1, settings.samples.count) for i in range(settings.samples.count)]
    taken = [task.val.ids[i:i + 8].tolist() for i in spread]
    return [(tokenizer.decode(ids), ids) for ids in taken if ids]


if __name__ == "__main__":
    main(sys.argv[1:])
