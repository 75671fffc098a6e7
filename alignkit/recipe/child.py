"""The inside of a child process: one stage, prepared in a directory, run to its end. It knows no chain."""

import errno
import os
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from alignkit.config import Config, InputError, build
from alignkit.lineage import read_record
from alignkit.objective import NonFiniteLoss
from alignkit.options import STAGES
from alignkit.options.shared import RuntimeOptions
from alignkit.processes import end_with
from alignkit.recipe.hub import local_folder
from alignkit.recipe.identity import existing, names_model
from alignkit.recipe.read import REFERENCE
from alignkit.runs import Run


def run_prepared(directory: Path) -> int:
    """Run the stage whose options run.json holds; returns the exit code (0 done, 1 failed, 2 the input is wrong)."""
    end_with_driver()
    record = read_record(directory)
    if record is None:
        raise InputError(f"{directory} holds no run.json")
    config = build(STAGES[record.stage], record.config, "")
    runtime = build(RuntimeOptions, record.runtime, "runtime")
    run = Run.open(directory, record.stage, config, runtime, record.id, record.parents)
    try:
        artifact = import_module(f"alignkit.stages.{record.stage}").run(resolve(config, run), runtime, run)
        if run.record.status != "done":
            run.finish({}, artifact=artifact)
        return 0
    except InputError as error:
        return _end(run, error, 2)
    except NonFiniteLoss as error:
        return _end(run, error, 1)
    except KeyboardInterrupt:
        return _end(run, "interrupted; run it again to go on", 1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return _end(run, f"{error}: free some space and run it again; it goes on from its last checkpoint", 1)
        traceback.print_exc()
        return _end(run, f"{type(error).__name__}: {error}", 1)


def resolve(config: Config, run: Run) -> Config:
    """The options with a folder for every "@name" and every hub name.

    Raises InputError where a parent is not the one this run was planned on.
    """

    def folder(group: Config, key: str, value: Any) -> Any:
        if isinstance(value, Config):
            fields = type(value).model_fields
            return value.model_copy(update={name: folder(value, name, getattr(value, name)) for name in fields})
        if isinstance(value, dict):
            return {name: folder(group, key, item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(folder(group, key, item) for item in value)
        if not isinstance(value, str):
            return value
        if reference := REFERENCE.fullmatch(value):
            return str(_parent(run, reference[1]))
        return local_folder(value, key) if names_model(group, key) and existing(value) is None else value

    resolved: Config = folder(config, "", config)
    return resolved


def _parent(run: Run, name: str) -> Path:
    directory = run.directory.parent / name
    record = read_record(directory)
    if record is None or record.status != "done" or record.id != run.record.parents.get(name):
        raise InputError(f"@{name}: {directory} is not the run this stage was planned on; run the recipe again")
    return (directory / record.artifact).resolve()


def _end(run: Run, error: InputError | str, code: int) -> int:
    with suppress(OSError):  # on a full disk the run stays "running", which goes on just as well
        run.fail(error)
    return code


def end_with_driver() -> None:
    """End this process soon after the one that drives the chain has ended, so that no two write to one run."""
    if driver := int(os.environ.get("ALIGNKIT_DRIVER", "0")):
        end_with(driver)
