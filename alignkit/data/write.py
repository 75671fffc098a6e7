"""Records into a file of JSON lines that `read` gives back as they were. It does not know what they are for."""

from collections.abc import Sequence
from pathlib import Path

from alignkit.lineage import atomic_write
from alignkit.records import Record


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Replace `path` by the records, one JSON object a line, in alignkit's own form (data_schemas/)."""
    atomic_write(path, "".join(map(to_line, records)))


def to_line(record: Record) -> str:
    """A record as one line, its end included."""
    return record.model_dump_json(exclude_none=True) + "\n"
