"""What is predicted of a corpus: windows in, losses out, the same however they are batched."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from minialpaca import config, tasks
from minialpaca.config import LossConfig, ObjectiveConfig, PretrainConfig
from minialpaca.data import noise
from minialpaca.data.batch import collate_masked, collate_sources
from minialpaca.errors import UserError
from minialpaca.objectives import IGNORE
from minialpaca.tasks.pretrain import TASKS, MaskedLM, masked_loss, refuse_long_targets, source_loss
from minialpaca.trainer import evaluate

CPU = torch.device("cpu")
KINDS = ["causal", "masked", "span"]


@pytest.fixture
def make(sources, tokenizer, tmp_path_factory):
    """A task on the shared story, with a context of 24 unless told otherwise."""

    def made(kind: str, *changes: str):
        overrides = [f"data.source={sources / 'story.txt'}", f"objective.name={kind}", "model.max_seq_len=24",
                     f"model.architecture={config.ARCHITECTURE_OF[kind]}", "data.documents=file", *changes]
        settings = config.load(PretrainConfig, sources / "pretrain.toml", overrides)
        return TASKS[kind](settings, tokenizer, tmp_path_factory.mktemp("tokens"))

    return made


def model_for(task, **changes):
    kind = next(name for name, cls in TASKS.items() if type(task) is cls)
    V = task.tokenizer.vocab_size + noise.ADDED[kind]
    return tiny.model(architecture=config.ARCHITECTURE_OF[kind], vocab_size=V, **changes).double()


def said(logits_TV, targets) -> float:
    """Σ −log P(y), over the labelled."""
    log_p = logits_TV.double().log_softmax(-1)
    return math.fsum(-float(log_p[t, y]) for t, y in enumerate(targets) if y != IGNORE)


# ── the losses ───────────────────────────────────────────────────────────────────────────────────

HOW = ObjectiveConfig(noise_rate=0.3)
VOCABULARY = noise.Vocabulary(frozenset(range(4)), np.arange(4, 50), 50)  # 50 … 52 are behind it
LENGTHS = (13, 4, 1, 9, 13)


def masked_rows():
    rows = [noise.mask_tokens(tiny.tokens(n, vocab_size=46, seed=n).numpy() + 4, HOW, VOCABULARY, 1, i)
            for i, n in enumerate(LENGTHS)]
    nothing_to_learn = noise.mask_tokens(np.array([1, 2, 3]), HOW, VOCABULARY, 1, 9)  # control ids alone
    assert [int((labels != IGNORE).sum()) for _, labels in (*rows, nothing_to_learn)].count(0) == 1
    return [*rows[:2], nothing_to_learn, *rows[2:]]


def span_rows():
    return [([*range(10, 10 + n), 50], [1, 50, *range(20, 20 + m), 51, 2]) for n, m in ((9, 1), (3, 8), (1, 1), (17, 4))]


@torch.no_grad()
def test_the_masked_loss_is_the_sum_over_hidden_tokens_seen_from_both_sides():
    model, rows = tiny.model(architecture="encoder").double(), masked_rows()
    wanted = math.fsum(said(model(torch.tensor(ids)[None])[0], labels.tolist()) for ids, labels in rows)
    batch = collate_masked(rows, 3)
    assert float(masked_loss(model, batch, LossConfig())) == pytest.approx(wanted, rel=1e-12) and wanted > 10
    assert batch.n_supervised == sum(int((labels != IGNORE).sum()) for _, labels in rows)


@torch.no_grad()
def test_the_span_loss_is_the_sum_over_targets_told_from_their_sources():
    model, rows = tiny.model(architecture="encoder_decoder").double(), span_rows()
    wanted = 0.0
    for source, target in rows:
        logits_TV = model(torch.tensor([target[:-1]]), sources=model.encode(torch.tensor([source])))[0]
        wanted += said(logits_TV, target[1:])
    assert float(source_loss(model, collate_sources(rows, 3), LossConfig())) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("kind", ["masked", "span"])
def test_loss_and_gradient_depend_neither_on_the_amount_of_padding_nor_on_its_id(kind):
    """All rows together, padded to the longest with 3 or 40; two by two; and each alone without padding."""
    rows = masked_rows() if kind == "masked" else span_rows()
    pack, loss = (collate_masked, masked_loss) if kind == "masked" else (collate_sources, source_loss)
    results = []
    for size, pad in ((len(rows), 3), (len(rows), 40), (2, 3), (1, 3)):
        model = tiny.model(architecture=config.ARCHITECTURE_OF[kind]).double()
        total = 0.0
        for i in range(0, len(rows), size):
            part = loss(model, pack(rows[i:i + size], pad), LossConfig())
            part.backward()
            total += float(part.detach())
        results.append((torch.tensor(total), torch.cat([p.grad.flatten() for p in model.parameters()])))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["masked", "span"])
def test_only_what_is_learned_goes_through_the_head(kind, monkeypatch):
    rows = masked_rows() if kind == "masked" else span_rows()
    batch = (collate_masked if kind == "masked" else collate_sources)(rows, 3)
    model, seen = tiny.model(architecture=config.ARCHITECTURE_OF[kind]), []
    monkeypatch.setattr(tasks, "linear_cross_entropy_sum", lambda hidden_ND, *rest: seen.append(len(hidden_ND)))
    (masked_loss if kind == "masked" else source_loss)(model, batch, LossConfig())
    assert seen == [batch.n_supervised]


# ── the tasks ────────────────────────────────────────────────────────────────────────────────────

OFTEN = ["objective.noise_rate=0.4", "objective.mean_span=2"]  # of 24 tokens 10 in 5 stretches: 126 × 715 ways


def ids_of(batch) -> list:
    return [batch.tokens_BT.tolist(), batch.labels_BT.tolist(), getattr(batch, "source_BS", torch.empty(0)).tolist()]


@pytest.mark.parametrize("kind", ["masked", "span"])
def test_a_window_is_hidden_otherwise_each_time_and_the_same_when_asked_again(make, kind):
    """The window stays and only its number changes, as from one epoch to the next."""
    task, again, other = make(kind, *OFTEN), make(kind, *OFTEN), make(kind, *OFTEN, "run.seed=1")
    window = task.windows[0]
    for one in (task, again, other):
        one.windows = {number: window for number in range(400)}  # any number gives this one
    batches = [ids_of(task.batch(number)) for number in range(4)]
    assert all(a != b for a, b in itertools.combinations(batches, 2))
    assert [ids_of(task.batch(number)) for number in (3, 0)] == [batches[3], batches[0]]
    assert [ids_of(again.batch(number)) for number in range(4)] == batches
    assert ids_of(other.batch(0)) not in batches
    rows = task.batch(0).tokens_BT.tolist()
    assert any(a != b for a, b in itertools.combinations(rows, 2))  # nor within a batch


@pytest.mark.parametrize("kind", ["masked", "span"])
def test_a_batch_holds_the_windows_of_its_numbers(make, kind):
    """Window n without its last token, which only the next-token task asks for."""
    task = make(kind)
    batch, size = task.batch(2), task.batch_size
    windows = [task.windows[i][:-1].tolist() for i in range(2 * size, 3 * size)]
    if kind == "masked":
        labelled = batch.labels_BT != IGNORE
        assert torch.where(labelled, batch.labels_BT, batch.tokens_BT).tolist() == windows
        assert 0 < batch.n_supervised < 24 * size / 2
    else:
        first = task.vocabulary.first_added
        for window, source, real, target in zip(windows, batch.source_BS, batch.real_BS, batch.tokens_BT.tolist()):
            said, behind = {}, None
            for i in target[1:]:
                if i >= first:
                    behind = said.setdefault(i, [])
                elif i != task.tokenizer.eos and i != task.tokenizer.pad:
                    behind.append(i)
            back = [token for i in source[real].tolist() for token in (said[i] if i >= first else [i])]
            assert back == window and source[~real].eq(task.tokenizer.pad).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_a_document_sees_the_one_before_it_in_its_window(make, kind):
    """No mask stands between documents: another word in the first changes what is said in the second."""
    task = make(kind, "data.documents=line")
    model, bos = model_for(task), task.tokenizer.bos
    ids, second = next((ids, places[-1]) for ids in (task.windows[i][:-1] for i in range(task.windows.n))
                       if len(places := np.flatnonzero(ids == bos)) > 1 and 1 < places[-1] < len(ids) - 3)
    tokens_BT = torch.as_tensor(ids)[None].repeat(2, 1)
    tokens_BT[1, second - 2] = (tokens_BT[1, second - 2] + 1) % task.tokenizer.vocab_size
    one, other = model(tokens_BT)[:, second:]
    assert ids[second - 1] == task.tokenizer.eos and ((one - other).abs().amax(-1) > 1e-3).all()
    alone = model(tokens_BT[:1, second:])[0]
    assert ((one - alone).abs().amax(-1) > 1e-3).all()  # nor does a row of its own say the same


@pytest.mark.parametrize("kind", KINDS)
def test_validation_is_the_same_each_time_and_not_what_training_hides(make, kind):
    task = make(kind, "train.eval_batches=0")
    first, second = ([ids_of(batch) for batch in task.validation()] for _ in range(2))
    assert first == second and len(first) > 2
    smaller = make(kind, "train.batch_size=1", "train.eval_batches=0")
    model = model_for(task)
    wanted = evaluate(model, task, CPU)["val_loss"]
    assert evaluate(model, smaller, CPU)["val_loss"] == pytest.approx(wanted, rel=1e-12)  # nor by the batch size


@pytest.mark.parametrize("kind", ["masked", "span"])
def test_training_and_validation_hide_differently_under_the_same_number_and_seed(make, kind):
    task = make(kind, *OFTEN, "train.batch_size=8")
    window = task.windows[0]
    task.windows, task.val_windows = {n: window for n in range(8)}, SimpleNamespace(in_order=lambda: [window] * 8)
    trained, held_out = task.batch(0), next(iter(task.validation()))
    assert ids_of(trained) != ids_of(held_out)
    assert all(a != b for a, b in zip(trained.tokens_BT.tolist(), held_out.tokens_BT.tolist()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_window_of_the_validation_may_be_a_single_token(make, kind):
    """It stands alone in its batch, and nothing can be hidden of it."""
    task = make(kind, "train.batch_size=1", "train.eval_batches=0")
    window = task.windows[0]
    task.val_windows = SimpleNamespace(in_order=lambda: [window, window[:2]])
    batches = list(task.validation())
    assert len(batches) == 2 and batches[1].n_supervised <= 2
    assert math.isfinite(evaluate(model_for(task), task, CPU)["val_loss"])


@pytest.mark.parametrize("kind", KINDS)
def test_smoothing_and_r_drop_are_for_training_alone(make, kind):
    """val_loss keeps its meaning: nats per token, comparable between runs with and without them."""
    plain = make(kind)
    model = model_for(plain, dropout=0.3)
    for changes in (["loss.label_smoothing=0.3"], ["loss.r_drop=5"], ["loss.label_smoothing=0.1", "loss.r_drop=1"]):
        task = make(kind, "model.dropout=0.3", *changes)
        assert evaluate(model.train(), task, CPU) == evaluate(model, plain, CPU)

        def loss(of):
            torch.manual_seed(0)
            return float(of.loss_sum(model, of.batch(0)).detach())

        assert abs(loss(task) - loss(plain)) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_pretraining_task_measures_its_loss_and_nothing_else(make, kind):
    task = make(kind)
    assert task.measures == ("val_loss",) == tuple(evaluate(model_for(task), task, CPU))


# ── limits ───────────────────────────────────────────────────────────────────────────────────────


def test_targets_that_would_not_fit_the_context_are_refused_before_anything_is_written(make):
    refused = 0
    for context, (rate, mean) in itertools.product((1, 2, 3, 4, 5, 12, 24), ((0.15, 3.0), (0.5, 1.0), (0.5, 3.0), (0.9, 3.0))):
        settings = config.load(PretrainConfig, None, [
            f"model.max_seq_len={context}", f"objective.noise_rate={rate}", f"objective.mean_span={mean}",
            "objective.name=span", "model.architecture=encoder_decoder"])
        longest = 0  # <s>, sentinels and hidden tokens, as the decoder reads them, of windows up to the context
        for n in range(1, context + 1):
            hidden = noise.span_noise(n, rate, mean, 1)
            _, target = noise.corrupt_spans(np.arange(4, 4 + n), hidden, VOCABULARY, 1, 2)
            longest = max(longest, len(target) - 1)
        fits = longest <= context and context > 1
        try:
            refuse_long_targets(settings)
            assert fits, (context, rate, mean)
        except UserError as error:
            refused += 1
            assert not fits and f"model.max_seq_len = {context} tokens" in str(error), (context, rate, mean)
    assert 5 < refused < 23
    with pytest.raises(UserError, match="makes a target of 26, which does not fit the context; hide less"):
        make("span", "objective.noise_rate=0.5", "objective.mean_span=1", "data.source=/nowhere.txt")


def test_the_objectives_are_three():
    assert set(TASKS) == set(noise.ADDED) == set(config.ARCHITECTURE_OF) and TASKS["masked"] is MaskedLM
