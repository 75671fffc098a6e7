"""Who is held out for validation, by the hash of the conversation's beginning. Knows no file and no stage."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from alignkit.config import InputError
from alignkit.records import Demonstration, Document, Messages, Prompt, Record

R = TypeVar("R", bound=Record)


def beginning(record: Record) -> str:
    """What a record shares with all others of its conversation: the first user turn, or a document's whole text.

    Longer conversations that grew from one question, and answers to the same question, begin alike; a system prompt
    that many conversations share does not count. Case and spacing make no difference.
    """
    if isinstance(record, Document):
        text = record.text
    else:
        turns: Messages = record.messages if isinstance(record, Demonstration | Prompt) else dict(record)["prompt"]
        text = next((turn.content for turn in turns if turn.role == "user"), turns[0].content)
    return " ".join(text.casefold().split())


def hold_out(records: Sequence[R], share: float, seed: int) -> tuple[list[R], list[R]]:
    """(train, validation). `share` below 1: that share of all beginnings; else at least that many records.

    Records with the same beginning fall on the same side, and with a share a record's side does not change when others
    are added. At least one record stays on each side. Raises InputError where that cannot be.
    """
    if share == 0:
        return list(records), []
    draws = [draw(beginning(record), seed) for record in records]
    order = sorted(set(draws))
    if len(order) < 2:
        raise InputError(
            f"`data.validation`: all {len(records)} records begin with the same question, so none can be held out; "
            "set validation: 0, or give more data"
        )
    if share < 1:
        below = max(order[0], max((draw for draw in order if draw < share), default=0.0))
    else:
        below = _enough(draws, order, share, len(records))
    below = min(below, order[-2])
    train = [record for record, draw in zip(records, draws, strict=True) if draw > below]
    return train, [record for record, draw in zip(records, draws, strict=True) if draw <= below]


def draw(text: str, seed: int) -> float:
    """A number in [0, 1) that depends on the text and the seed alone."""
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _enough(draws: Sequence[float], order: Sequence[float], count: float, total: int) -> float:
    if count >= total:
        raise InputError(f"`data.validation`: {count:g} records are to be held out of {total}; hold out fewer")
    sizes: dict[float, int] = {}
    for draw in draws:
        sizes[draw] = sizes.get(draw, 0) + 1
    held = 0
    for draw in order:
        held += sizes[draw]
        if held >= count:
            return draw
    return order[-1]


def cut_document(document: Document, share: float) -> tuple[Document, Document]:
    """One long text, its last `share` (below 1) held out, cut at the end of a line where there is one near."""
    at = max(1, min(len(document.text) - 1, round(len(document.text) * (1 - share))))
    line = document.text.rfind("\n", at // 2, at) + 1
    at = line or at
    head, tail = document.text[:at], document.text[at:]
    return document.model_copy(update={"text": head}), document.model_copy(update={"text": tail})
