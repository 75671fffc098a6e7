"""Published data into one file of records, every row accounted for. Knows neither a terminal nor a stage."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any, TextIO

from alignkit.config import InputError
from alignkit.data.files import REJECTS
from alignkit.data.formats import UnknownForm, known_forms
from alignkit.data.ids import Ids
from alignkit.data.layouts import Bad
from alignkit.data.read import RowReader, ids_of
from alignkit.data.sources import Source, sources_of
from alignkit.data.write import to_line
from alignkit.lineage import replacing
from alignkit.records import Comparison, Demonstration, Document, Feedback, Prompt, Record

KINDS: dict[str, type[Record]] = {
    "demonstrations": Demonstration,
    "comparisons": Comparison,
    "prompts": Prompt,
    "corpus": Document,
    "feedback": Feedback,
}
"""What data can be imported as."""
EXCERPT = 200
"""Characters of a rejected row that its report shows."""
MOST_REASONS = 1000
"""Kinds of reasons that are counted apart in one file."""


@dataclass
class FileCount:
    """What became of one file's rows: `rows` = `imported` + `rejected`, the latter by reason in `reasons`."""

    file: str
    rows: int = 0
    imported: int = 0
    """Rows that gave at least one record."""
    rejected: int = 0
    records: int = 0
    """Records that the imported rows gave: more than rows where a row is a tree."""
    renamed: int = 0
    """Records whose id an earlier file had: they carry this file's name before it."""
    forms: dict[str, int] = field(default_factory=dict)
    """Imported rows by their form."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Rejected rows by kind of reason."""


@dataclass
class Imported:
    """What an import did."""

    out: str
    records: int
    rejects: str | None
    """The file that lists the rejected rows; none where there are none."""
    files: list[FileCount]
    ignored: list[str]
    """Files of the folder that hold no data by their name."""

    @property
    def total(self) -> FileCount:
        """All files together."""
        total = FileCount("total")
        for name in ("rows", "imported", "rejected", "records", "renamed"):
            setattr(total, name, sum(getattr(file, name) for file in self.files))
        for name in ("forms", "reasons"):
            setattr(total, name, dict(sum((Counter(getattr(file, name)) for file in self.files), Counter())))
        return total


Tell = Callable[[str, int], None]
"""(file, rows so far of all files): called now and then."""


def import_data(
    source: str,
    out: Path,
    as_: str,
    *,
    format: str = "auto",
    split: str | None = None,
    config: str | None = None,
    strict: bool = False,
    tell: Tell = lambda file, rows: None,
) -> Imported:
    """Write the records of every row at `source` (a file, a folder, a hub's name) to `out`, a JSONL file.

    A row that cannot be read is listed beside it, in <out>.rejects.jsonl; with `strict` it is an error. Both files
    appear at the end or not at all. Raises InputError, also where no row can be read; OSError where it cannot write.
    """
    rejects = _check(source, out)
    reader = RowReader(KINDS[as_], format)
    sources, ignored = sources_of(source, split, config)
    ids = Ids()
    counts: list[FileCount] = []
    rows = 0
    for path in (out, rejects):
        _sweep(path)
    with replacing(out) as records_file, replacing(rejects) as rejects_file:
        writer = _Writer(reader, ids, records_file, rejects_file, strict)
        for one in sources:
            reader.form = reader.format
            counts.append(FileCount(one.name))
            for line, row in one.rows:
                writer.take(one, line, row, counts[-1])
                rows += 1
                if rows % 1000 == 0:
                    tell(one.name, rows)
        done = Imported(str(out), sum(count.records for count in counts), str(rejects), counts, ignored)
        if not done.records:
            raise InputError(_nothing(source, as_, rows, writer.first))
        for file in (records_file, rejects_file):  # both are on the disk before either is seen
            file.flush()
            os.fsync(file.fileno())
    if not done.total.rejected:
        rejects.unlink()
        done.rejects = None
    return done


@dataclass
class _Writer:
    """Takes rows one by one and writes what becomes of each."""

    reader: RowReader[Record]
    ids: Ids
    records: TextIO
    rejects: TextIO
    strict: bool
    first: str = ""
    """The first rejection, for the message where nothing else remains."""

    def take(self, source: Source, line: int, row: Any, count: FileCount) -> None:
        count.rows += 1
        try:
            found = self.reader.records(row)
            if not found:
                raise ValueError(f"holds no {self.reader.as_.__name__}: nothing in it is complete enough for one")
            held = ids_of(found)
            named = iter(self.ids.claim(held, source.short, line))
            found = [one if dict(one).get("id") is None else _named(one, next(named)) for one in found]
            lines = "".join(map(to_line, found))
        except ValueError as error:
            self._reject(source, line, row, error, count)
            return
        self.records.write(lines)
        count.imported += 1
        count.records += len(found)
        count.renamed += sum(old != new for old, new in zip(held, ids_of(found), strict=True))
        form = self.reader.form or ""
        count.forms[form] = count.forms.get(form, 0) + 1

    def _reject(self, source: Source, line: int, row: Any, error: ValueError, count: FileCount) -> None:
        reason = str(error)
        if not self.first:
            help = f". {known_forms('`--format`')}" if isinstance(error, UnknownForm) else ""
            self.first = f"{source.name}:{line}: {reason}{help}"
            if self.strict:
                raise InputError(self.first) from error
        count.rejected += 1
        kind = kind_of(reason)
        if kind not in count.reasons and len(count.reasons) >= MOST_REASONS:
            kind = "other reasons"
        count.reasons[kind] = count.reasons.get(kind, 0) + 1
        text = row.text if isinstance(row, Bad) else json.dumps(row, ensure_ascii=False, default=str)
        entry: dict[str, Any] = {"file": source.name, "line": line, "field": field_of(reason), "reason": reason}
        entry = {key: value for key, value in entry.items() if value is not None} | {"row": text[:EXCERPT]}
        # Half a surrogate pair, which UTF-8 cannot hold, becomes the escape that JSON has for it.
        dumped = json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace")
        self.rejects.write(dumped.decode("utf-8") + "\n")


def _named(record: Record, id: str) -> Record:
    return record if dict(record)["id"] == id else record.model_copy(update={"id": id})


def field_of(reason: str) -> str | None:
    """The field that a reason names first."""
    found = re.search(r"`([A-Za-z_][\w.]*(?:\[\d+\][\w.]*)*)`", reason)
    return None if found is None else found[1]


def kind_of(reason: str) -> str:
    """A reason without what differs from row to row: numbers, quoted values, the row's other fields."""
    kind = re.sub(r"'[^']*'", "'…'", reason.partition("; the row has ")[0])
    kind = re.sub(r"\d+", "#", kind)
    return kind if len(kind) <= 160 else f"{kind[:157]}..."


def rejects_of(out: Path) -> Path:
    """The file beside `out` that lists the rejected rows."""
    return out.with_name(out.name.removesuffix(".jsonl") + REJECTS)


def _check(source: str, out: Path) -> Path:
    if out.suffix != ".jsonl" or out.name.endswith(REJECTS):
        raise InputError(f"{out}: the records become JSON lines; give a file that ends in .jsonl, not in {REJECTS}")
    if out.is_dir():
        raise InputError(f"{out}: is a folder; name the file that is to be written in it")
    place, target = Path(source).resolve(), out.resolve()
    if target == place or (Path(source).is_dir() and place in target.parents):
        raise InputError(f"{out}: would lie in what is imported ({source}); write it elsewhere")
    return rejects_of(out)


def _nothing(source: str, as_: str, rows: int, first: str) -> str:
    return (
        f"{source}: none of its {rows} rows can be imported as {as_}. {first}" if rows else f"{source}: holds no row"
    )


def _sweep(path: Path) -> None:
    """Delete what killed imports left half written."""
    for left in path.parent.glob(f".{escape(path.name)}.*"):
        process = left.name.rpartition(".")[2]
        if process.isdecimal() and not _alive(int(process)):
            left.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
