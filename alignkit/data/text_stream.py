"""The texts of any source one by one, whole or a seeded sample of them. Does not know what is done with them."""

import heapq
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from alignkit.config import InputError
from alignkit.data.stream import entries_of, kind_at
from alignkit.data.taking import KINDS, Tell
from alignkit.data.texts import texts_of


@dataclass
class TextStream:
    """The texts of a file, a folder or a hub's data set. Iterated over, it reads the source anew and counts."""

    source: str
    as_: str | None = None
    """A name in KINDS; None: what the first good row is."""
    format: str = "auto"
    split: str | None = None
    tell: Tell = lambda what, rows: None
    rows: int = 0
    """Rows read, those that hold no record included."""
    unread: int = 0
    """Rows that hold no record."""
    fault: str = ""
    """Where the first of those stands, and why."""

    def __iter__(self) -> Iterator[str]:
        """Every text that is not empty. Raises InputError for what is no data, and where no text is found."""
        self.rows, self.unread, self.fault, found = 0, 0, "", False
        if self.as_ is not None and self.as_ not in KINDS:
            raise InputError(f"--as: {self.as_!r} is no kind of record; give one of {', '.join(KINDS)}")
        as_ = KINDS[self.as_ or kind_at(self.source, split=self.split)]
        for entry in entries_of(self.source, as_, self.format, self.split):
            self.rows += 1
            if entry.fault is not None:
                self.unread += 1
                self.fault = self.fault or f"{entry.source.name}:{entry.line}: {entry.fault}"
            for record in entry.records:
                for text in filter(None, texts_of(record)):
                    found = True
                    yield text
            if self.rows % 1000 == 0:
                self.tell(entry.source.name, self.rows)
        if not found:
            raise InputError(f"{self.source}: holds no text" + (f". {self.fault}" if self.fault else ""))


def sample_texts(texts: Iterable[str], most: int | None, megabytes: float | None, seed: int = 0) -> Iterable[str]:
    """All texts as a stream, or, where there is a limit, a uniform sample of at most so many texts and megabytes
    (10^6 bytes of UTF-8) of them, in their order.

    It is the beginning of a random permutation: memory holds the sample, time is one pass over all. The last text of
    that permutation is cut where the megabytes end. Raises InputError for a limit that is not positive.
    """
    if most is None and megabytes is None:
        return texts
    if (most is not None and most < 1) or (megabytes is not None and megabytes <= 0):
        raise InputError("--texts and --megabytes: a limit must be above 0")
    budget = float("inf") if megabytes is None else megabytes * 1e6
    draws = random.Random(seed)
    kept: list[tuple[float, int, str]] = []  # a heap with the last of the permutation on top
    total = 0
    for number, text in enumerate(texts):
        heapq.heappush(kept, (-draws.random(), number, text))
        total += _size(text)
        while len(kept) > 1 and (total - _size(kept[0][2]) >= budget or len(kept) > (most or len(kept))):
            total -= _size(heapq.heappop(kept)[2])
    if kept and total > budget:
        draw, number, text = kept[0]
        fits = int(budget) - (total - _size(text))
        kept[0] = (draw, number, text.encode()[:fits].decode("utf-8", "ignore"))
    return [text for _, _, text in sorted(kept, key=lambda one: one[1])]


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
