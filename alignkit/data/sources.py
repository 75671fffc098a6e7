"""Where an import finds its rows: a file, a folder, or a data set on a hub. Does not know what a row means."""

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from alignkit.config import InputError
from alignkit.contents import files_in
from alignkit.data.files import COMPRESSED, SUFFIXES, files_of, rows_of
from alignkit.data.layouts import Rows
from alignkit.data.tables import as_json


@dataclass(frozen=True)
class Source:
    """Rows that belong together."""

    name: str
    """The file's path, or the data set's name."""
    short: str
    """Its name inside the folder; what tells its ids from those of the other files."""
    rows: Rows
    """(line, row) of every row; nothing is opened before the first is asked for."""


def sources_of(
    path: str, split: str | None, config: str | None, revision: str | None = None
) -> tuple[list[Source], list[str]]:
    """The sources at a path or of a hub's name, and the files of a folder that are none, hidden ones left out.

    `revision` is the commit of a hub's data set; None: the newest.
    """
    place = Path(path)
    if not place.exists():
        return [Source(path, path, hub_rows(path, split or "train", config, revision))], []
    if config is not None:
        raise InputError(f"{path}: `--config` names a part of a data set on a hub; leave it out")
    if place.is_dir():
        files = files_of(place, split)
        visible = {file for file in files_in(place) if file.is_file()}
        found = [Source(str(file), file.relative_to(place).as_posix(), rows_of(file)) for file in files]
        return found, sorted(str(file) for file in visible - set(files))
    if split is not None:
        raise InputError(f"{path}: `--split` chooses files of a folder, and this is one file; leave it out")
    return [Source(path, place.name, rows_of(place))], []


def hub_revision(name: str, where: str = "") -> str:
    """The commit that a data set's name on a hub stands for now. Raises InputError where the hub gives none."""
    _check_name(name, where)
    hub = import_module("huggingface_hub")
    try:
        return str(hub.dataset_info(name, timeout=10).sha)
    except Exception as error:  # whatever a missing network or name raises
        raise InputError(f"{where}{': ' if where else ''}{_no_data(name, error)}") from error


def hub_rows(name: str, split: str, config: str | None = None, revision: str | None = None) -> Rows:
    """The rows of a data set, streamed; raises InputError where there is none, or the network ends."""
    _check_name(name)
    number = 0
    try:
        data = import_module("datasets").load_dataset(name, config, split=split, revision=revision, streaming=True)
        for number, row in enumerate(data, start=1):
            yield number, as_json(row)
    except Exception as error:  # whatever a missing network, name, split or config raises
        if number:
            raise InputError(f"{name}: the hub gave no row after row {number:,}: {_reason(error)}") from error
        raise InputError(_no_data(name, error, f" whose split {split!r}")) from error


def _check_name(name: str, where: str = "") -> None:
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) or Path(name).suffix in (*SUFFIXES, *COMPRESSED):
        raise InputError(f"{where}{': ' if where else ''}{name}: there is no such file or folder")


def _no_data(name: str, error: Exception, which: str = " that") -> str:
    return f"{name}: is neither a file or folder here nor a data set{which} a hub gives: {_reason(error)}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
