"""Published data into one file of records, every row accounted for. Knows neither a terminal nor a stage."""

import logging
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from alignkit.config import InputError
from alignkit.data.account import FileCount, total_of
from alignkit.data.files import ACCOUNTS, REJECTS
from alignkit.data.partial import STATE, Partial
from alignkit.data.sources import Source, hub_revision, sources_of
from alignkit.data.taking import KINDS, Taker, Tell
from alignkit.data.work_folder import is_in, state_of, sweep, work_folder

logger = logging.getLogger(__name__)


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
    resumed: int
    """Rows among them that an earlier start, which was killed, had taken."""


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
    appear at the end or not at all. An import that was killed goes on where it stood, if source and options are the
    same. Raises InputError, also where no row can be read; OSError where it cannot write.
    """
    rejects = check_out(source, out)
    here = Path(source).exists()
    revision = None if here else hub_revision(source)
    sources, ignored = sources_of(source, split, config, revision)
    for path in (out, rejects):
        sweep(path)
    data = state_of(Path(one.name) for one in sources) if here else revision
    with work_folder(out, ["import", source, as_, format, split, config, strict, data]) as folder:
        try:
            with closing(Partial(folder)) as partial:
                taker = Taker(KINDS[as_], format, partial.rejects, strict, partial.log)
                resumed = _resume(taker, partial, sources, out)
                for _, _, lines in taker.taken(sources, tell):
                    partial.records.writelines(lines)
                    if partial.due():
                        partial.keep(taker.state())
                total = total_of(taker.counts)
                if not total.records:
                    rows = f"none of its {total.rows:,} rows can be imported as {as_}. {taker.first}"
                    raise InputError(f"{source}: {rows if total.rows else 'holds no row'}")
                partial.finish(out, rejects)
        except BaseException as error:
            if not (folder / STATE).exists() or (here and isinstance(error, InputError)):
                shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)
    return Imported(str(out), str(rejects) if total.rejected else None, taker.counts, total, ignored, resumed)


def _resume(taker: Taker, partial: Partial, sources: Sequence[Source], out: Path) -> int:
    """Take up what an import that was killed has kept; the rows that it had taken."""
    if partial.kept is None:
        return 0
    with Path(partial.log.name).open(encoding="utf-8") as log:
        taker.resume(partial.kept, log, sources)
    rows = total_of(taker.counts).rows
    logger.warning(f"{out}: goes on after {rows:,} rows that an interrupted import had taken")
    return rows


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
    if is_in(out, source) or is_in(rejects, source):
        raise InputError(f"{out}: it or {rejects.name} would lie in what is imported ({source}); write it elsewhere")
    return rejects
