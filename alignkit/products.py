"""Linear layers through oneDNN on CPUs where torch's own library is slower; knows no architecture and no loss.

torch gives float32 matrix products to Intel's MKL, which leaves other makers' AVX-512 units unused. oneDNN, which
torch has too, uses them: the same products to rounding, on AMD's Zen 5 about twice as fast. Zen 4's are half as wide:
whole trainings gain nothing by oneDNN there (README, Speed).
"""

import os
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from alignkit.provenance import cpu_family, cpu_maker

ZEN_5 = 26
# Multiplications, over all like layers of a model, from which oneDNN is the faster one: about 2 ms of MKL's time. Each
# new shape costs it .3 to .8 ms, once for all of them.
LEAST = 2**28
# oneDNN keeps code for each shape that it has met, near a megabyte: those of one pass are enough. 1,024 by default.
KEPT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "1"}


def onednn_is_faster() -> bool:
    """Whether this machine's CPU is AMD's with AVX-512, from Zen 5: a fixed rule, so that runs repeat bit for bit."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    return cpu_maker() == "AuthenticAMD" and (cpu_family() or 0) >= ZEN_5


def use_onednn(model: nn.Module) -> None:
    """Turns the model's linear layers, where this machine gains by it, into ones whose large float32 products oneDNN
    computes. Weights, names and results, to rounding, stay as they are; subclasses (4-bit layers) are left alone."""
    if not onednn_is_faster():
        return
    for name, number in KEPT.items():  # read when a process first uses oneDNN
        os.environ.setdefault(name, number)
    layers = [module for module in model.modules() if type(module) in QUICK]
    alike = Counter(layer.weight.shape for layer in layers)
    for layer in layers:
        layer.alike = alike[layer.weight.shape]
        layer.__class__ = QUICK[type(layer)]


class QuickLinear(nn.Linear):
    """A linear layer, weight [O, I], one of `alike` of its shape in a model."""

    alike: int = 1

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        if is_large(input, self.weight, self.alike):
            return Affine.apply(input, self.weight, self.bias)
        return super().forward(input)


class QuickConv1D(Conv1D):
    """GPT-2's form of one, weight [I, O]."""

    alike: int = 1

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        if is_large(x, self.weight, self.alike):
            return Affine.apply(x, self.weight.t(), self.bias)
        return super().forward(x)


QUICK: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: QuickLinear, Conv1D: QuickConv1D}


def is_large(states: Tensor, weight: Tensor, alike: int) -> bool:
    """Whether the product is oneDNN's: float32 on a CPU, outside autocast, of at least `LEAST` multiplications."""
    return (
        states.dtype == weight.dtype == torch.float32
        and states.device.type == "cpu"
        and alike * weight.numel() * states.shape[:-1].numel() >= LEAST
        and not torch.is_autocast_enabled("cpu")
    )


class Affine(torch.autograd.Function):
    """x Wᵀ + b: [..., I], [O, I], [O] or None -> [..., O]."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(states, weight)
        return _times(states.flatten(0, -2), weight, bias).unflatten(0, states.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        states, weight = ctx.saved_tensors
        to_states, to_weight, to_bias = ctx.needs_input_grad
        rows, slopes = (x.flatten(0, -2).contiguous() for x in (states, slope))
        return (
            _times(slopes, weight.t()).view_as(states) if to_states else None,
            _transposed_product(slopes, rows) if to_weight else None,
            slopes.sum(0) if to_bias else None,
        )


def _transposed_product(left: Tensor, right: Tensor) -> Tensor:
    """leftᵀ right: [N, K], [N, M] -> [K, M]. oneDNN copies one of the transposes: here the smaller."""
    if left.shape[1] <= right.shape[1]:
        return _times(left.t(), right.t())
    return _times(right.t(), left.t()).t()


def _times(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left rightᵀ + bias by oneDNN: [N, K], [M, K], [M] or None -> [N, M]. Knows no gradient."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
