"""One more token: a decoder's step as a few large operations on matrices that are laid side by side.

The model's own forward takes any number of tokens, any adapter and dropout; asked for one token at a time it spends its
time between operations. Here queries, keys and values are one product and gate and up another, and angles are looked up. With
`compiled` the step is one function on a CPU (captured.py); on CUDA a layer is compiled, and the step recorded (recorded.py).
The logits are the model's up to rounding; with matrices in int8, up to half a step of each row's scale. How a matrix is held,
held.py says.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialpaca.cache import KVCache, refuse_overflow
from minialpaca.captured import Cached, Captured
from minialpaca.compiled_forms import is_hooked
from minialpaca.compiling import lacks
from minialpaca.errors import UserError
from minialpaca.held import Held
from minialpaca.model import MLP, Attention, Block, RMSNorm, Source, Transformer, gated_swish, rotary_angles
from minialpaca.peft import active
from minialpaca.recorded import Recorded, Rooms


class Down(nn.Module):
    """x + W_down(…): a part of its own, or a compiler makes what is gated anew for each of its rows (of a GPU's time a tenth)."""

    def __init__(self, down: Held):
        super().__init__()
        self.down = down

    def forward(self, x_BD: Tensor, inner_BF: Tensor) -> Tensor:
        return x_BD + self.down(inner_BF)


class HeldBlock(nn.Module):
    """A block's matrices: rows of q, k and v below each other, those of gate and up, and the gains of its norms."""

    def __init__(self, block: Block, hold: Callable[[Tensor], Held], compiled: bool):
        super().__init__()
        attn, mlp = block.attn, block.mlp
        self.n_heads, self.n_kv_heads, self.d_head = attn.n_heads, attn.n_kv_heads, attn.d_head
        self.look = look_by_sums if compiled and not attn.q_proj.weight.is_cuda else F.scaled_dot_product_attention
        self.attn_norm, self.mlp_norm = block.attn_norm, block.mlp_norm
        self.qkv = hold(torch.cat([p.weight.detach() for p in (attn.q_proj, attn.k_proj, attn.v_proj)]))
        self.o = hold(attn.o_proj.weight.detach())
        self.gate_up = hold(torch.cat([p.weight.detach() for p in (mlp.gate_proj, mlp.up_proj)]))
        self.down = Down(hold(mlp.down_proj.weight.detach()))

    def forward(self, x_BD: Tensor, turn: tuple[Tensor, Tensor], k_BGSK: Tensor, v_BGSK: Tensor, end: int,
                may_look: Tensor | None, place_1: Tensor | None) -> tuple[Tensor, Tensor]:
        """What `down` is given. `end`: how much of the cache is looked at."""
        H, G = self.n_heads, self.n_kv_heads
        qkv = self.qkv(self.attn_norm(x_BD)).unflatten(-1, (H + 2 * G, self.d_head))
        turned = turned_by(qkv[:, :H + G], *turn)
        put(k_BGSK, turned[:, H:, None], end, place_1)
        put(v_BGSK, qkv[:, H + G:, None], end, place_1)
        mix_BH1K = self.look(turned[:, :H, None], k_BGSK[:, :, :end], v_BGSK[:, :, :end], attn_mask=may_look, enable_gqa=G < H)
        x_BD = x_BD + self.o(mix_BH1K.flatten(1))
        gate_BF, up_BF = self.gate_up(self.mlp_norm(x_BD)).chunk(2, -1)
        return x_BD, gated_swish(gate_BF, up_BF)


def put(cached_BGSK: Tensor, new_BG1K: Tensor, end: int, place_1: Tensor | None) -> None:
    """At the last place that is looked at; or at place_1, where a recording has to ask a tensor."""
    if place_1 is None:
        cached_BGSK.narrow(2, end - 1, 1).copy_(new_BG1K)
    else:
        cached_BGSK.index_copy_(2, place_1, new_BG1K)


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


def without_end() -> contextlib.AbstractContextManager:
    """Within, one code may be compiled for any number of rows and kind of matrix; PyTorch refuses the ninth time, and each takes three."""
    return torch._dynamo.config.patch(cache_size_limit=2**16, accumulated_cache_size_limit=2**16)


class Step(nn.Module):
    """tokens (B,) behind those in the cache → logits (B, V), in fp32 at least. `call` says how a layer, and the head, is asked."""

    def __init__(self, model: Transformer, several: bool, int8: bool, compiled: bool = False, call: Callable = call):
        super().__init__()
        self.call = call
        hold = functools.partial(Held, several=several, int8=int8, compiled=compiled)
        self.embed = model.embed
        self.blocks = nn.ModuleList(HeldBlock(block, hold, compiled) for block in model.layers)
        self.head = nn.Sequential(model.final_norm, hold(model.lm_head.weight.detach()))
        wide = torch.float64 if model.embed.weight.dtype == torch.float64 else torch.float32
        places = torch.arange(model.cfg.max_seq_len, device=model.embed.weight.device, dtype=wide)
        cos, sin = rotary_angles(places, model.cfg.d_head, model.cfg.rope_theta)
        self.register_buffer("cos_SK", cos.repeat_interleave(2, -1))
        self.register_buffer("sin_SK", torch.stack((-sin, sin), -1).flatten(-2))

    def forward(self, tokens_B: Tensor, real_BE: Tensor | None, cached: Cached, end: int | None = None,
                place_1: Tensor | None = None) -> Tensor:
        """E places of the cache are looked at, as far as they are real; for real_BE None there are `end`, all real. The token stands in
        the last of them; or at place_1, and those behind it are not written yet.
        """
        x_BD = self.embed(tokens_B)
        if real_BE is None:
            positions, may_look = slice(end - 1, end), None
        else:
            end = real_BE.shape[1]
            looks_BE = real_BE if place_1 is None else real_BE & (torch.arange(end, device=place_1.device) <= place_1)
            positions = looks_BE.sum(-1) - 1
            may_look = torch.zeros_like(looks_BE, dtype=x_BD.dtype).masked_fill(~looks_BE, -torch.inf)[:, None, None]  # as attention adds it
        turn = self.cos_SK[positions][:, None], self.sin_SK[positions][:, None]
        for block, (k_BGSK, v_BGSK) in zip(self.blocks, cached):
            x_BD = self.call(block.down, *self.call(block, x_BD, turn, k_BGSK, v_BGSK, end, may_look, place_1))
        logits_BV = self.call(self.head, x_BD)
        return logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))


def is_plain(model: nn.Module) -> bool:
    """A decoder without an adapter or a hook in it: its matrices are all that there is to a step."""
    if type(model) is not Transformer or not model.causal or model.two_stacks or model.virtual is not None:
        return False
    parts = {Transformer, nn.Embedding, nn.Dropout, nn.ModuleList, Block, Attention, MLP, RMSNorm, nn.Linear}
    return all(type(m) in parts and not is_hooked(m) and not (type(m) is nn.Linear and m.bias is not None) for m in model.modules())


class Stepper:
    """A plain decoder for `generate.stream`: a prompt goes through the model, each later token through the step.

    The step's matrices are laid out at the first answer, from the weights as they are then: who trains on makes a new one.
    """

    n_virtual = 0

    def __init__(self, model: Transformer, int8: bool = False, compiled: bool = False):
        if not is_plain(model):
            raise ValueError("a Stepper takes a decoder without an adapter in it")
        self.model, self.cfg, self.embed, self.int8, self.compiled = model.eval(), model.cfg, model.embed, int8, compiled
        self.records = compiled and self.embed.weight.is_cuda
        self.captured: dict[bool, Captured] = {}  # for one row, and for several
        spare = 2 if compiled and not self.records else 0  # a slice of the whole is a case apart to the compiler, and so is a range of one
        self.rooms = Rooms(self.cfg, self.embed.weight.device, self.embed.weight.dtype, self.cfg.max_seq_len + spare)

    @functools.cached_property
    def for_one(self) -> Step:
        return self._built(several=False)

    @functools.cached_property
    def for_several(self) -> Step:
        return self._built(several=True) if not self.embed.weight.is_cuda and not self.int8 else self.for_one

    def _built(self, several: bool) -> Step:
        return Step(self.model, several, self.int8, self.compiled, compiled_call() if self.records else call).eval()

    def new_cache(self, rows: int, places: int) -> KVCache:
        """Compiled, it is as long as the context whatever is asked: a length of its own would be compiled anew."""
        return self.rooms.lend(rows) if self.compiled else self.model.new_cache(rows, places)

    @torch.no_grad()
    def next_logits(self, tokens_BT: Tensor, real_BT: Tensor | None, cache: KVCache, sources: list[Source] | None = None) -> Tensor:
        """What stands behind each row's last token: logits (B, V)."""
        if not cache.length or tokens_BT.shape[1] > 1:
            return self.model.next_logits(tokens_BT, real_BT, cache, sources)
        refuse_overflow(cache.length, 1, cache.max_len)
        logits_BV = self._taken(cache, tokens_BT[:, 0].contiguous(), cache.note_real(real_BT, 1))
        cache.advance(1)
        return logits_BV

    def _taken(self, cache: KVCache, tokens_B: Tensor, real_BE: Tensor | None) -> Tensor:
        """The step: as it is, on CUDA as it was recorded on this cache's memory, on a CPU as it was compiled."""
        step, end = self.for_one if len(tokens_B) == 1 else self.for_several, cache.length + 1
        cached = list(zip(cache.k_LBGSK.unbind(), cache.v_LBGSK.unbind()))  # a cache that a record held on to would never be gone
        if not self.compiled:
            return step(tokens_B, real_BE, cached, end)
        if not self.records:
            return self._as_compiled(step, (tokens_B, cache.real_BS[:, :end].contiguous()), cached)
        inputs = tokens_B, cache.real_BS, torch.full((1,), cache.length, device=tokens_B.device)  # all of the cache: a length has no tensor
        if cache.room.step is None:
            with without_end():
                cache.room.step = Recorded(lambda tokens_B, real_BS, place_1: step(tokens_B, real_BS, cached, place_1=place_1), *inputs)
        return cache.room.step(*inputs)

    def _as_compiled(self, step: Step, inputs: Sequence[Tensor], cached: Cached) -> Tensor:
        """Once for one row and once for several, whose matrices are frozen, but for int8: it would be made wide."""
        several = len(inputs[0]) > 1
        if several not in self.captured:
            self.captured[several] = Captured(step, inputs, cached, several, frozen=several and not self.int8)
        return self.captured[several](inputs, cached)


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
