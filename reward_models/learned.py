"""A trained reward model as a reward; it receives a function that scores, and knows neither model nor tokenizer."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor

from alignkit.records import Completion
from reward_models.scores import Reward, guarded

Score: TypeAlias = Callable[[list[Completion]], "Sequence[float] | Tensor"]


def learned(score: Score, name: str = "learned", skip: bool = False) -> Reward:
    """`score(completions)` as a reward: one number per completion, [N], as a list or a tensor on any device."""

    def numbers(completions: list[Completion]) -> list[float]:
        values = score(completions)
        return [float(value) for value in (values.cpu() if isinstance(values, Tensor) else values)]

    return guarded(numbers, name, skip=skip)
