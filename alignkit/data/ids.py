"""Ids that may stand once only, of any number of records: kept on the disk, not in memory. Knows no record."""

import errno
import sqlite3
from collections.abc import Sequence


class Ids:
    """The ids given so far and where each stands. They lie in a temporary database that ends with the object."""

    def __init__(self) -> None:
        # not bound to a thread: a tokenizer in training draws its texts in one of its own
        self._places = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._places.execute("PRAGMA journal_mode = OFF")
        self._places.execute("CREATE TABLE places (id TEXT PRIMARY KEY, file TEXT, line INTEGER) WITHOUT ROWID")
        self._places.execute("BEGIN")

    def claim(self, ids: Sequence[str], file: str, line: int) -> list[str]:
        """The ids for the records of one row: as they are, or `file`/id where another file has it already.

        Raises ValueError, and claims none, where this file has the id already; OSError where the disk is full.
        """
        given: list[str] = []
        for id in ids:
            for name in (id, f"{file}/{id}"):
                place = (file, line) if name in given else self._place(name)
                if place is None:
                    given.append(name)
                    break
                if place[0] == file or name != id:
                    stands = f"line {place[1]}" if place[0] == file else f"{place[0]}:{place[1]}"
                    raise ValueError(f"field `id`: {id!r} stands on {stands} too; give each row its own, or none")
        try:
            self._places.executemany("INSERT INTO places VALUES (?, ?, ?)", [(id, file, line) for id in given])
        except sqlite3.OperationalError as error:
            raise OSError(errno.ENOSPC, f"the folder of temporary files: {error}") from error
        return given

    def _place(self, id: str) -> tuple[str, int] | None:
        return self._places.execute("SELECT file, line FROM places WHERE id = ?", (id,)).fetchone()
