"""Which prompts an online update answers, and with what. Knows no advantage and no loss."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from alignkit.actors import Actors
from alignkit.advantages import without_signal
from alignkit.batches import seed_of
from alignkit.draws import Draws
from alignkit.options.ppo import PpoConfig
from alignkit.records import Completion, Prompt
from alignkit.scoring import Scored, scored
from alignkit.together import together
from alignkit.vllm_server import VllmServer

SAMPLED = 16
"""Tokens sampled together for each one of a training pass: keys and values are a small part of activations."""


@dataclass
class Sampled:
    """This rank's part of an update: `config.samples` completions of each prompt, side by side."""

    prompts: list[Prompt]
    places: list[int]
    """[P] where each prompt stands in the whole update."""
    completions: list[Completion]
    worth: Scored
    """What each completion is worth."""
    seconds: float
    """What sampling them took."""
    drawn: int = 0
    """Prompts that the update took from the stream, over all ranks."""
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    stream: list[int] = field(default_factory=list[int])
    """[P] where each prompt stands in the stream."""


class Sampler:
    """Draws prompts from a stream without end, and answers them, the same for any number of processes."""

    def __init__(self, config: PpoConfig, actors: Actors) -> None:
        self.config, self.actors, self.reduce = config, actors, actors.reduce
        self.rank, self.ranks = actors.accelerator.process_index, actors.accelerator.num_processes
        self.prompts = config.prompts_per_update

    def update(self, number: int, position: int) -> Sampled:
        """An update's completions and scores, its prompts those of the stream from `position` on.

        With `config.resample`, prompts whose samples all score alike give their places to the next ones, that many
        times at most (dynamic sampling: DAPO, Yu et al. 2025, section 3.2); what then still scores alike stays.
        """
        places = range(self.rank, self.prompts, self.ranks)
        part = self.part(number, places, [position + place for place in places], places)
        part.drawn = self.prompts
        for attempt in range(1, self.config.resample + 1):
            alike = self._alike(part)
            if not alike:
                break
            own = [place for place in alike if place % self.ranks == self.rank]
            stream = [position + part.drawn + alike.index(place) for place in own]
            shift = attempt * self.prompts  # new draws for a place that had its own
            part = _replaced(part, self.part(number, own, stream, [place + shift for place in own]), len(alike))
        if self.config.resample:
            part.metrics["objective/resampled"] = float(part.drawn - self.prompts)
        return part

    @contextmanager
    def under_way(self, number: int, position: int) -> Iterator[Callable[[], Sampled]]:
        """`update`, drawn by a server while the block runs; the call that is given waits for the completions, and
        its `seconds` are those of waiting. Without `resample`."""
        config, actors = self.config, self.actors
        assert isinstance(actors.engine, VllmServer)
        places = list(range(self.rank, self.prompts, self.ranks))
        stream = [position + place for place in places]
        prompts, draws = self.at(stream), self.draws(number, places, config.samples, config.temperature)
        with actors.engine.drawing(actors.policy, actors.format, prompts, draws) as wait:

            def finish() -> Sampled:
                started = time.perf_counter()
                completions = together(wait)
                seconds = time.perf_counter() - started
                worth = scored(completions, actors.reward, config)
                return Sampled(prompts, places, completions, worth, seconds, self.prompts, stream=stream)

            yield finish

    def part(self, number: int, places: Sequence[int], stream: Sequence[int], keys: Sequence[int]) -> Sampled:
        """The completions at some places, of the prompts at `stream`, their draws keyed by `keys`."""
        started, prompts = time.perf_counter(), self.at(stream)
        completions = self.answers(prompts, number, keys, self.config.samples, self.config.temperature)
        seconds = time.perf_counter() - started
        worth = scored(completions, self.actors.reward, self.config)
        return Sampled(prompts, list(places), completions, worth, seconds, stream=list(stream))

    def at(self, stream: Sequence[int]) -> list[Prompt]:
        """The prompts at places of the stream: epoch after epoch, each a permutation drawn from (seed, epoch)."""
        pool = self.actors.prompts
        epochs = {place // len(pool) for place in stream}
        orders = {epoch: shuffled(len(pool), self.config.seed, "prompts", epoch).tolist() for epoch in epochs}
        return [pool[orders[place // len(pool)][place % len(pool)]] for place in stream]

    def answers(
        self, prompts: list[Prompt], number: int, keys: Sequence[int], samples: int, temperature: float
    ) -> list[Completion]:
        """`samples` completions of each prompt; a draw depends on (seed, update, key, sample, position) alone."""
        actors, draws = self.actors, self.draws(number, keys, samples, temperature)
        with actors.accelerator.autocast():
            if actors.episodes is not None:
                play = actors.episodes.play
                return together(lambda: play(actors.policy, prompts, draws))
            return together(lambda: actors.engine.rollout(actors.policy, actors.format, prompts, draws))

    def draws(self, number: int, keys: Sequence[int], samples: int, temperature: float) -> Draws:
        """What an update draws for the prompts that go by `keys`."""
        draws = Draws.of(self.config, SAMPLED * self.actors.token_budget, keys, number)
        return replace(draws, samples=samples, temperature=temperature)

    def _alike(self, part: Sampled) -> list[int]:
        """The places, over all ranks, whose samples score alike: they teach a group nothing."""
        found = torch.zeros(self.prompts, dtype=torch.float64)
        groups = part.worth.total.view(-1, self.config.samples)
        found[torch.tensor(part.places, dtype=torch.int64)] = without_signal(groups).double()
        return self.reduce(found).nonzero().flatten().tolist()


def _replaced(part: Sampled, new: Sampled, drawn: int) -> Sampled:
    """`part` with the completions of `new` at their places."""
    total, samples = len(part.completions), len(part.completions) // max(1, len(part.places))
    order, prompts, stream = list(range(total)), list(part.prompts), list(part.stream)
    for n, place in enumerate(new.places):
        at = part.places.index(place)
        prompts[at], stream[at] = new.prompts[n], new.stream[n]
        order[at * samples : (at + 1) * samples] = range(total + n * samples, total + (n + 1) * samples)
    both = [*part.completions, *new.completions]
    worth = part.worth.joined(new.worth).chosen(order)
    seconds = part.seconds + new.seconds
    return Sampled(prompts, part.places, [both[n] for n in order], worth, seconds, part.drawn + drawn, stream=stream)


def shuffled(n: int, *key: object) -> Tensor:
    """A permutation of 0 … n-1 that depends on the key alone."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of(*key)))
