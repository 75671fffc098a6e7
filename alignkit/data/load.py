"""A stage's records: read or generated, drawn, and split in two, source by source. Knows neither tokens nor stages."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from random import Random
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

import numpy as np

from alignkit.config import InputError, content_hash
from alignkit.data import world
from alignkit.data.files import files_of
from alignkit.data.formats import convert
from alignkit.data.read import read
from alignkit.data.split import SplitDraws, cut_document, held_out
from alignkit.data.streamed import Chosen, Stream, open_stream
from alignkit.options.mixture import MixedDataOptions, SourceOptions, is_streamed
from alignkit.options.shared import DataOptions
from alignkit.records import Document, Record

R = TypeVar("R", bound=Record)
C = TypeVar("C", covariant=True)


class Records(Protocol[C]):
    """Some records, held or read anew whenever they are asked for."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[C]: ...


@dataclass(frozen=True, slots=True)
class Part(Generic[R]):
    """The records of one source."""

    name: str
    """What a mixture calls it; empty where there is but one source."""
    train: Records[R]
    validation: Records[R]

    def told_apart(self) -> Iterator[tuple[R, bool]]:
        """Every record, and whether it is held out; each side in its order."""
        if isinstance(self.validation, Chosen):
            return self.validation.told_apart()
        return chain(((one, False) for one in self.train), ((one, True) for one in self.validation))


def load_data(options: DataOptions, as_: type[R], seed: int) -> tuple[list[R], list[R], list[dict[str, Any]]]:
    """(train, validation, sources): the records of type `as_` that `options` names, those of a mixture in a row.

    A source is {path, sha256, rows}, and {rejected: count, reasons} where rows were skipped. With `rows`, that many
    records are drawn by the seed. A single document is cut in two instead of being held out whole. Raises InputError.
    """
    parts, sources = load_parts(options, as_, seed)
    return [r for part in parts for r in part.train], [r for part in parts for r in part.validation], sources


def load_parts(options: DataOptions, as_: type[R], seed: int) -> tuple[list[Part[R]], list[dict[str, Any]]]:
    """The same source by source: a mixture's records are split together, so that what begins alike in two of its
    sources falls on one side. With `stream`, the records are counted and split, and not held."""
    if is_streamed(options):
        streams = [open_stream(place, as_, options.on_invalid) for place in places_of(options)]
        return _parts(options, streams, seed), [file for stream in streams for file in stream.files]
    read = [
        _generated(options, as_, seed) if options.world else _read(place, options.on_invalid, as_)
        for place in places_of(options)
    ]
    if options.rows is not None and options.rows < len(read[0][0]):
        read = [(Random(seed).sample(read[0][0], options.rows), read[0][1])]
    return _parts(options, [records for records, _ in read], seed), [
        source for _, sources in read for source in sources
    ]


def places_of(options: DataOptions) -> Sequence[DataOptions | SourceOptions]:
    """The sources of a mixture, or the options themselves where there is but one."""
    return (options.sources if isinstance(options, MixedDataOptions) else None) or [options]


def _parts(options: DataOptions, sources: Sequence[list[R] | Stream[R]], seed: int) -> list[Part[R]]:
    share = options.validation
    draws = [SplitDraws(records, seed) for records in sources] if share else []
    counts = [len(each) for each in draws] or [sum(1 for _ in records) for records in sources]
    whole = [
        0 < share < 1 and count == 1 and isinstance(next(iter(records)), Document)
        for count, records in zip(counts, sources, strict=True)
    ]
    others = [each for each, cut in zip(draws, whole, strict=True) if not cut] if share else []
    held = held_out(others, share) if share else np.zeros(sum(counts), np.bool_)
    parts: list[Part[R]] = []
    for place, records, cut in zip(places_of(options), sources, whole, strict=True):
        name = place.name if isinstance(place, SourceOptions) else ""
        if cut:
            head, tail = cut_document(cast(Document, next(iter(records))), share)
            parts.append(Part(name, [cast(R, head)], [cast(R, tail)]))
            continue
        count = counts[len(parts)]
        out, held = held[:count], held[count:]
        if name and out.all():
            raise InputError(
                f"data.sources: all {count} records of {name} are held out; lower data.validation, or leave this "
                "source out"
            )
        if isinstance(records, Stream):
            parts.append(Part(name, Chosen(records, out, False), Chosen(records, out, True)))
        else:
            parts.append(Part(name, list(compress(records, ~out)), list(compress(records, out))))
    return parts


def _generated(options: DataOptions, as_: type[R], seed: int) -> tuple[list[R], list[dict[str, Any]]]:
    assert options.world is not None and options.rows is not None
    made = world.generate(options.world, options.rows, seed, options.split or "train")
    try:
        records = [cast(R, convert(record, as_)) for record in made]
    except ValueError as error:
        raise InputError(f"`data.world: {options.world}` cannot serve here: {error}") from error
    source = {"path": f"world:{options.world}", "sha256": content_hash(made), "rows": len(made)}
    return records, [source]


def _read(
    place: DataOptions | SourceOptions, on_invalid: Literal["error", "skip"], as_: type[R]
) -> tuple[list[R], list[dict[str, Any]]]:
    assert place.path is not None
    records: list[R] = []
    sources: list[dict[str, Any]] = []
    for file in files_of(place.path, place.split):
        result = read(file, as_, place.format, on_invalid)
        records += result.records
        source: dict[str, Any] = {"path": str(file), "sha256": result.sha256, "rows": result.rows}
        if result.rejected:
            source["rejected"] = len(result.rejected)
            source["reasons"] = [f"line {line}: {reason}" for line, reason in result.rejected[:5]]
        sources.append(source)
    return records, sources
