"""Files of data into records, with errors that name file, line and field. Does not know what a row means.

JSON lines, one JSON list, CSV, plain text (one document a file), each also gzipped.
"""

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import ValidationError

from alignkit.config import InputError
from alignkit.data.formats import FIELDS, FORMATS, detect, to_records
from alignkit.data.turns import first_fault
from alignkit.records import Record

R = TypeVar("R", bound=Record)
csv.field_size_limit(2**31 - 1)
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".txt", ".md")


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


@dataclass(frozen=True)
class _Bad:
    """A row that could not even be parsed."""

    reason: str


def read(
    path: str | Path, as_: type[R], format: str = "auto", on_invalid: Literal["error", "skip"] = "error"
) -> ReadResult[R]:
    """Read one file's records of type `as_`.

    Raises InputError naming file, line, field and way out: at the first bad row, or, with on_invalid="skip", where
    no row is left. A file that is no data at all (missing, not gzip, not UTF-8 text, broken list) always raises.
    """
    path = Path(path)
    raw, sha256 = _bytes(path)
    if format != "auto" and format not in FORMATS:
        raise InputError(f"{path}: unknown format {format!r}; known: auto, {', '.join(FORMATS)}")
    records: list[R] = []
    rejected: list[tuple[int, str]] = []
    seen: dict[str, int] = {}
    rows = 0
    for line, row in _rows(path, raw):
        rows += 1
        try:
            if isinstance(row, _Bad):
                raise ValueError(row.reason)
            if format == "auto":
                format = _recognise(path, line, row)
            found = _checked(row, as_, format)
            _refuse_second(found, seen, line)
            records.extend(found)
        except ValidationError as error:
            rejected.append((line, first_fault(error)))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
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


def _recognise(path: Path, line: int, row: Any) -> str:
    form = detect(row)
    if form is None:
        fields = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        known = "; ".join(f"{name}: {' + '.join(sorted(needed))}" for name, sets in FIELDS for needed in sets)
        raise InputError(
            f"{path}:{line}: the row's form ({fields}) is not known. Rename its fields to those of a known form, "
            f"or name the form in `data.format`. {known}"
        )
    return form


def _complaint(path: Path, rejected: list[tuple[int, str]], rows: int, on_invalid: str) -> str:
    line, reason = rejected[0]
    text = f"{path}:{line}: {reason}"
    if on_invalid == "skip":
        return f"{text} (and no other of the {rows} rows can be used)"
    more = f"{len(rejected) - 1} more of {rows} rows cannot be used; " if len(rejected) > 1 else ""
    return f"{text} ({more}correct the file, or leave such rows out with `data.on_invalid: skip`)"


# --------------------------------------------------------------------------------------------------- files and rows


def _bytes(path: Path) -> tuple[bytes, str]:
    """The file's content, unpacked, and the SHA-256 of the file as it lies on the disk."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES:
        raise InputError(
            f"{path}: files that end in {suffix or 'nothing'!r} are not read; convert it to JSON lines (.jsonl). "
            f"Read: {', '.join(SUFFIXES)}, each also with .gz"
        )
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw, hashlib.sha256(raw).hexdigest()
    except gzip.BadGzipFile as error:
        raise InputError(f"{path}: is not a gzip file; rename it without .gz, or fetch it again") from error
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path}: the gzip file is cut off or damaged; fetch it again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _rows(path: Path, raw: bytes) -> Iterator[tuple[int, Any]]:
    """(line, row) of every row; a row that cannot be parsed comes as _Bad."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    if suffix == ".csv":
        yield from _csv_rows(path, raw)
    elif suffix in (".txt", ".md"):
        text = _decoded(path, raw).replace("\r\n", "\n")
        if text.strip():
            yield 1, {"text": text, "source": path.name}
    elif raw[:64].lstrip().startswith(b"["):
        yield from _list_rows(path, _decoded(path, raw))
    else:
        yield from _line_rows(raw)


def _decoded(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}:{line}: is not UTF-8 (byte {raw[error.start]:#04x}); save the file as UTF-8"
        ) from error


def _line_rows(raw: bytes) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield number, _Bad(f"is not UTF-8 (byte {line[error.start]:#04x}); save the file as UTF-8")
        except json.JSONDecodeError as error:
            yield (
                number,
                _Bad(f"malformed JSON at column {error.colno}: {error.msg}; each line must be one JSON object"),
            )
        except RecursionError:
            yield number, _Bad("malformed JSON: nested too deeply")


def _list_rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """The items of one JSON list, each with the line it begins on."""
    decode = json.JSONDecoder().raw_decode
    at = _skip(text, text.index("[") + 1)
    line, counted = 1, 0
    try:
        while text[at : at + 1] != "]":
            line, counted = line + text.count("\n", counted, at), at
            row, at = decode(text, at)
            yield line, row
            at = _skip(text, at)
            if text[at : at + 1] == ",":
                at = _skip(text, at + 1)
            elif text[at : at + 1] != "]":
                raise json.JSONDecodeError("expected ',' or ']' after an item", text, at)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: malformed JSON at column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise InputError(f"{path}:{line}: malformed JSON: nested too deeply") from error


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\n", "\r", "\t"):
        at += 1
    return at


def _csv_rows(path: Path, raw: bytes) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(_decoded(path, raw), newline=""), strict=True)
    before = 1
    try:
        for row in reader:
            line, before = before + 1, reader.line_num
            if None in row or None in row.values():
                yield line, _Bad(f"has not as many fields as the heading ({len(reader.fieldnames or ())})")
            else:
                yield line, {key: value for key, value in row.items() if value}
    except csv.Error as error:
        raise InputError(f"{path}:{before + 1}: malformed CSV: {error}") from error


def files_of(path: str | Path, split: str | None = None) -> list[Path]:
    """The data files at `path`: the file itself, or those of a folder in the order of their names.

    `split` keeps a folder's files whose name, or whose subfolder's name, begins with it (train.jsonl, train-01.json).
    """
    path = Path(path)
    if not path.is_dir():
        if split is not None:
            raise InputError(
                f"{path}: `data.split` chooses files of a folder, and this is one file; leave `split` out"
            )
        return [path]
    files = sorted(file for file in path.rglob("*") if Path(file.name.removesuffix(".gz")).suffix in SUFFIXES)
    if split is not None:
        files = [file for file in files if any(part.startswith(split) for part in file.relative_to(path).parts)]
    if not files:
        wanted = f" whose name begins with {split!r}" if split else ""
        raise InputError(f"{path}: the folder holds no data file{wanted} ({', '.join(SUFFIXES)}, also with .gz)")
    return files
