"""Options of the sample stage, which turns a policy and a reward into data. Knows no model and no torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from alignkit.options.environment import EnvironmentOptions
from alignkit.options.judge import JudgeSource
from alignkit.options.reward_source import RewardSource
from alignkit.options.shared import AnsweringConfig, ModelOptions

GIVEN = "without a model, where the data's own responses are labelled"


class SampleConfig(AnsweringConfig):
    """Draw answers to prompts, score them, and write data that later stages name as `data: {path: "@sample"}`: the
    best of n (RAFT, Dong et al. 2023; STaR where the reward is a rule), rankings, pairs, or labelled answers. With
    `judge`, comparisons labelled by a language model (RLAIF, Lee et al. 2023; constitutional AI, Bai et al. 2022)."""

    model: ModelOptions | None = None
    """The policy that draws the answers. Left out: nothing is drawn, and the reward or judge labels the data's own
    responses: comparisons in any format, their ranks replaced, or rows of `prompt` and `responses` without ranks."""
    reward: RewardSource | None = None
    """What an answer is worth."""
    judge: JudgeSource | None = None
    """In place of `reward`: a language model compares all pairs of a prompt's answers, each in both orders; an
    answer's score is the number of the others that it beats, a tie counting half (write: pair or ranking)."""
    write: Literal["best", "ranking", "pair", "feedback"] = "best"
    """best: demonstrations, the `top` answers of each prompt; ranking: comparisons, all its answers by score, equal
    scores tied; pair: comparisons, its best against its worst (by a judge: of the pairs with a winner the one whose
    scores are farthest apart); feedback: each answer, good from `minimum` on."""
    samples: int = Field(default=4, ge=1)
    """Answers drawn to each prompt, n."""
    top: int = Field(default=1, ge=1)
    """best: how many different answers of a prompt are kept."""
    minimum: float | None = None
    """best: answers of a lower score are left out (rejection sampling); feedback: answers of a lower score are bad."""
    environment: EnvironmentOptions | None = None
    """What answers the policy between its turns, as `ppo.environment`; what is written is the whole conversation.
    max_new_tokens then are those of all its turns. null: an answer is one turn."""
    min_new_tokens: int = Field(default=0, ge=0)
    """No end token before this many."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.reward is None) == (self.judge is None):
            raise ValueError(
                "give exactly one of `reward` (what an answer is worth) and `judge` (which one is better)"
            )
        self._check_model()
        if self.judge is not None and self.write not in ("pair", "ranking"):
            raise ValueError(
                f"write: {self.write} needs reward: a judge of pairs gives no scores; use pair or ranking"
            )
        self.only_with(self.write == "best", f"with write: {self.write}", "top")
        self.only_with(self.write in ("best", "feedback"), f"with write: {self.write}", "minimum")
        if self.write == "feedback" and self.minimum is None:
            raise ValueError("write: feedback needs minimum: the score from which on an answer is good")
        if self.write in ("ranking", "pair") and self.samples < 2:
            raise ValueError(f"write: {self.write} compares the answers to a prompt: give samples: 2 or more")
        if self.model is not None and self.top > self.samples:
            raise ValueError(f"top {self.top} exceeds samples {self.samples}")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"temperature: 0 is greedy, and all {self.samples} samples would be equal; raise it")
        ends = "with an environment, which answers the template's own end of turn"
        self.only_with(self.environment is None, ends, "min_new_tokens")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens {self.min_new_tokens} exceed max_new_tokens {self.max_new_tokens}")
        return self

    def _check_model(self) -> None:
        if self.model is not None:
            self.model.check_frozen()
        if self.reward is not None and self.reward.remembers():
            raise ValueError("reward.normalise: running makes a score depend on those before it; remove it")
        counts_tokens = self.reward is not None and any(leaf.rule == "length" for leaf in self.reward.leaves())
        if self.model is None and counts_tokens:
            raise ValueError(f"reward.rule: length counts the tokens that a model drew, and there are none {GIVEN}")
        drawing = ("samples", "max_new_tokens", "min_new_tokens", "temperature", "environment")
        self.only_with(self.model is not None, GIVEN, *drawing)
        self.data.only_with(self.model is not None, GIVEN, "max_length", "over_long")

    @property
    def files(self) -> tuple[str, ...]:
        """The data files it leaves, by their names without suffix."""
        return ({"best": "demonstrations", "feedback": "feedback"}.get(self.write, "comparisons"),)
