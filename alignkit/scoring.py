"""What completions are worth to policy optimisation: a reward, rules for length, a running scale. Knows no model."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from alignkit.config import InputError
from alignkit.options.ppo import PpoConfig
from alignkit.records import Completion, Scores
from alignkit.rl import Reduce
from reward_models.functions import Reward, checked, shown


def scored(completions: list[Completion], reward: Reward, config: PpoConfig) -> tuple[Tensor, Tensor | None]:
    """The whole reward of each completion after the rules for length, [N], and what of it stands inside, [N, T]."""
    given = reward(completions) if completions else Scores(total=())
    total = torch.tensor(checked(given.total, completions, config.reward.kind).total)
    total = settle_length(total, completions, config)
    if given.steps is None:
        return total, None
    steps = placed_steps(given.steps, completions)
    return total + steps.sum(1), steps


def settle_length(scores: Tensor, completions: list[Completion], config: PpoConfig) -> Tensor:
    """Scores [N] after the rules for completions that were cut off before their end token, and for long ones."""
    missing = torch.tensor([not completion.finished for completion in completions], dtype=torch.bool)
    rule, value = config.missing_eos.rule, config.missing_eos.value
    if rule == "replace":
        scores = torch.where(missing, value, scores)
    elif rule == "subtract":
        scores = scores - value * missing
    if config.overlong is None:
        return scores
    lengths = torch.tensor([len(completion.ids) for completion in completions])
    over = lengths - (config.max_new_tokens - config.overlong.buffer)
    return scores - config.overlong.penalty * (over / config.overlong.buffer).clamp(0, 1)


def placed_steps(steps: Sequence[Sequence[tuple[int, float]]], completions: list[Completion]) -> Tensor:
    """Rewards inside completions, (token, reward) pairs, at their tokens: [N, T]. Raises InputError."""
    placed = torch.zeros(len(completions), max((len(completion.ids) for completion in completions), default=0))
    for n, (pairs, completion) in enumerate(zip(steps, completions, strict=True)):
        for token, reward in pairs:
            if not 0 <= token < len(completion.ids) or not math.isfinite(reward):
                raise InputError(
                    f"reward: completion {n} has {len(completion.ids)} tokens, and a step gives its token {token} the "
                    f"reward {reward}: {shown(completion)}"
                )
            placed[n, token] += reward
    return placed


def running_deviation(scores: Tensor, memory: dict[str, float], reduce: Reduce) -> float:
    """The standard deviation of all scores so far over all ranks, these [N] included; 1 while they are all equal.

    `memory` is brought up to it.
    """
    seen = scores.double()
    sums = reduce(torch.stack([torch.ones_like(seen).sum(), seen.sum(), (seen**2).sum()])).tolist()
    names = ("scores", "scores_sum", "scores_squares")
    for name, value in zip(names, sums, strict=True):
        memory[name] = memory.get(name, 0.0) + value
    return deviation_so_far(memory)


def deviation_so_far(memory: dict[str, float]) -> float:
    """The standard deviation of the scores that `memory` has seen; 1 where there were none or all were equal."""
    count, total, squares = (memory.get(name, 0.0) for name in ("scores", "scores_sum", "scores_squares"))
    if not count:
        return 1.0
    square = squares / count
    variance = square - (total / count) ** 2
    return math.sqrt(variance) if variance > 1e-12 * square else 1.0  # below it lies rounding
