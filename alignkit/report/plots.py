"""Draws a report's pictures as inline SVG whose colours follow the page's theme. It knows no files and no models."""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Stand-ins that `_as_svg` turns into CSS variables, so that one picture serves light and dark.
INK, MUTED, RULE, PAPER = "#00000a", "#00000b", "#00000c", "#00000d"
SERIES = tuple(f"#0000a{n}" for n in range(1, 9))
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"} | {
    color: f"--series-{n}" for n, color in enumerate(SERIES, 1)
}
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-3, 5),
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.parse_math": False,
}
POINTS = 300
"""A curve is drawn with no more points than this."""


@dataclass(frozen=True, slots=True)
class Point:
    """A model in a picture: where it stands, and how surely."""

    name: str
    x: float
    y: float
    x_ends: tuple[float, float] | None
    y_ends: tuple[float, float] | None
    color: int
    """The model's place in the recipe, which gives it one colour all over the page."""


Curve = Sequence[tuple[float, float]]


def curve_plot(name: str, training: Curve, validation: Curve) -> Markup:
    """A metric against the step: every step faint, its running mean strong, validations as dots."""
    with _drawing(3.0, 1.75) as (axes, finish):
        if training:
            thinned = _thin(training)
            smooth = _smoothed(thinned)
            axes.plot(*zip(*thinned, strict=True), color=SERIES[0], lw=1.0, alpha=0.35 if smooth else 1.0)
            if smooth:
                axes.plot(*zip(*smooth, strict=True), color=SERIES[0], lw=1.6)
        if validation:
            axes.plot(*zip(*validation, strict=True), color=SERIES[1], lw=1.4, marker="o", ms=3.5, mec=PAPER, mew=0.6)
        axes.set_title(name, loc="left", fontsize=9, color=INK, pad=7)
        axes.margins(x=0.02, y=0.12)
        axes.locator_params(axis="y", nbins=4)
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.grid(axis="x", visible=False)
        return finish(f"{name} against the step")


def frontier_plot(score: str, points: Sequence[Point], path: Curve, path_name: str) -> Markup:
    """A score against the KL to the reference: each model with its intervals, and the way a training took."""
    with _drawing(4.0, 2.8) as (axes, finish):
        if path:
            thinned = _smoothed(_thin(path)) or _thin(path)
            axes.plot(*zip(*thinned, strict=True), color=MUTED, lw=1.0, alpha=0.6, label=path_name)
            axes.legend(frameon=False, fontsize=8, labelcolor=MUTED, loc="lower right")
        for point in points:
            color = SERIES[point.color % len(SERIES)]
            axes.errorbar(
                point.x,
                point.y,
                xerr=_error(point.x, point.x_ends),
                yerr=_error(point.y, point.y_ends),
                color=color,
                marker="o",
                ms=7,
                mec=PAPER,
                lw=1.4,
            )
            axes.annotate(point.name, (point.x, point.y), (8, 7), textcoords="offset points", color=INK, fontsize=9)
        axes.set_xlabel("KL to the reference, nats per completion")
        axes.set_ylabel(score)
        axes.margins(x=0.16, y=0.16)
        return finish(f"{score} against KL")


def interval_plot(score: str, points: Sequence[Point]) -> Markup:
    """A score of every model with its interval, one line each, in the order of the recipe."""
    with _drawing(4.0, max(2.8, 0.6 + 0.45 * len(points))) as (axes, finish):
        for row, point in enumerate(points):
            color = SERIES[point.color % len(SERIES)]
            axes.errorbar(
                point.y, -row, xerr=_error(point.y, point.y_ends), color=color, marker="o", ms=8, mec=PAPER, lw=2.2
            )
            axes.annotate(
                f"{point.y:.3g}", (point.y, -row), (0, 8), textcoords="offset points", ha="center", color=INK
            )
        axes.set_yticks([-row for row in range(len(points))], [point.name for point in points])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(-len(points) + 0.4, 0.7)
        axes.set_xlabel(score)
        axes.margins(x=0.12)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        return finish(f"{score} of every model")


def histogram_plot(name: str, unit: str, edges: Sequence[float], counts: Sequence[int], mark: float | None) -> Markup:
    """Counts of lengths in bins whose edges [B+1] grow by a factor; `mark` draws a limit."""
    with _drawing(3.0, 1.75) as (axes, finish):
        axes.stairs(counts, [max(edge, 0.5) for edge in edges], fill=True, color=SERIES[0], lw=0)
        if mark is not None:
            axes.axvline(mark, color=SERIES[1], lw=1.4)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.set_title(name, loc="left", fontsize=9, color=INK, pad=7)
        axes.set_xlabel(unit)
        axes.locator_params(axis="y", nbins=4)
        axes.grid(axis="x", visible=False)
        return finish(f"{name} in {unit}")


def share_plot(title: str, label: str, rows: Sequence[tuple[str, float, float, float]], chance: float) -> Markup:
    """Shares (name, value, low, high) with their intervals, one line each, and a line where chance is; in percent."""
    with _drawing(5.2, 0.6 + 0.26 * len(rows)) as (axes, finish):
        axes.axvline(100 * chance, color=MUTED, lw=1.0)
        for row, (_, *shares) in enumerate(rows):
            value, low, high = (100 * one for one in shares)
            color = SERIES[1] if low > 100 * chance or high < 100 * chance else SERIES[0]
            axes.errorbar(
                value, -row, xerr=_error(value, (low, high)), color=color, marker="o", ms=5, mec=PAPER, lw=1.8
            )
        axes.set_yticks([-row for row in range(len(rows))], [name for name, *_ in rows])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(-len(rows) + 0.4, 0.6)
        axes.set_xlabel(label)
        axes.margins(x=0.08)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        return finish(title)


# ----------------------------------------------------------------------------------------------------------- inside


@contextmanager
def _drawing(width: float, height: float) -> Iterator[tuple[Axes, Callable[[str], Markup]]]:
    """Axes of a size in inches, and what makes an SVG of them."""
    with mpl.rc_context(_STYLE):
        figure = Figure((width, height), layout="constrained")
        axes = figure.add_subplot()
        yield axes, lambda title: _as_svg(figure, title)


def _as_svg(figure: Figure, title: str) -> Markup:
    """The figure without a prolog, metadata, unused ids or fonts of its own: nothing in it points outside."""
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    buffer = io.StringIO()
    # The salt makes the ids of clip paths differ between the pictures of one page, and not from day to day.
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(buffer, format="svg")
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(?::xlink)?="[^"]*"', "", svg)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    used = set(re.findall(r"#([\w-]+)[\")]", svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{Markup.escape(title)}" ', 1))


def _thin(curve: Curve) -> list[tuple[float, float]]:
    """At most POINTS points: means of neighbours."""
    size = -(-len(curve) // POINTS)
    groups = [curve[n : n + size] for n in range(0, len(curve), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _smoothed(curve: Curve) -> list[tuple[float, float]]:
    """A centred running mean over a twentieth of the curve; nothing where it is too short to need one."""
    if len(curve) < 40:
        return []
    half = len(curve) // 40 + 1
    windows = [curve[max(0, n - half) : n + half + 1] for n in range(len(curve))]
    return [(x, sum(y for _, y in window) / len(window)) for (x, _), window in zip(curve, windows, strict=True)]


def _error(value: float, ends: tuple[float, float] | None) -> list[list[float]] | None:
    return None if ends is None else [[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]]
