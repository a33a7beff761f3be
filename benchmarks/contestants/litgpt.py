"""litgpt's GPT with a Llama's parts, and its own LoRA."""

import torch
from torch import Tensor

from benchmarks.contestants import Shape
from benchmarks.contestants.foreign import Foreign, halves
from benchmarks.contestants.ours import weights


def translated(shape: Shape, lora: bool, device: str):
    import litgpt
    import litgpt.lora

    ours = weights(shape, device)
    given = dict(block_size=shape.context, vocab_size=shape.vocab_size, padded_vocab_size=shape.vocab_size, n_layer=shape.n_layers,
                 n_head=shape.n_heads, n_embd=shape.d_model, head_size=shape.d_model // shape.n_heads, n_query_groups=shape.n_heads,
                 rotary_percentage=1.0, parallel_residual=False, bias=False, norm_class_name="RMSNorm", norm_eps=ours.cfg.norm_eps,
                 mlp_class_name="LLaMAMLP", intermediate_size=shape.d_ff, rope_base=int(ours.cfg.rope_theta))
    if lora:
        theirs = litgpt.lora.GPT(litgpt.lora.Config(**given, lora_r=8, lora_alpha=16, lora_dropout=0.0, lora_query=True, lora_key=True,
                                                    lora_value=True, lora_projection=True))
    else:
        theirs = litgpt.GPT(litgpt.Config(**given))
    found = {"transformer.wte.weight": ours.embed.weight, "transformer.ln_f.weight": ours.final_norm.weight, "lm_head.weight": ours.lm_head.weight}
    for i, layer in enumerate(ours.layers):
        at, attn, mlp = f"transformer.h.{i}", layer.attn, layer.mlp
        q, k = (halves(p.weight, shape.n_heads) for p in (attn.q_proj, attn.k_proj))
        found |= {f"{at}.attn.qkv.weight": torch.cat([q, k, attn.v_proj.weight]), f"{at}.attn.proj.weight": attn.o_proj.weight,
                  f"{at}.mlp.fc_1.weight": mlp.gate_proj.weight, f"{at}.mlp.fc_2.weight": mlp.up_proj.weight,
                  f"{at}.mlp.proj.weight": mlp.down_proj.weight, f"{at}.norm_1.weight": layer.attn_norm.weight,
                  f"{at}.norm_2.weight": layer.mlp_norm.weight}
    theirs.load_state_dict(found, strict=not lora)
    if lora:
        litgpt.lora.mark_only_lora_as_trainable(theirs)
    return theirs


class Lit(Foreign):
    def __init__(self, shape: Shape, options: set[str], device: str):
        self.prepare(translated(shape, "lora" in options, device), options, device)
        self.rows = None

    @torch.no_grad()
    def answer(self, prompts_BT: Tensor, new: int) -> list[list[int]]:
        """As its own generate/base.py does for one row, for several at once."""
        self.model.eval()
        if "bf16" in self.options:
            self.model.bfloat16()
        if self.rows != len(prompts_BT):
            self.rows = len(prompts_BT)
            self.model.set_kv_cache(batch_size=self.rows, device=self.device)
        prompts_BT, found = prompts_BT.to(self.device), []
        place = torch.arange(prompts_BT.shape[1], device=self.device)
        token_B1 = self.model(prompts_BT, place)[:, -1:].argmax(-1)
        found.append(token_B1)
        place = place[-1:] + 1
        for _ in range(new - 1):
            token_B1 = self.called(token_B1, place)[:, -1:].argmax(-1)
            found.append(token_B1)
            place = place + 1
        return torch.cat(found, 1).tolist()
