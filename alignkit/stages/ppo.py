"""Online policy optimisation: sample, score, estimate advantages, update. Knows no other stage, no kind of reward.

What is better than expected is the choice `advantage` (`alignkit.advantages`), what the policy descends the choice
`loss` (`alignkit.surrogates`). The first minibatch is trained on the rows that it was scored in; where it is the only
one of a pass, values and log-probabilities as sampled are read in the pass that trains on it.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from accelerate.utils import set_seed
from torch import Tensor

from alignkit import rl
from alignkit.actors import Actors, load_actors
from alignkit.advantages import advantage_columns, token_rewards
from alignkit.batches import seed_of
from alignkit.config import InputError
from alignkit.experience import values
from alignkit.learner import Learner
from alignkit.mismatch import check_engine, engine_logps, mismatch
from alignkit.online import Online, fit_online
from alignkit.optimize import schedule_factor
from alignkit.options.ppo import PpoConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.runs import Run
from alignkit.sampling import Sampled
from alignkit.scoring import Scored, running_deviation, with_scores
from alignkit.supply import Experience, Supply
from alignkit.together import together
from alignkit.update_log import describe, pace
from reward_models.running import moments
from reward_models.scores import Reward, RewardFailure, valued

VALIDATION = -1
"""The update number under which validation prompts are answered, so that every validation draws alike."""


def run(config: PpoConfig, runtime: RuntimeOptions, run: Run, reward: Reward | None = None) -> Path:
    """Train the policy; returns the artifact's folder. `reward` replaces the recipe's, for library use."""
    actors = load_actors(config, runtime, run, reward)
    ppo = Ppo(config, actors)
    online = Online(
        models=ppo.learner.trained(),
        step=ppo.step,
        validate=ppo.validate if actors.validation else None,
        memory=ppo.memory,
        save=actors.save,
        guard=config.guard,
        keep=ppo.supply.queue.keep if config.rollouts.ahead else None,
        restore=ppo.supply.queue.restore if config.rollouts.ahead else None,
    )
    return fit_online(online, ppo.total, config.train, runtime, run, actors.accelerator)


class Ppo:
    """One run's actors and optimizers, and what happens in an update."""

    def __init__(self, config: PpoConfig, actors: Actors) -> None:
        self.config, self.actors, self.accelerator = config, actors, actors.accelerator
        prompts = len(actors.prompts) / config.prompts_per_update
        self.total = config.train.steps or max(1, round(config.train.epochs * prompts))
        if config.critic.warmup >= self.total:
            raise InputError(
                f"critic.warmup: {config.critic.warmup} leaves none of {self.total} updates for the policy"
            )
        actors.running.reduce = actors.reduce
        self.memory = actors.running.memory
        self.memory |= {"kl_coef": config.kl.coef, "drawn": 0.0}  # drawn: prompts taken from the stream
        self.learner = Learner(config, actors)
        self.supply = Supply(config, actors, self.total, self.memory, self.learner.minibatches)

    def step(self, number: int) -> dict[str, float]:
        """sample -> score -> advantages -> update; returns what it logs."""
        started = time.perf_counter()
        set_seed(seed_of(self.config.seed, "update", number, self.accelerator.process_index))
        if not self.config.overlaps:
            return self.update(number, started)
        with self.supply.overlapping(number) as (part, finish):
            return self.update(number, started, part, finish)

    def update(
        self, number: int, started: float, part: Sampled | None = None, finish: Callable[[], float] = lambda: 0.0
    ) -> dict[str, float]:
        """`step`, on the completions `part` where they are here already; `finish` waits for the next ones, and returns
        the seconds that it took."""
        config, waited = self.config, self.supply.queue.next is not None
        names = ["critic"] if number < config.critic.warmup else list(self.learner.trained())
        taken = self.supply.taken(number, names, part)
        experience = taken.experience
        if taken.read and number == 0:
            self.check_start(experience)
        orders = [self.learner.minibatches(number, epoch) for epoch in range(config.ppo_epochs)]
        orders = with_scores(orders, experience.worth.total, self.actors.reduce)
        aim = self.aim(experience, taken.baseline)
        scored_at, factor = time.perf_counter(), schedule_factor(config.train, number, self.total)
        rewards = self.rewards(experience, aim)
        value, stepped = self.judge(experience, rewards, orders[0][0], factor)
        columns, judged = self.advantages(experience, aim, rewards, value)
        if not taken.read:
            del columns["old"]
        engine = None if taken.by_engine else engine_logps(experience.completions, experience.rollouts.mask)
        if engine is not None and config.rollouts.correction == "truncated":
            columns["engine"] = engine
        coef, rollouts = self.memory["kl_coef"], experience.rollouts
        trained, old, drift = self.learner.optimise(rollouts, columns, orders, factor, names, coef, number, stepped)
        if not waited:
            self.actors.check("the ratio is not 1 in the first minibatch", drift)
        self.actors.engine.refresh()
        trained_at, waiting = time.perf_counter(), finish()
        scoring = scored_at - started - taken.seconds + time.perf_counter() - trained_at - waiting
        if not taken.read:
            experience = replace(experience, old=old)
            if number == 0:
                self.check_start(experience)
        metrics = self.describe(experience) | {"objective/kl_coef": coef, **taken.part.metrics}
        if engine is not None:
            metrics |= self.engine_gap(experience, engine, number)
        if config.rollouts.ahead:
            self.supply.queue.advance()
            metrics["sampling/lag"] = float(waited)
            if waited and "policy" in names:
                metrics["sampling/staleness"] = drift
        if "policy" in names:
            self.memory["kl_coef"] = self.steered(metrics["objective/kl"])
        phases = {"generation": taken.seconds + waiting, "scoring": scoring, "update": trained_at - scored_at}
        rates = {"learning_rate": factor * config.train.learning_rate}
        rates |= pace(phases, metrics["completion/length"] * config.train.batch_size, time.perf_counter() - started)
        return {**metrics, **judged, **trained, **rates}

    def engine_gap(self, experience: Experience, engine: Tensor, number: int) -> dict[str, float]:
        """How far what the engine said of its tokens [N, T] is from what the trainer says."""
        options = self.config.rollouts
        cap = options.cap if options.correction == "truncated" else None
        found = mismatch(experience.old, engine, experience.rollouts.mask, cap, self.actors.reduce)
        self.memory["engine_gap"] = found["sampling/logp_difference"]
        if number == 0 and options.engine != "transformers":
            check_engine(found, options.engine)
        return found

    def steered(self, kl: float) -> float:
        """The KL coefficient after an update whose completions had a mean KL of `kl` nats."""
        options, coef = self.config.kl, self.memory["kl_coef"]
        if options.controller == "fixed":
            return coef
        return rl.AdaptiveKL(coef, options.target, options.horizon).update(kl, self.config.train.batch_size).coef

    def check_start(self, experience: Experience) -> None:
        """Before the first update the policy is its reference."""
        drift = (experience.old - experience.reference).abs()[experience.rollouts.mask]
        self.actors.check("the policy is not its reference before the first update", float(drift.sum()), drift.numel())

    def describe(self, experience: Experience) -> dict[str, float]:
        """What is logged of completions and of what was read of them."""
        return describe(experience, self.config, self.memory["kl_coef"], self.actors.reduce)

    def validate(self) -> tuple[dict[str, float], float]:
        """Score and KL of the policy's answers to the held-out prompts; and what a best one has most of: the guard's
        held-out reward or, without one, the objective at the first coefficient."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        places = range(rank, len(self.actors.validation), ranks)
        prompts = [self.actors.validation[place] for place in places]
        completions = self.supply.sampler.answers(prompts, VALIDATION, places, 1, self.config.temperature)
        with self.actors.running.unchanged():
            try:
                metrics = self.describe(self.supply.score(completions))
            except RewardFailure as failure:
                raise RewardFailure(f"validation: {failure}") from failure
        if self.actors.held_out is None:
            running = self.config.score_scaling == "running"
            price = self.config.kl.coef * (moments(self.memory)[1] if running else 1.0)
            return metrics, metrics["objective/score"] - price * metrics["objective/kl"]
        held_out = self.actors.held_out
        scores = together(lambda: valued(completions, held_out, "held_out").whole)
        liked = self.actors.mean(sum(score or 0.0 for score in scores), len(scores))
        return metrics | {"objective/held_out": liked}, liked

    def aim(self, experience: Experience, baseline: Tensor | None = None) -> Scored:
        """What the completions are worth to this update: `baseline` [N], remax's, taken off, and in deviations of all
        scores so far where the recipe says so, which these join. Once an update."""
        worth = experience.worth
        running = self.config.score_scaling == "running"
        divisor = running_deviation(worth.total, self.memory, self.actors.reduce) if running else 1.0
        total = worth.total if baseline is None else worth.total - baseline
        return replace(worth, total=total / divisor, steps=None if worth.steps is None else worth.steps / divisor)

    def rewards(self, experience: Experience, aim: Scored) -> Tensor:
        """What each token earns, [N, T]."""
        mask, log_ratio = experience.rollouts.mask, rl.kl_k1(experience.old, experience.reference)
        return token_rewards(
            self.config, aim.total, log_ratio, mask, self.memory["kl_coef"], aim.inside(mask.shape[1])
        )

    def judge(
        self, experience: Experience, rewards: Tensor, part: list[int], factor: float
    ) -> tuple[Tensor | None, dict[str, float]]:
        """The value before each token [N, T], if there is a critic; and, where the pass that reads it is the one that
        trains the critic on `part`, that step's means."""
        critic, rollouts = self.actors.critic, experience.rollouts
        if critic is None:
            return experience.value, {}
        if self.config.minibatches > 1 or self.supply.any_failed(experience.worth):
            return values(rollouts, critic, self.accelerator), {}
        return self.learner.judge(rollouts, rewards, part, factor)

    def advantages(
        self, experience: Experience, aim: Scored, rewards: Tensor, value: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The columns [N, T] that the update trains on, and what is logged of them."""
        tokens, coef = (experience.old, experience.reference, experience.rollouts.mask), self.memory["kl_coef"]
        return advantage_columns(self.config, aim.total, rewards, *tokens, coef, value, self.actors.reduce)
