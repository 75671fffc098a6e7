"""Records and token sequences as the rows of TRL's datasets. Knows no trainer and no model."""

import copy
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedTokenizerBase

from alignkit.chat.render import as_turn
from alignkit.losses import ranking_pairs
from alignkit.records import Comparison, Demonstration, Feedback, Message, Prompt, Record
from alignkit.trie import TokenSequence

Row: TypeAlias = dict[str, Any]


def rows_of(record: Record, number: int, template_kwargs: Mapping[str, Any] = MappingProxyType({})) -> list[Row]:
    """A record in TRL's conversational form, with its tools and the template's keyword arguments; of a ranking, a row
    for each untied pair."""
    tools = getattr(record, "tools", None)
    more: Row = {"tools": json.dumps(tools)} if tools else {}
    more |= {"chat_template_kwargs": dict(template_kwargs)} if template_kwargs else {}
    return [row | more for row in _rows(record, number)]


def _rows(record: Record, number: int) -> list[Row]:
    def plain(messages: Sequence[Message]) -> list[Row]:
        return [as_turn(message) for message in messages]

    match record:
        case Demonstration():
            return [{"prompt": plain(record.messages[:-1]), "completion": plain(record.messages[-1:])}]
        case Comparison():
            ranks = torch.tensor(record.ranks)
            better, worse, _ = ranking_pairs(ranks, torch.zeros_like(ranks))
            answers = [plain(response) for response in record.responses]
            pairs = zip(better.tolist(), worse.tolist(), strict=True)
            return [{"prompt": plain(record.prompt), "chosen": answers[b], "rejected": answers[w]} for b, w in pairs]
        case Feedback():
            return [{"prompt": plain(record.prompt), "completion": plain(record.response), "label": record.label}]
        case Prompt():
            return [{"prompt": plain(record.messages), "number": number}]
        case _:
            raise TypeError(f"no trainer takes a {type(record).__name__}")


def pair_rows(examples: Sequence[Sequence[TokenSequence]]) -> list[dict[str, Any]]:
    """Rankings as the tokenized rows of a reward trainer, one for each untied pair."""
    rows: list[dict[str, Any]] = []
    for example in examples:
        ranks = torch.tensor([sequence.columns["rank"] for sequence in example])
        better, worse, _ = ranking_pairs(ranks, torch.zeros(len(example), dtype=torch.int64))
        for b, w in zip(better.tolist(), worse.tolist(), strict=True):
            rows.append({"chosen_ids": list(example[b].ids), "rejected_ids": list(example[w].ids)})
    return rows


def padded_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]) -> PreTrainedTokenizerBase:
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
