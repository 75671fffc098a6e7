"""What a reward is, and what becomes of a completion that it fails to score. Knows no kind of reward.

A reward is a callable from completions to `Scores`. It fails on a completion by raising, by a value that is no finite
number, by the wrong number of values, or by taking longer than it may.
"""

import json
import logging
import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from alignkit.config import InputError
from alignkit.records import Completion, Message, Scores, ToolCall
from reward_models.waiting import TooLong, within

logger = logging.getLogger(__name__)
Reward: TypeAlias = Callable[[list[Completion]], Scores]
LARGEST = (2 - 2**-23) * 2.0**127
"""What training, in float32, can still hold."""


class RewardFailure(InputError):
    """A reward left a completion without a score. Nothing has been trained on what it was to score."""


@dataclass(frozen=True, slots=True)
class Unscored:
    """In the place of a score: why there is none."""

    why: str
    error: Exception | SystemExit | None = None


Values: TypeAlias = "Sequence[float | Unscored | None]"


def guarded(
    score: Callable[[list[Completion]], Values],
    name: str,
    *,
    skip: bool = False,
    timeout: float | None = None,
    size: int | None = None,
) -> Reward:
    """`score`, one number per completion, as a reward: called with `size` completions at most (None: all of them).

    A call that raises is repeated with each of its completions alone, to find the one that it fails on; after an
    OSError with no more of them once the first two fail too. Not so where it took longer than `timeout` seconds, met
    no connection (ConnectionError), or returned a wrong number of values: then all of its completions have no score.
    The first completion without one is a RewardFailure that names it or, with `skip`, all of them get None, and a
    warning says so.
    """

    def reward(completions: list[Completion]) -> Scores:
        values: list[float | Unscored | None] = []
        for start in range(0, len(completions), size or len(completions) or 1):
            part = completions[start : start + (size or len(completions))]
            values += _tried(score, part, timeout, alone_too=True)
            if not skip:
                checked(values, completions[: len(values)], name)
        return checked(values, completions, name, skip)

    return reward


def checked(values: Values, completions: list[Completion], name: str, skip: bool = False) -> Scores:
    """The values as `Scores`. Where one is missing or no finite number: RewardFailure naming its completion or, with
    `skip`, None."""
    if len(values) != len(completions):
        raise RewardFailure(f"reward {name}: {_wrong_number(values, completions)}")
    numbers = [_number(value) for value in values]
    failed = [(n, number) for n, number in enumerate(numbers) if isinstance(number, Unscored)]
    if failed:
        n, first = failed[0]
        text = f"reward {name}: the score of completion {n} is {first.why}: {shown(completions[n])}"
        if not skip:
            raise RewardFailure(text) from first.error
        logger.warning(f"{len(failed)} of {len(completions)} completions are skipped; {text}")
    return Scores(total=tuple(None if isinstance(number, Unscored) else number for number in numbers))


def valued(completions: list[Completion], reward: Reward, name: str) -> Scores:
    """What a reward gives for completions, no matter whose it is: raises RewardFailure where it raises, or where
    something that it gives is no number (None, in its total, is a completion that it skips)."""
    try:
        scores = reward(completions) if completions else Scores(total=())
    except RewardFailure:
        raise
    except (Exception, SystemExit) as error:
        raise RewardFailure(f"reward {name}: every score is {explained(error).why}") from error
    checked([0.0 if score is None else score for score in scores.total], completions, name)
    _check_steps(scores, completions, name)
    return scores


def _check_steps(scores: Scores, completions: list[Completion], name: str) -> None:
    """Raise RewardFailure for a reward inside a response that stands at none of its tokens, or is no finite number."""
    for n, pairs in enumerate(scores.steps or ()):
        for token, value in pairs:
            if not 0 <= token < len(completions[n].ids) or isinstance(_number(value), Unscored):
                raise RewardFailure(
                    f"reward {name}: completion {n} has {len(completions[n].ids)} tokens, and a step gives its token "
                    f"{token} the reward {value}: {shown(completions[n])}"
                )


def explained(error: Exception | SystemExit) -> Unscored:
    """Why there is no score: what was raised and, where it is nobody's message to the user, in which line."""
    if isinstance(error, InputError | OSError):
        return Unscored(f"missing: {error}", error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return Unscored(f"missing: {type(error).__name__}: {error}{where}", error)


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


def columns_of(completions: list[Completion]) -> dict[str, list[Any]]:
    """Every data column that one of them has, in the order of names, with None where one lacks it."""
    names = sorted({name for completion in completions for name in completion.columns})
    return {name: [completion.columns.get(name) for completion in completions] for name in names}


def as_dict(message: Message) -> dict[str, Any]:
    """A message as TRL and chat templates know one: its role, its text, and the tools it calls."""
    calls = [{"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in calls_of(message)]
    return {"role": message.role, "content": message.content, **({"tool_calls": calls} if calls else {})}


def said(message: Message) -> str:
    """A turn's text and, each on a line of its own, the tools that it calls."""
    calls = [json.dumps({"name": c.name, "arguments": c.arguments}, ensure_ascii=False) for c in calls_of(message)]
    return "\n".join([message.content, *calls] if message.content or not calls else calls)


def calls_of(message: Message) -> tuple[ToolCall, ...]:
    """The tools that a message calls, often none."""
    return message.tool_calls or ()


def _tried(
    score: Callable[[list[Completion]], Values], completions: list[Completion], timeout: float | None, alone_too: bool
) -> list[float | Unscored | None]:
    try:
        values = list(within(timeout, lambda: score(completions)))
    except (Exception, SystemExit) as error:
        why = explained(error)
        if not alone_too or len(completions) == 1 or isinstance(error, TooLong | ConnectionError):
            return [why] * len(completions)
        found: list[float | Unscored | None] = []
        for one in completions:
            found += _tried(score, [one], timeout, alone_too=False)
            if isinstance(error, OSError) and len(found) == 2 and all(isinstance(each, Unscored) for each in found):
                return [why] * len(completions)  # it is not theirs: whoever is asked is not there
        # What fails together and never alone has failed all the same.
        return found if any(isinstance(_number(value), Unscored) for value in found) else [why] * len(completions)
    if len(values) != len(completions):
        return [Unscored(f"missing: {_wrong_number(values, completions)}")] * len(completions)
    return values


def _number(value: float | Unscored | None) -> float | Unscored:
    if isinstance(value, Unscored):
        return value
    try:
        number = math.nan if value is None or isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    except OverflowError:
        number = math.inf
    if math.isnan(number):
        return Unscored(f"{value!r}, not a number")
    return number if abs(number) <= LARGEST else Unscored(f"{number:g}, beyond {LARGEST:.3g}, float32's largest")


def _wrong_number(values: Values, completions: list[Completion]) -> str:
    return f"returned {len(values)} scores for {len(completions)} completions; return one for each"
