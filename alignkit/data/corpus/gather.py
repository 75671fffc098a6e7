"""The end of a job: its shards as files, and an account of every row. Does not know what the steps did."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from datatrove.pipeline.base import PipelineStep
from pydantic import BaseModel, ConfigDict

from alignkit.config import InputError
from alignkit.data.corpus.rows import rows_in
from alignkit.data.corpus.shards import Shards
from alignkit.data.files import REJECTS, REMOVED, REPORT
from alignkit.data.texts import texts_in
from alignkit.lineage import atomic_write, replacing

SAMPLES = 3
"""Removed records of each reason that the report shows."""
EXCERPT = 300
"""Characters of a record that a sample shows."""


class Removed(BaseModel):
    """Records that one step tagged for one reason."""

    step: str
    reason: str
    records: int
    samples: list[dict[str, Any]]
    """The first few: file, line, what was found, how the record begins; `like`: how the kept one of its group does."""


class Outcome(BaseModel):
    """What a job did. rows = rejected + the rows that gave records; records = kept + removed."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    command: str
    source: str
    as_: str
    rows: int
    rejected: int
    records: int
    kept: int
    """Records in the files that were written."""
    removed: int
    parts: dict[str, int]
    """Records in each of these files."""
    tags: list[Removed]
    """Why records were removed. One with several reasons is counted under each."""
    changed: dict[str, int]
    """Kept records that each step changed."""
    masked: dict[str, int]
    """Personal data replaced in them, by kind."""
    bytes: int
    """Of the records as they were read."""
    seconds: float
    """From the first start of the job to its end, pauses of a killed one included."""
    ignored: list[str]
    """Files of the folder that by their names hold no data."""
    removed_file: str | None
    rejects_file: str | None
    options: dict[str, Any]


class Gather(PipelineStep):
    """Writes all files of a job at once, or none."""

    type = "alignkit"
    name = "gather"

    def __init__(
        self,
        shards: Shards,
        about: dict[str, Any],
        parts: dict[str, Path],
        folders: dict[str, Path],
        removed: list[Path],
        most_removed: float = 1.0,
    ) -> None:
        super().__init__()
        self.shards, self.about, self.parts, self.folders = shards, about, parts, folders
        self.removed, self.most_removed = removed, most_removed

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Raises InputError where more was removed than is allowed, RuntimeError where a record is lost."""
        tags, groups, removed = self._tags()
        total = sum(self.shards.records)
        if removed > self.most_removed * total:
            worst = max(tags.values(), key=lambda tag: tag.records)
            raise InputError(
                f"{removed:,} of {total:,} records would be removed, more than most_removed: "
                f"{self.most_removed:g} allows; {worst.records:,} by {worst.step} ({worst.reason}). Nothing is written"
            )
        beside = accounts_of(next(iter(self.parts.values())))
        key = self.shards.folder.parent / "key.json"
        with ExitStack() as stack:
            kept, changed, masked = self._write_parts(stack, groups)
            if sum(kept.values()) + removed != total:
                raise RuntimeError(f"{total} records came in, {sum(kept.values())} were kept and {removed} removed")
            if removed:
                self._write_removed(stack.enter_context(replacing(beside["removed"])))
            if self.shards.rejected:
                rejects = stack.enter_context(replacing(beside["rejects"]))
                with (self.shards.folder.parent / "rejects.jsonl").open(encoding="utf-8") as listed:
                    shutil.copyfileobj(listed, rejects)
        for name, count in (("removed", removed), ("rejects", self.shards.rejected)):
            if not count:
                beside[name].unlink(missing_ok=True)  # of an earlier job
        outcome = Outcome(
            **self.about,
            as_=self.shards.as_,
            rows=self.shards.rows,
            rejected=self.shards.rejected,
            records=total,
            kept=sum(kept.values()),
            removed=removed,
            parts={str(self.parts[name]): count for name, count in kept.items()},
            tags=sorted(tags.values(), key=lambda tag: -tag.records),
            changed=dict(changed),
            masked=dict(masked),
            bytes=self.shards.bytes,
            ignored=self.shards.ignored,
            seconds=time.time() - key.stat().st_mtime,
            removed_file=str(beside["removed"]) if removed else None,
            rejects_file=str(beside["rejects"]) if self.shards.rejected else None,
        )
        atomic_write(beside["report"], outcome.model_dump_json(indent=2) + "\n")
        key.unlink()  # the job is done: what is left of it is never taken up
        yield from ()

    def _write_parts(
        self, stack: ExitStack, groups: dict[int, list[dict[str, Any]]]
    ) -> tuple[dict[str, int], Counter[str], Counter[str]]:
        """The kept rows as files; how many each holds, and what was changed and masked in them."""
        kept: dict[str, int] = {}
        changed, masked = Counter[str](), Counter[str]()
        for name, path in self.parts.items():
            out = stack.enter_context(replacing(path))
            kept[name] = 0
            for _, row in rows_in(self.folders[name]):
                out.write(row["record"] + "\n")
                kept[name] += 1
                changed.update(set(row["changed"]))
                masked.update(row["masked"])
                for sample in groups.pop(row.get("group"), ()):
                    sample["like"] = _excerpt(row)
        return kept, changed, masked

    def _write_removed(self, file: TextIO) -> None:
        for row in self._removed_rows():
            reasons = [{"step": step, "reason": reason, "found": found} for step, reason, found in row["tags"]]
            held = {name: row[name] for name in ("file", "line")} | {"tags": reasons}
            file.write(json.dumps({**held, "record": json.loads(row["record"])}, ensure_ascii=False) + "\n")

    def _removed_rows(self) -> Iterator[dict[str, Any]]:
        for folder in self.removed:
            yield from (row for _, row in rows_in(folder))

    def _tags(self) -> tuple[dict[tuple[str, str], Removed], dict[int, list[dict[str, Any]]], int]:
        """Counts and samples by (step, reason), the samples of near duplicates by group, and all removed records."""
        tags: dict[tuple[str, str], Removed] = {}
        groups: dict[int, list[dict[str, Any]]] = {}
        removed = 0
        for row in self._removed_rows():
            removed += 1
            for step, reason, found in dict.fromkeys(map(tuple, row["tags"])):
                tag = tags.setdefault((step, reason), Removed(step=step, reason=reason, records=0, samples=[]))
                tag.records += 1
                if len(tag.samples) < SAMPLES:
                    sample = {"file": row["file"], "line": row["line"], "found": found, "text": _excerpt(row)}
                    tag.samples.append(sample)
                    if "group" in row:
                        groups.setdefault(row["group"], []).append(sample)
        return tags, groups, removed


def accounts_of(out: Path) -> dict[str, Path]:
    """The files that a job leaves beside `out`: what was removed, the rejected rows, the report."""
    name = out.name.removesuffix(".jsonl")
    endings = {"removed": REMOVED, "rejects": REJECTS, "report": REPORT}
    return {account: out.with_name(name + ending) for account, ending in endings.items()}


def _excerpt(row: dict[str, Any]) -> str:
    return " ".join("\n".join(texts_in(json.loads(row["record"]))).split())[:EXCERPT]
