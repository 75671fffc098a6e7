"""Checks a data set: one pass over its rows, and a second over the first of them for samples. Knows no page.

Memory by record: 12 bytes of lengths, 24 of fingerprints, and of a comparison 22 for every pair that it ranks.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from alignkit.config import InputError
from alignkit.data.account import FileCount, total_of
from alignkit.data.checking.answers import Answers
from alignkit.data.checking.artefacts import Artefacts
from alignkit.data.checking.finding import MOST_SAMPLES, Finding, Sample, by_severity, fine, of, shown
from alignkit.data.checking.items import Item, item_of, items_of
from alignkit.data.checking.judgments import Judgments
from alignkit.data.checking.labels import LabelBalance, LengthBias, PairOrder
from alignkit.data.checking.lengths import Distribution, Lengths
from alignkit.data.checking.mending import REJECTED, filled
from alignkit.data.checking.repeats import Repeats
from alignkit.data.importing import KINDS, Tell
from alignkit.data.stream import entries_of, kind_at


@dataclass(frozen=True)
class Report:
    """What a check found."""

    source: str
    as_: str
    files: int
    rows: int
    records: int
    rejected: int
    reasons: dict[str, int]
    """Rejected rows by kind of reason."""
    against: list[str]
    lengths: list[Distribution]
    findings: list[Finding]
    """The worst first."""


def check_data(
    source: str,
    as_: str | None = None,
    *,
    format: str = "auto",
    split: str | None = None,
    tell: Tell = lambda file, rows: None,
) -> Report:
    """Check the records of a file, a folder or a hub's data set. Raises InputError, also where no row can be read."""
    as_ = kind_at(source, split) if as_ is None else as_
    kind = KINDS[as_]
    lengths = Lengths()
    measures = [lengths, Answers(), Repeats(), Judgments(), LabelBalance(), PairOrder(), LengthBias(), Artefacts()]
    counts: dict[str, FileCount] = {}
    rejects: list[Sample] = []
    rows = records = 0
    for entry in entries_of(source, kind, format, split):
        rows += 1
        count = counts.setdefault(entry.source.name, FileCount(entry.source.name))
        place = f"{entry.source.name}:{entry.line}"
        fault = entry.fault or (None if entry.records else f"holds no {kind.__name__}")
        if fault is not None:
            count.refused(fault)
            if len(rejects) < MOST_SAMPLES:
                rejects.append(Sample(place, (fault,)))
            continue
        count.took("", len(entry.records), 0)
        for record in entry.records:
            item = item_of(records, place, record)
            records += 1
            for measure in measures:
                measure.add(item)
        if rows % 1000 == 0:
            tell(entry.source.name, rows)
    if not records:
        found = (
            f"none of its {rows:,} rows can be read as {as_}. {rejects[0].place}: {rejects[0].texts[0]}"
            if rows
            else "holds no row"
        )
        raise InputError(f"{source}: {found}")
    total = total_of(list(counts.values()))
    findings = [_rejected(total, rejects)]
    for measure in measures[1:]:
        findings += measure.findings()
    wanted = {number for one in findings for number in one.records}
    seen = _samples(items_of(source, kind, format, split), wanted)
    findings = [
        replace(shown(one, seen, lambda text: text), mend=filled(one.mend, source, as_, []))
        for one in by_severity(findings)
    ]
    return Report(
        source, as_, len(counts), rows, records, total.rejected, total.reasons, [], lengths.distributions(), findings
    )


def _rejected(total: FileCount, samples: list[Sample]) -> Finding:
    numbers = {"count": total.rejected, "of": total.rows, "reasons": total.reasons}
    if not total.rejected:
        return fine("rejected_rows", f"all {total.rows:,} rows can be read", **numbers)
    reasons = sorted(total.reasons.items(), key=lambda one: -one[1])
    measured = f"{of(total.rejected, total.rows, 'rows')} cannot be read: " + "; ".join(
        f"{count:,} × {reason}" for reason, count in reasons[:3]
    )
    effect = "A stage ends at the first of them, unless data.on_invalid is skip."
    return Finding("rejected_rows", "problem", measured, effect, REJECTED, numbers, tuple(samples))


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
