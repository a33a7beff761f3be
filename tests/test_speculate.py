"""With a draft running ahead, what is said is distributed as without; greedy, it is the same text."""

import itertools
import math
from collections import Counter

import pytest
import tiny
import torch

from minialpaca.config import AdapterConfig, Sampling
from minialpaca.decode import Stepper
from minialpaca.generate import generate
from minialpaca.peft import apply
from minialpaca.sampling import distribution
from minialpaca.speculate import Reader, Speculator, chance, judged, residual

NEVER = -1
PROMPT = tiny.tokens(7, seed=3).tolist()


def long(seed=0, **changes):
    return tiny.model(seed=seed, **{"max_seq_len": 60, "init_std": 0.3, "tie_embeddings": False, **changes})


def random_pair(seed, n=6):
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(n, generator=generator, dtype=torch.float64).mul(2).softmax(-1) for _ in range(2))
    p[seed % n] = 0  # what a filter has ruled out of one of them
    q[(seed + 1) % n] = 0
    return p / p.sum(), q / q.sum()


# ── the equations ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(8))
def test_drafted_and_judged_a_token_is_distributed_as_the_large_model_has_it(seed):
    """P(v) = q(v) min(1, p(v)/q(v)) + (1 − Σ_u q(u) min(1, p(u)/q(u))) p′(v) = p(v), term by term."""
    p, q = random_pair(seed)
    stays = [q[v].item() * chance(p, q, v) if q[v] else 0.0 for v in range(6)]
    found = [s + (1 - sum(stays)) * residual(p, q)[v].item() for v, s in enumerate(stays)]
    assert found == pytest.approx(p.tolist(), abs=1e-12)
    assert sum(stays) == pytest.approx(sum(min(a, b) for a, b in zip(p.tolist(), q.tolist())))


def test_where_the_two_agree_everything_stays():
    p, _ = random_pair(1)
    assert all(chance(p, p, v) == 1 for v in range(6) if p[v]) and torch.equal(residual(p, p), p)


def test_the_draft_stays_up_to_the_first_that_does_not():
    one = torch.eye(4)
    judge = lambda p, tokens: judged(one[p], one[tokens], tokens, torch.Generator().manual_seed(0))  # noqa: E731
    assert judge([1, 2, 3], [1, 2]) == [1, 2, 3]
    assert judge([1, 3, 0], [1, 2]) == [1, 3]
    assert judge([0, 2, 3], [1, 2]) == [0]
    assert judge([2], []) == [2]


class Table:
    """A model whose logits hang on the last token alone, and which only looks like one."""

    n_virtual = 0

    def __init__(self, seed, cfg):
        self.logits_VV = 1.5 * torch.randn(cfg.vocab_size, cfg.vocab_size, generator=torch.Generator().manual_seed(seed))
        self.cfg, self.embed = cfg, torch.nn.Embedding(1, 1)

    def new_cache(self, rows, places):
        return type("Cache", (), {"length": 0})()

    def __call__(self, tokens_BT, cache):
        cache.length += tokens_BT.shape[1]
        return self.logits_VV[tokens_BT]

    def next_logits(self, tokens_BT, real_BT, cache):
        return self(tokens_BT, cache)[:, -1]


@pytest.mark.parametrize("how", [Sampling(temperature=1.0), Sampling(temperature=0.7, top_k=3, repetition_penalty=1.5)], ids=str)
def test_texts_of_three_tokens_come_as_often_as_from_the_large_model_alone(how):
    """2,000 texts, two tokens ahead: χ² against the exact probability of each of 64, whose mean is
    the number of cells, and its standard deviation the root of twice that."""
    cfg = tiny.GQA.__class__(vocab_size=4, d_model=4, n_heads=1, max_seq_len=9)
    large, draft = Table(1, cfg), Table(2, cfg)
    n, counts = 2000, Counter()
    speculator = Speculator(large, draft, ahead=2)
    for seed in range(n):
        counts[tuple(speculator.stream([0], NEVER, 3, Sampling(**{**vars(how), "seed": seed})))] += 1
    chi2, cells = 0.0, 0
    for text in itertools.product(range(4), repeat=3):
        p, before = 1.0, [0]
        for token in text:
            seen = torch.tensor([[v in before for v in range(4)]])
            p *= distribution(large.logits_VV[before[-1]][None], seen, how)[0, token].item()
            before.append(token)
        assert p > 0 or not counts[text]
        if n * p > 2:
            chi2, cells = chi2 + (counts[text] - n * p)**2 / (n * p), cells + 1
    assert cells > 10 and chi2 < cells + 4 * math.sqrt(2 * cells)
    assert 0.2 < speculator.kept / speculator.drafted < 0.9


# ── with models ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ahead", [1, 5, 100])
@pytest.mark.parametrize("how", [Sampling(), Sampling(repetition_penalty=1.3)], ids=["greedy", "penalised"])
def test_greedy_it_is_the_same_text(ahead, how):
    model = long()
    for draft in (long(seed=1), long(seed=1, n_layers=1), Stepper(long(seed=4)), Stepper(long(), int8=True)):
        speculator = Speculator(model, draft, ahead)
        assert list(speculator.stream(PROMPT, NEVER, 30, how)) == generate(model, [PROMPT], NEVER, 30, how)[0]


def test_it_ends_with_the_end_of_the_text_and_with_what_was_asked_for():
    model = long()
    text = generate(model, [PROMPT], NEVER, 40)[0]
    for n in (1, 2, 17):
        assert list(Speculator(model, long(seed=1)).stream(PROMPT, NEVER, n)) == text[:n]
    end = text[11]
    assert list(Speculator(model, model, 5).stream(PROMPT, end, 40)) == text[:text.index(end) + 1]


def test_a_draft_that_is_the_model_keeps_everything_and_saves_passes(monkeypatch):
    model, passes = long(), []
    each = Reader.each
    monkeypatch.setattr(Reader, "each", lambda reader, ids: passes.append(len(ids)) or each(reader, ids))
    for how in (Sampling(), Sampling(temperature=1.0, seed=5)):
        passes.clear()
        speculator = Speculator(model, model, 4)
        assert len(list(speculator.stream(PROMPT, NEVER, 50, how))) == 50
        assert speculator.kept >= 0.98 * speculator.drafted and len(passes) in (10, 11)


def test_a_draft_of_a_shorter_context_helps_as_far_as_it_reaches():
    model, draft = long(), long(seed=1, max_seq_len=16)
    for prompt in (PROMPT, tiny.tokens(30, seed=8).tolist()):
        assert list(Speculator(model, draft).stream(prompt, NEVER, 30)) == generate(model, [prompt], NEVER, 30)[0]


@pytest.mark.parametrize("method", ["lora", "prompt", "prefix"])
def test_a_model_with_an_adapter_may_have_a_draft_and_be_one(method):
    model, other = long(), long()
    adapter = apply(other, AdapterConfig(method, **({"length": 3} if method in ("prompt", "prefix") else {"rank": 2})))
    with torch.no_grad():
        for p in adapter.trained().values():
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    right = [generate(m, [PROMPT], NEVER, 40)[0] for m in (model, other)]
    assert right[0] != right[1]
    assert list(Speculator(other, model).stream(PROMPT, NEVER, 40)) == right[1]
    assert list(Speculator(model, other).stream(PROMPT, NEVER, 40)) == right[0]
