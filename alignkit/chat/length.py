"""Examples that are too long: refused, skipped or cut, and counted. It does not know text."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from alignkit.config import InputError
from alignkit.trie import TokenSequence

OverLong = Literal["error", "skip", "truncate_prompt_left", "truncate_answer"]


def fit_length(
    sequences: Sequence[TokenSequence],
    max_length: int,
    over_long: OverLong,
    *,
    bos_id: int | None = None,
    counts: Counter[str] | None = None,
) -> list[TokenSequence] | None:
    """The sequences of one example, none longer than max_length tokens; None where the example is to be skipped.

    truncate_prompt_left takes the same number of tokens from the start of all (a leading `bos_id` stays), so that
    they still share a prompt; truncate_answer cuts their ends. An example whose answers leave no room for a token of
    the prompt, or the reverse, is skipped. `counts` gets skipped and truncated. Raises InputError for "error".
    """
    counts = Counter() if counts is None else counts
    longest = max(len(sequence.ids) for sequence in sequences)
    if longest <= max_length:
        return list(sequences)
    if over_long == "error":
        raise InputError(
            f"an example has {longest} tokens and data.max_length is {max_length}; raise it, or set data.over_long to "
            "skip, truncate_prompt_left or truncate_answer"
        )
    contexts = [next((i for i, w in enumerate(one.weights) if w), len(one.ids)) for one in sequences]
    if over_long == "truncate_prompt_left":
        keep = int(sequences[0].ids[0] == bos_id)
        start = keep + longest - max_length
        fits, spans = start < min(contexts), [[slice(0, keep), slice(start, None)]] * len(sequences)
    else:
        fits, spans = max(contexts) < max_length, [[slice(0, max_length)]] * len(sequences)
    if over_long == "skip" or not fits:
        counts["skipped"] += 1
        return None
    counts["truncated"] += 1
    return [_take(sequence, slices) for sequence, slices in zip(sequences, spans, strict=True)]


def _take(sequence: TokenSequence, slices: Sequence[slice]) -> TokenSequence:
    def cut(values: Sequence[Any]) -> list[Any]:
        return [value for part in slices for value in values[part]]

    columns = {name: cut(values) for name, values in sequence.token_columns.items()}
    return replace(sequence, ids=cut(sequence.ids), weights=cut(sequence.weights), token_columns=columns)
