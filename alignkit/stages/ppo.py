"""Online policy optimisation: sample, score, estimate advantages, update. Knows no other stage, no kind of reward.

What is better than expected is the choice `advantage` (`alignkit.advantages`), what the policy descends the choice
`loss` (`alignkit.surrogates`). The first minibatch is trained on the rows that it was scored in.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim import Optimizer

from alignkit import rl
from alignkit.actors import Actors, load_actors
from alignkit.advantages import advantage_columns
from alignkit.batches import Epochs, rows_of, seed_of
from alignkit.config import InputError
from alignkit.experience import Rollouts, make_rollouts, read_policy, reference_log_probabilities, values
from alignkit.likelihood import likelihood_objective
from alignkit.loop import NonFiniteLoss, Objective, make_optimizer, update
from alignkit.objective import Readings, keeping
from alignkit.online import Online, fit_online
from alignkit.optimize import schedule_factor, set_learning_rate
from alignkit.options.ppo import PpoConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.records import Completion
from alignkit.runs import Run
from alignkit.sampling import Sampled, Sampler, shuffled
from alignkit.scoring import Scored, deviation_so_far, report, running_deviation, scored, with_scores
from alignkit.surrogates import critic_objective, policy_objective
from alignkit.trie import TrieBatch
from reward_models.rules import repeated
from reward_models.scores import Reward

VALIDATION = -1
"""The update number under which validation prompts are answered, so that every validation draws alike."""


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
    """[N] the whole reward of each completion; not-a-number where the recipe skips that it failed."""
    parts: dict[str, Tensor]
    """[N] each: what the reward is made of."""
    steps: Tensor | None
    """[N, T] what of the rewards stands inside the completions; None where nothing does."""
    old: Tensor
    """[N, T] log π of the tokens as sampled, nats."""
    reference: Tensor
    """[N, T] log π_ref of the same."""
    value: Tensor | None
    """[N, T] the value before each, where the policy has a value head."""


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
        actors.running.reduce = self.reduce
        self.memory = actors.running.memory
        self.memory |= {"kl_coef": config.kl.coef, "drawn": 0.0}  # drawn: prompts taken from the stream
        self.sampler = Sampler(config, actors, self.reduce)
        self.ptx_epochs = Epochs(len(actors.ptx), config.ptx.batch_size, config.seed) if config.ptx else None
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
        started, config = time.perf_counter(), self.config
        set_seed(seed_of(config.seed, "update", number, self.rank))
        orders = [self.minibatches(number, epoch) for epoch in range(config.ppo_epochs)]
        names = ["critic"] if number < config.critic.warmup else list(self.trained())
        part = self.sampler.update(number, int(self.memory["drawn"]))
        baseline = self.greedy_scores(part, number) if config.advantage == "remax" else None
        # The pass that trains may be the one that reads, but only on the rows that were packed.
        read_first = not config.reads_as_it_trains or "policy" not in names or self.any_failed(part.worth)
        experience = self.score(part.completions, orders[0], part.worth, read=read_first)
        if read_first and number == 0:
            self.check_start(experience)
        columns, judged = self.advantages(experience, baseline)
        if not read_first:
            del columns["old"]
        orders = with_scores(orders, experience.scores, self.reduce)
        scored_at, factor = time.perf_counter(), schedule_factor(config.train, number, self.total)
        trained, old = self.optimise(experience.rollouts, columns, orders, factor, names, number)
        if not read_first:
            experience = replace(experience, old=old)
            if number == 0:
                self.check_start(experience)
        metrics = self.describe(experience) | {"objective/kl_coef": self.memory["kl_coef"], **part.metrics}
        self.memory["drawn"] += part.drawn
        if "policy" in names:
            self.memory["kl_coef"] = self.steered(metrics["objective/kl"])
        phases = {"generation": part.seconds, "scoring": scored_at - started - part.seconds}
        rates = self.rates(factor, metrics["completion/length"], started, scored_at, phases)
        return {**metrics, **judged, **trained, **rates}

    def rates(
        self, factor: float, length: float, started: float, scored_at: float, phases: dict[str, float]
    ) -> dict[str, float]:
        """What an update's clock says."""
        now = time.perf_counter()
        seconds = {f"seconds/{name}": spent for name, spent in (phases | {"update": now - scored_at}).items()}
        rate, tokens = factor * self.config.train.learning_rate, length * self.config.train.batch_size
        return {
            "learning_rate": rate,
            "tokens_per_second": tokens / (now - started),
            **seconds,
            "seconds": now - started,
        }

    def any_failed(self, worth: Scored) -> bool:
        """Whether the reward failed on a completion of any rank."""
        return bool(self.reduce(worth.total.isnan().double().sum()) > 0)

    # --------------------------------------------------------------------------------------------------- score

    def score(
        self,
        completions: list[Completion],
        parts: list[list[int]] | None = None,
        worth: Scored | None = None,
        read: bool = True,
    ) -> Experience:
        """The reward, unless it is known, and what policy and reference say about every token, read
        off tries. Without `read`, `old` is the reference's until the update has read the policy's."""
        actors, temperature = self.actors, self.config.temperature
        rollouts = make_rollouts(completions, actors.format, actors.token_budget, parts, self.config.min_new_tokens)
        worth = worth or scored(completions, actors.reward, self.config)
        reference = reference_log_probabilities(
            rollouts, actors.policy, actors.reference, self.accelerator, temperature
        )
        old, value = reference, None
        if read:
            old, value = read_policy(rollouts, actors.policy, self.accelerator, temperature)
        steps = worth.inside(rollouts.mask.shape[1])
        return Experience(completions, rollouts, worth.total, worth.parts, steps, old, reference, value)

    def greedy_scores(self, part: Sampled, number: int) -> Tensor:
        """[N] what the policy's likeliest answer to each completion's prompt scores (ReMax, Li et al. 2023)."""
        completions = self.sampler.answers(part.prompts, number, part.places, samples=1, temperature=0.0)
        scores = scored(completions, self.actors.reward, self.config).total
        return scores.repeat_interleave(self.config.samples)

    def check_start(self, experience: Experience) -> None:
        """Before the first update the policy is its reference."""
        drift = (experience.old - experience.reference).abs()[experience.rollouts.mask]
        self.check("the policy is not its reference before the first update", float(drift.sum()), drift.numel())

    def describe(self, experience: Experience) -> dict[str, float]:
        """Means over the completions of all ranks (scores: that have one); KL and entropy in nats per completion."""
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
        known = ~experience.scores.isnan()
        means = report(numbers, experience.scores, experience.parts, self.reduce)
        return means | {
            "objective/token_entropy": means["objective/entropy"] / max(means["completion/length"], 1.0),
            "objective/length_correlation": float(
                rl.correlation(experience.scores[known], mask.sum(1)[known], self.reduce)
            ),
        }

    def validate(self) -> tuple[dict[str, float], float]:
        """Score and KL of the policy's answers to the held-out prompts; and what a best one has most of: the guard's
        held-out reward or, without one, the objective at the first coefficient."""
        places = range(self.rank, len(self.actors.validation), self.ranks)
        prompts = [self.actors.validation[place] for place in places]
        completions = self.sampler.answers(prompts, VALIDATION, places, 1, self.config.temperature)
        with self.actors.running.unchanged():
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
        value = experience.value
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
        number: int = 0,
    ) -> tuple[dict[str, float], Tensor]:
        """Optimizer steps of the models named, over all minibatches of all epochs; the means over these steps, and
        where `columns` lack "old", the log-probabilities [N, T] that the only step read."""
        config = self.config
        barred = self.actors.format.stop_ids if config.min_new_tokens else ()
        read: list[Readings] = []
        objectives = {
            "policy": keeping(policy_objective(config, self.memory["kl_coef"], barred), read),
            "critic": critic_objective(config.value_clip),
        }
        for _, optimizer in self.trained().values():
            set_learning_rate(optimizer, factor)
        logs: list[dict[str, float]] = []
        old = torch.zeros(rollouts.mask.shape)
        parts = [part for order in orders for part in order]
        for step, part in enumerate(parts):
            rows = rollouts.rows_of(columns, part)
            beside = self.beside(number * config.ppo_epochs * config.minibatches + step)
            means: dict[str, float] = {}
            try:
                for name in names:
                    model, optimizer = self.trained()[name]
                    limit = config.train.max_grad_norm
                    more = beside if name == "policy" else []
                    found = update(model, rows, objectives[name], optimizer, self.accelerator, limit, more)
                    means |= {f"{name}/{key}": value for key, value in found.items()}
            except NonFiniteLoss as error:
                raise NonFiniteLoss(
                    f"{error}. Lower train.learning_rate (now {config.train.learning_rate:g}), or look for "
                    "extreme scores of the reward; the last checkpoint stands"
                ) from error
            if not logs and "policy" in names:
                if "old" not in columns:  # the only step, on the rows as they were packed
                    old = rollouts.placed(read[: len(rows)]).get("logps", old)
                self.check("the ratio is not 1 in the first minibatch", means["policy/drift"])
            logs.append({name: value for name, value in means.items() if not name.endswith(("/loss", "/drift"))})
        return {name: sum(log[name] for log in logs) / len(logs) for name in logs[0]}, old

    def beside(self, step: int) -> list[tuple[list[TrieBatch], Objective]]:
        """What an optimizer step trains the policy on besides completions: PPO-ptx's text."""
        ptx = self.config.ptx
        if ptx is None or self.ptx_epochs is None:
            return []
        examples = [self.actors.ptx[index] for index in self.ptx_epochs.batch(step)]
        rows = rows_of(examples, self.actors.token_budget, self.rank, self.ranks)
        return [(rows, likelihood_objective(ptx.coef, "ptx"))]

    def minibatches(self, number: int, epoch: int) -> list[list[int]]:
        """This rank's completions in each minibatch of an epoch; those of one prompt stay together."""
        order = shuffled(self.prompts, self.config.seed, "minibatches", number, epoch)
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
