"""How far the engine that sampled and the model that trains differ on sampled tokens. Knows no engine and no loss."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from alignkit.config import InputError
from alignkit.records import Completion

LIMIT = 0.5
"""Nats a token, in the mean, beyond which engine and trainer do not hold the same model at the same temperature."""


def engine_logps(completions: Sequence[Completion], mask: Tensor) -> Tensor | None:
    """[N, T] what the engine said of each sampled token, nats, 0 where `mask` has none; None where it did not say."""
    if any(completion.logps is None for completion in completions):
        return None
    said = torch.zeros(mask.shape)
    for row, completion in zip(said, completions, strict=True):
        row[: len(completion.ids)] = torch.tensor(completion.logps)
    return said * mask


def mismatch(
    old: Tensor, engine: Tensor, mask: Tensor, cap: float | None, reduce: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """Means over the sampled tokens of all ranks, from log-probabilities [N, T] under the weights that sampled.

    `logp_difference` is |log π_trainer - log π_engine|, `ratio` is π_trainer / π_engine (1 in expectation, whatever
    they are), `truncated` with a `cap` the share of ratios above it.
    """
    gap = (old - engine)[mask].double()
    numbers = {"sampling/logp_difference": gap.abs(), "sampling/ratio": gap.exp()}
    if cap is not None:
        numbers["sampling/truncated"] = (gap.exp() > cap).double()
    sums = reduce(torch.stack([*(x.sum() for x in numbers.values()), mask.sum().double()]))
    return dict(zip(numbers, (sums[:-1] / sums[-1]).tolist(), strict=True))


def check_engine(metrics: Mapping[str, float], engine: str) -> None:
    """Raise InputError where an engine that was to sample from the trainer's model plainly did not."""
    gap = metrics["sampling/logp_difference"]
    if not gap <= LIMIT:
        raise InputError(
            f"rollouts.engine: {engine}: its log-probabilities and the trainer's differ by {gap:.2f} nats a token, "
            f"more than {LIMIT:g}. Does it hold the same base, quantised alike, and say processed log-probabilities?"
        )
