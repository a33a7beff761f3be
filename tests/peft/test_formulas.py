"""Each method's formula, spelled out in float64 on the whole weight matrix or the whole sum."""

import math

import biased
import pytest
import tiny
import torch
from torch import nn

from minialpaca.config import AdapterConfig
from minialpaca.model import rotary_angles, rotate, spelled_attention
from minialpaca.peft import apply
from minialpaca.peft.adalora import AdaLoRALinear, orthogonality
from minialpaca.peft.freeze import Biased
from minialpaca.peft.houlsby import Bottleneck
from minialpaca.peft.ia3 import Stretched
from minialpaca.peft.lora import DoRALinear, LoRALinear, lora_scale
from minialpaca.peft.virtual import PrefixAttention, VirtualTokens

CFG = AdapterConfig("lora", rank=3, alpha=7.0)
X = tiny.normal(4, 11)


def base(I=11, O=6):
    made = nn.Linear(I, O).double()
    with torch.no_grad():
        made.weight.copy_(tiny.normal(O, I, seed=3))
        made.bias.copy_(tiny.normal(O, seed=4))
    return made


def trained(module, seed=5):
    """With values as after training."""
    with torch.no_grad():
        for i, p in enumerate(p for n, p in module.named_parameters() if not n.startswith("base.")):
            p += tiny.normal(*p.shape, seed=seed + i)
    return module


def generator():
    return torch.Generator().manual_seed(0)


def slopes(module, *names, given=(X,)):
    """gradcheck of a module in its first input and in these of its parameters."""
    values = [dict(module.named_parameters())[name].detach().clone().requires_grad_() for name in names]

    def says(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values)), (x, *given[1:]))

    return torch.autograd.gradcheck(says, (given[0].clone().requires_grad_(), *values))


def test_lora_is_the_papers_product():
    layer = trained(LoRALinear(base(), CFG, generator()))
    W = layer.base.weight + 7 / 3 * layer.B @ layer.A
    torch.testing.assert_close(layer(X), X @ W.T + layer.base.bias, rtol=0, atol=1e-12)


def test_the_scale_is_alpha_over_r_or_over_its_root():
    assert lora_scale(7.0, 3, False) == 7 / 3 and lora_scale(7.0, 3, True) == 7 / math.sqrt(3)


def test_lora_begins_with_a_gaussian_and_a_zero():
    layer = LoRALinear(nn.Linear(400, 300), AdapterConfig("lora", rank=100), generator())
    assert not layer.B.any() and abs(layer.A.std() * math.sqrt(400) - 1) < 0.02 and abs(layer.A.mean()) < 0.001


def test_lora_drops_of_its_own_input_alone():
    layer = trained(LoRALinear(base(), AdapterConfig("lora", rank=3, dropout=0.5), generator())).train()
    dropped = [layer(X) - layer.base(X) for _ in range(40)]
    assert not torch.equal(dropped[0], dropped[1])
    layer.eval()
    assert torch.equal(layer(X), layer(X))
    with torch.no_grad():
        layer.B.zero_()
    assert torch.equal(layer.train()(X), layer.base(X))


def test_dora_is_the_papers_magnitude_times_direction():
    layer = trained(DoRALinear(base(), CFG, generator()))
    V = layer.base.weight + 7 / 3 * layer.B @ layer.A
    W = torch.stack([m * row / math.sqrt(sum(float(v) ** 2 for v in row)) for m, row in zip(layer.m, V.detach())])
    torch.testing.assert_close(layer(X), X @ W.T + layer.base.bias, rtol=0, atol=1e-12)


def test_doras_norm_is_a_constant_to_the_gradient():
    layer = trained(DoRALinear(base(), CFG, generator()))
    layer(X).square().sum().backward()
    C = (layer.base.weight + 7 / 3 * layer.B @ layer.A).norm(dim=1).detach()
    B = layer.B.detach().clone().requires_grad_()
    y = X @ ((layer.m.detach() / C)[:, None] * (layer.base.weight + 7 / 3 * B @ layer.A)).T + layer.base.bias
    y.square().sum().backward()
    torch.testing.assert_close(layer.B.grad, B.grad)


def test_a_row_of_zeros_has_no_direction_and_dora_leaves_it_at_zero():
    base = nn.Linear(5, 4, bias=False).double()
    with torch.no_grad():
        base.weight[2] = 0
    layer = DoRALinear(base, AdapterConfig("dora", rank=2), torch.Generator().manual_seed(0))
    x = tiny.normal(3, 5).requires_grad_()
    y = layer(x)
    assert torch.allclose(y, base(x)) and (y[:, 2] == 0).all() and torch.equal(layer.merged().weight[2], torch.zeros(5).double())
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in (layer.A, layer.B, layer.m, x))


def test_bitfit_adds_a_vector():
    layer = trained(Biased(base()))
    torch.testing.assert_close(layer(X), layer.base(X) + layer.beta, rtol=0, atol=0)
    assert layer.beta.any() and not Biased(base()).beta.any()


def test_houlsby_is_the_papers_bottleneck():
    layer = trained(Bottleneck(nn.Sequential(base()), AdapterConfig("houlsby", bottleneck=5), generator()))
    h = layer.base(X)
    inner = h @ layer.down_weight.T + layer.down_bias
    gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    torch.testing.assert_close(layer(X), h + gelu @ layer.up_weight.T + layer.up_bias, rtol=0, atol=1e-12)


def test_houlsby_begins_near_the_identity():
    layer = Bottleneck(nn.Sequential(nn.Linear(300, 200)), AdapterConfig("houlsby", bottleneck=100), generator())
    for weight in (layer.down_weight, layer.up_weight):
        assert 0.0008 < weight.std() < 0.001 and weight.abs().max() <= 0.002
    assert not layer.down_bias.any() and not layer.up_bias.any()


def test_an_adapter_stands_before_the_residual_addition():
    model = biased.model()
    adapter = apply(model, biased.CONFIGS["houlsby"])
    biased.stir(adapter)
    layer, x = model.layers[0], tiny.normal(2, 5, 60, dtype=torch.float32)
    angles = tuple(a[None] for a in rotary_angles(torch.arange(5), 10, 10_000.0))
    a = layer.attn.base(layer.attn_norm(x), angles, None, None, None)
    middle = x + a + nn.functional.gelu(a @ layer.attn.down_weight.T + layer.attn.down_bias) @ layer.attn.up_weight.T + layer.attn.up_bias
    m = layer.mlp.base(layer.mlp_norm(middle))
    end = middle + m + nn.functional.gelu(m @ layer.mlp.down_weight.T + layer.mlp.down_bias) @ layer.mlp.up_weight.T + layer.mlp.up_bias
    torch.testing.assert_close(layer(x, angles, None), end, rtol=0, atol=1e-5)


@pytest.mark.parametrize("of_input", [False, True])
def test_ia3_stretches_outputs_or_inputs(of_input):
    layer = trained(Stretched(base(), of_input))
    W, b = layer.base.weight, layer.base.bias
    right = X @ (torch.diag(layer.l) @ W.T) + b if of_input else (X @ W.T + b) @ torch.diag(layer.l)
    torch.testing.assert_close(layer(X), right, rtol=0, atol=1e-12)


def test_ia3_stretches_keys_values_and_the_inner_activation():
    model = biased.model()
    apply(model, biased.CONFIGS["ia3"])
    layer = model.layers[1]
    assert not layer.attn.k_proj.of_input and not layer.attn.v_proj.of_input and layer.mlp.down_proj.of_input
    assert isinstance(layer.attn.q_proj, nn.Linear) and isinstance(layer.mlp.up_proj, nn.Linear)


@pytest.mark.parametrize(("method", "names"), [
    (lambda: LoRALinear(base(), CFG, generator()), ["A", "B", "base.weight"]),
    (lambda: Bottleneck(nn.Sequential(base()), AdapterConfig("houlsby", bottleneck=5), generator()),
     ["down_weight", "down_bias", "up_weight", "up_bias"]),
    (lambda: Stretched(base(), of_input=False), ["l", "base.weight"]),
    (lambda: Stretched(base(), of_input=True), ["l", "base.weight"]),
    (lambda: AdaLoRALinear(base(), AdapterConfig("adalora", rank=3, alpha=7.0, target_rank=2), generator()), ["P", "lambdas", "Q"]),
], ids=["lora", "houlsby", "ia3 outputs", "ia3 inputs", "adalora"])
def test_the_gradients_of_what_is_trained_are_the_slopes(method, names):
    assert slopes(trained(method()), *names)


def test_doras_gradients_are_the_slopes_while_the_norm_stands_still():
    """In x and m always; in A and B with the norm held, which the gradient takes for a constant, and not without."""
    layer = trained(DoRALinear(base(), CFG, generator()))
    assert slopes(layer, "m")
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        slopes(layer, "A", "B")
    held = layer.direction().detach()
    layer.direction = lambda: held
    assert slopes(layer, "A", "B")


def test_the_gradients_of_virtual_tokens_are_the_slopes():
    tiny_one = tiny.model(d_model=12, n_heads=2, n_kv_heads=1, d_ff=5, vocab_size=9, attention="spelled").double()
    x, angles = tiny.normal(2, 3, 12), tuple(a[None] for a in rotary_angles(torch.arange(3).double(), 6, 10.0))
    prefix = trained(PrefixAttention(tiny_one.layers[0].attn, AdapterConfig("prefix", length=2), generator()))
    assert slopes(prefix, "k", "v", given=(x, angles, None, None, None))
    virtual = VirtualTokens(tiny_one, AdapterConfig("prompt", length=2), generator())
    real = torch.ones(2, 3, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda x, P: torch.func.functional_call(virtual, {"vectors": P}, (x, real))[0],
                                    (x.requires_grad_(), virtual.vectors))


def test_a_prefix_begins_with_gaussian_keys_and_no_values():
    attn = biased.model().layers[0].attn
    prefix = PrefixAttention(attn, AdapterConfig("prefix", length=2000), generator())
    assert prefix.k.shape == prefix.v.shape == (3, 2000, 10)
    assert abs(prefix.k.std() - 1) < 0.02 and abs(prefix.k.mean()) < 0.02 and prefix.k.abs().max() > 3 and not prefix.v.any()


@pytest.mark.parametrize("causal", [True, False])
def test_a_prefix_is_keys_and_values_that_all_may_look_at(causal):
    model = biased.model()
    biased.stir(apply(model, biased.CONFIGS["prefix"]))
    attn, x = model.layers[0].attn, tiny.normal(2, 7, 60, dtype=torch.float32)
    attn.base.causal = causal
    angles = tuple(a[None] for a in rotary_angles(torch.arange(7), 10, 10_000.0))
    q, k, v = (proj(x).unflatten(-1, (-1, 10)).transpose(1, 2) for proj in (attn.base.q_proj, attn.base.k_proj, attn.base.v_proj))
    q, k = rotate(q, *angles), rotate(k, *angles)
    k, v = (torch.cat((p.expand(2, -1, -1, -1), own), 2).repeat_interleave(2, 1) for p, own in ((attn.k, k), (attn.v, v)))
    see = torch.ones(7, 12, dtype=torch.bool)
    if causal:
        see[:, 5:] = torch.ones(7, 7, dtype=torch.bool).tril()
    mix, _ = spelled_attention(q, k, v, see)
    torch.testing.assert_close(attn(x, angles, None, None, None), attn.base.o_proj(mix.transpose(1, 2).flatten(2)), rtol=0, atol=1e-5)


def test_a_prompt_is_what_the_same_tokens_would_be():
    """Vectors that are embeddings of the base act as those tokens would, standing before the text."""
    model = biased.model()
    apply(model, biased.CONFIGS["prompt"])
    ids = torch.tensor([3, 1, 4, 1, 5])
    with torch.no_grad():
        model.virtual.vectors.copy_(model.embed.weight[ids])
    tokens = tiny.tokens(2, 9)
    right = biased.model()(torch.cat((ids.expand(2, -1), tokens), 1))[:, 5:]
    torch.testing.assert_close(model(tokens), right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["prefix", "prompt", "lora", "houlsby"])
def test_padding_and_the_cache_change_nothing(name):
    from minialpaca.generate import generate

    model = biased.model()
    biased.stir(apply(model, biased.CONFIGS[name]))
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14]]
    together = generate(model, prompts, eos=52, max_new=8)
    assert together == [generate(model, [prompt], eos=52, max_new=8)[0] for prompt in prompts]
    for prompt, answer in zip(prompts, together):
        tokens = torch.tensor([prompt + answer])
        assert model(tokens)[0, len(prompt) - 1:-1].argmax(-1).tolist() == answer
    full = [1] * (model.cfg.max_seq_len - 1)
    assert len(generate(model, [full], eos=52)[0]) == 1  # virtual tokens are no part of the context


def test_prompt_vectors_begin_as_embeddings_of_the_base():
    model = biased.model()
    apply(model, biased.CONFIGS["prompt"])
    equal = (model.virtual.vectors[:, None] == model.embed.weight).all(-1)
    assert equal.any(1).all() and len(set(equal.int().argmax(1).tolist())) == 5


def test_adalora_is_the_papers_triple_product():
    layer = trained(AdaLoRALinear(base(), AdapterConfig("adalora", rank=3, alpha=7.0, target_rank=2), generator()))
    W = layer.base.weight + 7 / 3 * layer.P @ torch.diag(layer.lambdas) @ layer.Q
    torch.testing.assert_close(layer(X), X @ W.T + layer.base.bias, rtol=0, atol=1e-12)


def test_adaloras_columns_and_rows_begin_near_length_one_and_its_lambdas_at_zero():
    layer = AdaLoRALinear(nn.Linear(400, 300), AdapterConfig("adalora", rank=100), generator())
    assert abs(layer.P.std() * math.sqrt(300) - 1) < 0.02 and abs(layer.Q.std() * math.sqrt(400) - 1) < 0.02
    assert max(abs(layer.P.mean()), abs(layer.Q.mean())) < 0.001 and layer.P.min() < 0 and not layer.lambdas.any()


def test_the_orthogonality_term_is_the_papers_two_squared_norms():
    P, Q = tiny.normal(6, 3, seed=1).requires_grad_(), tiny.normal(3, 11, seed=2).requires_grad_()
    total = 0.0
    for i in range(3):
        for j in range(3):
            total += (sum(P[o, i].item() * P[o, j].item() for o in range(6)) - (i == j)) ** 2
            total += (sum(Q[i, k].item() * Q[j, k].item() for k in range(11)) - (i == j)) ** 2
    assert math.isclose(orthogonality(P, Q).item(), total, rel_tol=1e-12)
    assert torch.autograd.gradcheck(orthogonality, (P, Q))
    orthogonality(P, Q).backward()
    torch.testing.assert_close(P.grad, 4 * P @ (P.mT @ P - torch.eye(3).double()))  # ∇_P R, by hand
    identity = torch.eye(6).double()
    assert orthogonality(identity[:, :3], identity[:3]) == 0
