"""What a model remembers of prompts it is about to answer, each distinct token computed once. Knows no sampling."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from alignkit.attention import KEYWORD
from alignkit.layout import trie_layout
from alignkit.packing import pack
from alignkit.policy import Policy
from alignkit.trie import TokenSequence, paths
from alignkit.trunk import trunk_of

ROW = 8192
"""Tokens in one forward pass, or those of the longest prompt."""


class RoomyLayer(DynamicLayer):
    """Appends into space held for `room` tokens: its base class copies all that came before, token by token."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.held: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, N, D] of N further tokens -> those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if not self.held:
            self.held = [x.new_empty((*x.shape[:-2], self.room, x.shape[-1])) for x in (key_states, value_states)]
            if start:
                self.held[0][..., :start, :], self.held[1][..., :start, :] = self.keys, self.values
        self.held[0][..., start:stop, :], self.held[1][..., start:stop, :] = key_states, value_states
        self.keys, self.values = (held[..., :stop, :] for held in self.held)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch."""
        super().batch_select_indices(indices)
        self.held = []


def prompt_cache(policy: Policy, contexts: Sequence[Sequence[int]], new_tokens: int) -> DynamicCache | None:
    """Keys and values of all but the last token of each context, as `generate` on left-padded contexts wants them,
    with room for `new_tokens`.

    Contexts are read off tries: the samples of a prompt share it, prompts share what they begin with, and none is
    padded. None where the model cannot be read so, or keeps more than keys and values.
    """
    policy.speak()
    before = [list(context[:-1]) for context in contexts]
    cache = DynamicCache(config=policy.model.config.get_text_config(decoder=True))
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
    if not policy.tries or not plain or not all(before):
        return None
    width = max(map(len, before))
    room = width + 1 + new_tokens
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    device = next(policy.model.parameters()).device
    owners: list[int] = []
    keys: dict[int, list[Tensor]] = {}
    values: dict[int, list[Tensor]] = {}
    rows = pack([TokenSequence(ids, [0.0] * len(ids)) for ids in before], max(ROW, width))
    for row in (row.to(device) for row in rows):
        seen = DynamicCache()
        trunk_of(policy.model)(
            input_ids=row.ids[None],
            position_ids=row.positions[None],
            past_key_values=seen,
            use_cache=True,
            **{KEYWORD: trie_layout(row)},
        )
        nodes = torch.stack([torch.cat([path[:1].expand(width - len(path)), path]) for path in paths(row)])
        for number, layer in enumerate(seen.layers):
            keys.setdefault(number, []).append(layer.keys[0][:, nodes].transpose(0, 1))
            values.setdefault(number, []).append(layer.values[0][:, nodes].transpose(0, 1))
        owners += row.owners.tolist()
    order = torch.tensor(owners, device=device).argsort()
    for number, parts in keys.items():
        cache.update(torch.cat(parts)[order], torch.cat(values[number])[order], number)
    return cache
