"""Task metrics of answers against references, with intervals. It loads them by local path and knows no model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evaluate
import numpy as np

from alignkit.config import InputError
from alignkit.evaluation.statistics import Bootstrap, Estimate

FOLDER = Path(__file__).parent / "metrics"
LABELS = ("accuracy", "precision_recall_f1")
"""Metrics that take one reference for each answer; all others take a list of acceptable ones."""
MEANS = ("accuracy", "exact_match", "squad", "rouge")
"""Metrics that are means over examples; all others are of the corpus and computed anew on each resample."""


def load_metric(name: str) -> evaluate.Metric:
    """One of alignkit's metric modules. Raises InputError where its package or a writable HF_HOME is missing."""
    try:
        return evaluate.load(str(FOLDER / name), keep_in_memory=True)
    except ImportError as error:
        raise InputError(f'metrics: {name}: {error}; run pip install "alignkit[eval]"') from error
    except PermissionError as error:
        raise InputError(f"metrics: {name}: {error}; set HF_HOME to a folder that can be written") from error


def task_metric(
    name: str,
    predictions: Sequence[str],
    references: Sequence[Any],
    bootstrap: Bootstrap,
    positive_label: str | None = None,
) -> dict[str, Estimate]:
    """Each number of a metric over the answers to N references, as many to each, side by side; what is drawn anew for
    an interval is a reference with all of its answers. A reference is a text or a list of acceptable ones."""
    samples = len(predictions) // len(references)
    several = [one for one in accepted(name, references) for _ in range(samples)]
    given: list[Any] = [one[0] for one in several] if name in LABELS else several
    metric = load_metric(name)
    if name in MEANS:
        values = metric.compute(predictions=list(predictions), references=given, per_example=True)
        means = {key: np.reshape(per_example, (-1, samples)).mean(1).tolist() for key, per_example in values.items()}
        return {key: bootstrap.mean(each) for key, each in means.items()}
    options = {"positive_label": positive_label} if name == "precision_recall_f1" else {}
    results: dict[tuple[int, ...], dict[str, float]] = {}

    def compute(items: Sequence[int]) -> dict[str, float]:
        """Several numbers come out of one computation: each resample is computed once."""
        key = tuple(items)
        if key not in results:
            # Not `compute`: it would write every resample to an Arrow table first.
            places = [item * samples + n for item in items for n in range(samples)]
            chosen = {"predictions": [predictions[i] for i in places], "references": [given[i] for i in places]}
            results[key] = metric._compute(**chosen, **options)
        return results[key]

    fewer = Bootstrap(min(bootstrap.resamples, 200), bootstrap.confidence, bootstrap.seed)
    keys = metric.compute(predictions=list(predictions), references=given, **options)
    return {key: fewer.statistic(len(references), lambda items, key=key: compute(items)[key]) for key in keys}


def accepted(name: str, references: Sequence[Any]) -> list[list[str]]:
    """The acceptable answers in each reference. Raises InputError for none, or for more than the metric takes."""
    several = [[str(one) for one in (it if isinstance(it, list | tuple) else [it])] for it in references]
    for texts in several:
        if not texts or (name in LABELS and len(texts) > 1):
            wanted = "one reference answer" if name in LABELS else "a reference answer, or a list of them"
            raise InputError(f"metrics: {name} needs {wanted}, and a prompt has {len(texts)}")
    return several
