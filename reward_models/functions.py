"""Plain functions as rewards. Knows neither models nor recipes.

A reward is a callable from completions to `Scores`. TRL's reward functions, f(completions, **columns) -> list[float],
become one with `from_function`.
"""

from collections.abc import Callable, Sequence

from alignkit.records import Completion, Scores
from reward_models.scores import Reward, as_dict, columns_of, guarded, prompt_text


def from_function(
    function: Callable[..., Sequence[float | None]],
    conversational: bool = False,
    *,
    skip: bool = False,
    timeout: float | None = None,
) -> Reward:
    """TRL's f(completions, **columns) -> one number each, as a reward.

    It gets `prompts`, `completions`, `completion_ids` and every data column as lists of one item per completion.
    Prompts and completions are text or, with `conversational`, lists of {"role", "content"} as in TRL's chat data.
    A column that some completion lacks holds None there. `timeout` and `skip` are `guarded`'s.
    """
    name = getattr(function, "__name__", type(function).__name__)

    def score(completions: list[Completion]) -> Sequence[float | None]:
        columns = columns_of(completions)
        if conversational:
            columns["prompts"] = [[as_dict(m) for m in c.prompt] for c in completions]
            columns["completions"] = [[as_dict(m) for m in (*c.turns, c.response)] for c in completions]
        else:
            columns["prompts"] = [prompt_text(c) for c in completions]
            columns["completions"] = [c.response.content for c in completions]
        columns["completion_ids"] = [list(c.ids) for c in completions]
        return function(**columns)

    return guarded(score, name, skip=skip, timeout=timeout)


def scaled(reward: Reward, scale: float = 1.0, clip: float | None = None) -> Reward:
    """The reward times `scale`, then cut to [-clip, clip]; rewards inside a response are not cut, parts stay."""

    def result(completions: list[Completion]) -> Scores:
        scores = reward(completions)
        total = (None if value is None else scale * value for value in scores.total)
        cut = total if clip is None else (v if v is None else min(max(v, -clip), clip) for v in total)
        steps = scores.steps and tuple(tuple((at, scale * value) for at, value in pairs) for pairs in scores.steps)
        return scores.model_copy(update={"total": tuple(cut), "steps": steps})

    return result
