"""One JSON list, item by item, however long it is. Does not know bytes, nor what an item means."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignkit.config import InputError

SPACE = re.compile(r"[ \t\n\r]*")
NEAR = 16
"""What a window cuts in two, but for strings, is refused or seems to end fewer characters than this before its end."""
DECODE = json.JSONDecoder().raw_decode


def list_rows(path: Path, pieces: Iterator[str]) -> Iterator[tuple[int, Any]]:
    """(line, item) of every item of the list that the pieces of text make up; memory holds the longest item.

    Raises InputError naming line, column and item on reaching the place where it is malformed or cut off.
    """
    window = _Window(pieces)
    item = 0
    try:
        window.skip()
        mark = window.skip(past=1)  # the bracket
        while mark != "]":
            item += 1
            line, row = window.line, window.value()
            mark = window.skip()
            if mark not in (",", "]"):
                raise window.fault("expected ',' or ']' after an item")
            yield line, row
            if mark == ",":
                mark = window.skip(past=1)
        item = 0
        if window.skip(past=1):
            raise window.fault("the list has ended; put all rows in one list, or one object a line")
    except json.JSONDecodeError as error:
        said = window.said(error, item)  # which moves to the line of it
        raise InputError(f"{path}:{window.line}: {said}") from error


class _Window:
    """The part of a text that is being read. What lies before it is forgotten, but for where it stood."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._text = ""
        self._at = 0
        self._start = 0  # where the line begins, in this window or before it
        self.line = 1

    def skip(self, past: int = 0) -> str:
        """Go on by so many characters and over white space; the character that stands there, none at the end."""
        self._move(self._at + past)
        while True:
            self._move(SPACE.match(self._text, self._at).end())  # pyright: ignore[reportOptionalMemberAccess]
            if self._at < len(self._text) or not self._grow():
                return self._text[self._at : self._at + 1]

    def value(self) -> Any:
        """The value that begins here. Raises JSONDecodeError."""
        while True:
            try:
                value, end = DECODE(self._text, self._at)
            except json.JSONDecodeError as error:
                if (self._near(error.pos) or _unterminated(error)) and self._grow():
                    continue
                raise
            except RecursionError as error:
                raise self.fault("nested too deeply") from error
            except ValueError as error:  # a number of more digits than Python reads
                raise self.fault(str(error)) from error
            if self._near(end) and self._grow():
                continue  # a number may go on
            self._move(end)
            return value

    def fault(self, message: str) -> json.JSONDecodeError:
        """An error that stands here."""
        return json.JSONDecodeError(message, self._text, self._at)

    def said(self, error: json.JSONDecodeError, item: int) -> str:
        """What is wrong, where, and what to do; moves there."""
        self._move(error.pos)
        cut = error.pos >= len(self._text) or _unterminated(error)
        mend = (
            "cut off: fetch it again" if cut else "correct it, or put one row a line, where a bad one costs its line"
        )
        where = f" (item {item:,} of the list); {mend}" if item else ""
        return f"malformed JSON at column {error.pos - self._start + 1}: {error.msg}{where}"

    def _near(self, place: int) -> bool:
        return place > len(self._text) - NEAR

    def _move(self, to: int) -> None:
        if lines := self._text.count("\n", self._at, to):
            self.line += lines
            self._start = self._text.rindex("\n", self._at, to) + 1
        self._at = to

    def _grow(self) -> bool:
        """Forget what has been read and at least double what is left. At the end of the text: False, nothing done."""
        parts = [self._text[self._at :]]
        size = least = len(parts[0])
        while size <= 2 * least and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            size += len(piece)
        if size == least:
            return False
        self._text = "".join(parts)
        self._start -= self._at
        self._at = 0
        return True


def _unterminated(error: json.JSONDecodeError) -> bool:
    return error.msg.startswith("Unterminated string")
