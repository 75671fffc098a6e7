"""An objective's terms and metrics source by source, without a second forward. Knows no loss, no file and no model."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from alignkit.mixture import SOURCE
from alignkit.objective import Objective, Readings, Sums
from alignkit.trie import TrieBatch, restrict


def by_source(objective: Objective, names: Sequence[str]) -> Objective:
    """The same objective, which also gives each of its terms and metrics over the examples of each source alone, as
    the metric `term/name`. Weighted by their counts, a term's sources add up to the term.

    Not for the losses of a whole step: they are no sums over examples.
    """
    assert not objective.whole_step

    def loss(readings: Readings, batch: TrieBatch) -> Sums:
        sums = objective.loss(readings, batch)
        named = sums.loss | sums.metrics
        metrics = dict(sums.metrics)
        detached = {name: reading.detach() for name, reading in readings.items()}
        for name, owners in _sources(batch, names):
            found = dict.fromkeys(named, torch.zeros((), device=batch.weight.device))
            if owners.any():
                entries = owners[batch.owner]
                own = {
                    key: reading[owners if key in objective.owner_readings else entries]
                    for key, reading in detached.items()
                }
                with torch.no_grad():
                    part = objective.loss(own, restrict(batch, owners))
                found = part.loss | part.metrics
            metrics |= {f"{term}/{name}": value for term, value in found.items()}
        return Sums(sums.loss, metrics)

    def count(batch: TrieBatch) -> dict[str, float]:
        whole = objective.count(batch)
        counts = dict(whole)
        for name, owners in _sources(batch, names):
            own = objective.count(restrict(batch, owners)) if owners.any() else dict.fromkeys(whole, 0.0)
            counts |= {f"{term}/{name}": n for term, n in own.items()}
        return counts

    return replace(objective, loss=loss, count=count)


def _sources(batch: TrieBatch, names: Sequence[str]) -> list[tuple[str, Tensor]]:
    """Each source, and bool [O]: which sequences are of it."""
    source = batch.owner_columns[SOURCE]
    return [(name, source == number) for number, name in enumerate(names)]
