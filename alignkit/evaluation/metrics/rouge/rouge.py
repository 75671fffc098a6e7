"""ROUGE-1, -2 and -L of texts against references. It knows neither models nor tasks; needs rouge-score."""

from typing import Any

import datasets
import evaluate
from rouge_score import rouge_scorer

_CITATION = "Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries"
_TYPES = ("rouge1", "rouge2", "rougeL")


class Rouge(evaluate.Metric):
    """F-measures rouge1, rouge2 and rougeL, in [0, 1], the best of an example's references, averaged over examples."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": datasets.List(text)})
        return evaluate.MetricInfo(description=str(__doc__), citation=_CITATION, features=features)

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]],
        use_stemmer: bool = True,
        per_example: bool = False,
    ) -> dict[str, Any]:
        scorer = rouge_scorer.RougeScorer(list(_TYPES), use_stemmer=use_stemmer)
        scores = [scorer.score_multi(r, p) for p, r in zip(predictions, references, strict=True)]
        values = {name: [score[name].fmeasure for score in scores] for name in _TYPES}
        return values if per_example else {name: sum(v) / len(v) for name, v in values.items()}
