"""DPO, PPO and RLOO through our functions, held to the KL-constrained optimum of a world that can be enumerated."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from bigram_world import (
    CONTEXTS,
    LENGTH,
    REF_LOGPS,
    REFERENCE,
    REWARDS,
    SEQUENCES,
    context_numbers,
    entropy_of_labels,
    optimum,
    reward,
    sample,
    standing,
    token_logps,
    total_variation,
)
from torch import Tensor

from alignkit import preferences
from alignkit.advantages import WITHOUT_CRITIC
from alignkit.losses import policy_clip, value_clip
from alignkit.rl import gae, kl_k1, shaped_rewards, whiten

MASK = torch.ones(1, LENGTH, dtype=torch.bool)


def test_the_world_is_the_published_one() -> None:
    here = standing(REF_LOGPS)
    assert -float(REF_LOGPS.exp() @ REF_LOGPS) == pytest.approx(6.343443, abs=5e-7)
    assert here.reward == pytest.approx(0.502162, abs=5e-7)
    assert here.kl == 0


@pytest.mark.parametrize(
    ("beta", "expected"), [(1.0, (0.582739, 0.040865, 0.541874)), (0.1, (1.117185, 2.410510, 0.876134))]
)
def test_the_optimum_to_six_digits(beta: float, expected: tuple[float, float, float]) -> None:
    best, j_star = optimum(beta)
    here = standing(best)
    assert (here.reward, here.kl, j_star) == pytest.approx(expected, abs=5e-7)
    assert here.objective(beta) == pytest.approx(j_star, abs=1e-12)


def descend(loss: Callable[[Tensor], Tensor], rate: float, steps: int) -> tuple[Tensor, float]:
    """(log-probabilities, last loss) after minimising a population loss over a table of 1,296 logits.

    Gradients are divided by π_ref, so that rare sequences learn as fast as frequent ones.
    """
    theta = REF_LOGPS.clone().requires_grad_()
    value = math.nan
    for _ in range(steps):
        total = loss(theta.log_softmax(0))
        (gradient,) = torch.autograd.grad(total, theta)
        value = total.item()
        theta = (theta - rate * gradient / REF_LOGPS.exp()).detach().requires_grad_()
    return theta.detach().log_softmax(0), value


PREFERRED = torch.sigmoid(REWARDS[:, None] - REWARDS[None, :])
"""[1296, 1296]: chance that Bradley-Terry on the true reward prefers the row to the column."""


def population(loss: Callable[..., Tensor], beta: float, preferred: Tensor, **options: float) -> Callable[..., Tensor]:
    """Expectation of a preference loss over two draws from π_ref and their label, exact: [1296] log π -> 0-dim."""
    both = 2 * REF_LOGPS.exp()[:, None] * REF_LOGPS.exp()[None, :] * preferred
    assert both.sum().item() == pytest.approx(1, abs=1e-12)

    def expected(logps: Tensor) -> Tensor:
        gains = logps - REF_LOGPS
        return (both * loss(gains[:, None], gains[None, :], beta, **options)).sum()

    return expected


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_dpo_reaches_the_optimum_of_rlhf(beta: float) -> None:
    logps, loss = descend(population(preferences.sigmoid, beta, PREFERRED), 2 / beta**2, steps=45)
    best, j_star = optimum(beta)
    assert entropy_of_labels() == pytest.approx(0.674909, abs=5e-7)
    assert loss == pytest.approx(entropy_of_labels(), abs=1e-10)
    assert total_variation(logps, best) < 1e-6
    assert standing(logps).objective(beta) == pytest.approx(j_star, abs=1e-6)
    implicit = beta * (logps - REF_LOGPS) - REWARDS
    assert (implicit - implicit.mean()).abs().max() < 1e-5


def test_robust_dpo_reaches_it_from_flipped_labels_where_dpo_does_not() -> None:
    beta, rate = 0.1, 0.2
    flipped = (1 - rate) * PREFERRED + rate * PREFERRED.T
    best, j_star = optimum(beta)
    robust, _ = descend(population(preferences.robust, beta, flipped, label_smoothing=rate), 2 / beta**2, steps=45)
    assert total_variation(robust, best) < 1e-6
    plain, _ = descend(population(preferences.sigmoid, beta, flipped), 2 / beta**2, steps=30)
    assert j_star - standing(plain).objective(beta) == pytest.approx(0.038053, abs=5e-7)


def test_ipo_reaches_its_own_optimum() -> None:
    # Azar et al. 2023, Eq. 6 with Ψ the identity: π ∝ π_ref·exp(P(y beats a draw from π_ref)/τ).
    tau = 0.1
    logps, _ = descend(population(preferences.ipo, tau, PREFERRED), 0.2, steps=20)
    best = (REF_LOGPS + PREFERRED @ REF_LOGPS.exp() / tau).log_softmax(0)
    assert total_variation(logps, best) < 1e-6
    assert (standing(logps).reward, standing(logps).kl) == pytest.approx((0.703586, 0.246647), abs=5e-7)


@dataclass
class Trained:
    logits: Tensor
    objectives: list[float]
    """J = E[r] - β·KL every 25 steps, enumerated."""
    kl_errors: list[tuple[float, float]]
    """(logged - enumerated KL, standard error of the logged one), at the same steps."""


Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(score [B], k1 per token [B, 4], contexts [B, 4]) -> (advantages [B, 4], loss of a critic)"""


def train(step: Step, extra: list[Tensor], beta: float, batch: int, samples: int, epochs: int, seed: int) -> Trained:
    """Policy gradient on samples with a table of logits per prefix, from the reference, Adam .05 falling to zero."""
    generator = torch.Generator().manual_seed(seed)
    logits = REFERENCE.clone().requires_grad_()
    steps = samples // batch
    optimizer = torch.optim.Adam([logits, *extra], lr=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 - s / steps)
    objectives, kl_errors = [], []
    for index in range(steps):
        drawn = sample(logits.detach(), batch, generator)
        old, ref = token_logps(logits.detach(), drawn), token_logps(REFERENCE, drawn)
        kl = kl_k1(old, ref)
        if index % 25 == 0:
            exact = standing(token_logps(logits.detach(), SEQUENCES).sum(1))
            objectives.append(exact.objective(beta))
            kl_errors.append((kl.sum(1).mean().item() - exact.kl, kl.sum(1).std().item() / math.sqrt(batch)))
        for _ in range(epochs):
            advantages, critic_loss = step(reward(drawn), kl, context_numbers(drawn))
            loss = policy_clip(token_logps(logits, drawn), old, advantages, clip=0.2).sum(1).mean() + critic_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return Trained(logits.detach(), objectives, kl_errors)


def assert_near_the_optimum(trained: Trained, beta: float) -> None:
    _, j_star = optimum(beta)
    final = standing(token_logps(trained.logits, SEQUENCES).sum(1)).objective(beta)
    assert j_star - final < 0.01
    assert max(*trained.objectives, final) <= j_star + 1e-6
    errors = torch.tensor(trained.kl_errors[1:])  # at step 0 the policy is the reference and both KLs are 0
    assert trained.kl_errors[0] == (0, 0)
    assert (errors[:, 0] / errors[:, 1]).abs().max() < 5  # of 40 looks, with heavy tails
    assert errors[:, 0].sum().abs() < 3 * errors[:, 1].square().sum().sqrt()  # unbiased, seen by five algorithms


def step_without_critic(name: str, beta: float, samples_per_prompt: int) -> Step:
    def step(score: Tensor, kl: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
        mask, group = MASK.expand_as(kl), torch.arange(len(score)) // samples_per_prompt
        advantages = WITHOUT_CRITIC[name](shaped_rewards(score, kl, mask, beta), mask, group, 1.0)
        return whiten(advantages, mask) if name.startswith("reinforce") else advantages, torch.zeros(())

    return step


def ppo_step(beta: float, value: Tensor, lam: float) -> Step:
    def step(score: Tensor, kl: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
        mask = MASK.expand_as(kl)
        old = value.detach()[contexts]
        advantages, returns = gae(shaped_rewards(score, kl, mask, beta), old, mask, gamma=1.0, lam=lam)
        critic = value_clip(value[contexts], old, returns, clip=0.2).sum(1).mean()
        return whiten(advantages, mask), critic

    return step


@pytest.mark.parametrize("name", ["rloo", "dr_grpo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"])
def test_without_a_critic_samples_come_within_a_hundredth(name: str) -> None:
    trained = train(step_without_critic(name, 0.1, 4), [], beta=0.1, batch=256, samples=256_000, epochs=1, seed=0)
    assert_near_the_optimum(trained, 0.1)


def test_ppo_on_samples_comes_within_a_hundredth() -> None:
    value = torch.zeros(CONTEXTS, dtype=torch.float64, requires_grad=True)
    trained = train(ppo_step(0.1, value, lam=0.95), [value], beta=0.1, batch=256, samples=256_000, epochs=2, seed=0)
    assert_near_the_optimum(trained, 0.1)
