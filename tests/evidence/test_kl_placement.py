"""Where the KL term stands decides where training ends: one token of 16, the expected gradient exact."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from alignkit.losses import policy_clip
from alignkit.rl import group_advantages, kl_k1, kl_k2, kl_k3

VOCAB, BETA = 16, 0.2
TOKENS = torch.arange(VOCAB)
REF = torch.cos(1 + TOKENS.double()).log_softmax(0)
REWARDS = (7 * TOKENS % VOCAB).double() / (VOCAB - 1)


def ending(placement: str, steps: int = 400) -> Tensor:
    """log π [16] where the expected gradient of samples vanishes, the KL standing at `placement`."""
    theta = REF.clone().requires_grad_()
    for _ in range(steps):
        logp = theta.log_softmax(0)
        drawn = logp.detach()  # samples come from π itself, and their weights carry no gradient
        inside = BETA * kl_k1(drawn, REF) if placement == "k1 in the reward" else torch.zeros_like(REF)
        total = REWARDS - inside
        loss = policy_clip(logp, drawn, total - drawn.exp() @ total, clip=0.2)
        if placement == "k1 as a loss":
            loss = loss + BETA * kl_k1(logp, REF)
        if placement == "k2 as a loss":
            loss = loss + BETA * kl_k2(logp, REF)
        if placement == "k3 as a loss":
            loss = loss + BETA * kl_k3(logp, REF)
        (gradient,) = torch.autograd.grad((drawn.exp() * loss).sum(), theta)
        theta = (theta - 0.5 * gradient / drawn.exp()).detach().requires_grad_()
    return theta.detach().log_softmax(0)


def reward_and_kl(logp: Tensor) -> tuple[float, float]:
    return float(logp.exp() @ REWARDS), float(logp.exp() @ (logp - REF))


OPTIMUM = (REF + REWARDS / BETA).log_softmax(0)


@pytest.mark.parametrize("placement", ["k1 in the reward", "k2 as a loss"])
def test_these_reach_the_optimum(placement: str) -> None:
    assert reward_and_kl(OPTIMUM) == pytest.approx((0.794549, 0.677010), abs=5e-7)
    assert reward_and_kl(ending(placement)) == pytest.approx((0.794549, 0.677010), abs=5e-7)
    torch.testing.assert_close(ending(placement), OPTIMUM, rtol=0, atol=1e-6)


def test_k3_as_a_loss_ends_elsewhere() -> None:
    logp = ending("k3 as a loss", steps=4000)
    mean, kl = reward_and_kl(logp)
    assert (mean, kl) == pytest.approx((0.810424, 1.148193), abs=5e-7)
    torch.testing.assert_close(logp.exp(), BETA * REF.exp() / (BETA + mean - REWARDS), rtol=0, atol=1e-6)
    assert mean - BETA * kl < reward_and_kl(OPTIMUM)[0] - BETA * reward_and_kl(OPTIMUM)[1] - 0.05


def test_k1_as_a_loss_is_no_constraint_at_all() -> None:
    held, free = ending("k1 as a loss", steps=50), ending("nowhere", steps=50)
    torch.testing.assert_close(held, free, rtol=0, atol=1e-9)
    assert reward_and_kl(ending("k1 as a loss", steps=4000))[0] > 0.999


def scaled_by_group(estimator: Callable[[Tensor, Tensor], Tensor], steps: int = 400) -> tuple[float, float]:
    """Reward and KL after training on 64 groups of 8 a step, advantages over their group's deviation, KL as a loss."""
    generator = torch.Generator().manual_seed(0)
    theta = REF.clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=0.05)
    for _ in range(steps):
        drawn = torch.multinomial(theta.detach().softmax(0), 64 * 8, replacement=True, generator=generator)
        logp = theta.log_softmax(0)[drawn]
        advantages = group_advantages(REWARDS[drawn], torch.arange(64 * 8) // 8, scale=True)
        loss = policy_clip(logp, logp.detach(), advantages, clip=0.2) + BETA * estimator(logp, REF[drawn])
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    return reward_and_kl(theta.detach().log_softmax(0))


def test_advantages_over_their_groups_deviation_with_the_kl_outside_collapse() -> None:
    reward, kl = scaled_by_group(kl_k2)
    assert reward > 0.995
    assert kl == pytest.approx(-REF[REWARDS.argmax()].item(), abs=0.1)  # that of always answering the best token
    reward, kl = scaled_by_group(kl_k3)
    assert (reward, kl) == pytest.approx((0.952, 3.11), abs=0.02)
