"""Parquet and Arrow files into rows as JSON would hold them. Does not know what a row means."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

from alignkit.config import InputError
from alignkit.data.layouts import Bad, Rows

BATCH = 256
"""Rows that are turned into Python objects at once."""


def _parquet_rows(path: Path) -> Rows:
    parquet = import_module("pyarrow.parquet")  # loads Arrow, which few imports need
    # What is buffered ahead is kept until the end: the whole file.
    with _faults(path, "Parquet"), parquet.ParquetFile(path, pre_buffer=False) as table:
        yield from _numbered(table.iter_batches(BATCH))


def _arrow_rows(path: Path) -> Rows:
    """Both kinds of Arrow file: with a table of contents (Feather), and the plain stream that `datasets` writes."""
    arrow = import_module("pyarrow")
    with _faults(path, "Arrow"), arrow.OSFile(str(path)) as file:
        if file.read(6) == b"ARROW1":
            table = arrow.ipc.open_file(file)
            batches = (table.get_batch(number) for number in range(table.num_record_batches))
        else:
            file.seek(0)
            batches = iter(arrow.ipc.open_stream(file))
        parts = (batch.slice(start, BATCH) for batch in batches for start in range(0, batch.num_rows, BATCH))
        yield from _numbered(parts)


TABLES: dict[str, Callable[[Path], Rows]] = {
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
    ".feather": _arrow_rows,
}
"""The tables that are read, by how their names end."""


@contextmanager
def _faults(path: Path, kind: str) -> Iterator[None]:
    arrow = import_module("pyarrow")
    try:
        yield
    except (arrow.ArrowException, ValueError) as error:  # ValueError: names in it that are no UTF-8
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: is cut off, damaged or no {kind} file ({reason}); fetch it again") from error
    except OSError as error:  # Arrow's own have no number
        if error.errno is not None:
            raise
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: is cut off or damaged ({reason}); fetch it again") from error


def _numbered(batches: Iterator[Any]) -> Rows:
    number = 0
    for batch in batches:
        batch.validate(full=True)  # a damaged file's offsets may point anywhere
        for row in batch.to_pylist():
            number += 1
            yield number, as_json(row)


def as_json(row: Mapping[str, Any]) -> dict[str, Any] | Bad:
    """The row without the fields that are null, since a table cannot leave them out; times as ISO 8601 text."""
    try:
        return {key: _plain(value, key) for key, value in row.items() if value is not None}
    except ValueError as error:
        return Bad(str(error), str(row)[:1000])


def _plain(value: Any, field: str) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{field}.{key}") for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item, field) for item in value]
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    raise ValueError(f"field `{field}` holds {type(value).__name__}, which is no text; leave it out")
