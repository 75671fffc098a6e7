"""Plain functions as rewards: what they return is checked here. Knows neither models nor recipes.

A reward is a callable from completions to `Scores`. TRL's reward functions, f(completions, **columns) -> list[float],
become one with `from_function`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from alignkit.config import InputError
from alignkit.records import Completion, Message, Scores

Reward: TypeAlias = Callable[[list[Completion]], Scores]


def from_function(function: Callable[..., Sequence[float | None]], conversational: bool = False) -> Reward:
    """TRL's f(completions, **columns) -> one number each, as a reward.

    It gets `prompts`, `completions`, `completion_ids` and every data column as lists of one item per completion.
    Prompts and completions are text or, with `conversational`, lists of {"role", "content"} as in TRL's chat data.
    A column that some completion lacks holds None there.
    """
    name = getattr(function, "__name__", type(function).__name__)

    def reward(completions: list[Completion]) -> Scores:
        names = sorted({column for c in completions for column in c.columns})
        columns: dict[str, list[Any]] = {n: [c.columns.get(n) for c in completions] for n in names}
        if conversational:
            columns["prompts"] = [[as_dict(m) for m in c.prompt] for c in completions]
            columns["completions"] = [[as_dict(c.response)] for c in completions]
        else:
            columns["prompts"] = [prompt_text(c) for c in completions]
            columns["completions"] = [c.response.content for c in completions]
        columns["completion_ids"] = [list(c.ids) for c in completions]
        return checked(function(**columns), completions, name)

    return reward


def checked(values: Sequence[float | None], completions: list[Completion], name: str) -> Scores:
    """The values as `Scores`. Raises InputError where one is missing or no finite number, naming its completion."""
    if len(values) != len(completions):
        raise InputError(
            f"reward {name}: returned {len(values)} scores for {len(completions)} completions; return one for each"
        )
    for n, (value, completion) in enumerate(zip(values, completions, strict=True)):
        if value is None or not math.isfinite(value):
            raise InputError(
                f"reward {name}: the score of completion {n} is {value}, not a number: {shown(completion)}"
            )
    return Scores(total=tuple(float(value) for value in values if value is not None))


def scaled(reward: Reward, scale: float = 1.0, clip: float | None = None) -> Reward:
    """The reward times `scale`, then cut to [-clip, clip]; rewards inside a response are not cut, parts stay."""

    def result(completions: list[Completion]) -> Scores:
        scores = reward(completions)
        total = (scale * value for value in scores.total)
        cut = total if clip is None else (min(max(value, -clip), clip) for value in total)
        steps = scores.steps and tuple(tuple((at, scale * value) for at, value in pairs) for pairs in scores.steps)
        return scores.model_copy(update={"total": tuple(cut), "steps": steps})

    return result


def prompt_text(completion: Completion) -> str:
    """The prompt as text: a single message as it is, several as lines of `role: content`."""
    if len(completion.prompt) == 1:
        return completion.prompt[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in completion.prompt)


def shown(completion: Completion, width: int = 80) -> str:
    """A completion for an error message: the end of its prompt and the beginning of its response."""
    prompt, response = prompt_text(completion), completion.response.content
    before = prompt if len(prompt) <= width else "…" + prompt[-width:]
    after = response if len(response) <= width else response[:width] + "…"
    return f"{after!r} in answer to {before!r}"


def as_dict(message: Message) -> dict[str, Any]:
    """A message as TRL and chat templates know one, its role and text alone."""
    return {"role": message.role, "content": message.content}
