"""The trie's layout: what it holds, what it shares, how it is cut into rows."""

import random

import pytest
import torch

from alignkit.packing import pack
from alignkit.trie import TokenSequence, join, paths, sum_by_owner


def sequences_of(seed: int, groups: int = 5) -> list[TokenSequence]:
    """Groups of sequences that share prefixes at two depths, with token and sequence columns that name them."""
    draw = random.Random(seed)
    found: list[TokenSequence] = []
    for group in range(groups):
        prompt = [draw.randrange(9) for _ in range(draw.randrange(2, 7))]
        for _ in range(draw.randrange(1, 4)):
            turn = prompt + [draw.randrange(9) for _ in range(draw.randrange(1, 4))]
            for _ in range(draw.randrange(1, 4)):
                ids = turn + [draw.randrange(9) for _ in range(draw.randrange(1, 6))]
                weights = [0.0] * len(prompt) + [draw.choice([0.0, 1.0, 0.5]) for _ in ids[len(prompt) :]]
                number = float(len(found))
                columns = {"at": [number * 100 + t for t in range(len(ids))]}
                found.append(TokenSequence(ids, weights, group, {"number": number}, columns))
    return found


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("budget", [16, 40, 1000])
def test_every_sequence_and_every_weighted_prediction_is_in_one_row_once(share: bool, budget: int) -> None:
    sequences = sequences_of(budget)
    seen: dict[int, list[tuple[int, float, float]]] = {}
    for row in pack(sequences, budget, share=share):
        assert len(row.ids) <= budget
        for owner, path in enumerate(paths(row)):
            number = int(row.owners[owner])
            assert number not in seen
            assert row.ids[path].tolist() == list(sequences[number].ids)
            assert row.positions[path].tolist() == list(range(len(path)))
            assert row.owner_columns["number"][owner] == number
            mine = row.owner == owner
            sources = row.source[mine]
            assert all(source in path for source in sources)
            columns = row.entry_columns["at"][mine].tolist()
            depths = (row.positions[sources] + 1).tolist()
            assert columns == [number * 100 + t for t in depths]
            seen[number] = list(zip(depths, row.weight[mine].tolist(), row.target[mine].tolist(), strict=True))
    for number, sequence in enumerate(sequences):
        expected = [(t, w, sequence.ids[t]) for t, w in enumerate(sequence.weights) if w]
        assert seen[number] == expected


def test_nodes_are_distinct_prefixes_so_nothing_is_computed_twice() -> None:
    sequences = sequences_of(3)
    (row,) = pack(sequences, 10_000)
    prefixes = {tuple(s.ids[: n + 1]) for s in sequences for n in range(len(s.ids))}
    assert len(row.ids) == len(prefixes)
    (apart,) = pack(sequences, 10_000, share=False)
    assert len(apart.ids) == sum(len(s.ids) for s in sequences)


def test_a_token_sees_its_path_and_nothing_else() -> None:
    (row,) = pack(sequences_of(4), 10_000)
    index = torch.arange(len(row.ids))
    sees = (index[None] <= index[:, None]) & (index[:, None] < row.end[None])
    for path in paths(row):
        assert torch.nonzero(sees[path[-1]]).flatten().tolist() == path.tolist()


def test_groups_stay_in_a_row_until_one_alone_exceeds_the_budget() -> None:
    group = [TokenSequence([1, 2, 3, n], [0, 0, 0, 1], group=7) for n in range(10, 14)]
    (row,) = pack(group, 7)
    assert not row.split_groups and len(row.ids) == 7
    rows = pack(group, 6)
    assert len(rows) == 2 and all(row.split_groups for row in rows)
    assert [len(row.ids) for row in rows] == [6, 4]
    others = [TokenSequence([5, 6, n], [0, 0, 1], group=8) for n in range(3)]
    assert not any(row.split_groups for row in pack(group + others, 7))


def test_entries_come_back_in_the_order_of_the_list_and_join_keeps_owners() -> None:
    sequences = sequences_of(6)
    targets = [s.ids[t] for s in sequences for t, w in enumerate(s.weights) if w]
    rows = pack(sequences, 30)
    back = torch.zeros(len(targets), dtype=torch.int64)
    for row in rows:
        back[row.entry] = row.target
    assert back.tolist() == targets
    joined = join(rows)
    sums = sum_by_owner(joined.weight, joined)
    for owner, number in enumerate(joined.owners.tolist()):
        assert sums[owner].item() == pytest.approx(sum(sequences[number].weights))
        assert joined.owner_columns["number"][owner] == number


def test_equal_sequences_and_prefixes_of_others_keep_their_own_owners() -> None:
    sequences = [
        TokenSequence([1, 2, 3], [0, 1, 1]),
        TokenSequence([1, 2], [0, 1]),
        TokenSequence([1, 2, 3], [0, 0, 1]),
    ]
    (row,) = pack(sequences, 100)
    assert row.ids.tolist() == [1, 2, 3]
    assert sorted(zip(row.owners[row.owner].tolist(), row.source.tolist(), strict=True)) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (2, 1),
    ]


@pytest.mark.parametrize(
    ("ids", "weights", "columns", "message"),
    [
        ([], [], {}, "needs tokens"),
        ([1, 2], [0.0], {}, "one weight each"),
        ([1, 2], [1.0, 1.0], {}, "must be 0"),
        ([1, 2], [0.0, 1.0], {"x": [1.0]}, "token column 'x'"),
    ],
)
def test_broken_sequences_are_refused(
    ids: list[int], weights: list[float], columns: dict[str, list[float]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TokenSequence(ids, weights, token_columns=columns)


def test_a_sequence_above_the_budget_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="sequence 1 has 5 tokens, more than the token budget 4"):
        pack([TokenSequence([1, 2], [0, 1]), TokenSequence([1, 2, 3, 4, 5], [0] * 5)], 4)
