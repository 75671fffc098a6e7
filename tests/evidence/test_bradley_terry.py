"""How good a reward model can be: accuracy ceilings, likelihood floors, the cost of fitting D features to N pairs."""

import numpy as np
import pytest
import torch
from torch import Tensor

from alignkit.evaluation.statistics import bradley_terry_ceiling, preference_accuracy
from alignkit.losses import bradley_terry

NODES, WEIGHTS = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(80))


@pytest.mark.parametrize(("deviation", "ceiling", "floor"), [(1.0, 0.6749, 0.5994), (2.0, 0.7780, 0.4620)])
def test_accuracy_ceiling_and_likelihood_floor(deviation: float, ceiling: float, floor: float) -> None:
    assert bradley_terry_ceiling(deviation) == pytest.approx((ceiling, floor), abs=5e-5)
    difference = deviation * NODES
    zero = torch.zeros_like(difference)
    kept, flipped = bradley_terry(difference, zero), bradley_terry(zero, difference)
    p = (-kept).exp()  # the chance that the label agrees with the first
    mean = WEIGHTS / WEIGHTS.sum()
    assert (mean @ (p * kept + (1 - p) * flipped)).item() == pytest.approx(floor, abs=5e-5)
    draws = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)) * deviation
    best = torch.maximum(
        (-bradley_terry(draws, torch.zeros(()))).exp(), (-bradley_terry(-draws, torch.zeros(()))).exp()
    )
    assert best.mean().item() == pytest.approx(ceiling, abs=3 * best.std().item() / 1000 + 5e-5)


@pytest.mark.parametrize("rate", [0.05, 0.25])
def test_labels_flipped_at_a_rate_cap_the_accuracy_of_a_perfect_model(rate: float) -> None:
    generator = torch.Generator().manual_seed(0)
    gap = torch.rand(100_000, generator=generator) + 0.1  # the better response scores higher, always
    flipped = torch.rand(100_000, generator=generator) < rate
    accuracy = preference_accuracy(torch.where(flipped, -gap, gap).tolist())
    assert accuracy == pytest.approx(1 - rate, abs=3 * (rate * (1 - rate) / 100_000) ** 0.5)


def fit_head(x: Tensor) -> Tensor:
    """Weights [D] of a linear reward on the differences chosen - rejected of features, x [N, D]."""
    head = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([head], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = bradley_terry(x @ head, torch.zeros(len(x), dtype=torch.float64)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return head.detach()


def expected_nll(scores: Tensor, truth: Tensor) -> float:
    """Mean loss of `scores` [N] over labels drawn by the true reward differences `truth` [N]."""
    p, zero = torch.sigmoid(truth), torch.zeros_like(truth)
    return float((p * bradley_terry(scores, zero) + (1 - p) * bradley_terry(zero, scores)).mean())


def test_a_fitted_head_loses_half_a_nat_per_feature_over_the_number_of_pairs() -> None:
    features, pairs, seeds = 32, 4_000, 30
    generator = torch.Generator().manual_seed(0)
    excess = 0.0
    for _ in range(seeds):
        true = torch.randn(features, generator=generator, dtype=torch.float64)
        true = true * (1.5 / true.norm())  # reward differences of deviation 1.5
        x = torch.randn(pairs, features, generator=generator, dtype=torch.float64)
        preferred = torch.rand(pairs, generator=generator, dtype=torch.float64) < torch.sigmoid(x @ true)
        head = fit_head(torch.where(preferred[:, None], x, -x))
        fresh = torch.randn(20_000, features, generator=generator, dtype=torch.float64)
        truth = fresh @ true
        excess += expected_nll(fresh @ head, truth) - expected_nll(truth, truth)
    assert excess / seeds == pytest.approx(features / (2 * pairs), rel=0.1)
