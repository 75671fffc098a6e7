"""Losses against TRL's own trainers, closed forms, brute force and numbers worked out by hand."""

import itertools
import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from trl import RewardTrainer

from alignkit.losses import (
    bradley_terry,
    centring,
    is_clipped,
    policy_clip,
    ranking_pairs,
    value_clip,
)


class FakeAccelerator:
    device = torch.device("cpu")

    def gather(self, x: Tensor) -> Tensor:
        return x

    gather_for_metrics = gather


@pytest.mark.parametrize("margin", [None, torch.tensor([0.0, 0.5, 2.0])])
def test_reward_loss_with_margin_and_centring_equals_trl(margin: Tensor | None) -> None:
    scores = torch.tensor([1.0, -0.3, 0.2, 0.4, 0.1, 2.0], requires_grad=True)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=FakeAccelerator(), _metrics={"train": defaultdict(list)},
        args=SimpleNamespace(center_rewards_coefficient=0.01), _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {"attention_mask": torch.ones(6, 2)} | ({} if margin is None else {"margin": margin})
    theirs = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=scores[:, None]), inputs)
    chosen, rejected = scores.chunk(2)
    ours = bradley_terry(chosen, rejected, margin).mean() + 0.01 * centring(chosen, rejected).mean()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, scores), torch.autograd.grad(theirs, scores))


def test_all_untied_pairs_of_every_ranking_weigh_one_together() -> None:
    generator = torch.Generator().manual_seed(0)
    ranks = torch.randint(1, 4, (40,), generator=generator)
    group = torch.randint(-1, 8, (40,), generator=generator)
    better, worse, weight = ranking_pairs(ranks, group)

    rankings: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for i, j in itertools.permutations(range(40), 2):
        if group[i] == group[j] >= 0 and ranks[i] < ranks[j]:
            rankings[int(group[i])].append((i, j))
    expected = {pair: 1 / len(pairs) for pairs in rankings.values() for pair in pairs}
    found = {(int(b), int(w)): float(x) for b, w, x in zip(better, worse, weight, strict=True)}
    assert found == pytest.approx(expected)
    assert len(found) == len(better)
    assert weight.sum().item() == pytest.approx(len(rankings))


def test_the_pairs_of_a_long_ranking_need_no_table_of_pairs_by_pairs() -> None:
    better, worse, weight = ranking_pairs(torch.arange(1000), torch.zeros(1000, dtype=torch.int64))
    assert len(better) == 1000 * 999 // 2 and (better < worse).all()
    assert (weight == 1 / 499_500).all()


def test_rankings_that_order_nothing_give_no_pairs() -> None:
    better, worse, weight = ranking_pairs(torch.tensor([1, 1, 2]), torch.tensor([0, 0, 1]))
    assert (len(better), len(worse), weight.sum().item()) == (0, 0, 0)


#                 ratio, advantage, loss, gradient in logp flows
CLIPPED_CASES = [
    (1.0, 2.0, -2.0, True),
    (1.5, 2.0, -2.4, False),
    (1.5, -2.0, 3.0, True),
    (0.5, 2.0, -1.0, True),
    (0.5, -2.0, 1.6, False),
]


@pytest.mark.parametrize(("ratio", "advantage", "expected", "flows"), CLIPPED_CASES)
def test_clipped_policy_loss_by_hand(ratio: float, advantage: float, expected: float, flows: bool) -> None:
    old, a = torch.tensor([-1.3], dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    logp = (old + math.log(ratio)).requires_grad_()
    loss = policy_clip(logp, old, a, clip=0.2)
    assert loss.item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    step = 1e-6
    slope = (policy_clip(logp + step, old, a, 0.2) - policy_clip(logp - step, old, a, 0.2)).item() / (2 * step)
    assert gradient.item() == pytest.approx(slope, abs=1e-8)
    assert (gradient.item() != 0) is flows
    assert is_clipped(logp, old, a, 0.2).item() is not flows


def test_clip_high_widens_the_upper_side_only() -> None:
    one, old = torch.ones(1), torch.zeros(1)
    up = policy_clip(old + math.log(1.5), old, one, clip=0.2, clip_high=0.28)
    down = policy_clip(old + math.log(0.5), old, -one, clip=0.2, clip_high=0.28)
    assert (up.item(), down.item()) == (pytest.approx(-1.28), pytest.approx(0.8))


def test_clipped_value_loss_by_hand() -> None:
    old, returns = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([3.0, 3.0, 1.1])
    value = torch.tensor([1.1, 2.0, 2.0], requires_grad=True)
    # inside the band; outside it, towards the return: the clipped error is the larger; outside it, past the return.
    torch.testing.assert_close(value_clip(value, old, returns, 0.2), 0.5 * torch.tensor([1.9**2, 1.8**2, 0.9**2]))
    (gradient,) = torch.autograd.grad(value_clip(value, old, returns, 0.2).sum(), value)
    torch.testing.assert_close(gradient, torch.tensor([-1.9, 0.0, 0.9]))
    torch.testing.assert_close(
        value_clip(value, old, returns, None), 0.5 * F.mse_loss(value, returns, reduction="none")
    )
