"""The records of a source, read anew whenever they are asked for and never held. Knows neither tokens nor stages."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from alignkit.config import InputError
from alignkit.data.files import files_of, rows_of
from alignkit.data.ids import Ids
from alignkit.data.layouts import Rows
from alignkit.data.read import check_rows, read_rows
from alignkit.data.sources import hub_revision, hub_rows
from alignkit.lineage import sha256_file
from alignkit.options.mixture import SourceOptions
from alignkit.options.shared import DataOptions
from alignkit.records import Record

R = TypeVar("R", bound=Record)


@dataclass
class Stream(Generic[R]):
    """All records of a file, a folder or a hub's data set, in order."""

    place: DataOptions | SourceOptions
    as_: type[R]
    on_invalid: Literal["error", "skip"]
    files: list[dict[str, Any]]
    """{path, sha256} of each file, {path, revision} of a hub's data set; with `rows`, and `rejected` and `reasons`
    where rows were skipped, once all have been read."""

    def __iter__(self) -> Iterator[R]:
        for file in self.files:
            rejected: list[tuple[int, str]] = []
            rows = records = faults = 0
            read = read_rows(self._rows(file), self.as_, self.place.format, file["path"], Ids())
            for line, _, found, fault in read:
                rows += 1
                records += len(found)
                if fault is not None:
                    faults += 1
                    rejected = [*rejected[:4], (line, fault)] if faults <= 5 else rejected
                    if self.on_invalid == "error":
                        break
                yield from found
            check_rows(file["path"], self.as_, rejected, rows, records, self.on_invalid)
            file["rows"] = rows
            if faults:
                file["rejected"] = faults
                file["reasons"] = [f"line {line}: {reason}" for line, reason in rejected]

    def by_row(self) -> Iterator[tuple[str, list[R]]]:
        """FILE:LINE of every row, and its records."""
        for file in self.files:
            name = file["path"]
            for line, _, found, _ in read_rows(self._rows(file), self.as_, self.place.format, name, None):
                yield f"{name}:{line}", found

    def _rows(self, file: dict[str, Any]) -> Rows:
        if "revision" in file:
            return hub_rows(file["path"], self.place.split or "train", revision=file["revision"])
        return rows_of(Path(file["path"]))


def open_stream(place: DataOptions | SourceOptions, as_: type[R], on_invalid: Literal["error", "skip"]) -> Stream[R]:
    """The stream of what `place` names, its files hashed. Raises InputError where there is nothing of that name."""
    assert place.path is not None
    if Path(place.path).exists():
        files = [{"path": str(file), "sha256": _sha256(file)} for file in files_of(place.path, place.split)]
    else:
        files = [{"path": place.path, "revision": hub_revision(place.path)}]
    return Stream(place, as_, on_invalid, files)


def _sha256(path: Path) -> str:
    facts = path.stat()
    return _sha256_of(path, facts.st_size, facts.st_mtime_ns)


@cache
def _sha256_of(path: Path, size: int, changed: int) -> str:
    """Once in a process, as long as neither size nor time of change differs."""
    return sha256_file(path)


@dataclass(frozen=True, slots=True)
class Chosen(Generic[R]):
    """One side of a stream's records."""

    stream: Stream[R]
    held_out: NDArray[np.bool_]
    """[N] one for each record of the stream."""
    side: bool
    """Whether it is those that are held out."""

    def __len__(self) -> int:
        held_out = int(np.count_nonzero(self.held_out))
        return held_out if self.side else len(self.held_out) - held_out

    def __iter__(self) -> Iterator[R]:
        return (record for record, held_out in self.told_apart() if held_out == self.side)

    def told_apart(self) -> Iterator[tuple[R, bool]]:
        """The records of both sides, and whether each is held out."""
        ends = object()
        for record, held_out in zip_longest(self.stream, self.held_out, fillvalue=ends):
            if record is ends or held_out is ends:
                raise InputError(f"{self.stream.place.path}: changed while it was being read; run it again")
            yield record, bool(held_out)
