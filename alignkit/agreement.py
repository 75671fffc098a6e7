"""What all ranks agree on before a step's first forward: counts, number of forwards, route. It knows no model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from alignkit.objective import Objective
from alignkit.trie import TrieBatch, join


@dataclass
class Plan:
    """What all ranks agreed on before the first forward of a step."""

    rows: list[TrieBatch]
    fillers: list[TrieBatch]
    """Rows to pass through the model for nothing, so that every rank runs the same number of forwards."""
    counts: dict[str, float]
    two_pass: bool
    joined: TrieBatch | None
    """In two passes: this rank's rows joined, or with `everyone` the rows of all ranks in rank order."""
    everyone: bool

    def zero(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=(self.rows or self.fillers)[0].ids.device)


def rank_count(accelerator: Accelerator | None) -> int:
    return 1 if accelerator is None else accelerator.num_processes


def agree(rows: list[TrieBatch], objective: Objective, accelerator: Accelerator | None) -> Plan:
    """One exchange between the ranks: counts, number of forwards, and the route."""
    split = any(batch.split_groups for batch in rows)
    joined = join(rows) if rows and (split or objective.whole_step) else None
    if rank_count(accelerator) == 1:
        if not rows:
            raise ValueError("no batches: an optimizer step needs at least one")
        two_pass = joined is not None and len(rows) > 1
        counts = add_counts([objective.count(joined)] if joined is not None else map(objective.count, rows))
        return Plan(rows, [], counts, two_pass, joined, False)
    assert accelerator is not None
    own = (
        {}
        if objective.whole_step
        else add_counts([objective.count(joined)] if joined is not None else map(objective.count, rows))
    )
    shared = joined.to("cpu") if objective.whole_step and joined is not None else None
    ranks: list[tuple[int, bool, dict[str, float], TrieBatch | None]]
    ranks = gather_object([(len(rows), split, own, shared)])
    if objective.whole_step:
        joined = _join_ranks([batch for *_, batch in ranks if batch is not None]).to(accelerator.device)
    forwards = max(n for n, *_ in ranks)
    spare = rows
    if not all(n for n, *_ in ranks):
        spare = [batch.to(accelerator.device) for batch in gather_object([b.to("cpu") for b in rows[:1]])]
    two_pass = objective.whole_step or any(was_split for _, was_split, *_ in ranks)
    if two_pass and joined is None and rows:
        joined = join(rows)
    counts = add_counts(
        [objective.count(joined)] if objective.whole_step and joined is not None else [c for _, _, c, _ in ranks]
    )
    return Plan(rows, spare[-1:] * (forwards - len(rows)), counts, two_pass, joined, objective.whole_step)


def add_counts(counts: Any) -> dict[str, float]:
    total: dict[str, float] = {}
    for each in counts:
        for name, n in each.items():
            total[name] = total.get(name, 0.0) + float(n)
    return total


def _join_ranks(parts: list[TrieBatch]) -> TrieBatch:
    """The ranks' joins as one, with groups kept apart: two ranks may have numbered theirs alike."""
    moved, first = [], 0
    for part in parts:
        moved.append(replace(part, group=torch.where(part.group < 0, part.group, part.group + first)))
        first += int(part.group.max().clamp(min=-1)) + 1
    return join(moved)


def count_chunks(
    chunks: Sequence[Sequence[TrieBatch]], objective: Objective, accelerator: Accelerator | None = None
) -> dict[str, float]:
    """The counts of all chunks and ranks."""
    device = "cpu" if accelerator is None else accelerator.device
    return add_counts(agree([b.to(device) for b in chunk], objective, accelerator).counts for chunk in chunks)
