"""What attention needs of a row of a trie, computed once for all layers; knows no kernel and no model.

The row falls into unbranched segments, each of which attends causally to its path from the root.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.trie import TrieBatch

# What one more kernel call costs, in query-key pairs: below it, padding segments together is cheaper.
CALL_COST = 4096


@dataclass(frozen=True, slots=True)
class SegmentGroup:
    """Segments of like length, padded together."""

    query: Tensor
    """[G, M] int64, the nodes of each segment; padding repeats the last."""
    key: Tensor
    """[G, K] int64, the nodes of each path from the root through the segment; padding repeats the last."""
    depth: Tensor
    """[G, M] int64, depth of each query: it sees keys 0 … depth."""
    causal: bool
    """Whether every segment starts at the root, so that no mask is needed."""

    def mask(self, window: int | None) -> Tensor:
        """[G, 1, M, K] bool."""
        keys = torch.arange(self.key.shape[1], device=self.key.device)
        seen = keys <= self.depth[:, :, None]
        if window is not None:
            seen &= keys > self.depth[:, :, None] - window
        return seen[:, None]


@dataclass(frozen=True, slots=True)
class TrieLayout:
    """What attention needs of a row, computed once and used by every layer."""

    groups: tuple[SegmentGroup, ...]
    order: Tensor
    """[T] int64, where each node's output stands in the groups' concatenated outputs."""
    query_starts: Tensor
    """[S+1] int32, where each segment starts in the row."""
    key_starts: Tensor
    """[S+1] int32, where each segment's path starts in `key_nodes`."""
    key_nodes: Tensor
    """[sum of path lengths] int64."""
    longest: tuple[int, int]
    """Longest segment and longest path."""
    masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def mask(self, number: int, window: int | None) -> Tensor:
        """The mask of one group, made once for all layers that share a window."""
        key = (number, window)
        if key not in self.masks:
            self.masks[key] = self.groups[number].mask(window)
        return self.masks[key]


def trie_layout(batch: TrieBatch) -> TrieLayout:
    """The layout of one row, on the row's device."""
    starts, found = _segments(batch.positions.tolist(), batch.end.tolist())
    device = batch.ids.device
    groups, placed = [], []
    for members in _groups_of_like_length(found):
        widest = max(stop - start for start, stop, _ in members)
        longest = max(len(path) for _, _, path in members)
        query = [_padded(list(range(start, stop)), widest) for start, stop, _ in members]
        key = [_padded(path, longest) for _, _, path in members]
        depth = [_padded(list(range(len(path) - stop + start, len(path))), widest) for start, stop, path in members]
        causal = all(start + len(path) == stop for start, stop, path in members)
        groups.append(SegmentGroup(*(torch.tensor(x, device=device) for x in (query, key, depth)), causal=causal))
        for start, stop, _ in members:
            placed += [*range(start, stop), *[-1] * (widest - stop + start)]
    order = [0] * len(batch.ids)
    for place, node in enumerate(placed):
        if node >= 0:
            order[node] = place
    lengths = [len(path) for _, _, path in found]
    return TrieLayout(
        groups=tuple(groups),
        order=torch.tensor(order, device=device),
        query_starts=torch.tensor([*starts, len(batch.ids)], dtype=torch.int32, device=device),
        key_starts=F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(device, torch.int32),
        key_nodes=torch.tensor([node for _, _, path in found for node in path], device=device),
        longest=(max(stop - start for start, stop, _ in found), max(lengths)),
    )


Segment = tuple[int, int, list[int]]


def _segments(positions: list[int], end: list[int]) -> tuple[list[int], list[Segment]]:
    """Where the row's unbranched segments start, and each as (start, stop, path from the root through it)."""
    starts = [0] + [
        i for i in range(1, len(end)) if not (positions[i] == positions[i - 1] + 1 and end[i] == end[i - 1])
    ]
    segments: list[Segment] = []
    path: list[int] = []
    for start, stop in pairwise([*starts, len(end)]):
        path = path[: positions[start]] + list(range(start, stop))
        segments.append((start, stop, path))
    return starts, segments


def _groups_of_like_length(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Pad segments together while the padding costs less than a further call."""
    groups: list[list[Segment]] = []
    at_root, width, height = False, 0, 0
    for segment in sorted(segments, key=lambda s: (s[0] + len(s[2]) != s[1], len(s[2]), s[1] - s[0])):
        start, stop, path = segment
        root = start + len(path) == stop
        widest = max(width, stop - start)
        if groups and root == at_root:
            padding = len(groups[-1]) * (widest * len(path) - width * height) + (widest - stop + start) * len(path)
            if padding <= CALL_COST:
                groups[-1].append(segment)
                width, height = widest, len(path)
                continue
        groups.append([segment])
        at_root, width, height = root, stop - start, len(path)
    return groups


def _padded(values: list[int], length: int) -> list[int]:
    return values + values[-1:] * (length - len(values))
