"""Where a reward comes from, as a recipe names it; knows neither models nor how a reward is computed."""

from typing import Literal, Self

from pydantic import Field, model_validator

from alignkit.config import Config


class RewardSource(Config):
    """One reward: a trained reward model, the built-in world's utility, a rule, words, a function, or several."""

    kind: Literal["learned", "world", "rules", "lexicon", "function", "combined"]
    """`learned`: a reward model's artifact; `world`: the quickstart world's true utility; `rules`: a verifiable
    answer; `lexicon`: weighted words; `function`: Python of your own, run only with --allow-code;
    `combined`: several of these."""
    path: str | None = None
    """learned: the artifact's folder (`@reward` in a recipe); lexicon: a JSON file {word: weight} (none: a built-in
    list of sentiment words); function: `package.module:function`."""
    conversational: bool = False
    """function: prompts and completions are lists of {"role", "content"}, as in TRL's chat data, instead of text."""
    rule: Literal["exact_match", "contains", "number", "pattern", "length", "repetition"] | None = None
    """rules: how the answer is compared with the reference: the whole text, a part of it, or the last number in it.
    Without a reference: whether `pattern` is found in it, or how far its tokens are from `length`,
    or minus the share of its `length` words in a row that stood in it before (repetition)."""
    answer_column: str = "answer"
    """rules: the data column that holds the reference answer."""
    pattern: str | None = None
    """rule: pattern: a regular expression. 1 where it is found in the response, else 0."""
    length: int | None = Field(default=None, ge=1)
    """rule: length: a number of tokens. 0 at that length, falling by 1/length for each token more or less. rule:
    repetition: how many words make a repeated phrase, such as 3."""
    of: dict[str, "RewardSource"] = Field(default_factory=dict[str, "RewardSource"])
    """combined: the rewards by name, such as {quality: {kind: learned, path: "@reward"}, brevity: {...}}; each with
    its own scale and clip."""
    combine: Literal["sum", "mean", "min", "lower"] = "sum"
    """combined: the sum; of an ensemble the mean, the minimum, or the mean less `deviations` standard deviations."""
    deviations: float = Field(default=1.0, ge=0.0)
    """combine: lower: how many standard deviations of the members are taken off."""
    normalised: bool = True
    """learned: scores minus the artifact's mean, divided by its deviation on reference responses."""
    scale: float = 1.0
    """Factor on every score."""
    clip: float | None = None
    """Scores are cut to [-clip, clip], after the scale."""

    def leaves(self) -> "list[RewardSource]":
        """The rewards that this one is made of, itself where it is one."""
        return [leaf for source in self.of.values() for leaf in source.leaves()] or [self]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.kind in ("learned", "function") and self.path is None:
            raise ValueError(f"reward.kind: {self.kind} needs reward.path")
        self.only_with(self.kind not in ("world", "rules", "combined"), f"for kind: {self.kind}", "path")
        if (self.kind == "rules") != (self.rule is not None):
            raise ValueError("reward.rule goes with kind: rules, and kind: rules needs one (for example `number`)")
        for name, argument in (("pattern", self.pattern), ("length", self.length)):
            rules = (name, "repetition") if name == "length" else (name,)
            if (self.rule in rules) != (argument is not None):
                raise ValueError(f"reward.{name} goes with rule: {' or '.join(rules)}, which needs it")
        if (self.kind == "combined") != bool(self.of):
            raise ValueError("reward.of goes with kind: combined, which needs it: rewards by name")
        if self.combine != "sum" and len(self.of) < 2:
            raise ValueError(f"reward.combine: {self.combine} needs two rewards or more in reward.of")
        self.only_with(self.kind == "function", f"for kind: {self.kind}", "conversational")
        self.only_with(self.kind == "learned", f"for kind: {self.kind}", "normalised")
        self.only_with(self.combine == "lower", f"with combine: {self.combine}", "deviations")
        if self.kind == "function" and ":" not in (self.path or ""):
            raise ValueError(f"reward.path: {self.path!r} is not of the form package.module:function")
        if self.clip is not None and self.clip <= 0:
            raise ValueError("reward.clip must be above 0")
        return self
