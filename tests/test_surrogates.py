"""Policy losses of online updates, by hand on sequences of different lengths, however rows are cut."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alignkit.accumulate import accumulate
from alignkit.config import build
from alignkit.options.ppo import PpoConfig
from alignkit.packing import pack
from alignkit.surrogates import critic_objective, policy_objective
from alignkit.trie import TokenSequence, TrieBatch, places

LENGTHS = [3, 1, 5, 2]
BASE = {
    "model": {"path": "m"},
    "data": {"path": "d"},
    "reward": {"kind": "lexicon"},
    "max_new_tokens": 6,
    "clip": 0.1,
}


class Table(nn.Module):
    """A log-probability and an entropy of its own for every token of every sequence."""

    def __init__(self) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(0)
        self.logps = nn.Parameter(-torch.rand(len(LENGTHS), max(LENGTHS), generator=drawn, dtype=torch.float64))

    def forward(self, batch: TrieBatch, **_: Any) -> Any:
        column = batch.positions[batch.source] - 1
        logps = self.logps[batch.owners[batch.owner], column]
        return SimpleNamespace(logps=logps, entropies=2 * logps)


def columns(name: str) -> Tensor:
    seeds = {"old": 1, "advantage": 2, "reference": 3, "engine": 4}
    drawn = torch.Generator().manual_seed(seeds[name])
    values = torch.randn(len(LENGTHS), max(LENGTHS), generator=drawn, dtype=torch.float64)
    return values if name == "advantage" else -values.abs()


def rows(budget: int) -> list[TrieBatch]:
    sequences = []
    for n, length in enumerate(LENGTHS):
        ids = [7, 10 + n, *range(20 + n, 20 + n + length)]
        names = ("old", "advantage", "reference", "engine")
        token_columns = {k: [0.0, 0.0, *columns(k)[n, :length].tolist()] for k in names}
        sequences.append(TokenSequence(ids, [0.0, 0.0] + [1.0] * length, n, token_columns=token_columns))
    return pack(sequences, budget)


def expected(loss: str, average: str, config: PpoConfig, logps: Tensor) -> Tensor:
    """The definition, completion by completion and token by token."""
    old, advantage = columns("old"), columns("advantage")
    trust = torch.ones_like(old)
    if config.rollouts.correction == "truncated":
        trust = torch.exp(old - columns("engine")).clamp(max=config.rollouts.cap)
    totals: list[Tensor] = []
    for n, length in enumerate(LENGTHS):
        mean_ratio = torch.exp((logps[n, :length] - old[n, :length]).mean())
        items = []
        for t in range(length):
            ratio = mean_ratio if loss == "gspo" else torch.exp(logps[n, t] - old[n, t])
            high = 1 + (config.clip if config.clip_high is None else config.clip_high)
            bounded = ratio.clamp(1 - config.clip, high)
            a = advantage[n, t]
            if loss == "cispo":
                items.append(-trust[n, t] * bounded.detach() * a * logps[n, t])
                continue
            item = -torch.minimum(ratio * a, bounded * a)
            if config.dual_clip is not None and a < 0:
                item = torch.minimum(item, -config.dual_clip * a)
            items.append(trust[n, t] * item)
        totals.append(torch.stack(items).mean() if average == "completion" else torch.stack(items).sum())
    completions = len(LENGTHS)
    shares = {"token": sum(LENGTHS), "completion": completions, "sequence": completions, "budget": 6 * completions}
    return torch.stack(totals).sum() / shares[average]


@pytest.mark.parametrize("average", ["token", "completion", "sequence", "budget"])
@pytest.mark.parametrize("rollouts", [{}, {"correction": "truncated", "cap": 1.5}], ids=["as_is", "corrected"])
@pytest.mark.parametrize(
    ("loss", "extra"),
    [("clip", {}), ("clip", {"clip_high": 0.5, "dual_clip": 1.5}), ("cispo", {"clip_high": 0.5}), ("gspo", {})],
)
def test_losses_and_their_means_by_definition(
    loss: str, extra: dict[str, Any], average: str, rollouts: dict[str, Any]
) -> None:
    config = build(PpoConfig, BASE | {"loss": loss, "average": average, "rollouts": rollouts} | extra, "")
    table = Table()
    wanted = expected(loss, average, config, table.logps)
    (gradient,) = torch.autograd.grad(wanted, table.logps)
    for budget in (64, 7):
        table.zero_grad()
        found = accumulate(table, rows(budget), policy_objective(config), backward=True)
        assert found["surrogate"] == pytest.approx(wanted.item(), rel=1e-5)
        torch.testing.assert_close(table.logps.grad, gradient, rtol=1e-5, atol=1e-7)


def test_what_lies_beyond_the_clip_is_counted_by_the_ratio_that_the_loss_takes() -> None:
    table = Table()
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    gap = (table.logps - columns("old")).detach()
    means = torch.stack([gap[n, :length].mean() for n, length in enumerate(LENGTHS)])[:, None].expand_as(gap)
    for loss, logs in (("clip", gap), ("gspo", means)):
        config = build(PpoConfig, BASE | {"loss": loss}, "")
        found = accumulate(table, rows(64), policy_objective(config), backward=False)
        up = columns("advantage") > 0
        beyond = torch.where(up, logs.exp() > 1.1, logs.exp() < 0.9)[mask]
        assert found["clip_fraction"] == pytest.approx(beyond.double().mean().item())
        assert found["drift"] == pytest.approx(gap.abs()[mask].mean().item(), rel=1e-5)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_as_a_loss_and_entropy_are_further_terms(estimator: str) -> None:
    kl = {"placement": "loss", "estimator": estimator}
    config = build(PpoConfig, BASE | {"kl": kl, "entropy_coef": 0.1}, "")
    table = Table()
    found = accumulate(table, rows(64), policy_objective(config, 0.3), backward=False)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ratio = (table.logps - columns("reference"))[mask]
    number = 0.5 * ratio**2 if estimator == "k2" else torch.exp(-ratio) - 1 + ratio
    assert found["kl_penalty"] == pytest.approx(0.3 * number.mean().item(), rel=1e-5)
    assert found["entropy_bonus"] == pytest.approx(-0.1 * 2 * table.logps[mask].mean().item(), rel=1e-5)
    assert found["loss"] == pytest.approx(found["surrogate"] + found["kl_penalty"] + found["entropy_bonus"])
    assert found["ratio"] == pytest.approx(torch.exp(table.logps - columns("old"))[mask].mean().item(), rel=1e-5)


class Critic(nn.Module):
    """A value of its own before every token of every sequence."""

    def __init__(self) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(5)
        self.values = nn.Parameter(torch.randn(len(LENGTHS), max(LENGTHS), generator=drawn))

    def forward(self, batch: TrieBatch, at: str) -> Tensor:
        assert at == "source"
        return self.values[batch.owners[batch.owner], places(batch)]


def test_a_critic_that_judges_as_it_trains_descends_to_returns_of_its_own_values() -> None:
    """GAE written out backwards along each sequence, over sampled tokens alone; one's second is not sampled."""
    config = build(PpoConfig, BASE | {"gamma": 0.9, "lam": 0.7}, "")
    drawn = torch.Generator().manual_seed(6)
    rewards = torch.randn(len(LENGTHS), max(LENGTHS), generator=drawn)
    critic, sequences = Critic(), list[TokenSequence]()
    errors, slopes = list[float](), torch.zeros_like(critic.values)
    for n, length in enumerate(LENGTHS):
        weights, column = [0.0, 0.0] + [1.0] * length, [0.0, 0.0, *rewards[n, :length].tolist()]
        if n == 2:
            weights.insert(3, 0.0)
            column.insert(3, 99.0)
        ids = [7, *range(10 + 9 * n, 9 + 9 * n + len(weights))]
        sequences.append(TokenSequence(ids, weights, token_columns={"reward": column}))
        following = carried = 0.0
        for t in reversed(range(length)):
            value = float(critic.values[n, t].detach())
            carried = float(rewards[n, t]) + 0.9 * following - value + 0.9 * 0.7 * carried
            following = value
            errors.append(0.5 * carried**2)
            slopes[n, t] = -carried / sum(LENGTHS)
    for budget in (64, 8):
        critic.zero_grad()
        batches = pack(sequences, budget)
        assert (len(batches) > 1) == (budget == 8)
        found = accumulate(critic, batches, critic_objective(config), backward=True)
        assert found["error"] == pytest.approx(sum(errors) / sum(LENGTHS), rel=1e-5)
        torch.testing.assert_close(critic.values.grad, slopes, rtol=1e-4, atol=1e-6)
