"""Lays the trie of a batch's sequences out in rows under a token budget; knows nothing of text, models or losses.

Equal token prefixes are merged, the trie is laid out depth first, and token i sees token j if and only if
j <= i < end[j]. Every distinct token of a row is computed once, and none is padding.
"""

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import torch
from torch import Tensor

from alignkit.config import InputError


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


def pack(sequences: Sequence[TokenSequence], budget: int, *, share: bool = True) -> list[TrieBatch]:
    """Rows of at most `budget` tokens that hold every sequence, equal prefixes merged.

    A group stays in one row unless it exceeds the budget alone; it is then spread, its prefix repeated.
    With `share=False` no prefix is merged (for comparison only). Sequence n of the list is owner n.
    Raises InputError for a sequence longer than the budget.
    """
    for n, sequence in enumerate(sequences):
        if len(sequence.ids) > budget:
            raise InputError(
                f"sequence {n} has {len(sequence.ids)} tokens, more than the token budget {budget}: "
                "raise runtime.token_budget or shorten it (data.max_length)"
            )
    keys = [tuple(s.ids) if share else (-n - 1, *s.ids) for n, s in enumerate(sequences)]
    first_entry: list[int] = []
    total = 0
    for sequence in sequences:
        first_entry.append(total)
        total += sum(w != 0 for w in sequence.weights)
    rows, split = _fill_rows(sequences, keys, budget, 0 if share else 1)
    return [_lay_out(row, sequences, first_entry, share, split) for row in rows]


Key = tuple[tuple[int, ...], int]


def _fill_rows(
    sequences: Sequence[TokenSequence], keys: list[tuple[int, ...]], budget: int, surplus: int
) -> tuple[list[list[int]], bool]:
    """Which sequences stand in which row, each row in the order of its trie, and whether a group was spread.

    `surplus` leading numbers of each key are no tokens (they only keep keys apart).
    """
    by_group: dict[int, list[Key]] = {}
    for n, sequence in enumerate(sequences):
        by_group.setdefault(sequence.group if sequence.group >= 0 else -n - 1, []).append((keys[n], n))
    groups = sorted((sorted(members) for members in by_group.values()), key=lambda members: members[0])
    rows: list[list[Key]] = []
    row: list[Key] = []
    used, split = 0, False
    for members in groups:
        trial, added = _insert(row, members, surplus)
        if used + added <= budget:
            row, used = trial, used + added
            continue
        if row:
            rows.append(row)
        row, used = _insert([], members, surplus)
        if used <= budget:
            continue
        split, row, used = True, [], 0
        for member in members:
            trial, added = _insert(row, [member], surplus)
            if used + added > budget:
                rows.append(row)
                trial, added = _insert([], [member], surplus)
                used = 0
            row, used = trial, used + added
    if row:
        rows.append(row)
    return [[n for _, n in row] for row in rows], split


def _insert(row: list[Key], members: list[Key], surplus: int) -> tuple[list[Key], int]:
    """The row with the members in their places, and how many nodes the trie gains."""
    row, added = list(row), 0
    for member in members:
        place = bisect_left(row, member)
        shared = max(
            _common(row[place - 1][0], member[0]) if place else 0,
            _common(row[place][0], member[0]) if place < len(row) else 0,
        )
        added += len(member[0]) - surplus - shared
        insort(row, member)
    return row, added


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix, by doubling and halving: slices compare at C speed."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _lay_out(
    row: list[int], sequences: Sequence[TokenSequence], first_entry: list[int], share: bool, split: bool
) -> TrieBatch:
    """The tensors of one row, whose sequences come in depth-first order."""
    ids: list[int] = []
    positions: list[int] = []
    end: list[int] = []
    source: list[int] = []
    target: list[int] = []
    owner: list[int] = []
    weight: list[float] = []
    entry: list[int] = []
    last: list[int] = []
    names = sorted({name for n in row for name in sequences[n].columns})
    token_names = sorted({name for n in row for name in sequences[n].token_columns})
    entry_columns: dict[str, list[float]] = {name: [] for name in token_names}
    path: list[int] = []
    before: tuple[int, ...] = ()
    for o, n in enumerate(row):
        sequence = sequences[n]
        tokens = tuple(sequence.ids)
        shared = _common(before, tokens) if share else 0
        fresh = len(ids)
        for node in path[shared:]:
            end[node] = fresh
        path = path[:shared] + list(range(fresh, fresh + len(tokens) - shared))
        ids += tokens[shared:]
        positions += range(shared, len(tokens))
        end += [0] * (len(tokens) - shared)
        before = tokens
        last.append(path[-1])
        kept = [t for t, w in enumerate(sequence.weights) if w != 0]
        source += [path[t - 1] for t in kept]
        target += [tokens[t] for t in kept]
        weight += [sequence.weights[t] for t in kept]
        owner += [o] * len(kept)
        entry += range(first_entry[n], first_entry[n] + len(kept))
        for name in token_names:
            column = sequence.token_columns[name]
            entry_columns[name] += [column[t] for t in kept]
    for node in path:
        end[node] = len(ids)
    return TrieBatch(
        *(torch.tensor(x, dtype=torch.int64) for x in (ids, positions, end, source, target, owner)),
        weight=torch.tensor(weight, dtype=torch.float32),
        entry=torch.tensor(entry, dtype=torch.int64),
        last=torch.tensor(last, dtype=torch.int64),
        owners=torch.tensor(row, dtype=torch.int64),
        group=torch.tensor([sequences[n].group for n in row], dtype=torch.int64),
        entry_columns={k: torch.tensor(v, dtype=torch.float32) for k, v in entry_columns.items()},
        owner_columns={k: torch.tensor([sequences[n].columns[k] for n in row], dtype=torch.float32) for k in names},
        split_groups=split,
    )


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


def sum_by_owner(values: Tensor, batch: TrieBatch) -> Tensor:
    """Σ over each sequence's entries: [E] -> [O]."""
    return torch.zeros(len(batch.owners), dtype=values.dtype, device=values.device).index_add(0, batch.owner, values)


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
