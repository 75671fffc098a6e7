"""Best-of-n through alignkit's selection, held to its exact law on a world that can be enumerated."""

import math

import pytest
import torch
from bigram_world import LENGTH, REF_LOGPS, REFERENCE, REWARDS, VOCAB, sample
from torch import Tensor

from alignkit.config import build
from alignkit.options.sample import SampleConfig
from alignkit.records import Demonstration, Message, Prompt
from alignkit.selection import Candidate, best_of_n_kl_bound, select

TIE_FREE = {2: 0.1931, 4: 0.6363, 8: 1.2044}
TIED = {2: 0.1615, 4: 0.5705, 8: 1.1234}
RANKING = torch.arange(len(REWARDS), dtype=torch.float64)
"""A reward without ties: the order in which the sequences are numbered."""


def law(values: Tensor, n: int) -> Tensor:
    """log-probability of each sequence under best-of-n, [1296]: a level of values that holds p of the reference, with
    q below it, gets (p + q)^n - q^n, spread over its sequences as the reference is. No code of ours."""
    levels, level_of = values.unique(return_inverse=True)
    mass = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, level_of, REF_LOGPS.exp())
    below = mass.cumsum(0) - mass
    gained = ((below + mass) ** n - below**n) / mass
    return REF_LOGPS + gained[level_of].log()


def kl(logps: Tensor) -> float:
    """KL(best-of-n ‖ reference), nats per sequence."""
    return float(logps.exp() @ (logps - REF_LOGPS))


@pytest.mark.parametrize(("values", "published"), [(RANKING, TIE_FREE), (REWARDS, TIED)])
def test_the_kl_of_best_of_n_lies_below_its_bound(values: Tensor, published: dict[int, float]) -> None:
    for n, expected in published.items():
        exact = law(values, n)
        assert float(exact.exp().sum()) == pytest.approx(1, abs=1e-12)
        assert kl(exact) == pytest.approx(expected, abs=5e-5)
        assert kl(exact) < best_of_n_kl_bound(n)


DRAWS = 12_000
NUMBER = VOCAB ** torch.arange(LENGTH - 1, -1, -1)
"""What each token of a sequence adds to its number."""


def selected(values: Tensor, n: int) -> Tensor:
    """The numbers of the sequences that the sample stage keeps of `n` draws from the reference, [DRAWS]."""
    given = {"model": {"path": "m"}, "data": {"path": "d"}, "reward": {"kind": "world"}, "samples": n}
    config = build(SampleConfig, given, "")
    prompt = Prompt(messages=(Message(role="user", content="go"),))
    drawn = sample(REFERENCE, DRAWS * n, torch.Generator().manual_seed(n)) @ NUMBER
    answers = [
        Candidate((Message(role="assistant", content=str(number)),), value)
        for number, value in zip(drawn.tolist(), values[drawn].tolist(), strict=True)
    ]
    kept = [select(prompt, answers[start : start + n], config) for start in range(0, DRAWS * n, n)]
    records = [record for one in kept for record in one.records]
    return torch.tensor([int(one.messages[-1].content) for one in records if isinstance(one, Demonstration)])


@pytest.mark.parametrize("n", TIED)
@pytest.mark.parametrize(("values", "published"), [(RANKING, TIE_FREE), (REWARDS, TIED)])
def test_what_the_stage_selects_follows_that_law(values: Tensor, published: dict[int, float], n: int) -> None:
    kept = selected(values, n)
    assert len(kept) == DRAWS
    gains = (law(values, n) - REF_LOGPS)[kept]
    error = float(gains.std()) / math.sqrt(DRAWS)
    assert error < 0.015
    assert float(gains.mean()) == pytest.approx(published[n], abs=4 * error)


@pytest.mark.parametrize("n", TIED)
def test_the_kl_counted_on_what_is_kept_is_the_tied_one_and_not_the_bound(n: int) -> None:
    """By counts alone: among equal rewards best-of-n is the reference, so the KL is that of the rewards' laws."""
    levels, kept = REWARDS.unique(), REWARDS[selected(REWARDS, n)]
    counts = torch.tensor([float((kept == level).sum()) for level in levels]) / DRAWS
    reference = torch.tensor([float(REF_LOGPS.exp()[level == REWARDS].sum()) for level in levels])
    counted = float((counts * (counts / reference).clamp(min=1e-30).log()).sum())
    assert counted == pytest.approx(TIED[n], abs=0.025)
    assert counted < best_of_n_kl_bound(n) - 0.01
