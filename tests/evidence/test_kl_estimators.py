"""The KL estimators on a million draws: bias and spread between two normal distributions, known in closed form."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from alignkit.rl import kl_k1, kl_k2, kl_k3

DRAWS = 1_000_000
# shift of the reference's mean, estimator, its bias and its standard deviation, both as shares of the true KL
FIGURES = [
    (0.1, kl_k1, 0.0, 20.000),
    (0.1, kl_k2, 0.0025, 1.418),
    (0.1, kl_k3, 0.0, 1.417),
    (1.0, kl_k1, 0.0, 2.000),
    (1.0, kl_k2, 0.25, 1.732),
    (1.0, kl_k3, 0.0, 1.695),
]


@pytest.mark.parametrize(("shift", "estimator", "bias", "deviation"), FIGURES)
def test_bias_and_deviation(
    shift: float, estimator: Callable[[Tensor, Tensor], Tensor], bias: float, deviation: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(DRAWS, generator=generator, dtype=torch.float64)
    kl = shift**2 / 2
    estimates = estimator(Normal(0.0, 1.0).log_prob(x), Normal(shift, 1.0).log_prob(x)) / kl
    spread = estimates.std().item()
    assert abs(estimates.mean().item() - 1 - bias) < 3 * spread / math.sqrt(DRAWS)
    fourth = ((estimates - estimates.mean()) ** 4).mean().item() / spread**4
    assert abs(spread - deviation) < 3 * spread * math.sqrt((fourth - 1) / (4 * DRAWS)) + 0.0005  # 0.0005: as printed


@pytest.mark.parametrize("shift", [0.1, 1.0])
def test_only_k3_is_never_negative_and_k1_is_half_the_time(shift: float) -> None:
    x = torch.randn(DRAWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logp, ref = Normal(0.0, 1.0).log_prob(x), Normal(shift, 1.0).log_prob(x)
    assert (kl_k3(logp, ref) >= 0).all()
    below = 0.5 * (1 + math.erf(-shift / 2 / math.sqrt(2)))  # k1 = μ²/2 - μx < 0 where x > μ/2
    assert (kl_k1(logp, ref) < 0).double().mean().item() == pytest.approx(below, abs=3 * 0.5 / math.sqrt(DRAWS))
