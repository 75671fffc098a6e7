"""Losses, one number per item, as pure functions of tensors; knows no model, no batch layout, and does not average.

Reward-model losses take scores of pairs; likelihood, policy and value losses one number per token. Weighing, summing
and dividing are the caller's work. Preference losses of a policy stand in `alignkit.preferences`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float | None = None) -> Tensor:
    """Reward-model loss -log σ(chosen - rejected - margin) of scores [P], [P] nats (Ouyang et al. 2022, Eq. 1).

    `margin` (float or [P], in units of score) asks for a gap that grows with the rated one (Llama 2, Eq. 2).
    """
    difference = chosen - rejected
    return -F.logsigmoid(difference if margin is None else difference - margin)


def centring(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(chosen + rejected)² of scores [P], [P]: settles the constant that Bradley-Terry leaves free.

    Eisenstein et al. 2023, §2: a small multiple of it keeps scores around zero and changes no preference.
    """
    return (chosen + rejected) ** 2


def ranking_pairs(ranks: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All untied pairs of every ranking: (better [P], worse [P], weight [P]), the first two indices into `ranks`.

    `ranks` [O] (1 = best, equal = tied) and `group` [O] (equal numbers form one ranking, negative ones none).
    The pairs of one ranking weigh the same and 1 together (InstructGPT, Ouyang et al. 2022, Eq. 1: 1/(K choose 2)), so
    the weights sum to the number of rankings that order anything.
    """
    same = (group[:, None] == group[None, :]) & (group >= 0)[:, None]
    better, worse = torch.nonzero(same & (ranks[:, None] < ranks[None, :]), as_tuple=True)
    ranking = group[better]
    return better, worse, 1.0 / torch.bincount(ranking)[ranking].to(torch.float32)


def policy_clip(
    logp: Tensor,
    old: Tensor,
    advantage: Tensor,
    clip: float,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """PPO's clipped surrogate, negated (Schulman et al. 2017, Eq. 7): -min(ρA, clip(ρ, 1-ε, 1+ε')·A), [E].

    ρ = exp(logp - old), all three [E]; ε' = `clip_high`, ε when None (DAPO's clip-higher, Yu et al. 2025). `dual_clip`
    c > 1 bounds it where A < 0: no more than -cA, however large ρ is (Ye et al. 2020, Eq. 5). With sums of logs over a
    sequence divided by its length in the place of logs it is GSPO (Zheng et al. 2025, Eq. 5).
    """
    ratio = torch.exp(logp - old)
    clipped = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    loss = -torch.minimum(ratio * advantage, clipped * advantage)
    if dual_clip is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -dual_clip * advantage), loss)


def cispo(logp: Tensor, old: Tensor, advantage: Tensor, clip: float, clip_high: float | None = None) -> Tensor:
    """CISPO (MiniMax 2025, Eq. 4): -sg(clip(ρ, 1-ε, 1+ε'))·A·log π, [E]; every token keeps a gradient."""
    ratio = torch.exp(logp - old).detach()
    return -ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high)) * advantage * logp


def truncated_importance(logp: Tensor, engine: Tensor, cap: float) -> Tensor:
    """min(exp(logp - engine), cap) [E], without gradient: what a token counts that another engine sampled than trains.

    Truncated importance sampling (Ionides 2008; Yao et al. 2025, "Your efficient RL framework secretly brings you
    off-policy RL training"): `logp` the trainer's log-probability under the weights that sampled, `engine` the
    sampler's own, both [E]. Exact in expectation below `cap`; the cap bounds the variance.
    """
    return torch.exp(logp - engine).clamp(max=cap).detach()


def is_clipped(logp: Tensor, old: Tensor, advantage: Tensor, clip: float, clip_high: float | None = None) -> Tensor:
    """Where the ratio has already moved as far as the advantage may push it: bool [E]. `policy_clip` is flat there."""
    ratio = torch.exp(logp - old)
    high = 1 + (clip if clip_high is None else clip_high)
    return ((advantage > 0) & (ratio > high)) | ((advantage < 0) & (ratio < 1 - clip))


def value_clip(value: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Squared error of the critic, kept within `clip` of its old value: ½·max((v-R)², (v_clip-R)²), [E].

    As PPO's first code did (Engstrom et al. 2020, §3, item 1); `clip` is in units of value, None = not clipped.
    """
    plain = (value - returns) ** 2
    if clip is None:
        return 0.5 * plain
    near = old + (value - old).clamp(-clip, clip)
    return 0.5 * torch.maximum(plain, (near - returns) ** 2)
