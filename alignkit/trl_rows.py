"""Token sequences as the rows of TRL's datasets. Knows no trainer and no model."""

import copy
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedTokenizerBase

from alignkit.batches import Example
from alignkit.config import InputError
from alignkit.losses import ranking_pairs
from alignkit.trie import TokenSequence

Row: TypeAlias = dict[str, Any]
UNTRAINED = -100
"""The label of a token that no loss is of."""


def labelled_rows(examples: Sequence[Example]) -> list[Row]:
    """Each sequence with its labels, for trainer: sft."""
    rows: list[Row] = []
    for sequence in (sequence for example in examples for sequence in example):
        if odd := next((weight for weight in sequence.weights if weight not in (0, 1)), None):
            raise InputError(f"trainer: sft knows no weights, and a turn has {odd:g}; use a stage of type sft")
        pairs = zip(sequence.ids, sequence.weights, strict=True)
        labels = [id if weight else UNTRAINED for id, weight in pairs]
        rows.append({"input_ids": list(sequence.ids), "labels": labels})
    return rows


def whole_pair_rows(examples: Sequence[Example]) -> list[Row]:
    """Rankings for trainer: reward, a row for each untied pair: two conversations."""
    return [{"chosen_ids": list(a.ids), "rejected_ids": list(b.ids)} for a, b in _pairs(examples)]


def pair_rows(examples: Sequence[Example]) -> list[Row]:
    """Rankings for trainer: dpo, a row for each untied pair: a prompt and two responses."""
    rows: list[Row] = []
    for better, worse in _pairs(examples):
        (first, end), (other, last) = (_response(one, "dpo") for one in (better, worse))
        start = min(first, other)
        prompt, chosen, rejected = better.ids[:start], better.ids[start:end], worse.ids[start:last]
        rows.append({"prompt_ids": list(prompt), "chosen_ids": list(chosen), "rejected_ids": list(rejected)})
    return rows


def response_rows(examples: Sequence[Example], size: int) -> list[Row]:
    """Labelled responses for trainer: kto, each with the one before it in its batch of `size`, of which TRL estimates
    the KL."""
    rows: list[Row] = []
    for (sequence,) in examples:
        start, end = _response(sequence, "kto")
        prompt, response = list(sequence.ids[:start]), list(sequence.ids[start:end])
        label = bool(sequence.columns["good"])
        rows.append({"prompt_ids": prompt, "completion_ids": response, "label": label})
    for first in range(0, len(rows), size):
        batch = rows[first : first + size]
        for place, row in enumerate(batch):
            row["KL_completion_ids"] = batch[place - 1]["completion_ids"]
    return rows


def _pairs(examples: Sequence[Example]) -> list[tuple[TokenSequence, TokenSequence]]:
    """(better, worse) of each ranking's untied pairs."""
    pairs: list[tuple[TokenSequence, TokenSequence]] = []
    for example in examples:
        ranks = torch.tensor([sequence.columns["rank"] for sequence in example])
        better, worse, _ = ranking_pairs(ranks, torch.zeros(len(example), dtype=torch.int64))
        pairs += [(example[b], example[w]) for b, w in zip(better.tolist(), worse.tolist(), strict=True)]
    return pairs


def _response(sequence: TokenSequence, trainer: str) -> tuple[int, int]:
    """Where the response starts and ends: the token that ends a turn is no part of one that was cut off. Raises
    InputError where a token in between is not trained, which TRL cannot be told."""
    trained = [n for n, weight in enumerate(sequence.weights) if weight]
    if not trained:
        return len(sequence.ids), len(sequence.ids)
    start, end = trained[0], trained[-1] + 1
    if any(weight != 1 for weight in sequence.weights[start:end]):
        raise InputError(
            f"trainer: {trainer} trains every token of a response, and one holds turns of others, or a weight that is "
            f"not 1; use a stage of type {trainer}"
        )
    return start, end


def padded_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> PreTrainedTokenizerBase:
    """The tokenizer, or a copy of it that pads with a token in which none of the rows ends.

    A SequenceClassification model reads its score at the last token that is not the padding: where that one ends a
    row, it would silently read a token too early.
    """
    ends = {row[name][-1] for row in rows for name in ("chosen_ids", "rejected_ids")}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in ends:
        return tokenizer
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = next(token for token, id in sorted(tokenizer.get_vocab().items()) if id not in ends)
    return padded
