"""A progress bar in a terminal, a few plain lines elsewhere; and how much memory was used. It knows no training."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from alignkit.display import number

STATUS = Path("/proc/self/status")
"""Linux's account of a process."""
Advance = Callable[[int, dict[str, float]], None]
"""(steps done so far, numbers to show): called after each step."""


@contextmanager
def progress(title: str, total: int, *, shown: bool = True) -> Iterator[Advance]:
    """Shows `title`, steps done, numbers and the time left: a live bar in a terminal, else a line every tenth."""
    console = Console(stderr=True)
    if not shown:
        yield lambda done, numbers: None
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(title, total=total, text="")
            yield lambda done, numbers: bar.update(task, completed=done, text=_text(numbers))
    else:
        yield _lines(title, total)


def _lines(title: str, total: int) -> Advance:
    started = time.monotonic()
    first: int | None = None
    printed = 0

    def advance(done: int, numbers: dict[str, float]) -> None:
        nonlocal first, printed
        first = done - 1 if first is None else first
        if done * 10 // total > printed * 10 // total or done == total:
            left = (time.monotonic() - started) / (done - first) * (total - done)
            print(f"{title} {done}/{total}  {_text(numbers)}  {left:.0f} s left", file=sys.stderr, flush=True)
        printed = done

    return advance


def _text(numbers: dict[str, float]) -> str:
    return "  ".join(f"{name} {number(value)}" for name, value in numbers.items())


def peak_memory_bytes(device: torch.device | None = None) -> int:
    """The most memory used so far: of the CUDA device, else of this process (its imports included)."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    told = STATUS.read_text(encoding="utf-8").splitlines() if STATUS.is_file() else []
    for line in told:  # for getrusage, Linux counts what a process's parent used as its own
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
