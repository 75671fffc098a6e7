"""Corpus chrF of texts against references, as sacrebleu computes it. It knows neither models nor tasks."""

from itertools import zip_longest

import datasets
import evaluate
from sacrebleu.metrics import CHRF

_CITATION = "Popovic 2015, chrF: character n-gram F-score for automatic MT evaluation"


class Chrf(evaluate.Metric):
    """chrf (chrF2: characters up to 6-grams, beta 2) of the whole corpus, in [0, 100]."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": datasets.List(text)})
        return evaluate.MetricInfo(description=str(__doc__), citation=_CITATION, features=features)

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        streams = [list(stream) for stream in zip_longest(*references)]
        return {"chrf": CHRF().corpus_score(predictions, streams).score}
