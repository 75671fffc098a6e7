"""The door: any source into shards of valid records, each row accounted for. Does not know what is done to them."""

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from alignkit.config import InputError
from alignkit.data.account import list_reject
from alignkit.data.corpus.rows import row_of
from alignkit.data.importing import KINDS, LONGEST, Tell
from alignkit.data.stream import entries_of
from alignkit.data.write import to_line
from alignkit.lineage import atomic_write


@dataclass(frozen=True)
class Shards:
    """A source as shards of rows."""

    folder: Path
    as_: str
    """What the records are: a name in KINDS."""
    rows: int
    """Rows of the source."""
    rejected: int
    """Those among them that hold no record."""
    records: list[int]
    """Records in each shard."""

    @property
    def count(self) -> int:
        """How many shards there are."""
        return len(self.records)


def make_shards(source: str, work: Path, as_: str, format: str, megabytes: int, tell: Tell) -> Shards:
    """Write the records of every row of a source into `work`/shards, the faulty rows into `work`/rejects.jsonl.

    Shards that an earlier start has finished are taken as they are. Raises InputError where no row holds a record.
    """
    folder, done = work / "shards", work / "shards.json"
    if done.is_file():
        return Shards(folder, **json.loads(done.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    rows = rejected = 0
    records: list[int] = []
    first = ""
    with ExitStack() as files:
        rejects = files.enter_context((work / "rejects.jsonl").open("w", encoding="utf-8"))
        shard: TextIO | None = None
        for entry in entries_of(source, KINDS[as_], format):
            rows += 1
            if not entry.records:
                rejected += 1
                reason = (entry.fault or f"holds no {KINDS[as_].__name__}")[:LONGEST]
                first = first or f"{entry.source.name}:{entry.line}: {reason}"
                list_reject(rejects, entry.source.name, entry.line, reason, entry.row)
            for record in entry.records:
                if shard is None or shard.tell() >= megabytes << 20:
                    shard = files.enter_context((folder / f"{len(records):05d}.jsonl").open("w", encoding="utf-8"))
                    records.append(0)
                row = row_of(sum(records), entry.source.name, entry.line, to_line(record).rstrip("\n"))
                shard.write(json.dumps(row, ensure_ascii=False) + "\n")
                records[-1] += 1
            if rows % 1000 == 0:
                tell(entry.source.name, rows)
    if not records:
        raise InputError(
            f"{source}: none of its {rows:,} rows can be read as {as_}. {first}" if rows else f"{source}: holds no row"
        )
    made = Shards(folder, as_, rows, rejected, records)
    values: dict[str, Any] = asdict(made)
    del values["folder"]
    atomic_write(done, json.dumps(values))
    return made
