"""Examples on the disk: written once, in steps that survive a kill, and read by number. Knows no record and no stage.

A file is an SQLite database: a row holds one example as JSON, or some numbers of it, and reading one takes a few
pages, never the file.
"""

import errno
import json
import sqlite3
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from alignkit.batches import Example, Indexed
from alignkit.trie import TokenSequence


class _Rows:
    """The rows of one table of a whole file; each is read when it is asked for."""

    def __init__(self, path: Path, table: str) -> None:
        # immutable: no locks, which some shared file systems lack
        self._database = sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)
        self._query = f'SELECT example FROM "{table}" WHERE id = ?'

    def at(self, index: int) -> Any:
        """What was written as the row of this number."""
        return self._database.execute(self._query, (index,)).fetchone()[0]


class StoredExamples(Indexed):
    """The examples of one table of a whole file, [N]; each is read when it is asked for."""

    def __init__(self, path: Path, table: str, count: int, key: str) -> None:
        self._rows, self._count = _Rows(path, table), count
        self.contents = f"{key} {table}"
        """What stands for all that is in it: the key of the file, and the table."""

    def __len__(self) -> int:
        return self._count

    def at(self, index: int) -> Example:
        """The example of this number, read."""
        return _decoded(self._rows.at(index))


class StoredNumbers:
    """Some float32 numbers for each example of a table; they are read when they are asked for."""

    def __init__(self, path: Path, table: str) -> None:
        self._rows = _Rows(path, table)

    def at(self, index: int) -> Sequence[float]:
        """Those of the example of this number, read."""
        return array("f", self._rows.at(index))


class StoreWriter:
    """Fills tables of examples in a file that another name, `.partial`, marks as unfinished until `finish`.

    What is added between two `commit`s is there afterwards as a whole or not at all. Opened again with the key it was
    begun with, it goes on after the last commit; with another key it begins anew.
    """

    def __init__(self, path: Path, key: str, tables: Sequence[str]) -> None:
        self.path, self._partial = path, path.with_name(f"{path.name}.partial")
        path.unlink(missing_ok=True)
        if _state(self._partial, False).get("key") != key:
            for name in (self._partial.name, f"{self._partial.name}-journal"):
                path.with_name(name).unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(self._partial, isolation_level=None)
        self._key = key
        with _disk(path):
            self._database.execute("BEGIN")
            for table in tables:
                self._database.execute(f'CREATE TABLE IF NOT EXISTS "{table}" (id INTEGER PRIMARY KEY, example TEXT)')
            self._database.execute("CREATE TABLE IF NOT EXISTS state (id INTEGER PRIMARY KEY, value TEXT)")
            self._database.execute("COMMIT")
        state = _state(self._partial, False)
        self.notes: dict[str, Any] = state.get("notes", {})
        """What was committed last, beside the examples."""
        self._counts: dict[str, int] = {table: 0 for table in tables} | state.get("counts", {})
        self._database.execute("BEGIN")

    def add(self, table: str, examples: Sequence[Example]) -> None:
        """Append examples to a table. Raises OSError where the disk is full."""
        self._append(table, [_encoded(example) for example in examples])

    def add_numbers(self, table: str, numbers: Sequence[Sequence[float]]) -> None:
        """Append the float32 numbers of as many examples. Raises OSError where the disk is full."""
        self._append(table, [array("f", each).tobytes() for each in numbers])

    def _append(self, table: str, rows: Sequence[str | bytes]) -> None:
        with _disk(self.path):
            self._database.executemany(f'INSERT INTO "{table}" VALUES (?, ?)', enumerate(rows, self._counts[table]))
        self._counts[table] += len(rows)

    def commit(self, notes: Mapping[str, Any]) -> None:
        """Keep what was added, with notes (plain JSON). Raises OSError where the disk is full."""
        state = json.dumps({"key": self._key, "counts": self._counts, "notes": dict(notes)})
        with _disk(self.path):
            self._database.execute("INSERT OR REPLACE INTO state VALUES (0, ?)", (state,))
            self._database.execute("COMMIT")
            self._database.execute("BEGIN")

    def finish(self) -> None:
        """Give the file its name: from now on it is whole."""
        self._database.execute("COMMIT")
        self._database.close()
        self._partial.replace(self.path)


def read_store(path: Path, key: str) -> tuple[dict[str, StoredExamples], dict[str, Any]] | None:
    """The tables of a whole file that was made with this key, and its notes; None where there is none."""
    state = _state(path, True)
    if state.get("key") != key:
        return None
    return {table: StoredExamples(path, table, count, key) for table, count in state["counts"].items()}, state["notes"]


def read_numbers(path: Path, key: str) -> dict[str, StoredNumbers] | None:
    """The tables of numbers of a whole file that was made with this key; None where there is none."""
    state = _state(path, True)
    return {table: StoredNumbers(path, table) for table in state["counts"]} if state.get("key") == key else None


def read_notes(path: Path) -> dict[str, Any]:
    """The notes of a whole file, whatever its key; nothing where there is none."""
    return _state(path, True).get("notes", {})


def discard_store(path: Path) -> None:
    """Remove the file; what was opened of it can still be read."""
    path.unlink(missing_ok=True)


def _state(path: Path, whole: bool) -> dict[str, Any]:
    """What the last commit said; nothing where there is no file, or it is none of ours."""
    if not path.exists():
        return {}
    database = sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1" if whole else str(path), uri=whole)
    try:
        row = database.execute("SELECT value FROM state").fetchone()
        return json.loads(row[0]) if row else {}
    except sqlite3.DatabaseError:  # cut off before its first commit
        return {}
    finally:
        database.close()


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(errno.ENOSPC, f"the examples cannot be written to {path.parent}: {error}") from error


def _encoded(example: Example) -> str:
    assert not any(sequence.token_columns for sequence in example)
    rows = [[list(sequence.ids), _runs(sequence.weights), dict(sequence.columns)] for sequence in example]
    return json.dumps(rows, separators=(",", ":"))


def _runs(weights: Sequence[float]) -> list[tuple[int, float]]:
    """Each weight once, with how often it stands in a row."""
    return [(sum(1 for _ in same), weight) for weight, same in groupby(weights)]


def _decoded(text: str) -> list[TokenSequence]:
    return [
        TokenSequence(ids, [weight for count, weight in runs for _ in range(count)], columns=columns)
        for ids, runs, columns in json.loads(text)
    ]
