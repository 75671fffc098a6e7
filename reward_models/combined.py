"""Several rewards as one: their sum, or an ensemble's mean, minimum or lower bound. Knows no model and no recipe."""

from collections.abc import Mapping
from statistics import fmean, pstdev
from typing import Literal, TypeAlias

from alignkit.config import InputError
from alignkit.records import Completion, Scores
from reward_models.scores import Reward

Combination: TypeAlias = Literal["sum", "mean", "min", "lower"]


def combined(rewards: Mapping[str, Reward], combine: Combination = "sum", deviations: float = 1.0) -> Reward:
    """One reward of several named ones, each kept among the parts, its own parts behind its name and a slash.

    `sum` weighs as their scales say. Of an ensemble `mean`, `min` and `lower`, the mean less `deviations` population
    standard deviations, which keep a policy from where its members disagree (Coste et al. 2024, whose
    uncertainty-weighted objective takes the variance instead).
    Where one of them has no score, all have none.
    Rewards inside a response are added up in a sum; an ensemble with them is an InputError.
    """

    def reward(completions: list[Completion]) -> Scores:
        found: dict[str, Scores] = {}
        failures: list[InputError] = []
        for name, one in rewards.items():
            try:
                found[name] = one(completions)
            except InputError as failure:  # those after it may add up over ranks, where none may be missing
                failures.append(failure)
        if failures:
            raise failures[0]
        columns = list(zip(*(scores.total for scores in found.values()), strict=True))
        parts = {name: scores.total for name, scores in found.items()}
        parts |= {f"{name}/{part}": values for name, scores in found.items() for part, values in scores.parts.items()}
        inside = [scores.steps for scores in found.values() if scores.steps is not None]
        if inside and combine != "sum":
            raise InputError(f"reward combined: {combine} has no meaning for rewards inside a response; use sum")
        steps = tuple(tuple(pair for pairs in each for pair in pairs) for each in zip(*inside, strict=True))
        total = tuple(_one(values, combine, deviations) for values in columns)
        return Scores(total=total, parts=parts, steps=steps if inside else None)

    return reward


def _one(given: tuple[float | None, ...], combine: Combination, deviations: float) -> float | None:
    values = [value for value in given if value is not None]
    if len(values) < len(given):
        return None
    match combine:
        case "sum":
            return sum(values)
        case "mean":
            return fmean(values)
        case "min":
            return min(values)
        case "lower":
            return fmean(values) - deviations * pstdev(values)
