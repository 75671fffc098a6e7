"""Who is held out for validation, by the hash of the conversation's beginning. Knows no file and no stage."""

import hashlib
import math
from array import array
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from alignkit.config import InputError
from alignkit.records import Demonstration, Document, Messages, Prompt, Record


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


def draws_of(records: Iterable[Record], seed: int) -> NDArray[np.float64]:
    """[N] a number in [0, 1) for each record, which depends on its beginning and the seed alone."""
    # an array grows by a sixteenth at a time, numpy's by a half
    return np.frombuffer(array("d", (draw(beginning(record), seed) for record in records)))


def held_out(draws: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """[N] who is held out, by their draws. `share` below 1: that share of all beginnings; else at least that many
    records; 0: none.

    Records with the same beginning fall on the same side, and with a share a record's side does not change when others
    are added. At least one record stays on each side. Raises InputError where that cannot be.
    """
    total = len(draws)
    if share == 0 or not total:
        return np.zeros(total, np.bool_)
    lowest, highest = draws.min(initial=1.0), draws.max(initial=0.0)
    if lowest >= highest:
        raise InputError(
            f"`data.validation`: all {total} records begin with the same question, so none can be held out; "
            "set validation: 0, or give more data"
        )
    if share >= total:
        raise InputError(f"`data.validation`: {share:g} records are to be held out of {total}; hold out fewer")
    if share < 1:
        below = max(lowest, draws.max(where=draws < share, initial=0.0))
    else:
        last = math.ceil(share) - 1
        below = np.partition(draws, last)[last]
    return draws <= min(below, draws.max(where=draws < highest, initial=0.0))


def draw(text: str, seed: int) -> float:
    """A number in [0, 1) that depends on the text and the seed alone."""
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def cut_document(document: Document, share: float) -> tuple[Document, Document]:
    """One long text, its last `share` (below 1) held out, cut at the end of a line where there is one near."""
    at = max(1, min(len(document.text) - 1, round(len(document.text) * (1 - share))))
    line = document.text.rfind("\n", at // 2, at) + 1
    at = line or at
    head, tail = document.text[:at], document.text[at:]
    return document.model_copy(update={"text": head}), document.model_copy(update={"text": tail})
