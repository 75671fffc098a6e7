"""What became of the rows of an import: counts by file and reason, and the list of the rejected. Knows no record."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, TextIO

from alignkit.data.layouts import Bad

EXCERPT = 200
"""Characters of a rejected row that its report shows."""
MOST_REASONS = 1000
"""Kinds of reasons that are counted apart in one file."""


@dataclass
class FileCount:
    """What became of one file's rows: `rows` = `imported` + `rejected`, and `rejected` = the sum of `reasons`."""

    file: str
    rows: int = 0
    imported: int = 0
    """Rows that gave at least one record."""
    rejected: int = 0
    records: int = 0
    """Records that the imported rows gave."""
    several: int = 0
    """Rows that gave more than one record, as a tree does."""
    renamed: int = 0
    """Records whose id an earlier file had: they carry this file's name before it."""
    forms: dict[str, int] = field(default_factory=dict)
    """Imported rows by their form."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Rejected rows by kind of reason."""

    def took(self, form: str, records: int, renamed: int) -> None:
        """A row of a form gave so many records, of which so many were renamed."""
        self.rows += 1
        self.imported += 1
        self.records += records
        self.several += records > 1
        self.renamed += renamed
        self.forms[form] = self.forms.get(form, 0) + 1

    def refused(self, reason: str) -> None:
        """A row was rejected."""
        self.rows += 1
        self.rejected += 1
        kind = kind_of(reason)
        if kind not in self.reasons and len(self.reasons) >= MOST_REASONS:
            kind = "other reasons"
        self.reasons[kind] = self.reasons.get(kind, 0) + 1


def total_of(files: list[FileCount]) -> FileCount:
    """All files together."""
    total = FileCount("total")
    for name, value in vars(total).items():
        parts = [vars(file)[name] for file in files]
        if isinstance(value, int):
            setattr(total, name, sum(parts))
        elif isinstance(value, dict):
            setattr(total, name, dict(sum(map(Counter, parts), Counter())))
    return total


def list_reject(file: TextIO, source: str, line: int, reason: str, row: Any) -> None:
    """Write one line of the rejects file: file, line, the field where one is named, reason, the row's beginning."""
    entry: dict[str, Any] = {"file": source, "line": line}
    if (name := field_of(reason)) is not None:
        entry["field"] = name
    # Half a surrogate pair, which UTF-8 cannot hold, becomes the escape that JSON has for it.
    dumped = json.dumps({**entry, "reason": reason, "row": _excerpt(row)}, ensure_ascii=False)
    file.write(dumped.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")


def _excerpt(row: Any) -> str:
    if isinstance(row, Bad):
        return row.text[:EXCERPT]
    try:
        return json.dumps(row, ensure_ascii=False, default=str)[:EXCERPT]
    except RecursionError:
        return ""


def field_of(reason: str) -> str | None:
    """The field that a reason names first."""
    found = re.search(r"`([A-Za-z_]\w*(?:\[\d+\]|\.\w+)*)`", reason)
    return None if found is None else found[1]


def kind_of(reason: str) -> str:
    """A reason without what differs from row to row: numbers, quoted values, the names of the row's other fields."""
    kind = re.sub(r"(?<!\w)'[^']*'", "'…'", reason.partition("; the row has ")[0])
    kind = re.sub(r"\d+", "#", kind)
    return kind if len(kind) <= 160 else f"{kind[:157]}..."
