"""Corpus BLEU of texts against references, as sacrebleu computes it. It knows neither models nor tasks."""

from itertools import zip_longest

import datasets
import evaluate
from sacrebleu.metrics import BLEU

_CITATION = "Papineni et al. 2002, BLEU; Post 2018, A Call for Clarity in Reporting BLEU Scores"


class Bleu(evaluate.Metric):
    """bleu of the whole corpus, in [0, 100], sacrebleu's default tokenizer (13a) and smoothing (exp)."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": datasets.List(text)})
        return evaluate.MetricInfo(description=str(__doc__), citation=_CITATION, features=features)

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        streams = [list(stream) for stream in zip_longest(*references)]
        return {"bleu": BLEU().corpus_score(predictions, streams).score}
