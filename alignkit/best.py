"""The best validation of a training, and its weights where a run may end with them. Knows no loss and no reward."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from alignkit.checkpoint import copy_parameters, trained_parameters


@dataclass
class Best:
    """What validations have shown so far."""

    keeps: bool
    """Whether the best one's weights are kept."""
    objective: float = -math.inf
    """The best one's, larger is better."""
    stale: int = 0
    """Validations since."""
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    """The best one's where its weights are kept, else the last one's."""
    weights: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """On the CPU; empty where none are kept."""

    def see(self, model: nn.Module, objective: float, metrics: dict[str, float]) -> None:
        """Take in a validation of the model as it is now."""
        if objective > self.objective:
            self.objective, self.stale = objective, 0
            if self.keeps:
                own = trained_parameters(model)
                self.weights = {name: p.detach().to("cpu", copy=True) for name, p in own.items()}
        else:
            self.stale += 1
        if not self.keeps or self.stale == 0:
            self.metrics = metrics

    def worn(self, patience: int | None) -> bool:
        """Whether so many validations have not been better."""
        return patience is not None and self.stale >= patience

    def put_back(self, model: nn.Module) -> None:
        """Give the model the weights of the best validation."""
        copy_parameters(model, self.weights, "the best validation")

    def numbers(self) -> dict[str, Any]:
        """What a checkpoint's JSON holds of it; the weights go beside."""
        return {"objective": self.objective, "stale": self.stale, "metrics": self.metrics}

    def restore(self, numbers: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Take back what a checkpoint held."""
        self.objective, self.stale, self.metrics = numbers["objective"], numbers["stale"], numbers["metrics"]
        self.weights = dict(weights)
