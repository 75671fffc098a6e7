"""Advantages of sampled tokens, by a critic or by other samples, from numbers alone. Knows no model and no stage.

A token's reward is -coef·(log π - log π_ref), plus the completion's score at its last token (Ziegler et al. 2019).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from alignkit import rl
from alignkit.options.ppo import PpoConfig

Estimator = Callable[[Tensor, Tensor, Tensor, float], Tensor]
WITHOUT_CRITIC: Mapping[str, Estimator] = MappingProxyType(
    {
        "rloo": lambda rewards, mask, group, _: rl.group_advantages(rewards.sum(1), group)[:, None] * mask,
        "grpo": lambda rewards, mask, group, _: rl.group_advantages(rewards.sum(1), group, scale=True)[:, None] * mask,
        "dr_grpo": lambda rewards, mask, group, _: rl.group_advantages(rewards.sum(1), group, False)[:, None] * mask,
        "reinforce_plus_plus": lambda rewards, mask, _, gamma: rl.reward_to_go(rewards, mask, gamma),
        "reinforce_plus_plus_baseline": lambda rewards, mask, group, _: _above_group(rewards, mask, group),
        "remax": lambda rewards, mask, *_: rewards.sum(1)[:, None] * mask,
    }
)
"""(rewards [N, T], mask [N, T], the prompt of each completion [N], gamma) -> advantages [N, T], before whitening."""


def _above_group(rewards: Tensor, mask: Tensor, group: Tensor) -> Tensor:
    """[N, T] the rewards from each token on less the mean of the group's whole rewards, exactly 0 where these are all
    equal and stand at the end."""
    total = rewards.sum(1)
    before = rl.reward_to_go(rewards, mask) - total[:, None]
    return (before + rl.above_group_means(total, group)[:, None]) * mask


def advantage_columns(
    config: PpoConfig,
    scores: Tensor,
    rewards: Tensor,
    old: Tensor,
    reference: Tensor,
    mask: Tensor,
    kl_coef: float,
    value: Tensor | None = None,
    reduce: rl.Reduce = lambda x: x,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The columns [N, T] that an update trains on, and what is logged of them.

    `scores` [N] are the whole rewards of N completions, `config.samples` of each prompt in a row (remax: less the
    greedy answer's), not-a-number where there is none: that one's advantage is 0, and no other's depends on it.
    `rewards` [N, T] are their tokens' (`token_rewards`), `old` and `reference` [N, T] the log-probabilities of these,
    `value` [N, T] the critic's values.
    """
    known, online_dpo = ~scores.isnan(), config.advantage == "online_dpo"
    columns, judged = {"old": old, "reference": reference}, dict[str, float]()
    group = torch.arange(len(mask)) // config.samples
    if config.compares:
        known &= rl.group_means(known.float(), group) * config.samples > 1.5  # one alone has nothing to compare with
    mask = mask & known[:, None]
    if value is not None:
        advantage, returns = rl.gae(rewards, value, mask, config.gamma, config.lam)
        columns |= {"return": returns, "value": value}
        judged["critic/explained_variance"] = float(rl.explained_variance(value, returns, mask, reduce))
    elif online_dpo:
        groups = (x.view(-1, config.samples) for x in (scores, (rl.kl_k1(old, reference) * mask).sum(1)))
        advantage = rl.preference_advantages(*groups, kl_coef).view(-1, 1) * mask
    else:
        advantage = torch.zeros_like(rewards)
        of_known = (x[known] for x in (rewards, mask, group))
        advantage[known] = WITHOUT_CRITIC[config.advantage](*of_known, config.gamma)
    if config.samples > 1:
        judged["advantage/without_signal"] = _share_without_signal(scores.view(-1, config.samples), reduce)
    if config.whitens:
        advantage = rl.whiten(advantage, mask, reduce=reduce)
    return {**columns, "advantage": advantage}, judged


def token_rewards(
    config: PpoConfig,
    scores: Tensor,
    log_ratio: Tensor,
    mask: Tensor,
    kl_coef: float,
    steps: Tensor | None = None,
) -> Tensor:
    """The reward of every token, [N, T]: of `scores` [N], of which `steps` [N, T], if any, stand inside completions,
    and of log π/π_ref [N, T]. No score counts 0."""
    coef = kl_coef if config.kl_is_reward else 0.0
    limit = config.kl.clamp
    kl = log_ratio if limit is None else log_ratio.clamp(-limit, limit)
    scores = scores.nan_to_num()
    if steps is None:
        return rl.shaped_rewards(scores, kl, mask, coef)
    return rl.shaped_rewards(scores - steps.sum(1), kl, mask, coef) + steps


def without_signal(groups: Tensor) -> Tensor:
    """[P, K] scores -> [P] bool: all alike, or one alone has a score (not-a-number is none): they teach nothing."""
    lowest, highest = groups.nan_to_num(torch.inf).amin(1), groups.nan_to_num(-torch.inf).amax(1)
    return lowest >= highest


def _share_without_signal(groups: Tensor, reduce: rl.Reduce) -> float:
    """The share of the prompts, over all ranks, whose samples [P, K] teach a group nothing."""
    alike = without_signal(groups).double()
    sums = reduce(torch.stack([alike.sum(), torch.ones_like(alike).sum()]))
    return float(sums[0] / sums[1])
