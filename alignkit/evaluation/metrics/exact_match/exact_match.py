"""Share of answers that equal one of their references, up to white space at the ends and case where asked."""

from typing import Any

import datasets
import evaluate


class ExactMatch(evaluate.Metric):
    """exact_match = equal / all, in [0, 1]. `ignore_case` is off unless given."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": datasets.List(text)})
        return evaluate.MetricInfo(description=str(__doc__), citation="", features=features)

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]],
        ignore_case: bool = False,
        per_example: bool = False,
    ) -> dict[str, Any]:
        def plain(text: str) -> str:
            return text.strip().lower() if ignore_case else text.strip()

        pairs = zip(predictions, references, strict=True)
        equal = [float(any(plain(p) == plain(one) for one in accepted)) for p, accepted in pairs]
        return {"exact_match": equal if per_example else sum(equal) / len(equal)}
