"""Runs recipes that a script wrote, reads what they left behind, writes results. It knows no experiment."""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alignkit.provenance import provenance
from alignkit.report.read import Stage, read_stages

ROOT = Path(__file__).parents[2]
Rows = Iterable[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Options:
    """What every script of this folder is asked."""

    seeds: list[int]
    out: Path
    """Data, recipes and runs: what is done there is skipped."""
    quick: bool
    """A size that only shows that the script works; results go to `out`, not into the repository."""
    given: argparse.Namespace

    def results(self, name: str) -> Path:
        """Where the numbers go."""
        return (self.out if self.quick else ROOT / "benchmarks/results") / f"evidence_{name}.json"

    def picture(self, name: str) -> Path:
        """Where a picture goes."""
        return (self.out if self.quick else ROOT / "docs") / f"evidence_{name}.svg"


def options_of(name: str, text: str | None, **extra: dict[str, Any]) -> Options:
    """Read the command line; `extra` are a script's own arguments, as argparse takes them."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/evidence") / name, help="data, recipes and runs")
    parser.add_argument("--quick", action="store_true", help="a smoke size; nothing is written into the repository")
    for argument, settings in extra.items():
        parser.add_argument(f"--{argument}", **settings)
    given = parser.parse_args()
    seeds = given.seeds[:1] if given.quick else given.seeds
    return Options(seeds, given.out / "quick" if given.quick else given.out, given.quick, given)


def write_rows(path: Path, rows: Rows) -> str:
    """Write JSON lines; returns the path for a recipe."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def run_chain(folder: Path, name: str, seed: int, stages: dict[str, Any]) -> dict[str, Stage]:
    """Write the recipe into the folder and bring it up to date; its runs by name."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / f"{name}.yaml"
    runtime = {"trackers": [], "token_budget": 8192}
    content = {"name": name, "seed": seed, "runtime": runtime, "stages": stages}
    recipe.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "alignkit", "run", str(recipe), "--runs", str(folder / "runs")]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return {stage.name: stage for stage in read_stages(folder / "runs" / name)}


def row_of(stage: Stage, model: str, metric: str) -> dict[str, float]:
    """A row of an evaluation: value, low, high."""
    assert stage.results is not None
    row = next(row for row in stage.results["rows"] if (row["model"], row["metric"]) == (model, metric))
    return {key: row[key] for key in ("value", "low", "high")}


def seconds_of(stages: Iterable[Stage]) -> dict[str, float]:
    """Wall-clock seconds of each stage."""
    return {stage.name: round(stage.seconds or 0.0, 1) for stage in stages}


def publish(
    name: str,
    options: Options,
    sizes: dict[str, Any],
    found: list[dict[str, Any]],
    tables: Callable[[list[dict[str, Any]]], str],
    picture: Callable[[list[dict[str, Any]], Path], None],
) -> None:
    """Write what the seeds found, print its tables, and draw its picture."""
    write_results(options.results(name), options, {"sizes": sizes, "runs": found})
    print(tables(found))
    picture(found, options.picture(name))


def write_results(path: Path, options: Options, found: dict[str, Any]) -> None:
    """Write numbers with the machine and the versions that they were made with."""
    made = {**provenance("torch", "transformers", "accelerate"), "seeds": options.seeds}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rounded({**made, **found}), indent=1) + "\n")


def rounded(value: Any) -> Any:
    """Numbers to five significant digits: what lies below is no measurement."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean of the seeds, and in brackets their least and largest."""
    mean, low, high = (f"{x:.{digits}f}" for x in (statistics.fmean(values), min(values), max(values)))
    return f"{mean} [{low}, {high}]"


def axes_of(count: int, width: float = 6.4, height: float = 2.6) -> tuple[Figure, list[Axes]]:
    """A white figure with `count` plain axes side by side."""
    figure = Figure((width, height), layout="constrained", facecolor="white")
    drawn: list[Axes] = list(figure.subplots(1, count, squeeze=False)[0])
    for axes in drawn:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(lw=0.5, alpha=0.5)
        axes.tick_params(labelsize=8)
        axes.xaxis.label.set_fontsize(8)
        axes.yaxis.label.set_fontsize(8)
    return figure, drawn


def save(figure: Figure, path: Path) -> None:
    """Write an SVG that is the same from day to day, its letters as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None})
