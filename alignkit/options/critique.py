"""Options of the critique stage, which has a policy revise its answers. Knows no model and no torch."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from alignkit.config import Config
from alignkit.options.shared import DataOptions, ModelOptions, check_frozen


class CritiqueConfig(Config):
    """Answers, their critique by a written guideline, and their revision, all by the policy itself: the supervised
    part of constitutional AI (Bai et al. 2022). Later stages name what it writes as `data: {path: "@critique"}`."""

    model: ModelOptions
    """The policy; it answers, criticises and revises."""
    data: DataOptions
    """The prompts: all of them, `validation` has no meaning here. data.max_length bounds the whole conversation, an
    answer, its critique and its revision; prompts without room for it are an error, or with `over_long: skip` left
    out."""
    guidelines: str
    """A file of guidelines: one a line (.txt, .md; lines that begin with # are comments), or a YAML list of
    guidelines, and of {critique, revision} where the two requests are your own words."""
    rounds: int = Field(default=1, ge=1)
    """Critiques and revisions of each answer, by guidelines drawn anew without repetition while there are any left."""
    write: Literal["demonstrations", "comparisons", "both"] = "demonstrations"
    """demonstrations: the last revision as the answer; comparisons: it is preferred to the first answer; both: two
    files, of which a later stage chooses by `data.split: demonstrations` or `comparisons`."""
    unfinished: Literal["drop", "keep"] = "drop"
    """Conversations in which max_new_tokens cut a turn off: left out, or taken as if the turn had ended there."""
    max_new_tokens: int = Field(default=64, ge=1)
    """The longest answer, critique and revision each, in tokens, its end token included."""
    temperature: float = Field(default=1.0, ge=0.0)
    """Of sampling; 0 is greedy."""
    seed: int = 0
    """Set from the recipe."""

    @field_validator("data")
    @classmethod
    def _all_of_them(cls, options: DataOptions) -> DataOptions:
        return options.model_copy(update={"validation": 0})

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_frozen(self.model, self.data)
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """The data files it leaves, by their names without suffix."""
        return ("demonstrations", "comparisons") if self.write == "both" else (self.write,)
