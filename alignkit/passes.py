"""The forward and backward passes of one optimizer step, each term divided by its count. It knows no optimizer."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from alignkit.agreement import Plan
from alignkit.objective import Objective, Readings, Sums


def one_pass(
    model: nn.Module, plan: Plan, objective: Objective, accelerator: Accelerator | None, backward: bool
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


def two_passes(
    model: nn.Module, plan: Plan, objective: Objective, accelerator: Accelerator | None, backward: bool
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
    totals, loss, slopes = _slopes(read, plan, objective, accelerator, backward)
    if backward:
        after = _random_state()
        start = dict.fromkeys(slopes, 0)
        for n, batch in enumerate(rows):
            _set_random_state(random[n])
            with _autocast(accelerator):
                readings = objective.read(model, batch)
            here = {name: torch.zeros_like(reading) for name, reading in readings.items()}
            for name in slopes if n < len(plan.rows) else ():
                stop = start[name] + len(here[name])
                here[name], start[name] = slopes[name][start[name] : stop], stop
            _pull(readings, here)
        _set_random_state(after)
    return totals, loss


def _slopes(
    read: list[Readings], plan: Plan, objective: Objective, accelerator: Accelerator | None, backward: bool
) -> tuple[dict[str, Tensor], Tensor, Readings]:
    """(totals, loss, d loss / d reading of this rank's rows) of the readings `read`, whose last are of fillers."""
    own = {name: [row[name] for row in read[: len(plan.rows)]] for name in read[0]}
    parts = {name: torch.cat(values) for name, values in own.items() if values}
    ranks, rank = [parts], 0
    if plan.everyone and accelerator is not None:
        ranks = gather_object([{name: reading.cpu() for name, reading in parts.items()}])
        rank = accelerator.process_index
    totals: dict[str, Tensor] = {}
    if plan.joined is None:
        return totals, plan.zero(), {}
    device = plan.joined.ids.device
    leaves = {name: torch.cat([r[name] for r in ranks if r]).to(device) for name in read[0]}
    for leaf in leaves.values():
        leaf.requires_grad_(backward and leaf.is_floating_point())
    share = _mean(objective.loss(leaves, plan.joined), plan.counts, totals)
    slopes: Readings = {}
    if backward and share.requires_grad:
        share.backward()
        for name, leaf in leaves.items():
            if leaf.grad is not None:
                start = sum(len(r[name]) for r in ranks[:rank] if r)
                slopes[name] = leaf.grad[start : start + len(parts[name])] if parts else leaf.grad[:0]
    # With everyone's readings each rank has the whole loss: the first one's stands for all.
    return (totals, share.detach(), slopes) if rank == 0 else ({}, plan.zero(), slopes)


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


def _autocast(accelerator: Accelerator | None) -> AbstractContextManager[None]:
    return nullcontext() if accelerator is None else accelerator.autocast()
