"""How long prompts, answers and whole records are. Does not know what counts as too long."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignkit.data.checking.items import Item, parts_of, said

BINS = 40
"""Of a histogram; their edges grow by a constant factor."""


@dataclass(frozen=True)
class Distribution:
    """Lengths of one part of the records."""

    part: str
    unit: str
    count: int
    total: int
    min: int
    median: float
    p95: float
    max: int
    edges: list[float]
    """[B+1] of the histogram's bins, the last one closed."""
    counts: list[int]
    """[B]"""


def distribution(part: str, unit: str, lengths: Sequence[int]) -> Distribution | None:
    """Of the lengths of a part; none where there are none."""
    values = np.asarray(lengths, dtype=np.int64)
    if not len(values):
        return None
    low, high = max(1, int(values.min())), max(2, int(values.max()))
    edges = np.unique(np.rint(np.geomspace(low, high + 1, BINS + 1)))
    edges[0] = min(edges[0], values.min())
    counts, _ = np.histogram(values, edges)
    median, p95 = np.quantile(values, (0.5, 0.95))
    extremes = int(values.min()), float(median), float(p95), int(values.max())
    return Distribution(part, unit, len(values), int(values.sum()), *extremes, edges.tolist(), counts.tolist())


class Lengths:
    """Characters of every record: 4 bytes each for prompt, whole and every answer."""

    def __init__(self) -> None:
        self._parts = {part: array("I") for part in ("prompt", "answer", "whole")}

    def add(self, item: Item) -> None:
        asked = len(said(parts_of(item.record)[0], roles=False))
        if item.prompt:
            self._parts["prompt"].append(asked)
            self._parts["answer"].extend(map(len, item.answers))
        self._parts["whole"].append(asked + sum(map(len, item.answers)))

    def distributions(self) -> list[Distribution]:
        """Of the parts that there are."""
        found = (distribution(part, "characters", lengths) for part, lengths in self._parts.items())
        return [one for one in found if one is not None]
