"""The texts inside a record: listed, and replaced one by one. Does not know what is done to them."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from alignkit.records import Record

NAMES = frozenset({"id", "role", "name", "tool_call_id", "source", "tools", "weight", "label", "ranks", "margins"})
"""Fields of a record or a turn that name or number things: no text of theirs is ever changed."""
FREE = frozenset({"columns", "arguments"})
"""Fields whose own fields are the user's, whatever they are called."""


def texts_of(record: Record) -> list[str]:
    """Every text that a model would read: of the turns their content, reasoning and the arguments of tool calls."""
    return texts_in(record.model_dump())


def texts_in(row: dict[str, Any], columns: bool = False) -> list[str]:
    """The texts of a record as the mapping that its line holds; those of its columns too, where asked for."""
    return list(_strings({name: value for name, value in row.items() if columns or name != "columns"}, NAMES))


def joined(row: dict[str, Any]) -> str:
    """All texts of a record's mapping as one, an empty line between."""
    return "\n\n".join(text for text in texts_in(row) if text)


def whole(row: dict[str, Any]) -> str:
    """All that a record says, its labels, ranks and tools too, but not its id, source and columns."""
    said = {name: value for name, value in row.items() if name not in ("id", "source", "columns")}
    return json.dumps(said, sort_keys=True, ensure_ascii=False)


def _strings(value: Any, names: frozenset[str]) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in names:
                yield from _strings(item, frozenset() if key in FREE else names)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item, names)


def mapped(value: Any, change: Callable[[str], str], names: frozenset[str] = NAMES) -> Any:
    """The same with every text replaced, at any depth."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {
            key: item if key in names else mapped(item, change, frozenset() if key in FREE else names)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [mapped(item, change, names) for item in value]
    return value
