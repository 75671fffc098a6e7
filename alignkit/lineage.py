"""What run.json holds, what an artifact stands on, files that are whole or absent. Knows neither stages nor torch."""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

from pydantic import BaseModel, ConfigDict, ValidationError

from alignkit.config import InputError

ADAPTER_FILE = "adapter_config.json"
"""What makes a folder a LoRA adapter."""


class RunRecord(BaseModel):
    """What run.json holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    stage: str
    """The stage's type: pretrain, sft, reward, dpo, kto, ppo, sample, critique, trl or evaluate."""
    status: Literal["done", "running", "failed"]
    """A killed run stays "running"; started again, it goes on from its last checkpoint."""
    id: str
    """Hash of everything that decides the result."""
    config: dict[str, Any]
    """The stage's options, as in the recipe, defaults filled in."""
    runtime: dict[str, Any]
    """How it was executed; not part of the id."""
    parents: dict[str, str]
    """The ids of the runs whose artifacts it uses, by the name the recipe gives them."""
    data: list[dict[str, Any]] = []
    """What was read: path, sha256, rows."""
    seed: int = 0
    versions: dict[str, str] = {}
    git: dict[str, Any] | None = None
    """Commit of the alignkit in use and whether it was changed since; none outside a repository."""
    hardware: dict[str, Any] = {}
    started: str | None = None
    """ISO 8601, UTC; of the last start, where a run was resumed."""
    ended: str | None = None
    metrics: dict[str, Any] = {}
    throughput: dict[str, float] = {}
    """examples_per_second, tokens_per_second."""
    peak_memory_bytes: int | None = None
    artifact: str = "model"
    """The folder, relative to the run, that "@name" stands for: a model, data (sample, critique) or results."""
    error: str | None = None
    """Why it failed."""
    input_error: bool = False
    """Whether the user's input was at fault."""


def read_record(directory: Path) -> RunRecord | None:
    """The run.json of a run's directory; None where there is no run. Raises InputError where it is damaged."""
    path = directory / "run.json"
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise InputError(f"{path}: {where}: {fault['msg']}; delete {directory} to run the stage anew") from error


def write_record(directory: Path, record: RunRecord) -> None:
    """Replace the run.json of a directory."""
    values = finite(record.model_dump(mode="json"))
    atomic_write(directory / "run.json", json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def aside(directory: Path, id: str) -> Path:
    """Where a run goes when one of another id takes its directory."""
    return directory.with_name(f"{directory.name}.{id[:8]}")


def is_adapter(path: str | Path) -> bool:
    """Whether a folder holds a LoRA adapter rather than whole weights."""
    return (Path(path) / ADAPTER_FILE).is_file()


def base_of(path: str) -> str:
    """The folder, or the name on a hub, whose whole weights an artifact stands on: its own, or its adapter's base.

    Raises InputError where an adapter's configuration is no JSON, or names no base, or one that was the artifact of a
    run that is gone.
    """
    if not is_adapter(path):
        return path
    file = Path(path) / ADAPTER_FILE
    try:
        named = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except ValueError as error:
        raise InputError(f"{file}: is no JSON: {error}") from error
    if not named:
        raise InputError(f"{file}: base_model_name_or_path: no base is named, on which the adapter would stand")
    return str(standing(Path(named), Path(path)))


def standing(part: Path, user: Path) -> Path:
    """Where `part`, a folder of a run that the artifact `user` was made from, lies now: runs are set aside and moved.

    A folder of no run that `user` descends from is returned as it is. Raises InputError where that run is gone.
    """
    run = user.resolve().parent
    found = _ancestors(run, part)
    for one in part.parents:
        id, place = found.get(one.name, ("", None))
        # A folder of another chain is an ancestor's by its id alone: its name may be anybody's.
        if id and (one.parent.name == run.parent.name or place in (one, aside(one, id))):
            if place is None:
                gone = f"the run {id[:8]} of {one}, which is neither there nor beside {run}"
                raise InputError(f"{user} was made from {gone}")
            return place / part.relative_to(one)
    return part


def _ancestors(run: Path, part: Path) -> dict[str, tuple[str, Path | None]]:
    """Name -> (id, where it lies now or None) of all runs that one descends from, as far as they can be followed."""
    found: dict[str, tuple[str, Path | None]] = {}
    open_runs = [run]
    while open_runs:
        record = read_record(open_runs.pop())
        for name, id in {} if record is None else record.parents.items():
            if name in found:
                continue
            # The place that was written down comes first, then what stands beside.
            written = [one for one in part.parents if one.name == name]
            places = [place for one in (*written, run.parent / name) for place in (one, aside(one, id))]
            records = ((place, read_record(place)) for place in places)
            place = next((place for place, one in records if one is not None and one.id == id), None)
            found[name] = id, place
            open_runs += [place] if place else []
    return found


# ------------------------------------------------------------------------------------------------------------ files


def atomic_write(path: Path, text: str) -> None:
    """Replace a file's content: a reader, a kill or a full disk finds the old text or the new, never a part."""
    with replacing(path) as file:
        file.write(text)


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A file to write in that takes the place of `path` when the block ends well, and is deleted when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have a file or folder written to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finite(value: Any) -> Any:
    """JSON has no NaN: numbers that are not finite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list) else value
