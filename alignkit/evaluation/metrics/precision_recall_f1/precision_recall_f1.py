"""Precision, recall and F1 of labels, of one label or averaged over all. It knows neither models nor tasks."""

import datasets
import evaluate


class PrecisionRecallF1(evaluate.Metric):
    """precision = right/predicted, recall = right/present, f1 = 2·p·r/(p + r), each 0 where its divisor is 0.

    Of `positive_label`, or the plain (macro) mean over every label among the references; in [0, 1]. A prediction that
    is no such label counts against recall alone.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description=str(__doc__), citation="", features=features)

    def _compute(
        self, predictions: list[str], references: list[str], positive_label: str | None = None
    ) -> dict[str, float]:
        predicted, present = [_label(text) for text in predictions], [_label(text) for text in references]
        labels = sorted(set(present)) if positive_label is None else [_label(positive_label)]
        scores = [_scores(label, predicted, present) for label in labels]
        names = ("precision", "recall", "f1")
        return {name: sum(values) / len(labels) for name, values in zip(names, zip(*scores, strict=True), strict=True)}


def _scores(label: str, predicted: list[str], present: list[str]) -> tuple[float, float, float]:
    right = sum(p == r == label for p, r in zip(predicted, present, strict=True))
    p, r = predicted.count(label), present.count(label)
    return right / p if p else 0.0, right / r if r else 0.0, 2 * right / (p + r) if p + r else 0.0


def _label(text: str) -> str:
    return " ".join(text.lower().split())
