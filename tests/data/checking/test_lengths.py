"""Lengths against numpy and by hand."""

import numpy as np
import pytest
from records import demonstration, document, items

from alignkit.data.checking.lengths import Lengths, distribution


def test_a_distribution_counts_every_length_once() -> None:
    values = [0, 1, 1, 5, 80, 81, 1000]
    one = distribution("answer", "characters", values)
    assert one is not None
    assert (one.count, one.total, one.min, one.median, one.max) == (7, 1168, 0, 5, 1000)
    assert one.p95 == pytest.approx(np.percentile(values, 95))
    assert sum(one.counts) == 7
    assert (one.edges[0], len(one.edges)) == (0, len(one.counts) + 1)
    assert one.edges[-1] >= 1000


@pytest.mark.parametrize("values", [[0], [1], [7, 7], [0, 0, 1]])
def test_narrow_distributions_have_bins_too(values: list[int]) -> None:
    one = distribution("whole", "tokens", values)
    assert one is not None
    assert sum(one.counts) == len(values)


def test_parts_of_records() -> None:
    lengths = Lengths()
    for item in items(demonstration("why", "so"), document("text")):
        lengths.add(item)
    found = {one.part: (one.count, one.total) for one in lengths.distributions()}
    assert found == {"prompt": (1, 3), "answer": (1, 2), "whole": (2, 3 + 2 + 4)}
