"""How labels are spread: good and bad, first and second, tied, against their scores, long and short. Knows no text."""

from alignkit.data.checking.answers import Tally
from alignkit.data.checking.finding import Finding, Severity, fine, of, percent
from alignkit.data.checking.items import Item
from alignkit.data.checking.mending import AGAINST_RANKS, BALANCE, LENGTH, LEVEL, POSITION
from alignkit.evaluation.statistics import Estimate, wilson
from alignkit.records import Comparison, Feedback

EXPORTED = 0.95
"""Share with the best one first beyond which that is a form ("chosen, rejected"): where a judge saw it is unknown."""


def interval(estimate: Estimate) -> str:
    """ "[51.0, 57.8] %"."""
    assert estimate.low is not None and estimate.high is not None
    return f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}] %"


class LabelBalance:
    """Feedback: how many are good. Constant memory."""

    def __init__(self) -> None:
        self._good = self._count = 0

    def add(self, item: Item) -> None:
        if isinstance(item.record, Feedback):
            self._count += 1
            self._good += item.record.label

    def findings(self) -> list[Finding]:
        if not self._count:
            return []
        share = wilson(self._good, self._count)
        numbers = {"good": self._good, "bad": self._count - self._good, "share": share.value}
        measured = f"{of(self._good, self._count, 'responses')} are labelled good"
        if 3 / 7 <= share.value <= 4 / 7:
            return [fine("label_balance", measured, **numbers)]
        alone = self._good in (0, self._count)
        severity: Severity = "problem" if alone else "warning" if not 0.2 <= share.value <= 0.8 else "note"
        rest = "good" if share.value > 0.5 else "bad"
        effect = (
            f"All are {rest}: there is nothing to tell them from."
            if alone
            else f"The {rest} ones outweigh the others."
        )
        return [Finding("label_balance", severity, measured, effect, BALANCE, numbers)]


class PairOrder:
    """Comparisons: where the best stands, what is tied, what the scores say. Constant memory."""

    def __init__(self) -> None:
        self._count = self._pairs = self._scored = 0
        self._first = self._expected = 0.0
        self._ties, self._level, self._against = Tally(), Tally(), Tally()

    def add(self, item: Item) -> None:
        record = item.record
        if not isinstance(record, Comparison):
            return
        self._count += 1
        best = [place for place, rank in enumerate(record.ranks) if rank == min(record.ranks)]
        self._first += (0 in best) / len(best)
        self._expected += 1 / len(record.ranks)
        if len(set(record.ranks)) < len(record.ranks):
            self._ties.met(item)
        if record.margins is not None:
            for better, worse in ranked_pairs(record):
                self._scored += 1
                gap = record.margins[better] - record.margins[worse]
                if gap == 0:
                    self._level.met(item)
                elif gap < 0:
                    self._against.met(item)

    def findings(self) -> list[Finding]:
        if not self._count:
            return []
        tie = self._ties.finding(
            "ties",
            self._count,
            "rankings",
            "hold equal ranks",
            "Tied responses are not compared with each other; the others of the ranking are.",
            "",
            "note",
        )
        found = [self._position(), tie]
        if self._scored:
            found += [
                self._level.finding(
                    "tied_scores",
                    self._scored,
                    "ranked pairs",
                    "have equal scores",
                    "Their judge saw no difference: the order is chance, and such labels are noise.",
                    LEVEL,
                ),
                self._against.finding(
                    "scores_against_ranks",
                    self._scored,
                    "ranked pairs",
                    "are ranked against their scores",
                    "Either ranks or scores are wrong; a loss that takes the ranks learns the opposite of the scores.",
                    AGAINST_RANKS,
                    "problem" if self._against.count > 0.05 * self._scored else "warning",
                ),
            ]
        return found

    def _position(self) -> Finding:
        share, expected = wilson(self._first, self._count), self._expected / self._count
        assert share.low is not None and share.high is not None
        numbers = {"share": share.value, "share_low": share.low, "share_high": share.high, "expected": expected}
        measured = f"the best response stands first in {percent(share.value)} of {self._count:,} rankings"
        if share.value > EXPORTED or share.value < 2 * (1 - EXPORTED) * expected:
            return fine("position_balance", f"{measured}: their order is the export's", **numbers)
        measured += f", {interval(share)}, where chance gives {percent(expected)}"
        if share.low <= expected <= share.high:
            return fine("position_balance", measured, **numbers)
        effect = "Whoever ranked them favoured a place; some of these labels are about it and not about the response."
        return Finding("position_balance", "warning", measured, effect, POSITION, numbers)


class LengthBias:
    """Comparisons: how often the longer response is the better one. Constant memory.

    A ranking counts as 1, spread over its untied pairs, as in training; equal lengths count one half.
    """

    def __init__(self, unit: str = "characters") -> None:
        self._unit = unit
        self._longer, self._count = 0.0, 0

    def add(self, item: Item) -> None:
        if isinstance(item.record, Comparison):
            self.take(item.record, [len(answer) for answer in item.answers])

    def take(self, record: Comparison, lengths: list[int]) -> None:
        """One ranking, and the lengths of its responses."""
        pairs = ranked_pairs(record)
        won = sum(0.5 * ((lengths[a] > lengths[b]) + (lengths[a] >= lengths[b])) for a, b in pairs)
        self._longer += won / len(pairs)
        self._count += 1

    def findings(self) -> list[Finding]:
        if not self._count:
            return []
        share = wilson(self._longer, self._count)
        assert share.low is not None and share.high is not None
        numbers = {"longer": share.value, "longer_low": share.low, "longer_high": share.high, "of": self._count}
        name, floor = f"length_bias_{self._unit}", max(share.value, 1 - share.value)
        measured = (
            f"the longer response ({self._unit}) is the better one in {percent(share.value)} of {self._count:,} "
            f"rankings, {interval(share)}"
        )
        if share.low <= 0.5 <= share.high:
            return [fine(name, measured, **numbers)]
        rule = "longer" if share.value > 0.5 else "shorter"
        effect = (
            f"Picking the {rule} one alone is right in {percent(floor)}: a reward model may learn length, and a "
            f"policy then grows {rule} answers."
        )
        far = share.low > 0.6 or share.high < 0.4
        return [Finding(name, "warning" if far else "note", measured, effect, LENGTH, numbers)]


def ranked_pairs(record: Comparison) -> list[tuple[int, int]]:
    """(better, worse) of every pair whose ranks differ."""
    places = range(len(record.ranks))
    return [(a, b) for a in places for b in places if record.ranks[a] < record.ranks[b]]
