"""Bytes into rows: JSON lines, a JSON list, CSV, plain text. Does not know where they come from or what they mean."""

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.config import InputError
from alignkit.data.json_list import list_rows

csv.field_size_limit(2**31 - 1)
PIECE = 1 << 20
"""Bytes of a text that are read at once."""


@dataclass(frozen=True)
class Bad:
    """A row that could not even be parsed."""

    reason: str
    text: str = ""
    """How it begins."""


Rows = Iterator[tuple[int, Any]]
"""(line, row) of every row."""


def _json_rows(path: Path, stream: io.BufferedReader) -> Rows:
    if stream.peek(64).split(b"\n", 1)[0].strip() == b"{":
        raise InputError(f"{path}:1: is an object over many lines; give a list of rows, or one row a line")
    return _jsonl_rows(path, stream)


def _jsonl_rows(path: Path, stream: io.BufferedReader) -> Rows:
    """One object a line, or one list of them."""
    _skip_mark(path, stream)
    if stream.peek(64)[:64].lstrip().startswith(b"["):
        return list_rows(path, _pieces(path, stream))
    return _line_rows(stream)


def _skip_mark(path: Path, stream: io.BufferedReader) -> None:
    head = stream.peek(4)[:4]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path}:1: is UTF-16; save the file as UTF-8")
    if head.startswith(b"\xef\xbb\xbf"):
        stream.read(3)


def _decoded(path: Path, raw: bytes, line: int, whole: bool = True) -> tuple[str, int]:
    """Text that begins on a line of the file, and its bytes; what is not `whole` may end within a character.

    Raises InputError where it is not UTF-8, or holds NUL bytes.
    """
    try:
        text, used = codecs.utf_8_decode(raw, "strict", whole)
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise InputError(
            f"{path}:{line}: is not UTF-8 (byte {raw[error.start]:#04x}); save the file as UTF-8"
        ) from error
    if (nul := text.find("\0")) >= 0:
        line += text.count("\n", 0, nul)
        raise InputError(f"{path}:{line}: holds NUL bytes: the file is damaged or no text; fetch it again")
    return text, used


def _pieces(path: Path, stream: io.BufferedReader) -> Iterator[str]:
    """The file's text, piece by piece."""
    line, raw = 1, b""
    while (more := stream.read(PIECE)) or raw:
        raw += more
        text, used = _decoded(path, raw, line, not more)
        yield text
        line += text.count("\n")
        raw = raw[used:]


def _line_rows(stream: io.BufferedReader) -> Rows:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            yield number, Bad(_fault(error, line), line[:1000].decode("utf-8", "replace"))


def _fault(error: ValueError | RecursionError, line: bytes) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 (byte {line[error.start]:#04x}); save the file as UTF-8"
    if b"\0" in line:
        return "holds NUL bytes: the file is damaged or no text; fetch it again"
    if isinstance(error, json.JSONDecodeError):
        return f"malformed JSON at column {error.colno}: {error.msg}; each line must be one JSON object"
    return f"malformed JSON: {'nested too deeply' if isinstance(error, RecursionError) else error}"


def _csv_rows(path: Path, stream: io.BufferedReader) -> Rows:
    _skip_mark(path, stream)
    reader = csv.DictReader(_text_lines(path, stream), strict=True)
    before = 1
    try:
        heading = reader.fieldnames or ()
        if len(set(heading)) < len(heading):
            twice = next(name for name in heading if list(heading).count(name) > 1)
            raise InputError(f"{path}:1: the heading names `{twice}` twice; rename one of the columns")
        for row in reader:
            line, before = before + 1, reader.line_num
            if None in row or None in row.values():
                yield line, Bad(f"has not as many fields as the heading ({len(heading)})", str([*row.values()])[:1000])
            else:
                yield line, {key: value for key, value in row.items() if value}
    except csv.Error as error:
        raise InputError(f"{path}:{before + 1}: malformed CSV: {error}") from error


def _text_lines(path: Path, stream: io.BufferedReader) -> Iterator[str]:
    """The file's lines with their ends; a lone CR ends a line too."""
    for number, raw in enumerate(stream, start=1):
        text, _ = _decoded(path, raw, number)
        yield from io.StringIO(text, newline="") if "\r" in text else (text,)


def _text_rows(path: Path, stream: io.BufferedReader) -> Rows:
    _skip_mark(path, stream)
    text = "".join(_pieces(path, stream)).replace("\r\n", "\n")
    if text.strip():
        yield 1, {"text": text, "source": path.name}


LAYOUTS: dict[str, Callable[[Path, io.BufferedReader], Rows]] = {
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".txt": _text_rows,
    ".md": _text_rows,
}
"""The texts that are read, by how their names end."""
