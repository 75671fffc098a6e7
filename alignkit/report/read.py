"""Reads what a recipe's runs left behind, in the order they were made. It knows nothing of pages and pictures."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.config import InputError
from alignkit.display import seconds_of
from alignkit.lineage import RunRecord, read_record
from alignkit.runs import read_metrics


@dataclass(frozen=True, slots=True)
class Stage:
    """One run of the recipe."""

    name: str
    record: RunRecord
    curves: dict[str, list[tuple[float, float]]]
    """(step, value) by metric, from metrics.jsonl."""
    results: dict[str, Any] | None
    """evaluate: what results.json holds."""
    samples: list[dict[str, Any]]
    """evaluate: what samples.json holds."""

    @property
    def seconds(self) -> float | None:
        """From the last start to the end."""
        return seconds_of(self.record)


def read_stages(directory: Path) -> list[Stage]:
    """The runs in a recipe's folder, each after those it builds on; superseded ones are left out.

    Raises InputError where there is none.
    """
    found: dict[str, RunRecord] = {}
    for path in sorted(directory.iterdir() if directory.is_dir() else ()):
        record = read_record(path) if path.is_dir() else None
        if record is not None and not (record.id and path.name.endswith(f".{record.id[:8]}")):
            found[path.name] = record
    if not found:
        raise InputError(f"{directory}: there is no run in it; name a recipe's folder, such as runs/quickstart")
    ordered: list[str] = []
    waiting = sorted(found, key=lambda name: found[name].started or "~")
    while waiting:
        ready = [name for name in waiting if not set(found[name].parents) & set(waiting) - {name}]
        # A cycle cannot come from a recipe; records that claim one are shown in the order of their starts.
        ordered.append((ready or waiting)[0])
        waiting.remove(ordered[-1])
    return [_stage(directory / name, found[name]) for name in ordered]


def _stage(path: Path, record: RunRecord) -> Stage:
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in read_metrics(path):
        for name, value in line.items():
            if name != "step" and value is not None:
                curves.setdefault(name, []).append((line["step"], value))
    artifact = path / record.artifact
    return Stage(
        path.name, record, curves, _json(artifact / "results.json", None), _json(artifact / "samples.json", [])
    )


def _json(path: Path, absent: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else absent
    except ValueError as error:
        raise InputError(f"{path}: is damaged ({error}); delete it and run the recipe again") from error
