"""The files of an import that is not whole yet, and how far it came, kept against a kill. Does not know a row."""

import json
import os
import time
from pathlib import Path
from typing import Any

from alignkit.lineage import atomic_write

EVERY = 5.0
"""Seconds between two states: the work that a kill costs. Rows differ too much in length to be counted."""
STATE = "state.json"


class Partial:
    """Three files in a folder that are only appended to. Opened again, they end where the state kept last says."""

    def __init__(self, folder: Path) -> None:
        self._state = folder / STATE
        paths = [folder / f"{name}.jsonl" for name in ("records", "rejects", "log")]
        kept = json.loads(self._state.read_text()) if self._state.exists() else None
        if kept and any(not path.exists() or path.stat().st_size < kept["sizes"][path.stem] for path in paths):
            kept = None  # they have been given their names
        if kept is None:
            self._state.unlink(missing_ok=True)
        self.kept: Any = kept and kept["state"]
        """The state kept last; None where there is none."""
        self._files = [path.open("a", encoding="utf-8") for path in paths]
        for path, file in zip(paths, self._files, strict=True):
            file.truncate(kept["sizes"][path.stem] if kept else 0)
        self.records, self.rejects, self.log = self._files
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to keep a state."""
        return time.monotonic() - self._last >= EVERY

    def keep(self, state: Any) -> None:
        """Keep a state (plain JSON) to which all belongs that was written. Raises OSError where the disk is full."""
        self._sync()
        sizes = {Path(file.name).stem: os.fstat(file.fileno()).st_size for file in self._files}
        atomic_write(self._state, json.dumps({"sizes": sizes, "state": state}))
        self._last = time.monotonic()

    def finish(self, records: Path, rejects: Path) -> None:
        """Give the files their names once all is on the disk itself; without a rejected row there is no second one."""
        self._sync()
        listed = Path(self.rejects.name)
        if listed.stat().st_size:
            listed.replace(rejects)
        else:
            rejects.unlink(missing_ok=True)  # of an earlier import
        Path(self.records.name).replace(records)

    def _sync(self) -> None:
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()
