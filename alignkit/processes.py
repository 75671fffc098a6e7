"""Processes that look after one another. Knows no run and no job."""

import os
import signal
import threading
import time


def is_alive(process: int) -> bool:
    """Whether a process of this number runs here."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def end_with(process: int) -> None:
    """End this process soon after another one has ended, so that no two do the same work."""

    def watch() -> None:
        while is_alive(process):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
