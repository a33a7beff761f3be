"""What adapters are tested on: the tiny decoder with a bias on every Linear, and settings whose numbers all differ."""

import tiny
import torch
from torch import nn

from minialpaca.config import AdapterConfig
from minialpaca.model import Transformer
from minialpaca.peft import Adapter

# α ≠ r, and only q and o are square: a scale, a slice or a transposition that is wrong shows.
CONFIGS = {
    "freeze": AdapterConfig("freeze", layers="-1:", also=("norm",)),
    "bitfit": AdapterConfig("bitfit", also=("bias",)),
    "lora": AdapterConfig("lora", targets=("q_proj", "v_proj", "down_proj", "lm_head"), rank=3, alpha=7.0),
    "rslora": AdapterConfig("lora", targets=("k_proj", "o_proj"), rank=3, alpha=7.0, rank_stabilised=True, layers="1:"),
    "lora_and_whole": AdapterConfig("lora", targets=("q_proj", "v_proj"), rank=3, alpha=7.0, also=("embedding", "head", "norm")),
    "dora": AdapterConfig("dora", targets=("q_proj", "up_proj"), rank=3, alpha=7.0),
    "houlsby": AdapterConfig("houlsby", bottleneck=5),
    "pfeiffer": AdapterConfig("houlsby", bottleneck=5, placement="mlp"),
    "adalora": AdapterConfig("adalora", targets=("q_proj", "k_proj", "gate_proj"), rank=4, target_rank=2, alpha=7.0, interval=2),
    "ia3": AdapterConfig("ia3"),
    "prefix": AdapterConfig("prefix", length=5),
    "prompt": AdapterConfig("prompt", length=5),
}
STARTS_ELSEWHERE = ("prefix", "prompt")  # virtual tokens are seen from the first
NOT_LINEAR = ("houlsby", "pfeiffer", "prefix", "prompt")


def model(seed: int = 0) -> Transformer:
    made = tiny.model(seed=seed)
    generator = torch.Generator().manual_seed(seed + 5)
    for module in made.modules():
        if isinstance(module, nn.Linear):
            module.bias = nn.Parameter(0.1 * torch.randn(module.out_features, generator=generator))
    return made


def stir(adapter: Adapter, seed: int = 9, size: float = 0.1) -> None:
    """As if it had been trained: nothing that is 0 or 1 at first stays so."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.trained().values():
            parameter += size * torch.randn(parameter.shape, generator=generator)
