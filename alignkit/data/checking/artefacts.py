"""Looks of a response that alone tell its label: tiny predictors, tested on what they were not fitted to.

One look at a time is counted on one half of the data, where halves are made of whole prompts, and predicts the other.
A value scores log((better + 1)/(worse + 1)); that of a pair with the higher score is taken for the better one, equal
scores count one half. Knows neither prompts nor what responses mean.
"""

from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkit.data.checking.features import STYLES, WORDS, beginnings, styles
from alignkit.data.checking.finding import Finding, fine, percent
from alignkit.data.checking.items import Item, fingerprint
from alignkit.data.checking.mending import ARTEFACT
from alignkit.data.split import beginning
from alignkit.evaluation.statistics import wilson
from alignkit.records import Comparison, Feedback

MOST_VALUES = 2**16 - 1
"""Values of one look that are told apart; those met later count as one."""
LEAST = 40
"""Pairs, or responses of each label, in each half, from which on something is said."""
MOST_TOLD = 5
CONFIDENCE = 1 - 0.05 / (len(WORDS) + len(STYLES))
"""Of each interval: 95 % for all of them together (Bonferroni)."""
Ids = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Look:
    """One feature as the data holds it."""

    name: str
    better: Ids
    """[N] its value in each better (or good) response."""
    worse: Ids
    """[M] in each worse (or bad) one; of comparisons M = N, pair by pair."""
    values: list[str]
    """What the numbers stand for."""


@dataclass(frozen=True)
class Told:
    """How well one look tells labels that it was not fitted to."""

    accuracy: float
    low: float
    high: float
    decided: float
    """Share of the pairs that it decides."""
    right: float
    """Share of those that it decides rightly."""


class _Values:
    """Numbers for texts, in the order they are met."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {"(others)": 0}

    def number(self, text: str) -> int:
        if text not in self._numbers and len(self._numbers) < MOST_VALUES:
            self._numbers[text] = len(self._numbers)
        return self._numbers.get(text, 0)

    def texts(self) -> list[str]:
        return list(self._numbers)


class _Side:
    """The looks of the better (good) or of the worse (bad) responses: 6 bytes each."""

    def __init__(self) -> None:
        self.words = tuple(array("H") for _ in WORDS)
        self.styles, self.half = array("B"), array("B")


class Artefacts:
    """12 bytes a pair, 6 a response, and the first 65,535 beginnings. Of a ranking its best and its worst count."""

    def __init__(self) -> None:
        self._values = tuple(_Values() for _ in WORDS)
        self._better, self._worse = _Side(), _Side()
        self._paired = False

    def add(self, item: Item) -> None:
        record = item.record
        if isinstance(record, Comparison):
            self._paired = True
            ranks, half = record.ranks, fingerprint(beginning(record)) & 1
            self._take(self._better, item.answers[ranks.index(min(ranks))], half)
            self._take(self._worse, item.answers[ranks.index(max(ranks))], half)
        elif isinstance(record, Feedback):
            half = fingerprint(beginning(record)) & 1
            self._take(self._better if record.label else self._worse, item.answers[0], half)

    def _take(self, side: _Side, text: str, half: int) -> None:
        for values, numbers, word in zip(self._values, side.words, beginnings(text), strict=True):
            numbers.append(values.number(word))
        side.styles.append(styles(text))
        side.half.append(half)

    def findings(self) -> list[Finding]:
        halves = _ids(self._better.half), _ids(self._worse.half)
        least, what = min(map(len, halves)), "pairs" if self._paired else "responses of one label"
        if not max(map(len, halves)):
            return []
        if least < 2 * LEAST:
            return [fine("artefacts", f"{least:,} {what} are too few to look for artefacts in")]
        least_half = min(int((half == fold).sum()) for half in halves for fold in (0, 1))
        if least_half < LEAST:
            measured = f"too few prompts to look for artefacts: one half of them has {least_half:,} {what}"
            effect = "Nothing is known of looks that tell labels: those of one prompt may be about the prompt."
            return [Finding("artefacts", "note", measured, effect)]
        told: dict[str, Told] = {}
        values: dict[str, list[tuple[str, int, int]]] = {}
        for look in self._looks():
            told[look.name], values[look.name] = self._tell(look, *halves), telling(look)
        numbers = {name: asdict(one) | {"values": values[name]} for name, one in told.items()}
        plain = sorted((name for name in told if told[name].low > 0.5), key=lambda name: -told[name].accuracy)
        if not plain:
            return [
                fine(
                    "artefacts",
                    f"none of {len(told)} looks of a response tells its label better than chance",
                    **numbers,
                )
            ]
        best = told[plain[0]]
        measured = (
            f"looks of a response that alone tell held-out labels better than chance: {len(plain)} of {len(told)}, "
            f"the best of them {percent(best.accuracy)}"
        )
        effect = "A reward model can score by them without reading, and a policy then shows them for their own sake."
        severity = "warning" if best.low > 0.55 else "note"
        lines = tuple(self._line(name, told[name], values[name]) for name in plain)
        return [Finding("artefacts", severity, measured, effect, ARTEFACT, numbers, details=lines)]

    def _tell(self, look: Look, better_half: Ids, worse_half: Ids) -> Told:
        return paired_accuracy(look, better_half) if self._paired else balanced_accuracy(look, better_half, worse_half)

    def _line(self, name: str, one: Told, told: list[tuple[str, int, int]]) -> str:
        values = ", ".join(f"{value!r} {a:,} : {b:,}" for value, a, b in told)
        said = f"{name}: {percent(one.accuracy)}, [{100 * one.low:.1f}, {100 * one.high:.1f}] %"
        if not self._paired:
            return f"{said}; good : bad {values}"
        where = f"differs in {percent(one.decided)} of the pairs, right in {percent(one.right)} of those"
        return f"{said}; {where}; better : worse {values}"

    def _looks(self) -> Iterator[Look]:
        sides = (self._better, self._worse)
        for name, better, worse, values in zip(WORDS, *(side.words for side in sides), self._values, strict=True):
            yield Look(name, _ids(better), _ids(worse), values.texts())
        bits = [_ids(side.styles) for side in sides]
        for bit, name in enumerate(STYLES):
            yield Look(name, bits[0] >> bit & 1, bits[1] >> bit & 1, ["absent", "present"])


def paired_accuracy(look: Look, half: Ids) -> Told:
    """How many pairs a predictor tells that is fitted to the other half; `half` [N] is 0 or 1.

    The interval is Wilson's over the pairs that it decides; the others are right by half, whatever the labels."""
    right, decided = 0, 0
    for fold in (0, 1):
        test = half == fold
        scores = _scores(look, ~test, ~test)
        gaps = scores[look.better[test]] - scores[look.worse[test]]
        right += int((gaps > 0).sum())
        decided += int((gaps != 0).sum())
    if not decided:
        return Told(0.5, 0.5, 0.5, 0.0, 0.5)
    among = wilson(right, decided, CONFIDENCE)
    assert among.low is not None and among.high is not None
    share = decided / len(half)
    low, value, high = (0.5 + share * (one - 0.5) for one in (among.low, among.value, among.high))
    return Told(value, low, high, share, among.value)


def balanced_accuracy(look: Look, better_half: Ids, worse_half: Ids) -> Told:
    """Mean of the shares of good and of bad responses that are told from the other half's counts: 1/2 is chance.

    The interval joins the two Wilson intervals (Newcombe 1998, method 10, Statistics in Medicine 17:873).
    """
    right = [0.0, 0.0]
    for fold in (0, 1):
        tests = better_half == fold, worse_half == fold
        scores = _scores(look, ~tests[0], ~tests[1])
        for side, (values, test, sign) in enumerate(((look.better, tests[0], 1), (look.worse, tests[1], -1))):
            right[side] += float((np.sign(sign * scores[values[test]]) + 1).sum() / 2)
    good, bad = wilson(right[0], len(better_half), CONFIDENCE), wilson(right[1], len(worse_half), CONFIDENCE)
    assert good.low is not None and good.high is not None and bad.low is not None and bad.high is not None
    value = (good.value + bad.value) / 2
    below = np.hypot(good.value - good.low, bad.value - bad.low) / 2
    above = np.hypot(good.high - good.value, bad.high - bad.value) / 2
    return Told(value, float(value - below), float(value + above), 1.0, value)


def telling(look: Look) -> list[tuple[str, int, int]]:
    """(value, better, worse) of the values whose two shares differ most, in standard errors."""
    size = len(look.values)
    better, worse = np.bincount(look.better, minlength=size), np.bincount(look.worse, minlength=size)
    ratio = len(look.better) / max(1, len(look.worse))
    surprise = np.abs(better - ratio * worse) / np.sqrt(better + ratio**2 * worse + 1)
    best = np.argsort(-surprise, kind="stable")[: MOST_TOLD if size > 2 else 1]
    if size == 2:
        best = np.array([1])
    return [(look.values[n], int(better[n]), int(worse[n])) for n in best if surprise[n] > 1 or size == 2]


def _scores(look: Look, better: NDArray[np.bool_], worse: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[V] the score of every value, counted on these responses; 0 is what the labels alone would give."""
    size = len(look.values)
    a = np.bincount(look.better[better], minlength=size)
    b = np.bincount(look.worse[worse], minlength=size)
    return np.log(a + 1.0) - np.log(b + 1.0) - (np.log(a.sum() + 1.0) - np.log(b.sum() + 1.0))


def _ids(numbers: array) -> Ids:  # type: ignore[type-arg]
    return np.asarray(numbers)
