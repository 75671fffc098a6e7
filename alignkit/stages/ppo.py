"""PPO with a critic: sample, score, estimate advantages, update. It knows no other stage and no kind of reward.

A token's reward is -coef·(log π - log π_ref), plus the completion's score at its last token (Ziegler et al. 2019).
Policy and critic are trained by the clipped losses of Schulman et al. (2017), first on the rows they were scored in.
"""

import math
import random
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from alignkit import rl
from alignkit.actors import Actors, load_actors
from alignkit.checkpoint import copy_parameters, load_checkpoint, save_checkpoint, trained_parameters
from alignkit.experience import Rollouts, log_probabilities, make_rollouts, reference_log_probabilities, values
from alignkit.generate import rollout
from alignkit.loop import NonFiniteLoss, Objective, Sums, make_accelerator, make_optimizer, update
from alignkit.losses import is_clipped, policy_clip, value_clip
from alignkit.optimize import schedule_factor, set_learning_rate
from alignkit.options.ppo import PpoConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.packing import TrieBatch
from alignkit.progress import peak_memory_bytes, progress
from alignkit.records import Completion, Prompt
from alignkit.runs import Run
from reward_models.functions import Reward

HELD_OUT = -1
"""The update number under which validation prompts are answered, so that every validation draws alike."""


def run(config: PpoConfig, runtime: RuntimeOptions, run: Run, reward: Reward | None = None) -> Path:
    """Train the policy; returns the artifact's folder. `reward` replaces the recipe's, for library use."""
    accelerator = make_accelerator(runtime)
    actors = load_actors(config, runtime, run, accelerator, reward)
    return _Ppo(config, runtime, run, accelerator, actors).go()


@dataclass
class _State:
    """What a resumed run must know besides parameters and optimizers."""

    update: int = 0
    coef: float = 0.0
    best: float = -math.inf
    stale: int = 0
    metrics: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Experience:
    """One update's completions and what was measured on them, all [N, T] but `scores` [N]."""

    rollouts: Rollouts
    scores: Tensor
    old: Tensor
    """log π of the tokens as sampled, nats."""
    reference: Tensor
    values: Tensor


class _Ppo:
    def __init__(
        self, config: PpoConfig, runtime: RuntimeOptions, run: Run, accelerator: Accelerator, actors: Actors
    ) -> None:
        self.config, self.runtime, self.run, self.accelerator, self.actors = config, runtime, run, accelerator, actors
        self.rank, self.ranks = accelerator.process_index, accelerator.num_processes
        self.prompts = config.train.batch_size // config.samples
        self.total = config.train.steps or max(1, round(config.train.epochs * len(actors.prompts) / self.prompts))
        self.evaluate_every = config.train.evaluate_every or math.ceil(self.total / 5)
        self.policy_optimizer = make_optimizer(actors.policy, config.train)
        rate = config.critic.learning_rate or 5 * config.train.learning_rate
        self.critic_optimizer = make_optimizer(actors.critic, config.train.model_copy(update={"learning_rate": rate}))
        self.policy_objective = policy_objective(config.clip, config.temperature)
        self.critic_objective = critic_objective(config.value_clip)
        self.state = _State(coef=config.kl.coef)
        self.best: dict[str, Tensor] = {}
        self.seconds, self.tokens = 0.0, 0.0

    # ---------------------------------------------------------------------------------------------- one update

    def step(self) -> dict[str, float]:
        """sample -> score -> advantages -> update; returns what it logs."""
        started = time.perf_counter()
        number, config = self.state.update, self.config
        set_seed(random.Random(f"{config.seed} update {number} {self.rank}").getrandbits(32))
        places = range(self.rank, self.prompts, self.ranks)
        completions = self.sample([self.actors.prompts[self.drawn(place)] for place in places], number, places)
        orders = [self.minibatches(number, epoch) for epoch in range(config.ppo_epochs)]
        experience = self.score(completions, orders[0])
        metrics, columns = self.advantages(experience, completions)
        factor = schedule_factor(config.train, number, self.total)
        metrics |= self.optimise(experience.rollouts, columns, orders, factor)
        self.state.coef = self.controller().update(metrics["objective/kl"], config.train.batch_size).coef
        self.state.update += 1
        seconds, tokens = time.perf_counter() - started, metrics["completion/length"] * config.train.batch_size
        self.seconds, self.tokens = self.seconds + seconds, self.tokens + tokens
        rate = factor * config.train.learning_rate
        return {**metrics, "learning_rate": rate, "tokens_per_second": tokens / seconds, "seconds": seconds}

    def drawn(self, place: int) -> int:
        """The index of the prompt at a place of this update: an epoch is a permutation drawn from (seed, epoch)."""
        epoch, n = divmod(self.state.update * self.prompts + place, len(self.actors.prompts))
        return _shuffled(len(self.actors.prompts), f"{self.config.seed} prompts {epoch}")[n]

    def minibatches(self, number: int, epoch: int) -> list[list[int]]:
        """This rank's completions in each minibatch of an epoch; those of one prompt stay together."""
        order = _shuffled(self.prompts, f"{self.config.seed} minibatches {number} {epoch}")
        parts = torch.tensor(order).tensor_split(self.config.minibatches)
        own = [[place // self.ranks for place in part.tolist() if place % self.ranks == self.rank] for part in parts]
        return [[p * self.config.samples + s for p in part for s in range(self.config.samples)] for part in own]

    def sample(self, prompts: list[Prompt], number: int, places: range) -> list[Completion]:
        """Completions of this rank's prompts, keyed by their places in the whole update."""
        with self.accelerator.autocast():
            return rollout(
                self.actors.policy,
                self.actors.format,
                prompts,
                seed=self.config.seed,
                update=number,
                samples=self.config.samples if number != HELD_OUT else 1,
                max_new_tokens=self.config.max_new_tokens,
                min_new_tokens=self.config.min_new_tokens,
                temperature=self.config.temperature,
                batch_size=self.actors.generation_batch,
                numbers=places,
            )

    def score(self, completions: list[Completion], parts: list[list[int]] | None = None) -> Experience:
        """The reward's score, and log-probabilities, reference and values of every token, read off tries."""
        actors, temperature = self.actors, self.config.temperature
        rollouts = make_rollouts(completions, actors.format, self.runtime.token_budget, parts)
        scored = actors.reward(completions).total if completions else ()
        return Experience(
            rollouts,
            settle_missing_eos(torch.tensor(scored), completions, self.config),
            log_probabilities(rollouts, actors.policy, self.accelerator, temperature),
            reference_log_probabilities(rollouts, actors.policy, actors.reference, self.accelerator, temperature),
            values(rollouts, actors.critic, self.accelerator) if parts is not None else torch.zeros(0),
        )

    def advantages(
        self, experience: Experience, completions: list[Completion]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Metrics of the sampled completions, and the columns [N, T] that the update trains on."""
        config, mask = self.config, experience.rollouts.mask
        kl = rl.kl_k1(experience.old, experience.reference)
        if self.state.update == 0:
            self.check("the policy differs from its reference before the first update", kl.abs()[mask])
        rewards = rl.shaped_rewards(experience.scores, kl, mask, self.state.coef)
        advantages, returns = rl.gae(rewards, experience.values, mask, config.gamma, config.lam)
        metrics = self.describe(experience, completions)
        explained = rl.explained_variance(experience.values, returns, mask, self.reduce)
        metrics |= {"critic/explained_variance": float(explained), "objective/kl_coef": self.state.coef}
        if config.whiten_advantages:
            advantages = rl.whiten(advantages, mask, reduce=self.reduce)
        columns = {"old": experience.old, "advantage": advantages, "return": returns, "value": experience.values}
        return metrics, columns

    def optimise(
        self, rollouts: Rollouts, columns: dict[str, Tensor], orders: list[list[list[int]]], factor: float
    ) -> dict[str, float]:
        """Optimizer steps of policy and critic over all minibatches of all epochs; the means over these steps."""
        actors, norm = self.actors, self.config.train.max_grad_norm
        set_learning_rate(self.policy_optimizer, factor)
        set_learning_rate(self.critic_optimizer, factor)
        logs: list[dict[str, float]] = []
        for part in (part for order in orders for part in order):
            rows = rollouts.rows_of(columns, part)
            try:
                policy = update(
                    actors.policy, rows, self.policy_objective, self.policy_optimizer, self.accelerator, norm
                )
                critic = update(
                    actors.critic, rows, self.critic_objective, self.critic_optimizer, self.accelerator, norm
                )
            except NonFiniteLoss as error:
                raise NonFiniteLoss(
                    f"update {self.state.update + 1} of {self.total}: {error}. Lower train.learning_rate (now "
                    f"{self.config.train.learning_rate:g}), or look for extreme scores of the reward"
                ) from error
            if not logs:
                self.check("the first minibatch's ratio is not 1", torch.tensor([policy["drift"]]))
            del policy["drift"]
            logs.append({f"policy/{k}": v for k, v in policy.items()} | {f"critic/{k}": v for k, v in critic.items()})
        return {name: sum(log[name] for log in logs) / len(logs) for name in logs[0]}

    # ------------------------------------------------------------------------------------------ around updates

    def go(self) -> Path:
        self.resume()
        last = dict[str, float]()
        if self.state.update == 0:
            self.validate()
        with progress(self.run.directory.name, self.total, shown=self.accelerator.is_main_process) as advance:
            while self.state.update < self.total and not self.stopped():
                last = self.step()
                number = self.state.update
                if number % self.runtime.log_every == 0 or number == self.total:
                    self.run.log(number, last)
                advance(number, {k: last[k] for k in ("objective/score", "objective/kl", "tokens_per_second")})
                if number % self.evaluate_every == 0 or number == self.total:
                    self.validate()
                if number % (self.config.train.checkpoint_every or self.evaluate_every) == 0 and number < self.total:
                    self.checkpoint()
        if self.config.train.patience and self.best:
            copy_parameters(self.actors.policy, self.best, "the best validation")
        return self.finish(self.state.metrics or last)

    def validate(self) -> None:
        """Score and KL of the policy's answers to the held-out prompts; the best is kept for early stopping."""
        if not self.actors.validation:
            return
        places = range(self.rank, len(self.actors.validation), self.ranks)
        completions = self.sample([self.actors.validation[place] for place in places], HELD_OUT, places)
        metrics = self.describe(self.score(completions), completions)
        self.run.log(self.state.update, {f"validation/{name}": value for name, value in metrics.items()})
        # Measured at the first coefficient, so that an adaptive one does not move the yardstick.
        objective = metrics["objective/score"] - self.config.kl.coef * metrics["objective/kl"]
        patient = self.config.train.patience is not None
        if objective > self.state.best:
            self.state.best, self.state.stale = objective, 0
            if patient:
                own = trained_parameters(self.actors.policy)
                self.best = {name: p.detach().to("cpu", copy=True) for name, p in own.items()}
        else:
            self.state.stale += 1
        if not patient or self.state.stale == 0:
            self.state.metrics = metrics

    def describe(self, experience: Experience, completions: list[Completion]) -> dict[str, float]:
        """Means over the completions of all ranks; KL and entropy in nats per completion."""
        mask = experience.rollouts.mask
        kl = ((experience.old - experience.reference) * mask).sum(1)
        numbers = {
            "objective/score": experience.scores,
            "objective/kl": kl,
            "objective/rlhf_reward": experience.scores - self.state.coef * kl,
            "objective/non_score_reward": -self.state.coef * kl,
            "objective/entropy": -(experience.old * mask).sum(1),
            "completion/length": mask.sum(1),
            "completion/finished": torch.tensor([completion.finished for completion in completions]),
        }
        count = torch.tensor([len(completions)])
        sums = self.reduce(torch.stack([x.double().sum() for x in (count, *numbers.values())]))
        return dict(zip(numbers, (sums[1:] / sums[0]).tolist(), strict=True))

    def reduce(self, x: Tensor) -> Tensor:
        """The sum over all ranks."""
        return x if self.ranks == 1 else self.accelerator.reduce(x.to(self.accelerator.device), "sum").to(x.device)

    def check(self, what: str, gaps: Tensor) -> None:
        """Both are exact in theory: a gap means that sampling, scoring and training do not see one model."""
        sums = self.reduce(torch.tensor([float(gaps.double().sum()), float(gaps.numel())], dtype=torch.float64))
        gap = float(sums[0] / sums[1])
        if not gap <= self.actors.tolerance:
            raise RuntimeError(
                f"update {self.state.update + 1}: {what}: {gap:.2e} nats a token, above {self.actors.tolerance:g}. "
                "Is there dropout in the model, or a module that behaves differently from pass to pass?"
            )

    def controller(self) -> rl.FixedKL | rl.AdaptiveKL:
        kl = self.config.kl
        if kl.controller == "fixed":
            return rl.FixedKL(self.state.coef)
        return rl.AdaptiveKL(self.state.coef, kl.target, kl.horizon)

    def stopped(self) -> bool:
        return self.config.train.patience is not None and self.state.stale >= self.config.train.patience

    def checkpoint(self) -> None:
        """Everything that changes: both models, both optimizers, the KL coefficient and the position."""
        if self.accelerator.is_main_process:
            best = {"best": self.best} if self.best else {}
            with self.run.checkpoint_dir(self.state.update, self.config.train.keep_checkpoints) as folder:
                for name in ("policy", "critic"):
                    (folder / name).mkdir()
                save_checkpoint(folder / "policy", self.actors.policy, self.policy_optimizer, asdict(self.state), best)
                save_checkpoint(folder / "critic", self.actors.critic, self.critic_optimizer, {})

    def resume(self) -> None:
        folder = self.run.latest_checkpoint()
        if folder is not None:
            state, tensors = load_checkpoint(folder / "policy", self.actors.policy, self.policy_optimizer)
            load_checkpoint(folder / "critic", self.actors.critic, self.critic_optimizer)
            self.state, self.best = _State(**state), tensors.get("best", {})
            self.run.truncate(self.state.update)
        self.accelerator.wait_for_everyone()

    def finish(self, metrics: dict[str, float]) -> Path:
        if self.accelerator.is_main_process:
            self.actors.save(self.run.model_dir)
        self.accelerator.wait_for_everyone()
        examples = self.state.update * self.config.train.batch_size
        seconds = max(self.seconds, 1e-9)
        rates = {"examples_per_second": examples / seconds, "tokens_per_second": self.tokens / seconds}
        self.run.finish(metrics, rates, peak_memory_bytes(self.accelerator.device))
        return self.run.model_dir


# ------------------------------------------------------------------------------------------------- objectives


def policy_objective(clip: float, temperature: float) -> Objective:
    """PPO's clipped surrogate, a mean over all tokens of the step. `drift` is |log π - log π_old|."""

    def loss(readings: dict[str, Tensor], batch: TrieBatch) -> Sums:
        logp, weight = readings["logps"], batch.weight
        old, advantage = batch.entry_columns["old"], batch.entry_columns["advantage"]
        with torch.no_grad():
            metrics = {
                "clip_fraction": is_clipped(logp, old, advantage, clip).float(),
                "approx_kl": rl.kl_k3(old, logp),
                "ratio": torch.exp(logp - old),
                "drift": (logp - old).abs(),
            }
        surrogate = (weight * policy_clip(logp, old, advantage, clip)).sum()
        return Sums({"surrogate": surrogate}, {name: (weight * x).sum() for name, x in metrics.items()})

    names = ("surrogate", "clip_fraction", "approx_kl", "ratio", "drift")
    return Objective(
        read=lambda policy, batch: {"logps": policy(batch, temperature=temperature).logps},
        loss=loss,
        count=lambda batch: dict.fromkeys(names, float(batch.weight.sum())),
    )


def critic_objective(clip: float | None) -> Objective:
    """Half the squared error of the value before each token, a mean over all tokens of the step."""

    def loss(readings: dict[str, Tensor], batch: TrieBatch) -> Sums:
        old, returns = batch.entry_columns["value"], batch.entry_columns["return"]
        error = batch.weight * value_clip(readings["values"], old, returns, clip)
        return Sums({"value": error.sum()}, {"mean": (batch.weight * readings["values"].detach()).sum()})

    return Objective(
        read=lambda critic, batch: {"values": critic(batch, at="source")},
        loss=loss,
        count=lambda batch: dict.fromkeys(("value", "mean"), float(batch.weight.sum())),
    )


def settle_missing_eos(scores: Tensor, completions: list[Completion], config: PpoConfig) -> Tensor:
    """Scores [N] after the rule for completions that were cut off before their end token."""
    missing = torch.tensor([not completion.finished for completion in completions], dtype=torch.bool)
    rule, value = config.missing_eos.rule, config.missing_eos.value
    if rule == "replace":
        return torch.where(missing, value, scores)
    return scores - value * missing if rule == "subtract" else scores


def _shuffled(n: int, key: str) -> list[int]:
    return random.Random(key).sample(range(n), n)
