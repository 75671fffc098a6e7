"""Which examples each step takes, by seed alone, and this rank's share of them as rows. It knows no model."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from alignkit.options.shared import TrainOptions
from alignkit.packing import pack
from alignkit.trie import TokenSequence, TrieBatch

Example = Sequence[TokenSequence]
"""The sequences of one example (a conversation's turns, a pair, a ranking): they count once in a batch size."""


class Epochs:
    """Every example once an epoch, in an order drawn from (seed, epoch); an epoch's last batch may be smaller."""

    def __init__(self, examples: int, batch_size: int, seed: int) -> None:
        self.examples, self.batch_size, self.seed = examples, min(batch_size, examples), seed
        self.steps = math.ceil(self.examples / self.batch_size)
        """Steps in one epoch."""
        self._order = -1, torch.zeros(0, dtype=torch.int64)

    def batch(self, step: int) -> list[int]:
        """The examples of optimizer step `step` (from 0), over all ranks."""
        epoch, place = divmod(step, self.steps)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(seed_of(self.seed, "epoch", epoch))
            self._order = epoch, torch.randperm(self.examples, generator=generator)
        return self._order[1][place * self.batch_size : (place + 1) * self.batch_size].tolist()


def total_steps(options: TrainOptions, examples: int) -> int:
    """Optimizer steps of a whole training on so many examples."""
    return options.steps or max(1, round(options.epochs * Epochs(examples, options.batch_size, 0).steps))


def rows_of(examples: Sequence[Example], token_budget: int, rank: int = 0, ranks: int = 1) -> list[TrieBatch]:
    """Rows of every `ranks`-th example from `rank` on. An example is a group, numbered over all ranks."""
    sequences = [
        replace(sequence, group=group) for group in range(rank, len(examples), ranks) for sequence in examples[group]
    ]
    return pack(sequences, token_budget)


def seed_of(*parts: object) -> int:
    """A 32-bit number that depends on all parts and on nothing else."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "little")
