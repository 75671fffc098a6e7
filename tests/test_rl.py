"""The arithmetic of policy gradients against slow loops, numpy and numbers worked out by hand."""

import dataclasses
import json
import math
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from alignkit.rl import (
    AdaptiveKL,
    above_group_means,
    correlation,
    explained_variance,
    gae,
    group_advantages,
    kl_k1,
    kl_k2,
    kl_k3,
    preference_advantages,
    shaped_rewards,
    whiten,
)


def test_kl_estimators_by_hand() -> None:
    logp, ref = torch.tensor([0.5, 0.2]).log(), torch.tensor([0.25, 0.4]).log()
    ln2 = float(np.log(2))
    torch.testing.assert_close(kl_k1(logp, ref), torch.tensor([ln2, -ln2]))
    torch.testing.assert_close(kl_k2(logp, ref), torch.tensor([ln2**2 / 2, ln2**2 / 2]))
    torch.testing.assert_close(kl_k3(logp, ref), torch.tensor([0.5 - 1 + ln2, 2 - 1 - ln2]))


def test_k3_keeps_its_digits_and_its_sign_near_zero() -> None:
    difference = torch.tensor([1e-3, -1e-3, 0.0])
    k3 = kl_k3(difference, torch.zeros(3))
    np.testing.assert_allclose(k3.numpy()[:2], 0.5e-6, rtol=1e-3)
    assert (k3 >= 0).all()


def test_shaped_rewards_put_the_score_on_the_last_sampled_token() -> None:
    kl = torch.tensor([[1.0, 2.0, 3.0, 9.0], [1.0, 9.0, 2.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 1, 1]])
    rewards = shaped_rewards(torch.tensor([10.0, 20.0, 30.0]), kl, mask, coef=0.1)
    expected = [[-0.1, -0.2, 9.7, 0.0], [-0.1, 0.0, 19.8, 0.0], [0.0, 0.0, -0.7, 29.2]]
    torch.testing.assert_close(rewards, torch.tensor(expected))
    with pytest.raises(ValueError, match="row 1 has no sampled token"):
        shaped_rewards(torch.zeros(2), torch.zeros(2, 2), torch.tensor([[1, 0], [0, 0]]), 0.1)


def slow_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t = Σ_l (γλ)^l δ_{t+l}, term by term, on one sequence without holes."""
    ahead = [*values[1:], 0.0]
    delta = [r + gamma * n - v for r, n, v in zip(rewards, ahead, values, strict=True)]
    return [sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, len(delta))) for t in range(len(delta))]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_equals_the_sum_of_its_definition_with_padding_and_holes(gamma: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(1)
    rewards, values = torch.randn(6, 9, generator=generator), torch.randn(6, 9, generator=generator)
    mask = torch.rand(6, 9, generator=generator) < 0.6
    mask[0], mask[1, 4:] = True, False
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for b in range(6):
        at = mask[b]
        expected = torch.tensor(slow_gae(rewards[b, at].tolist(), values[b, at].tolist(), gamma, lam))
        torch.testing.assert_close(advantages[b, at], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(returns[b, at], expected + values[b, at], rtol=1e-5, atol=1e-5)
        assert (advantages[b, ~at] == 0).all()
        assert (returns[b, ~at] == 0).all()


def test_returns_with_lambda_one_are_the_rewards_to_come() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 4.0, 100.0]]), torch.tensor([[7.0, -3.0, 5.0, 50.0]])
    _, returns = gae(rewards, values, torch.tensor([[1, 1, 1, 0]]), gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns, torch.tensor([[7.0, 6.0, 4.0, 0.0]]))


def test_group_advantages_by_hand() -> None:
    rewards, group = torch.tensor([1.0, 5.0, 0.0, 3.0, 2.0]), torch.tensor([4, 9, 4, 9, 4])
    torch.testing.assert_close(group_advantages(rewards, group), torch.tensor([0.0, 2.0, -1.5, -2.0, 1.5]))
    plain = group_advantages(rewards, group, leave_one_out=False)
    torch.testing.assert_close(plain, torch.tensor([0.0, 1.0, -1.0, -1.0, 1.0]))
    scaled = group_advantages(rewards, group, scale=True)
    torch.testing.assert_close(scaled, torch.tensor([0.0, 0.5**0.5, -1.0, -(0.5**0.5), 1.0]), rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match="at least twice"):
        group_advantages(rewards, torch.tensor([0, 0, 0, 0, 1]))


def test_a_group_that_agrees_gives_no_signal_not_nan() -> None:
    assert group_advantages(torch.tensor([1, 0, 1, 1]), torch.tensor([0, 0, 1, 1])).tolist() == [1, -1, 0, 0]
    for value in (0.3, 0.7, 7.3, 1000.3, -50.7):  # the mean of equal numbers rounds
        for size in range(2, 25):
            group = torch.zeros(size, dtype=torch.long)
            for scale in (False, True):
                assert not group_advantages(torch.full((size,), value), group, scale=scale).any()
            assert not above_group_means(torch.full((size,), value), group).any()


def on_ranks(ranks: int, work: Callable[[int, Callable[[Tensor], Tensor]], Tensor]) -> list[Tensor]:
    """Run `work(rank, reduce)` on so many threads, `reduce` adding up over them."""
    barrier, slots, results = threading.Barrier(ranks), [torch.empty(0)] * ranks, [torch.empty(0)] * ranks

    def run(rank: int) -> None:
        def add(x: Tensor) -> Tensor:
            slots[rank] = x
            barrier.wait()
            total = torch.stack(slots).sum(0)
            barrier.wait()
            return total

        results[rank] = work(rank, add)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return results


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_over_ranks_equals_numpy_over_everything(shift_mean: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    x = 1000 + 3 * torch.randn(8, 5, generator=generator)
    mask = torch.rand(8, 5, generator=generator) < 0.7
    uneven = [slice(0, 1), slice(1, 8)]
    parts = on_ranks(2, lambda rank, add: whiten(x[uneven[rank]], mask[uneven[rank]], shift_mean, add))
    kept = x[mask].numpy().astype(np.float64)
    expected = (kept - kept.mean()) / kept.std() + (0 if shift_mean else kept.mean())
    np.testing.assert_allclose(torch.cat(parts)[mask].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert (torch.cat(parts)[~mask] == 0).all()


def test_whitening_what_does_not_vary_gives_zeros() -> None:
    assert (whiten(torch.full((3, 2), 0.1), torch.ones(3, 2)) == 0).all()
    assert (whiten(torch.ones(3, 2), torch.zeros(3, 2)) == 0).all()


def test_explained_variance() -> None:
    returns, mask = torch.tensor([1.0, 2.0, 3.0, 99.0]), torch.tensor([1, 1, 1, 0])
    assert explained_variance(returns + 5, returns, mask).item() == pytest.approx(1)
    assert explained_variance(torch.full((4,), 7.0), returns, mask).item() == pytest.approx(0)
    half = explained_variance(torch.tensor([1.0, 2.0, 2.0, 0.0]), returns, mask).item()
    assert half == pytest.approx(1 - (2 / 9) / (2 / 3))
    assert explained_variance(torch.tensor([1.0, 2.0]), torch.tensor([0.1, 0.1])).item() == 0


def test_adaptive_kl_by_hand() -> None:
    state = AdaptiveKL(coef=0.2, target=6.0, horizon=10_000)
    assert state.update(9.0, 100).coef == pytest.approx(0.2 * 1.002)  # +50 %, clipped to +20 %
    assert state.update(1.0, 100).coef == pytest.approx(0.2 * 0.998)
    assert state.update(5.7, 100).coef == pytest.approx(0.2 * (1 - 0.05 * 0.01))
    assert state.coef == 0.2


def test_adaptive_kl_holds_its_target_on_a_policy_that_answers_it() -> None:
    state = AdaptiveKL(coef=1.0, target=3.0, horizon=1_000)
    for _ in range(500):
        state = state.update(kl=0.6 / state.coef, samples=64)  # a policy whose KL falls as the coefficient rises
    assert 0.6 / state.coef == pytest.approx(3.0, rel=1e-3)


def test_a_controller_survives_json() -> None:
    state = AdaptiveKL(coef=0.2, target=6.0).update(7.123, 77)
    assert AdaptiveKL(**json.loads(json.dumps(dataclasses.asdict(state)))) == state


def test_correlation_over_ranks_is_pearsons() -> None:
    x, y = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([1.0, -1.0, 3.0, 2.0])
    expected = torch.corrcoef(torch.stack([x, y]))[0, 1].item()
    assert correlation(x, y).item() == pytest.approx(expected)
    halves = [
        torch.stack([torch.tensor(2.0), a.sum(), b.sum(), (a * a).sum(), (b * b).sum(), (a * b).sum()])
        for a, b in ((x[:2], y[:2]), (x[2:], y[2:]))
    ]
    assert correlation(x[:2], y[:2], lambda _: sum(halves).double()).item() == pytest.approx(expected)
    assert correlation(x, torch.ones(4)).item() == 0


def test_online_dpo_prefers_the_best_sample_to_the_worst() -> None:
    nan = math.nan
    scores = torch.tensor([[1.0, 3.0, 2.0], [2.0, 2.0, 2.0], [nan, 0.0, 1.0], [nan, 5.0, nan]])
    log_ratios = torch.tensor([[0.4, -0.1, 7.0], [1.0, 2.0, 3.0], [9.0, 0.0, 2.0], [1.0, 1.0, 1.0]])
    first = 3 * 0.5 / (1 + math.exp(0.5 * (-0.1 - 0.4)))
    third = 3 * 0.5 / (1 + math.exp(0.5 * 2.0))
    expected = torch.tensor([[-first, first, 0.0], [0.0] * 3, [0.0, -third, third], [0.0] * 3])
    torch.testing.assert_close(preference_advantages(scores, log_ratios, 0.5), expected)
