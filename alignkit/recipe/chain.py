"""Runs the chain of a recipe: what is done is skipped, what changed is run, what was killed goes on. No algorithms."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignkit.config import InputError
from alignkit.contents import Contents
from alignkit.lineage import RunRecord, aside, read_record, write_record
from alignkit.options.shared import RuntimeOptions
from alignkit.recipe.identity import stage_ids
from alignkit.recipe.read import Recipe, Stage

State = Literal["done", "stored", "unfinished", "new"]
Execute = Callable[[Path, RuntimeOptions], None]
"""Runs the stage prepared in a directory and returns when it has ended, well or not."""

CHILD_NOTICES = 3.0
"""Seconds within which a child has ended whose driver was killed: it looks once a second."""
LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_", "GROUP_", "ROLE_", "LOCAL_", "TORCHELASTIC_")


class StageFailed(RuntimeError):
    """A stage ended without being done. `user` is true where the user's input was at fault."""

    def __init__(self, message: str, user: bool = False) -> None:
        super().__init__(message)
        self.user = user


@dataclass(frozen=True)
class Step:
    """A stage, the id it has now, and what stands on the disk for that id."""

    stage: Stage
    id: str
    directory: Path
    state: State
    """"done"; "stored": done, set aside, to be moved back; "unfinished": killed or failed, to go on; "new"."""
    record: RunRecord | None
    """The run of this id, if there is one."""


def plan(recipe: Recipe, runs: Path, targets: Sequence[str] | None = None) -> list[Step]:
    """What a run of the recipe would find, in running order. Reads only; imports no torch."""
    folder = runs / recipe.name
    ids = stage_ids(recipe, Contents(runs / ".hashes.json"))
    chosen = recipe.needed_for(list(recipe.stages) if targets is None else targets)
    return [_find(stage, ids[stage.name], folder / stage.name) for stage in chosen]


def _find(stage: Stage, id: str, directory: Path) -> Step:
    for place in (directory, aside(directory, id)):
        record = read_record(place)
        if record is not None and record.id == id:
            if record.status == "done" and (place / record.artifact).is_dir():
                return Step(stage, id, directory, "done" if place == directory else "stored", record)
            return Step(stage, id, directory, "unfinished", record)
    return Step(stage, id, directory, "new", None)


def run_chain(
    recipe: Recipe,
    runs: Path,
    execute: Execute,
    *,
    targets: Sequence[str] | None = None,
    tell: Callable[[Step], None] = lambda step: None,
) -> list[Step]:
    """Bring the stages (all, or `targets` and what they build on) up to date, one after the other.

    `tell` hears of each step before it is taken. Raises StageFailed at the first stage that does not get done; what
    was done before stays. A second driver of the same recipe is refused while the first one lives.
    """
    folder = runs / recipe.name
    with _only_one(folder):
        steps = plan(recipe, runs, targets)
        ids = {step.stage.name: step.id for step in steps}
        done: list[Step] = []
        for step in steps:
            tell(step)
            if step.state != "done":
                _make_room(step)
            if step.state not in ("done", "stored"):
                _prepare(step, {name: ids[name] for name in step.stage.parents})
                execute(step.directory, step.stage.runtime)
            finished = _find(step.stage, step.id, step.directory)
            if finished.state != "done":
                raise StageFailed(f"{step.stage.name} did not finish: {_reason(finished)}")
            done.append(finished)
        return done


def _make_room(step: Step) -> None:
    """Set the run of another id aside, under its own id, and bring back the one of this id if it was set aside."""
    directory, stored = step.directory, aside(step.directory, step.id)
    record = read_record(directory)
    if record is None and directory.is_dir() and any(directory.iterdir()):
        raise InputError(f"{directory} is in the way: it holds files but no run.json; move or delete it")
    if record is not None and record.id != step.id:
        old = aside(directory, record.id)
        if old.exists():
            shutil.rmtree(old)
        directory.rename(old)
    if stored.exists() and not (directory / "run.json").exists():
        if directory.exists():
            directory.rmdir()
        stored.rename(directory)


def _prepare(step: Step, parents: dict[str, str]) -> None:
    """Write the run.json that tells the child what to run."""
    record = RunRecord(
        stage=step.stage.type,
        status="running",
        id=step.id,
        config=step.stage.config.model_dump(mode="json"),
        runtime=step.stage.runtime.model_dump(mode="json"),
        parents=parents,
    )
    write_record(step.directory, record)


def _reason(step: Step) -> str:
    error = step.record.error if step.record else None
    return error or f"{step.directory}/run.json is not marked done, or its artifact is missing"


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """A lock that its process's end, however it ends, releases."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        patience = time.monotonic() + CHILD_NOTICES
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > patience:
                    refusal = f"{folder} is being worked on by another process; wait for it, or end it"
                    raise InputError(refusal) from error
                time.sleep(0.1)
        # A child that outlives this process keeps the lock until it notices.
        os.set_inheritable(file.fileno(), True)
        yield


# --------------------------------------------------------------------------------------------------- child processes


def execute_child(directory: Path, runtime: RuntimeOptions) -> None:
    """Run the stage prepared in `directory` in processes of its own; their end frees all memory.

    Raises StageFailed with the reason. What the child prints goes to this process's standard error.
    """
    command, environment = child_command(directory, runtime), _child_environment(runtime)
    with subprocess.Popen(command, env=environment, stdout=2, close_fds=False) as child:
        try:
            code = child.wait()
        except KeyboardInterrupt:
            # The terminal sent it to the child as well; it is given time to write what it has.
            child.wait()
            raise
    if code == 0:
        return
    record = read_record(directory)
    error = record.error if record else None
    if record is not None and error is None:
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        error = f"its process was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        with suppress(OSError):  # on a full disk it stays "running", which goes on just as well
            write_record(directory, record.model_copy(update={"status": "failed", "error": error}))
    raise StageFailed(f"{directory.name} failed: {error}", user=record is not None and record.input_error)


def child_command(directory: Path, runtime: RuntimeOptions) -> list[str]:
    """Plain Python for one process; accelerate's launcher for several, on one machine."""
    stage = ["-m", "alignkit", "stage", str(directory)]
    if runtime.processes == 1:
        return [sys.executable, *stage]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    launch += ["--num_processes", str(runtime.processes), "--main_process_port", str(_free_port())]
    return [*launch, "--mixed_precision", "no", "--dynamo_backend", "no", *stage]


def _child_environment(runtime: RuntimeOptions) -> dict[str, str]:
    """This process's environment, less what a launcher set for it, and with this very alignkit importable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCH_VARIABLES)}
    here = str(Path(__file__).resolve().parents[2])
    kept.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # loading bars would break up our own
    # The working folder must not hide packages; recipe/child.py adds it last, for the user's own functions.
    kept["PYTHONSAFEPATH"] = "1"
    kept["ALIGNKIT_DRIVER"] = str(os.getpid())
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    if runtime.processes > 1:
        kept.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // runtime.processes)))
    return kept


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
