"""The door: any source into shards of valid records, each row accounted for. Does not know what is done to them."""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from alignkit.config import InputError
from alignkit.data.account import total_of
from alignkit.data.corpus.rows import row_of
from alignkit.data.sources import sources_of
from alignkit.data.taking import KINDS, Taker, Tell
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
    bytes: int
    """Of all records, as lines."""
    ignored: list[str]
    """Files of the folder that by their names hold no data."""

    @property
    def count(self) -> int:
        """How many shards there are."""
        return len(self.records)


def make_shards(
    source: str, work: Path, as_: str, format: str, megabytes: int, tell: Tell, split: str | None = None
) -> Shards:
    """Write the records of every row of a source into `work`/shards, the faulty rows into `work`/rejects.jsonl.

    Shards that an earlier start has finished are taken as they are. Raises InputError where no row holds a record.
    """
    folder, done = work / "shards", work / "shards.json"
    if done.is_file():
        return Shards(folder, **json.loads(done.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    records: list[int] = []
    number = size = 0
    sources, ignored = sources_of(source, split, None)
    with ExitStack() as files:
        rejects = files.enter_context((work / "rejects.jsonl").open("w", encoding="utf-8"))
        shards = files.enter_context(ExitStack())
        taker = Taker(KINDS[as_], format, rejects)
        shard: TextIO | None = None
        for from_, line, lines in taker.taken(sources, tell):
            for record in lines:
                if shard is None or shard.tell() >= megabytes << 20:
                    shards.close()
                    shard = shards.enter_context((folder / f"{len(records):05d}.jsonl").open("w", encoding="utf-8"))
                    records.append(0)
                row = row_of(number, from_.name, line, record.rstrip("\n"))
                shard.write(json.dumps(row, ensure_ascii=False) + "\n")
                number += 1
                size += len(record.encode())
                records[-1] += 1
    total = total_of(taker.counts)
    if not records:
        found = (
            f"none of its {total.rows:,} rows can be read as {as_}. {taker.first}" if total.rows else "holds no row"
        )
        raise InputError(f"{source}: {found}")
    made = Shards(folder, as_, total.rows, total.rejected, records, size, ignored)
    values = {name: value for name, value in vars(made).items() if name != "folder"}
    atomic_write(done, json.dumps(values))
    return made
