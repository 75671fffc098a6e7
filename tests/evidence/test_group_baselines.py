"""Group baselines, every group of K samples enumerated: whose gradient is true, and how often there is none."""

import itertools

import pytest
import torch

from alignkit.losses import policy_clip
from alignkit.rl import group_advantages

REWARDS = torch.tensor([0.2, 1.0, -0.5], dtype=torch.float64)
LOGITS = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)


def expected_gradient(samples: int, leave_one_out: bool) -> torch.Tensor:
    """Gradient in the logits [3] of the policy loss, averaged over every possible group, each with its probability."""
    groups = torch.tensor(list(itertools.product(range(3), repeat=samples)))  # [3^K, K]
    theta = LOGITS.clone().requires_grad_()
    logp = theta.log_softmax(0)[groups]
    number = torch.arange(len(groups))[:, None].expand_as(groups)
    advantages = group_advantages(REWARDS[groups].flatten(), number.flatten(), leave_one_out).view_as(logp)
    loss = policy_clip(logp, logp.detach(), advantages, clip=0.2).mean(1)
    (gradient,) = torch.autograd.grad((logp.detach().sum(1).exp() * loss).sum(), theta)
    return gradient


@pytest.mark.parametrize(("samples", "share"), [(2, 0.5), (4, 0.75), (8, 0.875)])
def test_leave_one_out_is_unbiased_and_the_group_mean_shrinks_the_gradient(samples: int, share: float) -> None:
    theta = LOGITS.clone().requires_grad_()
    (true,) = torch.autograd.grad(-(theta.softmax(0) @ REWARDS), theta)
    torch.testing.assert_close(expected_gradient(samples, leave_one_out=True), true)
    torch.testing.assert_close(expected_gradient(samples, leave_one_out=False), share * true)


@pytest.mark.parametrize(("success", "dead"), [(0.05, 0.663), (0.1, 0.430), (0.3, 0.058), (0.5, 0.008)])
def test_groups_without_signal_are_as_many_as_they_must_be(success: float, dead: float) -> None:
    groups = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)), dtype=torch.float64)  # [256, 8]
    number = torch.arange(256)[:, None].expand(256, 8)
    silent = (group_advantages(groups.flatten(), number.flatten()).view(256, 8) == 0).all(1)
    chance = success ** groups.sum(1) * (1 - success) ** (8 - groups.sum(1))
    assert (chance @ silent.double()).item() == pytest.approx(success**8 + (1 - success) ** 8)
    assert (chance @ silent.double()).item() == pytest.approx(dead, abs=5e-4)
