"""Preference losses as pure functions of scores, one number per pair; knows no model, no batch and does not average.

A response's score s is a number in nats: its log-ratio log π/π_ref to the reference, `divergence_score` of that, its
mean log-probability, or its log odds. A loss takes the scores of the chosen and of the rejected responses, [P] each,
and β, reward per nat: β·s is the implicit reward (DPO, Rafailov et al. 2023, Eq. 5).
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]
LARGEST = 80.0  # nats: exp of it is still a float32


def divergence_score(log_ratio: Tensor, divergence: Divergence = "reverse_kl", alpha: float = 0.5) -> Tensor:
    """f'(u) of u = π/π_ref for the divergence that holds the policy to its reference (f-DPO, Wang et al. 2023).

    reverse_kl: log u, DPO's own; forward_kl: 1 - 1/u; js: log(2u/(1+u)); alpha: (u^(α-1) - 1)/(α-1), α ≠ 1. With the
    sigmoid loss the optimum has β·f'(π/π_ref) = r + constant. Ratios beyond exp(80) count as exp(80).
    """
    match divergence:
        case "reverse_kl":
            return log_ratio
        case "forward_kl":
            return -torch.expm1((-log_ratio).clamp(max=LARGEST))
        case "js":
            return math.log(2) + F.logsigmoid(log_ratio)
        case "alpha":
            return torch.expm1(((alpha - 1) * log_ratio).clamp(max=LARGEST)) / (alpha - 1)


def log_odds(mean_logp: Tensor) -> Tensor:
    """log p/(1-p) of p = exp of a response's mean log-probability per token (ORPO, Hong et al. 2024, Eq. 4), [N]."""
    # Where 1 - p rounds to 0 the odds are those of the largest p below 1.
    below = mean_logp.clamp(max=-torch.finfo(mean_logp.dtype).eps)
    return below - torch.log(-torch.expm1(below))


def sigmoid(
    chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0, margin: float = 0.0
) -> Tensor:
    """DPO (Rafailov et al. 2023, Eq. 7): -log σ(βh - γ) with h = chosen - rejected, [P].

    `margin` γ is SimPO's target (Meng et al. 2024, Eq. 6). `label_smoothing` ε in [0, ½) is conservative DPO (Mitchell
    2023): labels are taken to be flipped at rate ε, which stops at σ(βh) = 1-ε instead of pushing h to infinity.
    """
    _check_smoothing(label_smoothing)
    logits = beta * (chosen - rejected) - margin
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def robust(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO (Chowdhury et al. 2024): the unbiased estimate of the clean loss from flipped labels, [P].

    (-(1-ε)·log σ(βh) + ε·log σ(-βh)) / (1-2ε). Its mean over labels flipped at rate ε = `label_smoothing` in [0, ½)
    is the DPO loss on clean ones; a single item can be negative.
    """
    _check_smoothing(label_smoothing)
    logits = beta * (chosen - rejected)
    kept, flipped = (1 - label_smoothing) * F.logsigmoid(logits), label_smoothing * F.logsigmoid(-logits)
    return (flipped - kept) / (1 - 2 * label_smoothing)


def ipo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """IPO (Azar et al. 2023, Eq. 17): (h - 1/(2β))², [P]; β is the paper's τ.

    Its authors ran it on log-ratios divided by the number of tokens.
    """
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def hinge(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Hinge on the margin (SLiC, Zhao et al. 2023, normalised as in RSO, Liu et al. 2023), [P].

    max(0, 1 - βh): a pair stops pulling once βh >= 1.
    """
    return F.relu(1 - beta * (chosen - rejected))


def exo(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """EXO on pairs (Ji et al. 2024, Eq. 16): KL of the policy's choice σ(βh) to the label's (1-ε, ε), [P].

    The reverse of the divergence that DPO descends; ε = `label_smoothing` in (0, ½) must not be 0.
    """
    if label_smoothing == 0:
        raise ValueError("exo needs label_smoothing above 0: its divergence to a certain label is infinite")
    _check_smoothing(label_smoothing)
    logits = beta * (chosen - rejected)
    won = torch.sigmoid(logits) * (F.logsigmoid(logits) - math.log1p(-label_smoothing))
    return won + torch.sigmoid(-logits) * (F.logsigmoid(-logits) - math.log(label_smoothing))


def nca(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """NCA on pairs (Chen et al. 2024): -log σ(βs⁺) - ½·log σ(-βs⁺) - ½·log σ(-βs⁻), [P].

    Holds each response's own likelihood, not only their difference.
    """
    either = F.logsigmoid(-beta * chosen) + F.logsigmoid(-beta * rejected)
    return -F.logsigmoid(beta * chosen) - 0.5 * either


def bco(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """BCO on pairs (Jung et al. 2024): a classifier of good and bad, -log σ(βs⁺) - log σ(-βs⁻), [P].

    Without the paper's reward shift δ, as TRL has it.
    """
    return -F.logsigmoid(beta * chosen) - F.logsigmoid(-beta * rejected)


def sppo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """SPPO with certain wins (Wu et al. 2024, Eq. 4.7 with P = 1 and 0): (s⁺ - 1/(2β))² + (s⁻ + 1/(2β))², [P]."""
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


def apo_zero(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """APO-zero (D'Oosterlinck et al. 2024, Eq. 7): σ(-βs⁺) + σ(βs⁻), [P]; raises good responses, lowers bad ones.

    For data better than the model's own answers.
    """
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """APO-down (D'Oosterlinck et al. 2024, Eq. 8): σ(βs⁺) + σ(-β(s⁺ - s⁻)), [P]; lowers both, bad ones more.

    For data worse than the model's own answers.
    """
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


def discopop(chosen: Tensor, rejected: Tensor, beta: float, temperature: float = 0.05) -> Tensor:
    """DiscoPOP (Lu et al. 2024, Eq. 5): logistic and exponential loss of βh, mixed by σ(βh/τ), [P]."""
    logits = beta * (chosen - rejected)
    mixed = torch.sigmoid(logits / temperature)
    return (1 - mixed) * -F.logsigmoid(logits) + mixed * torch.exp((-logits).clamp(max=LARGEST))


def kto(
    scores: Tensor, good: Tensor, beta: float, baseline: Tensor | float = 0.0, desirable: float = 1.0, bad: float = 1.0
) -> Tensor:
    """KTO (Ethayarajh et al. 2024, Eq. 8) of single responses labelled `good` [N] or not: λ·(1 - σ(±β(s - z))), [N].

    `baseline` z in nats, not differentiated, is what a response to another prompt scores on average, at least 0; with
    z = 0 it is unpaired APO-zero. `desirable` and `bad` are the weights λ of the two labels.
    """
    away = torch.where(good, scores - baseline, baseline - scores)
    return torch.where(good, desirable, bad) * torch.sigmoid(-beta * away)


def plackett_luce(scores: Tensor, ranks: Tensor, group: Tensor, beta: float) -> Tensor:
    """Negative log-likelihood of whole rankings, one summand per response, [O] (Rafailov et al. 2023, App. A.3).

    `scores` [O], `ranks` [O] (1 = best) and `group` [O] (equal numbers form one ranking, negative ones none). The
    summand of a response is -log of the chance that it is taken from itself and all worse ones; tied responses do not
    compete. On two responses the sum is `sigmoid`.
    """
    worse = (group[:, None] == group[None, :]) & (group >= 0)[:, None] & (ranks[None, :] > ranks[:, None])
    left = worse | torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    rewards = beta * scores
    return torch.logsumexp(rewards[None, :].masked_fill(~left, -torch.inf), 1) - rewards


def coupled(first: Tensor, second: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two weighted samples matched rank by rank: (first [Q], second [Q], weight [Q]), Q < 2P.

    The optimal transport of AOT (Melnyk et al. 2024): the sigmoid loss of what it returns is AOT for (policy margins,
    reference margins), unpaired AOT for (chosen scores, rejected scores). With equal weights [P] both are sorted. The
    matching depends on all pairs of a step, so that the loss is no sum over them.
    """
    orders = first.argsort(), second.argsort()
    ends = [weight.detach().double()[order].cumsum(0) for order in orders]
    cuts = torch.cat(ends).sort().values
    mass = cuts.diff(prepend=cuts.new_zeros(1))
    # A piece belongs to the item whose share holds its middle; rounding leaves pieces of no mass behind.
    middle = cuts - mass / 2
    picked = [torch.searchsorted(end, middle).clamp(max=len(end) - 1) for end in ends]
    return first[orders[0][picked[0]]], second[orders[1][picked[1]]], mass.to(weight.dtype)


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing {label_smoothing} is the rate of flipped labels: give one from 0 to below 0.5"
        )
