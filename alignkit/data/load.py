"""A stage's records: read or generated, drawn, and split in two. Knows neither tokens nor stages."""

from random import Random
from typing import Any, TypeVar, cast

from alignkit.config import InputError, content_hash
from alignkit.data import world
from alignkit.data.files import files_of
from alignkit.data.formats import convert
from alignkit.data.read import read
from alignkit.data.split import cut_document, hold_out
from alignkit.options.shared import DataOptions
from alignkit.records import Document, Record

R = TypeVar("R", bound=Record)


def load_data(options: DataOptions, as_: type[R], seed: int) -> tuple[list[R], list[R], list[dict[str, Any]]]:
    """(train, validation, sources): the records of type `as_` that `options` names.

    A source is {path, sha256, rows}, and {rejected: count, reasons} where rows were skipped. With `rows`, that many
    records are drawn by the seed. A single document is cut in two instead of being held out whole. Raises InputError.
    """
    records, sources = _generated(options, as_, seed) if options.world else _read(options, as_)
    if options.rows is not None and options.rows < len(records):
        records = Random(seed).sample(records, options.rows)
    if len(records) == 1 and isinstance(records[0], Document) and 0 < options.validation < 1:
        head, tail = cut_document(records[0], options.validation)
        return [cast(R, head)], [cast(R, tail)], sources
    train, validation = hold_out(records, options.validation, seed)
    return train, validation, sources


def _generated(options: DataOptions, as_: type[R], seed: int) -> tuple[list[R], list[dict[str, Any]]]:
    assert options.world is not None and options.rows is not None
    made = world.generate(options.world, options.rows, seed, options.split or "train")
    try:
        records = [cast(R, convert(record, as_)) for record in made]
    except ValueError as error:
        raise InputError(f"`data.world: {options.world}` cannot serve here: {error}") from error
    source = {"path": f"world:{options.world}", "sha256": content_hash(made), "rows": len(made)}
    return records, [source]


def _read(options: DataOptions, as_: type[R]) -> tuple[list[R], list[dict[str, Any]]]:
    assert options.path is not None
    records: list[R] = []
    sources: list[dict[str, Any]] = []
    for file in files_of(options.path, options.split):
        result = read(file, as_, options.format, options.on_invalid)
        records += result.records
        source: dict[str, Any] = {"path": str(file), "sha256": result.sha256, "rows": result.rows}
        if result.rejected:
            source["rejected"] = len(result.rejected)
            source["reasons"] = [f"line {line}: {reason}" for line, reason in result.rejected[:5]]
        sources.append(source)
    return records, sources
