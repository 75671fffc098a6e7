"""The hidden folder beside an output in which a job works, so that it goes on after a kill. Knows no job."""

import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from alignkit.config import InputError, content_hash
from alignkit.lineage import atomic_write
from alignkit.processes import is_alive

logger = logging.getLogger(__name__)
SUBMITTED = "submitted"
"""The file in a work folder that says that Slurm has its jobs."""


@contextmanager
def work_folder(out: Path, decides: Any) -> Iterator[Path]:
    """The folder beside `out` in which a job works: a killed start's where all that decides is the same, else new.

    `key.json` in it is written when the job first begins. Folders of other jobs for the same `out` are deleted, which
    is said. Raises InputError where another process is at work on `out`.
    """
    key = content_hash([decides, version("alignkit")])
    folder = (out.parent / f".{out.name}.{key[:8]}.work").resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f".{out.name}.lock").open("w") as lock:
        _lock(lock, out)
        try:
            for other in out.parent.glob(f".{escape(out.name)}.????????.work"):
                going = (other / "key.json").is_file()
                if other.name == folder.name and going:
                    continue
                if going and (other / SUBMITTED).is_file():
                    raise InputError(
                        f"{out}: jobs on Slurm are at work on it in {other}; delete that once they have ended"
                    )
                if going:
                    logger.warning(f"{out}: an interrupted start had other data or options; this one begins anew")
                shutil.rmtree(other)
            folder.mkdir(exist_ok=True)
            if not (folder / "key.json").is_file():
                atomic_write(folder / "key.json", json.dumps(key))
            yield folder
        finally:
            Path(lock.name).unlink(missing_ok=True)


def _lock(lock: TextIO, out: Path) -> None:
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which forked processes would go on holding
        held = not os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name))
    except FileNotFoundError:  # one that ends just now has deleted it
        held = True
    except OSError as error:
        held = error.errno in (errno.EAGAIN, errno.EACCES)  # else the file system has no locks
    if held:
        raise InputError(f"{out}: another process is at work on it; wait for its end")


def state_of(files: Iterable[Path]) -> list[Any]:
    """What tells one content of files from another: their names, sizes and times of change."""
    stats = ((str(file), file.stat() if file.exists() else None) for file in files)
    return [[name, None if stat is None else [stat.st_size, stat.st_mtime_ns]] for name, stat in stats]


def is_in(path: Path, source: str) -> bool:
    """Whether a file is a source, or lies in a folder that is one."""
    place, target = Path(source).resolve(), path.resolve()
    return place == target or (place.is_dir() and place in target.parents)


def sweep(path: Path) -> None:
    """Delete what killed processes left half written of a file."""
    for left in path.parent.glob(f".{escape(path.name)}.*"):
        process = left.name.rpartition(".")[2]
        if process.isdecimal() and not is_alive(int(process)):
            left.unlink(missing_ok=True)
