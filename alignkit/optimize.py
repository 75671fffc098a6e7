"""One optimizer step: AdamW's groups, schedule, all-reduce, clipping. It knows no loss, no data and no run."""

import math
import warnings
from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from alignkit.accumulate import accumulate
from alignkit.config import InputError
from alignkit.objective import NonFiniteLoss, Objective
from alignkit.options.shared import RuntimeOptions, TrainOptions
from alignkit.trie import TrieBatch

BUCKET = 2**25
"""Elements that are all-reduced at once: 128 MiB in float32."""


def make_accelerator(runtime: RuntimeOptions) -> Accelerator:
    """What `runtime` asks for; left at auto: bf16 autocast on CUDA, float32 on a CPU. Raises InputError."""
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise InputError("runtime.device: cuda: torch finds no GPU here; give auto or cpu")
    cpu = runtime.device == "cpu" or not torch.cuda.is_available()
    precision = ("float32" if cpu else "bf16") if runtime.precision == "auto" else runtime.precision
    return Accelerator(cpu=cpu, mixed_precision="bf16" if precision == "bf16" else "no")


def make_optimizer(model: nn.Module, options: TrainOptions) -> AdamW:
    """AdamW (Loshchilov & Hutter 2019) over the parameters that require a gradient; decay on matrices only."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("the model has no parameter that requires a gradient")
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=options.learning_rate,
        betas=options.betas,
        eps=options.eps,
        fused=True,
    )


def schedule_factor(options: TrainOptions, step: int, total: int) -> float:
    """The share of the peak learning rate in optimizer step `step` (0 … total - 1).

    Rises linearly over the first `warmup` share of the steps, then falls along a line or half a cosine to
    `min_learning_rate` at `total`, or stays.
    """
    warm = math.ceil(options.warmup * total)
    if step < warm:
        return (step + 1) / (warm + 1)
    done = (step - warm) / max(1, total - warm)
    if options.schedule == "constant":
        return 1.0
    left = 0.5 * (1 + math.cos(math.pi * done)) if options.schedule == "cosine" else 1.0 - done
    least = options.min_learning_rate / options.learning_rate
    return least + (1 - least) * left


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Sets every parameter group's rate to `factor` times the one it was made with."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group.setdefault("initial_lr", group["lr"])


def update(
    model: nn.Module,
    batches: Sequence[TrieBatch],
    objective: Objective,
    optimizer: Optimizer,
    accelerator: Accelerator | None = None,
    max_grad_norm: float = 1.0,
    beside: Sequence[tuple[Sequence[TrieBatch], Objective]] = (),
) -> dict[str, float]:
    """One optimizer step on all `batches` together (of this rank); returns each term's mean, `loss` and `grad_norm`.

    `beside`: further batches with objectives of their own, whose gradients are added; `loss` is the first one's.
    Raises NonFiniteLoss before anything is changed where the loss or the gradient is NaN or infinite. No gradient is
    left: on-policy training has other models to pass, and completions to draw, before the next step.
    """
    optimizer.zero_grad()
    means = accumulate(model, batches, objective, accelerator, backward=True)
    for others, own in beside:
        means = {**accumulate(model, others, own, accelerator, backward=True), **means}
    norm = apply_gradients(optimizer, accelerator, max_grad_norm)
    optimizer.zero_grad()
    return {**means, "grad_norm": norm}


def apply_gradients(optimizer: Optimizer, accelerator: Accelerator | None, max_grad_norm: float) -> float:
    """Sums the gradients over the ranks, clips them to `max_grad_norm` together, steps; returns the norm before.

    Raises NonFiniteLoss, with the weights untouched, where the norm is NaN or infinite. 0 or less: no clipping.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if accelerator is not None and accelerator.num_processes > 1:
        all_reduce_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm if max_grad_norm > 0 else math.inf)
    if not torch.isfinite(norm):
        raise NonFiniteLoss(f"the gradient's norm is {norm.item()}, though the loss is finite")
    optimizer.step()
    return norm.item()


def all_reduce_gradients(parameters: Sequence[Tensor]) -> None:
    """Sums `.grad` over the ranks, in a few large buckets. A parameter unused on every rank keeps None."""
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    torch.distributed.all_reduce(used)
    active = [p for p, n in zip(parameters, used.tolist(), strict=True) if n]
    for bucket in _buckets(active):
        for p in bucket:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in bucket if p.grad is not None]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        torch.distributed.all_reduce(flat)
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))


def _buckets(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    buckets: list[list[Tensor]] = []
    size = 0
    for p in parameters:
        if not buckets or size + p.numel() > BUCKET or buckets[-1][0].dtype != p.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(p)
        size += p.numel()
    return buckets


@torch.no_grad()
def lost_updates(optimizer: Optimizer, sample: int = 8_192) -> float:
    """The share of trained weights that a step of one learning rate leaves where they are.

    AdamW moves a weight by about its learning rate; below half a unit in the last place the sum rounds back. Near 0
    in float32, near 1 for bfloat16 weights at 5e-7. Estimated on at most `sample` evenly spread weights a tensor;
    warns above a tenth.
    """
    lost, seen = 0, 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            weights = p.detach().reshape(-1)[:: max(1, p.numel() // sample)]
            _, exponent = torch.frexp(weights.float().abs())
            half_ulp = torch.ldexp(
                torch.full_like(weights, torch.finfo(p.dtype).eps / 4, dtype=torch.float32), exponent
            )
            scale = p.numel() / len(weights)
            lost += scale * int((half_ulp > group["lr"]).sum())
            seen += p.numel()
    share = lost / max(1, seen)
    if share > 0.1:
        warnings.warn(
            f"{share:.0%} of the weights would not move: a step of {optimizer.param_groups[0]['lr']:g} is below half "
            "their last place. Hold trained weights in float32",
            stacklevel=2,
        )
    return share
