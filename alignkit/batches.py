"""Which examples each step takes, by seed alone, and this rank's share of them as rows. It knows no model."""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import overload

import torch
from torch import Tensor

from alignkit.options.shared import TrainOptions
from alignkit.packing import pack
from alignkit.trie import TokenSequence, TrieBatch

Example = Sequence[TokenSequence]
"""The sequences of one example (a conversation's turns, a pair, a ranking): they count once in a batch size."""


class Indexed(Sequence[Example]):
    """Examples that are made or read when they are asked for: `at` gives the one of a number."""

    __slots__ = ()

    @abstractmethod
    def at(self, index: int) -> Example:
        """The example of this number, which is in range."""

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self.at(n) for n in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.at(index % len(self))


class Epochs:
    """Every example once an epoch, in an order drawn from (seed, epoch); an epoch's last batch may be smaller.

    Of a mixture, `draws` says how many examples an epoch takes of each source of `sizes`, which stand one after the
    other. Each source is gone through in orders of its own, drawn from (seed, source, pass): an epoch goes on where
    the one before ended, so no example comes again before all of its source have come.
    """

    def __init__(
        self, examples: int, batch_size: int, seed: int, sizes: Sequence[int] = (), draws: Sequence[int] = ()
    ) -> None:
        self.examples, self.batch_size, self.seed = examples, min(batch_size, examples), seed
        self.sizes, self.draws = sizes, draws
        assert not draws or (sum(sizes) == sum(draws) == examples)
        self.steps = math.ceil(self.examples / self.batch_size)
        """Steps in one epoch."""
        self._order = -1, torch.zeros(0, dtype=torch.int64)

    def batch(self, step: int) -> list[int]:
        """The examples of optimizer step `step` (from 0), over all ranks."""
        epoch, place = divmod(step, self.steps)
        return self._of(epoch)[place * self.batch_size : (place + 1) * self.batch_size].tolist()

    def drawn(self, steps: int) -> list[int]:
        """How many examples of each source the first `steps` steps take."""
        epochs, rest = divmod(steps, self.steps)
        taken = self._of(epochs)[: rest * self.batch_size] if rest else torch.zeros(0, dtype=torch.int64)
        ends = torch.tensor(self.sizes).cumsum(0)
        last = torch.bucketize(taken, ends, right=True).bincount(minlength=len(self.sizes)).tolist()
        return [epochs * draws + more for draws, more in zip(self.draws, last, strict=True)]

    def _of(self, epoch: int) -> Tensor:
        """The order of an epoch, [examples]: 4 bytes an example; of a mixture 12 while it is made."""
        if self._order[0] != epoch:
            self._order = -1, torch.zeros(0, dtype=torch.int64)
            taken = self._taken(epoch) if self.draws else None
            order = _permutation(self.examples, self.seed, "epoch", epoch)
            self._order = epoch, order if taken is None else taken.index_select(0, order)
        return self._order[1]

    def _taken(self, epoch: int) -> Tensor:
        """The examples that an epoch draws of each source, [examples], source by source."""
        taken = torch.empty(self.examples, dtype=_integers(self.examples))
        filled = first = 0
        for source, (size, draws) in enumerate(zip(self.sizes, self.draws, strict=True)):
            draw, end = epoch * draws, (epoch + 1) * draws
            while draw < end:
                turn, place = divmod(draw, size)
                count = min(size - place, end - draw)
                order = _permutation(size, self.seed, "source", source, turn)
                taken[filled : filled + count] = order[place : place + count]
                taken[filled : filled + count] += first
                draw, filled = draw + count, filled + count
            first += size
        return taken


def total_steps(options: TrainOptions, examples: int) -> int:
    """Optimizer steps of a whole training on so many examples."""
    return options.steps or max(1, round(options.epochs * Epochs(examples, options.batch_size, 0).steps))


def _permutation(count: int, *parts: object) -> Tensor:
    """[count] the numbers below it in an order drawn from the parts; it does not depend on how wide they are."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(*parts)), dtype=_integers(count))


def _integers(count: int) -> torch.dtype:
    """What numbers below `count` fit in."""
    return torch.int32 if count < 2**31 else torch.int64


def rows_of(
    examples: Sequence[Example],
    token_budget: int,
    rank: int = 0,
    ranks: int = 1,
    chosen: Sequence[int] | None = None,
) -> list[TrieBatch]:
    """Rows of every `ranks`-th example from `rank` on, of all or of those that `chosen` names; no other is looked at.

    An example is a group, numbered over all ranks.
    """
    chosen = range(len(examples)) if chosen is None else chosen
    sequences = [
        replace(sequence, group=group)
        for group in range(rank, len(chosen), ranks)
        for sequence in examples[chosen[group]]
    ]
    return pack(sequences, token_budget)


def seed_of(*parts: object) -> int:
    """A 32-bit number that depends on all parts and on nothing else."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "little")


CHUNK = 1_024
"""Examples that a validation, or the pass that computes a reference, has in memory at once."""


class Chunks(Sequence[list[TrieBatch]]):
    """This rank's rows of many examples, chunk by chunk, each packed when it is asked for; with `keep`, once."""

    def __init__(
        self, examples: Sequence[Example], size: int, token_budget: int, rank: int, ranks: int, *, keep: bool = False
    ) -> None:
        self._examples, self._size = examples, size
        self._layout = token_budget, rank, ranks
        self._kept: dict[int, list[TrieBatch]] | None = {} if keep else None

    def __len__(self) -> int:
        return math.ceil(len(self._examples) / self._size)

    @overload
    def __getitem__(self, index: int) -> list[TrieBatch]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[TrieBatch]]: ...
    def __getitem__(self, index: int | slice) -> list[TrieBatch] | list[list[TrieBatch]]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        chosen = range(len(self._examples))[index * self._size : (index + 1) * self._size]
        rows = rows_of(self._examples, *self._layout, chosen)
        if self._kept is not None:
            self._kept[index] = rows
        return rows
