"""Options of reward-model training on ranked comparisons. Knows no model and no torch."""

from typing import Self

from pydantic import Field, model_validator

from alignkit.config import Config
from alignkit.options.mixture import StreamedDataOptions
from alignkit.options.shared import LearningRate, ModelOptions, TrainOptions, check_patience


class RewardTrain(TrainOptions):
    """The optimiser: one epoch, since reward models overfit in the second (Stiennon et al. 2020)."""

    learning_rate: LearningRate = 9e-6
    """The peak learning rate."""


class RewardConfig(Config):
    """Bradley-Terry training on all untied pairs of every ranking (Ouyang et al. 2022, Eq. 1)."""

    model: ModelOptions
    """The model to start from, usually @sft."""
    data: StreamedDataOptions
    """Comparisons: k >= 2 ranked responses to one prompt."""
    train: RewardTrain = RewardTrain()
    """The optimiser and its schedule."""
    margin: float = Field(default=0.0, ge=0.0)
    """Factor on the difference of rated scores that a pair's scores must differ by (Llama 2, Eq. 2). 0: none."""
    centring: float = Field(default=0.0, ge=0.0)
    """Factor on (chosen + rejected)², which keeps scores around zero (Eisenstein et al. 2023)."""
    reference_rows: int = Field(default=512, ge=2)
    """Training comparisons over whose responses mean and deviation of the score are taken."""
    seed: int = 0
    """Set from the recipe."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_patience(self.data, self.train)
        return self
