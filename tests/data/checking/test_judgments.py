"""Contradictions by hand, agreement against NLTK's and against Krippendorff's own example."""

from collections import Counter
from random import Random

import numpy as np
import pytest
from records import found, items, pair, ranking, verdict

from alignkit.data.checking.judgments import Judgments, alpha, cohens_kappa, flips, judged, pairwise_agreement


def test_the_same_pair_both_ways() -> None:
    one = found(
        Judgments("comparisons"),
        pair("q", "a", "b"),
        ranking("q", ["b", "a"], [2, 1]),  # the same judgment, written the other way round
        pair("q", "b", "a"),  # its opposite
        pair("p", "b", "a"),  # another prompt
        pair("q", "c", "c"),  # no judgment
        pair("r", "x", "y"),
        pair("r", "x", "y", round=2),
    )["contradictions"]
    assert (one.numbers["units"], one.numbers["contradictory"], one.records) == (2, 1, (0, 2))
    assert one.numbers["agreement"] == (1 + 0 + 0 + 1) / 4  # three pairs of judgments of the one, one of the other
    assert one.severity == "problem"


def test_copies_of_a_row_are_no_agreement() -> None:
    copied = [pair(str(n % 45), "a", "b").model_copy(update={"id": str(n)}) for n in range(90)]
    both = [one for n in range(10) for one in (pair(f"both {n}", "a", "b"), pair(f"both {n}", "b", "a"))]
    one = found(Judgments("comparisons"), *copied, *both)["contradictions"]
    assert [one.numbers[name] for name in ("units", "contradictory", "agreement", "copies")] == [10, 10, 0.0, 45]
    assert "label_smoothing" not in one.mend
    alone = found(Judgments("comparisons"), *copied)["contradictions"]
    assert (alone.severity, alone.measured) == ("fine", "none of 45 pairs is judged more than once, 45 copies aside")


def test_an_annotator_says_a_thing_once_and_two_say_it_twice() -> None:
    ann, bob = (verdict("q", "a", True, annotator=name) for name in ("ann", "bob"))
    again = verdict("q", "a", True, annotator="ann", page=2)
    assert found(Judgments("feedback"), ann, again)["contradictions"].numbers == {"copies": 1}
    told = found(Judgments("feedback"), ann, again, bob)["contradictions"].numbers
    assert (told["units"], told["agreement"], told["copies"]) == (1, 1.0, 1)


def test_a_response_called_good_and_bad() -> None:
    one = found(Judgments("feedback"), verdict("q", "a", True), verdict("q", "a", False), verdict("q", "b", True))
    assert (one["contradictions"].numbers["contradictory"], one["contradictions"].records) == (1, (0, 1))
    assert "majority" in one["contradictions"].mend


def test_nothing_judged_twice() -> None:
    assert (
        found(Judgments("comparisons"), pair("q", "a", "b"), pair("p", "b", "a"))["contradictions"].severity == "fine"
    )


def test_a_ranking_judges_all_its_pairs() -> None:
    [item] = items(ranking("q", "abcd", (1, 2, 2, 3)))
    assert len({unit for unit, _ in judged(item)}) == 5


def test_kappa_of_two_named_annotators() -> None:
    """Cohen's, by hand: 20 things, both good 8, both bad 6, only the first 4, only the second 2."""
    said = [(True, True)] * 8 + [(False, False)] * 6 + [(True, False)] * 4 + [(False, True)] * 2
    records = [
        verdict("q", str(n), label, annotator=name)
        for n, both in enumerate(said)
        for name, label in zip(("ann", "bob"), both, strict=True)
    ]
    one = found(Judgments("feedback"), *records)["contradictions"]
    assert one.numbers["kappa"] == pytest.approx((14 / 20 - (12 * 10 + 8 * 10) / 400) / (1 - 200 / 400))
    assert one.numbers["agreement"] == 14 / 20
    assert "Cohen's kappa 0.40" in one.measured


def test_alpha_of_krippendorffs_own_example() -> None:
    """Nominal data of two observers, "Computing Krippendorff's Alpha-Reliability" (2011), B: 0.692."""
    meg = ["a", "a", "b", "b", "d", "c", "c", "c", "e", "d", "d", "a"]
    owen = ["b", "a", "b", "b", "b", "c", "c", "c", "e", "d", "d", "d"]
    counts = np.array([[(one, other).count(name) for name in "abcde"] for one, other in zip(meg, owen, strict=True)])
    assert alpha(counts) == pytest.approx(0.692, abs=5e-4)


def test_alpha_and_kappa_against_nltk() -> None:
    agreement = pytest.importorskip("nltk.metrics.agreement")
    rng = Random(0)
    triples = [
        (rater, thing, int(rng.random() < 0.3 + 0.4 * (thing % 2))) for thing in range(60) for rater in range(2)
    ]
    oracle = agreement.AnnotationTask([(str(r), str(t), v) for r, t, v in triples])
    votes = np.zeros((60, 2), dtype=np.int64)
    for _, thing, value in triples:
        votes[thing, value] += 1
    assert alpha(votes) == pytest.approx(oracle.alpha(), abs=1e-12)
    both = Counter(zip((v for r, _, v in triples if r == 0), (v for r, _, v in triples if r == 1), strict=True))
    assert cohens_kappa(both) == pytest.approx(oracle.kappa(), abs=1e-12)
    assert pairwise_agreement(votes) == pytest.approx(oracle.avg_Ao(), abs=1e-12)


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.4])
def test_the_rate_of_flips_inverts_their_agreement(rate: float) -> None:
    assert flips(rate**2 + (1 - rate) ** 2) == pytest.approx(rate)


def test_the_rate_stays_usable() -> None:
    assert (flips(1.0), flips(0.1)) == (0.01, 0.45)
