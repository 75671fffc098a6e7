"""The id of a run: a hash of all that decides its result. It knows neither algorithms nor where runs are kept."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from alignkit.config import InputError, content_hash
from alignkit.contents import Contents
from alignkit.data.sources import hub_revision
from alignkit.lineage import base_of
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

CODE = re.compile(r"([\w.]+):(\w+)")
"""A function of a user's own: its module, its name."""


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
            # The keys of a free mapping (template_kwargs) are no options, whatever they are called.
            named = {key: key if isinstance(item, BaseModel) else "" for key, item in value.items()}
            return {key: self._value(group, (*keys, named[key]), item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._value(group, keys, item) for item in value]
        if not isinstance(value, str):
            return value
        if reference := REFERENCE.fullmatch(value):
            return f"run {self.ids[reference[1]]}"
        is_code = isinstance(group, EnvironmentOptions) and ":" in value
        path = existing(value) if keys[-1] in PATH_KEYS or is_code else None
        if path is not None:
            found = " on ".join(f"sha256 {self.contents.of(one)}" for one in (path, *_base(path)))
            return f"{code[2]} of {found}" if (code := CODE.fullmatch(value)) else found
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


def _base(path: Path) -> list[Path]:
    """The folder that an adapter stands on, where it is one and that lies here."""
    base = Path(base_of(str(path)))
    return [base] if base != path and base.is_dir() else []


def names_model(group: BaseModel, key: str) -> bool:
    """Whether this option, where it holds neither a reference nor a folder, holds a model's name on a hub."""
    if isinstance(group, JudgeSource | EnvironmentOptions):
        return False
    if isinstance(group, RewardSource) and group.kind != "learned":
        return False
    return key in MODEL_KEYS or (key == "path" and not isinstance(group, DataOptions | SourceOptions))


def existing(text: str) -> Path | None:
    """The file or folder that an option names, if it names one; code as "package.module:function" is its file."""
    if code := CODE.fullmatch(text):
        module = code[1].replace(".", "/")
        package = f"{module}/__init__.py"
        text = package if Path(package).is_file() else f"{module}.py"
    path = Path(text)
    return path if text and path.exists() else None
