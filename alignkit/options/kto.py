"""Options of KTO, preference optimisation from single labelled responses. Knows no model and no torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from alignkit.config import Config
from alignkit.options.dpo import DpoTrain
from alignkit.options.shared import DataOptions, ModelOptions, check_patience


class KtoConfig(Config):
    """Preference optimisation from responses labelled good or bad one by one (KTO, Ethayarajh et al. 2024)."""

    model: ModelOptions
    """The model to start from, usually @sft; it is the reference too."""
    data: DataOptions
    """Feedback: a prompt, a response and its label, true or false."""
    train: DpoTrain = DpoTrain()
    """The optimiser and its schedule. The baseline of a step is estimated from its own batch: give it 8 or more."""
    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    """kto: Eq. 8; apo_zero_unpaired: the same without a baseline (D'Oosterlinck et al. 2024, Eq. 7)."""
    beta: float = Field(default=0.1, gt=0.0)
    """Strength of the pull towards the reference, in units of reward per nat."""
    desirable_weight: float = Field(default=1.0, gt=0.0)
    """λ of good responses; weight times number should be alike for both labels, within 1 : 1 and 4 : 3."""
    undesirable_weight: float = Field(default=1.0, gt=0.0)
    """λ of bad responses."""
    seed: int = 0
    """Set from the recipe."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_patience(self.data, self.train)
        return self
