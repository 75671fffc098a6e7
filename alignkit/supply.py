"""Where an update's completions come from, and what is read of them. Knows no advantage and no loss.

They are drawn now, one update ahead, or by a server while the update before is trained.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor

from alignkit.actors import Actors
from alignkit.ahead import Queue, Waiting
from alignkit.experience import Rollouts, make_rollouts, read_policy, reference_log_probabilities
from alignkit.generate import EngineFailure
from alignkit.mismatch import engine_logps
from alignkit.options.ppo import PpoConfig
from alignkit.records import Completion
from alignkit.sampling import Sampled, Sampler
from alignkit.scoring import Scored, scored
from reward_models.scores import RewardFailure

ROUNDING = 1e-5
"""Nats a token, in the mean, up to which two float32 passes over the same tokens differ."""


@dataclass(frozen=True, slots=True)
class Experience:
    """An update's N completions on this rank, and what was measured on their T tokens."""

    completions: list[Completion]
    rollouts: Rollouts
    worth: Scored
    """What each completion is worth."""
    old: Tensor
    """[N, T] log π of the tokens as sampled, nats."""
    reference: Tensor
    """[N, T] log π_ref of the same."""
    value: Tensor | None
    """[N, T] the value before each, where the policy has a value head."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What an update trains on."""

    part: Sampled
    experience: Experience
    baseline: Tensor | None = None
    """[N] remax's."""
    seconds: float = 0.0
    """What sampling took, of this update or, one ahead, of the next."""
    read: bool = True
    """Whether `experience.old` is the last word on it: else the first pass that trains reads it."""
    by_engine: bool = False
    """Whether it is what the engine said."""


class Supply:
    """One run's completions, update after update."""

    def __init__(
        self,
        config: PpoConfig,
        actors: Actors,
        total: int,
        memory: dict[str, float],
        minibatches: Callable[[int, int], list[list[int]]],
    ) -> None:
        self.config, self.actors, self.total = config, actors, total
        self.memory, self.minibatches = memory, minibatches
        self.sampler = Sampler(config, actors)
        self.queue = Queue(self.sampler)

    def draw(self, number: int) -> Sampled:
        """An update's completions, of the prompts that come next."""
        part = self.sampler.update(number, int(self.memory["drawn"]))
        self.memory["drawn"] += part.drawn
        return part

    def taken(self, number: int, names: Sequence[str], part: Sampled | None) -> Taken:
        """What an update trains the models `names` on: what waits for it, or completions drawn now."""
        config, order = self.config, self.minibatches(number, 0)
        if config.rollouts.ahead and part is None:
            return self.waited_for(number)
        if part is not None and self.queue.next is not None:
            experience = self.score(part.completions, order, part.worth, read=config.roles == "value_head")
            drew = engine_logps(part.completions, experience.rollouts.mask)
            assert drew is not None  # a server says them
            return Taken(part, replace(experience, old=drew), by_engine=True)
        part = part or self.draw(number)
        # The pass that trains may be the one that reads, but only on the rows that were packed.
        joins = config.reads_as_it_trains and "policy" in names and not self.any_failed(part.worth)
        experience = self.score(part.completions, order, part.worth, read=not joins)
        if joins and config.kl_is_reward:
            said = self.trusted(experience)
            joins = said is not None
            experience = replace(experience, old=self.read(experience.rollouts)[0] if said is None else said)
        return Taken(part, experience, self.greedy_scores(part, number), part.seconds, read=not joins)

    @contextmanager
    def overlapping(self, number: int) -> Iterator[tuple[Sampled, Callable[[], float]]]:
        """What an update trains on, while a server draws the next one's; the call that is given waits for those, and
        returns the seconds that it took. Where they fail, the next update does, before anything of it is trained."""
        queue, memory = self.queue, self.memory
        part = queue.begin(lambda: self.draw(number))
        if number + 1 == self.total:
            yield part, lambda: 0.0
            return
        with self.sampler.under_way(number + 1, int(memory["drawn"])) as wait:

            def finish() -> float:
                before = dict(memory)
                try:
                    following = wait()
                except (EngineFailure, RewardFailure) as failure:
                    queue.failure = failure
                    memory.clear()
                    memory.update(before)
                    return 0.0
                memory["drawn"] += following.drawn
                queue.following = Waiting(following, {})
                return following.seconds

            yield part, finish

    def waited_for(self, number: int) -> Taken:
        """The completions that wait for this update; the next update's are drawn first, by the policy as it is."""
        waiting, seconds = self.queue.take(number, self.total, self.drawn)
        part, read = waiting.part, waiting.readings
        rollouts = self.packed(part.completions, self.minibatches(number, 0))
        tokens = read["old"], read["reference"], read.get("value")
        experience = Experience(part.completions, rollouts, part.worth, *tokens)
        return Taken(part, experience, read.get("baseline"), seconds)

    def drawn(self, number: int) -> Waiting:
        """An update's completions, and what the policy that draws them, and its reference, say of their tokens."""
        part = self.draw(number)
        read = self.score(part.completions, self.minibatches(number, 0), part.worth)
        baseline = self.greedy_scores(part, number)
        readings = {"old": read.old, "reference": read.reference, "value": read.value, "baseline": baseline}
        return Waiting(part, {name: x for name, x in readings.items() if x is not None})

    def score(
        self,
        completions: list[Completion],
        parts: list[list[int]] | None = None,
        worth: Scored | None = None,
        read: bool = True,
    ) -> Experience:
        """The reward, unless it is known, and what policy and reference say about every token, read off tries.

        Without `read`, `old` is the reference's until the update has read the policy's.
        """
        actors, temperature = self.actors, self.config.temperature
        rollouts = self.packed(completions, parts)
        worth = worth or scored(completions, actors.reward, self.config)
        reference = reference_log_probabilities(
            rollouts, actors.policy, actors.reference, actors.accelerator, temperature
        )
        old, value = reference, None
        if read:
            old, value = self.read(rollouts)
        return Experience(completions, rollouts, worth, old, reference, value)

    def read(self, rollouts: Rollouts) -> tuple[Tensor, Tensor | None]:
        """What the policy, and its value head if any, say of every token, [N, T] each."""
        return read_policy(rollouts, self.actors.policy, self.actors.accelerator, self.config.temperature)

    def trusted(self, experience: Experience) -> Tensor | None:
        """[N, T] what the engine said of every token, where the KL may be reckoned from it: the update before found it
        to be the trainer's but for rounding, which is small beside the policy's distance from the reference."""
        mask, gap = experience.rollouts.mask, self.memory.get("engine_gap", math.inf)
        said = engine_logps(experience.completions, mask)
        if said is None or gap > ROUNDING:
            return None
        away = (said - experience.reference)[mask].abs().double()
        return said if self.actors.mean(float(away.sum()), away.numel()) > 100 * gap else None

    def packed(self, completions: list[Completion], parts: list[list[int]] | None) -> Rollouts:
        """Completions as the rows of their minibatches."""
        actors = self.actors
        return make_rollouts(completions, actors.format, actors.token_budget, parts, self.config.min_new_tokens)

    def greedy_scores(self, part: Sampled, number: int) -> Tensor | None:
        """[N] for remax, what the policy's likeliest answer to each completion's prompt scores (Li et al. 2023).

        After the completions: a normalised reward then is in the unit of theirs.
        """
        if self.config.advantage != "remax":
            return None
        completions = self.sampler.answers(part.prompts, number, part.places, samples=1, temperature=0.0)
        with self.actors.running.unchanged():
            scores = scored(completions, self.actors.reward, self.config).total
        return scores.repeat_interleave(self.config.samples)

    def any_failed(self, worth: Scored) -> bool:
        """Whether the reward failed on a completion of any rank."""
        return bool(self.actors.reduce(worth.total.isnan().double().sum()) > 0)
