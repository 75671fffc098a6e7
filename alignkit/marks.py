"""YAML 1.2 that remembers its lines, and dotted overrides of it. Does not know what a key means."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import yaml


class InputError(ValueError):
    """The user's input is wrong (exit code 2). The message names file and line, the field, and what to do."""


class Node(dict[str, Any]):
    """A YAML mapping that remembers where it and each of its keys stood ("recipe.yaml:12", or "command line")."""

    def __init__(self, values: Mapping[str, Any] = {}, mark: str = "", marks: Mapping[str, str] = {}) -> None:
        super().__init__(values)
        self.mark = mark
        self.marks = dict(marks)


class Items(list[Any]):
    """A YAML list that remembers where each of its items stood."""

    def __init__(self, values: Sequence[Any] = (), mark: str = "", marks: Sequence[str] = ()) -> None:
        super().__init__(values)
        self.mark = mark
        self.marks = list(marks)


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars by YAML 1.2's core schema: `2e-5` is a number, `no` and `2024-01-01` are strings."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # pyright: ignore


_NULL, _BOOL, _INT, _FLOAT, _STR = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str"))
for _tag, _pattern, _first in (
    (_BOOL, r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    (_INT, r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    (
        _FLOAT,
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+.0123456789",
    ),
    (_NULL, r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
):
    for _char in _first:
        _Loader.yaml_implicit_resolvers.setdefault(_char, []).append((_tag, re.compile(_pattern)))


def read_text(path: str | Path, where: str = "") -> str:
    """A whole file of UTF-8. Raises InputError, which `where` begins."""
    try:
        return Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"{where}{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{where}{path}: is not UTF-8 at byte {error.start}; save the file as UTF-8") from error


def load_yaml(path: str | Path) -> Node:
    """Read one YAML mapping with its line marks. Raises InputError where the file is anything else."""
    value = parse_yaml(read_text(path), str(path))
    if not isinstance(value, Node):
        raise InputError(f"{path}: must hold `key: value` lines, and holds {short(value)}")
    return value


def parse_yaml(text: str, name: str, mark: str | None = None) -> Any:
    """Parse one YAML document. `name` stands in the line marks; `mark`, if given, replaces every one of them."""
    try:
        root = _Loader(text).get_single_node()
        return None if root is None else _plain(root, name, mark, ())
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        where = mark or (f"{name}:{at.line + 1}" if at else name)
        hint = '; write a reference in quotes: "@name"' if "'@'" in (error.problem or "") else ""
        raise InputError(f"{where}: not valid YAML: {error.problem or error.context}{hint}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{mark or name}: not valid YAML: {error}".replace("\n", " ")) from error


def _plain(node: yaml.Node, name: str, mark: str | None, above: tuple[int, ...]) -> Any:
    here = mark or f"{name}:{node.start_mark.line + 1}"
    if id(node) in above:
        raise InputError(f"{here}: an alias (*name) may not contain itself")
    above = (*above, id(node))
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, name, mark, above)
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        children = cast(list[yaml.Node], node.value)
        marks = [mark or f"{name}:{child.start_mark.line + 1}" for child in children]
        return Items([_plain(child, name, mark, above) for child in children], here, marks)
    text = cast(str, node.value)
    if node.tag == _STR:
        return text
    if node.tag == _NULL:
        return None
    if node.tag == _BOOL:
        return text.lower() == "true"
    try:
        if node.tag == _INT:
            return int(text, 0 if text[:2] in ("0o", "0x") else 10)
        if node.tag == _FLOAT:
            return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    except ValueError as error:
        raise InputError(f"{here}: {text!r} is not a number") from error
    raise InputError(f"{here}: the tag {node.tag!r} is not allowed; a recipe holds plain data only")


def _mapping(node: yaml.MappingNode, name: str, mark: str | None, above: tuple[int, ...]) -> Node:
    here = mark or f"{name}:{node.start_mark.line + 1}"
    if node.tag != "tag:yaml.org,2002:map":
        raise InputError(f"{here}: the tag {node.tag!r} is not allowed; a recipe holds plain data only")
    result = Node(mark=here)
    for key_node, value_node in cast(list[tuple[yaml.Node, yaml.Node]], node.value):
        line = mark or f"{name}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise InputError(f"{line}: a key must be a plain name")
        key = cast(str, key_node.value)
        if key in result:
            raise InputError(f"{line}: the key `{key}` stands here twice (first at {result.marks[key]}); remove one")
        result[key] = _plain(value_node, name, mark, above)
        result.marks[key] = line
    return result


def apply_overrides(mapping: Mapping[str, Any], overrides: Sequence[str]) -> Node:
    """Return a copy of `mapping` in which each dotted `key.key=value` is set; values are read as YAML."""
    result = _copy(mapping)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = dotted.strip().split(".")
        mark = f"command line ({override})"
        if not equals or not all(keys):
            raise InputError(f"command line: {override!r} is not of the form key.key=value")
        group = result
        for depth, key in enumerate(keys[:-1], start=1):
            if group.get(key) is None:
                group[key] = Node(mark=mark)
                group.marks[key] = mark
            if not isinstance(group[key], Node):
                held = f"`{'.'.join(keys[:depth])}` holds {short(group[key])}"
                raise InputError(f"{mark}: {held}, not a group of keys; set it as a whole")
            group = group[key]
        group[keys[-1]] = parse_yaml(text, "command line", mark)
        group.marks[keys[-1]] = mark
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        items = cast(Mapping[str, Any], value)
        copied = {key: _copy(item) for key, item in items.items()}
        return Node(copied, value.mark, value.marks) if isinstance(value, Node) else Node(copied)
    if isinstance(value, Items):
        return Items([_copy(item) for item in value], value.mark, value.marks)
    return value


def short(value: Any) -> str:
    """A value as an error message shows it: its JSON, cut at 60 characters."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
