"""Stages of datatrove's steps, one after the other, here or on a cluster. Does not know what the steps do."""

import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import multiprocess
from datatrove.executor import LocalPipelineExecutor
from datatrove.utils.logging import logger
from multiprocess.managers import SyncManager

from alignkit.config import InputError
from alignkit.data.taking import Tell
from alignkit.options.corpus import WorkOptions
from alignkit.processes import end_with


@dataclass(frozen=True)
class Stage:
    """Steps that every task runs on its own shard."""

    name: str
    tasks: int
    steps: list[Any]


class _Quiet(LocalPipelineExecutor):
    """Speaks by its exceptions only, and its workers end with the process that asked: another may take up the job."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.asked_by = os.getpid()

    def run(self) -> Any:
        before, multiprocess.Manager = multiprocess.Manager, _manager
        try:
            return super().run()
        finally:
            multiprocess.Manager = before

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        logger.disable("datatrove")
        if os.getpid() != self.asked_by:
            _end_once(self.asked_by)
        return super()._run_for_rank(rank, local_rank, node_rank)


def _manager() -> SyncManager:
    """What `multiprocess.Manager` gives, but its process ends with this one."""
    manager = SyncManager(ctx=multiprocess.get_context())
    manager.start(end_with, (os.getpid(),))
    return manager


@cache
def _end_once(process: int) -> None:
    """One watch in a process, however many tasks it runs."""
    end_with(process)


def execute(stages: Sequence[Stage], folder: Path, options: WorkOptions, tell: Tell) -> bool:
    """Run the stages; tasks that an earlier start has finished are left out. False where they were only submitted.

    Raises what a step raises, InputError where the executor refuses its arguments, ChildProcessError where a worker
    was killed.
    """
    logger.disable("datatrove")
    workers = options.workers or len(os.sched_getaffinity(0))
    before: Any = None
    for stage in stages:
        common = {"pipeline": stage.steps, "tasks": stage.tasks, "logging_dir": str(folder / stage.name)}
        try:
            if options.executor == "local":
                executor = _Quiet(**common, workers=min(workers, stage.tasks), **options.arguments)
            else:
                module = import_module(f"datatrove.executor.{options.executor}")
                kind = getattr(module, f"{options.executor.capitalize()}PipelineExecutor")
                named = {"job_name": f"alignkit_{stage.name}"} if options.executor == "slurm" else {}
                executor = kind(**common, **named, workers=options.workers or -1, depends=before, **options.arguments)
        except (TypeError, ValueError) as error:
            raise InputError(f"work.arguments: {error}") from error
        except ImportError as error:
            raise InputError(f"work.executor: {options.executor} is not installed here: {error}") from error
        before = executor
        if options.executor == "local":
            _run(executor, stage, folder / stage.name / "completions", tell)
    if options.executor != "local":
        before.run()  # which runs what it depends on first
    return options.executor != "slurm"


class _WorkerKilled(BaseException):
    """Raised where the main thread waits: what catches errors of steps lets it through."""


def _raise_killed(*_: Any) -> None:
    raise _WorkerKilled


def _run(executor: LocalPipelineExecutor, stage: Stage, completions: Path, tell: Tell) -> None:
    """Run one stage here, from the main thread, and tell now and then how many of its tasks are done."""
    ended, waiting = threading.Event(), threading.get_ident()

    def watch() -> None:
        seen: dict[int, Any] = {}
        while not ended.wait(0.5):
            tell(stage.name, len(list(completions.glob("*"))))
            seen |= {child.pid: child for child in multiprocess.active_children()}
            if any(child.exitcode not in (None, 0, -signal.SIGTERM) for child in seen.values()):
                while not ended.is_set():  # its task would be waited for without end
                    signal.pthread_kill(waiting, signal.SIGUSR1)  # to the thread itself: nothing else would wake it
                    ended.wait(5)  # once more where the pool then waits for a lock that the worker held
                return

    before = signal.signal(signal.SIGUSR1, _raise_killed)  # not SIGINT, which a job in the background ignores
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        executor.run()
    except _WorkerKilled as error:
        raise ChildProcessError(
            f"a worker of the stage {stage.name} was killed, as happens where memory runs out; give fewer "
            "work.workers or a smaller work.shard_megabytes"
        ) from error
    finally:
        ended.set()
        watcher.join()
        signal.signal(signal.SIGUSR1, before)
