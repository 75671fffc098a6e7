"""Draws and tabulates E8: exact match along the runs. It knows no training."""

from pathlib import Path
from typing import Any

from chain import axes_of, save, table

MARKS = (204_800, 310_272)  # samples after which the published run was read


def at(points: list[tuple[int, float]], samples: int) -> float:
    """The curve's value at the validation nearest to so many samples."""
    return min(points, key=lambda point: abs(point[0] - samples))[1]


def tables(found: list[dict[str, Any]]) -> str:
    """Exact match along the run that learns, and of the one that collapses."""
    learnt = [
        [
            f"{run['seed']}",
            f"{run['sft_epochs']}",
            *(f"{at(run['curves']['rloo'], mark):.3f}" if reached(run, mark) else "–" for mark in (0, *MARKS)),
            cell(run["tested"], "sft"),
            cell(run["tested"], "rloo"),
            f"{run['curves']['rloo'][-1][0]:,}",
        ]
        for run in found
    ]
    collapsed = [
        [
            f"{run['seed']}",
            *(f"{score:.3f}" for score in (run["curves"]["fast"][0][1], run["curves"]["fast"][-1][1])),
            "never" if run["ended_at"] is None else f"{run['ended_at']:.0f}",
            *(cell(run["tested"], name) for name in ("sft", "fast", "guarded")),
        ]
        for run in found
        if "fast" in run["curves"]
    ]
    marks = [f"{mark:,} samples" for mark in MARKS]
    head = ["seed", "epochs of SFT", "start", *marks, "test, start", "test, end", "samples run"]
    other = ["seed", "start", "last", "guard ends at update", "test, start", "test, last", "test, guarded"]
    return "\n\n".join([table(head, learnt), table(other, collapsed)])


def reached(run: dict[str, Any], samples: int) -> bool:
    """Whether RLOO came that far."""
    return run["curves"]["rloo"][-1][0] >= samples


def cell(tested: dict[str, dict[str, float]], name: str) -> str:
    """An exact match on the test sums with its interval; a dash where there is none."""
    if name not in tested:
        return "–"
    return "{value:.3f} [{low:.3f}, {high:.3f}]".format(**tested[name])


def picture(found: list[dict[str, Any]], path: Path) -> None:
    """Held-out exact match against samples: the run that learns, and the one that collapses."""
    figure, (left, right) = axes_of(2)
    for number, run in enumerate(found):
        for axes, name in ((left, "rloo"), (right, "fast")):
            if name not in run["curves"]:
                continue
            samples, scores = zip(*run["curves"][name], strict=True)
            axes.plot([n / 1000 for n in samples], scores, lw=1.3, color=f"C{number}", label=f"seed {run['seed']}")
        if "guarded" not in run["curves"]:
            continue
        samples, scores = zip(*run["curves"]["guarded"], strict=True)
        best = max(range(len(scores)), key=scores.__getitem__)
        right.plot(samples[best] / 1000, scores[best], "*", ms=9, color=f"C{number}")
        right.plot(samples[-1] / 1000, scores[-1], "x", ms=6, color=f"C{number}")
    left.set_title("rate 3e-4, 64 prompts", fontsize=9)
    right.set_title("rate 1e-3, 32 prompts: the guard\nends at x and goes back to the star", fontsize=9)
    left.set_ylabel("exact match, held out, sampled")
    left.legend(fontsize=8, frameon=False, loc="lower right")
    for axes in (left, right):
        axes.set_xlabel("thousand samples")
        axes.set_ylim(0, 1)
    save(figure, path)
