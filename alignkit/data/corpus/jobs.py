"""A job from its source to its files: the work folder that lets it resume, the stages, the end. Knows no step."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.config import Config, InputError, content_hash
from alignkit.data.corpus.execute import Stage, execute
from alignkit.data.corpus.gather import Gather, Outcome, report_of
from alignkit.data.corpus.shards import Shards, make_shards
from alignkit.data.importing import check_out, sweep
from alignkit.data.sources import sources_of
from alignkit.data.stream import kind_at
from alignkit.data.taking import KINDS, Tell
from alignkit.lineage import atomic_write
from alignkit.options.corpus import WorkOptions


@dataclass(frozen=True)
class Ending:
    """Where the stages leave their rows."""

    folders: dict[str, Path]
    """Of the kept ones, by the name of the file they become."""
    removed: list[Path]
    """Of the removed ones, in the order of the steps."""


Plan = Callable[[Shards, Path], tuple[list[Stage], Ending]]
"""The stages that work on the shards inside a work folder, and where they end."""


def run_job(
    command: str,
    source: str,
    parts: dict[str, Path],
    as_: str | None,
    format: str,
    options: Config,
    work: WorkOptions,
    plan: Plan,
    tell: Tell,
    most_removed: float = 1.0,
    beside: tuple[str, ...] = (),
) -> Outcome | None:
    """Bring a source's records through a plan's stages into `parts`, and return the account; None: only submitted.

    `beside` are further paths whose content decides the result. A job that was killed goes on where it stood, as long
    as source and options are the same. Raises InputError; OSError where it cannot write.
    """
    out = next(iter(parts.values()))
    for path in parts.values():
        check_out(source, path)
        sweep(path)
    if as_ is not None and as_ not in KINDS:
        raise InputError(f"--as {as_}: give one of {', '.join(KINDS)}")
    folder = out.parent / f".{out.name}.work"
    given = options.model_dump(mode="json", exclude={"work"})
    decides = {name: value for name, value in given.items() if name != "most_removed"}
    inputs = {path: _state(path) for path in (source, *beside)}
    key = content_hash([command, inputs, as_, format, decides, work.shard_megabytes, [*map(str, parts.values())]])
    _open(folder, key)
    try:
        shards = make_shards(source, folder, as_ or kind_at(source), format, work.shard_megabytes, tell)
        stages, ending = plan(shards, folder)
    except InputError:
        shutil.rmtree(folder)
        raise
    about = {"command": command, "source": source, "options": given}
    gather = Gather(shards, about, parts, ending.folders, ending.removed, most_removed)
    if not execute([*stages, Stage("gather", 1, [gather])], folder / "stages", work, tell):
        return None
    outcome = Outcome.model_validate_json(report_of(out).read_text(encoding="utf-8"))
    shutil.rmtree(folder)
    return outcome


def _state(path: str) -> Any:
    """What tells one content of a source from another: names, sizes and times of its files."""
    if not Path(path).exists():
        return None
    files = [Path(one.name) for one in sources_of(path, None, None)[0]]
    return [[str(file), (stat := file.stat()).st_size, stat.st_mtime_ns] for file in files]


def _open(folder: Path, key: str) -> None:
    """The work folder of this job: an earlier start's where it has the same key, else a new one."""
    mark = folder / "key.json"
    if mark.is_file() and json.loads(mark.read_text()) == key:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    atomic_write(mark, json.dumps(key))
