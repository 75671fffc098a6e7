"""Records one by one from whatever a path holds, any number of them. Knows neither layouts nor forms."""

from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from alignkit.config import InputError
from alignkit.data.formats import UnknownForm, known_forms
from alignkit.data.layouts import Bad
from alignkit.data.read import RowReader
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


def entries_of(path: str, as_: type[R], format: str = "auto", split: str | None = None) -> Iterator[Entry[R]]:
    """Every row of a file, a folder or a hub's data set, in order, with its records of type `as_`.

    Raises InputError for a file that is no data, on reaching the place where it is damaged.
    """
    reader = RowReader(as_, format)
    for source in sources_of(path, split, None)[0]:
        reader.form = reader.format
        for line, row in source.rows:
            try:
                yield Entry(source, line, row, reader.records(row), None)
            except UnknownForm as error:
                yield Entry(source, line, row, [], f"{error}. {known_forms('`--format`')}")
            except ValueError as error:
                yield Entry(source, line, row, [], str(error))


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
