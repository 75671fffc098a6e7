"""Where a reward comes from, as a recipe names it; knows neither models nor how a reward is computed."""

from typing import Literal, Self

from pydantic import model_validator

from alignkit.config import Config


class RewardSource(Config):
    """One reward: a trained reward model, the quickstart world's true utility, a rule, a lexicon or a function."""

    kind: Literal["learned", "world", "rules", "lexicon", "function"]
    """`learned`: a reward model's artifact; `world`: the quickstart world's true utility; `rules`: a verifiable
    answer; `lexicon`: weighted words; `function`: Python of your own, run only with --allow-code."""
    path: str | None = None
    """learned: the artifact's folder (`@reward` in a recipe); lexicon: a JSON file {word: weight} (none: a built-in
    list of sentiment words); function: `package.module:function`."""
    rule: Literal["exact_match", "contains", "number"] | None = None
    """rules: how the answer is compared with the reference: the whole text, a part of it, or the last number in it."""
    answer_column: str = "answer"
    """rules: the data column that holds the reference answer."""
    normalised: bool = True
    """learned: scores minus the artifact's mean, divided by its deviation on reference responses."""
    scale: float = 1.0
    """Factor on every score."""
    clip: float | None = None
    """Scores are cut to [-clip, clip], after the scale."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.kind in ("learned", "function") and self.path is None:
            raise ValueError(f"reward.kind: {self.kind} needs reward.path")
        if self.kind in ("world", "rules") and self.path is not None:
            raise ValueError(f"reward.path has no meaning for kind: {self.kind}; remove it")
        if (self.kind == "rules") != (self.rule is not None):
            raise ValueError("reward.rule goes with kind: rules, and kind: rules needs one (for example `number`)")
        if self.kind == "function" and ":" not in (self.path or ""):
            raise ValueError(f"reward.path: {self.path!r} is not of the form package.module:function")
        if self.clip is not None and self.clip <= 0:
            raise ValueError("reward.clip must be above 0")
        return self
