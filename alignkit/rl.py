"""The arithmetic of policy gradients: KL estimators, shaped rewards, advantages, whitening, KL controllers.

Knows nothing of generation, models, or ranks: where a sum runs over ranks the caller passes `reduce`, a function that
adds a tensor up over all of them. Rows are B sequences of T tokens; `mask` [B, T] is true on sampled tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]


def kl_k1(logp: Tensor, ref: Tensor) -> Tensor:
    """log(π/π_ref) at samples of π, any shape, nats: unbiased for KL(π‖π_ref) (Schulman 2020, "Approximating KL").

    The one to put into the reward. As a loss it is useless: its expected gradient at samples of π is zero.
    """
    return logp - ref


def kl_k2(logp: Tensor, ref: Tensor) -> Tensor:
    """½·log²(π/π_ref) (Schulman 2020): biased as a number, and the one whose gradient as a loss is the KL's."""
    return 0.5 * (logp - ref) ** 2


def kl_k3(logp: Tensor, ref: Tensor) -> Tensor:
    """π_ref/π - 1 - log(π_ref/π) (Schulman 2020): unbiased, never negative, of low variance; a number to log.

    As a loss (GRPO, Shao et al. 2024, Eq. 4) its gradient is that of KL(π_ref‖π), so it ends at another optimum.
    """
    difference = ref - logp
    return torch.expm1(difference) - difference


def shaped_rewards(score: Tensor, kl: Tensor, mask: Tensor, coef: float) -> Tensor:
    """Reward of every token: -coef·kl, plus the score [B] at each row's last sampled token (Ziegler 2019, Eq. 2).

    `kl` [B, T] is an estimate per token, `kl_k1` to reach the KL-constrained optimum. [B, T], zero where not `mask`.
    A row without any sampled token has nowhere to put its score: ValueError.
    """
    mask = mask.bool()
    if not bool(mask.any(1).all()):
        raise ValueError(f"row {int((~mask.any(1)).nonzero()[0])} has no sampled token to carry its score")
    rewards = torch.where(mask, -coef * kl, 0.0)
    width = mask.shape[1]
    last = width - 1 - mask.flip(1).to(torch.int8).argmax(1)
    rewards[torch.arange(len(last), device=last.device), last] += score
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, Eq. 16): (advantages, returns), both [B, T].

    A_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γ·V_{t+1} - V_t, returns = A + V. V is zero past the last sampled token.
    Positions outside `mask` (padding on either side, a tool's tokens) are stepped over and are zero in the result.
    """
    mask = mask.bool()
    advantages = torch.zeros_like(values)
    running, following = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = torch.where(here, delta + gamma * lam * running, running)
        following = torch.where(here, values[:, t], following)
        advantages[:, t] = running
    advantages = torch.where(mask, advantages, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Discounted sum of the rewards from each token on, [B, T], zero where not `mask` (Williams 1992).

    Whitened over all tokens of an update it is REINFORCE++'s advantage (Hu 2025).
    """
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)[0]


def group_means(x: Tensor, group: Tensor) -> Tensor:
    """The mean over each item's group, [N] -> [N]; `group` [N] numbers the groups."""
    numbers, size = _groups(group)
    return torch.zeros_like(x).index_add(0, numbers, x)[numbers] / size.to(x.dtype)


def above_group_means(x: Tensor, group: Tensor) -> Tensor:
    """Each item less the mean over its group, [N] -> [N]: exactly 0 where a group's items are all equal, whose mean
    rounds to something else (and Adam makes a step of any gradient)."""
    numbers, _ = _groups(group)
    lowest = torch.zeros_like(x).scatter_reduce(0, numbers, x, "amin", include_self=False)
    above = x - lowest[numbers]
    return above - group_means(above, group)


def _groups(group: Tensor) -> tuple[Tensor, Tensor]:
    """A number for each item's group, below N, and the size of each item's group, [N] int64 both."""
    first = torch.searchsorted(group.sort().values, group)  # one number per group, below N
    return first, torch.bincount(first, minlength=len(group))[first]


def group_advantages(rewards: Tensor, group: Tensor, leave_one_out: bool = True, scale: bool = False) -> Tensor:
    """Reward minus its group's baseline, [N]; `group` [N] numbers the prompt that each sample answers.

    `leave_one_out` is RLOO (Kool et al. 2019; Ahmadian et al. 2024): r - mean of the others,
    K/(K-1)·(r - group mean), whose gradient is unbiased. Without it the gradient is (K-1)/K of that.
    `scale` divides r - group mean by the group's standard deviation instead (GRPO, Shao et al. 2024), which changes
    the optimum.
    A group of one has no baseline: ValueError.
    """
    size = _groups(group)[1].to(rewards.dtype)
    if bool((size < 2).any()):
        raise ValueError("a group of one sample has no baseline: sample each prompt at least twice")
    advantages = above_group_means(rewards, group)
    if scale:
        variance = group_means(advantages**2, group) * size / (size - 1)
        return advantages / (variance.sqrt() + 1e-4)
    return advantages * size / (size - 1) if leave_one_out else advantages


def preference_advantages(scores: Tensor, log_ratios: Tensor, beta: float) -> Tensor:
    """Online DPO as an advantage (Guo et al. 2024, "Direct Language Model Alignment from Online AI Feedback"), [P, K].

    `scores` and `log_ratios` (log π/π_ref of whole completions, nats) are those of K samples of P prompts. The best
    sample of a prompt gets w = K·β·σ(-β·(h_best - h_worst)), the worst -w, the others 0: with these the policy
    gradient Σ A·∇log π, a mean over all completions, is minus the gradient of DPO's loss, a mean over prompts, at the
    policy that sampled. Equal scores prefer nothing: 0. Not-a-number is no score.
    """
    best = scores.nan_to_num(-torch.inf).argmax(1, keepdim=True)
    worst = scores.nan_to_num(torch.inf).argmin(1, keepdim=True)
    margin = beta * (log_ratios.gather(1, best) - log_ratios.gather(1, worst))
    pull = torch.where(scores.gather(1, best) > scores.gather(1, worst), beta * torch.sigmoid(-margin), 0.0)
    return scores.shape[1] * torch.zeros_like(log_ratios).scatter(1, best, pull).scatter(1, worst, -pull)


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True, reduce: Reduce | None = None) -> Tensor:
    """(x - mean)/deviation over the masked items of all ranks, any shape (as in Huang et al. 2024).

    `shift_mean=False` puts the mean back, as for rewards, whose sign carries meaning. Zero where not `mask`.
    The deviation is the population's, summed in float64, so that no split over ranks shows in the result.
    """
    mask = mask.bool()
    mean, variance = _moments(x, mask, reduce)
    whitened = (x.double() - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0.0).to(x.dtype)


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor | None = None, reduce: Reduce | None = None
) -> Tensor:
    """1 - Var(returns - values)/Var(returns) over masked items of all ranks, 0-dim: 1 a perfect critic, 0 a constant.

    Zero where returns do not vary: there is nothing to explain.
    """
    chosen = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.bool()
    _, total = _moments(returns, chosen, reduce)
    _, left = _moments(returns - values, chosen, reduce)
    return torch.where(total > 1e-12, 1 - left / total.clamp(min=1e-12), 0.0)


def correlation(x: Tensor, y: Tensor, reduce: Reduce | None = None) -> Tensor:
    """Pearson's correlation of the items [N] of all ranks, 0-dim, from -1 to 1; zero where either does not vary."""
    add, (a, b) = reduce or _alone, (x.double(), y.double())
    n, sum_a, sum_b, aa, bb, ab = add(
        torch.stack([torch.ones_like(a).sum(), a.sum(), b.sum(), (a * a).sum(), (b * b).sum(), (a * b).sum()])
    ).unbind()
    covariance, variances = ab - sum_a * sum_b / n, (aa - sum_a**2 / n) * (bb - sum_b**2 / n)
    return torch.where(variances > 1e-12, covariance / variances.clamp(min=1e-12).sqrt(), 0.0)


def _moments(x: Tensor, mask: Tensor, reduce: Reduce | None) -> tuple[Tensor, Tensor]:
    """Mean and population variance over the masked items of all ranks, float64, in two passes for accuracy."""
    add = reduce or _alone
    kept = torch.where(mask, x.detach().double(), 0.0)
    count, total = add(torch.stack([mask.double().sum(), kept.sum()])).unbind()
    mean = total / count.clamp(min=1)
    squares = torch.where(mask, (kept - mean) ** 2, 0.0).sum()
    return mean, add(squares) / count.clamp(min=1)


def _alone(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class AdaptiveKL:
    """A KL coefficient steered towards a target KL by a proportional controller (Ziegler et al. 2019, §2.2)."""

    coef: float
    """Reward lost per nat of KL to the reference, now."""
    target: float
    """KL to hold, in nats per sequence."""
    horizon: float = 10_000
    """Samples over which a persistent error of 20 % or more changes the coefficient by a factor of about exp(0.2)."""

    def update(self, kl: float, samples: int) -> "AdaptiveKL":
        """After `samples` sequences of mean KL `kl` nats: coef·(1 + clip(kl/target - 1, ±0.2)·samples/horizon)."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return replace(self, coef=self.coef * (1 + error * samples / self.horizon))
