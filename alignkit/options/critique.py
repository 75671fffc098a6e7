"""Options of the critique stage, which has a policy revise its answers. Knows no model and no torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from alignkit.options.shared import AnsweringConfig, ModelOptions


class CritiqueConfig(AnsweringConfig):
    """Answers, their critique by a written guideline, and their revision, all by the policy itself: the supervised
    part of constitutional AI (Bai et al. 2022). Later stages name what it writes as `data: {path: "@critique"}`."""

    model: ModelOptions
    """The policy: all that is written is its own."""
    guidelines: str
    """A file of guidelines: one a line (.txt, .md; lines that begin with # are comments), or a YAML list of
    guidelines, and of {critique, revision} where the two requests are your own words; or {guidelines: such a list,
    examples: [{prompt, answer, guideline, critique, revision}, …]}: worked examples, put before each request."""
    rounds: int = Field(default=1, ge=1)
    """Critiques and revisions of each answer, by guidelines drawn anew without repetition while there are any left."""
    write: Literal["demonstrations", "comparisons", "both"] = "demonstrations"
    """demonstrations: the last revision as the answer; comparisons: it is preferred to the first answer; both: two
    files, of which a later stage chooses by `data.split: demonstrations` or `comparisons`."""
    max_new_tokens: int = Field(default=64, ge=1)
    """The longest answer, critique and revision each, in tokens, its end token included."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.model.check_frozen()
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """The data files it leaves, by their names without suffix."""
        return ("demonstrations", "comparisons") if self.write == "both" else (self.write,)
