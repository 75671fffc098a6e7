"""Balance, places, ties, scores and lengths, counted by hand."""

import pytest
from records import found, pair, ranking, verdict

from alignkit.data.checking.labels import LabelBalance, LengthBias, PairOrder, ranked_pairs


def test_label_balance() -> None:
    even = found(LabelBalance(), *[verdict("q", "a", n < 4) for n in range(8)])["label_balance"]
    assert (even.severity, even.numbers["good"], even.numbers["bad"]) == ("fine", 4, 4)
    rare = found(LabelBalance(), *[verdict("q", "a", n < 1) for n in range(8)])["label_balance"]
    assert (rare.severity, rare.numbers["share"]) == ("warning", 0.125)
    assert found(LabelBalance(), verdict("q", "a", True))["label_balance"].severity == "problem"


def test_where_the_best_stands() -> None:
    always = found(PairOrder(), *[pair("q", "a", "b")] * 50)["position_balance"]
    assert (always.severity, always.numbers["share"]) == ("fine", 1.0)
    nearly = [ranking("q", "ab", (1, 2))] * 299 + [ranking("q", "ab", (2, 1))]
    assert found(PairOrder(), *nearly)["position_balance"].severity == "fine"
    never = [ranking("q", "ab", (2, 1))] * 299 + [ranking("q", "ab", (1, 2))]
    assert found(PairOrder(), *never)["position_balance"].severity == "fine"
    favoured = [ranking("q", "ab", (1, 2))] * 80 + [ranking("q", "ab", (2, 1))] * 20
    told = found(PairOrder(), *favoured)["position_balance"]
    assert (told.severity, told.numbers["share"], told.numbers["expected"]) == ("warning", 0.8, 0.5)
    thirds = [ranking("q", "abc", ranks) for ranks in ((1, 2, 3), (2, 1, 3), (2, 3, 1))] * 5
    told = found(PairOrder(), *thirds)["position_balance"]
    assert told.severity == "fine"
    assert [told.numbers[name] for name in ("share", "expected")] == pytest.approx([1 / 3, 1 / 3])


def test_ties_and_scores() -> None:
    told = found(
        PairOrder(),
        ranking("q", "abc", (1, 1, 2)),  # a tie, and no scores
        ranking("q", "ab", (1, 2), margins=(3.0, 3.0)),  # level
        ranking("q", "ab", (1, 2), margins=(2.0, 3.0)),  # against
        ranking("q", "abc", (3, 1, 2), margins=(1.0, 5.0, 4.0)),  # three pairs as scored
    )
    level = ranking("q", "abc", (1, 2, 3), margins=(1.0, 1.0, 1.0))  # three level pairs, one row to look at
    one = found(PairOrder(), level)["tied_scores"]
    assert (one.numbers["count"], len(one.samples)) == (3, 1)
    assert told["ties"].numbers == {"count": 1, "of": 4}
    assert told["tied_scores"].numbers == {"count": 1, "of": 5}
    assert told["scores_against_ranks"].numbers == {"count": 1, "of": 5}
    assert told["scores_against_ranks"].severity == "problem"  # more than a twentieth


def test_pairs_of_a_ranking_leave_ties_out() -> None:
    assert ranked_pairs(ranking("q", "abc", (2, 1, 2))) == [(1, 0), (1, 2)]


def test_length_bias_counts_a_ranking_once_and_equal_lengths_half() -> None:
    told = found(
        LengthBias(),
        pair("q", "long", "s"),  # 1
        pair("q", "s", "long"),  # 0
        pair("q", "same", "size"),  # 1/2
        ranking("q", ["ccc", "bb", "dddd"], (1, 2, 3)),  # ccc > bb, ccc < dddd, bb < dddd: 1/3
    )["length_bias_characters"]
    assert told.numbers["longer"] == pytest.approx((1 + 0 + 0.5 + 1 / 3) / 4)
    assert told.severity == "fine"


def test_a_clear_bias_is_a_warning_that_names_the_rule() -> None:
    told = found(LengthBias(), *[pair("q", "a", "long")] * 90, *[pair("q", "long", "a")] * 10)
    one = told["length_bias_characters"]
    assert one.severity == "warning"
    assert "Picking the shorter one alone is right in 90.0 %" in one.effect
