"""A checkpoint gives back every bit, in files that cannot run code, and refuses another model."""

from pathlib import Path

import pytest
import torch
from loop_cases import Tiny

from alignkit.checkpoint import load_checkpoint, save_checkpoint
from alignkit.optimize import make_optimizer, set_learning_rate
from alignkit.options.shared import TrainOptions


def step(model: Tiny, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    optimizer.step()


@pytest.mark.parametrize("kind", ["adamw", "sgd", "adafactor"])
def test_a_checkpoint_gives_back_every_bit(kind: str, tmp_path: Path) -> None:
    def make(seed: int) -> tuple[Tiny, torch.optim.Optimizer]:
        model = Tiny(seed)
        model.depth.requires_grad_(False)
        if kind == "adamw":
            return model, make_optimizer(model, TrainOptions(learning_rate=0.1))
        trained = [p for p in model.parameters() if p.requires_grad]
        return model, (
            torch.optim.SGD(trained, lr=0.1, momentum=0.9) if kind == "sgd" else torch.optim.Adafactor(trained)
        )

    model, optimizer = make(0)
    set_learning_rate(optimizer, 0.3)
    for seed in range(3):
        step(model, optimizer, seed)
    extra = {"buffer": {"returns": torch.randn(3), "ids": torch.arange(4)}}
    save_checkpoint(tmp_path, model, optimizer, {"step": 3, "coef": 0.1 + 0.2}, extra)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    other, other_optimizer = make(1)
    other.depth.load_state_dict(model.depth.state_dict())
    state, tensors = load_checkpoint(tmp_path, other, other_optimizer)
    assert state == {"step": 3, "coef": 0.1 + 0.2}
    assert all(torch.equal(tensors["buffer"][name], extra["buffer"][name]) for name in extra["buffer"])
    for seed in range(3, 6):
        for m, o in ((model, optimizer), (other, other_optimizer)):
            set_learning_rate(o, 0.2)
            step(m, o, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_the_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    model = Tiny()
    save_checkpoint(tmp_path, model, make_optimizer(model, TrainOptions(learning_rate=0.1)), {})
    model.score = torch.nn.Linear(12, 2, bias=False)
    with pytest.raises(ValueError, match=r"belongs to another model: it differs in score\.weight"):
        load_checkpoint(tmp_path, model, make_optimizer(model, TrainOptions(learning_rate=0.1)))
    model.score.requires_grad_(False)
    with pytest.raises(ValueError, match=r"another model: it differs in score\.weight"):
        load_checkpoint(tmp_path, model, make_optimizer(model, TrainOptions(learning_rate=0.1)))
