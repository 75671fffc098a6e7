"""Options of the guard against over-optimisation. Knows no model and no torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from alignkit.config import Config
from alignkit.options.reward_source import RewardSource

Then = Literal["warn", "stop", "roll_back"]


class Limit(Config):
    """A bound on one number of an update, and what happens beyond it."""

    above: float | None = None
    """The largest value that is all right."""
    below: float | None = None
    """The smallest value that is all right."""
    for_updates: int = Field(default=1, ge=1)
    """So many updates in a row beyond it."""
    then: Then = "warn"
    """`warn`, `stop` with the weights as they are, or `roll_back`: stop with those that the held-out reward liked
    best."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.above is None) == (self.below is None):
            raise ValueError("give exactly one of `above` and `below`")
        return self


class HeldOutReward(Config):
    """A second reward that is not trained on, asked at every validation (Gao et al. 2022: it turns over first)."""

    reward: RewardSource
    """Another reward model, or a rule."""
    drop: float = Field(gt=0.0)
    """By how much its mean may fall below its best."""
    then: Then = "roll_back"
    """`warn`, `stop` with the weights as they are, or `roll_back` to those that it liked best."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.reward.refuse_memory("guard.held_out.reward")
        return self


class GuardOptions(Config):
    """Bounds that tell over-optimisation from progress; each is watched where it is given."""

    kl: Limit | None = None
    """KL to the reference, nats per completion: the budget."""
    entropy: Limit | None = None
    """Entropy of the policy, nats per sampled token; collapse lies below."""
    length_correlation: Limit | None = None
    """Correlation of a completion's score with its length, -1 to 1."""
    repetition: Limit | None = None
    """Share of a completion's token trigrams that stood in it before, 0 to 1."""
    explained_variance: Limit | None = None
    """Of the critic; 1 is perfect, below 0 it misleads."""
    without_signal: Limit | None = None
    """Share of prompts whose samples all score alike."""
    held_out: HeldOutReward | None = None
    """A second reward; what it likes best is what roll_back goes back to."""

    def limits(self) -> dict[str, Limit]:
        """The bounds given on numbers of an update, by name."""
        return {name: limit for name in GUARDED if (limit := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rolls_back() and self.held_out is None:
            raise ValueError(
                "roll_back needs guard.held_out: by the reward that is trained on, the last weights look best"
            )
        return self

    def rolls_back(self) -> bool:
        """Whether any of it ends with the best validation's weights."""
        ends = [limit.then for limit in self.limits().values()]
        return "roll_back" in (ends if self.held_out is None else [*ends, self.held_out.then])


GUARDED = {
    "kl": "objective/kl",
    "entropy": "objective/token_entropy",
    "length_correlation": "objective/length_correlation",
    "repetition": "completion/repetition",
    "explained_variance": "critic/explained_variance",
    "without_signal": "advantage/without_signal",
}
"""The numbers of an update that are watched: option -> metric."""
