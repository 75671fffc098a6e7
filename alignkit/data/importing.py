"""Published data into one file of records, every row accounted for. Knows neither a terminal nor a stage."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, TextIO

from alignkit.config import InputError
from alignkit.data.account import FileCount, list_reject, total_of
from alignkit.data.files import REJECTS
from alignkit.data.formats import UnknownForm, known_forms
from alignkit.data.ids import Ids
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
LONGEST = 1000
"""Characters of a reason, which may quote the row."""


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    out: str
    rejects: str | None
    """The file that lists the rejected rows; none where there are none."""
    files: list[FileCount]
    total: FileCount
    ignored: list[str]
    """Files of the folder that by their names hold no data."""


Tell = Callable[[str, int], None]
"""(file, rows so far of all files): called every thousand rows."""


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
    rejects = check_out(source, out)
    reader = RowReader(KINDS[as_], format)
    sources, ignored = sources_of(source, split, config)
    for path in (out, rejects):
        _sweep(path)
    counts = [FileCount(one.name) for one in sources]
    rows = 0
    with replacing(out) as records_file, replacing(rejects) as rejects_file:
        taker = _Taker(reader, Ids(), records_file, rejects_file, strict)
        for one, count in zip(sources, counts, strict=True):
            reader.form = reader.format
            for line, row in one.rows:
                taker.take(one, line, row, count)
                rows += 1
                if rows % 1000 == 0:
                    tell(one.name, rows)
        total = total_of(counts)
        if not total.records:
            found = f"none of its {rows:,} rows can be imported as {as_}. {taker.first}" if rows else "holds no row"
            raise InputError(f"{source}: {found}")
        for file in (records_file, rejects_file):  # both are on the disk before either is seen
            file.flush()
            os.fsync(file.fileno())
    if not total.rejected:
        rejects.unlink()
    return Imported(str(out), str(rejects) if total.rejected else None, counts, total, ignored)


@dataclass
class _Taker:
    """Takes rows one by one and writes what becomes of each."""

    reader: RowReader[Record]
    ids: Ids
    records: TextIO
    rejects: TextIO
    strict: bool
    first: str = ""
    """The first rejection, for the message where nothing else remains."""

    def take(self, source: Source, line: int, row: Any, count: FileCount) -> None:
        try:
            found = self.reader.records(row)
            if not found:
                raise ValueError(f"holds no {self.reader.as_.__name__}: nothing in it is complete enough for one")
            held = ids_of(found)
            given = self.ids.claim(held, source.short, line)
            if given != held:
                names = iter(given)
                found = [one if vars(one)["id"] is None else _named(one, next(names)) for one in found]
            lines = "".join(map(to_line, found))
        except ValueError as error:
            reason = str(error)[:LONGEST]
            if not self.first:
                help = f". {known_forms('`--format`')}" if isinstance(error, UnknownForm) else ""
                self.first = f"{source.name}:{line}: {reason}{help}"
                if self.strict:
                    raise InputError(self.first) from error
            count.refused(reason)
            list_reject(self.rejects, source.name, line, reason, row)
            return
        self.records.write(lines)
        count.took(self.reader.form or "", len(found), sum(old != new for old, new in zip(held, given, strict=True)))


def _named(record: Record, id: str) -> Record:
    return record.model_copy(update={"id": id})


def rejects_of(out: Path) -> Path:
    """The file beside `out` that lists the rejected rows."""
    return out.with_name(out.name.removesuffix(".jsonl") + REJECTS)


def check_out(source: str, out: Path) -> Path:
    """The file of rejects that belongs to `out`. Raises InputError where `out` may not be written."""
    if out.suffix != ".jsonl" or out.name.endswith(REJECTS):
        raise InputError(f"{out}: the records become JSON lines; give a file that ends in .jsonl, not in {REJECTS}")
    if out.is_dir():
        raise InputError(f"{out}: is a folder; name the file that is to be written in it")
    rejects = rejects_of(out)
    place, target = Path(source).resolve(), out.resolve()
    if place in (target, rejects.resolve()) or (Path(source).is_dir() and place in target.parents):
        raise InputError(f"{out}: it or {rejects.name} would lie in what is imported ({source}); write it elsewhere")
    return rejects


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
