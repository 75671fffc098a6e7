"""Rows taken at the door: their records as lines, ids that stand once, rejects listed. Knows not where they go."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

from alignkit.config import InputError
from alignkit.data.account import FileCount, list_reject
from alignkit.data.formats import UnknownForm, known_forms
from alignkit.data.ids import Ids
from alignkit.data.read import RowReader, ids_of
from alignkit.data.sources import Source
from alignkit.data.write import to_line
from alignkit.records import Comparison, Demonstration, Document, Feedback, Prompt, Record

KINDS: dict[str, type[Record]] = {
    "demonstrations": Demonstration,
    "comparisons": Comparison,
    "prompts": Prompt,
    "corpus": Document,
    "feedback": Feedback,
}
"""What data can be taken as."""
LONGEST = 1000
"""Characters of a reason, which may quote the row."""
Tell = Callable[[str, int], None]
"""(what, count so far): called now and then."""


class Taker:
    """Takes rows as records of one kind. `counts` has what became of each source's rows.

    With a `log`, which gets the ids of every row and the count of every source that is done, another taker can go on.
    """

    def __init__(
        self, as_: type[Record], format: str, rejects: TextIO, strict: bool = False, log: TextIO | None = None
    ) -> None:
        self._reader = RowReader(as_, format)
        self._ids = Ids()
        self._rejects = rejects
        self._strict = strict
        self._log = log
        self._done = 0  # sources that an earlier taker has read to their end
        self._count = FileCount("")
        self.counts: list[FileCount] = []
        self.first = ""
        """The first rejection, for the message where nothing else remains."""

    def taken(self, sources: Sequence[Source], tell: Tell) -> Iterator[tuple[Source, int, list[str]]]:
        """(source, line, the records as lines) of every row that holds some.

        Raises InputError; OSError where the disk is full.
        """
        self.counts += [FileCount(one.name) for one in sources[len(self.counts) :]]
        rows = sum(count.rows for count in self.counts[: self._done])
        for source, count in zip(sources[self._done :], self.counts[self._done :], strict=True):
            self._count = count
            before = count.rows
            if not before:
                self._reader.form = self._reader.format
            for number, (line, row) in enumerate(source.rows):
                if number >= before and (lines := self._take(source, line, row, count)):
                    yield source, line, lines
                rows += 1
                if rows % 1000 == 0:
                    tell(source.name, rows)
            self._note(vars(count))

    def state(self) -> dict[str, Any]:
        """How far it has come (plain JSON), right after a row that it gave."""
        return {"count": vars(self._count), "form": self._reader.form, "first": self.first}

    def resume(self, state: dict[str, Any], log: Iterable[str], sources: Sequence[Source]) -> None:
        """Go on from a state and the log up to it: the rows that were taken are read once more, but not taken."""
        for entry in map(json.loads, log):
            if isinstance(entry, dict):
                self.counts.append(FileCount(**entry))
            else:
                line, *ids = entry
                self._ids.claim(ids, sources[len(self.counts)].short, line)
        self._done = len(self.counts)
        self.counts.append(FileCount(**state["count"]))
        self._reader.form, self.first = state["form"], state["first"]

    def _note(self, entry: Any) -> None:
        if self._log is not None:
            self._log.write(json.dumps(entry) + "\n")

    def _take(self, source: Source, line: int, row: Any, count: FileCount) -> list[str]:
        try:
            found = self._reader.records(row)
            if not found:
                raise ValueError(f"holds no {self._reader.as_.__name__}: nothing in it is complete enough for one")
            held = ids_of(found)
            given = self._ids.claim(held, source.short, line)
            if given:
                self._note([line, *given])
            names = iter(given)
            named = found if given == held else [_with_id(one, names) for one in found]
            lines = [*map(to_line, named)]
        except ValueError as error:
            self._reject(source, line, row, count, error)
            return []
        count.took(self._reader.form or "", len(found), sum(old != new for old, new in zip(held, given, strict=True)))
        return lines

    def _reject(self, source: Source, line: int, row: Any, count: FileCount, error: ValueError) -> None:
        reason = str(error)[:LONGEST]
        if not self.first:
            help = f". {known_forms('`--format`')}" if isinstance(error, UnknownForm) else ""
            self.first = f"{source.name}:{line}: {reason}{help}"
            if self._strict:
                raise InputError(self.first) from error
        count.refused(reason)
        list_reject(self._rejects, source.name, line, reason, row)


def _with_id(record: Record, names: Iterator[str]) -> Record:
    return record if vars(record)["id"] is None else record.model_copy(update={"id": next(names)})
