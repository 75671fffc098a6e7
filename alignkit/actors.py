"""Opens what on-policy training needs: policy, reference, critic, reward, prompts. It knows no algorithm."""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.data.load import load_data
from alignkit.models import load_tokenizer, save_policy
from alignkit.options.ppo import PpoConfig
from alignkit.options.reward_source import RewardSource
from alignkit.options.shared import LoraOptions, RuntimeOptions
from alignkit.policy import Policy
from alignkit.prepare import Setting, open_setting
from alignkit.prompts import fitting
from alignkit.records import Prompt
from alignkit.rewards import build_reward
from alignkit.runs import Run
from alignkit.scorer import Scorer
from reward_models.running import Running
from reward_models.scores import Reward


@dataclass(frozen=True, slots=True)
class Actors:
    """Everything that takes part in one on-policy run."""

    accelerator: Accelerator
    policy: Policy
    reference: Policy | None
    """A frozen copy of the policy; None where the policy holds its reference itself (its adapter off)."""
    critic: Scorer | None
    """None where advantages need none."""
    reward: Reward
    running: Running
    """What the reward remembers."""
    held_out: Reward | None
    """The reward that guards and is not trained on, if any."""
    format: ChatFormat
    prompts: list[Prompt]
    validation: list[Prompt]
    tolerance: float
    """Nats a token by which two passes of equal weights may differ in this precision."""
    generation_batch: int
    """Completions that fit into the token budget together."""
    token_budget: int
    """Tokens in one forward pass."""

    def save(self, directory: Path) -> None:
        """Write the policy as an artifact that plain `from_pretrained` loads."""
        save_policy(self.policy, self.format, directory)


def load_actors(config: PpoConfig, runtime: RuntimeOptions, run: Run, reward: Reward | None = None) -> Actors:
    """Open everything that `config` names; raises InputError naming the option that cannot be met."""
    setting = open_setting(config.model, runtime)
    device, precision, format = setting.accelerator.device, setting.precision, setting.format
    prompts, validation, sources = load_data(config.data, Prompt, config.seed)
    run.add_data(sources)
    prompts, validation = (fitting(part, [format], config, runtime.token_budget) for part in (prompts, validation))
    drawn, processes = config.train.batch_size // config.samples, setting.accelerator.num_processes
    if not prompts or drawn < processes:
        raise InputError(
            f"ppo: {len(prompts)} prompts, {drawn} of them in an update, for {processes} processes: "
            "give more prompts, a larger train.batch_size, or fewer processes"
        )
    policy = setting.policy(config.model, config.seed).eval()
    running = Running()

    def build(source: RewardSource) -> Reward:
        return build_reward(
            source,
            device=device,
            precision=precision,
            token_budget=runtime.token_budget,
            allow_code=runtime.allow_code,
            running=running,
        )

    guarding = config.guard.held_out if config.guard is not None else None
    contexts = format.prompts([(prompt.messages, prompt.tools) for prompt in [*prompts, *validation]])
    longest = max(len(context) for context in contexts) + config.max_new_tokens
    return Actors(
        accelerator=setting.accelerator,
        policy=policy,
        reference=policy.frozen_copy() if policy.adapted is None else None,
        critic=load_critic(config, setting).eval() if config.advantage == "gae" else None,
        reward=build(config.reward) if reward is None else reward,
        running=running,
        held_out=None if guarding is None else build(guarding.reward),
        format=format,
        prompts=prompts,
        validation=validation,
        tolerance=5e-2 if precision == "bf16" else 1e-2 if config.model.load_in_4bit else 1e-5,
        generation_batch=max(1, runtime.token_budget // longest),
        token_budget=runtime.token_budget,
    )


def load_critic(config: PpoConfig, setting: Setting) -> Scorer:
    """The critic: the reward model with its normalisation in the head, or the policy's trunk under a zero head."""
    init, source, options = config.critic.init, config.reward, config.model
    if options.adapter == "continue" and options.lora is None:
        options = options.model_copy(update={"adapter": "merge", "lora": LoraOptions()})
    if init != "zero" and source.kind == "learned":
        if load_tokenizer(str(source.path)).get_vocab() == setting.format.tokenizer.get_vocab():
            options = options.model_copy(update={"path": source.path})
        elif init == "reward":
            raise InputError(f"critic.init: reward: {source.path} has another tokenizer than {options.path}; use zero")
    critic = setting.scorer(options, config.seed + 1, zero_head=True)
    if options.path == config.model.path:
        return critic
    if source.normalised:
        critic.fold_normalisation()
    with torch.no_grad():
        critic.head.weight *= source.scale
        critic.head.bias *= source.scale
    return critic
