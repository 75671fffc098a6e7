"""Records one by one from whatever a path holds, any number of them. Knows neither layouts nor forms."""

from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from alignkit.config import InputError
from alignkit.data.ids import Ids
from alignkit.data.layouts import Bad
from alignkit.data.read import RowReader, read_rows
from alignkit.data.sources import Source, sources_of
from alignkit.data.taking import KINDS
from alignkit.records import Record

R = TypeVar("R", bound=Record)


class Entry(NamedTuple, Generic[R]):
    """What became of one row."""

    source: Source
    line: int
    row: Any
    records: list[R]
    fault: str | None
    """Why the row holds none; the row is not used."""


def entries_of(
    path: str, as_: type[R], format: str = "auto", split: str | None = None, ids: Ids | None = None
) -> Iterator[Entry[R]]:
    """Every row of a file, a folder or a hub's data set, in order, with its records of type `as_`.

    With `ids`, an id of which its file has another is a fault.
    Raises InputError for a file that is no data, on reaching the place where it is damaged.
    """
    for source in sources_of(path, split, None)[0]:
        for row in read_rows(source.rows, as_, format, source.short, ids, "`--format`"):
            yield Entry(source, *row)


def kind_at(path: str, format: str = "auto", split: str | None = None) -> str:
    """What a path holds, by its first good row: the name in KINDS of the richest kind that it can be read as.

    Raises InputError where that cannot be told; `--as` says it then.
    """
    richest = ("feedback", "comparisons", "demonstrations", "corpus", "prompts")
    for source in sources_of(path, split, None)[0]:
        for _, row in source.rows:
            if isinstance(row, Bad):
                continue
            for name in richest:
                try:
                    found = RowReader(KINDS[name], format).records(row)
                except ValueError:
                    continue
                if found:
                    return name
            raise InputError(
                f"{source.name}: it cannot be told what its rows are; name it with --as {'|'.join(KINDS)}"
            )
    raise InputError(f"{path}: holds no row")
