"""`alignkit data mix`: records of several sources by their shares, in one seeded order. Knows not how it is run."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep
from pydantic import BaseModel

from alignkit.config import InputError
from alignkit.data.corpus.execute import Stage, execute
from alignkit.data.corpus.gather import accounts_of
from alignkit.data.corpus.jobs import check_apart, job_folder
from alignkit.data.corpus.shards import Shards, make_shards
from alignkit.data.importing import check_out
from alignkit.data.stream import kind_at
from alignkit.data.taking import KINDS, Tell
from alignkit.data.work_folder import SUBMITTED
from alignkit.lineage import atomic_write, replacing
from alignkit.mixture import draws_of
from alignkit.options.corpus import MixOptions

BUCKETS = 256
"""Most pieces of the result that are put in order one at a time; each is a file that every task may write to."""


class MixedSource(BaseModel):
    """What became of one source. `records` holds the records of its `rows`, less those `rejected`."""

    name: str
    path: str
    rows: int
    rejected: int
    records: int
    drawn: int
    """Records of the result that are its."""
    left_out: int
    """Records of it that are not in the result."""


class Mixed(BaseModel):
    """What a mixture holds."""

    as_: str
    out: str
    records: int
    sources: list[MixedSource]


def mix(out: Path, as_: str | None, options: MixOptions, tell: Tell) -> Mixed | None:
    """Write records of the sources to `out` by their shares, each as often as any other of its source, or once more.

    An id gets its source's name before it, and from the second time on a count after it. Returns the account; None
    where the work was only submitted to Slurm. Raises InputError.
    """
    for source in options.sources:
        check_out(source.path, out)
    check_apart([out, *accounts_of(out).values()], [source.path for source in options.sources])
    as_ = as_ or _kind(options)
    if as_ not in KINDS:
        raise InputError(f"--as {as_}: give one of {', '.join(KINDS)}")
    given = options.model_dump(mode="json", exclude={"work"})
    decides = ["mix", as_, given, options.work.shard_megabytes, str(out)]
    with job_folder(out, [one.path for one in options.sources], decides) as folder:
        return _work(folder, out, as_, options, tell)


def _work(folder: Path, out: Path, as_: str, options: MixOptions, tell: Tell) -> Mixed | None:
    work = options.work
    try:
        places = [folder / str(number) for number in range(len(options.sources))]
        shards = [
            make_shards(one.path, place, as_, one.format, work.shard_megabytes, tell, one.split)
            for one, place in zip(options.sources, places, strict=True)
        ]
        mixed = _shares(out, as_, options, shards)
    except InputError:
        shutil.rmtree(folder)
        raise
    drawn = sum(held.bytes / one.records * one.drawn for held, one in zip(shards, mixed.sources, strict=True))
    buckets = min(BUCKETS, mixed.records, 1 + int(drawn) // (work.shard_megabytes << 20))
    _positions(places, mixed, options.seed)
    several = len(shards) > 1
    stages = [
        Stage("draw", sum(held.count for held in shards), [Draw(shards, mixed, folder / "drawn", buckets, several)]),
        Stage("order", buckets, [Order(folder / "drawn", folder / "ordered")]),
        Stage("join", 1, [Join(folder, out, mixed)]),
    ]
    if not execute(stages, folder / "stages", work, tell):
        (folder / SUBMITTED).touch()
        return None
    shutil.rmtree(folder)
    return mixed


def _kind(options: MixOptions) -> str:
    kinds = {source.path: kind_at(source.path, source.format, source.split) for source in options.sources}
    if len(set(kinds.values())) > 1:
        said = "; ".join(f"{path}: {kind}" for path, kind in kinds.items())
        raise InputError(f"the sources hold different kinds of records ({said}); name one kind for all with --as")
    return next(iter(kinds.values()))


def _shares(out: Path, as_: str, options: MixOptions, shards: list[Shards]) -> Mixed:
    names = [source.name for source in options.sources]
    sizes = [sum(held.records) for held in shards]
    weights = [source.weight for source in options.sources if source.weight is not None]
    draws = draws_of(names, sizes, weights or None, options.temperature, options.records)
    made: list[MixedSource] = []
    for source, held, size, drawn in zip(options.sources, shards, sizes, draws, strict=True):
        if source.epochs is not None and drawn > source.epochs * size:
            raise InputError(
                f"sources: {drawn:,} records are to come of the {size:,} of {source.name}, each {drawn / size:.2f} "
                f"times, and its `epochs` allows {source.epochs:g}; lower its weight or `records`, or raise `epochs`"
            )
        counts = {"rows": held.rows, "rejected": held.rejected, "records": size, "drawn": drawn}
        made.append(MixedSource(name=source.name, path=source.path, **counts, left_out=max(0, size - drawn)))
    return Mixed(as_=as_, out=str(out), records=sum(draws), sources=made)


def _positions(places: list[Path], mixed: Mixed, seed: int) -> None:
    """Where each record of the result goes, and how often each of a source comes: 12 bytes a record in memory."""
    order = np.random.default_rng([seed, len(places)]).permutation(mixed.records)
    for number, (place, source) in enumerate(zip(places, mixed.sources, strict=True)):
        often, once_more = divmod(source.drawn, source.records)
        times = np.full(source.records, often, np.uint32)
        times[np.random.default_rng([seed, number]).permutation(source.records)[:once_more]] += 1
        np.save(place / "times.npy", times)
        np.save(place / "positions.npy", order[: source.drawn])
        order = order[source.drawn :]


class Draw(PipelineStep):
    """The records of one shard as often as they come, each into the bucket of its place in the result."""

    type = "alignkit"
    name = "draw"

    def __init__(self, shards: list[Shards], mixed: Mixed, out: Path, buckets: int, several: bool) -> None:
        super().__init__()
        self.tasks = [(source, shard) for source, held in enumerate(shards) for shard in range(held.count)]
        self.shards, self.mixed, self.out, self.several = shards, mixed, out, several
        self.length = -(-mixed.records // buckets)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Writes; nothing follows."""
        source, shard = self.tasks[rank]
        held = self.shards[source]
        place = held.folder.parent
        times = np.load(place / "times.npy", mmap_mode="r")
        start = int(np.sum(times[: sum(held.records[:shard])], dtype=np.int64))
        positions = np.load(place / "positions.npy", mmap_mode="r")
        with ExitStack() as stack, (held.folder / f"{shard:05d}.jsonl").open("rb") as rows:
            files: dict[int, Any] = {}
            for row in map(json.loads, rows):
                for copy in range(int(times[row["number"]])):
                    at, start = int(positions[start]), start + 1
                    bucket = at // self.length
                    if bucket not in files:
                        path = self.out / f"{bucket:05d}" / f"{rank:05d}.jsonl"
                        path.parent.mkdir(parents=True, exist_ok=True)
                        files[bucket] = stack.enter_context(path.open("w", encoding="utf-8"))
                    files[bucket].write(f"{at} {self._named(row['record'], self.mixed.sources[source].name, copy)}\n")
        yield from ()

    def _named(self, line: str, name: str, copy: int) -> str:
        if '"id"' not in line:
            return line
        record = json.loads(line)
        if record.get("id") is None:
            return line
        # A # of its own is doubled, so that no id with a count is another's own.
        id = (f"{name}/" if self.several else "") + record["id"].replace("#", "##") + (f"#{copy + 1}" if copy else "")
        if id == record["id"]:
            return line
        return json.dumps({**record, "id": id}, ensure_ascii=False, separators=(",", ":"))


class Order(PipelineStep):
    """One bucket put in order."""

    type = "alignkit"
    name = "order"

    def __init__(self, drawn: Path, out: Path) -> None:
        super().__init__()
        self.drawn, self.out = drawn, out

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Writes; nothing follows."""
        lines: list[tuple[int, str]] = []
        for path in (self.drawn / f"{rank:05d}").glob("*.jsonl"):
            for line in path.open(encoding="utf-8"):
                at, _, record = line.partition(" ")
                lines.append((int(at), record))
        with replacing(self.out / f"{rank:05d}.jsonl") as file:
            file.writelines(record for _, record in sorted(lines))
        yield from ()


class Join(PipelineStep):
    """The buckets as one file, and the account."""

    type = "alignkit"
    name = "join"

    def __init__(self, folder: Path, out: Path, mixed: Mixed) -> None:
        super().__init__()
        self.folder, self.out, self.mixed = folder, out, mixed

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Raises RuntimeError where a record is lost."""
        with replacing(self.out) as out:
            count = 0
            for path in sorted((self.folder / "ordered").glob("*.jsonl")):
                with path.open(encoding="utf-8") as lines:
                    for line in lines:
                        out.write(line)
                        count += 1
            if count != self.mixed.records:
                raise RuntimeError(f"{self.mixed.records} records were drawn and {count} came")
        accounts = accounts_of(self.out)
        if any(source.rejected for source in self.mixed.sources):
            with replacing(accounts["rejects"]) as rejects:
                for number in range(len(self.mixed.sources)):
                    with (self.folder / str(number) / "rejects.jsonl").open(encoding="utf-8") as listed:
                        shutil.copyfileobj(listed, rejects)
        else:
            accounts["rejects"].unlink(missing_ok=True)
        accounts["removed"].unlink(missing_ok=True)
        atomic_write(accounts["report"], self.mixed.model_dump_json(indent=2) + "\n")
        (self.folder / "key.json").unlink()
        yield from ()
