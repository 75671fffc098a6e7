"""The options of sampling: which engine writes completions, and what is done where it differs. Knows no model."""

from typing import Literal, Self

from pydantic import Field, model_validator

from alignkit.config import Config


class RolloutOptions(Config):
    """Who samples, and how its own log-probabilities are held against the trainer's (docs/rollouts.md)."""

    engine: Literal["transformers", "continuous", "vllm"] = "transformers"
    """transformers: the policy itself, every draw keyed by (seed, update, prompt, sample, position); continuous: by
    transformers' continuous batching, for GPUs, its draws not keyed; vllm: a server at runtime.rollout_url that is
    given the weights, or with LoRA the adapter, after each update."""
    correction: Literal["none", "truncated"] = "none"
    """truncated: each token's policy loss is weighed by min(π_trainer / π_engine, cap), both as sampled (truncated
    importance sampling, Yao et al. 2025); none: the difference is logged alone."""
    cap: float = Field(default=2.0, ge=1.0)
    """correction: truncated: the largest weight."""
    ahead: Literal[0, 1] = 0
    """1: an update's completions are drawn before the update before it is trained, by the policy as it then is; their
    old log-probabilities are that policy's. A vllm server draws them while that update is trained, and its own
    log-probabilities are the old ones."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.only_with(self.correction == "truncated", f"with rollouts.correction: {self.correction}", "cap")
        return self
