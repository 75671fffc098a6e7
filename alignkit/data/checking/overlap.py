"""What a data set shares with another, such as a test set: prompts, runs of 13 words, judgments. Knows no file.

The rule for runs is GPT-3's (Brown et al. 2020, https://arxiv.org/abs/2005.14165, appendix C): in texts in small
letters without punctuation, a run of 13 words that stands on both sides is an overlap, unless it stands in more than
10 records of either side: then it is a common phrase. Texts of fewer words overlap by their prompts alone.
"""

from array import array
from collections.abc import Iterable

import numpy as np

from alignkit.data.checking.finding import MOST_SAMPLES, Finding, Sample, Severity, fine, of
from alignkit.data.checking.items import Item, fingerprint
from alignkit.data.checking.judgments import judged
from alignkit.data.checking.mending import CONTRADICTIONS_AGAINST, OVERLAP
from alignkit.data.checking.runs import RUN, as_hashes, runs_of, within, words_of
from alignkit.data.split import beginning
from alignkit.data.texts import texts_of

COMMON = 10
"""A run that stands in more records than this is a common phrase."""
MOST_QUOTED, QUOTES = 1000, 5
"""Runs of which the words are kept, to be quoted: in all, and about so many of one text."""
SPOILS = 0.01
"""Share of the other set's records from which on it is spoilt as a test."""
SPOILED = "What is trained on these is no longer tested by them: results there will be too good."


class Against:
    """Another set, in memory: 12 bytes a word, 16 a record, 8 a judgment; and 12 for each overlap met with it."""

    def __init__(self, name: str, items: Iterable[Item]) -> None:
        self.name, self._theirs = name, 0
        runs, owners, prompts, units = array("Q"), array("I"), array("Q"), array("Q")
        for item in items:
            found = np.unique(np.concatenate([runs_of(words_of(text)) for text in texts_of(item.record)]))
            runs.frombytes(found.tobytes())
            owners.frombytes(np.full(len(found), item.number, dtype=np.uint32).tobytes())
            prompts.append(fingerprint(beginning(item.record)))
            units.extend(_signed(*one) for one in judged(item))
            self._theirs += 1
        unsorted = np.asarray(runs)
        order = np.argsort(unsorted, kind="stable")
        self._runs, self._owners = unsorted[order], np.asarray(owners)[order]
        self._prompts, self._units = np.sort(np.asarray(prompts)), np.unique(np.asarray(units))
        self._ours = self._judged = 0
        self._met_runs, self._met_records = array("Q"), array("I")
        self._quotes: dict[int, Sample] = {}
        self._asked: dict[int, None] = {}
        self._same_prompt, self._opposite = array("I"), array("I")

    def add(self, item: Item) -> None:
        """Compare a record of the set that is checked."""
        self._ours += 1
        self._compare_runs(item)
        prompt = fingerprint(beginning(item.record))
        if within(as_hashes((prompt,)), self._prompts)[0]:
            self._same_prompt.append(item.number)
            self._asked[prompt] = None
        units = judged(item) if len(self._units) else []
        self._judged += len(units)
        opposite = within(as_hashes(_signed(unit, 1 - verdict) for unit, verdict in units), self._units)
        self._opposite.extend([item.number] * int(opposite.sum()))

    def _compare_runs(self, item: Item) -> None:
        met: set[int] = set()
        for text in texts_of(item.record):
            words = words_of(text)
            runs = runs_of(words)
            places = np.flatnonzero(within(runs, self._runs))
            met.update(runs[places].tolist())
            for place in places[:: 1 + len(places) // QUOTES].tolist():
                if len(self._quotes) < MOST_QUOTED:
                    quote = Sample(item.place, (" ".join(words[place : place + RUN]),))
                    self._quotes.setdefault(int(runs[place]), quote)
        self._met_runs.extend(met)
        self._met_records.extend([item.number] * len(met))

    def findings(self) -> list[Finding]:
        return [self._shared_prompts(), self._overlap(), *self._contradictions()]

    def _shared_prompts(self) -> Finding:
        theirs = int(within(self._prompts, np.sort(as_hashes(self._asked))).sum())
        numbers = {"records": len(self._same_prompt), "theirs": theirs, "their_records": self._theirs}
        if not theirs:
            return fine("shared_prompts", f"no record begins with a question of {self.name}", **numbers)
        measured = (
            f"{of(len(self._same_prompt), self._ours, 'records')} begin with a question of {self.name}, where "
            f"{of(theirs, self._theirs, 'records')} do so"
        )
        first = tuple(self._same_prompt[:MOST_SAMPLES])
        return Finding("shared_prompts", self._severity(theirs), measured, SPOILED, OVERLAP, numbers, records=first)

    def _overlap(self) -> Finding:
        runs, counts = np.unique(np.asarray(self._met_runs), return_counts=True)
        low, high = (np.searchsorted(self._runs, runs, side) for side in ("left", "right"))
        rare = (counts <= COMMON) & (high - low <= COMMON)
        theirs = len(np.unique(self._owners[within(self._runs, runs[rare])]))
        ours = len(np.unique(np.asarray(self._met_records)[within(np.asarray(self._met_runs), runs[rare])]))
        numbers = {"records": ours, "theirs": theirs, "their_records": self._theirs, "words": RUN}
        if not ours:
            return fine("overlap", f"no record shares a run of {RUN} words with {self.name}", **numbers)
        measured = (
            f"{of(ours, self._ours, 'records')} share a run of {RUN} words with {self.name}, where "
            f"{of(theirs, self._theirs, 'records')} do so"
        )
        kept = set(runs[rare].tolist())
        quotes = {sample.place: sample for run, sample in self._quotes.items() if run in kept}
        samples = tuple(quotes.values())[:MOST_SAMPLES]
        return Finding("overlap", self._severity(theirs), measured, SPOILED, OVERLAP, numbers, samples)

    def _severity(self, theirs: int) -> Severity:
        return "problem" if theirs > SPOILS * self._theirs else "warning"

    def _contradictions(self) -> list[Finding]:
        if not (self._judged and len(self._units)):
            return []
        name, count = "contradictions_against", len(self._opposite)
        numbers = {"count": count, "of": self._judged}
        if not count:
            return [fine(name, f"no judgment is the opposite of one in {self.name}", **numbers)]
        measured = f"{of(count, self._judged, 'judgments')} are the opposite of what {self.name} holds"
        effect = (
            "One side of each is wrong; trained on both, they cancel, and accuracy there is measured against noise."
        )
        first = tuple(dict.fromkeys(self._opposite))[:MOST_SAMPLES]
        return [Finding(name, "warning", measured, effect, CONTRADICTIONS_AGAINST, numbers, records=first)]


def _signed(unit: int, verdict: int) -> int:
    """A judgment as one number."""
    return unit >> 1 << 1 | verdict
