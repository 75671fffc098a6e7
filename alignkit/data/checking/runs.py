"""Runs of words as numbers, and which of them stand in a sorted list. Knows no record."""

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

RUN = 13
"""Words of a run."""
Hashes = NDArray[np.uint64]
_WORD = re.compile(r"\w+")
_POWERS = np.array([pow(0x9E3779B97F4A7C15, power, 2**64) for power in range(RUN)], dtype=np.uint64)


def words_of(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation."""
    return _WORD.findall(text.casefold())


def runs_of(words: list[str]) -> Hashes:
    """[W - 12] a number for each run of 13 words, in their order; good within one process only."""
    hashes = np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).view(np.uint64)
    runs = np.zeros(max(0, len(words) - RUN + 1), dtype=np.uint64)
    for place, power in enumerate(_POWERS):
        runs += hashes[place : place + len(runs)] * power
    return runs


def within(values: Hashes, sorted_ones: Hashes) -> NDArray[np.bool_]:
    """[N] which of the values stand in a sorted array."""
    if not len(sorted_ones):
        return np.zeros(len(values), dtype=bool)
    places = np.searchsorted(sorted_ones, values)
    return sorted_ones[np.minimum(places, len(sorted_ones) - 1)] == values


def as_hashes(numbers: Iterable[int]) -> Hashes:
    """[N] of Python's numbers."""
    return np.fromiter(numbers, dtype=np.uint64)
