"""Share of labels that are right, up to case and white space. It knows neither models nor tasks."""

from typing import Any

import datasets
import evaluate


class Accuracy(evaluate.Metric):
    """accuracy = right / all, in [0, 1]."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description=str(__doc__), citation="", features=features)

    def _compute(self, predictions: list[str], references: list[str], per_example: bool = False) -> dict[str, Any]:
        right = [float(_label(p) == _label(r)) for p, r in zip(predictions, references, strict=True)]
        return {"accuracy": right if per_example else sum(right) / len(right)}


def _label(text: str) -> str:
    return " ".join(text.lower().split())
