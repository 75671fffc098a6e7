"""Answers that say nothing or say it twice: empty, of one word, identical. Knows no label."""

from alignkit.data.checking.finding import MOST_SAMPLES, Finding, Sample, Severity, fine, of
from alignkit.data.checking.items import Item
from alignkit.data.checking.mending import EMPTY, IDENTICAL
from alignkit.records import Comparison, Document

LONGEST_WORD = 20
"""Characters: more without a space are a sentence of a script that has none, or code."""


class Tally:
    """How often something was met, and the first few records where it was."""

    def __init__(self) -> None:
        self.count = 0
        self.samples: list[Sample] = []
        self._last = -1

    def met(self, item: Item) -> None:
        """Once more; a record that is met again is no second sample."""
        self.count += 1
        if len(self.samples) < MOST_SAMPLES and item.number != self._last:
            self._last = item.number
            self.samples.append(item.sample())

    def finding(
        self, name: str, total: int, unit: str, what: str, effect: str, mend: str, severity: Severity = "warning"
    ) -> Finding:
        """`severity` where it was met at all. `what` completes "3 of 60 answers …"."""
        numbers = {"count": self.count, "of": total}
        if not self.count:
            return fine(name, f"none of {total:,} {unit} {what}", **numbers)
        return Finding(
            name, severity, f"{of(self.count, total, unit)} {what}", effect, mend, numbers, tuple(self.samples)
        )


class Answers:
    """Constant memory."""

    def __init__(self, as_: str) -> None:
        self._as = as_
        self._answers = self._rankings = 0
        self._empty, self._single, self._identical = Tally(), Tally(), Tally()

    def add(self, item: Item) -> None:
        if isinstance(item.record, Document):
            return
        for answer in item.answers:
            self._answers += 1
            said = answer.strip()
            if not said:
                self._empty.met(item)
            elif len(said) <= LONGEST_WORD and len(said.split(maxsplit=1)) == 1:
                self._single.met(item)
        if isinstance(item.record, Comparison):
            self._rankings += 1
            if len({answer.strip() for answer in item.answers}) < len(item.answers):
                self._identical.met(item)

    def findings(self) -> list[Finding]:
        if not self._answers:
            return []
        found = [
            self._empty.finding(
                "empty_answers",
                self._answers,
                "answers",
                "are empty",
                "The model is taught to end its turn at once, or a reward model to judge nothing.",
                EMPTY.get(self._as, ""),
            ),
            self._single.finding(
                "one_word_answers",
                self._answers,
                "answers",
                "are a single word",
                "Many of them teach a model to be terse; where they are labels or numbers, that is wanted.",
                "",
                "note" if self._single.count <= 0.2 * self._answers else "warning",
            ),
        ]
        if self._rankings:
            found.append(
                self._identical.finding(
                    "identical_responses",
                    self._rankings,
                    "rankings",
                    "hold the same response twice",
                    "Such a pair has no right order: its gradient is noise.",
                    IDENTICAL,
                )
            )
        return found
