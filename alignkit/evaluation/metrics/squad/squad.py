"""Exact match and token F1 of answers to questions, as SQuAD 1.1 defines them. It knows neither models nor tasks."""

import re
import string
from collections import Counter
from typing import Any

import datasets
import evaluate

_CITATION = "Rajpurkar et al. 2016, SQuAD: 100,000+ Questions for Machine Comprehension of Text, section 6.1"


class Squad(evaluate.Metric):
    """squad_exact_match and squad_f1, in [0, 1], best of the references; case, punctuation, articles ignored."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": datasets.List(text)})
        return evaluate.MetricInfo(description=str(__doc__), citation=_CITATION, features=features)

    def _compute(
        self, predictions: list[str], references: list[list[str]], per_example: bool = False
    ) -> dict[str, Any]:
        pairs = [(_words(p), [_words(one) for one in r]) for p, r in zip(predictions, references, strict=True)]
        values = {
            "squad_exact_match": [float(any(p == one for one in accepted)) for p, accepted in pairs],
            "squad_f1": [max((_f1(p, one) for one in accepted), default=0.0) for p, accepted in pairs],
        }
        return values if per_example else {name: sum(v) / len(v) for name, v in values.items()}


def _words(text: str) -> list[str]:
    kept = "".join(char for char in text.lower() if char not in string.punctuation)
    return re.sub(r"\b(?:a|an|the)\b", " ", kept).split()


def _f1(predicted: list[str], reference: list[str]) -> float:
    if not predicted or not reference:
        return float(predicted == reference)
    common = (Counter(predicted) & Counter(reference)).total()
    return 2 * common / (len(predicted) + len(reference))
