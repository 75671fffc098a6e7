"""Options of supervised fine-tuning on demonstrations. Knows no model and no torch."""

from typing import Literal, Self

from pydantic import model_validator

from alignkit.config import Config
from alignkit.options.mixture import StreamedDataOptions
from alignkit.options.shared import LearningRate, ModelOptions, TrainOptions, check_patience


class SftTrain(TrainOptions):
    """The optimiser, with a rate for full fine-tuning; LoRA wants about ten times as much."""

    learning_rate: LearningRate = 2e-5
    """The peak learning rate."""


class SftConfig(Config):
    """Next-token training on the assistant's turns of demonstrations."""

    model: ModelOptions
    """The model to start from."""
    data: StreamedDataOptions
    """Demonstrations."""
    train: SftTrain = SftTrain()
    """The optimiser and its schedule."""
    turns: Literal["all", "last"] = "all"
    """Which assistant turns are trained."""
    seed: int = 0
    """Set from the recipe."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_patience(self.data, self.train)
        return self
