"""How well a policy predicts given texts, in nats, bits per byte and perplexity. Knows no stage and no data format."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignkit.evaluation.statistics import Bootstrap, Estimate
from alignkit.packing import pack
from alignkit.policy import Policy
from alignkit.trie import TokenSequence, sum_by_owner


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Of N texts together."""

    nats_per_token: Estimate
    perplexity: Estimate
    """exp of nats_per_token; of models with equal tokenizers only it can be compared."""
    bits_per_byte: Estimate
    """Bits of all predicted tokens over the UTF-8 bytes of the texts: comparable across tokenizers."""


def log_probabilities(
    policy: Policy, sequences: Sequence[TokenSequence], token_budget: int, temperature: float = 1.0
) -> Tensor:
    """[N] float64 on the CPU, nats: for each sequence, the sum of weight · log-probability over its predictions."""
    result = torch.zeros(len(sequences), dtype=torch.float64)
    device = next(policy.parameters()).device
    with torch.no_grad():
        for batch in pack(sequences, token_budget):
            logps = policy(batch.to(device), temperature=temperature).logps.double().cpu()
            result.index_add_(0, batch.owners, sum_by_owner(logps * batch.weight, batch))
    return result


def perplexity(
    policy: Policy, sequences: Sequence[TokenSequence], texts: Sequence[str], token_budget: int, bootstrap: Bootstrap
) -> Perplexity:
    """Over N sequences, one for each text; the intervals resample texts."""
    nats = (-log_probabilities(policy, sequences, token_budget)).tolist()
    per_token = bootstrap.ratio(nats, [sum(sequence.weights) for sequence in sequences])
    per_byte = bootstrap.ratio([n / math.log(2) for n in nats], [float(len(text.encode())) for text in texts])
    return Perplexity(per_token, _exp(per_token), per_byte)


def _exp(estimate: Estimate) -> Estimate:
    low, high = (None if end is None else math.exp(end) for end in (estimate.low, estimate.high))
    return Estimate(math.exp(estimate.value), low, high)
