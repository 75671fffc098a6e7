"""Options of direct preference optimisation. Knows no model and no torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from alignkit.config import Config
from alignkit.options.shared import DataOptions, ModelOptions, TrainOptions, check_patience


class DpoTrain(TrainOptions):
    """The optimiser, with a rate for full fine-tuning; LoRA wants about ten times as much."""

    learning_rate: float = 5e-7
    """The peak learning rate."""
    warmup: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the steps over which the learning rate rises from 0."""


class DpoConfig(Config):
    """Preference optimisation without a reward model (Rafailov et al. 2023); the reference is the incoming model."""

    model: ModelOptions
    """The model to start from, usually @sft."""
    data: DataOptions
    """Comparisons: all untied pairs of a ranking are trained on, each ranking weighing 1."""
    train: DpoTrain = DpoTrain()
    """The optimiser and its schedule."""
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    """sigmoid: DPO, Eq. 7; ipo: Azar et al. 2023; hinge: SLiC; robust: Chowdhury et al. 2024."""
    beta: float = Field(default=0.1, gt=0.0)
    """Strength of the pull towards the reference, in units of reward per nat."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Rate at which labels are taken to be flipped: conservative DPO with sigmoid, needed by robust."""
    nll_coef: float = Field(default=0.0, ge=0.0)
    """Factor on the best responses' negative log-likelihood per token, against falling likelihoods."""
    seed: int = 0
    """Set from the recipe."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_patience(self.data, self.train)
        if self.loss == "robust" and self.label_smoothing == 0:
            raise ValueError("loss: robust needs label_smoothing: the rate of flipped labels, such as 0.1")
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            raise ValueError(f"label_smoothing has no meaning for loss: {self.loss}; remove it")
        return self
