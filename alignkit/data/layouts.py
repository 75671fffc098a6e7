"""Bytes into rows: JSON lines, a JSON list, CSV, plain text. Does not know where they come from or what they mean."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.config import InputError

csv.field_size_limit(2**31 - 1)


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
    """One object a line, or one list of them, which is read whole."""
    _skip_mark(path, stream)
    if stream.peek(64)[:64].lstrip().startswith(b"["):
        return _list_rows(path, _decoded(path, stream.read(), 1))
    return _line_rows(stream)


def _skip_mark(path: Path, stream: io.BufferedReader) -> None:
    head = stream.peek(4)[:4]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path}:1: is UTF-16; save the file as UTF-8")
    if head.startswith(b"\xef\xbb\xbf"):
        stream.read(3)


def _decoded(path: Path, raw: bytes, line: int) -> str:
    """Text that begins on a line of the file. Raises InputError where it is not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise InputError(
            f"{path}:{line}: is not UTF-8 (byte {raw[error.start]:#04x}); save the file as UTF-8"
        ) from error


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


def _list_rows(path: Path, text: str) -> Rows:
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
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{path}:{line}: malformed JSON: {reason}") from error


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\n", "\r", "\t"):
        at += 1
    return at


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
        text = _decoded(path, raw, number)
        if "\0" in text:
            raise InputError(f"{path}:{number}: holds NUL bytes: the file is damaged or no text; fetch it again")
        yield from io.StringIO(text, newline="") if "\r" in text else (text,)


def _text_rows(path: Path, stream: io.BufferedReader) -> Rows:
    _skip_mark(path, stream)
    text = "".join(_text_lines(path, stream)).replace("\r\n", "\n")
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
