"""transformers' Llama, and peft's LoRA on it."""

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.contestants import Shape
from benchmarks.contestants.foreign import Foreign, halves
from benchmarks.contestants.ours import ATTENTION, weights


def translated(shape: Shape, device: str) -> LlamaForCausalLM:
    ours = weights(shape, device)
    cfg = LlamaConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.d_model, num_hidden_layers=shape.n_layers, num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_heads, intermediate_size=shape.d_ff, max_position_embeddings=shape.context,
        rms_norm_eps=ours.cfg.norm_eps, rope_theta=ours.cfg.rope_theta, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=None, pad_token_id=3)
    with torch.device(device):
        theirs = LlamaForCausalLM(cfg).to(ours.embed.weight.dtype)
    names = {"embed": "model.embed_tokens", "final_norm": "model.norm", "lm_head": "lm_head"}
    parts = {"attn": "self_attn", "attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    found = {}
    for name, weight in ours.state_dict().items():
        first, *rest = name.removesuffix(".weight").split(".")
        if first == "layers":
            number, part, *inner = rest
            name = ".".join(["model.layers", number, parts.get(part, part), *inner, "weight"])
            weight = halves(weight, shape.n_heads) if inner and inner[0] in ("q_proj", "k_proj") else weight
        else:
            name = f"{names[first]}.weight"
        found[name] = weight
    theirs.load_state_dict(found)
    return theirs


class Llama(Foreign):
    def __init__(self, shape: Shape, options: set[str], device: str):
        model = translated(shape, device)
        if "lora" in options:
            from peft import LoraConfig, get_peft_model
            model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=list(ATTENTION), task_type="CAUSAL_LM"))
        self.prepare(model, options, device)

    def logits(self, inputs_BT: Tensor) -> Tensor:
        return self.called(input_ids=inputs_BT, use_cache=False).logits

    @torch.no_grad()
    def answer(self, prompts_BT: Tensor, new: int) -> list[list[int]]:
        self.model.eval()
        if "bf16" in self.options:
            self.model.bfloat16()
        prompts_BT = prompts_BT.to(self.device)
        how = {"cache_implementation": "static"} if "compile" in self.options else {}
        said = self.model.generate(prompts_BT, attention_mask=torch.ones_like(prompts_BT), do_sample=False, max_new_tokens=new,
                                   min_new_tokens=new, **how)
        return said[:, prompts_BT.shape[1]:].tolist()
