"""A world small enough to enumerate: every sequence of 4 tokens out of 6, a bigram reference, a reward; all exact.

Knows nothing of alignkit: its figures are what training through alignkit is held to. Float64, nats.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

VOCAB, LENGTH = 6, 4
SEQUENCES = torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))  # [1296, 4]
CONTEXTS = sum(VOCAB**t for t in range(LENGTH))  # every prefix that a token is drawn after


def context_numbers(sequences: Tensor) -> Tensor:
    """Number in 0..258 of the prefix before every token of `sequences` [N, 4]: [N, 4]."""
    numbers, prefix = [], torch.zeros(len(sequences), dtype=torch.long)
    for t in range(LENGTH):
        numbers.append(sum(VOCAB**s for s in range(t)) + prefix)
        prefix = prefix * VOCAB + sequences[:, t]
    return torch.stack(numbers, 1)


def reference_logits() -> Tensor:
    """Logits [259, 6] of the reference after every prefix: cos(1 + a + 2b), b the token before, 6 at the start."""
    previous = torch.full((CONTEXTS,), VOCAB, dtype=torch.float64)
    numbers = context_numbers(SEQUENCES)
    for t in range(1, LENGTH):
        previous[numbers[:, t]] = SEQUENCES[:, t - 1].double()
    return torch.cos(1 + torch.arange(VOCAB, dtype=torch.float64) + 2 * previous[:, None])


def token_logps(logits: Tensor, sequences: Tensor) -> Tensor:
    """Log-probability of every token of `sequences` [N, 4] under a table of logits [259, 6]: [N, 4]."""
    return logits.log_softmax(-1)[context_numbers(sequences), sequences]


def reward(sequences: Tensor) -> Tensor:
    """Share of ascending neighbours, plus ½ where the last token is the first: [N, 4] -> [N]."""
    ascending = (sequences[:, 1:] > sequences[:, :-1]).double().mean(1)
    return ascending + 0.5 * (sequences[:, 0] == sequences[:, -1]).double()


REFERENCE = reference_logits()
REF_LOGPS = token_logps(REFERENCE, SEQUENCES).sum(1)  # [1296]
REWARDS = reward(SEQUENCES)  # [1296]


@dataclass(frozen=True)
class Standing:
    """Where a policy stands, exactly."""

    reward: float
    """Expected reward."""
    kl: float
    """KL(π‖π_ref), nats per sequence."""

    def objective(self, beta: float) -> float:
        """J = E[r] - β·KL, what RLHF maximises."""
        return self.reward - beta * self.kl


def standing(logps: Tensor) -> Standing:
    """Reward and KL of a policy given by the log-probability of each of the 1,296 sequences."""
    probabilities = logps.detach().exp()
    return Standing(float(probabilities @ REWARDS), float(probabilities @ (logps.detach() - REF_LOGPS)))


def optimum(beta: float) -> tuple[Tensor, float]:
    """(log π*, J*): π* ∝ π_ref·exp(r/β) and J* = β·log Z, the best that any policy can do."""
    tilted = REF_LOGPS + REWARDS / beta
    log_z = torch.logsumexp(tilted, 0)
    return tilted - log_z, beta * float(log_z)


def total_variation(logps: Tensor, other: Tensor) -> float:
    """½·Σ|p - q| of two policies over the 1,296 sequences."""
    return 0.5 * float((logps.detach().exp() - other.exp()).abs().sum())


def entropy_of_labels() -> float:
    """Mean entropy of a Bradley-Terry label of two draws from the reference: the floor of any preference loss."""
    difference = REWARDS[:, None] - REWARDS[None, :]
    p = torch.sigmoid(difference)
    pairs = REF_LOGPS.exp()[:, None] * REF_LOGPS.exp()[None, :]
    return float((pairs * -(p * p.log() + (1 - p) * (1 - p).log())).sum())


def sample(logits: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` sequences [count, 4] from a table of logits [259, 6]."""
    every = token_logps(logits, SEQUENCES).sum(1).exp()
    assert math.isclose(float(every.sum()), 1, abs_tol=1e-9)
    return SEQUENCES[torch.multinomial(every, count, replacement=True, generator=generator)]
