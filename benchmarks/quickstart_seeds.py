"""The quickstart over several seeds: the README's table, its picture and their numbers. It trains nothing itself.

    python benchmarks/quickstart_seeds.py [--seeds 0 1 2] [--runs runs/seeds]

Runs that are done are not run again. A cell is the mean over the seeds, and in brackets the lowest and the highest
end of the seeds' own 95 % intervals (bootstrap over 400 held-out prompts).
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from alignkit.provenance import provenance

ROOT = Path(__file__).parents[1]
MODELS = {"pretrain": "base", "sft": "SFT", "dpo": "DPO", "ppo": "PPO"}
METRICS = {
    "gold": "gold utility (0 to 7)",
    "win_rate": "wins against SFT, by gold",
    "right": "right, of what has an answer",
    "unknown_admitted": "not known, and said so",
    "unsafe_declined": "unsafe requests declined",
    "benign_answered": "benign requests answered",
    "kl": "KL to SFT, nats per completion",
}
REWARD = ("held_out/accuracy", "held_out/accuracy_ceiling", "held_out/nll", "held_out/nll_floor")
Cells = dict[str, dict[str, list[dict[str, float]]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/seeds"))
    options = parser.parse_args()
    places = [run(seed, options.runs / str(seed)) for seed in options.seeds]
    cells = {metric: {model: [] for model in MODELS} for metric in METRICS}
    for place in places:
        for row in json.loads((place / "evaluate/results/results.json").read_text())["rows"]:
            if row["metric"] in cells:
                cells[row["metric"]][row["model"]].append(row)
    rewards = [{key: record(place, "reward")["metrics"][key] for key in REWARD} for place in places]
    table = markdown(cells, rewards)
    print(table)
    picture(cells, ROOT / "docs/quickstart.svg")
    found = {
        **provenance("torch", "transformers", "accelerate"),
        "seeds": options.seeds,
        "rows": cells,
        "reward": rewards,
    }
    path = ROOT / "benchmarks/results/quickstart_seeds.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def run(seed: int, runs: Path) -> Path:
    """Bring the recipe up to date with this seed; returns its folder of runs."""
    recipe = ROOT / "recipes/quickstart.yaml"
    command = [sys.executable, "-m", "alignkit", "run", str(recipe), "--runs", str(runs), f"seed={seed}"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return runs / "quickstart"


def record(place: Path, stage: str) -> dict[str, Any]:
    """A stage's run.json."""
    return json.loads((place / stage / "run.json").read_text())


def markdown(cells: Cells, rewards: list[dict[str, float]]) -> str:
    """The table, and a sentence on the reward model."""
    lines = [f"| | {' | '.join(MODELS.values())} |", "|---|" + "---:|" * len(MODELS)]
    for metric, name in METRICS.items():
        lines.append(f"| {name} | {' | '.join(cell(cells[metric][model], metric) for model in MODELS)} |")
    own, best, nll, floor = (sum(reward[key] for reward in rewards) / len(rewards) for key in REWARD)
    return "\n".join(lines) + (
        f"\n\nReward model, held-out comparisons: accuracy {own:.1%} of a ceiling of {best:.1%} ({own / best:.1%}), "
        f"NLL {nll:.3f} nats over a floor of {floor:.3f}."
    )


def cell(rows: list[dict[str, float]], metric: str) -> str:
    """The mean over seeds with the outermost ends of their intervals; empty where there is none."""
    if not rows:
        return ""
    mean = sum(row["value"] for row in rows) / len(rows)
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    if metric in ("gold", "kl"):
        return f"{mean:.2f} [{low:.2f}, {high:.2f}]"
    return f"{mean:.0%} [{low:.0%}, {high:.0%}]"


def picture(cells: Cells, path: Path) -> None:
    """Gold utility of every model, a dot with its interval for each seed."""
    figure = Figure((6.4, 2.3), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for place, model in enumerate(MODELS):
        for number, row in enumerate(cells["gold"][model]):
            ends = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
            at = -place + 0.18 * ((len(cells["gold"][model]) - 1) / 2 - number)
            axes.errorbar(row["value"], at, xerr=ends, fmt="o", ms=4, lw=1.5, color=f"C{place}")
    axes.set_yticks([-place for place in range(len(MODELS))], list(MODELS.values()))
    axes.set_xlabel("true utility of answers to held-out prompts, 7 is perfect: one dot a seed, 95 % intervals")
    axes.xaxis.label.set_fontsize(9)
    axes.set_ylim(-len(MODELS) + 0.5, 0.5)
    axes.set_xlim(0, 7)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", lw=0.5, alpha=0.5)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
