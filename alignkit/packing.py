"""Merges equal prefixes of sequences and lays them out in rows under a token budget; knows nothing of text or models.

The trie is laid out depth first; every distinct token of a row is computed once, and none is padding.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import torch

from alignkit.config import InputError
from alignkit.trie import TokenSequence, TrieBatch


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
