"""Online policy optimisation: sample, score, estimate advantages, update. Knows no other stage, no kind of reward.

What is better than expected is the choice `advantage` (`alignkit.advantages`), what the policy descends the choice
`loss` (`alignkit.surrogates`). The first minibatch is trained on the rows that it was scored in.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim import Optimizer

from alignkit import rl
from alignkit.actors import Actors, load_actors
from alignkit.advantages import advantage_columns
from alignkit.batches import seed_of
from alignkit.config import InputError
from alignkit.experience import Rollouts, log_probabilities, make_rollouts, reference_log_probabilities, values
from alignkit.generate import rollout
from alignkit.loop import NonFiniteLoss, make_optimizer, update
from alignkit.online import Online, fit_online
from alignkit.optimize import schedule_factor, set_learning_rate
from alignkit.options.ppo import PpoConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.records import Completion, Prompt
from alignkit.runs import Run
from alignkit.scoring import deviation_so_far, running_deviation, scored
from alignkit.surrogates import critic_objective, policy_objective
from reward_models.functions import Reward
from reward_models.rules import repeated

VALIDATION = -1
"""The update number under which validation prompts are answered, so that every validation draws alike."""
SAMPLED = 16
"""Tokens sampled together for each one of a training pass: keys and values are a small part of activations."""


def run(config: PpoConfig, runtime: RuntimeOptions, run: Run, reward: Reward | None = None) -> Path:
    """Train the policy; returns the artifact's folder. `reward` replaces the recipe's, for library use."""
    actors = load_actors(config, runtime, run, reward)
    ppo = Ppo(config, actors)
    online = Online(
        models=ppo.trained(),
        step=ppo.step,
        validate=ppo.validate if actors.validation else None,
        memory=ppo.memory,
        save=actors.save,
        guard=config.guard,
    )
    return fit_online(online, ppo.total, config.train, runtime, run, actors.accelerator)


@dataclass(frozen=True, slots=True)
class Experience:
    """An update's N completions on this rank, and what was measured on their T tokens."""

    completions: list[Completion]
    rollouts: Rollouts
    scores: Tensor
    """[N] the whole reward of each completion."""
    steps: Tensor | None
    """[N, T] what of the rewards stands inside the completions; None where nothing does."""
    old: Tensor
    """[N, T] log π of the tokens as sampled, nats."""
    reference: Tensor
    """[N, T] log π_ref of the same."""


class Ppo:
    """One run's actors and optimizers, and what happens in an update."""

    def __init__(self, config: PpoConfig, actors: Actors) -> None:
        self.config, self.actors, self.accelerator = config, actors, actors.accelerator
        self.rank, self.ranks = self.accelerator.process_index, self.accelerator.num_processes
        self.prompts = config.train.batch_size // config.samples
        self.total = config.train.steps or max(1, round(config.train.epochs * len(actors.prompts) / self.prompts))
        if config.critic.warmup >= self.total:
            raise InputError(
                f"critic.warmup: {config.critic.warmup} leaves none of {self.total} updates for the policy"
            )
        self.memory = {"kl_coef": config.kl.coef}
        self.policy_optimizer = make_optimizer(actors.policy, config.train)
        self.critic_optimizer = None
        if actors.critic is not None:
            rate = config.critic.learning_rate or 5 * config.train.learning_rate
            own = config.train.model_copy(update={"learning_rate": rate})
            self.critic_optimizer = make_optimizer(actors.critic, own)

    def trained(self) -> dict[str, tuple[nn.Module, Optimizer]]:
        """What is trained, by name, with its optimizer; the policy first."""
        models: dict[str, tuple[nn.Module, Optimizer]] = {"policy": (self.actors.policy, self.policy_optimizer)}
        if self.actors.critic is not None and self.critic_optimizer is not None:
            models["critic"] = self.actors.critic, self.critic_optimizer
        return models

    def step(self, number: int) -> dict[str, float]:
        """sample -> score -> advantages -> update; returns what it logs."""
        started = time.perf_counter()
        config = self.config
        set_seed(seed_of(config.seed, "update", number, self.rank))
        orders = [self.minibatches(number, epoch) for epoch in range(config.ppo_epochs)]
        prompts, places = self.drawn(number), range(self.rank, self.prompts, self.ranks)
        completions = self.sample(prompts, number, places, config.samples, config.temperature)
        sampled = time.perf_counter()
        experience = self.score(completions, orders[0])
        metrics = self.describe(experience) | {"objective/kl_coef": self.memory["kl_coef"]}
        if number == 0:
            drift = (experience.old - experience.reference).abs()[experience.rollouts.mask]
            self.check("the policy is not its reference before the first update", float(drift.sum()), drift.numel())
        baseline = self.greedy_scores(prompts, number, places) if config.advantage == "remax" else None
        columns, judged = self.advantages(experience, baseline)
        judged_at = time.perf_counter()
        factor = schedule_factor(config.train, number, self.total)
        names = ["critic"] if number < config.critic.warmup else list(self.trained())
        trained = self.optimise(experience.rollouts, columns, orders, factor, names)
        if "policy" in names:
            self.memory["kl_coef"] = self.steered(metrics["objective/kl"])
        ended, tokens = time.perf_counter(), metrics["completion/length"] * config.train.batch_size
        rates = {"learning_rate": factor * config.train.learning_rate, "tokens_per_second": tokens / (ended - started)}
        phases = {"generation": sampled - started, "scoring": judged_at - sampled, "update": ended - judged_at}
        seconds = {f"seconds/{phase}": spent for phase, spent in phases.items()}
        return {**metrics, **judged, **trained, **rates, **seconds, "seconds": ended - started}

    # -------------------------------------------------------------------------------------------------- sample

    def drawn(self, number: int) -> list[Prompt]:
        """This rank's prompts of an update: an epoch is a permutation drawn from (seed, epoch)."""
        pool = self.actors.prompts
        places = range(number * self.prompts + self.rank, (number + 1) * self.prompts, self.ranks)
        epochs = {place // len(pool) for place in places}
        orders = {epoch: _shuffled(len(pool), self.config.seed, "prompts", epoch).tolist() for epoch in epochs}
        return [pool[orders[place // len(pool)][place % len(pool)]] for place in places]

    def sample(
        self, prompts: list[Prompt], number: int, places: Sequence[int], samples: int, temperature: float
    ) -> list[Completion]:
        """Completions of prompts, keyed by their places in the whole update."""
        config = self.config
        with self.accelerator.autocast():
            return rollout(
                self.actors.policy,
                self.actors.format,
                prompts,
                seed=config.seed,
                update=number,
                samples=samples,
                max_new_tokens=config.max_new_tokens,
                min_new_tokens=config.min_new_tokens,
                temperature=temperature,
                batch_size=SAMPLED * self.actors.generation_batch,
                numbers=places,
            )

    # --------------------------------------------------------------------------------------------------- score

    def score(self, completions: list[Completion], parts: list[list[int]] | None = None) -> Experience:
        """The reward, and what policy and reference say about every token, read off tries."""
        actors, temperature = self.actors, self.config.temperature
        rollouts = make_rollouts(completions, actors.format, actors.token_budget, parts, self.config.min_new_tokens)
        scores, steps = scored(completions, actors.reward, self.config)
        old = log_probabilities(rollouts, actors.policy, self.accelerator, temperature)
        reference = reference_log_probabilities(
            rollouts, actors.policy, actors.reference, self.accelerator, temperature
        )
        return Experience(completions, rollouts, scores, steps, old, reference)

    def greedy_scores(self, prompts: list[Prompt], number: int, places: Sequence[int]) -> Tensor:
        """[N] what the policy's likeliest answer to each completion's prompt scores (ReMax, Li et al. 2023)."""
        completions = self.sample(prompts, number, places, samples=1, temperature=0.0)
        scores, _ = scored(completions, self.actors.reward, self.config)
        return scores.repeat_interleave(self.config.samples)

    def describe(self, experience: Experience) -> dict[str, float]:
        """Means over the completions of all ranks; KL and entropy in nats per completion."""
        mask, coef = experience.rollouts.mask, self.memory["kl_coef"]
        kl = (rl.kl_k1(experience.old, experience.reference) * mask).sum(1)
        numbers = {
            "objective/score": experience.scores,
            "objective/kl": kl,
            "objective/rlhf_reward": experience.scores - coef * kl,
            "objective/non_score_reward": -coef * kl,
            "objective/entropy": -(experience.old * mask).sum(1),
            "completion/length": mask.sum(1),
            "completion/finished": torch.tensor([completion.finished for completion in experience.completions]),
            "completion/repetition": torch.tensor([repeated(completion.ids) for completion in experience.completions]),
        }
        sums = self.reduce(torch.stack([x.double().sum() for x in (torch.ones(len(mask)), *numbers.values())]))
        means = dict(zip(numbers, (sums[1:] / sums[0]).tolist(), strict=True))
        return means | {
            "objective/token_entropy": means["objective/entropy"] / max(means["completion/length"], 1.0),
            "objective/length_correlation": float(rl.correlation(experience.scores, mask.sum(1), self.reduce)),
        }

    def validate(self) -> tuple[dict[str, float], float]:
        """Score and KL of the policy's answers to the held-out prompts; and what a best one has most of: the guard's
        held-out reward or, without one, the objective at the first coefficient."""
        places = range(self.rank, len(self.actors.validation), self.ranks)
        prompts = [self.actors.validation[place] for place in places]
        completions = self.sample(prompts, VALIDATION, places, samples=1, temperature=self.config.temperature)
        metrics = self.describe(self.score(completions))
        if self.actors.held_out is None:
            running = self.config.score_scaling == "running"
            price = self.config.kl.coef * (deviation_so_far(self.memory) if running else 1.0)
            return metrics, metrics["objective/score"] - price * metrics["objective/kl"]
        scores = self.actors.held_out(completions).total if completions else ()
        liked = self.mean(sum(scores), len(scores))
        return metrics | {"objective/held_out": liked}, liked

    # ---------------------------------------------------------------------------------------------- advantages

    def advantages(
        self, experience: Experience, baseline: Tensor | None = None
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The columns [N, T] that the update trains on, and what is logged of them. `baseline` [N] is remax's."""
        value = None
        if self.actors.critic is not None:
            value = values(experience.rollouts, self.actors.critic, self.accelerator)
        scores = experience.scores if baseline is None else experience.scores - baseline
        running = self.config.score_scaling == "running"
        divisor = running_deviation(experience.scores, self.memory, self.reduce) if running else 1.0
        return advantage_columns(
            self.config,
            scores / divisor,
            experience.old,
            experience.reference,
            experience.rollouts.mask,
            self.memory["kl_coef"],
            value,
            None if experience.steps is None else experience.steps / divisor,
            self.reduce,
        )

    # -------------------------------------------------------------------------------------------------- update

    def optimise(
        self,
        rollouts: Rollouts,
        columns: dict[str, Tensor],
        orders: list[list[list[int]]],
        factor: float,
        names: Sequence[str],
    ) -> dict[str, float]:
        """Optimizer steps of the models named, over all minibatches of all epochs; the means over these steps."""
        config = self.config
        barred = self.actors.format.stop_ids if config.min_new_tokens else ()
        objectives = {
            "policy": policy_objective(config, self.memory["kl_coef"], barred),
            "critic": critic_objective(config.value_clip),
        }
        for _, optimizer in self.trained().values():
            set_learning_rate(optimizer, factor)
        logs: list[dict[str, float]] = []
        for part in (part for order in orders for part in order):
            rows = rollouts.rows_of(columns, part)
            means: dict[str, float] = {}
            try:
                for name in names:
                    model, optimizer = self.trained()[name]
                    limit = config.train.max_grad_norm
                    found = update(model, rows, objectives[name], optimizer, self.accelerator, limit)
                    means |= {f"{name}/{key}": value for key, value in found.items()}
            except NonFiniteLoss as error:
                raise NonFiniteLoss(
                    f"{error}. Lower train.learning_rate (now {config.train.learning_rate:g}), or look for "
                    "extreme scores of the reward; the last checkpoint stands"
                ) from error
            if not logs and "policy" in names:
                self.check("the ratio is not 1 in the first minibatch", means["policy/drift"])
            logs.append({name: value for name, value in means.items() if not name.endswith(("/loss", "/drift"))})
        return {name: sum(log[name] for log in logs) / len(logs) for name in logs[0]}

    def minibatches(self, number: int, epoch: int) -> list[list[int]]:
        """This rank's completions in each minibatch of an epoch; those of one prompt stay together."""
        order = _shuffled(self.prompts, self.config.seed, "minibatches", number, epoch)
        parts: list[list[int]] = []
        for part in order.tensor_split(self.config.minibatches):
            own = [place // self.ranks for place in part.tolist() if place % self.ranks == self.rank]
            parts.append([p * self.config.samples + s for p in own for s in range(self.config.samples)])
        return parts

    def steered(self, kl: float) -> float:
        """The KL coefficient after an update whose completions had a mean KL of `kl` nats."""
        options, coef = self.config.kl, self.memory["kl_coef"]
        if options.controller == "fixed":
            return coef
        return rl.AdaptiveKL(coef, options.target, options.horizon).update(kl, self.config.train.batch_size).coef

    def reduce(self, x: Tensor) -> Tensor:
        """The sum over all ranks."""
        return x if self.ranks == 1 else self.accelerator.reduce(x.to(self.accelerator.device), "sum").to(x.device)

    def mean(self, total: float, count: int) -> float:
        """The mean over all ranks of what this one has a sum and a number of."""
        sums = self.reduce(torch.tensor([total, count], dtype=torch.float64))
        return float(sums[0] / sums[1])

    def check(self, what: str, total: float, count: int = 1) -> None:
        """Zero in theory: a gap means that sampling, scoring and training do not see one and the same model."""
        gap = self.mean(total, count)
        if not gap <= self.actors.tolerance:
            raise RuntimeError(
                f"{what}: they differ by {gap:.2e} nats a token, more than {self.actors.tolerance:g}. "
                "Is there dropout in the model, or a module that behaves differently from pass to pass?"
            )


def _shuffled(n: int, *key: object) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of(*key)))
