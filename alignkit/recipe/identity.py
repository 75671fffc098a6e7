"""The id of a run: a hash of all that decides its result. It knows neither algorithms nor where runs are kept."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from alignkit.config import InputError, content_hash
from alignkit.data.sources import hub_revision
from alignkit.lineage import atomic_write, sha256_file
from alignkit.options.environment import EnvironmentOptions
from alignkit.options.judge import JudgeSource
from alignkit.options.mixture import SourceOptions, StreamedDataOptions, is_streamed
from alignkit.options.reward_source import RewardSource
from alignkit.options.shared import DataOptions
from alignkit.recipe.hub import revision
from alignkit.recipe.read import REFERENCE, Recipe, Stage

FORMAT = 1
"""Raised when a change of alignkit makes results that earlier runs no longer stand for."""
MODEL_KEYS = ("model", "models", "reference", "baseline")
"""Options outside `model:` that name a model."""
PATH_KEYS = ("path", "chat_template", "json_schema", "guidelines", *MODEL_KEYS)
"""Options that may name a file or folder; in all others a text is a text."""


class Contents:
    """Hashes of files and folders; those of large files are remembered by size and time of change."""

    def __init__(self, memory: Path | None = None, large: int = 1 << 24) -> None:
        self._memory = memory
        self._large = large
        self._known: dict[str, str] = {}
        if memory is not None and memory.exists():
            self._known = json.loads(memory.read_text())

    def of(self, path: Path) -> str:
        """SHA-256 of a file, or of a folder's file names and contents; hidden files do not count."""
        if not path.is_dir():
            return self._of_file(path)
        inside = (found.relative_to(path) for found in path.rglob("*") if found.is_file())
        visible = sorted(name for name in inside if not any(part.startswith(".") for part in name.parts))
        return content_hash({name.as_posix(): self._of_file(path / name) for name in visible})

    def _of_file(self, path: Path) -> str:
        facts = path.stat()
        if facts.st_size < self._large:
            return sha256_file(path)
        key = f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns} {facts.st_ino}"
        if key not in self._known:
            self._known[key] = sha256_file(path)
            if self._memory is not None:
                atomic_write(self._memory, json.dumps(self._known))
        return self._known[key]


def stage_ids(recipe: Recipe, contents: Contents) -> dict[str, str]:
    """The id of every stage, by name. Raises InputError where a file it names is not there."""
    ids: dict[str, str] = {}
    for stage in recipe.stages.values():
        values = _Identity(stage, ids, contents).of(stage.config)
        ids[stage.name] = content_hash({"format": FORMAT, "stage": stage.type, "config": values})
    return ids


@dataclass(frozen=True)
class _Identity:
    """A stage's options in which every "@name" is that run's id, and every path the hash of what lies there."""

    stage: Stage
    ids: Mapping[str, str]
    contents: Contents

    def of(self, group: BaseModel, keys: tuple[str, ...] = ()) -> dict[str, Any]:
        return {name: self._value(group, (*keys, name), getattr(group, name)) for name in type(group).model_fields}

    def _value(self, group: BaseModel, keys: tuple[str, ...], value: Any) -> Any:
        if isinstance(value, BaseModel):
            return self.of(value, keys)
        if isinstance(value, dict):
            return {key: self._value(group, (*keys, key), item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._value(group, keys, item) for item in value]
        if not isinstance(value, str):
            return value
        if reference := REFERENCE.fullmatch(value):
            return f"run {self.ids[reference[1]]}"
        is_code = isinstance(group, EnvironmentOptions) and ":" in value
        path = existing(value) if keys[-1] in PATH_KEYS or is_code else None
        if path is not None:
            return f"sha256 {self.contents.of(path)}"
        data = vars(self.stage.config).get(keys[0])
        if is_streamed(data) and isinstance(group, DataOptions | SourceOptions):
            return f"revision {hub_revision(value, self.stage.mark(*keys))}" if keys[-1] == "path" else value
        files = ("lexicon", "judge")
        is_file = isinstance(group, DataOptions | SourceOptions | JudgeSource)
        is_file = is_file or (isinstance(group, RewardSource) and group.kind in files)
        if (is_file and keys[-1] == "path") or keys[-1] == "guidelines":
            more = "; a data set on a hub needs data.stream: true" if isinstance(data, StreamedDataOptions) else ""
            raise InputError(f"{self.stage.mark(*keys)}: there is no file or folder {value!r} here{more}")
        if names_model(group, keys[-1]):
            return f"revision {revision(value, self.stage.mark(*keys))}"
        return value


def names_model(group: BaseModel, key: str) -> bool:
    """Whether this option, where it holds neither a reference nor a folder, holds a model's name on a hub."""
    if isinstance(group, JudgeSource | EnvironmentOptions):
        return False
    if isinstance(group, RewardSource) and group.kind != "learned":
        return False
    return key in MODEL_KEYS or (key == "path" and not isinstance(group, DataOptions | SourceOptions))


def existing(text: str) -> Path | None:
    """The file or folder that an option names, if it names one; code as "package.module:function" is its file."""
    if re.fullmatch(r"[\w.]+:\w+", text):
        text = text.partition(":")[0].replace(".", "/") + ".py"
    path = Path(text)
    return path if text and path.exists() else None
