"""The examples of several sources as one sequence, and how often each source is drawn. Knows no file and no loss."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from alignkit.batches import Epochs, Example, Indexed, total_steps
from alignkit.config import InputError
from alignkit.options.shared import TrainOptions

SOURCE = "source"
"""The column that holds the number of the source that a sequence is of."""


@dataclass(frozen=True, slots=True)
class Mixture(Indexed):
    """The examples of all sources, one source after the other; in each sequence's columns stands its source."""

    names: Sequence[str]
    parts: Sequence[Sequence[Example]]
    draws: Sequence[int] = ()
    """How many examples an epoch takes of each source: as many in all as there are."""
    most: Sequence[float | None] = ()
    """How often a whole training may take the examples of each source."""

    @property
    def sizes(self) -> list[int]:
        """Examples of each source."""
        return [len(part) for part in self.parts]

    def __len__(self) -> int:
        return sum(self.sizes)

    def at(self, index: int) -> Example:
        """The example, its source in its sequences' columns."""
        ends = list(accumulate(self.sizes))
        source = bisect_right(ends, index)
        example = self.parts[source][index - ends[source]]  # counted from the part's end
        return [replace(sequence, columns={**sequence.columns, SOURCE: float(source)}) for sequence in example]

    def check_repeats(self, epochs: Epochs, steps: int) -> None:
        """Raises InputError where `steps` steps take the examples of a source more often than they may."""
        if not any(self.most):
            return
        for name, size, drawn, most in zip(self.names, self.sizes, epochs.drawn(steps), self.most, strict=True):
            if most is not None and drawn > most * size:
                raise InputError(
                    f"data.sources: {steps:,} steps draw {drawn:,} of the {size:,} examples of {name}, and its "
                    f"`epochs`, {most:g}, allows {math.floor(most * size):,}; lower its share or train.epochs, or "
                    "raise `epochs`"
                )


def epochs_of(examples: Sequence[Example], options: TrainOptions, seed: int) -> Epochs:
    """The order of a training. Raises InputError where it takes a source's examples more often than it may."""
    if not isinstance(examples, Mixture):
        return Epochs(len(examples), options.batch_size, seed)
    epochs = Epochs(len(examples), options.batch_size, seed, examples.sizes, examples.draws)
    examples.check_repeats(epochs, total_steps(options, len(examples)))
    return epochs


def in_memory(examples: Sequence[Example]) -> bool:
    """Whether the examples, of a mixture those of all its sources, are held, and not read when they are asked for."""
    return all(isinstance(p, list | tuple) for p in (examples.parts if isinstance(examples, Mixture) else [examples]))


def sample_of(examples: Sequence[Example], count: int) -> Sequence[Example]:
    """The first `count` examples; of a mixture the first of each source, its share of the draws, rounded up.

    A source that is drawn more often than it has examples gives them again from its first one.
    """
    if not isinstance(examples, Mixture):
        return examples[:count]
    total = len(examples)
    shares = [math.ceil(min(count, total) * draws / total) for draws in examples.draws]
    return [part[n % len(part)] for part, share in zip(examples.parts, shares, strict=True) for n in range(share)]


def draws_of(
    names: Sequence[str],
    sizes: Sequence[int],
    weights: Sequence[float] | None,
    temperature: float,
    total: int | None = None,
) -> list[int]:
    """How many examples are drawn of each source: shares of `total`, by largest remainders; left out, of an epoch,
    which draws as many as there are in all.

    Shares are the weights by their sum, or, without weights, p_s ∝ n_s^(1/T) (Arivazhagan et al. 2019,
    https://arxiv.org/abs/1907.05019; mT5's α is 1/T, https://arxiv.org/abs/2010.11934). Raises InputError for a
    source whose share is less than one example.
    """
    if weights is None:
        largest = math.log(max(sizes))
        weights = [math.exp((math.log(size) - largest) / temperature) for size in sizes]
    total = sum(sizes) if total is None else total
    exact = [total * weight / math.fsum(weights) for weight in weights]
    draws = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda source: draws[source] - exact[source])
    for source in by_remainder[: total - sum(draws)]:
        draws[source] += 1
    for name, share, count in zip(names, exact, draws, strict=True):
        if not count:
            raise InputError(
                f"data.sources: the share of {name} is {share:.2g} of the {total:,} examples to draw, less than "
                "one; raise its weight, or leave it out"
            )
    return draws
