"""Hashes of files and folders by what is in them. Knows neither recipes nor runs."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from alignkit.config import content_hash
from alignkit.lineage import atomic_write, sha256_file


def files_in(folder: Path) -> Iterator[Path]:
    """The files of a folder, its subfolders and, after these, of folders that links in it lead to, each folder once.
    What is hidden is left out; links to no file are not."""
    seen: set[Path] = set()
    ahead = [folder]
    while ahead:
        for place, folders, names in os.walk(ahead.pop(0)):
            here = Path(place)
            if here.resolve() in seen:
                folders.clear()
                continue
            seen.add(here.resolve())
            folders[:], visible = (sorted(name for name in found if name[0] != ".") for found in (folders, names))
            ahead += [here / name for name in folders if (here / name).is_symlink()]
            yield from (here / name for name in visible)


class Contents:
    """Hashes of files and folders; those of large files are remembered by size and time of change."""

    def __init__(self, memory: Path | None = None, large: int = 1 << 24) -> None:
        self._memory = memory
        self._large = large
        self._known: dict[str, str] = {}
        if memory is not None and memory.exists():
            self._known = json.loads(memory.read_text())

    def of(self, path: Path) -> str:
        """SHA-256 of a file, or of a folder's file names and contents; hidden files do not count."""
        if not path.is_dir():
            return self._of_file(path)
        inside = sorted(found.relative_to(path) for found in files_in(path) if found.is_file())
        return content_hash({name.as_posix(): self._of_file(path / name) for name in inside})

    def _of_file(self, path: Path) -> str:
        facts = path.stat()
        if facts.st_size < self._large:
            return sha256_file(path)
        key = f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns} {facts.st_ino}"
        if key not in self._known:
            self._known[key] = sha256_file(path)
            if self._memory is not None:
                atomic_write(self._memory, json.dumps(self._known))
        return self._known[key]
