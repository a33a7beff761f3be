"""Instruction tuning: cross entropy of the response's tokens, given the prompt."""

from collections.abc import Iterable

from torch import Tensor, nn

from minialpaca.config import FinetuneConfig
from minialpaca.data import world
from minialpaca.data.batch import Batch
from minialpaca.data.files import refuse_shared
from minialpaca.data.instructions import PROMPTS_ID, Examples
from minialpaca.data.rows import SUFFIXES, Row, hold_out, read_rows
from minialpaca.errors import UserError
from minialpaca.tasks import Task, next_token_loss
from minialpaca.tokenizer import Tokenizer


class Instruction(Task):
    prompts = PROMPTS_ID

    def __init__(self, settings: FinetuneConfig, tokenizer: Tokenizer):
        train, self.val_rows, self.test_rows = split_rows(settings)
        context, over_long = settings.model.max_seq_len, settings.data.over_long
        self.train = Examples(train, tokenizer, context, over_long, "training")
        self.val = Examples(self.val_rows, tokenizer, context, over_long, "validation")
        self.loss = settings.loss
        self.tokenizer_sha256, self.seed = tokenizer.sha256, settings.run.seed
        self.data_sha256 = f"{self.train.sha256()} {self.val.sha256()}"
        self.batch_size, self.eval_batches = settings.train.batch_size, settings.train.eval_batches

    def longest(self) -> tuple[int, int]:
        return max(self.train.buckets.lengths) - 1, 0  # the last id is only ever a target

    def batches_per_epoch(self) -> int:
        return self.train.n_batches(self.batch_size)

    def batch(self, number: int) -> Batch:
        return self.train.batch(number, self.batch_size, self.seed)

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Σ_i Σ_j −log P(y_ij | prompt_i, y_i,<j), over the responses' tokens j, </s> included   [finetune.1]

        The trainer divides by their number, N = Σ_i M_i.
        """
        return next_token_loss(model, batch, self.loss)

    def validation(self) -> Iterable[Batch]:
        return self.val.in_order(self.batch_size, self.eval_batches)


def split_rows(settings: FinetuneConfig) -> tuple[list[Row], list[Row], list[Row]]:
    """(training, validation, test) rows as `data` asks for them; test may be empty."""
    data = settings.data
    if any(world.is_world(source) for source in data.source):
        if len(data.source) > 1:
            raise UserError(f"data.source = {list(data.source)}: the built-in world comes with a test of its own and mixes "
                            "with nothing; write it to files first (python -m minialpaca.data.world FOLDER)")
        train, val, test = world.instructions(world.World.build(world.seed_of(data.source[0])))
    else:
        train, val, test = read_rows(data.source), [], []
    if data.val_source:
        files = [source for source in data.source if not world.is_world(source)]
        refuse_shared(files, data.val_source, SUFFIXES, "data.val_source")
        val = read_rows(data.val_source)
    elif not val and data.val_fraction:
        train, val = hold_out(train, data.val_fraction, settings.run.seed)
    if data.test_source:
        test = read_rows(data.test_source)
    return train, val or train, test
