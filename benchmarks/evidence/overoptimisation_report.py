"""Draws and tabulates E6: where the gold reward turns over. It knows no training."""

import math
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from chain import axes_of, save, spread, table
from matplotlib.axes import Axes

Runs = list[dict[str, Any]]
GRID = 24  # points of a mean curve


def peak(points: list[dict[str, float]]) -> dict[str, float]:
    """Where the gold reward, a running mean of three validations, is highest."""
    gold = [point["gold"] for point in points]
    smooth = [fmean(gold[max(0, n - 1) : n + 2]) for n in range(len(gold))]
    best = max(range(len(smooth)), key=smooth.__getitem__)
    return {"gold": smooth[best], "kl": points[best]["kl"], "last": smooth[-1]}


def tables(found: Runs) -> str:
    """Peak and end of every run, the guard, and best-of-n's fit."""
    rows: list[list[str]] = []
    for name in found[0]["ppo"]:
        if name == "ppo-guarded":
            continue
        peaks = [peak(run["ppo"][name]) for run in found]
        ends = [run["ppo"][name][-1] for run in found]
        rows.append(
            [
                titled(name),
                spread([one["gold"] for one in peaks], 2),
                spread([math.sqrt(max(0.0, one["kl"])) for one in peaks], 2),
                spread([one["gold"] for one in ends], 2),
                spread([one["proxy"] for one in ends], 2),
                spread([math.sqrt(max(0.0, one["kl"])) for one in ends], 2),
            ]
        )
    head = ["PPO on a proxy of", "gold at its peak", "√KL there", "gold at the end", "proxy at the end", "√KL there"]
    held = [
        [
            f"{run['seed']}",
            "never" if run["guarded"]["ended_at"] is None else f"{run['guarded']['ended_at']:.0f}",
            f"{max(point['gold'] for point in run['ppo']['ppo-guarded']):.2f}",
            f"{run['guarded']['gold']:.2f}",
            f"{run['ppo']['ppo-guarded'][-1]['gold']:.2f}",
            f"{run['guarded']['kl']:.2f}",
        ]
        for run in found
    ]
    searched = [
        [
            f"{count} comparisons",
            spread([run["best_of_n"][count]["correlation"] for run in found], 2),
            spread([run["best_of_n"][count]["gold"][-1][1] for run in found], 2),
            spread([run["best_of_n"][count]["alpha"] for run in found], 2),
            spread([run["best_of_n"][count]["beta"] for run in found], 2),
            spread([run["best_of_n"][count]["r2"] for run in found]),
        ]
        for count in found[0]["best_of_n"]
    ]
    return "\n\n".join(
        [
            table(head, rows),
            table(["seed", "guard ends at update", "best seen", "artifact", "when it ended", "artifact's KL"], held),
            table(["best-of-n by a proxy of", "correlation", "gold, n = 128", "α", "β", "R²"], searched),
        ]
    )


def titled(name: str) -> str:
    """What a run is called in tables and pictures."""
    rest = name.removeprefix("ppo-")
    return "3 members, lower bound" if rest == "lower" else f"{rest} comparisons"


def picture(found: Runs, path: Path) -> None:
    """Proxy and gold against √KL: PPO by the number of comparisons, by the ensemble, and best-of-n."""
    figure, (sizes, ensemble, search) = axes_of(3, width=9.2, height=2.9)
    singles = [name for name in found[0]["ppo"] if name.removeprefix("ppo-").isdigit()]
    for color, name in enumerate(singles):
        draw(sizes, found, name, f"C{color}")
    middle = singles[len(singles) // 2]
    draw(ensemble, found, middle, f"C{singles.index(middle)}")
    draw(ensemble, found, "ppo-lower", "C3")
    for run in found:
        kept = run["guarded"]
        ensemble.plot(math.sqrt(max(0.0, kept["kl"])), kept["gold"], "*", ms=9, color="C1", mec="black", mew=0.5)
    for color, count in enumerate(found[0]["best_of_n"]):
        points = [run["best_of_n"][count] for run in found]
        d = np.array(points[0]["gold"])[:, 0]
        values = np.mean([np.array(one["gold"])[:, 1] for one in points], axis=0)
        alpha, beta = (fmean(one[key] for one in points) for key in ("alpha", "beta"))
        fine = np.linspace(0, d[-1], 50)
        search.plot(d, values, "o", ms=3.5, color=f"C{color}", label=f"{count} comparisons")
        search.plot(fine, fine * (alpha - beta * fine), lw=1, color=f"C{color}")
        proxy = np.mean([np.array(one["proxy"])[:, 1] for one in points], axis=0)
        search.plot(d, proxy, "--", lw=0.9, color=f"C{color}")
    for axes, title in ((sizes, "PPO"), (ensemble, "PPO, ensemble; ★ what the guard keeps"), (search, "best-of-n")):
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("√KL to the reference, nats" if axes is not search else "√(log n - (n-1)/n)")
        axes.legend(fontsize=7, frameon=False)
    sizes.set_ylabel("gold —, proxy - - (deviations of the reference)")
    save(figure, path)


def draw(axes: Axes, found: Runs, name: str, color: str) -> None:
    """Gold as a line, the proxy dashed, over √KL: each seed thin, their mean strong as far as all of them go."""
    curves = [
        [(math.sqrt(max(0.0, point["kl"])), point["gold"], point["proxy"]) for point in run["ppo"][name]]
        for run in found
    ]
    columns = [np.array(sorted(curve)).T for curve in curves]
    for d, gold, _ in columns:
        axes.plot(d, gold, lw=0.6, alpha=0.4, color=color)
    grid = np.linspace(0, min(d.max() for d, _, _ in columns), GRID)
    for row, line, label in ((1, "-", titled(name)), (2, "--", None)):
        mean = np.mean([np.interp(grid, column[0], column[row]) for column in columns], axis=0)
        axes.plot(grid, mean, line, lw=1.6 if row == 1 else 1.0, color=color, label=label)
