"""A stage whose first task lasts, and whose idle worker is killed: `python idle_killed.py FOLDER`, a new folder."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from alignkit.data.corpus.execute import Stage, execute
from alignkit.options.corpus import WorkOptions


class Lasting(PipelineStep):
    """Leaves a file named by its task and its process."""

    type, name = "test", "lasting"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        (self.folder / f"{rank}.{os.getpid()}").touch()
        if rank == 0:
            time.sleep(300)
        yield from ()


def kill_idle(folder: Path) -> None:
    while len(found := sorted(folder.glob("?.*"))) < 2:
        time.sleep(0.1)
    time.sleep(2)  # it waits for a task by now, and holds the lock of the queue
    os.kill(int(found[1].name.partition(".")[2]), signal.SIGKILL)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir()
    threading.Thread(target=kill_idle, args=(place,), daemon=True).start()
    execute([Stage("lasting", 2, [Lasting(place)])], place / "work", WorkOptions(workers=2), lambda name, done: None)
