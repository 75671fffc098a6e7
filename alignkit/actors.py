"""Opens what on-policy training needs: policy, reference, critic, reward, prompts. It knows no algorithm."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from alignkit.batches import Example
from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.data.documents import document_sequences
from alignkit.data.load import load_data
from alignkit.engines import Engine, open_engine
from alignkit.environment.episodes import Episodes, open_episodes
from alignkit.environment.seam import announced
from alignkit.models import load_tokenizer, save_policy
from alignkit.options.ppo import PpoConfig
from alignkit.options.ppo_groups import PtxOptions
from alignkit.options.reward_source import RewardSource
from alignkit.options.shared import LoraOptions, RuntimeOptions
from alignkit.policy import Policy
from alignkit.prepare import Setting, load_examples, open_setting
from alignkit.prompts import fitting
from alignkit.records import Demonstration, Document, Prompt
from alignkit.rewards import build_reward
from alignkit.runs import Run
from alignkit.scorer import Scorer, scorer_on
from alignkit.trie import TokenSequence
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
    """None where advantages need none, or the policy has a value head."""
    reward: Reward
    running: Running
    """What the reward remembers."""
    held_out: Reward | None
    """The reward that guards and is not trained on, if any."""
    format: ChatFormat
    episodes: Episodes | None
    """What plays completions of several turns, where an environment answers them."""
    prompts: list[Prompt]
    validation: list[Prompt]
    ptx: list[list[TokenSequence]]
    """What is trained beside the completions, if anything."""
    tolerance: float
    """Nats a token by which two passes of equal weights may differ in this precision."""
    token_budget: int
    """Tokens in one forward pass."""
    engine: Engine
    """What the policy samples with."""

    def reduce(self, x: Tensor) -> Tensor:
        """The sum over all ranks."""
        if self.accelerator.num_processes == 1:
            return x
        return self.accelerator.reduce(x.to(self.accelerator.device), "sum").to(x.device)

    def mean(self, total: float, count: int) -> float:
        """The mean over all ranks of what this one has a sum and a number of."""
        sums = self.reduce(torch.tensor([total, count], dtype=torch.float64))
        return float(sums[0] / sums[1])

    def check(self, what: str, total: float, count: int = 1) -> None:
        """Zero in theory: a gap means that sampling, scoring and training do not see one and the same model."""
        gap = self.mean(total, count)
        if not gap <= self.tolerance:
            raise RuntimeError(
                f"{what}: they differ by {gap:.2e} nats a token, more than {self.tolerance:g}. "
                "Is there dropout in the model, or a module that behaves differently from pass to pass?"
            )

    def save(self, directory: Path) -> None:
        """Write the policy as an artifact that plain `from_pretrained` loads."""
        save_policy(self.policy, self.format, directory)


def load_actors(config: PpoConfig, runtime: RuntimeOptions, run: Run, reward: Reward | None = None) -> Actors:
    """Open everything that `config` names; raises InputError naming the option that cannot be met."""
    setting = open_setting(config.model, runtime)
    device, precision, format = setting.accelerator.device, setting.precision, setting.format.stopping_at(config.stop)
    prompts, validation, sources = load_data(config.data, Prompt, config.seed)
    run.add_data(sources)
    told, budget = config.environment, runtime.token_budget
    episodes, more = open_episodes(told, format, runtime.allow_code), 0 if told is None else told.max_tokens
    prompts, validation = (announced(part, told, runtime.allow_code) for part in (prompts, validation))
    prompts, validation = (fitting(part, [format], config, budget, more) for part in (prompts, validation))
    drawn, processes = config.prompts_per_update, setting.accelerator.num_processes
    if not prompts or drawn < processes:
        raise InputError(
            f"ppo: {len(prompts)} prompts, {drawn} of them in an update, for {processes} processes: "
            "give more prompts, a larger train.batch_size, or fewer processes"
        )
    policy = setting.policy(config.model, config.seed).eval()
    running = Running()

    shared = policy if config.roles == "adapters" else None
    if config.roles == "value_head":
        policy.add_value_head()

    def build(source: RewardSource, base: Policy | None = None) -> Reward:
        return build_reward(
            source,
            device=device,
            precision=precision,
            token_budget=runtime.token_budget,
            allow_code=runtime.allow_code,
            running=running,
            base=base,
        )

    has_critic = config.advantage == "gae" and config.roles != "value_head"
    guarding = config.guard.held_out if config.guard is not None else None
    return Actors(
        accelerator=setting.accelerator,
        policy=policy,
        reference=policy.frozen_copy() if policy.adapted is None else None,
        critic=load_critic(config, setting, shared).eval() if has_critic else None,
        reward=build(config.reward, shared) if reward is None else reward,
        running=running,
        held_out=None if guarding is None else build(guarding.reward),
        format=format,
        episodes=episodes,
        prompts=prompts,
        validation=validation,
        ptx=load_ptx(config.ptx, setting, run, config.seed, runtime.token_budget) if config.ptx is not None else [],
        tolerance=5e-2 if precision == "bf16" else 1e-2 if config.model.load_in_4bit else 1e-5,
        token_budget=runtime.token_budget,
        engine=open_engine(config, runtime, run.directory / "engine", setting.accelerator),
    )


def load_ptx(options: PtxOptions, setting: Setting, run: Run, seed: int, budget: int) -> Sequence[Example]:
    """The text that is trained beside the completions, as the sft or the pretrain stage would read it."""
    format, data = setting.format, options.data

    def turns(records: Sequence[Demonstration]) -> list[list[TokenSequence]]:
        return format.turns_of([(record.messages, record.tools) for record in records], "all")

    def pieces(records: Sequence[Document]) -> list[list[TokenSequence]]:
        return document_sequences(records, format.tokenizer, data.max_length)

    if options.kind == "corpus":
        return load_examples(data, Document, pieces, setting, run, seed, budget)[0]
    return load_examples(data, Demonstration, turns, setting, run, seed, budget)[0]


def load_critic(config: PpoConfig, setting: Setting, base: Policy | None = None) -> Scorer:
    """The critic: the reward model with its normalisation in the head, or the policy's trunk under a zero head; with
    `base`, as an adapter on the policy's base."""
    init, source, options = config.critic.init, config.reward, config.model
    path = options.path
    if init != "zero" and source.kind == "learned":
        if load_tokenizer(str(source.path)).get_vocab() == setting.format.tokenizer.get_vocab():
            path = str(source.path)
        elif init == "reward":
            raise InputError(f"critic.init: reward: {source.path} has another tokenizer than {options.path}; use zero")
    if base is not None:
        begun = path != options.path or options.adapter == "continue"
        critic = scorer_on(base, "critic", path if begun else options.lora or LoraOptions(), seed=config.seed + 1)
    else:
        if options.adapter == "continue":
            options = options.model_copy(update={"adapter": "merge", "lora": LoraOptions()})
        critic = setting.scorer(options.model_copy(update={"path": path}), config.seed + 1, zero_head=True)
    if path == config.model.path:
        return critic
    if source.normalised:
        critic.fold_normalisation()
    with torch.no_grad():
        critic.head.weight *= source.scale
        critic.head.bias *= source.scale
    return critic
