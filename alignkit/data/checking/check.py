"""Checks a data set: one pass over its rows, and a second over the first of them for samples. Knows no page.

Memory by record: 12 bytes of lengths and 16 of fingerprints; of a comparison also 12 for its looks and 19 for every
pair that it ranks; about as much again while they are sorted at the end. Besides that what `tokens` and `overlap` say
of a sample and of the other sets.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import chain
from typing import Any, Protocol

from alignkit.config import InputError
from alignkit.data.account import FileCount, total_of
from alignkit.data.checking.answers import Answers
from alignkit.data.checking.artefacts import Artefacts
from alignkit.data.checking.finding import MOST_SAMPLES, Finding, Sample, by_severity, fine, of, shown
from alignkit.data.checking.items import Item, items_of, taken_of
from alignkit.data.checking.judgments import Judgments
from alignkit.data.checking.labels import LabelBalance, LengthBias, PairOrder
from alignkit.data.checking.lengths import Distribution, Lengths
from alignkit.data.checking.mending import REJECTED, filled
from alignkit.data.checking.overlap import Against
from alignkit.data.checking.privacy import Personal, can_look, masked, not_looked
from alignkit.data.checking.repeats import Repeats
from alignkit.data.stream import kind_at
from alignkit.data.taking import KINDS, Tell
from alignkit.records import Record

TOKEN_RECORDS = 2000
MOST_REASONS = 5
"""That the finding of rejected rows spells out; its numbers have all."""


@dataclass(frozen=True)
class Report:
    """What a check found."""

    source: str
    as_: str
    files: int
    rows: int
    records: int
    rejected: int
    against: list[str]
    model: str | None
    max_length: int | None
    lengths: list[Distribution]
    findings: list[Finding]
    """The worst first."""


@dataclass(frozen=True)
class Asked:
    """What to check besides."""

    model: str | None = None
    """A model's folder or hub name: tokens are counted with its tokenizer, and records rendered by its template."""
    chat_template: str | None = None
    """The template in place of the model's own, as in a recipe."""
    max_length: int | None = None
    """The longest sequence, in tokens; needs `model`."""
    token_records: int | None = None
    """Records that are rendered: a sample where there are more; needs `model`. Left out: TOKEN_RECORDS."""
    against: Sequence[str] = ()
    """Other data that this one must not share prompts and texts with."""
    personal: bool = True
    """Look for personal data, which takes most of the time."""


class Measure(Protocol):
    """Sees every record, and says at the end what it found."""

    def add(self, item: Item) -> None: ...

    def findings(self) -> list[Finding]: ...


def check_data(
    source: str,
    as_: str | None = None,
    *,
    format: str = "auto",
    split: str | None = None,
    asked: Asked = Asked(),
    tell: Tell = lambda file, rows: None,
) -> Report:
    """Check the records of a file, a folder or a hub's data set. Raises InputError, also where no row can be read."""
    as_ = kind_at(source, split=split) if as_ is None else as_
    kind = KINDS[as_]
    lengths, tokens = Lengths(), _token_sample(asked, kind)
    look = asked.personal and can_look()
    measures: list[Measure] = [Answers(as_), Repeats(), Judgments(as_), LabelBalance(), PairOrder(), LengthBias()]
    measures += [Artefacts(), *([Personal()] if look else []), *([tokens] if tokens else [])]
    measures += [Against(path, items_of(path, KINDS[kind_at(path)])) for path in asked.against]
    rows = _Rows()
    for item in rows.items(source, kind, format, split, tell):
        lengths.add(item)
        for measure in measures:
            measure.add(item)
    if not rows.records:
        raise InputError(f"{source}: " + rows.complaint(as_))
    findings = [rows.finding(), *chain.from_iterable(measure.findings() for measure in measures)]
    if asked.personal and not look:
        findings.append(not_looked())
    wanted = {number for one in findings for number in one.records}
    seen = _samples(items_of(source, kind, format, split), wanted)
    mask = masked if can_look() else str
    total = rows.total()
    return Report(
        source=source,
        as_=as_,
        files=len(rows.counts),
        rows=total.rows,
        records=rows.records,
        rejected=total.rejected,
        against=list(asked.against),
        model=asked.model,
        max_length=asked.max_length,
        lengths=[*lengths.distributions(), *(tokens.distributions if tokens else [])],
        findings=[
            replace(shown(one, seen, mask), mend=filled(one.mend, source, as_, asked.against))
            for one in by_severity(findings)
        ],
    )


def _token_sample(asked: Asked, kind: type[Record]) -> Any:
    if asked.model is None:
        if any(one is not None for one in (asked.max_length, asked.chat_template, asked.token_records)):
            raise InputError(
                "--max-length, --chat-template and --token-records need --model: tokens are a tokenizer's"
            )
        return None
    tokens = import_module("alignkit.data.checking.tokens")  # imports torch
    size = asked.token_records or TOKEN_RECORDS
    return tokens.TokenSample(asked.model, asked.chat_template, kind, size, asked.max_length)


class _Rows:
    """What becomes of the rows of a source."""

    def __init__(self) -> None:
        self.records = 0
        self.counts: dict[str, FileCount] = {}
        self._rejects: list[Sample] = []

    def items(self, source: str, kind: type[Record], format: str, split: str | None, tell: Tell) -> Iterable[Item]:
        """Every record of the source, every row counted."""
        for number, taken in enumerate(taken_of(source, kind, format, split), start=1):
            count = self.counts.setdefault(taken.file, FileCount(taken.file))
            if taken.fault is None:
                count.took("", len(taken.items), 0)
                self.records += len(taken.items)
            else:
                count.refused(taken.fault)
                if len(self._rejects) < MOST_SAMPLES:
                    self._rejects.append(Sample(taken.place, (taken.fault,)))
            yield from taken.items
            if number % 1000 == 0:
                tell(taken.file, number)

    def total(self) -> FileCount:
        """All files together."""
        return total_of(list(self.counts.values()))

    def complaint(self, as_: str) -> str:
        """Why there is nothing to check."""
        rows = self.total().rows
        first = "".join(f"{one.place}: {one.texts[0]}" for one in self._rejects[:1])
        return f"none of its {rows:,} rows can be read as {as_}. {first}" if rows else "holds no row"

    def finding(self) -> Finding:
        """The rows that are rejected."""
        total = self.total()
        numbers = {"count": total.rejected, "of": total.rows, "reasons": total.reasons}
        if not total.rejected:
            return fine("rejected_rows", f"all {total.rows:,} rows can be read", **numbers)
        reasons = sorted(total.reasons.items(), key=lambda one: -one[1])[:MOST_REASONS]
        said = tuple(f"{count:,} × {reason}" for reason, count in reasons)
        measured = f"{of(total.rejected, total.rows, 'rows')} cannot be read"
        effect = "A stage ends at the first of them, unless data.on_invalid is skip."
        return Finding("rejected_rows", "problem", measured, effect, REJECTED, numbers, tuple(self._rejects), said)


def _samples(items: Iterable[Item], wanted: set[int]) -> dict[int, Sample]:
    """The samples of these records, read again as far as the last of them."""
    found: dict[int, Sample] = {}
    if wanted:
        for item in items:
            if item.number in wanted:
                found[item.number] = item.sample()
                if len(found) == len(wanted):
                    break
    return found
