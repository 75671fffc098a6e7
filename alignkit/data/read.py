"""One file of data into records, with errors that name file, line and field. Knows neither layouts nor forms."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import ValidationError

from alignkit.config import InputError
from alignkit.data.files import Bad, rows_of, unpacked
from alignkit.data.formats import FIELDS, FORMATS, detect, to_records
from alignkit.data.turns import first_fault
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
    raw, sha256 = unpacked(path)
    if format != "auto" and format not in FORMATS:
        raise InputError(f"{path}: unknown format {format!r}; known: auto, {', '.join(FORMATS)}")
    records: list[R] = []
    rejected: list[tuple[int, str]] = []
    seen: dict[str, int] = {}
    rows = 0
    for line, row in rows_of(path, raw):
        rows += 1
        try:
            if isinstance(row, Bad):
                raise ValueError(row.reason)
            if format == "auto":
                format = _recognise(row)
            found = _checked(row, as_, format)
            _refuse_second(found, seen, line)
            records.extend(found)
        except ValidationError as error:
            rejected.append((line, first_fault(error)))
        except ValueError as error:
            rejected.append((line, str(error)))
    if rejected and (on_invalid == "error" or not records):
        raise InputError(_complaint(path, rejected, rows, on_invalid))
    if not records:
        raise InputError(f"{path}: holds no {as_.__name__}" + ("" if rows else "; the file is empty"))
    return ReadResult(records, rejected, sha256, rows)


def _checked(row: Any, as_: type[R], form: str) -> list[R]:
    """The row's records; a half surrogate pair would crash the tokenizer much later, so it is refused here."""
    found = [record for record in to_records(row, as_, form) if isinstance(record, as_)]
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"holds half of a surrogate pair ({error.object[error.start]!r}), which is no text"
        ) from error
    return found


def _refuse_second(found: list[R], seen: dict[str, int], line: int) -> None:
    for record in found:
        name = dict(record).get("id")
        if name is None:
            continue
        if name in seen:
            raise ValueError(f"field `id`: {name!r} stands on line {seen[name]} too; give each row its own, or none")
        seen[name] = line


def _recognise(row: Any) -> str:
    form = detect(row)
    if form is None:
        raise ValueError(_not_known(", ".join(row) if isinstance(row, dict) else type(row).__name__))
    return form


@cache
def _not_known(fields: str) -> str:
    """One text for all rows of equal fields: a large file of an unknown form has as many of them as rows."""
    known = "; ".join(f"{name}: {' + '.join(sorted(needed))}" for name, sets in FIELDS for needed in sets)
    return (
        f"the row's form ({fields}) is not known. Rename its fields to those of a known form, or name the form in "
        f"`data.format`. {known}"
    )


def _complaint(path: Path, rejected: list[tuple[int, str]], rows: int, on_invalid: str) -> str:
    line, reason = rejected[0]
    text = f"{path}:{line}: {reason}"
    if on_invalid == "skip":
        return f"{text} (and no other of the {rows} rows can be used)"
    more = f"{len(rejected) - 1} more of {rows} rows cannot be used; " if len(rejected) > 1 else ""
    return f"{text} ({more}correct the file, or leave such rows out with `data.on_invalid: skip`)"
