"""Writes runs/<recipe>/report.html, one file that needs no other. It reads run directories and knows no model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from alignkit.display import number
from alignkit.lineage import atomic_write
from alignkit.report.page import rendered, size
from alignkit.report.plots import Point, curve_plot, frontier_plot, interval_plot
from alignkit.report.read import Stage, read_stages

SCORES = ("gold", "reward")
LEADING = ("gold", "reward", "win_rate", "kl", "length", "finished", "perplexity")
"""Metrics that come first in the table, where they are there."""
SHARES = ("win_rate", "finished", "accuracy", "exact_match", "precision", "recall", "f1", "right")
SHARES_END = ("_declined", "_answered", "_admitted")
"""Metrics shown in percent."""
SECONDARY = re.compile(
    r"seconds(/.*)?|learning_rate|tokens_per_second|lost_updates|.*grad_norm|(policy|critic)/.*|.*kl_coef"
)
"""Curves that say how a training ran, not what it did: folded away."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A number of the headline table, as the page shows it and as the file holds it."""

    text: str
    interval: str
    value: float


def write_report(directory: Path) -> Path:
    """Write `directory`/report.html from the runs in it; returns its path. Raises InputError where there is no run."""
    stages = read_stages(directory)
    evaluation = next((stage for stage in reversed(stages) if stage.results), None)
    page = rendered(
        "template.html",
        recipe=directory.resolve().name,
        stages=stages,
        total=sum(stage.seconds or 0.0 for stage in stages),
        evaluation=evaluation,
        results=evaluation.results if evaluation else None,
        table=_table(evaluation.results) if evaluation and evaluation.results else None,
        pictures=_pictures(evaluation.results, stages) if evaluation and evaluation.results else [],
        curves={stage.name: _curves(stage) for stage in stages},
        cards={stage.name: _card(stage, in_table=stage is evaluation) for stage in stages},
        title=title,
    )
    path = directory / "report.html"
    atomic_write(path, page)
    return path


# ------------------------------------------------------------------------------------------------------------ table


def _table(results: Mapping[str, Any]) -> dict[str, dict[str, list[Cell | None]]]:
    """The cells of every metric, a column for each model; parts of a reward stand in a second table."""
    found = {(row["metric"], row["model"]): row for row in results["rows"]}
    names = list(dict.fromkeys(row["metric"] for row in results["rows"]))
    first = [name for name in LEADING if name in names]
    rest = [name for name in names if name not in first]

    def cells(metrics: Sequence[str]) -> dict[str, list[Cell | None]]:
        return {metric: [_cell(found.get((metric, model))) for model in results["models"]] for metric in metrics}

    return {
        "metrics": cells(first + [name for name in rest if "/" not in name]),
        "parts": cells([name for name in rest if "/" in name]),
    }


def _cell(row: Mapping[str, Any] | None) -> Cell | None:
    if row is None or row["value"] is None:
        return None

    is_share = row["metric"] in SHARES or row["metric"].endswith(SHARES_END)
    unit = " %" if is_share else ""

    def shown(value: float, figures: int) -> str:
        return f"{100 * value:.1f}" if is_share else number(value, figures)

    ends = [] if row["low"] == row["high"] else [shown(row[end], 3) for end in ("low", "high")]
    interval = " to ".join(ends) + (unit if ends else "")
    return Cell(shown(row["value"], 4) + unit, interval, row["value"])


def title(metric: str) -> str:
    """A metric's name as a heading."""
    named = {"kl": "KL (nats)", "length": "length (tokens)", "gold": "gold reward", "squad_f1": "SQuAD F1"}
    return named.get(metric, metric.replace("_", " ").replace("/", ": "))


# --------------------------------------------------------------------------------------------------------- pictures


def _pictures(results: Mapping[str, Any], stages: Sequence[Stage]) -> list[Markup]:
    """Each score of every model, and each score against the KL."""
    found = {(row["model"], row["metric"]): row for row in results["rows"] if row["value"] is not None}
    pictures: list[Markup] = []
    scores = [score for score in SCORES if any(metric == score for _, metric in found)]
    for score in scores[:1]:
        pictures.append(interval_plot(title(score), _points(results["models"], found, score, with_kl=False)))
    for score in scores:
        points = _points(results["models"], found, score, with_kl=True)
        if len(points) > 1:
            path, name = _path(stages) if score == "reward" else ([], "")
            pictures.append(frontier_plot(title(score), points, path, name))
    return pictures


def _points(models: Sequence[str], found: Mapping[tuple[str, str], Any], score: str, with_kl: bool) -> list[Point]:
    points: list[Point] = []
    for color, model in enumerate(models):
        row, kl = found.get((model, score)), found.get((model, "kl"))
        if row is not None and (kl is not None or not with_kl):
            x, ends = (kl["value"], _ends(kl)) if kl else (0.0, None)
            points.append(Point(model, x, row["value"], ends, _ends(row), color))
    return points


def _ends(row: Mapping[str, Any]) -> tuple[float, float] | None:
    return None if row["low"] is None or row["high"] is None else (row["low"], row["high"])


def _path(stages: Sequence[Stage]) -> tuple[list[tuple[float, float]], str]:
    """The way the last on-policy training took: (KL, score) at every step."""
    for stage in reversed(stages):
        kl, score = (dict(stage.curves.get(f"objective/{name}", [])) for name in ("kl", "score"))
        if kl and score:
            return [(kl[step], score[step]) for step in kl if step in score], f"{stage.name} as it trained"
    return [], ""


def _curves(stage: Stage) -> dict[str, list[Markup]]:
    """The pictures of a training, in two lists: those that say what happened, and the rest. Of equal curves (a loss
    of one term, and that term) only the first is drawn."""
    drawn: dict[str, list[Markup]] = {"main": [], "more": []}
    if stage.results is not None:
        return drawn
    names = dict.fromkeys(name.removeprefix("validation/") for name in stage.curves if not name.startswith("data/"))
    seen: list[Any] = []
    for name in sorted(names, key=lambda name: name != "loss"):
        curves = stage.curves.get(name, []), stage.curves.get(f"validation/{name}", [])
        if max(map(len, curves)) > 1 and curves not in seen:
            seen.append(curves)
            drawn["more" if SECONDARY.fullmatch(name) else "main"].append(curve_plot(title(name), *curves))
    return drawn


def _card(stage: Stage, in_table: bool) -> list[tuple[str, str]]:
    """The few numbers that stand under a stage's name in the chain: held-out ones first, no number twice, none that is
    in the table."""
    plain = {key: value for key, value in stage.record.metrics.items() if isinstance(value, int | float)}
    ordered = sorted(plain, key=lambda key: (not key.startswith("held_out/"), key != "loss", "/" in key))
    chosen: dict[str, float] = {}
    for key in () if in_table else ordered:
        if plain[key] not in chosen.values() and len(chosen) < 6:
            chosen[key] = plain[key]
    shown = [(title(key), number(value)) for key, value in chosen.items()]
    shown += [(title(key).replace(" per second", "/s"), number(n)) for key, n in stage.record.throughput.items()]
    if stage.record.peak_memory_bytes:
        shown.append(("peak memory", size(stage.record.peak_memory_bytes)))
    return shown
