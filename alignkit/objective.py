"""What a stage optimises, as sums that nothing has divided yet. It knows no loss, no model and no data order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from alignkit.trie import TrieBatch

Readings = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over a batch's items, not yet divided by anything."""

    loss: dict[str, Tensor]
    """Term -> 0-dim sum. The loss is Σ over terms of sum / count."""
    metrics: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Name -> 0-dim sum, for the log only."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What a stage optimises: what it reads off the model, the sums it makes of it, and how many items there are."""

    read: Callable[[Any, TrieBatch], Readings]
    """(model, batch) -> named readings, [E], [O] or any length, in the order of the batch's entries or owners."""
    loss: Callable[[Readings, TrieBatch], Sums]
    """(readings, batch) -> sums. The batch may be a join of rows without tokens: never index nodes here."""
    count: Callable[[TrieBatch], Mapping[str, float]]
    """batch -> n of every loss term and metric, each in its own unit: tokens, sequences, pairs, rankings …"""
    whole_step: bool = False
    """The loss is no sum over groups (batch statistics): it always sees the readings of the whole step."""
    owner_readings: frozenset[str] = frozenset()
    """The readings that are [O]; the others are [E]. Asked only where losses are told apart by source."""


def keeping(objective: Objective, kept: list[Readings]) -> Objective:
    """The same objective, which also puts what it reads, detached, into `kept`: row by row, the passes in order."""

    def read(model: Any, batch: TrieBatch) -> Readings:
        found = objective.read(model, batch)
        kept.append({name: reading.detach() for name, reading in found.items()})
        return found

    return replace(objective, read=read)


class NonFiniteLoss(ArithmeticError):
    """A loss term or the gradient is NaN or infinite. The weights of the step before are untouched."""
