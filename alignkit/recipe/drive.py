"""Drives a recipe for a person at a terminal: says what happens, prints the results, ends with an exit code."""

import json
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from alignkit.config import InputError
from alignkit.display import headline, number, print_json, print_table
from alignkit.lineage import RunRecord
from alignkit.recipe.chain import StageFailed, Step, execute_child, run_chain
from alignkit.recipe.read import load_recipe

RUNS = Path("runs")
"""Where runs are kept unless the user says otherwise."""
SAID = {"done": "done before", "stored": "done before, brought back", "unfinished": "goes on", "new": "starts"}


def run_recipe(
    path: Path,
    overrides: Sequence[str],
    targets: Sequence[str] | None = None,
    runs: Path = RUNS,
    allow_code: bool = False,
    as_json: bool = False,
) -> list[Step]:
    """Run a recipe, or `targets` and what they build on, each stage in a process of its own; print the results."""
    recipe = load_recipe(path, overrides, allow_code=allow_code)
    width = max(len(name) for name in recipe.stages)

    changed: list[Step] = []

    def tell(step: Step) -> None:
        changed.extend([step] if step.state != "done" else [])
        if not as_json:
            print(f"{step.stage.name:<{width}}  {SAID[step.state]}  ({step.directory})", flush=True)

    steps = run_chain(recipe, runs, execute_child, targets=targets, tell=tell)
    report = runs / recipe.name / "report.html"
    if changed or not report.exists():
        import_module("alignkit.report").write_report(runs / recipe.name)  # imports matplotlib
    if as_json:
        print_json({"recipe": recipe.name, "report": report, "stages": as_rows(steps)})
        return steps
    print_held_out(steps)
    for step in steps:
        if step.stage.type == "evaluate":
            print_results(step)
    print(f"\nReport: {report}")
    return steps


def as_rows(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Steps as plain values: name, stage, state, id, directory, metrics and the record's other measurements."""
    return [
        {
            "name": step.stage.name,
            "stage": step.stage.type,
            "state": step.state,
            "id": step.id,
            "directory": step.directory,
        }
        | (_measured(step.record) if step.record else {})
        for step in steps
    ]


def _measured(record: RunRecord) -> dict[str, Any]:
    fields = {"status", "metrics", "throughput", "peak_memory_bytes", "started", "ended", "error"}
    return record.model_dump(mode="json", include=fields)


def print_held_out(steps: Sequence[Step]) -> None:
    """A line for each stage that measured itself on held-out records."""
    for step in steps:
        metrics = step.record.metrics if step.record else {}
        found = {key.removeprefix("held_out/"): metrics[key] for key in metrics if key.startswith("held_out/")}
        if found:
            print(f"\n{step.stage.name} on held-out records: {headline(found)}")


def print_results(step: Step) -> None:
    """The evaluate stage's table: a row for each measurement, a column for each model, intervals in brackets."""
    path = step.directory / step.record.artifact / "results.json" if step.record else step.directory
    if not path.is_file():
        return
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    models: list[str] = results["models"]
    measured: dict[str, dict[str, str]] = {}
    for row in (row for row in results["rows"] if "/" not in row["metric"]):  # a reward's parts are in the report
        measured.setdefault(row["metric"], {})[row["model"]] = _estimate(row)
    print()
    rows = [[metric, *(values.get(model, "") for model in models)] for metric, values in measured.items()]
    print_table([step.stage.name, *models], rows)
    judge, baseline = results["win_rate_by"], results["baseline"]
    print(f"Intervals: {results['confidence']:.0%}." + (f" Win rates by {judge} against {baseline}." if judge else ""))


def _estimate(row: dict[str, Any]) -> str:
    low, high = row.get("low"), row.get("high")
    return number(row["value"]) + ("" if low is None or high is None else f" [{number(low)}, {number(high)}]")


def guarded(work: Callable[[], object]) -> NoReturn:
    """Do `work` and end the process with the exit code it has earned; what the user can mend is said in one line."""
    try:
        work()
    except (InputError, StageFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) or error.user else 1)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)
