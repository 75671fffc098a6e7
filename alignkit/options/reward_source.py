"""Where a reward comes from, as a recipe names it; knows neither models nor how a reward is computed."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from alignkit.options.judge import AskedModel
from alignkit.options.shared import check_installed

NEEDED_PACKAGES: dict[str, str] = {"json_schema": "jsonschema", "math": "math_verify"}
"""The modules that rules need beyond alignkit's own requirements, all in alignkit[eval]."""
ONLY: dict[str, tuple[str, ...]] = {
    "path": ("learned", "lexicon", "function", "judge"),
    "conversational": ("function",),
    "normalised": ("learned",),
    "url": ("remote", "judge"),
    "batch_size": ("remote", "judge"),
    "retries": ("remote", "judge"),
    "timeout": ("rules", "function", "remote", "judge"),
    "on_failure": ("learned", "function", "remote", "judge"),
    "model": ("judge",),
    "key_variable": ("judge",),
    "guidelines": ("judge",),
    "points": ("judge",),
    "max_new_tokens": ("judge",),
    "cache": ("judge",),
}
"""The kinds that an option has a meaning for, where it has none for all others."""


class RewardSource(AskedModel):
    """One reward: a reward model, the built-in world's utility, a rule, words, a function, a server, a judge, or
    several of these."""

    kind: Literal["learned", "world", "rules", "lexicon", "function", "remote", "judge", "combined"]
    """`learned`: a reward model's artifact; `world`: the quickstart world's true utility; `rules`: a verifiable
    answer; `lexicon`: weighted words; `function`: Python of your own, run only with --allow-code; `remote`: a server
    of your own (its requests: reward_models/remote.py); `judge`: a language model that judges by guidelines;
    `combined`: several of these."""
    path: str | None = None
    """learned: the artifact's folder (`@reward` in a recipe); lexicon: a JSON file {word: weight} (none: a built-in
    list of sentiment words); function: `package.module:function`; judge: a local model's folder."""
    conversational: bool = False
    """function: prompts and completions are lists of {"role", "content"}, as in TRL's chat data, instead of text."""
    rule: (
        Literal[
            "exact_match", "contains", "number", "math", "pattern", "length", "repetition", "json_schema", "refusal"
        ]
        | None
    ) = None
    """rules: how the answer is compared with the reference: the whole text, a part of it, the last number in it, or
    as mathematics (math-verify). Without a reference: whether `pattern` is found in it, or how far its tokens are
    from `length`, or minus the share of its `length` words in a row that stood in it before (repetition); whether it
    is JSON that `json_schema` allows; whether it declines to answer (refusal)."""
    answer_column: str = "answer"
    """rules: the data column that holds the reference answer."""
    pattern: str | None = None
    """rule: pattern: a regular expression of Python's. 1 where it is found in the response, else 0."""
    length: int | None = Field(default=None, ge=1)
    """rule: length: a number of tokens. 0 at that length, falling by 1/length for each token more or less. rule:
    repetition: how many words make a repeated phrase, such as 3."""
    json_schema: str | dict[str, Any] | None = None
    """rule: json_schema: the JSON Schema, written here or as the path of its file. 1 where the response, alone or in
    a ```json fence, is JSON that it allows, else 0."""
    wanted_column: str | None = None
    """rule: refusal: a data column that says where declining is right (true or false); 1 where the response does as
    it says. Left out: 1 where it declines; `scale: -1` makes declining costly."""
    points: tuple[int, int] = (1, 10)
    """judge: the lowest and the highest score that it may give; they are the reward's unit."""
    timeout: float | None = Field(default=None, gt=0.0)
    """Seconds. function: for one call (left out: any; what hangs stays behind in a thread); remote, judge by url: for
    one answer (left out: 60); rule: pattern or math: for one response, which then scores 0 (left out: 1 and 5; of
    math rounded up to whole ones)."""
    on_failure: Literal["stop", "skip"] = "stop"
    """learned, function, remote, judge: what becomes of a completion that gets no score: the run stops, naming it, and
    goes on from there when started again; or it is left out of the update, and counted as objective/failed."""
    of: dict[str, "RewardSource"] = Field(default_factory=dict[str, "RewardSource"])
    """combined: the rewards by name, such as {quality: {kind: learned, path: "@reward"}, brevity: {...}}; each with
    its own scale and clip."""
    combine: Literal["sum", "mean", "min", "lower", "weights"] = "sum"
    """combined: the sum; of an ensemble the mean, the minimum, or the mean less `deviations` standard deviations; or
    one reward model whose weights are the mean of the learned ones' (WARM), all of them fine-tuned from one model."""
    deviations: float = Field(default=1.0, ge=0.0)
    """combine: lower: how many standard deviations of the members are taken off."""
    normalised: bool = True
    """learned: scores minus the artifact's mean, divided by its deviation on reference responses."""
    normalise: Literal["none", "running"] = "none"
    """running: scores minus the mean, divided by the deviation, of all that this reward has scored in the run so far,
    validation left out; before scale and clip, so that `scale` weighs the parts of a sum."""
    scale: float = 1.0
    """Factor on every score."""
    clip: float | None = None
    """Scores are cut to [-clip, clip], after the scale."""

    def leaves(self) -> "list[RewardSource]":
        """The rewards that this one is made of, itself where it is one."""
        return [leaf for source in self.of.values() for leaf in source.leaves()] or [self]

    def remembers(self) -> bool:
        """Whether this one, or one that it is made of, is normalised by all it has scored."""
        return self.normalise == "running" or any(source.remembers() for source in self.of.values())

    def refuse_memory(self, option: str) -> None:
        """Raise ValueError for what only the reward that a policy is optimised by can do: skip, and remember."""
        for name, default in (("normalise", "none"), ("on_failure", "stop")):
            if getattr(self, name) != default:
                raise ValueError(f"{option}: {name}: {getattr(self, name)} is for the reward of ppo; remove it")
        for name, source in self.of.items():
            source.refuse_memory(f"{option}.of.{name}")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.kind in ("learned", "function") and self.path is None:
            raise ValueError(f"reward.kind: {self.kind} needs reward.path")
        for name, kinds in ONLY.items():
            self.only_with(self.kind in kinds, f"for kind: {self.kind}", name)
        if (self.kind == "combined") != bool(self.of):
            raise ValueError("reward.of goes with kind: combined, which needs it: rewards by name")
        if self.combine != "sum" and len(self.of) < 2:
            raise ValueError(f"reward.combine: {self.combine} needs two rewards or more in reward.of")
        for name, one in self.of.items() if self.combine == "weights" else ():
            if one.kind != "learned" or one != RewardSource(kind="learned", path=one.path, normalised=one.normalised):
                raise ValueError(
                    f"reward.of.{name}: combine: weights takes learned rewards that give nothing but a path"
                )
        if self.combine == "weights" and len({one.normalised for one in self.of.values()}) > 1:
            raise ValueError("reward.of: with combine: weights all are normalised, or none")
        for name in self.of:
            if name == "raw" or "/" in name:
                raise ValueError(
                    f"reward.of: {name!r} cannot be a part's name: scores are logged as <part>/<part>, and as "
                    "<part>/raw before they are normalised; call it something else"
                )
        self.only_with(self.combine == "lower", f"with combine: {self.combine}", "deviations")
        if self.kind == "function" and ":" not in (self.path or ""):
            raise ValueError(f"reward.path: {self.path!r} is not of the form package.module:function")
        if self.clip is not None and self.clip <= 0:
            raise ValueError("reward.clip must be above 0")
        self._check_rule()
        self._check_server()
        return self

    def _check_rule(self) -> None:
        if (self.kind == "rules") != (self.rule is not None):
            raise ValueError("reward.rule goes with kind: rules, and kind: rules needs one (for example `number`)")
        for name in ("pattern", "length", "json_schema"):
            rules = (name, "repetition") if name == "length" else (name,)
            if (self.rule in rules) != (getattr(self, name) is not None):
                raise ValueError(f"reward.{name} goes with rule: {' or '.join(rules)}, which needs it")
        self.only_with(self.rule == "refusal", f"with rule: {self.rule}", "wanted_column")
        self.only_with(self.kind != "rules" or self.rule in ("pattern", "math"), f"with rule: {self.rule}", "timeout")
        check_installed(f"reward.rule: {self.rule}", NEEDED_PACKAGES.get(self.rule or ""))

    def _check_server(self) -> None:
        if self.kind == "judge":
            self.check_judge("reward.kind: judge", "reward")
            if self.points[0] >= self.points[1]:
                raise ValueError(f"reward.points: {list(self.points)} must rise: the lowest and the highest score")
        if self.kind == "remote" and self.url is None:
            raise ValueError("reward.kind: remote needs reward.url")
        self.check_address("reward")
