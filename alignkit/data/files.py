"""Files into rows: JSON lines, a JSON list, CSV or plain text, each also gzipped. Does not know what a row means."""

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.config import InputError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".txt", ".md")
ABOUT = ("readme", "license", "licence")
"""What the texts that only tell of a folder's data are called."""
csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True)
class Bad:
    """A row that could not even be parsed."""

    reason: str


def unpacked(path: Path) -> tuple[bytes, str]:
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


def rows_of(path: Path, raw: bytes) -> Iterator[tuple[int, Any]]:
    """(line, row) of every row; a row that cannot be parsed comes as Bad."""
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
            yield number, Bad(f"is not UTF-8 (byte {line[error.start]:#04x}); save the file as UTF-8")
        except json.JSONDecodeError as error:
            yield (
                number,
                Bad(f"malformed JSON at column {error.colno}: {error.msg}; each line must be one JSON object"),
            )
        except RecursionError:
            yield number, Bad("malformed JSON: nested too deeply")


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
        at = _skip(text, at + 1)
        if at < len(text):
            raise json.JSONDecodeError("the list has ended; put all rows in one list, or one object a line", text, at)
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
                yield line, Bad(f"has not as many fields as the heading ({len(reader.fieldnames or ())})")
            else:
                yield line, {key: value for key, value in row.items() if value}
    except csv.Error as error:
        raise InputError(f"{path}:{before + 1}: malformed CSV: {error}") from error


def files_of(path: str | Path, split: str | None = None) -> list[Path]:
    """The data files at `path`: the file itself, or those of a folder in the order of their names. Hidden files and
    folders hold no data, nor does a README or LICENSE.

    `split` keeps a folder's files whose name, or whose subfolder's name, begins with it (train.jsonl, train-01.json).
    """
    path = Path(path)
    if not path.is_dir():
        if split is not None:
            raise InputError(
                f"{path}: `data.split` chooses files of a folder, and this is one file; leave `split` out"
            )
        return [path]
    names = sorted(file.relative_to(path) for file in path.rglob("*") if not file.is_dir())
    files = [path / name for name in names if _is_data(name, split)]
    if not files:
        wanted = f" whose name begins with {split!r}" if split else ""
        raise InputError(f"{path}: the folder holds no data file{wanted} ({', '.join(SUFFIXES)}, also with .gz)")
    return files


def _is_data(name: Path, split: str | None) -> bool:
    suffix = Path(name.name.removesuffix(".gz")).suffix
    hidden = any(part.startswith(".") for part in name.parts)
    about = suffix in (".txt", ".md") and name.name.lower().startswith(ABOUT)
    wanted = split is None or any(part.startswith(split) for part in name.parts)
    return suffix in SUFFIXES and wanted and not hidden and not about
