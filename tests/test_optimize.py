"""The schedule's corners, the groups of AdamW, and updates that vanish in rounding."""

import math

import pytest
import torch
from loop_cases import Tiny
from torch import nn

from alignkit.config import InputError
from alignkit.optimize import lost_updates, make_accelerator, make_optimizer, schedule_factor, set_learning_rate
from alignkit.options.shared import RuntimeOptions, TrainOptions


def factors(total: int, **options: object) -> list[float]:
    chosen = TrainOptions.model_validate({"learning_rate": 1.0, **options})
    return [schedule_factor(chosen, step, total) for step in range(total)]


def test_schedules() -> None:
    assert factors(4, warmup=0.0) == [1.0, 0.75, 0.5, 0.25]
    assert factors(5, warmup=0.0, schedule="constant") == [1.0] * 5
    assert factors(8, warmup=0.5)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors(8, warmup=0.5)[5:] == pytest.approx([0.75, 0.5, 0.25])
    cosine = factors(4, warmup=0.0, schedule="cosine")
    assert cosine == pytest.approx([1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])
    assert factors(1) == [0.5] and factors(1, warmup=0.0) == [1.0]
    assert factors(4, warmup=0.0, min_learning_rate=0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4])
    least = factors(1000, warmup=0.0, schedule="cosine", min_learning_rate=0.1)
    assert least[500] == pytest.approx(0.55) and 0.1 < min(least) == least[-1] < 0.1001


@pytest.mark.parametrize(
    ("given", "told"), [({}, "above learning_rate 0.5"), ({"schedule": "constant"}, "no meaning")]
)
def test_a_least_rate_that_cannot_be_is_refused(given: dict[str, str], told: str) -> None:
    least = 0.1 if given else 0.6
    with pytest.raises(ValueError, match=told):
        TrainOptions.model_validate({"learning_rate": 0.5, "min_learning_rate": least, **given})


def test_decay_falls_on_matrices_only_and_each_group_keeps_its_own_peak() -> None:
    model = Tiny()
    optimizer = make_optimizer(model, TrainOptions(learning_rate=0.5, weight_decay=0.25))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    for name, p in model.named_parameters():
        kept = 1 - 0.5 * 0.25 if p.ndim == 2 else 1.0
        torch.testing.assert_close(p.detach(), kept * before[name])
    optimizer.param_groups[1]["lr"] = 0.1
    for factor in (0.5, 0.25):
        set_learning_rate(optimizer, factor)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.5 * factor, 0.1 * factor])


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        make_optimizer(Tiny().requires_grad_(False), TrainOptions(learning_rate=0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [1e-3, 2e-5, 5e-7, 1e-10])
def test_lost_updates_are_those_that_rounding_swallows(dtype: torch.dtype, rate: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 128, bias=False).to(dtype)
    with torch.no_grad():
        layer.weight.normal_(0, 0.02)
    optimizer = make_optimizer(layer, TrainOptions(learning_rate=rate))
    weight = layer.weight.detach()
    # What the hardware does: add in the weights' own precision, away from 0, and look whether anything changed.
    step = torch.full_like(weight, rate, dtype=torch.float64) * weight.double().sign()
    stayed = ((weight.double() + step).to(dtype) == weight).double().mean()
    assert lost_updates(optimizer) == pytest.approx(stayed.item(), abs=0.01)
    if dtype == torch.bfloat16 and rate == 5e-7:
        assert stayed > 0.98


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_asked_for_and_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"runtime\.device: cuda: torch finds no GPU here"):
        make_accelerator(RuntimeOptions(device="cuda"))
