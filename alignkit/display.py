"""Runs and results as tables for a terminal and as JSON for programs. It does not know how a chain is run."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from alignkit.lineage import RunRecord

WIDTH = 160
"""Columns of a table where the output is no terminal."""


def console() -> Console:
    """Standard output, every text as it is; wide where it is a file or a pipe, so that no cell is cut."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False, emoji=False)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """A table whose first column names things and whose others are set flush right where they hold numbers."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for number, name in enumerate(columns):
        cells = [row[number] for row in rows if row[number]]
        numeric = bool(cells) and all(cell[0].isdigit() or cell[0] in "-+." for cell in cells)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    console().print(table)


def print_not_read(files: Sequence[str]) -> None:
    """The first of the files that a job on data left out; nothing where there are none."""
    if files:
        print(f"Not read: {', '.join(files[:5])}{', …' if len(files) > 5 else ''}")


@contextmanager
def counting(unit: str = "rows") -> Iterator[Callable[[str, int], None]]:
    """(what, count): called now and then where the end is not known; a live line in a terminal, else nothing."""
    with Console(stderr=True, highlight=False, markup=False, emoji=False).status("reading") as line:
        yield lambda what, count: line.update(f"{what}: {count:,} {unit}")


def number(value: Any, figures: int = 4) -> str:
    """A number in about that many figures; nothing for None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.{figures}g}"


def seconds_of(record: RunRecord) -> float | None:
    """How long the last start took, by the record's own times."""
    if record.started is None or record.ended is None:
        return None
    return (datetime.fromisoformat(record.ended) - datetime.fromisoformat(record.started)).total_seconds()


def headline(metrics: Mapping[str, Any], most: int = 6) -> str:
    """The first few plain numbers of a run's metrics."""
    plain = [(name, value) for name, value in metrics.items() if isinstance(value, int | float)]
    return "  ".join(f"{name} {number(value)}" for name, value in plain[:most])


def runs_table(rows: Sequence[tuple[str, str, RunRecord | None]]) -> None:
    """(name, state, record) of each run as a table."""
    cells: list[list[str]] = []
    for name, state, record in rows:
        if record is None:
            cells.append([name, state, "", "", "", "", ""])
            continue
        memory = "" if record.peak_memory_bytes is None else f"{record.peak_memory_bytes / 2**30:.2f} GiB"
        speed = number(record.throughput.get("examples_per_second"))
        said = record.error if record.status == "failed" and record.error else headline(record.metrics)
        seconds = seconds_of(record)
        time = "" if seconds is None else f"{seconds:,.0f} s"
        cells.append([name, state, record.id[:8], time, speed, memory, said])
    print_table(["stage", "state", "id", "time", "examples/s", "memory", "metrics"], cells)


def describe(options: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(dotted name, type, default, description) of every option, groups opened."""
    for name, field in options.model_fields.items():
        inner = _group(field.annotation)
        default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        if inner is None:
            yield f"{prefix}{name}", _type(field.annotation), default, field.description or ""
        else:
            empty = "" if default not in ("none", "required") else f"({default})"
            yield f"{prefix}{name}", "group", empty, field.description or (inner.__doc__ or "").strip()
            yield from describe(inner, f"{prefix}{name}.")


def _group(annotation: Any) -> type[BaseModel] | None:
    for part in () if get_origin(annotation) is dict else (annotation, *get_args(annotation)):
        if isinstance(part, type) and not get_args(part) and issubclass(part, BaseModel):
            return part
    return None


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        return ""
    return "none" if value is None else json.dumps(value) if not isinstance(value, str) else value


def _type(annotation: Any) -> str:
    """An annotation in plain words: "linear or cosine", "int or none", "list of str"."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(str(part) for part in parts)
    if origin in (list, tuple):
        return f"list of {_type(parts[0])}"
    if origin in (Union, UnionType):
        return " or ".join(_type(part) for part in parts)
    if origin is Annotated:
        return _type(parts[0])
    return "none" if annotation is type(None) else str(getattr(annotation, "__name__", annotation))


def artifact_of(path: Path, record: RunRecord | None) -> Path:
    """The folder to load: a run's artifact, or the folder itself where it is no run."""
    return path if record is None else path / record.artifact
