"""Which dtype where; the loss scale against PyTorch's own; a skipped step moves nothing."""

import math
import re
from pathlib import Path

import pytest
import tiny
import torch
from ragged import MODEL, PLAIN, Opinionated, Ragged, ragged
from torch import nn

from minialpaca import linear_cross_entropy, precision
from minialpaca import model as model_module
from minialpaca.adversarial import attack_on
from minialpaca.config import AdapterConfig, AdversarialConfig, ModelConfig, OptimConfig, TrainConfig
from minialpaca.errors import UserError
from minialpaca.model import Transformer
from minialpaca.peft import apply
from minialpaca.precision import SHORT, LossScaler, active, casting, policy, unscale
from minialpaca.storage import checkpoint
from minialpaca.tasks import next_token_loss
from minialpaca.trainer import Trainer

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")

# ── the policy ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("capability, name", [((7, 5), "fp16"), ((7, 0), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16"), ((12, 0), "bf16")])
def test_a_gpu_computes_what_it_computes_natively(monkeypatch, capability, name):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    found = policy("auto", CUDA)
    assert found.name == name and f"Some GPU (compute capability {capability[0]}.{capability[1]})" in found.reason
    assert found.scales == (name == "fp16")
    if name == "fp16":
        with pytest.raises(UserError, match=r"train\.precision = 'bf16': Some GPU \(compute capability 7.*use fp16"):
            policy("bf16", CUDA)
    else:
        assert policy("bf16", CUDA).dtype == torch.bfloat16
    assert policy("fp32", CUDA).dtype == torch.float32


def test_a_cpu_computes_short_only_when_asked():
    assert policy("auto", CPU).dtype == torch.float32 and policy("bf16", CPU).dtype == torch.bfloat16
    assert policy("fp16", CPU).scales and not policy("bf16", CPU).scales
    with pytest.raises(UserError, match="not on this device"):
        policy("bf16", torch.device("mps"))


# ── casting ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_are_short_and_nothing_else_is(dtype):
    x, w = tiny.normal(4, 4, dtype=torch.float32), tiny.normal(4, 4, seed=3, dtype=torch.float32)
    with casting(dtype):
        products = [nn.functional.linear(x, w), x @ w, torch.matmul(x, w), x.matmul(w), torch.mm(x, w), torch.bmm(x[None], w[None]),
                    nn.functional.linear(x, weight=w)]
        others = [x + w, x.softmax(-1), x.exp(), x.sum(), x.pow(2).mean(), nn.functional.cross_entropy(x, torch.arange(4)),
                  nn.functional.layer_norm(x, (4,)), x.norm()]
        assert (x.double() @ w.double()).dtype == torch.float64 and active() == dtype
    assert {p.dtype for p in products} == {dtype} and {o.dtype for o in others} == {torch.float32}
    assert active() == torch.float32 and (x @ w).dtype == torch.float32
    assert torch.equal(products[1], x.to(dtype) @ w.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cpus_fused_attention_is_computed_in_fp32_whatever_it_is_given(dtype):
    q, k, v = (tiny.normal(1, 2, 5, 4, seed=i, dtype=torch.float32).to(dtype) for i in range(3))
    attention = nn.functional.scaled_dot_product_attention
    with casting(dtype):
        found = attention(q, k, value=v)
    assert found.dtype == torch.float32 and torch.equal(found, attention(q.float(), k.float(), v.float()))
    with casting(dtype):
        assert attention(q.double(), k.double(), v.double()).dtype == torch.float64
        assert {t.dtype for t in map(precision.short, (q.float(), k, v))} == {dtype} and precision.short(None) is None


def test_what_is_written_into_a_given_tensor_is_computed_in_its_dtype():
    """So compiled code calls products; cast, they would go to a copy of that tensor, and it would stay what it was."""
    a, b = torch.randn(2, 3, 5), torch.randn(2, 5, 4)
    out = torch.full((2, 3, 4), math.nan)
    with precision.casting(torch.bfloat16):
        torch.bmm(a, b, out=out)
    assert torch.equal(out, torch.bmm(a, b))


def test_an_inner_dtype_decides_and_an_exception_leaves_nothing_behind():
    x = tiny.normal(4, 4, dtype=torch.float32)
    with casting(torch.bfloat16):
        with casting(torch.float32):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
        with pytest.raises(KeyError), casting(torch.float16):
            raise KeyError
        assert (x @ x).dtype == torch.bfloat16
    assert (x @ x).dtype == torch.float32


@pytest.mark.parametrize("attention", ["fused", "spelled"])
def test_gradients_are_fp32_and_near_those_of_fp32(attention):
    model, batch = tiny.model(attention=attention), Ragged(ragged(4), 4).batch(0)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model.zero_grad()
        with casting(dtype):
            loss = next_token_loss(model, batch)
        loss.backward()
        found[dtype] = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert loss.dtype == torch.float32 and {p.grad.dtype for p in model.parameters()} == {torch.float32}
    one, other = found.values()
    assert 1e-4 < (one - other).norm() / one.norm() < 0.05


def test_layers_computed_again_are_computed_in_the_same_dtype():
    model, batch = tiny.model(), Ragged(ragged(4), 4).batch(0)
    found = []
    for model.recompute in (False, True):
        model.zero_grad()
        with casting(torch.bfloat16):
            loss = next_token_loss(model, batch)
        loss.backward()  # outside: what is computed again has to remember
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*found)


def test_doras_norm_is_no_product_to_be_shortened():
    model = tiny.model()
    adapter = apply(model, AdapterConfig("dora", rank=2))
    layer = model.layers[0].attn.q_proj
    with torch.no_grad():
        layer.B.normal_(generator=torch.Generator().manual_seed(0))
    wanted = layer.direction()
    with casting(torch.bfloat16):
        assert torch.equal(layer.direction(), wanted)
    assert adapter.cfg.method == "dora"


# ── the ledger ───────────────────────────────────────────────────────────────────────────────────


def test_the_ledger_is_what_a_model_does(tmp_path, monkeypatch):
    model = tiny.model(vocab_size=53)
    seen = {}

    def note(name, pick=lambda out: out):
        return lambda module, inputs, output: seen.setdefault(name, set()).add(pick(output).dtype)

    layer = model.layers[0]
    layer.attn_norm.register_forward_hook(note("norms"))
    model.final_norm.register_forward_hook(note("norms"))
    layer.register_forward_hook(note("embeddings, residual stream"))
    model.embed.register_forward_hook(note("embeddings, residual stream"))
    layer.attn.q_proj.register_forward_hook(note("outputs of Linears, operands of `o_proj`"))
    layer.mlp.down_proj.register_forward_hook(note("outputs of Linears, operands of `o_proj`"))
    layer.mlp.down_proj.register_forward_hook(lambda m, i, o: seen.setdefault("SwiGLU's product", set()).add(i[0].dtype))
    angles, rotate, sliced = model_module.rotary_angles, model_module.rotate, linear_cross_entropy.loss_and_gradient

    def noted_angles(*args):
        found = angles(*args)
        seen["rotary angles"] = {a.dtype for a in found}
        return found

    def noted_rotation(*args):
        found = rotate(*args)
        seen.setdefault("queries, keys, values", set()).add(found.dtype)
        return found

    def noted_logits(z_RV, *args):
        seen["logits, softmax, loss"] = {z_RV.dtype}
        return sliced(z_RV, *args)

    monkeypatch.setattr(model_module, "rotary_angles", noted_angles)
    monkeypatch.setattr(model_module, "rotate", noted_rotation)
    monkeypatch.setattr(linear_cross_entropy, "loss_and_gradient", noted_logits)
    sdpa = nn.functional.scaled_dot_product_attention
    tuning = Trainer(model, Ragged(ragged(8), 4), PLAIN, TrainConfig(steps=1, precision="bf16"), 0, tmp_path)
    watched = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is sdpa:
                watched.extend(a.dtype for a in args if isinstance(a, torch.Tensor))
            return function(*args, **(kwargs or {}))

    with Watch():
        tuning.take_step()
    seen["operands of a CPU's fused attention"] = set(watched)
    seen["weights"] = {p.dtype for p in model.parameters()}
    seen["Adam's moments"] = {state[k].dtype for state in tuning.optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")}
    table = dict(re.findall(r"^\| ([^|]+?) \| (fp32|short) \|", Path(__file__).parent.parent.joinpath("docs/PRECISION.md").read_text(), re.M))
    assert len(seen) >= 8
    for quantity, dtypes in seen.items():
        assert dtypes == {{"fp32": torch.float32, "short": torch.bfloat16}[table[quantity]]}, quantity
    assert set(table) - set(seen) == {"gradients", "attention's softmax", "an attack's gradient and perturbation",
                                      "the penalties ‖θ‖₂² and ‖PᵀP − I‖²", "DoRA's norm ‖W₀ + s B A‖"}  # by the tests above and in tests/adversarial


# ── loss scaling ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(3))
def test_scale_and_weights_are_those_of_pytorchs_scaler_over_a_thousand_steps(seed):
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = (nn.Parameter(torch.ones(5)) for _ in range(2))
    optimizers = [torch.optim.AdamW([p], lr=0.01) for p in (ours, theirs)]
    scaler = LossScaler(2.0**10, interval=20)
    oracle = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=20)
    skipped = 0
    for _ in range(1000):
        g = torch.randn(5, generator=generator)
        broken = torch.rand((), generator=generator) < 0.06
        scale = oracle.get_scale()
        assert scaler.scale == scale
        for p, s in ((ours, scaler.scale), (theirs, scale)):
            p.grad = g * s
            if broken:
                p.grad[2] = torch.inf if torch.rand((), generator=torch.Generator().manual_seed(seed)) < 0.5 else torch.nan
        oracle.scale(torch.ones(()))  # makes its state
        oracle.step(optimizers[1])
        oracle.update()
        unscale([ours], scaler.scale)
        finite = bool(ours.grad.isfinite().all())
        scaler.update(finite)
        if finite:
            optimizers[0].step()
        skipped += not finite
        assert torch.equal(ours, theirs)
    assert scaler.skipped == skipped > 20 and scaler.scale == oracle.get_scale()


def test_the_scale_never_leaves_fp32():
    scaler = LossScaler(2.0**126, interval=1)
    for wanted in (2.0**127, 2.0**127):
        scaler.update(True)
        assert scaler.scale == wanted


def test_the_scale_by_pencil():
    scaler = LossScaler(8.0, interval=2)
    scales = []
    for finite in (True, True, True, True, False, True, True, False, False, True):
        scaler.update(finite)
        scales.append(scaler.scale)
    assert scales == [8, 16, 16, 32, 16, 16, 32, 16, 8, 8] and scaler.skipped == 3 and scaler.skipped_in_a_row == 0 and scaler.good_steps == 1
    other = LossScaler()
    other.load_state_dict(scaler.state_dict())
    assert vars(other) == {**vars(scaler), "interval": 2000}


# ── in the trainer ───────────────────────────────────────────────────────────────────────────────


def make(folder, precision="fp32", optim=PLAIN, model=None, task=None, adapter=None, attack=None, **train):
    folder.mkdir(exist_ok=True)
    model = model or Transformer(MODEL).double()
    adapter = apply(model, adapter) if adapter else None
    extra = {"attack": attack_on(model.embed, attack, False)} if attack else {}
    return Trainer(model, task or Ragged(ragged(12), 4), optim, TrainConfig(**{"steps": 20, "eval_every": 100, "precision": precision, **train}),
                   0, folder, adapter=adapter, **extra)


def weights(tuning):
    return {name: p.detach().clone() for name, p in tuning.model.named_parameters()}


CROSSED = [*((attack, adapter) for attack in (None, AdversarialConfig("fgm", 0.1))
             for adapter in (None, AdapterConfig("lora", rank=2), AdapterConfig("adalora", rank=2, target_rank=1.0, interval=1))),
           *((AdversarialConfig(method, 0.1, **settings), None) for method, settings in
             (("vat", {}), ("fgsm", {}), ("pgd", {"steps": 2}), ("freelb", {"steps": 2}), ("matrix", {"tied": True})))]


@pytest.mark.parametrize("attack, adapter", CROSSED)
def test_with_a_scale_the_clipped_step_is_the_same(tmp_path, attack, adapter):
    found = []
    for scaled in (False, True):
        tuning = make(tmp_path / str(scaled), optim=OptimConfig(lr=0.01, warmup_steps=0, clip_norm=0.1), accumulation=3, attack=attack,
                      adapter=adapter, task=Opinionated(ragged(12), 4))
        tuning.scaler, tuning.l2 = LossScaler() if scaled else None, 0.01
        records = [tuning.take_step() for _ in range(3)]
        found.append((records, weights(tuning)))
    (plain, one), (scaled, other) = found
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=1e-9, atol=1e-12)
    for a, b in zip(plain, scaled):
        assert {k: b[k] for k in a if k != "tokens_per_s"} == pytest.approx({k: v for k, v in a.items() if k != "tokens_per_s"}, rel=1e-9)
        assert b["loss_scale"] == 2.0**16 and b["skipped_steps"] == 0


class Overflowing(Ragged):
    """The gradients of the first `broken` passes are inf."""

    broken = 0

    def loss_sum(self, model, batch):
        loss = super().loss_sum(model, batch)
        if model.training and self.broken:
            self.broken -= 1
            return loss * torch.tensor(torch.inf, dtype=loss.dtype)
        return loss


def test_a_skipped_step_moves_nothing_but_the_scale(tmp_path):
    cfg = AdapterConfig("adalora", rank=2, target_rank=1.0, interval=1)
    straight, skipping = (make(tmp_path / name, adapter=cfg, task=Overflowing(ragged(12), 4), accumulation=2,
                               optim=OptimConfig(lr=0.01, warmup_steps=3)) for name in ("straight", "skipping"))
    for tuning in (straight, skipping):
        tuning.scaler = LossScaler()
        tuning.take_step()
    before, moments = weights(skipping), {k: v["exp_avg"].clone() for k, v in skipping.optimizer.state.items()}
    averages = {name: t.clone() for name, t in skipping.adapter.tensors().items()}
    skipping.task.broken = 2
    assert skipping._try_step() is None
    assert all(torch.equal(before[name], w) for name, w in weights(skipping).items())
    assert all(torch.equal(moments[k], v["exp_avg"]) for k, v in skipping.optimizer.state.items())
    assert all(torch.equal(averages[name], t) for name, t in skipping.adapter.tensors().items())
    assert skipping.scaler.scale == 2.0**15 and skipping.state["step"] == 1
    assert all(p.grad is None for p in skipping.model.parameters())
    records = [tuning.take_step() for tuning in (straight, skipping)]
    assert [r["skipped_steps"] for r in records] == [0, 1] and records[0]["lr"] == records[1]["lr"]
    assert records[0]["loss"] == pytest.approx(records[1]["loss"], rel=1e-12)
    for name, w in weights(straight).items():
        torch.testing.assert_close(weights(skipping)[name], w, rtol=1e-9, atol=1e-12)


def test_the_scale_is_one_for_all_micro_batches_of_a_step(tmp_path):
    tuning = make(tmp_path, accumulation=3)
    tuning.scaler = LossScaler()
    scales = []
    whole = tuning._passes
    tuning._passes = lambda *a: (scales.append(tuning.scale), whole(*a))[1]
    tuning.take_step()
    assert scales == [2.0**16] * 3


def test_twenty_five_skipped_steps_in_a_row_are_an_error(tmp_path):
    tuning = make(tmp_path, task=Overflowing(ragged(12), 4))
    tuning.scaler, tuning.task.broken = LossScaler(), 24
    assert tuning.take_step()["skipped_steps"] == 24
    tuning.task.broken = 24
    assert tuning.take_step()["skipped_steps"] == 48  # a good step lay between
    tuning.scaler, tuning.task.broken = LossScaler(), 25
    before = weights(tuning)
    with pytest.raises(UserError, match=r"^step 3: 25 times in a row the gradient was not finite, the last at loss scale 0\.00391; .* lower optim\.lr"):
        tuning.take_step()
    assert all(torch.equal(before[name], w) for name, w in weights(tuning).items())


def test_the_scaler_is_in_the_checkpoint(tmp_path):
    tuning = make(tmp_path, "fp16", model=Transformer(MODEL), task=Overflowing(ragged(12), 4, ragged(4), 4), steps=4, save_every=1)
    tuning.task.broken = 3
    tuning.fit()
    assert checkpoint.read_state(checkpoint.find(tmp_path))["scaler"] == tuning.scaler.state_dict()
    again = make(tmp_path, "fp16", model=Transformer(MODEL), task=Overflowing(ragged(12), 4, ragged(4), 4), steps=4, save_every=1)
    again.keeper.resume(again.state)
    assert again.scaler.state_dict() == tuning.scaler.state_dict() and again.scaler.skipped >= 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_weights_are_not_trained(tmp_path, dtype):
    with pytest.raises(UserError, match=r"embed\.weight: is held in torch\.\w+16 and trained.*hold it in fp32"):
        make(tmp_path, model=Transformer(MODEL).to(dtype))
    frozen = Transformer(MODEL).to(dtype)
    make(tmp_path, model=frozen, adapter=AdapterConfig("lora", rank=2))  # a short base is only read


@pytest.mark.parametrize("short", ["bf16", "fp16"])
@pytest.mark.parametrize("attack", [AdversarialConfig(), AdversarialConfig("fgm", 0.2), AdversarialConfig("freelb", 0.2, steps=2)],
                         ids=lambda a: a.method)
@pytest.mark.parametrize("adapter", [None, AdapterConfig("lora", rank=2), AdapterConfig("houlsby", bottleneck=3),
                                     AdapterConfig("adalora", rank=2, target_rank=1.0, interval=1)],
                         ids=lambda a: a.method if a else "all")
def test_short_products_meet_every_attack_and_adapter(tmp_path, short, attack, adapter):
    """Three steps are near those of fp32."""
    found = []
    for kind in ("fp32", short):
        tuning = make(tmp_path / kind, kind, model=Transformer(ModelConfig(**{**vars(MODEL), "dropout": 0.1})), adapter=adapter,
                      attack=attack if attack.method != "none" else None, accumulation=2, optim=OptimConfig(lr=0.01, warmup_steps=0))
        found.append([tuning.take_step() for _ in range(3)])
    for one, other in zip(*found):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.02) and other["grad_norm"] == pytest.approx(one["grad_norm"], rel=0.2)
        assert ("loss_scale" in other) == (short == "fp16")
        assert attack.method in ("none", "freelb") or other["adversarial_loss"] > other["loss"]


def test_every_short_operation_is_one_that_the_model_uses_or_could():
    assert nn.functional.linear in SHORT and nn.functional.scaled_dot_product_attention in SHORT
    assert torch.softmax not in SHORT and nn.functional.cross_entropy not in SHORT and torch.einsum not in SHORT


def test_the_policy_is_said_with_its_reason(tmp_path, capsys):
    make(tmp_path, "bf16", model=Transformer(MODEL), task=Ragged(ragged(8), 4, ragged(4), 4), steps=1).fit()
    assert "precision: bf16 (as asked)" in capsys.readouterr().out
    assert precision.policy("auto", CPU).reason.startswith("cpu: ")
