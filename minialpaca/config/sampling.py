"""How the next token is chosen."""

import math
from dataclasses import dataclass

from minialpaca.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults are greedy decoding."""

    temperature: float = 0.0
    """T in softmax(z / T); 0 takes the likeliest token."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest likeliest tokens that hold probability p together; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least min_p times as likely as the likeliest; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens less likely that occurred before, in the answer or anywhere in the prompt; 1 does nothing."""
    seed: int = 0
    """Fixes the draws."""

    def __post_init__(self):
        for name, holds, rule in (
            ("temperature", 0 <= self.temperature < math.inf, "must be finite and not negative"),
            ("top_k", self.top_k >= 0, "must not be negative"),
            ("top_p", 0 <= self.top_p <= 1, "must lie in 0 … 1"),
            ("min_p", 0 <= self.min_p <= 1, "must lie in 0 … 1"),
            ("repetition_penalty", 1e-3 <= self.repetition_penalty <= 1e3, "must lie in 0.001 … 1000"),
            ("seed", 0 <= self.seed < 2**63, "must lie in 0 … 2⁶³ − 1"),
        ):
            if not holds:
                raise UserError(f"{name} = {getattr(self, name)}: {rule}")
