"""Fields of one row, with errors that name the field. Knows no form."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from alignkit.data.turns import to_tools

Row = Mapping[str, Any]


def need(row: Any, field: str) -> Any:
    """The field's value; raises ValueError where it is missing or null."""
    if not isinstance(row, Mapping):
        raise ValueError(f"an object with the field `{field}` must stand here, and {row!r} does")
    if row.get(field) is None:
        raise ValueError(f"field `{field}` is missing; the row has {', '.join(row) or 'no field'}")
    return row[field]


def text_of(row: Any, field: str, if_empty: str | None = None) -> str:
    """The field's text; where it is blank, an error that begins with `if_empty`."""
    value = need(row, field)
    if not isinstance(value, str):
        raise ValueError(f"field `{field}` must be text, and is {type(value).__name__}")
    if if_empty and not value.strip():
        raise ValueError(f"{if_empty}: field `{field}` is empty")
    return value


def common_of(row: Row, *used: str) -> dict[str, Any]:
    """id, tools and columns of a row; the columns are all its fields but those `used`."""
    columns = row.get("columns")
    others = {key: value for key, value in row.items() if key not in (*used, "id", "tools", "columns")}
    return {
        "id": None if row.get("id") is None else str(row["id"]),
        "tools": to_tools(row.get("tools")),
        "columns": {**(columns if isinstance(columns, Mapping) else {}), **others},
    }


def number_of(value: Any, field: str) -> float:
    """A number that is no boolean; CSV holds it as text."""
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"field `{field}` must be a number, and is {value!r}")
    return float(value)


def label_of(row: Row) -> bool:
    """The verdict of an unpaired row."""
    label = need(row, "label")
    if isinstance(label, str):  # CSV
        label = {"true": True, "false": False, "1": True, "0": False}.get(label.strip().lower(), label)
    if label not in (True, False):
        raise ValueError(f"field `label` must be true (good) or false (bad), and is {label!r}")
    return bool(label)
