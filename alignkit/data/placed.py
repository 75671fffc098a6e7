"""Which row of a data set an error is about: its file and line. Knows neither tokens nor stages."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from alignkit.config import InputError
from alignkit.data.load import places_of
from alignkit.data.streamed import open_stream
from alignkit.options.shared import DataOptions
from alignkit.records import Prompt, Record

R = TypeVar("R", bound=Record)
T = TypeVar("T")


def placed(options: DataOptions, records: Sequence[R], work: Callable[[Sequence[R]], T]) -> T:
    """What `work` makes of records that `options` names. Raises its InputError as that of the first record that it
    fails on alone, after the place of that record."""
    try:
        return work(records)
    except InputError:
        if not records:
            raise
        one = _first_at_fault(records, work)
        alone = _fault(work, one)
        place = None if alone is None else place_of(options, one[0])
        if place is None:
            raise
        raise InputError(f"{place}: {alone}") from alone


def place_of(options: DataOptions, record: Record) -> str | None:
    """FILE:LINE of the first row that gives the record (a prompt may have got tools since); None where none does."""
    for place in places_of(options):
        if place.path is None:  # a built-in world
            continue
        with suppress(InputError):
            for where, found in open_stream(place, type(record), options.on_invalid).by_row():
                if any(_same(one, record) for one in found):
                    return where
    return None


def _same(one: Record, other: Record) -> bool:
    if isinstance(one, Prompt) and isinstance(other, Prompt):
        return (one.messages, one.columns) == (other.messages, other.columns)
    return one == other


def _first_at_fault(records: Sequence[R], work: Callable[[Sequence[R]], object]) -> Sequence[R]:
    """The one record, found by halves."""
    while len(records) > 1:
        first = records[: len(records) // 2]
        records = first if _fault(work, first) else records[len(first) :]
    return records


def _fault(work: Callable[[Sequence[R]], object], records: Sequence[R]) -> InputError | None:
    try:
        work(records)
    except InputError as error:
        return error
    return None
