"""Options of a stage that one of TRL's trainers runs. Knows no model and no torch."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from alignkit.config import Config
from alignkit.options.reward_source import RewardSource
from alignkit.options.shared import DataOptions, ModelOptions


class TrlConfig(Config):
    """A trainer of TRL as a stage: its algorithm and options, our data, lineage and artifact."""

    model: ModelOptions
    """The model to start from."""
    data: DataOptions
    """sft: demonstrations, of which the last answer is trained; reward, dpo: comparisons, every untied pair a row;
    kto: feedback; grpo, rloo: prompts, which max_length and over_long do not bound. The tokens are alignkit's."""
    trainer: Literal["sft", "reward", "dpo", "kto", "grpo", "rloo"]
    """Which trainer. reward leaves a reward model, as the stage `reward` does; all others a language model."""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    """The fields of its configuration (SFTConfig, DPOConfig ...), by TRL's names; alignkit sets output_dir, seed,
    report_to, use_cpu, bf16, fp16, logging_steps and resume_from_checkpoint, and what stands under model and data."""
    reward: RewardSource | None = None
    """grpo, rloo: what a completion is worth."""
    seed: int = 0
    """Set from the recipe."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.reward is not None) != (self.trainer in ("grpo", "rloo")):
            raise ValueError("reward goes with trainer: grpo or rloo, which need it")
        if self.reward is not None:
            self.reward.refuse_memory("reward")
        return self
