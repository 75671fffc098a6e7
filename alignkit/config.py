"""Strict configuration: marked YAML into frozen pydantic models, faults told by line. It does not know any stage."""

import difflib
import hashlib
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from alignkit.marks import InputError, Items, Node, apply_overrides, load_yaml, parse_yaml, short
from alignkit.names import FOREIGN_NAMES

__all__ = [
    "Config", "InputError", "Items", "Node", "apply_overrides", "build", "content_hash", "dotted_fields", "load_yaml",
    "parse_yaml",
]  # fmt: skip


class Config(BaseModel):
    """Base of every group of options: strict, frozen, unknown keys refused; a docstring under a field describes it."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    def only_with(self, condition: bool, where: str, *names: str) -> None:
        """Raise ValueError for an option of `names` that differs from its default where it would be ignored."""
        for name in names:
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            if not condition and getattr(self, name) != default:
                raise ValueError(f"{name} has no meaning {where}; remove it")


AnyConfig = TypeVar("AnyConfig", bound=BaseModel)


def build(config: type[AnyConfig], mapping: Mapping[str, Any], where: str) -> AnyConfig:
    """Validate `mapping` into `config`. `where` is the dotted place of the mapping in its file (may be empty).

    Raises InputError with one line per fault: file and line, dotted field, what is wrong, the nearest valid name.
    """
    try:
        # JSON mode keeps types strict and still takes a YAML list for a tuple and a string for a Path.
        return config.model_validate_json(json.dumps(mapping, default=str))
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
    lines: dict[tuple[str, str], list[str]] = {}
    for fault in faults:
        path = _path_in(mapping, fault)
        dotted = ".".join(str(part) for part in (*([where] if where else []), *path))
        said = lines.setdefault((_mark_of(mapping, path), dotted or config.__name__), [])
        message = _say(config, mapping, path, fault)
        if message not in said:
            said.append(message)
    raise InputError("\n".join(": ".join([*filter(None, at), "; or ".join(said)]) for at, said in lines.items()))


def _path_in(mapping: Mapping[str, Any], fault: ErrorDetails) -> list[str | int]:
    """The fault's place in the user's own tree: pydantic's location without the union members it names in between."""
    value: Any = mapping
    path: list[str | int] = []
    for part in fault["loc"]:
        if part in (value if isinstance(value, Mapping) else range(len(value)) if isinstance(value, Items) else ()):
            path.append(part)
            value = cast(Any, value)[part]
    if fault["type"] == "missing":
        path.append(fault["loc"][-1])
    return path


def _mark_of(mapping: Mapping[str, Any], path: Sequence[str | int]) -> str:
    value: Any = mapping
    mark = mapping.mark if isinstance(mapping, Node) else ""
    for part in path:
        if isinstance(value, Node) and isinstance(part, str):
            mark = value.marks.get(part, mark)
            value = value.get(part)
        elif isinstance(value, Items) and isinstance(part, int) and part < len(value.marks):
            mark, value = value.marks[part], value[part]
    return mark


def _say(config: type[BaseModel], mapping: Mapping[str, Any], path: Sequence[str | int], fault: ErrorDetails) -> str:
    models = list(_models_at(config, path[:-1]))
    key = str(path[-1]) if path else ""
    if fault["type"] == "extra_forbidden":
        return f"unknown key{_nearest(config, models, path)}"
    if fault["type"] == "missing":
        described = [model.model_fields[key].description for model in models if key in model.model_fields]
        return "required and missing" + (f": {described[0]}" if described and described[0] else "")
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if fault["type"] in ("value_error", "assertion_error"):
        return message
    if fault["loc"][-1] == "[key]":
        return f"the key {message[:1].lower()}{message[1:]}"
    value: Any = mapping
    for part in path:
        value = value[part]
    return f"{message[:1].lower()}{message[1:]}, and is {short(value)}"


def _nearest(config: type[BaseModel], models: Sequence[type[BaseModel]], path: Sequence[str | int]) -> str:
    key = str(path[-1])
    names = [name for model in models for name in model.model_fields]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.75)
    if near:
        return f"; did you mean `{near[0]}`?"
    elsewhere = [dotted for dotted in dotted_fields(config) if dotted.rpartition(".")[2] == key]
    if elsewhere:
        return f"; here it is `{elsewhere[0]}`"
    if key in FOREIGN_NAMES:
        return f"; here it is {FOREIGN_NAMES[key]}"
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"; did you mean `{near[0]}`?" if near else f"; known here: {', '.join(names)}"


def dotted_fields(config: type[BaseModel]) -> Iterator[str]:
    """Every field of `config` and of the groups inside it, by dotted name, outermost first."""
    yield from config.model_fields
    for name, field in config.model_fields.items():
        for model in _models_in(field.annotation):
            yield from (f"{name}.{inner}" for inner in dotted_fields(model))


def _models_at(config: type[BaseModel], path: Sequence[str | int]) -> Iterator[type[BaseModel]]:
    if not path:
        yield config
    elif isinstance(path[0], str) and path[0] in config.model_fields:
        annotation = config.model_fields[path[0]].annotation
        within = len(path) > 1 and (get_origin(annotation) is dict or not isinstance(path[1], str))
        for model in _models_in(annotation, dictionaries=True):
            yield from _models_at(model, path[2:] if within else path[1:])


def _models_in(annotation: Any, dictionaries: bool = False) -> Iterator[type[BaseModel]]:
    """The groups that an annotation names; those of a dictionary's values, which may nest without end, on request."""
    if isinstance(annotation, type) and not get_args(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, list, tuple) or hasattr(annotation, "__metadata__"):
        for part in get_args(annotation):
            yield from _models_in(part, dictionaries)
    elif dictionaries and get_origin(annotation) is dict:
        yield from _models_in(get_args(annotation)[1], dictionaries)


def content_hash(value: Any) -> str:
    """SHA-256 (hex) of the value's canonical JSON; key order, and tuple or list, make no difference."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_as_json)
    return hashlib.sha256(text.encode()).hexdigest()


def _as_json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")
