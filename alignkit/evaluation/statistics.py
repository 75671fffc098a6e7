"""Estimates with bootstrap intervals, win rates, calibration. Knows numbers only: no model, no text, no file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and the interval it is known to; both ends are None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How intervals are made: percentiles over resamples of the items (Efron 1979), drawn from `seed`."""

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def draws(self, count: int) -> NDArray[np.int64]:
        """[resamples, count] item numbers; equal for equal counts, so that models are resampled alike."""
        return np.random.default_rng((self.seed, count)).integers(0, count, (self.resamples, count))

    def interval(self, statistics: ArrayLike) -> tuple[float, float]:
        """The two percentiles that leave (1 - confidence)/2 of the resampled statistics on each side."""
        tail = (1.0 - self.confidence) / 2
        low, high = np.quantile(np.asarray(statistics, dtype=np.float64), (tail, 1.0 - tail))
        return float(low), float(high)

    def ratio(self, above: Sequence[float], below: Sequence[float]) -> Estimate:
        """Σ above / Σ below over items, such as nats over tokens. Raises ValueError where there is nothing below."""
        a, b = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
        if len(a) != len(b) or b.sum() <= 0:
            raise ValueError(f"a ratio needs {len(a)} denominators of positive sum, got {len(b)} of sum {b.sum():g}")
        value = float(a.sum() / b.sum())
        if len(a) == 1:
            return Estimate(value)
        tops, bottoms = np.empty(self.resamples), np.empty(self.resamples)
        for n, draw in enumerate(self.draws(len(a))):
            tops[n], bottoms[n] = a[draw].sum(), b[draw].sum()
        return Estimate(value, *self.interval(tops[bottoms > 0] / bottoms[bottoms > 0]))

    def mean(self, values: Sequence[float]) -> Estimate:
        """The mean over items. Raises ValueError where there is none."""
        if not len(values):
            raise ValueError("the mean of no items")
        return self.ratio(values, [1.0] * len(values))

    def statistic(self, count: int, statistic: Callable[[Sequence[int]], float]) -> Estimate:
        """Any statistic of item numbers, computed anew on each resample: for corpus metrics such as F1 or BLEU."""
        value = float(statistic(range(count)))
        if count == 1:
            return Estimate(value)
        return Estimate(value, *self.interval([statistic(draw.tolist()) for draw in self.draws(count)]))

    def win_rate(self, scores: ArrayLike, baseline: ArrayLike) -> Estimate:
        """Share of items on which the score is above the baseline's; a tie counts one half.

        Both are [N], or [N, S] for S samples of each item: then each sample meets each of the baseline's.
        """
        a, b = np.asarray(scores, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
        if len(a) != len(b):
            raise ValueError(f"{len(a)} scores against {len(b)} of the baseline")
        a, b = a.reshape(len(a), -1, 1), b.reshape(len(b), 1, -1)
        return self.mean(((np.sign(a - b) + 1.0) / 2).mean((1, 2)).tolist())


def standard_error(values: Sequence[float]) -> float:
    """Of the mean: sample deviation/√n. Of one item it is unknown: nan."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def calibration_error(probabilities: Sequence[float], outcomes: Sequence[float], bins: int = 10) -> float:
    """Expected calibration error: Σ over equal bins of [0, 1] of share · |mean outcome - mean probability|
    (Naeini et al. 2015; Guo et al. 2017, Eq. 3). 0 is perfect."""
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    if len(p) != len(y) or not len(p) or p.min() < 0 or p.max() > 1:
        raise ValueError("calibration needs one outcome for each probability, and probabilities in [0, 1]")
    place = np.minimum((p * bins).astype(np.int64), bins - 1)
    return float(np.abs(np.bincount(place, weights=y - p, minlength=bins)).sum() / len(p))


def preference_calibration(margins: Sequence[float], weights: Sequence[float] | None = None, bins: int = 10) -> float:
    """Calibration error of sigmoid(|margin|), the confidence that the response with the higher score is the better.

    `margins` [P] are score(better) - score(worse); `weights` [P] weigh the pairs, 1 each where left out.
    """
    m = np.asarray(margins, dtype=np.float64)
    w = np.ones_like(m) if weights is None else np.asarray(weights, dtype=np.float64)
    confidence = 1.0 / (1.0 + np.exp(-np.abs(m)))
    right = (np.sign(m) + 1.0) / 2
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(np.int64), bins - 1)
    return float(np.abs(np.bincount(place, weights=w * (right - confidence), minlength=bins)).sum() / w.sum())


def preference_accuracy(margins: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Share of pairs with score(better) above score(worse); an equal score counts one half."""
    return float(np.average((np.sign(np.asarray(margins, dtype=np.float64)) + 1.0) / 2, weights=weights))


def preference_nll(margins: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Mean of -log sigmoid(score(better) - score(worse)), nats a pair: Bradley and Terry's likelihood."""
    return float(np.average(np.logaddexp(0.0, -np.asarray(margins, dtype=np.float64)), weights=weights))


def length_only_accuracy(
    better: Sequence[int], worse: Sequence[int], weights: Sequence[float] | None = None
) -> dict[str, float]:
    """Accuracy of the rules `shorter` and `longer` on pairs of response lengths, and of the `best` of the two: the
    floor for any reward model."""
    shorter = preference_accuracy((np.asarray(worse) - np.asarray(better)).tolist(), weights)
    return {"shorter": shorter, "longer": 1.0 - shorter, "best": max(shorter, 1.0 - shorter)}


def bradley_terry_ceiling(deviation: float) -> tuple[float, float]:
    """(highest accuracy, lowest NLL in nats) of any model where utilities differ by N(0, deviation²) and labels are
    drawn from Bradley and Terry's model. By the trapezoid rule, which is exact to rounding for a normal density."""
    nodes = np.linspace(-10.0, 10.0, 8001)
    mass = np.exp(-(nodes**2) / 2)
    gap, mass = deviation * nodes, mass / mass.sum()
    win = 1.0 / (1.0 + np.exp(-gap))
    entropy = win * np.logaddexp(0.0, -gap) + (1.0 - win) * np.logaddexp(0.0, gap)
    return float((mass * np.maximum(win, 1.0 - win)).sum()), float((mass * entropy).sum())


def best_of_n_bound(n: int) -> float:
    """log n - (n-1)/n, nats: no less than the KL of best-of-n to what it samples from (Beirami et al. 2024)."""
    if n < 1:
        raise ValueError("best-of-n needs n >= 1")
    return float(np.log(n) - (n - 1) / n)


def wilson(successes: float, count: int, confidence: float = 0.95) -> Estimate:
    """A share of `count` independent items and Wilson's score interval (1927, J. Am. Stat. Assoc. 22, Eq. 4 of Brown
    et al. 2001, https://doi.org/10.1214/ss/1009213286). Half a success, for a tie, makes it wider than it must be.
    """
    if count < 1:
        raise ValueError("the share of no items")
    z = NormalDist().inv_cdf((1.0 + confidence) / 2)
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Estimate(float(share), max(0.0, float(centre - half)), min(1.0, float(centre + half)))
