"""What completions are worth to policy optimisation: a reward, rules for length, a running scale. Knows no model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from torch import Tensor

from alignkit.options.ppo import PpoConfig
from alignkit.records import Completion
from alignkit.rl import Reduce
from alignkit.together import together
from reward_models.running import moments, observe
from reward_models.scores import Reward, RewardFailure, valued

NONE_LEFT = "reward: it failed on every completion; nothing is left to go by"


@dataclass(frozen=True, slots=True)
class Scored:
    """What N completions are worth. Not-a-number: the reward has failed on that one, and the recipe skips it."""

    total: Tensor
    """[N] the whole reward of each, after the rules for length."""
    parts: dict[str, Tensor]
    """[N] each: what the reward says that it is made of."""
    steps: Tensor | None = None
    """[N, T] what of it stands inside the completions; None where nothing does."""

    def inside(self, width: int) -> Tensor | None:
        """`steps` cut or filled up with zeros to `width` tokens."""
        return None if self.steps is None else F.pad(self.steps, (0, width - self.steps.shape[1]))

    def joined(self, other: "Scored") -> "Scored":
        """These completions and others after them."""
        both = (self, other)
        parts = {
            name: torch.cat([s.parts.get(name, torch.full_like(s.total, math.nan)) for s in both])
            for name in {**self.parts, **other.parts}
        }
        width = max((s.steps.shape[1] for s in both if s.steps is not None), default=0)
        inside = [s.inside(width) for s in both]
        known = [torch.zeros(len(s.total), width) if x is None else x for s, x in zip(both, inside, strict=True)]
        steps = torch.cat(known) if any(x is not None for x in inside) else None
        return Scored(torch.cat([self.total, other.total]), parts, steps)

    def chosen(self, order: Sequence[int]) -> "Scored":
        """These of them, in this order."""
        parts = {name: part[order] for name, part in self.parts.items()}
        return Scored(self.total[order], parts, None if self.steps is None else self.steps[order])


def scored(completions: list[Completion], reward: Reward, config: PpoConfig) -> Scored:
    """What completions are worth. Raises RewardFailure, on all ranks at once, where the reward raises or gives what is
    no number."""
    given = together(lambda: valued(completions, reward, config.reward.kind))
    total = settle_length(_column(given.total), completions, config)
    parts = {name: _column(values) for name, values in given.parts.items()}
    if given.steps is None:
        return Scored(total, parts)
    steps = placed_steps(given.steps, completions)
    if config.missing_eos.rule == "replace":
        steps[torch.tensor([not completion.finished for completion in completions], dtype=torch.bool)] = 0.0
    return Scored(total + steps.sum(1), parts, steps)


def _column(values: Sequence[float | None]) -> Tensor:
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float32)


def with_scores(orders: list[list[list[int]]], scores: Tensor, reduce: Reduce) -> list[list[list[int]]]:
    """The minibatches of each epoch without the completions that have no score; one that no rank has any of goes.

    Raises RewardFailure where nothing is left.
    """
    kept = [[[n for n in part if not scores[n].isnan()] for part in order] for order in orders]
    sizes = reduce(torch.tensor([[len(part) for part in order] for order in kept])).tolist()
    if not any(n for row in sizes for n in row):
        raise RewardFailure(NONE_LEFT)
    return [[p for p, n in zip(order, row, strict=True) if n] for order, row in zip(kept, sizes, strict=True)]


def report(
    numbers: Mapping[str, Tensor], scores: Tensor, parts: Mapping[str, Tensor], reduce: Reduce
) -> dict[str, float]:
    """The mean of every number [N], and of the parts of the scores, over the completions of all ranks that have it.

    `objective/failed` is the share without a score. Raises RewardFailure where not one has one.
    """
    names = sorted({name for names in gather_object([sorted(parts)]) for name in names})  # a rank may have none
    named = {f"objective/score/{name}": parts.get(name, scores[:0]) for name in names}
    columns = {**numbers, **named, "objective/failed": scores.isnan()}
    each = [(x.double().nansum(), (~x.isnan()).double().sum()) for x in columns.values()]
    sums, counts = reduce(torch.tensor(each, dtype=torch.float64)).unbind(1)
    means = dict(zip(columns, (sums / counts).tolist(), strict=True))
    if means["objective/failed"] == 1:
        raise RewardFailure(NONE_LEFT)
    return means


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
    """Rewards inside completions, (token, reward) pairs, at their tokens: [N, T]."""
    placed = torch.zeros(len(completions), max((len(completion.ids) for completion in completions), default=0))
    for n, pairs in enumerate(steps):
        for token, reward in pairs:
            placed[n, token] += reward
    return placed


def running_deviation(scores: Tensor, memory: dict[str, float], reduce: Reduce) -> float:
    """The standard deviation of all scores so far over all ranks, these [N] included (not-a-number is none); 1 while
    they are all equal. `memory` is brought up to it."""
    observe(scores[~scores.isnan()].tolist(), memory, reduce)
    return moments(memory)[1]
