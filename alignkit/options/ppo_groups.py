"""Groups of the ppo stage's options: KL, critic, ends, text beside, optimiser. Knows no model and no torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from alignkit.config import Config
from alignkit.options.shared import AllData, LearningRate, TrainOptions


class KlOptions(Config):
    """The price of leaving the reference: coef nats⁻¹ of KL, token by token."""

    coef: float = Field(default=0.05, ge=0.0)
    """Reward lost per nat of KL to the reference; where an adaptive controller starts."""
    placement: Literal["reward", "loss"] = "reward"
    """`reward`: k1 is taken off each token's reward (PPO, RLOO); `loss`: an estimate is added to the loss (GRPO)."""
    estimator: Literal["k2", "k3"] = "k2"
    """placement: loss: k2 reaches the optimum of RLHF, k3, GRPO's own, another one (docs/algorithms.md)."""
    clamp: float | None = Field(default=None, gt=0.0)
    """placement: reward: a token's log-ratio counts at most this many nats, either way; null: all of it."""
    controller: Literal["fixed", "adaptive"] = "fixed"
    """`fixed` keeps coef; `adaptive` steers it towards the target (Ziegler et al. 2019)."""
    target: float = Field(default=6.0, gt=0.0)
    """adaptive: the KL to hold, in nats per completion."""
    horizon: float = Field(default=10_000, gt=0.0)
    """adaptive: completions over which a lasting error of 20 % changes coef by a fifth."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.only_with(self.placement == "loss", f"with kl.placement: {self.placement}", "estimator")
        self.only_with(self.placement == "reward", f"with kl.placement: {self.placement}", "clamp")
        self.only_with(self.controller == "adaptive", f"with kl.controller: {self.controller}", "target", "horizon")
        if self.controller == "adaptive" and self.coef == 0:
            raise ValueError("kl.coef must be above 0 with kl.controller: adaptive, which multiplies it")
        return self


class CriticOptions(Config):
    """The critic: a scalar per token, trained with an optimizer of its own or, as a head on the policy, with it."""

    init: Literal["auto", "reward", "zero"] = "auto"
    """`reward`: start as the reward model (same tokenizer and kind: learned); `zero`: as the policy with a head of
    zeros; `auto`: `reward` where that is possible."""
    learning_rate: LearningRate | None = None
    """Its peak learning rate. Left out: five times the policy's."""
    warmup: int = Field(default=0, ge=0)
    """Updates that train the critic alone, before the policy moves; train.steps and its schedule count them."""
    coef: float = Field(default=0.1, gt=0.0)
    """roles: value_head: how much the critic's loss weighs beside the policy's."""


class OverlongOptions(Config):
    """A penalty that grows over the last tokens before max_new_tokens (DAPO, Yu et al. 2025, Eq. 13)."""

    buffer: int = Field(ge=1)
    """Over how many tokens it grows."""
    penalty: float = Field(default=1.0, gt=0.0)
    """What a completion of max_new_tokens loses."""


class MissingEosOptions(Config):
    """What a completion is worth that was cut off at max_new_tokens. A policy whose answers are mostly cut off learns
    nothing of the reward under `replace`: give it more room, or `keep`."""

    rule: Literal["replace", "subtract", "keep"] = "replace"
    """`replace` the whole score by value, `subtract` value from it, or `keep` it."""
    value: float = -1.0
    """replace: the score, best below any that a finished one gets; subtract: what is taken off (then above 0)."""

    @model_validator(mode="after")
    def _check_sign(self) -> Self:
        self.only_with(self.rule != "keep", "with rule: keep", "value")
        if self.rule == "subtract" and self.value <= 0:
            raise ValueError("missing_eos.value must be above 0 with rule: subtract (it is what is taken off)")
        return self


class PtxOptions(Config):
    """Likelihood of other text, trained beside the reward against forgetting (PPO-ptx, Ouyang et al. 2022, Eq. 2)."""

    data: AllData
    """The text: what the policy was pretrained or fine-tuned on. All of it is trained; `validation` has no meaning."""
    kind: Literal["demonstrations", "corpus"] = "demonstrations"
    """`demonstrations`: the assistant's turns of conversations; `corpus`: documents."""
    coef: float = Field(default=1.0, gt=0.0)
    """What a nat per token of their loss weighs beside the policy's (InstructGPT's γ)."""
    batch_size: int = Field(default=32, ge=1)
    """Conversations or documents in one optimizer step, over all processes."""


class PpoTrain(TrainOptions):
    """The policy's optimiser, with a rate for full fine-tuning; LoRA wants about ten times as much."""

    learning_rate: LearningRate = 3e-6
    """The peak learning rate."""
    eps: float = Field(default=1e-5, gt=0.0)
    """AdamW's epsilon (Huang et al. 2024: 1e-5)."""
