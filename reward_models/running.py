"""Mean and deviation of all values so far, over all ranks, as numbers that a checkpoint keeps. Knows no reward."""

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from alignkit.config import InputError
from alignkit.records import Completion, Scores
from alignkit.rl import Reduce
from reward_models.scores import Reward, RewardFailure


def observe(values: Sequence[float], memory: dict[str, float], reduce: Reduce, name: str = "scores") -> None:
    """Adds the values of all ranks to the number, sum and sum of squares that `memory` keeps of `name`.

    Raises RewardFailure where another rank has none to add, since its reward failed.
    """
    seen = torch.tensor(values, dtype=torch.float64)
    sums = reduce(torch.stack([torch.ones_like(seen).sum(), seen.sum(), (seen**2).sum()]))
    if sums[0].isnan():
        raise RewardFailure("reward: it failed on another process, which says how")
    for key, value in zip(_keys(name), sums, strict=True):
        memory[key] = memory.get(key, 0.0) + float(value)


def moments(memory: dict[str, float], name: str = "scores") -> tuple[float, float]:
    """The mean and the standard deviation of what was observed; 0 and 1 for nothing, 1 also where all was equal."""
    count, total, squares = (memory.get(key, 0.0) for key in _keys(name))
    if not count:
        return 0.0, 1.0
    square = squares / count
    variance = square - (total / count) ** 2
    return total / count, math.sqrt(variance) if variance > 1e-12 * square else 1.0  # below it lies rounding


def _keys(name: str) -> tuple[str, str, str]:
    """What comes first tells them from those of every other name."""
    return f"number of {name}", f"sum of {name}", f"squares of {name}"


@dataclass
class Running:
    """What rewards remember from batch to batch. Whoever trains sets it up, and saves `memory`."""

    memory: dict[str, float] = field(default_factory=dict[str, float])
    reduce: Reduce = lambda x: x
    """The sum over all ranks, each of which has to score something whenever one does."""
    learning: bool = True
    """Whether what is scored is remembered."""

    @contextmanager
    def unchanged(self) -> Generator[None]:
        """Scores inside are normalised by what is known, add nothing to it, and need no other rank."""
        self.learning = False
        try:
            yield
        finally:
            self.learning = True


def normalised(reward: Reward, running: Running, name: str) -> Reward:
    """The reward less its mean, over its standard deviation, of all it has scored so far, this batch included.

    `name` is its own in the memory. Rewards inside a response have no such unit: InputError.
    """

    def result(completions: list[Completion]) -> Scores:
        try:
            scores = reward(completions)
        except InputError:
            if running.learning:
                running.reduce(torch.full((3,), math.nan, dtype=torch.float64))  # the others wait to add up
            raise
        if scores.steps is not None:
            raise InputError("reward.normalise: running has no meaning for rewards inside a response; remove it")
        if running.learning:
            observe([value for value in scores.total if value is not None], running.memory, running.reduce, name)
        mean, deviation = moments(running.memory, name)
        total = tuple(None if value is None else (value - mean) / deviation for value in scores.total)
        return scores.model_copy(update={"total": total, "parts": {**scores.parts, "raw": scores.total}})

    return result
