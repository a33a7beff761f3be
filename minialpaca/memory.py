"""How much memory training will take, from shapes alone; and what to do where there is not enough.

With n = B T places, s the bytes of a product (4, or 2 in bf16 and fp16), everything in bytes:

    weights      4 per parameter, or 2 of a frozen one that is held in a short dtype
    gradients    4 per trained parameter: what is frozen has none
    moments      8 per trained parameter: AdamW's averages of g and g²
    activations  of each layer what autograd keeps for the way back:
                     a norm: its input 4nD and, where the gain is trained, x/rms 4nD
                     its output, once for all Linears that want their input 4nD; in a short dtype s·nD for each of them,
                     and a short copy of its matrix
                     attention: rotated q, k, v and the mix s·4nHK (keys are repeated for their query heads; on a CPU s = 4 here), the mix once more
                     for a trained `o_proj`, a logsumexp for each query 4nH
                     a map B·H·T² of each head where it is computed step by step
                     SwiGLU: gate, Swish(gate), up, and for a trained `down_proj` their product s·nF each (4·nF of a gate or up of low rank)
                 A frozen Linear keeps no input: its gradient with respect to x needs the matrix alone. With recompute a layer keeps
                 its input 4nD, and one layer at a time is computed again (see `working`).
    head         the matrix's gradient and the product that is added to it 2 · 4VD, the hidden state's 4nD, one slice of logits:
                 all logits exist at once only in R-Drop, and where the head is changed by an adapter
    working      the way back through one layer: 3nF of SwiGLU and 2nD of the residual stream
    saving       12 per trained parameter on a CPU: the copy of weights and moments that is written beside the steps; a GPU has none
    cache        keys and values of the texts that are generated at an evaluation, 2 · 4 · L n_texts S GK

    peak = weights + moments + saving + max(activations + max(head, working), gradients + embedding, cache)

With train.parallel = fsdp and P processes each holds 1/P of weights, gradients and moments; besides, whole: what stands in no layer
and two layers' weights (one is gathered while the other computes) and their gradients, or with accumulation all gradients.

Gradients come while activations go, so one micro-batch needs the larger of the two; after it, with accumulation or a second,
adversarial pass, the gradients stay and are added. The embedding's own gradient 4VD exists beside that of the head it is tied to.
"""

import contextlib
import dataclasses
import os
from dataclasses import dataclass

import torch
from torch import nn

from minialpaca import compiled_forms
from minialpaca.linear_cross_entropy import SLICE
from minialpaca.model import Attention, Block, RMSNorm, Transformer
from minialpaca.peft.adalora import AdaLoRALinear
from minialpaca.peft.adapter import Wrapper
from minialpaca.peft.houlsby import Bottleneck
from minialpaca.peft.ia3 import Stretched
from minialpaca.peft.lora import DoRALinear, LoRALinear
from minialpaca.peft.virtual import PrefixAttention

FLOAT = 4
MIB = 1 << 20


@dataclass(frozen=True)
class Memory:
    """Bytes, each part by itself; `peak` says which of them exist at once."""

    weights: int
    gradients: int
    moments: int
    activations: int
    head: int
    working: int
    embedding: int
    cache: int
    saving: int
    gradients_stay: bool

    @property
    def peak(self) -> int:
        forward = self.activations + max(self.head, self.working)
        backward = self.gradients + self.embedding
        at_once = forward + backward if self.gradients_stay else max(forward, backward)
        return self.weights + self.moments + self.saving + max(at_once, self.cache)

    def __str__(self) -> str:
        parts = ("weights", "gradients", "moments", "activations", "head", "cache", "saving")
        return (f"memory, estimated: {told(self.peak)} at the peak of a step ("
                + ", ".join(f"{name} {told(getattr(self, name))}" for name in parts) + ")")


@dataclass(frozen=True)
class Load:
    """What goes through the model at once. `length`: places of the longest row, `source`: of an encoder's beside it."""

    rows: int
    length: int
    source: int = 0
    short: int = FLOAT          # bytes of a product's numbers
    device: str = "cpu"
    padded: bool = False        # a mask goes along, as in classification
    passes: int = 1             # two in R-Drop, both kept
    gradients_stay: bool = False
    generated: int = 0          # texts that are generated together at an evaluation
    parts: int = 1              # in how many the weights are dealt out
    accumulated: bool = False   # and the gradients stay whole until the last micro-batch
    compiled_bf16: bool = False  # attention may be products then (compiled_forms.py)


def told(n: int) -> str:
    return f"{n / MIB:,.1f} MiB" if n < 1 << 30 else f"{n / (1 << 30):,.2f} GiB"


def estimate(model: nn.Module, load: Load) -> Memory:
    """The formulas of this module's head, for a model as it is: frozen, adapted, recomputed."""
    backbone = getattr(model, "backbone", model)
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    layers, flows = stack_kept(backbone, load)
    largest = max(layers, default=0)
    inputs = FLOAT * load.rows * (load.length + backbone.n_virtual) * backbone.cfg.d_model
    activations = recomputed_kept(backbone, load, inputs) if backbone.recompute else sum(layers)
    tail = norm_kept(backbone.final_norm, inputs, flows)[0]
    weights, gradients, moments = held_bytes(model, load)
    return Memory(
        weights=weights + buffers, gradients=gradients, moments=moments,
        activations=load.passes * (activations + tail), head=head_bytes(backbone, load) if backbone is model else 0,
        working=working_bytes(backbone, load) + (largest if backbone.recompute else 0),
        embedding=FLOAT * backbone.embed.weight.numel() * (backbone.embed.weight.requires_grad and backbone.cfg.tie_embeddings),
        cache=2 * FLOAT * backbone.cfg.n_layers * load.generated * backbone.cfg.max_seq_len * backbone.cfg.kv_heads * backbone.cfg.d_head,
        saving=3 * parameter_bytes(model, True) // load.parts if load.device == "cpu" else 0,
        gradients_stay=load.gradients_stay)


def held_bytes(model: nn.Module, load: Load) -> tuple[int, int, int]:
    """Weights, gradients and moments, as they are at the peak."""
    weights, trained = parameter_bytes(model, False), parameter_bytes(model, True)
    if load.parts == 1:
        return weights, trained, 2 * trained
    gathered, found = (beside_layers(model, trained_only) for trained_only in (False, True))
    return weights // load.parts + gathered, trained // load.parts + (trained if load.accumulated else found), 2 * trained // load.parts


def beside_layers(model: nn.Module, trained_only: bool) -> int:
    """Of what is dealt out the bytes that are whole at once: what stands in no layer, and two layers."""
    layers = [parameter_bytes(module, trained_only) for module in model.modules() if isinstance(module, Block)]
    return parameter_bytes(model, trained_only) - sum(layers) + 2 * max(layers)


def parameter_bytes(module: nn.Module, trained_only: bool) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad or not trained_only)


# ── what layers keep ─────────────────────────────────────────────────────────────────────────────


def plain(module: nn.Module) -> nn.Module:
    """What an adapter stands around."""
    return plain(module.base) if isinstance(module, Wrapper) else module


def is_trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def stack_kept(model: Transformer, load: Load) -> tuple[list[int], bool]:
    """Of each layer the bytes it keeps, and whether a gradient flows at the end: below the first trained parameter none does."""
    flows, kept = model.embed.weight.requires_grad or model.virtual is not None, []
    if model.two_stacks:
        source, seen = dataclasses.replace(load, length=load.source, padded=True), flows
        for layer in model.encoder.layers:
            size, seen = layer_kept(layer, source, seen)
            kept.append(size)
        kept.append(2 * FLOAT * load.rows * load.source * model.cfg.d_model)  # its last norm's input and output
    load = dataclasses.replace(load, length=load.length + model.n_virtual)
    for layer in model.layers:
        size, flows = layer_kept(layer, load, flows)
        kept.append(size)
    return kept, flows


def recomputed_kept(model: Transformer, load: Load, inputs: int) -> int:
    """Each layer's input; with two stacks also the source's, its last norm, and the keys and values that each layer of the decoder is given."""
    kept = len(model.layers) * inputs
    if model.two_stacks:
        n, attn = load.rows * load.source, plain(model.layers[0].cross)
        kept += FLOAT * n * model.cfg.d_model * (len(model.encoder.layers) + 2)
        kept += len(model.layers) * 2 * n * load.short * attn.n_kv_heads * attn.d_head
        from_source = [linears_kept([plain(layer.cross).k_proj, plain(layer.cross).v_proj], n, load, True) for layer in model.layers]
        kept += sum(from_source) if load.short < FLOAT else max(from_source)  # one tensor for all, or a short copy for each
    return kept


def layer_kept(layer: Block, load: Load, flows: bool) -> tuple[int, bool]:
    """Bytes of one layer, sub-layer by sub-layer."""
    total, drops = 0, layer.dropout.p > 0
    parts = [(layer.attn_norm, layer.attn, attention_kept), (layer.mlp_norm, layer.mlp, mlp_kept)]
    if hasattr(layer, "cross"):
        parts.insert(1, (layer.cross_norm, layer.cross, attention_kept))
    for norm, part, kept in parts:
        width, n = len(norm.weight), load.rows * load.length
        size, flows = norm_kept(norm, FLOAT * n * width, flows)
        total += size
        size, inner = kept(part, load, flows)
        flows = flows or inner
        noise = n * width * (load.short if load.device == "cpu" else 1) if drops and flows else 0
        total += size + noise + (load.short * n * (width + 2 * part.rank) if isinstance(part, Bottleneck) else 0)
    return total, flows


def norm_kept(norm: RMSNorm, stream: int, flows: bool) -> tuple[int, bool]:
    """`stream`: the bytes of its input."""
    gain = norm.weight.requires_grad
    return stream * (flows + gain), flows or gain


def linear_kept(linear: nn.Module, n: int, load: Load, flows: bool, copied: bool) -> tuple[int, bool]:
    """(bytes of its own, whether it keeps its input); `copied`: in a short dtype it makes a copy of an input in fp32."""
    base, low_rank = plain(linear), isinstance(linear, (LoRALinear, AdaLoRALinear))
    dropped = low_rank and linear.dropout.p > 0
    wants = base.weight.requires_grad or (low_rank and not dropped) or getattr(linear, "of_input", False)
    size = 0
    if load.short < FLOAT:
        size += base.weight.numel() * load.short * (flows and base.weight.element_size() > load.short) + n * base.in_features * load.short * (wants and copied)
    if low_rank:
        size += rank_kept(linear, n, load) + 2 * n * base.in_features * load.short * dropped  # noise, and what is left of x
    if isinstance(linear, DoRALinear):
        size += n * base.out_features * FLOAT
    if isinstance(linear, Stretched) and not linear.of_input:
        size += n * base.out_features * load.short
    return size, wants


def rank_kept(linear: LoRALinear | AdaLoRALinear, n: int, load: Load) -> int:
    """A x; in AdaLoRA Q x and Λ Q x. In a short dtype copies of both matrices, too."""
    R, times = (len(linear.kept), 2) if isinstance(linear, AdaLoRALinear) else (len(linear.A), 1)
    base = plain(linear)
    return load.short * R * (times * n + (base.in_features + base.out_features) * (load.short < FLOAT))


def linears_kept(linears: list[nn.Module], n: int, load: Load, flows: bool) -> int:
    """Of several Linears that read one normed input: in fp32 it is kept once for all."""
    found = [linear_kept(linear, n, load, flows, copied=True) for linear in linears]
    shared = FLOAT * n * plain(linears[0]).in_features if load.short == FLOAT and any(wants for _, wants in found) else 0
    return sum(size for size, _ in found) + shared


def attention_kept(part: nn.Module, load: Load, flows: bool) -> tuple[int, bool]:
    """q, k, v, the mix, and what the four Linears keep."""
    attn, n, cross = plain(part), load.rows * load.length, load.source and not plain(part).causal
    B, T, H, K = load.rows, load.length, attn.n_heads, attn.d_head
    S = (load.source if cross else T) + (part.k.shape[1] if isinstance(part, PrefixAttention) else 0)
    inputs = [attn.q_proj] if cross else [attn.q_proj, attn.k_proj, attn.v_proj]
    joined, wanted = linear_kept(attn.o_proj, n, load, flows, copied=False)
    total = linears_kept(inputs, n, load, flows) + joined
    if wanted and is_fused(attn, load):  # the heads side by side: another layout than the kernel's
        total += load.short * n * H * K
    if cross and load.short < FLOAT:
        total += sum(linear_kept(linear, B * S, load, flows, copied=True)[0] for linear in (attn.k_proj, attn.v_proj))
    if flows or is_trained(part):
        total += kernel_bytes(attn, load) * (2 * B * T * H * K + 2 * B * S * H * K) + FLOAT * B * H * T
        total += map_bytes(attn, load, S, masked=load.padded or isinstance(part, PrefixAttention))
    return total, flows or is_trained(part)


def map_bytes(attn: Attention, load: Load, S: int, masked: bool) -> int:
    """Attention maps, where they exist."""
    B, T, H, drops = load.rows, load.length, attn.n_heads, attn.dropout > 0
    if is_fused(attn, load):
        return kernel_bytes(attn, load) * B * T * S if masked and attn.causal else 0  # the mask as numbers
    return B * H * T * S * (FLOAT + drops * 2 * load.short + (load.short if load.short < FLOAT else 0))


def is_fused(attn: Attention, load: Load) -> bool:
    """A CPU's fused kernel knows no dropout, and is slower than compiled products in bf16."""
    spelled = attn.dropout > 0 or load.compiled_bf16 and attn.context <= compiled_forms.CONTEXT
    return attn.fused and not (spelled and load.device == "cpu")


def kernel_bytes(attn: Attention, load: Load) -> int:
    """Of a number that attention is given: a CPU's fused kernel takes fp32 whatever products are computed in."""
    return FLOAT if is_fused(attn, load) and load.device == "cpu" else load.short


def mlp_kept(part: nn.Module, load: Load, flows: bool) -> tuple[int, bool]:
    """gate, Swish(gate), up, and their product."""
    mlp, n = plain(part), load.rows * load.length
    inner = load.short * n * plain(mlp.down_proj).in_features
    size, wants = linear_kept(mlp.down_proj, n, load, True, copied=False)
    total = linears_kept([mlp.gate_proj, mlp.up_proj], n, load, flows) + size + inner * wants
    gate, up = flows or is_trained(mlp.gate_proj), flows or is_trained(mlp.up_proj)
    wide = (FLOAT - load.short) * n * plain(mlp.down_proj).in_features  # beside a change of low rank, x and what is said of it stay fp32
    adapted_gate, adapted_up = (isinstance(linear, (LoRALinear, AdaLoRALinear)) for linear in (mlp.gate_proj, mlp.up_proj))
    return total + inner * (2 * gate + up) + wide * (2 * adapted_gate + adapted_up), flows or is_trained(part)


# ── the ends ─────────────────────────────────────────────────────────────────────────────────────


def head_bytes(model: Transformer, load: Load) -> int:
    """What the head and its cross entropy hold beside the layers' activations."""
    n, (V, D) = load.rows * load.length, model.embed.weight.shape
    whole = load.passes > 1 or type(model.lm_head) is not nn.Linear
    logits = n * V if whole else min(n * V, SLICE.get(load.device, SLICE["cuda"]))
    matrix = V * D * is_trained(model.lm_head)
    return FLOAT * ((3 * load.passes if whole else 1) * logits + 2 * matrix + n * D)


def working_bytes(model: Transformer, load: Load) -> int:
    cfg, n = model.cfg, load.rows * load.length
    return n * (load.short * 3 * cfg.d_ff + FLOAT * 2 * cfg.d_model)


# ── where it is not enough ───────────────────────────────────────────────────────────────────────


def is_exhausted(error: BaseException) -> bool:
    """Whether that is PyTorch's or Python's way of saying that there was no memory left."""
    said = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in said or "out of memory" in said))


def there(device: torch.device) -> int | None:
    """Bytes of memory that the device, or for a CPU the machine, has in all; None where nobody says so."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if device.type == "cpu" else None


HOPELESS = 1.25  # times the memory that is there: what the estimate may be wrong by


def knobs(batch_size: int, accumulation: int, recompute: bool, adapted: bool) -> str:
    """What to turn, the cheapest first: the same mathematics, then less text, then more time, then another recipe."""
    named = [f"lower train.batch_size ({batch_size}) and raise train.accumulation ({accumulation}) as much" if batch_size > 1 else "",
             "shorten the context (model.max_seq_len, in finetune.py base.max_seq_len)",
             "" if recompute else "set train.recompute=true",
             "" if adapted else "in finetune.py set adapter.method=lora", "take a smaller model"]
    return ", or ".join(filter(None, named))
