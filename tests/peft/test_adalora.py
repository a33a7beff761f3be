"""AdaLoRA along a whole schedule, against a loop over the paper's equations in float64."""

import random

import biased
import pytest
import torch

from minialpaca.config import AdapterConfig
from minialpaca.errors import UserError
from minialpaca.peft import apply
from minialpaca.peft.budget import Schedule, allocate
from minialpaca.peft.ranks import RankObserver

CFG = AdapterConfig("adalora", targets=("q_proj", "k_proj", "gate_proj"), rank=4, target_rank=1.5, alpha=7.0, interval=3,
                    warmup_part=0.1, final_part=0.3, sensitivity_decay=0.8, uncertainty_decay=0.7)
TOTAL = 40


def spelled_budget(t, first, last, warm, final, total):
    if t < warm:
        return first
    if t < total - final:
        return round(last + (first - last) * (1 - (t - warm) / (total - warm - final)) ** 3)
    return last


class Spelled:
    """Equations 7 to 12 of the paper in loops, for one matrix."""

    def __init__(self, layer):
        self.layer = layer
        self.mean = {n: [0.0] * p.numel() for n, p in layer.parts().items()}
        self.spread = {n: [0.0] * p.numel() for n, p in layer.parts().items()}

    def note(self):
        for n, p in self.layer.parts().items():
            for i, (w, g) in enumerate(zip(p.detach().flatten().tolist(), p.grad.flatten().tolist())):
                now = abs(w * g)
                self.mean[n][i] = 0.8 * self.mean[n][i] + 0.2 * now
                self.spread[n][i] = 0.7 * self.spread[n][i] + 0.3 * abs(now - self.mean[n][i])

    def score(self, i):
        s = {n: [a * b for a, b in zip(self.mean[n], self.spread[n])] for n in self.mean}
        O, I, r = self.layer.P.shape[0], self.layer.Q.shape[1], 4
        return (s["lambdas"][i] + sum(s["P"][j * r + i] for j in range(O)) / O
                + sum(s["Q"][i * I + j] for j in range(I)) / I)


def random_gradients(adapter, rng):
    for p in adapter.trained().values():
        p.grad = torch.tensor([rng.gauss(0, 1) for _ in range(p.numel())], dtype=p.dtype).view_as(p)


def put(cfg=CFG, total=TOTAL):
    model = biased.model().double()
    adapter = apply(model, cfg)
    adapter.start(total)
    return model, adapter


def update(adapter):
    with torch.no_grad():
        for p in adapter.trained().values():
            p -= 0.05 * p.grad


def test_budget_scores_and_masks_are_the_papers_over_a_whole_schedule():
    _, adapter = put()
    rng, spelled = random.Random(0), [Spelled(layer) for layer in adapter.layers()]
    n, warm, final = len(spelled), 4, 12
    allocations = 0
    for t in range(1, TOTAL + 1):
        random_gradients(adapter, rng)
        if t <= TOTAL - final:
            for s in spelled:
                s.note()
        adapter.before_clip(t)
        update(adapter)
        logged = adapter.after_update(t)
        budget = spelled_budget(t, 4 * n, round(1.5 * n), warm, final, TOTAL)
        assert adapter.schedule.budget(t) == budget
        if (warm <= t < TOTAL - final and t % 3 == 0) or t == TOTAL - final:
            allocations += 1
            scores = [(-s.score(i), i, k) for k, s in enumerate(spelled) for i in range(4)]
            for k, s in enumerate(spelled):
                torch.testing.assert_close(s.layer.scores(), torch.tensor([s.score(i) for i in range(4)], dtype=torch.float64),
                                           rtol=1e-12, atol=0)
            kept = {(k, i) for _, i, k in sorted(scores)[:budget]}
            for k, s in enumerate(spelled):
                assert s.layer.kept.tolist() == [(k, i) in kept for i in range(4)]
            assert sum(logged.values()) == budget and len(logged) == n
        else:
            assert logged == {}
        if t >= TOTAL - final:
            assert all(not layer.lambdas[~layer.kept].any() for layer in adapter.layers())
            assert all(layer.lambdas[layer.kept].all() for layer in adapter.layers())
    assert allocations == 9 and sum(int(layer.kept.sum()) for layer in adapter.layers()) == round(1.5 * n)


def test_the_budget_by_pencil():
    """b₀ = 40, b_T = 10, T = 100, t_i = 10, t_f = 30: at t = 40 half of the way, 10 + 30/8."""
    cfg = AdapterConfig("adalora", rank=4, target_rank=1.0, warmup_part=0.1, final_part=0.3)
    schedule = Schedule.of(cfg, 10, 100)
    found = {t: schedule.budget(t) for t in (1, 9, 10, 40, 69, 70, 71, 100)}
    assert found == {1: 40, 9: 40, 10: 40, 40: 14, 69: 10, 70: 10, 71: 10, 100: 10}
    assert [t for t in range(1, 101) if schedule.allocates(t)] == [10, 20, 30, 40, 50, 60, 70]
    assert [schedule.is_spent(t) for t in (69, 70)] == [False, True]


def test_exactly_so_many_stay_and_ties_are_shared_out():
    equal = [torch.zeros(4), torch.zeros(4), torch.zeros(4)]
    assert [k.tolist() for k in allocate(equal, 5)] == [[True, True, False, False], [True, True, False, False],
                                                        [True, False, False, False]]
    for budget in (0, 1, 6, 7, 12):
        assert sum(int(k.sum()) for k in allocate(equal, budget)) == budget
    scores = [torch.tensor([1.0, 5.0]), torch.tensor([4.0, 2.0, 4.0])]
    assert [k.tolist() for k in allocate(scores, 2)] == [[False, True], [True, False, False]]


def test_before_lambda_has_moved_no_matrix_loses_all():
    """With t_i = 0 and ΔT = 1 the first scores are all 0: |0 · g| and no gradient of P and Q."""
    cfg = AdapterConfig("adalora", targets=("q_proj", "k_proj"), rank=4, target_rank=2, interval=1, warmup_part=0.0)
    model, adapter = put(cfg)
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    adapter.before_clip(1)
    assert all(not layer.scores().any() for layer in adapter.layers())
    adapter.after_update(1)
    assert sum(adapter.layers()[i].rank for i in range(4)) == adapter.schedule.budget(1) == 15
    assert all(layer.rank >= 3 for layer in adapter.layers())


def test_a_target_as_large_as_the_start_prunes_nothing_and_a_matrix_may_lose_all():
    _, adapter = put(AdapterConfig("adalora", targets=("q_proj",), rank=4, target_rank=4, interval=1))
    rng = random.Random(1)
    for t in range(1, TOTAL + 1):
        random_gradients(adapter, rng)
        adapter.before_clip(t)
        update(adapter)
        adapter.after_update(t)
    assert [layer.rank for layer in adapter.layers()] == [4, 4]
    layer = adapter.layers()[0]
    layer.kept.zero_()
    layer.prune()
    x = torch.ones(2, 60).double()
    assert torch.equal(layer(x), layer.base(x)) and layer.rank == 0
    torch.testing.assert_close(layer.merged()(x), layer.base(x))


def test_resumed_in_the_middle_the_masks_are_the_same():
    def run(stop):
        _, adapter = put()
        rng = random.Random(2)
        for t in range(1, TOTAL + 1):
            random_gradients(adapter, rng)
            adapter.before_clip(t)
            update(adapter)
            adapter.after_update(t)
            if t == stop:
                saved = {n: v.clone() for n, v in adapter.state_dict().items()}
                _, adapter = put()
                adapter.load_state_dict(saved)
        return adapter.state_dict()

    straight = run(0)
    for stop in (2, 14, 27, 30):
        resumed = run(stop)
        assert all(torch.equal(straight[n], resumed[n]) for n in straight)


def test_the_penalty_is_gamma_times_the_sum_over_matrices():
    from minialpaca.peft.adalora import orthogonality

    _, adapter = put()
    right = 0.1 * sum(orthogonality(layer.P, layer.Q) for layer in adapter.layers())
    torch.testing.assert_close(adapter.penalty(), right)
    _, without = put(AdapterConfig("adalora", targets=("q_proj",), orthogonality=0.0))
    assert without.penalty() is None


def test_a_schedule_that_cannot_finish_is_refused():
    with pytest.raises(UserError, match=r"of 10 steps 6 are left to prune in, fewer than adapter.interval = 10"):
        put(AdapterConfig("adalora", rank=4, target_rank=2), total=10)
    _, adapter = put()
    with pytest.raises(UserError, match="train.patience = 3"):
        adapter.refuse_patience(3)
    for t in (27, 28):
        random_gradients(adapter, random.Random(t))
        adapter.before_clip(t)
        adapter.after_update(t)
        assert adapter.may_be_best(t) is (t == 28)


def test_the_observer_of_ranks_tells_what_is_asked_behind_it():
    """The estimate of memory counts the cache of these texts."""
    def shows(model, log, step):
        pass

    assert RankObserver(shows, None).prompts == ()
    shows.prompts = ["a", "b"]
    assert RankObserver(shows, None).prompts == ["a", "b"]


# ── another number of steps than it began with ───────────────────────────────────────────────────


def ranks_along(total, goes_on_at, other_total):
    """Triplets kept after each step of a run that goes on with another number of steps."""
    _, adapter = put(total=total)
    rng, kept = random.Random(3), []
    for t in range(1, other_total + 1):
        if t == goes_on_at + 1:
            saved = {n: v.clone() for n, v in adapter.state_dict().items()}
            _, adapter = put(total=other_total)
            adapter.load_state_dict(saved)
        random_gradients(adapter, rng)
        adapter.before_clip(t)
        update(adapter)
        logged = adapter.after_update(t)
        kept.append(sum(int(layer.kept.sum()) for layer in adapter.layers()))
        assert adapter.kept_triplets() == kept[-1] and (not logged or sum(logged.values()) == kept[-1])
    return adapter, kept


def test_with_fewer_steps_the_budget_is_spent_at_once_where_it_should_have_been_before():
    adapter, kept = ranks_along(TOTAL, 20, 24)
    last = round(1.5 * len(adapter.layers()))
    assert kept[19] > last and kept[20:] == [last] * 4 and adapter.may_be_best(24)
    assert all(not layer.lambdas[~layer.kept].any() for layer in adapter.layers())


def test_no_weights_are_best_whose_budget_is_unspent_though_it_is_time():
    _, adapter = put(total=TOTAL)
    assert adapter.schedule.is_spent(30) and not adapter.may_be_best(30)


@pytest.mark.parametrize("goes_on_at", [20, 40])
def test_with_more_steps_no_rank_comes_back_and_the_new_schedule_ends_it(goes_on_at):
    adapter, kept = ranks_along(TOTAL, goes_on_at, 80)
    assert kept == sorted(kept, reverse=True) and kept[-1] == round(1.5 * len(adapter.layers())) == adapter.schedule.last
    for t in range(goes_on_at + 1, 81):
        if adapter.schedule.allocates(t):
            assert kept[t - 1] == min(adapter.schedule.budget(t), kept[goes_on_at - 1])
    assert adapter.may_be_best(80) and not adapter.may_be_best(55)


def test_the_device_is_asked_once_how_many_are_kept(monkeypatch):
    _, adapter = put()
    adapter.kept_triplets()
    monkeypatch.setattr(type(adapter), "layers", lambda self: 1 / 0)
    assert adapter.kept_triplets() == 4 * 6
