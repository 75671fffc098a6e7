"""Rows that travel through datatrove's pipelines, and the files they lie in. Does not know what a step does."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from alignkit.data.texts import joined

Compared = Callable[[dict[str, Any]], str]
"""What of a record is compared."""
Tag = tuple[str, str, str]
"""(step, reason, what was found): why a row is to be removed."""


def row_of(number: int, file: str, line: int, record: str) -> dict[str, Any]:
    """A shard's row: the record's own line, which stays as it is unless a step changes it, and where it stood."""
    return {"number": number, "file": file, "line": line, "record": record, "changed": [], "masked": {}, "tags": []}


class ShardReader(JsonlReader):
    """The rows of the shard that has this task's number; none where a step before left none."""

    def __init__(self, folder: Path, compared: Compared = joined) -> None:
        super().__init__(str(folder), compression=None, adapter=partial(_to_document, compared), add_file_path=False)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Ignores `data`: a reader begins a pipeline."""
        name = f"{rank:05d}.jsonl"
        if self.data_folder.isfile(name):
            yield from self.read_file(name)


def _to_document(compared: Compared, _: JsonlReader, row: dict[str, Any], path: str, __: Any) -> Any:
    record = json.loads(row["record"])
    # datatrove drops a document without text unsaid; a record's own texts may all be blank where `compared` cuts it.
    metadata = {**row, "parsed": record, "shard": int(Path(path).stem)}
    return {"text": compared(record) or " ", "id": str(row["number"]), "metadata": metadata}


def shard_writer(folder: Path, tag: Tag | None = None) -> JsonlWriter:
    """Writes rows into the shard of the task's number, each with one tag more where one is given."""
    return JsonlWriter(str(folder), "${rank}.jsonl", compression=None, adapter=partial(_to_row, tag))


def _to_row(tag: Tag | None, _: JsonlWriter, document: Document) -> dict[str, Any]:
    row = {name: value for name, value in document.metadata.items() if name in row_of(0, "", 0, "")}
    if row["changed"]:
        row["record"] = json.dumps(document.metadata["parsed"], ensure_ascii=False, separators=(",", ":"))
    row["tags"] = [*row["tags"], *([tag] if tag else [])]
    if (group := document.metadata.get("minhash_cluster_id", -1)) != -1:
        row["group"] = group
    return row


def rows_in(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(shard, row) of all shards of a folder, in order."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as file:
            for line in file:
                yield path.stem, json.loads(line)
