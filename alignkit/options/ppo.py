"""The options of the ppo stage. Knows no model and no torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from alignkit.config import Config
from alignkit.options.environment import EnvironmentOptions
from alignkit.options.guard import GuardOptions
from alignkit.options.ppo_groups import (
    CriticOptions,
    KlOptions,
    MissingEosOptions,
    OverlongOptions,
    PpoTrain,
    PtxOptions,
)
from alignkit.options.reward_source import RewardSource
from alignkit.options.rollouts import RolloutOptions
from alignkit.options.shared import DataOptions, ModelOptions, check_patience


class PpoConfig(Config):
    """Policy optimisation against a reward and a reference: PPO with a critic (Ziegler 2019; Ouyang 2022), or RLOO,
    GRPO, REINFORCE++ and ReMax without one, by `advantage`."""

    model: ModelOptions
    """The policy, and, as it comes in, the reference."""
    data: DataOptions
    """The prompts."""
    train: PpoTrain = PpoTrain()
    """The policy's optimizer. Here batch_size counts the completions sampled in one update, a step is one update,
    and epochs are passes over the prompts."""
    reward: RewardSource
    """What a completion is worth."""
    kl: KlOptions = KlOptions()
    """The price of leaving the reference."""
    critic: CriticOptions = CriticOptions()
    """The critic."""
    roles: Literal["separate", "adapters", "value_head"] = "separate"
    """Who takes part: models of their own; policy, critic and learned rewards as adapters with heads on one frozen
    base (needs model.lora); or, with gae, a critic that is a head on the policy's own trunk, read in one forward."""
    advantage: Literal[
        "gae", "rloo", "grpo", "dr_grpo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "remax", "online_dpo"
    ] = "gae"
    """What a token did better than expected: gae: by the critic; rloo: than the other samples of its prompt; grpo:
    than their mean, over their deviation; dr_grpo: than their mean; reinforce_plus_plus: than the whole update;
    reinforce_plus_plus_baseline: both; remax: than the greedy completion; online_dpo: a prompt's best sample is
    preferred to its worst by DPO's loss, with kl.coef as its β."""
    loss: Literal["clip", "cispo", "gspo"] = "clip"
    """PPO's clip; cispo: no token loses its gradient (MiniMax 2025); gspo: one ratio a completion (Zheng 2025)."""
    average: Literal["token", "completion", "sequence", "budget"] = "token"
    """Over what the loss is a mean: all tokens (PPO, DAPO); each completion's, then all completions (GRPO, GSPO);
    sequence: all completions, whose tokens are added up (REINFORCE, online DPO); all completions times max_new_tokens
    (Dr. GRPO)."""
    samples: int = Field(default=1, ge=1)
    """Completions of each prompt; from 2 on where a prompt's samples are compared."""
    resample: int = Field(default=0, ge=0)
    """How many times prompts whose samples all score alike give way to others (DAPO's dynamic sampling)."""
    max_new_tokens: int = Field(default=64, ge=1)
    """The longest completion, in sampled tokens, end tokens included; with an environment over all its turns."""
    environment: EnvironmentOptions | None = None
    """What answers the policy between its turns; null: a completion is one turn."""
    min_new_tokens: int = Field(default=0, ge=0)
    """No end token before this many."""
    stop: list[str] = Field(default_factory=list)
    """Tokens that end a completion besides the format's own, such as ["\\n"]; the artifact ends at them too."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Of sampling; policy, reference and KL are measured at the same temperature."""
    rollouts: RolloutOptions = RolloutOptions()
    """Who samples, and what is done where it differs from who trains."""
    missing_eos: MissingEosOptions = MissingEosOptions()
    """What a completion without an end token is worth."""
    overlong: OverlongOptions | None = None
    """Penalty on completions that come close to max_new_tokens; null: none."""
    score_scaling: Literal["none", "running"] = "none"
    """running: scores are divided by the standard deviation of all scores so far, before the KL is taken off."""
    ptx: PtxOptions | None = None
    """Text whose likelihood is trained along; null: none."""
    ppo_epochs: int = Field(default=4, ge=1)
    """Passes over the completions of one update."""
    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps in one such pass."""
    clip: float = Field(default=0.2, gt=0.0)
    """The ratio of new to old probability is not rewarded beyond 1 ± clip."""
    clip_high: float | None = Field(default=None, gt=0.0)
    """The upper side of clip, where it differs (DAPO: 0.28)."""
    dual_clip: float | None = Field(default=None, gt=1.0)
    """Bounds the loss of a token with a negative advantage at this many times it; null: not bounded."""
    entropy_coef: float = Field(default=0.0, ge=0.0)
    """Reward for each nat of entropy, a mean as the loss is."""
    value_clip: float | None = Field(default=0.2, gt=0.0)
    """The critic's error is not reduced beyond this distance from its old value; null: not clipped."""
    gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    """Discount per token."""
    lam: float = Field(default=0.95, ge=0.0, le=1.0)
    """λ of generalised advantage estimation: 0 trusts the critic, 1 the observed return."""
    whiten_advantages: bool | None = None
    """Advantages to mean 0 and deviation 1 over the whole update and all processes. Left out: yes with gae and both
    reinforce_plus_plus, no with the others, where a prompt's own samples are the measure."""
    guard: GuardOptions | None = None
    """Against over-optimisation: warns, stops, or rolls back to the best weights; null: nothing is watched."""
    seed: int = 0
    """Set from the recipe."""

    @property
    def prompts_per_update(self) -> int:
        """Over all processes."""
        return self.train.batch_size // self.samples

    @property
    def reads_as_it_trains(self) -> bool:
        """Whether the first pass that trains may also give the log-probabilities as sampled: its one minibatch holds
        all tokens, and no advantage needs them before, other than through a KL that is a reward."""
        return self.minibatches == 1 and self.roles != "value_head" and self.advantage != "online_dpo"

    @property
    def kl_is_reward(self) -> bool:
        """Whether tokens are rewarded for staying near the reference."""
        return self.kl.placement == "reward" and self.advantage != "online_dpo" and self.kl.coef > 0

    @property
    def overlaps(self) -> bool:
        """Whether a server draws the next update's completions while this one is trained: it needs no answer from
        the policy on what it drew."""
        served = self.rollouts.engine == "vllm" and self.rollouts.ahead == 1
        return served and not self.resample and self.advantage != "remax"

    @property
    def compares(self) -> bool:
        """Whether an advantage is against the other samples of its prompt."""
        return self.advantage in ("rloo", "grpo", "dr_grpo", "reinforce_plus_plus_baseline", "online_dpo")

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened."""
        if self.whiten_advantages is not None:
            return self.whiten_advantages
        return self.advantage in ("gae", "reinforce_plus_plus", "reinforce_plus_plus_baseline")

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_patience(self.data, self.train)
        if self.compares and self.samples < 2:
            raise ValueError(f"advantage: {self.advantage} compares the samples of a prompt: give samples: 2 or more")
        if self.resample and self.samples < 2:
            raise ValueError("resample compares the samples of a prompt: give samples: 2 or more")
        if self.resample and self.reward.remembers():
            raise ValueError("resample replaces what normalise: running has already seen; leave one of them out")
        held_out = self.guard is not None and self.guard.held_out is not None
        if self.train.patience is not None and self.reward.remembers() and not held_out:
            raise ValueError(
                "train.patience compares scores from update to update, and normalise: running changes their unit; "
                "give guard.held_out, a reward to compare by, or remove one of them"
            )
        by_critic, where = self.advantage == "gae", f"with advantage: {self.advantage}"
        self.only_with(by_critic, where, "critic", "lam", "value_clip")
        self._check_roles()
        if self.environment is not None and (self.stop or self.min_new_tokens):
            name = "stop" if self.stop else "min_new_tokens"
            raise ValueError(
                f"{name} has no meaning with an environment, which answers the template's own end of turn"
            )
        self.only_with(by_critic or self.advantage == "reinforce_plus_plus", where, "gamma")
        self.only_with(self.advantage != "online_dpo", where, "whiten_advantages", "score_scaling")
        self.kl.only_with(self.advantage != "online_dpo", where, "placement", "clamp")  # its loss holds the KL
        if self.advantage == "online_dpo" and self.kl.coef == 0:
            raise ValueError("advantage: online_dpo takes kl.coef as DPO's β, which must be above 0")
        self.only_with(self.loss != "cispo", "for loss: cispo", "dual_clip")
        self._check_guard()
        if self.train.batch_size % self.samples:
            raise ValueError(f"train.batch_size {self.train.batch_size} is no multiple of samples {self.samples}")
        prompts = self.prompts_per_update
        if self.minibatches > prompts:
            raise ValueError(f"minibatches {self.minibatches} exceed the {prompts} prompts of an update")
        if self.data.over_long.startswith("truncate"):
            raise ValueError(f"data.over_long: {self.data.over_long} is not offered for prompts; use skip")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens {self.min_new_tokens} exceed max_new_tokens {self.max_new_tokens}")
        self.rollouts.only_with(
            not self.overlaps,
            "with engine: vllm and ahead: 1, where PPO's own ratio starts from the server",
            "correction",
        )
        if self.environment is not None and self.rollouts.engine != "transformers":
            raise ValueError(f"rollouts.engine: {self.rollouts.engine} plays no environment; remove one of the two")
        if self.overlong is not None and self.overlong.buffer > self.max_new_tokens:
            raise ValueError(f"overlong.buffer {self.overlong.buffer} exceeds max_new_tokens {self.max_new_tokens}")
        if self.critic.init == "reward" and self.reward.kind != "learned":
            raise ValueError(f"critic.init: reward needs a reward of kind: learned, not {self.reward.kind}")
        return self

    def _check_roles(self) -> None:
        """Refuse models that cannot be held as `roles` says."""
        if self.model.lora is not None and self.model.lora.dropout:
            raise ValueError(
                "model.lora.dropout has no meaning in ppo, where sampling, scoring and training have to see one and "
                "the same model; remove it"
            )
        if self.roles == "adapters" and self.model.lora is None and self.model.adapter != "continue":
            raise ValueError("roles: adapters share a frozen base: give model.lora, or model.adapter: continue")
        if self.roles == "value_head" and self.advantage != "gae":
            raise ValueError(f"roles: value_head is a critic, and advantage: {self.advantage} has none; remove it")
        own, where = self.roles != "value_head", f"with roles: {self.roles}"
        self.critic.only_with(own, where, "init", "learning_rate", "warmup")
        self.critic.only_with(not own, where, "coef")

    def _check_guard(self) -> None:
        """Refuse a guard that watches what is not measured."""
        if self.guard is None:
            return
        if self.guard.held_out is not None and not self.data.validation:
            raise ValueError("guard.held_out needs held-out prompts: give data.validation")
        if self.guard.explained_variance is not None and self.advantage != "gae":
            raise ValueError(f"guard.explained_variance: advantage: {self.advantage} has no critic; remove it")
        if self.guard.without_signal is not None and self.samples < 2:
            raise ValueError("guard.without_signal compares the samples of a prompt: give samples: 2 or more")
