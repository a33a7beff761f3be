"""What a run begins with, made of its config: the tokenizer, the resolved model, the base."""

import dataclasses
import itertools
from pathlib import Path

from minialpaca import run
from minialpaca.config import FinetuneConfig, ModelConfig, PretrainConfig
from minialpaca.data import corpus, world
from minialpaca.data.instructions import PROMPT_WITH_INPUT, PROMPT_WITHOUT_INPUT
from minialpaca.data.noise import ADDED
from minialpaca.errors import UserError
from minialpaca.log import progress
from minialpaca.model import Transformer
from minialpaca.storage import checkpoint
from minialpaca.tokenizer import Tokenizer

PROMPT_COPIES = 200  # how often the tokenizer sees the Alpaca prompts, so that they cost few tokens later


def make_tokenizer(settings: PretrainConfig) -> Tokenizer:
    """The one named by `tokenizer.path`, or one trained on the text to come."""
    wanted = settings.tokenizer
    if wanted.path:
        return Tokenizer.load(wanted.path)
    with progress(f"learning {wanted.kind} pieces", corpus.size(settings.data, with_val=False), "B") as bar:
        prompts = [PROMPT_WITH_INPUT, PROMPT_WITHOUT_INPUT] * (PROMPT_COPIES if wanted.kind != "char" else 0)
        texts = itertools.chain(corpus.texts(settings.data, bar.update), prompts)
        return Tokenizer.train(texts, wanted.kind, wanted.vocab_size)


def with_vocabulary(settings: PretrainConfig, tokenizer: Tokenizer) -> PretrainConfig:
    given, needed = settings.model.vocab_size, tokenizer.vocab_size + ADDED[settings.objective.name]
    if given and given < needed:
        raise UserError(f"model.vocab_size = {given}: tokenizer and objective have {needed} ids; set 0 or more than that")
    model = dataclasses.replace(settings.model, vocab_size=given or needed)
    return dataclasses.replace(settings, model=model)


def with_base_model(settings: FinetuneConfig) -> tuple[FinetuneConfig, PretrainConfig | FinetuneConfig]:
    """`model` filled in from the base run, with this run's dropout and context."""
    asked = settings.model
    base_settings = run.settings_of(run.base_folder(settings))
    if settings.task.name == "instruction":
        run.refuse_speechless(base_settings, settings.base.run)
    elif base_settings.model.architecture == "encoder_decoder":
        raise UserError(f"{settings.base.run}: holds an encoder_decoder, which has no head for classes; give a run "
                        "with model.architecture = decoder or encoder")
    model = dataclasses.replace(base_settings.model, dropout=settings.base.dropout,
                                max_seq_len=settings.base.max_seq_len or base_settings.model.max_seq_len)
    if asked not in (ModelConfig(), model):
        raise UserError("model.* is the base run's; its dropout and context are set by base.dropout and base.max_seq_len")
    return dataclasses.replace(settings, model=model), base_settings


def refuse_other_world(settings: FinetuneConfig, base_settings) -> None:
    """Questions about a world that the base never read about would only measure guessing."""
    asked = [s for s in settings.data.source if world.is_world(s)]
    told = [s for s in base_settings.data.source if world.is_world(s)]
    if asked and world.seed_of(asked[0]) not in map(world.seed_of, told):
        raise UserError(f"data.source = {asked[0]!r}: the base run {settings.base.run} was trained on "
                        f"{', '.join(base_settings.data.source)}; set data.source={told[0] if told else 'to files of yours'}")


def base_model(settings: FinetuneConfig, tokenizer: Tokenizer) -> Transformer:
    model = run.build(settings)
    run.load_base(model, settings, tokenizer.sha256)
    if settings.base.weights != "random":
        print(f"weights of {checkpoint.find(Path(settings.base.run), settings.base.weights)}\n")
    return model
