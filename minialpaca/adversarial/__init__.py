"""Adversarial training: FGM and its relatives. `attack_on` gives a trainer what a config asks for."""

from torch import nn

from minialpaca.adversarial.attack import FGM, FGSM, PGD, Attack, Clean, FreeLB, Noted, Passes, View, fault_of
from minialpaca.adversarial.matrix import Matrix
from minialpaca.adversarial.vat import VAT
from minialpaca.config import AdversarialConfig

METHODS = {"fgm": FGM, "fgsm": FGSM, "pgd": PGD, "freelb": FreeLB, "vat": VAT}


def attack_on(embedding: nn.Embedding, cfg: AdversarialConfig, tied: bool) -> Attack:
    """tied: whether the embedding's matrix is the output head, too."""
    if cfg.method == "none":
        return Clean()
    if cfg.method == "matrix":
        return Matrix(embedding, cfg, tied)
    return METHODS[cfg.method](embedding, cfg)


__all__ = ["METHODS", "Attack", "Clean", "Matrix", "Noted", "Passes", "View", "attack_on", "fault_of"]
