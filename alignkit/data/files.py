"""Files into rows: which files, opened and unpacked as they are read. Does not know what a row means."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from alignkit.config import InputError
from alignkit.contents import files_in
from alignkit.data.layouts import LAYOUTS
from alignkit.data.tables import TABLES

SUFFIXES = (*LAYOUTS, *TABLES)
COMPRESSED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
ABOUT = ("readme", "license", "licence")
"""What the texts that only tell of a folder's data are called."""
BESIDE = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What `datasets` writes beside its data."""
REJECTS = ".rejects.jsonl"
"""How the file ends that lists what an import rejected."""
REMOVED, REPORT = ".removed.jsonl", ".report.json"
ACCOUNTS = (REJECTS, REMOVED, REPORT)
"""How files end that tell what became of rows: they are no data."""


def rows_of(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, row) of every row, read as they are asked for; a row that cannot be parsed comes as Bad.

    A table has no lines: there, and in what is no text, it is the row's number. Raises InputError for a file that is
    no data, on reaching the place where it is damaged.
    """
    layout, compression = _kind(path)
    if layout not in SUFFIXES:
        raise InputError(
            f"{path}: files that end in {layout or 'nothing'!r} are not read; convert it to JSON lines (.jsonl). "
            f"Read: {_read()}"
        )
    if layout in TABLES and compression:
        raise InputError(f"{path}: is compressed twice; unpack it: {layout} files are compressed inside")
    name = COMPRESSED.get(compression, "")
    try:
        if layout in TABLES:
            yield from TABLES[layout](path)
        else:
            with _opened(path, compression) as stream:
                yield from LAYOUTS[layout](path, stream)
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, gzip.BadGzipFile) and "Not a gzipped" in str(error):
            raise InputError(f"{path}: is not a gzip file; rename it without .gz, or fetch it again") from error
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        raise InputError(f"{path}: the {name} file is cut off or damaged; fetch it again") from error


def _read() -> str:
    return f"{', '.join(SUFFIXES)}; texts also with {', '.join(COMPRESSED)}"


def _kind(path: Path) -> tuple[str, str]:
    """(.jsonl, .gz) of a.jsonl.gz: how the rows are laid out, and what the file is compressed with."""
    compression = path.suffix.lower() if path.suffix.lower() in COMPRESSED else ""
    return Path(path.stem if compression else path.name).suffix.lower(), compression


def _opened(path: Path, compression: str) -> io.BufferedReader:
    """The unpacked bytes."""
    if compression == ".gz":
        return io.BufferedReader(gzip.open(path))  # pyright: ignore[reportArgumentType]
    if compression == ".bz2":
        return io.BufferedReader(bz2.open(path))  # pyright: ignore[reportArgumentType]
    if compression == ".xz":
        return io.BufferedReader(lzma.open(path))  # pyright: ignore[reportArgumentType]
    if compression == ".zst":
        return io.BufferedReader(import_module("pyarrow").input_stream(str(path), compression="zstd"))
    return path.open("rb")


def files_of(path: str | Path, split: str | None = None) -> list[Path]:
    """The data files at `path`: the file itself, or those of a folder in the order of their names. Hidden files and
    folders hold no data, nor does a README or LICENSE, what `datasets` writes beside its data, or a list of rejects.

    `split` keeps a folder's files whose name, or whose subfolder's name, begins with it (train.jsonl, train-01.json).
    """
    path = Path(path)
    if not path.is_dir():
        if split is not None:
            raise InputError(
                f"{path}: `data.split` chooses files of a folder, and this is one file; leave `split` out"
            )
        return [path]
    names = sorted(file.relative_to(path) for file in files_in(path))
    files = [path / name for name in names if _is_data(name, split)]
    if not files:
        wanted = f" whose name begins with {split!r}" if split else ""
        raise InputError(f"{path}: the folder holds no data file{wanted} ({_read()})")
    return files


def _is_data(name: Path, split: str | None) -> bool:
    layout, compression = _kind(name)
    lower = name.name.lower()
    about = lower.startswith(ABOUT) if layout in (".txt", ".md") else lower in BESIDE or lower.endswith(ACCOUNTS)
    wanted = split is None or any(part.startswith(split) for part in name.parts)
    return (layout in LAYOUTS or (layout in TABLES and not compression)) and wanted and not about
