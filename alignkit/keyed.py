"""Sampling by one keyed random number per token, as a logits processor of transformers. Knows no model, no prompt.

A draw depends on (seed, update, prompt, sample, position) and nothing else.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


class KeyedDraw(LogitsProcessor):
    """Replaces the next token's scores by the drawn token alone, so that a greedy step takes it."""

    def __init__(
        self, keys: Tensor, prompt_length: int, temperature: float, min_new_tokens: int, stop_ids: Sequence[int]
    ) -> None:
        self.keys = keys
        self.prompt_length = prompt_length
        self.temperature = temperature
        self.min_new_tokens = min_new_tokens
        self.stop_ids = list(stop_ids)
        self._rows = torch.arange(len(keys))
        self._batch = len(keys)
        self._chances: list[tuple[Tensor, Tensor]] = []

    def keep(self, left: Tensor) -> None:
        """Go on with these rows alone."""
        self.keys, self._rows = self.keys[left], self._rows[left]

    def logps(self) -> Tensor | None:
        """[B, T] float32 log-probability of what was drawn for each row at each position; None where greedy."""
        if self.temperature == 0:
            return None
        chances = torch.ones(self._batch, len(self._chances))
        for position, (rows, chance) in enumerate(self._chances):
            chances[rows, position] = chance.cpu()
        return chances.log()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[B, L] ids and [B, V] logits -> [B, V] scores: 0 at the drawn token, -inf elsewhere."""
        position = input_ids.shape[1] - self.prompt_length
        if position < self.min_new_tokens and self.stop_ids:
            scores[:, self.stop_ids] = -torch.inf
        if self.temperature == 0:
            return scores
        drawn, chance = draw(scores.float() / self.temperature, uniforms(self.keys, position).to(scores.device))
        self._chances.append((self._rows, chance))
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn[:, None], 0.0)


def draw(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The token at which the cumulative probability passes `uniform`: [B, V] float32, [B] in [0, 1) -> [B] int64; and
    its probability, [B] float32.

    Inverse transform sampling. A float32 sum of probabilities may end below or above 1, so the draw is scaled by it.
    """
    distribution = torch.softmax(logits, dim=-1)
    cumulative = distribution.cumsum(dim=-1)
    index = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    index.clamp_(max=logits.shape[-1] - 1)
    return index.squeeze(1), distribution.gather(1, index).squeeze(1)


def uniforms(keys: Tensor, position: int) -> Tensor:
    """One float32 in [0, 1) for each row at one position: [B] int64 -> [B], 24 bits each."""
    return (_mixed(keys + _signed(_GOLDEN * (position + 1))) >> 40 & 0xFFFFFF).float() / 2**24


def row_keys(seed: int, update: int, prompts: Sequence[int], samples: Sequence[int]) -> Tensor:
    """One 64-bit key a row, [B] int64, hashed from (seed, update, prompt, sample)."""
    key = torch.zeros(len(prompts), dtype=torch.int64)
    for part in (
        torch.full_like(key, seed),
        torch.full_like(key, update),
        torch.tensor(prompts, dtype=torch.int64),
        torch.tensor(samples, dtype=torch.int64),
    ):
        key = _mixed(key * 31 + part + _signed(_GOLDEN))
    return key


def later(keys: Tensor, positions: Sequence[int]) -> Tensor:
    """Keys [N] whose draws begin at each row's position: what follows ids that were drawn with `keys` up to there."""
    return keys + torch.tensor([_signed(_GOLDEN * position) for position in positions], dtype=torch.int64)


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014) on int64 that wraps around: [B] -> [B]."""
    for shift, factor in _MIX:
        x = (x ^ _shifted(x, shift)) * _signed(factor)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A shift to the right that brings in zeros; torch's own brings in the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >= 1 << 63 else x
