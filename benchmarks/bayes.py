"""What a classifier has to beat: the majority class, and naive Bayes over words (Chinese: characters) and their pairs.

    log P(c | x) = log n_c/n + Σ_w n_w(x) log (n_cw + a) / (n_c· + a V) + const

n_cw counts feature w in the training texts of class c, V features in all. The validation split chooses a and whether
pairs count. McCallum & Nigam 1998, equations 5 and 6 (a = 1 there).
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

WORDS = re.compile(r"[^\W\u4e00-\u9fff]+|[\u4e00-\u9fff]")
CHOICES = [(order, a) for order in (1, 2) for a in (0.03, 0.1, 0.3, 1.0)]


def features(text: str, order: int) -> Counter:
    words = WORDS.findall(text.lower())
    return Counter(words + ([f"{a} {b}" for a, b in zip(words, words[1:])] if order == 2 else []))


class NaiveBayes:
    def __init__(self, texts: Sequence[str], labels: Sequence[str], order: int, a: float):
        self.classes, self.order = sorted(set(labels)), order
        counted = [features(text, order) for text in texts]
        self.column = {w: i for i, w in enumerate(sorted(set().union(*counted)))}
        count_CW = np.full((len(self.classes), len(self.column)), a)
        for label, found in zip(labels, counted):
            row = count_CW[self.classes.index(label)]
            for w, n in found.items():
                row[self.column[w]] += n
        self.log_likelihood_CW = np.log(count_CW / count_CW.sum(1, keepdims=True))
        self.log_prior_C = np.log([labels.count(c) / len(labels) for c in self.classes])

    def __call__(self, text: str) -> str:
        score_C = self.log_prior_C.copy()
        for w, n in features(text, self.order).items():
            if w in self.column:
                score_C += n * self.log_likelihood_CW[:, self.column[w]]
        return self.classes[score_C.argmax()]


def f1s(right: Sequence[str], said: Sequence[str], classes: Sequence[str]) -> float:
    """Macro-F1 over the training set's classes, in per cent."""
    hits, rights, saids = Counter(r for r, s in zip(right, said) if r == s), Counter(right), Counter(said)
    return 100 * float(np.mean([2 * hits[c] / max(1, rights[c] + saids[c]) for c in classes]))


def baselines(train: tuple[list[str], list[str]], val: tuple[list[str], list[str]],
              test: tuple[list[str], list[str]]) -> dict[str, float]:
    """Macro-F1 on the test split, each split being (texts, labels)."""
    majority = Counter(train[1]).most_common(1)[0][0]
    classes = sorted(set(train[1]))
    models = [NaiveBayes(*train, order, a) for order, a in CHOICES]
    best = max(models, key=lambda m: f1s(val[1], [m(t) for t in val[0]], classes))
    return {"majority": f1s(test[1], [majority] * len(test[1]), classes),
            "naive Bayes": f1s(test[1], [best(t) for t in test[0]], classes)}
