"""A trained reward model as a reward; it receives a function that scores, and knows neither model nor tokenizer."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor

from alignkit.records import Completion, Scores
from reward_models.functions import Reward, checked

Score: TypeAlias = Callable[[list[Completion]], "Sequence[float] | Tensor"]


def learned(score: Score, name: str = "learned") -> Reward:
    """`score(completions)` as a reward: one number per completion, [N], as a list or a tensor on any device."""

    def reward(completions: list[Completion]) -> Scores:
        values = score(completions)
        numbers = [float(value) for value in (values.cpu() if isinstance(values, Tensor) else values)]
        return checked(numbers, completions, name)

    return reward
