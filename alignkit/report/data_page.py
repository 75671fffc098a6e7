"""Writes the page of a data check, one file that needs no other. It knows the report and neither rows nor rules."""

from itertools import groupby
from pathlib import Path

from markupsafe import Markup

from alignkit.data.checking import Report
from alignkit.display import number
from alignkit.lineage import atomic_write
from alignkit.report.page import rendered
from alignkit.report.plots import histogram_plot, share_plot


def write_page(report: Report, path: Path) -> None:
    """Write the page at `path`. Raises OSError where that is not possible."""
    groups = [(severity, list(ones)) for severity, ones in groupby(report.findings, lambda one: one.severity)]
    facts = [
        ("kind", report.as_),
        ("rows", number(report.rows)),
        ("records", number(report.records)),
        ("files", number(report.files)),
        ("rejected rows", number(report.rejected)),
        ("tokens of", report.model or "–"),
        ("compared with", ", ".join(report.against) or "–"),
    ]
    page = rendered(
        "data.html",
        report=report,
        facts=facts,
        groups=groups,
        histograms=[_histogram(report, place) for place in range(len(report.lengths))],
        shares=_shares(report),
    )
    atomic_write(path, page)


def _histogram(report: Report, place: int) -> Markup:
    one = report.lengths[place]
    limit = report.max_length if one.unit == "tokens" and one.part == "whole" else None
    return histogram_plot(one.part, one.unit, one.edges, one.counts, limit)


def _shares(report: Report) -> Markup | None:
    """What alone tells labels: the length and the looks of a response."""
    rows: list[tuple[str, float, float, float]] = []
    for one in report.findings:
        if one.name.startswith("length_bias_"):
            unit = one.name.removeprefix("length_bias_")
            rows.append((f"longer ({unit})", *(one.numbers[f"longer{end}"] for end in ("", "_low", "_high"))))
    for one in report.findings:
        if one.name == "artefacts":
            looks = [(name, look["accuracy"], look["low"], look["high"]) for name, look in one.numbers.items()]
            rows += sorted(looks, key=lambda look: -look[1])
    return share_plot("what alone tells labels", "labels told, %", rows, 0.5) if rows else None
