"""Published data into one file of records, every row accounted for. Knows neither a terminal nor a stage."""

import os
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from alignkit.config import InputError
from alignkit.data.account import FileCount, total_of
from alignkit.data.files import ACCOUNTS, REJECTS
from alignkit.data.sources import sources_of
from alignkit.data.taking import KINDS, Taker, Tell
from alignkit.lineage import replacing
from alignkit.processes import is_alive


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    out: str
    rejects: str | None
    """The file that lists the rejected rows; none where there are none."""
    files: list[FileCount]
    total: FileCount
    ignored: list[str]
    """Files of the folder that by their names hold no data."""


def import_data(
    source: str,
    out: Path,
    as_: str,
    *,
    format: str = "auto",
    split: str | None = None,
    config: str | None = None,
    strict: bool = False,
    tell: Tell = lambda file, rows: None,
) -> Imported:
    """Write the records of every row at `source` (a file, a folder, a hub's name) to `out`, a JSONL file.

    A row that cannot be read is listed beside it, in <out>.rejects.jsonl; with `strict` it is an error. Both files
    appear at the end or not at all. Raises InputError, also where no row can be read; OSError where it cannot write.
    """
    rejects = check_out(source, out)
    sources, ignored = sources_of(source, split, config)
    for path in (out, rejects):
        sweep(path)
    with replacing(out) as records_file, replacing(rejects) as rejects_file:
        taker = Taker(KINDS[as_], format, rejects_file, strict)
        for _, _, lines in taker.taken(sources, tell):
            records_file.writelines(lines)
        total = total_of(taker.counts)
        if not total.records:
            rows = total.rows
            found = f"none of its {rows:,} rows can be imported as {as_}. {taker.first}" if rows else "holds no row"
            raise InputError(f"{source}: {found}")
        for file in (records_file, rejects_file):  # both are on the disk before either is seen
            file.flush()
            os.fsync(file.fileno())
    if not total.rejected:
        rejects.unlink()
    return Imported(str(out), str(rejects) if total.rejected else None, taker.counts, total, ignored)


def rejects_of(out: Path) -> Path:
    """The file beside `out` that lists the rejected rows."""
    return out.with_name(out.name.removesuffix(".jsonl") + REJECTS)


def check_out(source: str, out: Path) -> Path:
    """The file of rejects that belongs to `out`. Raises InputError where `out` may not be written."""
    if out.suffix != ".jsonl" or out.name.endswith(ACCOUNTS):
        raise InputError(
            f"{out}: the records become JSON lines; give a file that ends in .jsonl, not in {' or '.join(ACCOUNTS)}"
        )
    if out.is_dir():
        raise InputError(f"{out}: is a folder; name the file that is to be written in it")
    rejects = rejects_of(out)
    place, target = Path(source).resolve(), out.resolve()
    if place in (target, rejects.resolve()) or (Path(source).is_dir() and place in target.parents):
        raise InputError(f"{out}: it or {rejects.name} would lie in what is imported ({source}); write it elsewhere")
    return rejects


def sweep(path: Path) -> None:
    """Delete what killed processes left half written of a file."""
    for left in path.parent.glob(f".{escape(path.name)}.*"):
        process = left.name.rpartition(".")[2]
        if process.isdecimal() and not is_alive(int(process)):
            left.unlink(missing_ok=True)
