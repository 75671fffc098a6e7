"""What "@name" may stand for: models, data and results are told apart before anything runs. Knows no run, no torch."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from alignkit.config import Config
from alignkit.options import STAGES
from alignkit.options.critique import CritiqueConfig
from alignkit.options.evaluate import EvaluateConfig
from alignkit.options.mixture import SourceOptions
from alignkit.options.sample import SampleConfig
from alignkit.options.shared import DataOptions
from alignkit.options.trl import TrlConfig
from alignkit.records import Candidates, Comparison, Demonstration, Document, Feedback, Prompt, Record

REFERENCE = re.compile(r"@([A-Za-z0-9_-]+)")
RECORDS: dict[str, type[Record]] = {
    "pretrain": Document,
    "sft": Demonstration,
    "reward": Comparison,
    "dpo": Comparison,
    "kto": Feedback,
    "ppo": Prompt,
    "grpo": Prompt,
    "rloo": Prompt,
    "sample": Prompt,
    "critique": Prompt,
    "evaluate": Prompt,
}
"""What each type of stage, and each trainer of TRL, reads."""
FILES: dict[str, type[Record]] = {"demonstrations": Demonstration, "comparisons": Comparison, "feedback": Feedback}
"""What the files hold that a stage of data leaves."""
SERVES: dict[type[Record], tuple[type[Record], ...]] = {
    Candidates: (Comparison,),
    Demonstration: (Demonstration, Comparison),
    Prompt: (Prompt, Demonstration, Comparison, Feedback),
}
"""The records that can be read as another, as `alignkit.data.formats.convert` does."""


def kind_read(stage: str, config: Config) -> type[Record]:
    """What a stage reads: a type of alignkit's own, or a trainer of TRL's."""
    if isinstance(config, SampleConfig) and config.model is None:
        return Candidates
    return RECORDS[config.trainer if isinstance(config, TrlConfig) else stage]


def misused(stage: str, config: Config, others: Mapping[str, tuple[str, Config]]) -> Iterator[tuple[list[str], str]]:
    """(dotted option, fault) for each reference that its stage cannot use. `others`: every stage's (type, options).

    Stages of types that alignkit does not have are let be.
    """
    for keys, name, group in _references(config, []):
        if name not in others or not (_ours(stage, config) and _ours(*others[name])):
            continue
        fault = _fault(f"@{name}", others[name][1], stage, config, group, keys)
        if fault is not None:
            yield keys, fault


def _ours(stage: str, config: Config) -> bool:
    return type(config) is STAGES.get(stage)


def _fault(
    name: str, made: Config, stage: str, config: Config, group: BaseModel | None, keys: list[str]
) -> str | None:
    as_data = isinstance(group, DataOptions | SourceOptions)
    if not isinstance(made, SampleConfig | CritiqueConfig):
        what = "the results of an evaluation" if isinstance(made, EvaluateConfig) else "a model"
        if as_data or isinstance(made, EvaluateConfig):
            return f"{name} is {what}, and {'data' if as_data else 'a model'} is asked for here"
        return None
    if not as_data:
        return f"{name} is data, and a model is asked for here"
    chosen = [file for file in made.files if group.split is None or file.startswith(group.split)]
    if len(chosen) != 1:
        return f"{name} leaves {' and '.join(made.files)}: name one of them with `split`, as in split: {made.files[0]}"
    if keys not in (["data"], ["data", "sources"]):
        return None
    wanted = kind_read(stage, config)
    if FILES[chosen[0]] in SERVES.get(wanted, (wanted,)):
        return None
    wants = f"{stage} reads {wanted.__name__.lower()} records"
    return f"{name} writes {chosen[0]}, and {wants}; change its `write`"


def _references(value: Any, keys: list[str], group: BaseModel | None = None) -> Iterator[tuple[list[str], str, Any]]:
    """(dotted keys, name, the group it stands in) of each reference."""
    if isinstance(value, str) and (match := REFERENCE.fullmatch(value)):
        yield (keys[:-1] if isinstance(group, DataOptions | SourceOptions) else keys), match[1], group
    elif isinstance(value, BaseModel):
        for key in type(value).model_fields:
            yield from _references(getattr(value, key), [*keys, key], value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _references(item, [*keys, str(key)], group)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _references(item, keys, group)
