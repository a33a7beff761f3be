"""Marks of a classifier, from truths (N, C): text n is in class c, text n was said to be in class c.

Of a single-label group each row has one truth, of a multi-label group any number; the definitions are the same.
N texts, C classes; the classes are the training set's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def accuracy(right_NC: Tensor, said_NC: Tensor) -> float:
    """A = 1/N Σ_n 1[right_n = said_n]   [accuracy.1]

    The whole row: with several labels the whole set has to be right.
    """
    return float((right_NC == said_NC).all(-1).double().mean())


def confusion(right_NC: Tensor, said_NC: Tensor) -> Tensor:
    """M_cd = Σ_n right_nc said_nd: texts of class c that were said to be of class d   [confusion.1]

    Of a single-label group it is the confusion matrix, right classes downwards.
    """
    return right_NC.long().mT @ said_NC.long()


def one_against_rest(right_NC: Tensor, said_NC: Tensor) -> Tensor:
    """M_cab = Σ_n 1[right_nc = a] 1[said_nc = b],  a and b: in the class, not in it   [confusion.2]

    (C, 2, 2): of a multi-label group, whose classes do not exclude each other, each has a confusion matrix of its own.
    """
    right_N2C, said_N2C = torch.stack((right_NC, ~right_NC), 1).long(), torch.stack((said_NC, ~said_NC), 1).long()
    return torch.einsum("nac,nbc->cab", right_N2C, said_N2C)


@dataclass(frozen=True)
class ClassMarks:
    """Of each class (C,): precision, recall, F1, and how many texts are right to be in it."""

    precision_C: Tensor
    recall_C: Tensor
    f1_C: Tensor
    support_C: Tensor


def class_marks(right_NC: Tensor, said_NC: Tensor) -> ClassMarks:
    """P_c = TP_c / (TP_c + FP_c)      R_c = TP_c / (TP_c + FN_c)      F1_c = 2 P_c R_c / (P_c + R_c)   [f1.1]

    TP_c = Σ_n right_nc said_nc, TP_c + FP_c = Σ_n said_nc, TP_c + FN_c = Σ_n right_nc; 0/0 is 0.
    F1 is computed as 2 TP_c / (2 TP_c + FP_c + FN_c), the same number without P and R. van Rijsbergen 1979, ch. 7.
    """
    hits_C = (right_NC & said_NC).sum(0).double()
    said_C, support_C = said_NC.sum(0).double(), right_NC.sum(0).double()
    return ClassMarks(_ratio(hits_C, said_C), _ratio(hits_C, support_C), _ratio(2 * hits_C, said_C + support_C),
                      support_C.long())


def macro_f1(f1_C: Tensor) -> float:
    """F = 1/C Σ_c F1_c, over all classes of the training set   [f1.2]

    A class that no measured text has, and that is never said, counts 0, as in scikit-learn with `labels` all classes
    and `zero_division` 0: so scores of two splits are means over the same classes. The mean of F1s, not F1 of means.
    """
    return float(f1_C.mean())


def _ratio(above_C: Tensor, below_C: Tensor) -> Tensor:
    return torch.where(below_C > 0, above_C / below_C.clamp(min=1), 0.0)
