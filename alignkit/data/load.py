"""A stage's records: read or generated, drawn, and split in two, source by source. Knows neither tokens nor stages."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any, Generic, Literal, TypeVar, cast

from alignkit.config import InputError, content_hash
from alignkit.data import world
from alignkit.data.files import files_of
from alignkit.data.formats import convert
from alignkit.data.read import read
from alignkit.data.split import cut_document, draws_of, held_out
from alignkit.options.mixture import MixedDataOptions, SourceOptions
from alignkit.options.shared import DataOptions
from alignkit.records import Document, Record

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Part(Generic[R]):
    """The records of one source."""

    name: str
    """What a mixture calls it; empty where there is but one source."""
    train: Collection[R]
    validation: Collection[R]


def load_data(options: DataOptions, as_: type[R], seed: int) -> tuple[list[R], list[R], list[dict[str, Any]]]:
    """(train, validation, sources): the records of type `as_` that `options` names, those of a mixture in a row.

    A source is {path, sha256, rows}, and {rejected: count, reasons} where rows were skipped. With `rows`, that many
    records are drawn by the seed. A single document is cut in two instead of being held out whole. Raises InputError.
    """
    parts, sources = load_parts(options, as_, seed)
    return [r for part in parts for r in part.train], [r for part in parts for r in part.validation], sources


def load_parts(options: DataOptions, as_: type[R], seed: int) -> tuple[list[Part[R]], list[dict[str, Any]]]:
    """The same source by source: a mixture's records are split together, so that what begins alike in two of its
    sources falls on one side."""
    places = options.sources or [] if isinstance(options, MixedDataOptions) else []
    if places:
        read = [_read(place, options.on_invalid, as_) for place in places]
    else:
        read = [_generated(options, as_, seed) if options.world else _read(options, options.on_invalid, as_)]
    if options.rows is not None and options.rows < len(read[0][0]):
        read = [(Random(seed).sample(read[0][0], options.rows), read[0][1])]
    sides = _split([records for records, _ in read], options.validation, seed)
    names = [place.name for place in places] or [""]
    for name, (train, validation) in zip(names, sides, strict=True):
        if name and not train:
            raise InputError(
                f"data.sources: all {len(validation)} records of {name} are held out; lower data.validation, or leave "
                "this source out"
            )
    parts = [Part(name, *side) for name, side in zip(names, sides, strict=True)]
    return parts, [source for _, sources in read for source in sources]


def _split(sources: Sequence[list[R]], share: float, seed: int) -> list[tuple[list[R], list[R]]]:
    """(train, validation) of each source."""
    whole = [0 < share < 1 and len(records) == 1 and isinstance(records[0], Document) for records in sources]
    others = [record for records, cut in zip(sources, whole, strict=True) if not cut for record in records]
    held = iter(held_out(draws_of(others, seed), share).tolist() if others else [])
    sides: list[tuple[list[R], list[R]]] = []
    for records, cut in zip(sources, whole, strict=True):
        if cut:
            head, tail = cut_document(cast(Document, records[0]), share)
            sides.append(([cast(R, head)], [cast(R, tail)]))
            continue
        out = list(islice(held, len(records)))
        train = [record for record, is_out in zip(records, out, strict=True) if not is_out]
        sides.append((train, [record for record, is_out in zip(records, out, strict=True) if is_out]))
    return sides


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
