"""The losses: sums over supervised tokens that no way of batching may change."""

import math

import pytest
import spelled
import tiny
import torch
import torch.nn.functional as F
from spelled import listed

from minialpaca.data.batch import collate
from minialpaca.objectives import IGNORE, cross_entropy_sum, next_token_pairs
from minialpaca.tasks import next_token_loss

PAD = 3


class Oracle(torch.nn.Module):
    """A model that is sure of the token `ahead` places further on."""

    def __init__(self, tokens_BT: torch.Tensor, ahead: int):
        super().__init__()
        self.logits_BTV = 100 * F.one_hot(tokens_BT.roll(-ahead, dims=1), 53).double()

    def hidden(self, inputs_BT):
        return self.logits_BTV[:, :inputs_BT.shape[1]]

    def logits(self, hidden):
        return hidden


def ragged(n: int = 8, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Rows of 3 … 17 tokens; of each a prompt is ignored, and rows 2 and 3 have nothing supervised at all."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(n):
        length = int(torch.randint(3, 18, (), generator=generator))
        ids = torch.randint(4, 53, (length,), generator=generator).tolist()
        prompt = length if i in (2, 3) else int(torch.randint(1, length, (), generator=generator))
        rows.append((ids, [IGNORE] * prompt + ids[prompt:]))
    return rows


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────


def test_knowing_the_next_token_costs_nothing_and_knowing_the_one_after_does():
    tokens_BT = tiny.tokens(4, 9)
    batch = collate([(row, row) for row in tokens_BT.tolist()], PAD)
    assert float(next_token_loss(Oracle(tokens_BT, ahead=1), batch)) == pytest.approx(0, abs=1e-12)
    for ahead in (0, 2):
        assert float(next_token_loss(Oracle(tokens_BT, ahead), batch)) / batch.n_supervised > 50


def test_inputs_and_targets_stay_in_their_row():
    tokens_BT = torch.arange(12).view(3, 4)
    inputs, targets = next_token_pairs(tokens_BT, tokens_BT + 100)
    assert inputs.tolist() == [[0, 1, 2], [4, 5, 6], [8, 9, 10]]
    assert targets.tolist() == [[101, 102, 103], [105, 106, 107], [109, 110, 111]]


def test_collate_pads_on_the_right_and_supervises_only_what_is_labelled():
    batch = collate([([5, 6, 7, 8], [IGNORE, IGNORE, 7, 8]), ([9, 10], [9, 10]), ([11], [11])], PAD)
    assert batch.tokens_BT.tolist() == [[5, 6, 7, 8], [9, 10, PAD, PAD], [11, PAD, PAD, PAD]]
    assert batch.labels_BT.tolist() == [[IGNORE, IGNORE, 7, 8], [9, 10, IGNORE, IGNORE], [11] + [IGNORE] * 3]
    assert batch.supervised_N.tolist() == [1, 2, 3]  # of the 3 × 3 targets; a row's first token is never one
    assert (batch.n_supervised, batch.n_tokens) == (3, 7)


def test_an_end_of_text_that_doubles_as_padding_is_still_learned():
    batch = collate([([5, 6, PAD], [IGNORE, 6, PAD]), ([5, 6, 7, 8, PAD], [IGNORE] * 3 + [8, PAD])], pad=PAD)
    targets = next_token_pairs(batch.tokens_BT, batch.labels_BT)[1].flatten()
    assert targets[batch.supervised_N].tolist() == [6, PAD, 8, PAD]


# ── cross entropy ────────────────────────────────────────────────────────────────────────────────


def test_cross_entropy_is_the_papers_sum():
    logits, targets = tiny.normal(6, 5) * 3, torch.tensor([0, 4, IGNORE, 2, 2, IGNORE])
    assert float(cross_entropy_sum(logits, targets)) == pytest.approx(
        spelled.cross_entropy_sum(listed(logits), targets.tolist()), abs=1e-12)
    assert torch.autograd.gradcheck(lambda z: cross_entropy_sum(z, targets), (logits.requires_grad_(),))


def test_cross_entropy_by_pencil():
    """Even odds of four, twice: 2 ln 4; the ignored row adds nothing."""
    loss = cross_entropy_sum(torch.zeros(3, 4), torch.tensor([0, IGNORE, 3]))
    assert float(loss) == pytest.approx(2 * math.log(4))


def test_ignored_rows_get_exactly_zero_gradient():
    logits = tiny.normal(4, 5).requires_grad_()
    cross_entropy_sum(logits, torch.tensor([1, IGNORE, 3, IGNORE])).backward()
    assert torch.equal(logits.grad[[1, 3]], torch.zeros(2, 5, dtype=torch.float64))
    assert (logits.grad[[0, 2]] != 0).all()


def test_where_nothing_is_supervised_the_loss_is_exactly_zero_and_so_are_all_gradients():
    logits = tiny.normal(3, 5).requires_grad_()
    loss = cross_entropy_sum(logits, torch.full((3,), IGNORE))
    loss.backward()
    assert float(loss.detach()) == 0 and torch.equal(logits.grad, torch.zeros_like(logits))

    model = tiny.model()
    loss = next_token_loss(model, collate([ragged()[2], ragged()[3]], PAD))
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is None or torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())


# ── batching ─────────────────────────────────────────────────────────────────────────────────────


def test_the_head_sees_only_supervised_positions_and_the_loss_is_that_of_all_logits():
    model, batch = tiny.model().double(), collate(ragged(), PAD)
    inputs_BT, targets_BT = batch.tokens_BT[:, :-1], batch.labels_BT[:, 1:]
    expected = spelled.cross_entropy_sum(listed(model(inputs_BT).flatten(0, 1)), targets_BT.flatten().tolist())
    assert float(next_token_loss(model, batch).detach()) == pytest.approx(expected, abs=1e-10)
    seen = []
    model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0]))
    next_token_loss(model, batch)
    assert seen == [batch.n_supervised] and 0 < batch.n_supervised < targets_BT.numel()


def step_gradient(rows, micro: int) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one optimiser step in micro-batches of `micro` rows, divided once by all its tokens."""
    model = tiny.model().double()
    batches = [collate(rows[i:i + micro], PAD) for i in range(0, len(rows), micro)]
    supervised = sum(batch.n_supervised for batch in batches)
    total = 0.0
    for batch in batches:
        loss = next_token_loss(model, batch) / supervised
        loss.backward()
        total += float(loss.detach())
    return total, torch.cat([p.grad.flatten() for p in model.parameters()])


def test_loss_and_gradient_do_not_depend_on_the_split_into_micro_batches():
    rows = ragged()
    assert collate(rows[2:4], PAD).n_supervised == 0  # the second micro-batch of (2, 4) has nothing to learn
    counts = [collate(rows[i:i + 2], PAD).n_supervised for i in (0, 4, 6)]
    assert len(set(counts)) == 3                      # a mean of means would weigh tokens unevenly
    loss, gradient = step_gradient(rows, micro=8)
    for micro in (4, 2, 1, 3):                        # 3 leaves a short last one
        other_loss, other_gradient = step_gradient(rows, micro)
        assert other_loss == pytest.approx(loss, abs=1e-10)
        torch.testing.assert_close(other_gradient, gradient, rtol=0, atol=1e-10)
    assert float(gradient.abs().max()) > 1e-3


def test_the_padding_id_changes_neither_loss_nor_gradient():
    results = []
    for pad in (PAD, 40):
        model = tiny.model().double()
        loss = next_token_loss(model, collate(ragged(), pad))
        loss.backward()
        results.append((loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)
