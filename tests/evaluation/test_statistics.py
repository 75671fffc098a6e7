"""Statistics against numbers worked out by hand, closed forms and EVIDENCE's tables."""

import math

import numpy as np
import pytest

from alignkit.evaluation.statistics import (
    Bootstrap,
    best_of_n_bound,
    bradley_terry_ceiling,
    calibration_error,
    length_only_accuracy,
    preference_accuracy,
    preference_calibration,
    preference_nll,
    standard_error,
    wilson,
)


def test_interval_of_a_mean_is_the_normal_one_on_many_items() -> None:
    values = np.random.default_rng(1).normal(2.0, 3.0, 2000).tolist()
    estimate = Bootstrap(2000).mean(values)
    assert estimate.low is not None and estimate.high is not None
    error = 1.959964 * np.std(values) / math.sqrt(2000)
    assert estimate.value == pytest.approx(np.mean(values))
    assert estimate.low == pytest.approx(estimate.value - error, abs=0.01)
    assert estimate.high == pytest.approx(estimate.value + error, abs=0.01)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    draw = np.random.default_rng(2)
    inside = 0
    for _ in range(300):
        estimate = Bootstrap(200, 0.9).mean(draw.normal(0.0, 1.0, 60).tolist())
        assert estimate.low is not None and estimate.high is not None
        inside += estimate.low <= 0.0 <= estimate.high
    assert 0.84 <= inside / 300 <= 0.95


def test_equal_seeds_give_equal_intervals_and_others_do_not() -> None:
    values = np.random.default_rng(4).normal(size=50).tolist()
    assert Bootstrap(seed=1).mean(values) == Bootstrap(seed=1).mean(values) != Bootstrap(seed=2).mean(values)


def test_win_rate_counts_a_tie_as_half() -> None:
    estimate = Bootstrap(500).win_rate([2.0, 1.0, 0.0, 5.0], [1.0, 1.0, 1.0, 4.0])
    assert estimate.value == (1 + 0.5 + 0 + 1) / 4
    assert Bootstrap().win_rate([1.0, 2.0], [0.0, 0.0]) == Bootstrap().mean([1.0, 1.0])
    with pytest.raises(ValueError, match="2 scores against 1"):
        Bootstrap().win_rate([1.0, 2.0], [1.0])


def test_each_sample_meets_each_of_the_baselines() -> None:
    # Item 1: 3 beats both, 1 ties one and loses to 2: (1 + 1 + .5 + 0)/4. Item 2: all lose.
    assert Bootstrap().win_rate([[3.0, 1.0], [0.0, 0.0]], [[1.0, 2.0], [5.0, 6.0]]).value == (2.5 / 4 + 0) / 2


def test_ratio_weighs_items_by_their_denominators() -> None:
    estimate = Bootstrap(300).ratio([10.0, 2.0], [5.0, 1.0])
    assert (estimate.value, estimate.low, estimate.high) == (2.0, 2.0, 2.0)
    assert Bootstrap().ratio([3.0], [2.0]).low is None
    assert Bootstrap().ratio([6.0, 1.0], [2.0, 2.0]).value == 7 / 4


def test_statistic_of_the_mean_equals_the_mean() -> None:
    values = [1.0, 4.0, 2.0, 8.0]
    boot = Bootstrap(200)
    estimate = boot.statistic(4, lambda items: sum(values[i] for i in items) / len(items))
    assert estimate.value == 3.75
    assert estimate.low == pytest.approx(boot.mean(values).low)
    assert estimate.high == pytest.approx(boot.mean(values).high)


def test_standard_error() -> None:
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(math.sqrt(5 / 3) / 2)
    assert math.isnan(standard_error([1.0]))


def test_calibration_error_by_hand() -> None:
    # Bin [.2, .3): mean p .25, share right .5; bin [.9, 1]: mean p .95, share right 1. ECE = .5·.25 + .5·.05
    assert calibration_error([0.25, 0.25, 0.9, 1.0], [1, 0, 1, 1]) == pytest.approx(0.15)
    assert calibration_error([1.0, 0.0], [1, 0]) == 0.0
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        calibration_error([1.2], [1])


def test_preference_calibration_by_hand() -> None:
    # Three pairs held with confidence 3/4, two of them right: |2/3 - 3/4|
    margin = math.log(3)
    assert preference_calibration([margin, margin, -margin]) == pytest.approx(1 / 12)
    assert preference_calibration([margin, -margin], [3.0, 1.0]) == pytest.approx(0.0)


def test_accuracy_and_nll_of_comparisons_by_hand() -> None:
    assert preference_accuracy([1.0, -1.0, 0.0, 2.0]) == 0.625
    assert preference_accuracy([1.0, -1.0], [3.0, 1.0]) == 0.75
    assert preference_nll([0.0, math.log(3)]) == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    assert preference_nll([-800.0]) == 800.0


def test_length_only_accuracy_by_hand() -> None:
    rules = length_only_accuracy([3, 5, 4, 1], [4, 2, 4, 9])
    assert rules == {"shorter": 0.625, "longer": 0.375, "best": 0.625}


def test_bradley_terry_ceilings_are_the_published_ones() -> None:
    """Accuracy ceiling and NLL floor where the utilities differ by N(0, s²): .6749 and .5994, .7780 and .4620."""
    assert bradley_terry_ceiling(1.0) == pytest.approx((0.6749, 0.5994), abs=6e-5)
    assert bradley_terry_ceiling(2.0) == pytest.approx((0.7780, 0.4620), abs=6e-5)


def test_best_of_n_bound_against_exact_kl() -> None:
    for n, exact in ((2, 0.1931), (4, 0.6363), (8, 1.2044)):
        assert best_of_n_bound(n) == pytest.approx(exact, abs=1.5e-3)
        assert best_of_n_bound(n) >= exact - 5e-5


def test_wilsons_interval_is_where_the_score_test_just_passes() -> None:
    """Its ends p solve |share - p| = z √(p (1 - p)/n), the definition."""
    for successes, count in ((3, 10), (0, 7), (55.5, 100), (40, 40)):
        estimate = wilson(successes, count)
        assert estimate.low is not None and estimate.high is not None
        for end in (estimate.low, estimate.high):
            gap = abs(successes / count - end)
            assert gap == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count), abs=1e-6)
    narrow, wide = wilson(5, 10, 0.8), wilson(5, 10, 0.99)
    assert narrow.low is not None and wide.low is not None and wide.low < narrow.low


def test_the_share_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no items"):
        wilson(0, 0)
