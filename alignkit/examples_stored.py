"""A streamed stage's examples in the run's folder: written there once, by rank 0, and read by all ranks.

It knows no token, no loss and no mixture.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list, wait_for_everyone

from alignkit.batches import Example
from alignkit.config import content_hash
from alignkit.data.load import Part, load_parts, places_of
from alignkit.data.streamed import open_stream
from alignkit.options.shared import DataOptions
from alignkit.progress import progress
from alignkit.records import Record
from alignkit.runs import Run
from alignkit.store import StoredExamples, StoreWriter, discard_store, read_notes, read_store

R = TypeVar("R", bound=Record)
Make = Callable[[Sequence[R], bool, int], Sequence[Example | None]]
"""(records, held out, number of the first on its side) -> an example each, or None where it is skipped."""

BATCH = 1_000
"""Records that are tokenized at once."""
COMMIT = 10_000
"""Records after which what a stream has given is kept."""


def stored_examples(
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


def discard_examples(run: Run) -> None:
    """Remove what `read_examples` has written: once the run is marked done, since until then it may be resumed."""
    if run.is_main:
        discard_store(_place(run))


def _place(run: Run) -> Path:
    return run.directory / "examples.sqlite"


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
