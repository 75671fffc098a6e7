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
from transformers.modeling_layers import GradientCheckpointingLayer

from alignkit.attention import KEYWORD, NAME
from alignkit.layout import trie_layout
from alignkit.trie import TrieBatch, paths


@dataclass(frozen=True, slots=True)
class States:
    """Hidden states that were read off a row."""

    hidden: Tensor
    """[K, D]."""
    output: type[Any]
    """The class of the trunk's output."""


def trunk_of(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its head: what its own forward calls."""
    decoder = model.get_decoder()
    if decoder is not model:
        return decoder
    return next(child for child in model.children() if isinstance(child, PreTrainedModel))


def run_trunk(trunk: PreTrainedModel, batch: TrieBatch, nodes: Tensor, owners: Tensor, tries: bool) -> States:
    """The states of `nodes` [K] as sequences `owners` [K] see them, of `trunk` (a model without its head)."""
    if not tries:
        return _run_separately(trunk, batch, nodes, owners)
    with _last_mlp_at(trunk, nodes):
        output = trunk(
            input_ids=batch.ids[None],
            position_ids=batch.positions[None],
            use_cache=False,
            **{KEYWORD: trie_layout(batch)},
        )
    return States(output.last_hidden_state.squeeze(0).index_select(0, nodes), type(output))


@contextmanager
def _last_mlp_at(trunk: PreTrainedModel, nodes: Tensor) -> Iterator[None]:
    """While open, the last layer's MLP computes `nodes` alone, and leaves 0 elsewhere: no other state is read.

    Does nothing where a layer keeps its MLP under another name, or runs again backward, after this has closed.
    """
    layers = [module for module in trunk.modules() if isinstance(module, GradientCheckpointingLayer)]
    mlp = dict(layers[-1].named_children()).get("mlp") if layers else None
    if mlp is None or not len(nodes) or layers[-1].gradient_checkpointing:
        yield
        return
    whole, own, read = mlp.forward, vars(mlp).get("forward"), nodes.unique()

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        returned = whole(hidden.index_select(1, read), *args, **kwargs)
        some = returned[0] if isinstance(returned, tuple) else returned  # experts return their router's scores too
        placed = some.new_zeros(hidden.shape).index_copy(1, read, some)
        return (placed, *returned[1:]) if isinstance(returned, tuple) else placed

    mlp.forward = forward
    try:
        yield
    finally:
        if own is None:
            del mlp.forward
        else:
            mlp.forward = own


def _run_separately(trunk: PreTrainedModel, batch: TrieBatch, nodes: Tensor, owners: Tensor) -> States:
    found = paths(batch)
    by_length: dict[int, list[int]] = {}
    for owner, path in enumerate(found):
        by_length.setdefault(len(path), []).append(owner)
    parts: list[Tensor] = []
    starts = [0] * len(found)
    offset, kind = 0, object
    for length, members in by_length.items():
        output = trunk(input_ids=torch.stack([batch.ids[found[o]] for o in members]), use_cache=False)
        kind = type(output)
        parts.append(output.last_hidden_state.flatten(0, 1))
        for owner in members:
            starts[owner], offset = offset, offset + length
    places = torch.tensor(starts, device=batch.ids.device)[owners] + batch.positions[nodes]
    return States(torch.cat(parts).index_select(0, places), kind)


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
