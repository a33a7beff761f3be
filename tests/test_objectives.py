"""The losses: sums over supervised tokens that no way of batching may change."""

import math

import pytest
import spelled
import tiny
import torch
import torch.nn.functional as F
from spelled import listed

from minialpaca import tasks
from minialpaca.config import LossConfig
from minialpaca.data.batch import collate
from minialpaca.objectives import (
    IGNORE,
    cross_entropy_sum,
    kl_sum,
    label_groups_sum,
    next_token_pairs,
    r_drop_sum,
    regularised_sum,
    squared_norm,
    symmetric_kl_sum,
)
from minialpaca.tasks import next_token_loss

PAD = 3


class Oracle(torch.nn.Module):
    """A model that is sure of the token `ahead` places further on."""

    def __init__(self, tokens_BT: torch.Tensor, ahead: int):
        super().__init__()
        self.lm_head = None
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


# ── smoothing ────────────────────────────────────────────────────────────────────────────────────

TARGETS = torch.tensor([0, 4, IGNORE, 2, 2, IGNORE])


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.9])
def test_smoothed_cross_entropy_is_the_papers_sum(epsilon):
    logits = tiny.normal(6, 5) * 3
    assert float(cross_entropy_sum(logits, TARGETS, epsilon)) == pytest.approx(
        spelled.smoothed_cross_entropy_sum(listed(logits), TARGETS.tolist(), epsilon), abs=1e-12)
    assert torch.autograd.gradcheck(lambda z: cross_entropy_sum(z, TARGETS, epsilon), (logits.requires_grad_(),))


def test_smoothing_by_pencil():
    """Odds 3 : 1, ε = ½: the target gets ¾, the other ¼; −¾ ln ¾ − ¼ ln ¼. The ignored row adds nothing."""
    logits = torch.tensor([[math.log(3), 0.0], [5.0, 0.0]], dtype=torch.float64)
    wanted = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert float(cross_entropy_sum(logits, torch.tensor([0, IGNORE]), 0.5)) == pytest.approx(wanted, abs=1e-12)


def test_smoothing_is_least_where_the_model_says_the_smoothed_target():
    """Gradient p − q: zero at q itself, and Σ_v of it zero anywhere."""
    q = torch.full((1, 5), 0.3 / 5, dtype=torch.float64)
    q[0, 2] += 0.7
    logits = q.log().requires_grad_()
    loss = cross_entropy_sum(logits, torch.tensor([2]), 0.3)
    loss.backward()
    assert float(logits.grad.abs().max()) < 1e-15
    assert float(loss.detach()) == pytest.approx(float(-(q * q.log()).sum()), abs=1e-12)


# ── R-Drop ───────────────────────────────────────────────────────────────────────────────────────

ONE, OTHER = tiny.normal(6, 5, seed=11) * 2, tiny.normal(6, 5, seed=12) * 2


def test_kl_is_the_papers_sum():
    told_NC, said_NC = tiny.normal(4, 3), tiny.normal(4, 3, seed=5)
    wanted = math.fsum(p * math.log(p / q) for row, other in zip(listed(told_NC), listed(said_NC))
                       for p, q in zip(spelled.softmax(row), spelled.softmax(other)))
    assert kl_sum(told_NC, said_NC).item() == pytest.approx(wanted, rel=1e-12)
    assert kl_sum(told_NC, told_NC + 7).item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.gradcheck(kl_sum, (told_NC.requires_grad_(), said_NC.requires_grad_()))


def test_symmetric_kl_is_the_papers_sum():
    wanted = spelled.symmetric_kl_sum(listed(ONE), listed(OTHER))
    assert float(symmetric_kl_sum(ONE, OTHER)) == pytest.approx(wanted, abs=1e-12) and wanted > 1
    assert torch.autograd.gradcheck(symmetric_kl_sum, (ONE.clone().requires_grad_(), OTHER.clone().requires_grad_()))


def test_symmetric_kl_by_pencil():
    """Odds 3 : 1 against 1 : 1: ½ (¾ ln 1.5 + ¼ ln ½ − ½ ln 1.5 − ½ ln ½) = ⅛ ln 3."""
    one = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    assert float(symmetric_kl_sum(one, torch.zeros_like(one))) == pytest.approx(math.log(3) / 8, abs=1e-12)


def test_symmetric_kl_is_a_distance_of_distributions():
    """Symmetric, zero for equal ones, blind to a shift of the logits, finite where a probability underflows."""
    assert float(symmetric_kl_sum(ONE, OTHER)) == pytest.approx(float(symmetric_kl_sum(OTHER, ONE)), rel=1e-14)
    assert float(symmetric_kl_sum(ONE, ONE + tiny.normal(6, 1))) == pytest.approx(0, abs=1e-13)
    sure = torch.tensor([[900.0, 0.0]])
    assert float(symmetric_kl_sum(sure, -sure)) == pytest.approx(900)


@pytest.mark.parametrize(("alpha", "epsilon"), [(0.0, 0.0), (1.0, 0.0), (5.0, 0.1)])
def test_r_drop_is_the_papers_sum(alpha, epsilon):
    wanted = spelled.r_drop_sum(listed(ONE), listed(OTHER), TARGETS.tolist(), alpha, epsilon)
    assert float(r_drop_sum(ONE, OTHER, TARGETS, alpha, epsilon)) == pytest.approx(wanted, abs=1e-12)
    assert torch.autograd.gradcheck(lambda a, b: r_drop_sum(a, b, TARGETS, alpha, epsilon),
                                    (ONE.clone().requires_grad_(), OTHER.clone().requires_grad_()))


def test_r_drop_of_two_equal_passes_is_one_pass():
    """So that it has the size of the loss it takes the place of, whatever α."""
    for epsilon in (0.0, 0.2):
        assert float(r_drop_sum(ONE, ONE, TARGETS, 7.0, epsilon)) == pytest.approx(
            float(cross_entropy_sum(ONE, TARGETS, epsilon)), abs=1e-12)


@pytest.mark.parametrize(("how", "wanted"), [
    (LossConfig(), lambda: cross_entropy_sum(ONE, TARGETS)),
    (LossConfig(label_smoothing=0.1), lambda: cross_entropy_sum(ONE, TARGETS, 0.1)),
    (LossConfig(r_drop=2.0), lambda: r_drop_sum(ONE, OTHER, TARGETS, 2.0)),
    (LossConfig(r_drop=2.0, label_smoothing=0.1), lambda: r_drop_sum(ONE, OTHER, TARGETS, 2.0, 0.1)),
    (LossConfig(l2=3.0), lambda: cross_entropy_sum(ONE, TARGETS)),  # the trainer's, once a step
], ids=["plain", "smoothed", "r-drop", "both", "l2"])
def test_in_training_the_loss_is_what_was_asked_for_and_in_evaluation_plain_cross_entropy(how, wanted):
    left = [OTHER, ONE]
    assert float(regularised_sum(left.pop, TARGETS, how, training=True)) == pytest.approx(float(wanted()), abs=1e-12)
    assert len(left) == (0 if how.r_drop else 1)  # two passes for R-Drop, one for everything else
    left = [OTHER, ONE]
    assert float(regularised_sum(left.pop, TARGETS, how, training=False)) == float(cross_entropy_sum(ONE, TARGETS))
    assert len(left) == 1


# ── label groups ─────────────────────────────────────────────────────────────────────────────────

GROUPS = [tiny.normal(4, 3, seed=21) * 2, tiny.normal(4, 5, seed=22) * 2, tiny.normal(4, 2, seed=23) * 2]
LABELS = [torch.tensor([2, 0, 0, 1]), torch.tensor([[1, 0, 0, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]]),
          torch.tensor([0, 1, 1, 0])]


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("groups", [[0], [1], [0, 2], [0, 1, 2]], ids=["single", "several", "two single", "mixed"])
def test_label_groups_are_the_papers_sum(groups, epsilon):
    logits, labels = [GROUPS[j] for j in groups], [LABELS[j] for j in groups]
    wanted = spelled.label_groups_sum([listed(z) for z in logits], [y.tolist() for y in labels], epsilon)
    assert float(label_groups_sum(logits, labels, epsilon)) == pytest.approx(wanted, abs=1e-12)
    assert torch.autograd.gradcheck(lambda *z: label_groups_sum(list(z), labels, epsilon),
                                    tuple(z.clone().requires_grad_() for z in logits))


def test_smoothing_leaves_yes_or_no_questions_alone():
    smoothed, plain = (float(label_groups_sum(GROUPS, LABELS, epsilon)) for epsilon in (0.2, 0.0))
    of_classes = [float(label_groups_sum([GROUPS[j] for j in (0, 2)], [LABELS[j] for j in (0, 2)], e)) for e in (0.2, 0.0)]
    assert label_groups_sum(GROUPS[1:2], LABELS[1:2], 0.2) == label_groups_sum(GROUPS[1:2], LABELS[1:2])
    assert smoothed - plain == pytest.approx(of_classes[0] - of_classes[1], abs=1e-12) and abs(smoothed - plain) > 0.1


def test_label_groups_by_pencil():
    """Even odds of 3, and two even yes-or-no questions: ln 3 + 2 ln 2."""
    loss = label_groups_sum([torch.zeros(1, 3), torch.zeros(1, 2)], [torch.tensor([1]), torch.tensor([[1, 0]])])
    assert float(loss) == pytest.approx(math.log(3) + 2 * math.log(2))


def test_a_group_says_what_it_was_asked_and_a_missing_one_is_no_guess():
    """Sure and right costs nothing, sure and wrong the whole margin; groups and labels come in pairs."""
    z = torch.tensor([[30.0, -30.0]])
    assert float(label_groups_sum([z], [torch.tensor([[1, 0]])])) == pytest.approx(0, abs=1e-12)
    assert float(label_groups_sum([z], [torch.tensor([[0, 1]])])) == pytest.approx(60, abs=1e-5)
    with pytest.raises(ValueError, match="zip"):
        label_groups_sum([z, z], [torch.tensor([0])])


# ── the norm of the parameters ───────────────────────────────────────────────────────────────────


def test_the_squared_norm_is_the_papers_sum_and_its_gradient_twice_the_parameters():
    parameters = [tiny.normal(3, 4, seed=s).requires_grad_() for s in range(3)] + [tiny.normal(7).requires_grad_()]
    norm = squared_norm(iter(parameters))
    assert float(norm.detach()) == pytest.approx(spelled.squared_norm([listed(p.flatten()) for p in parameters]), abs=1e-12)
    assert torch.autograd.gradcheck(lambda *p: squared_norm(p), tuple(parameters))
    norm.backward()
    for p in parameters:
        torch.testing.assert_close(p.grad, 2 * p.detach(), rtol=1e-14, atol=0)


# ── batching ─────────────────────────────────────────────────────────────────────────────────────


def test_the_head_sees_only_supervised_positions_and_the_loss_is_that_of_all_logits(monkeypatch):
    model, batch = tiny.model().double(), collate(ragged(), PAD)
    inputs_BT, targets_BT = batch.tokens_BT[:, :-1], batch.labels_BT[:, 1:]
    expected = spelled.cross_entropy_sum(listed(model(inputs_BT).flatten(0, 1)), targets_BT.flatten().tolist())
    assert float(next_token_loss(model, batch).detach()) == pytest.approx(expected, abs=1e-10)
    seen = []
    monkeypatch.setattr(tasks, "linear_cross_entropy_sum", lambda hidden_ND, *rest: seen.append(len(hidden_ND)))
    next_token_loss(model, batch)
    monkeypatch.undo()
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
