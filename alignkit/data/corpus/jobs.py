"""A job from its source to its files: the work folder that lets it resume, the stages, the end. Knows no step."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alignkit.config import Config, InputError
from alignkit.data.corpus.execute import Stage, execute
from alignkit.data.corpus.gather import Gather, Outcome, accounts_of
from alignkit.data.corpus.shards import Shards, make_shards
from alignkit.data.importing import check_out
from alignkit.data.sources import sources_of
from alignkit.data.stream import kind_at
from alignkit.data.taking import KINDS, Tell
from alignkit.data.work_folder import SUBMITTED, is_in, state_of, sweep, work_folder
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
    check_apart([*parts.values(), *accounts_of(out).values()], (source, *beside))
    if as_ is not None and as_ not in KINDS:
        raise InputError(f"--as {as_}: give one of {', '.join(KINDS)}")
    given = options.model_dump(mode="json", exclude={"work"})
    decides = {name: value for name, value in given.items() if name != "most_removed"}
    files = [*map(str, parts.values())]
    decides = [command, as_, format, decides, work.shard_megabytes, files]
    with job_folder(out, (source, *beside), decides) as folder:
        try:
            shards = make_shards(source, folder, as_ or kind_at(source, format), format, work.shard_megabytes, tell)
            stages, ending = plan(shards, folder)
        except InputError:
            shutil.rmtree(folder)
            raise
        about = {"command": command, "source": source, "options": given}
        gather = Gather(shards, about, parts, ending.folders, ending.removed, most_removed)
        if not execute([*stages, Stage("gather", 1, [gather])], folder / "stages", work, tell):
            (folder / SUBMITTED).touch()
            return None
        outcome = Outcome.model_validate_json(accounts_of(out)["report"].read_text(encoding="utf-8"))
        shutil.rmtree(folder)
    return outcome


def check_apart(written: Sequence[Path], read: Sequence[str]) -> None:
    """Raises InputError where a file that is to be written is one that is read, or lies in a folder that is; deletes
    what a killed process left of such a file."""
    for path in written:
        for source in read:
            if is_in(path, source):
                raise InputError(f"{path}: would be written over what is read ({source}); write it elsewhere")
    for path in written:
        sweep(path)


@contextmanager
def job_folder(out: Path, sources: Sequence[str], decides: Any) -> Iterator[Path]:
    """The folder in which a job works, for as long as its sources and what else decides stay the same."""
    if strange := sorted(set(str(out.resolve())) & set("*?[]{}")):
        raise InputError(f"{out}: the path holds {strange[0]!r}, by which files are searched for; choose another")
    with work_folder(out, [decides, {path: _state(path) for path in sources}, version("datatrove")]) as folder:
        yield folder


def _state(path: str) -> Any:
    return state_of(Path(one.name) for one in sources_of(path, None, None)[0]) if Path(path).exists() else None
