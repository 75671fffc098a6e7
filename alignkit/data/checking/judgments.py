"""The same thing judged more than once: contradictions and agreement. Knows no text, only fingerprints of it.

A judgment is about a unit: two responses to one prompt (which is better), or one response (good or bad).
"""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkit.data.checking.finding import MOST_SAMPLES, Finding, fine, of, percent
from alignkit.data.checking.items import Item, fingerprint
from alignkit.data.checking.labels import ranked_pairs
from alignkit.data.checking.mending import CONTRADICTIONS, SETTLED, VERDICTS
from alignkit.records import Comparison, Feedback

RATERS = ("annotator", "annotator_id", "rater", "rater_id", "labeler", "labeler_id", "worker", "worker_id")
"""Columns that say who judged; the first that a record has counts."""
MOST_RATERS = 2**16 - 2
Numbers = NDArray[np.integer[Any]]


class Judgments:
    """Every judgment of a source, 19 bytes each. What one annotator, or a copied row, says again counts once."""

    def __init__(self, as_: str) -> None:
        self._as = as_
        self.units, self.verdicts = array("Q"), array("b")
        self.records, self._raters, self._sources = array("I"), array("H"), array("I")
        self._names: dict[str, int] = {}

    def add(self, item: Item) -> None:
        found = judged(item)
        if not found:
            return
        columns = vars(item.record).get("columns") or {}
        name = next((str(columns[one]) for one in RATERS if columns.get(one) is not None), None)
        rater = self._rater(name)
        source = fingerprint(repr(item.record.model_dump(exclude={"id"})) if name is None else name) & 2**32 - 1
        for unit, verdict in found:
            self.units.append(unit)
            self.verdicts.append(verdict)
            self.records.append(item.number)
            self._raters.append(rater)
            self._sources.append(source)

    def _rater(self, name: str | None) -> int:
        """The number of who judged, from 1; 0 where that is not said."""
        if name is None or (len(self._names) >= MOST_RATERS and name not in self._names):
            return 0
        return self._names.setdefault(name, len(self._names) + 1)

    def table(self) -> "Table":
        """All of them, the units in order."""
        columns = [np.asarray(one) for one in (self.units, self.verdicts, self.records, self._raters)]
        kept = first_of_each(self.units, self.verdicts, self._sources)
        return Table.of(*(one[kept] for one in columns))

    def findings(self) -> list[Finding]:
        if not self.units:
            return []
        table, things = self.table(), "pairs" if self._as == "comparisons" else "responses"
        counts, copies = table.counts(), len(self.units) - len(table.verdicts)
        again = counts.sum(1) > 1
        if not again.any():
            twice = "judged more than once" + (f", {copies:,} copies aside" if copies else "")
            return [fine("contradictions", f"none of {len(counts):,} {things} is {twice}", copies=copies)]
        split = again & (counts > 0).all(1)
        total, bad = int(again.sum()), int(split.sum())
        agreement = pairwise_agreement(counts)
        numbers = {"units": total, "contradictory": bad, "agreement": agreement, "alpha": alpha(counts)}
        numbers["copies"] = copies
        raters = f", {len(self._names)} named annotators" if self._names else ""
        measured = (
            f"{of(bad, total, f'{things} judged more than once')} are judged both ways{raters}; agreement "
            f"{percent(agreement)}, Krippendorff's alpha {numbers['alpha']:.2f}"
        )
        if copies:
            measured += f"; {copies:,} copies count once"
        kappa = table.kappa()
        if kappa is not None:
            numbers["kappa"] = kappa
            measured += f", Cohen's kappa {kappa:.2f}"
        if not bad:
            return [fine("contradictions", measured, **numbers)]
        rate = bad / len(counts)
        effect = "One of the two labels is wrong: the pulls cancel, and a share of the labels like these are noise."
        mend = CONTRADICTIONS.format(rate=flips(agreement)) if self._as == "comparisons" else VERDICTS
        if copies and not self._names:  # agreement may hide among them
            mend = SETTLED
        severity = "problem" if rate > 0.05 else "warning"
        return [Finding("contradictions", severity, measured, effect, mend, numbers, records=table.shown(split))]


def judged(item: Item) -> list[tuple[int, int]]:
    """(unit, verdict) of all that a record judges.

    The verdict on two responses is 1 where the one with the smaller fingerprint is better: it does not depend on their
    order in the row. Two responses that are alike cannot be judged.
    """
    record = item.record
    if isinstance(record, Feedback):
        return [(fingerprint(item.prompt, item.answers[0].strip()), int(record.label))]
    if not isinstance(record, Comparison):
        return []
    answers = [fingerprint(answer.strip()) for answer in item.answers]
    found: list[tuple[int, int]] = []
    for better, worse in ranked_pairs(record):
        low, high = sorted((answers[better], answers[worse]))
        if low != high:
            found.append((fingerprint(item.prompt, str(low), str(high)), int(answers[better] == low)))
    return found


@dataclass(frozen=True)
class Table:
    """Judgments ordered by unit, all arrays [J] but `starts`."""

    verdicts: NDArray[np.int8]
    records: NDArray[np.int64]
    raters: NDArray[np.int64]
    starts: NDArray[np.int64]
    """[U] where each unit begins."""

    @classmethod
    def of(cls, units: Numbers, verdicts: Numbers, records: Numbers, raters: Numbers) -> "Table":
        keys = units.astype(np.uint64)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
        columns = [one[order] for one in (verdicts, records, raters)]
        return cls(columns[0], columns[1].astype(np.int64), columns[2].astype(np.int64), starts)

    def counts(self) -> NDArray[np.int64]:
        """[U, 2] how often each unit was judged 0 and 1."""
        ones = np.add.reduceat(self.verdicts.astype(np.int64), self.starts)
        sizes = np.diff(np.append(self.starts, len(self.verdicts)))
        return np.stack((sizes - ones, ones), 1)

    def kappa(self) -> float | None:
        """Cohen's, where exactly two raters are named and judged some units both."""
        if set(np.unique(self.raters).tolist()) - {0} != {1, 2}:
            return None
        pairs: Counter[tuple[int, int]] = Counter()
        for start, end in zip(self.starts, np.append(self.starts[1:], len(self.verdicts)), strict=True):
            if end - start > 1:
                said = dict(zip(self.raters[start:end].tolist(), self.verdicts[start:end].tolist(), strict=True))
                if 1 in said and 2 in said:
                    pairs[said[1], said[2]] += 1
        return cohens_kappa(pairs) if pairs else None

    def shown(self, units: NDArray[np.bool_]) -> tuple[int, ...]:
        """Two records that differ, of each of the first few of these units."""
        found: list[tuple[int, int]] = []
        for unit in np.flatnonzero(units).tolist():
            start = int(self.starts[unit])
            end = int(self.starts[unit + 1]) if unit + 1 < len(self.starts) else len(self.verdicts)
            other = start + int(np.argmax(self.verdicts[start:end] != self.verdicts[start]))
            found.append((int(self.records[other]), int(self.records[start])))
        pairs = sorted(found)[:MOST_SAMPLES]
        return tuple(dict.fromkeys(number for late, early in pairs for number in (early, late)))


def first_of_each(*columns: Sequence[int]) -> NDArray[np.int64]:
    """The places, in order, of the rows that stand in no row before; `columns` [J] each."""
    values = [np.asarray(one) for one in columns]
    order = np.lexsort(values)
    fresh = np.zeros(len(order), dtype=bool)
    fresh[:1] = True
    for one in values:
        fresh[1:] |= one[order][1:] != one[order][:-1]
    return np.sort(order[fresh])


def pairwise_agreement(counts: NDArray[np.int64]) -> float:
    """The share of pairs of judgments of one unit that agree; `counts` [U, C] by category."""
    sizes = counts.sum(1)
    return float((counts * (counts - 1)).sum() / (sizes * (sizes - 1)).sum())


def flips(agreement: float) -> float:
    """The rate at which two labels are flipped that agree so often: of two independent flips e, e² + (1 - e)² agree.
    Within 0.01 and 0.45, which a loss can use."""
    return min(0.45, max(0.01, (1.0 - max(0.0, 2 * agreement - 1) ** 0.5) / 2))


def alpha(counts: NDArray[np.int64]) -> float:
    """Krippendorff's alpha for nominal data (Krippendorff 2011, https://repository.upenn.edu/handle/20.500.14332/2089).

    `counts` [U, C] are judgments of each unit by category; units judged once do not count. 1 where all are alike.
    """
    units = counts[counts.sum(1) > 1].astype(np.float64)
    sizes = units.sum(1, keepdims=True)
    totals, number = units.sum(0), units.sum()
    observed = (units * (sizes - units) / (sizes - 1)).sum()
    expected = (totals * (number - totals)).sum() / (number - 1)
    return 1.0 if expected == 0 else float(1.0 - observed / expected)


def cohens_kappa(pairs: Counter[tuple[int, int]]) -> float:
    """Of two raters (Cohen 1960, https://doi.org/10.1177/001316446002000104), from how often they said what together.
    1 where both always said the same one thing."""
    total = sum(pairs.values())
    observed = sum(count for (a, b), count in pairs.items() if a == b) / total
    first, second = Counter[int](), Counter[int]()
    for (a, b), count in pairs.items():
        first[a] += count
        second[b] += count
    chance = sum(first[label] * second[label] for label in first) / total**2
    return 1.0 if chance == 1.0 else (observed - chance) / (1.0 - chance)
