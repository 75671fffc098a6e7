"""How far new labels of responses agree with the ranks that they replace. Knows no judge, no reward and no file."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from alignkit.chunks import Row
from alignkit.evaluation.statistics import Bootstrap, wilson


def agreement(rows: Sequence[Row], worth: Callable[[Row], Mapping[int, float]]) -> dict[str, float]:
    """`agreement`: the share of pairs of responses to one prompt, untied by their old ranks and by `worth`, that both
    order alike. Empty where no row had ranks.

    `worth(row)` gives scores by the places of its answers, of those that have one; equal responses are one. low and
    high bound it with 95 % confidence: by Wilson's interval where each prompt has one such pair, else by a bootstrap
    over prompts, since pairs of one prompt are not independent. undecided: pairs that the old ranks alone order.
    """
    counts = [_counts(row, worth(row)) for row in rows if row.get("ranks")]
    alike, pairs, undecided = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0, 0)
    if not pairs + undecided:
        return {}
    result: dict[str, float] = {}
    if pairs:
        each = [(same, both) for same, both, _ in counts if both]
        one_each = pairs == len(each)
        found = wilson(alike, pairs) if one_each else Bootstrap().ratio(*zip(*each, strict=True))
        result["agreement"] = found.value
        if found.low is not None and found.high is not None:
            result |= {"agreement/low": found.low, "agreement/high": found.high}
    return result | {"agreement/pairs": pairs, "agreement/undecided": undecided}


def _counts(row: Row, scores: Mapping[int, float]) -> tuple[int, int, int]:
    """(ordered alike, untied by both, untied by the old ranks alone): pairs of the row's different responses."""
    ranks, said = row["ranks"], [answer["response"] for answer in row["answers"]]
    first = [place for place, one in enumerate(said) if said.index(one) == place]
    ordered = [(i, j) if ranks[i] < ranks[j] else (j, i) for i, j in combinations(first, 2) if ranks[i] != ranks[j]]
    untied = [(i, j) for i, j in ordered if i in scores and j in scores and scores[i] != scores[j]]
    return sum(scores[i] > scores[j] for i, j in untied), len(untied), len(ordered) - len(untied)
