"""Turns an objective's sums into means over a whole optimizer step; it knows no loss, no optimizer and no data order.

Only this file divides: the counts of the step are added over all rows and ranks before the first forward, and each
term is divided by its own, so that gradients and metrics depend neither on the token budget nor on the process count.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from alignkit.trie import TrieBatch, join

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


@dataclass
class _Plan:
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


def accumulate(
    model: nn.Module,
    batches: Sequence[TrieBatch],
    objective: Objective,
    accelerator: Accelerator | None = None,
    *,
    backward: bool,
    counts: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The mean of every term and metric over all batches and ranks, and `loss`, the sum of the terms' means.

    With `backward`, adds this rank's share of the loss gradient to the parameters' `.grad`: summed over the ranks it
    is the gradient of `loss`. Terms without items count 0. With `counts`, of more than these batches, the means are
    these batches' share of them. Raises NonFiniteLoss naming the term, on all ranks alike.
    """
    device = next(model.parameters()).device if accelerator is None else accelerator.device
    plan = _agree([batch.to(device) for batch in batches], objective, accelerator)
    if counts is not None:
        plan.counts = dict(counts)
    route = _two_passes if plan.two_pass else _one_pass
    with nullcontext() if backward else torch.no_grad():
        sums, loss = route(model, plan, objective, accelerator, backward)
    names = sorted(plan.counts)
    total = torch.stack([*(sums.get(name, plan.zero()) for name in names), loss])
    if _ranks(accelerator) > 1:
        torch.distributed.all_reduce(total)
    values = total.tolist()
    means = {name: value / plan.counts[name] for name, value in zip(names, values, strict=False) if plan.counts[name]}
    if not torch.isfinite(total[-1]):
        bad = [name for name, value in means.items() if value != value or abs(value) == float("inf")]
        raise NonFiniteLoss(f"the loss is {values[-1]}: {' and '.join(map(repr, bad)) or 'a term'} is not finite")
    return {**means, "loss": values[-1]}


def _ranks(accelerator: Accelerator | None) -> int:
    return 1 if accelerator is None else accelerator.num_processes


def _autocast(accelerator: Accelerator | None) -> AbstractContextManager[None]:
    return nullcontext() if accelerator is None else accelerator.autocast()


def _agree(rows: list[TrieBatch], objective: Objective, accelerator: Accelerator | None) -> _Plan:
    """One exchange between the ranks: counts, number of forwards, and the route."""
    split = any(batch.split_groups for batch in rows)
    joined = join(rows) if rows and (split or objective.whole_step) else None
    if _ranks(accelerator) == 1:
        if not rows:
            raise ValueError("no batches: an optimizer step needs at least one")
        two_pass = joined is not None and len(rows) > 1
        counts = _add([objective.count(joined)] if joined is not None else map(objective.count, rows))
        return _Plan(rows, [], counts, two_pass, joined, False)
    assert accelerator is not None
    own = (
        {}
        if objective.whole_step
        else _add([objective.count(joined)] if joined is not None else map(objective.count, rows))
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
    counts = _add(
        [objective.count(joined)] if objective.whole_step and joined is not None else [c for _, _, c, _ in ranks]
    )
    return _Plan(rows, spare[-1:] * (forwards - len(rows)), counts, two_pass, joined, objective.whole_step)


def _add(counts: Any) -> dict[str, float]:
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


def _one_pass(
    model: nn.Module, plan: _Plan, objective: Objective, accelerator: Accelerator | None, backward: bool
) -> tuple[dict[str, Tensor], Tensor]:
    totals: dict[str, Tensor] = {}
    loss = plan.zero()
    for batch in plan.rows:
        with _autocast(accelerator):
            readings = objective.read(model, batch)
        sums = objective.loss(readings, batch)
        share = _mean(sums, plan.counts, totals)
        if backward and share.requires_grad:
            share.backward()
        loss = loss + share.detach()
    for batch in plan.fillers:
        with _autocast(accelerator):
            readings = objective.read(model, batch)
        if backward:
            _pull(readings, {name: torch.zeros_like(reading) for name, reading in readings.items()})
    return totals, loss


def _two_passes(
    model: nn.Module, plan: _Plan, objective: Objective, accelerator: Accelerator | None, backward: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """Readings of all rows without gradient, then d loss / d reading, then the rows again to pull it back."""
    rows = [*plan.rows, *plan.fillers]
    read: list[Readings] = []
    random = []
    with torch.no_grad():
        for batch in rows:
            random.append(_random_state())
            with _autocast(accelerator):
                read.append(objective.read(model, batch))
    own = {name: [row[name] for row in read[: len(plan.rows)]] for name in read[0]}
    parts = {name: torch.cat(values) for name, values in own.items() if values}
    ranks = [parts]
    rank = 0
    if plan.everyone and accelerator is not None:
        ranks = gather_object([{name: reading.cpu() for name, reading in parts.items()}])
        rank = accelerator.process_index
    totals: dict[str, Tensor] = {}
    loss = plan.zero()
    slopes: Readings = {}
    if plan.joined is not None:
        device = plan.joined.ids.device
        leaves = {name: torch.cat([r[name] for r in ranks if r]).to(device) for name in read[0]}
        for leaf in leaves.values():
            leaf.requires_grad_(backward and leaf.is_floating_point())
        share = _mean(objective.loss(leaves, plan.joined), plan.counts, totals)
        if backward and share.requires_grad:
            share.backward()
            slopes = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        if rank == 0:
            loss = loss + share.detach()
        else:
            totals = {}
    if backward:
        start = {name: sum(len(r[name]) for r in ranks[:rank] if r) for name in slopes}
        after = _random_state()
        for n, batch in enumerate(rows):
            _set_random_state(random[n])
            with _autocast(accelerator):
                readings = objective.read(model, batch)
            here: Readings = {}
            for name, reading in readings.items():
                mine = n < len(plan.rows) and name in slopes
                here[name] = (
                    slopes[name][start[name] : start[name] + len(reading)] if mine else torch.zeros_like(reading)
                )
                if mine:
                    start[name] += len(reading)
            _pull(readings, here)
        _set_random_state(after)
    return totals, loss


def _mean(sums: Sums, counts: Mapping[str, float], totals: dict[str, Tensor]) -> Tensor:
    """Adds the sums to the totals (float64), and returns Σ over loss terms of sum / count of the whole step."""
    named = {**sums.loss, **sums.metrics}
    if named.keys() != counts.keys() or len(named) != len(sums.loss) + len(sums.metrics):
        raise ValueError(
            f"an objective's loss sums {sorted(named)}, its count counts {sorted(counts)}: make them equal"
        )
    if "loss" in named and sums.loss.keys() != {"loss"}:
        raise ValueError("the name 'loss' is the sum of all terms: call this term or metric something else")
    for name, value in named.items():
        value = value.detach().double()
        totals[name] = totals[name] + value if name in totals else value
    # A term without items in the whole step has no mean: it is left out.
    terms = [value.double() / (counts[name] or math.inf) for name, value in sums.loss.items()]
    return torch.stack(terms).sum()


def _pull(readings: Readings, slopes: Readings) -> None:
    """Back-propagates Σ slope · reading."""
    roots = [name for name, reading in readings.items() if reading.requires_grad]
    if roots:
        torch.autograd.backward([readings[n] for n in roots], [slopes[n].to(readings[n].dtype) for n in roots])


def _random_state() -> tuple[Tensor, Tensor | None]:
    """Dropout must fall alike in both passes."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def _set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])


def evaluate_objective(
    model: nn.Module, batches: Sequence[TrieBatch], objective: Objective, accelerator: Accelerator | None = None
) -> dict[str, float]:
    """The means of `accumulate` without gradients, the model in eval mode. `batches` are this rank's own."""
    return evaluate_chunks(model, [batches], objective, accelerator)


def evaluate_chunks(
    model: nn.Module,
    chunks: Sequence[Sequence[TrieBatch]],
    objective: Objective,
    accelerator: Accelerator | None = None,
    counts: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The same of all chunks together, of which one is looked at at a time. All ranks have as many; a group stands in
    one, and for an objective of the whole step there is but one. `counts` are `count_chunks`', left out they are
    counted first."""
    training = model.training
    model.eval()
    try:
        if len(chunks) == 1:
            return accumulate(model, chunks[0], objective, accelerator, backward=False)
        counts = count_chunks(chunks, objective, accelerator) if counts is None else counts
        return _add(
            accumulate(model, chunk, objective, accelerator, backward=False, counts=counts) for chunk in chunks
        )
    finally:
        model.train(training)


def count_chunks(
    chunks: Sequence[Sequence[TrieBatch]], objective: Objective, accelerator: Accelerator | None = None
) -> dict[str, float]:
    """The counts of all chunks and ranks."""
    device = "cpu" if accelerator is None else accelerator.device
    return _add(_agree([b.to(device) for b in chunk], objective, accelerator).counts for chunk in chunks)
