"""The trie of a batch's sequences as one row of tensors, and what is read off it; knows nothing of models or losses.

Token i sees token j if and only if j <= i < end[j]. Every distinct token of a row stands in it once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Tokens with weights: what a stage makes of one text."""

    ids: Sequence[int]
    """[L] token ids."""
    weights: Sequence[float]
    """[L] weight of the prediction of ids[t] from ids[:t]; 0 = context. The first has nothing before it: 0."""
    group: int = -1
    """Sequences of one example (a ranking, a pair, the samples of a prompt) share a group and a row."""
    columns: Mapping[str, float] = field(default_factory=dict[str, float])
    """Numbers of the whole sequence: rank, margin, label, reward …"""
    token_columns: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    """[L] numbers of each token, kept where the weight is not 0: old log-probability, advantage, return …"""

    def __post_init__(self) -> None:
        if not len(self.ids) or len(self.ids) != len(self.weights):
            raise ValueError(f"a sequence needs tokens and one weight each: {len(self.ids)} and {len(self.weights)}")
        if self.weights[0] != 0:
            raise ValueError("the first token of a sequence is predicted by nothing: its weight must be 0")
        for name, values in self.token_columns.items():
            if len(values) != len(self.ids):
                raise ValueError(f"token column {name!r} has {len(values)} values for {len(self.ids)} tokens")


@dataclass(frozen=True, slots=True)
class TrieBatch:
    """One row: a trie of T nodes in depth-first order, with E predictions for O sequences."""

    ids: Tensor
    """[T] int64, the token of each node."""
    positions: Tensor
    """[T] int64, its depth."""
    end: Tensor
    """[T] int64, one past the last node of its subtree."""
    source: Tensor
    """[E] int64: node `source` predicts …"""
    target: Tensor
    """[E] int64: … token id `target` …"""
    owner: Tensor
    """[E] int64: … for sequence `owner`, 0 … O-1 in this row."""
    weight: Tensor
    """[E] float32."""
    entry: Tensor
    """[E] int64, the prediction's number among those of all packed sequences, sequence by sequence."""
    last: Tensor
    """[O] int64, the node of each sequence's final token."""
    owners: Tensor
    """[O] int64, each sequence's index in the list that was packed."""
    group: Tensor
    """[O] int64."""
    entry_columns: dict[str, Tensor]
    """[E] float32 each."""
    owner_columns: dict[str, Tensor]
    """[O] float32 each."""
    split_groups: bool = False
    """Whether some group of the packed list is spread over several rows: its loss then needs all of them."""

    def to(self, device: torch.device | str) -> "TrieBatch":
        """The same row on another device."""
        moved: dict[str, Any] = {f.name: _move(getattr(self, f.name), device) for f in fields(self)}
        return TrieBatch(**moved)

    def silenced(self) -> "TrieBatch":
        """The same row with every weight 0: a forward pass that adds nothing."""
        return replace(self, weight=torch.zeros_like(self.weight))


def _move(
    value: "Tensor | dict[str, Tensor] | bool", device: torch.device | str
) -> "Tensor | dict[str, Tensor] | bool":
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return {k: v.to(device, non_blocking=True) for k, v in value.items()} if isinstance(value, dict) else value


def join(batches: Sequence[TrieBatch]) -> TrieBatch:
    """The entries and owners of several rows as one batch without tokens, for losses that need the whole step.

    Owners and entries stand in the rows' order, so readings of the rows concatenate to readings of the join.
    """
    offsets = [0]
    for batch in batches:
        offsets.append(offsets[-1] + len(batch.owners))
    nodes = torch.zeros(0, dtype=torch.int64, device=batches[0].ids.device)

    def columns(name: str) -> dict[str, Tensor]:
        parts: list[dict[str, Tensor]] = [getattr(batch, name) for batch in batches]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def concatenated(name: str) -> Tensor:
        return torch.cat([getattr(batch, name) for batch in batches])

    return TrieBatch(
        ids=nodes,
        positions=nodes,
        end=nodes,
        source=concatenated("source"),
        target=concatenated("target"),
        owner=torch.cat([batch.owner + offset for batch, offset in zip(batches, offsets, strict=False)]),
        weight=concatenated("weight"),
        entry=concatenated("entry"),
        last=concatenated("last"),
        owners=concatenated("owners"),
        group=concatenated("group"),
        entry_columns=columns("entry_columns"),
        owner_columns=columns("owner_columns"),
    )


def restrict(batch: TrieBatch, owners: Tensor) -> TrieBatch:
    """The sequences that `owners`, bool [O], names, with their entries, as a batch without tokens."""
    entries = owners[batch.owner]
    nodes = batch.ids[:0]
    return replace(
        batch,
        ids=nodes,
        positions=nodes,
        end=nodes,
        source=batch.source[entries],
        target=batch.target[entries],
        owner=(owners.cumsum(0) - 1)[batch.owner[entries]],
        weight=batch.weight[entries],
        entry=batch.entry[entries],
        last=batch.last[owners],
        owners=batch.owners[owners],
        group=batch.group[owners],
        entry_columns={name: column[entries] for name, column in batch.entry_columns.items()},
        owner_columns={name: column[owners] for name, column in batch.owner_columns.items()},
    )


def sum_by_owner(values: Tensor, batch: TrieBatch) -> Tensor:
    """Σ over each sequence's entries: [E] -> [O]."""
    return torch.zeros(len(batch.owners), dtype=values.dtype, device=values.device).index_add(0, batch.owner, values)


def places(batch: TrieBatch) -> Tensor:
    """[E] int64, each entry's number among those of its own sequence: 0 for the first token that has a weight."""
    lengths = torch.bincount(batch.owner, minlength=len(batch.owners))
    return torch.arange(len(batch.owner), device=batch.owner.device) - (lengths.cumsum(0) - lengths)[batch.owner]


def paths(batch: TrieBatch) -> list[Tensor]:
    """The nodes from root to leaf of each sequence of a row, [L] int64 each: what separate passes would read."""
    end, last = (cast(list[int], x.tolist()) for x in (batch.end, batch.last))  # pyright: ignore[reportUnknownMemberType]
    stack: list[int] = []
    found: dict[int, Tensor] = {}
    wanted = set(last)
    for node in range(len(end)):
        while stack and end[stack[-1]] <= node:
            stack.pop()
        stack.append(node)
        if node in wanted:
            found[node] = torch.tensor(stack, dtype=torch.int64, device=batch.ids.device)
    return [found[node] for node in last]
