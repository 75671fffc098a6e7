"""From the records of a stage's sources to its examples, in memory or on the disk. Knows no token and no loss."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from accelerate.utils import broadcast_object_list, wait_for_everyone

from alignkit.batches import Example
from alignkit.config import InputError, content_hash
from alignkit.data.load import Part, load_parts, places_of
from alignkit.data.placed import placed
from alignkit.data.streamed import open_stream
from alignkit.mixture import Mixture, draws_of
from alignkit.options.mixture import MixedDataOptions, SourceOptions, is_streamed
from alignkit.options.shared import DataOptions
from alignkit.progress import progress
from alignkit.records import Record
from alignkit.runs import Run
from alignkit.store import StoredExamples, StoreWriter, discard_store, read_notes, read_store

R = TypeVar("R", bound=Record)
Make = Callable[[Sequence[R], bool, int], Sequence[Example | None]]
"""(records, held out, number of the first on its side) -> an example each, or None where it is skipped."""
Cut = Callable[[Sequence[Example]], Sequence[Example]]
"""A source's examples -> those that an epoch goes through in their place."""

BATCH = 1_000
"""Records that are tokenized at once."""
COMMIT = 10_000
"""Records after which what a stream has given is kept."""


@dataclass(frozen=True, slots=True)
class Examples(Generic[R]):
    """What a stage trains on and validates with."""

    train: Sequence[Example]
    validation: Sequence[Example]
    held_out: Sequence[R]
    """The records of `validation`; none where they were streamed."""

    def sizes(self) -> dict[str, int]:
        """How many there are, as the log names it; of a mixture also by source, and how many an epoch draws."""
        found: dict[str, int] = {}
        for side, examples in (("train", self.train), ("validation", self.validation)):
            found[f"data/{side}"] = len(examples)
            if isinstance(examples, Mixture):
                named = zip(examples.names, examples.sizes, strict=True)
                found |= {f"data/{side}/{name}": size for name, size in named}
                found |= {f"data/draws/{name}": n for name, n in zip(examples.names, examples.draws, strict=False)}
        return found


def read_examples(
    options: DataOptions,
    kind: type[R],
    make: Make[R],
    counters: Sequence[Counter[str]],
    run: Run,
    seed: int,
    tokens: Any,
    cut: Cut | None = None,
) -> Examples[R]:
    """The examples that `make` makes of all records; `counters` are what it counts in. With `cut`, those to train on
    are what it makes of each source's.

    With data.stream, they are written to the run's folder by rank 0, and read from there by all: a killed run goes on
    where it was, and one that has them all reads no record again. `tokens` is all that decides, beside the options,
    what `make` makes, such as the tokenizer's vocabulary. Raises InputError.
    """

    def made(records: Sequence[R], held_out: bool, first: int) -> Sequence[Example | None]:
        return placed(options, records, lambda some: make(some, held_out, first))

    held_out: list[R] = []
    if is_streamed(options):
        train, validation, sources = _stored(options, kind, made, counters, run, seed, tokens)
    else:
        parts, sources = load_parts(options, kind, seed)
        train, validation = [], []
        for part in parts:
            train.append([e for e in made(list(part.train), False, 0) if e is not None])
            records = list(part.validation)
            both = [(r, e) for r, e in zip(records, made(records, True, 0), strict=True) if e is not None]
            validation.append([e for _, e in both])
            held_out += [r for r, _ in both]
    run.add_data(sources)
    return Examples(*_mixed(options, train, validation, cut), held_out)


def discard_examples(run: Run) -> None:
    """Remove what `read_examples` has written: once the run is marked done, since until then it may be resumed."""
    if run.is_main:
        discard_store(_place(run))


def _place(run: Run) -> Path:
    return run.directory / "examples.sqlite"


def _mixed(
    options: DataOptions,
    train: Sequence[Sequence[Example]],
    validation: Sequence[Sequence[Example]],
    cut: Cut | None = None,
) -> tuple[Sequence[Example], Sequence[Example]]:
    """The examples of all sources as `options` mixes them. Raises InputError where a source has none to train on."""
    places = [place for place in places_of(options) if isinstance(place, SourceOptions)]
    names = [place.name for place in places] or [""]
    for name, part in zip(names, train, strict=True):
        if not part:
            of = f" of {name}" if name else ""
            raise InputError(f"data: no training record{of} is left; look at data.max_length and data.over_long")
    train = train if cut is None else [cut(part) for part in train]
    if not isinstance(options, MixedDataOptions) or not places:
        return train[0], validation[0]
    weights = [place.weight for place in places if place.weight is not None]
    draws = draws_of(names, [len(part) for part in train], weights or None, options.temperature)
    return Mixture(names, train, draws, [place.epochs for place in places]), Mixture(names, validation)


def _stored(
    options: DataOptions,
    kind: type[R],
    make: Make[R],
    counters: Sequence[Counter[str]],
    run: Run,
    seed: int,
    tokens: Any,
) -> tuple[list[StoredExamples], list[StoredExamples], list[dict[str, Any]]]:
    """(train, validation, sources): the examples on the disk, source by source, written first where they are not."""
    places = places_of(options)
    path = _place(run)
    # The id holds the hub's commit that was planned: of a run that has one, what is there needs no hub.
    known = {s["path"]: s for s in read_notes(path).get("sources", ()) if "revision" in s} if run.record.id else {}
    files = [
        [{name: known[place.path][name] for name in ("path", "revision")}]
        if place.path in known and not Path(str(place.path)).exists()
        else open_stream(place, kind, options.on_invalid).files
        for place in places
    ]
    key = content_hash([run.record.id, run.record.config, seed, files, tokens])

    def write() -> None:
        _write(path, key, options, kind, make, counters, seed, run.directory.name)

    tables, notes = _written_once(path, key, write, run)
    for counter, counted in zip(counters, notes["counts"], strict=True):
        counter.clear()
        counter.update(counted)
    train, validation = ([tables[f"{side} {n}"] for n in range(len(places))] for side in ("train", "validation"))
    return train, validation, notes["sources"]


def _written_once(
    path: Path, key: str, write: Callable[[], None], run: Run
) -> tuple[dict[str, StoredExamples], dict[str, Any]]:
    """The store, which rank 0 writes if need be. Where it fails, all ranks raise its error."""
    writing = path.with_name(f"{path.name}.writing")
    errors: list[Exception | None] = [None]
    if run.is_main:
        writing.touch()
    wait_for_everyone()
    if run.is_main:
        try:
            if read_store(path, key) is None:
                write()
        except Exception as error:  # whatever it is, the other ranks wait
            errors = [error]
        finally:
            writing.unlink()
    while writing.exists():  # a collective call would time out in a pass of hours
        time.sleep(0.2)
    broadcast_object_list(errors)
    if errors[0] is not None:
        raise errors[0]
    found = read_store(path, key)
    assert found is not None
    return found


def _write(
    path: Path,
    key: str,
    options: DataOptions,
    kind: type[R],
    make: Make[R],
    counters: Sequence[Counter[str]],
    seed: int,
    title: str,
) -> None:
    """Read the records twice: to count and split them, and to make examples of them."""
    names = [f"{side} {n}" for n in range(len(places_of(options))) for side in ("train", "validation")]
    writer = StoreWriter(path, key, names)
    for counter, counted in zip(counters, writer.notes.get("counts", ()), strict=False):
        counter.update(counted)
    parts, sources = load_parts(options, kind, seed)
    done: list[int] = writer.notes.get("done", [0] * len(parts))
    total = sum(len(part.train) + len(part.validation) for part in parts)

    def commit() -> None:
        writer.commit({"done": done, "counts": [dict(counter) for counter in counters], "sources": sources})
        advance(sum(done), {})

    with progress(f"{title}: tokens of records", total) as advance:
        advance(sum(done), {})
        for number, part in enumerate(parts):
            _fill(writer, number, part, make, done, commit)
    writer.finish()


def _fill(
    writer: StoreWriter,
    number: int,
    part: Part[R],
    make: Make[R],
    done: list[int],
    commit: Callable[[], None],
) -> None:
    """Write the examples of one source, from the record after the last commit on."""
    waiting: dict[bool, list[R]] = {False: [], True: []}
    seen = {False: 0, True: 0}

    def flush(held_out: bool) -> None:
        records = waiting[held_out]
        made = make(records, held_out, seen[held_out] - len(records)) if records else []
        writer.add(f"{'validation' if held_out else 'train'} {number}", [e for e in made if e is not None])
        records.clear()

    count = 0
    for record, held_out in part.told_apart():
        count += 1
        seen[held_out] += 1
        if count <= done[number]:
            continue
        waiting[held_out].append(record)
        if len(waiting[held_out]) == BATCH:
            flush(held_out)
        if count % COMMIT == 0:
            flush(False)
            flush(True)
            done[number] = count
            commit()
    flush(False)
    flush(True)
    done[number] = count
    commit()
