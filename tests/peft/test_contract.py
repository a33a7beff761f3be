"""One table of promises that every method keeps."""

import dataclasses

import biased
import pytest
import tiny
import torch

from minialpaca.config import AdapterConfig
from minialpaca.errors import UserError
from minialpaca.heads import Classifier
from minialpaca.peft import active, apply, trained_rows, use

TOKENS = tiny.tokens(3, 11)
LABELS = tiny.tokens(3, 11, seed=4)

D, L, F, V, Q, KV = 60, 2, 37, 53, 60, 30  # as in tiny.GQA; Q and KV are the widths of queries and of keys


def low_rank(r: int, *shapes: tuple[int, int]) -> int:
    return sum(r * (o + i) for o, i in shapes)


COUNTS = {  # the formulas, by hand
    "freeze": 2 * Q * D + 2 * KV * D + 3 * F * D + (Q + 2 * KV + D + 2 * F + D) + (2 * L + 1) * D,
    "bitfit": 2 * (L * (Q + 2 * KV + D + 2 * F + D)) + V,
    "lora": L * low_rank(3, (Q, D), (KV, D), (D, F)) + low_rank(3, (V, D)),
    "rslora": low_rank(3, (KV, D), (D, Q)),
    "lora_and_whole": L * low_rank(3, (Q, D), (KV, D)) + V * D + (2 * L + 1) * D,
    "dora": L * (low_rank(3, (Q, D), (F, D)) + Q + F),
    "houlsby": 2 * L * (2 * 5 * D + D + 5) + (2 * L + 1) * D,
    "pfeiffer": L * (2 * 5 * D + D + 5),
    "adalora": L * (low_rank(4, (Q, D), (KV, D), (F, D)) + 3 * 4),
    "ia3": L * (2 * KV + F),
    "prefix": L * 2 * 5 * KV,
    "prompt": 5 * D,
}

every = pytest.mark.parametrize("name", biased.CONFIGS)


def put(name, seed=0):
    model = biased.model()
    return model, apply(model, biased.CONFIGS[name], seed)


def loss(model):
    return torch.nn.functional.cross_entropy(model(TOKENS).flatten(0, 1), LABELS.flatten())


def values(parameters):
    return {name: p.detach().clone() for name, p in parameters.items()}


def steps(model, adapter, n=3):
    model.train()
    adapter.start(20)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for step in range(1, n + 1):
        loss(model).backward()
        adapter.before_clip(step)
        optimizer.step()
        adapter.after_update(step)
        optimizer.zero_grad()
    model.eval()


@every
def test_right_after_it_is_put_in_the_model_says_what_it_said(name):
    plain = biased.model()(TOKENS)
    model, _ = put(name)
    difference = (model(TOKENS) - plain).abs().max()
    if name in biased.STARTS_ELSEWHERE:
        assert 0.01 < difference
    elif name in ("houlsby", "pfeiffer"):
        assert 0 < difference < 1e-4 * plain.abs().max()
    elif name == "dora":  # adds the bias after the product, which rounds otherwise
        assert difference < 1e-5
    else:
        assert torch.equal(model(TOKENS), plain)


@every
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_where_they_belong_and_finite(name, recompute):
    model, adapter = put(name)
    biased.stir(adapter)
    model.recompute = recompute
    loss(model).backward()
    trained = {id(p) for p in adapter.trained().values()}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}
    for _, parameter in model.named_parameters():
        if id(parameter) in trained:
            assert parameter.grad.isfinite().all() and parameter.grad.any()
        else:
            assert parameter.grad is None
    assert all(p.grad is None for p in adapter.base.values())


@every
def test_recomputed_layers_have_the_same_gradients(name):
    found = []
    for recompute in (False, True):
        model, adapter = put(name)
        biased.stir(adapter)
        model.recompute = recompute
        loss(model).backward()
        found.append([p.grad for p in adapter.trained().values()])
    assert all(torch.equal(a, b) for a, b in zip(*found))


@every
def test_steps_move_all_that_is_trained_and_nothing_of_the_base(name):
    model, adapter = put(name)
    before, base = values(adapter.trained()), values(adapter.base)
    steps(model, adapter)
    assert all(torch.equal(base[n], p) for n, p in adapter.base.items())
    assert not [n for n, p in adapter.trained().items() if torch.equal(before[n], p)]
    assert (model(TOKENS) - biased.model()(TOKENS)).abs().max() > 1e-3


@every
def test_taken_out_the_base_is_what_it_was_and_put_in_again_the_adapter_is(name):
    plain = biased.model()
    model, adapter = put(name)
    names = [n for n, _ in plain.named_parameters()]
    biased.stir(adapter)
    adapted = model(TOKENS)
    adapter.remove()
    assert active(model) is None and [n for n, _ in model.named_parameters()] == names
    assert torch.equal(model(TOKENS), plain(TOKENS)) and all(p.requires_grad for p in model.parameters())
    use(model, adapter)
    assert torch.equal(model(TOKENS), adapted)


def test_taken_out_while_merged_it_is_unmerged_first():
    model, adapter = put("lora")
    biased.stir(adapter)
    adapted = model(TOKENS)
    adapter.merge()
    adapter.remove()
    assert torch.equal(model(TOKENS), biased.model()(TOKENS)) and not adapter.is_merged
    use(model, adapter)
    assert torch.equal(model(TOKENS), adapted)


@every
def test_merged_it_computes_the_same_and_unmerged_the_base_is_whole_to_the_bit(name):
    model, adapter = put(name)
    biased.stir(adapter)
    adapted, base = model(TOKENS), values(adapter.base)
    if name in biased.NOT_LINEAR:
        with pytest.raises(UserError, match="cannot be merged"):
            adapter.merge()
        assert torch.equal(model(TOKENS), adapted)
        return
    adapter.merge()
    torch.testing.assert_close(model(TOKENS), adapted, rtol=0, atol=1e-5)
    assert not [n for n, _ in model.named_modules() if n.endswith(".base")]
    with pytest.raises(UserError, match="merged already"):
        adapter.merge()
    state = {n: t.detach().clone() for n, t in adapter.tensors().items()}
    for refused in (adapter.state_dict, lambda: adapter.load_state_dict(state)):
        with pytest.raises(UserError, match="is merged"):
            refused()
    adapter.unmerge()
    assert torch.equal(model(TOKENS), adapted) and all(torch.equal(base[n], p) for n, p in adapter.base.items())
    with pytest.raises(UserError, match="is not merged"):
        adapter.unmerge()


@pytest.mark.parametrize("name", [n for n in biased.CONFIGS if n not in biased.NOT_LINEAR])
def test_over_a_base_in_bf16_the_sum_is_made_in_fp32_and_rounded_once(name):
    """Each merged matrix is the bf16 nearest to that of the same base in fp32; unmerged, the base is there bit for bit."""
    model, wider = biased.model().bfloat16(), biased.model().bfloat16().float()
    adapter, other = (apply(m, biased.CONFIGS[name]) for m in (model, wider))
    biased.stir(adapter)
    other.load_state_dict(adapter.state_dict())
    base, adapted = values(adapter.base), model(TOKENS)
    adapter.merge(), other.merge()
    for (n, mine), (_, theirs) in zip(model.named_parameters(), wider.named_parameters(), strict=True):
        assert mine.dtype == torch.bfloat16 and torch.equal(mine, theirs.bfloat16()), n
    adapter.unmerge()
    assert torch.equal(model(TOKENS), adapted) and all(torch.equal(base[n], p) for n, p in adapter.base.items())


@every
def test_train_and_eval_never_merge(name):
    model, adapter = put(name)
    biased.stir(adapter)
    before = values(model.state_dict())
    model.train().eval().train().eval()
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


@every
def test_what_was_trained_comes_back_exactly_on_another_copy_of_the_base(name):
    model, adapter = put(name)
    biased.stir(adapter)
    other, again = put(name, seed=1)
    again.load_state_dict(adapter.state_dict())
    assert torch.equal(other(TOKENS), model(TOKENS)) and adapter.fingerprint == again.fingerprint


@every
def test_a_state_that_does_not_fit_is_refused_whole(name):
    _, adapter = put(name)
    before, state = values(adapter.tensors()), adapter.state_dict()
    first = next(iter(state))
    for wrong in ({}, {n: t for n, t in state.items() if n != first}, {**state, "more": torch.ones(1)},
                  {**state, first: torch.zeros(7, 7, 7)}):
        with pytest.raises(ValueError, match=r"missing|unknown|and not"):
            adapter.load_state_dict(wrong)
    assert all(torch.equal(before[n], t) for n, t in adapter.tensors().items())


@every
def test_as_many_parameters_as_the_formula_says(name):
    _, adapter = put(name)
    assert sum(p.numel() for p in adapter.trained().values()) == COUNTS[name]
    assert trained_rows(adapter)[-1][3] == COUNTS[name] == sum(row[3] for row in trained_rows(adapter)[:-1])


def test_the_table_says_of_each_part_how_many_it_is_and_its_per_cent_of_the_base():
    adapter = apply(biased.model(), AdapterConfig("lora", targets=("v_proj",), rank=3, also=("norm",)))
    base = sum(p.numel() for p in biased.model().parameters())
    v, norm = 3 * (KV + D), D
    assert trained_rows(adapter) == [(name, n, rank, n * size, pytest.approx(100 * n * size / base, rel=1e-12)) for name, n, rank, size in (
        ("layers.*.attn_norm.weight", 2, "", norm), ("layers.*.mlp_norm.weight", 2, "", norm), ("final_norm.weight", 1, "", norm),
        ("layers.*.attn.v_proj", 2, "3", v))] + [
        ("all that is trained", 7, "", 5 * norm + 2 * v, pytest.approx(100 * (5 * norm + 2 * v) / base, rel=1e-12))]


@every
def test_a_second_one_is_refused_and_two_take_turns(name):
    model, adapter = put(name)
    biased.stir(adapter)
    with pytest.raises(UserError, match="has an adapter already"):
        apply(model, biased.CONFIGS["lora"])
    first = model(TOKENS)
    adapter.remove()
    other = apply(model, biased.CONFIGS["ia3"], seed=3)
    biased.stir(other, seed=8)
    second = model(TOKENS)
    use(model, adapter)
    assert torch.equal(model(TOKENS), first)
    use(model, other)
    assert torch.equal(model(TOKENS), second)
    use(model, None)
    assert torch.equal(model(TOKENS), biased.model()(TOKENS))


@pytest.mark.parametrize("training", [True, False])
def test_what_is_put_in_drops_as_the_model_does(training):
    model = biased.model()
    adapter = apply(model, dataclasses.replace(biased.CONFIGS["lora"], dropout=0.5))
    biased.stir(adapter)
    adapter.model.train(not training)
    adapter.remove()
    model.train(training)
    use(model, adapter)
    assert all(module.training is training for module in model.modules())
    assert torch.equal(model(TOKENS), model(TOKENS)) is not training


def test_several_under_names_share_one_base_and_change_copies_nothing():
    model = biased.model()
    base, adapters, said = {id(p) for p in model.parameters()}, {}, {}
    for seed, name in enumerate(biased.CONFIGS):
        adapters[name] = apply(model, biased.CONFIGS[name], seed)
        biased.stir(adapters[name], seed)
        said[name] = model(TOKENS)
        use(model, None)
    for name in [*adapters, *reversed(adapters)]:
        use(model, adapters[name])
        assert active(model) is adapters[name] and torch.equal(model(TOKENS), said[name])
    use(model, None)
    assert {id(p) for p in model.parameters()} == base and torch.equal(model(TOKENS), biased.model()(TOKENS))
    assert len({tuple(logits.flatten().tolist()) for logits in said.values()}) == len(adapters)


@pytest.mark.parametrize(("cfg", "trained"), [(AdapterConfig("lora", also=("norm",)), "norm"), (AdapterConfig("houlsby"), "norm"),
                                              (AdapterConfig("freeze", layers="-1:"), "layers.1.")])
def test_on_a_model_that_was_frozen_for_inference_as_much_is_trained(cfg, trained):
    one, other = tiny.model(n_layers=2), tiny.model(n_layers=2).requires_grad_(False)
    names = [list(apply(model, cfg).trained()) for model in (one, other)]
    assert names[0] == names[1] and any(trained in name for name in names[0])
    assert all(p.requires_grad for p in active(other).trained().values())


def test_a_number_of_another_kind_is_no_weight():
    adapter = apply(tiny.model(), AdapterConfig("lora"))
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    for dtype in (torch.int8, torch.complex64, torch.bool):
        name = list(before)[-1]
        with pytest.raises(ValueError, match=f"{name} is {dtype}, and not torch.float32"):
            adapter.load_state_dict({**before, name: before[name].to(dtype)})
    adapter.load_state_dict({name: tensor.double() for name, tensor in before.items()})
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.state_dict().items())


def test_an_adapter_that_is_out_is_not_merged_and_none_goes_into_another_model():
    """Merged all the same, it would stand in a model that knows nothing of it."""
    one, other = tiny.model(), tiny.model()
    first = apply(one, AdapterConfig("lora", rank=2))
    first.remove()
    with pytest.raises(UserError, match="this one is not in its model"):
        first.merge()
    second = apply(one, AdapterConfig("ia3"))
    with pytest.raises(UserError, match="this one is not in its model"):
        first.merge()
    assert active(one) is second and not first.is_merged
    with pytest.raises(UserError, match="was made for another model"):
        use(other, first)
    assert active(other) is None and active(one) is second


@every
def test_a_model_that_was_cast_while_it_was_out_or_in_works_on(name):
    model, adapter = put(name)
    adapter.remove()
    model.bfloat16()
    use(model, adapter)
    loss(model).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.trained().values())
    model.double()
    adapter.remove()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert torch.equal(model(TOKENS), biased.model().bfloat16().double()(TOKENS))


def test_none_is_put_around_another_or_into_a_part_that_has_one():
    model = Classifier(tiny.model(), (3,), "last")
    for inner, outer in ((model.backbone, model), (model, model.backbone)):
        first = apply(inner, AdapterConfig("lora", rank=2), new=[model.heads] if inner is model else [])
        with pytest.raises(UserError, match=rf"has an adapter already \({'lora' if inner is not model else 'put into'}"):
            apply(outer, AdapterConfig("ia3"), new=[model.heads] if outer is model else [])
        first.remove()


def test_adalora_asks_for_its_number_of_steps():
    model, adapter = put("adalora")
    loss(model).backward()
    with pytest.raises(UserError, match=r"call start\(total_steps\)"):
        adapter.before_clip(1)
