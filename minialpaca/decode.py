"""One more token: a decoder's step as a few large operations on matrices that are laid side by side.

The model's own forward takes any number of tokens, any adapter and dropout; asked for one token at a time it spends its
time between operations. Here queries, keys and values are one product and gate and up another, angles are looked up, and
with `compiled` no shape ever changes: the step is compiled once for a number of rows, on CUDA a layer of it, and the step
is recorded. The logits are the model's up to rounding; with matrices in int8, up to half a step of each row's scale.
"""

import contextlib
import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialpaca.cache import KVCache
from minialpaca.compiled_forms import is_hooked
from minialpaca.compiling import lacks
from minialpaca.errors import UserError
from minialpaca.model import MLP, Attention, Block, RMSNorm, Source, Transformer, gated_swish, rotary_angles
from minialpaca.peft import active
from minialpaca.recorded import Recorded, Rooms

PARTS = 32  # more than most machines have cores; more parts than cores cost nothing


def quantised(weight_FD: Tensor) -> tuple[Tensor, Tensor]:
    """W ≈ diag(s) Q,  Q_fd = round(W_fd / s_f) ∈ −127 … 127,  s_f = max_d |W_fd| / 127   [int8.1]

    Q in int8 and s (F, 1): a scale for each row, so that |W − diag(s) Q| ≤ s/2. A row of zeros has s = 1.
    Dettmers et al. 2022, §2 (absmax, row-wise); of the matrices alone, activations stay as they are.
    """
    s_F1 = weight_FD.abs().amax(-1, keepdim=True) / 127
    s_F1 = s_F1.masked_fill(s_F1 == 0, 1)
    return (weight_FD / s_F1).round().to(torch.int8), s_F1


def in_parts(weight_FD: Tensor, x_BD: Tensor) -> Tensor:
    """W x: W's rows in parts, whose products are dealt out to all cores. One product of a matrix and a few rows keeps one of them busy."""
    parts_NRD = weight_FD.view(PARTS, -1, weight_FD.shape[1])
    return torch.bmm(parts_NRD, x_BD.T.expand(PARTS, -1, -1)).flatten(0, 1).T


def by_sums(weight_FD: Tensor, x_1D: Tensor) -> Tensor:
    """W x as (Σ_d W_fd x_d), which a compiler turns into one pass over W, whatever W is held in."""
    wide = torch.promote_types(x_1D.dtype, torch.float32)
    return (weight_FD.to(wide) * x_1D.to(wide)).sum(-1)[None].to(x_1D.dtype)


class Held(nn.Module):
    """A matrix W (F, D), or Q and its scales in int8, and W x by what reads it fastest where it is (docs/LOG.md).

    compiled: a single row is done `by_sums`, unless a CPU does it `in_parts`, as all in fp32, for which F is filled up to whole parts.
    Not compiled, what is in bf16 is held input-major (D, F), which the library's product of a row and a matrix reads faster.
    """

    def __init__(self, weight_FD: Tensor, int8: bool, compiled: bool):
        super().__init__()
        self.int8, self.compiled, self.n_rows = int8, compiled, len(weight_FD)
        self.parts = weight_FD.device.type == "cpu" and weight_FD.dtype in (torch.float32, torch.float64)
        self.turned = not (self.parts or int8 or compiled)
        held = F.pad(weight_FD, (0, 0, 0, -len(weight_FD) % PARTS)) if self.parts and len(weight_FD) % PARTS else weight_FD
        if int8:
            held, scale = quantised(held)
            self.register_buffer("scale", scale[:, 0])
        self.register_buffer("weight", held.T.contiguous() if self.turned else held)

    def forward(self, x_BD: Tensor) -> Tensor:
        """W x, in x's dtype."""
        if self.turned:
            return x_BD @ self.weight
        if self.parts:
            y_BF = in_parts(self.weight.to(x_BD.dtype), x_BD)
        elif self.compiled and len(x_BD) == 1:
            y_BF = by_sums(self.weight, x_BD)
        else:
            y_BF = F.linear(x_BD, self.weight.to(x_BD.dtype))
        return (y_BF * self.scale if self.int8 else y_BF)[:, :self.n_rows]


class Down(nn.Module):
    """x + W_down(…): a part of its own, or a compiler makes what is gated anew for each of its rows (of a GPU's time a tenth)."""

    def __init__(self, down: Held):
        super().__init__()
        self.down = down

    def forward(self, x_BD: Tensor, inner_BF: Tensor) -> Tensor:
        return x_BD + self.down(inner_BF)


class HeldBlock(nn.Module):
    """A block's matrices: rows of q, k and v below each other, those of gate and up, and the gains of its norms."""

    def __init__(self, block: Block, int8: bool, compiled: bool):
        super().__init__()
        attn, mlp = block.attn, block.mlp
        self.n_heads, self.n_kv_heads, self.d_head = attn.n_heads, attn.n_kv_heads, attn.d_head
        self.look = look_by_sums if compiled and not attn.q_proj.weight.is_cuda else F.scaled_dot_product_attention
        self.attn_norm, self.mlp_norm = block.attn_norm, block.mlp_norm
        self.qkv = Held(torch.cat([p.weight.detach() for p in (attn.q_proj, attn.k_proj, attn.v_proj)]), int8, compiled)
        self.o = Held(attn.o_proj.weight.detach(), int8, compiled)
        self.gate_up = Held(torch.cat([p.weight.detach() for p in (mlp.gate_proj, mlp.up_proj)]), int8, compiled)
        self.down = Down(Held(mlp.down_proj.weight.detach(), int8, compiled))

    def forward(self, x_BD: Tensor, turn: tuple[Tensor, Tensor], place_1: Tensor, k_BGSK: Tensor, v_BGSK: Tensor,
                end: int, may_look: Tensor | None) -> tuple[Tensor, Tensor]:
        """What `down` is given. `end`: how much of the cache is looked at."""
        H, G = self.n_heads, self.n_kv_heads
        qkv = self.qkv(self.attn_norm(x_BD)).unflatten(-1, (H + 2 * G, self.d_head))
        turned = turned_by(qkv[:, :H + G], *turn)
        k_BGSK.index_copy_(2, place_1, turned[:, H:, None])
        v_BGSK.index_copy_(2, place_1, qkv[:, H + G:, None])
        mix_BH1K = self.look(turned[:, :H, None], k_BGSK[:, :, :end], v_BGSK[:, :, :end], attn_mask=may_look, enable_gqa=G < H)
        x_BD = x_BD + self.o(mix_BH1K.flatten(1))
        gate_BF, up_BF = self.gate_up(self.mlp_norm(x_BD)).chunk(2, -1)
        return x_BD, gated_swish(gate_BF, up_BF)


def look_by_sums(q_BH1K: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, attn_mask: Tensor, enable_gqa: bool = True) -> Tensor:
    """`spelled_attention` (attention.1) of one query a row, its products as sums; called as PyTorch's own is. attn_mask is added."""
    wide = torch.promote_types(q_BH1K.dtype, torch.float32)
    q_BGJ1K = q_BH1K.to(wide).unflatten(1, (k_BGSK.shape[1], -1))  # J query heads look at one head of keys
    scores_BGJS = (q_BGJ1K * k_BGSK[:, :, None].to(wide)).sum(-1) / math.sqrt(q_BH1K.shape[-1]) + attn_mask
    map_BGJS = scores_BGJS.softmax(-1)
    return (map_BGJS[..., None] * v_BGSK[:, :, None].to(wide)).sum(-2).flatten(1, 2)[:, :, None].to(q_BH1K.dtype)


def turned_by(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`model.rotate` (rope.34) as x cos + swap(x) (−sin, sin), with angles for each of a pair; x (B, heads, K)."""
    wide = x.to(cos.dtype)
    swapped = wide.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (wide * cos + swapped * sin).to(x.dtype)


def call(part: nn.Module, *arguments):
    return part(*arguments)


@functools.cache
def compiled_call() -> Callable:
    """One compilation for all layers of a shape, one for their last matrix, one for the head; for CUDA, where tuned it reads memory a
    sixth faster (docs/LOG.md).
    """
    return torch.compile(call, dynamic=False, fullgraph=True, options={"coordinate_descent_tuning": True})


class Step(nn.Module):
    """tokens (B,) behind those in the cache → logits (B, V), in fp32 at least. `call` says how a layer, and the head, is asked."""

    def __init__(self, model: Transformer, int8: bool, compiled: bool = False, call: Callable = call):
        super().__init__()
        self.call = call
        self.embed = model.embed
        self.blocks = nn.ModuleList(HeldBlock(block, int8, compiled) for block in model.layers)
        self.head = nn.Sequential(model.final_norm, Held(model.lm_head.weight.detach(), int8, compiled))
        wide = torch.float64 if model.embed.weight.dtype == torch.float64 else torch.float32
        places = torch.arange(model.cfg.max_seq_len, device=model.embed.weight.device, dtype=wide)
        cos, sin = rotary_angles(places, model.cfg.d_head, model.cfg.rope_theta)
        self.register_buffer("cos_SK", cos.repeat_interleave(2, -1))
        self.register_buffer("sin_SK", torch.stack((-sin, sin), -1).flatten(-2))

    def forward(self, tokens_B: Tensor, positions_B: Tensor, place_1: Tensor, cached: list[tuple[Tensor, Tensor]],
                end: int, may_look: Tensor | None) -> Tensor:
        x_BD = self.embed(tokens_B)
        turn = self.cos_SK[positions_B][:, None], self.sin_SK[positions_B][:, None]
        if may_look is not None:  # once for all layers in the form that attention adds
            may_look = torch.zeros_like(may_look, dtype=x_BD.dtype).masked_fill(~may_look, -torch.inf)
        for block, (k_BGSK, v_BGSK) in zip(self.blocks, cached):
            x_BD = self.call(block.down, *self.call(block, x_BD, turn, place_1, k_BGSK, v_BGSK, end, may_look))
        logits_BV = self.call(self.head, x_BD)
        return logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))


def is_plain(model: nn.Module) -> bool:
    """A decoder without an adapter or a hook in it: its matrices are all that there is to a step."""
    if type(model) is not Transformer or not model.causal or model.two_stacks or model.virtual is not None:
        return False
    parts = {Transformer, nn.Embedding, nn.Dropout, nn.ModuleList, Block, Attention, MLP, RMSNorm, nn.Linear}
    return all(type(m) in parts and not is_hooked(m) and not (type(m) is nn.Linear and m.bias is not None) for m in model.modules())


class Stepper:
    """A plain decoder for `generate.stream`: a prompt goes through the model, each later token through the step."""

    n_virtual = 0

    def __init__(self, model: Transformer, int8: bool = False, compiled: bool = False):
        if not is_plain(model):
            raise ValueError("a Stepper takes a decoder without an adapter in it")
        self.model, self.cfg, self.embed, self.compiled = model.eval(), model.cfg, model.embed, compiled
        self.records = compiled and self.embed.weight.is_cuda
        self.step = Step(model, int8, compiled, compiled_call() if self.records else call).eval()
        self.asked: set[tuple] = set()
        if compiled and not self.records:
            self.step = torch.compile(self.step, dynamic=False, fullgraph=True)
        self.rooms = Rooms(self.cfg, self.embed.weight.device, self.embed.weight.dtype)

    def new_cache(self, rows: int, places: int) -> KVCache:
        """Compiled, it is as long as the context whatever is asked: a length of its own would be compiled anew."""
        return self.rooms.lend(rows) if self.compiled else self.model.new_cache(rows, places)

    def next_logits(self, tokens_BT: Tensor, real_BT: Tensor | None, cache: KVCache, sources: list[Source] | None = None) -> Tensor:
        """What stands behind each row's last token: logits (B, V)."""
        if not cache.length or tokens_BT.shape[1] > 1:
            return self.model.next_logits(tokens_BT, real_BT, cache, sources)
        length, device = cache.length, tokens_BT.device
        real_BS = cache.note_real(real_BT, 1)
        place_1 = torch.full((1,), length, device=device)
        positions_B = place_1.expand(len(tokens_BT)) if real_BS is None else real_BS.sum(-1) - 1
        end, may_look = self._window(real_BS, place_1, length, cache)
        logits_BV = self._taken(cache, end, tokens_BT[:, 0], positions_B, place_1, may_look)
        cache.advance(1)
        return logits_BV

    def _taken(self, cache: KVCache, end: int, *inputs: Tensor | None) -> Tensor:
        """The step, on CUDA compiled as it was recorded on this cache's memory."""
        cached = list(zip(cache.k_LBGSK.unbind(), cache.v_LBGSK.unbind()))

        def step(tokens_B: Tensor, positions_B: Tensor, place_1: Tensor, may_look: Tensor | None) -> Tensor:
            return self.step(tokens_B, positions_B, place_1, cached, end, may_look)

        if not self.records:
            with self._unquestioned(*inputs) if self.compiled else contextlib.nullcontext():
                return step(*inputs)
        cache.room.step = cache.room.step or Recorded(step, *inputs)
        return cache.room.step(*inputs)

    def _unquestioned(self, *inputs: Tensor) -> contextlib.AbstractContextManager:
        """What has been asked once in this form is not compared again with all that it was compiled for: a tenth of a token's time."""
        form = (torch.is_inference_mode_enabled(), torch.is_grad_enabled(), *((x.shape, x.stride()) for x in inputs))
        if form in self.asked:
            return torch.compiler.set_stance("default", skip_guard_eval_unsafe=True)
        self.asked.add(form)
        return contextlib.nullcontext()

    def _window(self, real_BS: Tensor | None, place_1: Tensor, length: int, cache: KVCache) -> tuple[int, Tensor | None]:
        """How much of the cache is looked at, and which of it; compiled, all of it through a mask."""
        if self.compiled:
            return cache.max_len, written_and_real(place_1, cache.real_BS)
        return length + 1, None if real_BS is None else real_BS[:, None, None]


def written_and_real(place_1: Tensor, real_BS: Tensor) -> Tensor:
    """True (B, 1, 1, S) where something stands that may be looked at, of a cache with more room than that."""
    written_S = torch.arange(real_BS.shape[1], device=place_1.device) <= place_1
    return (written_S & real_BS)[:, None, None]


def swift(model: Transformer, int8: bool = False, compiled: bool = False) -> Transformer | Stepper:
    """The model, or a Stepper of it where that is asked for, or pays of itself: on a CPU, where a copy of the matrices is cheap."""
    asked = "--int8" if int8 else "--compile"
    if not is_plain(model):
        if int8 or compiled:
            stays = active(model) is not None and active(model).beside
            way = f"leave it out: {active(model).cfg.method} {stays}" if stays else "merge it first: python -m minialpaca.merge RUN OUT"
            raise UserError(f"{asked}: is for a decoder without an adapter in it; {way}")
        return model
    on_cpu = not model.embed.weight.is_cuda
    if compiled and (missing := lacks(model.embed.weight.device)):
        raise UserError(f"--compile: needs {missing}; install it, or leave it out")
    return Stepper(model, int8, compiled) if int8 or compiled or on_cpu else model
