"""Agreement of new labels with old ranks, against counts and intervals made by hand."""

from typing import Any

import pytest

from alignkit.relabelling import agreement


def row(ranks: list[int] | None, scores: list[float | None], texts: str = "abcdefgh") -> dict[str, Any]:
    said = [{"response": [{"role": "assistant", "content": text}]} for text in texts[: len(scores)]]
    return {"answers": said, "ranks": ranks, "scores": {n: s for n, s in enumerate(scores) if s is not None}}


def agreed(*rows: dict[str, Any]) -> dict[str, float]:
    return agreement(rows, lambda one: one["scores"])


def test_one_pair_a_prompt_has_wilsons_interval() -> None:
    """3 of 4: (0.75 + z²/8 ± z √(0.75·0.25/4 + z²/64)) / (1 + z²/4) with z = 1.959964."""
    alike = [row([1, 2], [2.0, 1.0]), row([2, 1], [0.0, 3.0]), row([1, 2], [5.0, 4.5])]
    found = agreed(*alike, row([1, 2], [-1.0, 0.0]), row(None, [1.0, 2.0]))
    assert found["agreement"] == 0.75 and found["agreement/pairs"] == 4 and found["agreement/undecided"] == 0
    assert (found["agreement/low"], found["agreement/high"]) == pytest.approx((0.300642, 0.954413), abs=1e-5)


def test_pairs_of_one_prompt_are_resampled_together() -> None:
    """Two rankings, one wholly alike (3 pairs), one wholly against (3 pairs): a quarter of the resamples each are
    0 and 1, so that the interval is all there is, where six independent pairs would have 0.19 to 0.81."""
    found = agreed(row([1, 2, 3], [9.0, 5.0, 1.0]), row([1, 2, 3], [1.0, 5.0, 9.0]))
    assert found == {"agreement": 0.5, "agreement/low": 0, "agreement/high": 1} | {
        "agreement/pairs": 6,
        "agreement/undecided": 0,
    }
    alone = agreed(row([1, 2, 3], [9.0, 1.0, 5.0]))
    assert alone == {"agreement": 2 / 3, "agreement/pairs": 3, "agreement/undecided": 0}


def test_what_one_side_does_not_order_is_no_pair() -> None:
    """a-c tie by the ranks, b-c by the scores, d has no score; the second e is the first: left is a-b, against."""
    found = agreed(row([1, 2, 1, 3, 4, 5], [1.0, 2.0, 2.0, None, 0.5, 7.0], "abcdee"), row([1, 1], [1.0, 2.0]))
    # a-b against; b-c tied; a, b, c over e alike; four pairs with d undecided
    assert (found["agreement"], found["agreement/pairs"], found["agreement/undecided"]) == (3 / 4, 4, 1 + 4)
    assert agreed(row([1, 2], [1.0, 1.0])) == {"agreement/pairs": 0, "agreement/undecided": 1}


def test_nothing_is_said_without_ranks() -> None:
    assert agreed(row(None, [1.0, 2.0]), row([1, 1], [1.0, 2.0])) == {}
