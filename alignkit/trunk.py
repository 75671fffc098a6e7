"""Runs a transformers model over one row of a trie and reads hidden states off it; knows nothing of heads or losses.

Models that pass the self-check see the row as it is. The others see each sequence in a plain pass of its own
attention, sequences of one length together, and give the same states.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignkit.attention import KEYWORD, NAME, trie_layout
from alignkit.packing import TrieBatch, paths


@dataclass(frozen=True, slots=True)
class States:
    """Hidden states of a row."""

    hidden: Tensor
    """[N, D]: one row a node (a trie pass), or one row a token of each sequence (plain passes)."""
    starts: Tensor | None
    """[O] int64, where each sequence's states start; None after a trie pass."""
    output: type[Any]
    """The class of the trunk's output."""

    def at(self, batch: TrieBatch, nodes: Tensor, owners: Tensor) -> Tensor:
        """[K, D]: the states of `nodes` [K] as sequences `owners` [K] see them."""
        if self.starts is None:
            return self.hidden.index_select(0, nodes)
        return self.hidden.index_select(0, self.starts[owners] + batch.positions[nodes])


def trunk_of(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its head: what its own forward calls."""
    decoder = model.get_decoder()
    if decoder is not model:
        return decoder
    return next(child for child in model.children() if isinstance(child, PreTrainedModel))


def run_trunk(trunk: PreTrainedModel, batch: TrieBatch, tries: bool) -> States:
    """One forward pass of `trunk` (a model without its head) over a row."""
    if not tries:
        return _run_separately(trunk, batch)
    output = trunk(
        input_ids=batch.ids[None],
        position_ids=batch.positions[None],
        use_cache=False,
        **{KEYWORD: trie_layout(batch)},
    )
    return States(output.last_hidden_state[0], None, type(output))


def _run_separately(trunk: PreTrainedModel, batch: TrieBatch) -> States:
    found = paths(batch)
    by_length: dict[int, list[int]] = {}
    for owner, path in enumerate(found):
        by_length.setdefault(len(path), []).append(owner)
    parts: list[Tensor] = []
    starts = [0] * len(found)
    offset, kind = 0, object
    for length, owners in by_length.items():
        output = trunk(input_ids=torch.stack([batch.ids[found[o]] for o in owners]), use_cache=False)
        kind = type(output)
        parts.append(output.last_hidden_state.flatten(0, 1))
        for owner in owners:
            starts[owner], offset = offset, offset + length
    return States(torch.cat(parts), torch.tensor(starts, device=batch.ids.device), kind)


@contextmanager
def plain_attention(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model with its ordinary attention, for `generate` and every other call without a trie."""
    if model.config._attn_implementation != NAME:
        yield model
        return
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    try:
        yield model
    finally:
        model.set_attn_implementation(NAME)


@contextmanager
def replaced_trunk(model: PreTrainedModel, output: Any) -> Iterator[None]:
    """While open, the model's trunk returns `output`: its own head then runs on states we already have."""
    trunk = trunk_of(model)
    trunk.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del trunk.forward
