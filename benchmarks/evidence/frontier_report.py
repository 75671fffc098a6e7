"""The best that any policy can do, estimated from reference samples; draws and tabulates E9. It knows no training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from chain import axes_of, save, table
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BETAS = np.geomspace(2.0, 0.03, 40)
RESAMPLES = 50
MARKERS = {"ppo-gold": "o", "ppo-learned": "s", "rloo-gold": "^", "dpo": "D"}


def tilted(rewards: Floats, beta: float) -> tuple[float, float, float]:
    """(E[r], KL, J) of π_ref·exp(r/β) from rewards [P, S] of reference samples, a mean over the P prompts.

    J = β·log mean exp(r/β), which S samples estimate too low, and KL = (E[r] - J)/β.
    """
    logits = rewards / beta
    top = logits.max(axis=1, keepdims=True)
    weights = np.exp(logits - top)
    objective = beta * (np.log(weights.mean(axis=1)) + top[:, 0])
    reward = (weights * rewards).sum(axis=1) / weights.sum(axis=1)
    return float(reward.mean()), float(((reward - objective) / beta).mean()), float(objective.mean())


@dataclass(frozen=True)
class Frontier:
    """Reward against KL of the tilted reference for many β, with its Monte-Carlo error."""

    reference: float
    kl: Floats
    reward: Floats
    error: Floats
    """Standard error of the reward at the same KL, samples resampled within their prompts."""

    @classmethod
    def of(cls, rewards: Floats, seed: int) -> "Frontier":
        """From rewards [P, S] of reference samples."""
        points = np.array([tilted(rewards, beta)[:2] for beta in BETAS])
        random = np.random.default_rng(seed)
        again: list[Floats] = []
        for _ in range(RESAMPLES):
            drawn = np.take_along_axis(rewards, random.integers(0, rewards.shape[1], rewards.shape), axis=1)
            curve = np.array([tilted(drawn, beta)[:2] for beta in BETAS])
            again.append(np.interp(points[:, 1], curve[:, 1], curve[:, 0]))
        return cls(float(rewards.mean()), points[:, 1], points[:, 0], np.std(again, axis=0))

    def rows(self) -> list[dict[str, float]]:
        """As numbers for a file."""
        columns = {"beta": BETAS, "kl": self.kl, "reward": self.reward, "error": self.error}
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def beside(self, point: dict[str, dict[str, float]]) -> dict[str, float]:
        """The frontier's reward at a policy's KL, its error, and the policy's share of the gain over the reference."""
        kl, reward = point["kl"]["value"], point["reward"]["value"]
        best = float(np.interp(kl, self.kl, self.reward))
        gain = best - self.reference
        return {
            "frontier": best,
            "error": float(np.interp(kl, self.kl, self.error)),
            "share": (reward - self.reference) / gain if gain > 0 else 0.0,
        }


def tables(found: list[dict[str, Any]]) -> str:
    """Every policy beside the frontier at its own KL."""
    rows: list[list[str]] = []
    for run in found:
        for name, point in run["policies"].items():
            reward, kl = point["reward"], point["kl"]
            rows.append(
                [
                    name.replace("_", "."),
                    str(run["seed"]),
                    f"{kl['value']:.2f} [{kl['low']:.2f}, {kl['high']:.2f}]",
                    f"{reward['value']:.3f} [{reward['low']:.3f}, {reward['high']:.3f}]",
                    f"{point['frontier']:.3f} ± {point['error']:.3f}",
                    f"{point['share']:.0%}",
                ]
            )
    return table(["policy, β", "seed", "KL", "gold reward", "frontier at this KL", "share of the gain"], rows)


def picture(found: list[dict[str, Any]], path: Path) -> None:
    """Reward against KL: the frontier with its error, best-of-n at its bound, every policy."""
    figure, drawn = axes_of(len(found), width=max(5.2, 3.2 * len(found)), height=3.2)
    for axes, run in zip(drawn, found, strict=True):
        kl, reward, error = (np.array([row[key] for row in run["frontier"]]) for key in ("kl", "reward", "error"))
        axes.plot(kl, reward, color="black", lw=1.2, label="best possible, from reference samples")
        axes.fill_between(kl, reward - 2 * error, reward + 2 * error, color="black", alpha=0.15, lw=0)
        bound, values = zip(*run["best_of_n"], strict=True)
        axes.plot(bound, values, "x", ms=5, color="C7", label="best-of-n, at the bound of its KL")
        for color, (kind, marker) in enumerate(MARKERS.items()):
            own = [point for name, point in run["policies"].items() if name.rpartition("-")[0] == kind]
            if not own:
                continue
            x, y = ([point[key]["value"] for point in own] for key in ("kl", "reward"))
            axes.plot(x, y, marker, ms=5, color=f"C{color}", label=kind.replace("-", ", "), ls=":", lw=0.8)
        axes.set_title(f"seed {run['seed']}", fontsize=9)
        axes.set_xlabel("KL to the checkpoint, nats")
        axes.set_xlim(left=0)
    drawn[0].set_ylabel("gold reward: how positive it sounds")
    drawn[-1].legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, path)
