"""One file of data into records, with errors that name file, line and field. Knows neither layouts nor forms."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import ValidationError

from alignkit.config import InputError
from alignkit.data.files import rows_of
from alignkit.data.formats import FORMATS, SHAPING, UnknownForm, detect, known_forms, to_records
from alignkit.data.ids import Ids
from alignkit.data.layouts import Bad, Rows
from alignkit.data.turns import first_fault
from alignkit.lineage import sha256_file
from alignkit.records import Record

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class ReadResult(Generic[R]):
    """What one file held."""

    records: list[R]
    """The records in the file's order."""
    rejected: list[tuple[int, str]]
    """(line, reason) of every row that was skipped."""
    sha256: str
    """Of the file as it lies on the disk (hex)."""
    rows: int
    """Rows in the file, the skipped ones included."""


def read(
    path: str | Path, as_: type[R], format: str = "auto", on_invalid: Literal["error", "skip"] = "error"
) -> ReadResult[R]:
    """Read one file's records of type `as_`.

    Raises InputError naming file, line, field and way out: at the first bad row, or, with on_invalid="skip", where
    no row is left. A file that is no data at all (missing, not gzip, not UTF-8 text, broken list) always raises.
    """
    path = Path(path)
    records: list[R] = []
    rejected: list[tuple[int, str]] = []
    rows = 0
    for line, _, found, fault in read_rows(rows_of(path), as_, format, str(path), Ids()):
        rows += 1
        records.extend(found)
        if fault is not None:
            rejected.append((line, fault))
    check_rows(str(path), as_, rejected, rows, len(records), on_invalid)
    return ReadResult(records, rejected, sha256_file(path), rows)


def read_rows(
    rows: Rows, as_: type[R], format: str, name: str, ids: Ids | None, option: str = "`data.format`"
) -> Iterator[tuple[int, Any, list[R], str | None]]:
    """(line, row, records, None) of every row of a file, or (line, row, [], fault) where it cannot be used.

    With `ids`, an id of which the file has another is a fault. `option` names the format for a row of an unknown form.
    """
    reader = RowReader(as_, format, f"{name}: ")
    for line, row in rows:
        found: list[R] = []
        fault = None
        try:
            found = reader.records(row)
            if ids is not None:
                ids.claim(ids_of(found), name, line)
        except UnknownForm as error:
            found, fault = [], f"{error}. {known_forms(option)}"
        except ValueError as error:
            found, fault = [], str(error)
        yield line, row, found, fault


def check_rows(
    name: str,
    as_: type[Record],
    rejected: Sequence[tuple[int, str]],
    rows: int,
    records: int,
    on_invalid: Literal["error", "skip"],
) -> None:
    """Raises InputError for rejected rows that may not be skipped, and for a file without any record."""
    if rejected and (on_invalid == "error" or not records):
        raise InputError(_complaint(name, rejected, rows, on_invalid))
    if not records:
        raise InputError(f"{name}: holds no {as_.__name__}" + ("" if rows else "; the file is empty"))


class RowReader(Generic[R]):
    """Rows into records, each by its own form; a row without one is taken for what the rows before it were."""

    def __init__(self, as_: type[R], format: str = "auto", where: str = "") -> None:
        if format != "auto" and format not in FORMATS:
            raise InputError(f"{where}unknown format {format!r}; known: auto, {', '.join(FORMATS)}")
        self.as_ = as_
        self.format = None if format == "auto" else format
        self.form: str | None = self.format
        """The form of the last row."""

    def records(self, row: Any) -> list[R]:
        """The row's records. Raises ValueError naming the field at fault, UnknownForm where none is recognised."""
        if isinstance(row, Bad):
            raise ValueError(row.reason)
        self.form = self.format or detect(row) or self.form
        strange = isinstance(row, Mapping) and row.keys().isdisjoint(SHAPING) and self.format is None
        if self.form is None or strange:
            raise UnknownForm(row)
        try:
            found = [record for record in to_records(row, self.as_, self.form) if isinstance(record, self.as_)]
            json.dumps(row, ensure_ascii=False).encode()
            return found
        except UnicodeEncodeError as error:  # it would crash the tokenizer much later
            half = error.object[error.start]
            raise ValueError(f"holds half of a surrogate pair ({half!r}), which is no text") from error
        except ValidationError as error:
            raise ValueError(first_fault(error)) from error
        except RecursionError as error:
            raise ValueError("is nested too deeply") from error


def ids_of(records: list[R]) -> list[str]:
    """The ids that the records have."""
    return [name for record in records if (name := vars(record).get("id")) is not None]


def _complaint(path: str, rejected: Sequence[tuple[int, str]], rows: int, on_invalid: str) -> str:
    line, reason = rejected[0]
    text = f"{path}:{line}: {reason}"
    if on_invalid == "skip":
        return f"{text} (and no other of the {rows} rows can be used)"
    more = f"{len(rejected) - 1} more of {rows} rows cannot be used; " if len(rejected) > 1 else ""
    return f"{text} ({more}correct the file, or leave such rows out with `data.on_invalid: skip`)"
