"""Turns an objective's sums into means over a whole optimizer step; it knows no loss, no optimizer and no data order.

Only here is divided: the counts of the step are added over all rows and ranks before the first forward, and each
term is divided by its own, so that gradients and metrics depend neither on the token budget nor on the process count.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import nn

from alignkit.agreement import add_counts, agree, count_chunks, rank_count
from alignkit.objective import NonFiniteLoss, Objective
from alignkit.passes import one_pass, two_passes
from alignkit.trie import TrieBatch


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
    plan = agree([batch.to(device) for batch in batches], objective, accelerator)
    if counts is not None:
        plan.counts = dict(counts)
    route = two_passes if plan.two_pass else one_pass
    with nullcontext() if backward else torch.no_grad():
        sums, loss = route(model, plan, objective, accelerator, backward)
    names = sorted(plan.counts)
    total = torch.stack([*(sums.get(name, plan.zero()) for name in names), loss])
    if rank_count(accelerator) > 1:
        torch.distributed.all_reduce(total)
    values = total.tolist()
    means = {name: value / plan.counts[name] for name, value in zip(names, values, strict=False) if plan.counts[name]}
    if not torch.isfinite(total[-1]):
        bad = [name for name, value in means.items() if value != value or abs(value) == float("inf")]
        raise NonFiniteLoss(f"the loss is {values[-1]}: {' and '.join(map(repr, bad)) or 'a term'} is not finite")
    return {**means, "loss": values[-1]}


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
        return add_counts(
            accumulate(model, chunk, objective, accelerator, backward=False, counts=counts) for chunk in chunks
        )
    finally:
        model.train(training)
