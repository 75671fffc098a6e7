"""Losses, one number per item, as pure functions of tensors; knows no model, no batch layout, and does not average.

A preference loss takes the four summed log-probabilities of P pairs, in nats, and returns [P]; reward-model losses
take scores; policy and value losses one number per token. Weighing, summing and dividing are the caller's work.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def nll(logp: Tensor, length: Tensor | None = None) -> Tensor:
    """Negative log-likelihood -log π(y|x) of tokens or whole sequences, [N] -> [N] nats.

    `length` [N] divides by the number of tokens: the term that iterative RPO adds to DPO (Pang et al. 2024, Eq. 1).
    """
    return -logp if length is None else -logp / length


def log_ratio_margin(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor
) -> Tensor:
    """How much more than the reference the policy prefers the chosen response, [P] nats (h in Azar et al. 2023, §5).

    β times this is the difference of implicit rewards r = β·log(π/π_ref) (DPO, Rafailov et al. 2023, Eq. 5).
    """
    return (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)


def dpo_sigmoid(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """DPO (Rafailov et al. 2023, Eq. 7): -log σ(βh), [P].

    `label_smoothing` ε in [0, ½) is conservative DPO (Mitchell 2023): labels are taken to be flipped at rate ε,
    -(1-ε)·log σ(βh) - ε·log σ(-βh), which stops at σ(βh) = 1-ε instead of pushing h to infinity.
    """
    _check_smoothing(label_smoothing)
    logits = beta * log_ratio_margin(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def dpo_robust(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """Robust DPO (Chowdhury et al. 2024): the unbiased estimate of the clean loss from flipped labels, [P].

    (-(1-ε)·log σ(βh) + ε·log σ(-βh)) / (1-2ε). Its mean over labels flipped at rate ε = `label_smoothing` in [0, ½)
    is the DPO loss on clean ones; a single item can be negative.
    """
    _check_smoothing(label_smoothing)
    logits = beta * log_ratio_margin(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    kept, flipped = (1 - label_smoothing) * F.logsigmoid(logits), label_smoothing * F.logsigmoid(-logits)
    return (flipped - kept) / (1 - 2 * label_smoothing)


def dpo_ipo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    chosen_length: Tensor | None = None,
    rejected_length: Tensor | None = None,
) -> Tensor:
    """IPO (Azar et al. 2023, Eq. 17): (h - 1/(2β))², [P]; β is the paper's τ.

    With both lengths [P], in tokens, log-ratios are means over tokens, as its authors ran it; h then is per token.
    """
    chosen, rejected = policy_chosen - ref_chosen, policy_rejected - ref_rejected
    if chosen_length is not None and rejected_length is not None:
        chosen, rejected = chosen / chosen_length, rejected / rejected_length
    elif chosen_length is not None or rejected_length is not None:
        raise ValueError("IPO takes both lengths or neither")
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def dpo_hinge(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    """Hinge on the margin (SLiC, Zhao et al. 2023, normalised as in RSO, Liu et al. 2023), [P].

    max(0, 1 - βh): a pair stops pulling once βh >= 1.
    """
    return F.relu(1 - beta * log_ratio_margin(policy_chosen, policy_rejected, ref_chosen, ref_rejected))


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


def policy_clip(logp: Tensor, old: Tensor, advantage: Tensor, clip: float, clip_high: float | None = None) -> Tensor:
    """PPO's clipped surrogate, negated (Schulman et al. 2017, Eq. 7): -min(ρA, clip(ρ, 1-ε, 1+ε')·A), [E].

    ρ = exp(logp - old), all three [E]; ε' = `clip_high`, ε when None (DAPO's clip-higher, Yu et al. 2025).
    """
    ratio = torch.exp(logp - old)
    clipped = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return -torch.minimum(ratio * advantage, clipped * advantage)


def is_clipped(logp: Tensor, old: Tensor, advantage: Tensor, clip: float, clip_high: float | None = None) -> Tensor:
    """Where `policy_clip` has no gradient because the ratio has already moved far enough: bool [E]."""
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


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing {label_smoothing} is the rate of flipped labels: give one from 0 to below 0.5"
        )
